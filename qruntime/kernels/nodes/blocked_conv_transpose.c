/// Transposed convolution of images whose channels lie in blocks; see ../conv_f32.h.
///
/// Output positions that leave one remainder modulo the strides, a phase, meet the same taps, and neighbours among them read neighbours of
/// the image: they are tiles of a convolution without strides, whose results lie a stride apart. So no zero is multiplied that a stride
/// inserted, nothing is interleaved, the weights of a phase lie together, and each output is one sum over ascending (block, tap, channel).
#include "../threads.h"
#include "blocked_epilogue.h"
#include "blocked_images.h"
#include "transposed.h"

enum { BLOCK = QRT_CHANNEL_BLOCK };

/// Positions of a phase that weights are read again for, and so few at least of a unit; weights that the second-level cache keeps
/// meanwhile, and the first one for tiles of fewer than WIDE positions, which read them too fast for the second; sums that those of the
/// next planes are added to, in floats; so few multiply-adds do not repay waking a thread.
enum { CHUNK = 96, LEAST_POSITIONS = 48, KEPT_FLOATS = 96 * 1024, NEAR_FLOATS = 6 * 1024, WIDE = 5, KEPT_SUMS = 64 * 1024, MIN_PARALLEL_WORK = 1 << 18 };

typedef struct {
    const qrt_transposed *g;
    const qrt_conv_weights *w;
    const qrt_blocked_epilogue *epilogue;
    const float **planes;                       ///< [images, planes of all parts]
    int64_t phases[3], grid[3], rows;           ///< how many there are, positions of the first, which has most, and rows of those
    int64_t chunk_rows, unit_rows, unit_images;
    bool weights_first;                         ///< all units of a group follow one another
    int64_t *lists, list_length, slots;
} job;

/// Of one phase along each dim: the first position, how many there are, how many taps they meet, and what the first position reads at each;
/// `base` is the number of the first of all its taps.
typedef struct {
    int64_t first[3], count[3], num_taps[3], base;
    int64_t *inputs[3];
    int64_t begin, end;                         ///< columns all taps of which are inside
} phase;

/// What a slot works with.
typedef struct {
    int64_t *places, *taps;                     ///< of a tile
    int64_t *lines, *line_taps;                 ///< rows of the image that a row reads, and the first tap of each
    int64_t *of_phase;
} memory;

static memory memory_of(const job *j, int64_t slot) {
    const int64_t taps = j->w->taps;
    int64_t *at = j->lists + slot * j->list_length;
    return (memory){at, at + taps * QRT_CONV_MAX_POSITIONS, at + taps * (QRT_CONV_MAX_POSITIONS + 1), at + taps * (QRT_CONV_MAX_POSITIONS + 2),
                    at + taps * (QRT_CONV_MAX_POSITIONS + 3)};
}

static phase phase_of(const job *j, int64_t number, const memory *m) {
    const qrt_transposed *g = j->g;
    phase p = {.first = {number / j->phases[2] / j->phases[1], number / j->phases[2] % j->phases[1], number % j->phases[2]}};
    int64_t *list = m->of_phase, met = 1;
    for (int i = 0; i < 3; list += g->window[i++]) {
        const int64_t from = p.first[i] + g->begin[i], remainder = from % g->stride[i];
        int64_t below = 0;
        p.count[i] = qrt_ceil_div(g->out[i] - p.first[i], g->stride[i]);
        p.inputs[i] = list;
        for (int64_t k = 0; k < g->window[i]; k++) {
            const int64_t its = k * g->dilation[i] % g->stride[i];
            below += its < remainder;
            if (its == remainder) p.inputs[i][p.num_taps[i]++] = (from - k * g->dilation[i]) / g->stride[i];
        }
        for (int d = i + 1; d < 3; d++) below *= g->window[d];
        p.base += below * met;
        met *= p.num_taps[i];
    }
    p.end = p.count[2];
    for (int64_t t = 0; t < p.num_taps[2]; t++) {
        p.begin = qrt_max(p.begin, -p.inputs[2][t]);
        p.end = qrt_min(p.end, g->in[2] - p.inputs[2][t]);
    }
    return p;
}

