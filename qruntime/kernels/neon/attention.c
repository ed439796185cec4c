#include <math.h>

#include "../rungs.h"

#include "../vector/simd_neon.h"
#include "../vector/math.inc.h"
#include "../vector/attention.inc.h"

void qrt_neon_attention(qrt_kernel_table *t) { t->attention = (qrt_attention){exponentials, divide}; }
