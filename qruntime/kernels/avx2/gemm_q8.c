/// int8 GEMM on AVX2 for any weights: activations widened to int16 while they are packed, weights while they are
/// loaded, so that vpmaddwd loses nothing. For K that gemm_q8_signed.c refuses.
#include <math.h>
#include <string.h>

#include "gemm_q8.h"

#if defined(__x86_64__)

enum { MR = 6, NR = 16, KR = 4, CODE_OFFSET = 0 };

#include "../vector/simd_avx2.h"

#include "../vector/math.inc.h"

#include "../vector/activation.inc.h"
#include "../vector/gemm_q8.inc.h"

/// Codes of 16 values as int16.
static inline __m256i quantize16(__m256 x0, __m256 x1, __m256 inverse_scale, __m256i zero_point, __m256i qmax) {
    __m256i q0 = _mm256_add_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(x0, inverse_scale)), zero_point);
    __m256i q1 = _mm256_add_epi32(_mm256_cvtps_epi32(_mm256_mul_ps(x1, inverse_scale)), zero_point);
    __m256i q = _mm256_permute4x64_epi64(_mm256_packs_epi32(q0, q1), 0xd8);
    return _mm256_min_epi16(_mm256_max_epi16(q, _mm256_setzero_si256()), qmax);
}

static inline int64_t sum_of_lanes(__m256i v) {
    __m128i h = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    h = _mm_add_epi32(h, _mm_shuffle_epi32(h, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(h, _mm_shuffle_epi32(h, 0xb1)));
}

static void quantize(const float *a, int64_t k, int64_t k_padded, float inverse_scale, int32_t zero_point, int32_t qmax,
                     void *packed, int64_t *sum) {
    int16_t *q = packed;
    __m256 inverse = _mm256_set1_ps(inverse_scale);
    __m256i zero = _mm256_set1_epi32(zero_point), most = _mm256_set1_epi16((int16_t)qmax), ones = _mm256_set1_epi16(1), total = _mm256_setzero_si256();
    int64_t i = 0;
    for (; i + 16 <= k; i += 16) {
        __m256i codes = quantize16(_mm256_loadu_ps(a + i), _mm256_loadu_ps(a + i + 8), inverse, zero, most);
        _mm256_storeu_si256((__m256i *)(q + i), codes);
        total = _mm256_add_epi32(total, _mm256_madd_epi16(codes, ones));
    }
    int64_t all = sum_of_lanes(total);
    if (i < k_padded) {
        int64_t rest = k - i;
        int16_t codes[16];
        __m256 x0 = vf_load_n(a + i, rest < 8 ? rest : 8);
        __m256 x1 = rest > 8 ? vf_load_n(a + i + 8, rest - 8) : vf_zero();
        _mm256_storeu_si256((__m256i *)codes, quantize16(x0, x1, inverse, zero, most));
        for (int64_t j = 0; j < rest; j++) all += codes[j];
        memset(codes + rest, 0, sizeof *codes * (size_t)(16 - rest));
        memcpy(q + i, codes, sizeof *codes * (size_t)(k_padded - i));
    }
    if (sum) *sum = all;
}

#define ITEM int16_t
#include "../vector/pack_codes.inc.h"

static int64_t panel_bytes(int64_t k_padded) { return k_padded * NR; }

/// [k / 2][NR][2]
static bool pack_panel(const int8_t *w, int64_t row_stride_elems, int64_t col_stride_elems, int64_t k, int64_t n,
                       void *panel) {
    int8_t *out = panel;
    int64_t i = 0;
    if (n == NR && col_stride_elems == 1)
        for (; i + KR <= k; i += KR, out += KR * NR)
            for (int pair = 0; pair < KR; pair += 2) {
                __m128i r0 = _mm_loadu_si128((const __m128i *)(w + (i + pair) * row_stride_elems));
                __m128i r1 = _mm_loadu_si128((const __m128i *)(w + (i + pair + 1) * row_stride_elems));
                _mm_store_si128((__m128i *)(out + pair * NR), _mm_unpacklo_epi8(r0, r1));
                _mm_store_si128((__m128i *)(out + pair * NR + NR), _mm_unpackhi_epi8(r0, r1));
            }
    memset(out, 0, (size_t)((k - i + KR - 1) / KR * KR * NR));
    for (int64_t first = i; i < k; i++)
        for (int64_t j = 0; j < n; j++)
            out[((i - first) / 2 * NR + j) * 2 + i % 2] = w[i * row_stride_elems + j * col_stride_elems];
    return true;
}

static void unpack_panel(const void *panel, int64_t k, int64_t n, int8_t *w, int64_t row_stride_elems, int64_t col_stride_elems) {
    const int8_t *from = panel;
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = 0; j < n; j++) w[i * row_stride_elems + j * col_stride_elems] = from[(i / 2 * NR + j) * 2 + i % 2];
}

/// Keeps the compiler from regrouping sums, for which it would need more registers than there are.
#define HOLD(a, b) __asm__("" : "+x"(a), "+x"(b))

/// acc[rows][NR], `rows` a constant where it is inlined.
static inline __attribute__((always_inline)) void
tile(const int rows, const int16_t *a, int64_t stride, const int8_t *b, int64_t k_count, int32_t *acc) {
    __m256i c0[MR], c1[MR];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) c0[r] = c1[r] = _mm256_setzero_si256();
    for (int64_t k = 0; k < k_count; k += KR, b += KR * NR) {
#pragma GCC unroll 2
        for (int pair = 0; pair < KR; pair += 2) {
            __m256i b0 = _mm256_cvtepi8_epi16(_mm_load_si128((const __m128i *)(b + pair * NR)));
            __m256i b1 = _mm256_cvtepi8_epi16(_mm_load_si128((const __m128i *)(b + pair * NR + NR)));
#pragma GCC unroll 6
            for (int r = 0; r < rows; r++) {
                int32_t codes;
                memcpy(&codes, a + r * stride + k + pair, sizeof codes);
                __m256i both = _mm256_set1_epi32(codes);
                c0[r] = _mm256_add_epi32(c0[r], _mm256_madd_epi16(both, b0));
                c1[r] = _mm256_add_epi32(c1[r], _mm256_madd_epi16(both, b1));
                HOLD(c0[r], c1[r]);
            }
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        _mm256_storeu_si256((__m256i *)(acc + r * NR), c0[r]);
        _mm256_storeu_si256((__m256i *)(acc + r * NR + 8), c1[r]);
    }
}

#define QRT_TILES TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6)
#include "../vector/gemm_q8_widening.inc.h"

#include "../vector/simd_end.h"

const qrt_gemm_q8 qrt_avx2_gemm_q8_widening = {.name = "avx2 widening", WIDENING_GEMM_Q8};

#endif
