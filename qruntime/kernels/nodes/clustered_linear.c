/// Linear layers that read codes of activations in the order of their clusters.
#include "../gemm_clusters.h"
#include "arguments.h"
#include "epilogue.h"

/// What is added to a result of `dims`, whole or one row for all of them; false when it does not fit.
static bool read_residual(const qrt_tensor *t, int32_t rank, const int64_t *dims, qrt_epilogue *epilogue) {
    const int64_t n = dims[rank - 1];
    if (!t) return true;
    if (t->dtype != QRT_F32 || t->rank < 1 || t->rank > rank) return false;
    bool is_whole = t->rank == rank;
    for (int i = 0; is_whole && i < rank; i++) is_whole = t->dims[i] == dims[i];
    epilogue->residual = t->data;
    epilogue->residual_stride_elems = is_whole ? n : 0;
    return is_whole || (t->size == n && t->dims[t->rank - 1] == n);
}

/// packed: a qrt_cluster_weights. ints: activation. floats: its p and q.
/// Inputs: codes uint8 [..., K]; residual float32 [..., N] or one row for all (optional). Output: float32 [..., N].
static qrt_status clustered_linear(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    if (node->num_packed != 1 || !node->packed[0] || node->num_ints < 1 || node->num_inputs < 1 || node->num_inputs > 2 || !in[0])
        return QRT_DECLINE;
    const qrt_cluster_weights *w = node->packed[0];
    const qrt_tensor *a = in[0];
    if (a->dtype != QRT_U8 || a->rank < 1 || a->dims[a->rank - 1] != w->w.base.k) return QRT_DECLINE;
    const int32_t rank = a->rank;
    int64_t dims[QRT_MAX_RANK], m;
    qrt_epilogue epilogue = {.activation = QRT_ACT_NONE};
    for (int i = 0; i < rank - 1; i++) dims[i] = a->dims[i];
    dims[rank - 1] = w->w.base.n;
    if (!qrt_num_elements(rank - 1, dims, &m)) return QRT_DECLINE;
    if (!qrt_read_activation(node, node->ints[0], 0, &epilogue.activation, &epilogue.map)) return QRT_DECLINE;
    if (!read_residual(qrt_input(node, in, 1), rank, dims, &epilogue)) return QRT_DECLINE;
    const qrt_status status = qrt_alloc(run, &out[0], QRT_F32, rank, dims);
    return status == QRT_OK ? qrt_clusters_linear(w, run, a->data, m, &epilogue, out[0].data) : status;
}

const qrt_node_entry qrt_clustered_linear_nodes[] = {
    {"clustered_linear", clustered_linear},
    {NULL, NULL},
};
