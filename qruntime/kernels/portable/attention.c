#include <math.h>

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

void qrt_portable_attention(qrt_kernel_table *t) { t->attention = (qrt_attention){exponentials, divide}; }
