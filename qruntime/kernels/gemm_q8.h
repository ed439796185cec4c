/// int8 GEMM with dynamically quantized activations.
///
///     y[m, n] = activation( scale_a[m] · scale_w[n] · t[m, n] + bias[n] ) + residual[m, n]
///     t[m, n] = Σ_k (qa[m, k] − zero_point_a[m]) · (qw[k, n] − zero_point_w[n])          (int32, exact)
///
/// Activations are uint8 (0 … 255), chosen per row from that row alone (or per tensor), weights int8.
///
/// Quantizing a row of `a` (the same single IEEE operations on every rung, so integers are identical):
///
///     lo = min(0, min a),  hi = max(0, max a)
///     scale = float((double(hi) − double(lo)) / 255); 1 when that is 0; at least FLT_MIN
///     zero_point = clamp(rint_even(−lo / scale), 0, 255)              (float division)
///     q = clamp(rint_even(a · (1 / scale)) + zero_point, 0, 255)
///
/// A NaN in the row makes its scale NaN, hence the whole row of y and no other; an Inf likewise stays
/// in its row. Sums are exact for any K: above QRT_Q8_MAX_K rows of weights are summed in chunks into
/// int64.
///
/// The float part is `float(t) · (scale_a · scale_w) + bias`, each operation rounded, no fused
/// multiply-add: without activation, or with ReLU, y is the same bits on every rung.
#ifndef QRT_GEMM_Q8_H
#define QRT_GEMM_Q8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pointwise.h"
#include "tensor.h"

/// Blocks for an L2 cache of 512 KB.
enum { QRT_Q8_BLOCK_ROWS = 128, QRT_Q8_BLOCK_BYTES = 192 * 1024 };

/// 255 · 255 · 32768 < 2^31: below this the int32 sum cannot overflow whatever the zero points.
enum { QRT_Q8_MAX_K = 32768 };

typedef enum {
    QRT_ACT_NONE, QRT_ACT_RELU, QRT_ACT_GELU, QRT_ACT_GELU_TANH, QRT_ACT_SILU, QRT_ACT_SIGMOID, QRT_ACT_TANH
} qrt_activation;
#define QRT_NUM_ACTIVATIONS (QRT_ACT_TANH + 1)

typedef enum { QRT_PER_TOKEN, QRT_PER_TENSOR } qrt_range_mode;

struct qrt_gemm_q8;

/// Weights of one layer, packed for the rung that packed them. Immutable once made.
typedef struct qrt_q8_weights {
    const struct qrt_gemm_q8 *kernel;  ///< a copy of what packed them
    int64_t k, n;
    int64_t k_padded;        ///< k rounded up to the step of the kernel; the rest is zeros
    int64_t num_panels;      ///< of nr columns each
    int64_t panel_bytes;     ///< from one panel to the next
    int64_t row_bytes;       ///< from one packed row of activations to the next
    int64_t block_rows;      ///< most rows of a block
    void *panels;            ///< layout private to `kernel`
    int32_t *col_sums;       ///< Σ_k qw[k, n], padded to a multiple of nr
    float *scales;           ///< padded to a multiple of nr (per tensor: the same value repeated)
    int32_t *zero_points;    ///< padded; NULL when all are 0, or when the packed weights and col_sums are free of them
    float *bias;             ///< padded; NULL when there is none
    qrt_buffer *buffer;      ///< owns all of the above
} qrt_q8_weights;

/// Size of the buffer that qrt_q8_pack takes (unless a fallback packs); 0 when there can be none.
size_t qrt_q8_packed_bytes(const struct qrt_gemm_q8 *kernel, int64_t k, int64_t n, bool has_zero_points, bool has_bias);

/// Pack weights with the kernels in force, on at most `num_threads` threads, into memory of `arena` (or NULL). `w` has
/// `k` rows and `n` columns at the strides given (in elements), `scales`, `zero_points` have 1 or n entries
/// (`num_params`); zero_points and bias may be NULL. Returns NULL when memory is short.
qrt_q8_weights *qrt_q8_pack(const struct qrt_gemm_q8 *kernel, const int8_t *w,
                            int64_t row_stride_elems, int64_t col_stride_elems, int64_t k, int64_t n,
                            const float *scales, const int32_t *zero_points, int64_t num_params, const float *bias,
                            qrt_arena *arena, int num_threads);
void qrt_q8_free(qrt_q8_weights *w);

