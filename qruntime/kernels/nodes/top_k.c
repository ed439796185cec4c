/// The largest or smallest elements along an axis.
///
/// An element becomes an entry, a number that is the larger the earlier the element comes: no two are equal, so that
/// no step needs to be stable. Few entries of many are kept in a heap, whose root most elements fail to beat;
/// many are sorted by radix.
#include <string.h>

#include "../threads.h"
#include "arguments.h"
#include "top_k_columns.h"

enum {
    COLUMNS = 16,             ///< columns of an axis that is not the last that become rows together
    STRIP_COLUMNS = 256,      ///< columns that are read together, since every row of them is a page of its own
    STRIP_BYTES = 1 << 18,
    LIST_BYTES = 1 << 15,     ///< sorted lists of columns of which few elements are kept
    FAR = 32, NEAR = 8,       ///< elements that are looked at together for one that beats the root
    PARALLEL_ELEMS = 1 << 16,
};

/// Whether all of `n` are sorted for the best `k`.
static inline bool sorts_all(int64_t n, int64_t k) { return n > 512 && k > n / 4; }

/// Element type and index in one number, or side by side.
typedef uint64_t entry_32;
typedef struct {
    uint64_t key, index;
} entry_64;

#define BETTER_32(A, B) ((A) > (B))
#define BETTER_64(A, B) ((A).key > (B).key || ((A).key == (B).key && (A).index < (B).index))
#define INDEX_32(E) ((int64_t)(uint32_t)~(E))
#define INDEX_64(E) ((int64_t)(E).index)
#define DIGIT_32(E, I) ((uint8_t)((E) >> (32 + 8 * (I))))
#define DIGIT_64(E, I) ((uint8_t)((E).key >> (8 * (I))))

static inline entry_32 entry_32_of(uint32_t key, int64_t index) { return (uint64_t)key << 32 | (uint32_t)~(uint32_t)index; }
static inline entry_64 entry_64_of(uint64_t key, int64_t index) { return (entry_64){key, (uint64_t)index}; }