/// The rows of the image that a row of a phase reads; returns how many there are.
static int64_t find_lines(const job *j, const phase *p, int64_t slice, int64_t row, const memory *m) {
    const qrt_transposed *g = j->g;
    int64_t found = 0;
    for (int64_t a = 0; a < p->num_taps[0]; a++)
        for (int64_t b = 0; b < p->num_taps[1]; b++) {
            const int64_t d = p->inputs[0][a] + slice, h = p->inputs[1][b] + row;
            if (d < 0 || d >= g->in[0] || h < 0 || h >= g->in[1]) continue;
            m->lines[found] = (d * g->in[1] + h) * g->in[2];
            m->line_taps[found++] = p->base + (a * p->num_taps[1] + b) * p->num_taps[2];
        }
    return found;
}

/// Places and taps of `count` positions from a column on, or of the first of them in steps, but for taps that are outside at all of them.
static int64_t find_places(const job *j, const phase *p, int64_t lines, int64_t column, int count, bool in_steps, int64_t tap_floats, const memory *m) {
    const int64_t width = j->g->in[2];
    const int listed = in_steps ? 1 : count;
    int64_t found = 0;
    for (int64_t line = 0; line < lines; line++)
        for (int64_t t = 0; t < p->num_taps[2]; t++) {
            const int64_t first = p->inputs[2][t] + column;
            if (first + count <= 0 || first >= width) continue;
            for (int q = 0; q < listed; q++)
                m->places[found * listed + q] = first + q >= 0 && first + q < width ? (m->lines[line] + first + q) * BLOCK : QRT_OUTSIDE;
            m->taps[found++] = (m->line_taps[line] + t) * tap_floats;
        }
    return found;
}

/// Whether a row of a phase takes no more time in tiles with steps, and in others where there are none, than in others of nearly equal width.
static bool steps_pay(const job *j, const phase *p, int64_t blocks) {
    const int64_t wide = j->w->kernel.in_steps[blocks - 1], most = j->w->kernel.positions[blocks - 1];
    const int64_t tiles = (p->end - p->begin) / wide, behind = p->count[2] - p->begin - tiles * wide;
    return p->end - p->begin >= wide &&
           (qrt_ceil_div(p->begin, most) + qrt_ceil_div(behind, most)) * most + tiles * wide <= qrt_ceil_div(p->count[2], most) * most;
}

/// How many positions the next tile of a row takes, and whether they are in steps.
static int next_tile(const job *j, const phase *p, int64_t column, int64_t blocks, bool has_steps, bool *in_steps) {
    const int wide = j->w->kernel.in_steps[blocks - 1], most = j->w->kernel.positions[blocks - 1];
    *in_steps = has_steps && column >= p->begin && column + wide <= p->end;
    if (*in_steps) return wide;
    const int64_t gap = (has_steps && column < p->begin ? p->begin : p->count[2]) - column;
    return (int)qrt_ceil_div(gap, qrt_ceil_div(gap, most));
}

/// The planes of a part that one group of outputs adds.
typedef struct {
    int64_t image, block, blocks, tap_floats;
    bool accumulates, is_last;
    qrt_conv_sums sums;
    const float *next;                          ///< weights that come next, `plane_floats` from plane to plane,
    int64_t plane_floats, lines, asked;         ///< of which each has so many lines for the cache: the tiles ask for a share each
} addition;

