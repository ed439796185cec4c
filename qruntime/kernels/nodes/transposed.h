/// Shapes of a transposed convolution, of images in blocks and of others.
#ifndef QRT_TRANSPOSED_H
#define QRT_TRANSPOSED_H

#include "convolution.h"

/// All shapes brought to three spatial dims. Output position p of a dim reads taps k of inputs i with
/// p + begin = i · stride + k · dilation.
typedef struct {
    int64_t images, channels, maps, groups;
    int64_t in[3], out[3], window[3], stride[3], dilation[3], begin[3];
    int64_t period[3];  ///< taps of one remainder are this far apart,
    int64_t spread[3];  ///< and the inputs that they meet this far
} qrt_transposed;

static inline int64_t qrt_gcd(int64_t a, int64_t b) { return b ? qrt_gcd(b, a % b) : a; }

/// Shapes from an image x [N, C, …], the number of weights, and ints: those of conv_transpose. False when they do not fit together.
static inline bool qrt_measure_transposed(const qrt_node *node, const qrt_tensor *x, int64_t num_weights, qrt_transposed *t) {
    enum { QRT_AUTO_PADS(QRT_ENUMERATOR) };
    if (node->num_ints < 5) return false;
    const int64_t *ints = node->ints, limit = (int64_t)1 << 30;
    int64_t rank = ints[0], auto_pad = ints[3];
    if (rank < 1 || rank > 3 || node->num_ints != 5 + 7 * rank || x->rank != rank + 2) return false;
    const int64_t *strides = ints + 5, *begins = strides + rank, *ends = begins + rank, *dilations = ends + rank;
    const int64_t *windows = dilations + rank, *extras = windows + rank, *shape = extras + rank;
    *t = (qrt_transposed){.images = x->dims[0], .channels = x->dims[1], .groups = ints[1], .maps = ints[4]};
    if (t->groups < 1 || t->maps < 1 || t->channels % t->groups || t->maps % t->groups) return false;
    int64_t weights;
    if (__builtin_mul_overflow(t->maps, t->channels / t->groups, &weights)) return false;
    for (int i = 0; i < 3; i++)
        t->in[i] = t->out[i] = t->window[i] = t->stride[i] = t->dilation[i] = t->period[i] = t->spread[i] = 1;
    for (int d = 0; d < rank; d++) {
        int i = 3 - (int)rank + d;
        int64_t size = t->in[i] = x->dims[d + 2], stride = t->stride[i] = strides[d], end = ends[d], extra = extras[d];
        int64_t window = t->window[i] = windows[d], dilation = t->dilation[i] = dilations[d], begin = begins[d];
        if (size < 1 || window < 1 || stride < 1 || dilation < 1 || begin < 0 || end < 0 || extra < 0 || shape[d] < 0) return false;
        if (size > limit || window > limit || stride > limit || dilation > limit || begin > limit || end > limit ||
            extra > limit || shape[d] > limit)
            return false;
        int64_t whole = (size - 1) * stride + (window - 1) * dilation + 1 + extra, out = whole - begin - end;
        if (auto_pad == SAME_UPPER || auto_pad == SAME_LOWER || shape[d]) {
            out = shape[d] ? shape[d] : size * stride;
            int64_t total = qrt_max(0, whole - out);
            begin = auto_pad == SAME_UPPER ? total / 2 : total - total / 2;
        }
        if (out < 0) return false;
        t->out[i] = out;
        t->begin[i] = begin;
        int64_t shared = qrt_gcd(stride, dilation);
        t->period[i] = stride / shared;
        t->spread[i] = dilation / shared;
        if (__builtin_mul_overflow(weights, window, &weights)) return false;
    }
    return num_weights == weights;
}

#endif
