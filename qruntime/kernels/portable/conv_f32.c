/// The definition of convolutions of channels in blocks.
#include <math.h>

#include "../rungs.h"

enum { BLOCK = QRT_CHANNEL_BLOCK };

static const float zeros[BLOCK];

static float clamped(float x, float low, float high) {
    x = x < low ? low : x;
    return x > high ? high : x;
}

static void finish(float *y, const float *sums, const float *bias, const float *addend, const qrt_conv_epilogue *e) {
    for (int v = 0; v < BLOCK; v++) {
        float sum = sums[v];
        if (bias) sum += bias[v];
        if (addend) sum += addend[v];
        y[v] = clamped(sum, e->low, e->high);
    }
}

static void tile(const qrt_conv_sums *s, int num_positions, int num_blocks, float *y, int64_t y_plane, bool accumulate,
                 const qrt_conv_epilogue *epilogue) {
    const int64_t columns = num_blocks * BLOCK;
    for (int p = 0; p < num_positions; p++)
        for (int b = 0; b < num_blocks; b++) {
            float *to = y + b * y_plane + p * BLOCK, sums[BLOCK] = {0};
            for (int v = 0; accumulate && v < BLOCK; v++) sums[v] = to[v];
            for (int64_t i = 0; i < s->num_planes; i++)
                for (int64_t t = 0; t < s->num_taps; t++) {
                    const int64_t count = i + 1 < s->num_planes ? s->num_floats : s->num_last_floats;
                    const int64_t place = s->step ? s->places[t] + p * s->step : s->places[t * num_positions + p];
                    const float *x = place == QRT_OUTSIDE ? zeros : s->planes[i] + place;
                    const float *w = s->w + i * s->w_plane + s->taps[t] + b * BLOCK;
                    for (int64_t c = 0; c < count; c++, w += columns)
                        for (int v = 0; v < BLOCK; v++) sums[v] += x[c] * w[v];
                }
            if (epilogue)
                finish(to, sums, epilogue->bias ? epilogue->bias + b * BLOCK : NULL,
                       epilogue->addend ? epilogue->addend + b * epilogue->addend_plane + p * BLOCK : NULL, epilogue);
            else
                for (int v = 0; v < BLOCK; v++) to[v] = sums[v];
        }
}

static void depthwise(int64_t n, int64_t step, int64_t num_taps, const int64_t *places, const int64_t *taps, const float *w,
                      const float *x, float *y, const qrt_conv_epilogue *epilogue) {
    for (int64_t p = 0; p < n; p++) {
        float sums[BLOCK] = {0};
        for (int64_t t = 0; t < num_taps; t++)
            for (int v = 0; v < BLOCK; v++) sums[v] += x[p * step + places[t] + v] * w[taps[t] + v];
        finish(y + p * BLOCK, sums, epilogue->bias, epilogue->addend ? epilogue->addend + p * BLOCK : NULL, epilogue);
    }
}

static void maxima(int64_t n, int64_t step, int64_t num_taps, const int64_t *places, const float *x, float *y) {
    for (int64_t p = 0; p < n; p++)
        for (int v = 0; v < BLOCK; v++) {
            float found = -INFINITY;
            for (int64_t t = 0; t < num_taps; t++) {
                const float element = x[p * step + places[t] + v];
                found = element > found || element != element ? element : found;
            }
            y[p * BLOCK + v] = found;
        }
}

static void means(int64_t n, int64_t step, int64_t num_taps, const int64_t *places, float divisor, const float *x, float *y) {
    for (int64_t p = 0; p < n; p++)
        for (int v = 0; v < BLOCK; v++) {
            float sum = 0.0f;
            for (int64_t t = 0; t < num_taps; t++) sum += x[p * step + places[t] + v];
            y[p * BLOCK + v] = sum / divisor;
        }
}

void qrt_portable_conv_f32(qrt_kernel_table *t) { t->conv_f32 = (qrt_conv_f32){"portable", 1, {4}, {4}, tile, depthwise, maxima, means}; }
