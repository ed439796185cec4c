/// Convolution of float images in 1, 2 or 3 spatial dims.
///
/// The product is y[m, p] = Σ_k w[m, k] · columns[k, p] with k over (channel, tap) in the order of w and p over
/// output positions. Columns come from a padded copy of the image, which spares every bounds check. In the copy a row
/// holds its elements 0, s, 2s, … first, then 1, s + 1, …, where s is the stride, so that the elements which one tap
/// meets along an output row are consecutive. They are multiplied where they lie, and what the padding between two rows
/// gives is dropped; where that would be too much, as in small images, columns are gathered a few panels at a time.
/// Depthwise channels are summed tap by tap.
#include <string.h>

#include "../threads.h"
#include "convolution.h"
#include "epilogue.h"

/// Panels of columns in hand stay within this many floats; so few multiply-adds do not repay waking a thread.
enum { BLOCK_FLOATS = 64 * 1024, MIN_PARALLEL_WORK = 1 << 18, MAX_NR = QRT_CONVOLUTION_ROOM };

/// Columns of so many panels are multiplied in place by a block of weights while it is in the cache, if at least this
/// share of them are output positions.
enum { PANELS_IN_PLACE = 4 };
#define USEFUL_IN_PLACE 0.85

/// Gathering copies so many floats at once.
enum { WIDE = 16 };

/// Up to this many positions the image is better taken as the rows of the product, times packed weights.
enum { MAX_ROWS = 6 };

typedef struct {
    const qrt_convolution *g;
    int64_t phase;               ///< elements of a row of the copy that share their remainder modulo the stride
    int64_t row, plane;          ///< elements of a row and of a channel of the copy
    bool copies;                 ///< else the image itself will do
    bool has_room;               ///< more may be read than there is
    const float *x;              ///< one image; the copy of it where there is one
    const float *image;
    float *copy;
    const float *w;
    float *y;
    const qrt_f32_epilogue *epilogue;
    const int64_t *tap_offsets;
    const int64_t *row_offsets;  ///< of (channel, tap), for columns that are multiplied in place
    int64_t stretches, panels_of_stretch;  ///< in place: sequences of consecutive columns, the gaps between rows included
    int64_t block, blocks, slots, slot_floats;
    float *scratch;
} job;

/// Offset in a padded plane of the first tap at output position p.
static int64_t origin(const job *j, int64_t p) {
    const qrt_convolution *g = j->g;
    int64_t column = p % g->out[2], row = p / g->out[2] % g->out[1], slice = p / g->out[2] / g->out[1];
    return (slice * g->stride[0] * g->padded[1] + row * g->stride[1]) * j->row + column;
}

/// `count` columns or positions that are consecutive at both ends.
typedef struct {
    int64_t from, to, count;
} span;

static int find_spans(const job *j, int64_t p, int64_t count, span *spans) {
    int found = 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t at = origin(j, p + i);
        if (found && at == spans[found - 1].from + spans[found - 1].count) spans[found - 1].count++;
        else spans[found++] = (span){at, i, 1};
    }
    return found;
}

/// One panel: columns p … p + count - 1, padded with zeros to nr. From the copy WIDE floats are taken at once; those too
/// many spoil what follows in the panel, which is written next.
static void gather(const job *j, const float *x, int64_t p, int64_t count, int64_t nr, float *panel) {
    const qrt_convolution *g = j->g;
    span spans[MAX_NR];
    int num_spans = find_spans(j, p, count, spans);
    for (int64_t c = 0; c < g->group_channels; c++, x += j->plane)
        for (int64_t t = 0; t < g->taps; t++, panel += nr) {
            const float *tap = x + j->tap_offsets[t];
            for (const span *r = spans; r < spans + num_spans; r++) {
                const float *from = tap + r->from;
                float *to = panel + r->to;
                if (!j->has_room) memcpy(to, from, (size_t)r->count * sizeof *to);
                else for (int64_t i = 0; i < r->count; i += WIDE) memcpy(to + i, from + i, WIDE * sizeof *to);
            }
            for (int64_t i = count; i < nr; i++) panel[i] = 0.0f;
        }
}

