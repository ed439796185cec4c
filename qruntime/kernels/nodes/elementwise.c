/// Elementwise nodes with broadcasting.
#include <math.h>
#include <string.h>

#include "../threads.h"
#include "broadcast.h"

/// Numbers of float16 that are widened at a time, so that they stay in the first-level cache.
enum { HALVES = 1024 };

typedef struct {
    qrt_unary_fn fn;
    qrt_unary_f16_fn half_fn;    ///< NULL but for float16
    qrt_unary_f64_fn double_fn;  ///< NULL but for float64
    const void *x;
    void *y;
    int64_t size;
    double p, q;
} unary_call;

static void unary_task(void *context, int64_t task) {
    const unary_call *call = context;
    int64_t start = task * QRT_GRAIN, left = call->size - start, n = left < QRT_GRAIN ? left : QRT_GRAIN;
    const float p = (float)call->p, q = (float)call->q;
    if (call->double_fn)
        call->double_fn((const double *)call->x + start, (double *)call->y + start, n, call->p, call->q);
    else if (call->half_fn)
        call->half_fn((const uint16_t *)call->x + start, (uint16_t *)call->y + start, n, p, q);
    else
        call->fn((const float *)call->x + start, (float *)call->y + start, n, p, q);
}

/// ints: opcode. floats: p, q (where the operation has them; clip defaults to no bounds, the rest to 0).
/// Input: float32, float16 or float64. Clip may have its bounds as further inputs, scalars of float32 or float64 like x.
static qrt_status unary(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    if (node->num_inputs < 1 || node->num_ints < 1 || !in[0]) return QRT_DECLINE;
    int32_t dtype = in[0]->dtype;
    int64_t op = node->ints[0];
    if ((dtype != QRT_F32 && dtype != QRT_F16 && dtype != QRT_F64) || op < 0 || op >= QRT_NUM_UNARY) return QRT_DECLINE;
    unary_call call = {.fn = qrt_kernels.pointwise.unary[op], .x = in[0]->data, .size = in[0]->size};
    if (dtype == QRT_F16) call.half_fn = qrt_kernels.pointwise.unary_f16[op];
    if (dtype == QRT_F64 && !(call.double_fn = qrt_kernels.pointwise.unary_f64[op])) return QRT_DECLINE;
    double parameters[2] = {op == QRT_CLIP ? -INFINITY : 0, op == QRT_CLIP ? INFINITY : 0};
    for (int i = 0; i < 2; i++) {
        if (i < node->num_floats) parameters[i] = node->floats[i];
        const qrt_tensor *bound = i + 1 < node->num_inputs ? in[i + 1] : NULL;
        if (!bound) continue;
        if (op != QRT_CLIP || dtype == QRT_F16 || bound->dtype != dtype || bound->size != 1) return QRT_DECLINE;
        parameters[i] = dtype == QRT_F64 ? *(const double *)bound->data : *(const float *)bound->data;
    }
    call.p = parameters[0];
    call.q = parameters[1];
    qrt_status status = qrt_allocate_over(node, run, in, 0, 0, dtype, in[0]->rank, in[0]->dims, &out[0]);
    if (status != QRT_OK) return status;
    call.y = out[0].data;
    qrt_parallel_for(run->num_threads, (call.size + QRT_GRAIN - 1) / QRT_GRAIN, unary_task, &call);
    return QRT_OK;
}

/// bool → bool.
static qrt_status logical_not(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    if (node->num_inputs < 1 || !in[0] || in[0]->dtype != QRT_BOOL) return QRT_DECLINE;
    const uint8_t *x = in[0]->data;
    qrt_status status = qrt_allocate_over(node, run, in, 0, 0, QRT_BOOL, in[0]->rank, in[0]->dims, &out[0]);
    if (status != QRT_OK) return status;
    uint8_t *y = out[0].data;
    for (int64_t i = 0; i < out[0].size; i++) y[i] = !x[i];
    return QRT_OK;
}

