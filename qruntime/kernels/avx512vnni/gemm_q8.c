/// int8 GEMM on AVX512-VNNI: vpdpbusd of 512 bits, 8×48 tiles.
#include <math.h>
#include <string.h>

#include "../rungs.h"

#if defined(__x86_64__)

#define QRT_TILE_ROWS 8
enum { MR = QRT_TILE_ROWS, NR = 48, CODE_OFFSET = 0 };

#include "../vector/simd_avx512.h"

#include "../vector/math.inc.h"

#include "../vector/activation.inc.h"
#include "../vector/gemm_q8.inc.h"

/// Codes of 16 values as bytes.
static inline __m128i quantize16(__m512 x, __m512 inverse_scale, __m512i zero_point) {
    __m512i q = _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(x, inverse_scale)), zero_point);
    return _mm512_cvtusepi32_epi8(_mm512_max_epi32(q, _mm512_setzero_si512()));
}

static void quantize(const float *a, int64_t k, int64_t k_padded, float inverse_scale, int32_t zero_point,
                     void *packed, int64_t *sum) {
    uint8_t *q = packed;
    __m512 inverse = _mm512_set1_ps(inverse_scale);
    __m512i zero = _mm512_set1_epi32(zero_point);
    __m128i total = _mm_setzero_si128();
    int64_t i = 0;
    for (; i + 16 <= k; i += 16) {
        __m128i codes = quantize16(_mm512_loadu_ps(a + i), inverse, zero);
        _mm_storeu_si128((__m128i *)(q + i), codes);
        total = _mm_add_epi64(total, _mm_sad_epu8(codes, _mm_setzero_si128()));
    }
    if (i < k_padded) {
        __mmask16 valid = vm_first(k - i), padded = vm_first(k_padded - i);
        __m128i codes = _mm_maskz_mov_epi8(valid, quantize16(_mm512_maskz_loadu_ps(valid, a + i), inverse, zero));
        _mm_mask_storeu_epi8(q + i, padded, codes);
        total = _mm_add_epi64(total, _mm_sad_epu8(codes, _mm_setzero_si128()));
    }
    if (sum) *sum = _mm_cvtsi128_si64(_mm_add_epi64(total, _mm_unpackhi_epi64(total, total)));
}

/// By hand, so that the region of simd_avx512.h needs no further target.
#ifndef QRT_EMULATE_VNNI
static inline vi vi_dot4(vi acc, vi codes, vi weights) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(codes), "vm"(weights));
    return acc;
}
#endif
static inline vi vi_codes(const uint8_t *a) {
    int32_t codes;
    memcpy(&codes, a, sizeof codes);
    return _mm512_set1_epi32(codes);
}

#include "../vector/gemm_q8_vnni.inc.h"

#include "../vector/simd_end.h"

void qrt_avx512vnni_gemm_q8(qrt_kernel_table *t) {
    t->gemm_q8 = (qrt_gemm_q8){
        .name = "avx512vnni", .mr = MR, .nr = NR, .kr = KR, .item_bytes = 1,
        .range = range, .quantize = quantize, .panel_bytes = panel_bytes, .pack_panel = pack_panel,
        .multiply = multiply, .dot = dot, .finish = finish,
    };
}

#endif