static void multiply_slot(void *context, int64_t slot) {
    const job *j = context;
    const qrt_convolution *g = j->g;
    const qrt_gemm_f32 *kernel = &qrt_kernels.gemm_f32;
    float *panels = j->scratch + slot * j->slot_floats;
    int64_t units = g->groups * j->blocks, nr = kernel->nr;
    bool is_matrix = g->taps == 1 && !j->copies && g->positions == j->plane;
    for (int64_t unit = units * slot / j->slots; unit < units * (slot + 1) / j->slots; unit++) {
        int64_t group = unit / j->blocks, first = unit % j->blocks * j->block;
        int64_t count = qrt_min(j->block, g->positions - first);
        const float *x = j->x + group * g->group_channels * j->plane;
        if (is_matrix)
            kernel->pack(g->depth, count, x + first, j->plane, 1, panels);
        else
            for (int64_t p = 0; p < count; p += nr)
                gather(j, x, first + p, qrt_min(nr, count - p), nr, panels + p * g->depth);
        qrt_f32_epilogue epilogue = *j->epilogue;
        if (epilogue.row_bias) epilogue.row_bias += group * g->group_maps;
        qrt_f32_gemm(kernel, g->group_maps, count, g->depth, j->w + group * g->group_maps * g->depth, g->depth, panels,
                     &epilogue, j->y + group * g->group_maps * g->positions + first, g->positions);
    }
}

/// Places of a panel in place: its first column in a plane, and the output positions among its columns.
static const float *place_panel(const job *j, const float *x, int64_t panel, int64_t nr, span *spans, int *num_spans) {
    const qrt_convolution *g = j->g;
    int64_t at = panel / j->panels_of_stretch, first = panel % j->panels_of_stretch * nr;
    int64_t rows = g->positions / g->out[2] / j->stretches;  // output rows of a stretch
    int64_t position = at * rows * g->out[2];
    *num_spans = 0;
    for (int64_t row = first / j->row; row < rows && row * j->row < first + nr; row++) {
        int64_t begin = qrt_max(first, row * j->row), end = qrt_min(first + nr, row * j->row + g->out[2]);
        if (begin >= end) continue;
        spans[(*num_spans)++] = (span){begin - first, position + row * g->out[2] + begin - row * j->row, end - begin};
    }
    return x + origin(j, position) + first;
}

static void in_place_slot(void *context, int64_t slot) {
    const job *j = context;
    const qrt_convolution *g = j->g;
    const qrt_gemm_f32 *kernel = &qrt_kernels.gemm_f32;
    int64_t nr = kernel->nr, panels = j->stretches * j->panels_of_stretch, units = g->groups * j->blocks;
    float *c = j->scratch + slot * j->slot_floats;
    for (int64_t unit = units * slot / j->slots; unit < units * (slot + 1) / j->slots; unit++) {
        int64_t group = unit / j->blocks, first = unit % j->blocks * PANELS_IN_PLACE;
        int count = (int)qrt_min(PANELS_IN_PLACE, panels - first), num_spans[PANELS_IN_PLACE];
        span spans[PANELS_IN_PLACE][MAX_NR];
        const float *x = j->x + group * g->group_channels * j->plane, *b[PANELS_IN_PLACE];
        for (int s = 0; s < count; s++) b[s] = place_panel(j, x, first + s, nr, spans[s], &num_spans[s]);
        int64_t ldc = count * nr;
        qrt_f32_gemm_scattered(kernel, g->group_maps, g->depth, j->w + group * g->group_maps * g->depth, g->depth, b, count,
                               j->row_offsets, c, ldc);
        qrt_f32_epilogue epilogue = *j->epilogue;
        if (epilogue.row_bias) epilogue.row_bias += group * g->group_maps;
        qrt_f32_finish(kernel, g->group_maps, ldc, c, ldc, &epilogue);
        float *y = j->y + group * g->group_maps * g->positions;
        for (int64_t map = 0; map < g->group_maps; map++, y += g->positions)
            for (int s = 0; s < count; s++)
                for (const span *r = spans[s]; r < spans[s] + num_spans[s]; r++)
                    memcpy(y + r->to, c + map * ldc + s * nr + r->from, (size_t)r->count * sizeof *y);
    }
}

