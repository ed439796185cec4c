/// float16 as C that knows no such type reads it.
#ifndef QRT_HALF_H
#define QRT_HALF_H

#include <stdint.h>
#include <string.h>

/// Exact; NaN stays NaN, and quiet.
static inline float qrt_f32_of_f16(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3ff, bits;
    float x;
    if (exponent == 0) {
        x = (float)mantissa * 0x1p-24f;
        return sign ? -x : x;
    }
    bits = sign | (exponent == 31 ? 255u << 23 : (exponent + 112) << 23) | mantissa << 13;
    if (exponent == 31 && mantissa) bits |= 1u << 22;
    memcpy(&x, &bits, sizeof x);
    return x;
}

#endif
