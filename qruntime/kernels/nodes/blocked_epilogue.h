/// The epilogue of a convolution of channels in blocks: what its tiles do to their sums in registers, and what follows.
#ifndef QRT_BLOCKED_EPILOGUE_H
#define QRT_BLOCKED_EPILOGUE_H

#include <math.h>
#include <string.h>

#include "../conv_weights.h"
#include "convolution.h"
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

/// What every convolution of channels in blocks begins with: its output [N, blocks, …, 16] of the shapes in `g`, of images of `rank`
/// out of blocks, and the epilogue of the bias [blocks · 16] or NULL and the activation ints[2], with the optional inputs 1, the
/// residual, and 2, the addend.
static inline qrt_status qrt_begin_blocked(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, int32_t rank, int64_t blocks,
                                           const float *bias, const qrt_convolution *g, qrt_tensor *out, qrt_blocked_epilogue *e) {
    const qrt_tensor *residual = node->num_inputs > 1 ? in[1] : NULL, *addend = node->num_inputs > 2 ? in[2] : NULL;
    int64_t dims[QRT_MAX_RANK] = {g->images, blocks};
    for (int i = 2; i < rank; i++) dims[i] = g->out[3 - rank + i];
    dims[rank] = QRT_CHANNEL_BLOCK;
    if (!qrt_is_image_like(residual, rank + 1, dims) || !qrt_is_image_like(addend, rank + 1, dims)) return QRT_DECLINE;
    if (!qrt_split_epilogue(node, node->ints[2], bias, addend, residual, e)) return QRT_DECLINE;
    const qrt_status status = qrt_alloc(run, out, QRT_F32, rank + 1, dims);
    if (status != QRT_OK) return status;
    e->y = out->data;
    e->plane = g->positions * QRT_CHANNEL_BLOCK;
    e->image = e->plane * blocks;
    return QRT_OK;
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
