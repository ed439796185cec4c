/// Convolution of images whose channels lie in blocks, each output channel of all of them; see ../conv_f32.h.
///
/// Output positions are taken in chunks, and a chunk by all weights of a group of output blocks, as many of them at a time as the
/// second-level cache keeps while the tiles of the chunk pass by. A unit of work is some positions by some groups.
#include "../threads.h"
#include "blocked_epilogue.h"
#include "blocked_images.h"
#include "convolution.h"

enum { BLOCK = QRT_CHANNEL_BLOCK };

/// Positions of a chunk, and so few at least of a unit that has all groups; weights that are read again for every tile of a chunk, and
/// sums that weights of the next planes are added to, and what groups read of an image one after the other, in floats; so few multiply-adds and weights do not repay waking a thread.
enum { CHUNK = 96, LEAST_POSITIONS = 48, KEPT_FLOATS = 96 * 1024, KEPT_SUMS = 64 * 1024, UNIT_FLOATS = 128 * 1024, MIN_PARALLEL_WORK = 1 << 18, MIN_PARALLEL_WEIGHTS = 1 << 16 };

typedef struct job job;
struct job {
    const qrt_convolution *g;
    const qrt_conv_weights *w;
    const qrt_blocked_epilogue *epilogue;
    int64_t (*find)(const job *j, int64_t at, int count, int64_t *places, int64_t *taps, int64_t tap_floats);
    const float **planes;                ///< [images, planes]
    int64_t x_image;                     ///< floats
    bool patches;                        ///< the image is not in blocks, and has padding: tiles that meet it read a copy of what they cover
    int64_t step, row, steps_begin, steps_end;  ///< outputs of a row are `row`; those between begin and end lie in steps, none outside
    int64_t unit_groups, unit_images, unit_positions;  ///< all groups of one image, or one of some
    int64_t chunk, kept_planes;
    int64_t tile_groups;                 ///< that a tile serves one after the other: one, or all of a unit
    bool pays_steps[QRT_CONV_MAX_BLOCKS];  ///< for tiles of 1, 2, … blocks
    int64_t *lists;                      ///< for each slot: places, taps, planes of a patch, and the patch
    int64_t list_length, slots;
};

/// The output position `at` of an image.
typedef struct {
    int64_t at[3];
} position;

static position position_of(const qrt_convolution *g, int64_t at) {
    return (position){{at / g->out[2] / g->out[1], at / g->out[2] % g->out[1], at % g->out[2]}};
}

static void advance(const qrt_convolution *g, position *p) {
    if (++p->at[2] < g->out[2]) return;
    p->at[2] = 0;
    if (++p->at[1] < g->out[1]) return;
    p->at[1] = 0;
    p->at[0]++;
}

/// Places and taps of `count` positions from `first` on in an image in blocks, but for taps that are outside at all of them, unless their
/// products with zeros would show. Returns how many taps there are.
static int64_t find_places(const job *j, int64_t at, int count, int64_t *places, int64_t *taps, int64_t tap_floats) {
    const qrt_convolution *g = j->g;
    position first = position_of(g, at);
    int64_t begin[3][QRT_CONV_MAX_POSITIONS], rows[QRT_CONV_MAX_POSITIONS], found = 0, tap = 0;
    for (int p = 0; p < count; p++, advance(g, &first))
        for (int i = 0; i < 3; i++) begin[i][p] = first.at[i] * g->stride[i] - g->begin[i];
    for (int64_t d = 0; d < g->window[0]; d++)
        for (int64_t h = 0; h < g->window[1]; h++, tap += g->window[2]) {
            bool any_row = !j->w->is_finite;
            for (int p = 0; p < count; p++) {
                const int64_t slice = begin[0][p] + d * g->dilation[0], row = begin[1][p] + h * g->dilation[1];
                const bool inside = slice >= 0 && slice < g->in[0] && row >= 0 && row < g->in[1];
                rows[p] = inside ? (slice * g->in[1] + row) * g->in[2] : QRT_OUTSIDE;
                any_row = any_row || inside;
            }
            for (int64_t v = 0; v < g->window[2] && any_row; v++) {
                bool is_read = !j->w->is_finite;
                for (int p = 0; p < count; p++) {
                    const int64_t column = begin[2][p] + v * g->dilation[2];
                    const bool inside = rows[p] != QRT_OUTSIDE && column >= 0 && column < g->in[2];
                    places[found * count + p] = inside ? (rows[p] + column) * BLOCK : QRT_OUTSIDE;
                    is_read = is_read || inside;
                }
                taps[found] = (tap + v) * tap_floats;
                found += is_read;
            }
        }
    return found;
}

