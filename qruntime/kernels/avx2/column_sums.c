/// Sums over columns in vectors of 32 bytes. Nothing is fused: the bits are those of every rung.
#include "../rungs.h"

#include "../vector/simd_avx2.h"

typedef double vec __attribute__((vector_size(32), may_alias));
enum { STEP = 4 };

#include "../vector/column_sums.inc.h"

void qrt_avx2_column_sums(qrt_kernel_table *t) { t->column_sums = (qrt_column_sums){accumulate}; }

#include "../vector/simd_end.h"
