/// Convolution with windows of 3 × 3 of images whose channels lie in blocks, by Winograd's products; see ../conv_f32.h.
///
/// Outputs are made 2 × 2 at a time, which is called a quad here. Quads, numbered from image to image, are taken in chunks, whose pixels are
/// spread into 16 matrices [quads, C] that stay in the second-level cache. For each group of output blocks these are multiplied by 16
/// matrices of weights with the tiles of every other convolution, and the 16 results are collected. A unit of work is some quads by some
/// groups.
#include "../threads.h"
#include "blocked_epilogue.h"
#include "blocked_images.h"
#include "convolution.h"

enum { BLOCK = QRT_CHANNEL_BLOCK, PRODUCTS = 16, OUTPUTS = 4 };

/// Floats of a chunk's matrices and results; quads of a unit at least; so few multiply-adds do not repay waking a thread.
enum { KEPT_FLOATS = 384 * 1024, LEAST_QUADS = 24, MIN_PARALLEL_WORK = 1 << 18 };

/// Weights of more floats come from far for every chunk: so many quads share them at least.
enum { LARGE_WEIGHTS = 512 * 1024, SHARING_QUADS = 64 };

typedef struct {
    const qrt_convolution *g;
    const qrt_conv_weights *w;
    const qrt_blocked_epilogue *epilogue;
    const float **planes;                     ///< [images, planes]
    int64_t quads, row;                       ///< of an image, and of a row of one
    int64_t chunk, unit_quads, unit_groups;
    int64_t v_stride, m_stride;               ///< floats between two matrices
    char *scratch;
    size_t slot_bytes;
    int64_t slots;
} job;

/// The memory of one slot.
typedef struct {
    float *v, *m;              ///< [16, planes, chunk, 16], [16, blocks of a group, chunk, 16]
    const float **planes;      ///< [planes], of one matrix of v
    int64_t *pixels, *outputs; ///< [chunk, 16], [chunk, 4]: their offsets
} memory;

/// Quads of a chunk that are of one image.
typedef struct {
    int64_t image, first, count;  ///< `first` of the image,
    int64_t at;                   ///< which is that one of the chunk
} part;

/// The part of a chunk that begins with its quad `at`.
static part part_of(const job *j, int64_t first, int64_t count, int64_t at) {
    const int64_t image = (first + at) / j->quads, own = (first + at) % j->quads;
    return (part){image, own, qrt_min(count - at, j->quads - own), at};
}

/// Where the pixels and the outputs of a chunk are, in their image.
static void find_places(const job *j, int64_t first, int64_t count, const memory *to) {
    const qrt_convolution *g = j->g;
    for (int64_t q = 0; q < count; q++) {
        const int64_t own = (first + q) % j->quads, top = own / j->row * 2, left = own % j->row * 2;
        for (int i = 0; i < PRODUCTS; i++) {
            const int64_t row = top + i / 4 - g->begin[1], column = left + i % 4 - g->begin[2];
            const bool inside = row >= 0 && row < g->in[1] && column >= 0 && column < g->in[2];
            to->pixels[q * PRODUCTS + i] = inside ? (row * g->in[2] + column) * BLOCK : QRT_OUTSIDE;
        }
        for (int i = 0; i < OUTPUTS; i++) {
            const int64_t row = top + i / 2, column = left + i % 2;
            const bool inside = row < g->out[1] && column < g->out[2];
            to->outputs[q * OUTPUTS + i] = inside ? (row * g->out[2] + column) * BLOCK : QRT_OUTSIDE;
        }
    }
}

/// Product i of a chunk with a group of `blocks` output blocks.
static void multiply(const job *j, int i, const float *w, int blocks, int64_t count, const memory *at) {
    const qrt_conv_weights *weights = j->w;
    const int64_t matrix = weights->planes * BLOCK * blocks * BLOCK;
    for (int64_t p = 0; p < weights->planes; p++) at->planes[p] = at->v + i * j->v_stride + p * count * BLOCK;
    int64_t places[QRT_CONV_MAX_POSITIONS], tap = 0;
    qrt_conv_sums sums = {
        .planes = at->planes, .num_planes = weights->planes, .num_floats = BLOCK,
        .num_last_floats = weights->channels - (weights->planes - 1) * BLOCK, .num_taps = 1, .places = places, .taps = &tap,
        .w = w + i * matrix, .w_plane = BLOCK * blocks * BLOCK, .y_step = BLOCK,
    };
    const int wide = weights->kernel.in_steps[blocks - 1], most = weights->kernel.positions[blocks - 1];
    for (int64_t q = 0, tile = 0; q < count; tile++) {
        const int64_t left = count - q;
        const int width = (int)(left >= wide ? wide : qrt_ceil_div(left, qrt_ceil_div(left, most)));
        sums.step = width == wide ? BLOCK : 0;
        for (int p = 0; p < (sums.step ? 1 : width); p++) places[p] = (q + p) * BLOCK;
        // Each of the first tiles fetches a share of the next matrix.
        sums.ahead = w + (i + 1) * matrix + qrt_min(tile, blocks - 1) * (matrix / blocks);
        weights->kernel.tile(&sums, width, blocks, at->m + i * j->m_stride + q * BLOCK, count * BLOCK, false, NULL);
        q += width;
    }
}

