/// Rows rounded to the 8-bit floats E4M3, each with a scale of its own.
#include "../kernels.h"
#include "../nodes.h"
#include "../threads.h"

enum { GRAIN = 8192 };

typedef struct {
    const float *x;
    float *y;
    int64_t rows, k, rows_per_task;
} call;

static void round_rows(void *context, int64_t task) {
    const call *c = context;
    const int64_t first = task * c->rows_per_task, last = first + c->rows_per_task < c->rows ? first + c->rows_per_task : c->rows;
    for (int64_t i = first; i < last; i++) qrt_kernels.rows.round_to_float8(c->x + i * c->k, c->y + i * c->k, c->k);
}

/// Input: float32 [..., K]. Output: the same shape.
static qrt_status round_to_float8(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    if (node->num_inputs < 1 || !in[0] || in[0]->dtype != QRT_F32 || in[0]->rank < 1) return QRT_DECLINE;
    const qrt_tensor *x = in[0];
    qrt_status status = qrt_alloc(run, &out[0], QRT_F32, x->rank, x->dims);
    if (status != QRT_OK || x->size == 0) return status;
    const int64_t k = x->dims[x->rank - 1], rows_per_task = k < GRAIN ? GRAIN / k : 1;
    call c = {x->data, out[0].data, x->size / k, k, rows_per_task};
    qrt_parallel_for(run->num_threads, (c.rows + rows_per_task - 1) / rows_per_task, round_rows, &c);
    return QRT_OK;
}

const qrt_node_entry qrt_float8_nodes[] = {
    {"round_to_float8", round_to_float8},
    {NULL, NULL},
};
