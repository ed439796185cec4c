/// Caches of keys and values that grow from run to run: new tokens behind those that are there.
#include <string.h>

#include "append.h"
#include "arguments.h"
#include "strided_copy.h"

/// ints: axis, index of the item, the part of the new tokens that is meant (−1: all), number of leading dimensions, those.
enum { AXIS, INDEX, PART, LEADING, COUNTS };

/// Where the elements of a tensor lie, in bytes.
typedef struct {
    char *data;
    int rank;
    int64_t dims[QRT_MAX_RANK], strides[QRT_MAX_RANK];
} placed;

static placed placed_at(const qrt_tensor *t) {
    placed p = {.data = t->data, .rank = t->rank};
    memcpy(p.dims, t->dims, sizeof p.dims);
    qrt_strides(t, p.strides);
    for (int d = 0; d < p.rank; d++) p.strides[d] *= (int64_t)qrt_itemsize(t->dtype);
    return p;
}

/// Item `index` of the leading dimensions.
static placed item_of(const placed *whole, int leading, int64_t index) {
    placed item = {.data = whole->data, .rank = whole->rank - leading};
    for (int d = leading - 1; d >= 0; d--) {
        item.data += index % whole->dims[d] * whole->strides[d];
        index /= whole->dims[d];
    }
    memcpy(item.dims, whole->dims + leading, (size_t)item.rank * sizeof *item.dims);
    memcpy(item.strides, whole->strides + leading, (size_t)item.rank * sizeof *item.strides);
    return item;
}

/// Part `part` of x [B, S, N, H, D] as [B, H, S, D]; all of x when that is −1.
static bool part_of(placed *x, int64_t part) {
    if (part < 0) return true;
    if (x->rank != 5 || part >= x->dims[2]) return false;
    static const int order[] = {0, 3, 1, 4};
    placed whole = *x;
    x->rank = 4;
    for (int d = 0; d < 4; d++) {
        x->dims[d] = whole.dims[order[d]];
        x->strides[d] = whole.strides[order[d]];
    }
    x->data += part * whole.strides[2];
    return true;
}

/// Copy `from` to where `to` has its elements from position `first` of `axis` on.
static void put(qrt_run *run, const placed *to, int axis, int64_t first, const placed *from, size_t item) {
    qrt_arrangement a = {.rank = from->rank};
    for (int d = 0; d < from->rank; d++) {
        a.dims[d] = from->dims[d];
        a.from_strides[d] = from->strides[d];
        a.to_strides[d] = to->strides[d];
    }
    if (qrt_product(from->dims, 0, from->rank))
        qrt_copy_strided(run->num_threads, to->data + first * to->strides[axis], from->data, item, &a);
}

/// Half as much again: a cache is copied a constant number of times, however long it gets.
static int64_t room_for(int64_t length) { return length + length / 2 + 32; }

static void view_room(qrt_tensor *out, const qrt_tensor *in, int rank, const int64_t *dims, int axis) {
    qrt_alias(out, in, rank, dims);
    out->size = qrt_product(dims, 0, rank);
    out->room = in->room;
    out->room_axis = axis;
}

qrt_status qrt_grow(qrt_run *run, const qrt_tensor *past, int axis, int64_t length, qrt_tensor *out) {
    int64_t dims[QRT_MAX_RANK];
    memcpy(dims, past->dims, sizeof dims);
    dims[axis] = room_for(length);
    if (!qrt_is_buildable(past->rank, dims)) return QRT_DECLINE;
    dims[axis] = length;
    if (qrt_claim_room(past, past->dims[axis], length)) {
        view_room(out, past, past->rank, dims, axis);
        return QRT_OK;
    }
    bool is_fed_back = past->buffer && (past->dtype == QRT_F32 || past->dtype == QRT_U8);
    if (!is_fed_back) return qrt_alloc(run, out, past->dtype, past->rank, dims);
    return qrt_alloc_room(run, out, past->dtype, past->rank, dims, axis, room_for(length));
}

void qrt_copy_past(qrt_run *run, const qrt_tensor *past, int axis, qrt_tensor *out) {
    placed from = placed_at(past), to = placed_at(out);
    put(run, &to, axis, 0, &from, qrt_itemsize(past->dtype));
}

