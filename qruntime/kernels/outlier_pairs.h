/// Outlier-victim pairs: numbers rounded to integers of −7 … 7, and those beyond to a coarse float, where the one beside gives
/// its place up (Guo et al., OliVe, 2023).
///
///     v = x / scale, 0 where that is NaN                      a = |v|
///     rounded(a) = min(rint(a), 7) up to a = 9.5, beyond that the nearest of 12, 16, 24, 32, 48, 64, 96
///
/// half to even, in the float to the even mantissa. Of elements 2i and 2i + 1 of a row, one of which is beyond 9.5, the lesser
/// is the victim, of equals the second: it becomes 0. A last one without partner is nobody's victim.
#ifndef QRT_OUTLIER_PAIRS_H
#define QRT_OUTLIER_PAIRS_H

#include <stdint.h>

/// What a rung provides; the same bits on every one.
typedef struct qrt_outlier_pairs {
    /// values[i] = what becomes of x[i], with its sign, for a row of k elements. `scale` is finite and above 0.
    void (*values)(const float *x, int64_t k, float scale, int8_t *values);

    /// errors[s] += Σ weights · (x / scales[s] − value)² over a row of k finite elements, for `count` scales.
    void (*errors)(const float *x, const float *weights, int64_t k, const float *scales, int64_t count, double *errors);
} qrt_outlier_pairs;

#endif
