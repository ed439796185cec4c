/// Low-bit GEMM with quantized activations on AVX2: exact sums from vpmaddubsw, which saturates at int16.
///
/// u < 32 against −128 … 127: several pairs of products are added up in int16 before vpmaddwd widens them. u of 8 bits:
/// w = u − 128 against magnitude and sign of a, as in gemm_q8_signed.c,
///
///     a · w = |a| · (w ^ s) + |a| · (a < 0),     s = −1 where a < 0, else 0
///
/// where a pair of products just fits, −128 · 128 · 2 = −32768. The second part belongs to the row alone.
#include <math.h>
#include <string.h>

#include "../rungs.h"

#if defined(__x86_64__)

#define TILE_ROWS 4
enum { PANELS = 1, IS_EXACT = false, WIDE_BYTES = 8, WIDE_OFFSET = 128 };

#include "../vector/simd_avx2.h"

#include "../vector/math.inc.h"

#include "../vector/activation.inc.h"

static inline vi four_at(const void *a) {
    int32_t four;
    memcpy(&four, a, sizeof four);
    return vi_set(four);
}

static inline vi widened(vi sums) { return _mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }

/// Two products of a lane are at most 2 · 128 · `most` in size.
#define MOST_PRODUCTS(most) (INT16_MAX / (256 * (most)))

static inline vi add_narrow(vi sums, vi u, const void *a) {
    return _mm256_add_epi16(sums, _mm256_maddubs_epi16(u, four_at(a)));
}

/// Four magnitudes, then four signs, which also turn u into w.
static inline vi add_wide(vi sums, vi u, const void *a) {
    vi w = _mm256_xor_si256(u, four_at((const char *)a + 4));
    return vi_add(sums, widened(_mm256_maddubs_epi16(four_at(a), w)));
}

/// w, sign-extended, is a pair whose upper half is not to count.
static inline vi add_short(vi sums, vi w, vi factor) { return vi_add(sums, _mm256_madd_epi16(w, factor)); }
static inline vi short_factor(int32_t x) { return vi_set(x & 0xffff); }

#include "../vector/gemm_nbits_q8.inc.h"

static inline int32_t sum_of_quarters(__m256i v) {
    __m128i h = _mm_add_epi64(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    return _mm_cvtsi128_si32(_mm_add_epi64(h, _mm_unpackhi_epi64(h, h)));
}

/// What of a quad is packed, for add_wide. Returns Σ |a| over a < 0.
static inline int32_t pack_quad(const uint8_t *codes, int64_t count, int8_t *out) {
    int32_t negative = 0;
    for (int64_t i = 0; i < 4; i++) {
        int a = i < count ? codes[i] - CODE_OFFSET : 0;
        out[i] = (int8_t)(a < 0 ? -a : a);
        out[4 + i] = a < 0 ? 0x7f : -0x80;
        negative += a < 0 ? -a : 0;
    }
    return negative;
}

static void pack_wide_row(const qrt_nbits_q8_weights *w, const uint8_t *codes, void *row) {
    const __m256i zero = _mm256_setzero_si256(), offset = _mm256_set1_epi8(-128);
    int8_t *out = row;
    int32_t *starts = row_starts(w, row), *sums = starts + w->w.num_groups;
    for (int64_t g = 0; g < w->w.num_groups; g++) {
        int64_t count = qrt_nbits_depth(&w->w, g), padded = 4 * qrt_nbits_quads(w->kind) * qrt_nbits_q8_steps(w, g), i = 0;
        int32_t sum = 0, negative = 0;
        __m256i sum8 = zero, negative8 = zero;
        for (; i + 32 <= count; i += 32) {
            __m256i q = _mm256_loadu_si256((const __m256i *)(codes + i)), a = _mm256_xor_si256(q, offset);
            __m256i size = _mm256_abs_epi8(a), sign = _mm256_cmpgt_epi8(zero, a);
            sum8 = _mm256_add_epi64(sum8, _mm256_sad_epu8(q, zero));
            negative8 = _mm256_add_epi64(negative8, _mm256_sad_epu8(_mm256_and_si256(size, sign), zero));
            sign = _mm256_xor_si256(sign, offset);
            __m256i low = _mm256_unpacklo_epi32(size, sign), high = _mm256_unpackhi_epi32(size, sign);
            _mm256_storeu_si256((__m256i *)(out + 2 * i), _mm256_permute2x128_si256(low, high, 0x20));
            _mm256_storeu_si256((__m256i *)(out + 2 * i + 32), _mm256_permute2x128_si256(low, high, 0x31));
        }
        sum = sum_of_quarters(sum8) - CODE_OFFSET * (int32_t)i;
        negative = sum_of_quarters(negative8);
        for (int64_t j = i; j < count; j++) sum += codes[j] - CODE_OFFSET;
        for (; i < padded; i += 4) negative += pack_quad(codes + i, count - i, out + 2 * i);
        starts[g] = (WIDE_OFFSET - w->centre) * sum + negative;
        sums[g] = sum;
        codes += count;
        out += 2 * padded;
    }
}

static void pack_any_row(const qrt_nbits_q8_weights *w, const uint8_t *codes, void *row) {
    (IS_WIDE(w->kind) ? pack_wide_row : pack_row)(w, codes, row);
}

#include "../vector/simd_end.h"

void qrt_avx2_gemm_nbits_q8(qrt_kernel_table *t) {
    t->gemm_nbits_q8 = nbits_q8;
    t->gemm_nbits_q8.name = "avx2";
    t->gemm_nbits_q8.pack_row = pack_any_row;
}

#endif
