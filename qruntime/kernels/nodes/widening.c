/// float16 and bfloat16: operators of these types are those of float32 on widened inputs, with outputs that are rounded
/// half to even (beyond the largest number: to infinity; NaN stays NaN). No node function needs a form of its own.
#include <string.h>

#include "../threads.h"
#include "arguments.h"

enum { GRAIN = 16384, MAX_INPUTS = 16, MAX_OUTPUTS = 2 };

/// Numbers of a slice for each thread: their floats stay in the second-level cache on the way in and out.
enum { SLICE = 32768 };

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

/// All of `wide`, as many of `narrow`.
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

/// Widened copies of a node's inputs, absent where there is nothing to widen.
typedef struct {
    qrt_tensor tensors[MAX_INPUTS];
    const qrt_tensor *inputs[MAX_INPUTS];  ///< what the kernel gets
} wide_inputs;

static void release_inputs(qrt_run *run, const qrt_node *node, wide_inputs *wide) {
    for (int i = 0; i < node->num_inputs; i++) qrt_release(run, &wide->tensors[i]);
}

/// Widen every input of `dtype` but those of `left` (bit i: input i); `dying` receives a bit for each that was made.
static qrt_status widen_inputs(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, int32_t dtype, uint64_t left,
                               wide_inputs *wide, uint64_t *dying) {
    for (int i = 0; i < node->num_inputs; i++) {
        wide->inputs[i] = in[i];
        if (!in[i] || in[i]->dtype != dtype || left >> i & 1) continue;
        if (node->widened && node->widened[i]) {
            wide->inputs[i] = node->widened[i];
            continue;
        }
        qrt_status status = qrt_alloc(run, &wide->tensors[i], QRT_F32, in[i]->rank, in[i]->dims);
        if (status != QRT_OK) return status;
        convert(run, in[i], &wide->tensors[i], true);
        wide->inputs[i] = &wide->tensors[i];
        *dying |= (uint64_t)1 << i;  // nobody else has it: the output may be written over it
    }
    return QRT_OK;
}

/// A node whose input is rows that know nothing of each other: the input is [rows, …], and so are the outputs.
typedef struct {
    int first_axis;                 ///< of a row
    int64_t rows, row_elems;
    int64_t ints[3 + QRT_MAX_RANK];
    int num_ints, num_inputs;
    uint64_t sliced;                ///< bit i: input i has these rows
} row_node;

/// Reductions: nothing before the first axis that is reduced. Axes are counted anew and always given as ints.
static bool read_reduced_rows(const qrt_node *node, const qrt_tensor *const *in, row_node *r) {
    const qrt_tensor *axes = qrt_input(node, in, 1);
    int64_t values[QRT_MAX_RANK];
    int count = node->num_ints - 3;
    if (node->num_ints < 3 || count > QRT_MAX_RANK) return false;
    for (int i = 0; i < count; i++) values[i] = node->ints[3 + i];
    if (axes && (axes->rank != 1 || (count = qrt_read_ints(axes, values, QRT_MAX_RANK)) < 0)) return false;
    if (count < 1 || !qrt_normalize_axes(values, count, in[0]->rank)) return false;
    r->first_axis = (int)values[0];
    for (int i = 1; i < count; i++)
        if (values[i] < r->first_axis) r->first_axis = (int)values[i];
    memcpy(r->ints, node->ints, 3 * sizeof *r->ints);
    for (int i = 0; i < count; i++) r->ints[3 + i] = values[i] - r->first_axis + 1;
    r->num_ints = 3 + count;
    r->num_inputs = 1;
    return true;
}

/// True for nodes of such rows that are worth slices.
static bool read_rows(qrt_node_fn fn, const qrt_node *node, const qrt_run *run, const qrt_tensor *const *in, row_node *r) {
    static const char *const along_axis[] = {"softmax", "log_softmax", "layer_norm", "rms_norm"};
    const qrt_tensor *x = in[0];
    if (x->size < 2 * SLICE * (int64_t)run->num_threads || node->num_outputs > MAX_OUTPUTS) return false;
    *r = (row_node){.num_ints = 1, .num_inputs = node->num_inputs, .sliced = 1};
    if (fn == qrt_find_node("reduce")) {
        if (!read_reduced_rows(node, in, r)) return false;
    } else {
        bool found = false;
        for (size_t i = 0; i < sizeof along_axis / sizeof *along_axis; i++) found |= fn == qrt_find_node(along_axis[i]);
        int64_t axis = node->num_ints ? node->ints[0] : 0;
        if (!found || !node->num_ints || !qrt_normalize_axis(&axis, x->rank)) return false;
        r->first_axis = (int)axis;
        r->ints[0] = 1;
        const qrt_tensor *residual = qrt_input(node, in, 3);
        if (residual && (residual->rank != x->rank || memcmp(residual->dims, x->dims, (size_t)x->rank * sizeof *x->dims))) return false;
        if (residual) r->sliced |= 1 << 3;
    }
    r->rows = qrt_product(x->dims, 0, r->first_axis);
    r->row_elems = x->size / r->rows;
    return r->rows > 1 && x->rank < QRT_MAX_RANK + r->first_axis;
}

