/// Transposing 8 × 8 floats, four blocks of 4 × 4.
#ifndef QRT_TRANSPOSE_NEON_H
#define QRT_TRANSPOSE_NEON_H

#include <arm_neon.h>

/// to[j · to_stride + i] = from[i · from_stride + j] for i, j < 4.
static inline __attribute__((always_inline)) void transpose_4x4(const float *from, int64_t from_stride, float *to, int64_t to_stride) {
    float32x4x2_t low = vtrnq_f32(vld1q_f32(from), vld1q_f32(from + from_stride));
    float32x4x2_t high = vtrnq_f32(vld1q_f32(from + 2 * from_stride), vld1q_f32(from + 3 * from_stride));
    for (int j = 0; j < 2; j++) {
        vst1q_f32(to + j * to_stride, vcombine_f32(vget_low_f32(low.val[j]), vget_low_f32(high.val[j])));
        vst1q_f32(to + (j + 2) * to_stride, vcombine_f32(vget_high_f32(low.val[j]), vget_high_f32(high.val[j])));
    }
}

/// to[j · to_stride + i] = from[i · from_stride + j] for i, j < 8.
static inline __attribute__((always_inline)) void transpose_8x8(const float *from, int64_t from_stride, float *to, int64_t to_stride) {
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 8; j += 4) transpose_4x4(from + i * from_stride + j, from_stride, to + j * to_stride + i, to_stride);
}

#endif