/// Adds what some planes give to one row of a phase.
static void sum_row(const job *j, const phase *p, addition *a, int64_t row, const memory *m) {
    const qrt_transposed *g = j->g;
    const int64_t slice = row / j->grid[1], line = row % j->grid[1];
    if (slice >= p->count[0] || line >= p->count[1]) return;
    const int64_t lines = find_lines(j, p, slice, line, m), out_slice = p->first[0] + slice * g->stride[0], out_row = p->first[1] + line * g->stride[1];
    const int64_t row_at = (out_slice * g->out[1] + out_row) * g->out[2] + p->first[2];
    float *y = j->epilogue->y + a->image * j->epilogue->image + a->block * j->epilogue->plane;
    qrt_conv_sums *sums = &a->sums;
    const bool has_steps = steps_pay(j, p, a->blocks);
    bool went_in_steps = false;
    for (int64_t column = 0, count; column < p->count[2]; column += count) {
        bool in_steps;
        count = next_tile(j, p, column, a->blocks, has_steps, &in_steps);
        if (in_steps && went_in_steps)
            for (int64_t t = 0; t < sums->num_taps; t++) m->places[t] += count * BLOCK;
        else
            sums->num_taps = find_places(j, p, lines, column, (int)count, in_steps, a->tap_floats, m);
        went_in_steps = in_steps;
        sums->step = in_steps ? BLOCK : 0;
        if (a->lines > 0) sums->ahead = a->next + a->asked / a->lines * a->plane_floats + a->asked % a->lines * 16;
        if (a->asked < sums->num_planes * a->lines) a->asked += sums->num_planes * sums->num_taps * BLOCK;
        const int64_t at = row_at + column * g->stride[2];
        const qrt_conv_epilogue e = qrt_blocked_epilogue_at(j->epilogue, a->image, a->block, at);
        j->w->kernel.tile(sums, (int)count, (int)a->blocks, y + at * BLOCK, j->epilogue->plane, a->accumulates, a->is_last ? &e : NULL);
    }
}

/// Rows `first` … end − 1 of all phases, in a group of outputs of some images. Weights of many planes serve all images before those of the next are read.
static void sum_chunk(const job *j, int64_t group, int64_t image, int64_t end_image, int64_t first, int64_t end, const memory *m) {
    const qrt_conv_weights *w = j->w;
    const int64_t block = qrt_conv_first_block(w, group), blocks = qrt_conv_first_block(w, group + 1) - block, part = group / (w->groups / w->parts);
    const int64_t tap_floats = BLOCK * blocks * BLOCK, plane_floats = w->taps * tap_floats, phases = j->phases[0] * j->phases[1] * j->phases[2];
    const float *values = w->values + block * BLOCK * w->planes * w->taps * BLOCK;
    for (int64_t number = 0; number < phases; number++) {
        const int64_t next_base = phase_of(j, (number + 1) % phases, m).base;
        const phase p = phase_of(j, number, m);
        const int64_t num_taps = p.num_taps[0] * p.num_taps[1] * p.num_taps[2], floats = num_taps * w->planes * tap_floats;
        const int64_t tiles = qrt_ceil_div(p.count[2], w->kernel.positions[blocks - 1]);
        const int64_t near = p.count[2] < WIDE * tiles ? NEAR_FLOATS : KEPT_FLOATS;
        const int64_t kept = qrt_ceil_div(w->planes, qrt_min(qrt_max(1, qrt_ceil_div(floats, near)), w->planes));
        for (int64_t plane = 0; plane < w->planes; plane += kept) {
            const int64_t planes = qrt_min(kept, w->planes - plane);
            addition a = {
                .block = block, .blocks = blocks, .tap_floats = tap_floats, .accumulates = plane > 0, .is_last = plane + planes == w->planes,
                .plane_floats = plane_floats, .lines = num_taps * tap_floats / 16,
            };
            a.next = a.is_last ? values + next_base * tap_floats : values + (plane + planes) * plane_floats + p.base * tap_floats;
            a.sums = (qrt_conv_sums){
                .num_planes = planes, .num_floats = BLOCK, .num_last_floats = a.is_last ? w->dims[1] - (w->planes - 1) * BLOCK : BLOCK,
                .places = m->places, .taps = m->taps, .w = values + plane * plane_floats, .w_plane = plane_floats, .y_step = j->g->stride[2] * BLOCK,
            };
            for (a.image = image; a.image < end_image; a.image++) {
                a.sums.planes = j->planes + (a.image * w->parts + part) * w->planes + plane;
                for (int64_t row = first; row < end; row++) sum_row(j, &p, &a, row, m);
            }
        }
    }
}

