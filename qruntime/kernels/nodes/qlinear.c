/// Elementwise nodes on 8-bit codes.
#include "../threads.h"
#include "broadcast.h"
#include "codes.h"

enum { ADD, MUL };

typedef struct {
    const uint8_t *x, *table;
    uint8_t *y;
    int64_t size;
} lookup_call;

static void lookup_task(void *context, int64_t task) {
    const lookup_call *call = context;
    int64_t start = task * QRT_GRAIN, left = call->size - start;
    qrt_kernels.qlinear.look_up(call->table, call->x + start, call->y + start, left < QRT_GRAIN ? left : QRT_GRAIN);
}

/// ints: element type of the output, uint8 or int8. packed: table [256] of it, by the byte of the input.
/// Input: uint8 or int8.
static qrt_status code_table(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    if (node->num_inputs < 1 || node->num_ints != 1 || node->num_packed != 1 || !qrt_has_codes(in[0])) return QRT_DECLINE;
    const qrt_tensor *table = node->packed[0];
    if (!qrt_has_codes(table) || table->dtype != node->ints[0] || table->size != 256) return QRT_DECLINE;
    qrt_status status = qrt_allocate_over(node, run, in, 0, 0, table->dtype, in[0]->rank, in[0]->dims, &out[0]);
    if (status != QRT_OK) return status;
    lookup_call call = {in[0]->data, table->data, out[0].data, in[0]->size};
    qrt_parallel_for(run->num_threads, (call.size + QRT_GRAIN - 1) / QRT_GRAIN, lookup_task, &call);
    return QRT_OK;
}

typedef struct {
    qrt_qlinear_binary_fn fn;
    qrt_qlinear_pair pair;
} pair_call;

static void pair_run(const qrt_broadcast *call, const int64_t *at, int64_t out, int64_t n, const int *steps) {
    const pair_call *pair = call->kernel;
    const uint8_t *a = call->in[0], *b = call->in[1];
    pair->fn(a + at[0], b + at[1], (uint8_t *)call->out + out, n, steps[0], steps[1], &pair->pair);
}

/// ints: 0 addition, 1 multiplication; zero points of a, b and y.
/// floats: scales of a, b and y, finite and not 0. Inputs: codes a and b, broadcast.
static qrt_status qlinear_binary(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    if (node->num_inputs != 2 || node->num_ints != 4 || node->num_floats != 3) return QRT_DECLINE;
    if (!qrt_has_codes(in[0]) || !qrt_has_codes(in[1]) || in[0]->dtype != in[1]->dtype) return QRT_DECLINE;
    if (node->ints[0] != ADD && node->ints[0] != MUL) return QRT_DECLINE;
    int32_t dtype = in[0]->dtype, rank;
    pair_call pair = {node->ints[0] == ADD ? qrt_kernels.qlinear.add : qrt_kernels.qlinear.mul, {.flip = qrt_flip(dtype)}};
    qrt_code_scale *scales[] = {&pair.pair.a, &pair.pair.b, &pair.pair.y};
    for (int i = 0; i < 3; i++) *scales[i] = (qrt_code_scale){(float)node->floats[i], (float)(node->ints[1 + i] + pair.pair.flip)};
    int64_t dims[QRT_MAX_RANK];
    if (!qrt_broadcast_shape(in, 2, &rank, dims)) return QRT_DECLINE;
    qrt_broadcast call = {.it = qrt_plan_iteration(in, 2, rank, dims), .num = 2, .run = pair_run,
                          .in = {in[0]->data, in[1]->data}, .kernel = &pair};
    qrt_status status = qrt_allocate_over(node, run, in, 0, 1, dtype, rank, dims, &out[0]);
    if (status != QRT_OK) return status;
    call.out = out[0].data;
    qrt_run_broadcast(&call, run, out[0].size);
    return QRT_OK;
}

const qrt_node_entry qrt_qlinear_nodes[] = {
    {"code_table", code_table},
    {"qlinear_binary", qlinear_binary},
    {NULL, NULL},
};