/// The same where outputs stand for the pixels at their places.
static int64_t find_pixels(const job *j, int64_t at, int count, int64_t *places, int64_t *taps, int64_t tap_floats) {
    (void)j, (void)tap_floats;
    for (int p = 0; p < count; p++) places[p] = (at + p) * BLOCK;
    taps[0] = 0;
    return 1;
}

/// The same in an image that is not in blocks, of positions none of which meets padding: a tap is a row of the window.
static int64_t find_rows(const job *j, int64_t at, int count, int64_t *places, int64_t *taps, int64_t tap_floats) {
    const qrt_convolution *g = j->g;
    position first = position_of(g, at);
    int64_t found = 0;
    for (int p = 0; p < count; p++, advance(g, &first)) {
        const int64_t slice = first.at[0] * g->stride[0] - g->begin[0], row = first.at[1] * g->stride[1] - g->begin[1];
        places[p] = (slice * g->in[1] + row) * g->in[2] + first.at[2] * g->stride[2] - g->begin[2];
    }
    for (int64_t d = 0; d < g->window[0]; d++)
        for (int64_t h = 0; h < g->window[1]; h++, found++) {
            const int64_t offset = (d * g->dilation[0] * g->in[1] + h * g->dilation[1]) * g->in[2];
            for (int p = 0; p < count && found > 0; p++) places[found * count + p] = places[p] + offset;
            taps[found] = found * tap_floats;
        }
    return found;
}

/// Whether `size` pixels of axis i from output position `at` on, as its first tap has them, and all other taps are inside.
static bool is_inside(const qrt_convolution *g, int i, int64_t at, int64_t size) {
    const int64_t first = at * g->stride[i] - g->begin[i];
    return first >= 0 && first + (g->window[i] - 1) * g->dilation[i] + size <= g->in[i];
}

/// Whether a tile reads padding.
static bool meets_padding(const job *j, int64_t at, int count, bool in_steps) {
    const qrt_convolution *g = j->g;
    position p = position_of(g, at);
    for (int i = 0; i < (in_steps ? 1 : count); i++, advance(g, &p))
        if (!is_inside(g, 0, p.at[0], 1) || !is_inside(g, 1, p.at[1], 1) || !is_inside(g, 2, p.at[2], in_steps ? (count - 1) * g->stride[2] + 1 : 1))
            return true;
    return false;
}

/// What `find` gives for a tile that meets padding: in a copy of all it reads, whose planes are put behind the taps. Outputs of one row share
/// the pixels of theirs.
static int64_t find_in_patch(const job *j, const float *const *planes, int64_t num_planes, int64_t at, int count, bool in_steps, int64_t *places, int64_t *taps,
                             int64_t tap_floats) {
    const qrt_convolution *g = j->g;
    const qrt_conv_weights *w = j->w;
    const int listed = in_steps ? 1 : count;
    const float **copies = (const float **)(taps + w->taps);
    float *to = (float *)(copies + num_planes);
    position first = position_of(g, at);
    int64_t pitch = 0, begins[QRT_CONV_MAX_POSITIONS + 1];
    for (int p = 0, n; p < count; p += n) {  // begins: of rows of outputs in a line of the patch
        n = (int)qrt_min(count - p, g->out[2] - (p ? 0 : first.at[2]));
        for (int i = 0; i < n && p + i < listed; i++) begins[p + i] = pitch + i * g->stride[2];
        pitch += (n - 1) * g->stride[2] + w->floats;
    }
    memset(to, 0, (size_t)(num_planes * w->taps * pitch) * sizeof *to);
    for (int64_t i = 0; i < num_planes; i++) copies[i] = to + i * w->taps * pitch;
    for (int64_t t = 0; t < w->taps; t++) {
        taps[t] = t * tap_floats;
        for (int p = 0; p < listed; p++) places[t * listed + p] = t * pitch + begins[p];
    }
    for (int p = 0, n; p < count; p += n, first.at[2] += n - 1, advance(g, &first)) {
        n = (int)qrt_min(count - p, g->out[2] - first.at[2]);
        const int64_t column = first.at[2] * g->stride[2] - g->begin[2], width = (n - 1) * g->stride[2] + w->floats;
        const int64_t begin = qrt_max(0, -column), end = qrt_min(width, g->in[2] - column);
        for (int64_t t = 0; t < w->taps && end > begin; t++) {
            const int64_t slice = first.at[0] * g->stride[0] - g->begin[0] + t / g->window[1] * g->dilation[0];
            const int64_t row = first.at[1] * g->stride[1] - g->begin[1] + t % g->window[1] * g->dilation[1];
            if (slice < 0 || slice >= g->in[0] || row < 0 || row >= g->in[1]) continue;
            const int64_t line = (slice * g->in[1] + row) * g->in[2] + column;
            float *at_tap = to + t * pitch + begins[p];
            for (int64_t i = 0; i < num_planes; i++)
                memcpy(at_tap + i * w->taps * pitch + begin, planes[i] + line + begin, (size_t)(end - begin) * sizeof *to);
        }
    }
    return w->taps;
}

