/// Products of float32 activations with weights of 2, 3, 4 or 8 bits in groups.
///
///     y[m, n] = activation( total[m, n] + bias[n] ) + residual[m, n]
///     total   = Σ_g scale[n, g] · (sum_g − zero[n, g] · s_g)
///     sum_g   = Σ_k a[m, k] · value(code[n, k]),   s_g = Σ_k a[m, k],   both over the k of group g
///
/// sum_g is one chain of fused (portable: separate) multiply-adds over ascending k that starts at zero; one multiply-add
/// takes off zero · s_g, one adds scale · (…) to the total, which starts at zero, over ascending g. s_g is summed in one
/// order on every rung (qrt_nbits_group_sums). Few rows read the packed weights once; more rows have a group of a panel
/// decoded into the first-level cache and multiply it by the tiles of the float GEMM: the same chains, so that a row never
/// depends on how many rows come with it. What outliers change is added to the total (nbits_outliers.h).
///
/// Where rows of a are numbers of E4M3 times one scale each (`reads_float8`), the sums are of those numbers, and total is multiplied by
/// the scale of the row before the bias is added. Products of two such numbers at a time, for CPUs that multiply bfloat16, have
/// the same two roundings, and so the same bits.
///
/// Error bound of every rung, before the activation: |y − exact| ≤ ε · (K + 2·groups) · Σ_k |a| · |scale| · (|value| + |zero|) + ε · |bias|.
#ifndef QRT_GEMM_NBITS_H
#define QRT_GEMM_NBITS_H

#include "gemm_f32.h"
#include "nbits_weights.h"

/// Rows that `stream` takes at most.
enum { QRT_NBITS_STREAMED_ROWS = 4 };

/// The kernels of one rung.
typedef struct qrt_gemm_nbits {
    const char *name;

    /// total[m, n] of 1 ≤ m ≤ 4 rows and the columns n of panels first … last-1 to c, whose first column is that of panel
    /// `first`. `sums` are s_g, sums_stride from row to row, or NULL when the weights have no zeros.
    void (*stream)(const qrt_nbits_weights *w, int64_t m, const float *a, int64_t lda, const float *sums, int64_t sums_stride,
                   int64_t first, int64_t last, float *c, int64_t ldc);

    /// values[k, QRT_NBITS_NR] of k codes from a step on, rows `stride` floats apart. k may be rounded up to whole steps.
    void (*decode)(const qrt_nbits_weights *w, const uint8_t *codes, int64_t k, float *values, int64_t stride);

    /// `strip` and `grouped_strip` of the float GEMM (gemm_f32.h) for whole strips, where a and b hold pairs of bfloat16: that of an even
    /// k in the upper half of an int32, that of the k behind it in the lower. k, lda, ldb and the size of groups count pairs.
    /// NULL where the CPU has no products of bfloat16.
    void (*pair_strip)(int64_t m, int64_t k, const int32_t *a, int64_t lda, const int32_t *b, int64_t ldb, float *c, int64_t ldc,
                       bool accumulate);
    void (*grouped_pair_strip)(int64_t m, int64_t k, const int32_t *a, int64_t lda, const int32_t *b, int64_t ldb,
                               const qrt_f32_groups *groups, float *c, int64_t ldc, bool accumulate);
} qrt_gemm_nbits;

/// sums[g] = Σ a[k] over the k of each group: sixteen sums, of every sixteenth, folded in halves.
void qrt_nbits_group_sums(const qrt_nbits_weights *w, const float *a, float *sums);

extern const qrt_weights_ops qrt_nbits_ops;

#endif
