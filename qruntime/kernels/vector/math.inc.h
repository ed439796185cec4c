/// Vector float32 mathematics over the vocabulary of simd_*.h. Include it inside the target region.
///
/// Largest errors against float64, over dense samples (tests/kernels/test_pointwise.py holds them):
///
///     exp, log, expm1                              1.1 ulp
///     erf 1.3, sin and cos 1.6 (to |x| = 1e5), softplus 2.2, sigmoid 2.5 (of all floats), tanh 2.7, silu 3.2 ulp
///     gelu, gelu_tanh                              3.5 ulp + 3e-8: both are small where the result is small
///
/// Results below 2e-36 (sigmoid, silu, softplus, gelu far out on the left) may come out as 0. NaN gives NaN.
/// Coefficients are weighted minimax fits, rounded to float one after the other with the rest refitted.
#ifndef QRT_MATH_INC_H
#define QRT_MATH_INC_H

#include <math.h>

/// Added to |t| < 2^22 it leaves rint(t) in the low bits.
#define ROUND_TO_INT 12582912.0f

/// (eʳ − 1 − r) / r² for |r| ≤ ln2/2.
static inline vf exp_tail(vf r) {
    vf p = vf_set(0.00138209993f);
    p = vf_fma(p, r, vf_set(0.00836867094f));
    p = vf_fma(p, r, vf_set(0.0416682623f));
    p = vf_fma(p, r, vf_set(0.166665211f));
    return vf_fma(p, r, vf_set(0.49999994f));
}

/// 1 + r + r²·exp_tail(r).
static inline vf exp_of_remainder(vf r) {
    vf one = vf_set(1.0f);
    return vf_fma(vf_fma(exp_tail(r), r, one), r, one);
}

/// x − n·ln2, ln2 in two parts.
static inline vf exp_remainder(vf x, vf n) {
    return vf_fnma(n, vf_set(-1.90465421e-09f), vf_fnma(n, vf_set(0.693147182f), x));
}

/// eˣ, denormal results included; 0 at −inf, inf above 88.73.
static inline vf vf_exp(vf x) {
    x = vf_max(vf_set(-104.0f), vf_min(vf_set(89.0f), x));
    vf t = vf_fma(x, vf_set(1.44269502f), vf_set(ROUND_TO_INT));
    vf r = exp_remainder(x, vf_sub(t, vf_set(ROUND_TO_INT)));
    return vf_ldexp(exp_of_remainder(r), vi_sub(vf_as_vi(t), vf_as_vi(vf_set(ROUND_TO_INT))));
}

/// What adding it leaves in the low nine bits is rint(t) + 127, the exponent field of 2 to that power:
/// 0 stands for n = −127 and inf for n = 128.
#define ROUND_TO_EXPONENT (ROUND_TO_INT + 127.0f)

static inline vf power_of_two(vf rounded) { return vi_as_vf(vi_sll(vf_as_vi(rounded), 23)); }

/// eˣ; 0 below −87.68, inf above 88.37.
static inline vf vf_exp_flushed(vf x) {
    x = vf_max(vf_set(-88.0f), vf_min(vf_set(88.7f), x));
    vf t = vf_fma(x, vf_set(1.44269502f), vf_set(ROUND_TO_EXPONENT));
    vf r = exp_remainder(x, vf_sub(t, vf_set(ROUND_TO_EXPONENT)));
    return vf_mul(exp_of_remainder(r), power_of_two(t));
}

/// eˣ for x ≤ 0, exactly 0 below −87.68. Its relative error grows with |x| by 3e-9·|x|: for sums with e⁰.
static inline vf vf_exp_nonpositive(vf x) {
    x = vf_max(vf_set(-88.0f), x);
    vf t = vf_fma(x, vf_set(1.44269502f), vf_set(ROUND_TO_EXPONENT));
    vf r = vf_fnma(vf_sub(t, vf_set(ROUND_TO_EXPONENT)), vf_set(0.693147182f), x);
    return vf_mul(exp_of_remainder(r), power_of_two(t));
}

