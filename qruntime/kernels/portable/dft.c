/// The definition of Fourier transforms: vectors that every compiler makes of what a machine has, and single numbers.
#include "../dft.h"

#include "../rungs.h"

typedef float lanes_vec __attribute__((vector_size(sizeof(float) * QRT_DFT_LANES), may_alias));
typedef float single_vec __attribute__((may_alias));

#define vec lanes_vec
#define PREFIX lanes_
#include "../vector/dft.inc.h"
#undef vec
#undef PREFIX

#define vec single_vec
#define PREFIX single_
#include "../vector/dft.inc.h"

void qrt_portable_dft(qrt_kernel_table *t) { t->dft = (qrt_dft){lanes_transform, single_transform}; }
