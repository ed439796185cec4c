#include "nbits_outliers.h"

static double decoded(const qrt_nbits_weights *w, int64_t n, int64_t k) {
    const int64_t panel = n / QRT_NBITS_NR, g = k / w->group, at = qrt_nbits_group_at(w, panel, g);
    const int column = (int)(n % QRT_NBITS_NR);
    float scales[QRT_NBITS_NR];
    qrt_nbits_scales(w, at, scales);
    double value = w->values[qrt_nbits_code(w->bits, qrt_nbits_codes(w, panel, g), k - g * w->group, column)];
    return scales[column] * (w->zeros ? value - w->zeros[at + column] : value);
}

void qrt_nbits_finish_outliers(qrt_nbits_weights *w) {
    for (int64_t n = 0; w->outlier_starts && n < w->base.n; n++)
        for (int64_t i = w->outlier_starts[n]; i < w->outlier_starts[n + 1]; i++)
            w->changes[i] = (float)(w->changes[i] - decoded(w, n, w->outlier_inputs[i]));
}

/// Few rows, a constant at every call, as they lie.
static inline __attribute__((always_inline)) void add_rows(const qrt_nbits_weights *w, const int rows, const float *a, int64_t lda,
                                                           int64_t first, int64_t columns, float *y, int64_t ldy) {
    for (int64_t j = 0; j < columns; j++) {
        float sums[QRT_NBITS_OUTLIER_LANES] = {0};
        for (int64_t i = w->outlier_starts[first + j]; i < w->outlier_starts[first + j + 1]; i++)
            for (int r = 0; r < rows; r++) sums[r] += a[r * lda + w->outlier_inputs[i]] * w->changes[i];
        for (int r = 0; r < rows; r++) y[r * ldy + j] += sums[r];
    }
}

/// Rows side by side, zeros where there are fewer.
static void spread_rows(const float *a, int64_t lda, int64_t rows, int64_t k, float *lanes) {
    for (int64_t p = 0; p < k; p++)
        for (int r = 0; r < QRT_NBITS_OUTLIER_LANES; r++) lanes[p * QRT_NBITS_OUTLIER_LANES + r] = r < rows ? a[r * lda + p] : 0.0f;
}

static void add_lanes(const qrt_nbits_weights *w, int64_t rows, const float *lanes, int64_t first, int64_t columns, float *y, int64_t ldy) {
    for (int64_t j = 0; j < columns; j++) {
        float sums[QRT_NBITS_OUTLIER_LANES] = {0};
        for (int64_t i = w->outlier_starts[first + j]; i < w->outlier_starts[first + j + 1]; i++) {
            const float *x = lanes + w->outlier_inputs[i] * QRT_NBITS_OUTLIER_LANES;
            for (int r = 0; r < QRT_NBITS_OUTLIER_LANES; r++) sums[r] += x[r] * w->changes[i];
        }
        for (int64_t r = 0; r < rows; r++) y[r * ldy + j] += sums[r];
    }
}

void qrt_nbits_add_outliers(const qrt_nbits_weights *w, int64_t rows, const float *a, int64_t lda, int64_t first, int64_t columns,
                            float *y, int64_t ldy, float *lanes) {
    for (int64_t row = 0, count; row < rows; row += count) {
        const float *x = a + row * lda;
        float *to = y + row * ldy;
        if (lanes) {
            count = rows - row < QRT_NBITS_OUTLIER_LANES ? rows - row : QRT_NBITS_OUTLIER_LANES;
            spread_rows(x, lda, count, w->base.k, lanes);
            add_lanes(w, count, lanes, first, columns, to, ldy);
        } else if (rows - row >= 4) {
            count = 4;
            add_rows(w, 4, x, lda, first, columns, to, ldy);
        } else {
            count = 1;
            add_rows(w, 1, x, lda, first, columns, to, ldy);
        }
    }
}
