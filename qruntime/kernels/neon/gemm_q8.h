#ifndef QRT_NEON_GEMM_Q8_H
#define QRT_NEON_GEMM_Q8_H

#include "../gemm_q8.h"

/// For any K.
extern const qrt_gemm_q8 qrt_neon_gemm_q8_widening;

#endif