/// The slice `first`, … of `rows` rows of a tensor that begins with `leading` axes of rows.
static qrt_tensor slice_of(const qrt_tensor *t, int leading, int64_t all_rows, int64_t first, int64_t rows) {
    qrt_tensor s = {.dtype = t->dtype, .rank = t->rank - leading + 1};
    s.dims[0] = rows;
    memcpy(s.dims + 1, t->dims + leading, (size_t)(t->rank - leading) * sizeof *s.dims);
    const int64_t elems = t->size / all_rows;
    s.size = rows * elems;
    s.data = (char *)t->data + (size_t)(first * elems) * qrt_itemsize(t->dtype);
    return s;
}

/// Narrow what the kernel made of rows `first` … into the outputs, which the first slice has made.
static qrt_status narrow_slice(const row_node *r, const qrt_tensor *x, qrt_run *run, const qrt_tensor *made, int64_t first,
                               qrt_tensor *out) {
    if (first == 0) {
        int64_t dims[2 * QRT_MAX_RANK];
        memcpy(dims, x->dims, (size_t)r->first_axis * sizeof *dims);
        memcpy(dims + r->first_axis, made->dims + 1, (size_t)(made->rank - 1) * sizeof *dims);
        qrt_status status = qrt_alloc(run, out, x->dtype, r->first_axis + made->rank - 1, dims);
        if (status != QRT_OK) return status;
    }
    const qrt_tensor narrow = slice_of(out, r->first_axis, r->rows, first, made->dims[0]);
    convert(run, &narrow, made, false);
    return QRT_OK;
}

/// One slice after the other, so that no more of float32 is there at a time.
static qrt_status call_by_rows(qrt_node_fn fn, const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, const row_node *r,
                               qrt_tensor *out) {
    const qrt_tensor *x = in[0];
    wide_inputs wide = {0};
    qrt_node call = *node;
    call.ints = r->ints;
    call.num_ints = r->num_ints;
    call.num_inputs = r->num_inputs;
    qrt_status status = widen_inputs(&call, run, in, x->dtype, r->sliced, &wide, &call.dying);
    int64_t at_once = SLICE * (int64_t)run->num_threads / r->row_elems;
    if (at_once < 1) at_once = 1;
    for (int64_t first = 0, rows; first < r->rows && status == QRT_OK; first += rows) {
        rows = r->rows - first < at_once ? r->rows - first : at_once;
        for (int i = 0; i < call.num_inputs && status == QRT_OK; i++) {
            if (!(r->sliced >> i & 1)) continue;
            const qrt_tensor narrow = slice_of(in[i], r->first_axis, r->rows, first, rows);
            status = qrt_alloc(run, &wide.tensors[i], QRT_F32, narrow.rank, narrow.dims);
            if (status != QRT_OK) break;
            convert(run, &narrow, &wide.tensors[i], true);
            wide.inputs[i] = &wide.tensors[i];
            call.dying |= (uint64_t)1 << i;
        }
        qrt_tensor made[MAX_OUTPUTS] = {0};
        if (status == QRT_OK) status = fn(&call, run, wide.inputs, made);
        for (int i = 0; i < call.num_outputs; i++) {
            if (status == QRT_OK && made[i].dtype) status = narrow_slice(r, x, run, &made[i], first, &out[i]);
            qrt_release(run, &made[i]);
        }
        for (int i = 0; i < call.num_inputs; i++)
            if (r->sliced >> i & 1) qrt_release(run, &wide.tensors[i]);
    }
    release_inputs(run, &call, &wide);
    for (int i = 0; i < node->num_outputs && status != QRT_OK; i++) qrt_release(run, &out[i]);
    return status;
}

qrt_status qrt_call_widened(qrt_node_fn fn, const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    if (node->num_inputs < 1 || node->num_inputs > MAX_INPUTS || !in[0]) return QRT_DECLINE;
    int32_t dtype = in[0]->dtype;
    if ((dtype != QRT_F16 && dtype != QRT_BF16) || !has_one_type(node, in, dtype)) return QRT_DECLINE;
    row_node r;
    if (read_rows(fn, node, run, in, &r)) return call_by_rows(fn, node, run, in, &r, out);
    wide_inputs wide = {0};
    qrt_node call = *node;
    qrt_status status = widen_inputs(node, run, in, dtype, 0, &wide, &call.dying);
    if (status == QRT_OK) status = fn(&call, run, wide.inputs, out);
    release_inputs(run, node, &wide);
    return status == QRT_OK ? narrow_outputs(node, run, dtype, out) : status;
}
