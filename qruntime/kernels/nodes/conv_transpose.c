/// Transposed convolution of float images in 1, 2 or 3 spatial dims.
///
/// Output positions that leave one remainder modulo the stride, padding included, meet the same taps and no others: they
/// are an ordinary convolution without strides of the image with these taps in reverse. So no product is with a zero that
/// a stride inserted, and every output is one sum in a fixed order. Neighbours that meet as many taps at the same places are
/// further maps of one convolution.
#include <string.h>

#include "../threads.h"
#include "arguments.h"
#include "convolution.h"
#include "epilogue.h"
#include "transposed.h"

/// Shapes, and where one image is.
typedef struct {
    qrt_transposed g;
    bool is_padded;     ///< there is a copy of one image:
    int64_t front[3], padded[3];  ///< zeros before it, and its size;
    int64_t offset[3];  ///< convolutions begin at most this far within it
    const float *x, *w; ///< of one image
    float *copy, *y;
} transposed;

/// The convolution along one dim of output positions p, p + stride, …
typedef struct {
    int64_t remainder, taps, begin, count;
} phase;

/// The lowest tap of a remainder, −1 when it has none.
static int64_t first_tap(const transposed *t, int i, int64_t remainder) {
    if (t->g.dilation[i] == 1) return remainder < t->g.window[i] ? remainder : -1;
    for (int64_t k = 0; k < qrt_min(t->g.window[i], t->g.period[i]); k++)
        if (k * t->g.dilation[i] % t->g.stride[i] == remainder) return k;
    return -1;
}

static int64_t count_taps(const transposed *t, int i, int64_t remainder) {
    int64_t first = first_tap(t, i, remainder);
    return first < 0 ? 0 : (t->g.window[i] - 1 - first) / t->g.period[i] + 1;
}

static int64_t count_taps_below(const transposed *t, int i, int64_t remainder) {
    int64_t taps = 0;
    for (int64_t r = 0; r < remainder; r++) taps += count_taps(t, i, r);
    return taps;
}

static phase phase_at(const transposed *t, int i, int64_t p) {
    int64_t from = p + t->g.begin[i];
    phase found = {from % t->g.stride[i], 0, 0, qrt_ceil_div(t->g.out[i] - p, t->g.stride[i])};
    found.taps = count_taps(t, i, found.remainder);
    if (found.taps) {
        int64_t newest = (from - first_tap(t, i, found.remainder) * t->g.dilation[i]) / t->g.stride[i];
        found.begin = (found.taps - 1) * t->g.spread[i] - newest;
    }
    return found;
}

/// Where the weights [maps, channels / groups, taps of each dim] of three remainders begin. Those of all remainders follow
/// one another, the last dim's fastest.
static int64_t weights_at(const transposed *t, const phase *phases) {
    int64_t at = 0;
    for (int i = 0; i < 3; i++) {
        int64_t rest = 1;
        for (int d = 0; d < i; d++) rest *= phases[d].taps;
        for (int d = i + 1; d < 3; d++) rest *= t->g.window[d];
        at += count_taps_below(t, i, phases[i].remainder) * rest;
    }
    return at * t->g.maps * (t->g.channels / t->g.groups);
}

/// Where all convolutions find what they read: the padded copy that fits every one of them, or the image.
static void measure_padding(transposed *t) {
    for (int i = 0; i < 3; i++) {
        int64_t most = qrt_min(t->g.stride[i], t->g.out[i]), front = 0;
        for (int64_t p = 0; p < most; p++) front = qrt_max(front, phase_at(t, i, p).begin);
        t->front[i] = front;
        t->padded[i] = front + t->g.in[i];
        for (int64_t p = 0; p < most; p++) {
            phase one = phase_at(t, i, p);
            int64_t offset = front - one.begin;
            t->offset[i] = qrt_max(t->offset[i], offset);
            if (one.taps) t->padded[i] = qrt_max(t->padded[i], offset + one.count + (one.taps - 1) * t->g.spread[i]);
        }
        t->is_padded |= t->offset[i] > 0 || t->padded[i] > t->g.in[i];
    }
}

