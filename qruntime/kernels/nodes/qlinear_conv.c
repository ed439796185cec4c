/// Convolution of 8-bit codes in 1, 2 or 3 spatial dims, channels last, with int8 weights.
///
/// A row of the product is what the window covers at one output position: taps, then channels, as the weights are packed, in rows of
/// the window that may be filled up. What lies outside of the image, or is filled, is the zero point. Kernels that can read windows
/// where they lie do (code_windows.h), for others they are copied. One channel a group needs no product: see qrt_qlinear.depthwise.
#include <string.h>

#include "../code_product.h"
#include "../threads.h"
#include "code_division.h"
#include "code_windows.h"
#include "codes.h"

enum { MIN_PARALLEL_WORK = 1 << 18, TASKS_PER_THREAD = QRT_BLOCKS_PER_THREAD, MAX_BLOCK = 128, LINE_ROWS = 8, MOST_REACH = 1 << 16 };

/// The windows of all images in order, one channel group of them, and where the next one begins.
typedef struct {
    const qrt_convolution *g;
    const uint8_t *x;
    uint8_t padding;            ///< byte of the zero point
    const uint8_t *image;
    int64_t at[3];              ///< position of the output in the image
} windows;

static void start_at(windows *w, int64_t position, int64_t channel) {
    const qrt_convolution *g = w->g;
    for (int d = 2; d >= 0; d--) {
        w->at[d] = position % g->out[d];
        position /= g->out[d];
    }
    w->image = w->x + position * g->in[0] * g->in[1] * g->in[2] * g->channels + channel;
}

static void step(windows *w) {
    const qrt_convolution *g = w->g;
    for (int d = 2; d >= 0; d--) {
        if (++w->at[d] < g->out[d]) return;
        w->at[d] = 0;
    }
    w->image += g->in[0] * g->in[1] * g->in[2] * g->channels;
}

/// The column of the window's first taps.
static inline int64_t first_column(const windows *w) { return w->at[2] * w->g->stride[2] - w->g->begin[2]; }

/// The line that taps (d, h) of the window cover, or NULL outside of the image.
static inline const uint8_t *line_at(const windows *w, int64_t d, int64_t h) {
    const qrt_convolution *g = w->g;
    int64_t slice = w->at[0] * g->stride[0] - g->begin[0] + d * g->dilation[0];
    int64_t row = w->at[1] * g->stride[1] - g->begin[1] + h * g->dilation[1];
    if (slice < 0 || slice >= g->in[0] || row < 0 || row >= g->in[1]) return NULL;
    return w->image + (slice * g->in[1] + row) * g->in[2] * g->channels;
}

/// Few bytes without a call.
static inline void copy_bytes(uint8_t *to, const uint8_t *from, int64_t n) {
    if (n > 32) {
        memcpy(to, from, (size_t)n);
    } else if (n >= 16) {
        memcpy(to, from, 16);
        memcpy(to + n - 16, from + n - 16, 16);
    } else if (n >= 8) {
        memcpy(to, from, 8);
        memcpy(to + n - 8, from + n - 8, 8);
    } else {
        for (int64_t i = 0; i < n; i++) to[i] = from[i];
    }
}

/// What taps of one line cover: window[2] runs of the channels of a group, and what they are filled up with.
static inline void copy_taps(const windows *w, const uint8_t *line, int64_t column, uint8_t *to) {
    const qrt_convolution *g = w->g;
    const int64_t taps = g->window[2], length = g->group_channels, width = g->in[2], filled = qrt_row_of_window(g) - taps * length;
    for (int64_t i = 0; i < filled; i++) to[taps * length + i] = w->padding;
    const bool is_run = g->dilation[2] == 1 && g->groups == 1;
    if (line && is_run && column >= 0 && column + taps <= width) {
        copy_bytes(to, line + column * length, taps * length);
        return;
    }
    for (int64_t v = 0; v < taps; v++, column += g->dilation[2], to += length) {
        if (!line || column < 0 || column >= width) memset(to, w->padding, (size_t)length);
        else copy_bytes(to, line + column * g->channels, length);
    }
}

