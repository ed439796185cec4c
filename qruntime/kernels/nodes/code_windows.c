#include "code_windows.h"

#include <string.h>

#include "../threads.h"
#include "code_division.h"

/// Rows of sums that share a panel of weights while that is in the cache.
enum { MOST_ROWS = 256 };

typedef struct {
    const qrt_convolution *g;
    const qrt_code_layer *layer;
    const uint8_t *image, *x;   ///< the input; what windows read: it, or its copy
    uint8_t *copy;
    uint8_t padding, change;    ///< the byte of what lies outside; what makes of codes those that the kernel reads
    int64_t x_line, x_slice, x_image;  ///< bytes of x
    qrt_q8_windows windows;     ///< but its codes
    char *y;
    int32_t *pixels, *sums;     ///< where weights have zero points, sums of codes: of pixels of x, of windows less the zero point
    int64_t item;
    qrt_code_division division;  ///< of the lines of all slices of all images
} job;

static uint8_t change_of(const qrt_code_layer *layer) {
    const qrt_gemm_q8 *kernel = layer->w->kernel;
    return (uint8_t)(layer->flip ^ (kernel->code_offset ? kernel->code_offset(layer->zero) : 0));
}

bool qrt_takes_windows(const qrt_convolution *g, const qrt_q8_weights *w) {
    const qrt_gemm_q8 *kernel = w->kernel;
    if (!kernel->window_sums || g->groups != 1 || kernel->kr != QRT_PIECE_STEP || (w->zero_points && !kernel->takes_codes)) return false;
    return g->dilation[2] == 1 || g->channels % QRT_PIECE_STEP == 0;
}

/// A line of the copy with what lies beside it.
static void copy_line(void *context, int64_t at) {
    const job *j = context;
    const qrt_convolution *g = j->g;
    uint8_t *to = j->copy + at * j->x_line;
    const int64_t row = at % g->padded[1] - g->begin[1], slice = at / g->padded[1] % g->padded[0] - g->begin[0];
    const int64_t image = at / g->padded[1] / g->padded[0], bytes = g->in[2] * g->channels, before = g->begin[2] * g->channels;
    const uint8_t outside = j->padding ^ j->change;
    if (slice < 0 || slice >= g->in[0] || row < 0 || row >= g->in[1]) {
        memset(to, outside, (size_t)j->x_line);
        return;
    }
    const uint8_t *from = j->image + ((image * g->in[0] + slice) * g->in[1] + row) * bytes;
    memset(to, outside, (size_t)before);
    memset(to + before + bytes, outside, (size_t)(j->x_line - before - bytes));
    if (j->change == 0) memcpy(to + before, from, (size_t)bytes);
    else for (int64_t i = 0; i < bytes; i++) to[before + i] = from[i] ^ j->change;
}

static void sum_pixels(void *context, int64_t line) {
    const job *j = context;
    const int64_t width = j->g->padded[2], channels = j->g->channels;
    qrt_kernels.qlinear.row_sums(j->x + line * j->x_line, channels, width, channels, j->pixels + line * width);
}

/// Of the windows of a line.
static void sum_windows(void *context, int64_t line) {
    const job *j = context;
    const qrt_convolution *g = j->g;
    const int64_t slice = line / g->out[1], image = slice / g->out[0];
    int32_t *sums = j->sums + line * g->out[2];
    for (int64_t i = 0; i < g->out[2]; i++) sums[i] = -(int32_t)g->depth * j->layer->zero;
    for (int64_t d = 0; d < g->window[0]; d++)
        for (int64_t h = 0; h < g->window[1]; h++) {
            const int64_t at = slice % g->out[0] * g->stride[0] + d * g->dilation[0], row = line % g->out[1] * g->stride[1] + h * g->dilation[1];
            const int32_t *pixels = j->pixels + ((image * g->padded[0] + at) * g->padded[1] + row) * g->padded[2];
            for (int64_t v = 0; v < g->window[2]; v++)
                for (int64_t i = 0; i < g->out[2]; i++) sums[i] += pixels[i * g->stride[2] + v * g->dilation[2]];
        }
}

/// Lines first … last − 1 of those of all slices, which lie in one.
static void multiply_lines(const job *j, int64_t first, int64_t last, int64_t first_panel, int64_t last_panel) {
    const qrt_convolution *g = j->g;
    const int64_t slice = first / g->out[1], row = first % g->out[1];
    qrt_q8_windows windows = j->windows;
    windows.codes = j->x + slice / g->out[0] * j->x_image + slice % g->out[0] * g->stride[0] * j->x_slice + row * g->stride[1] * j->x_line;
    char *y = j->y + first * g->out[2] * g->maps * j->item;
    const int32_t *sums = j->sums ? j->sums + first * g->out[2] : NULL;
    qrt_code_window_product(j->layer, &windows, last - first, g->stride[1] * j->x_line, sums, first_panel, last_panel, y, g->maps);
}

