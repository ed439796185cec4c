/// Blocking and threads of products with weights of few bits; the arithmetic is the rung's.
#include "gemm_nbits.h"
#include "nbits_outliers.h"

#include <string.h>

#include "kernels.h"
#include "threads.h"

/// A decoded strip of so many k stays in the first-level cache; rows of a, so many of them, in the second.
enum { KC = 512, BLOCK_ROWS = 128 };

/// Rows times fewer columns than this are multiplied sooner than copied.
enum { MIN_COPY_COLUMNS = 256 };

/// Less work than this a thread is done sooner than shared, even with threads that are awake, and less than this sooner
/// than sleeping threads have woken. The unit is a weight that is decoded; a row multiplies in a quarter of that time.
enum { WORK_PER_THREAD = 1 << 15, WORK_WORTH_WAKING = 1 << 22 };

/// Panels of a task, or that all rows of a few pass before the next, are a multiple of what the kernels take at once.
enum { PANELS_AT_ONCE = 8 };

/// So many rows are sooner decoded anew for every few of them than through memory.
enum { FEW_ROWS = 2 * QRT_NBITS_STREAMED_ROWS };

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }
static int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

void qrt_nbits_group_sums(const qrt_nbits_weights *w, const float *a, float *sums) {
    for (int64_t g = 0; g < w->num_groups; g++) {
        const float *x = a + g * w->group;
        int64_t depth = qrt_nbits_depth(w, g), i = 0;
        float lanes[16] = {0};
        for (; i + 16 <= depth; i += 16)
            for (int j = 0; j < 16; j++) lanes[j] += x[i + j];
        for (; i < depth; i++) lanes[i % 16] += x[i];
        for (int half = 8; half > 0; half /= 2)
            for (int j = 0; j < half; j++) lanes[j] += lanes[j + half];
        sums[g] = lanes[0];
    }
}

/// Two floats that bfloat16 holds, the first in the upper half.
static inline int32_t pair_of(float first, float second) {
    uint32_t upper, lower;
    memcpy(&upper, &first, sizeof upper);
    memcpy(&lower, &second, sizeof lower);
    return (int32_t)(upper | lower >> 16);
}

// ------------------------------------------------------------------------------------------- blocks

/// One product.
typedef struct {
    const qrt_nbits_weights *w;
    qrt_f32_epilogue epilogue;
    bool has_epilogue;
    const float *given;         ///< rows as they come
    const float *a;             ///< rows as they are multiplied
    float *y;
    int64_t given_stride, lda, ldy, m;
    float *sums;                ///< [m, groups] of the rows; NULL when the weights have no zeros
    float *row_scales;          ///< [m] of rows of FP8; NULL of others
    bool in_pairs;              ///< rows and strips hold pairs of bfloat16
    int64_t width;              ///< columns of a strip: a panel, or several where the float GEMM is wider
    int64_t depth;              ///< most k of a block
    int64_t copy_stride;        ///< of a block of a that is copied; 0: it is read where it lies
    size_t worker_floats;       ///< scratch of one thread
    float *scratch;
    int64_t rows, panels, panel_blocks, num_tasks;   ///< of a task
    int64_t next_task;          ///< atomic
} job;

/// k of a block: whole groups, or pieces of the only one.
static int64_t block_depth(const qrt_nbits_weights *w) {
    if (w->num_groups > 1) return min64(w->base.k, max64(KC / w->group, 1) * w->group);
    return w->base.k > KC ? round_up(ceil_div(w->base.k, ceil_div(w->base.k, KC)), QRT_NBITS_MAX_STEP) : w->base.k;
}

/// Most groups of a strip.
static int64_t strip_groups(const qrt_nbits_weights *w) { return max64(KC / w->group, 1); }

/// Rows of a strip that decode may write: the last group of a block is rounded up to whole steps, wherever it begins.
static int64_t strip_depth(const job *j) { return min64(KC, j->depth) + QRT_NBITS_MAX_STEP; }

/// Whether pairs of FP8 activations and of what codes stand for are multiplied: groups begin with a pair.
static bool multiplies_pairs(const qrt_nbits_weights *w) {
    return w->kernel->pair_strip && w->fits_bfloat16 && w->base.k % 2 == 0 && (w->num_groups == 1 || w->group % 2 == 0);
}

