/// Codes of the rows of a weight, each on a grid of its own that covers it: range and codes while the row is in cache.
#ifndef QRT_ROW_CODES_H
#define QRT_ROW_CODES_H

#include <stdbool.h>
#include <stdint.h>

/// Codes low … high that hold 0, at most 8 bits: around 0 of symmetric grids, whose low is not used.
typedef struct {
    int32_t low, high;
    bool is_symmetric;
} qrt_row_form;

/// Codes of x[n, k] · factor[k], k > 0, with a scale and a zero point for each row, in double up to their rounding:
///     symmetric   scale = max |x| / high,                      zero_point = 0,   codes −high … high
///     affine      scale = (max(x, 0) − min(x, 0)) / (high − low)
///                 zero_point = clamp(rint(−min(x, 0) / scale) + low, low, high)
/// 1 is the scale of a row of zeros, FLT_MIN the least; codes are those of qrt_kernels.code_grid. `room` has 2 k floats. False
/// when a row is not finite; what was written by then means nothing.
bool qrt_row_codes(int64_t n, int64_t k, const float *x, const float *factor, const qrt_row_form *form, uint8_t *codes,
                   float *scale, float *zero_point, float *room);

#endif
