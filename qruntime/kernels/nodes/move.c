/// Nodes that move elements without looking at them.
#include <string.h>

#include "../threads.h"
#include "arguments.h"
#include "strided_copy.h"

/// Rows of a concatenation or a split are copied in parallel above this many bytes.
enum { PARALLEL_BYTES = 512 * 1024 };

/// ints: perm; none reverses the dimensions.
static qrt_status transpose(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0);
    if (!qrt_is_tensor(x)) return QRT_DECLINE;
    int rank = x->rank;
    int64_t dims[QRT_MAX_RANK], strides[QRT_MAX_RANK], perm[QRT_MAX_RANK];
    if (node->num_ints && node->num_ints != rank) return QRT_DECLINE;
    for (int i = 0; i < rank; i++) {
        perm[i] = node->num_ints ? node->ints[i] : rank - 1 - i;
        if (perm[i] < 0) return QRT_DECLINE;
    }
    if (!qrt_normalize_axes(perm, rank, rank)) return QRT_DECLINE;
    size_t item = qrt_itemsize(x->dtype);
    qrt_dense_strides(rank, x->dims, item, strides);
    qrt_arrangement a = {.rank = rank};
    bool moves = false;
    int64_t before = -1;
    for (int i = 0; i < rank; i++) {
        dims[i] = a.dims[i] = x->dims[perm[i]];
        a.from_strides[i] = strides[perm[i]];
        if (dims[i] == 1) continue;
        moves |= perm[i] < before;
        before = perm[i];
    }
    if (!moves) {
        qrt_alias(&out[0], x, rank, dims);
        return QRT_OK;
    }
    qrt_status status = qrt_alloc(run, &out[0], x->dtype, rank, dims);
    if (status != QRT_OK) return status;
    qrt_dense_strides(rank, dims, item, a.to_strides);
    qrt_copy_strided(run->num_threads, out[0].data, x->data, item, &a);
    return QRT_OK;
}

/// Runs of several tensors, laid side by side in (or taken from) the rows of one.
typedef struct {
    const qrt_node *node;
    const qrt_tensor *const *in;
    qrt_tensor *out;
    int axis;
    int64_t rows, rows_per_task;
    size_t inner;   ///< bytes of one step along the axis
} joining;

static void concat_rows(void *context, int64_t task) {
    const joining *j = context;
    int64_t row = task * j->rows_per_task;
    int64_t count = j->rows - row < j->rows_per_task ? j->rows - row : j->rows_per_task;
    int64_t whole = j->out[0].dims[j->axis] * (int64_t)j->inner;
    char *to = (char *)j->out[0].data + row * whole;
    for (int i = 0; i < j->node->num_inputs; i++) {
        int64_t bytes = j->in[i]->dims[j->axis] * (int64_t)j->inner;
        qrt_copy_runs(to, whole, (const char *)j->in[i]->data + row * bytes, bytes, count, bytes);
        to += bytes;
    }
}

static void for_rows(qrt_run *run, joining *j, int64_t bytes, qrt_task_fn task) {
    int64_t num_tasks = bytes < PARALLEL_BYTES ? 1 : 4 * (int64_t)run->num_threads;
    j->rows_per_task = (j->rows + num_tasks - 1) / num_tasks;
    if (j->rows) qrt_parallel_for(run->num_threads, (j->rows + j->rows_per_task - 1) / j->rows_per_task, task, j);
}

