#include <math.h>

#include "../kernels.h"
#include "../rungs.h"
#include "../vector/simd_avx2.h"
#define RUNG avx2
#include "../vector/qlinear.inc.h"
#include "../vector/simd_end.h"
