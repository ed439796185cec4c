/// Sums over columns in vectors of 64 bytes. Nothing is fused: the bits are those of every rung.
#include "../rungs.h"

#include "../vector/simd_avx512.h"

typedef double vec __attribute__((vector_size(64), may_alias));
enum { STEP = 4 };

#include "../vector/column_sums.inc.h"

void qrt_avx512_column_sums(qrt_kernel_table *t) { t->column_sums = (qrt_column_sums){accumulate}; }

#include "../vector/simd_end.h"
