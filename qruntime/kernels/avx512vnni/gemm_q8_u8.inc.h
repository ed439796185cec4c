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

/// Piece i, zeros behind the last one.
static inline __attribute__((always_inline)) __m512i
rounded_piece(const float *x, const int64_t *places, int64_t i, int64_t num_pieces, const bool any_outside, __m512 inverse) {
    if (i >= num_pieces || (any_outside && places[i] == QRT_OUTSIDE)) return _mm512_setzero_si512();
    return rounded(_mm512_loadu_ps(x + places[i]), inverse);
}

static inline __attribute__((always_inline)) void
quantize_pieces_with(const bool any_outside, const float *x, const int64_t *places, int64_t num_pieces, int64_t k_padded,
                     float inverse_scale, int32_t zero_point, int32_t qmax, uint8_t *q) {
    enum { AT_ONCE = 4, PIECE = 16 };
    const __m512 inverse = _mm512_set1_ps(inverse_scale);
    const __m512i zero = _mm512_set1_epi16((int16_t)zero_point), most = _mm512_set1_epi8((char)qmax);
    int64_t i = 0;
    for (; i + AT_ONCE <= num_pieces; i += AT_ONCE) {
        __m512i c[AT_ONCE];
#pragma GCC unroll 4
        for (int j = 0; j < AT_ONCE; j++) c[j] = rounded_piece(x, places, i + j, num_pieces, any_outside, inverse);
        _mm512_storeu_si512(q + i * PIECE, packed_codes(c[0], c[1], c[2], c[3], zero, most));
    }
    for (; i * PIECE < k_padded; i += AT_ONCE) {
        __m512i c[AT_ONCE];
#pragma GCC unroll 4
        for (int j = 0; j < AT_ONCE; j++) c[j] = rounded_piece(x, places, i + j, num_pieces, any_outside, inverse);
        const int64_t codes = (num_pieces - i) * PIECE, bytes = k_padded - i * PIECE;
        const __mmask64 valid = codes > 0 ? ((uint64_t)1 << codes) - 1 : 0;
        _mm512_mask_storeu_epi8(q + i * PIECE, bytes < 64 ? ((uint64_t)1 << bytes) - 1 : ~(uint64_t)0,
                                _mm512_maskz_mov_epi8(valid, packed_codes(c[0], c[1], c[2], c[3], zero, most)));
    }
}

static void quantize_pieces(const float *x, const int64_t *places, int64_t num_pieces, bool any_outside, int64_t k_padded,
                            float inverse_scale, int32_t zero_point, int32_t qmax, void *packed) {
    if (any_outside) quantize_pieces_with(true, x, places, num_pieces, k_padded, inverse_scale, zero_point, qmax, packed);
    else quantize_pieces_with(false, x, places, num_pieces, k_padded, inverse_scale, zero_point, qmax, packed);
}

static inline vi vi_codes(const void *a) {
    int32_t codes;
    memcpy(&codes, a, sizeof codes);
    return vi_set(codes);
}

#include "dot4.inc.h"
