#include "gemm_q8.h"

#include <stdlib.h>
#include <string.h>

#include "threads.h"

/// Less work than this a thread is done sooner than shared, even with threads that are awake. The unit is a weight that
/// is read; a row multiplies in a quarter of that time. Two cores of a Zen 4 guest, November 2026: two threads gain a
/// quarter at 1×512×512, a tenth at 4×320×320, a seventh at 16×256×256; they lose at 1×384×384, 16×128×128, 16×192×192.
enum { WORK_PER_THREAD = 3 << 15 };

/// Less work than this is done sooner than sleeping threads have woken and warmed up their caches.
enum { WORK_WORTH_WAKING = 1 << 24 };

/// Fewer rows a thread do not repay that each thread reads all weights.
enum { ROWS_PER_THREAD = 64 };

/// Quantizing fewer values is done sooner by one thread.
enum { VALUES_PER_THREAD = 1 << 14 };

/// Packing fewer weights is done sooner by one thread.
enum { WEIGHTS_PER_THREAD = 1 << 14 };

/// Beyond it the sums of a column do not fit int32.
static const int64_t MAX_K = (int64_t)1 << 24;

enum { MAX_NR = 64 };

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
static int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }

// ------------------------------------------------------------------------------------------ weights

static const qrt_weights_ops q8_ops;

static const qrt_q8_weights *weights_of(const qrt_layer *layer) { return (const qrt_q8_weights *)layer->w; }

/// Packed weights as parts of one buffer, in order, each aligned.
typedef struct {
    int64_t k_padded, columns, panel_bytes;
    size_t at_kernel, at_panels, at_sums, at_scales, at_zeros, at_bias;
    size_t size;
    bool overflow;
} layout;

static size_t add_part(layout *l, int64_t count, size_t item) {
    size_t at = l->size, bytes;
    l->overflow |= __builtin_mul_overflow((size_t)count, item, &bytes);
    l->overflow |= __builtin_add_overflow(bytes, (size_t)QRT_ALIGNMENT - 1, &bytes);
    l->overflow |= __builtin_add_overflow(at, bytes / QRT_ALIGNMENT * QRT_ALIGNMENT, &l->size);
    return at;
}

/// sums[j] = Σ_i w[i, j]. Neighbouring columns in int16 first, 256 rows at most: −128 · 256 still fits.
static void sum_columns(const int8_t *w, int64_t row_stride_elems, int64_t col_stride_elems, int64_t k, int64_t n,
                        int32_t *sums) {
    if (col_stride_elems != 1) {
        for (int64_t j = 0; j < n; j++) {
            int32_t sum = 0;
            for (int64_t i = 0; i < k; i++) sum += w[i * row_stride_elems + j * col_stride_elems];
            sums[j] = sum;
        }
        return;
    }
    memset(sums, 0, sizeof *sums * (size_t)n);
    for (int64_t i = 0; i < k; i += 256) {
        int64_t rows = min_i64(256, k - i);
        int16_t partial[MAX_NR] = {0};
        for (const int8_t *row = w + i * row_stride_elems; rows > 0; rows--, row += row_stride_elems)
            for (int64_t j = 0; j < n; j++) partial[j] += row[j];
        for (int64_t j = 0; j < n; j++) sums[j] += partial[j];
    }
}

/// One call of qrt_q8_pack.
typedef struct {
    qrt_q8_weights *w;
    const int8_t *source;
    int64_t row_stride_elems, col_stride_elems;
    qrt_buffer *ones;  ///< a packed row of codes 1, or NULL where there is no `dot`, or no memory
    bool refused;      ///< atomic
} packing;