/// Keys order as the numbers do, both zeros as one and NaN above all.
static inline uint32_t key_f32(float v) {
    uint32_t bits;
    if (v != v) return UINT32_MAX;
    v += 0.0f;
    memcpy(&bits, &v, sizeof bits);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
static inline uint64_t key_f64(double v) {
    uint64_t bits;
    if (v != v) return UINT64_MAX;
    v += 0.0;
    memcpy(&bits, &v, sizeof bits);
    return bits >> 63 ? ~bits : bits | (1ull << 63);
}
static inline uint32_t key_i32(int32_t v) { return (uint32_t)v ^ 0x80000000u; }
static inline uint64_t key_i64(int64_t v) { return (uint64_t)v ^ (1ull << 63); }

#define SELECTION(BITS)                                                                                      \
    /** Let `entry` sink from place `at` of a heap whose root is the worst. */                               \
    static inline void sink_##BITS(entry_##BITS *heap, int64_t size, int64_t at, entry_##BITS entry) {       \
        for (int64_t child; (child = 2 * at + 1) < size; at = child) {                                       \
            if (child + 1 < size && BETTER_##BITS(heap[child], heap[child + 1])) child++;                    \
            if (!BETTER_##BITS(entry, heap[child])) break;                                                   \
            heap[at] = heap[child];                                                                          \
        }                                                                                                    \
        heap[at] = entry;                                                                                    \
    }                                                                                                        \
                                                                                                             \
    static void make_heap_##BITS(entry_##BITS *heap, int64_t size) {                                         \
        for (int64_t at = size / 2 - 1; at >= 0; at--) sink_##BITS(heap, size, at, heap[at]);                \
    }                                                                                                        \
                                                                                                             \
    /** Best first. */                                                                                       \
    static void sort_heap_##BITS(entry_##BITS *heap, int64_t size) {                                         \
        while (size > 1) {                                                                                   \
            entry_##BITS worst = heap[0];                                                                    \
            size--;                                                                                          \
            sink_##BITS(heap, size, 0, heap[size]);                                                          \
            heap[size] = worst;                                                                              \
        }                                                                                                    \
    }                                                                                                        \
                                                                                                             \
    /** Best first; entries come in the order of their indices. The result is in `from` or in `to`. */       \
    static entry_##BITS *sort_entries_##BITS(entry_##BITS *from, entry_##BITS *to, int64_t n) {              \
        int64_t starts[256];                                                                                 \
        for (int digit = 0; digit < BITS / 8; digit++) {                                                     \
            memset(starts, 0, sizeof starts);                                                                \
            for (int64_t i = 0; i < n; i++) starts[DIGIT_##BITS(from[i], digit)]++;                          \
            if (starts[DIGIT_##BITS(from[0], digit)] == n) continue;                                         \
            for (int64_t d = 255, sum = 0; d >= 0; d--) {                                                    \
                int64_t count = starts[d];                                                                   \
                starts[d] = sum;                                                                             \
                sum += count;                                                                                \
            }                                                                                                \
            for (int64_t i = 0; i < n; i++) to[starts[DIGIT_##BITS(from[i], digit)]++] = from[i];            \
            entry_##BITS *sorted = to;                                                                       \
            to = from;                                                                                       \
            from = sorted;                                                                                   \
        }                                                                                                    \
        return from;                                                                                         \
    }
SELECTION(32)
SELECTION(64)

/// `n` elements, the best `k` of them to `values` and `indices`, `stride` apart. `scratch` has room for k entries, or
/// for 2n when they are sorted. Elements that pass by the root of the heap are compared as they are.
#define TOP_K(T, NAME, BITS)                                                                                 \
    /** False when none of `count` elements beats `least`. */                                                \
    static inline bool NAME##_passes(const T *x, int count, T least, bool is_largest) {                      \
        int passes = 0;                                                                                      \
        if (is_largest) for (int i = 0; i < count; i++) passes |= !(x[i] <= least);                          \
        else for (int i = 0; i < count; i++) passes |= !(x[i] >= least);                                     \
        return passes;                                                                                       \
    }                                                                                                        \
                                                                                                             \
    static void top_k_##NAME(const void *from, int64_t n, int64_t k, bool is_largest, void *scratch,         \
                             void *values, int64_t *indices, int64_t stride) {                               \
        const T *x = from;                                                                                   \
        entry_##BITS *best = scratch;                                                                        \
        const uint##BITS##_t flip = is_largest ? 0 : UINT##BITS##_MAX;                                       \
        if (sorts_all(n, k)) {                                                                               \
            for (int64_t i = 0; i < n; i++) best[i] = entry_##BITS##_of(key_##NAME(x[i]) ^ flip, i);         \
            best = sort_entries_##BITS(best, best + n, n);                                                   \
        } else {                                                                                             \
            for (int64_t i = 0; i < k; i++) best[i] = entry_##BITS##_of(key_##NAME(x[i]) ^ flip, i);         \
            make_heap_##BITS(best, k);                                                                       \
            T least = x[INDEX_##BITS(best[0])];                                                              \
            for (int64_t at = k; at < n;) {                                                                  \
                if (n - at >= FAR && !NAME##_passes(x + at, FAR, least, is_largest)) {                       \
                    at += FAR;                                                                               \
                    continue;                                                                                \
                }                                                                                            \
                for (int64_t end = n - at < FAR ? n : at + FAR; at < end;) {                                 \
                    int64_t count = end - at < NEAR ? end - at : NEAR;                                       \
                    if (count == NEAR && !NAME##_passes(x + at, NEAR, least, is_largest)) {                  \
                        at += NEAR;                                                                          \
                        continue;                                                                            \
                    }                                                                                        \
                    for (; count; count--, at++) {                                                           \
                        entry_##BITS entry = entry_##BITS##_of(key_##NAME(x[at]) ^ flip, at);                \
                        if (BETTER_##BITS(entry, best[0])) sink_##BITS(best, k, 0, entry);                   \
                    }                                                                                        \
                    least = x[INDEX_##BITS(best[0])];                                                        \
                }                                                                                            \
            }                                                                                                \
            sort_heap_##BITS(best, k);                                                                       \
        }                                                                                                    \
        for (int64_t i = 0; i < k; i++) {                                                                    \
            indices[i * stride] = INDEX_##BITS(best[i]);                                                     \
            ((T *)values)[i * stride] = x[INDEX_##BITS(best[i])];                                            \
        }                                                                                                    \
    }
TOP_K(float, f32, 32)
TOP_K(double, f64, 64)
TOP_K(int32_t, i32, 32)
TOP_K(int64_t, i64, 64)

typedef void (*top_k_fn)(const void *, int64_t, int64_t, bool, void *, void *, int64_t *, int64_t);

/// The input seen as [outer, n, inner].
typedef struct {
    top_k_fn fn;
    const char *x;
    char *values;
    int64_t *indices;
    char *scratch;              ///< of each task: entries, a strip of columns, some of these as rows
    int64_t n, inner, k, item, entry_bytes, strip_bytes, task_bytes;
    int64_t strip_columns, num_strips, strips_per_task, strips_per_outer;
    bool is_largest, is_float;
    bool keeps_lists;           ///< of all columns at once, see top_k_columns.h
} top_k_call;

/// `count` columns of the matrix `from`, whose rows are `stride` apart, become rows.
static void take_columns(const top_k_call *c, const char *from, int64_t stride, int64_t count, char *rows) {
    if (c->item == 4)
        for (int64_t i = 0; i < c->n; i++)
            for (int64_t j = 0; j < count; j++) ((uint32_t *)rows)[j * c->n + i] = ((const uint32_t *)from)[i * stride + j];
    else
        for (int64_t i = 0; i < c->n; i++)
            for (int64_t j = 0; j < count; j++) ((uint64_t *)rows)[j * c->n + i] = ((const uint64_t *)from)[i * stride + j];
}

/// Columns of `from` one after the other.
static void top_k_columns(const top_k_call *c, const char *from, int64_t to, int64_t count, char *entries) {
    char *strip = entries + c->entry_bytes, *rows = strip + c->strip_bytes;
    for (int64_t i = 0; i < c->n; i++)
        memcpy(strip + i * count * c->item, from + i * c->inner * c->item, (size_t)(count * c->item));
    for (int64_t first = 0; first < count; first += COLUMNS) {
        int64_t taken = count - first < COLUMNS ? count - first : COLUMNS;
        take_columns(c, strip + first * c->item, count, taken, rows);
        for (int64_t j = 0; j < taken; j++) {
            int64_t at = to + first + j;
            c->fn(rows + j * c->n * c->item, c->n, c->k, c->is_largest, entries, c->values + at * c->item, c->indices + at, c->inner);
        }
    }
}

static void top_k_task(void *context, int64_t task) {
    const top_k_call *c = context;
    char *entries = c->scratch + task * c->task_bytes;
    int64_t strip = task * c->strips_per_task, end = strip + c->strips_per_task;
    if (end > c->num_strips) end = c->num_strips;
    for (; strip < end; strip++) {
        int64_t outer = strip / c->strips_per_outer, column = strip % c->strips_per_outer * c->strip_columns;
        int64_t count = c->inner - column < c->strip_columns ? c->inner - column : c->strip_columns;
        const char *from = c->x + (outer * c->n * c->inner + column) * c->item;
        int64_t to = outer * c->k * c->inner + column;
        if (c->keeps_lists) {
            const qrt_columns columns = {(const uint32_t *)from, c->n, count, c->inner, c->is_float, c->is_largest};
            qrt_top_k_columns(&columns, c->k, entries, (uint32_t *)c->values + to, c->indices + to, c->inner);
        } else if (c->inner > 1) top_k_columns(c, from, to, count, entries);
        else c->fn(from, c->n, c->k, c->is_largest, entries, c->values + to * c->item, c->indices + to, 1);
    }
}

static int64_t list_or_entry_bytes(const top_k_call *c) {
    if (c->keeps_lists) return qrt_top_k_room(c->strip_columns, c->k);
    int64_t num_entries = sorts_all(c->n, c->k) ? 2 * c->n : c->k;
    return num_entries * (int64_t)(c->item == 4 ? sizeof(entry_32) : sizeof(entry_64));
}

/// ints: axis, largest, k when it is no input. Inputs: x (float32, float64, int32, int64), k. Outputs: values, indices.
static qrt_status top_k(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *x = qrt_input(node, in, 0);
    int64_t dims[QRT_MAX_RANK], axis = node->ints[0], k;
    if (!qrt_is_tensor(x) || node->num_outputs != 2 || !qrt_normalize_axis(&axis, x->rank)) return QRT_DECLINE;
    if (node->num_ints > 2) k = node->ints[2];
    else if (!qrt_read_int(qrt_input(node, in, 1), &k)) return QRT_DECLINE;
    top_k_call c = {.x = x->data, .n = x->dims[axis], .k = k, .is_largest = node->ints[1] != 0};
    switch (x->dtype) {
    case QRT_F32: c.fn = top_k_f32; break;
    case QRT_F64: c.fn = top_k_f64; break;
    case QRT_I32: c.fn = top_k_i32; break;
    case QRT_I64: c.fn = top_k_i64; break;
    default: return QRT_DECLINE;
    }
    c.item = (int64_t)qrt_itemsize(x->dtype);
    if (k < 0 || k > c.n || c.n > UINT32_MAX) return QRT_DECLINE;
    for (int i = 0; i < x->rank; i++) dims[i] = i == axis ? k : x->dims[i];
    c.inner = qrt_product(x->dims, (int)axis + 1, x->rank);
    c.is_float = x->dtype == QRT_F32;
    c.keeps_lists = c.item == 4 && c.inner >= QRT_TOP_K_LANES && k > 0 && k <= QRT_TOP_K_FEW && c.n <= INT32_MAX;
    if (c.keeps_lists) c.strip_columns = LIST_BYTES / qrt_top_k_room(1, k) * QRT_TOP_K_LANES;
    else {
        c.strip_columns = STRIP_BYTES / (c.n * c.item + 1) / COLUMNS * COLUMNS;
        c.strip_columns = c.strip_columns < COLUMNS ? COLUMNS : c.strip_columns > STRIP_COLUMNS ? STRIP_COLUMNS : c.strip_columns;
    }
    if (c.strip_columns > c.inner && c.inner) c.strip_columns = c.inner;
    c.strips_per_outer = (c.inner + c.strip_columns - 1) / c.strip_columns;
    c.num_strips = qrt_product(x->dims, 0, (int)axis) * c.strips_per_outer;
    bool is_empty = qrt_product(dims, 0, x->rank) == 0;
    int64_t num_tasks = x->size < PARALLEL_ELEMS ? 1 : 4 * (int64_t)run->num_threads;
    qrt_buffer *scratch = NULL;
    if (!is_empty) {
        c.strips_per_task = (c.num_strips + num_tasks - 1) / num_tasks;
        num_tasks = (c.num_strips + c.strips_per_task - 1) / c.strips_per_task;
        c.entry_bytes = list_or_entry_bytes(&c);
        c.strip_bytes = c.inner > 1 && !c.keeps_lists ? c.strip_columns * c.n * c.item : 0;
        int64_t rows = c.strip_columns < COLUMNS ? c.strip_columns : COLUMNS;
        c.task_bytes = (c.entry_bytes + c.strip_bytes + (c.strip_bytes ? rows * c.n * c.item : 0) + 63) / 64 * 64;
        scratch = qrt_scratch(run, (size_t)(num_tasks * c.task_bytes));
        if (!scratch) return QRT_NO_MEMORY;
        c.scratch = scratch->data;
    }
    qrt_status status = qrt_alloc(run, &out[0], x->dtype, x->rank, dims);
    if (status == QRT_OK) status = qrt_alloc(run, &out[1], QRT_I64, x->rank, dims);
    if (status == QRT_OK && !is_empty) {
        c.values = out[0].data;
        c.indices = out[1].data;
        qrt_parallel_for(run->num_threads, num_tasks, top_k_task, &c);
    }
    if (scratch) qrt_scratch_free(run, scratch);
    return status;
}

const qrt_node_entry qrt_top_k_nodes[] = {
    {"top_k", top_k},
    {NULL, NULL},
};