/// ints: axis. Inputs: one or more tensors.
static qrt_status concat(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *first = qrt_input(node, in, 0);
    int64_t dims[QRT_MAX_RANK], axis = node->ints[0];
    if (!qrt_is_tensor(first) || !qrt_normalize_axis(&axis, first->rank)) return QRT_DECLINE;
    int rank = first->rank, filled = 0, only = 0;
    for (int i = 0; i < rank; i++) dims[i] = first->dims[i];
    dims[axis] = 0;
    for (int i = 0; i < node->num_inputs; i++) {
        const qrt_tensor *x = in[i];
        if (!qrt_is_tensor(x) || x->dtype != first->dtype || x->rank != rank) return QRT_DECLINE;
        for (int d = 0; d < rank; d++)
            if (d != axis && x->dims[d] != dims[d]) return QRT_DECLINE;
        if (__builtin_add_overflow(dims[axis], x->dims[axis], &dims[axis])) return QRT_DECLINE;
        if (x->dims[axis]) {
            filled++;
            only = i;
        }
    }
    if (filled <= 1) {
        qrt_alias(&out[0], in[only], rank, dims);
        return QRT_OK;
    }
    if (!qrt_is_buildable(rank, dims)) return QRT_DECLINE;
    qrt_status status = qrt_alloc(run, &out[0], first->dtype, rank, dims);
    if (status != QRT_OK) return status;
    size_t item = qrt_itemsize(first->dtype);
    joining j = {.node = node, .in = in, .out = out, .axis = (int)axis};
    j.rows = qrt_product(dims, 0, (int)axis);
    j.inner = (size_t)qrt_product(dims, (int)axis + 1, rank) * item;
    for_rows(run, &j, out[0].size * (int64_t)item, concat_rows);
    return QRT_OK;
}

/// A piece of a concatenation, and where its elements lie: all of a tensor, or one part of [B, S, N, H, D] as [B, H, S, D].
typedef struct {
    const char *data;
    int64_t dims[QRT_MAX_RANK], strides[QRT_MAX_RANK];
    int rank;
} piece;

static bool piece_of(const qrt_tensor *x, int64_t part, piece *p) {
    if (!qrt_is_tensor(x)) return false;
    size_t item = qrt_itemsize(x->dtype);
    p->data = x->data;
    p->rank = x->rank;
    memcpy(p->dims, x->dims, sizeof p->dims);
    qrt_dense_strides(x->rank, x->dims, item, p->strides);
    if (part < 0) return true;
    if (x->rank != 5 || part >= x->dims[2]) return false;
    static const int order[] = {0, 3, 1, 4};
    int64_t strides[5];
    memcpy(strides, p->strides, sizeof strides);
    p->rank = 4;
    for (int d = 0; d < 4; d++) {
        p->dims[d] = x->dims[order[d]];
        p->strides[d] = strides[order[d]];
    }
    if (x->size) p->data += part * strides[2];
    return true;
}

