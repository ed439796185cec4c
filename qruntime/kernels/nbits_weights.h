/// Weights of 2, 3, 4 or 8 bits in groups along K, packed: one layout for every rung, and for products with float32
/// activations (gemm_nbits.h) and with quantized ones.
///
///     decoded[n, k] = scale[n, g] · (value(code[n, k]) − zero[n, g]),    g = k / group
///
/// A code is an unsigned index; its value is code − 2^(bits − 1), or what a table of 2^bits floats says. Columns
/// (output channels) stand in panels of QRT_NBITS_NR. In a panel group follows group, the last one may be shorter; in a
/// group step follows step, filled up with code 0:
///
///     bits   weights of a step   bytes of a step: of column c the bytes 4c + b, b = 0 … 3
///     2      16                  bits 2i, 2i + 1 of byte b: code 4i + b
///     3      16                  the two lower bits as above; then of column c a uint16, bit 4b + i: the upper bit of code 4i + b
///     4      8                   lower half of byte b: code b, upper half: code 4 + b
///     8      4                   byte b: code b
///
/// So an int32 lane is a column, and one shift and one mask give four codes in a row, a byte each.
#ifndef QRT_NBITS_WEIGHTS_H
#define QRT_NBITS_WEIGHTS_H

#include "half.h"
#include "weights.h"

enum {
    QRT_NBITS_NR = 16,          ///< columns of a panel
    QRT_NBITS_MAX_STEP = 16,    ///< weights of a step, the most of all formats
    QRT_NBITS_MAX_CODES = 256
};

/// What a code stands for. Kernels know the first three and look the rest up.
typedef enum {
    QRT_NBITS_UNIFORM,          ///< code − 2^(bits − 1)
    QRT_NBITS_TABLE16,          ///< a table of at most 16 values
    QRT_NBITS_E4M3,             ///< FP8 of the kind E4M3FN: the table of 256 values is that of its definition
    QRT_NBITS_TABLE256
} qrt_nbits_coding;

struct qrt_gemm_nbits;
struct qrt_gemm_f32;

/// Weights of one layer. Immutable once filled.
typedef struct qrt_nbits_weights {
    qrt_weights base;

    const struct qrt_gemm_nbits *kernel;   ///< of the rung in force: the layout is the same on every one
    const struct qrt_gemm_f32 *float_kernel;

    int bits;
    qrt_nbits_coding coding;
    int64_t group;              ///< weights of a group along K, at least 1
    int64_t num_groups;         ///< ⌈k / group⌉
    int64_t group_bytes;        ///< codes of a panel from one group to the next
    int64_t num_panels;
    int64_t panel_bytes;        ///< from one panel to the next
    uint8_t *codes;             ///< QRT_ALIGNMENT bytes more may be read
    float *scales;              ///< [panels][groups][QRT_NBITS_NR], 0 beyond column n; NULL where there are
    uint16_t *half_scales;      ///< the same in float16
    float *zeros;               ///< the same, in values; NULL when all are 0
    float *bias;                ///< [panels][QRT_NBITS_NR], or NULL
    float *values;              ///< [2^bits] of the codes
    bool reads_float8;          ///< rows of activations are numbers of E4M3 times one scale each
    bool fits_bfloat16;         ///< bfloat16 multiplies the values of all codes to the bits of float32
    int64_t *outlier_starts;    ///< [n + 1]: where the outliers of a column begin; NULL when there are none (nbits_outliers.h)
    uint16_t *outlier_inputs;   ///< k of each, ascending in a column
    float *changes;             ///< what each adds to what its code decodes to
    void *more;                 ///< the more_bytes of the spec
} qrt_nbits_weights;

