/// Attention, that of quantized models by vpdpwssd of 512 bits.
#include <math.h>

#include "../rungs.h"

/// 14 × 32 tiles, as of the float GEMM.
enum { MR = 14, NV = 2 };
#define QRT_TILES \
    TILE(1) TILE(2) TILE(3) TILE(4) TILE(5) TILE(6) TILE(7) TILE(8) TILE(9) TILE(10) TILE(11) TILE(12) TILE(13) TILE(14)

#include "../vector/simd_avx512.h"
#include "../vector/math.inc.h"
#include "../vector/attention.inc.h"
#include "../vector/attention_few.inc.h"

#include "dot4.inc.h"

static inline vi vi_pairs_add(vi sums, vi a, vi b) { return vi_dot2(sums, a, b); }

#include "../vector/attention_q16.inc.h"

void qrt_avx512vnni_attention(qrt_kernel_table *t) {
    t->attention = (qrt_attention){exponentials, divide, few_scores, few_values};
    t->attention_q16 = ATTENTION_Q16;
}

#include "../vector/simd_end.h"
