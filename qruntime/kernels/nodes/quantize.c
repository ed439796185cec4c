/// QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear of 8-bit codes, per tensor or per axis.
#include <math.h>

#include "../nodes.h"
#include "../threads.h"

enum { GRAIN = 16384 };

/// Adding and subtracting it rounds a float below 2²² to the nearest integer, ties to even.
static const float ROUNDER = 12582912.0f;

static inline float code_of(float x, float scale, float zero, float low, float high) {
    float q = x / scale;
    q = q == q ? q : 0;
    q = q < low - zero ? low - zero : q;
    q = q > high - zero ? high - zero : q;
    return (q + ROUNDER) - ROUNDER + zero;
}

typedef struct {
    const void *x;
    void *y;
    const float *scale, *zero;          ///< [channels]
    int64_t size, channels, inner;      ///< element i belongs to channel i / inner % channels
    void (*uniform)(const void *x, void *y, int64_t n, float scale, float zero);
    void (*varying)(const void *x, void *y, int64_t n, const float *scale, const float *zero);
    size_t from_size, to_size;
} quantize_call;

#define QUANTIZE(name, type, low, high)                                                                              \
    static void quantize_##name(const void *vx, void *vy, int64_t n, float scale, float zero) {                      \
        const float *x = vx;                                                                                         \
        type *y = vy;                                                                                                \
        for (int64_t i = 0; i < n; i++) y[i] = (type)(int32_t)code_of(x[i], scale, zero, low, high);                 \
    }                                                                                                                \
    static void quantize_each_##name(const void *vx, void *vy, int64_t n, const float *scale, const float *zero) {   \
        const float *x = vx;                                                                                         \
        type *y = vy;                                                                                                \
        for (int64_t i = 0; i < n; i++) y[i] = (type)(int32_t)code_of(x[i], scale[i], zero[i], low, high);           \
    }                                                                                                                \
    static void dequantize_##name(const void *vx, void *vy, int64_t n, float scale, float zero) {                    \
        const type *x = vx;                                                                                          \
        float *y = vy;                                                                                               \
        for (int64_t i = 0; i < n; i++) y[i] = ((float)x[i] - zero) * scale;                                         \
    }                                                                                                                \
    static void dequantize_each_##name(const void *vx, void *vy, int64_t n, const float *scale, const float *zero) { \
        const type *x = vx;                                                                                          \
        float *y = vy;                                                                                               \
        for (int64_t i = 0; i < n; i++) y[i] = ((float)x[i] - zero[i]) * scale[i];                                   \
    }

QUANTIZE(u8, uint8_t, 0.0f, 255.0f)
QUANTIZE(i8, int8_t, -128.0f, 127.0f)

static void quantize_task(void *context, int64_t task) {
    const quantize_call *call = context;
    int64_t i = task * GRAIN, end = call->size - i < GRAIN ? call->size : i + GRAIN;
    while (i < end) {
        const char *x = (const char *)call->x + (size_t)i * call->from_size;
        char *y = (char *)call->y + (size_t)i * call->to_size;
        int64_t n, channel = i / call->inner % call->channels;
        if (call->inner == 1 && call->channels > 1) {
            n = call->channels - channel < end - i ? call->channels - channel : end - i;
            call->varying(x, y, n, call->scale + channel, call->zero + channel);
        } else {
            n = call->inner - i % call->inner < end - i ? call->inner - i % call->inner : end - i;
            call->uniform(x, y, n, call->scale[channel], call->zero[channel]);
        }
        i += n;
    }
}

static void run_call(quantize_call *call, const qrt_run *run) {
    qrt_parallel_for(run->num_threads, (call->size + GRAIN - 1) / GRAIN, quantize_task, call);
}

/// Where the parameters go: one for all, or one per slice of `axis`. False when they fit neither.
static bool spread(quantize_call *call, const qrt_tensor *x, const qrt_tensor *scale, const qrt_tensor *zero,
                   int64_t axis) {
    if (scale->dtype != QRT_F32 || (zero && zero->size != scale->size)) return false;
    call->size = x->size;
    if (scale->size == 1) {
        call->channels = 1;
        call->inner = x->size > 0 ? x->size : 1;
        return true;
    }
    if (axis < 0) axis += x->rank;
    if (scale->rank != 1 || (zero && zero->rank != 1) || axis < 0 || axis >= x->rank || x->dims[axis] != scale->size)
        return false;
    call->channels = scale->size > 0 ? scale->size : 1;
    call->inner = 1;
    for (int64_t i = axis + 1; i < x->rank; i++) call->inner *= x->dims[i];
    if (!call->inner) call->inner = 1;  // nothing to do then
    return true;
}