/// So few positions do not repay reading weights: what a row leaves of them goes with the tile before, halved.
enum { FEW_POSITIONS = 3 };

/// How many of `left` positions the next tile of a chunk takes, from a column on, and whether they are in steps.
static int next_tile(const job *j, int64_t column, int64_t left, int64_t blocks, bool *in_steps) {
    const int wide = j->w->kernel.in_steps[blocks - 1], most = j->w->kernel.positions[blocks - 1];
    int64_t gap = left;
    *in_steps = false;
    if (j->pays_steps[blocks - 1]) {
        const int64_t behind = column + wide, next_row = j->row + j->steps_begin;
        *in_steps = column >= j->steps_begin && behind <= j->steps_end && wide <= left;
        const bool is_last = behind + wide > j->steps_end;
        if (*in_steps && is_last && next_row - behind <= FEW_POSITIONS && next_row > behind && left > wide) *in_steps = false;
        if (*in_steps) return wide;
        gap = qrt_min(gap, column < j->steps_begin ? j->steps_begin - column : next_row - column);
    }
    // Tiles of nearly equal width: 8 positions are 4 + 4, not 6 + 2.
    return (int)qrt_ceil_div(gap, qrt_ceil_div(gap, most));
}

/// The tile of the first group, `sums`, for those that follow it, in a function of its own: most convolutions do without, and lack registers.
static __attribute__((noinline)) void sum_further_groups(const job *j, qrt_conv_sums sums, int64_t image, int64_t groups, int64_t blocks, int64_t at, int count) {
    const qrt_conv_weights *w = j->w;
    const float *const *planes = sums.planes;
    const int64_t group_floats = w->planes * sums.w_plane, y_plane = j->epilogue->plane;
    float *y = j->epilogue->y + image * j->epilogue->image + at * BLOCK;
    for (int64_t i = 1; i < groups; i++) {
        sums.planes = planes + i / (w->groups / w->parts) * w->planes;
        sums.w += group_floats;
        sums.ahead += group_floats;
        const qrt_conv_epilogue e = qrt_blocked_epilogue_at(j->epilogue, image, i * blocks, at);
        w->kernel.tile(&sums, count, (int)blocks, y + i * blocks * y_plane, y_plane, false, &e);
    }
}

