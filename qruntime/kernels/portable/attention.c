#include <math.h>
#include <string.h>

#include "../rungs.h"

static float masked(float score, const qrt_mask *mask, int64_t i, int64_t j) {
    int64_t at = i * mask->row_stride + j * mask->key_stride;
    switch (mask->kind) {
    case QRT_MASK_ADD: return score + ((const float *)mask->data)[at];
    case QRT_MASK_REPLACE: return ((const uint8_t *)mask->data)[at] ? score : mask->fill;
    case QRT_MASK_PENALIZE: return ((const uint8_t *)mask->data)[at] ? score : score + mask->fill;
    default: return score;
    }
}

static void exponentials(int64_t m, int64_t n, float *s, int64_t lds, float scale, const qrt_mask *mask,
                         int64_t visible, float *tops, float *sums) {
    for (int64_t i = 0; i < m; i++, s += lds) {
        int64_t seen = visible + i < 0 ? 0 : visible + i < n ? visible + i : n;
        float top = -INFINITY, sum = 0.0f;
        for (int64_t j = 0; j < seen; j++) {
            s[j] = masked(s[j] * scale, mask, i, j);
            if (s[j] > top) top = s[j];
        }
        for (int64_t j = 0; j < seen; j++) sum += s[j] = expf(s[j] - top);
        for (int64_t j = seen; j < n; j++) s[j] = 0.0f;
        tops[i] = top;
        sums[i] = sum;
    }
}

static void divide(int64_t m, int64_t n, float *y, int64_t ldy, const float *sums) {
    for (int64_t i = 0; i < m; i++, y += ldy)
        for (int64_t j = 0; j < n; j++) y[j] /= sums[i];
}

static void few_scores(int64_t m, int64_t n, int64_t d, const float *q, int64_t ldq, const float *k, int64_t ldk, float *s, int64_t lds) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            float sum = 0.0f;
            for (int64_t p = 0; p < d; p++) sum += q[i * ldq + p] * k[j * ldk + p];
            s[i * lds + j] = sum;
        }
}

static void few_values(int64_t m, int64_t n, int64_t keys, const float *w, int64_t ldw, const float *v, int64_t ldv, float *y, int64_t ldy) {
    for (int64_t i = 0; i < m; i++) {
        for (int64_t c = 0; c < n; c++) y[i * ldy + c] = 0.0f;
        for (int64_t j = 0; j < keys; j++)
            for (int64_t c = 0; c < n; c++) y[i * ldy + c] += w[i * ldw + j] * v[j * ldv + c];
    }
}

// ------------------------------------------------------------------------- in 16-bit integers

enum { NR = 8 };

/// Codes of one row, `step` apart.
static void quantize_row(int64_t n, const float *x, float limit, int16_t *codes, int64_t step, float *scale) {
    float largest = 0.0f;
    for (int64_t j = 0; j < n; j++)
        if (isnan(x[j]) || fabsf(x[j]) > largest) largest = fabsf(x[j]);
    bool finite = largest <= FLT_MAX, tiny = largest < QRT_Q16_TINY;
    float factor = !finite ? NAN : tiny ? 0.0f : limit / largest;
    *scale = !finite ? NAN : tiny ? 0.0f : largest / limit;
    for (int64_t j = 0; j < n; j++) codes[j * step] = isnan(factor) ? 0 : (int16_t)rintf(x[j] * factor);
}

static void quantize(int64_t m, int64_t n, const float *x, int64_t ldx, float limit, int16_t *codes, int64_t ldc,
                     float *scales) {
    for (int64_t i = 0; i < m; i++, x += ldx, codes += ldc) {
        quantize_row(n, x, limit, codes, 1, &scales[i]);
        if (n % 2) codes[n] = 0;
    }
}

static void quantize_pairs(int64_t m, int64_t n, const float *x, int64_t ldx, float limit, int32_t *pairs, int64_t ldp,
                           float *scales) {
    for (int64_t i = 0; i < m; i++, x += ldx) {
        int16_t *codes = (int16_t *)(pairs + i / 2 * ldp);
        if (i % 2 == 0) memset(codes, 0, (size_t)n * sizeof *pairs);
        quantize_row(n, x, limit, codes + i % 2, 2, &scales[i]);
    }
}

static int32_t sum_of_pairs(int64_t k, const int16_t *a, const int32_t *b, int64_t ldb) {
    int32_t sum = 0;
    for (int64_t p = 0; p < k; p++) {
        int16_t pair[2];
        memcpy(pair, b + p * ldb, sizeof pair);
        sum += a[2 * p] * pair[0] + a[2 * p + 1] * pair[1];
    }
    return sum;
}

static void scores(int64_t m, int64_t n, int64_t k, const int16_t *a, int64_t lda, const int32_t *b, int64_t ldb,
                   int32_t *sums, int64_t lds) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) sums[i * lds + j] = sum_of_pairs(k, a + i * lda, b + j, ldb);
}

static void values(int64_t m, int64_t n, int64_t k, const int16_t *a, int64_t lda, const int32_t *b, int64_t ldb,
                   const float *factors, bool accumulate, float *y, int64_t ldy) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            float product = (float)sum_of_pairs(k, a + i * lda, b + j, ldb) * factors[i];
            y[i * ldy + j] = accumulate ? y[i * ldy + j] + product : product;
        }
}

static void code_exponentials(int64_t m, int64_t n, int32_t *s, int64_t lds, const qrt_q16_scales *scales,
                              const qrt_mask *mask, int64_t visible, float *tops, float *sums, float *factors) {
    for (int64_t i = 0; i < m; i++, s += lds) {
        int64_t seen = visible + i < 0 ? 0 : visible + i < n ? visible + i : n;
        float top = -INFINITY, largest = 0.0f;
        double sum = 0.0, weighted = 0.0;
        for (int64_t j = 0; j < seen; j++) {
            float score = masked((float)s[j] * scales->rows[i] * scales->keys[j], mask, i, j);
            if (score > top) top = score;
            memcpy(s + j, &score, sizeof score);
        }
        for (int64_t j = 0; j < n; j++) {
            float e = 0.0f, weight;
            if (j < seen) memcpy(&e, s + j, sizeof e), e = expf(e - top);
            sum += e;
            weighted += weight = e * scales->values[j];
            if (weight > largest) largest = weight;
            memcpy(s + j, &weight, sizeof weight);
        }
        float c = qrt_q16_weight_factor(largest, (float)weighted);
        int16_t *codes = (int16_t *)s;
        for (int64_t j = 0; j < n; j++) {
            float weight;
            memcpy(&weight, s + j, sizeof weight);
            codes[j] = isnan(c) ? 0 : (int16_t)rintf(weight * c);
        }
        if (n % 2) codes[n] = 0;
        tops[i] = top;
        sums[i] = (float)sum;
        factors[i] = 1.0f / ((c == 0.0f ? 1.0f : c) * (float)sum);
    }
}

void qrt_portable_attention(qrt_kernel_table *t) {
    t->attention = (qrt_attention){exponentials, divide, few_scores, few_values};
    t->attention_q16 = (qrt_attention_q16){NR, quantize, quantize_pairs, scores, values, code_exponentials};
}
