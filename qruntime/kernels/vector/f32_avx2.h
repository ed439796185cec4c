/// Float vectors of AVX2 + FMA, for the templates *.inc.h. Include inside a target region.
#ifndef QRT_F32_AVX2_H
#define QRT_F32_AVX2_H

enum { VL = 8 };
typedef __m256 vf;
typedef __m256i vmask;  ///< all ones in the lanes meant

#define QRT_INLINE static inline __attribute__((always_inline, unused))

QRT_INLINE vf vf_zero(void) { return _mm256_setzero_ps(); }
QRT_INLINE vf vf_set1(float x) { return _mm256_set1_ps(x); }
QRT_INLINE vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
QRT_INLINE void vf_store(float *p, vf v) { _mm256_storeu_ps(p, v); }

/// The first n lanes; all of them when n ≥ VL, none when n ≤ 0.
QRT_INLINE vmask vf_first(int64_t n) {
    int count = n < 0 ? 0 : n > VL ? VL : (int)n;
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
/// Lanes outside the mask are zero and not read.
QRT_INLINE vf vf_load_lanes(const float *p, vmask m) { return _mm256_maskload_ps(p, m); }
QRT_INLINE void vf_store_lanes(float *p, vmask m, vf v) { _mm256_maskstore_ps(p, m, v); }
/// m ? a : b
QRT_INLINE vf vf_select(vmask m, vf a, vf b) { return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(m)); }
QRT_INLINE vmask vf_less(vf a, vf b) { return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_LT_OQ)); }

QRT_INLINE vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
QRT_INLINE vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
QRT_INLINE vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
QRT_INLINE vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
QRT_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
QRT_INLINE vf vf_fnma(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a, b, c); }
/// b when either is NaN.
QRT_INLINE vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
QRT_INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
QRT_INLINE vf vf_round(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
QRT_INLINE vf vf_abs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
/// |a| with the sign of b.
QRT_INLINE vf vf_copysign(vf a, vf b) {
    vf sign = _mm256_set1_ps(-0.0f);
    return _mm256_or_ps(_mm256_andnot_ps(sign, a), _mm256_and_ps(sign, b));
}
/// a · 2^n for integral n in −252 … 254: in two steps, so that neither factor leaves the normal range.
QRT_INLINE vf vf_scale(vf a, vf n) {
    __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1), bias = _mm256_set1_epi32(127);
    __m256i rest = _mm256_sub_epi32(whole, half);
    a = _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23)));
    return _mm256_mul_ps(a, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23)));
}

/// Lanes l and l + 4, then l and l + 2, then the last two.
QRT_INLINE float vf_sum(vf v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
/// The largest lane; not meant for NaN.
QRT_INLINE float vf_largest(vf v) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

#endif
