/// Activations as values of outlier-victim pairs.
#include <math.h>

#include "../threads.h"
#include "arguments.h"

enum { GRAIN = 16384 };

typedef struct {
    const float *x;
    int8_t *values;
    int64_t rows, k, rows_of_task;
    float scale;
} pairs_call;

static void pairs_task(void *context, int64_t task) {
    const pairs_call *call = context;
    int64_t first = task * call->rows_of_task, last = first + call->rows_of_task;
    if (last > call->rows) last = call->rows;
    for (int64_t i = first; i < last; i++)
        qrt_kernels.outlier_pairs.values(call->x + i * call->k, call->k, call->scale, call->values + i * call->k);
}

/// floats: the scale, finite and above 0. Input: x float32 [..., K]. Output: int8 of that shape, in units of the scale.
static qrt_status outlier_pairs(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    if (node->num_inputs < 1 || node->num_floats != 1 || node->num_outputs != 1 || !in[0]) return QRT_DECLINE;
    const qrt_tensor *x = in[0];
    const float scale = (float)node->floats[0];
    if (x->dtype != QRT_F32 || x->rank < 1 || !(scale > 0) || !isfinite(scale)) return QRT_DECLINE;
    qrt_status status = qrt_alloc(run, &out[0], QRT_I8, x->rank, x->dims);
    if (status != QRT_OK || !x->size) return status;
    pairs_call call = {.x = x->data, .values = out[0].data, .k = x->dims[x->rank - 1], .scale = scale};
    call.rows = x->size / call.k;
    call.rows_of_task = call.k < GRAIN ? GRAIN / call.k : 1;
    qrt_parallel_for(run->num_threads, (call.rows + call.rows_of_task - 1) / call.rows_of_task, pairs_task, &call);
    return QRT_OK;
}

const qrt_node_entry qrt_outlier_pairs_nodes[] = {
    {"outlier_pairs", outlier_pairs},
    {NULL, NULL},
};
