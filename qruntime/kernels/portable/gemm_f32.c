/// The definition of the float GEMM.
#include <math.h>
#include <string.h>

#include "../rungs.h"

enum { NR = 8 };

static void strip(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb,
                  const float *ahead, float *c, int64_t ldc, bool accumulate) {
    (void)ahead;
    for (int64_t i = 0; i < m; i++, a += lda, c += ldc) {
        float sums[NR] = {0};
        if (accumulate) memcpy(sums, c, (size_t)n * sizeof *c);
        if (n == NR)
            for (int64_t p = 0; p < k; p++)
                for (int j = 0; j < NR; j++) sums[j] += a[p] * b[p * ldb + j];
        else
            for (int64_t p = 0; p < k; p++)
                for (int64_t j = 0; j < n; j++) sums[j] += a[p] * b[p * ldb + j];
        memcpy(c, sums, (size_t)n * sizeof *c);
    }
}

static void scattered_strip(int64_t m, int64_t k, const float *a, int64_t lda, const float *b, const int64_t *rows,
                            float *c, int64_t ldc, bool accumulate) {
    for (int64_t i = 0; i < m; i++, a += lda, c += ldc) {
        float sums[NR] = {0};
        if (accumulate) memcpy(sums, c, sizeof sums);
        for (int64_t p = 0; p < k; p++)
            for (int j = 0; j < NR; j++) sums[j] += a[p] * b[rows[p] + j];
        memcpy(c, sums, sizeof sums);
    }
}

static void stream(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *panels,
                   float *c, int64_t ldc) {
    for (int64_t j = 0; j < n; j += NR)
        strip(m, n - j < NR ? n - j : NR, k, a, lda, panels + j * k, NR, panels, c + j, ldc, false);
}

static float activate(qrt_activation activation, float x) {
    switch (activation) {
    case QRT_ACT_RELU: return x < 0.0f ? 0.0f : x;
    case QRT_ACT_GELU: return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    case QRT_ACT_GELU_TANH: return 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
    case QRT_ACT_SILU: return x / (1.0f + expf(-x));
    case QRT_ACT_SIGMOID: return 1.0f / (1.0f + expf(-x));
    case QRT_ACT_TANH: return tanhf(x);
    default: return x;
    }
}

static void finish(int64_t m, int64_t n, float *c, int64_t ldc, const qrt_f32_epilogue *e) {
    for (int64_t i = 0; i < m; i++, c += ldc)
        for (int64_t j = 0; j < n; j++) {
            float y = c[j] * e->alpha;
            if (e->row_bias) y += e->row_bias[i];
            if (e->column_bias) y += e->column_bias[j];
            if (e->addend) y += e->addend[i * e->addend_stride_elems + j];
            y = activate(e->activation, y);
            if (e->residual) y += e->residual[i * e->residual_stride_elems + j];
            c[j] = y;
        }
}

static void pack(int64_t k, int64_t n, const float *b, int64_t row_stride, int64_t col_stride, float *panels) {
    for (int64_t j = 0; j < n; j += NR)
        for (int64_t p = 0; p < k; p++, panels += NR)
            for (int64_t q = 0; q < NR; q++)
                panels[q] = j + q < n ? b[p * row_stride + (j + q) * col_stride] : 0.0f;
}

static void taps(int64_t n, int64_t num_taps, const float *w, const int64_t *offsets, const float *x, float *y) {
    for (int64_t j = 0; j < n; j++) {
        float sum = 0.0f;
        for (int64_t t = 0; t < num_taps; t++) sum += w[t] * x[offsets[t] + j];
        y[j] = sum;
    }
}

static void grouped_strip(int64_t m, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb,
                          const qrt_f32_groups *groups, float *c, int64_t ldc, bool accumulate) {
    for (int64_t i = 0; i < m; i++, a += lda, c += ldc)
        for (int64_t g = 0, p = 0; p < k; g++) {
            int64_t end = k - p < groups->size ? k : p + groups->size;
            float sums[NR] = {0};
            if (groups->begun) memcpy(sums, groups->begun + i * groups->begun_stride, sizeof sums);
            for (; p < end; p++)
                for (int j = 0; j < NR; j++) sums[j] += a[p] * b[p * ldb + j];
            for (int j = 0; j < NR; j++) {
                if (groups->zeros) sums[j] -= groups->zeros[g * groups->stride + j] * groups->sums[i * groups->sums_stride + g];
                c[j] = (accumulate || g > 0 ? c[j] : 0.0f) + groups->scales[g * groups->stride + j] * sums[j];
            }
        }
}

void qrt_portable_gemm_f32(qrt_kernel_table *t) {
    t->gemm_f32 = (qrt_gemm_f32){"portable", 1, NR, strip, scattered_strip, stream, finish, pack, taps, grouped_strip};
}
