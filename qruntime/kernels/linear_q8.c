#include "linear_q8.h"

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

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
static int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }

int64_t qrt_q8_row_stride(int64_t bytes) {
    bytes = round_up(bytes, QRT_ALIGNMENT);
    return bytes / QRT_ALIGNMENT % 2 ? bytes : bytes + QRT_ALIGNMENT;
}

// ------------------------------------------------------------------------------------------- blocks

/// Room for rows while they are codes.
typedef struct {
    qrt_q8_row *rows;
    char *packed, *work;
} room;

/// One call of qrt_q8_linear whose layers are packed alike.
typedef struct {
    const qrt_q8_kind *kind;
    const qrt_layer *layers;
    int num_layers;
    qrt_q8_shape shape;         ///< of the first layer: how to quantize for all of them
    const float *a;
    int64_t lda_elems, m;
    qrt_q8_grid grid;
    const qrt_q8_row *shared;   ///< parameters of the whole tensor, or NULL
    int64_t rows_per_block, rows_per_share, panels_per_task, num_panels;
    room held;                  ///< for every task, or for all rows
    int64_t next_block;         ///< atomic
} job;

static const qrt_q8_kind *kind_of(const qrt_weights *w) { return (const qrt_q8_kind *)w->ops; }

static job job_of(const qrt_layer *layers, int num_layers, const float *a, int64_t lda_elems, int64_t m,
                  qrt_q8_grid grid) {
    const qrt_q8_kind *kind = kind_of(layers[0].w);
    job j = {
        .kind = kind, .layers = layers, .num_layers = num_layers, .shape = kind->shape(layers[0].w), .a = a,
        .lda_elems = lda_elems, .m = m, .grid = grid,
    };
    j.rows_per_block = min_i64(m, j.shape.block_rows);
    for (int i = 0; i < num_layers; i++) j.num_panels += kind->shape(layers[i].w).num_panels;
    return j;
}

/// Parameters for the whole of `a`, kept in `shared`, where the mode asks for them.
static void share_range(job *j, qrt_q8_row *shared) {
    if (j->grid.mode == QRT_PER_TOKEN) return;
    if (j->grid.mode == QRT_STATIC) *shared = (qrt_q8_row){.scale = j->grid.scale, .zero_point = j->grid.zero_point};
    else *shared = qrt_q8_tensor_parameters(j->shape.codes, j->a, j->lda_elems, j->m, j->layers[0].w->k, j->grid.qmax);
    j->shared = shared;
}

/// For `m` rows, which `tasks` of them quantize at a time.
static size_t room_bytes(const qrt_q8_shape *shape, int64_t m, int64_t tasks) {
    int64_t work = round_up(shape->work_bytes, QRT_ALIGNMENT);
    return (size_t)(round_up((int64_t)sizeof(qrt_q8_row) * m, QRT_ALIGNMENT) + m * shape->row_bytes + tasks * work);
}

static room room_of(const qrt_q8_shape *shape, int64_t m, void *scratch) {
    room made = {.rows = scratch, .packed = (char *)scratch + round_up((int64_t)sizeof(qrt_q8_row) * m, QRT_ALIGNMENT)};
    made.work = made.packed + m * shape->row_bytes;
    return made;
}

/// From row `first` on, for task `task`.
static room part_of(const job *j, int64_t first, int64_t task) {
    return (room){
        j->held.rows + first, j->held.packed + first * j->shape.row_bytes,
        j->held.work + task * round_up(j->shape.work_bytes, QRT_ALIGNMENT),
    };
}

void qrt_q8_map(const qrt_q8_block *block, int64_t column, int64_t columns) {
    const qrt_elementwise map = block->epilogue.map;
    for (int r = 0; r < block->num_rows; r++) {
        float *y = block->y + r * block->ldy_elems + column;
        const float *residual = block->epilogue.residual;
        map.fn(y, y, columns, map.p, map.q);
        if (residual) residual += r * block->epilogue.residual_stride_elems + column;
        for (int64_t i = 0; residual && i < columns; i++) y[i] += residual[i];
    }
}

