/// Nodes that pick or place elements by index.
#include <string.h>

#include "../threads.h"
#include "arguments.h"
#include "enumerations.h"
#include "strided_copy.h"

/// Rows are picked in parallel above this many bytes.
enum { PARALLEL_BYTES = 256 * 1024 };

typedef struct {
    const char *table;
    char *to;
    const qrt_tensor *indices;
    int64_t axis_size, row_bytes;
    int64_t num_rows, rows_per_task;
} picking;

/// The same elements of `tables` tables of bytes, one behind the other.
enum { BESIDE = 4 };
static inline __attribute__((always_inline)) void pick_bytes(const int tables, const uint8_t *restrict table, int64_t size,
                                                             const int32_t *restrict indices, int64_t count, uint8_t *restrict to) {
    for (int64_t i = 0; i < count; i++) {
        const uint8_t *from = table + (indices[i] < 0 ? indices[i] + size : indices[i]);
        for (int t = 0; t < tables; t++) to[t * count + i] = from[t * size];
    }
}

static void pick_rows(void *context, int64_t task) {
    const picking *p = context;
    const int64_t bytes = p->row_bytes, count = p->indices->size, size = p->axis_size;
    int64_t row = task * p->rows_per_task, end = row + p->rows_per_task;
    if (end > p->num_rows) end = p->num_rows;
    char *to = p->to + row * bytes;
    while (row < end) {
        // All rows of one stretch come from the same part of the table.
        const char *table = p->table + row / count * size * bytes;
        if (bytes == 1 && p->indices->dtype == QRT_I32 && row % count == 0 && end - row >= count) {
            const int tables = end - row >= BESIDE * count ? BESIDE : 1;
            if (tables == BESIDE) pick_bytes(BESIDE, (const uint8_t *)table, size, p->indices->data, count, (uint8_t *)to);
            else pick_bytes(1, (const uint8_t *)table, size, p->indices->data, count, (uint8_t *)to);
            row += tables * count;
            to += tables * count;
            continue;
        }
        int64_t at = row % count, stop = at + (end - row) < count ? at + (end - row) : count;
        row += stop - at;
#define EACH(COPY)                                                                                           \
    for (; at < stop; at++, to += bytes) {                                                                   \
        int64_t i = qrt_index(p->indices, at);                                                               \
        if (i < 0) i += size;                                                                                \
        COPY;                                                                                                \
    }
        switch (bytes) {
        case 1: EACH(*to = table[i]); break;
        case 2: EACH(memcpy(to, table + i * 2, 2)); break;
        case 4: EACH(memcpy(to, table + i * 4, 4)); break;
        case 8: EACH(memcpy(to, table + i * 8, 8)); break;
        default: EACH(memcpy(to, table + i * bytes, (size_t)bytes));
        }
#undef EACH
    }
}

/// ints: axis. Inputs: data, indices.
static qrt_status gather(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0), *indices = qrt_input(node, in, 1);
    int64_t dims[QRT_MAX_RANK], axis = node->ints[0];
    if (!qrt_is_tensor(x) || !qrt_is_index(indices) || !qrt_normalize_axis(&axis, x->rank)) return QRT_DECLINE;
    int rank = x->rank - 1 + indices->rank, at = 0;
    if (rank > QRT_MAX_RANK || !qrt_indices_fit(indices, x->dims[axis])) return QRT_DECLINE;
    for (int i = 0; i < axis; i++) dims[at++] = x->dims[i];
    for (int i = 0; i < indices->rank; i++) dims[at++] = indices->dims[i];
    for (int i = (int)axis + 1; i < x->rank; i++) dims[at++] = x->dims[i];
    if (!qrt_is_buildable(rank, dims)) return QRT_DECLINE;
    int64_t outer = qrt_product(x->dims, 0, (int)axis), inner = qrt_product(x->dims, (int)axis + 1, x->rank);
    if (outer == 1 && indices->size == 1) {
        int64_t i = qrt_index(indices, 0);
        if (qrt_view(&out[0], x, (i < 0 ? i + x->dims[axis] : i) * inner, rank, dims)) return QRT_OK;
    }
    qrt_status status = qrt_alloc(run, &out[0], x->dtype, rank, dims);
    if (status != QRT_OK || out[0].size == 0) return status;
    int64_t item = (int64_t)qrt_itemsize(x->dtype);
    picking p = {x->data, out[0].data, indices, x->dims[axis], inner * item, outer * indices->size, outer * indices->size};
    int64_t num_tasks = out[0].size * item < PARALLEL_BYTES ? 1 : 4 * (int64_t)run->num_threads;
    p.rows_per_task = (p.num_rows + num_tasks - 1) / num_tasks;
    qrt_parallel_for(run->num_threads, (p.num_rows + p.rows_per_task - 1) / p.rows_per_task, pick_rows, &p);
    return QRT_OK;
}