/// What collecting leaves undone in the rows that a chunk has a part of.
static void finish(const job *j, const part *p, int64_t block) {
    const qrt_convolution *g = j->g;
    if (!j->epilogue->finishes_after) return;
    for (int64_t q = p->first, end = p->first + p->count; q < end;) {
        const int64_t row = q / j->row, behind = qrt_min(end, (row + 1) * j->row);
        const int64_t column = (q - row * j->row) * 2, last = qrt_min((behind - row * j->row) * 2, g->out[2]);
        for (int64_t r = 2 * row; r < qrt_min(2 * row + 2, g->out[1]); r++)
            qrt_finish_block(j->epilogue, p->image, block, r * g->out[2] + column, last - column);
        q = behind;
    }
}

static void spread(const job *j, const part *p, int64_t count, const memory *at) {
    for (int64_t plane = 0; plane < j->w->planes; plane++) {
        float *v = at->v + (plane * count + p->at) * BLOCK;
        j->w->kernel.spread(p->count, at->pixels + p->at * PRODUCTS, j->planes[p->image * j->w->planes + plane], v, j->v_stride);
    }
}

/// Block `number` of a group, which is `block` of all.
static void collect(const job *j, const part *p, int64_t count, int64_t number, int64_t block, const memory *at) {
    const qrt_conv_epilogue e = qrt_blocked_epilogue_at(j->epilogue, p->image, block, 0);
    float *y = j->epilogue->y + p->image * j->epilogue->image + block * j->epilogue->plane;
    j->w->kernel.collect(p->count, at->outputs + p->at * OUTPUTS, at->m + (number * count + p->at) * BLOCK, j->m_stride, y, &e);
    finish(j, p, block);
}

static void run_chunk(const job *j, int64_t group, int64_t end_group, int64_t first, int64_t count, const memory *at) {
    const qrt_conv_weights *w = j->w;
    part p;
    find_places(j, first, count, at);
    for (int64_t q = 0; q < count; q += p.count) {
        p = part_of(j, first, count, q);
        spread(j, &p, count, at);
    }
    for (; group < end_group; group++) {
        const int64_t block = qrt_conv_first_block(w, group), blocks = qrt_conv_first_block(w, group + 1) - block;
        const float *values = w->values + block * BLOCK * w->planes * PRODUCTS * BLOCK;
        for (int i = 0; i < PRODUCTS; i++) multiply(j, i, values, (int)blocks, count, at);
        for (int64_t q = 0; q < count; q += p.count) {
            p = part_of(j, first, count, q);
            for (int64_t b = 0; b < blocks; b++) collect(j, &p, count, b, block + b, at);
        }
    }
}

/// Units follow one another from groups to groups, then from quads to quads.
static int64_t count_units(const job *j) {
    return qrt_ceil_div(j->g->images * j->quads, j->unit_quads) * qrt_ceil_div(j->w->groups, j->unit_groups);
}

static void run_slot(void *context, int64_t slot) {
    const job *j = context;
    const qrt_conv_weights *w = j->w;
    const int64_t units = count_units(j), parts = qrt_ceil_div(w->groups, j->unit_groups);
    memory at;
    at.v = (float *)(j->scratch + (size_t)slot * j->slot_bytes);
    at.m = at.v + PRODUCTS * j->v_stride;
    at.pixels = (int64_t *)(at.m + PRODUCTS * j->m_stride);
    at.outputs = at.pixels + j->chunk * PRODUCTS;
    at.planes = (const float **)(at.outputs + j->chunk * OUTPUTS);
    for (int64_t unit = units * slot / j->slots; unit < units * (slot + 1) / j->slots; unit++) {
        const int64_t group = unit % parts * j->unit_groups, first = unit / parts * j->unit_quads;
        const int64_t end = qrt_min(first + j->unit_quads, j->g->images * j->quads);
        for (int64_t q = first; q < end; q += j->chunk)
            run_chunk(j, group, qrt_min(group + j->unit_groups, w->groups), q, qrt_min(j->chunk, end - q), &at);
    }
}

