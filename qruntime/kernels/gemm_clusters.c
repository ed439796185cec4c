#include "gemm_clusters.h"

#include <string.h>

#include "threads.h"

/// Codes of a block stay in the second-level cache beside a strip of weights; with fewer rows weights are unpacked too often.
enum { BLOCK_BYTES = 256 * 1024, LEAST_ROWS = 64 };

/// As in gemm_nbits.c.
enum { WORK_PER_THREAD = 1 << 15, WORK_WORTH_WAKING = 1 << 22 };

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }
static int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// ------------------------------------------------------------------------------------------ weights

/// Parts of `more`, in order: scales, zero points and fours of clusters, zero points of weights.
static bool size_of_more(const qrt_cluster_spec *spec, size_t *bytes) {
    const qrt_nbits_spec *s = &spec->weights;
    int64_t fours = 0;
    if (s->k < 4 || s->k > INT32_MAX / 256 || s->n < 0 || s->n > INT64_MAX / 64 || s->group < s->k || s->table || s->zero_points) return false;
    if (s->outlier_starts || spec->num_clusters < 0 || spec->num_clusters > s->k / 4) return false;
    for (int64_t c = 0; c < spec->num_clusters; c++) {
        if (spec->fours[c] < 1 || spec->fours[c] > QRT_CLUSTER_MOST_FOURS) return false;
        fours += spec->fours[c];
    }
    *bytes = (size_t)spec->num_clusters * (sizeof(float) + 2 * sizeof(int32_t)) + (size_t)round_up(s->n, QRT_NBITS_NR);
    return 4 * fours == s->k;
}

static qrt_nbits_spec with_more(const qrt_cluster_spec *spec, size_t bytes) {
    qrt_nbits_spec s = spec->weights;
    s.object_bytes = sizeof(qrt_cluster_weights);
    s.more_bytes = bytes;
    return s;
}

size_t qrt_clusters_packed_bytes(const qrt_cluster_spec *spec) {
    size_t bytes;
    if (!size_of_more(spec, &bytes)) return 0;
    const qrt_nbits_spec s = with_more(spec, bytes);
    return qrt_nbits_packed_bytes(&s);
}

static const qrt_weights_ops cluster_ops = {.name = "nbits_clusters"};

static qrt_nbits_kind kind_of(int bits) { return bits == 2 ? QRT_NBITS_2 : bits == 3 ? QRT_NBITS_3 : bits == 4 ? QRT_NBITS_4 : QRT_NBITS_8; }

qrt_cluster_weights *qrt_clusters_new(const qrt_cluster_spec *spec, const qrt_gemm_clusters *kernel, qrt_arena *arena) {
    size_t bytes;
    if (!size_of_more(spec, &bytes)) return NULL;
    const qrt_nbits_spec s = with_more(spec, bytes);
    qrt_cluster_weights *made = (qrt_cluster_weights *)qrt_nbits_new(&s, NULL, NULL, arena);
    if (!made) return NULL;
    const int64_t count = spec->num_clusters, columns = made->w.num_panels * QRT_NBITS_NR;
    float *scales = made->w.more;
    int32_t *zero_points = (int32_t *)(scales + count), *fours = zero_points + count;
    uint8_t *weight_zeros = (uint8_t *)(fours + count);
    for (int64_t c = 0; c < count; c++) {
        scales[c] = spec->scales[c];
        zero_points[c] = spec->zero_points[c];
        fours[c] = spec->fours[c];
    }
    memset(weight_zeros, 1 << (s.bits - 1), (size_t)columns);
    if (spec->weight_zeros) memcpy(weight_zeros, spec->weight_zeros, (size_t)s.n);
    made->w.base.ops = &cluster_ops;
    made->kernel = kernel;
    made->kind = kind_of(s.bits);
    made->num_clusters = count;
    made->scales = scales;
    made->zero_points = zero_points;
    made->fours = fours;
    made->weight_zeros = weight_zeros;
    return made;
}

// ------------------------------------------------------------------------------------------ product

