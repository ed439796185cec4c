/// Products with weights of few bits on AVX-512.
#include "../rungs.h"

#define STREAMED_PANELS(rows) 4

#include "../vector/simd_avx512.h"

#define vi_or(a, b) _mm512_or_si512(a, b)
#define vi_select(mask, a, b) _mm512_ternarylogic_epi32(vi_set(mask), a, vi_set(b), 0xCA)
static inline vi vi_load_u16(const uint16_t *p) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)); }
#define vf_table16 vf_lookup

#include "../vector/gemm_nbits.inc.h"

void qrt_avx512_gemm_nbits(qrt_kernel_table *t) { t->gemm_nbits = (qrt_gemm_nbits){"avx512", stream, decode}; }

#include "../vector/simd_end.h"