static job job_of(const qrt_weights *weights, const float *a, int64_t lda, int64_t m, const qrt_epilogue *epilogue, float *y,
                  int64_t ldy) {
    const qrt_nbits_weights *w = (const qrt_nbits_weights *)weights;
    job j = {
        .w = w, .given = a, .a = a, .y = y, .given_stride = lda, .lda = lda, .ldy = ldy, .m = m,
        .width = max64(w->float_kernel->nr, QRT_NBITS_NR), .depth = block_depth(w),
        .rows = min64(m, BLOCK_ROWS), .panels = w->num_panels, .panel_blocks = 1,
    };
    if (w->reads_float8) j.lda = qrt_f32_row_stride(w->base.k), j.in_pairs = m > FEW_ROWS && multiplies_pairs(w);
    if (epilogue) j.epilogue = qrt_f32_layer_epilogue(w->bias, epilogue);
    j.has_epilogue = epilogue && qrt_f32_has_effect(&j.epilogue);
    if (m > FEW_ROWS) {
        if (w->base.n >= MIN_COPY_COLUMNS && qrt_f32_rows_conflict(j.lda)) j.copy_stride = qrt_f32_row_stride(j.depth);
        int64_t floats = (strip_depth(&j) + 2 * j.rows + 2 * strip_groups(w)) * j.width + j.rows * j.copy_stride;
        if (w->outlier_starts) floats += w->base.k * QRT_NBITS_OUTLIER_LANES;
        j.worker_floats = (size_t)round_up(floats, QRT_ALIGNMENT / (int64_t)sizeof(float));
    }
    return j;
}

/// What follows the sums of the codes. `lanes` is scratch for the outliers of many rows, or NULL.
static void finish(const job *j, int64_t row, int64_t num_rows, int64_t column, int64_t columns, float *lanes) {
    const qrt_nbits_weights *w = j->w;
    float *y = j->y + row * j->ldy + column;
    if (w->outlier_starts) qrt_nbits_add_outliers(w, num_rows, j->a + row * j->lda, j->lda, column, columns, y, j->ldy, lanes);
    for (int64_t i = 0; j->row_scales && i < num_rows; i++)
        for (int64_t c = 0; c < columns; c++) y[i * j->ldy + c] *= j->row_scales[row + i];
    if (!j->has_epilogue) return;
    qrt_f32_epilogue at = qrt_f32_epilogue_at(&j->epilogue, row, column);
    qrt_f32_finish(w->float_kernel, num_rows, columns, y, j->ldy, &at);
}

static void copy_block(const float *from, int64_t from_stride, float *to, int64_t to_stride, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; i++) memcpy(to + i * to_stride, from + i * from_stride, (size_t)columns * sizeof *to);
}

/// Scratch of a worker, in order.
typedef struct {
    float *strip;    ///< decoded weights [k, width]
    float *tile;     ///< totals [rows, width]; of weights in one group the sums, until that ends
    float *chain;    ///< sums of a group that is longer than a strip [rows, width]
    float *scales, *zeros;   ///< of the groups of a strip [groups, width]
    float *copy;     ///< of a block of a
    float *lanes;    ///< of a few rows of a side by side, for outliers
} workspace;

/// Factors of `count` groups from g on for the panels of a strip [count, width], zeros where there is no panel. The scales, where
/// `factors` is NULL.
static void gather(const qrt_nbits_weights *w, const float *factors, int64_t panel, int64_t width, int64_t g, int64_t count, float *to) {
    for (int64_t c = 0; c < width; c += QRT_NBITS_NR, panel++)
        for (int64_t i = 0; i < count; i++) {
            const int64_t at = qrt_nbits_group_at(w, panel, g + i);
            if (panel >= w->num_panels) memset(to + i * width + c, 0, QRT_NBITS_NR * sizeof *to);
            else if (factors) memcpy(to + i * width + c, factors + at, QRT_NBITS_NR * sizeof *to);
            else qrt_nbits_scales(w, at, to + i * width + c);
        }
}

/// k from … to - 1, whole groups or a part of one, of the panels of a strip.
static void decode_strip(const job *j, int64_t panel, int64_t from, int64_t to, float *strip) {
    const qrt_nbits_weights *w = j->w;
    for (int64_t c = 0; c < j->width && panel < w->num_panels; c += QRT_NBITS_NR, panel++)
        for (int64_t k = from, end; k < to; k = end) {
            int64_t g = k / w->group, step = (k - g * w->group) / qrt_nbits_step(w->bits);
            end = min64((g + 1) * w->group, to);
            const uint8_t *codes = qrt_nbits_codes(w, panel, g) + step * qrt_nbits_step_bytes(w->bits);
            w->kernel->decode(w, codes, end - k, strip + (k - from) * j->width + c, j->width);
        }
}