/// Says how the work is divided: by quads while there are enough of them, for every group spreads the pixels again.
static void divide(job *j, int threads) {
    const qrt_conv_weights *w = j->w;
    const int64_t quads = j->g->images * j->quads, wanted = threads > 1 ? 4 * (int64_t)threads : 1;
    const int64_t ranges = qrt_max(1, qrt_min(wanted, quads / LEAST_QUADS));
    j->unit_quads = qrt_ceil_div(quads, ranges);
    j->unit_groups = threads > 1 && ranges < 2 * threads ? qrt_ceil_div(w->groups, qrt_ceil_div(wanted / 2, ranges)) : w->groups;
    j->slots = qrt_min(wanted, count_units(j));
    const int64_t group_blocks = qrt_ceil_div(w->blocks, w->groups), wide = w->kernel.in_steps[group_blocks - 1];
    const bool is_large = w->planes * w->blocks * BLOCK * BLOCK * PRODUCTS > LARGE_WEIGHTS;
    const int64_t kept = KEPT_FLOATS / (PRODUCTS * BLOCK) / (w->planes + group_blocks), most = qrt_max(is_large ? SHARING_QUADS : wide, kept);
    const int64_t equal = qrt_ceil_div(j->unit_quads, qrt_ceil_div(j->unit_quads, most));
    j->chunk = qrt_min(j->unit_quads, qrt_ceil_div(equal, wide) * wide);
    // A line more than the matrix, lest elements of one quad fall upon each other in a cache.
    j->v_stride = (w->planes * j->chunk + 1) * BLOCK;
    j->m_stride = (group_blocks * j->chunk + 1) * BLOCK;
}

static qrt_status convolve(job *j, const qrt_node *node, qrt_run *run, const qrt_tensor *const *in) {
    const qrt_convolution *g = j->g;
    const double work = (double)g->images * (double)g->maps * (double)j->w->base.k * (double)g->positions;
    const int threads = work < MIN_PARALLEL_WORK ? 1 : run->num_threads;
    divide(j, threads);
    int64_t planes;
    size_t bytes;
    const size_t floats = PRODUCTS * (size_t)(j->v_stride + j->m_stride), integers = (size_t)(j->chunk * (PRODUCTS + OUTPUTS) + j->w->planes);
    j->slot_bytes = (floats * sizeof(float) + integers * sizeof(int64_t) + QRT_ALIGNMENT - 1) / QRT_ALIGNMENT * QRT_ALIGNMENT;
    if (__builtin_mul_overflow(j->slot_bytes, (size_t)j->slots, &bytes) || __builtin_mul_overflow(g->images, j->w->planes, &planes) ||
        __builtin_add_overflow(bytes, (size_t)planes * sizeof(float *), &bytes))
        return QRT_NO_MEMORY;
    qrt_buffer *scratch = qrt_scratch(run, bytes);
    if (!scratch) return QRT_NO_MEMORY;
    j->scratch = scratch->data;
    j->planes = (const float **)(j->scratch + j->slot_bytes * (size_t)j->slots);
    qrt_list_planes(node, in, g->images, g->in[1] * g->in[2] * BLOCK, j->planes);
    qrt_parallel_for(threads, j->slots, run_slot, j);
    qrt_scratch_free(run, scratch);
    return QRT_OK;
}

/// As blocked_conv, for weights packed for Winograd's products and windows without strides or dilations.
static qrt_status winograd_conv(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_conv_weights *w = node->packed[0];
    qrt_tensor image;
    qrt_convolution g;
    if (w->kind != QRT_CONV_WINOGRAD || !qrt_measure_image(node, in, w, &image)) return QRT_DECLINE;
    if (!qrt_measure_convolution(node->ints, node->num_ints, &image, w->rank, w->dims, &g)) return QRT_DECLINE;
    if (g.groups != 1 || g.stride[1] != 1 || g.stride[2] != 1 || g.dilation[1] != 1 || g.dilation[2] != 1) return QRT_DECLINE;

    qrt_blocked_epilogue epilogue;
    const qrt_status status = qrt_begin_blocked(node, run, in, w->rank, w->blocks, w->bias, &g, &out[0], &epilogue);
    if (status != QRT_OK || out[0].size == 0) return status;
    const int64_t row = qrt_ceil_div(g.out[2], 2);
    job j = {.g = &g, .w = w, .epilogue = &epilogue, .row = row, .quads = row * qrt_ceil_div(g.out[1], 2)};
    return convolve(&j, node, run, in);
}

const qrt_node_entry qrt_winograd_conv_nodes[] = {
    {"winograd_conv", winograd_conv},
    {NULL, NULL},
};