static void pad_channel(void *context, int64_t channel) {
    const transposed *t = context;
    const int64_t *in = t->g.in, *padded = t->padded, row_floats = padded[2];
    const float *from = t->x + channel * in[0] * in[1] * in[2];
    float *to = t->copy + channel * padded[0] * padded[1] * row_floats;
    for (int64_t d = 0; d < padded[0]; d++)
        for (int64_t h = 0; h < padded[1]; h++, to += row_floats) {
            int64_t slice = d - t->front[0], row = h - t->front[1], after = t->front[2] + in[2];
            if (slice < 0 || slice >= in[0] || row < 0 || row >= in[1]) {
                memset(to, 0, (size_t)row_floats * sizeof *to);
                continue;
            }
            memset(to, 0, (size_t)t->front[2] * sizeof *to);
            memcpy(to + t->front[2], from + (slice * in[1] + row) * in[2], (size_t)in[2] * sizeof *to);
            memset(to + after, 0, (size_t)(row_floats - after) * sizeof *to);
        }
}

/// y [merged · maps, counts of the phases] of one convolution: of `merged` remainders, the first given by `phases`.
static qrt_status convolve_phase(const transposed *t, qrt_run *run, const phase *phases, int64_t merged,
                                 const qrt_f32_epilogue *epilogue, float *y) {
    qrt_convolution g = {.images = 1, .channels = t->g.channels, .groups = t->g.groups, .maps = t->g.maps * merged};
    g.group_channels = g.channels / g.groups;
    g.group_maps = g.maps / g.groups;
    g.has_room = t->is_padded;
    int64_t at = 0;
    for (int i = 0; i < 3; i++) {
        g.in[i] = g.padded[i] = t->padded[i];
        g.window[i] = phases[i].taps;
        g.stride[i] = 1;
        g.dilation[i] = t->g.spread[i];
        g.out[i] = phases[i].count;
        at = at * t->padded[i] + t->front[i] - phases[i].begin;
    }
    if (!qrt_count_convolution(&g)) return QRT_NO_MEMORY;
    if (g.depth > 0) return qrt_convolve(&g, run, (t->is_padded ? t->copy : t->x) + at, t->w + weights_at(t, phases), NULL, epilogue, y);
    memset(y, 0, (size_t)(g.maps * g.positions) * sizeof *y);
    qrt_f32_finish(&qrt_kernels.gemm_f32, g.maps, g.positions, y, g.positions, epilogue);
    return QRT_OK;
}

/// The remainders from output position `at` on, `count` of them in each dim, that one convolution makes.
typedef struct {
    const transposed *t;
    int64_t at[3], count[3];
    phase phases[3];      ///< of the first of them, which have the most positions
    const float *from;    ///< [remainders, maps, positions]
} portion;

/// Row `from` of each of `count` remainders, `step` floats apart, into every stride-th place.
static void interleave_row(const float *from, int64_t step, int64_t count, int64_t stride, int64_t start, int64_t size, float *to) {
    int64_t whole = (size - start) / stride;
    if (count == 2 && stride == 2) {  // apart, so that the compiler can shuffle vectors
        const float *second = from + step;
        for (int64_t i = 0; i < whole; i++) {
            to[2 * i] = from[i];
            to[2 * i + 1] = second[i];
        }
        if (size % 2) to[2 * whole] = from[whole];
        return;
    }
    for (int64_t m = 0; m < count; m++, from += step, start++)
        for (int64_t i = 0, n = qrt_ceil_div(size - start, stride); i < n; i++) to[start + i * stride] = from[i];
}

