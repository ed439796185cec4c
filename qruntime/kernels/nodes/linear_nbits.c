/// Products of float activations with weights of few bits.
#include "epilogue.h"

/// ints: activation. floats: p and q of it. packed: qrt_nbits_weights.
/// Inputs: float32 [..., K]; optional residual, float32 [..., N], added after the activation.
static qrt_status linear_nbits(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_nbits_weights *w = node->packed[0];
    const qrt_tensor *x = in[0], *residual = node->num_inputs > 1 ? in[1] : NULL;
    int64_t dims[QRT_MAX_RANK], m;
    if (!x || x->dtype != QRT_F32 || x->rank < 1 || x->dims[x->rank - 1] != w->k) return QRT_DECLINE;
    qrt_q8_epilogue epilogue = {.activation = QRT_ACT_NONE};
    if (!qrt_read_activation(node, node->ints[0], 0, &epilogue.activation, &epilogue.map)) return QRT_DECLINE;
    for (int i = 0; i < x->rank; i++) dims[i] = x->dims[i];
    dims[x->rank - 1] = w->n;
    if (!qrt_num_elements(x->rank - 1, dims, &m)) return QRT_DECLINE;
    if (residual) {
        if (residual->dtype != QRT_F32 || residual->rank != x->rank) return QRT_DECLINE;
        for (int i = 0; i < x->rank; i++)
            if (residual->dims[i] != dims[i]) return QRT_DECLINE;
        epilogue.residual = residual->data;
        epilogue.residual_stride_elems = w->n;
    }
    qrt_status status = qrt_alloc(run, &out[0], QRT_F32, x->rank, dims);
    if (status != QRT_OK) return status;
    return qrt_nbits_linear(w, run, x->data, w->k, m, &epilogue, out[0].data, w->n);
}

const qrt_node_entry qrt_linear_nbits_nodes[] = {
    {"linear_nbits", linear_nbits},
    {NULL, NULL},
};
