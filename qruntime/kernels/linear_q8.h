/// Linear layers whose activations are quantized: blocks of rows and threads, for every kind of weights that multiplies
/// codes of activations.
#ifndef QRT_LINEAR_Q8_H
#define QRT_LINEAR_Q8_H

#include "weights.h"

/// Quantized rows against all or some panels of weights.
typedef struct {
    const void *a;              ///< packed rows
    int64_t a_stride_bytes;
    const qrt_q8_row *rows;
    int num_rows;
    qrt_epilogue epilogue;      ///< residual at the first row of the block
    float *y;
    int64_t ldy_elems;

    // Of weights of gemm_q8.h only, as an addend of the epilogue, at the first row of the block, is:
    int64_t gap_elems;          ///< so many floats lie behind every 16 columns of a row of y, residual and addend
    bool clips;                 ///< in place of an activation: y = min(max(x, low), high), where NaN stays NaN
    float low, high;
} qrt_q8_block;

/// Where a column lies in a row of y, residual and addend.
static inline int64_t qrt_q8_column(const qrt_q8_block *block, int64_t column) { return column + column / 16 * block->gap_elems; }

/// How weights take their rows.
typedef struct {
    const qrt_codes_q8 *codes;
    int mr, nr;                 ///< rows of a tile, columns of a panel
    int64_t num_panels;
    int64_t row_bytes;          ///< from one packed row to the next
    int64_t block_rows;         ///< most rows of a block
    int64_t work_bytes;         ///< what `quantize` needs for itself
} qrt_q8_shape;

/// A kind of weights: a qrt_weights whose ops are `ops`.
typedef struct qrt_q8_kind {
    qrt_weights_ops ops;        ///< qrt_q8_linear and kin

    qrt_q8_shape (*shape)(const qrt_weights *w);

    /// Whether rows packed for one serve the other.
    bool (*are_packed_alike)(const qrt_weights *w, const qrt_weights *other);

    /// Rows for all of `layers`, which are packed alike. `shared` holds the parameters of a whole tensor, or is NULL.
    void (*quantize)(const qrt_layer *layers, int num_layers, const float *a, int64_t lda_elems, int64_t m, int32_t qmax,
                     const qrt_q8_row *shared, qrt_q8_row *rows, void *packed, int64_t stride_bytes, void *work);

    /// The block against panels first … last-1, and its epilogue but for `map`.
    void (*multiply)(const qrt_weights *w, const qrt_q8_block *block, int64_t first, int64_t last);
} qrt_q8_kind;

/// Bytes from one packed row of `bytes` to the next. Rows a multiple of 4 KB apart would fall into the same cache set.
int64_t qrt_q8_row_stride(int64_t bytes);

/// What `multiply` leaves of the epilogue, on so many columns of the biased sums: `map`, and then the residual.
void qrt_q8_map(const qrt_q8_block *block, int64_t column, int64_t columns);

/// What qrt_weights_ops asks for, of weights that are all of one qrt_q8_kind. A row is quantized once for neighbours that are
/// packed alike.
qrt_status qrt_q8_linear(const qrt_layer *layers, int num_layers, qrt_run *run, const float *a, int64_t lda_elems, int64_t m,
                         qrt_q8_grid grid);
void qrt_q8_linear_serial(const qrt_weights *w, const float *a, int64_t lda_elems, int64_t m, qrt_q8_grid grid,
                          const qrt_epilogue *epilogue, float *y, int64_t ldy_elems, void *scratch);
size_t qrt_q8_scratch_bytes(const qrt_weights *w, int64_t m);

#endif