/// Adds what `kept_planes` planes from `plane` on give to a chunk of `groups` groups, as many blocks each, which is finished with the last of them.
static void sum_chunk(const job *j, int64_t image, int64_t group, int64_t groups, int64_t plane, int64_t first, int64_t end, int64_t *lists) {
    const qrt_conv_weights *w = j->w;
    const int64_t block = qrt_conv_first_block(w, group), blocks = qrt_conv_first_block(w, group + 1) - block;
    const int64_t tap_floats = w->floats * blocks * BLOCK, plane_floats = w->taps * tap_floats;
    const float *values = w->values + block * BLOCK * w->planes * w->taps * w->floats + plane * plane_floats;
    float *y = j->epilogue->y + image * j->epilogue->image + block * j->epilogue->plane;
    int64_t *places = lists, *taps = lists + w->taps * QRT_CONV_MAX_POSITIONS;
    const int64_t y_plane = j->epilogue->plane, planes = qrt_min(j->kept_planes, w->planes - plane);
    // The first tiles fetch a share each of the weights that come next: of memory, they take as long as the products.
    const int64_t kept_floats = planes * plane_floats, share = kept_floats / blocks;
    const bool is_last = plane + planes == w->planes;
    qrt_conv_sums sums = {
        .planes = j->planes + (image * w->parts + group / (w->groups / w->parts)) * w->planes + plane, .num_planes = planes, .num_floats = w->floats,
        .num_last_floats = is_last && w->kind == QRT_CONV_BLOCKS ? w->dims[1] - (w->planes - 1) * BLOCK : w->floats,
        .places = places, .taps = taps, .w = values, .w_plane = plane_floats, .y_step = BLOCK,
    };
    const float *const *image_planes = sums.planes;
    for (int64_t at = first, column = first % j->row, tile = 0; at < end; tile++) {
        const bool goes_on = sums.step && column > 0 && sums.planes == image_planes;
        bool in_steps;
        const int count = next_tile(j, column, end - at, blocks, &in_steps);
        sums.planes = image_planes;
        if (j->patches && (in_steps && goes_on ? !is_inside(j->g, 2, column, (count - 1) * j->step + 1) : meets_padding(j, at, count, in_steps))) {
            sums.num_taps = find_in_patch(j, image_planes, planes, at, count, in_steps, places, taps, tap_floats);
            sums.planes = (const float *const *)(taps + w->taps);
        } else if (in_steps && goes_on)  // in the same row, behind the tile before
            for (int64_t t = 0; t < sums.num_taps; t++) places[t] += count * j->step;
        else
            sums.num_taps = j->find(j, at, in_steps ? 1 : count, places, taps, tap_floats);
        sums.step = in_steps ? j->step : 0;
        sums.ahead = values + kept_floats + qrt_min(tile, blocks - 1) * share;
        const qrt_conv_epilogue e = qrt_blocked_epilogue_at(j->epilogue, image, block, at);
        w->kernel.tile(&sums, count, (int)blocks, y + at * BLOCK, y_plane, plane > 0, is_last ? &e : NULL);
        if (groups > 1) sum_further_groups(j, sums, image, groups, blocks, at, count);
        at += count;
        for (column += count; column >= j->row;) column -= j->row;
    }
    if (!is_last) return;
    for (int64_t b = block; b < block + groups * blocks; b++) qrt_finish_block(j->epilogue, image, b, first, end - first);
}

/// How many units there are. They follow one another along an image, then from images to images, then from groups to groups.
static int64_t count_units(const job *j) {
    return j->w->groups / j->unit_groups * qrt_ceil_div(j->g->images, j->unit_images) * qrt_ceil_div(j->g->positions, j->unit_positions);
}

static void run_unit(const job *j, int64_t unit, int64_t *lists) {
    const int64_t ranges = qrt_ceil_div(j->g->positions, j->unit_positions), parts = qrt_ceil_div(j->g->images, j->unit_images);
    const int64_t group = unit / ranges / parts * j->unit_groups, image = unit / ranges % parts * j->unit_images;
    const int64_t first = unit % ranges * j->unit_positions, end = qrt_min(first + j->unit_positions, j->g->positions);
    if (j->unit_images == 1) {
        for (int64_t g = group; g < group + j->unit_groups; g += j->tile_groups)
            for (int64_t at = first; at < end; at += j->chunk)
                for (int64_t plane = 0; plane < j->w->planes; plane += j->kept_planes)
                    sum_chunk(j, image, g, j->tile_groups, plane, at, qrt_min(at + j->chunk, end), lists);
        return;
    }
    // Weights of many planes serve all images before those of the next are read, while sums stay in the cache as well.
    for (int64_t plane = 0; plane < j->w->planes; plane += j->kept_planes)
        for (int64_t i = image; i < qrt_min(image + j->unit_images, j->g->images); i++)
            for (int64_t at = first; at < end; at += j->chunk) sum_chunk(j, i, group, 1, plane, at, qrt_min(at + j->chunk, end), lists);
}

static void run_slot(void *context, int64_t slot) {
    const job *j = context;
    const int64_t units = count_units(j);
    for (int64_t unit = units * slot / j->slots; unit < units * (slot + 1) / j->slots; unit++)
        run_unit(j, unit, j->lists + slot * j->list_length);
}

/// Where outputs of a row lie in steps and no tap of theirs is outside of the width.
static void set_steps(job *j) {
    const qrt_convolution *g = j->g;
    j->row = g->out[2];
    j->step = g->stride[2] * (j->w->kind == QRT_CONV_COLUMNS ? 1 : BLOCK);
#define IS_STEP(N) j->step != N &&
    if (QRT_CONV_STEPS(IS_STEP) true) return;
    if (j->w->kind == QRT_CONV_COLUMNS) {
        j->steps_end = j->row;
        return;
    }
    qrt_find_whole_columns(g, &j->steps_begin, &j->steps_end);
}

