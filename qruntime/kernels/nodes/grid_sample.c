/// GridSample of float32 images [N, C, H, W].
///
/// Positions and weights are those of a block of points, found once for all channels by the float32 operations of the
/// numpy definition (ops/image.py), and samples are summed in its order: results are its very bits.
///
/// A neighbour outside of the image that counts as zero has a weight of 0. So a point at the border takes its neighbours a
/// little further inside, and gives 0 to those that it does not have: all neighbours then lie in a square of the image.
/// A point that has none at all is zero and is not sampled.
#include <math.h>
#include <string.h>

#include "../threads.h"
#include "arguments.h"
#include "enumerations.h"
#include "four.h"

#define ALWAYS_INLINE static inline __attribute__((always_inline))

enum { BLOCK = 128, MAX_TAPS = 4, LANES = 4, PARALLEL_SAMPLES = 1 << 14 };
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

typedef double f64x2 __attribute__((vector_size(16)));

/// Neighbours of a block of points on one axis.
typedef struct {
    int32_t first[BLOCK];
    float weight[MAX_TAPS][BLOCK];
    bool is_outside[BLOCK];             ///< all of them count nothing
    bool is_apart[BLOCK];               ///< they do not follow `first`, but are at `place`
    int32_t place[MAX_TAPS][BLOCK];
} axis_taps;

