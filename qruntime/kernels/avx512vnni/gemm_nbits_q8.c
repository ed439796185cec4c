/// Low-bit GEMM with quantized activations on AVX512-VNNI: vpdpbusd of 512 bits.
#include <math.h>
#include <string.h>

#include "../rungs.h"

#if defined(__x86_64__)

#define TILE_ROWS 6
enum { PANELS = 2, IS_EXACT = true, WIDE_BYTES = 4, WIDE_OFFSET = 0 };

#include "../vector/simd_avx512.h"

#include "../vector/math.inc.h"

#include "../vector/activation.inc.h"
#include "dot4.inc.h"

#include "../vector/nbits_q8_dot4.inc.h"

#include "../vector/gemm_nbits_q8.inc.h"

#include "../vector/simd_end.h"

void qrt_avx512vnni_gemm_nbits_q8(qrt_kernel_table *t) {
    t->gemm_nbits_q8 = nbits_q8;
    t->gemm_nbits_q8.name = "avx512vnni";
}

#endif
