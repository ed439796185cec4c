/// Products with weights of few bits on AVX-512.
#include "../rungs.h"

#define STREAMED_PANELS(rows) ((rows) <= 2 ? 8 : 4)

#include "../vector/simd_avx512.h"

#define vi_or(a, b) _mm512_or_si512(a, b)
#define vi_select(mask, a, b) _mm512_ternarylogic_epi32(mask, a, b, 0xCA)
#define KEEP(x) (void)(x)
static inline vi vi_load_upper(const uint8_t *p) { return vi_srl(vi_load((const int32_t *)p), 16); }
static inline vi vi_load_u16(const uint16_t *p) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)); }
#define vf_table16 vf_lookup

#include "../vector/gemm_nbits.inc.h"

void qrt_avx512_gemm_nbits(qrt_kernel_table *t) { t->gemm_nbits = (qrt_gemm_nbits){"avx512", stream, decode, NULL, NULL}; }

#include "../vector/simd_end.h"
