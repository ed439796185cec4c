#include "code_product.h"

#include <string.h>

#include "kernels.h"

/// Rows whose sums of one panel are in the first-level cache until they are codes.
enum { CHUNK_ROWS = 16, MAX_NR = 64 };

static int64_t round_up(int64_t bytes) { return (bytes + QRT_ALIGNMENT - 1) / QRT_ALIGNMENT * QRT_ALIGNMENT; }

/// Parameters of the rows, packed rows, and room for one row of codes.
size_t qrt_code_scratch_bytes(const qrt_q8_weights *w, int64_t m) {
    int64_t rows = m < w->block_rows ? m : w->block_rows;
    return (size_t)(round_up((int64_t)sizeof(qrt_q8_row) * rows) + rows * w->row_bytes + round_up(w->base.k));
}

/// Sums of rows first … first + count - 1 of the block and a panel into y, which begins at the first of the block.
typedef struct {
    const qrt_code_layer *layer;
    const qrt_q8_block *block;
    int32_t base[MAX_NR];
    int32_t acc[CHUNK_ROWS * MAX_NR];
} panel_call;

static void store_plain(const qrt_code_layer *layer, const qrt_code_tile *t, void *y, int64_t ldy_elems) {
    for (int64_t r = 0; r < t->num_rows; r++)
        for (int64_t j = 0; j < t->columns; j++) {
            uint32_t sum = (uint32_t)t->acc[r * t->acc_stride_elems + j] + (uint32_t)t->base[j];
            if (t->weight_zeros) sum -= (uint32_t)t->rows[r].sum * (uint32_t)t->weight_zeros[j];
            if (layer->dtype == QRT_I32) ((int32_t *)y)[r * ldy_elems + j] = (int32_t)sum;
            else ((float *)y)[r * ldy_elems + j] = (float)(int32_t)sum * t->multipliers[j];
        }
}

static void run_panel(panel_call *call, int64_t panel, void *y, int64_t ldy_elems) {
    const qrt_code_layer *layer = call->layer;
    const qrt_q8_weights *w = layer->w;
    const int nr = w->kernel->nr;
    const int64_t column = panel * nr, columns = w->base.n - column < nr ? w->base.n - column : nr;
    const uint32_t zero = (uint32_t)(layer->zero - (w->kernel->code_offset ? w->kernel->code_offset(layer->zero) : 0));
    for (int64_t j = 0; j < columns; j++) {
        uint32_t bias = layer->bias ? (uint32_t)layer->bias[column + j] : 0;
        call->base[j] = (int32_t)(bias - zero * (uint32_t)w->col_sums[column + j]);
    }
    const bool is_codes = layer->dtype == QRT_U8 || layer->dtype == QRT_I8;
    const size_t item = is_codes ? 1 : 4;
    for (int first = 0; first < call->block->num_rows; first += CHUNK_ROWS) {
        qrt_q8_block chunk = *call->block;
        chunk.a = (const char *)chunk.a + first * chunk.a_stride_bytes;
        chunk.rows += first;
        chunk.num_rows = chunk.num_rows - first < CHUNK_ROWS ? chunk.num_rows - first : CHUNK_ROWS;
        if (w->kernel->sums) w->kernel->sums(w, &chunk, panel, call->acc);
        else w->kernel->dot(w, &chunk, panel, 0, w->k_padded, call->acc);
        qrt_code_tile tile = {
            .acc = call->acc, .acc_stride_elems = nr, .rows = chunk.rows, .num_rows = chunk.num_rows, .columns = columns,
            .base = call->base, .weight_zeros = w->zero_points ? w->zero_points + column : NULL,
            .multipliers = w->scales + column, .to = layer->to,
        };
        char *to = (char *)y + (size_t)(first * ldy_elems + column) * item;
        if (is_codes) qrt_kernels.qlinear.requantize(&tile, (uint8_t *)to, ldy_elems);
        else store_plain(layer, &tile, to, ldy_elems);
    }
}

void qrt_code_product(const qrt_code_layer *layer, const qrt_code_rows *rows, int64_t m, void *y, int64_t ldy_elems, void *scratch) {
    const qrt_q8_weights *w = layer->w;
    const bool is_codes = layer->dtype == QRT_U8 || layer->dtype == QRT_I8;
    int64_t most = m < w->block_rows ? m : w->block_rows;
    qrt_q8_row *parameters = scratch;
    char *packed = (char *)scratch + round_up((int64_t)sizeof(qrt_q8_row) * most);
    uint8_t *room = (uint8_t *)packed + most * w->row_bytes;
    const bool as_they_are = w->kernel->takes_codes && !layer->flip && !w->zero_points;
    const bool lies_packed = as_they_are && rows->dense && w->base.k == w->k_padded;
    for (int64_t i = 0; i < m; i += most) {
        int64_t count = m - i < most ? m - i : most;
        for (int64_t r = 0; r < count; r++) {
            parameters[r] = (qrt_q8_row){1.0f, layer->zero, 0};
            uint8_t *to = (uint8_t *)packed + r * w->row_bytes;
            if (lies_packed) continue;
            const uint8_t *codes = rows->next(rows->context, as_they_are ? to : room);
            if (as_they_are && codes == to) {
                memset(to + w->base.k, 0, (size_t)(w->k_padded - w->base.k));
                continue;
            }
            w->kernel->codes.pack(codes, layer->flip, layer->zero, w->base.k, w->k_padded, to,
                                  w->zero_points ? &parameters[r].sum : NULL);
            if (w->zero_points) parameters[r].sum -= w->base.k * layer->zero;
        }
        qrt_q8_block block = {.a = packed, .a_stride_bytes = w->row_bytes, .rows = parameters, .num_rows = (int)count};
        if (lies_packed) {
            block.a = rows->dense + i * w->base.k;
            block.a_stride_bytes = w->base.k;
        }
        panel_call call = {.layer = layer, .block = &block};
        char *to = (char *)y + (size_t)(i * ldy_elems) * (is_codes ? 1 : 4);
        for (int64_t panel = 0; panel < w->num_panels; panel++) run_panel(&call, panel, to, ldy_elems);
        for (int64_t r = 0; layer->table && is_codes && r < count; r++) {
            uint8_t *line = (uint8_t *)to + r * ldy_elems;
            qrt_kernels.qlinear.look_up(layer->table, line, line, w->base.n);
        }
    }
}
