#include <string.h>

#include "../kernels.h"
#include "../rungs.h"
#define RUNG portable
#include "../vector/outlier_pairs.inc.h"
