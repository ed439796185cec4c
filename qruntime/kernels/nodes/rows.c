/// Softmax and normalisation.
#include <string.h>

#include "../nodes.h"
#include "../threads.h"

/// Elements of one task: whole rows, at least this much together.
enum { GRAIN = 8192 };

/// Rows of float16 up to this length are widened in the first-level cache; longer ones in slices (widening.c).
enum { WIDE = 4096 };

typedef void (*norm_fn)(int64_t rows, const float *x, const float *residual, float *sum, float *y, int64_t n,
                        const qrt_norm_params *params);

typedef void (*norm_f64_fn)(int64_t rows, const double *x, const double *residual, double *sum, double *y, int64_t n,
                            const qrt_norm_params_f64 *params);

typedef void (*softmax_fn)(const float *x, float *y, int64_t n);
typedef void (*softmax_f64_fn)(const double *x, double *y, int64_t n);
typedef void (*softmax_columns_fn)(const float *x, float *y, int64_t n, int64_t stride, int64_t columns);

/// A row function over [outer, n] or, for softmax along another axis, over [outer, n, inner].
typedef struct rows_call {
    void (*rows_of)(const struct rows_call *call, int64_t first, int64_t last);
    softmax_fn softmax;
    softmax_f64_fn softmax_f64;
    softmax_columns_fn softmax_columns;
    norm_fn norm;
    norm_f64_fn norm_f64;
    const void *x, *residual;   ///< of the type that `rows_of` is for
    void *y, *sum;
    qrt_norm_params params;
    qrt_norm_params_f64 params_f64;
    int64_t rows, n, inner, rows_per_task;
} rows_call;

static void rows_task(void *context, int64_t task) {
    const rows_call *call = context;
    int64_t first = task * call->rows_per_task, last = first + call->rows_per_task;
    if (last > call->rows) last = call->rows;
    call->rows_of(call, first, last);
}

static void run_rows(rows_call *call, qrt_run *run) {
    if (call->rows == 0 || call->n == 0) return;
    call->rows_per_task = (GRAIN + call->n - 1) / call->n;
    qrt_parallel_for(run->num_threads, (call->rows + call->rows_per_task - 1) / call->rows_per_task, rows_task, call);
}

static void softmax_rows(const rows_call *call, int64_t first, int64_t last) {
    const float *x = call->x;
    for (int64_t row = first; row < last; row++) call->softmax(x + row * call->n, (float *)call->y + row * call->n, call->n);
}

static void softmax_rows_f64(const rows_call *call, int64_t first, int64_t last) {
    const double *x = call->x;
    for (int64_t row = first; row < last; row++) call->softmax_f64(x + row * call->n, (double *)call->y + row * call->n, call->n);
}

static void softmax_rows_f16(const rows_call *call, int64_t first, int64_t last) {
    float wide[WIDE];
    for (int64_t row = first; row < last; row++) {
        qrt_kernels.pointwise.f16_to_f32((const uint16_t *)call->x + row * call->n, wide, call->n);
        call->softmax(wide, wide, call->n);
        qrt_kernels.pointwise.f32_to_f16(wide, (uint16_t *)call->y + row * call->n, call->n);
    }
}

static void softmax_columns(const rows_call *call, int64_t first, int64_t last) {
    for (int64_t row = first, count; row < last; row += count) {
        const int64_t column = row % call->inner, at = row / call->inner * call->n * call->inner + column;
        count = call->inner - column < last - row ? call->inner - column : last - row;
        call->softmax_columns((const float *)call->x + at, (float *)call->y + at, call->n, call->inner, count);
    }
}

static int64_t product(const int64_t *dims, int from, int to) {
    int64_t n = 1;
    for (int i = from; i < to; i++) n *= dims[i];
    return n;
}

/// Axis counted from the end when negative; −1 when there is no such axis.
static int normal_axis(int64_t axis, int rank) {
    if (axis < -rank || axis >= rank) return -1;
    return (int)(axis < 0 ? axis + rank : axis);
}

static qrt_status allocate_over_first(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in,
                                      qrt_tensor *out) {
    if (qrt_may_overwrite(node, in, 0)) {
        qrt_alias(out, in[0], in[0]->rank, in[0]->dims);
        return QRT_OK;
    }
    return qrt_alloc(run, out, in[0]->dtype, in[0]->rank, in[0]->dims);
}