/// The block against some panels, with all of its epilogue.
static void multiply_block(const job *j, const qrt_weights *w, const qrt_q8_block *block, int64_t first, int64_t last) {
    if (!block->epilogue.map.fn) {
        j->kind->multiply(w, block, first, last);
        return;
    }
    qrt_q8_block sums = *block;
    sums.epilogue = (qrt_epilogue){.activation = QRT_ACT_NONE};
    j->kind->multiply(w, &sums, first, last);
    const int64_t nr = j->kind->shape(w).nr, column = first * nr, columns = min_i64(last * nr, w->n) - column;
    qrt_q8_map(block, column, columns);
}

/// Quantized rows, the first of them row `first_row`, against panels first … last-1, counted through all layers.
static void multiply_layers(const job *j, int64_t first_row, int64_t num_rows, const room *in, int64_t first, int64_t last) {
    for (int i = 0; i < j->num_layers && last > 0; i++) {
        const qrt_layer *layer = &j->layers[i];
        int64_t panels = j->kind->shape(layer->w).num_panels;
        if (first < panels) {
            qrt_q8_block block = {
                .a = in->packed, .a_stride_bytes = j->shape.row_bytes, .rows = in->rows, .num_rows = (int)num_rows,
                .epilogue = layer->epilogue, .y = layer->y + first_row * layer->ldy_elems, .ldy_elems = layer->ldy_elems,
            };
            if (block.epilogue.residual) block.epilogue.residual += first_row * block.epilogue.residual_stride_elems;
            multiply_block(j, layer->w, &block, first, min_i64(last, panels));
        }
        first = first > panels ? first - panels : 0;
        last -= panels;
    }
}

/// Rows [first, first + count) into codes.
static void quantize(const job *j, int64_t first, int64_t count, const room *in) {
    j->kind->quantize(j->layers, j->num_layers, j->a + first * j->lda_elems, j->lda_elems, count, j->grid.qmax, j->shared,
                      in->rows, in->packed, j->shape.row_bytes, in->work);
}

/// Rows [first, first + count) from float to float.
static void run_rows(const job *j, int64_t first, int64_t count, const room *in) {
    quantize(j, first, count, in);
    multiply_layers(j, first, count, in, 0, j->num_panels);
}

size_t qrt_q8_scratch_bytes(const qrt_weights *w, int64_t m) {
    qrt_q8_shape shape = kind_of(w)->shape(w);
    return room_bytes(&shape, min_i64(m, shape.block_rows), 1);
}

/// All rows on this thread.
static void run_blocks(const job *j, void *scratch) {
    room in = room_of(&j->shape, j->rows_per_block, scratch);
    for (int64_t i = 0; i < j->m; i += j->rows_per_block) run_rows(j, i, min_i64(j->rows_per_block, j->m - i), &in);
}

void qrt_q8_linear_serial(const qrt_weights *w, const float *a, int64_t lda_elems, int64_t m, qrt_q8_grid grid,
                          const qrt_epilogue *epilogue, float *y, int64_t ldy_elems, void *scratch) {
    const qrt_layer layer = {w, *epilogue, y, ldy_elems};
    job j = job_of(&layer, 1, a, lda_elems, m, grid);
    qrt_q8_row shared;
    share_range(&j, &shared);
    run_blocks(&j, scratch);
}

// ------------------------------------------------------------------------------------------ threads

/// Each task takes blocks of rows until none is left; it owns room for one.
static void take_blocks(void *context, int64_t task) {
    job *j = context;
    room own = part_of(j, task * j->rows_per_block, task);
    for (;;) {
        int64_t first = __atomic_fetch_add(&j->next_block, 1, __ATOMIC_RELAXED) * j->rows_per_block;
        if (first >= j->m) return;
        run_rows(j, first, min_i64(j->rows_per_block, j->m - first), &own);
    }
}

