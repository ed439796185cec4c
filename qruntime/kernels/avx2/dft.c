/// Fourier transforms of several signals. Nothing is fused: the bits are those of every rung.
#include "../dft.h"

#include "../rungs.h"

#include "../vector/simd_avx2.h"

typedef float lanes_vec __attribute__((vector_size(sizeof(float) * QRT_DFT_LANES), may_alias));

#define vec lanes_vec
#define PREFIX lanes_
#include "../vector/dft.inc.h"

void qrt_avx2_dft(qrt_kernel_table *t) { t->dft.lanes = lanes_transform; }

#include "../vector/simd_end.h"