static void binary_run(const qrt_broadcast *call, const int64_t *at, int64_t out, int64_t n, const int *steps) {
    qrt_binary_fn fn = (qrt_binary_fn)(uintptr_t)call->kernel;
    const char *a = (const char *)call->in[0] + (size_t)at[0] * call->itemsize;
    const char *b = (const char *)call->in[1] + (size_t)at[1] * call->itemsize;
    fn(a, b, (char *)call->out + (size_t)out * call->out_itemsize, n, steps[0], steps[1]);
}

/// The same of float16, with a kernel of float32.
static void binary_half_run(const qrt_broadcast *call, const int64_t *at, int64_t out, int64_t n, const int *steps) {
    qrt_binary_fn fn = (qrt_binary_fn)(uintptr_t)call->kernel;
    const uint16_t *a = (const uint16_t *)call->in[0] + at[0], *b = (const uint16_t *)call->in[1] + at[1];
    char *y = (char *)call->out + (size_t)out * call->out_itemsize;
    float wide_a[HALVES], wide_b[HALVES], wide_y[HALVES];
    for (int64_t i = 0; i < n; i += HALVES) {
        int64_t count = n - i < HALVES ? n - i : HALVES;
        qrt_kernels.pointwise.f16_to_f32(a + i * steps[0], wide_a, steps[0] ? count : 1);
        qrt_kernels.pointwise.f16_to_f32(b + i * steps[1], wide_b, steps[1] ? count : 1);
        if (call->out_itemsize == 1) {  // bytes of a comparison
            fn(wide_a, wide_b, y + i, count, steps[0], steps[1]);
            continue;
        }
        fn(wide_a, wide_b, wide_y, count, steps[0], steps[1]);
        qrt_kernels.pointwise.f32_to_f16(wide_y, (uint16_t *)y + i, count);
    }
}

/// True when a / b has an answer for every pair: no zero, and no −1 beside the most negative number.
static bool division_is_defined(const qrt_tensor *a, const qrt_tensor *b) {
    bool has_minus_one = false;
    for (int64_t i = 0; i < b->size; i++) {
        int64_t d = b->dtype == QRT_I64 ? ((const int64_t *)b->data)[i] : ((const int32_t *)b->data)[i];
        if (d == 0) return false;
        has_minus_one |= d == -1;
    }
    for (int64_t i = 0; has_minus_one && i < a->size; i++) {
        int64_t d = a->dtype == QRT_I64 ? ((const int64_t *)a->data)[i] : ((const int32_t *)a->data)[i];
        if (d == (a->dtype == QRT_I64 ? INT64_MIN : INT32_MIN)) return false;
    }
    return true;
}

/// ints: opcode. Inputs of one type: float32, float16, float64, int64, int32, or bool for the logical ones. The slopes of prelu broadcast to
/// its first input, which must not have to.
static qrt_status binary(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    if (node->num_inputs != 2 || node->num_ints < 1 || !in[0] || !in[1]) return QRT_DECLINE;
    if (in[0]->dtype != in[1]->dtype) return QRT_DECLINE;
    int64_t op = node->ints[0];
    if (op < 0 || op >= QRT_NUM_BINARY) return QRT_DECLINE;
    const qrt_pointwise *kernels = &qrt_kernels.pointwise;
    int32_t dtype = in[0]->dtype;
    bool is_half = dtype == QRT_F16, is_float = is_half || dtype == QRT_F32 || dtype == QRT_F64;
    qrt_binary_fn fn = dtype == QRT_F64    ? kernels->binary_f64[op]
                       : is_float          ? kernels->binary_f32[op]
                       : dtype == QRT_I64  ? kernels->binary_i64[op]
                       : dtype == QRT_I32  ? kernels->binary_i32[op]
                       : dtype == QRT_BOOL ? kernels->binary_bool[op]
                                           : NULL;
    if (!fn) return QRT_DECLINE;
    bool divides = op == QRT_DIV || op == QRT_MOD || op == QRT_FMOD;
    if (divides && !is_float && !division_is_defined(in[0], in[1])) return QRT_DECLINE;
    int32_t rank, result = op >= QRT_EQUAL ? QRT_BOOL : dtype;
    int64_t dims[QRT_MAX_RANK];
    if (!qrt_broadcast_shape(in, 2, &rank, dims)) return QRT_DECLINE;
    if (op == QRT_PRELU && !qrt_has_shape(in[0], rank, dims)) return QRT_DECLINE;
    qrt_broadcast call = {.it = qrt_plan_iteration(in, 2, rank, dims), .num = 2, .run = is_half ? binary_half_run : binary_run,
                             .in = {in[0]->data, in[1]->data}, .kernel = (const void *)(uintptr_t)fn,
                             .itemsize = qrt_itemsize(dtype), .out_itemsize = qrt_itemsize(result)};
    qrt_status status = qrt_allocate_over(node, run, in, 0, 1, result, rank, dims, &out[0]);
    if (status != QRT_OK) return status;
    call.out = out[0].data;
    qrt_run_broadcast(&call, run, out[0].size);
    return QRT_OK;
}

