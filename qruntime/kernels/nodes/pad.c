/// Padding, and what else sets part of a tensor to a constant.
#include <string.h>

#include "arguments.h"
#include "enumerations.h"
#include "strided_copy.h"

enum { QRT_PAD_MODES(QRT_ENUMERATOR) };

/// Where position `at` of a padded axis, counted from the first element, takes its element from.
static inline int64_t source_position(int64_t at, int64_t size, int mode) {
    if (mode == EDGE) return at < 0 ? 0 : at < size ? at : size - 1;
    int64_t period = mode == WRAP ? size : size > 1 ? 2 * (size - 1) : 1;
    at %= period;
    if (at < 0) at += period;
    return mode == WRAP || at < period - at ? at : period - at;
}

static void pad_with_constant(qrt_run *run, const qrt_tensor *x, const int64_t *before, const void *value, qrt_tensor *out) {
    size_t item = qrt_itemsize(x->dtype);
    const char *from = x->data;
    char *to = out->data;
    qrt_arrangement a = {.rank = x->rank};
    qrt_dense_strides(x->rank, x->dims, item, a.from_strides);
    qrt_dense_strides(x->rank, out->dims, item, a.to_strides);
    bool is_covered = true;
    for (int i = 0; i < x->rank; i++) {
        int64_t begin = before[i] > 0 ? before[i] : 0, end = before[i] + x->dims[i];
        if (end > out->dims[i]) end = out->dims[i];
        a.dims[i] = end > begin ? end - begin : 0;
        is_covered &= a.dims[i] == out->dims[i];
        if (!a.dims[i]) continue;
        to += begin * a.to_strides[i];
        from += (begin - before[i]) * a.from_strides[i];
    }
    if (!is_covered) qrt_fill(out->data, value, item, out->size);
    qrt_copy_strided(run->num_threads, to, from, item, &a);
}

static qrt_status pad_with_elements(qrt_run *run, const qrt_tensor *x, const int64_t *before, int mode, qrt_tensor *out) {
    int rank = x->rank, last = rank - 1;
    size_t item = qrt_itemsize(x->dtype);
    const int64_t columns = out->dims[last];
    int64_t strides[QRT_MAX_RANK], counter[QRT_MAX_RANK] = {0};
    qrt_buffer *scratch = qrt_scratch(run, (size_t)columns * sizeof(int64_t));
    if (!scratch) return QRT_NO_MEMORY;
    int64_t *source = scratch->data;
    for (int64_t c = 0; c < columns; c++) source[c] = source_position(c - before[last], x->dims[last], mode);
    qrt_dense_strides(rank, x->dims, item, strides);
    for (int64_t at = 0; at < out->size; at += columns) {
        const char *row = x->data;
        for (int i = 0; i < last; i++) row += source_position(counter[i] - before[i], x->dims[i], mode) * strides[i];
#define EACH(T)                                                                                              \
    for (int64_t c = 0; c < columns; c++) ((T *)out->data)[at + c] = ((const T *)row)[source[c]]
        switch (item) {
        case 1: EACH(uint8_t); break;
        case 2: EACH(uint16_t); break;
        case 4: EACH(uint32_t); break;
        default: EACH(uint64_t); break;
        }
#undef EACH
        for (int i = last - 1; i >= 0 && ++counter[i] == out->dims[i]; i--) counter[i] = 0;
    }
    qrt_scratch_free(run, scratch);
    return QRT_OK;
}

