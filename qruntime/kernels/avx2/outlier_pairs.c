#include <string.h>

#include "../kernels.h"
#include "../rungs.h"
#include "../vector/simd_avx2.h"
#define RUNG avx2
#include "../vector/outlier_pairs.inc.h"
#include "../vector/simd_end.h"