/// Both sides are read, so that the compiler may choose without a branch.
#define PICK(condition, a, b) (__extension__({ __typeof__(*y) a_ = (a), b_ = (b); (condition) ? a_ : b_; }))

#define SELECT(name, type)                                                                               \
    static void name(const qrt_broadcast *call, const int64_t *at, int64_t out, int64_t n,            \
                     const int *steps) {                                                                 \
        const uint8_t *c = (const uint8_t *)call->in[0] + at[0];                                         \
        const type *x = (const type *)call->in[1] + at[1], *y = (const type *)call->in[2] + at[2];       \
        type *to = (type *)call->out + out;                                                              \
        if (!steps[0] && steps[*c ? 1 : 2]) {                                                            \
            memmove(to, *c ? x : y, (size_t)n * sizeof *to);                                             \
        } else if (steps[0] && steps[1] && steps[2]) {                                                   \
            for (int64_t i = 0; i < n; i++) to[i] = PICK(c[i], x[i], y[i]);                              \
        } else if (steps[0] && steps[2]) {                                                               \
            type a = *x;                                                                                 \
            for (int64_t i = 0; i < n; i++) to[i] = PICK(c[i], a, y[i]);                                 \
        } else if (steps[0] && steps[1]) {                                                               \
            type b = *y;                                                                                 \
            for (int64_t i = 0; i < n; i++) to[i] = PICK(c[i], x[i], b);                                 \
        } else {                                                                                         \
            for (int64_t i = 0; i < n; i++) to[i] = c[i * steps[0]] ? x[i * steps[1]] : y[i * steps[2]]; \
        }                                                                                                \
    }
SELECT(select_8, uint8_t)
SELECT(select_16, uint16_t)
SELECT(select_32, uint32_t)
SELECT(select_64, uint64_t)

/// Inputs: condition (bool), x, y of one type.
static qrt_status where(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    if (node->num_inputs != 3 || !in[0] || !in[1] || !in[2]) return QRT_DECLINE;
    size_t itemsize = qrt_itemsize(in[1]->dtype);
    if (in[0]->dtype != QRT_BOOL || in[1]->dtype != in[2]->dtype || itemsize == 0) return QRT_DECLINE;
    int32_t rank;
    int64_t dims[QRT_MAX_RANK];
    if (!qrt_broadcast_shape(in, 3, &rank, dims)) return QRT_DECLINE;
    qrt_broadcast_fn select = itemsize == 1 ? select_8 : itemsize == 2 ? select_16 : itemsize == 4 ? select_32 : select_64;
    qrt_broadcast call = {.it = qrt_plan_iteration(in, 3, rank, dims), .num = 3, .run = select,
                             .in = {in[0]->data, in[1]->data, in[2]->data}};
    qrt_status status = qrt_allocate_over(node, run, in, 1, 2, in[1]->dtype, rank, dims, &out[0]);
    if (status != QRT_OK) return status;
    call.out = out[0].data;
    qrt_run_broadcast(&call, run, out[0].size);
    return QRT_OK;
}

const qrt_node_entry qrt_elementwise_nodes[] = {
    {"unary", unary},
    {"not", logical_not},
    {"binary", binary},
    {"where", where},
    {NULL, NULL},
};
