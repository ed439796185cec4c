/// What slides over each channel by itself, or a few of a block, of images whose channels lie in blocks: depthwise convolutions, those in
/// small groups, and poolings.
///
/// Along an output row the window is inside of the image at most columns, where all of its taps count; at each of the others,
/// and in rows at the border, those that are inside do. Of a narrow image that would be a large part: a convolution copies it
/// with its padding first.
#include "../threads.h"
#include "arguments.h"
#include "blocked_epilogue.h"
#include "convolution.h"
#include "windows.h"

enum { BLOCK = QRT_CHANNEL_BLOCK };

/// Positions of a task; so few taps do not repay waking a thread.
enum { TASK_POSITIONS = 512, MIN_PARALLEL_TAPS = 1 << 14 };

/// Images whose rows have so few outputs at most are narrow; copies that stay in the first-level cache cost little.
enum { NARROW = 32, KEPT_BYTES = 1 << 15 };

/// Columns at the border whose taps are kept from one row to the next.
enum { MOST_BORDERS = 8 };

typedef enum { CONVOLUTION, MAXIMUM, MEAN } summing;

typedef struct {
    const qrt_convolution *g;
    summing what;
    const float *x;
    int64_t blocks, rows;                  ///< output rows of an image
    const qrt_conv_weights *w;             ///< of a convolution
    const qrt_blocked_epilogue *epilogue;  ///< for poolings too, which have its y only
    const int64_t *counts[3];              ///< of a mean, how many taps of each axis count; NULL: those inside
    int64_t task_rows, tasks;              ///< the latter for each block
    const qrt_convolution *source;         ///< of an image that is copied: what it is without the copy, else NULL
    int64_t slots, slot_numbers, list;     ///< the latter the length of a list
    bool in_rows;                          ///< of a convolution: depthwise_row makes its rows
    int64_t whole, behind;                 ///< output columns whose windows are inside: whole … behind − 1
    int64_t num_lists;                     ///< a list for those and one for each other column, or one for all
    int64_t *scratch;                      ///< of each slot: lists of places and taps, and a copy of one block
} job;

/// Lists of a slot, made for rows of which the taps inside [0] … [1] − 1 and [2] … [3] − 1 of the first two axes are inside.
typedef struct {
    int64_t *places;                       ///< [num_lists][places, taps][list]
    int64_t inside[4], counts[MOST_BORDERS + 1];
} tap_lists;

/// Taps begin … end − 1 of axis i are inside when the first one is at `place`.
static void find_inside(const qrt_convolution *g, int i, int64_t place, int64_t *begin, int64_t *end) {
    const int64_t dilation = g->dilation[i], window = g->window[i];
    if (dilation == 1) {  // divisions would take as long as a window
        *begin = qrt_min(window, qrt_max(-place, 0));
        *end = qrt_max(*begin, qrt_min(window, g->in[i] - place));
        return;
    }
    *begin = place < 0 ? qrt_min(window, qrt_ceil_div(-place, dilation)) : 0;
    *end = place < g->in[i] ? qrt_min(window, (g->in[i] - 1 - place) / dilation + 1) : 0;
    *end = qrt_max(*begin, *end);
}

/// Taps of the window that lie between begin and end of each axis, with places relative to the first of all.
static int64_t list_taps(const qrt_convolution *g, const int64_t *begin, const int64_t *end, int64_t *places, int64_t *taps) {
    int64_t found = 0;
    for (int64_t d = begin[0]; d < end[0]; d++)
        for (int64_t h = begin[1]; h < end[1]; h++)
            for (int64_t v = begin[2]; v < end[2]; v++) {
                places[found] = ((d * g->dilation[0] * g->in[1] + h * g->dilation[1]) * g->in[2] + v * g->dilation[2]) * BLOCK;
                taps[found++] = ((d * g->window[1] + h) * g->window[2] + v) * BLOCK;
            }
    return found;
}

