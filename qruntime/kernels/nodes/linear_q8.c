/// Linear layers with int8 weights.
#include "../nodes.h"

/// ints: activation (qrt_activation), range mode (qrt_range_mode). packed: qrt_q8_weights.
/// Inputs: activations float32 [..., K], residual (optional) float32 [..., N].
static qrt_status linear_q8(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    if (node->num_ints < 2 || node->num_packed < 1 || node->num_inputs < 1 || !in[0]) return QRT_DECLINE;
    const qrt_q8_weights *w = node->packed[0];
    const qrt_tensor *a = in[0], *residual = node->num_inputs > 1 ? in[1] : NULL;
    int64_t activation = node->ints[0], mode = node->ints[1];
    if (!w || activation < QRT_ACT_NONE || activation > QRT_ACT_TANH || mode < QRT_PER_TOKEN || mode > QRT_PER_TENSOR)
        return QRT_DECLINE;
    if (a->dtype != QRT_F32 || a->rank < 1 || a->dims[a->rank - 1] != w->k) return QRT_DECLINE;
    int64_t dims[QRT_MAX_RANK], m, last = a->rank - 1;
    for (int i = 0; i < last; i++) dims[i] = a->dims[i];
    dims[last] = w->n;
    if (!qrt_num_elements((int32_t)last, dims, &m)) return QRT_DECLINE;
    if (residual) {
        if (residual->dtype != QRT_F32 || residual->rank != a->rank) return QRT_DECLINE;
        for (int i = 0; i < a->rank; i++)
            if (residual->dims[i] != dims[i]) return QRT_DECLINE;
    }
    qrt_status status = qrt_alloc(run, &out[0], QRT_F32, a->rank, dims);
    if (status != QRT_OK) return status;
    qrt_q8_epilogue epilogue = {(qrt_activation)activation, residual ? residual->data : NULL, w->n};
    return qrt_q8_linear(w, run, a->data, w->k, m, (qrt_range_mode)mode, &epilogue, out[0].data, w->n);
}

const qrt_node_entry qrt_linear_q8_nodes[] = {
    {"linear_q8", linear_q8},
    {NULL, NULL},
};