static const uint8_t *next_window(void *context, uint8_t *room) {
    windows *w = context;
    const qrt_convolution *g = w->g;
    const int64_t column = first_column(w), run = qrt_row_of_window(g);
    const uint8_t *found = room;
    const uint8_t *line = g->taps == 1 ? line_at(w, 0, 0) : NULL;
    if (line && column >= 0 && column < g->in[2]) {
        found = line + column * g->channels;
    } else {
        uint8_t *to = room;
        for (int64_t d = 0; d < g->window[0]; d++)
            for (int64_t h = 0; h < g->window[1]; h++, to += run) copy_taps(w, line_at(w, d, h), column, to);
    }
    step(w);
    return found;
}

typedef struct {
    windows windows;
    qrt_code_layer layer;       ///< but its weights and bias
    void *const *packed;        ///< qrt_q8_weights of each group
    const int32_t *bias;        ///< [maps] or NULL
    char *y;
    int64_t num_rows, tasks, task_bytes;
    qrt_code_division division; ///< of each group, in lines of LINE_ROWS
    bool is_dense;              ///< windows of one element, which follow each other as the images have them
    char *scratch;
} product_job;

static void multiply_task(void *context, int64_t task) {
    const product_job *j = context;
    const qrt_convolution *g = j->windows.g;
    const qrt_code_division *d = &j->division;
    const size_t item = j->layer.dtype == QRT_I32 ? sizeof(int32_t) : 1;
    const int64_t of_group = d->blocks * d->runs, units = g->groups * of_group;
    for (int64_t unit = units * task / j->tasks; unit < units * (task + 1) / j->tasks; unit++) {
        const int64_t group = unit / of_group, block = unit % d->blocks, panel = unit % of_group / d->blocks * d->panels;
        const int64_t first = qrt_block_begin(d, block) * LINE_ROWS, last = qrt_min(qrt_block_begin(d, block + 1) * LINE_ROWS, j->num_rows);
        qrt_code_layer layer = j->layer;
        layer.w = j->packed[group];
        layer.bias = j->bias ? j->bias + group * g->group_maps : NULL;
        windows rows = j->windows;
        start_at(&rows, first, group * g->group_channels);
        qrt_code_rows source = {next_window, &rows, j->is_dense ? rows.x + first * g->channels : NULL};
        char *y = j->y + (size_t)(first * g->maps + group * g->group_maps) * item;
        const int64_t end = d->runs > 1 ? panel + d->panels : layer.w->num_panels;
        qrt_code_product(&layer, &source, last - first, panel, end, y, g->maps, j->scratch + task * j->task_bytes);
    }
}

static bool are_elements(const qrt_convolution *g) {
    for (int d = 0; d < 3; d++)
        if (g->in[d] != g->out[d] || g->stride[d] != 1 || g->begin[d] != 0) return false;
    return g->taps == 1 && g->groups == 1;
}

static qrt_status multiply(product_job *j, qrt_run *run, int threads) {
    const qrt_convolution *g = j->windows.g;
    j->is_dense = are_elements(g);
    if (!j->is_dense && qrt_takes_windows(g, j->packed[0])) {
        qrt_code_layer layer = j->layer;
        layer.w = j->packed[0];
        layer.bias = j->bias;
        return qrt_multiply_windows(g, run, threads, &layer, j->windows.x, j->windows.padding, j->y);
    }
    const qrt_q8_weights *w = j->packed[0];
    qrt_code_layer layer = j->layer;
    layer.w = w;
    const bool has_runs = j->is_dense && qrt_code_rows_lie_packed(&layer);
    j->division = qrt_divide_codes(w, threads, qrt_ceil_div(j->num_rows, LINE_ROWS), MAX_BLOCK / LINE_ROWS, j->num_rows * g->depth, has_runs);
    j->tasks = qrt_tasks_of(&j->division, threads, g->groups);
    size_t most_bytes = 0;
    for (int64_t i = 0; i < g->groups; i++) {  // a group may be packed by a fallback kernel
        const size_t bytes = qrt_code_scratch_bytes(j->packed[i], qrt_min(MAX_BLOCK, j->num_rows));
        most_bytes = bytes > most_bytes ? bytes : most_bytes;
    }
    int64_t bytes;
    j->task_bytes = (int64_t)(most_bytes + QRT_ALIGNMENT - 1) / QRT_ALIGNMENT * QRT_ALIGNMENT;
    if (most_bytes > INT64_MAX / 4 || __builtin_mul_overflow(j->task_bytes, j->tasks, &bytes)) return QRT_NO_MEMORY;
    qrt_buffer *scratch = qrt_scratch(run, (size_t)bytes);
    if (!scratch) return QRT_NO_MEMORY;
    j->scratch = scratch->data;
    qrt_parallel_for(threads, j->tasks, multiply_task, j);
    qrt_scratch_free(run, scratch);
    return QRT_OK;
}

