#include "top_k_columns.h"

#include <string.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))

enum { LANES = QRT_TOP_K_LANES };

/// Vectors that every target has; comparisons answer -1 or 0 in each lane.
typedef int32_t ints __attribute__((vector_size(sizeof(int32_t) * LANES)));
typedef float floats __attribute__((vector_size(sizeof(float) * LANES)));
typedef int64_t halves __attribute__((vector_size(sizeof(int32_t) * LANES)));

/// A place in the sorted lists of some columns: keys that order as the elements do, and their indices.
typedef struct {
    ints key, index;
} place;

ALWAYS_INLINE ints chosen(ints mask, ints a, ints b) { return (mask & a) | (~mask & b); }

/// Integers that order as floats do, both zeros as one and NaN above all.
ALWAYS_INLINE ints keys_of(ints bits, bool is_float, ints flip) {
    if (!is_float) return bits ^ flip;
    floats v;
    memcpy(&v, &bits, sizeof v);
    const ints is_nan = v != v;
    v += 0.0f;
    memcpy(&bits, &v, sizeof bits);
    bits ^= (bits >> 31) & INT32_MAX;
    return chosen(is_nan, (ints){0} + INT32_MAX, bits) ^ flip;
}

ALWAYS_INLINE bool any(ints mask) {
    halves h;
    memcpy(&h, &mask, sizeof h);
    return (h[0] | h[1]) != 0;
}

/// From the end of lists of `size` on, each place takes what stands before it where `key` is better than that, else `key`
/// where it is better than its own.
ALWAYS_INLINE void insert(place *list, int64_t size, ints key, ints index) {
    ints enters = key > list[size - 1].key;
    for (int64_t j = size - 1; j > 0; j--) {
        const place before = list[j - 1];
        const ints moves = key > before.key;
        list[j].key = chosen(moves, before.key, chosen(enters, key, list[j].key));
        list[j].index = chosen(moves, before.index, chosen(enters, index, list[j].index));
        enters = moves;
    }
    list[0].key = chosen(enters, key, list[0].key);
    list[0].index = chosen(enters, index, list[0].index);
}

ALWAYS_INLINE void take_row(const uint32_t *x, int64_t count, int32_t i, int64_t k, bool is_float, ints flip, place *list) {
    const ints index = (ints){0} + i;
    for (int64_t first = 0; first < count; first += LANES, list += k) {
        ints bits = {0};
        if (count - first >= LANES) memcpy(&bits, x + first, sizeof bits);
        else memcpy(&bits, x + first, (size_t)(count - first) * sizeof *x);
        const ints key = keys_of(bits, is_float, flip);
        if (i >= k) {
            if (any(key > list[k - 1].key)) insert(list, k, key, index);
            continue;
        }
        list[i] = (place){key, index};
        insert(list, i + 1, key, index);
    }
}

static void take_floats(const qrt_columns *m, int64_t k, ints flip, place *lists) {
    for (int64_t i = 0; i < m->n; i++) take_row(m->x + i * m->stride, m->count, (int32_t)i, k, true, flip, lists);
}

static void take_ints(const qrt_columns *m, int64_t k, ints flip, place *lists) {
    for (int64_t i = 0; i < m->n; i++) take_row(m->x + i * m->stride, m->count, (int32_t)i, k, false, flip, lists);
}

void qrt_top_k_columns(const qrt_columns *m, int64_t k, void *room, uint32_t *values, int64_t *indices, int64_t stride) {
    place *lists = room;
    (m->is_float ? take_floats : take_ints)(m, k, (ints){0} - !m->is_largest, lists);
    for (int64_t j = 0; j < k; j++)
        for (int64_t c = 0; c < m->count; c++) {
            const int64_t index = lists[c / LANES * k + j].index[c % LANES];
            values[j * stride + c] = m->x[index * m->stride + c];
            indices[j * stride + c] = index;
        }
}