/// A packed row of codes 1. NULL when memory is short.
static qrt_buffer *make_ones(const qrt_q8_weights *w) {
    float *a = malloc(sizeof *a * (size_t)(w->base.k + 1));  // k may be 0
    qrt_buffer *ones = a ? qrt_buffer_new((size_t)w->row_bytes) : NULL;
    for (int64_t i = 0; ones && i < w->base.k; i++) a[i] = 1.0f;
    if (ones) w->kernel->codes.quantize(a, w->base.k, w->k_padded, 1.0f, 0, ones->data, NULL);
    free(a);
    return ones;
}

static void fill_panel(void *context, int64_t panel) {
    packing *p = context;
    const qrt_q8_weights *w = p->w;
    if (__atomic_load_n(&p->refused, __ATOMIC_RELAXED)) return;
    int nr = w->kernel->nr;
    int64_t first = panel * nr, columns = min_i64(nr, w->base.n - first);
    const int8_t *from = p->source + first * p->col_stride_elems;
    char *to = (char *)w->panels + panel * w->panel_bytes;
    if (!w->kernel->pack_panel(from, p->row_stride_elems, p->col_stride_elems, w->base.k, columns, to)) {
        __atomic_store_n(&p->refused, true, __ATOMIC_RELAXED);
        return;
    }
    int32_t *sums = w->col_sums + first;
    if (p->ones) {  // the product of what was just packed is faster than reading the columns once more
        qrt_q8_block ones = {.a = p->ones->data, .a_stride_bytes = w->row_bytes, .num_rows = 1};
        w->kernel->dot(w, &ones, panel, 0, w->k_padded, sums);
    } else {
        memset(sums, 0, sizeof *sums * (size_t)nr);
        sum_columns(from, p->row_stride_elems, p->col_stride_elems, w->base.k, columns, sums);
    }
}

static layout lay_out(const struct qrt_gemm_q8 *kernel, int64_t k, int64_t n, bool has_zero_points, bool has_bias) {
    layout l = {.overflow = k < 0 || n < 0 || k > MAX_K || n > INT64_MAX / 2};
    if (l.overflow) return l;
    l.k_padded = round_up(k, kernel->kr);
    l.columns = round_up(n, kernel->nr);
    l.panel_bytes = round_up(kernel->panel_bytes(l.k_padded), QRT_ALIGNMENT);
    l.at_kernel = add_part(&l, 1, sizeof *kernel);
    l.at_panels = add_part(&l, l.columns / kernel->nr, (size_t)l.panel_bytes);
    l.at_sums = add_part(&l, l.columns, sizeof(int32_t));
    int64_t params = l.columns > 0 ? l.columns : 1;  // without columns there still may be one scale
    l.at_scales = add_part(&l, params, sizeof(float));
    l.at_zeros = add_part(&l, has_zero_points ? params : 0, sizeof(int32_t));
    l.at_bias = add_part(&l, has_bias ? l.columns : 0, sizeof(float));
    return l;
}

size_t qrt_q8_packed_bytes(const struct qrt_gemm_q8 *kernel, int64_t k, int64_t n, bool has_zero_points, bool has_bias) {
    layout l = lay_out(kernel, k, n, has_zero_points, has_bias);
    return l.overflow ? 0 : l.size;
}

/// Bytes from one packed row to the next. Rows a multiple of 4 KB apart would fall into the same cache set.
static int64_t row_bytes(const qrt_gemm_q8 *kernel, int64_t k_padded) {
    int64_t bytes = round_up(k_padded * kernel->item_bytes, QRT_ALIGNMENT) + QRT_ALIGNMENT;
    return bytes / QRT_ALIGNMENT % 2 ? bytes : bytes + QRT_ALIGNMENT;
}

static int64_t block_rows(const qrt_gemm_q8 *kernel, int64_t row_bytes) {
    int64_t fitting = kernel->block_bytes / row_bytes / kernel->mr * kernel->mr;
    return fitting < kernel->mr ? kernel->mr : min_i64(fitting, kernel->block_rows);
}

