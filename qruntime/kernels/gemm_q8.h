/// int8 GEMM with dynamically quantized activations.
///
///     y[m, n] = activation( scale_a[m] · scale_w[n] · t[m, n] + bias[n] ) + residual[m, n]
///     t[m, n] = Σ_k (qa[m, k] − zero_point_a[m]) · (qw[k, n] − zero_point_w[n])          (int32, exact)
///
/// Activations are uint8 (0 … 255), chosen per row from that row alone (or per tensor), weights int8.
///
/// Rows are quantized as codes_q8.h says. Sums are exact for any K: above QRT_Q8_MAX_K rows of weights are summed in
/// chunks into int64.
///
/// The float part is `float(t) · (scale_a · scale_w) + bias`, each operation rounded, no fused
/// multiply-add: without activation, or with ReLU, y is the same bits on every rung.
#ifndef QRT_GEMM_Q8_H
#define QRT_GEMM_Q8_H

#include "linear_q8.h"

struct qrt_code_tile;

/// Blocks for an L2 cache of 512 KB.
enum { QRT_Q8_BLOCK_ROWS = 128, QRT_Q8_BLOCK_BYTES = 192 * 1024 };

/// 255 · 255 · 32768 < 2^31: below this the int32 sum cannot overflow whatever the zero points.
enum { QRT_Q8_MAX_K = 32768 };

struct qrt_gemm_q8;

/// Weights of one layer, packed for the rung that packed them. Immutable once made.
typedef struct qrt_q8_weights {
    qrt_weights base;
    const struct qrt_gemm_q8 *kernel;  ///< a copy of what packed them
    int64_t k_padded;        ///< k rounded up to the step of the kernel; the rest is zeros
    int64_t num_panels;      ///< of nr columns each
    int64_t panel_bytes;     ///< from one panel to the next
    int64_t row_bytes;       ///< from one packed row of activations to the next
    int64_t block_rows;      ///< most rows of a block
    void *panels;            ///< layout private to `kernel`
    int32_t *col_sums;       ///< Σ_k qw[k, n], padded to a multiple of nr
    float *scales;           ///< padded to a multiple of nr (per tensor: the same value repeated)
    int64_t num_params;      ///< scales and zero points that were given: 1 or n
    int32_t *zero_points;    ///< padded; NULL when all are 0
    float *bias;             ///< padded; NULL when there is none
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

/// The weights that were packed, [k, n] at the strides given; scales, zero points and bias stand in `w` as they are.
void qrt_q8_unpack(const qrt_q8_weights *w, int8_t *codes, int64_t row_stride_elems, int64_t col_stride_elems);

/// Windows of a convolution along a line, which are read where the image lies: window r has the pieces at codes + r · step + places[p],
/// of piece_bytes each, one behind the other in the order of K.
typedef struct {
    const uint8_t *codes;       ///< less the code_offset of the kernel
    int64_t step_bytes;
    const int64_t *places;
    int64_t num_pieces;
    int64_t piece_bytes;        ///< a multiple of kr; k_padded in all
    int num_windows;
} qrt_q8_windows;

/// What a rung provides. Packed activations are row after row of `item_bytes` each; a rung may keep QRT_ALIGNMENT bytes
/// of its own behind a row.
typedef struct qrt_gemm_q8 {
    const char *name;
    int mr, nr, kr;     ///< tile; k is padded to a multiple of kr
    int block_rows, block_bytes;  ///< most of a block of quantized rows, which shares the L2 cache with a panel of weights
    int item_bytes;
    bool takes_codes;   ///< what codes.pack makes of codes 0 … 255 is the codes, and zeros behind them
    const struct qrt_gemm_q8 *fallback;  ///< for weights that pack_panel refuses; NULL when it refuses none

    qrt_codes_q8 codes;

    int64_t (*panel_bytes)(int64_t k_padded);

    /// Pack n ≤ nr columns of weights, the rest zeros. False when these weights do not suit.
    bool (*pack_panel)(const int8_t *w, int64_t row_stride_elems, int64_t col_stride_elems, int64_t k, int64_t n, void *panel);
    /// The weights of such a panel again.
    void (*unpack_panel)(const void *panel, int64_t k, int64_t n, int8_t *w, int64_t row_stride_elems, int64_t col_stride_elems);

    /// The block against panels first … last-1, k ≤ QRT_Q8_MAX_K, and its epilogue.
    void (*multiply)(const qrt_q8_weights *w, const qrt_q8_block *block, int64_t first, int64_t last);

    /// acc[r, j] = Σ_k q[r, k] · qw[k, j] over k_first … k_first + k_count - 1 (multiples of kr, or the end) of
    /// one panel; acc has nr columns. NULL where k > QRT_Q8_MAX_K is refused.
    void (*dot)(const qrt_q8_weights *w, const qrt_q8_block *block, int64_t panel, int64_t k_first, int64_t k_count,
                int32_t *acc);

    /// acc[r, j] = Σ_k (q[r, k] − offset) · qw[k, j] over all k ≤ QRT_Q8_MAX_K of the columns j that one panel has, for rows
    /// that codes.pack made; `code_offset` tells the offset for their zero point, and is NULL where that is 0. NULL where
    /// `dot` serves.
    void (*sums)(const qrt_q8_weights *w, const qrt_q8_block *block, int64_t panel, int32_t *acc);
    int32_t (*code_offset)(int32_t zero_point);
    /// The same of windows. NULL where codes are not packed as the bytes that they are.
    void (*window_sums)(const qrt_q8_weights *w, const qrt_q8_windows *windows, int64_t panel, int32_t *acc);
    /// And what qrt_qlinear.requantize makes of them, with sums left out of `to`. NULL where
    /// the two one after the other are as fast.
    void (*window_codes)(const qrt_q8_weights *w, const qrt_q8_windows *windows, int64_t panel, const struct qrt_code_tile *to, uint8_t *y,
                         int64_t ldy_elems);

    /// The epilogue alone for row r of the block: t has nr columns and already is free of zero points.
    void (*finish)(const qrt_q8_weights *w, const qrt_q8_block *block, int64_t panel, int r, const float *t);
} qrt_gemm_q8;

#endif
