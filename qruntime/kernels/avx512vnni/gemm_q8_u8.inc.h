/// What int8 GEMMs of unsigned codes need of AVX512-VNNI, inside the region of simd_avx512.h.

static inline __m512i rounded(const float *a, __mmask16 valid, __m512 inverse_scale) {
    return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_maskz_loadu_ps(valid, a), inverse_scale));
}

/// Up to 64 codes: two packs and the sum between them saturate, which limits codes to 0 … 255 and makes what has no
/// int32, as NaN, 0; `most` limits them to fewer. Packs leave groups of four bytes in the order of their lanes.
static inline __m512i codes_of_64(const float *a, uint64_t valid, __m512 inverse_scale, __m512i zero_point,
                                  __m512i most) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i c0 = rounded(a, (__mmask16)valid, inverse_scale);
    __m512i c1 = rounded(a + 16, (__mmask16)(valid >> 16), inverse_scale);
    __m512i c2 = rounded(a + 32, (__mmask16)(valid >> 32), inverse_scale);
    __m512i c3 = rounded(a + 48, (__mmask16)(valid >> 48), inverse_scale);
    __m512i low = _mm512_adds_epi16(_mm512_packs_epi32(c0, c1), zero_point);
    __m512i high = _mm512_adds_epi16(_mm512_packs_epi32(c2, c3), zero_point);
    __m512i codes = _mm512_permutexvar_epi32(order, _mm512_min_epu8(_mm512_packus_epi16(low, high), most));
    return _mm512_maskz_mov_epi8(valid, codes);
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

static inline vi vi_codes(const void *a) {
    int32_t codes;
    memcpy(&codes, a, sizeof codes);
    return vi_set(codes);
}

#include "dot4.inc.h"
