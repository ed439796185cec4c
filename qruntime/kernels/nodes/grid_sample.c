/// GridSample of float32 images [N, C, H, W].
///
/// Positions and weights are those of a block of points, found once for all channels by the float32 operations of the
/// numpy definition (ops/image.py), and samples are summed in its order: results are its very bits.
#include <math.h>
#include <string.h>

#include "../threads.h"
#include "arguments.h"

enum { BLOCK = 256, MAX_TAPS = 4, PARALLEL_SAMPLES = 1 << 14 };
enum { LINEAR, NEAREST };
enum { ZEROS, BORDER, REFLECTION };

typedef struct {
    const float *x, *grid;
    float *y;
    int64_t num_channels, height, width, num_points;  ///< points of an image
    int64_t blocks;                                   ///< of an image
    int mode, padding;
    bool aligns_corners;
} sampling;

/// Where the points of a block are sampled.
typedef struct {
    int64_t place[MAX_TAPS][BLOCK];
    float weight[MAX_TAPS][BLOCK];
    int64_t num_taps;
    int64_t corner[BLOCK];   ///< place of the first of four values side by side; 0, which is one, for exposed points
    int32_t exposed[BLOCK];  ///< points that have a weight of 0 or neighbours that are not side by side
    int64_t num_exposed;
} block_taps;

/// Mirrored at `low` and `high` until it lies between them, as numpy's mod has it.
#define REFLECTED(NAME, T, MOD)                                                                              \
    static T NAME(T x, T low, T high) {                                                                      \
        T span = high - low, twice = 2 * span;                                                               \
        if (span <= 0) return 0;                                                                             \
        T offset = MOD(x - low, twice);                                                                      \
        if (offset == 0) offset = 0;                                                                         \
        else if (offset < 0) offset += twice;                                                                \
        return low + (offset > span ? twice - offset : offset);                                              \
    }
REFLECTED(reflected_f32, float, fmodf)
REFLECTED(reflected_f64, double, fmod)

/// Position on an axis of `size` that the coordinate `g` in [-1, 1] stands for, padded but for zeros.
static inline float position(const sampling *s, float g, int64_t size) {
    const float far = 1073741824;  // outside of any image, as in ops/interpolation.py
    const float low = s->aligns_corners ? 0 : -0.5f, high = s->aligns_corners ? (float)(size - 1) : (float)((double)size - 0.5);
    float at = s->aligns_corners ? (g + 1) / 2 * (float)(size - 1) : ((g + 1) * (float)size - 1) / 2;
    at = at != at || at < -far ? -far : at > far ? far : at;
    if (s->mode == NEAREST) at = rintf(at);
    if (s->padding == BORDER) at = at < 0 ? 0 : at > (float)(size - 1) ? (float)(size - 1) : at;
    if (s->padding == REFLECTION && (at < low || at > high)) at = reflected_f32(at, low, high);
    return at;
}

/// The place in the image of neighbour `i` of an axis; its weight becomes 0 when it is outside and zeros are there.
static inline int64_t placed(const sampling *s, int64_t i, int64_t size, float *weight) {
    if (s->padding == ZEROS) {
        if (i >= 0 && i < size) return i;
        *weight = 0;
        return 0;
    }
    if (s->padding == REFLECTION) {
        double low = s->aligns_corners ? 0 : -0.5, high = s->aligns_corners ? (double)size - 1 : (double)size - 0.5;
        i = (int64_t)reflected_f64((double)i, low, high);
    }
    return i < 0 ? 0 : i >= size ? size - 1 : i;
}

/// Neighbours of a position on one axis; how many.
static inline int neighbours(const sampling *s, float at, int64_t size, int64_t *place, float *weight) {
    if (s->mode == NEAREST) {
        weight[0] = 1;
        place[0] = placed(s, (int64_t)rintf(at), size, &weight[0]);
        return 1;
    }
    int32_t low = (int32_t)at;
    low -= (float)low > at;
    float fraction = at - (float)low;
    weight[0] = 1 - fraction;
    weight[1] = fraction;
    for (int i = 0; i < 2; i++) place[i] = placed(s, (int64_t)low + i, size, &weight[i]);
    return 2;
}

/// Points whose four values lie side by side need the first place only; there is no such place in a line of pixels.
static void find_taps(const sampling *s, const float *grid, int64_t count, block_taps *taps) {
    const bool is_line = s->height < 2 || s->width < 2;
    taps->num_exposed = 0;
    for (int64_t p = 0; p < count; p++) {
        int64_t rows[2], columns[2];
        float row_weights[2], column_weights[2];
        int n = neighbours(s, position(s, grid[2 * p + 1], s->height), s->height, rows, row_weights);
        neighbours(s, position(s, grid[2 * p], s->width), s->width, columns, column_weights);
        bool is_exposed = is_line || n == 1 || rows[1] != rows[0] + 1 || columns[1] != columns[0] + 1;
        for (int i = 0, tap = 0; i < n; i++)
            for (int k = 0; k < n; k++, tap++) {
                float weight = row_weights[i] * column_weights[k];
                taps->place[tap][p] = rows[i] * s->width + columns[k];
                taps->weight[tap][p] = weight;
                is_exposed |= weight == 0;
            }
        taps->num_taps = n * n;
        taps->corner[p] = is_exposed ? 0 : taps->place[0][p];
        if (is_exposed) taps->exposed[taps->num_exposed++] = (int32_t)p;
    }
}

