#include <math.h>

#include "../rungs.h"

#include "../vector/simd_avx2.h"
#include "../vector/math.inc.h"
#include "../vector/attention.inc.h"

void qrt_avx2_attention(qrt_kernel_table *t) { t->attention = (qrt_attention){exponentials, divide}; }

#include "../vector/simd_end.h"
