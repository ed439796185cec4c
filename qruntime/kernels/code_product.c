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

/// What becomes of the sums of a panel: the constants of its columns, and where they go.
typedef struct {
    const qrt_code_layer *layer;
    int64_t column, columns, ldy_elems;
    char *y;                    ///< of the first row and column
    _Alignas(QRT_ALIGNMENT) int32_t base[MAX_NR];
    _Alignas(QRT_ALIGNMENT) int32_t acc[CHUNK_ROWS * MAX_NR];
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

static bool gives_codes(const qrt_code_layer *layer) { return layer->dtype == QRT_U8 || layer->dtype == QRT_I8; }

static size_t item_bytes(const qrt_code_layer *layer) { return gives_codes(layer) ? 1 : 4; }

/// Of a call whose layer, y and ldy_elems are set; y is that of the first panel.
static void begin_panel(panel_call *call, int64_t panel, char *y) {
    const qrt_code_layer *layer = call->layer;
    const qrt_q8_weights *w = layer->w;
    const int nr = w->kernel->nr;
    const uint32_t zero = (uint32_t)(layer->zero - (w->kernel->code_offset ? w->kernel->code_offset(layer->zero) : 0));
    call->column = panel * nr;
    call->columns = w->base.n - call->column < nr ? w->base.n - call->column : nr;
    call->y = y + (size_t)call->column * item_bytes(layer);
    for (int64_t j = 0; j < call->columns; j++) {
        uint32_t bias = layer->bias ? (uint32_t)layer->bias[call->column + j] : 0;
        call->base[j] = (int32_t)(bias - zero * (uint32_t)w->col_sums[call->column + j]);
    }
}

static qrt_code_tile tile_of(const panel_call *call, const qrt_q8_row *rows, int64_t count) {
    const qrt_q8_weights *w = call->layer->w;
    return (qrt_code_tile){
        .acc = call->acc, .acc_stride_elems = w->kernel->nr, .rows = rows, .num_rows = count, .columns = call->columns, .base = call->base,
        .weight_zeros = w->zero_points ? w->zero_points + call->column : NULL, .multipliers = w->scales + call->column, .to = call->layer->to,
    };
}

/// The sums of `count` rows from `first` on. `rows` are read where weights have zero points.
static void store_sums(const panel_call *call, const qrt_q8_row *rows, int64_t first, int64_t count) {
    const qrt_code_layer *layer = call->layer;
    const qrt_code_tile tile = tile_of(call, rows, count);
    char *to = call->y + (size_t)(first * call->ldy_elems) * item_bytes(layer);
    if (gives_codes(layer)) qrt_kernels.qlinear.requantize(&tile, (uint8_t *)to, call->ldy_elems);
    else store_plain(layer, &tile, to, call->ldy_elems);
}

/// Whether sums become codes where they are made.
static bool goes_straight(const qrt_code_layer *layer) {
    return layer->w->kernel->window_codes && gives_codes(layer);
}

/// Windows to codes, `first` rows behind the beginning. `rows` are read where weights have zero points.
static void store_windows(const panel_call *call, const qrt_q8_windows *windows, int64_t panel, const qrt_q8_row *rows, int64_t first) {
    const qrt_code_tile tile = tile_of(call, rows, windows->num_windows);
    const qrt_q8_weights *w = call->layer->w;
    w->kernel->window_codes(w, windows, panel, &tile, (uint8_t *)call->y + first * call->ldy_elems, call->ldy_elems);
}

static void run_panel(panel_call *call, const qrt_q8_block *block, int64_t panel, char *y) {
    const qrt_q8_weights *w = call->layer->w;
    begin_panel(call, panel, y);
    if (goes_straight(call->layer)) {
        const int64_t place = 0;
        const qrt_q8_windows rows = {
            .codes = block->a, .step_bytes = block->a_stride_bytes, .places = &place, .num_pieces = 1, .piece_bytes = w->k_padded,
            .num_windows = block->num_rows,
        };
        store_windows(call, &rows, panel, block->rows, 0);
        return;
    }
    for (int first = 0; first < block->num_rows; first += CHUNK_ROWS) {
        qrt_q8_block chunk = *block;
        chunk.a = (const char *)chunk.a + first * chunk.a_stride_bytes;
        chunk.rows += first;
        chunk.num_rows = chunk.num_rows - first < CHUNK_ROWS ? chunk.num_rows - first : CHUNK_ROWS;
        if (w->kernel->sums) w->kernel->sums(w, &chunk, panel, call->acc);
        else w->kernel->dot(w, &chunk, panel, 0, w->k_padded, call->acc);
        store_sums(call, chunk.rows, first, chunk.num_rows);
    }
}

/// Rows of the codes of panels first … last − 1 through the table, if there is one.
static void look_up(const qrt_code_layer *layer, int64_t rows, int64_t first, int64_t last, void *y, int64_t ldy_elems) {
    if (!layer->table || !gives_codes(layer)) return;
    const int64_t begin = first * layer->w->kernel->nr, end = last * layer->w->kernel->nr, n = (end < layer->w->base.n ? end : layer->w->base.n) - begin;
    uint8_t *line = (uint8_t *)y + begin;
    if (n == ldy_elems) qrt_kernels.qlinear.look_up(layer->table, line, line, rows * n);
    for (int64_t r = 0; n < ldy_elems && r < rows; r++, line += ldy_elems) qrt_kernels.qlinear.look_up(layer->table, line, line, n);
}

static int32_t sum_of(const uint8_t *codes, int64_t k) {
    int32_t sum;
    qrt_kernels.qlinear.row_sums(codes, k, 1, k, &sum);
    return sum;
}

static bool takes_as_they_are(const qrt_code_layer *layer) { return layer->w->kernel->takes_codes && !layer->flip; }

bool qrt_code_rows_lie_packed(const qrt_code_layer *layer) {
    return takes_as_they_are(layer) && layer->w->base.k == layer->w->k_padded;
}

void qrt_code_product(const qrt_code_layer *layer, const qrt_code_rows *rows, int64_t m, int64_t first, int64_t last, void *y,
                      int64_t ldy_elems, void *scratch) {
    const qrt_q8_weights *w = layer->w;
    int64_t most = m < w->block_rows ? m : w->block_rows;
    qrt_q8_row *parameters = scratch;
    char *packed = (char *)scratch + round_up((int64_t)sizeof(qrt_q8_row) * most);
    uint8_t *room = (uint8_t *)packed + most * w->row_bytes;
    const bool as_they_are = takes_as_they_are(layer), lies_packed = rows->dense && qrt_code_rows_lie_packed(layer);
    for (int64_t i = 0; i < m; i += most) {
        int64_t count = m - i < most ? m - i : most;
        for (int64_t r = 0; r < count; r++) {
            uint8_t *to = (uint8_t *)packed + r * w->row_bytes;
            const uint8_t *codes = lies_packed ? rows->dense + (i + r) * w->base.k : rows->next(rows->context, as_they_are ? to : room);
            parameters[r] = (qrt_q8_row){1.0f, layer->zero, 0};
            if (lies_packed || (as_they_are && codes == to)) {
                if (w->zero_points) parameters[r].sum = sum_of(codes, w->base.k);
                if (!lies_packed) memset(to + w->base.k, 0, (size_t)(w->k_padded - w->base.k));
            } else {
                w->kernel->codes.pack(codes, layer->flip, layer->zero, w->base.k, w->k_padded, to,
                                      w->zero_points ? &parameters[r].sum : NULL);
            }
            if (w->zero_points) parameters[r].sum -= w->base.k * layer->zero;
        }
        qrt_q8_block block = {.a = packed, .a_stride_bytes = w->row_bytes, .rows = parameters, .num_rows = (int)count};
        if (lies_packed) {
            block.a = rows->dense + i * w->base.k;
            block.a_stride_bytes = w->base.k;
        }
        panel_call call;
        call.layer = layer;
        call.ldy_elems = ldy_elems;
        char *to = (char *)y + (size_t)(i * ldy_elems) * item_bytes(layer);
        for (int64_t panel = first; panel < last; panel++) run_panel(&call, &block, panel, to);
        look_up(layer, count, first, last, to, ldy_elems);
    }
}

void qrt_code_window_product(const qrt_code_layer *layer, const qrt_q8_windows *windows, int64_t num_lines, int64_t line_bytes,
                             const int32_t *sums, int64_t first_panel, int64_t last_panel, void *y, int64_t ldy_elems) {
    const qrt_q8_weights *w = layer->w;
    const int of_line = windows->num_windows;
    panel_call call;
    call.layer = layer;
    call.ldy_elems = ldy_elems;
    for (int64_t panel = first_panel; panel < last_panel; panel++) {
        begin_panel(&call, panel, y);
        for (int64_t line = 0; line < num_lines; line++) {
            qrt_q8_windows whole = *windows;
            whole.codes += line * line_bytes;
            if (goes_straight(layer) && !w->zero_points) {
                store_windows(&call, &whole, panel, NULL, line * of_line);
                continue;
            }
            for (int first = 0; first < of_line; first += CHUNK_ROWS) {
                qrt_q8_windows chunk = whole;
                chunk.codes += first * windows->step_bytes;
                chunk.num_windows = of_line - first < CHUNK_ROWS ? of_line - first : CHUNK_ROWS;
                qrt_q8_row rows[CHUNK_ROWS];
                for (int r = 0; w->zero_points && r < chunk.num_windows; r++) rows[r].sum = sums[line * of_line + first + r];
                if (goes_straight(layer)) {
                    store_windows(&call, &chunk, panel, rows, line * of_line + first);
                    continue;
                }
                w->kernel->window_sums(w, &chunk, panel, call.acc);
                store_sums(&call, rows, line * of_line + first, chunk.num_windows);
            }
        }
    }
    look_up(layer, num_lines * of_line, first_panel, last_panel, y, ldy_elems);
}
