/// Shapes of a convolution, which its float, its int8 and its transposed form share.
#ifndef QRT_CONVOLUTION_H
#define QRT_CONVOLUTION_H

#include "../nodes.h"
#include "enumerations.h"

/// Columns of a panel, which are read all although some may lie behind the image.
enum { QRT_CONVOLUTION_ROOM = 64 };

/// All shapes brought to three spatial dims.
typedef struct {
    int64_t images, channels, group_channels, maps, group_maps, groups;
    int64_t in[3], padded[3], out[3], window[3], stride[3], begin[3], dilation[3];
    int64_t taps, depth, positions;  ///< depth = group_channels · taps
    bool has_room;                   ///< the last image may be read QRT_CONVOLUTION_ROOM floats beyond its end
} qrt_convolution;

static inline int64_t qrt_min(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t qrt_max(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int64_t qrt_ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

/// Taps, depth and positions from the rest; false when a padded row could not be addressed.
static inline bool qrt_count_convolution(qrt_convolution *g) {
    // A row may be rounded up to whole strides, and offsets into all channels must fit.
    const int64_t row = qrt_ceil_div(g->padded[2], g->stride[2]) * g->stride[2];
    int64_t plane, whole;
    return qrt_num_elements(3, g->window, &g->taps) && qrt_num_elements(3, g->out, &g->positions) &&
           qrt_num_elements(3, (const int64_t[]){g->padded[0], g->padded[1], row}, &plane) &&
           !__builtin_mul_overflow(g->taps, g->group_channels, &g->depth) &&
           !__builtin_mul_overflow(g->channels, plane, &whole);
}

/// Shapes from an image x [N, C, …], the dims [M, C / group, …] of a weight, and ints: spatial rank r (1 … 3), group, any,
/// auto_pad (0 explicit or VALID, 1 SAME_UPPER, 2 SAME_LOWER), strides[r], pads at the begin[r], pads at the end[r],
/// dilations[r] (VALID: pads 0). False when they do not fit together, or a padded row could not be addressed.
static inline bool qrt_measure_convolution(const int64_t *ints, int32_t num_ints, const qrt_tensor *x, int32_t w_rank,
                                           const int64_t *w_dims, qrt_convolution *g) {
    enum { QRT_AUTO_PADS(QRT_ENUMERATOR) };
    if (num_ints < 4) return false;
    g->has_room = false;
    int64_t rank = ints[0], auto_pad = ints[3];
    if (rank < 1 || rank > 3 || num_ints < 4 + 4 * rank || x->rank != rank + 2 || w_rank != rank + 2) return false;
    const int64_t *strides = ints + 4, *begins = strides + rank, *ends = begins + rank, *dilations = ends + rank;
    g->images = x->dims[0];
    g->channels = x->dims[1];
    g->maps = w_dims[0];
    g->groups = ints[1];
    if (g->groups < 1 || g->channels % g->groups || g->maps % g->groups) return false;
    g->group_channels = g->channels / g->groups;
    g->group_maps = g->maps / g->groups;
    if (w_dims[1] != g->group_channels) return false;
    for (int i = 0; i < 3 - (int)rank; i++) {
        g->in[i] = g->padded[i] = g->out[i] = g->window[i] = g->stride[i] = g->dilation[i] = 1;
        g->begin[i] = 0;
    }
    const int64_t limit = (int64_t)1 << 40;
    for (int d = 0; d < rank; d++) {
        int i = 3 - (int)rank + d;
        int64_t size = g->in[i] = x->dims[d + 2], window = g->window[i] = w_dims[d + 2];
        int64_t stride = g->stride[i] = strides[d], dilation = g->dilation[i] = dilations[d], end = ends[d];
        g->begin[i] = begins[d];
        if (window < 1 || stride < 1 || dilation < 1 || g->begin[i] < 0 || end < 0) return false;
        if (size > limit || window > limit / dilation || stride > limit || g->begin[i] > limit || end > limit) return false;
        int64_t span = (window - 1) * dilation + 1;
        if (auto_pad == SAME_UPPER || auto_pad == SAME_LOWER) {
            int64_t total = qrt_max(0, (qrt_ceil_div(size, stride) - 1) * stride + span - size);
            g->begin[i] = auto_pad == SAME_UPPER ? total / 2 : total - total / 2;
            end = total - g->begin[i];
        }
        g->padded[i] = g->begin[i] + size + end;
        if (g->padded[i] < span) return false;
        g->out[i] = (g->padded[i] - span) / stride + 1;
    }
    return qrt_count_convolution(g);
}

/// Output columns at which no tap of the window is outside of the width: begin … end − 1.
static inline void qrt_find_whole_columns(const qrt_convolution *g, int64_t *begin, int64_t *end) {
    const int64_t room = g->in[2] - 1 - (g->window[2] - 1) * g->dilation[2] + g->begin[2];
    *begin = qrt_min(g->out[2], qrt_ceil_div(g->begin[2], g->stride[2]));
    *end = room < 0 ? *begin : qrt_max(*begin, qrt_min(g->out[2], room / g->stride[2] + 1));
}

/// y [N, M, …] = epilogue(convolution of x [N, C, …] with w [M, C / group, …]), the shapes in `g`. For few output positions
/// `packed`, w as a matrix [C · taps, M] without bias, is read instead where it is not NULL.
qrt_status qrt_convolve(const qrt_convolution *g, qrt_run *run, const float *x, const float *w, const qrt_f32_weights *packed,
                        const qrt_f32_epilogue *epilogue, float *y);

#endif
