/// Nodes that make tensors from shapes and numbers.
#include <math.h>
#include <string.h>

#include "arguments.h"
#include "strided_copy.h"

/// ints: start, end; both count from the end when negative and are clamped to the rank.
static qrt_status shape(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0);
    if (!qrt_is_tensor(x)) return QRT_DECLINE;
    int64_t bounds[2];
    for (int i = 0; i < 2; i++) {
        int64_t at = node->ints[i] < 0 ? node->ints[i] + x->rank : node->ints[i];
        bounds[i] = at < 0 ? 0 : at > x->rank ? x->rank : at;
    }
    int64_t count = bounds[1] > bounds[0] ? bounds[1] - bounds[0] : 0;
    qrt_status status = qrt_alloc(run, &out[0], QRT_I64, 1, &count);
    if (status == QRT_OK) memcpy(out[0].data, x->dims + bounds[0], (size_t)count * sizeof(int64_t));
    return status;
}

static qrt_status size(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0);
    if (!qrt_is_tensor(x)) return QRT_DECLINE;
    qrt_status status = qrt_alloc(run, &out[0], QRT_I64, 0, NULL);
    if (status == QRT_OK) *(int64_t *)out[0].data = x->size;
    return status;
}

/// ints: element type, bits of the value. Input: shape.
static qrt_status constant_of_shape(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    int64_t dims[QRT_MAX_RANK];
    int rank = qrt_read_ints(qrt_input(node, in, 0), dims, QRT_MAX_RANK);
    if (rank < 0 || !qrt_is_buildable(rank, dims)) return QRT_DECLINE;
    qrt_status status = qrt_alloc(run, &out[0], (int32_t)node->ints[0], rank, dims);
    if (status == QRT_OK) qrt_fill(out[0].data, &node->ints[1], qrt_itemsize(out[0].dtype), out[0].size);
    return status;
}

/// Number of steps of an integer range; false when it has no step, overflows or is too long.
static bool count_integers(const qrt_tensor *const *in, int64_t *count) {
    int64_t start = qrt_index(in[0], 0), limit = qrt_index(in[1], 0), delta = qrt_index(in[2], 0), distance;
    if (delta == 0 || delta == INT64_MIN || __builtin_sub_overflow(limit, start, &distance) || distance == INT64_MIN) return false;
    if (delta < 0) {
        distance = -distance;
        delta = -delta;
    }
    *count = distance > 0 ? (distance - 1) / delta + 1 : 0;
    return *count <= QRT_MAX_ELEMENTS;
}

static bool count_floats(double start, double limit, double delta, int64_t *count) {
    double steps = (limit - start) / delta;
    if (delta == 0 || !isfinite(steps) || steps > (double)QRT_MAX_ELEMENTS) return false;
    *count = steps > 0 ? (int64_t)ceil(steps) : 0;
    return true;
}

#define FILL_RANGE(T)                                                                                        \
    do {                                                                                                     \
        const T start = *(const T *)in[0]->data, delta = *(const T *)in[2]->data;                            \
        for (int64_t i = 0; i < count; i++) ((T *)out[0].data)[i] = start + (T)i * delta;                    \
    } while (0)

/// Inputs: start, limit, delta.
static qrt_status range(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    if (node->num_inputs < 3) return QRT_DECLINE;
    for (int i = 0; i < 3; i++)
        if (!qrt_is_tensor(in[i]) || in[i]->size != 1 || in[i]->dtype != in[0]->dtype) return QRT_DECLINE;
    const int32_t dtype = in[0]->dtype;
    int64_t count;
    bool fits = false;
#define NUMBER(T, I) ((double)*(const T *)in[I]->data)
    switch (dtype) {
    case QRT_I32: case QRT_I64: fits = count_integers(in, &count); break;
    case QRT_F32: fits = count_floats(NUMBER(float, 0), NUMBER(float, 1), NUMBER(float, 2), &count); break;
    case QRT_F64: fits = count_floats(NUMBER(double, 0), NUMBER(double, 1), NUMBER(double, 2), &count); break;
    default: break;
    }
#undef NUMBER
    if (!fits) return QRT_DECLINE;
    qrt_status status = qrt_alloc(run, &out[0], dtype, 1, &count);
    if (status != QRT_OK) return status;
    switch (dtype) {
    case QRT_I32: {
        // Modulo 2³², as the range may be wider than an int32.
        const uint32_t start = *(const uint32_t *)in[0]->data, delta = *(const uint32_t *)in[2]->data;
        for (int64_t i = 0; i < count; i++) ((uint32_t *)out[0].data)[i] = start + (uint32_t)i * delta;
        break;
    }
    case QRT_I64: FILL_RANGE(int64_t); break;
    case QRT_F32: FILL_RANGE(float); break;
    default: FILL_RANGE(double); break;
    }
    return QRT_OK;
}

/// Sums along an axis in its order: each element is the one before plus its own input.
#define CUMULATE(T)                                                                                          \
    for (int64_t o = 0; o < outer; o++) {                                                                    \
        const T *from = (const T *)x->data + o * steps * inner;                                              \
        T *to = (T *)out[0].data + o * steps * inner;                                                        \
        int64_t at = is_reverse ? (steps - 1) * inner : 0, previous = at, step = is_reverse ? -inner : inner; \
        if (is_exclusive) memset(to + at, 0, (size_t)inner * sizeof(T));                                     \
        else memcpy(to + at, from + at, (size_t)inner * sizeof(T));                                          \
        for (int64_t s = 1; s < steps; s++, previous = at) {                                                 \
            at += step;                                                                                      \
            const T *term = from + (is_exclusive ? previous : at);                                           \
            /* The first sum is its term, not 0 + term: that would lose the sign of -0. */                   \
            if (is_exclusive && s == 1) memcpy(to + at, term, (size_t)inner * sizeof(T));                    \
            else for (int64_t i = 0; i < inner; i++) to[at + i] = to[previous + i] + term[i];                \
        }                                                                                                    \
    }

/// ints: exclusive, reverse. Inputs: data, axis.
static qrt_status cumsum(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0);
    int64_t axis;
    if (!qrt_is_tensor(x) || !qrt_read_int(qrt_input(node, in, 1), &axis) || !qrt_normalize_axis(&axis, x->rank)) return QRT_DECLINE;
    if (x->dtype != QRT_F32 && x->dtype != QRT_F64 && x->dtype != QRT_I32 && x->dtype != QRT_I64) return QRT_DECLINE;
    qrt_status status = qrt_alloc(run, &out[0], x->dtype, x->rank, x->dims);
    if (status != QRT_OK || x->size == 0) return status;
    const bool is_exclusive = node->ints[0], is_reverse = node->ints[1];
    const int64_t outer = qrt_product(x->dims, 0, (int)axis), steps = x->dims[axis];
    const int64_t inner = qrt_product(x->dims, (int)axis + 1, x->rank);
    switch (x->dtype) {
    case QRT_F32: CUMULATE(float); break;
    case QRT_F64: CUMULATE(double); break;
    case QRT_I32: CUMULATE(uint32_t); break;
    default: CUMULATE(uint64_t); break;
    }
    return QRT_OK;
}

const qrt_node_entry qrt_generate_nodes[] = {
    {"shape", shape},
    {"size", size},
    {"constant_of_shape", constant_of_shape},
    {"range", range},
    {"cumsum", cumsum},
    {NULL, NULL},
};
