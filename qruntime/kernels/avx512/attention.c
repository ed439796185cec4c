#include <math.h>

#include "../rungs.h"

#include "../vector/simd_avx512.h"
#include "../vector/math.inc.h"
#include "../vector/attention.inc.h"

void qrt_avx512_attention(qrt_kernel_table *t) { t->attention = (qrt_attention){exponentials, divide}; }

#include "../vector/simd_end.h"
