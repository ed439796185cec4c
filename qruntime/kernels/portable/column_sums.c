/// Sums over columns in vectors of 16 bytes, which every compiler makes of what a machine has.
#include "../rungs.h"

typedef double vec __attribute__((vector_size(16), may_alias));
enum { STEP = 2 };

#include "../vector/column_sums.inc.h"

void qrt_portable_column_sums(qrt_kernel_table *t) { t->column_sums = (qrt_column_sums){accumulate}; }
