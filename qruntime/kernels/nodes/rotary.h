/// Rotary position embedding of one head of one token.
#ifndef QRT_ROTARY_H
#define QRT_ROTARY_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/// y[size]: pairs of the first 2 · half values of x turned by the angles of cos and sin [half], the rest as it is. Pairs are value
/// i and i + half, or neighbours when `interleaved`. Not in place. In operations of their own, as the definition has them.
static inline void qrt_rotate(const float *x, const float *cos, const float *sin, int64_t half, int64_t size, bool interleaved,
                              float *y) {
    if (interleaved) {
        for (int64_t i = 0; i < half; i++) {
            float first = x[2 * i], second = x[2 * i + 1];
            y[2 * i] = first * cos[i] - second * sin[i];
            y[2 * i + 1] = first * sin[i] + second * cos[i];
        }
    } else {
        for (int64_t i = 0; i < half; i++) {
            y[i] = x[i] * cos[i] - x[i + half] * sin[i];
            y[i + half] = x[i] * sin[i] + x[i + half] * cos[i];
        }
    }
    memcpy(y + 2 * half, x + 2 * half, (size_t)(size - 2 * half) * sizeof *y);
}

#endif