/// One product.
typedef struct {
    const qrt_cluster_weights *w;
    const uint8_t *codes;
    int64_t m;
    qrt_epilogue epilogue;
    float *y;
    char *scratch;
    size_t worker_bytes;             ///< scratch of one thread
    int64_t rows, panels, panel_blocks, num_tasks;   ///< of a task
    int64_t next_task;               ///< atomic
} job;

/// The block with all of its epilogue.
static void multiply(const qrt_cluster_weights *w, const qrt_q8_block *block, int64_t first, int64_t last, void *scratch) {
    if (!block->epilogue.map.fn) {
        w->kernel->multiply(w, block, first, last, scratch);
        return;
    }
    qrt_q8_block sums = *block;
    sums.epilogue = (qrt_epilogue){.activation = QRT_ACT_NONE};
    w->kernel->multiply(w, &sums, first, last, scratch);
    const int64_t column = first * QRT_NBITS_NR, columns = min64(last * QRT_NBITS_NR, w->w.base.n) - column;
    qrt_q8_map(block, column, columns);
}

/// Each worker takes tasks until none is left; it owns one part of the scratch.
static void take_tasks(void *context, int64_t worker) {
    job *j = context;
    const qrt_cluster_weights *w = j->w;
    for (;;) {
        const int64_t task = __atomic_fetch_add(&j->next_task, 1, __ATOMIC_RELAXED);
        if (task >= j->num_tasks) return;
        const int64_t row = task / j->panel_blocks * j->rows, first = task % j->panel_blocks * j->panels;
        qrt_q8_block block = {
            .a = j->codes + row * w->w.base.k, .a_stride_bytes = w->w.base.k, .num_rows = (int)min64(j->rows, j->m - row),
            .epilogue = j->epilogue, .y = j->y + row * w->w.base.n, .ldy_elems = w->w.base.n,
        };
        if (block.epilogue.residual) block.epilogue.residual += row * block.epilogue.residual_stride_elems;
        multiply(w, &block, first, min64(first + j->panels, w->w.num_panels), j->scratch + (size_t)worker * j->worker_bytes);
    }
}

static int64_t threads_for(const qrt_cluster_weights *w, int64_t m, int64_t threads, bool *alone) {
    const double work = (1.0 + (double)m / 4) * (double)w->w.base.k * (double)w->w.base.n;
    if (work < (double)threads * WORK_PER_THREAD) threads = max64((int64_t)(work / WORK_PER_THREAD), 1);
    *alone = threads > 1 && work < WORK_WORTH_WAKING && !qrt_threads_are_warm();
    return *alone ? 1 : threads;
}

qrt_status qrt_clusters_linear(const qrt_cluster_weights *w, qrt_run *run, const uint8_t *codes, int64_t m,
                               const qrt_epilogue *epilogue, float *y) {
    if (m <= 0 || w->w.base.n == 0) return QRT_OK;
    job j = {.w = w, .codes = codes, .m = m, .epilogue = *epilogue, .y = y, .panels = w->w.num_panels, .panel_blocks = 1};
    const int64_t fitting = BLOCK_BYTES / max64(w->w.base.k, 1), blocks = ceil_div(m, max64(fitting, LEAST_ROWS));
    bool alone;
    const int64_t threads = threads_for(w, m, run->num_threads, &alone);
    j.rows = ceil_div(m, blocks);
    if (threads > 1) {
        j.panels = round_up(ceil_div(j.panels, ceil_div(4 * threads, blocks)), w->kernel->panels);
        j.panel_blocks = ceil_div(w->w.num_panels, j.panels);
    }
    j.num_tasks = ceil_div(m, j.rows) * j.panel_blocks;
    j.worker_bytes = (size_t)round_up((int64_t)w->kernel->scratch_bytes(w), QRT_ALIGNMENT);
    qrt_buffer *scratch = qrt_scratch(run, (size_t)threads * j.worker_bytes);
    if (!scratch) return QRT_NO_MEMORY;
    j.scratch = scratch->data;
    qrt_parallel_for((int)threads, threads, take_tasks, &j);
    qrt_scratch_free(run, scratch);
    if (alone) qrt_unshared_work_ended();
    return QRT_OK;
}