/// Floats that bfloat16 holds, rows k and k + 1 of a strip as pairs in its row k / 2.
static void pair_strip_rows(float *strip, int64_t k, int64_t width) {
    int32_t *pairs = (int32_t *)strip;
    for (int64_t i = 0; i < k / 2; i++)
        for (int64_t c = 0; c < width; c++) pairs[i * width + c] = pair_of(strip[2 * i * width + c], strip[(2 * i + 1) * width + c]);
}

/// How far element k of a row lies from its begin.
static int64_t place_of(const job *j, int64_t k) { return j->in_pairs ? k / 2 : k; }

/// Rows of a, k0 … k1 - 1 of them, times the panels of one strip, added to the tile.
static void multiply_block(const job *j, const workspace *s, const float *a, int64_t lda, const float *sums, int64_t rows,
                           int64_t panel, int64_t k0, int64_t k1) {
    const qrt_nbits_weights *w = j->w;
    const qrt_gemm_f32 *floats = w->float_kernel;
    const int64_t width = j->width;
    float *chain = w->num_groups == 1 ? s->tile : s->chain;
    for (int64_t from = k0, to; from < k1; from = to) {
        // Whole groups, or a part of one: then its sums go on where those of the part before ended.
        int64_t g = from / w->group, start = g * w->group, end = w->group < KC ? k1 : start + qrt_nbits_depth(w, g);
        to = min64(from + KC, min64(end, k1));
        decode_strip(j, panel, from, to, s->strip);
        if (j->in_pairs) pair_strip_rows(s->strip, to - from, width);
        const float *x = a + place_of(j, from - k0);
        int64_t count = ceil_div(to - start, w->group);
        if (to == end) gather(w, NULL, panel, width, g, count, s->scales);
        if (to == end && w->zeros) gather(w, w->zeros, panel, width, g, count, s->zeros);
        for (int64_t c = 0; c < width; c += floats->nr) {
            const float *strip = s->strip + c;
            if (to < end) {
                if (j->in_pairs)
                    w->kernel->pair_strip(rows, (to - from) / 2, (const int32_t *)x, lda, (const int32_t *)strip, width, chain + c, width,
                                          from > start);
                else
                    floats->strip(rows, floats->nr, to - from, x, lda, strip, width, strip, chain + c, width, from > start);
                continue;
            }
            qrt_f32_groups groups = {
                .size = place_of(j, w->group), .scales = s->scales + c, .zeros = w->zeros ? s->zeros + c : NULL, .stride = width,
                .sums = sums ? sums + g : NULL, .sums_stride = w->num_groups,
                .begun = from > start ? chain + c : NULL, .begun_stride = width,
            };
            if (j->in_pairs)
                w->kernel->grouped_pair_strip(rows, (to - from) / 2, (const int32_t *)x, lda, (const int32_t *)strip, width, &groups,
                                              s->tile + c, width, g > 0);
            else
                floats->grouped_strip(rows, to - from, x, lda, strip, width, &groups, s->tile + c, width, g > 0);
        }
    }
}

/// Few rows against panels first … last-1.
static void stream(const job *j, int64_t row, int64_t rows, int64_t first, int64_t last) {
    const qrt_nbits_weights *w = j->w;
    int64_t passes = ceil_div(rows, QRT_NBITS_STREAMED_ROWS), step = passes == 1 ? last - first : PANELS_AT_ONCE;
    for (int64_t panel = first; panel < last; panel += step) {
        int64_t end = min64(panel + step, last), column = panel * QRT_NBITS_NR;
        for (int64_t pass = 0; pass < passes; pass++) {
            int64_t i = row + pass * rows / passes, count = row + (pass + 1) * rows / passes - i;
            w->kernel->stream(w, count, j->a + i * j->lda, j->lda, j->sums ? j->sums + i * w->num_groups : NULL, w->num_groups,
                              panel, end, j->y + i * j->ldy + column, j->ldy);
        }
        finish(j, row, rows, column, min64(end * QRT_NBITS_NR, w->base.n) - column, NULL);
    }
}

