/// GridSample of float32 images [N, C, H, W].
///
/// Positions and weights are those of a block of points, found once for all channels by the float32 operations of the
/// numpy definition (ops/image.py), and samples are summed in its order: results are its very bits.
///
/// A neighbour outside of the image that counts as zero has a weight of 0. So a point at the border takes its neighbours a
/// little further inside, and gives 0 to those that it does not have: all neighbours then lie in a square of the image.
#include <math.h>
#include <string.h>

#include "../threads.h"
#include "arguments.h"
#include "enumerations.h"

#define ALWAYS_INLINE static inline __attribute__((always_inline))

enum { BLOCK = 128, MAX_TAPS = 4, PARALLEL_SAMPLES = 1 << 14 };
enum { QRT_INTERPOLATIONS(QRT_ENUMERATOR) };
enum { QRT_GRID_PADDINGS(QRT_ENUMERATOR) };

typedef struct {
    const float *x, *grid;
    float *y;
    int64_t num_channels, height, width, num_points;  ///< points of an image
    int64_t blocks;                                   ///< of an image
    int mode, padding, num_taps;                      ///< taps of an axis
    bool aligns_corners;
} sampling;

/// Neighbours of a block of points on one axis.
typedef struct {
    int32_t first[BLOCK];
    float weight[MAX_TAPS][BLOCK];
    bool is_apart[BLOCK];               ///< they do not follow `first`, but are at `place`
    int32_t place[MAX_TAPS][BLOCK];
} axis_taps;

