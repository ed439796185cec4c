/// Where the largest or smallest element along an axis is: a NaN beats every number, and of equals the first counts, or the last.
#include <math.h>
#include <string.h>

#include "../threads.h"
#include "arguments.h"
#include "four.h"

enum {
    STRIP = 1024,             ///< columns whose extremes so far stay in the first-level cache
    FEW = 8,                  ///< columns of an axis that are too few for vectors
    TILE = 64, TILE_ROWS = 64,  ///< columns of neighbouring axes that are laid side by side then, so many elements at a time
    LONG = 32,                ///< elements of a row that is searched by itself
    GRAIN = 1 << 14,          ///< elements of one task
};

/// The input seen as [outer, n, inner].
typedef struct arg_call {
    const float *x;
    int64_t *y;
    int64_t outer, n, inner;
    void (*find)(const struct arg_call *call, int64_t strip);
    int64_t strips_per_outer, outers_per_strip;  ///< one of them is 1
    int64_t num_strips, strips_per_task;
    bool smallest, last;
} arg_call;

/// Columns and their extremes so far.
typedef struct {
    float top[STRIP];
    int32_t at[STRIP];
} extremes;

/// Row `i` of `count` columns against the extremes so far.
#define BEAT(NAME, BETTER)                                                                                   \
    static void NAME(int64_t count, const float *restrict row, int32_t i, float *restrict tops, int32_t *restrict at) { \
        for (int64_t c = 0; c < count; c++) {                                                                \
            float x = row[c], top = tops[c];                                                                 \
            bool is_better = BETTER;                                                                         \
            tops[c] = is_better ? x : top;                                                                   \
            at[c] = is_better ? i : at[c];                                                                   \
        }                                                                                                    \
    }
BEAT(beat_first_max, (!(x <= top)) & (top == top))
BEAT(beat_first_min, (!(x >= top)) & (top == top))
BEAT(beat_last_max, (!(x < top)) & ((top == top) | (x != x)))
BEAT(beat_last_min, (!(x > top)) & ((top == top) | (x != x)))

/// Elements [first, end) of `count` columns, whose rows are `stride` apart.
static void beat(const arg_call *call, int64_t count, const float *rows, int64_t stride, int64_t first, int64_t end, extremes *e) {
    for (int64_t i = first; i < end; i++, rows += stride) {
        if (i == 0) for (int64_t c = 0; c < count; c++) e->top[c] = rows[c], e->at[c] = 0;
        else if (call->smallest) (call->last ? beat_last_min : beat_first_min)(count, rows, (int32_t)i, e->top, e->at);
        else (call->last ? beat_last_max : beat_first_max)(count, rows, (int32_t)i, e->top, e->at);
    }
}

static void find_in_columns(const arg_call *call, int64_t strip) {
    extremes e;
    int64_t outer = strip / call->strips_per_outer, column = strip % call->strips_per_outer * STRIP;
    int64_t count = call->inner - column < STRIP ? call->inner - column : STRIP;
    beat(call, count, call->x + outer * call->n * call->inner + column, call->inner, 0, call->n, &e);
    int64_t *y = call->y + outer * call->inner + column;
    for (int64_t c = 0; c < count; c++) y[c] = e.at[c];
}

/// Four elements of four rows, which begin `stride` apart, become columns of the tile.
static inline void turn_four(const float *x, int64_t stride, float *tile) {
    u32x4 v[4];
    for (int k = 0; k < 4; k++) memcpy(&v[k], x + k * stride, sizeof v[k]);
    transpose_four(v);
    for (int k = 0; k < 4; k++) memcpy(tile + k * TILE, &v[k], sizeof v[k]);
}

/// Rows of `n` elements become columns of the tile. Where four do not divide n the last four overlap others.
static void turn(const float *x, int64_t stride, int64_t rows, int64_t n, float *tile) {
    int64_t r = 0;
    for (; r + 4 <= rows && n >= 4; r += 4, x += 4 * stride) {
        for (int64_t i = 0; i + 4 <= n; i += 4) turn_four(x + i, stride, tile + i * TILE + r);
        if (n % 4) turn_four(x + n - 4, stride, tile + (n - 4) * TILE + r);
    }
    for (; r < rows; r++, x += stride)
        for (int64_t i = 0; i < n; i++) tile[i * TILE + r] = x[i];
}

