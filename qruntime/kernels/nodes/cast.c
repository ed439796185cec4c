/// Conversion between element types, as numpy's astype does it on x86.
#include <math.h>
#include <string.h>

#include "../nodes.h"
#include "../threads.h"

enum { GRAIN = 16384 };

/// Out of range and NaN give the most negative number, as cvttsd2si does; C leaves it undefined.
static inline int64_t i64_of(double x) {
    return x >= -9223372036854775808.0 && x < 9223372036854775808.0 ? (int64_t)x : INT64_MIN;
}
static inline int32_t i32_of(double x) { return x > -2147483649.0 && x < 2147483648.0 ? (int32_t)x : INT32_MIN; }

typedef void (*convert_fn)(const void *x, void *y, int64_t n);

#define CONVERT(from, from_type, to, to_type, expression)                  \
    static void from##_to_##to(const void *vx, void *vy, int64_t n) {      \
        const from_type *px = vx;                                          \
        to_type *y = vy;                                                   \
        for (int64_t i = 0; i < n; i++) {                                  \
            from_type x = px[i];                                           \
            y[i] = (to_type)(expression);                                  \
        }                                                                  \
    }

#define FROM_FLOAT(from, type)                       \
    CONVERT(from, type, i64, int64_t, i64_of(x))     \
    CONVERT(from, type, i32, int32_t, i32_of(x))     \
    CONVERT(from, type, u8, uint8_t, i32_of(x))      \
    CONVERT(from, type, i8, int8_t, i32_of(x))       \
    CONVERT(from, type, bool, uint8_t, x != 0)

#define FROM_INTEGER(from, type)                     \
    CONVERT(from, type, f32, float, x)               \
    CONVERT(from, type, f64, double, x)              \
    CONVERT(from, type, i64, int64_t, x)             \
    CONVERT(from, type, i32, int32_t, x)             \
    CONVERT(from, type, u8, uint8_t, x)              \
    CONVERT(from, type, i8, int8_t, x)               \
    CONVERT(from, type, bool, uint8_t, x != 0)

FROM_FLOAT(f32, float)
FROM_FLOAT(f64, double)
CONVERT(f32, float, f64, double, x)
CONVERT(f64, double, f32, float, x)
FROM_INTEGER(i64, int64_t)
FROM_INTEGER(i32, int32_t)
FROM_INTEGER(u8, uint8_t)
FROM_INTEGER(i8, int8_t)

static void f16_to_f32(const void *x, void *y, int64_t n) { qrt_kernels.pointwise.f16_to_f32(x, y, n); }
static void f32_to_f16(const void *x, void *y, int64_t n) { qrt_kernels.pointwise.f32_to_f16(x, y, n); }

enum { F32, F64, I64, I32, U8, I8, BOOL, F16, NUM_TYPES };

/// float16 goes through float32 (see `cast`); bool is read as uint8.
static const convert_fn converters[NUM_TYPES][NUM_TYPES] = {
#define ROW(from) {[F32] = from##_to_f32, [F64] = from##_to_f64, [I64] = from##_to_i64, [I32] = from##_to_i32, \
                   [U8] = from##_to_u8, [I8] = from##_to_i8, [BOOL] = from##_to_bool}
    [F32] = {[F64] = f32_to_f64, [I64] = f32_to_i64, [I32] = f32_to_i32, [U8] = f32_to_u8, [I8] = f32_to_i8,
             [BOOL] = f32_to_bool, [F16] = f32_to_f16},
    [F64] = {[F32] = f64_to_f32, [I64] = f64_to_i64, [I32] = f64_to_i32, [U8] = f64_to_u8, [I8] = f64_to_i8,
             [BOOL] = f64_to_bool},
    [I64] = ROW(i64), [I32] = ROW(i32), [U8] = ROW(u8), [I8] = ROW(i8), [BOOL] = ROW(u8),
    [F16] = {[F32] = f16_to_f32},
#undef ROW
};

static int type_index(int64_t dtype) {
    switch (dtype) {
    case QRT_F32: return F32;
    case QRT_F64: return F64;
    case QRT_I64: return I64;
    case QRT_I32: return I32;
    case QRT_U8: return U8;
    case QRT_I8: return I8;
    case QRT_BOOL: return BOOL;
    case QRT_F16: return F16;
    default: return -1;
    }
}

typedef struct {
    convert_fn first, second;  ///< second NULL: one step
    const char *x;
    char *y;
    size_t from_size, to_size;
    int64_t size;
} cast_call;

static void cast_task(void *context, int64_t task) {
    const cast_call *call = context;
    int64_t start = task * GRAIN, end = call->size - start < GRAIN ? call->size : start + GRAIN;
    const char *x = call->x + (size_t)start * call->from_size;
    char *y = call->y + (size_t)start * call->to_size;
    if (!call->second) {
        call->first(x, y, end - start);
        return;
    }
    float between[256];
    for (int64_t i = start; i < end; i += 256, x += 256 * call->from_size, y += 256 * call->to_size) {
        int64_t n = end - i < 256 ? end - i : 256;
        call->first(x, between, n);
        call->second(between, y, n);
    }
}

/// ints: ONNX code of the wanted type. Same type: the input itself, no copy.
static qrt_status cast(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    if (node->num_inputs < 1 || node->num_ints < 1 || !in[0]) return QRT_DECLINE;
    int from = type_index(in[0]->dtype), to = type_index(node->ints[0]);
    if (from < 0 || to < 0) return QRT_DECLINE;
    if (from == to) {
        qrt_alias(&out[0], in[0], in[0]->rank, in[0]->dims);
        return QRT_OK;
    }
    cast_call call = {.first = converters[from][to], .x = in[0]->data, .size = in[0]->size};
    bool through_f32 = (from == F16 || to == F16) && from != F64;
    if (!call.first && through_f32) {
        call.first = converters[from][F32];
        call.second = converters[F32][to];
    }
    if (!call.first) return QRT_DECLINE;
    qrt_status status = qrt_alloc(run, &out[0], (int32_t)node->ints[0], in[0]->rank, in[0]->dims);
    if (status != QRT_OK) return status;
    call.y = out[0].data;
    call.from_size = qrt_itemsize(in[0]->dtype);
    call.to_size = qrt_itemsize(out[0].dtype);
    qrt_parallel_for(run->num_threads, (call.size + GRAIN - 1) / GRAIN, cast_task, &call);
    return QRT_OK;
}

const qrt_node_entry qrt_cast_nodes[] = {
    {"cast", cast},
    {NULL, NULL},
};