/// Rows [row, row + rows) against panels first … last-1.
static void multiply(const job *j, int64_t row, int64_t rows, int64_t first, int64_t last, float *scratch) {
    const qrt_nbits_weights *w = j->w;
    const float *sums = j->sums ? j->sums + row * w->num_groups : NULL, *a = j->a + row * j->lda;
    float *y = j->y + row * j->ldy;
    if (rows <= FEW_ROWS && !j->in_pairs) {
        stream(j, row, rows, first, last);
        return;
    }
    workspace s = {.strip = scratch};
    s.tile = s.strip + strip_depth(j) * j->width;
    s.chain = s.tile + j->rows * j->width;
    s.scales = s.chain + j->rows * j->width;
    s.zeros = s.scales + strip_groups(w) * j->width;
    s.copy = s.zeros + strip_groups(w) * j->width;
    s.lanes = s.copy + j->rows * j->copy_stride;
    for (int64_t k0 = 0, k1; k0 < w->base.k || k0 == 0; k0 = max64(k1, 1)) {
        k1 = min64(k0 + j->depth, w->base.k);
        const float *block = a + place_of(j, k0);
        int64_t stride = j->lda;
        if (j->copy_stride) {
            copy_block(block, stride, s.copy, j->copy_stride, rows, place_of(j, k1 - k0));
            block = s.copy;
            stride = j->copy_stride;
        }
        for (int64_t panel = first; panel < last; panel += j->width / QRT_NBITS_NR) {
            int64_t column = panel * QRT_NBITS_NR, columns = min64(j->width, w->base.n - column);
            if (k0 > 0)
                copy_block(y + column, j->ldy, s.tile, j->width, rows, columns);
            else if (w->base.k == 0)
                memset(s.tile, 0, (size_t)(rows * j->width) * sizeof *s.tile);
            multiply_block(j, &s, block, stride, sums, rows, panel, k0, k1);
            copy_block(s.tile, j->width, y + column, j->ldy, rows, columns);
            if (k1 == w->base.k && !w->outlier_starts) finish(j, row, rows, column, columns, NULL);
        }
    }
    // Rows are brought side by side once for all columns.
    const int64_t column = first * QRT_NBITS_NR;
    if (w->outlier_starts) finish(j, row, rows, column, min64(last * QRT_NBITS_NR, w->base.n) - column, s.lanes);
}

// ------------------------------------------------------------------------------------------ threads

static void pair_row(float *row, int64_t k) {
    int32_t *pairs = (int32_t *)row;
    for (int64_t i = 0; i < k / 2; i++) pairs[i] = pair_of(row[2 * i], row[2 * i + 1]);
}

/// Rows become what is multiplied, and are summed group by group.
static void prepare_rows(void *context, int64_t task) {
    const job *j = context;
    int64_t last = min64(j->m, (task + 1) * j->rows), k = j->w->base.k;
    for (int64_t i = task * j->rows; i < last; i++) {
        float *row = (float *)j->a + i * j->lda;
        if (j->row_scales) j->row_scales[i] = qrt_kernels.rows.float8_codes(j->given + i * j->given_stride, row, k);
        if (j->sums) qrt_nbits_group_sums(j->w, row, j->sums + i * j->w->num_groups);
        if (j->in_pairs) pair_row(row, k);
    }
}

/// Each worker takes tasks until none is left; it owns one part of the scratch.
static void take_tasks(void *context, int64_t worker) {
    job *j = context;
    for (;;) {
        int64_t task = __atomic_fetch_add(&j->next_task, 1, __ATOMIC_RELAXED);
        if (task >= j->num_tasks) return;
        int64_t row = task / j->panel_blocks * j->rows, first = task % j->panel_blocks * j->panels;
        multiply(j, row, min64(j->rows, j->m - row), first, min64(first + j->panels, j->w->num_panels),
                 j->scratch + (size_t)worker * j->worker_floats);
    }
}

/// Floats of all rows together: the sums of their groups, their scales, and they themselves.
typedef struct {
    size_t sums, scales, rows;
} shared_floats;

/// rows · each, rounded up to a cache line, added to *total. False when that is too many.
static bool count_part(size_t rows, size_t each, size_t *part, size_t *total) {
    if (__builtin_mul_overflow(rows, each, part) || __builtin_add_overflow(*part, (size_t)15, part)) return false;
    *part &= ~(size_t)15;
    return !__builtin_add_overflow(*total, *part, total);
}