/// eˣ for x ≤ 0 to 2⁻¹⁷, exactly 0 below −87.68: for what becomes a code of 15 bits.
static inline vf vf_exp_coarse(vf x) {
    x = vf_max(vf_set(-88.0f), x);
    vf t = vf_fma(x, vf_set(1.44269502f), vf_set(ROUND_TO_EXPONENT));
    vf r = vf_fnma(vf_sub(t, vf_set(ROUND_TO_EXPONENT)), vf_set(0.693147182f), x);
    vf p = vf_fma(vf_fma(vf_set(0.041277654f), r, vf_set(0.16753533f)), r, vf_set(0.5000512f));
    return vf_mul(vf_fma(p, vf_mul(r, r), vf_add(vf_set(1.0f), r)), power_of_two(t));
}

/// eˣ − 1 for x ≤ 0, relative accuracy also near 0.
static inline vf vf_expm1_nonpositive(vf x) {
    x = vf_max(vf_set(-88.0f), x);
    vf t = vf_fma(x, vf_set(1.44269502f), vf_set(ROUND_TO_EXPONENT)), power = power_of_two(t);
    vf r = vf_fnma(vf_sub(t, vf_set(ROUND_TO_EXPONENT)), vf_set(0.693147182f), x);
    return vf_fma(vf_fma(vf_mul(r, r), exp_tail(r), r), power, vf_sub(power, vf_set(1.0f)));
}

/// p = n + r with |r| ≤ ½: returns 2ⁿ and leaves r.
static inline vf exp2_split(vf *p) {
    vf t = vf_add(*p, vf_set(ROUND_TO_EXPONENT));
    *p = vf_sub(*p, vf_sub(t, vf_set(ROUND_TO_EXPONENT)));
    return power_of_two(t);
}

/// (2ʳ − 1) / r
static inline vf exp2_slope(vf r) {
    vf q = vf_set(0.00132692745f);
    q = vf_fma(q, r, vf_set(0.00967130065f));
    q = vf_fma(q, r, vf_set(0.055507116f));
    q = vf_fma(q, r, vf_set(0.240222469f));
    return vf_fma(q, r, vf_set(0.693147004f));
}

/// 2ᵖ within 2e-7 for −127.5 < p < 128.5, most accurate near integers; 0 below −126.5, inf above 127.5.
static inline vf vf_exp2_in_range(vf p) {
    vf power = exp2_split(&p);
    return vf_mul(vf_fma(exp2_slope(p), p, vf_set(1.0f)), power);
}

/// 2ᵖ − 1 within 9e-7 of itself, also near 0, for −127.5 < p < 127.5.
static inline vf vf_exp2m1_in_range(vf p) {
    vf power = exp2_split(&p);
    return vf_fma(vf_mul(exp2_slope(p), p), power, vf_sub(power, vf_set(1.0f)));
}

/// ln x; −inf at 0, NaN below 0.
static inline vf vf_log(vf x) {
    vm tiny = vf_lt(x, vf_set(1.17549435e-38f));
    vi bits = vf_as_vi(vf_blend(tiny, vf_mul(x, vf_set(33554432.0f)), x));
    vi exponent = vi_sra(vi_sub(bits, vi_set(0x3f3504f3)), 23);  // mantissa in √½ … √2
    vf f = vf_sub(vi_as_vf(vi_sub(bits, vi_sll(exponent, 23))), vf_set(1.0f));
    vf e = vf_sub(vi_to_vf(exponent), vf_blend(tiny, vf_set(25.0f), vf_zero()));
    vf p = vf_set(0.0674955621f);
    p = vf_fma(p, f, vf_set(-0.116701923f));
    p = vf_fma(p, f, vf_set(0.118834704f));
    p = vf_fma(p, f, vf_set(-0.124062076f));
    p = vf_fma(p, f, vf_set(0.142203629f));
    p = vf_fma(p, f, vf_set(-0.166679904f));
    p = vf_fma(p, f, vf_set(0.200020716f));
    p = vf_fma(p, f, vf_set(-0.250000089f));
    p = vf_fma(p, f, vf_set(0.333333135f));
    vf square = vf_mul(f, f);
    vf y = vf_mul(vf_mul(square, f), p);
    y = vf_fma(e, vf_set(-2.12194442e-4f), y);  // ln2 = 0.693359375 − 2.12194442e-4: e · the first is exact
    y = vf_fnma(vf_set(0.5f), square, y);
    y = vf_fma(e, vf_set(0.693359375f), vf_add(f, y));
    y = vf_blend(vf_lt(x, vf_set(INFINITY)), y, x);  // inf and NaN
    y = vf_blend(vf_lt(x, vf_zero()), vf_set(NAN), y);
    return vf_blend(vf_eq(x, vf_zero()), vf_set(-INFINITY), y);
}

