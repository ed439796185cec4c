#include "../code_grid.h"

#include "../rungs.h"
#include "../vector/code_grid.inc.h"

void qrt_portable_code_grid(qrt_kernel_table *t) { t->code_grid = (qrt_code_grids){round_to_grid}; }