/// What tiles leave undone in these rows of all phases.
static void finish_chunk(const job *j, int64_t group, int64_t image, int64_t first, int64_t end) {
    const qrt_transposed *g = j->g;
    if (!j->epilogue->finishes_after) return;
    for (int64_t block = qrt_conv_first_block(j->w, group); block < qrt_conv_first_block(j->w, group + 1); block++)
        for (int64_t row = first; row < end; row++) {
            const int64_t slice = row / j->grid[1] * g->stride[0], line = row % j->grid[1] * g->stride[1];
            const int64_t lines = qrt_min(j->phases[1], g->out[1] - line);
            for (int64_t d = slice; d < qrt_min(slice + j->phases[0], g->out[0]); d++)
                qrt_finish_block(j->epilogue, image, block, (d * g->out[1] + line) * g->out[2], lines * g->out[2]);
        }
}

static int64_t count_units(const job *j) {
    return j->w->groups * qrt_ceil_div(j->g->images, j->unit_images) * qrt_ceil_div(j->rows, j->unit_rows);
}

static void run_slot(void *context, int64_t slot) {
    const job *j = context;
    const memory m = memory_of(j, slot);
    const int64_t units = count_units(j), groups = j->w->groups, ranges = qrt_ceil_div(j->rows, j->unit_rows);
    const int64_t parts = qrt_ceil_div(j->g->images, j->unit_images);
    for (int64_t unit = units * slot / j->slots; unit < units * (slot + 1) / j->slots; unit++) {
        const int64_t group = j->weights_first ? unit / (parts * ranges) : unit % groups, rest = j->weights_first ? unit % (parts * ranges) : unit / groups;
        const int64_t image = rest / ranges * j->unit_images, end_image = qrt_min(image + j->unit_images, j->g->images);
        const int64_t first = rest % ranges * j->unit_rows, last = qrt_min(first + j->unit_rows, j->rows);
        for (int64_t row = first; row < last; row += j->chunk_rows) {
            const int64_t end = qrt_min(row + j->chunk_rows, last);
            sum_chunk(j, group, image, end_image, row, end, &m);
            for (int64_t i = image; i < end_image; i++) finish_chunk(j, group, i, row, end);
        }
    }
}

/// Says how the work is divided: what is larger, the weights of all groups or an image, is read once, by one thread.
static void divide(job *j, int threads) {
    const qrt_transposed *g = j->g;
    const qrt_conv_weights *w = j->w;
    const int64_t wanted = threads > 1 ? 8 * (int64_t)threads : 1, positions = j->rows * j->grid[2];
    const int64_t sums = g->out[0] * g->out[1] * g->out[2] * qrt_ceil_div(w->blocks, w->groups) * BLOCK;
    j->weights_first = w->base.k * w->base.n > g->channels * g->in[0] * g->in[1] * g->in[2];
    j->unit_images = j->weights_first ? qrt_max(1, qrt_min(g->images, KEPT_SUMS / qrt_max(1, sums))) : 1;
    const int64_t units = qrt_ceil_div(g->images, j->unit_images) * w->groups;
    const int64_t ranges = qrt_max(1, qrt_min(qrt_ceil_div(wanted, units), positions / LEAST_POSITIONS));
    j->unit_rows = qrt_ceil_div(j->rows, qrt_min(ranges, j->rows));
    if (!j->weights_first) j->unit_rows = qrt_min(j->unit_rows, qrt_max(1, CHUNK / j->grid[2]));
    j->chunk_rows = j->unit_images > 1 ? j->unit_rows : qrt_max(1, CHUNK / j->grid[2]);
    j->slots = qrt_min(wanted, count_units(j));
}

