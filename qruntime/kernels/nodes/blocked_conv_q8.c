/// Convolution with int8 weights of images whose channels lie in blocks: the integers of conv_q8, hence its bits.
///
/// The range of a window is that of its pixels, whose extremes are found once. Its codes come straight from the image, in pieces of
/// 16 floats: [blocks of channels, taps, 16], as the weights are packed. An image of few channels, which is not in blocks, is copied
/// with its padding and its channels innermost, and pieces are what a row of the window covers: [rows of the window, pieces, 16].
#include <string.h>

#include "../threads.h"
#include "blocked_epilogue.h"
#include "convolution.h"

enum { BLOCK = QRT_CHANNEL_BLOCK, MAX_ROWS = 128, MIN_PARALLEL_WORK = 1 << 18, TASKS_PER_THREAD = 4 };

typedef struct {
    const qrt_convolution *g;
    const qrt_q8_weights *w;
    const qrt_blocked_epilogue *epilogue;
    int32_t qmax;
    bool in_columns;
    bool gathers;               ///< pieces are put together as floats before they are quantized
    bool is_pointwise;          ///< a window is a pixel, whose extremes nobody else needs
    bool is_dense;              ///< and all pixels are windows
    const float *image;         ///< the input
    const float *x;             ///< where pieces lie: the input or its copy
    float *copy;
    int64_t x_image, x_plane, x_row;  ///< floats; a row of the copy
    int64_t *places, num_pieces;      ///< those of a window that is inside, from its first pixel on
    int64_t whole_begin, whole_end;   ///< output columns whose windows are inside
    qrt_extremes map;           ///< of windows of one row: [images, in[0], in[1], out[2]]
    int64_t chunk, chunks, slots, slot_bytes;
    int64_t lines, line_slots;
    char *scratch;
} job;

/// Room of a slot for a block of rows.
typedef struct {
    qrt_q8_row *rows;
    float *inverse_scales;
    qrt_extremes extremes;
    int64_t *places;
    float *floats;              ///< of one row
    char *packed;
} room;

static int64_t round_up(int64_t bytes) { return qrt_ceil_div(bytes, QRT_ALIGNMENT) * QRT_ALIGNMENT; }

static void *take(char **at, int64_t count, int64_t item) {
    void *taken = *at;
    *at += round_up(count * item);
    return taken;
}

static room room_of(const job *j, int64_t slot) {
    char *at = j->scratch + slot * j->slot_bytes;
    room r;
    r.rows = take(&at, j->chunk, (int64_t)sizeof *r.rows);
    r.inverse_scales = take(&at, j->chunk, (int64_t)sizeof *r.inverse_scales);
    r.extremes.least = take(&at, j->chunk, (int64_t)sizeof *r.extremes.least);
    r.extremes.greatest = take(&at, j->chunk, (int64_t)sizeof *r.extremes.greatest);
    r.places = take(&at, j->num_pieces, (int64_t)sizeof *r.places);
    r.floats = take(&at, j->gathers ? j->num_pieces * BLOCK : 0, (int64_t)sizeof *r.floats);
    r.packed = at;
    return r;
}

/// Of such a room, with what lies between its parts.
static int64_t room_bytes(const job *j) {
    const int64_t of_row = (int64_t)sizeof(qrt_q8_row) + 3 * (int64_t)sizeof(float) + j->w->row_bytes;
    const int64_t of_piece = (int64_t)sizeof(int64_t) + (j->gathers ? BLOCK * (int64_t)sizeof(float) : 0);
    return round_up(j->chunk * of_row + j->num_pieces * of_piece + 6 * QRT_ALIGNMENT);
}

// ------------------------------------------------------------------------------------------ extremes

static void clear(qrt_extremes of, int64_t n) {
    memset(of.least, 0, (size_t)n * sizeof *of.least);
    memset(of.greatest, 0, (size_t)n * sizeof *of.greatest);
}

static inline qrt_extremes from(qrt_extremes of, int64_t at) { return (qrt_extremes){of.least + at, of.greatest + at}; }

