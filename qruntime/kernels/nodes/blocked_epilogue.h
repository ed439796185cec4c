/// The epilogue of a convolution of channels in blocks: what its tiles do to their sums in registers, and what follows.
#ifndef QRT_BLOCKED_EPILOGUE_H
#define QRT_BLOCKED_EPILOGUE_H

#include <math.h>
#include <string.h>

#include "../conv_weights.h"
#include "epilogue.h"

/// y = activation(sums + bias + addend) + residual. The last two are images of the shape of y, or NULL.
typedef struct {
    qrt_conv_epilogue of_tile;     ///< without its pointers
    const float *bias, *addend, *residual;
    bool finishes_after;           ///< whether anything is left after the tiles
    qrt_f32_epilogue after;
    float *y;
    int64_t image, plane;          ///< floats of an image of y and of a block of it
} qrt_blocked_epilogue;

/// Whether an optional image has the shape of y.
static inline bool qrt_is_image_like(const qrt_tensor *t, int32_t rank, const int64_t *dims) {
    return !t || (t->dtype == QRT_F32 && t->rank == rank && !memcmp(t->dims, dims, (size_t)rank * sizeof *dims));
}

/// The activation `code` is that of qrt_read_activation; false when there is none such.
static inline bool qrt_split_epilogue(const qrt_node *node, int64_t code, const float *bias, const qrt_tensor *addend,
                                      const qrt_tensor *residual, qrt_blocked_epilogue *e) {
    qrt_activation activation;
    qrt_elementwise map;
    if (!qrt_read_activation(node, code, 0, &activation, &map)) return false;
    *e = (qrt_blocked_epilogue){.of_tile = {.low = -INFINITY, .high = INFINITY}, .bias = bias, .after = {.alpha = 1.0f}};
    e->addend = addend ? addend->data : NULL;
    e->residual = residual ? residual->data : NULL;
    if (activation == QRT_ACT_RELU) {
        e->of_tile.low = 0.0f;
    } else if (map.fn && map.fn == qrt_kernels.pointwise.unary[QRT_CLIP]) {
        e->of_tile.low = map.p;
        e->of_tile.high = map.q;
    } else if (activation != QRT_ACT_NONE || map.fn) {
        e->after.activation = activation;
        e->after.map = map;
        e->finishes_after = true;
    } else if (!e->addend) {
        e->addend = e->residual;
        e->residual = NULL;
    }
    e->finishes_after = e->finishes_after || e->residual;
    return true;
}

/// Of what starts at position `at` of a block.
static inline qrt_conv_epilogue qrt_blocked_epilogue_at(const qrt_blocked_epilogue *e, int64_t image, int64_t block, int64_t at) {
    qrt_conv_epilogue tile = e->of_tile;
    if (e->bias) tile.bias = e->bias + block * QRT_CHANNEL_BLOCK;
    if (e->addend) tile.addend = e->addend + image * e->image + block * e->plane + at * QRT_CHANNEL_BLOCK;
    tile.addend_plane = e->plane;
    return tile;
}

/// What tiles leave undone, on `count` positions of a block.
static inline void qrt_finish_block(const qrt_blocked_epilogue *e, int64_t image, int64_t block, int64_t at, int64_t count) {
    if (!e->finishes_after) return;
    const int64_t place = image * e->image + block * e->plane + at * QRT_CHANNEL_BLOCK, floats = count * QRT_CHANNEL_BLOCK;
    qrt_f32_epilogue after = e->after;
    if (e->residual) after.residual = e->residual + place;
    qrt_f32_finish(&qrt_kernels.gemm_f32, 1, floats, e->y + place, floats, &after);
}

#endif