/// Where the points of a block are sampled; points in neither list are zero. Neighbours and weights: [taps²] of each point.
typedef struct {
    int64_t num_squares, num_exposed;
    int32_t square[BLOCK + 1];        ///< points whose neighbours lie in a square
    int32_t exposed[BLOCK + 1];       ///< others
    int64_t corner[BLOCK + LANES];    ///< place of the first of the neighbours of a square; up to whole vectors follow
    float weight[(BLOCK + LANES) * MAX_TAPS * MAX_TAPS];  ///< copies of the last, with weights of zero
    int64_t place[BLOCK * MAX_TAPS * MAX_TAPS];           ///< of the neighbours of exposed points, in their order
    float exposed_weight[BLOCK * MAX_TAPS * MAX_TAPS];
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
        t->is_outside[p] = (moved >= n) | (moved <= -n);
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
    memset(t->is_outside, 0, sizeof t->is_outside);
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

/// The weights of the neighbours of point `p`.
static void multiply_weights(const axis_taps *rows, const axis_taps *columns, int n, int64_t p, float *weight) {
    for (int i = 0; i < n; i++)
        for (int k = 0; k < n; k++) *weight++ = rows->weight[i][p] * columns->weight[k][p];
}

static void find_squares(const axis_taps *rows, const axis_taps *columns, int n, int64_t width, block_taps *taps) {
    const int64_t count = taps->num_squares;
    for (int64_t e = 0; e < count; e++) {
        int32_t p = taps->square[e];
        taps->corner[e] = rows->first[p] * width + columns->first[p];
        multiply_weights(rows, columns, n, p, taps->weight + e * n * n);
    }
    for (int64_t e = count; e % LANES; e++) {
        taps->corner[e] = taps->corner[count - 1];
        memset(taps->weight + e * n * n, 0, (size_t)(n * n) * sizeof(float));
    }
}

static void find_exposed(const axis_taps *rows, const axis_taps *columns, int n, int64_t width, block_taps *taps) {
    int64_t *place = taps->place;
    for (int64_t e = 0; e < taps->num_exposed; e++) {
        int32_t p = taps->exposed[e];
        multiply_weights(rows, columns, n, p, taps->exposed_weight + e * n * n);
        for (int i = 0; i < n; i++)
            for (int k = 0; k < n; k++) *place++ = place_of(rows, i, p) * width + place_of(columns, k, p);
    }
}

static void find_taps(const sampling *s, const float *grid, int64_t count, block_taps *taps) {
    axis_taps rows, columns;
    find_axis(s, grid + 1, count, s->height, &rows);
    find_axis(s, grid, count, s->width, &columns);
    taps->num_squares = taps->num_exposed = 0;
    for (int64_t p = 0; p < count; p++) {
        const bool is_apart = rows.is_apart[p] | columns.is_apart[p], is_outside = rows.is_outside[p] | columns.is_outside[p];
        taps->square[taps->num_squares] = taps->exposed[taps->num_exposed] = (int32_t)p;
        taps->num_squares += !is_apart & !is_outside;
        taps->num_exposed += is_apart & !is_outside;
    }
    find_squares(&rows, &columns, s->num_taps, s->width, taps);
    find_exposed(&rows, &columns, s->num_taps, s->width, taps);
}

/// A weight of zero hides the value, even Inf and NaN: it may stand for padding.
static inline float weighed(float v, float weight) { return (weight == 0 ? 0 : v) * weight; }

/// sums[i] + Σ v[i], in the order of the elements.
ALWAYS_INLINE f32x4 added_up(f32x4 sums, u32x4 v[LANES]) {
    transpose_four(v);
    return (((sums + (f32x4)v[0]) + (f32x4)v[1]) + (f32x4)v[2]) + (f32x4)v[3];
}

/// Neighbours 4q … 4q + 3 of a square of n × n: two rows of two, or row q of four.
ALWAYS_INLINE f32x4 neighbours(const float *x, int n, int q, int64_t width) {
    f32x4 v;
    if (n == 2) {
        f64x2 rows;
        memcpy(&rows[0], x, 8);
        memcpy(&rows[1], x + width, 8);
        return (f32x4)rows;
    }
    memcpy(&v, x + q * width, sizeof v);
    return v;
}

/// Squares of n × n neighbours, of two planes that share places and weights.
ALWAYS_INLINE void sample_squares(const block_taps *t, int n, int64_t width, const float *a, const float *b, float *ya, float *yb) {
    for (int64_t e = 0; e < t->num_squares; e += LANES) {
        f32x4 sums_a = {0}, sums_b = {0};
        for (int q = 0; q < n * n / 4; q++) {
            u32x4 va[LANES], vb[LANES];
            for (int i = 0; i < LANES; i++) {
                f32x4 weight;
                memcpy(&weight, t->weight + (e + i) * n * n + 4 * q, sizeof weight);
                va[i] = (u32x4)(neighbours(a + t->corner[e + i], n, q, width) * weight);
                vb[i] = (u32x4)(neighbours(b + t->corner[e + i], n, q, width) * weight);
            }
            sums_a = added_up(sums_a, va);
            sums_b = added_up(sums_b, vb);
        }
        memcpy(ya + e, &sums_a, sizeof sums_a);
        memcpy(yb + e, &sums_b, sizeof sums_b);
    }
}

static void sample_nearest(const block_taps *t, const float *x, float *y) {
    for (int64_t e = 0; e < t->num_squares; e++) y[e] = 0 + x[t->corner[e]] * t->weight[e];
}

/// Samples that are NaN once more: a value of weight zero may have made them so.
static void hide(const block_taps *t, int n, int64_t width, const float *x, float *y) {
    int32_t num_odd = 0;
    for (int64_t e = 0; e < t->num_squares; e++) num_odd += y[e] != y[e];
    for (int64_t e = 0; e < t->num_squares && num_odd; e++) {
        if (y[e] == y[e]) continue;
        float sum = 0;
        for (int k = 0; k < n * n; k++) sum += weighed(x[t->corner[e] + k / n * width + k % n], t->weight[e * n * n + k]);
        y[e] = sum;
    }
}

/// The samples of squares go to their points, those of exposed points are found, all others are zero.
static void finish_block(const sampling *s, const block_taps *t, int64_t count, const float *x, float *found, float *y) {
    const int n = s->num_taps;
    hide(t, n, s->width, x, found);
    if (t->num_squares == count) {
        memcpy(y, found, (size_t)count * sizeof(float));
        return;
    }
    memset(y, 0, (size_t)count * sizeof(float));
    for (int64_t e = 0; e < t->num_squares; e++) y[t->square[e]] = found[e];
    for (int64_t e = 0; e < t->num_exposed; e++) {
        float sum = 0;
        for (int64_t k = e * n * n; k < (e + 1) * n * n; k++) sum += weighed(x[t->place[k]], t->exposed_weight[k]);
        y[t->exposed[e]] = sum;
    }
}

/// A block of points of two planes, which may be the same.
static void sample_pair(const sampling *s, const block_taps *t, int64_t count, const float *a, const float *b, float *ya, float *yb) {
    float found_a[BLOCK + LANES], found_b[BLOCK + LANES];
    if (s->mode == LINEAR) sample_squares(t, 2, s->width, a, b, found_a, found_b);
    else if (s->mode == CUBIC) sample_squares(t, 4, s->width, a, b, found_a, found_b);
    else sample_nearest(t, a, found_a), sample_nearest(t, b, found_b);
    finish_block(s, t, count, a, found_a, ya);
    if (b != a) finish_block(s, t, count, b, found_b, yb);
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

/// The positions in float32: those of float64 are rounded, as exporters that computed them in it had meant. NULL without memory.
static const float *grid_of(qrt_run *run, const qrt_tensor *grid, qrt_buffer **scratch) {
    if (grid->dtype == QRT_F32) return grid->data;
    *scratch = qrt_scratch(run, (size_t)grid->size * sizeof(float));
    if (!*scratch) return NULL;
    float *rounded_grid = (*scratch)->data;
    for (int64_t i = 0; i < grid->size; i++) rounded_grid[i] = (float)((const double *)grid->data)[i];
    return rounded_grid;
}

/// ints: mode, padding, align_corners. Inputs: float32 x [N, C, H, W], grid [N, H', W', 2] of float32 or float64.
/// Output: [N, C, H', W'].
static qrt_status grid_sample(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0), *grid = qrt_input(node, in, 1);
    if (node->num_ints < 3 || node->ints[0] < NEAREST || node->ints[0] > CUBIC) return QRT_DECLINE;
    if (node->ints[1] < ZEROS || node->ints[1] > REFLECTION) return QRT_DECLINE;
    if (!qrt_is_tensor(x) || !qrt_is_tensor(grid) || x->dtype != QRT_F32) return QRT_DECLINE;
    if (grid->dtype != QRT_F32 && grid->dtype != QRT_F64) return QRT_DECLINE;
    if (x->rank != 4 || grid->rank != 4 || grid->dims[3] != 2 || grid->dims[0] != x->dims[0]) return QRT_DECLINE;
    int64_t dims[4] = {x->dims[0], x->dims[1], grid->dims[1], grid->dims[2]};
    // Sizes that float32 does not hold exactly would round otherwise than in the definition.
    if (!qrt_is_buildable(4, dims) || x->size == 0 || x->dims[2] > 1 << 23 || x->dims[3] > 1 << 23) return QRT_DECLINE;
    qrt_status status = qrt_alloc(run, &out[0], QRT_F32, 4, dims);
    if (status != QRT_OK || out[0].size == 0) return status;
    qrt_buffer *scratch = NULL;
    const float *positions = grid_of(run, grid, &scratch);
    if (!positions) return QRT_NO_MEMORY;
    sampling s = {
        .x = x->data, .grid = positions, .y = out[0].data, .num_channels = dims[1], .height = x->dims[2], .width = x->dims[3],
        .num_points = dims[2] * dims[3], .mode = (int)node->ints[0], .padding = (int)node->ints[1], .aligns_corners = node->ints[2] != 0,
    };
    s.num_taps = s.mode == NEAREST ? 1 : s.mode == LINEAR ? 2 : 4;
    s.blocks = (s.num_points + BLOCK - 1) / BLOCK;
    qrt_parallel_for(out[0].size < PARALLEL_SAMPLES ? 1 : run->num_threads, dims[0] * s.blocks, sample_task, &s);
    if (scratch) qrt_scratch_free(run, scratch);
    return QRT_OK;
}

const qrt_node_entry qrt_grid_sample_nodes[] = {
    {"grid_sample", grid_sample},
    {NULL, NULL},
};
