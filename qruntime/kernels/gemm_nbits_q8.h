/// Products of dynamically quantized activations with weights of 2, 3, 4 or 8 bits in groups.
///
///     y[m, n] = activation( scale_a[m] · Σ_g scale_w[n, g] · t[m, n, g] + bias[n] ) + residual[m, n]
///     t[m, n, g] = Σ_k (qa[m, k] − zero_point_a[m]) · (u[n, k] − zero_point_w[n, g])   over the k of group g, exact
///
/// Rows are quantized as codes_q8.h says. u is 0 … 255: the code, or what a table of 16 entries says of it. Sums are exact
/// for groups of any length.
///
/// The float part, each operation rounded, no fused multiply-add: total = 0; total = total + float(t) · scale_w over
/// ascending g; total · scale_a + bias. Without activation, or with ReLU, y is the same bits on every rung.
#ifndef QRT_GEMM_NBITS_Q8_H
#define QRT_GEMM_NBITS_Q8_H

#include "linear_q8.h"
#include "nbits_weights.h"

/// How codes become u.
typedef enum {
    QRT_NBITS_2, QRT_NBITS_3, QRT_NBITS_4,
    QRT_NBITS_TABLE,       ///< codes of 4 bits, u ≤ 31: sums of several products fit int16
    QRT_NBITS_8,
    QRT_NBITS_WIDE_TABLE   ///< codes of 4 bits, any u
} qrt_nbits_kind;
#define QRT_NUM_NBITS_KINDS (QRT_NBITS_WIDE_TABLE + 1)

/// Weights of one layer. Immutable once finished.
typedef struct qrt_nbits_q8_weights {
    qrt_nbits_weights w;         ///< without `zeros`
    const struct qrt_gemm_nbits_q8 *kernel;
    qrt_nbits_kind kind;
    int64_t group_steps, last_steps;  ///< steps of the layout in a group, and in the last
    int16_t *short_sums;         ///< Σ_k (u − zero point) over a group, [panels][groups][QRT_NBITS_NR]; NULL: may not fit
    int32_t *sums;               ///< in that case
    uint8_t *zero_points;        ///< the same shape; NULL: all are `centre`
    int32_t centre;              ///< 0 where there are zero points
    uint8_t table[16];           ///< u of each code
} qrt_nbits_q8_weights;

/// What qrt_nbits_q8_new needs to know.
typedef struct {
    qrt_nbits_spec weights;      ///< without zero points; with `table`, for which `scales` are those of `integers`
    const int8_t *integers;      ///< [16] what codes of 4 bits stand for; NULL: uniform
    const uint8_t *zero_points;  ///< [n, groups] in codes, uniform weights only; NULL: 2^(bits − 1)
} qrt_nbits_q8_spec;

/// Size of the buffer that qrt_nbits_q8_new takes; 0 when there can be none or the spec makes no sense.
size_t qrt_nbits_q8_packed_bytes(const qrt_nbits_q8_spec *spec);

/// Weights whose codes are still to be filled in (qrt_nbits_fill), after which qrt_nbits_q8_finish makes the sums; in memory
/// of `arena` (or NULL). NULL when memory is short or the spec makes no sense.
qrt_nbits_q8_weights *qrt_nbits_q8_new(const qrt_nbits_q8_spec *spec, const struct qrt_gemm_nbits_q8 *kernel, qrt_arena *arena);
void qrt_nbits_q8_finish(qrt_nbits_q8_weights *w, int num_threads);

/// Groups of four k in a step of the layout.
static inline int qrt_nbits_quads(qrt_nbits_kind kind) {
    return kind == QRT_NBITS_2 || kind == QRT_NBITS_3 ? 4 : kind == QRT_NBITS_8 ? 1 : 2;
}
static inline int64_t qrt_nbits_q8_steps(const qrt_nbits_q8_weights *w, int64_t group) {
    return group + 1 < w->w.num_groups ? w->group_steps : w->last_steps;
}
/// In all groups.
static inline int64_t qrt_nbits_q8_quads(const qrt_nbits_q8_weights *w) {
    int64_t steps = w->w.num_groups ? (w->w.num_groups - 1) * w->group_steps + w->last_steps : 0;
    return steps * qrt_nbits_quads(w->kind);
}

/// What a rung provides.
typedef struct qrt_gemm_nbits_q8 {
    const char *name;
    int mr;     ///< rows of a tile
    int64_t (*row_bytes)(const qrt_nbits_q8_weights *w);
    /// Pack the k codes of a row of activations into row_bytes(w) bytes.
    void (*pack_row)(const qrt_nbits_q8_weights *w, const uint8_t *codes, void *row);

    /// The block against panels first … last-1, and its epilogue but for `map`. Unless this is the definition, t fits int32.
    void (*multiply)(const qrt_nbits_q8_weights *w, const qrt_q8_block *block, int64_t first, int64_t last);
} qrt_gemm_nbits_q8;

/// The definition, for sums of any length.
extern const qrt_gemm_nbits_q8 qrt_portable_nbits_q8;

#endif
