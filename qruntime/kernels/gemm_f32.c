/// Blocking, packing and threads of the float GEMM; the arithmetic is the rung's.
#include "gemm_f32.h"

#include <stdlib.h>
#include <string.h>

#include "threads.h"

/// A strip of b (kc · nr floats) stays in the first-level cache while the rows of a pass by; a block of
/// a (mc · kc floats) stays in the second.
enum { KC = 512, BLOCK_FLOATS = 64 * 1024, SCATTERED_KC = 16, SCATTERED_FLOATS = 32 * 1024 };

/// Rows of one pass over the weights that needs no tiles.
enum { STREAMED_ROWS = 4 };

/// Fewer multiply-adds than this are not worth waking a thread for.
enum { MIN_PARALLEL_WORK = 1 << 18 };

/// Rows times fewer columns than this are multiplied sooner than copied.
enum { MIN_COPY_COLUMNS = 256 };

/// Packing fewer weights is done sooner by one thread; a task packs a few panels, which share lines of the source.
enum { WEIGHTS_PER_THREAD = 1 << 14, PACKED_PANELS = 4 };

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

/// Equal blocks of k, none longer than KC.
static int64_t k_block(int64_t k) {
    int64_t blocks = ceil_div(k, KC);
    return blocks <= 1 ? k : ceil_div(ceil_div(k, blocks), 8) * 8;
}

/// First-level caches of x86 and Arm repeat every 4 KB: rows that far apart share one set of eight or twelve lines, and
/// the rows of a tile would drive each other out at every step along them.
enum { SET_FLOATS = 1024, LINE_FLOATS = 16 };

bool qrt_f32_rows_conflict(int64_t stride) { return stride % SET_FLOATS == 0; }

int64_t qrt_f32_row_stride(int64_t n) { return (ceil_div(n, LINE_FLOATS) | 1) * LINE_FLOATS; }

/// Rows of a that stay in the second-level cache, kc floats of each, in equal blocks; m > 0.
static int64_t row_block(int64_t m, int64_t kc) { return ceil_div(m, ceil_div(m, kc > 0 ? BLOCK_FLOATS / kc : m)); }

bool qrt_f32_has_effect(const qrt_f32_epilogue *e) {
    if (!e) return false;
    return e->alpha != 1.0f || e->row_bias || e->column_bias || e->addend || e->activation != QRT_ACT_NONE || e->residual || e->map.fn;
}

qrt_f32_epilogue qrt_f32_epilogue_at(const qrt_f32_epilogue *epilogue, int64_t i, int64_t j) {
    qrt_f32_epilogue at = *epilogue;
    if (at.row_bias) at.row_bias += i;
    if (at.column_bias) at.column_bias += j;
    if (at.addend) at.addend += i * at.addend_stride_elems + j;
    if (at.residual) at.residual += i * at.residual_stride_elems + j;
    return at;
}

qrt_f32_epilogue qrt_f32_layer_epilogue(const float *bias, const qrt_epilogue *epilogue) {
    return (qrt_f32_epilogue){
        .alpha = 1.0f, .column_bias = bias, .activation = epilogue->activation, .map = epilogue->map,
        .addend = epilogue->addend, .addend_stride_elems = epilogue->addend_stride_elems,
        .residual = epilogue->residual, .residual_stride_elems = epilogue->residual_stride_elems,
    };
}

void qrt_f32_finish(const qrt_gemm_f32 *kernel, int64_t m, int64_t n, float *c, int64_t ldc, const qrt_f32_epilogue *epilogue) {
    const qrt_elementwise map = epilogue->map;
    if (!map.fn) {
        kernel->finish(m, n, c, ldc, epilogue);
        return;
    }
    qrt_f32_epilogue sums = *epilogue;
    sums.activation = QRT_ACT_NONE;
    sums.residual = NULL;
    kernel->finish(m, n, c, ldc, &sums);
    for (int64_t i = 0; i < m; i++) {
        float *row = c + i * ldc;
        map.fn(row, row, n, map.p, map.q);
        const float *residual = epilogue->residual ? epilogue->residual + i * epilogue->residual_stride_elems : NULL;
        for (int64_t j = 0; residual && j < n; j++) row[j] += residual[j];
    }
}

