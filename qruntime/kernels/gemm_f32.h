/// Float GEMM.
///
/// Every output element is one chain of fused (portable: separate) multiply-adds over ascending k that
/// starts at zero, whichever tile computes it. Hence a row never depends on how many rows come with it,
/// and zero-padded k adds exactly nothing. The epilogue follows as separate operations, so a fused layer
/// gives the same bits as a product, an addition and an activation one after the other.
///
/// Error bound of every rung, before the activation: |y − exact| ≤ K · ε · Σ_k |a·w| + ε · |bias|.
#ifndef QRT_GEMM_F32_H
#define QRT_GEMM_F32_H

#include "weights.h"

/// What follows the sums: y = activation(alpha · sum + row_bias[m] + column_bias[n] + addend[m, n]) + residual[m, n].
/// A NULL pointer, alpha 1 and QRT_ACT_NONE leave their step out. `map`, where there is one, takes the place of an activation.
typedef struct {
    float alpha;
    const float *row_bias;     ///< [m]
    const float *column_bias;  ///< [n]
    const float *addend;       ///< [m, n]
    int64_t addend_stride_elems;
    qrt_activation activation;
    const float *residual;     ///< [m, n]
    int64_t residual_stride_elems;
    qrt_elementwise map;       ///< see qrt_f32_finish
} qrt_f32_epilogue;

/// Factors of groups of k, every group of a column has its own.
typedef struct {
    int64_t size;              ///< k of a group; the last may be shorter
    const float *scales;       ///< [groups, nr]
    const float *zeros;        ///< [groups, nr], or NULL
    int64_t stride;            ///< of both, from group to group
    const float *sums;         ///< what `zeros` are multiplied by: of row i and group g at i · sums_stride + g
    int64_t sums_stride;
    const float *begun;        ///< [m, nr] sums over the k before, where the strip is the end of one group; else NULL. May be c
    int64_t begun_stride;
} qrt_f32_groups;

/// The kernels of one rung. `b` is a strip of at most nr columns: row k starts at b + k · ldb. A packed
/// panel is such a strip with ldb = nr, padded with zeros.
typedef struct qrt_gemm_f32 {
    const char *name;
    int mr, nr;

    /// c[m, n] = (accumulate ? c : 0) + a[m, k] · b[k, n] for any m and n ≤ nr. Meanwhile `ahead`, the k rows of the
    /// strip that comes next, may be fetched into the cache; the address need not be valid.
    void (*strip)(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb,
                  const float *ahead, float *c, int64_t ldc, bool accumulate);

    /// The same for a strip of nr columns whose rows lie anywhere: row k starts at b + rows[k].
    void (*scattered_strip)(int64_t m, int64_t k, const float *a, int64_t lda, const float *b, const int64_t *rows,
                            float *c, int64_t ldc, bool accumulate);

    /// c[m, n] = a[m, k] · panels for 1 ≤ m ≤ 4 and any n: reads ⌈n / nr⌉ packed panels of k rows each once.
    void (*stream)(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *panels,
                   float *c, int64_t ldc);

    /// The epilogue on c[m, n], in place, without `map`.
    void (*finish)(int64_t m, int64_t n, float *c, int64_t ldc, const qrt_f32_epilogue *epilogue);

    /// Write b[k, n] at strides (row, column) as panels. Columns beyond n become zero.
    void (*pack)(int64_t k, int64_t n, const float *b, int64_t row_stride_elems, int64_t col_stride_elems,
                 float *panels);

    /// y[j] = Σ_t w[t] · x[offsets[t] + j] for j < n, over ascending t: one channel of a depthwise convolution.
    void (*taps)(int64_t n, int64_t num_taps, const float *w, const int64_t *offsets, const float *x, float *y);

    /// For each group of k in turn, c[m, nr] = (accumulate or a later group ? c : 0) + scale[n] · (begun[m, n] + a[m, k] · b[k, n]
    /// − zero[n] · sums[m]), one multiply-add for each sign; of a strip of nr columns that is in the cache.
    void (*grouped_strip)(int64_t m, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb,
                          const qrt_f32_groups *groups, float *c, int64_t ldc, bool accumulate);
} qrt_gemm_f32;

/// Right-hand side [k, n], packed for one rung, with an optional bias. Immutable once made. It keeps the
/// kernels it was packed for, whatever rung is put in force later.
typedef struct qrt_f32_weights {
    qrt_weights base;
    const struct qrt_gemm_f32 *kernel;
    float *panels;
    float *bias;          ///< padded to a multiple of nr, or NULL
} qrt_f32_weights;

extern const qrt_weights_ops qrt_f32_ops;

/// Size of the buffer that qrt_f32_pack takes; 0 when there can be none.
size_t qrt_f32_packed_bytes(const struct qrt_gemm_f32 *kernel, int64_t k, int64_t n, bool has_bias);

/// On at most `num_threads` threads, into memory of `arena` (or NULL); NULL when memory is short.
qrt_f32_weights *qrt_f32_pack(const struct qrt_gemm_f32 *kernel, const float *w, int64_t row_stride_elems,
                              int64_t col_stride_elems, int64_t k, int64_t n, const float *bias, qrt_arena *arena,
                              int num_threads);

/// The weights that were packed, [k, n] at the strides given; the bias stands in `w` as it is.
void qrt_f32_unpack(const qrt_f32_weights *w, float *weights, int64_t row_stride_elems, int64_t col_stride_elems);

/// Whether the rows of `a`, this many floats apart, are better copied first, when many columns follow.
bool qrt_f32_rows_conflict(int64_t stride);

/// A stride for rows of n floats, aligned as a cache line, that does not conflict.
int64_t qrt_f32_row_stride(int64_t n);

/// Of a layer with that bias (or NULL).
qrt_f32_epilogue qrt_f32_layer_epilogue(const float *bias, const qrt_epilogue *epilogue);

/// Whether an epilogue (or NULL) changes anything.
bool qrt_f32_has_effect(const qrt_f32_epilogue *epilogue);

/// The epilogue as seen from row i, column j.
qrt_f32_epilogue qrt_f32_epilogue_at(const qrt_f32_epilogue *epilogue, int64_t i, int64_t j);

/// The whole epilogue on c[m, n], in place: an elementwise kernel runs over rows of it, between bias and residual.
void qrt_f32_finish(const qrt_gemm_f32 *kernel, int64_t m, int64_t n, float *c, int64_t ldc, const qrt_f32_epilogue *epilogue);

/// c[m, n] = epilogue(a · panels) on the calling thread, `panels` as `kernel->pack` writes them.
void qrt_f32_gemm(const qrt_gemm_f32 *kernel, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda,
                  const float *panels, const qrt_f32_epilogue *epilogue, float *c, int64_t ldc);

/// The same with strips of nr columns anywhere: `ldb` floats between two rows of a strip, `strip_stride`
/// between two strips. A matrix as it lies in memory, row stride ldb, has strips nr apart.
void qrt_f32_gemm_strips(const qrt_gemm_f32 *kernel, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda,
                         const float *b, int64_t ldb, int64_t strip_stride,
                         const qrt_f32_epilogue *epilogue, float *c, int64_t ldc);

/// c[m, num_strips · nr] = a · b for strips whose rows lie anywhere: row k of strip s starts at b[s] + rows[k].
void qrt_f32_gemm_scattered(const qrt_gemm_f32 *kernel, int64_t m, int64_t k, const float *a, int64_t lda,
                            const float *const *b, int num_strips, const int64_t *rows, float *c, int64_t ldc);

#endif
