/// Resize and Upsample.
///
/// Every axis that changes gets a table: for each output position the input positions that it is made of, and their
/// weights. The tables are computed in float64 by the operations of the numpy definition (ops/image.py), so that they
/// round the same way; axes are then resampled one after the other, which gives its very bits.
#include <math.h>
#include <string.h>

#include "../threads.h"
#include "arguments.h"
#include "enumerations.h"
#include "four.h"

enum { QRT_INTERPOLATIONS(QRT_ENUMERATOR) };
enum { QRT_COORDINATES(QRT_ENUMERATOR) };
enum { QRT_NEAREST_MODES(QRT_ENUMERATOR) };
enum { PARALLEL_BYTES = 256 * 1024, SHORT_LINE = 512 };

/// What becomes of one axis. Without `index` it stays as it is.
typedef struct {
    int64_t size, output;
    double scale;
    int64_t *index;     ///< [output, taps]
    float *weight;      ///< [output, taps], or NULL for the nearest
} axis_table;

static double original_coordinate(int mode, double size, double scale, double output, double x) {
    double resized = scale * size;
    switch (mode) {
    case HALF_PIXEL: return (x + 0.5) / scale - 0.5;
    case PYTORCH_HALF_PIXEL: return resized > 1 ? (x + 0.5) / scale - 0.5 : -0.5;
    case ASYMMETRIC: return x / scale;
    case TF_HALF_PIXEL_FOR_NN: return (x + 0.5) / scale;
    case ALIGN_CORNERS: return resized != 1 ? x * (size - 1) / (resized - 1) : 0;
    default: return size / 2 * (1 - output / resized) + (x + 0.5) / scale - 0.5;
    }
}

/// Where targets have no instruction for it, floor() is a call. Coordinates are far from the ends of int64.
static inline int64_t floor_of(double x) {
    int64_t i = (int64_t)x;
    return i - (x < (double)i);
}
static inline int64_t ceil_of(double x) { return -floor_of(-x); }

static int64_t rounded(int mode, double x, double scale) {
    switch (mode) {
    case ROUND_PREFER_FLOOR: return ceil_of(x - 0.5);
    case ROUND_PREFER_CEIL: return floor_of(x + 0.5);
    case FLOOR: return floor_of(x);
    case CEIL: return ceil_of(x);
    default: return scale < 1 ? ceil_of(x) : floor_of(x);
    }
}