/// Extremes of the pixels of a line, [images, in[0], in[1]], of the input.
static void pixels_of_line(const job *j, int64_t line, qrt_extremes of) {
    const qrt_convolution *g = j->g;
    const int64_t width = g->in[2], lines = g->in[0] * g->in[1], at = line % lines * width;
    if (!j->in_columns) {
        const float *x = j->x + line / lines * j->x_image + at * BLOCK;
        qrt_kernels.conv_q8.extremes(x, BLOCK, j->x_plane, g->channels, width, of);
        return;
    }
    clear(of, width);
    for (int64_t c = 0; c < g->channels; c++) {
        const float *x = j->image + (line / lines * g->channels + c) * lines * width + at;
        qrt_kernels.conv_q8.widen(of, x, x, 1, width);
    }
}

/// Of windows of one row, along a line.
static void extremes_of_line(const job *j, int64_t line, qrt_extremes pixels) {
    const qrt_convolution *g = j->g;
    const int64_t stride = g->stride[2];
    const qrt_extremes of = from(j->map, line * g->out[2]);
    pixels_of_line(j, line, pixels);
    clear(of, g->out[2]);
    for (int64_t v = 0; v < g->window[2]; v++) {
        const int64_t offset = v * g->dilation[2] - g->begin[2];  // output column i sees column i · stride + offset
        const int64_t first = offset < 0 ? qrt_ceil_div(-offset, stride) : 0;
        const int64_t end = offset < g->in[2] ? qrt_min(g->out[2], (g->in[2] - 1 - offset) / stride + 1) : 0, at = first * stride + offset;
        if (first < end) qrt_kernels.conv_q8.widen(from(of, first), pixels.least + at, pixels.greatest + at, stride, end - first);
    }
}

static void find_extremes(void *context, int64_t slot) {
    const job *j = context;
    const int64_t width = round_up(j->g->in[2] * 4);
    char *scratch = j->scratch + slot * 2 * width;
    const qrt_extremes pixels = {(uint32_t *)(void *)scratch, (int32_t *)(void *)(scratch + width)};
    for (int64_t line = j->lines * slot / j->line_slots; line < j->lines * (slot + 1) / j->line_slots; line++)
        extremes_of_line(j, line, pixels);
}

/// Of `count` windows in a row, the first at `at`.
static void extremes_of_windows(const job *j, int64_t image, const int64_t *at, int64_t count, qrt_extremes of) {
    const qrt_convolution *g = j->g;
    if (j->is_pointwise) {
        const int64_t pixel = (at[0] * g->stride[0] * g->in[1] + at[1] * g->stride[1]) * g->in[2] + at[2] * g->stride[2];
        qrt_kernels.conv_q8.extremes(j->x + image * j->x_image + pixel * BLOCK, g->stride[2] * BLOCK, j->x_plane, g->channels, count, of);
        return;
    }
    clear(of, count);
    for (int64_t d = 0; d < g->window[0]; d++)
        for (int64_t h = 0; h < g->window[1]; h++) {
            const int64_t slice = at[0] * g->stride[0] - g->begin[0] + d * g->dilation[0];
            const int64_t row = at[1] * g->stride[1] - g->begin[1] + h * g->dilation[1];
            if (slice < 0 || slice >= g->in[0] || row < 0 || row >= g->in[1]) continue;
            const int64_t line = ((image * g->in[0] + slice) * g->in[1] + row) * g->out[2] + at[2];
            qrt_kernels.conv_q8.widen(of, j->map.least + line, j->map.greatest + line, 1, count);
        }
}

// --------------------------------------------------------------------------------------------- codes

/// The pieces of a window, one after the other, with zeros behind the last channel or column.
static void gather(const job *j, const float *x, const int64_t *places, bool any_outside, float *to) {
    const qrt_convolution *g = j->g;
    const int64_t all = j->in_columns ? g->window[2] * g->channels : g->channels, blocks = qrt_ceil_div(all, BLOCK);
    const int64_t rest = all - (blocks - 1) * BLOCK, outer = j->in_columns ? g->window[0] * g->window[1] : blocks;
    const int64_t inner = j->num_pieces / outer;
    for (int64_t o = 0; o < outer; o++)
        for (int64_t i = 0; i < inner; i++, places++, to += BLOCK) {
            const bool is_last = (j->in_columns ? i : o) == blocks - 1, is_outside = any_outside && *places == QRT_OUTSIDE;
            if (!is_outside && (!is_last || rest == BLOCK)) {
                memcpy(to, x + *places, BLOCK * sizeof *to);
                continue;
            }
            memset(to, 0, BLOCK * sizeof *to);
            for (int64_t c = 0; !is_outside && c < rest; c++) to[c] = x[*places + c];
        }
}

