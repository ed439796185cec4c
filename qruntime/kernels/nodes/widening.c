/// float16 and bfloat16: operators of these types are those of float32 on widened inputs, with outputs that are rounded
/// half to even (beyond the largest number: to infinity; NaN stays NaN). No node function needs a form of its own.
#include <string.h>

#include "../nodes.h"
#include "../threads.h"

enum { GRAIN = 16384, MAX_INPUTS = 16 };

/// What computes in float32 and declines narrower floats. Whatever only moves elements is not here: it has their size.
static const char *const widening[] = {
    "unary", "binary", "reduce", "argmax", "argmin", "cumsum",
    "softmax", "log_softmax", "layer_norm", "rms_norm", "batch_norm", "group_norm", "lrn",
    "matmul", "gemm", "linear", "conv", "conv_q8", "attention", "lstm", "gru", "rnn", "conv_transpose",
    "max_pool", "average_pool", "global_average_pool", "global_max_pool", "grid_sample", "roi_align", "dft", "stft",
};

bool qrt_widens(const char *name) {
    for (size_t i = 0; i < sizeof widening / sizeof *widening; i++)
        if (!strcmp(widening[i], name)) return true;
    return false;
}

static void f32_of_bf16(const uint16_t *x, float *y, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)x[i] << 16;
        memcpy(&y[i], &bits, sizeof bits);
    }
}

static void bf16_of_f32(const float *x, uint16_t *y, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
        uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);
        y[i] = (uint16_t)(is_nan ? bits >> 16 | 0x40 : rounded >> 16);
    }
}

typedef struct {
    const qrt_tensor *narrow, *wide;
    bool widens;
} conversion;

static void convert_task(void *context, int64_t task) {
    const conversion *c = context;
    int64_t start = task * GRAIN, left = c->wide->size - start, n = left < GRAIN ? left : GRAIN;
    uint16_t *narrow = (uint16_t *)c->narrow->data + start;
    float *wide = (float *)c->wide->data + start;
    bool is_f16 = c->narrow->dtype == QRT_F16;
    if (c->widens)
        (is_f16 ? qrt_kernels.pointwise.f16_to_f32 : f32_of_bf16)(narrow, wide, n);
    else
        (is_f16 ? qrt_kernels.pointwise.f32_to_f16 : bf16_of_f32)(wide, narrow, n);
}

static void convert(qrt_run *run, const qrt_tensor *narrow, const qrt_tensor *wide, bool widens) {
    conversion c = {narrow, wide, widens};
    qrt_parallel_for(run->num_threads, (wide->size + GRAIN - 1) / GRAIN, convert_task, &c);
}

/// True when the floats among the inputs are all of `dtype`; what is not, the definition explains.
static bool has_one_type(const qrt_node *node, const qrt_tensor *const *in, int32_t dtype) {
    for (int i = 0; i < node->num_inputs; i++) {
        int32_t other = in[i] ? in[i]->dtype : 0;
        bool is_float = other == QRT_F16 || other == QRT_BF16 || other == QRT_F32 || other == QRT_F64;
        if (is_float && other != dtype) return false;
    }
    return true;
}

static qrt_status narrow_outputs(const qrt_node *node, qrt_run *run, int32_t dtype, qrt_tensor *out) {
    for (int i = 0; i < node->num_outputs; i++) {
        if (out[i].dtype != QRT_F32) continue;
        qrt_tensor narrow = {0};
        qrt_status status = qrt_alloc(run, &narrow, dtype, out[i].rank, out[i].dims);
        if (status != QRT_OK) return QRT_NO_MEMORY;
        convert(run, &narrow, &out[i], false);
        qrt_release(run, &out[i]);
        out[i] = narrow;
    }
    return QRT_OK;
}

qrt_status qrt_call_widened(qrt_node_fn fn, const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    if (node->num_inputs < 1 || node->num_inputs > MAX_INPUTS || !in[0]) return QRT_DECLINE;
    int32_t dtype = in[0]->dtype;
    if ((dtype != QRT_F16 && dtype != QRT_BF16) || !has_one_type(node, in, dtype)) return QRT_DECLINE;
    qrt_tensor wide[MAX_INPUTS] = {0};
    const qrt_tensor *inputs[MAX_INPUTS];
    qrt_node call = *node;
    qrt_status status = QRT_OK;
    for (int i = 0; i < node->num_inputs; i++) {
        inputs[i] = in[i];
        if (status != QRT_OK || !in[i] || in[i]->dtype != dtype) continue;
        if (node->widened && node->widened[i]) {
            inputs[i] = node->widened[i];
            continue;
        }
        status = qrt_alloc(run, &wide[i], QRT_F32, in[i]->rank, in[i]->dims);
        if (status != QRT_OK) continue;
        convert(run, in[i], &wide[i], true);
        inputs[i] = &wide[i];
        call.dying |= (uint64_t)1 << i;  // nobody else has it: the output may be written over it
    }
    if (status == QRT_OK) status = fn(&call, run, inputs, out);
    for (int i = 0; i < node->num_inputs; i++) qrt_release(run, &wide[i]);
    return status == QRT_OK ? narrow_outputs(node, run, dtype, out) : status;
}
