/// Linear layers with constant, packed weights of any kind.
#include <float.h>

#include "../weights.h"
#include "arguments.h"
#include "epilogue.h"

enum { MAX_LAYERS = 16 };

static bool has_dims(const qrt_tensor *t, int32_t rank, const int64_t *dims) {
    if (t->dtype != QRT_F32 || t->rank != rank) return false;
    for (int i = 0; i < rank; i++)
        if (t->dims[i] != dims[i]) return false;
    return true;
}

/// Whether `t` is one row that broadcasts to `rank` dimensions, the last of them `n`.
static bool is_row(const qrt_tensor *t, int32_t rank, int64_t n) {
    return t->dtype == QRT_F32 && t->rank >= 1 && t->rank <= rank && t->dims[t->rank - 1] == n && t->size == n;
}

/// How `count` layers quantize what they read; false when that makes no sense.
static bool read_grid(const qrt_node *node, int count, qrt_q8_grid *grid) {
    const int64_t *ints = node->ints + count;
    const int num_ints = node->num_ints - count;
    if (num_ints < 3) return qrt_q8_read_grid(ints, num_ints, grid);
    if (num_ints > 3 || ints[0] != QRT_STATIC || node->num_floats != 2 * count + 1) return false;
    const int64_t found[] = {QRT_PER_TENSOR, ints[1]};
    if (!qrt_q8_read_grid(found, 2, grid) || ints[2] < 0 || ints[2] > ints[1]) return false;
    grid->mode = QRT_STATIC;
    grid->scale = (float)node->floats[2 * count];
    grid->zero_point = (int32_t)ints[2];
    return grid->scale >= FLT_MIN && grid->scale <= FLT_MAX;
}

/// What is added to a result of `dims`, whole or one row for all of them; false when it does not fit.
static bool read_added(const qrt_tensor *t, int32_t rank, const int64_t *dims, const float **data, int64_t *stride_elems) {
    const int64_t n = dims[rank - 1];
    const bool is_whole = t && has_dims(t, rank, dims);
    *data = t ? t->data : NULL;
    *stride_elems = is_whole ? n : 0;
    return !t || is_whole || is_row(t, rank, n);
}

/// One or several layers that read the same activations.
/// packed: qrt_weights of each. ints: activation of each, then for weights that quantize activations their qrt_range_mode and
/// their greatest code, unless that is 255; of QRT_STATIC both, and the zero point.
/// floats: p and q of each activation; then of QRT_STATIC the scale.
/// Inputs: activations float32 [..., K]; then optional ones, float32 [..., N] or one row for all of them: the residual of each
/// layer, then the addend of each, for weights that take one. Outputs: one for each.
static qrt_status linear(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    int count = node->num_packed;
    if (count < 1 || count > MAX_LAYERS || node->num_outputs != count) return QRT_DECLINE;
    if (node->num_inputs < 1 || node->num_inputs > 2 * count + 1 || !in[0]) return QRT_DECLINE;
    const qrt_tensor *a = in[0];
    int64_t dims[QRT_MAX_RANK], m;
    qrt_q8_grid grid;
    if (a->dtype != QRT_F32 || a->rank < 1) return QRT_DECLINE;
    if (!read_grid(node, count, &grid)) return QRT_DECLINE;
    int last = a->rank - 1;
    for (int i = 0; i < last; i++) dims[i] = a->dims[i];
    if (!qrt_num_elements((int32_t)last, dims, &m)) return QRT_DECLINE;
    qrt_layer layers[MAX_LAYERS];
    for (int i = 0; i < count; i++) {
        const qrt_weights *w = node->packed[i];
        const qrt_tensor *residual = qrt_input(node, in, i + 1), *addend = qrt_input(node, in, count + i + 1);
        qrt_epilogue e = {.activation = QRT_ACT_NONE};
        if (!w || a->dims[last] != w->k || (addend && !w->ops->takes_addend)) return QRT_DECLINE;
        if (!qrt_read_activation(node, node->ints[i], i, &e.activation, &e.map)) return QRT_DECLINE;
        dims[last] = w->n;
        if (!read_added(residual, a->rank, dims, &e.residual, &e.residual_stride_elems)) return QRT_DECLINE;
        if (!read_added(addend, a->rank, dims, &e.addend, &e.addend_stride_elems)) return QRT_DECLINE;
        layers[i] = (qrt_layer){w, e, NULL, w->n};
    }
    for (int i = 0; i < count; i++) {
        dims[last] = layers[i].w->n;
        qrt_status status = qrt_alloc(run, &out[i], QRT_F32, a->rank, dims);
        if (status != QRT_OK) return status;
        layers[i].y = out[i].data;
    }
    return qrt_linear(layers, count, run, a->data, a->dims[last], m, grid);
}

const qrt_node_entry qrt_linear_nodes[] = {
    {"linear", linear},
    {NULL, NULL},
};
