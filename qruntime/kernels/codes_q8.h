/// Rows of activations in codes of eight bits or fewer, a byte each, which every product of integer codes reads.
///
/// Quantizing a row of `a` (the same single IEEE operations on every rung, so integers are identical):
///
///     lo = min(0, min a),  hi = max(0, max a)
///     scale = float((double(hi) − double(lo)) / qmax); 1 when that is 0; at least FLT_MIN
///     zero_point = clamp(rint_even(−lo / scale), 0, qmax)             (float division)
///     q = clamp(rint_even(a · (1 / scale)) + zero_point, 0, qmax)
///
/// qmax is 2^bits − 1, from 3 to 255.
/// A NaN in the row makes its scale NaN, hence the whole row of a product and no other; an Inf likewise stays in its row.
#ifndef QRT_CODES_Q8_H
#define QRT_CODES_Q8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/// Among places of pieces of an image, the place of what is outside of it: zeros, of which a piece has no more than 16.
#define QRT_OUTSIDE INT64_MIN

/// Whose range the codes of a row cover: its own, that of all rows together, or one that is known. X(enumerator, name)
#define QRT_RANGE_MODES(X) X(PER_TOKEN, per_token) X(PER_TENSOR, per_tensor) X(STATIC, static)

typedef enum {
#define X(enumerator, name) QRT_##enumerator,
    QRT_RANGE_MODES(X)
#undef X
} qrt_range_mode;

/// How rows become codes.
typedef struct {
    qrt_range_mode mode;
    int32_t qmax;         ///< the greatest code
    float scale;          ///< of QRT_STATIC, and
    int32_t zero_point;
} qrt_q8_grid;

enum { QRT_Q8_LEAST_QMAX = 3, QRT_Q8_MOST_QMAX = 255 };

/// From the integers of a node: a mode whose ranges are found, and qmax unless it is 255. False when they are no grid.
static inline bool qrt_q8_read_grid(const int64_t *ints, int num_ints, qrt_q8_grid *grid) {
    if (num_ints < 1) return false;
    const int64_t mode = ints[0], qmax = num_ints > 1 ? ints[1] : QRT_Q8_MOST_QMAX;
    *grid = (qrt_q8_grid){.mode = (qrt_range_mode)mode, .qmax = (int32_t)qmax};
    return mode >= QRT_PER_TOKEN && mode <= QRT_PER_TENSOR && qmax >= QRT_Q8_LEAST_QMAX && qmax <= QRT_Q8_MOST_QMAX;
}

/// What weights that read floats do not look at.
static const qrt_q8_grid QRT_Q8_ANY_GRID = {.mode = QRT_PER_TOKEN, .qmax = QRT_Q8_MOST_QMAX};

/// What the sum over k leaves behind of a quantized row.
typedef struct {
    float scale;
    int32_t zero_point;
    int64_t sum;          ///< Σ_k (q − zero_point); only when it was asked for
} qrt_q8_row;

/// What a rung provides for one layout of packed rows.
typedef struct qrt_codes_q8 {
    /// Widen [*lo, *hi], which contains 0, by k values; both become NaN when one of them is.
    void (*range)(const float *a, int64_t k, float *lo, float *hi);

    /// Quantize k values and pad with zeros to k_padded. Stores Σ q when `sum` is not NULL.
    void (*quantize)(const float *a, int64_t k, int64_t k_padded, float inverse_scale, int32_t zero_point, int32_t qmax,
                     void *packed, int64_t *sum);

    /// The same for k codes that are known already, byte ^ flip each, most of them near `zero_point` or above it.
    void (*pack)(const uint8_t *codes, uint8_t flip, int32_t zero_point, int64_t k, int64_t k_padded, void *packed, int64_t *sum);

    /// As `quantize` of n rows that are in pieces of 16 floats, those at x + r · step + places[i], or zeros where a place is QRT_OUTSIDE,
    /// which `any_outside` allows. NULL where `quantize` does as well.
    void (*quantize_pieces)(const float *x, int64_t step, int64_t n, const int64_t *places, int64_t num_pieces, bool any_outside,
                            int64_t k_padded, const float *inverse_scales, const qrt_q8_row *rows, int32_t qmax, void *packed,
                            int64_t stride_bytes);
} qrt_codes_q8;

/// Scale and zero point for values in [lo, hi], which contains 0.
qrt_q8_row qrt_q8_parameters(float lo, float hi, int32_t qmax);

/// Those for all of `a`, m rows of k values.
qrt_q8_row qrt_q8_tensor_parameters(const qrt_codes_q8 *codes, const float *a, int64_t lda_elems, int64_t m, int64_t k,
                                    int32_t qmax);

/// Quantize `m` rows of k values to 0 … qmax, into packed rows, stride_bytes apart. `shared` holds the parameters of a whole
/// tensor; NULL: each row has those of its own range. With `sums`, those of the rows too.
void qrt_q8_quantize_rows(const qrt_codes_q8 *codes, const float *a, int64_t lda_elems, int64_t m, int64_t k,
                          int64_t k_padded, int32_t qmax, const qrt_q8_row *shared, bool sums, qrt_q8_row *rows,
                          void *packed, int64_t stride_bytes);

#endif