/// What qrt_nbits_new needs to know.
typedef struct {
    int64_t k, n, group;
    int bits;                   ///< 2, 3, 4 or 8
    const float *table;         ///< [2^bits] values of the codes; NULL: uniform
    const float *scales;        ///< [n, groups]; NULL where there are
    const uint16_t *half_scales; ///< the same in float16
    const float *zero_points;   ///< [n, groups] in codes (uniform: need not be whole) or values (table); NULL: the value 0
    const float *bias;          ///< [n] or NULL
    bool reads_float8;          ///< not together with outliers
    const int64_t *outlier_starts;   ///< [n + 1], or NULL: numbers in place of what codes say, column after column
    const uint16_t *outlier_inputs;  ///< k of each, ascending in a column
    const float *outlier_values;
    size_t object_bytes;        ///< of a struct that begins with qrt_nbits_weights; 0: it is all
    size_t more_bytes;          ///< of the buffer, for that struct
} qrt_nbits_spec;

/// Rows of codes, K along a row.
typedef struct {
    const uint8_t *rows;
    int64_t row_stride_bytes;
    int bits;                   ///< of one code: 8, or those of the weights, one behind the other from the lowest bit of a byte up
    bool high_half_first;       ///< of 4-bit codes: the first stands in the upper half of a byte
    uint8_t offset;             ///< added to every code, modulo 2^bits: 2^(bits − 1) for two's complement
} qrt_nbits_source;

static inline int qrt_nbits_step(int bits) { return bits == 8 ? 4 : bits == 4 ? 8 : 16; }
static inline int qrt_nbits_step_bytes(int bits) { return bits == 3 ? 96 : 64; }

/// Weights of group g.
static inline int64_t qrt_nbits_depth(const qrt_nbits_weights *w, int64_t g) {
    int64_t left = w->base.k - g * w->group;
    return left < w->group ? left : w->group;
}
static inline const uint8_t *qrt_nbits_codes(const qrt_nbits_weights *w, int64_t panel, int64_t g) {
    return w->codes + panel * w->panel_bytes + g * w->group_bytes;
}
/// Where the scales and zeros of a group of a panel begin.
static inline int64_t qrt_nbits_group_at(const qrt_nbits_weights *w, int64_t panel, int64_t g) {
    return (panel * w->num_groups + g) * QRT_NBITS_NR;
}

/// The scales that begin there.
static inline void qrt_nbits_scales(const qrt_nbits_weights *w, int64_t at, float scales[QRT_NBITS_NR]) {
    for (int j = 0; j < QRT_NBITS_NR; j++) scales[j] = w->half_scales ? qrt_f32_of_f16(w->half_scales[at + j]) : w->scales[at + j];
}

/// The definition of the layout: code i of a group in a panel.
static inline unsigned qrt_nbits_code(int bits, const uint8_t *group, int64_t i, int column) {
    int step = qrt_nbits_step(bits), at = (int)(i % step), b = at % 4, place = at / 4;
    const uint8_t *p = group + i / step * qrt_nbits_step_bytes(bits);
    unsigned byte = p[4 * column + b];
    switch (bits) {
    case 2: return byte >> 2 * place & 3;
    case 3: return (byte >> 2 * place & 3) | (p[64 + 2 * column + b / 2] >> (b % 2 * 4 + place) & 1) << 2;
    case 4: return byte >> 4 * place & 15;
    default: return byte;
    }
}

/// Size of the buffer that qrt_nbits_new takes; 0 when there can be none or the spec makes no sense.
size_t qrt_nbits_packed_bytes(const qrt_nbits_spec *spec);

/// Weights whose codes are still to be filled in, in memory of `arena` (or NULL). NULL when memory is short or the spec
/// makes no sense.
qrt_nbits_weights *qrt_nbits_new(const qrt_nbits_spec *spec, const struct qrt_gemm_nbits *kernel,
                                 const struct qrt_gemm_f32 *float_kernel, qrt_arena *arena);

/// Pack the codes of rows (columns of the product) first_row … first_row + num_rows - 1. Every row is to be filled once.
/// False when a code is greater than the bits hold.
bool qrt_nbits_fill(qrt_nbits_weights *w, int64_t first_row, int64_t num_rows, const qrt_nbits_source *source, int num_threads);

/// The codes again, one a byte, row_stride bytes from row to row.
void qrt_nbits_unpack(const qrt_nbits_weights *w, int64_t first_row, int64_t num_rows, uint8_t *codes, int64_t row_stride);

#endif