/// Where the points of a block are sampled.
typedef struct {
    int64_t corner[BLOCK];   ///< place of the first of the neighbours, which lie in a square; 0 for exposed points
    float weight[MAX_TAPS * MAX_TAPS][BLOCK];
    int32_t exposed[BLOCK];  ///< points whose neighbours do not lie in a square
    int64_t num_exposed;
    int64_t place[MAX_TAPS * MAX_TAPS][BLOCK];  ///< of the neighbours of exposed points, in their order
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

/// Half to even, with instructions that every target has; from 2^23 on floats are whole.
ALWAYS_INLINE float rounded(float x) {
    const float whole = 8388608, size = fabsf(x), near = (size + whole) - whole;
    return copysignf(size < whole ? near : size, x);
}

/// Positions on an axis of `size` that the coordinates g[0], g[2], … in [-1, 1] stand for, padded but for zeros.
static void find_positions(const sampling *s, const float *g, int64_t count, int64_t size, float *restrict at) {
    const float far = 1073741824;  // outside of any image, as in ops/interpolation.py
    const float last = (float)(size - 1), whole = (float)size;
    const float low = s->aligns_corners ? 0 : -0.5f, high = s->aligns_corners ? last : (float)((double)size - 0.5);
    if (s->aligns_corners) for (int64_t p = 0; p < count; p++) at[p] = (g[2 * p] + 1) / 2 * last;
    else for (int64_t p = 0; p < count; p++) at[p] = ((g[2 * p] + 1) * whole - 1) / 2;
    for (int64_t p = 0; p < count; p++) {
        float inside = at[p] > -far ? at[p] : -far;  // NaN, too
        at[p] = inside < far ? inside : far;
    }
    if (s->mode == NEAREST) for (int64_t p = 0; p < count; p++) at[p] = rounded(at[p]);
    if (s->mode == CUBIC || s->padding == ZEROS) return;
    if (s->padding == BORDER) for (int64_t p = 0; p < count; p++) at[p] = at[p] < 0 ? 0 : at[p] > last ? last : at[p];
    else for (int64_t p = 0; p < count; p++) at[p] = at[p] < low || at[p] > high ? reflected_f32(at[p], low, high) : at[p];
}

/// Keys' convolution kernel with the free parameter a = -3/4.
ALWAYS_INLINE float cubic_kernel(float x) {
    const float a = -0.75f;
    x = fabsf(x);
    float near = ((a + 2) * x - (a + 3)) * x * x + 1, far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a;
    return x <= 1 ? near : x < 2 ? far : 0;
}

static void find_weights(const sampling *s, const float *at, int64_t count, axis_taps *t) {
    if (s->mode == NEAREST) {
        for (int64_t p = 0; p < count; p++) t->first[p] = (int32_t)rounded(at[p]), t->weight[0][p] = 1;
        return;
    }
    float fraction[BLOCK];
    for (int64_t p = 0; p < count; p++) {
        int32_t low = (int32_t)at[p];
        low -= (float)low > at[p];
        fraction[p] = at[p] - (float)low;
        t->first[p] = low - (s->num_taps / 2 - 1);
    }
    if (s->mode == LINEAR) {
        for (int64_t p = 0; p < count; p++) t->weight[0][p] = 1 - fraction[p], t->weight[1][p] = fraction[p];
        return;
    }
    for (int i = 0; i < 4; i++)
        for (int64_t p = 0; p < count; p++) t->weight[i][p] = cubic_kernel(fraction[p] - (float)(i - 1));
}

/// The place on an axis of `size` of neighbour `i`; its weight becomes 0 when it is outside and zeros are there.
static int32_t placed(const sampling *s, int64_t i, int64_t size, float *weight) {
    if (s->padding == ZEROS) {
        if (i >= 0 && i < size) return (int32_t)i;
        *weight = 0;
        return 0;
    }
    if (s->padding == REFLECTION) {
        double low = s->aligns_corners ? 0 : -0.5, high = s->aligns_corners ? (double)size - 1 : (double)size - 0.5;
        i = (int64_t)reflected_f64((double)i, low, high);
    }
    return (int32_t)(i < 0 ? 0 : i >= size ? size - 1 : i);
}

/// Neighbours outside of the axis count nothing: `n` places inside, each with the weight of the neighbour that is there.
ALWAYS_INLINE void move_inside(int64_t count, int32_t size, int n, axis_taps *restrict t) {
    for (int64_t p = 0; p < count; p++) {
        int32_t first = t->first[p], inside = first < 0 ? 0 : first > size - n ? size - n : first, moved = inside - first;
        float weight[MAX_TAPS];
        for (int j = 0; j < n; j++) {
            weight[j] = 0;
            for (int i = 0; i < n; i++) weight[j] = moved == i - j ? t->weight[i][p] : weight[j];
        }
        for (int j = 0; j < n; j++) t->weight[j][p] = weight[j];
        t->first[p] = inside;
    }
}

/// One point with neighbours outside: where padding puts them.
static void place_apart(const sampling *s, int64_t p, int64_t size, axis_taps *t) {
    for (int i = 0; i < s->num_taps; i++) t->place[i][p] = placed(s, (int64_t)t->first[p] + i, size, &t->weight[i][p]);
    t->is_apart[p] = s->num_taps > 1;
    t->first[p] = t->place[0][p];
}

static void find_axis(const sampling *s, const float *grid, int64_t count, int64_t size, axis_taps *t) {
    float at[BLOCK];
    const int n = s->num_taps;
    find_positions(s, grid, count, size, at);
    find_weights(s, at, count, t);
    memset(t->is_apart, 0, sizeof t->is_apart);
    if (s->padding == ZEROS && size >= n) {
        if (n == 1) move_inside(count, (int32_t)size, 1, t);
        else if (n == 2) move_inside(count, (int32_t)size, 2, t);
        else move_inside(count, (int32_t)size, 4, t);
        return;
    }
    for (int64_t p = 0; p < count; p++) {
        if (t->first[p] >= 0 && t->first[p] <= size - n) continue;
        // The last pixel itself, which linear positions stop at, has no weight left for a neighbour.
        if (n == 2 && size >= 2 && t->first[p] == size - 1 && t->weight[1][p] == 0) {
            t->first[p]--;
            t->weight[1][p] = t->weight[0][p];
            t->weight[0][p] = 0;
        } else {
            place_apart(s, p, size, t);
        }
    }
}

static int32_t place_of(const axis_taps *t, int i, int64_t p) { return t->is_apart[p] ? t->place[i][p] : t->first[p] + i; }

static void find_taps(const sampling *s, const float *grid, int64_t count, block_taps *taps) {
    axis_taps rows, columns;
    const int n = s->num_taps;
    find_axis(s, grid + 1, count, s->height, &rows);
    find_axis(s, grid, count, s->width, &columns);
    for (int i = 0; i < n; i++)
        for (int k = 0; k < n; k++)
            for (int64_t p = 0; p < count; p++) taps->weight[i * n + k][p] = rows.weight[i][p] * columns.weight[k][p];
    taps->num_exposed = 0;
    for (int64_t p = 0; p < count; p++) {
        taps->corner[p] = rows.first[p] * s->width + columns.first[p];
        if (!rows.is_apart[p] && !columns.is_apart[p]) continue;
        int64_t e = taps->num_exposed++;
        taps->exposed[e] = (int32_t)p;
        taps->corner[p] = 0;
        for (int i = 0; i < n; i++)
            for (int k = 0; k < n; k++)
                taps->place[i * n + k][e] = place_of(&rows, i, p) * s->width + place_of(&columns, k, p);
    }
}

/// A weight of zero hides the value, even Inf and NaN: it may stand for padding.
static inline float weighed(float v, float weight) { return (weight == 0 ? 0 : v) * weight; }

/// The squares of n × n neighbours of each point, of two planes that share places and weights.
ALWAYS_INLINE void sample_squares(const block_taps *t, int n, int64_t width, int64_t count, const float *a, const float *b,
                                  float *ya, float *yb) {
    for (int64_t p = 0; p < count; p++) {
        const float *ta = a + t->corner[p], *tb = b + t->corner[p];
        float sum_a = 0, sum_b = 0;
        for (int i = 0; i < n; i++, ta += width, tb += width)
            for (int k = 0; k < n; k++) {
                float weight = t->weight[i * n + k][p];
                sum_a += ta[k] * weight;
                sum_b += tb[k] * weight;
            }
        ya[p] = sum_a;
        yb[p] = sum_b;
    }
}

/// Samples that are NaN once more: a value of weight zero may have made them so.
static void hide(const block_taps *t, int n, int64_t width, int64_t count, const float *x, float *y) {
    int32_t num_odd = 0;
    for (int64_t p = 0; p < count; p++) num_odd += y[p] != y[p];
    for (int64_t p = 0; p < count && num_odd; p++) {
        if (y[p] == y[p]) continue;
        float sum = 0;
        for (int k = 0; k < n * n; k++) sum += weighed(x[t->corner[p] + k / n * width + k % n], t->weight[k][p]);
        y[p] = sum;
    }
}

static void sample_exposed(const block_taps *t, int n, const float *x, float *y) {
    for (int64_t e = 0; e < t->num_exposed; e++) {
        int32_t p = t->exposed[e];
        float sum = 0;
        for (int k = 0; k < n * n; k++) sum += weighed(x[t->place[k][e]], t->weight[k][p]);
        y[p] = sum;
    }
}

/// A block of points of two planes, which may be the same.
static void sample_pair(const sampling *s, const block_taps *t, int64_t count, const float *a, const float *b, float *ya, float *yb) {
    const int n = s->num_taps;
    if (t->num_exposed < count) {
        if (n == 1) sample_squares(t, 1, s->width, count, a, b, ya, yb);
        else if (n == 2) sample_squares(t, 2, s->width, count, a, b, ya, yb);
        else sample_squares(t, 4, s->width, count, a, b, ya, yb);
        hide(t, n, s->width, count, a, ya);
        if (b != a) hide(t, n, s->width, count, b, yb);
    }
    sample_exposed(t, n, a, ya);
    if (b != a) sample_exposed(t, n, b, yb);
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
        sample_pair(s, &taps, count, x + c * plane, x + next * plane, y + c * s->num_points, y + next * s->num_points);
    }
}

/// ints: mode, padding, align_corners. Inputs: float32 x [N, C, H, W], grid [N, H', W', 2]. Output: [N, C, H', W'].
static qrt_status grid_sample(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0), *grid = qrt_input(node, in, 1);
    if (node->num_ints < 3 || node->ints[0] < NEAREST || node->ints[0] > CUBIC) return QRT_DECLINE;
    if (node->ints[1] < ZEROS || node->ints[1] > REFLECTION) return QRT_DECLINE;
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
    s.num_taps = s.mode == NEAREST ? 1 : s.mode == LINEAR ? 2 : 4;
    s.blocks = (s.num_points + BLOCK - 1) / BLOCK;
    qrt_parallel_for(out[0].size < PARALLEL_SAMPLES ? 1 : run->num_threads, dims[0] * s.blocks, sample_task, &s);
    return QRT_OK;
}

const qrt_node_entry qrt_grid_sample_nodes[] = {
    {"grid_sample", grid_sample},
    {NULL, NULL},
};
