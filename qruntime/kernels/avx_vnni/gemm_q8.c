/// int8 GEMM on AVX-VNNI: vpdpbusd of 256 bits.
#include <math.h>
#include <string.h>

#include "../rungs.h"

#if defined(__x86_64__)

#define QRT_TILE_ROWS 4
enum { MR = QRT_TILE_ROWS, NR = 24, KR = 4, CODE_OFFSET = 0 };

#include "../vector/simd_avx2.h"

#include "../avx2/quantize_u8.inc.h"
#include "../vector/math.inc.h"

#include "../vector/activation.inc.h"
#include "../vector/gemm_q8.inc.h"

/// By hand, so that compilers without the target avxvnni do. {vex}: the other encoding is AVX-512's.
#ifndef QRT_EMULATE_VNNI
static inline vi vi_dot4(vi acc, vi codes, vi weights) {
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(codes), "xm"(weights));
    return acc;
}
#endif

#include "../vector/gemm_q8_vnni.inc.h"

#include "../vector/simd_end.h"

void qrt_avx_vnni_gemm_q8(qrt_kernel_table *t) {
    t->gemm_q8 = vnni_gemm_q8;
    t->gemm_q8.name = "avx_vnni";
}

#endif
