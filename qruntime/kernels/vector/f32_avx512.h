/// Float vectors of AVX-512, for the templates *.inc.h. Include inside a target region.
#ifndef QRT_F32_AVX512_H
#define QRT_F32_AVX512_H

enum { VL = 16 };
typedef __m512 vf;
typedef __mmask16 vmask;  ///< ones in the lanes meant

#define QRT_INLINE static inline __attribute__((always_inline, unused))

QRT_INLINE vf vf_zero(void) { return _mm512_setzero_ps(); }
QRT_INLINE vf vf_set1(float x) { return _mm512_set1_ps(x); }
QRT_INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
QRT_INLINE void vf_store(float *p, vf v) { _mm512_storeu_ps(p, v); }

/// The first n lanes; all of them when n ≥ VL, none when n ≤ 0.
QRT_INLINE vmask vf_first(int64_t n) { return n <= 0 ? 0 : n >= VL ? 0xffff : (vmask)((1u << n) - 1); }
/// Lanes outside the mask are zero and not read.
QRT_INLINE vf vf_load_lanes(const float *p, vmask m) { return _mm512_maskz_loadu_ps(m, p); }
QRT_INLINE void vf_store_lanes(float *p, vmask m, vf v) { _mm512_mask_storeu_ps(p, m, v); }
/// m ? a : b
QRT_INLINE vf vf_select(vmask m, vf a, vf b) { return _mm512_mask_blend_ps(m, b, a); }
QRT_INLINE vmask vf_less(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }

QRT_INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
QRT_INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
QRT_INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
QRT_INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
QRT_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
QRT_INLINE vf vf_fnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); }
/// b when either is NaN.
QRT_INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
QRT_INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
QRT_INLINE vf vf_round(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
QRT_INLINE vf vf_abs(vf a) { return _mm512_andnot_ps(_mm512_set1_ps(-0.0f), a); }
/// |a| with the sign of b.
QRT_INLINE vf vf_copysign(vf a, vf b) {
    vf sign = _mm512_set1_ps(-0.0f);
    return _mm512_or_ps(_mm512_andnot_ps(sign, a), _mm512_and_ps(sign, b));
}
/// a · 2^n for integral n.
QRT_INLINE vf vf_scale(vf a, vf n) { return _mm512_scalef_ps(a, n); }

/// Lanes l and l + 8, then l and l + 4, then l and l + 2, then the last two.
QRT_INLINE float vf_sum(vf v) {
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
/// The largest lane; not meant for NaN.
QRT_INLINE float vf_largest(vf v) {
    __m256 h = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

#endif
