/// Poolings of float32 planes and volumes, and maxima of planes of 8-bit codes.
///
/// A sliding window is reduced down its columns first, whole rows at a time, into a padded line, then along
/// that line. Every output is computed by the same operations wherever its plane lies.
#include <math.h>
#include <string.h>

#include "../threads.h"
#include "codes.h"
#include "windows.h"

/// Planes are pooled in parallel above this many taps.
enum { PARALLEL_TAPS = 64 * 1024 };

typedef struct {
    const float *x;
    float *y;
    float *lines;             ///< two for each task: a padded line, and the windows along it
    int64_t line_elems, planes, planes_per_task;
    qrt_window rows, columns;
    const float *counts;  ///< NULL for maxima; else how many taps count, per output row, then per output column
} pooling;

static void pool_planes(void *context, int64_t task) {
    const pooling *p = context;
    const qrt_window rows = p->rows, columns = p->columns;
    const qrt_binary_fn join = qrt_kernels.pointwise.binary_f32[p->counts ? QRT_ADD : QRT_MAX];
    const float neutral = p->counts ? 0 : -INFINITY;
    const int64_t reach = (columns.output - 1) * columns.stride + 1;
    int64_t plane = task * p->planes_per_task, end = plane + p->planes_per_task;
    if (end > p->planes) end = p->planes;
    float *line = p->lines + task * 2 * p->line_elems, *joined = line + p->line_elems, *inside = line + columns.begin;
    for (int64_t i = 0; i < p->line_elems; i++) line[i] = neutral;
    for (; plane < end; plane++) {
        const float *x = p->x + plane * rows.size * columns.size;
        float *y = p->y + plane * rows.output * columns.output;
        for (int64_t r = 0; r < rows.output; r++, y += columns.output) {
            bool is_empty = true;
            for (int64_t k = 0; k < rows.kernel; k++) {
                int64_t at = r * rows.stride + k * rows.dilation - rows.begin;
                if (at < 0 || at >= rows.size) continue;
                const float *row = x + at * columns.size;
                if (is_empty) memcpy(inside, row, (size_t)columns.size * sizeof(float));
                else join(inside, row, inside, columns.size, 1, 1);
                is_empty = false;
            }
            if (is_empty)
                for (int64_t i = 0; i < columns.size; i++) inside[i] = neutral;
            // Windows at every position are cheaper in vectors than those a stride apart one by one.
            const float *windows = line;
            for (int64_t k = 1; k < columns.kernel; k++, windows = joined)
                join(windows, line + k * columns.dilation, joined, reach, 1, 1);
            for (int64_t c = 0; c < columns.output; c++) y[c] = windows[c * columns.stride];
            if (!p->counts) continue;
            for (int64_t c = 0; c < columns.output; c++) y[c] /= p->counts[r] * p->counts[rows.output + c];
        }
    }
}

static void count_taps(const qrt_window *w, bool includes_pad, float *counts) {
    int64_t low = includes_pad ? 0 : w->begin, high = w->begin + w->size + (includes_pad ? w->end : 0);
    for (int64_t o = 0; o < w->output; o++) {
        int64_t count = 0;
        for (int64_t k = 0; k < w->kernel; k++) {
            int64_t at = o * w->stride + k * w->dilation;
            count += at >= low && at < high;
        }
        counts[o] = count ? (float)count : 1;  // a sum of nothing is 0, and stays it
    }
}

/// Maxima of 8-bit codes, in the same way.
typedef struct {
    const uint8_t *x;
    uint8_t *y;
    uint8_t *lines;
    int64_t line_bytes, planes, planes_per_task;
    qrt_window rows, columns;
    bool is_signed;
} code_pooling;

static void pool_code_planes(void *context, int64_t task) {
    const code_pooling *p = context;
    const qrt_window rows = p->rows, columns = p->columns;
    void (*join)(const uint8_t *, const uint8_t *, uint8_t *, int64_t) = p->is_signed ? qrt_kernels.qlinear.max_i8 : qrt_kernels.qlinear.max_u8;
    const uint8_t neutral = p->is_signed ? 0x80 : 0;
    const int64_t reach = (columns.output - 1) * columns.stride + 1;
    int64_t plane = task * p->planes_per_task, end = plane + p->planes_per_task;
    if (end > p->planes) end = p->planes;
    uint8_t *line = p->lines + task * 2 * p->line_bytes, *joined = line + p->line_bytes, *inside = line + columns.begin;
    memset(line, neutral, (size_t)p->line_bytes);
    for (; plane < end; plane++) {
        const uint8_t *x = p->x + plane * rows.size * columns.size;
        uint8_t *y = p->y + plane * rows.output * columns.output;
        for (int64_t r = 0; r < rows.output; r++, y += columns.output) {
            memset(inside, neutral, (size_t)columns.size);
            for (int64_t k = 0; k < rows.kernel; k++) {
                int64_t at = r * rows.stride + k * rows.dilation - rows.begin;
                if (at >= 0 && at < rows.size) join(inside, x + at * columns.size, inside, columns.size);
            }
            const uint8_t *windows = line;
            for (int64_t k = 1; k < columns.kernel; k++, windows = joined) join(windows, line + k * columns.dilation, joined, reach);
            for (int64_t c = 0; c < columns.output; c++) y[c] = windows[c * columns.stride];
        }
    }
}

