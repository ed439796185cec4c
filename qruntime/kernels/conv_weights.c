#include "conv_weights.h"

#include <stdlib.h>
#include <string.h>

#include "threads.h"

enum { BLOCK = QRT_CHANNEL_BLOCK };

static int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

/// Groups of at most `most` blocks each; those of several parts are all as large, so that none is of two parts.
static int64_t count_groups(int64_t blocks, int64_t most, int64_t parts) {
    int64_t groups = ceil_div(blocks, most);
    while (parts > 1 && blocks % groups) groups++;
    return groups * parts;
}

/// Everything but the memory; false when the dims do not suit.
static bool lay_out(const qrt_conv_f32 *kernel, qrt_conv_kind kind, int64_t parts, int32_t rank, const int64_t *dims, qrt_conv_weights *w,
                    size_t *floats) {
    if (kind < 0 || kind >= QRT_NUM_CONV_KINDS || rank < 3 || rank > 5) return false;
    int64_t size, taps = 1;
    for (int i = 0; i < rank; i++)
        if (dims[i] < 1) return false;
    // Blocks are filled up with zeros, 16 times as much at most in each of two dims; 9 taps may become 16.
    if (!qrt_num_elements(rank, dims, &size) || size > INT64_MAX / (2 * BLOCK * BLOCK * (int64_t)sizeof(float))) return false;
    for (int i = 2; i < rank; i++) taps *= dims[i];
    const bool is_grouped = kind == QRT_CONV_GROUPED, is_by_itself = kind == QRT_CONV_DEPTHWISE || is_grouped;
    if (kind == QRT_CONV_DEPTHWISE && dims[1] != 1) return false;
    if (is_grouped && ((dims[1] != 2 && dims[1] != 4 && dims[1] != 8) || dims[0] % dims[1])) return false;
    if (parts < 1 || (parts > 1 && (kind != QRT_CONV_BLOCKS || dims[1] % BLOCK || dims[0] % parts || dims[0] / parts % BLOCK))) return false;
    if (parts > INT64_MAX / dims[1]) return false;
    if (kind == QRT_CONV_WINOGRAD && (rank != 4 || dims[2] != 3 || dims[3] != 3)) return false;
    *w = (qrt_conv_weights){.base = {&qrt_conv_ops, dims[1] * taps, dims[0], NULL}, .kernel = *kernel, .kind = kind, .rank = rank, .parts = parts};
    memcpy(w->dims, dims, (size_t)rank * sizeof *dims);
    w->channels = is_by_itself ? dims[0] : dims[1] * parts;
    w->blocks = ceil_div(dims[0], BLOCK);
    w->groups = is_by_itself ? w->blocks : count_groups(w->blocks / parts, kernel->blocks, parts);
    w->planes = kind == QRT_CONV_COLUMNS ? dims[1] : is_by_itself ? 1 : ceil_div(dims[1], BLOCK);
    w->floats = kind == QRT_CONV_COLUMNS ? dims[rank - 1] : is_by_itself ? dims[1] : BLOCK;
    w->taps = kind == QRT_CONV_COLUMNS ? taps / dims[rank - 1] : kind == QRT_CONV_WINOGRAD ? 16 : taps;
    *floats = (size_t)(w->planes * w->taps * w->floats) * (size_t)(w->blocks * BLOCK);
    return true;
}

size_t qrt_conv_packed_bytes(const qrt_conv_f32 *kernel, qrt_conv_kind kind, int64_t parts, int32_t rank, const int64_t *dims) {
    qrt_conv_weights w;
    size_t floats;
    if (!lay_out(kernel, kind, parts, rank, dims, &w, &floats)) return 0;
    return (floats + (size_t)w.blocks * BLOCK) * sizeof(float);
}

typedef struct {
    const qrt_conv_weights *w;
    const float *from;  ///< [M, C / group, taps]
} packing;

static void pack_group(void *context, int64_t group) {
    const packing *p = context;
    const qrt_conv_weights *w = p->w;
    const int64_t first = qrt_conv_first_block(w, group), last = qrt_conv_first_block(w, group + 1), columns = (last - first) * BLOCK;
    const int64_t depth = w->base.k, taps = w->taps * (w->kind == QRT_CONV_COLUMNS ? w->floats : 1);
    float *to = w->values + first * BLOCK * w->planes * w->taps * w->floats;
    for (int64_t plane = 0; plane < w->planes; plane++)
        for (int64_t tap = 0; tap < w->taps; tap++)
            for (int64_t i = 0; i < w->floats; i++, to += columns) {
                const bool in_columns = w->kind == QRT_CONV_COLUMNS;
                const int64_t channel = in_columns || w->floats == 1 ? plane : plane * BLOCK + i, at = in_columns ? tap * w->floats + i : tap;
                for (int64_t j = 0; j < columns; j++) {
                    const int64_t map = first * BLOCK + j;
                    to[j] = map < w->base.n && channel < w->dims[1] ? p->from[map * depth + channel * taps + at] : 0.0f;
                }
            }
}

