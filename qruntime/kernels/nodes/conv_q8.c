/// Convolution with int8 weights in 1, 2 or 3 spatial dims.
///
/// A row of the int8 GEMM is what the window covers at one output position, padding as zeros, and it is quantized as
/// every row is: from that window alone. Rows are gathered from a padded copy of the image whose channels are innermost,
/// so that a tap is one run of floats; the weights are packed in the same order (tap, channel). The row of a window of
/// one tap without strides is in the copy already.
#include <string.h>

#include "../threads.h"
#include "convolution.h"
#include "epilogue.h"
#include "strided_copy.h"

/// Gathered rows in hand stay within this many floats, and between these many rows: each block reads all weights.
enum { BLOCK_FLOATS = 64 * 1024, MIN_BLOCK = 32, MAX_BLOCK = 128, MIN_PARALLEL_WORK = 1 << 18 };

typedef struct {
    const qrt_convolution *g;
    void *const *packed;        ///< qrt_weights [depth, group_maps] for each group
    const float *image;
    float *copy;                ///< [padded[0], padded[1], padded[2], channels]
    float *y;                   ///< [maps, positions]
    qrt_epilogue epilogue;
    qrt_q8_grid grid;
    bool gathers;               ///< else the copy holds the rows
    int64_t block, blocks, slots, slot_bytes;
    char *scratch;              ///< for each slot: gathered rows, products, scratch of the GEMM
} job;

/// to[c, r] = from[r, c]; both strides in floats.
static void transpose(const float *from, int64_t rows, int64_t columns, int64_t from_stride, float *to, int64_t to_stride) {
    const int64_t item = sizeof(float);
    qrt_arrangement a = {2, {columns, rows}, {to_stride * item, item}, {item, from_stride * item}};
    qrt_copy_strided(1, to, from, sizeof(float), &a);
}

/// Line `line` of the copy: one padded row of all channels.
static void copy_line(void *context, int64_t line) {
    const job *j = context;
    const qrt_convolution *g = j->g;
    int64_t slice = line / g->padded[1] - g->begin[0], row = line % g->padded[1] - g->begin[1], width = g->in[2];
    float *to = j->copy + line * g->padded[2] * g->channels;
    if (slice < 0 || slice >= g->in[0] || row < 0 || row >= g->in[1]) {
        memset(to, 0, (size_t)(g->padded[2] * g->channels) * sizeof *to);
        return;
    }
    float *after = to + (g->begin[2] + width) * g->channels;
    memset(to, 0, (size_t)(g->begin[2] * g->channels) * sizeof *to);
    memset(after, 0, (size_t)((g->padded[2] - g->begin[2] - width) * g->channels) * sizeof *to);
    const float *from = j->image + (slice * g->in[1] + row) * width;
    transpose(from, g->channels, width, g->in[0] * g->in[1] * width, to + g->begin[2] * g->channels, g->channels);
}

/// The window at position p, channels first … first + group_channels - 1.
static void gather(const job *j, int64_t p, int64_t first, float *to) {
    const qrt_convolution *g = j->g;
    int64_t column = p % g->out[2] * g->stride[2], row = p / g->out[2] % g->out[1] * g->stride[1];
    int64_t slice = p / g->out[2] / g->out[1] * g->stride[0];
    bool is_run = g->dilation[2] == 1 && g->groups == 1;
    int64_t runs = is_run ? 1 : g->window[2], length = is_run ? g->window[2] * g->channels : g->group_channels;
    for (int64_t d = 0; d < g->window[0]; d++)
        for (int64_t h = 0; h < g->window[1]; h++) {
            int64_t line = (slice + d * g->dilation[0]) * g->padded[1] + row + h * g->dilation[1];
            const float *from = j->copy + (line * g->padded[2] + column) * g->channels + first;
            for (int64_t v = 0; v < runs; v++, to += length)
                memcpy(to, from + v * g->dilation[2] * g->channels, (size_t)length * sizeof *to);
        }
}

static int64_t round_up(int64_t bytes) { return qrt_ceil_div(bytes, QRT_ALIGNMENT) * QRT_ALIGNMENT; }

static void multiply_slot(void *context, int64_t slot) {
    const job *j = context;
    const qrt_convolution *g = j->g;
    char *scratch = j->scratch + slot * j->slot_bytes;
    float *rows = (float *)scratch;
    if (j->gathers) scratch += round_up(j->block * g->depth * (int64_t)sizeof(float));
    float *products = (float *)scratch;
    scratch += round_up(j->block * g->group_maps * (int64_t)sizeof(float));
    int64_t units = g->groups * j->blocks;
    for (int64_t unit = units * slot / j->slots; unit < units * (slot + 1) / j->slots; unit++) {
        int64_t group = unit / j->blocks, first = unit % j->blocks * j->block, channel = group * g->group_channels;
        int64_t count = qrt_min(j->block, g->positions - first);
        if (j->gathers)
            for (int64_t i = 0; i < count; i++) gather(j, first + i, channel, rows + i * g->depth);
        const float *a = j->gathers ? rows : j->copy + first * g->channels + channel;
        qrt_linear_serial(j->packed[group], a, j->gathers ? g->depth : g->channels, count, j->grid, &j->epilogue,
                             products, g->group_maps, scratch);
        float *y = j->y + group * g->group_maps * g->positions + first;
        transpose(products, count, g->group_maps, g->group_maps, y, g->positions);
    }
}

