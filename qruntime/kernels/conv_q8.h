/// Windows of float images as rows of the int8 GEMM (gemm_q8.h), each in codes of its own range (codes_q8.h).
///
/// A range is the extremes of numbers and 0, which are kept as bits: as unsigned integers no number ≥ 0 has greater ones than
/// the least negative one, as signed integers no number < 0 has greater ones than the greatest. Either way NaN lies beyond Inf on
/// one side at least. So extremes of a window are maxima of integers, of those of its pixels, and those of a pixel are found once.
#ifndef QRT_CONV_Q8_H
#define QRT_CONV_Q8_H

#include "codes_q8.h"

/// [0, 0] where nothing is in it.
typedef struct {
    uint32_t *least;
    int32_t *greatest;
} qrt_extremes;

/// The kernels of one rung.
typedef struct qrt_conv_q8 {
    /// Extremes of each of n pixels, `step` floats apart, whose channels lie in blocks (conv_f32.h), `plane` floats apart.
    void (*extremes)(const float *x, int64_t step, int64_t plane, int64_t channels, int64_t n, qrt_extremes of);

    /// Widen n extremes by those at `least` and `greatest`, `step` ≥ 1 apart; bits of floats are extremes of one number each.
    void (*widen)(qrt_extremes of, const void *least, const void *greatest, int64_t step, int64_t n);

    /// Of n extremes the parameters of rows, and of those 1 / scale. Sums are left alone.
    void (*parameters)(const uint32_t *least, const int32_t *greatest, int64_t n, int32_t qmax, qrt_q8_row *rows, float *inverse_scales);

    /// to[i · channels + c] = from[c · plane + i] for n pixels.
    void (*interleave)(const float *from, int64_t plane, int64_t channels, int64_t n, float *to);
} qrt_conv_q8;

#endif