/// What becomes of an element and its update, of `count` elements.
typedef void (*combine_fn)(void *elements, const void *updates, int64_t count);

#define COMBINE(NAME, T, EXPRESSION)                                                                         \
    static void NAME(void *elements, const void *updates, int64_t count) {                                   \
        T *y = elements;                                                                                     \
        const T *x = updates;                                                                                \
        for (int64_t i = 0; i < count; i++) {                                                                \
            T a = y[i], b = x[i];                                                                            \
            y[i] = EXPRESSION;                                                                               \
        }                                                                                                    \
    }
/// NaN wins over any number. Sums and products of integers wrap.
#define COMBINE_ALL(TYPE, T, WRAPPING)                                                                       \
    COMBINE(add_##TYPE, WRAPPING, a + b)                                                                     \
    COMBINE(multiply_##TYPE, WRAPPING, a * b)                                                                \
    COMBINE(maximum_##TYPE, T, a >= b || a != a ? a : b)                                                     \
    COMBINE(minimum_##TYPE, T, a <= b || a != a ? a : b)
COMBINE_ALL(f32, float, float)
COMBINE_ALL(f64, double, double)
COMBINE_ALL(i32, int32_t, uint32_t)
COMBINE_ALL(i64, int64_t, uint64_t)

enum { QRT_SCATTER_REDUCTIONS(QRT_ENUMERATOR) NUM_REDUCTIONS };

/// NULL when elements are replaced; false for what has no function.
static bool find_combine(int64_t reduction, int32_t dtype, combine_fn *found) {
#define ROW(TYPE) {add_##TYPE, multiply_##TYPE, maximum_##TYPE, minimum_##TYPE}
    static const combine_fn table[4][4] = {ROW(f32), ROW(f64), ROW(i32), ROW(i64)};
#undef ROW
    int row = dtype == QRT_F32 ? 0 : dtype == QRT_F64 ? 1 : dtype == QRT_I32 ? 2 : dtype == QRT_I64 ? 3 : -1;
    *found = NULL;
    if (reduction == REPLACE) return true;
    if (row < 0 || reduction < 0 || reduction >= NUM_REDUCTIONS) return false;
    *found = table[row][reduction - ADD];
    return true;
}

/// Elements of `whole` at the coordinates of `indices`, except that along `axis` the index counts.
/// Copies from `whole` to `dense` (which has the shape of `indices`), or the other way round; with `combine` what is in
/// `dense` is combined with what is in `whole`.
static void visit_elements(char *whole, const int64_t *whole_dims, char *dense, const qrt_tensor *indices, int axis,
                           size_t item, bool scatters, combine_fn combine) {
    int rank = indices->rank, last = rank - 1;
    int64_t strides[QRT_MAX_RANK], counter[QRT_MAX_RANK] = {0}, base = 0;
    qrt_dense_strides(rank, whole_dims, item, strides);
    const int64_t columns = indices->dims[last], step = axis == last ? 0 : strides[last];
    const int64_t along = strides[axis], size = whole_dims[axis];
    for (int64_t at = 0; at < indices->size;) {
        if (combine) {
            for (int64_t c = 0; c < columns; c++, at++) {
                int64_t i = qrt_index(indices, at);
                if (i < 0) i += size;
                combine(whole + base + c * step + i * along, dense + at * (int64_t)item, 1);
            }
        } else
#define EACH(T)                                                                                              \
    for (int64_t c = 0; c < columns; c++, at++) {                                                            \
        int64_t i = qrt_index(indices, at);                                                                  \
        if (i < 0) i += size;                                                                                \
        T *place = (T *)(whole + base + c * step + i * along), *element = (T *)dense + at;                   \
        if (scatters) *place = *element; else *element = *place;                                             \
    }
        switch (item) {
        case 1: EACH(uint8_t); break;
        case 2: EACH(uint16_t); break;
        case 4: EACH(uint32_t); break;
        default: EACH(uint64_t); break;
        }
#undef EACH
        for (int i = last - 1; i >= 0; i--) {
            int64_t stride = i == axis ? 0 : strides[i];
            base += stride;
            if (++counter[i] < indices->dims[i]) break;
            base -= stride * indices->dims[i];
            counter[i] = 0;
        }
    }
}

static bool fits_elements(const qrt_tensor *x, const qrt_tensor *indices, int64_t *axis) {
    if (!qrt_is_tensor(x) || !qrt_is_index(indices) || indices->rank != x->rank || !qrt_normalize_axis(axis, x->rank))
        return false;
    for (int i = 0; i < x->rank; i++)
        if (i != *axis && indices->dims[i] > x->dims[i]) return false;
    return qrt_indices_fit(indices, x->dims[*axis]);
}

/// ints: axis. Inputs: data, indices of the same rank.
static qrt_status gather_elements(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0), *indices = qrt_input(node, in, 1);
    int64_t axis = node->ints[0];
    if (!fits_elements(x, indices, &axis)) return QRT_DECLINE;
    qrt_status status = qrt_alloc(run, &out[0], x->dtype, indices->rank, indices->dims);
    if (status != QRT_OK || out[0].size == 0) return status;
    visit_elements(x->data, x->dims, out[0].data, indices, (int)axis, qrt_itemsize(x->dtype), false, NULL);
    return QRT_OK;
}

/// Make `out` a copy of input 0, or input 0 itself when nobody else needs it.
static qrt_status copy_or_take(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0);
    if (qrt_may_overwrite(node, in, 0)) {
        qrt_alias(out, x, x->rank, x->dims);
        return QRT_OK;
    }
    qrt_status status = qrt_alloc(run, out, x->dtype, x->rank, x->dims);
    if (status == QRT_OK) memcpy(out->data, x->data, (size_t)x->size * qrt_itemsize(x->dtype));
    return status;
}

/// ints: axis, reduction. Inputs: data, indices, updates of the same shape as the indices, one after the other.
static qrt_status scatter_elements(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0), *indices = qrt_input(node, in, 1), *updates = qrt_input(node, in, 2);
    int64_t axis = node->ints[0];
    combine_fn combine;
    if (!fits_elements(x, indices, &axis) || !qrt_is_tensor(updates)) return QRT_DECLINE;
    if (!find_combine(node->ints[1], x->dtype, &combine)) return QRT_DECLINE;
    if (updates->dtype != x->dtype || updates->rank != indices->rank) return QRT_DECLINE;
    for (int i = 0; i < indices->rank; i++)
        if (updates->dims[i] != indices->dims[i]) return QRT_DECLINE;
    qrt_status status = copy_or_take(node, run, in, &out[0]);
    if (status != QRT_OK || updates->size == 0) return status;
    visit_elements(out[0].data, x->dims, updates->data, indices, (int)axis, qrt_itemsize(x->dtype), true, combine);
    return QRT_OK;
}

/// Coordinate tuples in the last dimension of `indices`, after `batch_dims` dimensions that data and indices share.
typedef struct {
    int64_t num_batches, per_batch;   ///< tuples in each batch
    int64_t batch_bytes, row_bytes;   ///< of the data
    int width;                        ///< coordinates in a tuple
    int64_t sizes[QRT_MAX_RANK], strides[QRT_MAX_RANK];
} tuples;

static bool read_tuples(const qrt_tensor *x, const qrt_tensor *indices, int64_t batch_dims, tuples *t) {
    if (!qrt_is_tensor(x) || !qrt_is_index(indices)) return false;
    if (batch_dims < 0 || batch_dims >= x->rank || batch_dims >= indices->rank) return false;
    int64_t width = indices->dims[indices->rank - 1], strides[QRT_MAX_RANK];
    if (width < 1 || batch_dims + width > x->rank) return false;
    for (int i = 0; i < batch_dims; i++)
        if (x->dims[i] != indices->dims[i]) return false;
    int batch = (int)batch_dims, item = (int)qrt_itemsize(x->dtype);
    qrt_dense_strides(x->rank, x->dims, (size_t)item, strides);
    t->width = (int)width;
    t->num_batches = qrt_product(x->dims, 0, batch);
    t->per_batch = qrt_product(indices->dims, batch, indices->rank - 1);
    t->batch_bytes = qrt_product(x->dims, batch, x->rank) * item;
    t->row_bytes = qrt_product(x->dims, batch + t->width, x->rank) * item;
    for (int i = 0; i < t->width; i++) {
        t->sizes[i] = x->dims[batch + i];
        t->strides[i] = strides[batch + i];
    }
    for (int64_t at = 0; at < indices->size;)
        for (int64_t i = 0; i < width; i++, at++) {
            int64_t v = qrt_index(indices, at);
            if (v < -t->sizes[i] || v >= t->sizes[i]) return false;
        }
    return true;
}

/// Byte offset in the data of tuple `at`, counted over all batches.
static inline int64_t offset_of(const tuples *t, const qrt_tensor *indices, int64_t batch, int64_t at) {
    int64_t offset = batch * t->batch_bytes;
    for (int i = 0; i < t->width; i++) {
        int64_t v = qrt_index(indices, at * t->width + i);
        offset += (v < 0 ? v + t->sizes[i] : v) * t->strides[i];
    }
    return offset;
}

/// ints: batch_dims. Inputs: data, indices.
static qrt_status gather_nd(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0), *indices = qrt_input(node, in, 1);
    tuples t;
    int64_t dims[2 * QRT_MAX_RANK];
    if (!read_tuples(x, indices, node->ints[0], &t)) return QRT_DECLINE;
    int rank = 0;
    for (int i = 0; i < indices->rank - 1; i++) dims[rank++] = indices->dims[i];
    for (int i = (int)node->ints[0] + t.width; i < x->rank; i++) dims[rank++] = x->dims[i];
    if (!qrt_is_buildable(rank, dims)) return QRT_DECLINE;
    qrt_status status = qrt_alloc(run, &out[0], x->dtype, rank, dims);
    if (status != QRT_OK || out[0].size == 0) return status;
    char *to = out[0].data;
    for (int64_t batch = 0, at = 0; batch < t.num_batches; batch++)
        for (int64_t i = 0; i < t.per_batch; i++, at++, to += t.row_bytes)
            memcpy(to, (const char *)x->data + offset_of(&t, indices, batch, at), (size_t)t.row_bytes);
    return QRT_OK;
}

