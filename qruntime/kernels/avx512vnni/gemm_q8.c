/// int8 GEMM on AVX512-VNNI: vpdpbusd of 512 bits, 8×48 tiles.
#include <math.h>
#include <string.h>

#include "../qlinear.h"
#include "../rungs.h"

#if defined(__x86_64__)

#define QRT_TILE_ROWS 8
enum { MR = QRT_TILE_ROWS, NR = 48, KR = 4, CODE_OFFSET = 0 };

#include "../vector/simd_avx512.h"

#include "../vector/math.inc.h"

#include "../vector/activation.inc.h"
#include "../vector/gemm_q8.inc.h"

#include "gemm_q8_u8.inc.h"

#include "../vector/gemm_q8_dot4.inc.h"

#include "../vector/simd_end.h"

void qrt_avx512vnni_gemm_q8(qrt_kernel_table *t) {
    t->codes_q8 = (qrt_codes_q8){range, quantize, NULL, NULL};
    t->gemm_q8 = dot4_gemm_q8;
    t->gemm_q8.name = "avx512vnni";
    t->gemm_q8.codes.quantize_pieces = quantize_pieces;
}

#endif