/// Codes of n windows, `step` floats apart in the image, in row r of the block and those after it.
static void quantize_rows(const job *j, const float *x, int64_t step, int64_t n, const int64_t *places, bool any_outside, int64_t r, const room *in) {
    const qrt_q8_weights *w = j->w;
    const qrt_codes_q8 *codes = &w->kernel->codes;
    const float *inverse_scales = in->inverse_scales + r;
    qrt_q8_row *rows = in->rows + r;
    char *packed = in->packed + r * w->row_bytes;
    if (!j->gathers) {
        codes->quantize_pieces(x, step, n, places, j->num_pieces, any_outside, w->k_padded, inverse_scales, rows, j->qmax, packed, w->row_bytes);
        return;
    }
    for (int64_t i = 0; i < n; i++, x += step, packed += w->row_bytes) {
        gather(j, x, places, any_outside, in->floats);
        codes->quantize(in->floats, w->base.k, w->k_padded, inverse_scales[i], rows[i].zero_point, j->qmax, packed, w->zero_points ? &rows[i].sum : NULL);
        if (w->zero_points) rows[i].sum -= w->base.k * rows[i].zero_point;
    }
}

/// Places in the image of a window that is not inside, the first pixel of which lies at `first`.
static void find_places(const job *j, const int64_t *first, int64_t *places) {
    const qrt_convolution *g = j->g;
    const int64_t origin = ((first[0] * g->in[1] + first[1]) * g->in[2] + first[2]) * BLOCK;
    int64_t t = 0;
    for (int64_t d = 0; d < g->window[0]; d++)
        for (int64_t h = 0; h < g->window[1]; h++) {
            const int64_t slice = first[0] + d * g->dilation[0], row = first[1] + h * g->dilation[1];
            const bool is_row = slice >= 0 && slice < g->in[0] && row >= 0 && row < g->in[1];
            for (int64_t v = 0; v < g->window[2]; v++, t++) {
                const int64_t column = first[2] + v * g->dilation[2];
                places[t] = is_row && column >= 0 && column < g->in[2] ? origin + j->places[t] : QRT_OUTSIDE;
            }
        }
    for (; t < j->num_pieces; t++) places[t] = places[t - g->taps] == QRT_OUTSIDE ? QRT_OUTSIDE : places[t - g->taps] + j->x_plane;
}

/// Codes of `count` windows in a row, the first of them at `at` and row r of the block.
static void quantize_windows(const job *j, int64_t image, const int64_t *at, int64_t count, int64_t r, const room *in) {
    const qrt_convolution *g = j->g;
    const float *x = j->x + image * j->x_image;
    int64_t first[3];
    for (int d = 0; d < 3; d++) first[d] = at[d] * g->stride[d] - g->begin[d];
    if (j->in_columns) {  // the copy begins with the padding
        x += (at[0] * g->stride[0] * g->padded[1] + at[1] * g->stride[1]) * j->x_row + at[2] * g->stride[2] * g->channels;
        quantize_rows(j, x, g->stride[2] * g->channels, count, j->places, false, r, in);
        return;
    }
    bool is_inside = true;
    for (int d = 0; d < 2; d++) is_inside = is_inside && first[d] >= 0 && first[d] + (g->window[d] - 1) * g->dilation[d] < g->in[d];
    const int64_t begin = is_inside ? qrt_min(qrt_max(j->whole_begin - at[2], 0), count) : count;
    const int64_t end = qrt_max(begin, qrt_min(j->whole_end - at[2], count)), line = (first[0] * g->in[1] + first[1]) * g->in[2];
    for (int64_t i = 0; i < count; i++) {
        if (i == begin && begin < end) {
            const int64_t column = first[2] + begin * g->stride[2];
            quantize_rows(j, x + (line + column) * BLOCK, g->stride[2] * BLOCK, end - begin, j->places, false, r + begin, in);
            i = end - 1;
            continue;
        }
        find_places(j, (const int64_t[]){first[0], first[1], first[2] + i * g->stride[2]}, in->places);
        quantize_rows(j, x, 0, 1, in->places, true, r + i, in);
    }
}

