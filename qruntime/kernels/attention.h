/// Scaled dot-product attention, a block of query rows of one head at a time.
///
///     y[i, :] = Σ_j e[i, j] · v[j, :] / Σ_j e[i, j],   e[i, j] = exp(s[i, j] − max_j s[i, j]),
///     s[i, j] = scale · (q[i, :] · k[j, :]) masked
///
/// Both products run through the strips of the float GEMM: chains over ascending d and ascending j. The
/// sum of e is taken lane by lane, lane = j mod the vector length, then across lanes in a fixed order. A
/// key whose e is 0 (masked by −inf, or far below the maximum) therefore changes no bit of the result, and
/// trailing masked keys may as well not be there: those that a boolean mask hides from all rows of a block are
/// not looked at, unless their e would not be 0.
#ifndef QRT_ATTENTION_H
#define QRT_ATTENTION_H

#include <stdbool.h>
#include <stdint.h>

#include "cache_codes.h"
#include "gemm_f32.h"
#include "tensor.h"

typedef enum {
    QRT_MASK_NONE,
    QRT_MASK_ADD,      ///< float, added to the scores
    QRT_MASK_REPLACE,  ///< bytes; where 0 the score becomes `fill`
    QRT_MASK_PENALIZE  ///< bytes; where 0, `fill` is added to the score
} qrt_mask_kind;

/// A mask as seen from the first row of a block. A stride of 0 broadcasts; key_stride is 0 or 1.
typedef struct {
    qrt_mask_kind kind;
    const void *data;
    int64_t row_stride, key_stride;
    float fill;
} qrt_mask;

typedef struct qrt_attention {
    /// s[m, n] becomes e, in place; tops[m] the maxima, sums[m] the sums. Row i sees the first min(n, visible + i)
    /// keys only, none when that is negative: visible = n is no restriction. A row that sees no finite score sums to
    /// NaN or 0.
    void (*exponentials)(int64_t m, int64_t n, float *s, int64_t lds, float scale, const qrt_mask *mask,
                         int64_t visible, float *tops, float *sums);
    /// y[m, n] /= sums[m] within 1.5 ulp, in place: vector rungs multiply by the rounded reciprocal.
    void (*divide)(int64_t m, int64_t n, float *y, int64_t ldy, const float *sums);

    /// s[m, n] = q[m, d] · k[n, d]ᵀ and y[m, n] = w[m, keys] · v[keys, n] for a few rows m: the bits of the float GEMM, from keys and
    /// values as they lie, of which each is read once.
    void (*few_scores)(int64_t m, int64_t n, int64_t d, const float *q, int64_t ldq, const float *k, int64_t ldk, float *s, int64_t lds);
    void (*few_values)(int64_t m, int64_t n, int64_t keys, const float *w, int64_t ldw, const float *v, int64_t ldv, float *y, int64_t ldy);
} qrt_attention;

/// One attention over all heads. Element (b, h, i, d) of x lies at x.data + b·batch + h·head + i·row + d.
typedef struct {
    const float *data;
    int64_t batch, head, row;
} qrt_heads;

/// In rows, one of which is a token of a head.
typedef struct {
    int64_t batch, head, row;
} qrt_row_strides;

/// Heads of a cache in codes. Those of all batches have the labels at labels + h·labels_head, or none. Rows of a head are as far
/// apart in codes as in ranges; heads need not be, for each may have room of its own behind it.
typedef struct {
    qrt_cache_form form;
    const uint8_t *codes;
    const float *ranges;
    const uint8_t *labels;
    int64_t labels_head;
    qrt_row_strides of_codes, of_ranges;
} qrt_coded_heads;

/// What becomes of a row whose weights are NaN.
typedef enum {
    QRT_DEAD_AS_COMPUTED,
    QRT_DEAD_TO_ZERO,         ///< its weights become 0
    QRT_DEAD_MASKED_TO_ZERO   ///< likewise, when it sees no key because of its mask or of causality
} qrt_dead_rows;

typedef struct {
    qrt_heads q, k, v;
    const qrt_coded_heads *coded_k, *coded_v;  ///< both or neither: in place of k and v
    float *y;
    int64_t y_batch, y_head, y_row;
    int64_t num_batches, num_heads, num_kv_heads, num_queries, num_keys, head_size, value_size;
    bool k_is_transposed;       ///< element (b, h, j, d) of k lies at … + d·row + j
    float scale;
    qrt_mask mask;              ///< of batch 0, head 0, query 0
    int64_t mask_batch, mask_head;  ///< strides in elements
    bool causal;
    int64_t causal_offset;      ///< query i sees the keys j ≤ i + causal_offset
    const qrt_tensor *lengths;  ///< or NULL; integers [batches]: so many keys are there, and that less the queries is the offset
    qrt_dead_rows dead_rows;
    bool in_int16;              ///< as attention_q16.h defines it
} qrt_attention_job;

qrt_status qrt_attend(const qrt_attention_job *job, qrt_run *run);

#endif