/// Floats that all share, and bytes with those of `workers`; false when they are too many.
static bool count_floats(const job *j, int64_t workers, shared_floats *shared, size_t *bytes) {
    const bool copies = j->w->reads_float8;
    const size_t m = (size_t)j->m;
    size_t floats;
    if (__builtin_mul_overflow((size_t)workers, j->worker_floats, &floats)) return false;
    return count_part(m, j->w->zeros ? (size_t)j->w->num_groups : 0, &shared->sums, &floats) &&
           count_part(m, copies, &shared->scales, &floats) && count_part(m, copies ? (size_t)j->lda : 0, &shared->rows, &floats) &&
           !__builtin_mul_overflow(floats, sizeof(float), bytes);
}

static void run_job(job *j, int workers, void *scratch, const shared_floats *shared) {
    float *scales = (float *)scratch + shared->sums, *rows = scales + shared->scales;
    j->num_tasks = ceil_div(j->m, j->rows) * j->panel_blocks;
    j->scratch = rows + shared->rows;
    if (j->w->zeros) j->sums = scratch;
    if (j->w->reads_float8) j->row_scales = scales, j->a = rows;
    if (j->sums || j->row_scales) qrt_parallel_for(workers, ceil_div(j->m, j->rows), prepare_rows, j);
    qrt_parallel_for(workers, workers, take_tasks, j);
}

static size_t scratch_bytes(const qrt_weights *w, int64_t m) {
    // As if rows conflicted: callers may choose the stride later.
    job j = job_of(w, NULL, 0, m, NULL, NULL, 0);
    shared_floats shared = {0};
    size_t bytes;
    return count_floats(&j, 1, &shared, &bytes) ? bytes : SIZE_MAX;
}

static void linear_serial(const qrt_weights *w, const float *a, int64_t lda_elems, int64_t m, qrt_q8_grid grid,
                          const qrt_epilogue *epilogue, float *y, int64_t ldy_elems, void *scratch) {
    (void)grid;
    if (m <= 0 || w->n == 0) return;
    job j = job_of(w, a, lda_elems, m, epilogue, y, ldy_elems);
    shared_floats shared = {0};
    size_t bytes;
    count_floats(&j, 1, &shared, &bytes);
    run_job(&j, 1, scratch, &shared);
}

static qrt_status linear_layer(const qrt_layer *layer, qrt_run *run, const float *a, int64_t lda_elems, int64_t m) {
    const qrt_weights *w = layer->w;
    if (m <= 0 || w->n == 0) return QRT_OK;
    job j = job_of(w, a, lda_elems, m, &layer->epilogue, layer->y, layer->ldy_elems);
    double work = (1.0 + (double)m / 4) * (double)w->k * (double)w->n;
    int64_t threads = run->num_threads;
    if (work < (double)threads * WORK_PER_THREAD) threads = max64((int64_t)(work / WORK_PER_THREAD), 1);
    bool alone = threads > 1 && work < WORK_WORTH_WAKING && !qrt_threads_are_warm();
    if (alone) threads = 1;
    if (threads > 1) {
        int64_t wanted = ceil_div(4 * threads, ceil_div(m, j.rows));
        j.panels = round_up(ceil_div(j.w->num_panels, wanted), PANELS_AT_ONCE);
        j.panel_blocks = ceil_div(j.w->num_panels, j.panels);
    }
    shared_floats shared = {0};
    size_t bytes;
    qrt_buffer *scratch = NULL;
    if (!count_floats(&j, threads, &shared, &bytes) || !(scratch = qrt_scratch(run, bytes))) return QRT_NO_MEMORY;
    run_job(&j, (int)threads, scratch->data, &shared);
    qrt_scratch_free(run, scratch);
    if (alone) qrt_unshared_work_ended();
    return QRT_OK;
}

static qrt_status linear(const qrt_layer *layers, int num_layers, qrt_run *run, const float *a, int64_t lda_elems, int64_t m,
                         qrt_q8_grid grid) {
    (void)grid;
    qrt_status status = QRT_OK;
    for (int i = 0; i < num_layers && status == QRT_OK; i++) status = linear_layer(&layers[i], run, a, lda_elems, m);
    return status;
}

const qrt_weights_ops qrt_nbits_ops = {
    .name = "nbits", .takes_addend = true, .linear = linear, .linear_serial = linear_serial, .scratch_bytes = scratch_bytes,
};