/// How many stretches, and whether multiplying in place is worth it.
static bool suits_in_place(job *j, int64_t nr) {
    const qrt_convolution *g = j->g;
    bool joins_rows = g->stride[1] == 1 && g->stride[2] == 1;
    j->stretches = joins_rows ? g->out[0] : g->out[0] * g->out[1];
    j->panels_of_stretch = qrt_ceil_div(joins_rows ? (g->out[1] - 1) * j->row + g->out[2] : g->out[2], nr);
    return (double)g->positions >= USEFUL_IN_PLACE * (double)j->stretches * (double)j->panels_of_stretch * (double)nr;
}

/// The copy of one channel.
static void copy_channel(const job *j, const float *x, float *to) {
    const qrt_convolution *g = j->g;
    int64_t stride = g->stride[2], begin = g->begin[2], width = g->in[2];
    for (int64_t d = 0; d < g->padded[0]; d++)
        for (int64_t h = 0; h < g->padded[1]; h++, to += j->row) {
            int64_t slice = d - g->begin[0], row = h - g->begin[1];
            if (slice < 0 || slice >= g->in[0] || row < 0 || row >= g->in[1]) {
                memset(to, 0, (size_t)j->row * sizeof *to);
                continue;
            }
            const float *from = x + (slice * g->in[1] + row) * width;
            if (stride == 1) {
                memset(to, 0, (size_t)begin * sizeof *to);
                memcpy(to + begin, from, (size_t)width * sizeof *to);
                memset(to + begin + width, 0, (size_t)(j->row - begin - width) * sizeof *to);
                continue;
            }
            for (int64_t remainder = 0; remainder < stride; remainder++) {
                float *phase = to + remainder * j->phase;
                // Element i of the phase is element remainder + i · stride − begin of the row.
                int64_t first = remainder >= begin ? 0 : qrt_ceil_div(begin - remainder, stride);
                int64_t last = begin + width > remainder ? qrt_ceil_div(begin + width - remainder, stride) : 0;
                first = qrt_min(first, j->phase);
                last = qrt_max(first, qrt_min(last, j->phase));
                for (int64_t i = 0; i < first; i++) phase[i] = 0.0f;
                const float *start = from + (remainder - begin);
                if (stride == 2)  // apart, so that the compiler can shuffle vectors
                    for (int64_t i = first; i < last; i++) phase[i] = start[2 * i];
                else
                    for (int64_t i = first; i < last; i++) phase[i] = start[i * stride];
                for (int64_t i = last; i < j->phase; i++) phase[i] = 0.0f;
            }
        }
}

static void copy_task(void *context, int64_t channel) {
    const job *j = context;
    const qrt_convolution *g = j->g;
    copy_channel(j, j->image + channel * g->in[0] * g->in[1] * g->in[2], j->copy + channel * j->plane);
}

static void depthwise_slot(void *context, int64_t slot) {
    const job *j = context;
    const qrt_convolution *g = j->g;
    const qrt_gemm_f32 *kernel = &qrt_kernels.gemm_f32;
    float *copy = j->scratch + slot * j->slot_floats;
    for (int64_t channel = g->channels * slot / j->slots; channel < g->channels * (slot + 1) / j->slots; channel++) {
        const float *x = j->image + channel * g->in[0] * g->in[1] * g->in[2];
        if (j->copies) {
            copy_channel(j, x, copy);
            x = copy;
        }
        for (int64_t map = channel * g->group_maps; map < (channel + 1) * g->group_maps; map++) {
            float *y = j->y + map * g->positions;
            for (int64_t p = 0; p < g->positions; p += g->out[2])
                kernel->taps(g->out[2], g->taps, j->w + map * g->taps, j->tap_offsets, x + origin(j, p), y + p);
            qrt_f32_epilogue epilogue = *j->epilogue;
            if (epilogue.row_bias) epilogue.row_bias += map;
            qrt_f32_finish(kernel, 1, g->positions, y, g->positions, &epilogue);
        }
    }
}