typedef struct {
    windows windows;
    qrt_depthwise window;       ///< but its taps
    const uint8_t *table;
    uint8_t *y;
    int64_t num_lines, tasks;
    const uint8_t *outside;     ///< zero points of all channels
    qrt_depthwise_line line;    ///< but its lines and room; its weights NULL where windows are taken one by one
    int64_t task_bytes;         ///< of its room
    char *room;
    const uint8_t **taps;       ///< [taps] for each task
} depthwise_job;

/// Where the taps of a window lie.
static void find_taps(const windows *w, const uint8_t *outside, const uint8_t **taps) {
    const qrt_convolution *g = w->g;
    const int64_t column = first_column(w), count = g->window[2], step = g->dilation[2] * g->channels;
    const bool is_inside = column >= 0 && column + (count - 1) * g->dilation[2] < g->in[2];
    for (int64_t d = 0; d < g->window[0]; d++)
        for (int64_t h = 0; h < g->window[1]; h++, taps += count) {
            const uint8_t *line = line_at(w, d, h);
            for (int64_t v = 0; line && is_inside && v < count; v++) taps[v] = line + column * g->channels + v * step;
            for (int64_t v = 0; !line && v < count; v++) taps[v] = outside;
            for (int64_t v = 0; line && !is_inside && v < count; v++) {
                int64_t at = column + v * g->dilation[2];
                taps[v] = at >= 0 && at < g->in[2] ? line + at * g->channels : outside;
            }
        }
}

static void depthwise_task(void *context, int64_t task) {
    const depthwise_job *j = context;
    const qrt_convolution *g = j->windows.g;
    const uint8_t **taps = j->taps + task * g->taps;
    qrt_depthwise window = j->window;
    window.taps = taps;
    int64_t first = j->num_lines * task / j->tasks * g->out[2], last = j->num_lines * (task + 1) / j->tasks * g->out[2];
    windows at = j->windows;
    start_at(&at, first, 0);
    for (int64_t i = first; i < last; i++, step(&at)) {
        uint8_t *y = j->y + i * g->channels;
        find_taps(&at, j->outside, taps);
        qrt_kernels.qlinear.depthwise(&window, y);
        if (j->table) qrt_kernels.qlinear.look_up(j->table, y, y, g->channels);
    }
}

/// Lines of outputs, each with the lines that its windows cover in order.
static void depthwise_lines_task(void *context, int64_t task) {
    const depthwise_job *j = context;
    const qrt_convolution *g = j->windows.g;
    const uint8_t **lines = j->taps + task * g->taps;
    qrt_depthwise_line line = j->line;
    line.lines = lines;
    line.room = j->room + task * j->task_bytes;
    for (int64_t i = j->num_lines * task / j->tasks; i < j->num_lines * (task + 1) / j->tasks; i++) {
        windows at = j->windows;
        start_at(&at, i * g->out[2], 0);
        for (int64_t d = 0; d < g->window[0]; d++)
            for (int64_t h = 0; h < g->window[1]; h++) lines[d * g->window[1] + h] = line_at(&at, d, h);
        uint8_t *y = j->y + i * g->out[2] * g->channels;
        qrt_kernels.qlinear.depthwise_line(&line, y);
        if (j->table) qrt_kernels.qlinear.look_up(j->table, y, y, g->out[2] * g->channels);
    }
}

