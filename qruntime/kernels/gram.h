/// Σ = XᵀX and Σ |x| of the rows of a matrix [rows, k] that is rounded to whole numbers: exact sums, so that they do not
/// depend on the order of rows, on how they are cut into batches, on threads, nor on the rung. Rows may lie anywhere: x [rows]
/// points to each of them.
#ifndef QRT_GRAM_H
#define QRT_GRAM_H

#include <stdbool.h>
#include <stdint.h>

/// Columns of a panel; the rows whose products of two codes fit int32 when they are added up; the largest code they may have:
/// QRT_GRAM_ROWS · QRT_GRAM_CODE² < 2^31. Columns and rows whose magnitudes are added up in int32.
enum { QRT_GRAM_PANEL = 32, QRT_GRAM_ROWS = 128, QRT_GRAM_CODE = 4095, QRT_MAGNITUDE_COLUMNS = 64, QRT_MAGNITUDE_ROWS = 64 };

typedef struct qrt_gram {
    /// pairs[j] = code(x[j]) + code(y[j]) · 2^16 for n columns, n ≤ QRT_GRAM_PANEL, and 0 behind them; code(x) = x · inverse_step,
    /// rounded half to even. False where one is NaN or, before it is rounded, beyond QRT_GRAM_CODE; pairs mean nothing then.
    bool (*code_pairs)(int64_t n, const float *x, const float *y, const float *inverse_step, int32_t *pairs);
    /// sums[i][j] += Σ_t a[t, i] · b[t, j] for two panels of codes [QRT_GRAM_ROWS / 2][QRT_GRAM_PANEL][2]: two rows side by
    /// side. Exact; `sums` is [QRT_GRAM_PANEL][QRT_GRAM_PANEL], panels are aligned to 64 bytes.
    void (*panels)(const int16_t *a, const int16_t *b, int64_t *sums);
    /// sums[j] = Σ |round(x[t][first + j] · inverse_step[j])| for n ≤ QRT_MAGNITUDE_COLUMNS columns of at most QRT_MAGNITUDE_ROWS
    /// rows; no code beyond 2^21.
    void (*magnitudes)(int64_t rows, int64_t n, const float *const *x, int64_t first, const float *inverse_step, int32_t *sums);
} qrt_gram;

/// total[i, j] = Σ_t code[t, i] · code[t, j] for i ≤ j in panels of QRT_GRAM_PANEL columns, code = round(x[t] · inverse_step).
/// A row that holds a code beyond QRT_GRAM_CODE, or NaN, is left out, and `is_apart` [rows] is 1 there, else 0. `total` is
/// [k, k]. False without memory.
bool qrt_gram_of_codes(int64_t rows, int64_t k, const float *const *x, const float *inverse_step, uint8_t *is_apart, int64_t *total,
                       int num_threads);

/// total[j] = Σ_t |round(x[t][j] · inverse_step[j])|; no code may be beyond 2^21.
void qrt_sum_magnitudes(int64_t rows, int64_t k, const float *const *x, const float *inverse_step, int64_t *total, int num_threads);

#endif
