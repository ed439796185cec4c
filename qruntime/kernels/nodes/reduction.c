/// Reductions over any set of axes.
#include <math.h>
#include <string.h>

#include "../nodes.h"
#include "../threads.h"

/// Elements of one task.
enum { GRAIN = 16384 };

/// Input seen as [outer, n, inner], reduced over n.
typedef struct {
    const void *x;
    void *y;
    int32_t dtype;             ///< of x: QRT_F32, QRT_F64 as y, or QRT_F16, whose y is of floats
    int64_t outer, n, inner;
    int64_t rows_per_task;     ///< inner = 1: rows of a task
    int64_t columns_per_task;  ///< inner > 1: columns of a task, of one outer index
    qrt_reduce_op op;
} reduce_call;

static void reduce_rows_task(void *context, int64_t task) {
    const reduce_call *call = context;
    int64_t first = task * call->rows_per_task, last = first + call->rows_per_task;
    if (last > call->outer) last = call->outer;
    for (int64_t row = first, n = call->n; row < last; row++)
        if (call->dtype == QRT_F64)
            ((double *)call->y)[row] = qrt_kernels.rows.reduce_f64[call->op]((const double *)call->x + row * n, n);
        else if (call->dtype == QRT_F16)
            ((float *)call->y)[row] = qrt_kernels.rows.reduce_f16[call->op]((const uint16_t *)call->x + row * n, n);
        else
            ((float *)call->y)[row] = qrt_kernels.rows.reduce[call->op]((const float *)call->x + row * n, n);
}

static void reduce_columns_task(void *context, int64_t task) {
    const reduce_call *call = context;
    int64_t pieces = (call->inner + call->columns_per_task - 1) / call->columns_per_task;
    int64_t outer = task / pieces, first = task % pieces * call->columns_per_task;
    int64_t count = call->inner - first < call->columns_per_task ? call->inner - first : call->columns_per_task;
    int64_t from = outer * call->n * call->inner + first, to = outer * call->inner + first;
    const qrt_rows *rows = &qrt_kernels.rows;
    if (call->dtype == QRT_F64)
        rows->reduce_columns_f64[call->op]((const double *)call->x + from, call->inner, call->n, count, (double *)call->y + to);
    else if (call->dtype == QRT_F16)
        rows->reduce_columns_f16[call->op]((const uint16_t *)call->x + from, call->inner, call->n, count, (float *)call->y + to);
    else
        rows->reduce_columns[call->op]((const float *)call->x + from, call->inner, call->n, count, (float *)call->y + to);
}

static void reduce_stage(reduce_call *call, qrt_run *run) {
    if (call->inner == 1) {
        call->rows_per_task = (GRAIN + call->n) / (call->n + 1);
        int64_t tasks = (call->outer + call->rows_per_task - 1) / call->rows_per_task;
        qrt_parallel_for(run->num_threads, tasks, reduce_rows_task, call);
        return;
    }
    int64_t columns = (GRAIN + call->n) / (call->n + 1);
    columns = (columns + 63) / 64 * 64;
    call->columns_per_task = columns < call->inner ? columns : call->inner;
    int64_t pieces = (call->inner + call->columns_per_task - 1) / call->columns_per_task;
    qrt_parallel_for(run->num_threads, call->outer * pieces, reduce_columns_task, call);
}

/// Sums, extremes and products of int64, one output element at a time.
static int64_t reduce_i64(qrt_reduce_op op, const int64_t *x, int64_t n, int64_t stride) {
    int64_t acc = op == QRT_REDUCE_PROD ? 1 : op == QRT_REDUCE_MAX ? INT64_MIN : op == QRT_REDUCE_MIN ? INT64_MAX : 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t v = x[i * stride];
        if (op == QRT_REDUCE_SUM) acc = (int64_t)((uint64_t)acc + (uint64_t)v);
        else if (op == QRT_REDUCE_PROD) acc = (int64_t)((uint64_t)acc * (uint64_t)v);
        else if (op == QRT_REDUCE_MAX) acc = v > acc ? v : acc;
        else acc = v < acc ? v : acc;
    }
    return acc;
}

