/// Fourier transforms. Before it: `vec`, float or a vector of floats, and PREFIX for the names of functions.
///
/// A step of radix r takes n / s = r · m points at the distance s: of p < m and q < s the r points x[q + s·(p + m·j)] become
/// y[q + s·(r·p + k)] = w^(pk) · Σ_j x_j · v^(jk), with w the root of r · m and v that of r.

#define DFT_JOIN_(a, b) a##b
#define DFT_JOIN(a, b) DFT_JOIN_(a, b)
#define NAMED(name) DFT_JOIN(PREFIX, name)
#define ALWAYS_INLINE static inline __attribute__((always_inline))

typedef struct {
    vec re, im;
} NAMED(point);
#define point NAMED(point)

ALWAYS_INLINE point NAMED(plus)(point a, point b) { return (point){a.re + b.re, a.im + b.im}; }
ALWAYS_INLINE point NAMED(minus)(point a, point b) { return (point){a.re - b.re, a.im - b.im}; }
/// a − i · b
ALWAYS_INLINE point NAMED(turned)(point a, point b) { return (point){a.re + b.im, a.im - b.re}; }
/// a + i · b
ALWAYS_INLINE point NAMED(turned_back)(point a, point b) { return (point){a.re - b.im, a.im + b.re}; }
ALWAYS_INLINE point NAMED(times)(point a, float c) { return (point){a.re * c, a.im * c}; }
ALWAYS_INLINE point NAMED(by_root)(point a, const float *w) {
    return (point){a.re * w[0] - a.im * w[1], a.re * w[1] + a.im * w[0]};
}

ALWAYS_INLINE void NAMED(of_2)(const point *a, point *y) {
    y[0] = NAMED(plus)(a[0], a[1]);
    y[1] = NAMED(minus)(a[0], a[1]);
}

ALWAYS_INLINE void NAMED(of_3)(const point *a, point *y) {
    point sum = NAMED(plus)(a[1], a[2]), side = NAMED(times)(NAMED(minus)(a[1], a[2]), 0.866025403784438647f);
    point middle = NAMED(minus)(a[0], NAMED(times)(sum, 0.5f));
    y[0] = NAMED(plus)(a[0], sum);
    y[1] = NAMED(turned)(middle, side);
    y[2] = NAMED(turned_back)(middle, side);
}

ALWAYS_INLINE void NAMED(of_4)(const point *a, point *y) {
    point even = NAMED(plus)(a[0], a[2]), odd = NAMED(minus)(a[0], a[2]);
    point sum = NAMED(plus)(a[1], a[3]), side = NAMED(minus)(a[1], a[3]);
    y[0] = NAMED(plus)(even, sum);
    y[1] = NAMED(turned)(odd, side);
    y[2] = NAMED(minus)(even, sum);
    y[3] = NAMED(turned_back)(odd, side);
}

ALWAYS_INLINE void NAMED(of_5)(const point *a, point *y) {
    const float c1 = 0.309016994374947424f, c2 = -0.809016994374947424f, s1 = 0.951056516295153572f, s2 = 0.587785252292473129f;
    point near = NAMED(plus)(a[1], a[4]), far = NAMED(plus)(a[2], a[3]);
    point near_side = NAMED(minus)(a[1], a[4]), far_side = NAMED(minus)(a[2], a[3]);
    point m1 = NAMED(plus)(a[0], NAMED(plus)(NAMED(times)(near, c1), NAMED(times)(far, c2)));
    point m2 = NAMED(plus)(a[0], NAMED(plus)(NAMED(times)(near, c2), NAMED(times)(far, c1)));
    point t1 = NAMED(plus)(NAMED(times)(near_side, s1), NAMED(times)(far_side, s2));
    point t2 = NAMED(minus)(NAMED(times)(near_side, s2), NAMED(times)(far_side, s1));
    y[0] = NAMED(plus)(a[0], NAMED(plus)(near, far));
    y[1] = NAMED(turned)(m1, t1);
    y[2] = NAMED(turned)(m2, t2);
    y[3] = NAMED(turned_back)(m2, t2);
    y[4] = NAMED(turned_back)(m1, t1);
}

/// `radix` is a constant at every call but that for other factors.
ALWAYS_INLINE void NAMED(step)(const qrt_dft_plan *plan, const int radix, int64_t m, int64_t s, const point *x, point *y) {
    const float *roots = plan->roots;
    const int64_t turn = plan->n / radix;
    for (int64_t p = 0; p < m; p++)
        for (int64_t q = 0; q < s; q++) {
            point a[QRT_DFT_MAX_FACTOR], sums[QRT_DFT_MAX_FACTOR];
            for (int j = 0; j < radix; j++) a[j] = x[q + s * (p + m * j)];
            if (radix == 2) NAMED(of_2)(a, sums);
            else if (radix == 3) NAMED(of_3)(a, sums);
            else if (radix == 4) NAMED(of_4)(a, sums);
            else if (radix == 5) NAMED(of_5)(a, sums);
            else
                for (int k = 0; k < radix; k++) {
                    sums[k] = a[0];
                    for (int j = 1; j < radix; j++)
                        sums[k] = NAMED(plus)(sums[k], NAMED(by_root)(a[j], roots + 2 * turn * (j * k % radix)));
                }
            point *to = y + q + s * radix * p;
            to[0] = sums[0];
            for (int k = 1; k < radix; k++) to[s * k] = p ? NAMED(by_root)(sums[k], roots + 2 * s * p * k) : sums[k];
        }
}

static float *NAMED(transform)(const qrt_dft_plan *plan, float *x, float *work) {
    point *from = (point *)x, *to = (point *)work;
    int64_t left = plan->n, s = 1;
    for (int i = 0; i < plan->num_factors; i++) {
        const int radix = plan->factors[i];
        const int64_t m = left / radix;
        if (radix == 2) NAMED(step)(plan, 2, m, s, from, to);
        else if (radix == 3) NAMED(step)(plan, 3, m, s, from, to);
        else if (radix == 4) NAMED(step)(plan, 4, m, s, from, to);
        else if (radix == 5) NAMED(step)(plan, 5, m, s, from, to);
        else NAMED(step)(plan, radix, m, s, from, to);
        point *swapped = from;
        from = to;
        to = swapped;
        left = m;
        s *= radix;
    }
    return (float *)from;
}

#undef point
#undef NAMED
#undef DFT_JOIN
#undef DFT_JOIN_
#undef ALWAYS_INLINE