static qrt_status convolve(job *j, const qrt_node *node, qrt_run *run, const qrt_tensor *const *in) {
    const qrt_transposed *g = j->g;
    const qrt_conv_weights *w = j->w;
    j->rows = 1;
    for (int i = 0; i < 3; i++) {
        j->phases[i] = qrt_min(g->stride[i], g->out[i]);
        j->grid[i] = qrt_ceil_div(g->out[i], g->stride[i]);
        j->rows *= i < 2 ? j->grid[i] : 1;
    }
    const double work = (double)g->images * (double)g->maps * (double)w->base.k * (double)g->in[0] * (double)g->in[1] * (double)g->in[2];
    const int threads = work < MIN_PARALLEL_WORK ? 1 : run->num_threads;
    divide(j, threads);
    j->list_length = w->taps * (QRT_CONV_MAX_POSITIONS + 3) + g->window[0] + g->window[1] + g->window[2];
    int64_t lists, planes, numbers;
    size_t bytes;
    if (__builtin_mul_overflow(j->slots, j->list_length, &lists) || __builtin_mul_overflow(g->images, w->planes * w->parts, &planes) ||
        __builtin_add_overflow(lists, planes, &numbers) || __builtin_mul_overflow((size_t)numbers, sizeof(int64_t), &bytes))
        return QRT_NO_MEMORY;
    qrt_buffer *scratch = qrt_scratch(run, bytes);
    if (!scratch) return QRT_NO_MEMORY;
    j->lists = scratch->data;
    j->planes = (const float **)(j->lists + lists);
    qrt_list_planes(node, in, g->images, g->in[0] * g->in[1] * g->in[2] * BLOCK, j->planes);
    qrt_parallel_for(threads, j->slots, run_slot, j);
    qrt_scratch_free(run, scratch);
    return QRT_OK;
}

/// ints: as those of conv_transpose. floats: of the activation. packed: qrt_conv_weights of blocks, [M, C / group, …], with the bias;
/// its taps k are in the order of k · dilation modulo stride, of the first dim, the second, the third, then of k.
/// Inputs: float32 x [N, ⌈C / 16⌉, …, 16]; optional residual and addend of the shape of the output, [N, ⌈M / 16⌉, …, 16].
static qrt_status blocked_conv_transpose(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_conv_weights *w = node->packed[0];
    qrt_tensor image;
    qrt_transposed g;
    if (w->kind != QRT_CONV_BLOCKS || node->num_inputs > 3 || !qrt_measure_image(node, in, w, &image)) return QRT_DECLINE;
    if (!qrt_measure_transposed(node, &image, w->base.k * w->base.n, &g) || g.groups != w->parts || g.maps != w->base.n) return QRT_DECLINE;
    for (int i = 0; i < w->rank - 2; i++)
        if (g.window[5 - w->rank + i] != w->dims[2 + i]) return QRT_DECLINE;
    qrt_convolution made = {.images = g.images};
    memcpy(made.out, g.out, sizeof g.out);
    if (!qrt_num_elements(3, g.out, &made.positions)) return QRT_DECLINE;
    qrt_blocked_epilogue epilogue;
    const qrt_status status = qrt_begin_blocked(node, run, in, w->rank, w->blocks, w->bias, &made, &out[0], &epilogue);
    if (status != QRT_OK || out[0].size == 0) return status;
    job j = {.g = &g, .w = w, .epilogue = &epilogue};
    return convolve(&j, node, run, in);
}

const qrt_node_entry qrt_blocked_conv_transpose_nodes[] = {
    {"blocked_conv_transpose", blocked_conv_transpose},
    {NULL, NULL},
};