/// ints: reduction. Inputs: data, indices, updates, one after the other.
static qrt_status scatter_nd(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0), *indices = qrt_input(node, in, 1), *updates = qrt_input(node, in, 2);
    tuples t;
    combine_fn combine;
    if (!read_tuples(x, indices, 0, &t) || !qrt_is_tensor(updates) || updates->dtype != x->dtype) return QRT_DECLINE;
    if (!find_combine(node->ints[0], x->dtype, &combine)) return QRT_DECLINE;
    int rank = indices->rank - 1 + x->rank - t.width;
    if (updates->rank != rank) return QRT_DECLINE;
    for (int i = 0; i < rank; i++) {
        int64_t needed = i < indices->rank - 1 ? indices->dims[i] : x->dims[i - (indices->rank - 1) + t.width];
        if (updates->dims[i] != needed) return QRT_DECLINE;
    }
    qrt_status status = copy_or_take(node, run, in, &out[0]);
    if (status != QRT_OK || updates->size == 0) return status;
    const char *from = updates->data;
    const int64_t row_elems = t.row_bytes / (int64_t)qrt_itemsize(x->dtype);
    for (int64_t at = 0; at < t.per_batch; at++, from += t.row_bytes) {
        char *to = (char *)out[0].data + offset_of(&t, indices, 0, at);
        if (combine) combine(to, from, row_elems);
        else if (t.row_bytes == 4) memcpy(to, from, 4);  // single elements need no call
        else if (t.row_bytes == 8) memcpy(to, from, 8);
        else memcpy(to, from, (size_t)t.row_bytes);
    }
    return QRT_OK;
}

