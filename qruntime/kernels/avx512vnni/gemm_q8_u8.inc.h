/// What int8 GEMMs of unsigned codes need of AVX512-VNNI, inside the region of simd_avx512.h.

static inline __m512i rounded(__m512 x, __m512 inverse_scale) { return _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse_scale)); }

/// Codes of 64 rounded numbers: two packs and the sum between them saturate, which limits codes to 0 … 255 and makes what has no
/// int32, as NaN, 0; `most` limits them to fewer. Packs leave groups of four bytes in the order of their lanes.
static inline __m512i packed_codes(__m512i c0, __m512i c1, __m512i c2, __m512i c3, __m512i zero_point, __m512i most) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i low = _mm512_adds_epi16(_mm512_packs_epi32(c0, c1), zero_point);
    __m512i high = _mm512_adds_epi16(_mm512_packs_epi32(c2, c3), zero_point);
    return _mm512_permutexvar_epi32(order, _mm512_min_epu8(_mm512_packus_epi16(low, high), most));
}

static inline __m512i codes_of_64(const float *a, uint64_t valid, __m512 inverse_scale, __m512i zero_point,
                                  __m512i most) {
    __m512i c0 = rounded(_mm512_maskz_loadu_ps((__mmask16)valid, a), inverse_scale);
    __m512i c1 = rounded(_mm512_maskz_loadu_ps((__mmask16)(valid >> 16), a + 16), inverse_scale);
    __m512i c2 = rounded(_mm512_maskz_loadu_ps((__mmask16)(valid >> 32), a + 32), inverse_scale);
    __m512i c3 = rounded(_mm512_maskz_loadu_ps((__mmask16)(valid >> 48), a + 48), inverse_scale);
    return _mm512_maskz_mov_epi8(valid, packed_codes(c0, c1, c2, c3, zero_point, most));
}

static void quantize(const float *a, int64_t k, int64_t k_padded, float inverse_scale, int32_t zero_point, int32_t qmax,
                     void *packed, int64_t *sum) {
    uint8_t *q = packed;
    __m512 inverse = _mm512_set1_ps(inverse_scale);
    __m512i zero = _mm512_set1_epi16((int16_t)zero_point), most = _mm512_set1_epi8((char)qmax), total = _mm512_setzero_si512();
    int64_t i = 0;
    for (; i + 64 <= k; i += 64) {
        __m512i codes = codes_of_64(a + i, ~(uint64_t)0, inverse, zero, most);
        _mm512_storeu_si512(q + i, codes);
        total = _mm512_add_epi64(total, _mm512_sad_epu8(codes, _mm512_setzero_si512()));
    }
    for (; i < k_padded; i += 64) {
        uint64_t valid = i < k ? ((uint64_t)1 << (k - i)) - 1 : 0;
        int64_t bytes = k_padded - i;
        __m512i codes = codes_of_64(a + i, valid, inverse, zero, most);
        _mm512_mask_storeu_epi8(q + i, bytes < 64 ? ((uint64_t)1 << bytes) - 1 : ~(uint64_t)0, codes);
        total = _mm512_add_epi64(total, _mm512_sad_epu8(codes, _mm512_setzero_si512()));
    }
    if (sum) *sum = _mm512_reduce_add_epi64(total);
}

static inline __attribute__((always_inline)) __m512i
rounded_piece(const float *x, int64_t place, const bool any_outside, __m512 inverse) {
    if (any_outside && place == QRT_OUTSIDE) return _mm512_setzero_si512();
    return rounded(_mm512_loadu_ps(x + place), inverse);
}

enum { PIECE = 16 };

/// One row.
static inline __attribute__((always_inline)) void
quantize_row(const bool any_outside, const float *x, const int64_t *places, int64_t num_pieces, int64_t k_padded,
             float inverse_scale, int32_t zero_point, __m512i most, uint8_t *q) {
    const __m512 inverse = _mm512_set1_ps(inverse_scale);
    const __m512i zero = _mm512_set1_epi16((int16_t)zero_point);
    int64_t i = 0;
    for (; i + 4 <= num_pieces; i += 4) {
        __m512i c[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) c[j] = rounded_piece(x, places[i + j], any_outside, inverse);
        _mm512_storeu_si512(q + i * PIECE, packed_codes(c[0], c[1], c[2], c[3], zero, most));
    }
    for (; i < num_pieces; i++) {
        const __m256i words = _mm512_cvtsepi32_epi16(rounded_piece(x, places[i], any_outside, inverse));
        const __m256i codes = _mm256_max_epi16(_mm256_adds_epi16(words, _mm512_castsi512_si256(zero)), _mm256_setzero_si256());
        _mm_storeu_si128((__m128i *)(q + i * PIECE), _mm_min_epu8(_mm256_cvtusepi16_epi8(codes), _mm512_castsi512_si128(most)));
    }
    for (i *= PIECE; i < k_padded; i += PIECE) _mm_storeu_si128((__m128i *)(q + i), _mm_setzero_si128());  // to a multiple of 16
}

static void quantize_pieces(const float *x, int64_t step, int64_t n, const int64_t *places, int64_t num_pieces, bool any_outside,
                            int64_t k_padded, const float *inverse_scales, const qrt_q8_row *rows, int32_t qmax, void *packed,
                            int64_t stride_bytes) {
    const __m512i most = _mm512_set1_epi8((char)qmax);
    uint8_t *q = packed;
    for (int64_t r = 0; r < n; r++, x += step, q += stride_bytes) {
        if (any_outside) quantize_row(true, x, places, num_pieces, k_padded, inverse_scales[r], rows[r].zero_point, most, q);
        else quantize_row(false, x, places, num_pieces, k_padded, inverse_scales[r], rows[r].zero_point, most, q);
    }
}

static inline vi vi_codes(const void *a) {
    int32_t codes;
    memcpy(&codes, a, sizeof codes);
    return vi_set(codes);
}

static inline vi vi_code_pairs(const void *a) {
    int64_t codes;
    memcpy(&codes, a, sizeof codes);
    return _mm512_set1_epi64(codes);
}

#include "dot4.inc.h"