static void quantize_share(void *context, int64_t task) {
    job *j = context;
    int64_t first = task * j->rows_per_share, count = min_i64(j->rows_per_share, j->m - first);
    room own = part_of(j, first, task);
    quantize(j, first, count, &own);
}

/// All rows of a short batch against some panels.
static void take_panels(void *context, int64_t task) {
    job *j = context;
    int64_t first = task * j->panels_per_task, last = min_i64(first + j->panels_per_task, j->num_panels);
    for (int64_t i = 0; i < j->m; i += j->rows_per_block) {
        room rows = part_of(j, i, 0);
        multiply_layers(j, i, min_i64(j->rows_per_block, j->m - i), &rows, first, last);
    }
}

qrt_status qrt_q8_linear(const qrt_layer *layers, int num_layers, qrt_run *run, const float *a, int64_t lda_elems, int64_t m,
                         qrt_q8_grid grid) {
    const qrt_q8_kind *kind = kind_of(layers[0].w);
    int alike = 1;
    while (alike < num_layers && kind->are_packed_alike(layers[0].w, layers[alike].w)) alike++;
    if (alike < num_layers) {
        qrt_status status = qrt_q8_linear(layers + alike, num_layers - alike, run, a, lda_elems, m, grid);
        if (status != QRT_OK) return status;
    }
    job j = job_of(layers, alike, a, lda_elems, m, grid);
    const int64_t k = layers[0].w->k;
    if (m <= 0 || j.num_panels == 0) return QRT_OK;
    double work = 0;
    for (int i = 0; i < alike; i++) work += (1.0 + (double)m / 4) * (double)k * (double)layers[i].w->n;
    int64_t threads = run->num_threads;
    if (work < (double)threads * WORK_PER_THREAD) threads = (int64_t)(work / WORK_PER_THREAD);
    bool alone = threads > 1 && work < WORK_WORTH_WAKING && !qrt_threads_are_warm();
    if (alone) threads = 1;
    qrt_q8_row shared;
    if (threads <= 1) {
        qrt_buffer *scratch = qrt_scratch(run, room_bytes(&j.shape, j.rows_per_block, 1));
        if (!scratch) return QRT_NO_MEMORY;
        share_range(&j, &shared);
        run_blocks(&j, scratch->data);
        qrt_scratch_free(run, scratch);
        if (alone) qrt_unshared_work_ended();
        return QRT_OK;
    }
    // Whole rows for each thread when there are enough of them, so that none is quantized twice or waits.
    bool by_rows = m >= threads * ROWS_PER_THREAD;
    j.rows_per_block = j.shape.block_rows;
    if (by_rows) {
        int64_t share = round_up(ceil_div(m, threads), j.shape.mr);
        int64_t blocks = ceil_div(share, j.rows_per_block);
        j.rows_per_block = min_i64(j.rows_per_block, round_up(ceil_div(share, blocks), j.shape.mr));
    } else {
        j.panels_per_task = ceil_div(j.num_panels, threads * 2);
    }
    int64_t held = by_rows ? threads * j.rows_per_block : m;
    qrt_buffer *scratch = qrt_scratch(run, room_bytes(&j.shape, held, threads));
    if (!scratch) return QRT_NO_MEMORY;
    j.held = room_of(&j.shape, held, scratch->data);
    share_range(&j, &shared);
    if (by_rows) {
        qrt_parallel_for((int)threads, threads, take_blocks, &j);
    } else {
        int64_t shares = min_i64(threads, m * k / VALUES_PER_THREAD);
        j.rows_per_share = shares > 1 ? ceil_div(m, shares) : m;
        qrt_parallel_for((int)threads, ceil_div(m, j.rows_per_share), quantize_share, &j);
        qrt_parallel_for((int)threads, ceil_div(j.num_panels, j.panels_per_task), take_panels, &j);
    }
    qrt_scratch_free(run, scratch);
    return QRT_OK;
}