/// ln(1 + z) for 0 ≤ z ≤ 1: what rounding 1 + z loses is added back.
static inline vf vf_log1p_unit(vf z) {
    vf u = vf_add(vf_set(1.0f), z);
    return vf_add(vf_log(u), vf_div(vf_sub(z, vf_sub(u, vf_set(1.0f))), u));
}

static inline vf vf_tanh(vf x) {
    vf e = vf_expm1_nonpositive(vf_mul(vf_set(-2.0f), vf_abs(x)));
    return vf_with_sign(vf_abs(vf_div(e, vf_add(vf_set(2.0f), e))), x);
}

static inline vf vf_sigmoid(vf x) {
    vf one = vf_set(1.0f);
    return vf_div(one, vf_add(one, vf_exp_flushed(vf_neg(x))));
}

static inline vf vf_silu(vf x) { return vf_div(x, vf_add(vf_set(1.0f), vf_exp_flushed(vf_neg(x)))); }

/// ln(1 + eˣ).
static inline vf vf_softplus(vf x) {
    return vf_add(vf_max(vf_zero(), x), vf_log1p_unit(vf_exp(vf_neg(vf_abs(x)))));
}

static inline vf vf_erf(vf x) {
    vf a = vf_abs(x), t = vf_mul(x, x);
    vf p = vf_set(-0.000598021375f);  // erf(a)/a − 1 in a², a ≤ 0.93
    p = vf_fma(p, t, vf_set(0.00499176187f));
    p = vf_fma(p, t, vf_set(-0.0267662313f));
    p = vf_fma(p, t, vf_set(0.112818271f));
    p = vf_fma(p, t, vf_set(-0.376124978f));
    p = vf_fma(p, t, vf_set(0.128379151f));
    vf b = vf_min(vf_set(8.0f), a);
    vf q = vf_set(0.000195936998f);  // ln erfc(a), 0.92 ≤ a ≤ 4.05; beyond it erf is 1
    q = vf_fma(q, b, vf_set(-0.00304322294f));
    q = vf_fma(q, b, vf_set(0.0222269557f));
    q = vf_fma(q, b, vf_set(-0.103931673f));
    q = vf_fma(q, b, vf_set(-0.637182176f));
    q = vf_fma(q, b, vf_set(-1.12767565f));
    q = vf_fma(q, b, vf_set(-0.000195674249f));
    vf far = vf_sub(vf_set(1.0f), vf_exp_nonpositive(q));
    return vf_blend(vf_lt(a, vf_set(0.925f)), vf_fma(x, p, x), vf_with_sign(far, x));
}

