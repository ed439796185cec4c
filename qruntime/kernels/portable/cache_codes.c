#include "../cache_codes.h"

#include <math.h>
#include <string.h>

#include "../rungs.h"
#include "../vector/cache_codes.inc.h"

void qrt_portable_cache_codes(qrt_kernel_table *t) { t->cache_codes = (qrt_cache_codes){quantize_cache, dequantize_cache}; }