/// False where memory is short: windows are then taken one by one.
static bool each_line(depthwise_job *j, qrt_run *run, int threads) {
    const qrt_convolution *g = j->windows.g;
    const int64_t reach = qrt_depthwise_reach(g->out[2], g->stride[2], g->window[2], g->dilation[2]);
    int64_t bytes, pointers;
    j->task_bytes = qrt_depthwise_room(j->line.rows, reach);
    if (__builtin_mul_overflow(j->task_bytes, j->tasks, &bytes) || __builtin_mul_overflow(g->taps, j->tasks, &pointers)) return false;
    if (reach > MOST_REACH || pointers > INT64_MAX / 16) return false;
    qrt_buffer *scratch = qrt_scratch(run, (size_t)bytes + (size_t)pointers * sizeof(void *));
    if (!scratch) return false;
    j->room = scratch->data;
    j->taps = (const uint8_t **)(void *)(j->room + bytes);
    qrt_parallel_for(threads, j->tasks, depthwise_lines_task, j);
    qrt_scratch_free(run, scratch);
    return true;
}

static qrt_status each_channel(depthwise_job *j, qrt_run *run, int threads) {
    const qrt_convolution *g = j->windows.g;
    j->num_lines = g->images * g->out[0] * g->out[1];
    j->tasks = qrt_min(threads > 1 ? TASKS_PER_THREAD * (int64_t)threads : 1, j->num_lines);
    if (qrt_kernels.qlinear.depthwise_line && j->line.w && each_line(j, run, threads)) return QRT_OK;
    int64_t pointers;
    if (__builtin_mul_overflow(g->taps, j->tasks, &pointers) || pointers > INT64_MAX / 16) return QRT_NO_MEMORY;
    qrt_buffer *scratch = qrt_scratch(run, (size_t)pointers * sizeof(void *) + (size_t)g->channels);
    if (!scratch) return QRT_NO_MEMORY;
    j->taps = scratch->data;
    j->outside = memset((char *)scratch->data + (size_t)pointers * sizeof(void *), j->windows.padding, (size_t)g->channels);
    qrt_parallel_for(threads, j->tasks, depthwise_task, j);
    qrt_scratch_free(run, scratch);
    return QRT_OK;
}

/// The zero point of x that is known at a run only: one code of its type, as 0 … 255. False when it is something else.
static bool read_zero(const qrt_tensor *zero, int32_t dtype, int32_t *value) {
    if (!zero) return true;
    if (zero->dtype != dtype || zero->size != 1) return false;
    *value = *(const uint8_t *)zero->data ^ qrt_flip(dtype);
    return true;
}

static const void *array_of(const qrt_tensor *t, int32_t dtype, int64_t size) {
    return t && t->dtype == dtype && t->size == size ? t->data : NULL;
}

/// Weights, offsets and multipliers for windows along lines; false where their sizes are others.
static bool read_woven(const qrt_convolution *g, const qrt_tensor *const *arrays, const qrt_depthwise *window, uint8_t padding,
                       qrt_depthwise_line *line) {
    const int64_t rows = g->window[0] * g->window[1];
    const int64_t channels = qrt_ceil_div(g->channels, QRT_DEPTHWISE_BLOCK) * QRT_DEPTHWISE_BLOCK;
    const int64_t of_summand = qrt_depthwise_groups(rows) * QRT_DEPTHWISE_ROWS * g->window[2] * channels;
    const int64_t summands = arrays[0] && arrays[0]->size == 2 * of_summand ? 2 : 1;
    *line = (qrt_depthwise_line){
        .width = g->in[2], .channels = g->channels, .rows = rows, .columns = g->window[2], .stride = g->stride[2],
        .dilation = g->dilation[2], .begin = g->begin[2], .outputs = g->out[2],
        .summands = summands, .w = array_of(arrays[0], QRT_I8, summands * of_summand),
        .offsets = array_of(arrays[1], QRT_I32, channels), .multipliers = array_of(arrays[2], QRT_F32, channels),
        .flip = window->flip, .padding = padding, .requantize = window->requantize,
    };
    return line->w && line->offsets && line->multipliers;
}

/// What a node says beside its shapes, in the last of its ints.
typedef struct {
    int64_t maps;
    bool is_depthwise, has_bias, has_table;
    int32_t x_dtype, y_dtype, x_zero, y_zero;
} parameters;
enum { PARAMETERS = 8 };

