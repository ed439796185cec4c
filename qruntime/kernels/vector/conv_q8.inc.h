/// Ranges of windows, over the vocabulary of simd_*.h.
#include <float.h>
#include <math.h>

enum { BLOCK = QRT_CHANNEL_BLOCK, AT_ONCE = 4 };

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/// Widen the extremes of four pixels by `count` ≤ 16 channels of a block, the numbers of which are constants where it is inlined.
ALWAYS_INLINE void widen(const float *const *x, int64_t at, const int count, vi least[AT_ONCE], vi greatest[AT_ONCE]) {
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
        for (int64_t b = 0; b < blocks; b++) widen(pixels, b * plane, BLOCK, least, greatest);
        if (rest) widen(pixels, blocks * plane, rest, least, greatest);
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

/// As qrt_q8_parameters, for a compiler that makes vectors of it: no branches, and rows are put together afterwards.
static void parameters(const uint32_t *least, const int32_t *greatest, int64_t n, int32_t qmax, qrt_q8_row *rows, float *inverse_scales) {
    enum { PART = 64 };
    const float round = 12582912.0f, most = (float)qmax;
    const double steps = qmax;
    for (int64_t first = 0; first < n; first += PART) {
        const int count = n - first < PART ? (int)(n - first) : PART;
        float low[PART], high[PART], scales[PART], zeros[PART], inverse[PART];
        memcpy(low, least + first, (size_t)count * sizeof *low);
        memcpy(high, greatest + first, (size_t)count * sizeof *high);
        for (int i = count; i < PART; i++) low[i] = high[i] = 0.0f;
        for (int i = 0; i < PART; i++) {
            float lo = low[i] > 0.0f ? 0.0f : low[i];  // NaN stays
            float scale = (float)(((double)high[i] - (double)lo) / steps);
            scale = scale == 0.0f ? 1.0f : scale;
            scale = scale < FLT_MIN ? FLT_MIN : scale;
            float zero = -lo / scale + round - round;
            zero = zero > 0.0f ? zero : 0.0f;  // also NaN
            zeros[i] = zero < most ? zero : most;
            scales[i] = scale;
            inverse[i] = 1.0f / scale;
        }
        memcpy(inverse_scales + first, inverse, (size_t)count * sizeof *inverse);
        for (int i = 0; i < count; i++) {
            rows[first + i].scale = scales[i];
            rows[first + i].zero_point = (int32_t)zeros[i];
        }
    }
}

#undef ALWAYS_INLINE