static void find_in_tiles(const arg_call *call, int64_t strip) {
    extremes e;
    float tile[TILE_ROWS * TILE];
    const int64_t inner = call->inner, outer = strip * call->outers_per_strip, left = call->outer - outer;
    const int64_t outers = left < call->outers_per_strip ? left : call->outers_per_strip;
    for (int64_t first = 0, end; first < call->n; first = end) {
        end = call->n - first < TILE_ROWS ? call->n : first + TILE_ROWS;
        const float *x = call->x + (outer * call->n + first) * inner;
        if (inner == 1) turn(x, call->n, outers, end - first, tile);
        else
            for (int64_t o = 0; o < outers; o++)
                for (int64_t i = 0; i < end - first; i++)
                    for (int64_t c = 0; c < inner; c++) tile[i * TILE + o * inner + c] = x[(o * call->n + i) * inner + c];
        beat(call, outers * inner, tile, TILE, first, end, &e);
    }
    int64_t *y = call->y + outer * inner;
    for (int64_t c = 0; c < outers * inner; c++) y[c] = e.at[c];
}

/// The extreme first, in vectors, then a search that stops at it.
static void find_in_row(const arg_call *call, int64_t row) {
    const float *x = call->x + row * call->n;
    const int64_t step = call->last ? -1 : 1;
    float top = qrt_kernels.rows.reduce[call->smallest ? QRT_REDUCE_MIN : QRT_REDUCE_MAX](x, call->n);
    int64_t i = call->last ? call->n - 1 : 0;
    if (isnan(top)) while (!isnan(x[i])) i += step;
    else while (x[i] != top) i += step;
    call->y[row] = i;
}

static void arg_task(void *context, int64_t task) {
    const arg_call *call = context;
    int64_t strip = task * call->strips_per_task, end = strip + call->strips_per_task;
    if (end > call->num_strips) end = call->num_strips;
    for (; strip < end; strip++) call->find(call, strip);
}

/// ints: axis, keepdims, select_last_index. float32 → int64.
static qrt_status arg_extreme(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out, bool smallest) {
    const qrt_tensor *x = qrt_input(node, in, 0);
    if (!qrt_is_tensor(x) || node->num_inputs != 1 || node->num_ints < 3 || x->dtype != QRT_F32 || x->size == 0) return QRT_DECLINE;
    int64_t axis = node->ints[0], dims[QRT_MAX_RANK];
    if (!qrt_normalize_axis(&axis, x->rank) || x->dims[axis] > INT32_MAX) return QRT_DECLINE;
    arg_call call = {.x = x->data, .n = x->dims[axis], .inner = 1, .smallest = smallest, .last = node->ints[2] != 0};
    int32_t rank = 0;
    for (int i = 0; i < x->rank; i++) {
        if (i > axis) call.inner *= x->dims[i];
        if (i != axis) dims[rank++] = x->dims[i];
        else if (node->ints[1]) dims[rank++] = 1;
    }
    qrt_status status = qrt_alloc(run, &out[0], QRT_I64, rank, dims);
    if (status != QRT_OK) return status;
    call.y = out[0].data;
    call.outer = x->size / call.n / call.inner;
    call.strips_per_outer = call.outers_per_strip = 1;
    if (call.inner == 1 && call.n >= LONG) {
        call.find = find_in_row;
    } else if (call.inner < FEW) {
        call.find = find_in_tiles;
        call.outers_per_strip = TILE / call.inner;
    } else {
        call.find = find_in_columns;
        call.strips_per_outer = (call.inner + STRIP - 1) / STRIP;
    }
    call.num_strips = (call.outer + call.outers_per_strip - 1) / call.outers_per_strip * call.strips_per_outer;
    call.strips_per_task = (GRAIN * call.num_strips + x->size - 1) / x->size;
    int64_t num_tasks = (call.num_strips + call.strips_per_task - 1) / call.strips_per_task;
    qrt_parallel_for(run->num_threads, num_tasks, arg_task, &call);
    return QRT_OK;
}

static qrt_status arg_max(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    return arg_extreme(node, run, in, out, false);
}

static qrt_status arg_min(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    return arg_extreme(node, run, in, out, true);
}

const qrt_node_entry qrt_arg_extreme_nodes[] = {
    {"argmax", arg_max},
    {"argmin", arg_min},
    {NULL, NULL},
};
