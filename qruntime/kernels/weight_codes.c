#include "weight_codes.h"

/// Columns whose running sums stay in the first-level cache, and rows after which sums in float go on in double.
enum { TILE = 256, DEPTH = 64 };

/// Adding and taking away 1.5 · 2^23 rounds half to even what is below 2^22, with instructions that every target has.
static inline float rounded(float x) { return (x + 12582912.0f) - 12582912.0f; }

/// A form for each of n ≤ TILE elements (step 1), or one for all (step 0).
static inline __attribute__((always_inline)) void round_part(int64_t n, int64_t step, const float *restrict x,
                                                             qrt_code_forms f, int8_t *restrict q, float *restrict signal,
                                                             float *restrict noise) {
    const float *restrict scale = f.scale, *restrict inverse = f.inverse, *restrict zero = f.zero_point;
    const float *restrict low = f.low, *restrict high = f.high;
    for (int64_t j = 0; j < n; j++) {
        int64_t i = j * step;
        float steps = x[j] * inverse[i];
        float inside = steps < low[i] ? low[i] : steps;
        float code = rounded(inside > high[i] ? high[i] : inside);
        float error = (code * scale[i] - x[j]) * inverse[i];
        q[j] = (int8_t)(int32_t)(code + zero[i]);
        signal[j] += steps * steps;
        noise[j] += error * error;
    }
}

static qrt_code_forms forms_from(const qrt_code_forms *f, int64_t i) {
    return (qrt_code_forms){f->scale + i, f->inverse + i, f->low + i, f->high + i, f->zero_point + i};
}

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

static void round_columns(const float *x, int64_t rows, int64_t columns, const qrt_code_forms *forms, int8_t *q,
                          double *signal, double *noise) {
    for (int64_t i = 0; i < rows; i += DEPTH)
        for (int64_t j = 0; j < columns; j += TILE) {
            float sums[2][TILE] = {{0}};
            int64_t n = min64(TILE, columns - j);
            for (int64_t r = i; r < min64(rows, i + DEPTH); r++)
                round_part(n, 1, x + r * columns + j, forms_from(forms, j), q + r * columns + j, sums[0], sums[1]);
            for (int64_t c = 0; c < n; c++) signal[j + c] += (double)sums[0][c], noise[j + c] += (double)sums[1][c];
        }
}

static void round_row(const float *x, int64_t columns, qrt_code_forms form, int8_t *q, double *signal, double *noise) {
    for (int64_t i = 0; i < columns; i += TILE * DEPTH) {
        float sums[2][TILE] = {{0}};
        int64_t stop = min64(columns, i + TILE * DEPTH);
        for (int64_t j = i; j < stop; j += TILE) round_part(min64(TILE, stop - j), 0, x + j, form, q + j, sums[0], sums[1]);
        for (int64_t c = 0; c < min64(TILE, stop - i); c++) *signal += (double)sums[0][c], *noise += (double)sums[1][c];
    }
}

void qrt_weight_codes(const float *x, int64_t rows, int64_t columns, bool by_column, const qrt_code_forms *forms, int8_t *q,
                      double *signal, double *noise) {
    if (by_column)
        round_columns(x, rows, columns, forms, q, signal, noise);
    else
        for (int64_t r = 0; r < rows; r++)
            round_row(x + r * columns, columns, forms_from(forms, r), q + r * columns, signal + r, noise + r);
}
