/// The definition of products with weights of few bits, in plain C.
#include "../rungs.h"

enum { NR = QRT_NBITS_NR };

static void decode(const qrt_nbits_weights *w, const uint8_t *codes, int64_t k, float *values, int64_t stride) {
    for (int64_t i = 0; i < k; i++)
        for (int j = 0; j < NR; j++) values[i * stride + j] = w->values[qrt_nbits_code(w->bits, codes, i, j)];
}

/// The totals of a row and a panel.
static void totals_of(const qrt_nbits_weights *w, int64_t panel, const float *a, const float *sums, float *totals) {
    const int step = qrt_nbits_step(w->bits);
    for (int j = 0; j < NR; j++) totals[j] = 0.0f;
    for (int64_t g = 0; g < w->num_groups; g++) {
        const uint8_t *codes = qrt_nbits_codes(w, panel, g);
        float scale[NR];
        qrt_nbits_scales(w, qrt_nbits_group_at(w, panel, g), scale);
        int64_t depth = qrt_nbits_depth(w, g);
        float acc[NR] = {0};
        for (int64_t i = 0; i < depth; i += step, codes += qrt_nbits_step_bytes(w->bits)) {
            float values[QRT_NBITS_MAX_STEP * NR];
            int64_t count = depth - i < step ? depth - i : step;
            decode(w, codes, count, values, NR);
            for (int64_t p = 0; p < count; p++)
                for (int j = 0; j < NR; j++) acc[j] += a[g * w->group + i + p] * values[p * NR + j];
        }
        for (int j = 0; j < NR; j++) {
            if (w->zeros) acc[j] -= w->zeros[qrt_nbits_group_at(w, panel, g) + j] * sums[g];
            totals[j] += scale[j] * acc[j];
        }
    }
}

static void stream(const qrt_nbits_weights *w, int64_t m, const float *a, int64_t lda, const float *sums, int64_t sums_stride,
                   int64_t first, int64_t last, float *c, int64_t ldc) {
    for (int64_t panel = first; panel < last; panel++)
        for (int64_t i = 0; i < m; i++) {
            float totals[NR];
            totals_of(w, panel, a + i * lda, sums ? sums + i * sums_stride : NULL, totals);
            for (int64_t j = 0; j < NR && panel * NR + j < w->base.n; j++) c[i * ldc + (panel - first) * NR + j] = totals[j];
        }
}

void qrt_portable_gemm_nbits(qrt_kernel_table *t) {
    t->gemm_nbits = (qrt_gemm_nbits){"portable", stream, decode, NULL, NULL};
}