/// Keys' convolution kernel with the free parameter `a`.
static double cubic_kernel(double x, double a) {
    x = fabs(x);
    if (x <= 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    if (x < 2) return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a;
    return 0;
}

static int64_t clamp(int64_t i, int64_t size) { return i < 0 ? 0 : i > size - 1 ? size - 1 : i; }

static void fill_table(axis_table *t, int mode, int coordinates, int nearest, double a) {
    const double far = 1073741824;  // outside of any image, as in ops/interpolation.py
    const int taps = mode == CUBIC ? 4 : 2;
    for (int64_t o = 0; o < t->output; o++) {
        double x = original_coordinate(coordinates, (double)t->size, t->scale, (double)t->output, (double)o);
        x = x != x || x < -far ? -far : x > far ? far : x;
        if (mode == NEAREST) {
            t->index[o] = clamp(rounded(nearest, x, t->scale), t->size);
            continue;
        }
        int64_t low = ceil_of(x) - 1;
        double fraction = x - (double)low;
        for (int i = 0; i < taps; i++) {
            int offset = mode == CUBIC ? i - 1 : i;
            double weight = mode == CUBIC ? cubic_kernel(fraction - offset, a) : i ? fraction : 1 - fraction;
            t->index[o * taps + i] = clamp(low + offset, t->size);
            t->weight[o * taps + i] = (float)weight;
        }
    }
}

/// One pass over the data: an axis of which whole rows are picked or mixed, then perhaps the axis along these rows.
typedef struct {
    const char *x;
    char *y;
    const axis_table *rows, *columns;  ///< either may be NULL
    int64_t row_elems, line_elems, item;  ///< of the input, of the output
    int64_t num_lines, lines_per_task;
    int taps;
    int64_t times;                     ///< how often the nearest takes each element along `columns`, 0: not equally often and in order
    char *scratch;                     ///< a row of the input for each task
} pass;

/// Four elements in memory. Vectors that are copied to two places with memcpy go through general registers in gcc.
typedef uint32_t u32x4_there __attribute__((vector_size(16), aligned(4), may_alias));

/// Each of four elements twice, in two lines.
static inline void double_four(const uint32_t *x, uint32_t *y, uint32_t *z) {
    const u32x4 v = *(const u32x4_there *)x;
    const u32x4 low = __builtin_shufflevector(v, v, 0, 0, 1, 1), high = __builtin_shufflevector(v, v, 2, 2, 3, 3);
    *(u32x4_there *)y = low;
    *(u32x4_there *)(y + 4) = high;
    *(u32x4_there *)z = low;
    *(u32x4_there *)(z + 4) = high;
}

/// Each of n elements twice, in two short lines. Where four do not divide n the last four overlap others, which beats single
/// elements.
static inline void double_lines(const uint32_t *x, int64_t n, uint32_t *y, uint32_t *z) {
    for (int64_t i = 0; i + 4 <= n; i += 4) double_four(x + i, y + 2 * i, z + 2 * i);
    if (n % 4 && n > 4) double_four(x + n - 4, y + 2 * n - 8, z + 2 * n - 8);
    for (int64_t i = 0; n < 4 && i < n; i++) y[2 * i] = y[2 * i + 1] = z[2 * i] = z[2 * i + 1] = x[i];
}

/// Repeats each element `times` over.
#define REPEAT(T)                                                                                            \
    do {                                                                                                     \
        const T *x = from;                                                                                   \
        T *y = to;                                                                                           \
        if (times == 2) for (int64_t i = 0; i < n; i++) y[2 * i] = y[2 * i + 1] = x[i];                      \
        else if (times) for (int64_t i = 0; i < n; i++) for (int64_t j = 0; j < times; j++) *y++ = x[i];     \
        else for (int64_t o = 0; o < columns->output; o++) y[o] = x[columns->index[o]];                      \
    } while (0)

/// `times`: how often each of the elements comes, 0 when they do not come equally often and in order.
static void pick_line(const axis_table *columns, int64_t times, int64_t item, const void *from, void *to) {
    const int64_t n = columns->size;
    if (times == 2 && item == 4) {
        qrt_kernels.pointwise.twice(from, to, n);
        return;
    }
    switch (item) {
    case 1: REPEAT(uint8_t); break;
    case 2: REPEAT(uint16_t); break;
    case 4: REPEAT(uint32_t); break;
    default: REPEAT(uint64_t); break;
    }
}

static int64_t repetitions(const axis_table *t) {
    int64_t times = t->size ? t->output / t->size : 0;
    if (!times || times * t->size != t->output) return 0;
    for (int64_t i = 0, o = 0; i < t->size; i++)
        for (int64_t j = 0; j < times; j++)
            if (t->index[o++] != i) return 0;
    return times;
}

/// How many of `count` lines from the o-th on are made of the same row.
static int64_t copies_of(const axis_table *rows, int64_t o, int64_t count) {
    int64_t copies = 1;
    if (rows) while (copies < count && rows->index[o + copies] == rows->index[o]) copies++;
    return copies;
}

static void pick_task(void *context, int64_t task) {
    const pass *p = context;
    const axis_table *rows = p->rows;
    const int64_t row_bytes = p->row_elems * p->item, line_bytes = p->line_elems * p->item;
    const int64_t times = p->times;
    // From the input, which is half as long, each line costs less than as a copy of the one before it, and two short ones at once
    // less than two calls.
    const bool doubles = times == 2 && p->item == 4, at_once = doubles && line_bytes < SHORT_LINE;
    int64_t line = task * p->lines_per_task, end = line + p->lines_per_task;
    if (end > p->num_lines) end = p->num_lines;
    int64_t outer = rows ? line / rows->output : 0, o = rows ? line % rows->output : line;
    char *to = p->y + line * line_bytes;
    for (int64_t copies; line < end; line += copies, o += copies, to += copies * line_bytes) {
        if (rows && o == rows->output) o = 0, outer++;
        const char *from = p->x + (rows ? outer * rows->size + rows->index[o] : line) * row_bytes;
        copies = copies_of(rows, o, rows && rows->output - o < end - line ? rows->output - o : end - line);
        if (at_once && copies == 2) {
            double_lines((const uint32_t *)from, p->row_elems, (uint32_t *)to, (uint32_t *)(to + line_bytes));
            continue;
        }
        for (int64_t i = 0; i < copies; i++) {
            char *y = to + i * line_bytes;
            if (p->columns && (doubles || i == 0)) pick_line(p->columns, times, p->item, from, y);
            else memcpy(y, p->columns ? to : from, (size_t)line_bytes);
        }
    }
}

static void mix_rows(const pass *p, int64_t line, float *to) {
    const axis_table *t = p->rows;
    const int64_t n = p->row_elems, o = line % t->output;
    const float *x = (const float *)p->x + line / t->output * t->size * n;
    const int64_t *index = t->index + o * p->taps;
    const float *w = t->weight + o * p->taps;
    const float *a = x + index[0] * n, *b = x + index[1] * n;
    const float wa = w[0], wb = w[1];
    if (p->taps == 2) {
        for (int64_t i = 0; i < n; i++) to[i] = a[i] * wa + b[i] * wb;
        return;
    }
    const float *c = x + index[2] * n, *d = x + index[3] * n;
    const float wc = w[2], wd = w[3];
    for (int64_t i = 0; i < n; i++) to[i] = a[i] * wa + b[i] * wb + c[i] * wc + d[i] * wd;
}

static void mix_line(const axis_table *t, int taps, const float *x, float *to) {
    const int64_t *index = t->index;
    const float *w = t->weight;
    if (taps == 2)
        for (int64_t o = 0; o < t->output; o++, index += 2, w += 2) to[o] = x[index[0]] * w[0] + x[index[1]] * w[1];
    else
        for (int64_t o = 0; o < t->output; o++, index += 4, w += 4)
            to[o] = x[index[0]] * w[0] + x[index[1]] * w[1] + x[index[2]] * w[2] + x[index[3]] * w[3];
}

static void mix_task(void *context, int64_t task) {
    const pass *p = context;
    float *row = (float *)p->scratch + task * p->row_elems;
    int64_t line = task * p->lines_per_task, end = line + p->lines_per_task;
    if (end > p->num_lines) end = p->num_lines;
    for (; line < end; line++) {
        float *to = (float *)p->y + line * p->line_elems;
        if (!p->columns) mix_rows(p, line, to);
        else if (!p->rows) mix_line(p->columns, p->taps, (const float *)p->x + line * p->row_elems, to);
        else {
            mix_rows(p, line, row);
            mix_line(p->columns, p->taps, row, to);
        }
    }
}

/// Split the lines of a pass among tasks; how many tasks.
static int64_t share(pass *p, const qrt_run *run) {
    int64_t num_tasks = p->num_lines * p->line_elems * p->item < PARALLEL_BYTES ? 1 : 4 * (int64_t)run->num_threads;
    p->lines_per_task = (p->num_lines + num_tasks - 1) / num_tasks;
    return (p->num_lines + p->lines_per_task - 1) / p->lines_per_task;
}

static qrt_status run_pass(qrt_run *run, pass *p, bool mixes) {
    int64_t num_tasks = share(p, run);
    if (!mixes) {
        qrt_parallel_for(run->num_threads, num_tasks, pick_task, p);
        return QRT_OK;
    }
    qrt_buffer *scratch = qrt_scratch(run, (size_t)(num_tasks * p->row_elems) * sizeof(float));
    if (!scratch) return QRT_NO_MEMORY;
    p->scratch = scratch->data;
    qrt_parallel_for(run->num_threads, num_tasks, mix_task, p);
    qrt_scratch_free(run, scratch);
    return QRT_OK;
}

/// Resample axis after axis, the last one along with the one before it. Between passes data lie in scratch memory.
static qrt_status resample(qrt_run *run, const qrt_tensor *x, qrt_tensor *y, const axis_table *tables, int mode) {
    int64_t dims[QRT_MAX_RANK], item = (int64_t)qrt_itemsize(x->dtype);
    int rank = x->rank, left = 0;
    for (int i = 0; i < rank; i++) {
        dims[i] = x->dims[i];
        left += tables[i].index != NULL;
    }
    const char *from = x->data;
    qrt_buffer *held = NULL;
    qrt_status status = QRT_OK;
    for (int i = 0; i < rank && status == QRT_OK; i++) {
        if (!tables[i].index) continue;
        bool is_pair = i == rank - 2 && tables[rank - 1].index;
        const axis_table *columns = i == rank - 1 ? &tables[i] : is_pair ? &tables[rank - 1] : NULL;
        pass p = {.x = from, .rows = i == rank - 1 ? NULL : &tables[i], .columns = columns, .item = item, .taps = mode == CUBIC ? 4 : 2};
        if (columns && mode == NEAREST) p.times = repetitions(columns);
        p.row_elems = p.rows ? qrt_product(dims, i + 1, rank) : dims[i];
        dims[i] = tables[i].output;
        if (is_pair) dims[i + 1] = columns->output;
        p.line_elems = p.rows ? qrt_product(dims, i + 1, rank) : dims[i];
        p.num_lines = qrt_product(dims, 0, p.rows ? i + 1 : i);
        left -= 1 + is_pair;
        qrt_buffer *made = left ? qrt_scratch(run, (size_t)(qrt_product(dims, 0, rank) * item)) : NULL;
        if (left && !made) status = QRT_NO_MEMORY;
        else {
            p.y = left ? made->data : y->data;
            status = run_pass(run, &p, mode != NEAREST);
        }
        if (held) qrt_scratch_free(run, held);
        held = made;
        from = p.y;
        i += is_pair;
    }
    if (held) qrt_scratch_free(run, held);
    return status;
}

enum { MODE, COORDINATES, ROUNDING, SCALES_INPUT, SIZES_INPUT, FIRST_AXIS };

/// Output size and scale of each axis; false for what the definition reports.
static bool read_sizes(const qrt_node *node, const qrt_tensor *const *in, const qrt_tensor *x, axis_table *tables) {
    int64_t axes[QRT_MAX_RANK], wanted[QRT_MAX_RANK];
    int count = node->num_ints - FIRST_AXIS;
    for (int i = 0; i < x->rank; i++) {
        tables[i] = (axis_table){.size = x->dims[i], .output = x->dims[i], .scale = 1};
        axes[i] = i;
    }
    if (count > x->rank) return false;
    for (int i = 0; i < count; i++) axes[i] = node->ints[FIRST_AXIS + i];
    if (count && !qrt_normalize_axes(axes, count, x->rank)) return false;
    if (!count) count = x->rank;

    const qrt_tensor *sizes = node->ints[SIZES_INPUT] < 0 ? NULL : qrt_input(node, in, (int)node->ints[SIZES_INPUT]);
    if (sizes && sizes->size) {
        if (qrt_read_ints(sizes, wanted, QRT_MAX_RANK) != count) return false;
        for (int i = 0; i < count; i++) {
            axis_table *t = &tables[axes[i]];
            if (wanted[i] < 0) return false;
            t->output = wanted[i];
            t->scale = wanted[i] && t->size ? (double)wanted[i] / (double)t->size : 1;
        }
        return true;
    }
    const qrt_tensor *scales = node->ints[SCALES_INPUT] < 0 ? NULL : qrt_input(node, in, (int)node->ints[SCALES_INPUT]);
    const bool is_attribute = node->ints[SCALES_INPUT] < 0;
    if (is_attribute ? node->num_floats - 1 != count : !qrt_is_tensor(scales) || scales->dtype != QRT_F32 || scales->size != count) return false;
    for (int i = 0; i < count; i++) {
        axis_table *t = &tables[axes[i]];
        double scale = is_attribute ? node->floats[1 + i] : ((const float *)scales->data)[i];
        if (!(scale > 0) || !isfinite(scale)) return false;
        // float32 as in the standard's shape inference: 10 × 0.7 is 7 there.
        float output = floorf((float)t->size * (float)scale);
        if (!(output < (float)QRT_MAX_ELEMENTS)) return false;
        t->output = (int64_t)output;
        t->scale = scale;
    }
    return true;
}

/// ints: mode, coordinates, rounding, inputs of scales and sizes (-1: none), axes (none: all).
/// floats: cubic coefficient, then scales when they are no input. Any type for the nearest, float32 else.
static qrt_status resize(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0);
    axis_table tables[QRT_MAX_RANK];
    const int mode = (int)node->ints[MODE], taps = mode == NEAREST ? 1 : mode == CUBIC ? 4 : 2;
    if (!qrt_is_tensor(x) || (mode != NEAREST && x->dtype != QRT_F32) || !read_sizes(node, in, x, tables)) return QRT_DECLINE;
    int64_t dims[QRT_MAX_RANK], places = 0;
    for (int i = 0; i < x->rank; i++) dims[i] = tables[i].output;
    if (!qrt_is_buildable(x->rank, dims)) return QRT_DECLINE;
    int64_t size = qrt_product(dims, 0, x->rank);
    if (size && !x->size) return QRT_DECLINE;
    for (int i = 0; i < x->rank; i++)
        if (tables[i].size != tables[i].output || tables[i].scale != 1) places += tables[i].output * taps;
    if (!size || !places) {
        qrt_status status = qrt_alloc(run, &out[0], x->dtype, x->rank, dims);
        if (status == QRT_OK) memcpy(out[0].data, x->data, (size_t)size * qrt_itemsize(x->dtype));
        return status;
    }
    qrt_buffer *memory = qrt_scratch(run, (size_t)places * (sizeof(int64_t) + sizeof(float)));
    if (!memory) return QRT_NO_MEMORY;
    int64_t *index = memory->data;
    float *weight = (float *)(index + places);
    for (int i = 0; i < x->rank; i++) {
        axis_table *t = &tables[i];
        if (t->size == t->output && t->scale == 1) continue;
        const axis_table *same = NULL;
        for (int j = 0; j < i; j++)
            if (tables[j].index && tables[j].size == t->size && tables[j].output == t->output && tables[j].scale == t->scale) same = &tables[j];
        if (same) {
            t->index = same->index;
            t->weight = same->weight;
            continue;
        }
        t->index = index;
        t->weight = weight;
        index += t->output * taps;
        weight += t->output * taps;
        fill_table(t, mode, (int)node->ints[COORDINATES], (int)node->ints[ROUNDING], node->floats[0]);
    }
    qrt_status status = qrt_alloc(run, &out[0], x->dtype, x->rank, dims);
    if (status == QRT_OK) status = resample(run, x, &out[0], tables, mode);
    qrt_scratch_free(run, memory);
    return status;
}

const qrt_node_entry qrt_resize_nodes[] = {
    {"resize", resize},
    {NULL, NULL},
};
