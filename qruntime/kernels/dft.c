#include "dft.h"

#include <math.h>

/// Whole steps of four first: they are the cheapest. A two that is left over, then odd factors.
bool qrt_dft_factorize(int64_t n, qrt_dft_plan *plan) {
    plan->n = n;
    plan->num_factors = 0;
    while (n % 4 == 0) {
        plan->factors[plan->num_factors++] = 4;
        n /= 4;
    }
    for (int32_t f = 2; f <= QRT_DFT_MAX_FACTOR && n > 1; f++)
        while (n % f == 0) {
            plan->factors[plan->num_factors++] = f;
            n /= f;
        }
    return n == 1;
}

void qrt_dft_roots(int64_t n, float *roots) {
    for (int64_t k = 0; k <= n / 2; k++) {
        // The angle within its quadrant, measured from the nearer end.
        int64_t quadrant = 4 * k / n, rest = 4 * k - quadrant * n;
        double near = M_PI_2 * (double)(2 * rest <= n ? rest : n - rest) / (double)n;
        double c = 2 * rest <= n ? cos(near) : sin(near), s = 2 * rest <= n ? sin(near) : cos(near);
        double re = quadrant == 0 ? c : quadrant == 1 ? -s : -c, im = quadrant == 0 ? s : quadrant == 1 ? c : -s;
        roots[2 * k] = (float)re;
        roots[2 * k + 1] = (float)-im;
        if (k && k < n - k) {
            roots[2 * (n - k)] = (float)re;
            roots[2 * (n - k) + 1] = (float)im;
        }
    }
}