/// ints: axis, index of the item, number of leading dimensions of the stack, those dimensions, then for every piece the
/// part of it that is meant (−1: all). Inputs: the stack [dimensions…, item…] or none, which then is made; pieces.
/// Outputs: the stack, and the item in it that the pieces joined along the axis have become.
static qrt_status concat_into(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    enum { MAX_PIECES = 8, LEADING = 3 };
    const qrt_tensor *stack = qrt_input(node, in, 0);
    int num_pieces = node->num_inputs - 1;
    piece pieces[MAX_PIECES];
    if (node->num_ints < LEADING || node->num_outputs != 2 || num_pieces < 1 || num_pieces > MAX_PIECES) return QRT_DECLINE;
    int64_t axis = node->ints[0], index = node->ints[1], leading = node->ints[2], dims[QRT_MAX_RANK], along = 0;
    if (leading < 0 || leading > QRT_MAX_RANK || node->num_ints != LEADING + leading + num_pieces) return QRT_DECLINE;
    for (int i = 0; i < num_pieces; i++) {
        if (!piece_of(in[i + 1], node->ints[LEADING + leading + i], &pieces[i]) || in[i + 1]->dtype != in[1]->dtype ||
            pieces[i].rank != pieces[0].rank)
            return QRT_DECLINE;
        if (i == 0 && !qrt_normalize_axis(&axis, pieces[0].rank)) return QRT_DECLINE;
        for (int d = 0; d < pieces[0].rank; d++)
            if (d != axis && pieces[i].dims[d] != pieces[0].dims[d]) return QRT_DECLINE;
        if (__builtin_add_overflow(along, pieces[i].dims[axis], &along)) return QRT_DECLINE;
    }
    int rank = pieces[0].rank, whole = rank + (int)leading, dtype = in[1]->dtype;
    if (whole > QRT_MAX_RANK) return QRT_DECLINE;
    memcpy(dims, node->ints + LEADING, (size_t)leading * sizeof *dims);
    for (int d = 0; d < rank; d++) dims[leading + d] = d == axis ? along : pieces[0].dims[d];
    if (!qrt_is_buildable(whole, dims) || index < 0 || index >= qrt_product(dims, 0, (int)leading)) return QRT_DECLINE;
    if (stack) {
        if (stack->dtype != dtype || stack->rank != whole || memcmp(stack->dims, dims, (size_t)whole * sizeof *dims))
            return QRT_DECLINE;
        // Its buffer is shared with the items written before, which lie elsewhere in it.
        if (!(node->dying & 1) || !stack->buffer || stack->buffer->owner) return QRT_DECLINE;
        qrt_alias(&out[0], stack, whole, dims);
    } else {
        qrt_status status = qrt_alloc(run, &out[0], dtype, whole, dims);
        if (status != QRT_OK) return status;
    }
    size_t item = qrt_itemsize(dtype);
    int64_t size = qrt_product(dims, (int)leading, whole);
    qrt_alias(&out[1], &out[0], rank, dims + leading);
    out[1].data = (char *)out[0].data + (size_t)(index * size) * item;
    out[1].size = size;
    char *to = out[1].data;
    qrt_arrangement a = {.rank = rank};
    qrt_dense_strides(rank, dims + leading, item, a.to_strides);
    for (int i = 0; i < num_pieces; i++) {
        memcpy(a.dims, pieces[i].dims, (size_t)rank * sizeof *a.dims);
        memcpy(a.from_strides, pieces[i].strides, (size_t)rank * sizeof *a.from_strides);
        qrt_copy_strided(run->num_threads, to, pieces[i].data, item, &a);
        to += pieces[i].dims[axis] * a.to_strides[axis];
    }
    return QRT_OK;
}

static void split_rows(void *context, int64_t task) {
    const joining *j = context;
    int64_t row = task * j->rows_per_task;
    int64_t count = j->rows - row < j->rows_per_task ? j->rows - row : j->rows_per_task;
    int64_t whole = j->in[0]->dims[j->axis] * (int64_t)j->inner;
    const char *from = (const char *)j->in[0]->data + row * whole;
    for (int i = 0; i < j->node->num_outputs; i++) {
        int64_t bytes = j->out[i].dims[j->axis] * (int64_t)j->inner;
        qrt_copy_runs((char *)j->out[i].data + row * bytes, bytes, from, whole, count, bytes);
        from += bytes;
    }
}

/// ints: axis, whether the last of equal pieces may be smaller, then the sizes when no second input has them.
/// Without any sizes the pieces are equal.
static qrt_status split(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    enum { MAX_PIECES = 64 };
    const qrt_tensor *x = qrt_input(node, in, 0), *given = qrt_input(node, in, 1);
    int64_t sizes[MAX_PIECES], dims[QRT_MAX_RANK], axis = node->ints[0], sum = 0;
    int count = node->num_outputs;
    if (!qrt_is_tensor(x) || !qrt_normalize_axis(&axis, x->rank) || count < 1 || count > MAX_PIECES) return QRT_DECLINE;
    int64_t total = x->dims[axis];
    if (given) {
        if (qrt_read_ints(given, sizes, MAX_PIECES) != count) return QRT_DECLINE;
    } else if (node->num_ints > 2) {
        if (node->num_ints - 2 != count) return QRT_DECLINE;
        for (int i = 0; i < count; i++) sizes[i] = node->ints[i + 2];
    } else {
        if (total % count && !node->ints[1]) return QRT_DECLINE;
        int64_t piece = total / count + (total % count != 0), left = total;
        for (int i = 0; i < count; i++, left -= sizes[i - 1]) sizes[i] = left < piece ? left : piece;
    }
    for (int i = 0; i < count; i++)
        if (sizes[i] < 0 || __builtin_add_overflow(sum, sizes[i], &sum)) return QRT_DECLINE;
    if (sum != total) return QRT_DECLINE;
    for (int i = 0; i < x->rank; i++) dims[i] = x->dims[i];
    size_t item = qrt_itemsize(x->dtype);
    int64_t rows = qrt_product(x->dims, 0, (int)axis), inner = qrt_product(x->dims, (int)axis + 1, x->rank), at = 0;
    for (int i = 0; i < count; i++, at += sizes[i - 1]) {
        dims[axis] = sizes[i];
        if (rows == 1 && qrt_view(&out[i], x, at * inner, x->rank, dims)) continue;
        qrt_status status = qrt_alloc(run, &out[i], x->dtype, x->rank, dims);
        if (status != QRT_OK) return status;
        if (rows == 1) memcpy(out[i].data, (const char *)x->data + (size_t)(at * inner) * item, (size_t)out[i].size * item);
    }
    if (rows == 1) return QRT_OK;
    joining j = {.node = node, .in = in, .out = out, .axis = (int)axis, .rows = rows, .inner = (size_t)inner * item};
    for_rows(run, &j, x->size * (int64_t)item, split_rows);
    return QRT_OK;
}

