/// Ranges of windows, AVX2.
#include "../rungs.h"

#include "../vector/simd_avx2.h"
#include "../vector/conv_q8.inc.h"

#include "../vector/simd_end.h"

void qrt_avx2_conv_q8(qrt_kernel_table *t) { t->conv_q8 = (qrt_conv_q8){extremes, widen, parameters, interleave}; }
