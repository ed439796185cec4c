#include "../code_grid.h"

#include "../rungs.h"
#include "../vector/simd_avx512.h"
#include "../vector/code_grid.inc.h"
#include "../vector/simd_end.h"

void qrt_avx512_code_grid(qrt_kernel_table *t) { t->code_grid = (qrt_code_grids){round_to_grid}; }