/// One range per dimension: `count` elements from `start` on, `step` apart.
typedef struct {
    int64_t start, count, step;
} range;

static qrt_status cut(const qrt_tensor *x, const range *ranges, qrt_run *run, qrt_tensor *out) {
    int64_t dims[QRT_MAX_RANK], first = 0;
    size_t item = qrt_itemsize(x->dtype);
    qrt_arrangement a = {.rank = x->rank};
    qrt_dense_strides(x->rank, x->dims, item, a.from_strides);
    // The result is one run of the input when only dimensions of one element come before the first that is cut.
    bool is_run = true, is_cut = false;
    for (int i = x->rank - 1; i >= 0; i--) {
        dims[i] = a.dims[i] = ranges[i].count;
        if (dims[i] > 0) first += ranges[i].start * a.from_strides[i];
        if (is_cut && dims[i] != 1) is_run = false;
        if (dims[i] > 1 && ranges[i].step != 1) is_run = false;
        is_cut |= dims[i] != x->dims[i];
        a.from_strides[i] = dims[i] > 1 ? a.from_strides[i] * ranges[i].step : 0;
    }
    int64_t size = qrt_product(dims, 0, x->rank);
    if (size == 0) return qrt_alloc(run, out, x->dtype, x->rank, dims);
    if (is_run && qrt_view(out, x, first / (int64_t)item, x->rank, dims)) return QRT_OK;
    qrt_status status = qrt_alloc(run, out, x->dtype, x->rank, dims);
    if (status != QRT_OK) return status;
    qrt_dense_strides(x->rank, dims, item, a.to_strides);
    qrt_copy_strided(run->num_threads, out->data, (const char *)x->data + first, item, &a);
    return QRT_OK;
}

static int64_t clamp(int64_t value, int64_t low, int64_t high) { return value < low ? low : value > high ? high : value; }

static bool range_of(int64_t size, int64_t start, int64_t end, int64_t step, range *r) {
    if (step == 0 || step == INT64_MIN) return false;
    if (start < 0) start += size;
    if (end < 0) end += size;
    if (size == 0) {
        *r = (range){0, 0, 1};
    } else if (step > 0) {
        start = clamp(start, 0, size);
        end = clamp(end, 0, size);
        *r = (range){start, end > start ? (end - start - 1) / step + 1 : 0, step};
    } else {
        start = clamp(start, 0, size - 1);
        end = clamp(end, -1, size - 1);
        *r = (range){start, start > end ? (start - end - 1) / -step + 1 : 0, step};
    }
    return true;
}

