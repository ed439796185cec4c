/// Images whose channels lie in blocks of 16, made of images [N, C, …] and turned into such again.
#include <string.h>

#include "../conv_f32.h"
#include "../threads.h"
#include "arguments.h"
#include "four.h"

enum { BLOCK = QRT_CHANNEL_BLOCK };

/// Pixels of a task; so few floats do not repay waking a thread.
enum { TASK_PIXELS = 1024, MIN_PARALLEL_FLOATS = 1 << 15 };

typedef struct {
    const float *from;
    float *to;
    int64_t channels, blocks, pixels, pieces;  ///< pieces of TASK_PIXELS in each block
    bool blocks_them;                          ///< else it takes them apart
} regrouping;

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/// Four channels of `count` ≤ 16 pixels, of which the last `missing`, a constant, are not there: rows of pixels `plane` apart into lines of
/// a block.
ALWAYS_INLINE void block_four(const int missing, const float *from, int64_t plane, int64_t count, float *to) {
    int64_t p = 0;
    for (; p + 4 <= count; p += 4) {
        u32x4 v[4] = {{0}, {0}, {0}, {0}};
        for (int i = 0; i < 4 - missing; i++) memcpy(&v[i], from + i * plane + p, sizeof v[i]);
        transpose_four(v);
        for (int i = 0; i < 4; i++) memcpy(to + (p + i) * BLOCK, &v[i], sizeof v[i]);
    }
    for (; p < count; p++)
        for (int i = 0; i < 4; i++) to[p * BLOCK + i] = i < 4 - missing ? from[i * plane + p] : 0.0f;
}

/// The reverse: those that are missing are not written.
ALWAYS_INLINE void unblock_four(const int missing, const float *from, int64_t plane, int64_t count, float *to) {
    int64_t p = 0;
    for (; missing < 4 && p + 4 <= count; p += 4) {
        u32x4 v[4];
        for (int i = 0; i < 4; i++) memcpy(&v[i], from + (p + i) * BLOCK, sizeof v[i]);
        transpose_four(v);
        for (int i = 0; i < 4 - missing; i++) memcpy(to + i * plane + p, &v[i], sizeof v[i]);
    }
    for (; missing < 4 && p < count; p++)
        for (int i = 0; i < 4 - missing; i++) to[i * plane + p] = from[p * BLOCK + i];
}

/// Lines of the cache are read and written as wholes, 16 pixels at a time.
static void regroup_piece(void *context, int64_t task) {
    const regrouping *r = context;
    const int64_t piece = task % r->pieces, block = task / r->pieces % r->blocks, image = task / r->pieces / r->blocks;
    const int64_t first = piece * TASK_PIXELS, end = first + TASK_PIXELS < r->pixels ? first + TASK_PIXELS : r->pixels;
    const int64_t channels = r->channels - block * BLOCK;
    const int64_t plain = (image * r->channels + block * BLOCK) * r->pixels, blocked = (image * r->blocks + block) * r->pixels * BLOCK;
    for (int64_t p = first; p < end; p += BLOCK)
        for (int64_t c = 0; c < BLOCK; c += 4) {
            const int64_t count = end - p < BLOCK ? end - p : BLOCK, left = channels - c, in_lines = blocked + p * BLOCK + c;
            const int64_t in_rows = plain + (left > 0 ? c * r->pixels : 0) + p;
            const int missing = left >= 4 ? 0 : left > 0 ? (int)(4 - left) : 4;
#define CASE(MISSING) \
    case MISSING: \
        if (r->blocks_them) block_four(MISSING, r->from + in_rows, r->pixels, count, r->to + in_lines); \
        else unblock_four(MISSING, r->from + in_lines, r->pixels, count, r->to + in_rows); \
        break;
            switch (missing) { CASE(0) CASE(1) CASE(2) CASE(3) CASE(4) }
        }
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
