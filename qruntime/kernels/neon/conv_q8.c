/// Ranges of windows, Advanced SIMD.
#include "../rungs.h"

#include "../vector/simd_neon.h"
#include "../vector/conv_q8.inc.h"

#include "../vector/simd_end.h"

void qrt_neon_conv_q8(qrt_kernel_table *t) { t->conv_q8 = (qrt_conv_q8){extremes, widen, parameters, interleave}; }