/// y = w · columns by way of yᵀ = columnsᵀ · wᵀ with packed wᵀ: reads the weights once, whatever the tile.
static qrt_status multiply_few(const job *j, qrt_run *run, const qrt_f32_weights *packed, float *rows) {
    const qrt_convolution *g = j->g;
    float *products = rows + g->positions * g->depth, *to = rows;
    for (int64_t p = 0; p < g->positions; p++) {
        const float *from = j->x + origin(j, p);
        for (int64_t c = 0; c < g->channels; c++, from += j->plane)
            for (int64_t t = 0; t < g->taps; t++) *to++ = from[j->tap_offsets[t]];
    }
    const qrt_layer layer = {.w = &packed->base, .y = products, .ldy_elems = g->maps};
    qrt_status status = qrt_linear(&layer, 1, run, rows, g->depth, g->positions, QRT_Q8_ANY_GRID);
    if (status != QRT_OK) return status;
    for (int64_t m = 0; m < g->maps; m++)
        for (int64_t p = 0; p < g->positions; p++) j->y[m * g->positions + p] = products[p * g->maps + m];
    qrt_f32_finish(packed->kernel, g->maps, g->positions, j->y, g->positions, j->epilogue);
    return QRT_OK;
}

qrt_status qrt_convolve(const qrt_convolution *g, qrt_run *run, const float *x, const float *w, const qrt_f32_weights *packed,
                        const qrt_f32_epilogue *epilogue, float *y) {
    job j = {.g = g, .w = w, .epilogue = epilogue, .slots = 1};
    j.phase = qrt_ceil_div(g->padded[2], g->stride[2]);
    j.row = j.phase * g->stride[2];
    int64_t nr = qrt_kernels.gemm_f32.nr;
    bool is_depthwise = g->group_channels == 1, few = packed && g->positions <= MAX_ROWS;
    bool in_place = g->taps > 1 && !few && !is_depthwise && suits_in_place(&j, nr);
    j.plane = g->padded[0] * g->padded[1] * j.row;
    j.copies = (in_place && !g->has_room) || j.row != g->in[2] || g->padded[1] != g->in[1] || g->padded[0] != g->in[0] || g->stride[2] > 1;
    j.has_room = j.copies || g->has_room;
    if (j.copies && qrt_f32_rows_conflict(j.plane)) j.plane = qrt_f32_row_stride(j.plane);
    double work = (double)g->maps * (double)g->depth * (double)g->positions;
    int threads = work < MIN_PARALLEL_WORK ? 1 : run->num_threads;
    int64_t most_slots = threads > 1 ? 4 * (int64_t)threads : 1, copy_floats = 0;
    if (few) {
        if (__builtin_mul_overflow(g->positions, g->depth + g->maps, &j.slot_floats)) return QRT_NO_MEMORY;
    } else if (is_depthwise) {
        j.slots = qrt_min(most_slots, g->channels);
        if (j.copies) j.slot_floats = j.plane;
    } else if (in_place) {
        j.blocks = qrt_ceil_div(j.stretches * j.panels_of_stretch, PANELS_IN_PLACE);
        j.slots = qrt_min(most_slots, g->groups * j.blocks);
        if (__builtin_mul_overflow(g->group_maps, PANELS_IN_PLACE * nr, &j.slot_floats)) return QRT_NO_MEMORY;
    } else {
        int64_t panels = qrt_ceil_div(g->positions, nr), panels_of_block = qrt_max(1, BLOCK_FLOATS / qrt_max(1, g->depth) / nr);
        panels_of_block = qrt_min(panels_of_block, qrt_ceil_div(panels, qrt_ceil_div(most_slots, g->groups)));
        j.block = panels_of_block * nr;
        j.blocks = qrt_ceil_div(panels, panels_of_block);
        j.slots = qrt_min(most_slots, g->groups * j.blocks);
        if (__builtin_mul_overflow(j.block, g->depth, &j.slot_floats)) return QRT_NO_MEMORY;
        j.slot_floats += WIDE;
    }
    if (j.copies && (few || !is_depthwise) &&
        (__builtin_mul_overflow(g->channels, j.plane, &copy_floats) ||
         __builtin_add_overflow(copy_floats, MAX_NR, &copy_floats)))
        return QRT_NO_MEMORY;
    // Offsets are held in int64, two floats each.
    size_t offset_floats = 2 * ((size_t)g->taps + (in_place ? (size_t)g->depth : 0)), floats, bytes;
    if (__builtin_mul_overflow((size_t)j.slot_floats, (size_t)j.slots, &floats) ||
        __builtin_add_overflow(floats, offset_floats, &floats) ||
        __builtin_add_overflow(floats, (size_t)copy_floats, &floats) || __builtin_mul_overflow(floats, sizeof(float), &bytes))
        return QRT_NO_MEMORY;
    qrt_buffer *scratch = qrt_scratch(run, bytes);
    if (!scratch) return QRT_NO_MEMORY;
    int64_t *offsets = scratch->data, t = 0;
    for (int64_t d = 0; d < g->window[0]; d++)
        for (int64_t h = 0; h < g->window[1]; h++)
            for (int64_t v = 0; v < g->window[2]; v++) {
                int64_t column = v * g->dilation[2];
                offsets[t++] = (d * g->dilation[0] * g->padded[1] + h * g->dilation[1]) * j.row +
                               column % g->stride[2] * j.phase + column / g->stride[2];
            }
    j.tap_offsets = offsets;
    j.row_offsets = offsets + g->taps;
    for (int64_t k = 0; in_place && k < g->depth; k++)
        offsets[g->taps + k] = k / g->taps * j.plane + offsets[k % g->taps];
    j.copy = (float *)scratch->data + offset_floats;
    j.scratch = j.copy + copy_floats;

    int64_t image_size = g->channels * g->in[0] * g->in[1] * g->in[2];
    qrt_status status = QRT_OK;
    for (int64_t n = 0; n < g->images && status == QRT_OK; n++) {
        j.image = j.x = x + n * image_size;
        j.y = y + n * g->maps * g->positions;
        if (copy_floats) {
            qrt_parallel_for(threads, g->channels, copy_task, &j);
            j.x = j.copy;
        }
        if (few)
            status = multiply_few(&j, run, packed, j.scratch);
        else
            qrt_parallel_for(threads, j.slots, is_depthwise ? depthwise_slot : in_place ? in_place_slot : multiply_slot, &j);
    }
    qrt_scratch_free(run, scratch);
    return status;
}

