/// The image that a convolution of channels in blocks reads: of one input, or of several whose channels follow one another.
#ifndef QRT_BLOCKED_IMAGES_H
#define QRT_BLOCKED_IMAGES_H

#include <string.h>

#include "../conv_weights.h"
#include "convolution.h"

/// Inputs of an image: the first one, and all behind residual and addend.
static inline bool qrt_is_image(int input) { return input == 0 || input > 2; }

/// Where the planes of every image are: those of all inputs, one after the other, `plane` floats each.
static inline void qrt_list_planes(const qrt_node *node, const qrt_tensor *const *in, int64_t images, int64_t plane, const float **planes) {
    for (int64_t image = 0; image < images; image++)
        for (int i = 0; i < node->num_inputs; i++) {
            const int64_t count = qrt_is_image(i) ? in[i]->dims[1] : 0;
            for (int64_t p = 0; p < count; p++) *planes++ = (const float *)in[i]->data + (image * count + p) * plane;
        }
}

/// The shape of the image that all inputs are together, out of its blocks; false where they do not fit together or to the weights.
static inline bool qrt_measure_image(const qrt_node *node, const qrt_tensor *const *in, const qrt_conv_weights *w, qrt_tensor *image) {
    const bool in_columns = w->kind == QRT_CONV_COLUMNS;
    const int32_t rank = w->rank;
    int64_t blocks = 0;
    for (int i = 0; i < node->num_inputs; i++) {
        const qrt_tensor *x = in[i], *first = in[0];
        if (!qrt_is_image(i)) continue;
        if (!x || x->dtype != QRT_F32 || x->rank != rank + !in_columns || (in_columns && i > 0)) return false;
        if (!in_columns && x->dims[rank] != QRT_CHANNEL_BLOCK) return false;
        for (int d = 0; d < rank; d++)
            if (d != 1 && x->dims[d] != first->dims[d]) return false;
        if (__builtin_add_overflow(blocks, x->dims[1], &blocks)) return false;
    }
    *image = (qrt_tensor){.rank = rank};
    memcpy(image->dims, in[0]->dims, (size_t)rank * sizeof *image->dims);
    image->dims[1] = in_columns ? blocks : w->channels;
    return in_columns || blocks == qrt_ceil_div(w->channels, QRT_CHANNEL_BLOCK);
}

#endif