/// ints: axis. Input: float32, or float64 or float16 along its last axis.
static qrt_status softmax_with(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out, softmax_fn kernel,
                               softmax_columns_fn of_columns, softmax_f64_fn of_doubles) {
    const qrt_tensor *x = node->num_inputs == 1 ? in[0] : NULL;
    if (!x || node->num_ints < 1 || (x->dtype != QRT_F32 && x->dtype != QRT_F64 && x->dtype != QRT_F16)) return QRT_DECLINE;
    int axis = normal_axis(node->ints[0], x->rank);
    if (axis < 0) return QRT_DECLINE;
    rows_call call = {.rows_of = softmax_rows, .softmax = kernel, .softmax_columns = of_columns, .softmax_f64 = of_doubles,
                      .x = x->data, .n = x->dims[axis]};
    if (x->size) {
        call.rows = x->size / call.n;
        call.inner = product(x->dims, axis + 1, x->rank);
    }
    if (call.inner > 1) call.rows_of = softmax_columns;
    if (x->dtype != QRT_F32) {
        if (call.inner > 1 || (x->dtype == QRT_F16 && call.n > WIDE)) return QRT_DECLINE;
        call.rows_of = x->dtype == QRT_F64 ? softmax_rows_f64 : softmax_rows_f16;
    }
    qrt_status status = allocate_over_first(node, run, in, &out[0]);
    if (status != QRT_OK) return status;
    call.y = out[0].data;
    run_rows(&call, run);
    return QRT_OK;
}

static qrt_status softmax(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_rows *rows = &qrt_kernels.rows;
    return softmax_with(node, run, in, out, rows->softmax, rows->softmax_columns, rows->softmax_f64);
}

static qrt_status log_softmax(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_rows *rows = &qrt_kernels.rows;
    return softmax_with(node, run, in, out, rows->log_softmax, rows->log_softmax_columns, rows->log_softmax_f64);
}

static void norm_rows(const rows_call *call, int64_t first, int64_t last) {
    int64_t at = first * call->n;
    const float *residual = call->residual ? (const float *)call->residual + at : NULL;
    float *sum = call->sum ? (float *)call->sum + at : NULL;
    call->norm(last - first, (const float *)call->x + at, residual, sum, (float *)call->y + at, call->n, &call->params);
}

static void norm_rows_f64(const rows_call *call, int64_t first, int64_t last) {
    int64_t at = first * call->n;
    const double *residual = call->residual ? (const double *)call->residual + at : NULL;
    double *sum = call->sum ? (double *)call->sum + at : NULL;
    call->norm_f64(last - first, (const double *)call->x + at, residual, sum, (double *)call->y + at, call->n, &call->params_f64);
}

static void norm_rows_f16(const rows_call *call, int64_t first, int64_t last) {
    const qrt_pointwise *convert = &qrt_kernels.pointwise;
    const uint16_t *x = call->x, *residual = call->residual;
    uint16_t *y = call->y, *sum = call->sum;
    float wide[WIDE], wide_residual[WIDE], wide_sum[WIDE];
    const int64_t n = call->n, at_once = WIDE / n;
    for (int64_t row = first, rows; row < last; row += rows) {
        rows = last - row < at_once ? last - row : at_once;
        convert->f16_to_f32(x + row * n, wide, rows * n);
        if (residual) convert->f16_to_f32(residual + row * n, wide_residual, rows * n);
        call->norm(rows, wide, residual ? wide_residual : NULL, sum ? wide_sum : NULL, wide, n, &call->params);
        convert->f32_to_f16(wide, y + row * n, rows * n);
        if (sum) convert->f32_to_f16(wide_sum, sum + row * n, rows * n);
    }
}

static bool same_shape(const qrt_tensor *a, const qrt_tensor *b) {
    return a->rank == b->rank && !memcmp(a->dims, b->dims, (size_t)a->rank * sizeof *a->dims);
}

/// A vector over the normalised axes, leading ones allowed.
static bool is_vector_of(const qrt_tensor *t, const qrt_tensor *x, int axis) {
    if (t->dtype != x->dtype) return false;
    for (int i = t->rank - 1, j = x->rank - 1; i >= 0 || j >= axis; i--, j--) {
        int64_t d = i >= 0 ? t->dims[i] : 1;
        if (d != (j >= axis ? x->dims[j] : 1)) return false;
    }
    return true;
}

