/// Images whose channels lie in blocks of 16, made of images [N, C, …] and turned into such again.
#include <string.h>

#include "../conv_f32.h"
#include "../threads.h"
#include "arguments.h"

enum { BLOCK = QRT_CHANNEL_BLOCK };

/// Pixels of a task, and of it those moved at a time: lines of 16 channels stay in the first-level cache.
enum { TASK_PIXELS = 1024, MIN_PARALLEL_FLOATS = 1 << 15 };

typedef struct {
    const float *from;
    float *to;
    int64_t channels, blocks, pixels, pieces;  ///< pieces of TASK_PIXELS in each block
    bool blocks_them;                          ///< else it takes them apart
} regrouping;

static void regroup_piece(void *context, int64_t task) {
    const regrouping *r = context;
    const int64_t piece = task % r->pieces, block = task / r->pieces % r->blocks, image = task / r->pieces / r->blocks;
    const int64_t first = piece * TASK_PIXELS, end = first + TASK_PIXELS < r->pixels ? first + TASK_PIXELS : r->pixels;
    const int64_t left = r->channels - block * BLOCK, count = left < BLOCK ? left : BLOCK;
    const int64_t plain = (image * r->channels + block * BLOCK) * r->pixels, blocked = (image * r->blocks + block) * r->pixels * BLOCK;
    if (r->blocks_them) {
        float *to = r->to + blocked;
        const float *from = r->from + plain;
        if (count == BLOCK) {
            for (int64_t p = first; p < end; p++)
                for (int c = 0; c < BLOCK; c++) to[p * BLOCK + c] = from[c * r->pixels + p];
            return;
        }
        for (int64_t p = first; p < end; p++)
            for (int64_t c = 0; c < BLOCK; c++) to[p * BLOCK + c] = c < count ? from[c * r->pixels + p] : 0.0f;
        return;
    }
    const float *from = r->from + blocked;
    float *to = r->to + plain;
    for (int64_t c = 0; c < count; c++)
        for (int64_t p = first; p < end; p++) to[c * r->pixels + p] = from[p * BLOCK + c];
}

static void regroup(qrt_run *run, const qrt_tensor *x, qrt_tensor *y, int64_t images, int64_t channels, int64_t pixels, bool blocks_them) {
    const int64_t blocks = (channels + BLOCK - 1) / BLOCK, pieces = (pixels + TASK_PIXELS - 1) / TASK_PIXELS;
    regrouping r = {x->data, y->data, channels, blocks, pixels, pieces, blocks_them};
    qrt_parallel_for(y->size < MIN_PARALLEL_FLOATS ? 1 : run->num_threads, images * blocks * pieces, regroup_piece, &r);
}

/// ints: C. Input: float32 [N, C, …], one to three spatial dims. Output: [N, ⌈C / 16⌉, …, 16], zeros behind the last channel.
static qrt_status block_channels(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0);
    if (!qrt_is_tensor(x) || x->dtype != QRT_F32 || x->rank < 3 || x->rank > 5 || x->dims[1] != node->ints[0]) return QRT_DECLINE;
    int64_t dims[QRT_MAX_RANK];
    memcpy(dims, x->dims, (size_t)x->rank * sizeof *dims);
    dims[1] = x->dims[1] / BLOCK + (x->dims[1] % BLOCK != 0);
    dims[x->rank] = BLOCK;
    if (!qrt_is_buildable(x->rank + 1, dims)) return QRT_DECLINE;
    qrt_status status = qrt_alloc(run, &out[0], QRT_F32, x->rank + 1, dims);
    if (status == QRT_OK && out[0].size) regroup(run, x, &out[0], x->dims[0], x->dims[1], qrt_product(x->dims, 2, x->rank), true);
    return status;
}

/// ints: C. Input: float32 [N, ⌈C / 16⌉, …, 16]. Output: [N, C, …].
static qrt_status unblock_channels(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0);
    const int64_t channels = node->ints[0];
    if (!qrt_is_tensor(x) || x->dtype != QRT_F32 || x->rank < 4 || x->rank > 6 || x->dims[x->rank - 1] != BLOCK) return QRT_DECLINE;
    if (channels < 1 || (channels - 1) / BLOCK + 1 != x->dims[1]) return QRT_DECLINE;
    int64_t dims[QRT_MAX_RANK];
    memcpy(dims, x->dims, (size_t)(x->rank - 1) * sizeof *dims);
    dims[1] = channels;
    qrt_status status = qrt_alloc(run, &out[0], QRT_F32, x->rank - 1, dims);
    if (status == QRT_OK && out[0].size) regroup(run, x, &out[0], dims[0], channels, qrt_product(dims, 2, x->rank - 1), false);
    return status;
}

const qrt_node_entry qrt_channel_blocks_nodes[] = {
    {"block_channels", block_channels},
    {"unblock_channels", unblock_channels},
    {NULL, NULL},
};