void qrt_f32_gemm_strips(const qrt_gemm_f32 *kernel, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda,
                         const float *b, int64_t ldb, int64_t strip_stride,
                         const qrt_f32_epilogue *epilogue, float *c, int64_t ldc) {
    if (m <= 0 || n <= 0) return;
    // Rows of a wide matrix lie pages apart: few at a time, then on along them.
    bool scattered = ldb > 4 * kernel->nr && k > SCATTERED_KC && k > SCATTERED_FLOATS / ldb;
    int64_t nr = kernel->nr, kc = scattered ? SCATTERED_KC : k_block(k);
    int64_t mc = row_block(m, kc);
    bool finish = qrt_f32_has_effect(epilogue);
    for (int64_t i = 0; i < m; i += mc) {
        int64_t rows = min64(mc, m - i), k0 = 0;
        do {
            int64_t depth = min64(kc, k - k0);
            bool last = k0 + depth == k;
            for (int64_t j = 0; j < n; j += nr) {
                int64_t columns = min64(nr, n - j);
                float *tile = c + i * ldc + j;
                const float *strip = b + j / nr * strip_stride + k0 * ldb;
                const float *ahead = j + nr < n ? strip + strip_stride : b + (k0 + depth) * ldb;
                // The epilogue follows while its rows are in the first-level cache.
                int64_t step = last && finish ? 4 * kernel->mr : rows;
                for (int64_t r = 0; r < rows; r += step) {
                    int64_t height = min64(step, rows - r);
                    kernel->strip(height, columns, depth, a + (i + r) * lda + k0, lda, strip, ldb, r > 0 ? strip : ahead,
                                  tile + r * ldc, ldc, k0 > 0);
                    if (last && finish) {
                        qrt_f32_epilogue at = qrt_f32_epilogue_at(epilogue, i + r, j);
                        qrt_f32_finish(kernel, height, columns, tile + r * ldc, ldc, &at);
                    }
                }
            }
            k0 += depth;
        } while (k0 < k);
    }
}

void qrt_f32_gemm_scattered(const qrt_gemm_f32 *kernel, int64_t m, int64_t k, const float *a, int64_t lda,
                            const float *const *b, int num_strips, const int64_t *rows, float *c, int64_t ldc) {
    if (m <= 0) return;
    int64_t kc = k_block(k), mc = row_block(m, kc);
    for (int64_t i = 0; i < m; i += mc) {
        int64_t height = min64(mc, m - i), k0 = 0;
        do {
            int64_t depth = min64(kc, k - k0);
            for (int s = 0; s < num_strips; s++)
                kernel->scattered_strip(height, depth, a + i * lda + k0, lda, b[s], rows + k0,
                                        c + i * ldc + s * kernel->nr, ldc, k0 > 0);
            k0 += depth;
        } while (k0 < k);
    }
}

void qrt_f32_gemm(const qrt_gemm_f32 *kernel, int64_t m, int64_t n, int64_t k, const float *a, int64_t lda,
                  const float *panels, const qrt_f32_epilogue *epilogue, float *c, int64_t ldc) {
    if (m <= 0 || n <= 0) return;
    if (m <= STREAMED_ROWS) {
        kernel->stream(m, n, k, a, lda, panels, c, ldc);
        if (qrt_f32_has_effect(epilogue)) qrt_f32_finish(kernel, m, n, c, ldc, epilogue);
        return;
    }
    qrt_f32_gemm_strips(kernel, m, n, k, a, lda, panels, kernel->nr, k * kernel->nr, epilogue, c, ldc);
}

typedef struct {
    qrt_f32_weights weights;
    qrt_gemm_f32 kernel;
} owned_weights;

/// One call of qrt_f32_pack.
typedef struct {
    const qrt_f32_weights *w;
    const float *source;
    int64_t row_stride_elems, col_stride_elems, columns;  ///< `columns` of a task, whole panels
} packing;