/// The vectors of float16 as floats: constants have been widened before, others are in `scratch` afterwards. False without memory.
static bool widen_vectors(const qrt_node *node, qrt_run *run, const qrt_tensor *const *vectors, int64_t n, qrt_norm_params *params,
                          qrt_buffer **scratch) {
    const float *wide[2] = {NULL, NULL};
    for (int i = 0; i < 2; i++) {
        if (!vectors[i]) continue;
        if (node->widened && node->widened[i + 1]) {
            wide[i] = node->widened[i + 1]->data;
            continue;
        }
        if (!*scratch && !(*scratch = qrt_scratch(run, 2 * (size_t)n * sizeof(float)))) return false;
        float *to = (float *)(*scratch)->data + i * n;
        qrt_kernels.pointwise.f16_to_f32(vectors[i]->data, to, n);
        wide[i] = to;
    }
    params->scale = wide[0];
    params->bias = wide[1];
    return true;
}

/// Inputs, all of float32, of float64 or of float16: x, scale, bias, residual (all but x optional). Outputs: y, and x + residual when asked for.
/// ints: axis, the first that is normalised. floats: epsilon.
static qrt_status normalization(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out,
                                norm_fn kernel, norm_f64_fn of_doubles) {
    if (node->num_inputs < 1 || node->num_inputs > 4 || node->num_ints < 1 || node->num_floats < 1) return QRT_DECLINE;
    const qrt_tensor *x = in[0], *vectors[2] = {NULL, NULL}, *residual = NULL;
    for (int i = 1; i < node->num_inputs && i < 3; i++) vectors[i - 1] = in[i];
    if (node->num_inputs > 3) residual = in[3];
    if (!x || (x->dtype != QRT_F32 && x->dtype != QRT_F64 && x->dtype != QRT_F16) || node->num_outputs > 2) return QRT_DECLINE;
    int axis = normal_axis(node->ints[0], x->rank);
    if (axis < 0) return QRT_DECLINE;
    for (int i = 0; i < 2; i++)
        if (vectors[i] && !is_vector_of(vectors[i], x, axis)) return QRT_DECLINE;
    if (residual && (residual->dtype != x->dtype || !same_shape(residual, x))) return QRT_DECLINE;

    rows_call call = {.rows_of = x->dtype == QRT_F64 ? norm_rows_f64 : x->dtype == QRT_F16 ? norm_rows_f16 : norm_rows,
                      .norm = kernel, .norm_f64 = of_doubles, .x = x->data, .residual = residual ? residual->data : NULL};
    if (x->size) {
        call.n = product(x->dims, axis, x->rank);
        call.rows = x->size / call.n;
    }
    if (x->dtype == QRT_F16 && call.n > WIDE) return QRT_DECLINE;
    const void *scale = vectors[0] ? vectors[0]->data : NULL, *bias = vectors[1] ? vectors[1]->data : NULL;
    call.params = (qrt_norm_params){scale, bias, (float)node->floats[0]};
    call.params_f64 = (qrt_norm_params_f64){scale, bias, node->floats[0]};
    qrt_buffer *scratch = NULL;
    qrt_tensor sum = {0};
    qrt_status status = QRT_OK;
    if (x->dtype == QRT_F16 && !widen_vectors(node, run, vectors, call.n, &call.params, &scratch)) status = QRT_NO_MEMORY;
    if (status == QRT_OK && node->num_outputs == 2) {
        if (residual) status = qrt_alloc(run, &sum, x->dtype, x->rank, x->dims);
        else qrt_alias(&sum, x, x->rank, x->dims);
        if (residual) call.sum = sum.data;
    }
    // With an alias of x among the outputs, x is no longer ours alone and will not be overwritten.
    if (status == QRT_OK) status = allocate_over_first(node, run, in, &out[0]);
    if (status == QRT_OK) {
        if (node->num_outputs == 2) out[1] = sum;
        call.y = out[0].data;
        run_rows(&call, run);
    } else {
        qrt_release(run, &sum);
    }
    if (scratch) qrt_scratch_free(run, scratch);
    return status;
}

static qrt_status layer_norm(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    return normalization(node, run, in, out, qrt_kernels.rows.layer_norm, qrt_kernels.rows.layer_norm_f64);
}

static qrt_status rms_norm(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    return normalization(node, run, in, out, qrt_kernels.rows.rms_norm, qrt_kernels.rows.rms_norm_f64);
}

const qrt_node_entry qrt_rows_nodes[] = {
    {"softmax", softmax},
    {"log_softmax", log_softmax},
    {"layer_norm", layer_norm},
    {"rms_norm", rms_norm},
    {NULL, NULL},
};