#ifdef VF_LOOKUP_SIZE
/// Row d: the coefficients of r^(6−d) in a·Φ(−a), a = column / 2 + r and |r| ≤ ¼; least squares at Chebyshev's points,
/// within 6e-10. From 7¼ on it is exactly 0, as far from the truth as 2e-12.
static const float gelu_pieces[7][VF_LOOKUP_SIZE] = {
    {-0.009844702f, -0.0030294934f, 0.0059392266f, 0.00484527f, -4.0687202e-04f, -0.0019258828f,
     -7.8121026e-04f, 4.632644e-05f, 1.4707701e-04f, 6.1719904e-05f, 1.451808e-05f, 2.254867e-06f,
     2.4558483e-07f, 1.9335141e-08f, 1.1204446e-09f, 0},
    {2.2493128e-14f, -0.022111826f, -0.015995137f, 0.0025704305f, 0.008877004f, 0.004283005f,
     3.9600254e-05f, -8.362592e-04f, -4.3925582e-04f, -1.2538613e-04f, -2.3548437e-05f, -3.1054308e-06f,
     -2.967937e-07f, -2.0936545e-08f, -1.1030177e-09f, 0},
    {0.066486366f, 0.033922218f, -0.020159941f, -0.036088094f, -0.017998664f, -5.0306454e-04f, 0.004062746f,
     0.002484238f, 8.2533556e-04f, 1.8133759e-04f, 2.811176e-05f, 3.1710038e-06f, 2.6486154e-07f,
     1.6564325e-08f, 7.8152207e-10f, 0},
    {-7.3700077e-16f, 0.11000949f, 0.120981105f, 0.05666898f, 3.7927941e-06f, -0.016433245f, -0.011080856f,
     -0.0042001507f, -0.0010705775f, -1.9472926e-04f, -2.5994035e-05f, -2.5870088e-06f, -1.9386461e-07f,
     -1.1011993e-08f, -4.763708e-10f, 0},
    {-0.39894226f, -0.30805716f, -0.12098542f, 0.016189681f, 0.053990986f, 0.03724765f, 0.015511467f,
     0.0044724955f, 9.36811e-04f, 1.4585188e-04f, 1.7097425e-05f, 1.5212661e-06f, 1.03295676e-07f,
     5.37306e-09f, 2.1470742e-10f, 0},
    {0.5f, 0.13250495f, -0.08331544f, -0.12746923f, -0.08523183f, -0.037611082f, -0.011945638f,
     -0.0028217575f, -5.0365017e-04f, -6.852973e-05f, -7.1471304e-06f, -5.733822e-07f, -3.547313e-08f,
     -1.6954441e-09f, -6.2688396e-11f, 0},
    {0, 0.15426877f, 0.15865526f, 0.1002108f, 0.045500264f, 0.015524163f, 0.004049694f, 8.142018e-04f,
     1.2668497e-04f, 1.5289528e-05f, 1.4332576e-06f, 1.0444252e-07f, 5.9195147e-09f, 2.610389e-10f,
     8.958606e-12f, 0},
};

/// x·Φ(x) = max(x, 0) − |x|·Φ(−|x|): pieces take a third of the multiplications of one polynomial.
static inline vf vf_gelu(vf x) {
    const float round_to_half = 6291456.0f;  // added to a it leaves the column in the lowest bits
    vf a = vf_min(vf_set(7.5f), vf_abs(x));
    vf rounded = vf_add(a, vf_set(round_to_half)), r = vf_sub(a, vf_sub(rounded, vf_set(round_to_half)));
    vi column = vf_as_vi(rounded);
    vf p = vf_lookup(gelu_pieces[0], column);
#pragma GCC unroll 6
    for (int d = 1; d < 7; d++) p = vf_fma(p, r, vf_lookup(gelu_pieces[d], column));
    return vf_sub(vf_max(vf_zero(), x), p);
}
#else
/// x·Φ(x) = max(x, 0) − |x|·Φ(−|x|), and Φ(−a) = 2 to a polynomial: one path, and small where gelu is small.
static inline vf vf_gelu(vf x) {
    vf a = vf_min(vf_set(11.167f), vf_abs(x));  // the polynomial is −127 there, hence Φ exactly 0
    vf p = vf_set(-2.81929591e-08f);               // log2 Φ(−a), fitted on 0 … 5.5
    p = vf_fma(p, a, vf_set(8.31214322e-07f));
    p = vf_fma(p, a, vf_set(-1.05548761e-05f));
    p = vf_fma(p, a, vf_set(7.34023779e-05f));
    p = vf_fma(p, a, vf_set(-0.000267026364f));
    p = vf_fma(p, a, vf_set(-3.02146818e-05f));
    p = vf_fma(p, a, vf_set(0.00698797731f));
    p = vf_fma(p, a, vf_set(-0.0524711013f));
    p = vf_fma(p, a, vf_set(-0.459210783f));
    p = vf_fma(p, a, vf_set(-1.15110528f));
    p = vf_fma(p, a, vf_set(-1.0f));
    return vf_fnma(a, vf_exp2_in_range(p), vf_max(vf_zero(), x));
}
#endif