/// Put one map where it belongs.
static void interleave(void *context, int64_t map) {
    const portion *p = context;
    const transposed *t = p->t;
    const int64_t *count = p->count, *stride = t->g.stride, *out = t->g.out;
    int64_t rows = p->phases[1].count, width = p->phases[2].count, plane = p->phases[0].count * rows * width;
    for (int64_t m = 0; m < count[0] * count[1]; m++) {
        const float *from = p->from + (m * count[2] * t->g.maps + map) * plane;
        int64_t first_slice = p->at[0] + m / count[1], first_row = p->at[1] + m % count[1];
        for (int64_t d = 0; first_slice + d * stride[0] < out[0]; d++)
            for (int64_t h = 0; first_row + h * stride[1] < out[1]; h++) {
                int64_t slice = first_slice + d * stride[0], row = first_row + h * stride[1];
                float *to = t->y + ((map * out[0] + slice) * out[1] + row) * out[2];
                interleave_row(from + (d * rows + h) * width, t->g.maps * plane, count[2], stride[2], p->at[2], out[2], to);
            }
    }
}

/// Remainders of dim i from that of `first` at position p on that meet as many taps at the same places.
static int64_t count_alike(const transposed *t, int i, int64_t p, const phase *first) {
    int64_t count = 1, most = qrt_min(t->g.stride[i], t->g.out[i]) - p;
    for (; count < most; count++) {
        phase next = phase_at(t, i, p + count);
        if (next.taps != first->taps || next.begin != first->begin || next.remainder != first->remainder + count) break;
    }
    return count;
}

/// What one convolution can make from an output position on. Its weights have to follow one another: remainders of a dim
/// come together when those of all later dims do.
static portion portion_at(const transposed *t, int64_t d, int64_t h, int64_t v) {
    portion p = {t, {d, h, v}, {1, 1, 1}, {phase_at(t, 0, d), phase_at(t, 1, h), phase_at(t, 2, v)}, NULL};
    for (int i = 2; i >= 0 && t->g.groups == 1; i--) {
        p.count[i] = count_alike(t, i, p.at[i], &p.phases[i]);
        if (p.count[i] < t->g.stride[i]) break;
    }
    return p;
}

/// All portions of one image, `products` of each interleaved; NULL when there is but one, which is the output.
static qrt_status run_portions(const transposed *t, qrt_run *run, const qrt_f32_epilogue *epilogue, const float *biases,
                               float *products) {
    int64_t most[3];
    for (int i = 0; i < 3; i++) most[i] = qrt_min(t->g.stride[i], t->g.out[i]);
    portion p;
    for (int64_t d = 0; d < most[0]; d += p.count[0])
        for (int64_t h = 0; h < most[1]; h += p.count[1])
            for (int64_t v = 0; v < most[2]; v += p.count[2]) {
                p = portion_at(t, d, h, v);
                int64_t merged = p.count[0] * p.count[1] * p.count[2];
                qrt_f32_epilogue of_portion = *epilogue;
                if (merged > 1 && of_portion.row_bias) of_portion.row_bias = biases;
                qrt_status status = convolve_phase(t, run, p.phases, merged, &of_portion, products ? products : t->y);
                if (status != QRT_OK) return status;
                p.from = products;
                if (products) qrt_parallel_for(run->num_threads, t->g.maps, interleave, &p);
            }
    return QRT_OK;
}

/// Floats of the padded copy, remainders, floats of the most that one convolution makes (0 where that is the output), and
/// bytes of these and of the bias once for each remainder; false when there cannot be as many.
static bool count_scratch(transposed *t, int64_t *copied, int64_t *merged, int64_t *products, size_t *bytes) {
    const int64_t *padded = t->padded, *offset = t->offset;
    *copied = *products = 0;
    if (t->is_padded) {
        int64_t plane;
        if (!qrt_num_elements(3, padded, &plane)) return false;
        if (qrt_f32_rows_conflict(plane)) t->padded[2]++;
        int64_t first = (offset[0] * padded[1] + offset[1]) * padded[2] + offset[2];
        if (!qrt_num_elements(4, (const int64_t[]){t->g.channels, padded[0], padded[1], padded[2]}, copied) ||
            __builtin_add_overflow(*copied, first + QRT_CONVOLUTION_ROOM, copied))
            return false;
    }
    *merged = 1;
    for (int i = 0; i < 3; i++) *merged *= qrt_min(t->g.stride[i], t->g.out[i]);
    if (t->g.stride[0] > 1 || t->g.stride[1] > 1 || t->g.stride[2] > 1) {
        int64_t counts[5] = {*merged, t->g.maps};
        for (int i = 0; i < 3; i++) counts[2 + i] = qrt_ceil_div(t->g.out[i], t->g.stride[i]);
        if (!qrt_num_elements(5, counts, products)) return false;
    }
    size_t floats;
    return !__builtin_add_overflow((size_t)*copied, (size_t)*products, &floats) &&
           !__builtin_add_overflow(floats, (size_t)(t->g.maps * *merged), &floats) &&
           !__builtin_mul_overflow(floats, sizeof(float), bytes);
}