/// What tiles of some positions each cost that have a place for each, in the time of the products of a full one. A tile of fewer reads as
/// many weights; places are found for every tap, as long as ten products take, and looked at for every tap of every plane.
static double narrow_tiles(const job *j, int64_t blocks, double tiles, double positions) {
    const qrt_conv_weights *w = j->w;
    const double finding = 10.0 / (double)(w->planes * w->floats * blocks), looking = (w->taps == 1 ? 0.3 : 0.05) / (double)blocks;
    const double share = positions / w->kernel.positions[blocks - 1];
    return tiles * (1 + finding + looking) * (share < 0.8 ? 0.8 : share);
}

/// Whether a row of outputs costs less in tiles with steps, and in others where there are none, than in others that go on from row to row.
static bool steps_pay(const job *j, int64_t blocks) {
    const int wide = j->w->kernel.in_steps[blocks - 1], most = j->w->kernel.positions[blocks - 1];
    int64_t tiles = (j->steps_end - j->steps_begin) / wide, rest = j->row - tiles * wide;
    if (tiles > 1 && rest > 0 && rest <= FEW_POSITIONS) tiles--, rest += wide;
    const double others = (double)qrt_ceil_div(rest, most), in_steps = (double)(tiles * wide) / most;
    const double between = rest ? narrow_tiles(j, blocks, others, (double)rest / others) : 0;
    return tiles > 0 && in_steps + between <= narrow_tiles(j, blocks, (double)j->row / most, most);
}

/// About so many positions: chunks end where rows do, or tiles where an image is one row.
static int64_t whole_rows(const job *j, int64_t positions) {
    const int64_t wide = j->w->kernel.in_steps[qrt_ceil_div(j->w->blocks, j->w->groups) - 1];
    if (j->row == j->g->positions) return qrt_ceil_div(positions, wide) * wide;
    if (j->row > 2 * positions) return qrt_ceil_div(j->row, qrt_ceil_div(j->row, positions));
    return qrt_max(1, (positions + j->row / 2) / j->row) * j->row;
}

/// Says how the work is divided: into units large enough to use weights again, and small enough that threads end together. What is
/// larger, the weights of all groups or an image, is read once, by one thread.
static void divide(job *j, int threads) {
    const qrt_conv_weights *w = j->w;
    for (int blocks = 1; blocks <= w->kernel.blocks; blocks++) j->pays_steps[blocks - 1] = w->is_finite && steps_pay(j, blocks);
    const int64_t images = j->g->images, positions = j->g->positions, wanted = threads > 1 ? 8 * (int64_t)threads : 1;
    const int64_t group_blocks = qrt_ceil_div(w->blocks, w->groups), group_floats = w->planes * w->taps * w->floats * group_blocks * BLOCK;
    int64_t ranges = qrt_min(qrt_ceil_div(wanted, images), qrt_ceil_div(positions, LEAST_POSITIONS));
    j->unit_groups = w->groups;
    j->unit_images = 1;
    if (w->groups > 1) ranges = qrt_max(ranges, qrt_min(qrt_ceil_div(j->x_image, UNIT_FLOATS), qrt_ceil_div(positions, LEAST_POSITIONS)));
    if (w->base.k * w->base.n > j->x_image || (threads > 1 && images * ranges < 2 * threads)) {
        const int64_t parts = qrt_ceil_div(wanted / 2, w->groups);
        j->unit_groups = 1;
        j->unit_images = qrt_max(1, qrt_min(images / qrt_max(1, parts), KEPT_SUMS / (positions * group_blocks * BLOCK)));
        ranges = qrt_max(1, qrt_min(positions, parts / images));
    }
    j->unit_positions = whole_rows(j, qrt_ceil_div(positions, ranges));
    j->chunk = whole_rows(j, qrt_ceil_div(j->unit_positions, qrt_ceil_div(j->unit_positions, CHUNK)));
    j->slots = qrt_min(wanted, count_units(j));
    // Where the cache keeps all weights, places of windows are found once for all groups.
    j->tile_groups = w->taps > 1 && w->blocks % w->groups == 0 && group_floats <= KEPT_FLOATS / j->unit_groups ? j->unit_groups : 1;
    j->kept_planes = qrt_ceil_div(w->planes, qrt_min(qrt_ceil_div(group_floats, KEPT_FLOATS), w->planes));
}