typedef struct {
    qrt_activation activation;
    const float *residual;          ///< [m, n] added after the activation, or NULL
    int64_t residual_stride_elems;
    qrt_elementwise map;            ///< in place of an activation: applied to blocks of results while they are in the cache
} qrt_q8_epilogue;

/// One of the layers that read the same activations.
typedef struct {
    const qrt_q8_weights *w;
    qrt_q8_epilogue epilogue;
    float *y;                       ///< [m, w->n]
    int64_t ldy_elems;
} qrt_q8_layer;

/// y of every layer for `m` rows of k activations, lda_elems apart, on at most run->num_threads threads, scratch from
/// `run`. All weights have the same k. A row is quantized once for neighbours that one kernel packed.
qrt_status qrt_q8_linear(const qrt_q8_layer *layers, int num_layers, qrt_run *run, const float *a, int64_t lda_elems,
                         int64_t m, qrt_range_mode mode);

/// One layer on the calling thread with scratch of qrt_q8_scratch_bytes(w, m) bytes given by the caller: for recurrent
/// steps, which call it many times. `y` has row stride ldy_elems; `scratch` is aligned to QRT_ALIGNMENT.
size_t qrt_q8_scratch_bytes(const qrt_q8_weights *w, int64_t m);
void qrt_q8_linear_serial(const qrt_q8_weights *w, const float *a, int64_t lda_elems, int64_t m,
                          qrt_range_mode mode, const qrt_q8_epilogue *epilogue, float *y, int64_t ldy_elems,
                          void *scratch);

/// What the sum over k leaves behind of a quantized row.
typedef struct {
    float scale;
    int32_t zero_point;
    int64_t sum;          ///< Σ_k (q − zero_point); only when the weights have zero points
} qrt_q8_row;

/// Quantized rows against all or some panels of weights.
typedef struct {
    const void *a;              ///< packed rows, 0 … 255, followed by zeros up to k_padded
    int64_t a_stride_bytes;
    const qrt_q8_row *rows;
    int num_rows;
    qrt_q8_epilogue epilogue;   ///< residual at the first row of the block
    float *y;
    int64_t ldy_elems;
} qrt_q8_block;

/// What a rung provides. Packed activations are row after row of `item_bytes` each; a rung may keep QRT_ALIGNMENT bytes
/// of its own behind a row.
typedef struct qrt_gemm_q8 {
    const char *name;
    int mr, nr, kr;     ///< tile; k is padded to a multiple of kr
    int block_rows, block_bytes;  ///< most of a block of quantized rows, which shares the L2 cache with a panel of weights
    int item_bytes;
    const struct qrt_gemm_q8 *fallback;  ///< for weights that pack_panel refuses; NULL when it refuses none

    /// Widen [*lo, *hi], which contains 0, by k values; both become NaN when one of them is.
    void (*range)(const float *a, int64_t k, float *lo, float *hi);

    /// Quantize k values and pad with zeros to k_padded. Stores Σ q when `sum` is not NULL.
    void (*quantize)(const float *a, int64_t k, int64_t k_padded, float inverse_scale, int32_t zero_point,
                     void *packed, int64_t *sum);

    int64_t (*panel_bytes)(int64_t k_padded);

    /// Pack n ≤ nr columns of weights, the rest zeros. `zero_points` (n of them, or NULL) are for kernels that subtract
    /// them here. False when these weights do not suit.
    bool (*pack_panel)(const int8_t *w, int64_t row_stride_elems, int64_t col_stride_elems, int64_t k, int64_t n,
                       const int32_t *zero_points, void *panel);
    bool subtracts_zero_points;

    /// The block against panels first … last-1, k ≤ QRT_Q8_MAX_K, and its epilogue.
    void (*multiply)(const qrt_q8_weights *w, const qrt_q8_block *block, int64_t first, int64_t last);

    /// acc[r, j] = Σ_k q[r, k] · qw[k, j] over k_first … k_first + k_count - 1 (multiples of kr, or the end) of
    /// one panel; acc has nr columns. NULL where k > QRT_Q8_MAX_K is refused.
    void (*dot)(const qrt_q8_weights *w, const qrt_q8_block *block, int64_t panel, int64_t k_first, int64_t k_count,
                int32_t *acc);

    /// The epilogue alone for row r of the block: t has nr columns and already is free of zero points.
    void (*finish)(const qrt_q8_weights *w, const qrt_q8_block *block, int64_t panel, int r, const float *t);
} qrt_gemm_q8;

#endif