/// ints: when there is only one input, all starts, then as many ends, axes and steps.
/// Inputs: data, starts, ends, axes and steps (both optional).
static qrt_status slice(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0);
    int64_t list[4][QRT_MAX_RANK];
    int count;
    if (!qrt_is_tensor(x)) return QRT_DECLINE;
    if (node->num_inputs > 1) {
        count = qrt_read_ints(in[1], list[0], QRT_MAX_RANK);
        if (count < 0) return QRT_DECLINE;
        for (int k = 1; k < 4; k++) {
            const qrt_tensor *given = qrt_input(node, in, k + 1);
            if (given || k == 1) {
                if (qrt_read_ints(given, list[k], QRT_MAX_RANK) != count) return QRT_DECLINE;
            } else {
                for (int i = 0; i < count; i++) list[k][i] = k == 2 ? i : 1;
            }
        }
    } else {
        count = node->num_ints / 4;
        if (count > QRT_MAX_RANK) return QRT_DECLINE;
        for (int k = 0; k < 4; k++)
            for (int i = 0; i < count; i++) list[k][i] = node->ints[k * count + i];
    }
    if (!qrt_normalize_axes(list[2], count, x->rank)) return QRT_DECLINE;
    range ranges[QRT_MAX_RANK];
    for (int i = 0; i < x->rank; i++) ranges[i] = (range){0, x->dims[i], 1};
    for (int i = 0; i < count; i++)
        if (!range_of(x->dims[list[2][i]], list[0][i], list[1][i], list[3][i], &ranges[list[2][i]])) return QRT_DECLINE;
    return cut(x, ranges, run, &out[0]);
}

/// Inputs: data, shape to broadcast with.
static qrt_status expand(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0);
    int64_t wanted[QRT_MAX_RANK], dims[QRT_MAX_RANK], strides[QRT_MAX_RANK];
    int count = qrt_read_ints(qrt_input(node, in, 1), wanted, QRT_MAX_RANK);
    if (!qrt_is_tensor(x) || count < 0) return QRT_DECLINE;
    size_t item = qrt_itemsize(x->dtype);
    qrt_dense_strides(x->rank, x->dims, item, strides);
    qrt_arrangement a = {.rank = count > x->rank ? count : x->rank};
    bool grows = false;
    for (int i = 0; i < a.rank; i++) {
        int from = i - (a.rank - x->rank), with = i - (a.rank - count);
        int64_t have = from < 0 ? 1 : x->dims[from], want = with < 0 ? 1 : wanted[with];
        if (have != want && have != 1 && want != 1) return QRT_DECLINE;
        dims[i] = a.dims[i] = have == 1 ? want : have;
        a.from_strides[i] = have == 1 ? 0 : strides[from];
        grows |= dims[i] != have;
    }
    if (!qrt_is_buildable(a.rank, dims)) return QRT_DECLINE;
    if (!grows) {
        qrt_alias(&out[0], x, a.rank, dims);
        return QRT_OK;
    }
    qrt_status status = qrt_alloc(run, &out[0], x->dtype, a.rank, dims);
    if (status != QRT_OK) return status;
    qrt_dense_strides(a.rank, dims, item, a.to_strides);
    qrt_copy_strided(run->num_threads, out[0].data, x->data, item, &a);
    return QRT_OK;
}

/// Inputs: data, one repeat per dimension.
static qrt_status tile(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0);
    int64_t repeats[QRT_MAX_RANK], dims[QRT_MAX_RANK], from[QRT_MAX_RANK], to[QRT_MAX_RANK];
    if (!qrt_is_tensor(x) || qrt_read_ints(qrt_input(node, in, 1), repeats, QRT_MAX_RANK) != x->rank) return QRT_DECLINE;
    bool grows = false;
    for (int i = 0; i < x->rank; i++) {
        if (__builtin_mul_overflow(x->dims[i], repeats[i], &dims[i])) return QRT_DECLINE;
        grows |= dims[i] != x->dims[i];
    }
    if (!qrt_is_buildable(x->rank, dims) || !qrt_is_buildable(x->rank, repeats)) return QRT_DECLINE;
    if (!grows) {
        qrt_alias(&out[0], x, x->rank, dims);
        return QRT_OK;
    }
    qrt_status status = qrt_alloc(run, &out[0], x->dtype, x->rank, dims);
    if (status != QRT_OK || out[0].size == 0) return status;
    size_t item = qrt_itemsize(x->dtype);
    qrt_dense_strides(x->rank, x->dims, item, from);
    qrt_dense_strides(x->rank, dims, item, to);
    qrt_arrangement a = {.rank = 2 * x->rank};
    for (int i = 0; i < x->rank; i++) {
        a.dims[2 * i] = repeats[i];
        a.to_strides[2 * i] = to[i] * x->dims[i];
        a.dims[2 * i + 1] = x->dims[i];
        a.to_strides[2 * i + 1] = to[i];
        a.from_strides[2 * i + 1] = from[i];
    }
    qrt_copy_strided(run->num_threads, out[0].data, x->data, item, &a);
    return QRT_OK;
}