// ------------------------------------------------------------------------------------------ products

/// Of the windows of an image from `position` on, `count` of them, so many are in a row with the first, which lies at `at`.
static int64_t in_a_row(const job *j, int64_t position, int64_t count, int64_t *at) {
    const qrt_convolution *g = j->g;
    at[0] = position / g->out[2] / g->out[1];
    at[1] = position / g->out[2] % g->out[1];
    at[2] = position % g->out[2];
    return j->is_dense ? count : qrt_min(count, g->out[2] - at[2]);
}

/// Windows first … first + count − 1 of an image into codes.
static void quantize_chunk(const job *j, int64_t image, int64_t first, int64_t count, const room *in) {
    int64_t at[3];
    for (int64_t r = 0, some; r < count; r += some) {
        some = in_a_row(j, first + r, count - r, at);
        extremes_of_windows(j, image, at, some, from(in->extremes, r));
    }
    qrt_kernels.conv_q8.parameters(in->extremes.least, in->extremes.greatest, count, j->qmax, in->rows, in->inverse_scales);
    for (int64_t r = 0, some; r < count; r += some) {
        some = in_a_row(j, first + r, count - r, at);
        quantize_windows(j, image, at, some, r, in);
    }
}

static void run_chunk(const job *j, int64_t image, int64_t first, const room *in) {
    const qrt_q8_weights *w = j->w;
    const qrt_blocked_epilogue *e = j->epilogue;
    const int64_t count = qrt_min(j->chunk, j->g->positions - first), at = image * e->image + first * BLOCK;
    const bool maps = e->after.map.fn;
    quantize_chunk(j, image, first, count, in);
    const qrt_q8_block block = {
        .a = in->packed, .a_stride_bytes = w->row_bytes, .rows = in->rows, .num_rows = (int)count, .y = e->y + at, .ldy_elems = BLOCK,
        .gap_elems = e->plane - BLOCK, .clips = e->of_tile.low > -INFINITY || e->of_tile.high < INFINITY,
        .low = e->of_tile.low, .high = e->of_tile.high,
        .epilogue = {
            .activation = e->after.activation, .addend = e->addend ? e->addend + at : NULL, .addend_stride_elems = BLOCK,
            .residual = e->residual && !maps ? e->residual + at : NULL, .residual_stride_elems = BLOCK,
        },
    };
    ((const qrt_q8_kind *)w->base.ops)->multiply(&w->base, &block, 0, w->num_panels);
    for (int64_t b = 0; maps && b < w->base.n / BLOCK; b++) qrt_finish_block(e, image, b, first, count);
}

static void run_slot(void *context, int64_t slot) {
    const job *j = context;
    const int64_t units = j->g->images * j->chunks;
    const room in = room_of(j, slot);
    for (int64_t unit = units * slot / j->slots; unit < units * (slot + 1) / j->slots; unit++)
        run_chunk(j, unit / j->chunks, unit % j->chunks * j->chunk, &in);
}

// ----------------------------------------------------------------------------------------------- node

/// A row of the copy [images, padded[0], padded[1], x_row], and zeros behind its last pixel.
static void copy_row(void *context, int64_t task) {
    const job *j = context;
    const qrt_convolution *g = j->g;
    float *to = j->copy + task * j->x_row;
    const int64_t row = task % g->padded[1] - g->begin[1], slice = task / g->padded[1] % g->padded[0] - g->begin[0];
    const int64_t image = task / g->padded[1] / g->padded[0], plane = g->in[0] * g->in[1] * g->in[2];
    memset(to, 0, (size_t)j->x_row * sizeof *to);
    if (slice < 0 || slice >= g->in[0] || row < 0 || row >= g->in[1]) return;
    const float *line = j->image + image * g->channels * plane + (slice * g->in[1] + row) * g->in[2];
    qrt_kernels.conv_q8.interleave(line, plane, g->channels, g->in[2], to + g->begin[2] * g->channels);
}

