/// Nodes that only rename dimensions: their outputs are views of their inputs.
#include "arguments.h"

/// ints: allowzero, then the shape when there is no second input. Inputs: data, shape.
static qrt_status reshape(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    (void)run;
    const qrt_tensor *data = qrt_input(node, in, 0);
    int64_t dims[QRT_MAX_RANK], known = 1;
    int rank, open = -1;
    if (!qrt_is_tensor(data)) return QRT_DECLINE;
    if (node->num_inputs > 1) {
        rank = qrt_read_ints(in[1], dims, QRT_MAX_RANK);
    } else {
        rank = node->num_ints - 1;
        if (rank > QRT_MAX_RANK) return QRT_DECLINE;
        for (int i = 0; i < rank; i++) dims[i] = node->ints[i + 1];
    }
    if (rank < 0) return QRT_DECLINE;
    for (int i = 0; i < rank; i++) {
        if (dims[i] == 0 && !node->ints[0]) {
            if (i >= data->rank) return QRT_DECLINE;
            dims[i] = data->dims[i];
        } else if (dims[i] == -1) {
            if (open >= 0) return QRT_DECLINE;
            open = i;
            continue;
        } else if (dims[i] < 0) {
            return QRT_DECLINE;
        }
        if (__builtin_mul_overflow(known, dims[i], &known)) return QRT_DECLINE;
    }
    if (open >= 0) {
        if (known == 0 || data->size % known) return QRT_DECLINE;
        dims[open] = data->size / known;
    } else if (known != data->size) {
        return QRT_DECLINE;
    }
    if (!qrt_num_elements(rank, dims, &known)) return QRT_DECLINE;
    qrt_alias(&out[0], data, rank, dims);
    return QRT_OK;
}

/// ints: axis.
static qrt_status flatten(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    (void)run;
    const qrt_tensor *x = qrt_input(node, in, 0);
    int64_t axis = node->ints[0];
    if (!qrt_is_tensor(x) || axis < -x->rank || axis > x->rank) return QRT_DECLINE;
    if (axis < 0) axis += x->rank;
    int64_t dims[2];
    // Dimensions beside a zero could overflow.
    if (!qrt_num_elements((int)axis, x->dims, &dims[0]) || !qrt_num_elements(x->rank - (int)axis, x->dims + axis, &dims[1]))
        return QRT_DECLINE;
    qrt_alias(&out[0], x, 2, dims);
    return QRT_OK;
}

/// Axes from the second input or, when the node has none, from the ints. Their count, -1 when there are none.
static int read_axes(const qrt_node *node, const qrt_tensor *const *in, int64_t *axes, bool *is_valid) {
    *is_valid = true;
    const qrt_tensor *given = qrt_input(node, in, 1);
    if (given) {
        int count = qrt_read_ints(given, axes, QRT_MAX_RANK);
        *is_valid = count >= 0;
        return count;
    }
    if (!node->num_ints) return -1;
    *is_valid = node->num_ints <= QRT_MAX_RANK;
    for (int i = 0; i < node->num_ints && *is_valid; i++) axes[i] = node->ints[i];
    return node->num_ints;
}

/// ints: axes, unless they are the second input; without any, all dimensions of 1 go.
static qrt_status squeeze(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    (void)run;
    const qrt_tensor *x = qrt_input(node, in, 0);
    int64_t axes[QRT_MAX_RANK], dims[QRT_MAX_RANK];
    bool is_valid;
    int count = read_axes(node, in, axes, &is_valid), rank = 0;
    if (!is_valid || !qrt_is_tensor(x) || (count > 0 && !qrt_normalize_axes(axes, count, x->rank))) return QRT_DECLINE;
    unsigned gone = 0;
    for (int i = 0; i < count; i++) {
        if (x->dims[axes[i]] != 1) return QRT_DECLINE;
        gone |= 1u << axes[i];
    }
    for (int i = 0; i < x->rank; i++)
        if (count < 0 ? x->dims[i] != 1 : !(gone >> i & 1)) dims[rank++] = x->dims[i];
    qrt_alias(&out[0], x, rank, dims);
    return QRT_OK;
}

/// ints: axes, unless they are the second input.
static qrt_status unsqueeze(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    (void)run;
    const qrt_tensor *x = qrt_input(node, in, 0);
    int64_t axes[QRT_MAX_RANK], dims[QRT_MAX_RANK];
    bool is_valid;
    int count = read_axes(node, in, axes, &is_valid);
    if (!is_valid || count < 0 || !qrt_is_tensor(x)) return QRT_DECLINE;
    int rank = x->rank + count;
    if (rank > QRT_MAX_RANK || !qrt_normalize_axes(axes, count, rank)) return QRT_DECLINE;
    unsigned added = 0;
    for (int i = 0; i < count; i++) added |= 1u << axes[i];
    for (int i = 0, from = 0; i < rank; i++) dims[i] = added >> i & 1 ? 1 : x->dims[from++];
    qrt_alias(&out[0], x, rank, dims);
    return QRT_OK;
}

static qrt_status identity(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    (void)run;
    const qrt_tensor *x = qrt_input(node, in, 0);
    if (!qrt_is_tensor(x)) return QRT_DECLINE;
    qrt_alias(&out[0], x, x->rank, x->dims);
    return QRT_OK;
}

const qrt_node_entry qrt_layout_nodes[] = {
    {"reshape", reshape},
    {"flatten", flatten},
    {"squeeze", squeeze},
    {"unsqueeze", unsqueeze},
    {"identity", identity},
    {NULL, NULL},
};