/// A weight of zero hides the value, even Inf and NaN: it may stand for padding.
static inline float weighed(float v, float weight) { return (weight == 0 ? 0 : v) * weight; }

/// Four neighbours of each point, of two planes that share places and weights. What exposed points get is overwritten.
static void sample_inside(const block_taps *t, int64_t width, int64_t count, const float *a, const float *b, float *ya, float *yb) {
    const float *w0 = t->weight[0], *w1 = t->weight[1], *w2 = t->weight[2], *w3 = t->weight[3];
    for (int64_t p = 0; p < count; p++) {
        const float *ta = a + t->corner[p], *tb = b + t->corner[p], *ua = ta + width, *ub = tb + width;
        float sum_a = 0 + ta[0] * w0[p] + ta[1] * w1[p] + ua[0] * w2[p] + ua[1] * w3[p];
        float sum_b = 0 + tb[0] * w0[p] + tb[1] * w1[p] + ub[0] * w2[p] + ub[1] * w3[p];
        ya[p] = sum_a;
        yb[p] = sum_b;
    }
}

static void sample_exposed(const block_taps *t, const float *x, float *y) {
    for (int64_t i = 0; i < t->num_exposed; i++) {
        int32_t p = t->exposed[i];
        float sum = 0;
        for (int64_t k = 0; k < t->num_taps; k++) sum += weighed(x[t->place[k][p]], t->weight[k][p]);
        y[p] = sum;
    }
}

static void sample_task(void *context, int64_t task) {
    const sampling *s = context;
    const int64_t image = task / s->blocks, first = task % s->blocks * BLOCK, plane = s->height * s->width;
    const int64_t count = s->num_points - first < BLOCK ? s->num_points - first : BLOCK;
    block_taps taps;
    find_taps(s, s->grid + (image * s->num_points + first) * 2, count, &taps);
    const float *x = s->x + image * s->num_channels * plane;
    float *y = s->y + image * s->num_channels * s->num_points + first;
    for (int64_t c = 0; c < s->num_channels; c += 2) {
        // The last of an odd number of planes is its own partner.
        const int64_t next = c + 1 < s->num_channels ? c + 1 : c;
        const float *a = x + c * plane, *b = x + next * plane;
        float *ya = y + c * s->num_points, *yb = y + next * s->num_points;
        if (taps.num_exposed < count) sample_inside(&taps, s->width, count, a, b, ya, yb);
        sample_exposed(&taps, a, ya);
        if (next != c) sample_exposed(&taps, b, yb);
    }
}

/// ints: mode, padding, align_corners. Inputs: float32 x [N, C, H, W], grid [N, H', W', 2]. Output: [N, C, H', W'].
static qrt_status grid_sample(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0), *grid = qrt_input(node, in, 1);
    if (!qrt_is_tensor(x) || !qrt_is_tensor(grid) || x->dtype != QRT_F32 || grid->dtype != QRT_F32) return QRT_DECLINE;
    if (x->rank != 4 || grid->rank != 4 || grid->dims[3] != 2 || grid->dims[0] != x->dims[0]) return QRT_DECLINE;
    int64_t dims[4] = {x->dims[0], x->dims[1], grid->dims[1], grid->dims[2]};
    // Sizes that float32 does not hold exactly would round otherwise than in the definition.
    if (!qrt_is_buildable(4, dims) || x->size == 0 || x->dims[2] > 1 << 23 || x->dims[3] > 1 << 23) return QRT_DECLINE;
    qrt_status status = qrt_alloc(run, &out[0], QRT_F32, 4, dims);
    if (status != QRT_OK || out[0].size == 0) return status;
    sampling s = {
        .x = x->data, .grid = grid->data, .y = out[0].data, .num_channels = dims[1], .height = x->dims[2], .width = x->dims[3],
        .num_points = dims[2] * dims[3], .mode = (int)node->ints[0], .padding = (int)node->ints[1], .aligns_corners = node->ints[2] != 0,
    };
    s.blocks = (s.num_points + BLOCK - 1) / BLOCK;
    qrt_parallel_for(out[0].size < PARALLEL_SAMPLES ? 1 : run->num_threads, dims[0] * s.blocks, sample_task, &s);
    return QRT_OK;
}

const qrt_node_entry qrt_grid_sample_nodes[] = {
    {"grid_sample", grid_sample},
    {NULL, NULL},
};
