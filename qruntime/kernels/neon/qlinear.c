#include <math.h>

#include "../kernels.h"
#include "../rungs.h"
#include "../vector/simd_neon.h"
#define RUNG neon
#include "../vector/qlinear.inc.h"