/// The window at `count` columns from `column` on of output row `row`, `x` being where its first tap would be at the first of them.
static void slide(const job *j, int64_t image, int64_t block, int64_t row, int64_t column, int64_t count, int64_t num_taps,
                  const int64_t *lists, const float *x) {
    const qrt_convolution *g = j->g;
    const qrt_conv_f32 *kernel = j->w ? &j->w->kernel : &qrt_kernels.conv_f32;
    const int64_t at = row * g->out[2] + column, step = g->stride[2] * BLOCK;
    float *y = j->epilogue->y + image * j->epilogue->image + block * j->epilogue->plane + at * BLOCK;
    if (j->what == CONVOLUTION) {
        const qrt_conv_epilogue e = qrt_blocked_epilogue_at(j->epilogue, image, block, at);
        kernel->depthwise(count, step, num_taps, lists, lists + j->list, j->w->values + block * g->taps * BLOCK, x, y, &e);
        return;
    }
    if (j->what == MAXIMUM) {
        kernel->maxima(count, step, num_taps, lists, x, y);
        return;
    }
    int64_t counted = num_taps;
    if (j->counts[0]) counted = j->counts[0][row / g->out[1]] * j->counts[1][row % g->out[1]] * j->counts[2][column];
    kernel->means(count, step, num_taps, lists, counted ? (float)counted : 1, x, y);
}

/// Whether depthwise_row takes the rows of a convolution, whose windows each have a pixel of every row. Others can only be of single channels.
static bool is_in_rows(const job *j) {
    const qrt_convolution *g = j->g;
    if (j->what != CONVOLUTION || g->window[0] > 1 || g->dilation[2] > 1 || g->begin[2] >= g->window[2]) return false;
    if ((g->out[2] - 1) * g->stride[2] - g->begin[2] >= g->in[2]) return false;
#define IS_WINDOW(SIZE, STEP) (g->window[2] == SIZE && g->stride[2] == STEP) ||
    if (j->w->kind == QRT_CONV_GROUPED) return QRT_CONV_GROUP_WINDOWS(IS_WINDOW) false;
    return g->stride[2] <= 2;
}

/// One output row in one piece.
static void convolve_row(const job *j, const float *from, int64_t image, int64_t block, int64_t slice, int64_t line, int64_t row) {
    const qrt_convolution *g = j->g;
    int64_t first, last;
    const bool is_outside = slice < 0 || slice >= g->in[0];
    find_inside(g, 1, line, &first, &last);
    const qrt_conv_row sums = {
        .x = from + ((slice * g->in[1] + line + first * g->dilation[1]) * g->in[2] - g->begin[2]) * BLOCK,
        .x_row = g->dilation[1] * g->in[2] * BLOCK, .w = j->w->values + (block * g->taps + first * g->window[2]) * j->w->floats * BLOCK,
        .group = j->w->floats,
        .rows = is_outside ? 0 : last - first, .window = g->window[2], .step = g->stride[2], .begin = g->begin[2], .end = g->begin[2] + g->in[2],
    };
    const int64_t at = row * g->out[2];
    const qrt_conv_epilogue e = qrt_blocked_epilogue_at(j->epilogue, image, block, at);
    float *y = j->epilogue->y + image * j->epilogue->image + block * j->epilogue->plane + at * BLOCK;
    j->w->kernel.depthwise_row(g->out[2], &sums, y, &e);
}

/// One output row, `line_out` of slice `slice_out`, of a block of pixels `from`.
static void slide_row(const job *j, const float *from, int64_t image, int64_t block, int64_t slice_out, int64_t line_out, tap_lists *lists) {
    const qrt_convolution *g = j->g;
    int64_t begin[3], end[3];
    const int64_t slice = slice_out * g->stride[0] - g->begin[0], line = line_out * g->stride[1] - g->begin[1];
    const int64_t row = slice_out * g->out[1] + line_out;
    if (j->in_rows) {
        convolve_row(j, from, image, block, slice, line, row);
        return;
    }
    find_inside(g, 0, slice, &begin[0], &end[0]);
    find_inside(g, 1, line, &begin[1], &end[1]);
    const int64_t inside[4] = {begin[0], end[0], begin[1], end[1]};
    const bool are_others = memcmp(lists->inside, inside, sizeof inside) != 0;
    memcpy(lists->inside, inside, sizeof inside);
    const float *x = from + (slice * g->in[1] + line) * g->in[2] * BLOCK;
    int64_t border = 0;
    for (int64_t column = 0, count; column < g->out[2]; column += count) {
        const bool is_whole = column >= j->whole && column < j->behind;
        const int64_t place = column * g->stride[2] - g->begin[2], at = j->num_lists == 1 || is_whole ? 0 : ++border;
        int64_t *list = lists->places + 2 * at * j->list;
        count = is_whole ? j->behind - column : 1;
        if (are_others || (j->num_lists == 1 && j->behind - j->whole < g->out[2])) {
            begin[2] = 0, end[2] = g->window[2];
            if (!is_whole) find_inside(g, 2, place, &begin[2], &end[2]);
            lists->counts[at] = list_taps(g, begin, end, list, list + j->list);
        }
        slide(j, image, block, row, column, count, lists->counts[at], list, x + place * BLOCK);
    }
}

