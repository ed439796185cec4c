/// Discrete Fourier transforms of float32 signals of any length, several side by side.
///
///     X[k] = Σ_j x[j] · e^(−2πi·jk/n)
///
/// Stockham's algorithm over the factors of n. Every product and sum is rounded by itself and a signal meets the same
/// operations in every lane, so that its transform is the same bits alone, in a batch and on every rung. Within
/// ε · Σ_f (f + 4) · Σ_j |x[j]| over the factors f of n.
#ifndef QRT_DFT_H
#define QRT_DFT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/// Signals side by side, and the greatest factor that is transformed by its definition.
enum { QRT_DFT_LANES = 16, QRT_DFT_MAX_FACTOR = 61, QRT_DFT_MAX_FACTORS = 40 };

typedef struct {
    int64_t n;
    int num_factors;
    int32_t factors[QRT_DFT_MAX_FACTORS];
    const float *roots;  ///< [n][2], e^(−2πi·k/n)
} qrt_dft_plan;

/// x, work: [n][2][lanes], real and imaginary parts, aligned to 64 bytes. Both are overwritten; the result is the one returned.
typedef float *(*qrt_dft_fn)(const qrt_dft_plan *plan, float *x, float *work);

typedef struct qrt_dft {
    qrt_dft_fn lanes;   ///< QRT_DFT_LANES signals
    qrt_dft_fn single;  ///< one, the same bits
} qrt_dft;

/// Factors of n ≥ 1 into `plan`; false when one is greater than QRT_DFT_MAX_FACTOR.
bool qrt_dft_factorize(int64_t n, qrt_dft_plan *plan);

/// roots[k] = e^(−2πi·k/n) for k < n, each part the nearest float to what libm gives in double.
void qrt_dft_roots(int64_t n, float *roots);

#endif
