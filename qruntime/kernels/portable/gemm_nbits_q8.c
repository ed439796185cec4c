/// The definition of low-bit GEMM with quantized activations in plain C, for sums of any length.
#include <string.h>

#include "../rungs.h"
#include "activation.h"

enum { NR = QRT_NBITS_NR, MR = 8 };

/// 255 · 255 · CHUNK fits int32.
enum { CHUNK = 1 << 15 };

static int64_t row_bytes(const qrt_nbits_q8_weights *w) { return w->w.base.k; }

static void pack_row(const qrt_nbits_q8_weights *w, const uint8_t *codes, void *row) { memcpy(row, codes, (size_t)w->w.base.k); }

/// u of the NR columns at k = i of a group whose codes are at `group`.
static void unpack(const qrt_nbits_q8_weights *w, const uint8_t *group, int64_t i, int32_t *u) {
    const bool is_table = w->kind == QRT_NBITS_TABLE || w->kind == QRT_NBITS_WIDE_TABLE;
    for (int j = 0; j < NR; j++) {
        const unsigned code = qrt_nbits_code(w->w.bits, group, i, j);
        u[j] = (int32_t)(is_table ? w->table[code] : code);
    }
}

/// t[rows][NR] of a group; the first of the rows is `row`.
static void group_sums(const qrt_nbits_q8_weights *w, const qrt_q8_block *block, int row, int rows, int64_t panel, int64_t g,
                       int64_t t[MR][NR]) {
    const int64_t depth = qrt_nbits_depth(&w->w, g), at = qrt_nbits_group_at(&w->w, panel, g);
    const uint8_t *codes = qrt_nbits_codes(&w->w, panel, g);
    memset(t, 0, sizeof *t * (size_t)rows);
    for (int64_t i = 0; i < depth; i += CHUNK) {
        int32_t acc[MR][NR] = {{0}}, u[NR];
        for (int64_t k = i; k < depth && k < i + CHUNK; k++) {
            unpack(w, codes, k, u);
            for (int j = 0; j < NR; j++) u[j] -= w->zero_points ? w->zero_points[at + j] : w->centre;
            for (int r = 0; r < rows; r++) {
                const uint8_t *q = (const uint8_t *)block->a + (row + r) * block->a_stride_bytes + g * w->w.group;
                const int32_t a = q[k] - block->rows[row + r].zero_point;
                for (int j = 0; j < NR; j++) acc[r][j] += a * u[j];
            }
        }
        for (int r = 0; r < rows; r++)
            for (int j = 0; j < NR; j++) t[r][j] += acc[r][j];
    }
}

static void finish(const qrt_nbits_q8_weights *w, const qrt_q8_block *block, int64_t panel, int r, const float *totals) {
    const int64_t first = panel * NR, n = w->w.base.n - first < NR ? w->w.base.n - first : NR;
    const qrt_epilogue *epilogue = &block->epilogue;
    float *y = block->y + r * block->ldy_elems + first;
    for (int64_t j = 0; j < n; j++) {
        float x = totals[j] * block->rows[r].scale;
        if (w->w.bias) x += w->w.bias[first + j];
        x = qrt_activate(x, epilogue->activation);
        if (epilogue->residual) x += epilogue->residual[r * epilogue->residual_stride_elems + first + j];
        y[j] = x;
    }
}

static void multiply(const qrt_nbits_q8_weights *w, const qrt_q8_block *block, int64_t first, int64_t last) {
    for (int64_t panel = first; panel < last; panel++)
        for (int row = 0; row < block->num_rows; row += MR) {
            const int rows = block->num_rows - row < MR ? block->num_rows - row : MR;
            float totals[MR][NR] = {{0}};
            for (int64_t g = 0; g < w->w.num_groups; g++) {
                float scales[NR];
                qrt_nbits_scales(&w->w, qrt_nbits_group_at(&w->w, panel, g), scales);
                int64_t t[MR][NR];
                group_sums(w, block, row, rows, panel, g, t);
                for (int r = 0; r < rows; r++)
                    for (int j = 0; j < NR; j++) totals[r][j] += (float)t[r][j] * scales[j];
            }
            for (int r = 0; r < rows; r++) finish(w, block, panel, row + r, totals[r]);
        }
}

const qrt_gemm_nbits_q8 qrt_portable_nbits_q8 = {
    .name = "portable", .mr = MR, .row_bytes = row_bytes, .pack_row = pack_row, .multiply = multiply,
};

void qrt_portable_gemm_nbits_q8(qrt_kernel_table *t) { t->gemm_nbits_q8 = qrt_portable_nbits_q8; }
