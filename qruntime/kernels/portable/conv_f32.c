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
            float *to = y + b * y_plane + p * s->y_step, sums[BLOCK] = {0};
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
                       epilogue->addend ? epilogue->addend + b * epilogue->addend_plane + p * s->y_step : NULL, epilogue);
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

static void depthwise_row(int64_t n, const qrt_conv_row *row, float *y, const qrt_conv_epilogue *epilogue) {
    for (int64_t p = 0; p < n; p++) {
        float sums[BLOCK] = {0};
        for (int64_t line = 0; line < row->rows * row->group; line++)
            for (int64_t k = 0; k < row->window; k++) {
                const int64_t i = p * row->step + k, h = line / row->group, j = line % row->group;
                const float *x = i >= row->begin && i < row->end ? row->x + h * row->x_row + i * BLOCK : zeros;
                const float *w = row->w + (line * row->window + k) * BLOCK;
                for (int v = 0; v < BLOCK; v++) sums[v] += x[v / row->group * row->group + j] * w[v];
            }
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

/// Bᵀ of four numbers `step` apart.
static void spread_four(float *d, int step) {
    const float a = d[0], b = d[step], c = d[2 * step], last = d[3 * step];
    d[0] = a - c;
    d[step] = b + c;
    d[2 * step] = c - b;
    d[3 * step] = b - last;
}

static void spread(int64_t n, const int64_t *places, const float *x, float *v, int64_t v_stride) {
    for (int64_t t = 0; t < n; t++, places += 16, v += BLOCK)
        for (int lane = 0; lane < BLOCK; lane++) {
            float d[16];
            for (int i = 0; i < 16; i++) d[i] = places[i] == QRT_OUTSIDE ? 0.0f : x[places[i] + lane];
            for (int i = 0; i < 4; i++) spread_four(d + 4 * i, 1);
            for (int j = 0; j < 4; j++) spread_four(d + j, 4);
            for (int i = 0; i < 16; i++) v[i * v_stride + lane] = d[i];
        }
}

static void collect(int64_t n, const int64_t *places, const float *m, int64_t m_stride, float *y, const qrt_conv_epilogue *epilogue) {
    for (int64_t t = 0; t < n; t++, places += 4, m += BLOCK) {
        float outputs[4][BLOCK];
        for (int lane = 0; lane < BLOCK; lane++) {
            float s[2][4];
            for (int j = 0; j < 4; j++) {
                const float *at = m + j * m_stride + lane;
                s[0][j] = at[0] + at[4 * m_stride] + at[8 * m_stride];
                s[1][j] = at[4 * m_stride] - at[8 * m_stride] - at[12 * m_stride];
            }
            for (int o = 0; o < 4; o++) {
                const float *row = s[o / 2];
                outputs[o][lane] = o % 2 ? row[1] - row[2] - row[3] : row[0] + row[1] + row[2];
            }
        }
        for (int o = 0; o < 4; o++)
            if (places[o] != QRT_OUTSIDE)
                finish(y + places[o], outputs[o], epilogue->bias, epilogue->addend ? epilogue->addend + places[o] : NULL, epilogue);
    }
}

void qrt_portable_conv_f32(qrt_kernel_table *t) {
    t->conv_f32 = (qrt_conv_f32){"portable", 1, {4}, {4}, tile, depthwise, depthwise_row, maxima, means, spread, collect};
}
