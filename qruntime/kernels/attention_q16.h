/// Attention of quantized models: both products in 16-bit integers, where CPUs multiply twice as much as in float.
///
/// Every row of q, of k and of v has a scale of its own, so no row depends on another one, on padding or on the batch:
///
///     q[i, d] ≈ sq[i] · Q[i, d],  |Q| ≤ L,   sq[i] = max_d |q[i, d]| / L,   L = qrt_q16_limit(head size), likewise k;
///     v[j, d] ≈ sv[j] · V[j, d],  |V| ≤ QRT_Q16_VALUES
///     s[i, j] = scale · sq[i] · sk[j] · (Q[i, :] · K[j, :]) masked,   e[i, j] = exp(s[i, j] − max_j s[i, j])
///     E[i, j] = round(c[i] · sv[j] · e[i, j]) ≤ 32767
///     y[i, d] = Σ_j E[i, j] · V[j, d] / (c[i] · Σ_j e[i, j])
///
/// The sums of products are exact: L is such that those of scores fit 32 bits, c[i] such that those of QRT_Q16_KEYS
/// keys do, after which they are added in float. Codes are rounded to the nearest, half to even. A code is off by half
/// a step at most: 1/11584 of the largest in its row for q and k of 64 elements, 1/8190 for v, 1/65534 for the weights
/// of up to 15 equally strong keys and 1/2016 for those of 512 (of more keys likewise). The projections that q, k and v
/// come from have rounded their own input to 1/510 of its range.
///
/// A row that is not finite has codes 0 and the scale NaN; one whose largest magnitude is below QRT_Q16_TINY counts as 0.
#ifndef QRT_ATTENTION_Q16_H
#define QRT_ATTENTION_Q16_H

#include <float.h>
#include <math.h>

#include "attention.h"

enum { QRT_Q16_VALUES = 4095, QRT_Q16_KEYS = 512 };
#define QRT_Q16_TINY 1e-30f

/// What c[i] · Σ sv · e of QRT_Q16_KEYS keys may come to: times QRT_Q16_VALUES it stays below 2^31 with the roundings of
/// the weights, half a step each, and those of a sum of 2^20 floats.
#define QRT_Q16_WEIGHTS 516096.0f

/// Rows of codes have room for a multiple of this many, zeros behind the last.
enum { QRT_Q16_ROW = 16 };

typedef struct {
    const float *rows;     ///< scale · sq[m]
    const float *keys;     ///< sk[n]
    const float *values;   ///< sv[n]
} qrt_q16_scales;

typedef struct qrt_attention_q16 {
    int nr;  ///< columns of a strip, as of the rung's float GEMM: its pack() lays out keys, two codes in place of a float

    /// codes[m, n] and scales[m] of x, at most `limit`. Rows of codes are ldc apart, a multiple of QRT_Q16_ROW.
    void (*quantize)(int64_t m, int64_t n, const float *x, int64_t ldx, float limit, int16_t *codes, int64_t ldc,
                     float *scales);

    /// The same for two rows at a time, their codes side by side: row p of `pairs` has those of rows 2p and 2p + 1,
    /// zeros for a row that is not there. Rows of pairs are ldp apart, a multiple of QRT_Q16_ROW and of nr.
    void (*quantize_pairs)(int64_t m, int64_t n, const float *x, int64_t ldx, float limit, int32_t *pairs, int64_t ldp,
                           float *scales);

    /// sums[m, n] = Σ_p a[m, 2p] · b[p, n] + a[m, 2p + 1] · b'[p, n] over k pairs for n ≤ nr. Row p of b, of nr pairs,
    /// starts at b + p · ldb.
    void (*scores)(int64_t m, int64_t n, int64_t k, const int16_t *a, int64_t lda, const int32_t *b, int64_t ldb,
                   int32_t *sums, int64_t lds);

    /// y[m, n] = (accumulate ? y : 0) + factors[m] · the same sums.
    void (*values)(int64_t m, int64_t n, int64_t k, const int16_t *a, int64_t lda, const int32_t *b, int64_t ldb,
                   const float *factors, bool accumulate, float *y, int64_t ldy);

    /// The sums of `scores` become E, in place: codes at the start of their row. `factors` is 1 / (c · Σ e); the rest as
    /// in qrt_attention. lds is a multiple of QRT_Q16_ROW.
    void (*exponentials)(int64_t m, int64_t n, int32_t *s, int64_t lds, const qrt_q16_scales *scales,
                         const qrt_mask *mask, int64_t visible, float *tops, float *sums, float *factors);
} qrt_attention_q16;

/// L for rows of n elements: n · L² < 2^31.
static inline float qrt_q16_limit(int64_t n) {
    float limit = floorf(sqrtf(2147483520.0f / (float)(n > 0 ? n : 1)));
    return limit < 32767.0f ? limit : 32767.0f;
}

/// c for a row of weights whose sv · e have this largest and this sum.
static inline float qrt_q16_weight_factor(float largest, float sum) {
    if (!(sum <= FLT_MAX)) return NAN;
    if (largest < QRT_Q16_TINY) return 0.0f;
    float most = largest * QRT_Q16_KEYS, top = 32767.0f / largest;
    float all = QRT_Q16_WEIGHTS / (sum < most ? sum : most);
    return all < top ? all : top;
}

#endif