/// A block of pixels into the midst of zeros.
static void copy_block(const qrt_convolution *g, const float *from, float *to) {
    const size_t width = (size_t)(g->in[2] * BLOCK), row = (size_t)(g->padded[2] * BLOCK);
    for (int64_t d = 0; d < g->in[0]; d++) {
        float *line = to + (size_t)((d + g->begin[0]) * g->padded[1] + g->begin[1]) * row + (size_t)(g->begin[2] * BLOCK);
        for (int64_t h = 0; h < g->in[1]; h++, line += row, from += width) memcpy(line, from, width * sizeof *line);
    }
}

static void run_slot(void *context, int64_t slot) {
    const job *j = context;
    const qrt_convolution *g = j->g, *source = j->source ? j->source : g;
    tap_lists lists = {.places = j->scratch + slot * j->slot_numbers, .inside = {-1, -1, -1, -1}};
    float *copy = (float *)(lists.places + 2 * j->num_lists * j->list);
    const int64_t units = g->images * j->blocks * j->tasks;
    if (j->source) memset(copy, 0, (size_t)(g->in[0] * g->in[1] * g->in[2] * BLOCK) * sizeof *copy);
    for (int64_t unit = units * slot / j->slots; unit < units * (slot + 1) / j->slots; unit++) {
        const int64_t first = unit % j->tasks * j->task_rows, last = qrt_min(first + j->task_rows, j->rows), plane = unit / j->tasks;
        const int64_t image = plane / j->blocks, block = plane % j->blocks;
        const float *from = j->x + plane * source->in[0] * source->in[1] * source->in[2] * BLOCK;
        if (j->source) {
            copy_block(source, from, copy);
            from = copy;
        }
        int64_t slice = first / g->out[1], line = first % g->out[1];
        for (int64_t row = first; row < last; row++) {
            slide_row(j, from, image, block, slice, line, &lists);
            if (++line == g->out[1]) line = 0, slice++;
        }
        qrt_finish_block(j->epilogue, image, block, first * g->out[2], (last - first) * g->out[2]);
    }
}

/// Whether a copy with its padding costs less than columns at the border one by one.
static bool copies(const job *j) {
    const qrt_convolution *g = j->g;
    if (j->what != CONVOLUTION || j->in_rows || g->out[2] > NARROW || !memcmp(g->in, g->padded, sizeof g->in)) return false;
    const int64_t borders = g->out[2] - (j->behind - j->whole);
    const double bytes = (double)g->padded[0] * (double)g->padded[1] * (double)g->padded[2] * BLOCK * sizeof(float);
    return bytes <= KEPT_BYTES || (double)borders * (double)g->taps >= 3.0 * (double)g->in[2];
}

static qrt_status run_all(job *j, qrt_run *run) {
    const qrt_convolution *g = j->g;
    qrt_convolution padded = *g;
    int64_t copy = 0, numbers;
    qrt_find_whole_columns(g, &j->whole, &j->behind);
    j->in_rows = is_in_rows(j);
    if (copies(j)) {
        j->source = g;
        j->g = &padded;
        memcpy(padded.in, g->padded, sizeof padded.in);
        memset(padded.begin, 0, sizeof padded.begin);
        if (!qrt_num_elements(4, (const int64_t[]){g->padded[0], g->padded[1], g->padded[2], BLOCK / 2}, &copy)) return QRT_NO_MEMORY;
    }
    qrt_find_whole_columns(j->g, &j->whole, &j->behind);
    const int64_t borders = g->out[2] - (j->behind - j->whole);
    j->num_lists = borders <= MOST_BORDERS ? 1 + borders : 1;
    j->rows = g->out[0] * g->out[1];
    j->task_rows = j->source ? j->rows : qrt_max(1, qrt_min(j->rows, TASK_POSITIONS / qrt_max(1, g->out[2])));
    j->tasks = qrt_ceil_div(j->rows, j->task_rows);
    const bool is_small = (double)g->images * (double)j->blocks * (double)g->positions * (double)g->taps < MIN_PARALLEL_TAPS;
    const int threads = is_small ? 1 : run->num_threads;
    j->slots = qrt_min(threads > 1 ? 8 * (int64_t)threads : 1, g->images * j->blocks * j->tasks);
    size_t bytes;
    j->list = (g->taps + 7) & ~(int64_t)7;  // copies behind lists are to be aligned as vectors are
    if (__builtin_mul_overflow(2 * j->num_lists, j->list, &j->slot_numbers) || __builtin_add_overflow(j->slot_numbers, copy, &j->slot_numbers) ||
        __builtin_mul_overflow(j->slots, j->slot_numbers, &numbers) || __builtin_mul_overflow((size_t)numbers, sizeof(int64_t), &bytes))
        return QRT_NO_MEMORY;
    qrt_buffer *scratch = qrt_scratch(run, bytes);
    if (!scratch) return QRT_NO_MEMORY;
    j->scratch = scratch->data;
    qrt_parallel_for(threads, j->slots, run_slot, j);
    qrt_scratch_free(run, scratch);
    return QRT_OK;
}