/// Means of sums over `count` numbers, roots of sums of squares.
static void finish(qrt_reduce_op op, double count, bool is_double, void *numbers, int64_t size) {
    float *y = numbers;
    double *z = numbers;
    for (int64_t i = 0; op == QRT_REDUCE_MEAN && i < size; i++)
        if (is_double) z[i] /= count;
        else y[i] = (float)(y[i] / count);
    for (int64_t i = 0; op == QRT_REDUCE_L2 && i < size; i++)
        if (is_double) z[i] = sqrt(z[i]);
        else y[i] = sqrtf(y[i]);
}

/// Which axes are reduced. From input 1 when it is there, else from ints behind the first three.
static bool read_axes(const qrt_node *node, const qrt_tensor *const *in, int rank, bool *reduced) {
    const int64_t *axes = node->ints + 3;
    int64_t count = node->num_ints - 3;
    if (node->num_inputs == 2 && in[1]) {
        if (in[1]->dtype != QRT_I64 || in[1]->rank != 1) return false;
        axes = in[1]->data;
        count = in[1]->size;
    }
    bool all = count == 0 && !node->ints[2];
    for (int i = 0; i < rank; i++) reduced[i] = all;
    for (int64_t i = 0; i < count; i++) {
        if (axes[i] < -rank || axes[i] >= rank) return false;
        bool *axis = &reduced[axes[i] < 0 ? axes[i] + rank : axes[i]];
        if (*axis) return false;
        *axis = true;
    }
    return true;
}

