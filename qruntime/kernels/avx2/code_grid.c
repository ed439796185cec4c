#include "../code_grid.h"

#include "../rungs.h"
#include "../vector/simd_avx2.h"
#include "../vector/code_grid.inc.h"
#include "../vector/simd_end.h"

void qrt_avx2_code_grid(qrt_kernel_table *t) { t->code_grid = (qrt_code_grids){round_to_grid}; }