/// ints: as those of conv. floats: of the activation. packed: qrt_conv_weights, depthwise or of small groups, with the bias.
/// Inputs: float32 x [N, ⌈C / 16⌉, …, 16]; optional residual and addend of the shape of the output.
static qrt_status blocked_depthwise_conv(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = in[0];
    const qrt_conv_weights *w = node->packed[0];
    const int32_t rank = w->rank;
    if (!x || x->dtype != QRT_F32 || x->rank != rank + 1 || (w->kind != QRT_CONV_DEPTHWISE && w->kind != QRT_CONV_GROUPED)) return QRT_DECLINE;
    if (x->dims[1] != w->blocks || x->dims[rank] != BLOCK) return QRT_DECLINE;
    qrt_tensor plain = {.rank = rank};
    memcpy(plain.dims, x->dims, (size_t)rank * sizeof *x->dims);
    plain.dims[1] = w->channels;
    qrt_convolution g;
    if (!qrt_measure_convolution(node->ints, node->num_ints, &plain, rank, w->dims, &g) || g.groups * w->floats != w->channels) return QRT_DECLINE;
    job j = {.g = &g, .what = CONVOLUTION, .x = x->data, .blocks = w->blocks, .w = w};
    if (w->kind == QRT_CONV_GROUPED && !is_in_rows(&j)) return QRT_DECLINE;

    qrt_blocked_epilogue epilogue;
    const qrt_status status = qrt_begin_blocked(node, run, in, rank, w->blocks, w->bias, &g, &out[0], &epilogue);
    if (status != QRT_OK || out[0].size == 0) return status;
    j.epilogue = &epilogue;
    return run_all(&j, run);
}

/// How many taps of each window count where padding does, too.
static void count_with_padding(const qrt_window *w, int64_t *counts) {
    for (int64_t o = 0; o < w->output; o++) {
        counts[o] = 0;
        for (int64_t k = 0; k < w->kernel; k++) counts[o] += o * w->stride + k * w->dilation < w->begin + w->size + w->end;
    }
}

