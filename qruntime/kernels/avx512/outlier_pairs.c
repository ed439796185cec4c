#include <string.h>

#include "../kernels.h"
#include "../rungs.h"
#include "../vector/simd_avx512.h"
#define RUNG avx512
#include "../vector/outlier_pairs.inc.h"
#include "../vector/simd_end.h"
