#include "row_codes.h"

#include <float.h>
#include <math.h>

#include "kernels.h"

/// Extremes side by side along a row.
enum { LANES = 32 };

static inline float least(float a, float b) { return a < b ? a : b; }
static inline float greatest(float a, float b) { return a > b ? a : b; }

/// y = x · factor; false unless all are finite. The extremes hold 0.
static bool scaled_row(int64_t k, const float *restrict x, const float *restrict factor, float *restrict y, float *low, float *high) {
    float lows[LANES] = {0}, highs[LANES] = {0}, odd[LANES] = {0};
    int64_t j = 0;
    for (; j + LANES <= k; j += LANES)
        for (int64_t c = 0; c < LANES; c++) {
            float value = x[j + c] * factor[j + c];
            y[j + c] = value;
            lows[c] = least(value, lows[c]), highs[c] = greatest(value, highs[c]), odd[c] += value - value;
        }
    for (int64_t c = 0; j < k; j++, c++) {
        y[j] = x[j] * factor[j];
        lows[c] = least(y[j], lows[c]), highs[c] = greatest(y[j], highs[c]), odd[c] += y[j] - y[j];
    }
    float sum = 0;
    *low = *high = 0;
    for (int64_t c = 0; c < LANES; c++) *low = least(lows[c], *low), *high = greatest(highs[c], *high), sum += odd[c];
    return sum == 0;
}

static float scale_of(double span) { return span == 0 ? 1.0f : (float)fmax(span, (double)FLT_MIN); }

bool qrt_row_codes(int64_t n, int64_t k, const float *x, const float *factor, const qrt_row_form *form, uint8_t *codes,
                   float *scale, float *zero_point, float *room) {
    for (int64_t i = 0; i < n; i++, x += k, codes += k) {
        float low, high;
        if (!scaled_row(k, x, factor, room, &low, &high)) return false;
        const double least_value = (double)low, greatest_value = (double)high;
        if (form->is_symmetric) {
            scale[i] = scale_of(fmax(-least_value, greatest_value) / form->high);
            zero_point[i] = 0;
        } else {
            scale[i] = scale_of((greatest_value - least_value) / (form->high - form->low));
            double zero = rint(-least_value / (double)scale[i]) + form->low;
            zero_point[i] = (float)fmin(fmax(zero, form->low), form->high);
        }
        const qrt_code_grid grid = {
            .scale = scale + i, .divisor = scale + i, .zero_point = zero_point + i, .groups = 1,
            .low = (float)(form->is_symmetric ? -form->high : form->low), .high = (float)form->high,
        };
        qrt_kernels.code_grid.round(&grid, 1, k, room, codes, room + k);
    }
    return true;
}