qrt_q8_weights *qrt_q8_pack(const struct qrt_gemm_q8 *kernel, const int8_t *w,
                            int64_t row_stride_elems, int64_t col_stride_elems, int64_t k, int64_t n,
                            const float *scales, const int32_t *zero_points, int64_t num_params, const float *bias,
                            qrt_arena *arena, int num_threads) {
    layout l = lay_out(kernel, k, n, zero_points, bias);
    if (l.overflow) return NULL;
    qrt_q8_weights *made = malloc(sizeof *made);
    qrt_buffer *buffer = qrt_arena_take(arena, l.size);
    if (!made || !buffer) {
        free(made);
        if (buffer) qrt_buffer_drop(buffer);
        return NULL;
    }
    char *base = buffer->data;
    *made = (qrt_q8_weights){
        .kernel = memcpy(base + l.at_kernel, kernel, sizeof *kernel),
        .base = {&q8_ops, k, n, buffer},
        .k_padded = l.k_padded, .num_panels = l.columns / kernel->nr, .panel_bytes = l.panel_bytes,
        .row_bytes = row_bytes(kernel, l.k_padded), .block_rows = block_rows(kernel, row_bytes(kernel, l.k_padded)),
        .panels = base + l.at_panels,
        .col_sums = (int32_t *)(base + l.at_sums),
        .scales = (float *)(base + l.at_scales),
        .num_params = num_params,
        .zero_points = zero_points ? (int32_t *)(base + l.at_zeros) : NULL,
        .bias = bias ? (float *)(base + l.at_bias) : NULL,
    };
    int64_t params = n > num_params ? n : num_params;
    for (int64_t j = 0; j < params || j < l.columns; j++) {
        int64_t from = num_params == 1 ? 0 : j;
        made->scales[j] = j < params ? scales[from] : 0.0f;
        if (zero_points) made->zero_points[j] = j < params ? zero_points[from] : 0;
    }
    for (int64_t j = 0; bias && j < l.columns; j++) made->bias[j] = j < n ? bias[j] : 0.0f;
    packing p = {made, w, row_stride_elems, col_stride_elems, kernel->dot ? make_ones(made) : NULL, false};
    if (k * l.columns < (int64_t)num_threads * WEIGHTS_PER_THREAD) num_threads = 1;
    qrt_parallel_for(num_threads, l.columns / kernel->nr, fill_panel, &p);
    if (p.ones) qrt_buffer_drop(p.ones);
    if (p.refused) {
        qrt_weights_free(&made->base);
        return qrt_q8_pack(kernel->fallback, w, row_stride_elems, col_stride_elems, k, n, scales, zero_points,
                           num_params, bias, NULL, num_threads);
    }
    return made;
}

void qrt_q8_unpack(const qrt_q8_weights *w, int8_t *codes, int64_t row_stride_elems, int64_t col_stride_elems) {
    const qrt_gemm_q8 *kernel = w->kernel;
    for (int64_t panel = 0; panel < w->num_panels; panel++) {
        int64_t first = panel * kernel->nr;
        kernel->unpack_panel((const char *)w->panels + panel * w->panel_bytes, w->base.k, min_i64(kernel->nr, w->base.n - first),
                             codes + first * col_stride_elems, row_stride_elems, col_stride_elems);
    }
}

// ------------------------------------------------------------------------------------------- blocks

/// K too long for int32: chunks, summed in int64.
static void multiply_long(const qrt_q8_weights *w, const qrt_q8_block *block, int64_t first, int64_t last) {
    const qrt_gemm_q8 *kernel = w->kernel;
    int nr = kernel->nr;
    int64_t chunk = QRT_Q8_MAX_K / kernel->kr * kernel->kr;
    for (int64_t panel = first; panel < last; panel++)
        for (int r = 0; r < block->num_rows; r++) {
            qrt_q8_block row = *block;
            row.a = (const char *)block->a + r * block->a_stride_bytes;
            row.num_rows = 1;
            int32_t acc[MAX_NR];
            int64_t total[MAX_NR] = {0};
            float t[MAX_NR];
            for (int64_t k = 0; k < w->k_padded; k += chunk) {
                kernel->dot(w, &row, panel, k, min_i64(chunk, w->k_padded - k), acc);
                for (int j = 0; j < nr; j++) total[j] += acc[j];
            }
            for (int j = 0; j < nr; j++) {
                int64_t column = panel * nr + j;
                total[j] -= (int64_t)block->rows[r].zero_point * w->col_sums[column];
                if (w->zero_points) total[j] -= w->zero_points[column] * block->rows[r].sum;
                t[j] = (float)total[j];
            }
            kernel->finish(w, block, panel, r, t);
        }
}