/// Small groups: lines of a window, one for each channel of the group, whole.
static void pack_block_of_groups(void *context, int64_t block) {
    const packing *p = context;
    const qrt_conv_weights *w = p->w;
    const int64_t depth = w->base.k, columns = w->dims[w->rank - 1], rows = w->taps / columns;
    float *to = w->values + block * depth * BLOCK;
    for (int64_t row = 0; row < rows; row++)
        for (int64_t channel = 0; channel < w->floats; channel++)
            for (int64_t column = 0; column < columns; column++, to += BLOCK)
                for (int64_t j = 0; j < BLOCK; j++) {
                    const int64_t map = block * BLOCK + j;
                    to[j] = map < w->base.n ? p->from[map * depth + channel * w->taps + row * columns + column] : 0.0f;
                }
}

/// G of three.
static void spread_three(const double *g, int from, double *to, int step) {
    const double a = g[0], b = g[from], c = g[2 * from];
    to[0] = a;
    to[step] = (a + b + c) / 2;
    to[2 * step] = (a - b + c) / 2;
    to[3 * step] = c;
}

/// One window: G g Gᵀ [4, 4] of g [3, 3], rounded once.
static void spread_window(const float *window, float *to, int64_t stride) {
    double g[9], rows[12], both[16];
    for (int i = 0; i < 9; i++) g[i] = window[i];
    for (int j = 0; j < 3; j++) spread_three(g + j, 3, rows + j, 3);
    for (int i = 0; i < 4; i++) spread_three(rows + 3 * i, 1, both + 4 * i, 1);
    for (int i = 0; i < 16; i++) to[i * stride] = (float)both[i];
}

static void pack_group_of_winograd(void *context, int64_t group) {
    const packing *p = context;
    const qrt_conv_weights *w = p->w;
    const int64_t first = qrt_conv_first_block(w, group), last = qrt_conv_first_block(w, group + 1), columns = (last - first) * BLOCK;
    const int64_t stride = w->planes * BLOCK * columns;
    float *to = w->values + first * BLOCK * w->planes * w->taps * BLOCK;
    memset(to, 0, (size_t)(w->taps * stride) * sizeof *to);
    for (int64_t channel = 0; channel < w->channels; channel++)
        for (int64_t j = 0; j < columns && first * BLOCK + j < w->base.n; j++)
            spread_window(p->from + (first * BLOCK + j) * w->base.k + channel * 9, to + channel * columns + j, stride);
}

static bool are_finite(const float *x, int64_t n) {
    const uint32_t exponent = 0x7f800000;
    uint32_t found = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof bits);
        found |= (bits & exponent) == exponent;
    }
    return !found;
}

qrt_conv_weights *qrt_conv_pack(const qrt_conv_f32 *kernel, qrt_conv_kind kind, int64_t parts, int32_t rank, const int64_t *dims,
                                const float *weights, const float *bias, qrt_arena *arena, int num_threads) {
    size_t bytes = qrt_conv_packed_bytes(kernel, kind, parts, rank, dims), floats = 0;
    qrt_conv_weights *w = bytes ? malloc(sizeof *w) : NULL;
    qrt_buffer *buffer = w ? qrt_arena_take(arena, bytes) : NULL;
    if (!buffer) {
        free(w);
        return NULL;
    }
    lay_out(kernel, kind, parts, rank, dims, w, &floats);
    w->base.buffer = buffer;
    w->values = buffer->data;
    w->bias = w->values + floats;
    packing p = {w, weights};
    const qrt_task_fn pack = kind == QRT_CONV_WINOGRAD ? pack_group_of_winograd : kind == QRT_CONV_GROUPED ? pack_block_of_groups : pack_group;
    qrt_parallel_for(num_threads, w->groups, pack, &p);
    w->is_finite = are_finite(weights, w->base.n * w->base.k);
    for (int64_t i = 0; i < w->blocks * BLOCK; i++) w->bias[i] = (bias && i < w->base.n ? bias[i] : 0.0f) + 0.0f;
    return w;
}

/// No layer multiplies rows by them.
const qrt_weights_ops qrt_conv_ops = {.name = "conv_f32"};