/// An element type of 0 stands for that of the codes read.
static bool read_parameters(const qrt_node *node, int32_t x_dtype, parameters *p) {
    const int64_t *i = node->ints + node->num_ints - PARAMETERS;
    *p = (parameters){i[0], i[1] != 0, i[2] != 0, i[3] != 0, (int32_t)i[4], (int32_t)i[5], (int32_t)i[6], (int32_t)i[7]};
    if (p->x_dtype == 0) p->x_dtype = x_dtype;
    if (p->x_dtype != x_dtype) return false;
    p->x_zero += qrt_flip(p->x_dtype);
    p->y_zero += qrt_flip(p->y_dtype);
    bool is_sum = p->y_dtype == QRT_I32;
    if (p->y_dtype != QRT_U8 && p->y_dtype != QRT_I8 && (!is_sum || p->is_depthwise || p->has_table)) return false;
    return p->x_zero >= 0 && p->x_zero <= 255 && (is_sum || (p->y_zero >= 0 && p->y_zero <= 255));
}

/// ints: spatial rank r (1 … 3), group, unused, auto_pad (0 explicit or VALID, 1 SAME_UPPER, 2 SAME_LOWER), strides[r],
///       pads at the begin[r], pads at the end[r], dilations[r] (VALID: pads 0), window[r]; maps, whether one channel is a
///       group of one map, whether there are biases, a table; element types and zero points of x and y (y int32: the sums).
/// Inputs: codes x [N, spatial …, C]; its zero point where that is no constant, for sums. Output: [N, spatial …, maps].
/// packed: for each group qrt_q8_weights [rows of the window · qrt_row_of_window, maps / group], whose scales are multipliers, then int32 biases
///         [maps]; or, of single channels, int32 weights without zero points [taps, C], offsets [C], float multipliers [C],
///         and, where the weights are sums of two of int8, the three as qrt_depthwise_line has them.
///         At last the table [256] through which codes go.
static qrt_status qlinear_conv(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0);
    parameters p;
    if (!qrt_has_codes(x) || node->num_ints < 4 + PARAMETERS || !read_parameters(node, x->dtype, &p)) return QRT_DECLINE;
    if (!read_zero(qrt_input(node, in, 1), x->dtype, &p.x_zero) || (p.is_depthwise && node->num_inputs > 1)) return QRT_DECLINE;
    int64_t rank = node->ints[0], groups = node->ints[1], w_dims[5] = {p.maps};
    if (rank < 1 || rank > 3 || node->num_ints != 4 + 5 * rank + PARAMETERS || x->rank != rank + 2 || groups < 1) return QRT_DECLINE;
    qrt_tensor planes = *x;  // as the channels were the second dim
    planes.dims[1] = x->dims[rank + 1];
    for (int64_t d = 0; d < rank; d++) {
        planes.dims[2 + d] = x->dims[1 + d];
        w_dims[2 + d] = node->ints[4 + 4 * rank + d];
    }
    if (planes.dims[1] % groups) return QRT_DECLINE;
    w_dims[1] = planes.dims[1] / groups;
    qrt_convolution g;
    if (!qrt_measure_convolution(node->ints, node->num_ints, &planes, (int32_t)rank + 2, w_dims, &g)) return QRT_DECLINE;

    const bool is_woven = p.is_depthwise && node->num_packed >= 6;
    const int32_t expected = (is_woven ? 6 : p.is_depthwise ? 3 : (int32_t)groups + p.has_bias) + p.has_table;
    if (node->num_packed != expected) return QRT_DECLINE;
    const qrt_tensor *const *arrays = (const qrt_tensor *const *)node->packed;
    const uint8_t *table = p.has_table ? array_of(arrays[expected - 1], p.y_dtype, 256) : NULL;
    if (p.has_table && !table) return QRT_DECLINE;
    windows rows = {.g = &g, .x = x->data, .padding = (uint8_t)(p.x_zero ^ qrt_flip(p.x_dtype))};
    qrt_requantize to = qrt_requantize_to(p.y_zero, qrt_flip(p.y_dtype));
    depthwise_job channels = {.windows = rows, .table = table};
    product_job product = {.windows = rows, .packed = node->packed};
    if (p.is_depthwise) {
        channels.window = (qrt_depthwise){
            .num_taps = g.taps, .channels = g.channels, .w = array_of(arrays[0], QRT_I32, g.taps * g.channels),
            .offsets = array_of(arrays[1], QRT_I32, g.channels), .multipliers = array_of(arrays[2], QRT_F32, g.channels),
            .flip = qrt_flip(p.x_dtype), .requantize = to,
        };
        const qrt_depthwise *w = &channels.window;
        if (groups != g.channels || g.maps != g.channels || !w->w || !w->offsets || !w->multipliers) return QRT_DECLINE;
        if (is_woven && !read_woven(&g, arrays + 3, w, rows.padding, &channels.line)) return QRT_DECLINE;
    } else {
        for (int64_t i = 0; i < groups; i++) {
            const qrt_q8_weights *w = node->packed[i];
            if (w->base.k != g.window[0] * g.window[1] * qrt_row_of_window(&g) || w->base.n != g.group_maps || w->k_padded > QRT_Q8_MAX_K) return QRT_DECLINE;
        }
        product.bias = p.has_bias ? array_of(arrays[groups], QRT_I32, g.maps) : NULL;
        if (p.has_bias && !product.bias) return QRT_DECLINE;
        product.layer = (qrt_code_layer){.zero = p.x_zero, .flip = qrt_flip(p.x_dtype), .dtype = p.y_dtype, .to = to, .table = table};
    }
    int64_t dims[QRT_MAX_RANK] = {g.images};
    for (int64_t d = 0; d < rank; d++) dims[1 + d] = g.out[3 - rank + d];
    dims[rank + 1] = g.maps;
    if (!qrt_is_buildable((int)rank + 2, dims)) return QRT_DECLINE;
    qrt_status status = qrt_alloc(run, &out[0], p.y_dtype, (int32_t)rank + 2, dims);
    if (status != QRT_OK || out[0].size == 0) return status;
    channels.y = out[0].data;
    product.y = out[0].data;
    product.num_rows = g.images * g.positions;
    double work = (double)g.maps * (double)g.depth * (double)product.num_rows;
    int threads = work < MIN_PARALLEL_WORK ? 1 : run->num_threads;
    return p.is_depthwise ? each_channel(&channels, run, threads) : multiply(&product, run, threads);
}