static void multiply(const qrt_q8_weights *w, const qrt_q8_block *block, int64_t first, int64_t last) {
    if (w->k_padded > QRT_Q8_MAX_K) multiply_long(w, block, first, last);
    else w->kernel->multiply(w, block, first, last);
}

/// One call of `linear` whose layers are packed alike.
typedef struct {
    const qrt_layer *layers;
    int num_layers;
    const qrt_q8_weights *w;    ///< of the first layer: how to quantize for all of them
    bool sums;                  ///< some weights have zero points
    const float *a;
    int64_t lda_elems, m;
    const qrt_q8_row *shared;   ///< parameters of the whole tensor, or NULL
    int64_t stride_bytes;       ///< of packed rows
    int64_t rows_per_block, rows_per_share, panels_per_task, num_panels;
    qrt_q8_row *rows;
    char *packed;
    int64_t next_block;         ///< atomic
} job;

static job job_of(const qrt_layer *layers, int num_layers, const float *a, int64_t lda_elems, int64_t m) {
    const qrt_q8_weights *w = weights_of(&layers[0]);
    job j = {
        .layers = layers, .num_layers = num_layers, .w = w, .a = a, .lda_elems = lda_elems, .m = m,
        .stride_bytes = w->row_bytes, .rows_per_block = min_i64(m, w->block_rows),
    };
    for (int i = 0; i < num_layers; i++) {
        j.sums |= weights_of(&layers[i])->zero_points != NULL;
        j.num_panels += weights_of(&layers[i])->num_panels;
    }
    return j;
}

/// Parameters for the whole of `a`, kept in `shared`, where the mode asks for them.
static void share_range(job *j, qrt_range_mode mode, qrt_q8_row *shared) {
    if (mode != QRT_PER_TENSOR) return;
    *shared = qrt_q8_tensor_parameters(&j->w->kernel->codes, j->a, j->lda_elems, j->m, j->w->base.k);
    j->shared = shared;
}

/// The block against some panels, with all of its epilogue.
static void multiply_block(const qrt_q8_weights *w, const qrt_q8_block *block, int64_t first, int64_t last) {
    const qrt_elementwise map = block->epilogue.map;
    if (!map.fn) {
        multiply(w, block, first, last);
        return;
    }
    qrt_q8_block sums = *block;
    sums.epilogue = (qrt_epilogue){.activation = QRT_ACT_NONE};
    multiply(w, &sums, first, last);
    int64_t column = first * w->kernel->nr, columns = min_i64(last * w->kernel->nr, w->base.n) - column;
    for (int r = 0; r < block->num_rows; r++) {
        float *y = block->y + r * block->ldy_elems + column;
        const float *residual = block->epilogue.residual;
        map.fn(y, y, columns, map.p, map.q);
        if (residual) residual += r * block->epilogue.residual_stride_elems + column;
        for (int64_t j = 0; residual && j < columns; j++) y[j] += residual[j];
    }
}

