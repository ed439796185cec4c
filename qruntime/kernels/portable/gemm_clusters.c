/// The definition of products with codes of activations in clusters, in plain C.
#include <string.h>

#include "../rungs.h"
#include "activation.h"

enum { NR = QRT_NBITS_NR, MR = 8 };

static size_t scratch_bytes(const qrt_cluster_weights *w) {
    (void)w;
    return 0;
}

/// t[rows][NR] of cluster c, whose first channel is k; the first of the rows is at `a`.
static void cluster_sums(const qrt_cluster_weights *w, const uint8_t *a, int64_t stride, int rows, int64_t panel, int64_t c, int64_t k,
                         int32_t t[MR][NR]) {
    const uint8_t *codes = qrt_nbits_codes(&w->w, panel, 0), *zeros = w->weight_zeros + panel * NR;
    memset(t, 0, sizeof *t * (size_t)rows);
    for (const int64_t end = k + 4 * (int64_t)w->fours[c]; k < end; k++) {
        int32_t u[NR];
        for (int j = 0; j < NR; j++) u[j] = (int32_t)qrt_nbits_code(w->w.bits, codes, k, j) - zeros[j];
        for (int r = 0; r < rows; r++) {
            const int32_t x = a[r * stride + k] - w->zero_points[c];
            for (int j = 0; j < NR; j++) t[r][j] += x * u[j];
        }
    }
}

static void finish(const qrt_cluster_weights *w, const qrt_q8_block *block, int64_t panel, int r, const float *totals) {
    const int64_t first = panel * NR, n = w->w.base.n - first < NR ? w->w.base.n - first : NR;
    const qrt_epilogue *epilogue = &block->epilogue;
    float *y = block->y + r * block->ldy_elems + first, scales[NR];
    qrt_nbits_scales(&w->w, first, scales);
    for (int64_t j = 0; j < n; j++) {
        float x = totals[j] * scales[j];
        if (w->w.bias) x += w->w.bias[first + j];
        x = qrt_activate(x, epilogue->activation);
        if (epilogue->residual) x += epilogue->residual[r * epilogue->residual_stride_elems + first + j];
        y[j] = x;
    }
}

static void multiply(const qrt_cluster_weights *w, const qrt_q8_block *block, int64_t first, int64_t last, void *scratch) {
    (void)scratch;
    for (int64_t panel = first; panel < last; panel++)
        for (int row = 0; row < block->num_rows; row += MR) {
            const int rows = block->num_rows - row < MR ? block->num_rows - row : MR;
            const uint8_t *a = (const uint8_t *)block->a + row * block->a_stride_bytes;
            float totals[MR][NR] = {{0}};
            int64_t k = 0;
            for (int64_t c = 0; c < w->num_clusters; k += 4 * (int64_t)w->fours[c++]) {
                int32_t t[MR][NR];
                cluster_sums(w, a, block->a_stride_bytes, rows, panel, c, k, t);
                for (int r = 0; r < rows; r++)
                    for (int j = 0; j < NR; j++) totals[r][j] += (float)t[r][j] * w->scales[c];
            }
            for (int r = 0; r < rows; r++) finish(w, block, panel, row + r, totals[r]);
        }
}

void qrt_portable_gemm_clusters(qrt_kernel_table *t) {
    t->gemm_clusters = (qrt_gemm_clusters){.name = "portable", .panels = 1, .scratch_bytes = scratch_bytes, .multiply = multiply};
}
