/// QuantizeLinear, DequantizeLinear, both in one and DynamicQuantizeLinear: of codes of a byte, per tensor or per axis.
#include <math.h>

#include "../kernels.h"
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
    float low, high;                    ///< the least and greatest code
    void (*uniform)(const void *x, void *y, int64_t n, float scale, float zero, float low, float high);
    void (*varying)(const void *x, void *y, int64_t n, const float *scale, const float *zero, float low, float high);
    size_t from_size, to_size;
} quantize_call;

#define UNIFORM const void *vx, void *vy, int64_t n, float scale, float zero, float low, float high
#define VARYING const void *vx, void *vy, int64_t n, const float *scale, const float *zero, float low, float high

/// As kernels read codes of a type whose least is `low`: 0 … 255.
static inline uint8_t flip_of(float low) { return low < 0 ? 0x80 : 0; }

static void quantize(UNIFORM) {
    const uint8_t flip = flip_of(low);
    const qrt_requantize to = {low - zero, high - zero, (int32_t)zero + flip, flip};
    qrt_kernels.qlinear.quantize(vx, vy, n, scale, &to);
}

static void dequantize(UNIFORM) {
    (void)high;
    const uint8_t flip = flip_of(low);
    qrt_kernels.qlinear.dequantize(vx, vy, n, (qrt_code_scale){scale, zero + flip}, flip);
}

#define QUANTIZE(name, type)                                                                                  \
    static void quantize_each_##name(VARYING) {                                                               \
        const float *x = vx;                                                                                  \
        type *y = vy;                                                                                         \
        for (int64_t i = 0; i < n; i++) y[i] = (type)(int32_t)code_of(x[i], scale[i], zero[i], low, high);    \
    }                                                                                                         \
    static void dequantize_each_##name(VARYING) {                                                             \
        (void)low, (void)high;                                                                                \
        const type *x = vx;                                                                                   \
        float *y = vy;                                                                                        \
        for (int64_t i = 0; i < n; i++) y[i] = ((float)x[i] - zero[i]) * scale[i];                            \
    }

QUANTIZE(u8, uint8_t)
QUANTIZE(i8, int8_t)

static void round_to(UNIFORM) {
    const float *x = vx;
    float *y = vy;
    for (int64_t i = 0; i < n; i++) y[i] = (code_of(x[i], scale, zero, low, high) - zero) * scale;
}
static void round_each_to(VARYING) {
    const float *x = vx;
    float *y = vy;
    for (int64_t i = 0; i < n; i++) y[i] = (code_of(x[i], scale[i], zero[i], low, high) - zero[i]) * scale[i];
}

static void quantize_task(void *context, int64_t task) {
    const quantize_call *call = context;
    int64_t i = task * GRAIN, end = call->size - i < GRAIN ? call->size : i + GRAIN;
    while (i < end) {
        const char *x = (const char *)call->x + (size_t)i * call->from_size;
        char *y = (char *)call->y + (size_t)i * call->to_size;
        int64_t n, channel = i / call->inner % call->channels;
        if (call->inner == 1 && call->channels > 1) {
            n = call->channels - channel < end - i ? call->channels - channel : end - i;
            call->varying(x, y, n, call->scale + channel, call->zero + channel, call->low, call->high);
        } else {
            n = call->inner - i % call->inner < end - i ? call->inner - i % call->inner : end - i;
            call->uniform(x, y, n, call->scale[channel], call->zero[channel], call->low, call->high);
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

typedef enum { TO_CODES, FROM_CODES, ROUND } direction;

static qrt_status linear(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out, direction to) {
    if (node->num_inputs < 2 || node->num_ints < 2 || !in[0] || !in[1]) return QRT_DECLINE;
    const qrt_tensor *x = in[0], *zero = node->num_inputs > 2 ? in[2] : NULL;
    int64_t codes = to == FROM_CODES ? x->dtype : zero ? zero->dtype : node->ints[1];
    if ((codes != QRT_U8 && codes != QRT_I8) || (zero && zero->dtype != codes)) return QRT_DECLINE;
    if (to != FROM_CODES && (x->dtype != QRT_F32 || (node->ints[1] && node->ints[1] != codes))) return QRT_DECLINE;
    const bool is_u8 = codes == QRT_U8;
    const int64_t most = node->num_ints > 2 ? node->ints[2] : is_u8 ? UINT8_MAX : INT8_MAX;
    if (most < 0 || most > (is_u8 ? UINT8_MAX : INT8_MAX)) return QRT_DECLINE;
    quantize_call call = {
        .x = x->data, .scale = in[1]->data, .from_size = to == FROM_CODES ? 1 : 4, .to_size = to == TO_CODES ? 1 : 4,
        .low = is_u8 ? 0.0f : INT8_MIN, .high = (float)most,
    };
    if (!spread(&call, x, in[1], zero, node->ints[0])) return QRT_DECLINE;
    qrt_buffer *zeros = zeros_of(&call, run, zero);
    if (!zeros) return QRT_NO_MEMORY;
    qrt_status status = qrt_alloc(run, &out[0], to == TO_CODES ? (int32_t)codes : QRT_F32, x->rank, x->dims);
    if (status == QRT_OK) {
        call.y = out[0].data;
        if (to == TO_CODES) {
            call.uniform = quantize;
            call.varying = is_u8 ? quantize_each_u8 : quantize_each_i8;
        } else if (to == FROM_CODES) {
            call.uniform = dequantize;
            call.varying = is_u8 ? dequantize_each_u8 : dequantize_each_i8;
        } else {
            call.uniform = round_to;
            call.varying = round_each_to;
        }
        run_call(&call, run);
    }
    qrt_scratch_free(run, zeros);
    return status;
}

/// ints: axis, wanted type of the codes (0: that of the zero point), the greatest code unless it is that of the type.
/// Inputs: x float32, scale, zero point (optional).
static qrt_status quantize_linear(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    return linear(node, run, in, out, TO_CODES);
}

/// ints: axis, unused. Inputs: codes uint8 or int8, scale float32, zero point of the type of the codes (optional).
static qrt_status dequantize_linear(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    return linear(node, run, in, out, FROM_CODES);
}

/// What the codes that quantize_linear finds stand for.
static qrt_status round_to_codes(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    return linear(node, run, in, out, ROUND);
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
        .inner = x->size > 0 ? x->size : 1, .uniform = quantize, .from_size = 4, .to_size = 1,
        .low = 0, .high = 255,
    };
    run_call(&call, run);
    return QRT_OK;
}

const qrt_node_entry qrt_quantize_nodes[] = {
    {"quantize_linear", quantize_linear},
    {"dequantize_linear", dequantize_linear},
    {"round_to_codes", round_to_codes},
    {"dynamic_quantize_linear", dynamic_quantize_linear},
    {NULL, NULL},
};