static void fill_panels(void *context, int64_t task) {
    const packing *p = context;
    int64_t first = task * p->columns;
    p->w->kernel->pack(p->w->base.k, min64(p->columns, p->w->base.n - first), p->source + first * p->col_stride_elems,
                       p->row_stride_elems, p->col_stride_elems, p->w->panels + first * p->w->base.k);
}

static size_t padded_columns(const struct qrt_gemm_f32 *kernel, int64_t n) {
    return ((size_t)n + (size_t)kernel->nr - 1) / (size_t)kernel->nr * (size_t)kernel->nr;
}

static bool count_bytes(const struct qrt_gemm_f32 *kernel, int64_t k, int64_t n, bool has_bias, size_t *bytes) {
    if (k < 0 || n < 0) return false;
    size_t padded = padded_columns(kernel, n), floats;
    return !__builtin_mul_overflow((size_t)k, padded, &floats) &&
           !__builtin_add_overflow(floats, has_bias ? padded : 0, &floats) &&
           !__builtin_mul_overflow(floats, sizeof(float), bytes);
}

size_t qrt_f32_packed_bytes(const struct qrt_gemm_f32 *kernel, int64_t k, int64_t n, bool has_bias) {
    size_t bytes;
    return count_bytes(kernel, k, n, has_bias, &bytes) ? bytes : 0;
}

qrt_f32_weights *qrt_f32_pack(const struct qrt_gemm_f32 *kernel, const float *w, int64_t row_stride_elems,
                              int64_t col_stride_elems, int64_t k, int64_t n, const float *bias, qrt_arena *arena,
                              int num_threads) {
    size_t bytes;
    if (!count_bytes(kernel, k, n, bias, &bytes)) return NULL;
    size_t padded = padded_columns(kernel, n);
    owned_weights *owned = malloc(sizeof *owned);
    qrt_buffer *buffer = owned ? qrt_arena_take(arena, bytes) : NULL;
    if (!buffer) {
        free(owned);
        return NULL;
    }
    owned->kernel = *kernel;
    qrt_f32_weights *packed = &owned->weights;
    packed->base = (qrt_weights){&qrt_f32_ops, k, n, buffer};
    packed->kernel = &owned->kernel;
    packed->panels = buffer->data;
    packed->bias = bias ? packed->panels + (size_t)k * padded : NULL;
    if (k * n < (int64_t)num_threads * WEIGHTS_PER_THREAD) num_threads = 1;
    packing p = {packed, w, row_stride_elems, col_stride_elems, PACKED_PANELS * kernel->nr};
    qrt_parallel_for(num_threads, ceil_div(n, p.columns), fill_panels, &p);
    if (bias) {
        memcpy(packed->bias, bias, (size_t)n * sizeof(float));
        memset(packed->bias + n, 0, (padded - (size_t)n) * sizeof(float));
    }
    return packed;
}

void qrt_f32_unpack(const qrt_f32_weights *w, float *weights, int64_t row_stride_elems, int64_t col_stride_elems) {
    const int64_t nr = w->kernel->nr, k = w->base.k;
    for (int64_t first = 0; first < w->base.n; first += nr) {
        const float *panel = w->panels + first * k;
        float *to = weights + first * col_stride_elems;
        int64_t columns = min64(nr, w->base.n - first);
        for (int64_t i = 0; i < k; i++)
            for (int64_t j = 0; j < columns; j++) to[i * row_stride_elems + j * col_stride_elems] = panel[i * nr + j];
    }
}

static void linear_serial(const qrt_weights *weights, const float *a, int64_t lda_elems, int64_t m, qrt_q8_grid grid,
                          const qrt_epilogue *epilogue, float *y, int64_t ldy_elems, void *scratch) {
    (void)grid, (void)scratch;
    const qrt_f32_weights *w = (const qrt_f32_weights *)weights;
    qrt_f32_epilogue e = qrt_f32_layer_epilogue(w->bias, epilogue);
    qrt_f32_gemm(w->kernel, m, weights->n, weights->k, a, lda_elems, w->panels, &e, y, ldy_elems);
}

