/// Products of 8-bit codes, whose scale and zero point are known beforehand, with packed int8 weights: exact sums, and what
/// becomes of them.
#ifndef QRT_CODE_PRODUCT_H
#define QRT_CODE_PRODUCT_H

#include "qlinear.h"
#include "tensor.h"

typedef struct {
    const qrt_q8_weights *w;   ///< k ≤ QRT_Q8_MAX_K; its scales are the multipliers
    const int32_t *bias;       ///< [n], added to the sums, or NULL; no sum leaves int32
    int32_t zero;              ///< of the codes read, as 0 … 255
    uint8_t flip;
    int32_t dtype;             ///< of y: QRT_U8 or QRT_I8 (requantized), QRT_F32 (sums · multipliers), QRT_I32 (the sums)
    qrt_requantize to;
    const uint8_t *table;      ///< [256] through which codes go at last, or NULL
} qrt_code_layer;

/// Rows of k codes, one after the other.
typedef struct {
    /// The next row: where it lies, or `room` after it was put there.
    const uint8_t *(*next)(void *context, uint8_t *room);
    void *context;
    const uint8_t *dense;  ///< where all of them lie one behind the other, or NULL
} qrt_code_rows;

/// Whether rows that are `dense` are multiplied where they lie.
bool qrt_code_rows_lie_packed(const qrt_code_layer *layer);

/// For m rows.
size_t qrt_code_scratch_bytes(const qrt_q8_weights *w, int64_t m);

/// y [m, n] with row stride ldy_elems for the next m rows, on the calling thread: the columns of panels first … last − 1.
void qrt_code_product(const qrt_code_layer *layer, const qrt_code_rows *rows, int64_t m, int64_t first, int64_t last, void *y,
                      int64_t ldy_elems, void *scratch);

/// The same of windows of `num_lines` lines, each as in `windows`, a line of them `line_bytes` behind the one before; the kernel of the
/// weights has window_sums. Where they have zero points, `sums` are those of the codes of each window, less their zero point.
void qrt_code_window_product(const qrt_code_layer *layer, const qrt_q8_windows *windows, int64_t num_lines, int64_t line_bytes,
                             const int32_t *sums, int64_t first_panel, int64_t last_panel, void *y, int64_t ldy_elems);

#endif