static qrt_status slide_codes(qrt_run *run, const qrt_tensor *x, const qrt_window *axes, const int64_t *dims, qrt_tensor *out) {
    const qrt_window *columns = &axes[1];
    int64_t line = (columns->output - 1) * columns->stride + (columns->kernel - 1) * columns->dilation + 1;
    if (line < columns->begin + columns->size) line = columns->begin + columns->size;
    code_pooling p = {
        .x = x->data, .line_bytes = line, .planes = dims[0] * dims[1], .rows = axes[0], .columns = *columns, .is_signed = x->dtype == QRT_I8,
    };
    int64_t size = qrt_product(dims, 0, x->rank);
    if (size == 0) return qrt_alloc(run, out, x->dtype, x->rank, dims);
    int64_t num_tasks = size < PARALLEL_TAPS ? 1 : 4 * (int64_t)run->num_threads;
    p.planes_per_task = (p.planes + num_tasks - 1) / num_tasks;
    num_tasks = (p.planes + p.planes_per_task - 1) / p.planes_per_task;
    qrt_buffer *scratch = qrt_scratch(run, (size_t)(num_tasks * 2 * line));
    if (!scratch) return QRT_NO_MEMORY;
    p.lines = scratch->data;
    qrt_status status = qrt_alloc(run, out, x->dtype, x->rank, dims);
    if (status == QRT_OK) {
        p.y = out->data;
        qrt_parallel_for(run->num_threads, num_tasks, pool_code_planes, &p);
    }
    qrt_scratch_free(run, scratch);
    return status;
}

/// Planes of float32 from x to y.
static qrt_status slide_floats(qrt_run *run, const float *x, float *y, int64_t planes, const qrt_window *rows, const qrt_window *columns,
                               bool is_max, bool includes_pad) {
    // The line holds all that windows reach, and the whole row even where no window does.
    int64_t line = (columns->output - 1) * columns->stride + (columns->kernel - 1) * columns->dilation + 1;
    if (line < columns->begin + columns->size) line = columns->begin + columns->size;
    pooling p = {.x = x, .y = y, .line_elems = line, .planes = planes, .rows = *rows, .columns = *columns};
    const int64_t size = planes * rows->output * columns->output;
    int64_t num_tasks = size / PARALLEL_TAPS * (rows->kernel + columns->kernel) < 1 ? 1 : 4 * (int64_t)run->num_threads;
    p.planes_per_task = (p.planes + num_tasks - 1) / num_tasks;
    num_tasks = (p.planes + p.planes_per_task - 1) / p.planes_per_task;
    int64_t num_counts = rows->output + columns->output;
    qrt_buffer *scratch = qrt_scratch(run, (size_t)(num_tasks * 2 * line + num_counts) * sizeof(float));
    if (!scratch) return QRT_NO_MEMORY;
    p.lines = scratch->data;
    if (!is_max) {
        float *taps = p.lines + num_tasks * 2 * line;
        count_taps(rows, includes_pad, taps);
        count_taps(columns, includes_pad, taps + rows->output);
        p.counts = taps;
    }
    qrt_parallel_for(run->num_threads, num_tasks, pool_planes, &p);
    qrt_scratch_free(run, scratch);
    return QRT_OK;
}

static bool does_nothing(const qrt_window *w) { return w->kernel == 1 && w->stride == 1 && w->begin == 0 && w->end == 0; }