/// ints: mode, then all pads when there is only one input. floats: the constant (only with pads in ints).
/// Inputs: data, pads (all begins, then all ends), constant, axes (the last two optional).
static qrt_status pad(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0), *value = qrt_input(node, in, 2), *chosen = qrt_input(node, in, 3);
    const int mode = (int)node->ints[0];
    int64_t pads[2 * QRT_MAX_RANK], axes[QRT_MAX_RANK], dims[QRT_MAX_RANK], before[QRT_MAX_RANK] = {0};
    if (!qrt_is_tensor(x)) return QRT_DECLINE;
    uint64_t fill = 0;
    int count = x->rank, num_pads;
    if (chosen) count = qrt_read_ints(chosen, axes, QRT_MAX_RANK);
    else for (int i = 0; i < count; i++) axes[i] = i;
    if (count < 0 || !qrt_normalize_axes(axes, count, x->rank)) return QRT_DECLINE;
    if (node->num_inputs > 1) {
        num_pads = qrt_read_ints(in[1], pads, 2 * QRT_MAX_RANK);
    } else {
        num_pads = node->num_ints - 1;
        if (num_pads > 2 * QRT_MAX_RANK) return QRT_DECLINE;
        for (int i = 0; i < num_pads; i++) pads[i] = node->ints[i + 1];
        float number = (float)node->floats[0];
        if (number != 0 && x->dtype != QRT_F32) return QRT_DECLINE;
        memcpy(&fill, &number, sizeof number);
    }
    if (num_pads != 2 * count) return QRT_DECLINE;
    if (value) {
        if (value->dtype != x->dtype || value->size != 1) return QRT_DECLINE;
        memcpy(&fill, value->data, qrt_itemsize(x->dtype));
    }
    for (int i = 0; i < x->rank; i++) dims[i] = x->dims[i];
    bool changes = false;
    for (int i = 0; i < count; i++) {
        int64_t b = pads[i], a = pads[i + count], size = x->dims[axes[i]];
        if (b > QRT_MAX_ELEMENTS || b < -QRT_MAX_ELEMENTS || a > QRT_MAX_ELEMENTS || a < -QRT_MAX_ELEMENTS) return QRT_DECLINE;
        if ((b < 0 ? b : 0) + size + (a < 0 ? a : 0) < 0) return QRT_DECLINE;
        dims[axes[i]] = b + size + a;
        before[axes[i]] = b;
        if (b || a) {
            changes = true;
            if (mode != CONSTANT && size == 0) return QRT_DECLINE;
        }
    }
    if (!qrt_is_buildable(x->rank, dims)) return QRT_DECLINE;
    if (!changes) {
        qrt_alias(&out[0], x, x->rank, dims);
        return QRT_OK;
    }
    qrt_status status = qrt_alloc(run, &out[0], x->dtype, x->rank, dims);
    if (status != QRT_OK || out[0].size == 0) return status;
    if (mode != CONSTANT) return pad_with_elements(run, x, before, mode, &out[0]);
    pad_with_constant(run, x, before, &fill, &out[0]);
    return QRT_OK;
}

/// ints: upper. Inputs: matrices, diagonal (optional).
static qrt_status trilu(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0), *given = qrt_input(node, in, 1);
    int64_t diagonal = 0;
    if (!qrt_is_tensor(x) || x->rank < 2 || (given && !qrt_read_int(given, &diagonal))) return QRT_DECLINE;
    qrt_status status = qrt_alloc(run, &out[0], x->dtype, x->rank, x->dims);
    if (status != QRT_OK || x->size == 0) return status;
    const int64_t item = (int64_t)qrt_itemsize(x->dtype), rows = x->dims[x->rank - 2], columns = x->dims[x->rank - 1];
    if (diagonal > columns) diagonal = columns;
    if (diagonal < -rows) diagonal = -rows;
    const char *from = x->data;
    char *to = out[0].data;
    for (int64_t at = 0; at < x->size; at += columns, from += columns * item, to += columns * item) {
        // Lower keeps the columns up to the diagonal, upper those from the diagonal on.
        int64_t border = at / columns % rows + diagonal + (node->ints[0] ? 0 : 1);
        size_t low = (size_t)((border < 0 ? 0 : border < columns ? border : columns) * item), all = (size_t)(columns * item);
        if (node->ints[0]) {
            memset(to, 0, low);
            memcpy(to + low, from + low, all - low);
        } else {
            memcpy(to, from, low);
            memset(to + low, 0, all - low);
        }
    }
    return QRT_OK;
}

const qrt_node_entry qrt_pad_nodes[] = {
    {"pad", pad},
    {"trilu", trilu},
    {NULL, NULL},
};