typedef struct {
    const uint8_t *x;
    int64_t k;
} matrix_rows;

static const uint8_t *next_row(void *context, uint8_t *room) {
    (void)room;
    matrix_rows *rows = context;
    const uint8_t *row = rows->x;
    rows->x += rows->k;
    return row;
}

typedef struct {
    qrt_code_layer layer;
    const uint8_t *x;
    char *y;
    size_t item;
    int64_t num_rows, tasks;
    qrt_code_division division; ///< in lines of LINE_ROWS
    char *scratch;
    size_t task_bytes;
} matrix_job;

static void matrix_task(void *context, int64_t task) {
    const matrix_job *j = context;
    const qrt_code_division *d = &j->division;
    const int64_t k = j->layer.w->base.k, n = j->layer.w->base.n, units = d->blocks * d->runs;
    for (int64_t unit = units * task / j->tasks; unit < units * (task + 1) / j->tasks; unit++) {
        const int64_t block = unit % d->blocks, panel = unit / d->blocks * d->panels;
        const int64_t first = qrt_block_begin(d, block) * LINE_ROWS, last = qrt_min(qrt_block_begin(d, block + 1) * LINE_ROWS, j->num_rows);
        matrix_rows rows = {j->x + first * k, k};
        qrt_code_rows source = {next_row, &rows, rows.x};
        qrt_code_product(&j->layer, &source, last - first, panel, panel + d->panels, j->y + (size_t)(first * n) * j->item, n,
                         j->scratch + (size_t)task * j->task_bytes);
    }
}