/// ints: spatial rank r (1 … 3), group, activation, auto_pad (0 explicit or VALID, 1 SAME_UPPER, 2 SAME_LOWER), maps M,
///       strides[r], pads at the begin[r], pads at the end[r], dilations[r] (VALID: pads 0), window[r], output_padding[r],
///       output_shape[r] (0: none). floats: of the activation.
/// Inputs: float32 x [N, C, …], weights in the order of weights_at, finite because some meet padding; optional bias [M].
static qrt_status conv_transpose(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0), *w = qrt_input(node, in, 1), *bias = qrt_input(node, in, 2);
    transposed t = {.w = w ? w->data : NULL};
    if (!x || !w || x->dtype != QRT_F32 || w->dtype != QRT_F32 || !qrt_measure_transposed(node, x, w->size, &t.g)) return QRT_DECLINE;
    if (bias && (bias->dtype != QRT_F32 || bias->rank != 1 || bias->size != t.g.maps)) return QRT_DECLINE;
    qrt_f32_epilogue epilogue = {.alpha = 1.0f, .row_bias = bias ? bias->data : NULL};
    if (!qrt_read_activation(node, node->ints[2], 0, &epilogue.activation, &epilogue.map)) return QRT_DECLINE;
    int64_t rank = node->ints[0], dims[QRT_MAX_RANK] = {t.g.images, t.g.maps};
    for (int i = 0; i < rank; i++) dims[2 + i] = t.g.out[3 - rank + i];
    if (!qrt_is_buildable((int)rank + 2, dims)) return QRT_DECLINE;
    qrt_status status = qrt_alloc(run, &out[0], QRT_F32, (int32_t)rank + 2, dims);
    if (status != QRT_OK || out[0].size == 0) return status;
    measure_padding(&t);
    int64_t copied, merged, products;
    size_t bytes;
    if (!count_scratch(&t, &copied, &merged, &products, &bytes)) return QRT_NO_MEMORY;
    qrt_buffer *scratch = qrt_scratch(run, bytes);
    if (!scratch) return QRT_NO_MEMORY;
    t.copy = scratch->data;
    float *biases = t.copy + copied, *made = biases + t.g.maps * merged;
    for (int64_t m = 0; bias && m < merged; m++) memcpy(biases + m * t.g.maps, bias->data, (size_t)t.g.maps * sizeof *biases);
    int64_t image = t.g.channels * t.g.in[0] * t.g.in[1] * t.g.in[2], result = t.g.maps * t.g.out[0] * t.g.out[1] * t.g.out[2];
    for (int64_t n = 0; n < t.g.images && status == QRT_OK; n++) {
        t.x = (const float *)x->data + n * image;
        t.y = (float *)out[0].data + n * result;
        if (t.is_padded) qrt_parallel_for(run->num_threads, t.g.channels, pad_channel, &t);
        status = run_portions(&t, run, &epilogue, biases, products ? made : NULL);
    }
    qrt_scratch_free(run, scratch);
    return status;
}

const qrt_node_entry qrt_conv_transpose_nodes[] = {
    {"conv_transpose", conv_transpose},
    {NULL, NULL},
};