typedef struct {
    const qrt_f32_weights *w;
    const qrt_f32_epilogue *epilogue;
    const float *a;
    float *y;
    int64_t lda, ldy, m, rows, columns, column_blocks;
} linear_job;

static void linear_task(void *context, int64_t task) {
    const linear_job *job = context;
    const qrt_f32_weights *w = job->w;
    int64_t i = task / job->column_blocks * job->rows, j = task % job->column_blocks * job->columns;
    qrt_f32_epilogue e = qrt_f32_epilogue_at(job->epilogue, i, j);
    qrt_f32_gemm(w->kernel, min64(job->rows, job->m - i), min64(job->columns, w->base.n - j), w->base.k, job->a + i * job->lda,
                 job->lda, w->panels + j * w->base.k, &e, job->y + i * job->ldy + j, job->ldy);
}

typedef struct {
    const float *from;
    float *to;
    int64_t m, k, from_stride, to_stride, rows;  ///< `rows` of a task
} row_copy;

static void copy_rows(void *context, int64_t task) {
    const row_copy *c = context;
    int64_t end = min64(c->m, (task + 1) * c->rows);
    for (int64_t i = task * c->rows; i < end; i++)
        memcpy(c->to + i * c->to_stride, c->from + i * c->from_stride, (size_t)c->k * sizeof(float));
}

static qrt_status multiply(const qrt_layer *layer, qrt_run *run, const float *a, int64_t lda_elems, int64_t m) {
    const qrt_f32_weights *w = (const qrt_f32_weights *)layer->w;
    if (m <= 0 || w->base.n == 0) return QRT_OK;
    qrt_f32_epilogue e = qrt_f32_layer_epilogue(w->bias, &layer->epilogue);
    int64_t nr = w->kernel->nr, panels = ceil_div(w->base.n, nr);
    linear_job job = {w, &e, a, layer->y, lda_elems, layer->ldy_elems, m, m, panels * nr, 1};
    double work = (double)m * (double)w->base.n * (double)w->base.k;
    if (run->num_threads > 1 && work >= MIN_PARALLEL_WORK) {
        int64_t wanted = 4 * (int64_t)run->num_threads;
        job.rows = min64(m, 128);
        int64_t row_blocks = ceil_div(m, job.rows);
        job.columns = ceil_div(panels, min64(panels, ceil_div(wanted, row_blocks))) * nr;
        job.column_blocks = ceil_div(w->base.n, job.columns);
    }
    qrt_buffer *copy = NULL;
    if (m > STREAMED_ROWS && w->base.n >= MIN_COPY_COLUMNS && qrt_f32_rows_conflict(lda_elems)) {
        int64_t stride = qrt_f32_row_stride(w->base.k);
        size_t floats, bytes;
        if (__builtin_mul_overflow((size_t)m, (size_t)stride, &floats) ||
            __builtin_mul_overflow(floats, sizeof(float), &bytes) || !(copy = qrt_scratch(run, bytes)))
            return QRT_NO_MEMORY;
        row_copy c = {a, copy->data, m, w->base.k, lda_elems, stride, job.rows};
        qrt_parallel_for(run->num_threads, ceil_div(m, job.rows), copy_rows, &c);
        job.a = copy->data;
        job.lda = stride;
    }
    qrt_parallel_for(run->num_threads, ceil_div(m, job.rows) * job.column_blocks, linear_task, &job);
    if (copy) qrt_scratch_free(run, copy);
    return QRT_OK;
}

static qrt_status linear(const qrt_layer *layers, int num_layers, qrt_run *run, const float *a, int64_t lda_elems, int64_t m,
                         qrt_q8_grid grid) {
    (void)grid;
    qrt_status status = QRT_OK;
    for (int i = 0; i < num_layers && status == QRT_OK; i++) status = multiply(&layers[i], run, a, lda_elems, m);
    return status;
}

const qrt_weights_ops qrt_f32_ops = {.name = "f32", .takes_addend = true, .linear = linear, .linear_serial = linear_serial};
