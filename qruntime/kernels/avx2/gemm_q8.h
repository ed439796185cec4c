#ifndef QRT_AVX2_GEMM_Q8_H
#define QRT_AVX2_GEMM_Q8_H

#include "../gemm_q8.h"

/// For K beyond QRT_Q8_MAX_K.
extern const qrt_gemm_q8 qrt_avx2_gemm_q8_widening;

#endif