/// Numbers of 8 bytes that the lists of a slot have; false when there are too many.
static bool count_lists(const job *j, int64_t *numbers) {
    const qrt_conv_weights *w = j->w;
    int64_t wide = 0, floats = 0, taps;
    for (int i = 0; i < w->kernel.blocks; i++) wide = qrt_max(wide, w->kernel.in_steps[i]);
    if (j->patches) {
        int64_t width;
        if (__builtin_mul_overflow(w->floats, QRT_CONV_MAX_POSITIONS, &width) ||
            __builtin_add_overflow(width, qrt_max(wide, QRT_CONV_MAX_POSITIONS) * qrt_min(j->g->stride[2], j->g->padded[2]), &width) ||
            !qrt_num_elements(3, (const int64_t[]){w->planes, w->taps, width}, &floats))
            return false;
        floats = floats / 2 + w->planes + 1;
    }
    return !__builtin_mul_overflow(w->taps, QRT_CONV_MAX_POSITIONS + 1, &taps) && !__builtin_add_overflow(taps, floats, numbers);
}

static qrt_status convolve(job *j, const qrt_node *node, qrt_run *run, const qrt_tensor *const *in) {
    const qrt_convolution *g = j->g;
    const qrt_conv_weights *w = j->w;
    const double work = (double)g->images * (double)g->maps * (double)w->base.k * (double)g->positions;
    const bool is_small = work < MIN_PARALLEL_WORK && w->base.k * w->base.n < MIN_PARALLEL_WEIGHTS;
    const int threads = is_small ? 1 : run->num_threads;
    divide(j, threads);
    int64_t lists, planes, numbers;
    size_t bytes;
    if (!count_lists(j, &j->list_length) || __builtin_mul_overflow(j->slots, j->list_length, &lists) ||
        __builtin_mul_overflow(g->images, w->planes * w->parts, &planes) || __builtin_add_overflow(lists, planes, &numbers) ||
        __builtin_mul_overflow((size_t)numbers, sizeof(int64_t), &bytes))
        return QRT_NO_MEMORY;
    qrt_buffer *scratch = qrt_scratch(run, bytes);
    if (!scratch) return QRT_NO_MEMORY;
    j->lists = scratch->data;
    j->planes = (const float **)(j->lists + lists);
    qrt_list_planes(node, in, g->images, g->in[0] * g->in[1] * g->in[2] * (w->kind == QRT_CONV_COLUMNS ? 1 : BLOCK), j->planes);
    qrt_parallel_for(threads, j->slots, run_slot, j);
    qrt_scratch_free(run, scratch);
    return QRT_OK;
}

/// ints: as those of conv. floats: of the activation. packed: qrt_conv_weights with the bias, but depthwise ones.
/// Inputs: float32 x, in blocks [N, ⌈C / 16⌉, …, 16], or [N, C, …] for weights of columns; optional residual and addend of the
/// shape of the output, [N, ⌈M / 16⌉, …, 16]; further images in blocks, whose channels follow those of x.
static qrt_status blocked_conv(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_conv_weights *w = node->packed[0];
    const bool in_columns = w->kind == QRT_CONV_COLUMNS;
    qrt_tensor image;
    qrt_convolution g;
    if ((!in_columns && w->kind != QRT_CONV_BLOCKS) || !qrt_measure_image(node, in, w, &image)) return QRT_DECLINE;
    if (!qrt_measure_convolution(node->ints, node->num_ints, &image, w->rank, w->dims, &g)) return QRT_DECLINE;
    if (g.groups != w->parts || (in_columns && g.dilation[2] != 1)) return QRT_DECLINE;

    qrt_blocked_epilogue epilogue;
    const qrt_status status = qrt_begin_blocked(node, run, in, w->rank, w->blocks, w->bias, &g, &out[0], &epilogue);
    if (status != QRT_OK || out[0].size == 0) return status;
    job j = {.g = &g, .w = w, .epilogue = &epilogue, .x_image = g.channels * g.in[0] * g.in[1] * g.in[2]};
    j.patches = in_columns && memcmp(g.padded, g.in, sizeof g.in);
    set_steps(&j);
    bool is_pointwise = w->taps == 1 && g.positions == g.in[0] * g.in[1] * g.in[2] && !memcmp(g.padded, g.in, sizeof g.in);
    if (is_pointwise) {  // of an axis with a stride there is one pixel only
        j.step = in_columns ? 1 : BLOCK;
        j.steps_begin = 0;
        j.row = j.steps_end = g.positions;
    }
    j.find = in_columns ? find_rows : is_pointwise ? find_pixels : find_places;
    return convolve(&j, node, run, in);
}

const qrt_node_entry qrt_blocked_conv_nodes[] = {
    {"blocked_conv", blocked_conv},
    {NULL, NULL},
};