/// Bytes of one slot; false when they cannot be counted.
static bool measure_slot(const job *j, int64_t *bytes) {
    const qrt_convolution *g = j->g;
    int64_t floats;
    if (__builtin_add_overflow(g->depth, g->group_maps, &floats) || floats > INT64_MAX / 8 / MAX_BLOCK) return false;
    *bytes = round_up(j->block * g->group_maps * (int64_t)sizeof(float));
    if (j->gathers) *bytes += round_up(j->block * g->depth * (int64_t)sizeof(float));
    size_t gemm = 0;
    for (int64_t i = 0; i < g->groups; i++) {  // a group may be packed by a fallback kernel
        size_t wanted = qrt_scratch_bytes(j->packed[i], j->block);
        gemm = wanted > gemm ? wanted : gemm;
    }
    return gemm < INT64_MAX / 4 && !__builtin_add_overflow(*bytes, round_up((int64_t)gemm), bytes);
}

/// ints: spatial rank r (1 … 3), group, activation (qrt_activation), auto_pad (0 explicit or VALID, 1 SAME_UPPER,
///       2 SAME_LOWER), strides[r], pads at the begin[r], pads at the end[r], dilations[r] (VALID: pads 0), window[r],
///       then unless it is 255 the greatest code of activations.
/// floats: of the activation. Inputs: float32 x [N, C, …].
/// packed: for each group qrt_weights [taps · C / group, M / group] with bias.
static qrt_status conv_q8(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = in[0];
    if (!x || x->dtype != QRT_F32 || node->num_ints < 4 || node->num_packed < 1 || node->ints[1] != node->num_packed)
        return QRT_DECLINE;
    int64_t rank = node->ints[0], groups = node->ints[1], w_dims[5], maps;
    if (rank < 1 || rank > 3 || node->num_ints < 4 + 5 * rank || x->rank != rank + 2) return QRT_DECLINE;
    qrt_epilogue epilogue = {.activation = QRT_ACT_NONE};
    qrt_q8_grid grid;
    const int64_t codes[] = {QRT_PER_TOKEN, node->num_ints > 4 + 5 * rank ? node->ints[4 + 5 * rank] : QRT_Q8_MOST_QMAX};
    if (!qrt_q8_read_grid(codes, 2, &grid)) return QRT_DECLINE;
    if (!qrt_read_activation(node, node->ints[2], 0, &epilogue.activation, &epilogue.map)) return QRT_DECLINE;
    const qrt_weights *first = node->packed[0];
    if (!first || x->dims[1] % groups || __builtin_mul_overflow(first->n, groups, &maps)) return QRT_DECLINE;
    w_dims[0] = maps;
    w_dims[1] = x->dims[1] / groups;
    for (int64_t d = 0; d < rank; d++) w_dims[2 + d] = node->ints[4 + 4 * rank + d];
    qrt_convolution g;
    if (!qrt_measure_convolution(node->ints, node->num_ints, x, (int32_t)rank + 2, w_dims, &g)) return QRT_DECLINE;
    for (int64_t i = 0; i < groups; i++) {
        const qrt_weights *w = node->packed[i];
        if (!w || w->k != g.depth || w->n != g.group_maps) return QRT_DECLINE;
    }

    int64_t dims[QRT_MAX_RANK] = {g.images, g.maps};
    for (int i = 0; i < rank; i++) dims[2 + i] = g.out[3 - rank + i];
    qrt_status status = qrt_alloc(run, &out[0], QRT_F32, (int32_t)rank + 2, dims);
    if (status != QRT_OK || out[0].size == 0) return status;
    double work = (double)g.maps * (double)g.depth * (double)g.positions;
    int threads = work < MIN_PARALLEL_WORK ? 1 : run->num_threads;
    int64_t lines = g.padded[0] * g.padded[1], pixels = lines * g.padded[2];
    job j = {.g = &g, .packed = node->packed, .epilogue = epilogue, .grid = grid};
    j.gathers = g.taps > 1 || pixels != g.positions;
    int64_t blocks_wanted = qrt_ceil_div(threads > 1 ? 4 * (int64_t)threads : 1, groups);
    j.block = qrt_min(MAX_BLOCK, qrt_max(MIN_BLOCK, BLOCK_FLOATS / qrt_max(1, g.depth)));
    j.block = qrt_min(j.block, qrt_max(MIN_BLOCK, qrt_ceil_div(g.positions, blocks_wanted)));
    j.block = qrt_min(j.block, g.positions);
    j.blocks = qrt_ceil_div(g.positions, j.block);
    j.slots = qrt_min(threads > 1 ? 4 * (int64_t)threads : 1, groups * j.blocks);
    int64_t bytes, copy_bytes;
    if (!measure_slot(&j, &j.slot_bytes) || __builtin_mul_overflow(j.slot_bytes, j.slots, &bytes) ||
        __builtin_mul_overflow(pixels * g.channels, (int64_t)sizeof(float), &copy_bytes) ||
        copy_bytes > INT64_MAX - QRT_ALIGNMENT || __builtin_add_overflow(bytes, round_up(copy_bytes), &bytes))
        return QRT_NO_MEMORY;
    qrt_buffer *scratch = qrt_scratch(run, (size_t)bytes);
    if (!scratch) return QRT_NO_MEMORY;
    j.scratch = scratch->data;
    j.copy = (float *)((char *)scratch->data + j.slots * j.slot_bytes);
    for (int64_t n = 0; n < g.images; n++) {
        j.image = (const float *)x->data + n * g.channels * g.in[0] * g.in[1] * g.in[2];
        j.y = (float *)out[0].data + n * g.maps * g.positions;
        qrt_parallel_for(threads, lines, copy_line, &j);
        qrt_parallel_for(threads, j.slots, multiply_slot, &j);
    }
    qrt_scratch_free(run, scratch);
    return QRT_OK;
}

const qrt_node_entry qrt_conv_q8_nodes[] = {
    {"conv_q8", conv_q8},
    {NULL, NULL},
};
