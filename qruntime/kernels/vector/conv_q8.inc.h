/// Ranges of windows, over the vocabulary of simd_*.h.
#include <float.h>
#include <string.h>

#include "conv_q8_rows.inc.h"

enum { BLOCK = QRT_CHANNEL_BLOCK, AT_ONCE = 4 };

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/// Widen the extremes of four pixels by `count` ≤ 16 channels of a block, the numbers of which are constants where it is inlined.
ALWAYS_INLINE void add_channels(const float *const *x, int64_t at, const int count, vi least[AT_ONCE], vi greatest[AT_ONCE]) {
#pragma GCC unroll 4
    for (int i = 0; i < AT_ONCE; i++)
#pragma GCC unroll 4
        for (int v = 0; v < BLOCK / VL; v++) {
            const int left = count - v * VL;
            if (left <= 0) continue;
            // What is missing is 0, which every range contains.
            const vi bits = vf_as_vi(left < VL ? vf_load_n(x[i] + at + v * VL, left) : vf_load(x[i] + at + v * VL));
            least[i] = vi_max_unsigned(least[i], bits);
            greatest[i] = vi_max(greatest[i], bits);
        }
}

static void extremes(const float *x, int64_t step, int64_t plane, int64_t channels, int64_t n, qrt_extremes of) {
    const vi sign = vi_set(INT32_MIN);
    const int64_t blocks = channels / BLOCK;
    const int rest = (int)(channels % BLOCK);
    for (int64_t p = 0; p < n; p += AT_ONCE) {
        const int64_t count = n - p < AT_ONCE ? n - p : AT_ONCE;
        const float *pixels[AT_ONCE];
        vi least[AT_ONCE], greatest[AT_ONCE];
#pragma GCC unroll 4
        for (int i = 0; i < AT_ONCE; i++) {
            pixels[i] = x + (p + (i < count ? i : 0)) * step;
            least[i] = greatest[i] = vi_set(0);
        }
        for (int64_t b = 0; b < blocks; b++) add_channels(pixels, b * plane, BLOCK, least, greatest);
        if (rest) add_channels(pixels, blocks * plane, rest, least, greatest);
        // The greatest unsigned integer is the greatest signed one after the sign has been flipped.
#pragma GCC unroll 4
        for (int i = 0; i < AT_ONCE; i++) least[i] = vi_xor(least[i], sign);
        uint32_t low[AT_ONCE];
        int32_t high[AT_ONCE];
        float bits[AT_ONCE];
        vi_hmax4(least, bits);
        memcpy(low, bits, sizeof low);
        vi_hmax4(greatest, bits);
        memcpy(high, bits, sizeof high);
        for (int i = 0; i < count; i++) {
            of.least[p + i] = low[i] ^ (uint32_t)INT32_MIN;
            of.greatest[p + i] = high[i];
        }
    }
}

/// As qrt_q8_parameters.
static void parameters(const uint32_t *least, const int32_t *greatest, int64_t n, int32_t qmax, qrt_q8_row *rows, float *inverse_scales) {
    const vf nothing = vf_zero(), one = vf_set(1.0f), round = vf_set(12582912.0f);
    for (int64_t i = 0; i < n; i += VL) {
        const int64_t count = n - i < VL ? n - i : VL;
        float scales[VL], zeros[VL];
        const vf low = vf_min(nothing, vi_as_vf(vi_load_n((const int32_t *)least + i, count)));  // NaN stays
        vf scale = vf_divided_difference(vi_as_vf(vi_load_n(greatest + i, count)), low, qmax);
        scale = vf_blend(vf_eq(scale, nothing), one, scale);
        scale = vf_max(vf_set(FLT_MIN), scale);
        vf zero = vf_sub(vf_add(vf_div(vf_neg(low), scale), round), round);
        zero = vf_blend(vf_lt(nothing, zero), zero, nothing);  // also NaN
        vf_store(zeros, vf_min(zero, vf_set((float)qmax)));
        vf_store(scales, scale);
        vf_store_n(inverse_scales + i, vf_div(one, scale), count);
        for (int r = 0; r < count; r++) {
            rows[i + r].scale = scales[r];
            rows[i + r].zero_point = (int32_t)zeros[r];
        }
    }
}

#undef ALWAYS_INLINE
