/// Kernels over 8-bit codes whose scales are known beforehand: real = (code − zero) · scale.
///
/// A code is read as 0 … 255: of int8 the byte with its top bit flipped, and zero points that much higher. `flip` is 0x80
/// for int8 and 0 for uint8. All rungs do the same single IEEE operations and give the same bytes.
#ifndef QRT_QLINEAR_H
#define QRT_QLINEAR_H

#include <stdint.h>

#include "gemm_q8.h"

typedef struct {
    float scale, zero;
} qrt_code_scale;

/// y = quantized(op(real a, real b)), codes of one type. The quotient by the scale of y is rounded half to even.
typedef struct {
    qrt_code_scale a, b, y;
    uint8_t flip;
} qrt_qlinear_pair;

/// How an exact sum becomes a code: clamp(rint_even(float(sum) · multiplier), low, high) + zero. Multipliers are finite.
typedef struct {
    float low, high;  ///< −zero and 255 − zero
    int32_t zero;
    uint8_t flip;
} qrt_requantize;

static inline qrt_requantize qrt_requantize_to(int32_t zero, uint8_t flip) {
    return (qrt_requantize){(float)-zero, (float)(255 - zero), zero, flip};
}

/// Steps are 0 or 1; y may be a or b where that step is 1.
typedef void (*qrt_qlinear_binary_fn)(const uint8_t *a, const uint8_t *b, uint8_t *y, int64_t n, int a_step, int b_step,
                                      const qrt_qlinear_pair *pair);

/// A window of one position: y[c] = code of offsets[c] + Σ_t w[t, c] · (taps[t][c] ^ flip), for all channels.
typedef struct {
    const uint8_t *const *taps;
    int64_t num_taps, channels;
    const int32_t *w;           ///< [num_taps, channels]
    const int32_t *offsets;
    const float *multipliers;
    uint8_t flip;               ///< of the codes read
    qrt_requantize requantize;
} qrt_depthwise;

/// Columns of channels that lie side by side in weights of qrt_depthwise_line.
enum { QRT_DEPTHWISE_BLOCK = 64, QRT_DEPTHWISE_ROWS = 4 };

/// Windows along a line, for all channels, with weights of int8: the same codes as qrt_depthwise for every position.
///
/// Channels come in blocks of 64, rows of a window in groups of 4; where there are none, weights are 0. Vector v, lane l,
/// element e of a block, which is where four products of bytes are summed, is channel 16·l + 4·v + e of it.
typedef struct {
    const uint8_t *const *lines;  ///< [rows] what rows of the window cover, NULL outside of the image
    int64_t width, channels;      ///< of a line
    int64_t rows, columns;        ///< of the window
    int64_t stride, dilation, begin, outputs;
    int64_t summands;             ///< weights are the sums of 1 or 2 integers
    const int8_t *w;              ///< [blocks][summands][groups][columns][v][l][e][4 rows]
    const int32_t *offsets;       ///< [blocks][v][l][e]
    const float *multipliers;     ///< the same
    uint8_t flip, padding;        ///< of the codes read; the byte of what lies outside
    qrt_requantize requantize;
    void *room;                   ///< qrt_depthwise_room bytes, aligned to 64
} qrt_depthwise_line;

/// Columns that the windows of a line cover.
static inline int64_t qrt_depthwise_reach(int64_t outputs, int64_t stride, int64_t columns, int64_t dilation) {
    return (outputs - 1) * stride + (columns - 1) * dilation + 1;
}

static inline int64_t qrt_depthwise_groups(int64_t rows) { return (rows + QRT_DEPTHWISE_ROWS - 1) / QRT_DEPTHWISE_ROWS; }

static inline int64_t qrt_depthwise_room(int64_t rows, int64_t reach) {
    return qrt_depthwise_groups(rows) * reach * QRT_DEPTHWISE_ROWS * QRT_DEPTHWISE_BLOCK;
}

/// Sums of a panel of an int8 product, for some rows and all its columns.
typedef struct qrt_code_tile {
    const int32_t *acc;         ///< acc_stride_elems from row to row
    int64_t acc_stride_elems;
    const qrt_q8_row *rows;     ///< read where there are weight_zeros
    int64_t num_rows, columns;
    const int32_t *base, *weight_zeros;  ///< weight_zeros may be NULL
    const float *multipliers;
    qrt_requantize to;
} qrt_code_tile;

typedef struct qrt_qlinear {
    qrt_qlinear_binary_fn add, mul;
    void (*depthwise)(const qrt_depthwise *window, uint8_t *y);
    void (*depthwise_line)(const qrt_depthwise_line *line, uint8_t *y);  ///< NULL where `depthwise` is as fast
    /// y[r, j] = code of (acc[r, j] + base[j] − rows[r].sum · weight_zeros[j]) · multipliers[j]
    void (*requantize)(const qrt_code_tile *tile, uint8_t *y, int64_t ldy_elems);
    /// y[i] = the greater of a[i] and b[i]; y may be a or b.
    void (*max_u8)(const uint8_t *a, const uint8_t *b, uint8_t *y, int64_t n);
    void (*max_i8)(const uint8_t *a, const uint8_t *b, uint8_t *y, int64_t n);
    /// y[i] = code of x[i] / scale; what is no number is 0.
    void (*quantize)(const float *x, uint8_t *y, int64_t n, float scale, const qrt_requantize *to);
    /// y[i] = ((x[i] ^ flip) − zero) · scale
    void (*dequantize)(const uint8_t *x, float *y, int64_t n, qrt_code_scale scale, uint8_t flip);
    /// sums[r] = Σ x[r · stride + i] over i < k, k ≤ QRT_Q8_MAX_K
    void (*row_sums)(const uint8_t *x, int64_t stride, int64_t rows, int64_t k, int32_t *sums);
    /// y[i] = table[x[i]], a table of 256; y may be x.
    void (*look_up)(const uint8_t *table, const uint8_t *x, uint8_t *y, int64_t n);
    /// sums[i] += x[i] ^ flip
    void (*accumulate)(const uint8_t *x, int32_t *sums, int64_t n, uint8_t flip);
    /// y[i] = code of (float(sums[i]) / count) · ratio
    void (*average)(const int32_t *sums, uint8_t *y, int64_t n, float count, float ratio, const qrt_requantize *to);
} qrt_qlinear;

#endif
