/// Reading the inputs of a node that are shapes, axes and indices.
#ifndef QRT_ARGUMENTS_H
#define QRT_ARGUMENTS_H

#include "../nodes.h"

/// Nothing with more elements is built here; the definitions hold to the same limit.
#define QRT_MAX_ELEMENTS ((int64_t)1 << 40)

/// Input i, or NULL when it is absent.
static inline const qrt_tensor *qrt_input(const qrt_node *node, const qrt_tensor *const *in, int i) {
    return i < node->num_inputs ? in[i] : NULL;
}

/// True for a tensor that native code can read: present, and no Python object.
static inline bool qrt_is_tensor(const qrt_tensor *t) { return t && t->dtype; }

static inline bool qrt_is_index(const qrt_tensor *t) {
    return qrt_is_tensor(t) && (t->dtype == QRT_I64 || t->dtype == QRT_I32);
}

/// Element i of an int32 or int64 tensor.
static inline int64_t qrt_index(const qrt_tensor *t, int64_t i) {
    return t->dtype == QRT_I64 ? ((const int64_t *)t->data)[i] : ((const int32_t *)t->data)[i];
}

/// Integers of a scalar or vector of int32 or int64; their count, or -1 when it is something else or too long.
static inline int qrt_read_ints(const qrt_tensor *t, int64_t *values, int limit) {
    if (!qrt_is_index(t) || t->rank > 1 || t->size > limit) return -1;
    for (int i = 0; i < (int)t->size; i++) values[i] = qrt_index(t, i);
    return (int)t->size;
}

/// The one integer of a tensor of any rank.
static inline bool qrt_read_int(const qrt_tensor *t, int64_t *value) {
    if (!qrt_is_index(t) || t->size != 1) return false;
    *value = qrt_index(t, 0);
    return true;
}

/// Count `axis` from the front; false when it is outside of [-rank, rank).
static inline bool qrt_normalize_axis(int64_t *axis, int rank) {
    if (*axis < -rank || *axis >= rank) return false;
    if (*axis < 0) *axis += rank;
    return true;
}

/// The same for a list, in which no axis may come twice.
static inline bool qrt_normalize_axes(int64_t *axes, int count, int rank) {
    unsigned seen = 0;
    for (int i = 0; i < count; i++) {
        if (!qrt_normalize_axis(&axes[i], rank) || seen >> axes[i] & 1) return false;
        seen |= 1u << axes[i];
    }
    return true;
}

/// Product of dims[begin … end), which belong to a tensor that exists.
static inline int64_t qrt_product(const int64_t *dims, int begin, int end) {
    int64_t n = 1;
    for (int i = begin; i < end; i++) n *= dims[i];
    return n;
}

/// True when a tensor of these dims may be built.
static inline bool qrt_is_buildable(int rank, const int64_t *dims) {
    int64_t size;
    return rank <= QRT_MAX_RANK && qrt_num_elements(rank, dims, &size) && size <= QRT_MAX_ELEMENTS;
}

/// True when all of an int32 or int64 tensor lies in [-size, size).
static inline bool qrt_indices_fit(const qrt_tensor *t, int64_t size) {
    int64_t low = 0, high = -1;
    if (t->dtype == QRT_I64) {
        const int64_t *v = t->data;
        for (int64_t i = 0; i < t->size; i++) {
            low = v[i] < low ? v[i] : low;
            high = v[i] > high ? v[i] : high;
        }
    } else {
        const int32_t *v = t->data;
        int32_t least = 0, most = -1;
        for (int64_t i = 0; i < t->size; i++) {
            least = v[i] < least ? v[i] : least;
            most = v[i] > most ? v[i] : most;
        }
        low = least;
        high = most;
    }
    return t->size == 0 || (low >= -size && high < size);
}

/// Make `out` a view of `size` elements of `in` from element `first` on. Only when the view is not so small
/// that copying is as cheap, and not so small a part that it would keep far too much memory alive. A copy is aligned.
static inline bool qrt_view(qrt_tensor *out, const qrt_tensor *in, int64_t first, int rank, const int64_t *dims) {
    size_t item = qrt_itemsize(in->dtype);
    if ((uintptr_t)in->data % item) return false;
    int64_t size = qrt_product(dims, 0, rank);
    size_t bytes = (size_t)size * item;
    if (size != in->size && (bytes < 16384 || (in->buffer && in->buffer->capacity / 8 > bytes))) return false;
    qrt_alias(out, in, rank, dims);
    out->data = (char *)in->data + (size_t)first * item;
    out->size = size;
    return true;
}

#endif