/// ints: as those of max_pool. Input: float32 [N, blocks, …, 16], one to three spatial dims.
static qrt_status pool(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out, summing what) {
    const qrt_tensor *x = qrt_input(node, in, 0);
    const int num_axes = (node->num_ints - 3) / 5;
    if (!qrt_is_tensor(x) || x->dtype != QRT_F32 || num_axes < 1 || num_axes > 3 || x->rank != num_axes + 3) return QRT_DECLINE;
    qrt_window axes[3];
    int64_t dims[QRT_MAX_RANK] = {x->dims[0], x->dims[1]};
    if (x->dims[num_axes + 2] != BLOCK || !qrt_resolve_windows(node, num_axes, x->dims + 2, axes)) return QRT_DECLINE;
    for (int i = 0; i < num_axes; i++) dims[i + 2] = axes[i + 3 - num_axes].output;
    dims[num_axes + 2] = BLOCK;
    qrt_convolution g = {.images = dims[0], .taps = 1, .positions = 1};
    bool overflows = false;
    for (int i = 0; i < 3; i++) {
        const qrt_window *w = &axes[i];
        g.in[i] = w->size, g.out[i] = w->output, g.window[i] = w->kernel, g.stride[i] = w->stride;
        g.dilation[i] = w->dilation, g.begin[i] = w->begin;
        overflows = overflows || __builtin_mul_overflow(g.taps, w->kernel, &g.taps);
        overflows = overflows || __builtin_mul_overflow(g.positions, w->output, &g.positions);
    }
    if (overflows || !qrt_is_buildable(x->rank, dims)) return QRT_DECLINE;
    qrt_status status = qrt_alloc(run, &out[0], QRT_F32, x->rank, dims);
    if (status != QRT_OK || out[0].size == 0) return status;
    const qrt_blocked_epilogue y = {.y = out[0].data, .plane = g.positions * BLOCK, .image = g.positions * BLOCK * dims[1]};
    job j = {.g = &g, .what = what, .x = x->data, .blocks = dims[1], .epilogue = &y};
    qrt_buffer *counts = NULL;
    if (what == MEAN && node->ints[2]) {
        counts = qrt_scratch(run, (size_t)(axes[0].output + axes[1].output + axes[2].output) * sizeof(int64_t));
        if (!counts) {
            qrt_release(run, &out[0]);
            return QRT_NO_MEMORY;
        }
        int64_t *of_axis = counts->data;
        for (int i = 0; i < 3; of_axis += axes[i++].output) {
            count_with_padding(&axes[i], of_axis);
            j.counts[i] = of_axis;
        }
    }
    status = run_all(&j, run);
    if (counts) qrt_scratch_free(run, counts);
    return status;
}

static qrt_status blocked_max_pool(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    return pool(node, run, in, out, MAXIMUM);
}

static qrt_status blocked_average_pool(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    return pool(node, run, in, out, MEAN);
}

typedef struct {
    const float *x;
    float *y;
    int64_t pixels, blocks, blocks_per_task;
} averaging;

/// Four sums, so that additions do not wait for each other.
static void average_blocks(void *context, int64_t task) {
    const averaging *a = context;
    const int64_t first = task * a->blocks_per_task, end = qrt_min(first + a->blocks_per_task, a->blocks);
    const float *from = a->x + first * a->pixels * BLOCK;
    float *to = a->y + first * BLOCK;
    for (int64_t block = first; block < end; block++, from += a->pixels * BLOCK, to += BLOCK) {
        float sums[4][BLOCK] = {{0}};
        int64_t p = 0;
        for (; p + 4 <= a->pixels; p += 4)
            for (int i = 0; i < 4; i++)
                for (int c = 0; c < BLOCK; c++) sums[i][c] += from[(p + i) * BLOCK + c];
        for (; p < a->pixels; p++)
            for (int c = 0; c < BLOCK; c++) sums[0][c] += from[p * BLOCK + c];
        for (int c = 0; c < BLOCK; c++) to[c] = ((sums[0][c] + sums[1][c]) + (sums[2][c] + sums[3][c])) / (float)a->pixels;
    }
}

/// Input: float32 [N, blocks, …, 16]. Output: means, [N, blocks, 1, …, 16].
static qrt_status blocked_global_average_pool(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0);
    if (!qrt_is_tensor(x) || x->dtype != QRT_F32 || x->rank < 4 || x->dims[x->rank - 1] != BLOCK) return QRT_DECLINE;
    const int64_t pixels = qrt_product(x->dims, 2, x->rank - 1);
    if (pixels == 0) return QRT_DECLINE;
    int64_t dims[QRT_MAX_RANK];
    for (int i = 0; i < x->rank; i++) dims[i] = i < 2 || i == x->rank - 1 ? x->dims[i] : 1;
    qrt_status status = qrt_alloc(run, &out[0], QRT_F32, x->rank, dims);
    if (status != QRT_OK) return status;
    averaging a = {x->data, out[0].data, pixels, x->dims[0] * x->dims[1], qrt_max(1, TASK_POSITIONS / pixels)};
    const bool is_small = (double)pixels * (double)a.blocks < MIN_PARALLEL_TAPS / 4;
    qrt_parallel_for(is_small ? 1 : run->num_threads, qrt_ceil_div(a.blocks, a.blocks_per_task), average_blocks, &a);
    return QRT_OK;
}

const qrt_node_entry qrt_blocked_windows_nodes[] = {
    {"blocked_depthwise_conv", blocked_depthwise_conv},
    {"blocked_max_pool", blocked_max_pool},
    {"blocked_average_pool", blocked_average_pool},
    {"blocked_global_average_pool", blocked_global_average_pool},
    {NULL, NULL},
};