static void set_places(const job *j) {
    const qrt_convolution *g = j->g;
    const int64_t of_row = qrt_ceil_div(g->window[2] * g->channels, BLOCK);
    int64_t *place = j->places;
    for (int64_t d = 0; d < g->window[0]; d++)
        for (int64_t h = 0; h < g->window[1]; h++) {
            if (j->in_columns) {
                const int64_t row = (d * g->dilation[0] * g->padded[1] + h * g->dilation[1]) * j->x_row;
                for (int64_t i = 0; i < of_row; i++) *place++ = row + i * BLOCK;
                continue;
            }
            const int64_t row = (d * g->dilation[0] * g->in[1] + h * g->dilation[1]) * g->in[2];
            for (int64_t v = 0; v < g->window[2]; v++) *place++ = (row + v * g->dilation[2]) * BLOCK;
        }
    for (; place < j->places + j->num_pieces; place++) *place = place[-g->taps] + j->x_plane;
}

/// Says how the work is divided: blocks of rows of nearly equal size, so many that threads end together.
static void divide(job *j, int threads) {
    const qrt_convolution *g = j->g;
    const int64_t positions = g->positions, wanted = threads > 1 ? TASKS_PER_THREAD * (int64_t)threads : 1, mr = j->w->kernel->mr;
    const int64_t most = qrt_min(MAX_ROWS, qrt_max(j->w->block_rows, mr));
    const int64_t parts = qrt_max(qrt_ceil_div(positions, most), qrt_ceil_div(wanted, g->images));
    j->chunk = qrt_min(most, qrt_ceil_div(qrt_ceil_div(positions, parts), mr) * mr);
    j->chunks = qrt_ceil_div(positions, j->chunk);
    j->slots = qrt_min(wanted, g->images * j->chunks);
    j->line_slots = qrt_max(1, qrt_min(wanted, j->lines));
}

/// a · b · c parts of `bytes` more; false when they cannot be counted.
static bool add_bytes(int64_t *total, int64_t a, int64_t b, int64_t c, int64_t bytes) {
    const int64_t factors[] = {b, c, bytes};
    for (int i = 0; i < 3; i++)
        if (__builtin_mul_overflow(a, factors[i], &a) || a > INT64_MAX / 4) return false;
    return !__builtin_add_overflow(*total, round_up(a), total);
}

static qrt_status convolve(job *j, qrt_run *run) {
    const qrt_convolution *g = j->g;
    const double work = (double)g->images * (double)g->maps * (double)j->w->base.k * (double)g->positions;
    const int threads = work < MIN_PARALLEL_WORK ? 1 : run->num_threads;
    const int64_t windows = j->is_pointwise ? 0 : g->out[2];
    int64_t bytes = 0;
    if (!add_bytes(&bytes, g->images, g->in[0] * g->in[1], windows, 2 * 4)) return QRT_NO_MEMORY;
    if (j->in_columns && !add_bytes(&bytes, g->images, g->padded[0] * g->padded[1], j->x_row, 4)) return QRT_NO_MEMORY;
    j->lines = g->images * g->in[0] * g->in[1];
    divide(j, threads);
    j->slot_bytes = room_bytes(j);
    const int64_t rooms = qrt_max(j->slot_bytes * j->slots, 2 * round_up(g->in[2] * 4) * j->line_slots), ranges = j->lines * windows;
    if (!add_bytes(&bytes, 1, 1, 1, rooms) || !add_bytes(&bytes, 1, 1, j->num_pieces, 8)) return QRT_NO_MEMORY;
    bytes += QRT_ALIGNMENT;  // ranges are rounded up twice
    qrt_buffer *scratch = qrt_scratch(run, (size_t)bytes);
    if (!scratch) return QRT_NO_MEMORY;
    char *at = scratch->data;
    j->scratch = take(&at, 1, rooms);
    j->places = take(&at, j->num_pieces, (int64_t)sizeof *j->places);
    j->map.least = take(&at, ranges, (int64_t)sizeof *j->map.least);
    j->map.greatest = take(&at, ranges, (int64_t)sizeof *j->map.greatest);
    set_places(j);
    if (j->in_columns) {
        j->x = j->copy = (float *)(void *)at;
        j->x_image = g->padded[0] * g->padded[1] * j->x_row;
        qrt_parallel_for(threads, g->images * g->padded[0] * g->padded[1], copy_row, j);
    }
    if (!j->is_pointwise) qrt_parallel_for(threads, j->line_slots, find_extremes, j);
    qrt_parallel_for(threads, j->slots, run_slot, j);
    qrt_scratch_free(run, scratch);
    return QRT_OK;
}

