/// Rounding of a row to the 8-bit floats E4M3 in loops that the compiler vectorizes for the target region that includes them; portable
/// includes them too.
#include <float.h>
#include <string.h>

/// The greatest number of E4M3, and the exponent field of its least normal one, 2⁻⁶.
static const float FLOAT8_MOST = 448.0f;
enum { FLOAT8_LEAST_EXPONENT = 127 - 6, FLOAT8_MANTISSA_BITS = 3 };

/// x, within ±448, to the nearest number of E4M3, ties to even. 1.5 · 2²³ steps of those numbers are added and taken off
/// again: the sum has their steps. NaN stays.
static inline float rounded_to_float8(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    int32_t exponent = (int32_t)(bits >> 23 & 0xff);
    exponent = exponent > FLOAT8_LEAST_EXPONENT ? exponent : FLOAT8_LEAST_EXPONENT;
    bits = (uint32_t)(exponent + 23 - FLOAT8_MANTISSA_BITS) << 23 | 1u << 22;
    float rounder;
    memcpy(&rounder, &bits, sizeof rounder);
    return (x + rounder) - rounder;
}

/// The scale of a row: its largest number becomes 448; 1 where all are 0. That of a row with NaN is NaN.
static float float8_scale(const float *x, int64_t n) {
    int32_t most = 0;  // bits of numbers without their sign have the order of the numbers, NaN last
    for (int64_t i = 0; i < n; i++) {
        int32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        bits &= 0x7fffffff;
        most = bits > most ? bits : most;
    }
    float largest;
    memcpy(&largest, &most, sizeof largest);
    float scale = (float)((double)largest / FLOAT8_MOST);
    if (scale == 0.0f) scale = 1.0f;
    return scale < FLT_MIN ? FLT_MIN : scale;
}

static inline float float8_code(float share) {
    share = share > FLOAT8_MOST ? FLOAT8_MOST : share;
    return rounded_to_float8(share < -FLOAT8_MOST ? -FLOAT8_MOST : share);
}

static float float8_codes(const float *restrict x, float *restrict codes, int64_t n) {
    const float scale = float8_scale(x, n), inverse = 1.0f / scale;
    for (int64_t i = 0; i < n; i++) codes[i] = float8_code(x[i] * inverse);
    return scale;
}

static void round_to_float8(const float *restrict x, float *restrict y, int64_t n) {
    const float scale = float8_scale(x, n), inverse = 1.0f / scale;
    for (int64_t i = 0; i < n; i++) y[i] = float8_code(x[i] * inverse) * scale;
}