/// Rearrange `x`, seen as a tensor of six dimensions, into `dims` by a permutation of the six.
static qrt_status rearrange_six(qrt_run *run, const qrt_tensor *x, const int64_t *six, const int *perm, const int64_t *dims, qrt_tensor *out) {
    int64_t strides[6];
    size_t item = qrt_itemsize(x->dtype);
    qrt_arrangement a = {.rank = 6};
    qrt_dense_strides(6, six, item, strides);
    for (int i = 0; i < 6; i++) {
        a.dims[i] = six[perm[i]];
        a.from_strides[i] = strides[perm[i]];
    }
    qrt_dense_strides(6, a.dims, item, a.to_strides);
    qrt_status status = qrt_alloc(run, out, x->dtype, 4, dims);
    if (status == QRT_OK) qrt_copy_strided(run->num_threads, out->data, x->data, item, &a);
    return status;
}

static bool is_image(const qrt_tensor *x, int64_t block) {
    return qrt_is_tensor(x) && x->rank == 4 && block >= 1 && block < 1 << 20;
}

/// ints: blocksize, whether the depth comes first (mode CRD). Input: [N, C, H, W].
static qrt_status depth_to_space(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    static const int block_first[] = {0, 3, 4, 1, 5, 2}, depth_first[] = {0, 1, 4, 2, 5, 3};
    const qrt_tensor *x = qrt_input(node, in, 0);
    const int64_t b = node->ints[0];
    if (!is_image(x, b) || x->dims[1] % (b * b)) return QRT_DECLINE;
    const int64_t *d = x->dims, depth = d[1] / (b * b), dims[] = {d[0], depth, d[2] * b, d[3] * b};
    const bool is_depth_first = node->ints[1];
    const int64_t six[] = {d[0], is_depth_first ? depth : b, b, is_depth_first ? b : depth, d[2], d[3]};
    return rearrange_six(run, x, six, is_depth_first ? depth_first : block_first, dims, &out[0]);
}

/// ints: blocksize, whether the depth comes first (mode CRD). Input: [N, C, H, W].
static qrt_status space_to_depth(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    static const int block_first[] = {0, 3, 5, 1, 2, 4}, depth_first[] = {0, 1, 3, 5, 2, 4};
    const qrt_tensor *x = qrt_input(node, in, 0);
    const int64_t b = node->ints[0];
    if (!is_image(x, b) || x->dims[2] % b || x->dims[3] % b) return QRT_DECLINE;
    const int64_t *d = x->dims, dims[] = {d[0], d[1] * b * b, d[2] / b, d[3] / b};
    const int64_t six[] = {d[0], d[1], d[2] / b, b, d[3] / b, b};
    return rearrange_six(run, x, six, node->ints[1] ? depth_first : block_first, dims, &out[0]);
}

const qrt_node_entry qrt_move_nodes[] = {
    {"transpose", transpose},
    {"concat", concat},
    {"concat_into", concat_into},
    {"split", split},
    {"slice", slice},
    {"expand", expand},
    {"tile", tile},
    {"depth_to_space", depth_to_space},
    {"space_to_depth", space_to_depth},
    {NULL, NULL},
};