/// ints: spatial rank r (1 … 3), group, activation, auto_pad (0 explicit or VALID, 1 SAME_UPPER, 2 SAME_LOWER),
///       strides[r], pads at the begin[r], pads at the end[r], dilations[r] (VALID: pads 0). floats: of the activation.
/// Inputs: float32 x [N, C, …], w [M, C / group, …], optional bias [M].
/// packed: optionally qrt_f32_weights [C · taps, M] (w as a matrix, transposed, no bias; group 1), used for images
///         of very few output positions.
static qrt_status conv(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = in[0], *w = in[1], *bias = node->num_inputs > 2 ? in[2] : NULL;
    qrt_convolution g;
    if (!x || !w || x->dtype != QRT_F32 || w->dtype != QRT_F32) return QRT_DECLINE;
    if (!qrt_measure_convolution(node->ints, node->num_ints, x, w->rank, w->dims, &g)) return QRT_DECLINE;
    if (bias && (bias->dtype != QRT_F32 || bias->rank != 1 || bias->size != g.maps)) return QRT_DECLINE;
    int64_t rank = node->ints[0];
    qrt_f32_epilogue epilogue = {.alpha = 1.0f, .row_bias = bias ? bias->data : NULL};
    if (!qrt_read_activation(node, node->ints[2], 0, &epilogue.activation, &epilogue.map)) return QRT_DECLINE;
    const qrt_f32_weights *packed = node->num_packed ? node->packed[0] : NULL;
    if (packed && (g.groups != 1 || packed->base.k != g.depth || packed->base.n != g.maps || packed->bias)) return QRT_DECLINE;
    if (qrt_kernels.gemm_f32.nr > MAX_NR) return QRT_DECLINE;

    int64_t dims[QRT_MAX_RANK] = {g.images, g.maps};
    for (int i = 0; i < rank; i++) dims[2 + i] = g.out[3 - rank + i];
    qrt_status status = qrt_alloc(run, &out[0], QRT_F32, (int32_t)rank + 2, dims);
    if (status != QRT_OK || out[0].size == 0) return status;
    return qrt_convolve(&g, run, x->data, w->data, packed, &epilogue, out[0].data);
}

const qrt_node_entry qrt_conv_nodes[] = {
    {"conv", conv},
    {NULL, NULL},
};