/// Quantized rows, the first of them row `first_row`, against panels first … last-1, counted through all layers.
static void multiply_layers(const job *j, int64_t first_row, int64_t num_rows, const qrt_q8_row *rows,
                            const char *packed, int64_t first, int64_t last) {
    for (int i = 0; i < j->num_layers && last > 0; i++) {
        const qrt_layer *layer = &j->layers[i];
        const qrt_q8_weights *w = weights_of(layer);
        int64_t panels = w->num_panels;
        if (first < panels) {
            qrt_q8_block block = {
                .a = packed, .a_stride_bytes = j->stride_bytes, .rows = rows, .num_rows = (int)num_rows,
                .epilogue = layer->epilogue, .y = layer->y + first_row * layer->ldy_elems, .ldy_elems = layer->ldy_elems,
            };
            if (block.epilogue.residual) block.epilogue.residual += first_row * block.epilogue.residual_stride_elems;
            multiply_block(w, &block, first, min_i64(last, panels));
        }
        first = first > panels ? first - panels : 0;
        last -= panels;
    }
}

/// Rows [first, first + count) into codes.
static void quantize(const job *j, int64_t first, int64_t count, qrt_q8_row *rows, char *packed) {
    const qrt_q8_weights *w = j->w;
    qrt_q8_quantize_rows(&w->kernel->codes, j->a + first * j->lda_elems, j->lda_elems, count, w->base.k, w->k_padded,
                         j->shared, j->sums, rows, packed, j->stride_bytes);
}

/// Rows [first, first + count) from float to float.
static void run_rows(const job *j, int64_t first, int64_t count, qrt_q8_row *rows, char *packed) {
    quantize(j, first, count, rows, packed);
    multiply_layers(j, first, count, rows, packed, 0, j->num_panels);
}

static size_t rows_scratch(const qrt_q8_weights *w, int64_t m) {
    return (size_t)round_up((int64_t)sizeof(qrt_q8_row) * m, QRT_ALIGNMENT) + (size_t)(m * w->row_bytes);
}

static size_t scratch_bytes(const qrt_weights *weights, int64_t m) {
    const qrt_q8_weights *w = (const qrt_q8_weights *)weights;
    return rows_scratch(w, min_i64(m, w->block_rows));
}

/// All rows on this thread.
static void run_blocks(const job *j, char *scratch) {
    char *packed = scratch + round_up((int64_t)sizeof(qrt_q8_row) * j->rows_per_block, QRT_ALIGNMENT);
    for (int64_t i = 0; i < j->m; i += j->rows_per_block)
        run_rows(j, i, min_i64(j->rows_per_block, j->m - i), (qrt_q8_row *)scratch, packed);
}

static void linear_serial(const qrt_weights *w, const float *a, int64_t lda_elems, int64_t m, qrt_range_mode mode,
                          const qrt_epilogue *epilogue, float *y, int64_t ldy_elems, void *scratch) {
    const qrt_layer layer = {w, *epilogue, y, ldy_elems};
    job j = job_of(&layer, 1, a, lda_elems, m);
    qrt_q8_row shared;
    share_range(&j, mode, &shared);
    run_blocks(&j, scratch);
}

// ------------------------------------------------------------------------------------------ threads

/// Each task takes blocks of rows until none is left; it owns one block of scratch.
static void take_blocks(void *context, int64_t task) {
    job *j = context;
    for (;;) {
        int64_t first = __atomic_fetch_add(&j->next_block, 1, __ATOMIC_RELAXED) * j->rows_per_block;
        if (first >= j->m) return;
        run_rows(j, first, min_i64(j->rows_per_block, j->m - first), j->rows + task * j->rows_per_block,
                 j->packed + task * j->rows_per_block * j->stride_bytes);
    }
}

static void quantize_share(void *context, int64_t task) {
    job *j = context;
    int64_t first = task * j->rows_per_share, count = min_i64(j->rows_per_share, j->m - first);
    quantize(j, first, count, j->rows + first, j->packed + first * j->stride_bytes);
}

