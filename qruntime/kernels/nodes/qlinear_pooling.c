/// Poolings of 8-bit codes with the channels last: a window is joined tap by tap, all channels at once.
#include <math.h>
#include <string.h>

#include "../threads.h"
#include "codes.h"
#include "windows.h"

/// Positions are pooled in parallel above this many bytes read.
enum { PARALLEL_BYTES = 256 * 1024 };

typedef struct {
    const uint8_t *x;
    uint8_t *y;
    int64_t channels, lines, lines_per_task;
    qrt_window rows, columns;
    bool is_max, is_signed, includes_pad;
    int32_t *sums;             ///< [channels] for each task
    uint8_t *line;             ///< the maxima of the columns of the window's rows, for each task; NULL where positions are taken one by one
    int32_t zero;              ///< of the codes read, as 0 … 255
    float ratio;
    uint8_t flip;
    qrt_requantize requantize;
} pooling;

/// Taps of output o of an axis that lie in [low, high): the first, and how many.
static int64_t taps_within(const qrt_window *w, int64_t o, int64_t low, int64_t high, int64_t *first) {
    int64_t start = o * w->stride - w->begin, count = 0;
    *first = -1;
    for (int64_t k = 0; k < w->kernel; k++) {
        int64_t at = start + k * w->dilation;
        if (at < low || at >= high) continue;
        if (*first < 0) *first = at;
        count++;
    }
    return count;
}

static void join_maxima(const pooling *p, const uint8_t *x, uint8_t *y, bool is_first) {
    if (is_first) memcpy(y, x, (size_t)p->channels);
    else if (p->is_signed) qrt_kernels.qlinear.max_i8(x, y, y, p->channels);
    else qrt_kernels.qlinear.max_u8(x, y, y, p->channels);
}

static void pool_position(const pooling *p, const uint8_t *image, int64_t r, int64_t c, int32_t *sums, uint8_t *y) {
    const qrt_window *rows = &p->rows, *columns = &p->columns;
    int64_t row, column, height = taps_within(rows, r, 0, rows->size, &row), width = taps_within(columns, c, 0, columns->size, &column);
    for (int64_t i = 0; !p->is_max && i < p->channels; i++) sums[i] = -p->zero * (int32_t)(height * width);
    if (p->is_max && height * width == 0) memset(y, p->is_signed ? 0x80 : 0, (size_t)p->channels);
    for (int64_t h = 0; h < height; h++)
        for (int64_t w = 0; w < width; w++) {
            int64_t at = (row + h * rows->dilation) * columns->size + column + w * columns->dilation;
            const uint8_t *x = image + at * p->channels;
            if (p->is_max) join_maxima(p, x, y, h + w == 0);
            else qrt_kernels.qlinear.accumulate(x, sums, p->channels, p->flip);
        }
    if (p->is_max) return;
    int64_t unused, count = height * width;
    if (p->includes_pad)
        count = taps_within(rows, r, -rows->begin, rows->size + rows->end, &unused) *
                taps_within(columns, c, -columns->begin, columns->size + columns->end, &unused);
    qrt_kernels.qlinear.average(sums, y, p->channels, (float)(count > 0 ? count : 1), p->ratio, &p->requantize);
}

static void join(const pooling *p, const uint8_t *a, const uint8_t *b, uint8_t *y, int64_t n) {
    if (p->is_signed) qrt_kernels.qlinear.max_i8(a, b, y, n);
    else qrt_kernels.qlinear.max_u8(a, b, y, n);
}

/// A line of outputs, all of whose windows have elements: first along the rows of the windows, all columns at once, then along columns.
static void pool_maxima(const pooling *p, const uint8_t *image, int64_t r, uint8_t *columns, uint8_t *y) {
    const qrt_window *rows = &p->rows, *along = &p->columns;
    const int64_t bytes = along->size * p->channels;
    int64_t row, column, height = taps_within(rows, r, 0, rows->size, &row);
    const uint8_t *line = image + row * bytes, *joined = line;
    for (int64_t h = 1; h < height; h++, joined = columns) join(p, joined, line + h * rows->dilation * bytes, columns, bytes);
    for (int64_t c = 0; c < along->output; c++, y += p->channels) {
        const int64_t width = taps_within(along, c, 0, along->size, &column), step = along->dilation * p->channels;
        const uint8_t *first = joined + column * p->channels;
        if (width == 1) memcpy(y, first, (size_t)p->channels);
        else join(p, first, first + step, y, p->channels);
        for (int64_t w = 2; w < width; w++) join(p, y, first + w * step, y, p->channels);
    }
}

/// Whether every window has an element.
static bool is_covered(const qrt_window *w) {
    int64_t first;
    for (int64_t o = 0; o < w->output; o++)
        if (taps_within(w, o, 0, w->size, &first) == 0) return false;
    return true;
}

static void pool_lines(void *context, int64_t task) {
    const pooling *p = context;
    int64_t line = task * p->lines_per_task, end = line + p->lines_per_task;
    if (end > p->lines) end = p->lines;
    int32_t *sums = p->sums + (p->is_max ? 0 : task * p->channels);
    for (; line < end; line++) {
        const uint8_t *image = p->x + line / p->rows.output * p->rows.size * p->columns.size * p->channels;
        uint8_t *y = p->y + line * p->columns.output * p->channels;
        if (p->line) {
            pool_maxima(p, image, line % p->rows.output, p->line + task * p->columns.size * p->channels, y);
            continue;
        }
        for (int64_t c = 0; c < p->columns.output; c++, y += p->channels)
            pool_position(p, image, line % p->rows.output, c, sums, y);
    }
}

