#include "../cache_codes.h"

#include <math.h>
#include <string.h>

#include "../rungs.h"
#include "../vector/simd_avx2.h"
#include "../vector/cache_codes.inc.h"
#include "../vector/simd_end.h"

void qrt_avx2_cache_codes(qrt_kernel_table *t) { t->cache_codes = (qrt_cache_codes){quantize_cache, dequantize_cache}; }
