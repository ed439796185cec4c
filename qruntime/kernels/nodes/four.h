/// Four elements of four bytes, or sixteen bytes, at a time, with instructions that every target has.
#ifndef QRT_NODES_FOUR_H
#define QRT_NODES_FOUR_H

#include <stdint.h>

typedef uint32_t u32x4 __attribute__((vector_size(16)));
typedef float f32x4 __attribute__((vector_size(16)));

/// Rows become columns.
static inline __attribute__((always_inline)) void transpose_four(u32x4 v[4]) {
    const u32x4 a = __builtin_shufflevector(v[0], v[1], 0, 4, 1, 5), b = __builtin_shufflevector(v[0], v[1], 2, 6, 3, 7);
    const u32x4 c = __builtin_shufflevector(v[2], v[3], 0, 4, 1, 5), d = __builtin_shufflevector(v[2], v[3], 2, 6, 3, 7);
    v[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5);
    v[1] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
    v[2] = __builtin_shufflevector(b, d, 0, 1, 4, 5);
    v[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
}

typedef uint8_t u8x16 __attribute__((vector_size(16)));

/// a[0], b[0], a[1], b[1] … from the first halves, and from the second.
static inline __attribute__((always_inline)) u8x16 interleave_first(u8x16 a, u8x16 b) {
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
static inline __attribute__((always_inline)) u8x16 interleave_second(u8x16 a, u8x16 b) {
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

/// Four times interleaved with the row eight below, rows become columns.
static inline __attribute__((always_inline)) void transpose_sixteen(u8x16 v[16]) {
    for (int round = 0; round < 4; round++) {
        u8x16 w[16];
        for (int i = 0; i < 8; i++) {
            w[2 * i] = interleave_first(v[i], v[i + 8]);
            w[2 * i + 1] = interleave_second(v[i], v[i + 8]);
        }
        for (int i = 0; i < 16; i++) v[i] = w[i];
    }
}

#endif