/// What is left once the windows are known.
static qrt_status pool(pooling *p, qrt_run *run, const qrt_tensor *x, int32_t rank, const int64_t *dims, qrt_tensor *out) {
    int64_t taps, read;
    if (!qrt_is_buildable(rank, dims) || __builtin_mul_overflow(p->rows.kernel, p->columns.kernel, &taps)) return QRT_DECLINE;
    if (taps > INT32_MAX / 256) return QRT_DECLINE;  // sums are int32
    p->channels = x->dims[x->rank - 1];
    p->lines = x->dims[0] * p->rows.output;
    int64_t size = p->lines * p->columns.output * p->channels;
    bool is_small = __builtin_mul_overflow(size, taps, &read) ? false : read < PARALLEL_BYTES;
    int64_t tasks = is_small ? 1 : 4 * (int64_t)run->num_threads;
    p->lines_per_task = p->lines > tasks ? (p->lines + tasks - 1) / tasks : 1;
    tasks = (p->lines + p->lines_per_task - 1) / p->lines_per_task;
    qrt_buffer *scratch = NULL;
    if (!p->is_max && size > 0) {
        scratch = qrt_scratch(run, (size_t)(tasks * p->channels) * sizeof(int32_t));
        if (!scratch) return QRT_NO_MEMORY;
        p->sums = scratch->data;
    }
    int64_t line_bytes;
    if (p->is_max && size > 0 && is_covered(&p->rows) && is_covered(&p->columns) &&
        !__builtin_mul_overflow(tasks, p->columns.size * p->channels, &line_bytes)) {
        scratch = qrt_scratch(run, (size_t)line_bytes);
        if (!scratch) return QRT_NO_MEMORY;
        p->line = scratch->data;
    }
    qrt_status status = qrt_alloc(run, out, x->dtype, rank, dims);
    if (status == QRT_OK && size > 0) {
        p->x = x->data;
        p->y = out->data;
        qrt_parallel_for(run->num_threads, tasks, pool_lines, p);
    }
    if (scratch) qrt_scratch_free(run, scratch);
    return status;
}

/// ints from `from` on: zero points of x and y. floats: scale of x over that of y.
static bool read_average(const qrt_node *node, int from, const qrt_tensor *x, pooling *p) {
    if (node->num_ints != from + 2 || node->num_floats != 1) return false;
    p->flip = qrt_flip(x->dtype);
    p->zero = (int32_t)node->ints[from] + p->flip;
    p->ratio = (float)node->floats[0];
    p->requantize = qrt_requantize_to((int32_t)node->ints[from + 1] + p->flip, p->flip);
    return p->zero >= 0 && p->zero <= 255;
}

static qrt_status slide(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out, bool is_max) {
    const qrt_tensor *x = qrt_input(node, in, 0);
    const int num_axes = (node->num_ints - 3) / 5, used = 3 + 5 * num_axes;
    if (!qrt_has_codes(x) || num_axes < 1 || num_axes > 2 || x->rank != num_axes + 2) return QRT_DECLINE;
    pooling p = {.is_max = is_max, .is_signed = x->dtype == QRT_I8, .includes_pad = node->ints[2] != 0};
    if (!is_max && !read_average(node, used, x, &p)) return QRT_DECLINE;
    qrt_window axes[3];
    if (!qrt_resolve_windows(node, num_axes, x->dims + 1, axes)) return QRT_DECLINE;
    p.rows = axes[1];
    p.columns = axes[2];
    int64_t dims[QRT_MAX_RANK] = {x->dims[0]};
    for (int i = 0; i < num_axes; i++) dims[i + 1] = axes[i + 3 - num_axes].output;
    dims[num_axes + 1] = x->dims[num_axes + 1];
    return pool(&p, run, x, x->rank, dims, &out[0]);
}

/// ints: as of average_pool. Input: codes [N, spatial …, C].
static qrt_status code_max_pool(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    return slide(node, run, in, out, true);
}

/// ints: as of average_pool, then zero points of x and y. floats: scale of x over that of y.
static qrt_status code_average_pool(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    return slide(node, run, in, out, false);
}

/// ints: zero points of x and y. floats: scale of x over that of y. Input: codes [N, spatial …, C].
static qrt_status code_global_average_pool(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0);
    if (!qrt_has_codes(x) || x->rank < 2) return QRT_DECLINE;
    pooling p = {.is_signed = x->dtype == QRT_I8};
    if (!read_average(node, 0, x, &p)) return QRT_DECLINE;
    int64_t count = qrt_product(x->dims, 1, x->rank - 1), dims[QRT_MAX_RANK];
    if (count == 0) return QRT_DECLINE;
    p.rows = (qrt_window){1, 1, 1, 1, 0, 0, 1};
    p.columns = (qrt_window){count, count, 1, 1, 0, 0, 1};
    for (int i = 0; i < x->rank; i++) dims[i] = i == 0 || i == x->rank - 1 ? x->dims[i] : 1;
    return pool(&p, run, x, x->rank, dims, &out[0]);
}

const qrt_node_entry qrt_qlinear_pooling_nodes[] = {
    {"code_max_pool", code_max_pool},
    {"code_average_pool", code_average_pool},
    {"code_global_average_pool", code_global_average_pool},
    {NULL, NULL},
};
