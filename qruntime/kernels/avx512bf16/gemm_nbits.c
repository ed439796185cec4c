/// Weights of few bits times FP8: pairs of bfloat16 by vdpbf16ps, which rounds after each of its two products.
#include "../rungs.h"

enum { MR = 14, NV = 2 };
#define QRT_TILES                                                                                             \
    TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6) TILE(7) TILE(8) TILE(9) TILE(10) TILE(11) TILE(12) TILE(13) TILE(14)

#include "../vector/simd_avx512.h"

#ifdef QRT_EMULATE_BF16
static inline vf vf_dot_pairs(vf sum, vi a, vi b) {
    const vi upper = vi_set(-65536);
    sum = vf_fma(vi_as_vf(vi_and(a, upper)), vi_as_vf(vi_and(b, upper)), sum);
    return vf_fma(vi_as_vf(vi_sll(a, 16)), vi_as_vf(vi_sll(b, 16)), sum);
}
#else
static inline vf vf_dot_pairs(vf sum, vi a, vi b) {
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "vm"(b));
    return sum;
}
#endif

#include "../vector/gemm_pairs.inc.h"

void qrt_avx512bf16_gemm_nbits(qrt_kernel_table *t) {
    t->gemm_nbits.pair_strip = pair_strip;
    t->gemm_nbits.grouped_pair_strip = grouped_pair_strip;
}

#include "../vector/simd_end.h"
