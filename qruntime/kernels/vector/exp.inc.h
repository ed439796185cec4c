/// Exponential and its relatives. The polynomials are weighted minimax fits; errors measured over all
/// floats of the range: exp 1 ulp (subnormal results included), tanh and erf 2 ulp.
#ifndef QRT_EXP_INC_H
#define QRT_EXP_INC_H

/// NaN stays NaN.
QRT_INLINE vf vf_exp(vf x) {
    x = vf_max(vf_set1(-104.0f), vf_min(vf_set1(89.0f), x));
    vf n = vf_round(vf_mul(x, vf_set1(1.44269504f)));
    // ln 2 in two parts, the first with few enough bits that n times it is exact.
    vf r = vf_fnma(n, vf_set1(0.693145752f), x);
    r = vf_fnma(n, vf_set1(1.42860677e-6f), r);
    vf p = vf_fma(vf_set1(0.00138145965f), r, vf_set1(0.00836871751f));
    p = vf_fma(p, r, vf_set1(0.041668389f));
    p = vf_fma(p, r, vf_set1(0.166665211f));
    p = vf_fma(p, r, vf_set1(0.49999994f));
    return vf_scale(vf_add(vf_fma(vf_mul(r, r), p, r), vf_set1(1.0f)), n);
}

QRT_INLINE vf vf_tanh(vf x) {
    vf a = vf_abs(x), t = vf_mul(x, x);
    vf p = vf_fma(vf_set1(-0.00571703678f), t, vf_set1(0.0206505787f));
    p = vf_fma(p, t, vf_set1(-0.0537434965f));
    p = vf_fma(p, t, vf_set1(0.133314908f));
    p = vf_fma(p, t, vf_set1(-0.333332837f));
    vf small = vf_fma(vf_mul(x, t), p, x);
    vf one = vf_set1(1.0f);
    vf large = vf_sub(one, vf_div(vf_set1(2.0f), vf_add(vf_exp(vf_add(a, a)), one)));
    return vf_select(vf_less(a, vf_set1(0.625f)), small, vf_copysign(large, x));
}

QRT_INLINE vf vf_erf(vf x) {
    vf a = vf_min(vf_set1(4.0f), vf_abs(x)), t = vf_mul(x, x);
    vf p = vf_fma(vf_set1(7.88911639e-5f), t, vf_set1(-0.000802083989f));
    p = vf_fma(p, t, vf_set1(0.00518953521f));
    p = vf_fma(p, t, vf_set1(-0.0268544443f));
    p = vf_fma(p, t, vf_set1(0.112836003f));
    p = vf_fma(p, t, vf_set1(-0.37612626f));
    p = vf_fma(p, t, vf_set1(0.128379166f));
    vf small = vf_fma(x, p, x);
    // log erfc(a)
    vf q = vf_fma(vf_set1(0.000186380086f), a, vf_set1(-0.00294766668f));
    q = vf_fma(q, a, vf_set1(0.0218380961f));
    q = vf_fma(q, a, vf_set1(-0.103106819f));
    q = vf_fma(q, a, vf_set1(-0.638144732f));
    q = vf_fma(q, a, vf_set1(-1.12708926f));
    q = vf_fma(q, a, vf_set1(-0.000341512583f));
    vf large = vf_copysign(vf_sub(vf_set1(1.0f), vf_exp(q)), x);
    return vf_select(vf_less(vf_set1(1.0f), a), large, small);
}

QRT_INLINE vf vf_sigmoid(vf x) {
    vf one = vf_set1(1.0f);
    return vf_div(one, vf_add(one, vf_exp(vf_sub(vf_zero(), x))));
}

#endif