static void multiply_unit(void *context, int64_t unit) {
    const job *j = context;
    const qrt_code_division *d = &j->division;
    const int64_t of_slice = j->g->out[1], panel = unit / d->blocks * d->panels, end = qrt_block_begin(d, unit % d->blocks + 1);
    for (int64_t line = qrt_block_begin(d, unit % d->blocks), next; line < end; line = next) {
        next = qrt_min(end, (line / of_slice + 1) * of_slice);
        multiply_lines(j, line, next, panel, panel + d->panels);
    }
}

static void set_places(const job *j, int64_t *places) {
    const qrt_convolution *g = j->g;
    for (int64_t d = 0; d < g->window[0]; d++)
        for (int64_t h = 0; h < g->window[1]; h++) {
            const int64_t row = d * g->dilation[0] * j->x_slice + h * g->dilation[1] * j->x_line;
            if (g->dilation[2] == 1) *places++ = row;
            else for (int64_t v = 0; v < g->window[2]; v++) *places++ = row + v * g->dilation[2] * g->channels;
        }
}

/// Bytes that windows may read beyond the last code.
enum { BEYOND = QRT_PIECE_STEP };

qrt_status qrt_multiply_windows(const qrt_convolution *g, qrt_run *run, int num_threads, const qrt_code_layer *layer, const uint8_t *x,
                                uint8_t padding, void *y) {
    job j = {.g = g, .layer = layer, .image = x, .x = x, .padding = padding, .change = change_of(layer), .y = y};
    const int64_t rows = g->window[0] * g->window[1];
    const int64_t piece = (g->dilation[2] == 1 ? g->window[2] : 1) * g->channels;
    const bool is_padded = memcmp(g->padded, g->in, sizeof g->in) != 0;
    const bool copies = is_padded || j.change || piece % QRT_PIECE_STEP;
    j.x_line = g->padded[2] * g->channels;
    j.x_slice = g->padded[1] * j.x_line;
    j.x_image = g->padded[0] * j.x_slice;
    j.windows = (qrt_q8_windows){
        .step_bytes = g->stride[2] * g->channels, .num_pieces = rows * (g->dilation[2] == 1 ? 1 : g->window[2]),
        .piece_bytes = qrt_ceil_div(piece, QRT_PIECE_STEP) * QRT_PIECE_STEP, .num_windows = (int)g->out[2],
    };
    const int64_t places = j.windows.num_pieces * (int64_t)sizeof(int64_t), lines = g->images * g->padded[0] * g->padded[1];
    const int64_t pixels = layer->w->zero_points ? lines * g->padded[2] : 0, positions = layer->w->zero_points ? g->images * g->positions : 0;
    int64_t bytes = 0;
    if (copies && __builtin_mul_overflow(g->images, j.x_image, &bytes)) return QRT_NO_MEMORY;
    if (g->out[2] > INT32_MAX || bytes > INT64_MAX / 16 || pixels > INT64_MAX / 16 || positions > INT64_MAX / 16) return QRT_NO_MEMORY;
    qrt_buffer *scratch = qrt_scratch(run, (size_t)(places + (pixels + positions) * (int64_t)sizeof(int32_t) + bytes + BEYOND));
    if (!scratch) return QRT_NO_MEMORY;
    set_places(&j, scratch->data);
    j.windows.places = scratch->data;
    j.pixels = (int32_t *)(void *)((char *)scratch->data + places);
    if (copies) {
        j.x = j.copy = (uint8_t *)(j.pixels + pixels + positions);
        qrt_parallel_for(num_threads, lines, copy_line, &j);
        memset(j.copy + g->images * j.x_image, 0, BEYOND);
    }
    if (layer->w->zero_points) {
        j.sums = j.pixels + pixels;
        qrt_parallel_for(num_threads, lines, sum_pixels, &j);
        qrt_parallel_for(num_threads, g->images * g->out[0] * g->out[1], sum_windows, &j);
    }
    j.item = layer->dtype == QRT_I32 ? (int64_t)sizeof(int32_t) : 1;
    const int64_t out_lines = g->images * g->out[0] * g->out[1];
    j.division = qrt_divide_codes(layer->w, num_threads, out_lines, qrt_min(MOST_ROWS / g->out[2], g->out[1]), lines * j.x_line, true);
    qrt_parallel_for(num_threads, j.division.blocks * j.division.runs, multiply_unit, &j);
    qrt_scratch_free(run, scratch);
    return QRT_OK;
}
