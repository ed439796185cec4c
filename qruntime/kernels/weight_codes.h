/// Codes of a float weight, and the powers that say how well they hold it. One source for every rung.
#ifndef QRT_WEIGHT_CODES_H
#define QRT_WEIGHT_CODES_H

#include <stdbool.h>
#include <stdint.h>

/// How one slice becomes codes. Inverse is 1 / scale in float; low and high are the least and greatest code less the zero point.
typedef struct {
    const float *scale, *inverse, *low, *high;
    const float *zero_point;
} qrt_code_forms;

/// q = rint(clamp(x · inverse, low, high)) + zero_point for the matrix x[rows, columns], half to even. Each column has its
/// form, or each row. What every slice has of Σ (x · inverse)² is added to `signal`, of the same sum over the errors to
/// `noise`. x is finite and |low|, |high| ≤ 2^8.
void qrt_weight_codes(const float *x, int64_t rows, int64_t columns, bool by_column, const qrt_code_forms *forms, int8_t *q,
                      double *signal, double *noise);

/// How the rows of an embedding table become codes: the least and greatest code, which hold 0 and fit a byte, and a range
/// so small that the scale is 1 instead.
typedef struct {
    float low, high, epsilon;
} qrt_table_form;

/// Codes of x[rows, columns], columns > 0, with a scale and an offset for each row, in torch's arithmetic of float32:
///     scale = (max x − min x) / (high − low)      z = −min x / scale
///     q = clamp(rint(x · (1 / scale) + z), low, high)      x ≈ scale · q + offset, offset = −z · scale
/// Σ x² is added to `signal`, Σ (scale · q + offset − x)² to `noise`. False when x is not finite; what was written by then
/// means nothing.
bool qrt_table_codes(const float *x, int64_t rows, int64_t columns, const qrt_table_form *form, uint8_t *q, float *scale,
                     float *offset, double *signal, double *noise);

#endif