/// ints: opcode (qrt_reduce_op), keepdims, noop_with_empty_axes, axes … ; or the axes as input 1 (int64).
/// float32, float16, float64, and int64 for sum, max, min, prod. No axes: all of them.
static qrt_status reduce(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    if (node->num_inputs < 1 || node->num_inputs > 2 || node->num_ints < 3 || !in[0]) return QRT_DECLINE;
    const qrt_tensor *x = in[0];
    int64_t opcode = node->ints[0];
    if (opcode < 0 || opcode >= QRT_NUM_REDUCE) return QRT_DECLINE;
    qrt_reduce_op op = (qrt_reduce_op)opcode;
    const bool is_half = x->dtype == QRT_F16;
    if (x->dtype != QRT_F32 && x->dtype != QRT_F64 && !is_half && !(x->dtype == QRT_I64 && op <= QRT_REDUCE_PROD)) return QRT_DECLINE;
    bool reduced[QRT_MAX_RANK];
    if (!read_axes(node, in, x->rank, reduced)) return QRT_DECLINE;

    // Runs of kept and reduced axes, merged; dims of 1 belong to whatever stands beside them.
    int64_t dims[QRT_MAX_RANK], group[QRT_MAX_RANK];
    bool group_reduced[QRT_MAX_RANK];
    int32_t rank = 0;
    int groups = 0;
    double count = 1;
    for (int i = 0; i < x->rank; i++) {
        if (!reduced[i]) dims[rank++] = x->dims[i];
        else if (node->ints[1]) dims[rank++] = 1;
        if (reduced[i]) count *= (double)x->dims[i];
        if (x->dims[i] == 1) continue;
        if (groups && group_reduced[groups - 1] == reduced[i]) {
            group[groups - 1] *= x->dims[i];
        } else {
            group[groups] = x->dims[i];
            group_reduced[groups++] = reduced[i];
        }
    }
    if (x->size == 0) {
        // An extreme or mean of nothing is for the definition to judge.
        if (is_half || (op != QRT_REDUCE_SUM && op != QRT_REDUCE_PROD)) return QRT_DECLINE;
        qrt_status status = qrt_alloc(run, &out[0], x->dtype, rank, dims);
        if (status != QRT_OK) return status;
        bool one = op == QRT_REDUCE_PROD;
        for (int64_t i = 0; i < out[0].size; i++) {
            if (x->dtype == QRT_I64) ((int64_t *)out[0].data)[i] = one;
            else if (x->dtype == QRT_F64) ((double *)out[0].data)[i] = one;
            else ((float *)out[0].data)[i] = one;
        }
        return QRT_OK;
    }
    qrt_reduce_op stage_op = op == QRT_REDUCE_MEAN ? QRT_REDUCE_SUM : op == QRT_REDUCE_L2 ? QRT_REDUCE_SUM_SQUARE : op;
    if (stage_op == QRT_REDUCE_L1 || stage_op == QRT_REDUCE_SUM_SQUARE) {
        // The value function must run once even when every reduced dim is 1.
        bool any = false;
        for (int i = 0; i < groups; i++) any |= group_reduced[i];
        if (!any) {
            if (groups == QRT_MAX_RANK) return QRT_DECLINE;
            group[groups] = 1;
            group_reduced[groups++] = true;
        }
    }
    int stages = 0;
    for (int i = 0; i < groups; i++) stages += group_reduced[i];
    if (x->dtype == QRT_I64 && stages > 1) return QRT_DECLINE;

    // From the innermost reduced group outwards; what lies between goes to scratch, as does all that becomes float16 in the end.
    const size_t item = is_half ? sizeof(float) : qrt_itemsize(x->dtype);
    int32_t dtype = x->dtype;
    qrt_buffer *scratch[2] = {NULL, NULL};
    int64_t size = x->size;
    qrt_status status = QRT_OK;
    const void *from = x->data;
    for (int g = groups - 1, stage = 0; g >= 0; g--) {
        if (!group_reduced[g]) continue;
        reduce_call call = {.x = from, .dtype = dtype, .outer = 1, .n = group[g], .inner = 1, .op = stage_op};
        for (int i = 0; i < g; i++) call.outer *= group[i];
        for (int i = g + 1; i < groups; i++) call.inner *= group_reduced[i] ? 1 : group[i];
        size /= group[g];
        void *to;
        if (++stage == stages && !is_half) {
            status = qrt_alloc(run, &out[0], x->dtype, rank, dims);
            to = out[0].data;
        } else {
            if (!scratch[stage % 2]) scratch[stage % 2] = qrt_scratch(run, (size_t)size * item);
            if (!scratch[stage % 2]) status = QRT_NO_MEMORY;
            to = scratch[stage % 2] ? scratch[stage % 2]->data : NULL;
        }
        if (status != QRT_OK) break;
        if (x->dtype == QRT_I64) {
            for (int64_t o = 0; o < call.outer; o++)
                for (int64_t i = 0; i < call.inner; i++)
                    ((int64_t *)to)[o * call.inner + i] =
                        reduce_i64(op, (const int64_t *)from + o * call.n * call.inner + i, call.n, call.inner);
        } else {
            call.y = to;
            reduce_stage(&call, run);
        }
        from = to;
        if (is_half) dtype = QRT_F32;
        // Absolute values and squares are taken once.
        if (stage_op == QRT_REDUCE_L1 || stage_op == QRT_REDUCE_SUM_SQUARE) stage_op = QRT_REDUCE_SUM;
    }
    if (status == QRT_OK && stages && is_half) {
        finish(op, count, false, (void *)from, size);
        status = qrt_alloc(run, &out[0], QRT_F16, rank, dims);
        if (status == QRT_OK) qrt_kernels.pointwise.f32_to_f16(from, out[0].data, size);
    }
    for (int i = 0; i < 2; i++)
        if (scratch[i]) qrt_scratch_free(run, scratch[i]);
    if (status != QRT_OK) return status;
    if (stages == 0) qrt_alias(&out[0], x, rank, dims);
    else if (!is_half) finish(op, count, dtype == QRT_F64, out[0].data, out[0].size);
    return QRT_OK;
}

const qrt_node_entry qrt_reduction_nodes[] = {
    {"reduce", reduce},
    {NULL, NULL},
};