/// ints: axis of the classes, whether negative indices count from the end. Inputs: indices, depth, [off, on].
static qrt_status one_hot(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *indices = qrt_input(node, in, 0), *values = qrt_input(node, in, 2);
    int64_t dims[QRT_MAX_RANK], axis = node->ints[0], depth;
    if (!qrt_is_index(indices) || indices->rank >= QRT_MAX_RANK || !qrt_read_int(qrt_input(node, in, 1), &depth)) return QRT_DECLINE;
    if (!qrt_is_tensor(values) || values->rank != 1 || values->size != 2) return QRT_DECLINE;
    int rank = indices->rank + 1;
    if (!qrt_normalize_axis(&axis, rank)) return QRT_DECLINE;
    for (int i = 0; i < rank; i++) dims[i] = i < axis ? indices->dims[i] : i == axis ? depth : indices->dims[i - 1];
    if (!qrt_is_buildable(rank, dims)) return QRT_DECLINE;
    qrt_status status = qrt_alloc(run, &out[0], values->dtype, rank, dims);
    if (status != QRT_OK || out[0].size == 0) return status;
    size_t item = qrt_itemsize(values->dtype);
    int64_t inner = qrt_product(dims, (int)axis + 1, rank);
    const char *on = (const char *)values->data + item;
    qrt_fill(out[0].data, values->data, item, out[0].size);
    for (int64_t i = 0; i < indices->size; i++) {
        int64_t v = qrt_index(indices, i);
        if (v < 0 && node->ints[1]) v += depth;
        if (v < 0 || v >= depth) continue;
        int64_t at = (i / inner * depth + v) * inner + i % inner;
        memcpy((char *)out[0].data + (size_t)at * item, on, item);
    }
    return QRT_OK;
}

const qrt_node_entry qrt_index_nodes[] = {
    {"gather", gather},
    {"gather_elements", gather_elements},
    {"gather_nd", gather_nd},
    {"scatter_elements", scatter_elements},
    {"scatter_nd", scatter_nd},
    {"one_hot", one_hot},
    {NULL, NULL},
};
