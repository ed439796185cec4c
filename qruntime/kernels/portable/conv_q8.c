/// The definition of ranges of windows.
#include <math.h>
#include <string.h>

#include "../rungs.h"
#include "../vector/conv_q8_rows.inc.h"

static void extremes(const float *x, int64_t step, int64_t plane, int64_t channels, int64_t n, qrt_extremes of) {
    for (int64_t p = 0; p < n; p++) {
        of.least[p] = 0;
        of.greatest[p] = 0;
        for (int64_t c = 0; c < channels; c++) {
            uint32_t bits;
            memcpy(&bits, x + p * step + c / QRT_CHANNEL_BLOCK * plane + c % QRT_CHANNEL_BLOCK, sizeof bits);
            of.least[p] = bits > of.least[p] ? bits : of.least[p];
            of.greatest[p] = (int32_t)bits > of.greatest[p] ? (int32_t)bits : of.greatest[p];
        }
    }
}

static void parameters(const uint32_t *least, const int32_t *greatest, int64_t n, int32_t qmax, qrt_q8_row *rows, float *inverse_scales) {
    for (int64_t i = 0; i < n; i++) {
        float low, high;
        memcpy(&low, least + i, sizeof low);
        memcpy(&high, greatest + i, sizeof high);
        if (low != low || high != high) low = high = NAN;
        rows[i] = qrt_q8_parameters(low < 0.0f || low != low ? low : 0.0f, high, qmax);
        inverse_scales[i] = 1.0f / rows[i].scale;
    }
}

void qrt_portable_conv_q8(qrt_kernel_table *t) { t->conv_q8 = (qrt_conv_q8){extremes, widen, parameters, interleave}; }