/// ints: as those of conv, then window[r], channels, maps, whether x is not in blocks, the greatest code of activations.
/// floats: of the activation. packed: qrt_q8_weights with the bias, of ⌈M / 16⌉ · 16 columns, in the order of pieces.
/// Inputs: float32 x, in blocks [N, ⌈C / 16⌉, …, 16], or [N, C, …]; optional residual and addend of the shape of the output,
/// [N, ⌈M / 16⌉, …, 16].
static qrt_status blocked_conv_q8(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = in[0];
    const qrt_q8_weights *w = node->packed[0];
    if (node->num_ints < 1 || node->ints[0] < 1 || node->ints[0] > 3 || node->num_ints != 8 + 5 * node->ints[0]) return QRT_DECLINE;
    const int32_t rank = (int32_t)node->ints[0] + 2;
    const int64_t *window = node->ints + 4 + 4 * (rank - 2), *more = window + rank - 2;
    const bool in_columns = more[2];
    if (!x || x->dtype != QRT_F32 || x->rank != rank + !in_columns) return QRT_DECLINE;
    int64_t w_dims[5] = {more[1], more[0]};
    memcpy(w_dims + 2, window, (size_t)(rank - 2) * sizeof *window);
    qrt_tensor plain = {.rank = rank};
    memcpy(plain.dims, x->dims, (size_t)rank * sizeof *x->dims);
    if (!in_columns) {
        if (x->dims[1] != qrt_ceil_div(more[0], BLOCK) || x->dims[rank] != BLOCK) return QRT_DECLINE;
        plain.dims[1] = more[0];
    }
    qrt_convolution g;
    if (!qrt_measure_convolution(node->ints, node->num_ints, &plain, rank, w_dims, &g)) return QRT_DECLINE;
    const int64_t pieces = in_columns ? g.window[0] * g.window[1] * qrt_ceil_div(g.window[2] * g.channels, BLOCK)
                                      : g.taps * qrt_ceil_div(g.channels, BLOCK);
    if (g.groups != 1 || w->base.k != pieces * BLOCK || (in_columns && g.dilation[2] != 1)) return QRT_DECLINE;

    qrt_blocked_epilogue epilogue;
    const qrt_status status = qrt_begin_blocked(node, run, in, rank, w->base.n / BLOCK, NULL, &g, &out[0], &epilogue);
    if (status != QRT_OK || out[0].size == 0) return status;
    const int64_t pixels = g.in[0] * g.in[1] * g.in[2];
    job j = {
        .g = &g, .w = w, .epilogue = &epilogue, .qmax = (int32_t)more[3], .in_columns = in_columns, .num_pieces = pieces,
        .gathers = w->zero_points || !w->kernel->codes.quantize_pieces, .image = x->data, .x = x->data,
        .x_plane = pixels * BLOCK, .x_image = pixels * BLOCK * x->dims[1],
    };
    j.is_pointwise = !in_columns && g.taps == 1 && !memcmp(g.padded, g.in, sizeof g.in);
    j.is_dense = j.is_pointwise && g.positions == pixels;
    for (int d = 0; j.is_dense && d < 3; d++) g.stride[d] = 1;  // of an axis with a stride there is one pixel only
    qrt_find_whole_columns(&g, &j.whole_begin, &j.whole_end);
    if (j.is_dense) j.whole_end = g.positions;
    j.x_row = g.padded[2] * g.channels + BLOCK;  // the last piece of a row may read beyond it
    return convolve(&j, run);
}

const qrt_node_entry qrt_blocked_conv_q8_nodes[] = {
    {"blocked_conv_q8", blocked_conv_q8},
    {NULL, NULL},
};