/// x·sigmoid(2u), u = √(2/π)·(x + 0.044715·x³): the tanh form of gelu without its cancellation.
static inline vf vf_gelu_tanh(vf x) {
    vf p = vf_mul(x, vf_fma(vf_mul(x, x), vf_set(-0.102943243f), vf_set(-2.30220819f)));  // −2u·log2 e
    p = vf_max(vf_set(-127.0f), vf_min(vf_set(128.0f), p));
    return vf_div(vf_max(vf_set(-3e38f), x), vf_add(vf_set(1.0f), vf_exp2_in_range(p)));
}

/// Beyond this, or for Inf and NaN, lanes go to libm.
#define TRIG_LIMIT 1e5f

/// sin(x + quadrant·π/2) for |x| ≤ TRIG_LIMIT.
static inline vf trig(vf x, int quadrant) {
    vf n = vf_round(vf_mul(x, vf_set(0.636619747f)));
    vf r = vf_fnma(n, vf_set(1.57079637f), x);  // π/2 in three parts; the first step is exact
    r = vf_fnma(n, vf_set(-4.37113883e-08f), r);
    r = vf_fnma(n, vf_set(-1.71512451e-15f), r);
    vf t = vf_mul(r, r);
    vi q = vi_add(vf_to_vi(n), vi_set(quadrant));
    vf s = vf_set(-0.000195179091f);
    s = vf_fma(s, t, vf_set(0.00833218731f));
    s = vf_fma(s, t, vf_set(-0.166666552f));
    s = vf_fma(vf_mul(s, t), r, r);
    vf c = vf_set(2.44323364e-05f);
    c = vf_fma(c, t, vf_set(-0.00138873095f));
    c = vf_fma(c, t, vf_set(0.0416666456f));
    c = vf_fma(vf_mul(t, t), c, vf_fnma(vf_set(0.5f), t, vf_set(1.0f)));
    vf y = vf_blend(vi_eq(vi_and(q, vi_set(1)), vi_set(0)), s, c);
    return vf_xor(y, vi_as_vf(vi_sll(vi_and(q, vi_set(2)), 30)));
}

static inline vf trig_or_libm(vf x, int quadrant, float (*libm)(float)) {
    vm near = vf_lt(vf_abs(x), vf_set(TRIG_LIMIT));
    if (vm_bits(near) == (1u << VL) - 1) return trig(x, quadrant);
    float lanes[VL];
    vf_store(lanes, x);
    for (int i = 0; i < VL; i++) lanes[i] = libm(lanes[i]);
    return vf_blend(near, trig(vf_blend(near, x, vf_zero()), quadrant), vf_load(lanes));
}
static inline vf vf_sin(vf x) { return trig_or_libm(x, 0, sinf); }
static inline vf vf_cos(vf x) { return trig_or_libm(x, 1, cosf); }

/// The larger or smaller, NaN when either is NaN.
static inline vf vf_max_nan(vf a, vf b) { return vf_blend(vf_is_nan(a), a, vf_max(a, b)); }
static inline vf vf_min_nan(vf a, vf b) { return vf_blend(vf_is_nan(a), a, vf_min(a, b)); }

#endif