/// Volumes: down the slices first, which are rows of as many columns as a slice has elements; then each slice. A mean of
/// means is the mean, as the windows of a box have as many taps in every slice.
static qrt_status slide_volumes(qrt_run *run, const qrt_tensor *x, const qrt_window *axes, bool is_max, bool includes_pad, qrt_tensor *out) {
    const qrt_window *slices = &axes[0], *rows = &axes[1], *columns = &axes[2];
    const int64_t volumes = x->dims[0] * x->dims[1], area = rows->size * columns->size;
    const bool is_flat = does_nothing(rows) && does_nothing(columns);
    const qrt_window whole = {area, 1, 1, 1, 0, 0, area};
    if (is_flat) return slide_floats(run, x->data, out->data, volumes, slices, &whole, is_max, includes_pad);
    const float *from = x->data;
    qrt_buffer *scratch = NULL;
    qrt_status status = QRT_OK;
    if (!does_nothing(slices)) {
        int64_t elems;
        if (!qrt_num_elements(3, (const int64_t[]){volumes, slices->output, area}, &elems)) return QRT_NO_MEMORY;
        scratch = qrt_scratch(run, (size_t)elems * sizeof(float));
        if (!scratch) return QRT_NO_MEMORY;
        status = slide_floats(run, from, scratch->data, volumes, slices, &whole, is_max, includes_pad);
        from = scratch->data;
    }
    if (status == QRT_OK) status = slide_floats(run, from, out->data, volumes * slices->output, rows, columns, is_max, includes_pad);
    if (scratch) qrt_scratch_free(run, scratch);
    return status;
}

/// ints: auto_pad, ceil_mode, count_include_pad, then for each spatial axis (one to three)
/// kernel, stride, dilation, padding before and behind. Input: float32 [N, C, spatial…]; for maxima over one or two axes
/// also uint8 and int8.
static qrt_status slide(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out, bool is_max) {
    const qrt_tensor *x = qrt_input(node, in, 0);
    const int num_axes = (node->num_ints - 3) / 5;
    if (!qrt_is_tensor(x) || (x->dtype != QRT_F32 && !(is_max && qrt_has_codes(x) && num_axes < 3))) return QRT_DECLINE;
    if (num_axes < 1 || num_axes > 3 || x->rank != num_axes + 2) return QRT_DECLINE;
    qrt_window axes[3];
    int64_t dims[QRT_MAX_RANK] = {x->dims[0], x->dims[1]};
    if (!qrt_resolve_windows(node, num_axes, x->dims + 2, axes)) return QRT_DECLINE;
    for (int i = 0; i < num_axes; i++) dims[i + 2] = axes[i + 3 - num_axes].output;
    if (!qrt_is_buildable(x->rank, dims)) return QRT_DECLINE;
    if (x->dtype != QRT_F32) return slide_codes(run, x, axes + 1, dims, &out[0]);
    qrt_status status = qrt_alloc(run, &out[0], QRT_F32, x->rank, dims);
    if (status != QRT_OK || out[0].size == 0) return status;
    const bool includes_pad = node->ints[2] != 0;
    if (num_axes == 3) return slide_volumes(run, x, axes, is_max, includes_pad, &out[0]);
    return slide_floats(run, x->data, out[0].data, dims[0] * dims[1], &axes[1], &axes[2], is_max, includes_pad);
}

static qrt_status max_pool(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    return slide(node, run, in, out, true);
}

static qrt_status average_pool(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    return slide(node, run, in, out, false);
}

static qrt_status reduce_planes(qrt_run *run, const qrt_tensor *x, qrt_tensor *out, qrt_reduce_op op) {
    if (!qrt_is_tensor(x) || x->dtype != QRT_F32 || x->rank < 2) return QRT_DECLINE;
    int64_t dims[QRT_MAX_RANK], count = qrt_product(x->dims, 2, x->rank);
    if (count == 0) return QRT_DECLINE;
    for (int i = 0; i < x->rank; i++) dims[i] = i < 2 ? x->dims[i] : 1;
    qrt_status status = qrt_alloc(run, out, QRT_F32, x->rank, dims);
    if (status != QRT_OK) return status;
    const float *from = x->data;
    float *to = out->data;
    for (int64_t i = 0; i < out->size; i++, from += count) {
        to[i] = qrt_kernels.rows.reduce[op](from, count);
        if (op == QRT_REDUCE_SUM) to[i] /= (float)count;
    }
    return QRT_OK;
}

static qrt_status global_average_pool(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    return reduce_planes(run, qrt_input(node, in, 0), &out[0], QRT_REDUCE_SUM);
}

static qrt_status global_max_pool(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    return reduce_planes(run, qrt_input(node, in, 0), &out[0], QRT_REDUCE_MAX);
}

const qrt_node_entry qrt_pooling_nodes[] = {
    {"max_pool", max_pool},
    {"average_pool", average_pool},
    {"global_average_pool", global_average_pool},
    {"global_max_pool", global_max_pool},
    {NULL, NULL},
};
