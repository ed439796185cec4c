/// The definition of the int8 GEMM in plain C.
#include <math.h>
#include <string.h>

#include "../rungs.h"
#include "activation.h"

enum { NR = 16, CODE_OFFSET = 0 };

static void range(const float *a, int64_t k, float *lo, float *hi) {
    float least = *lo, most = *hi;
    for (int64_t i = 0; i < k; i++) {
        if (a[i] != a[i]) {
            *lo = *hi = a[i];
            return;
        }
        least = a[i] < least ? a[i] : least;
        most = a[i] > most ? a[i] : most;
    }
    *lo = least;
    *hi = most;
}

static void quantize(const float *a, int64_t k, int64_t k_padded, float inverse_scale, int32_t zero_point, int32_t qmax,
                     void *packed, int64_t *sum) {
    uint8_t *q = packed;
    int64_t total = 0;
    for (int64_t i = 0; i < k; i++) {
        float x = nearbyintf(a[i] * inverse_scale) + (float)zero_point;
        x = x > 0.0f ? x : 0.0f;  // also NaN
        q[i] = (uint8_t)(x < (float)qmax ? x : (float)qmax);
        total += q[i];
    }
    memset(q + k, 0, (size_t)(k_padded - k));
    if (sum) *sum = total;
}

#define ITEM uint8_t
#include "../vector/pack_codes.inc.h"

static int64_t panel_bytes(int64_t k_padded) { return k_padded * NR; }

/// [k][NR]
static bool pack_panel(const int8_t *w, int64_t row_stride_elems, int64_t col_stride_elems, int64_t k, int64_t n,
                       void *panel) {
    int8_t *out = memset(panel, 0, (size_t)panel_bytes(k));
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = 0; j < n; j++) out[i * NR + j] = w[i * row_stride_elems + j * col_stride_elems];
    return true;
}

static void unpack_panel(const void *panel, int64_t k, int64_t n, int8_t *w, int64_t row_stride_elems, int64_t col_stride_elems) {
    const int8_t *from = panel;
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = 0; j < n; j++) w[i * row_stride_elems + j * col_stride_elems] = from[i * NR + j];
}

static float clipped(float x, float low, float high) {
    x = x < low ? low : x;
    return x > high ? high : x;
}

static void finish(const qrt_q8_weights *w, const qrt_q8_block *block, int64_t panel, int r, const float *t) {
    int64_t first = panel * NR, n = w->base.n - first < NR ? w->base.n - first : NR;
    const qrt_epilogue *epilogue = &block->epilogue;
    float *y = block->y + r * block->ldy_elems;
    for (int64_t j = 0; j < n; j++) {
        const int64_t place = qrt_q8_column(block, first + j);
        float x = t[j] * (block->rows[r].scale * w->scales[first + j]);
        if (w->bias) x += w->bias[first + j];
        if (epilogue->addend) x += epilogue->addend[r * epilogue->addend_stride_elems + place];
        x = block->clips ? clipped(x, block->low, block->high) : qrt_activate(x, epilogue->activation);
        if (epilogue->residual) x += epilogue->residual[r * epilogue->residual_stride_elems + place];
        y[place] = x;
    }
}

static void dot(const qrt_q8_weights *w, const qrt_q8_block *block, int64_t panel, int64_t k_first, int64_t k_count,
                int32_t *acc) {
    const int8_t *columns = (const int8_t *)w->panels + panel * w->panel_bytes + k_first * NR;
    memset(acc, 0, sizeof *acc * NR * (size_t)block->num_rows);
    for (int r = 0; r < block->num_rows; r++, acc += NR) {
        const uint8_t *q = (const uint8_t *)block->a + r * block->a_stride_bytes + k_first;
        for (int64_t i = 0; i < k_count; i++)
            for (int j = 0; j < NR; j++) acc[j] += q[i] * columns[i * NR + j];
    }
}

static void multiply(const qrt_q8_weights *w, const qrt_q8_block *block, int64_t first, int64_t last) {
    for (int64_t panel = first; panel < last; panel++)
        for (int r = 0; r < block->num_rows; r++) {
            qrt_q8_block row = *block;
            row.a = (const uint8_t *)block->a + r * block->a_stride_bytes;
            row.num_rows = 1;
            int32_t acc[NR];
            float t[NR];
            dot(w, &row, panel, 0, w->k_padded, acc);
            for (int j = 0; j < NR; j++) {
                int64_t column = panel * NR + j;
                // Unsigned, because a partial sum may wrap where the whole cannot.
                uint32_t x = (uint32_t)acc[j] - (uint32_t)block->rows[r].zero_point * (uint32_t)w->col_sums[column];
                if (w->zero_points) x -= (uint32_t)w->zero_points[column] * (uint32_t)block->rows[r].sum;
                t[j] = (float)(int32_t)x;
            }
            finish(w, block, panel, r, t);
        }
}

void qrt_portable_gemm_q8(qrt_kernel_table *t) {
    t->codes_q8 = (qrt_codes_q8){range, quantize, NULL, NULL};
    t->gemm_q8 = (qrt_gemm_q8){
        .name = "portable", .mr = 1, .nr = NR, .kr = 1, .item_bytes = 1,
        .block_rows = QRT_Q8_BLOCK_ROWS, .block_bytes = QRT_Q8_BLOCK_BYTES,
        .codes = {range, quantize, pack_codes, NULL}, .panel_bytes = panel_bytes, .pack_panel = pack_panel,
        .unpack_panel = unpack_panel,
        .multiply = multiply, .dot = dot, .finish = finish,
    };
}
