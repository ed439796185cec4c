/// Products with weights of few bits on AVX2.
#include "../rungs.h"

#define STREAMED_PANELS(rows) ((rows) == 1 ? 4 : (rows) == 2 ? 2 : 1)

#include "../vector/simd_avx2.h"

#define vi_or(a, b) _mm256_or_si256(a, b)
#define vi_select(mask, a, b) vi_or(vi_and(a, mask), b)
#define KEEP(x) __asm__ volatile("" : "+x"(x))
static inline vi vi_load_upper(const uint8_t *p) { return vi_load((const int32_t *)(p + 2)); }
static inline vi vi_load_u16(const uint16_t *p) { return _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)); }

/// A permutation looks at three bits; the fourth, moved to the sign, says in which half of the table.
static inline vf vf_table16(const float *table, vi index) {
    vf low = _mm256_permutevar8x32_ps(vf_load(table), index), high = _mm256_permutevar8x32_ps(vf_load(table + VL), index);
    return _mm256_blendv_ps(low, high, vi_as_vf(vi_sll(index, 28)));
}

#include "../vector/gemm_nbits.inc.h"

void qrt_avx2_gemm_nbits(qrt_kernel_table *t) { t->gemm_nbits = (qrt_gemm_nbits){"avx2", stream, decode, NULL, NULL}; }

#include "../vector/simd_end.h"