/// All rows of a short batch against some panels.
static void take_panels(void *context, int64_t task) {
    job *j = context;
    int64_t first = task * j->panels_per_task, last = min_i64(first + j->panels_per_task, j->num_panels);
    for (int64_t i = 0; i < j->m; i += j->rows_per_block) {
        int64_t count = min_i64(j->rows_per_block, j->m - i);
        multiply_layers(j, i, count, j->rows + i, j->packed + i * j->stride_bytes, first, last);
    }
}

/// Whether one packing of the activations serves both.
static bool are_packed_alike(const qrt_q8_weights *a, const qrt_q8_weights *b) {
    return a->k_padded == b->k_padded && a->kernel->codes.quantize == b->kernel->codes.quantize;
}

static qrt_status linear(const qrt_layer *layers, int num_layers, qrt_run *run, const float *a, int64_t lda_elems, int64_t m,
                         qrt_range_mode mode) {
    int alike = 1;
    while (alike < num_layers && are_packed_alike(weights_of(&layers[0]), weights_of(&layers[alike]))) alike++;
    if (alike < num_layers) {
        qrt_status status = linear(layers + alike, num_layers - alike, run, a, lda_elems, m, mode);
        if (status != QRT_OK) return status;
    }
    job j = job_of(layers, alike, a, lda_elems, m);
    const qrt_q8_weights *w = j.w;
    if (m <= 0 || j.num_panels == 0) return QRT_OK;
    double work = 0;
    for (int i = 0; i < alike; i++) work += (1.0 + (double)m / 4) * (double)w->base.k * (double)layers[i].w->n;
    int64_t threads = run->num_threads;
    if (work < (double)threads * WORK_PER_THREAD) threads = (int64_t)(work / WORK_PER_THREAD);
    bool alone = threads > 1 && work < WORK_WORTH_WAKING && !qrt_threads_are_warm();
    if (alone) threads = 1;
    qrt_q8_row shared;
    if (threads <= 1) {
        qrt_buffer *scratch = qrt_scratch(run, scratch_bytes(&w->base, m));
        if (!scratch) return QRT_NO_MEMORY;
        share_range(&j, mode, &shared);
        run_blocks(&j, scratch->data);
        qrt_scratch_free(run, scratch);
        if (alone) qrt_unshared_work_ended();
        return QRT_OK;
    }
    // Whole rows for each thread when there are enough of them, so that none is quantized twice or waits.
    bool by_rows = m >= threads * ROWS_PER_THREAD;
    j.rows_per_block = w->block_rows;
    if (by_rows) {
        int64_t share = round_up(ceil_div(m, threads), w->kernel->mr);
        int64_t blocks = ceil_div(share, j.rows_per_block);
        j.rows_per_block = min_i64(j.rows_per_block, round_up(ceil_div(share, blocks), w->kernel->mr));
    } else {
        j.panels_per_task = ceil_div(j.num_panels, threads * 2);
    }
    int64_t held = by_rows ? threads * j.rows_per_block : m;
    qrt_buffer *scratch = qrt_scratch(run, rows_scratch(w, held));
    if (!scratch) return QRT_NO_MEMORY;
    j.rows = scratch->data;
    j.packed = (char *)scratch->data + round_up((int64_t)sizeof(qrt_q8_row) * held, QRT_ALIGNMENT);
    share_range(&j, mode, &shared);
    if (by_rows) {
        qrt_parallel_for((int)threads, threads, take_blocks, &j);
    } else {
        int64_t shares = min_i64(threads, m * w->base.k / VALUES_PER_THREAD);
        j.rows_per_share = shares > 1 ? ceil_div(m, shares) : m;
        qrt_parallel_for((int)threads, ceil_div(m, j.rows_per_share), quantize_share, &j);
        qrt_parallel_for((int)threads, ceil_div(j.num_panels, j.panels_per_task), take_panels, &j);
    }
    qrt_scratch_free(run, scratch);
    return QRT_OK;
}

static const qrt_weights_ops q8_ops = {
    .name = "q8", .linear = linear, .linear_serial = linear_serial, .scratch_bytes = scratch_bytes,
};
