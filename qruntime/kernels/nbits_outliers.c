#include "nbits_outliers.h"

/// Rows at once, whose sums are independent of one another.
enum { MANY_ROWS = 8, FEW_ROWS = 4 };

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

/// `rows` is a constant at every call.
static inline __attribute__((always_inline)) void add_rows(const qrt_nbits_weights *w, const int rows, const float *a, int64_t lda,
                                                           int64_t n, float *y, int64_t ldy) {
    float sums[MANY_ROWS] = {0};
    for (int64_t i = w->outlier_starts[n]; i < w->outlier_starts[n + 1]; i++)
        for (int r = 0; r < rows; r++) sums[r] += a[r * lda + w->outlier_inputs[i]] * w->changes[i];
    for (int r = 0; r < rows; r++) y[r * ldy] += sums[r];
}

void qrt_nbits_add_outliers(const qrt_nbits_weights *w, int64_t rows, const float *a, int64_t lda, int64_t first, int64_t columns,
                            float *y, int64_t ldy) {
    for (int64_t row = 0, count; row < rows; row += count) {
        count = rows - row >= MANY_ROWS ? MANY_ROWS : rows - row >= FEW_ROWS ? FEW_ROWS : 1;
        const float *x = a + row * lda;
        float *to = y + row * ldy;
        for (int64_t j = 0; j < columns; j++) switch (count) {
            case MANY_ROWS: add_rows(w, MANY_ROWS, x, lda, first + j, to + j, ldy); break;
            case FEW_ROWS: add_rows(w, FEW_ROWS, x, lda, first + j, to + j, ldy); break;
            default: add_rows(w, 1, x, lda, first + j, to + j, ldy);
            }
    }
}