/// Whether `stack` is `past` with `length` along `axis`, and may be written to: its buffer is shared with the items that were
/// written before, and perhaps with earlier runs, whose tokens come before these.
static bool is_stack_of(const qrt_tensor *stack, const qrt_tensor *past, int axis, int64_t length, const qrt_node *node) {
    if (stack->dtype != past->dtype || stack->rank != past->rank) return false;
    for (int d = 0; d < past->rank; d++)
        if (stack->dims[d] != (d == axis ? length : past->dims[d])) return false;
    return (node->dying & 1) && stack->buffer && !stack->buffer->owner;
}

/// Inputs: the stack that earlier nodes have grown, or none for the first; the past [counts…, item…]; new tokens, which are
/// appended to that item of it. Outputs: the stack with that item in it, and the item where there are leading dimensions.
static qrt_status append(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const int64_t *p = node->ints;
    if (node->num_inputs != 3 || node->num_ints < COUNTS || !qrt_is_tensor(in[1]) || !qrt_is_tensor(in[2])) return QRT_DECLINE;
    const qrt_tensor *stack = in[0], *past = in[1];
    if (p[LEADING] < 0 || p[LEADING] >= past->rank || node->num_ints != COUNTS + p[LEADING]) return QRT_DECLINE;
    int leading = (int)p[LEADING], rank = past->rank - leading;
    int64_t axis = p[AXIS], length;
    placed added = placed_at(in[2]);
    if (node->num_outputs != (leading ? 2 : 1) || in[2]->dtype != past->dtype || !part_of(&added, p[PART]) || added.rank != rank ||
        !qrt_normalize_axis(&axis, rank) || memcmp(past->dims, p + COUNTS, (size_t)leading * sizeof *p))
        return QRT_DECLINE;
    if (p[INDEX] < 0 || p[INDEX] >= qrt_product(past->dims, 0, leading)) return QRT_DECLINE;
    for (int d = 0; d < rank; d++)
        if (d != axis && added.dims[d] != past->dims[leading + d]) return QRT_DECLINE;
    int whole_axis = leading + (int)axis;
    int64_t before = past->dims[whole_axis];
    if (__builtin_add_overflow(before, added.dims[axis], &length) || length > INT64_MAX / 4) return QRT_DECLINE;
    if (past->room && past->room_axis != whole_axis) return QRT_DECLINE;
    if (stack) {
        if (!is_stack_of(stack, past, whole_axis, length, node)) return QRT_DECLINE;
        view_room(&out[0], stack, stack->rank, stack->dims, whole_axis);
    } else {
        qrt_status status = qrt_grow(run, past, whole_axis, length, &out[0]);
        if (status != QRT_OK) return status;
    }
    size_t item = qrt_itemsize(past->dtype);
    placed whole = placed_at(&out[0]), target = item_of(&whole, leading, p[INDEX]);
    if (leading) {
        view_room(&out[1], &out[0], rank, out[0].dims + leading, (int)axis);
        out[1].data = target.data;
    }
    if (out[0].data != past->data) {
        placed all = placed_at(past), source = item_of(&all, leading, p[INDEX]);
        put(run, &target, (int)axis, 0, &source, item);
    }
    put(run, &target, (int)axis, before, &added, item);
    return QRT_OK;
}

/// Input: a tensor that may have room. Output: the same, dense.
static qrt_status dense(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0);
    if (!qrt_is_tensor(x)) return QRT_DECLINE;
    if (!x->room) {
        qrt_alias(&out[0], x, x->rank, x->dims);
        return QRT_OK;
    }
    qrt_status status = qrt_alloc(run, &out[0], x->dtype, x->rank, x->dims);
    if (status != QRT_OK) return status;
    placed from = placed_at(x), to = placed_at(&out[0]);
    put(run, &to, 0, 0, &from, qrt_itemsize(x->dtype));
    return QRT_OK;
}

const qrt_node_entry qrt_append_nodes[] = {
    {"append", append},
    {"dense", dense},
    {NULL, NULL},
};