/// Zero points as floats in scratch memory; NULL when it is short.
static qrt_buffer *zeros_of(quantize_call *call, qrt_run *run, const qrt_tensor *zero) {
    qrt_buffer *buffer = qrt_scratch(run, (size_t)call->channels * sizeof(float));
    if (!buffer) return NULL;
    float *values = buffer->data;
    for (int64_t i = 0; i < call->channels; i++)
        values[i] = !zero || i >= zero->size ? 0.0f
                    : zero->dtype == QRT_U8  ? ((const uint8_t *)zero->data)[i]
                                             : ((const int8_t *)zero->data)[i];
    call->zero = values;
    return buffer;
}

static qrt_status linear(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out,
                         bool quantizes) {
    if (node->num_inputs < 2 || node->num_ints < 2 || !in[0] || !in[1]) return QRT_DECLINE;
    const qrt_tensor *x = in[0], *zero = node->num_inputs > 2 ? in[2] : NULL;
    int64_t codes = !quantizes ? x->dtype : zero ? zero->dtype : node->ints[1];
    if ((codes != QRT_U8 && codes != QRT_I8) || (zero && zero->dtype != codes)) return QRT_DECLINE;
    if (quantizes && (x->dtype != QRT_F32 || (node->ints[1] && node->ints[1] != codes))) return QRT_DECLINE;
    quantize_call call = {.x = x->data, .scale = in[1]->data, .from_size = quantizes ? 4 : 1, .to_size = quantizes ? 1 : 4};
    if (!spread(&call, x, in[1], zero, node->ints[0])) return QRT_DECLINE;
    qrt_buffer *zeros = zeros_of(&call, run, zero);
    if (!zeros) return QRT_NO_MEMORY;
    qrt_status status = qrt_alloc(run, &out[0], quantizes ? (int32_t)codes : QRT_F32, x->rank, x->dims);
    if (status == QRT_OK) {
        call.y = out[0].data;
        bool is_u8 = codes == QRT_U8;
        if (quantizes) {
            call.uniform = is_u8 ? quantize_u8 : quantize_i8;
            call.varying = is_u8 ? quantize_each_u8 : quantize_each_i8;
        } else {
            call.uniform = is_u8 ? dequantize_u8 : dequantize_i8;
            call.varying = is_u8 ? dequantize_each_u8 : dequantize_each_i8;
        }
        run_call(&call, run);
    }
    qrt_scratch_free(run, zeros);
    return status;
}

/// ints: axis, wanted type of the codes (0: that of the zero point). Inputs: x float32, scale, zero point (optional).
static qrt_status quantize_linear(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    return linear(node, run, in, out, true);
}

/// ints: axis, unused. Inputs: codes uint8 or int8, scale float32, zero point of the type of the codes (optional).
static qrt_status dequantize_linear(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    return linear(node, run, in, out, false);
}

/// Input: x float32. Outputs: codes uint8, scale and zero point, both of rank 0.
static qrt_status dynamic_quantize_linear(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in,
                                          qrt_tensor *out) {
    if (node->num_inputs < 1 || node->num_outputs < 3 || !in[0] || in[0]->dtype != QRT_F32) return QRT_DECLINE;
    const qrt_tensor *x = in[0];
    const float *values = x->data;
    float low = 0, high = 0, nan = 0;
    for (int64_t i = 0; i < x->size; i++) {
        low = values[i] < low ? values[i] : low;
        high = values[i] > high ? values[i] : high;
        nan = values[i] == values[i] ? nan : 1;
    }
    if (nan || !isfinite(high - low)) return QRT_DECLINE;
    float scale = (high - low) / 255.0f;
    if (scale == 0) scale = 1;
    float zero = code_of(-low, scale, 0, 0, 255);
    qrt_status status = qrt_alloc(run, &out[0], QRT_U8, x->rank, x->dims);
    if (status == QRT_OK) status = qrt_alloc(run, &out[1], QRT_F32, 0, NULL);
    if (status == QRT_OK) status = qrt_alloc(run, &out[2], QRT_U8, 0, NULL);
    if (status != QRT_OK) return status;
    *(float *)out[1].data = scale;
    *(uint8_t *)out[2].data = (uint8_t)zero;
    quantize_call call = {
        .x = values, .y = out[0].data, .scale = &scale, .zero = &zero, .size = x->size, .channels = 1,
        .inner = x->size > 0 ? x->size : 1, .uniform = quantize_u8, .from_size = 4, .to_size = 1,
    };
    run_call(&call, run);
    return QRT_OK;
}

const qrt_node_entry qrt_quantize_nodes[] = {
    {"quantize_linear", quantize_linear},
    {"dequantize_linear", dequantize_linear},
    {"dynamic_quantize_linear", dynamic_quantize_linear},
    {NULL, NULL},
};