/// ints: whether there are biases, a table; element types and zero points of x and y (y float32: sums · multipliers, int32:
///       sums). Inputs: codes x [..., K]; its zero point where that is no constant.
/// packed: qrt_q8_weights [K, N], whose scales are multipliers, int32 biases [N], table [256].
static qrt_status qlinear_matmul(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0);
    if (!qrt_has_codes(x) || x->rank < 1 || node->num_ints != 6 || node->num_packed < 1) return QRT_DECLINE;
    const qrt_q8_weights *w = node->packed[0];
    const qrt_tensor *const *arrays = (const qrt_tensor *const *)node->packed;
    const bool has_bias = node->ints[0] != 0, has_table = node->ints[1] != 0;
    const int32_t x_dtype = node->ints[2] ? (int32_t)node->ints[2] : x->dtype, y_dtype = (int32_t)node->ints[3];
    int32_t x_zero = (int32_t)node->ints[4] + qrt_flip(x_dtype), y_zero = (int32_t)node->ints[5] + qrt_flip(y_dtype);
    const bool is_codes = y_dtype == QRT_U8 || y_dtype == QRT_I8;
    if (!read_zero(qrt_input(node, in, 1), x->dtype, &x_zero)) return QRT_DECLINE;
    if (x->dtype != x_dtype || x_zero < 0 || x_zero > 255 || node->num_packed != 1 + has_bias + has_table) return QRT_DECLINE;
    if (!is_codes && ((y_dtype != QRT_F32 && y_dtype != QRT_I32) || has_table)) return QRT_DECLINE;
    if (is_codes && (y_zero < 0 || y_zero > 255)) return QRT_DECLINE;
    if (x->dims[x->rank - 1] != w->base.k || w->k_padded > QRT_Q8_MAX_K) return QRT_DECLINE;
    matrix_job j = {
        .layer = {
            .w = w, .bias = has_bias ? array_of(arrays[1], QRT_I32, w->base.n) : NULL, .zero = x_zero, .flip = qrt_flip(x_dtype),
            .dtype = y_dtype, .to = qrt_requantize_to(y_zero, qrt_flip(y_dtype)),
            .table = has_table ? array_of(arrays[1 + has_bias], y_dtype, 256) : NULL,
        },
        .x = x->data, .item = qrt_itemsize(y_dtype), .num_rows = qrt_product(x->dims, 0, x->rank - 1),
    };
    if ((has_bias && !j.layer.bias) || (has_table && !j.layer.table)) return QRT_DECLINE;
    int64_t dims[QRT_MAX_RANK];
    for (int i = 0; i < x->rank; i++) dims[i] = i + 1 < x->rank ? x->dims[i] : w->base.n;
    if (!qrt_is_buildable(x->rank, dims)) return QRT_DECLINE;
    qrt_status status = qrt_alloc(run, &out[0], y_dtype, x->rank, dims);
    if (status != QRT_OK || out[0].size == 0) return status;
    double work = (double)j.num_rows * (double)w->base.k * (double)w->base.n;
    const int threads = work < MIN_PARALLEL_WORK ? 1 : run->num_threads;
    const bool has_runs = qrt_code_rows_lie_packed(&j.layer);
    j.division = qrt_divide_codes(w, threads, qrt_ceil_div(j.num_rows, LINE_ROWS), MAX_BLOCK / LINE_ROWS, x->size, has_runs);
    j.tasks = qrt_tasks_of(&j.division, threads, 1);
    j.task_bytes = (qrt_code_scratch_bytes(w, qrt_min(MAX_BLOCK, j.num_rows)) + QRT_ALIGNMENT - 1) / QRT_ALIGNMENT * QRT_ALIGNMENT;
    qrt_buffer *scratch = qrt_scratch(run, (size_t)j.tasks * j.task_bytes);
    if (!scratch) return QRT_NO_MEMORY;
    j.scratch = scratch->data;
    j.y = out[0].data;
    qrt_parallel_for(threads, j.tasks, matrix_task, &j);
    qrt_scratch_free(run, scratch);
    return QRT_OK;
}

const qrt_node_entry qrt_qlinear_conv_nodes[] = {
    {"qlinear_conv", qlinear_conv},
    {"qlinear_matmul", qlinear_matmul},
    {NULL, NULL},
};
