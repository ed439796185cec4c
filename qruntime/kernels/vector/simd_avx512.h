/// SIMD vocabulary, AVX-512 F/BW/DQ/VL: see simd_avx2.h for the meanings. simd_end.h closes the region.
#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif

#define VL 16
typedef __m512 vf;
typedef __m512i vi;
typedef __mmask16 vm;

static inline vf vf_set(float x) { return _mm512_set1_ps(x); }
static inline vf vf_zero(void) { return _mm512_setzero_ps(); }
static inline vi vi_set(int32_t x) { return _mm512_set1_epi32(x); }

static inline vm vm_first(int64_t n) { return (vm)((1u << n) - 1); }

static inline vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
static inline vf vf_load_n(const float *p, int64_t n) { return _mm512_maskz_loadu_ps(vm_first(n), p); }
static inline void vf_store(float *p, vf v) { _mm512_storeu_ps(p, v); }
static inline void vf_store_n(float *p, vf v, int64_t n) { _mm512_mask_storeu_ps(p, vm_first(n), v); }
static inline vi vi_load(const int32_t *p) { return _mm512_loadu_si512(p); }
static inline vi vi_load_n(const int32_t *p, int64_t n) { return _mm512_maskz_loadu_epi32(vm_first(n), p); }
static inline void vi_store(int32_t *p, vi v) { _mm512_storeu_si512(p, v); }
static inline void vi_store_n(int32_t *p, vi v, int64_t n) { _mm512_mask_storeu_epi32(p, vm_first(n), v); }

static inline vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
static inline vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
static inline vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
static inline vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
static inline vf vf_fnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); }
static inline vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
static inline vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
static inline vf vf_sqrt(vf a) { return _mm512_sqrt_ps(a); }
static inline vf vf_round(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline vf vf_floor(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
static inline vf vf_ceil(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC); }

static inline vf vf_and(vf a, vf b) { return _mm512_and_ps(a, b); }
static inline vf vf_or(vf a, vf b) { return _mm512_or_ps(a, b); }
static inline vf vf_xor(vf a, vf b) { return _mm512_xor_ps(a, b); }
static inline vf vf_abs(vf a) { return _mm512_andnot_ps(vf_set(-0.0f), a); }
static inline vf vf_neg(vf a) { return _mm512_xor_ps(a, vf_set(-0.0f)); }
static inline vf vf_with_sign(vf a, vf s) { return _mm512_or_ps(a, _mm512_and_ps(s, vf_set(-0.0f))); }

static inline vm vf_lt(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
static inline vm vf_le(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
static inline vm vf_eq(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
static inline vm vf_ne(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ); }
static inline vm vf_is_nan(vf a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
static inline vf vf_blend(vm m, vf a, vf b) { return _mm512_mask_blend_ps(m, b, a); }
static inline vm vm_and(vm a, vm b) { return (vm)(a & b); }
static inline vm vm_or(vm a, vm b) { return (vm)(a | b); }
static inline uint32_t vm_bits(vm m) { return m; }

static inline vi vf_as_vi(vf a) { return _mm512_castps_si512(a); }
static inline vf vi_as_vf(vi a) { return _mm512_castsi512_ps(a); }
static inline vi vf_to_vi(vf a) { return _mm512_cvtps_epi32(a); }
static inline vf vi_to_vf(vi a) { return _mm512_cvtepi32_ps(a); }
static inline vi vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
static inline vi vi_sub(vi a, vi b) { return _mm512_sub_epi32(a, b); }
static inline vi vi_and(vi a, vi b) { return _mm512_and_si512(a, b); }
static inline vi vi_xor(vi a, vi b) { return _mm512_xor_si512(a, b); }
#define vi_sll(a, bits) _mm512_slli_epi32(a, bits)
#define vi_srl(a, bits) _mm512_srli_epi32(a, bits)
#define vi_sra(a, bits) _mm512_srai_epi32(a, bits)
static inline vm vi_eq(vi a, vi b) { return _mm512_cmpeq_epi32_mask(a, b); }

typedef __m512d vd;
static inline __mmask8 vd_first(int64_t n) { return (__mmask8)((1u << n) - 1); }
static inline vd vd_set(double x) { return _mm512_set1_pd(x); }
static inline vd vd_zero(void) { return _mm512_setzero_pd(); }
static inline vd vd_load(const double *p) { return _mm512_loadu_pd(p); }
static inline vd vd_load_n(const double *p, int64_t n) { return _mm512_maskz_loadu_pd(vd_first(n), p); }
static inline void vd_store(double *p, vd v) { _mm512_storeu_pd(p, v); }
static inline void vd_store_n(double *p, vd v, int64_t n) { _mm512_mask_storeu_pd(p, vd_first(n), v); }
static inline vd vd_fma(vd a, vd b, vd c) { return _mm512_fmadd_pd(a, b, c); }

static inline __m256 vf_low(vf v) { return _mm512_castps512_ps256(v); }
static inline __m256 vf_high(vf v) { return _mm512_extractf32x8_ps(v, 1); }
static inline vf vf_divided_difference(vf a, vf b, double divisor) {
    const vd by = vd_set(divisor);
    const vd low = _mm512_div_pd(_mm512_sub_pd(_mm512_cvtps_pd(vf_low(a)), _mm512_cvtps_pd(vf_low(b))), by);
    const vd high = _mm512_div_pd(_mm512_sub_pd(_mm512_cvtps_pd(vf_high(a)), _mm512_cvtps_pd(vf_high(b))), by);
    return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(low)), _mm512_cvtpd_ps(high), 1);
}
static inline float vf_sum(vf v) {
    __m256 w = _mm256_add_ps(vf_low(v), vf_high(v));
    __m128 h = _mm_add_ps(_mm256_castps256_ps128(w), _mm256_extractf128_ps(w, 1));
    h = _mm_add_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)));
}
static inline float vf_hmax(vf v) {
    __m256 w = _mm256_max_ps(vf_low(v), vf_high(v));
    __m128 h = _mm_max_ps(_mm256_castps256_ps128(w), _mm256_extractf128_ps(w, 1));
    h = _mm_max_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)));
}
static inline float vf_hmin(vf v) {
    __m256 w = _mm256_min_ps(vf_low(v), vf_high(v));
    __m128 h = _mm_min_ps(_mm256_castps256_ps128(w), _mm256_extractf128_ps(w, 1));
    h = _mm_min_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_min_ss(h, _mm_movehdup_ps(h)));
}

static inline vf vf_ldexp(vf s, vi n) { return _mm512_scalef_ps(s, _mm512_cvtepi32_ps(n)); }

static inline void vm_store_bytes(uint8_t *p, vm m) { _mm_storeu_si128((__m128i *)p, _mm_maskz_set1_epi8(m, 1)); }

static inline vm vm_load_bytes(const uint8_t *p) {
    __m128i bytes = _mm_loadu_si128((const __m128i *)p);
    return _mm_test_epi8_mask(bytes, bytes);
}
static inline vm vm_load_bytes_n(const uint8_t *p, int64_t n) {
    __m128i bytes = _mm_maskz_loadu_epi8(vm_first(n), p);
    return _mm_test_epi8_mask(bytes, bytes);
}

static inline void vf_transpose4(const float *p, int64_t stride, vf *columns) {
    vf r[4];
    __asm__("" : "+r"(stride));  // else compilers keep a pointer to every row across a loop, most of them in memory
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_castps128_ps512(_mm_loadu_ps(p + i * stride));
        r[i] = _mm512_insertf32x4(r[i], _mm_loadu_ps(p + (4 + i) * stride), 1);
        r[i] = _mm512_insertf32x4(r[i], _mm_loadu_ps(p + (8 + i) * stride), 2);
        r[i] = _mm512_insertf32x4(r[i], _mm_loadu_ps(p + (12 + i) * stride), 3);
    }
    __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(r[0], r[1])), low23 = _mm512_castps_pd(_mm512_unpacklo_ps(r[2], r[3]));
    __m512d high01 = _mm512_castps_pd(_mm512_unpackhi_ps(r[0], r[1])), high23 = _mm512_castps_pd(_mm512_unpackhi_ps(r[2], r[3]));
    columns[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(low01, low23));
    columns[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low01, low23));
    columns[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high01, high23));
    columns[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high01, high23));
}

static inline vf vf_load_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
static inline void vf_store_f16(uint16_t *p, vf v) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

static inline vm vf_unordered(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q); }
static inline vi vi_mul(vi a, vi b) { return _mm512_mullo_epi32(a, b); }
static inline vi vi_max(vi a, vi b) { return _mm512_max_epi32(a, b); }
static inline vi vi_max_unsigned(vi a, vi b) { return _mm512_max_epu32(a, b); }
static inline void vi_hmax4(const vi *v, float *greatest) {
    vi low = _mm512_max_epi32(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
    vi high = _mm512_max_epi32(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
    vi w = _mm512_max_epi32(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));
    __m256i h = _mm256_max_epi32(_mm512_castsi512_si256(w), _mm512_extracti64x4_epi64(w, 1));
    __m128i q = _mm_max_epi32(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
    _mm_storeu_ps(greatest, _mm_castsi128_ps(q));
}
static inline void vi_store_i16(int16_t *p, vi v) { _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(v)); }
/// Not every vocabulary has it: both, one behind the other, of numbers that fit.
#define VI_STORE_I16_TWICE
static inline void vi_store_i16_twice(int16_t *p, vi a, vi b) {
    const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    _mm512_storeu_si512(p, _mm512_permutexvar_epi64(order, _mm512_packs_epi32(a, b)));
}
static inline vi vi_load_i16(const int16_t *p) { return _mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)p)); }
static inline vi vi_hold(vi v) {
    __asm__("" : "+v"(v));
    return v;
}
static inline vi vi_table16(const uint8_t *table) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)table));
}
static inline vi vi_lookup16(vi table, vi indices) { return _mm512_shuffle_epi8(table, indices); }

/// Not every vocabulary has it: table[index modulo 16].
#define VF_LOOKUP_SIZE 16
static inline vf vf_lookup(const float *table, vi index) { return _mm512_permutexvar_ps(index, _mm512_loadu_ps(table)); }

static inline vf vf_pick(const float *source, vi lanes) { return vf_lookup(source, lanes); }
static inline vi vi_load_bytes(const uint8_t *p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)); }
static inline vi vi_load_bytes_n(const uint8_t *p, int64_t n) {
    return _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(vm_first(n), p));
}
static inline void vi_store_bytes(uint8_t *p, vi v) { _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(v)); }
static inline void vi_store_bytes_n(uint8_t *p, vi v, int64_t n) { _mm512_mask_cvtepi32_storeu_epi8(p, vm_first(n), v); }
static inline void vi_store_bytes4(uint8_t *p, const vi *v) {
    for (int i = 0; i < 4; i++) vi_store_bytes(p + i * VL, v[i]);
}
/// Elements of a and b side by side, those of columns 0, 1, 4, 5 … and of 2, 3, 6, 7 …, and the sums of such pairs, column by column.
static inline vi vi_low_pairs(vi a, vi b) { return _mm512_unpacklo_epi32(a, b); }
static inline vi vi_high_pairs(vi a, vi b) { return _mm512_unpackhi_epi32(a, b); }
static inline vi vi_sums_of_pairs(vi low, vi high) {
    const __m512 l = _mm512_castsi512_ps(low), h = _mm512_castsi512_ps(high);
    return _mm512_add_epi32(_mm512_castps_si512(_mm512_shuffle_ps(l, h, 0x88)), _mm512_castps_si512(_mm512_shuffle_ps(l, h, 0xdd)));
}
/// Numbers of four vectors rounded half to even, plus `zero` (all of int16), as bytes 0 … 255 that saturate below; what is
/// above must be no more than 255 − zero. Packs leave groups of four bytes in the order of their lanes.
#define VI_SATURATED_BYTES
static inline vi vi_saturated_bytes(const vf *x, vi zero) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i low = _mm512_packs_epi32(_mm512_cvtps_epi32(x[0]), _mm512_cvtps_epi32(x[1]));
    __m512i high = _mm512_packs_epi32(_mm512_cvtps_epi32(x[2]), _mm512_cvtps_epi32(x[3]));
    return _mm512_permutexvar_epi32(order, _mm512_packus_epi16(_mm512_adds_epi16(low, zero), _mm512_adds_epi16(high, zero)));
}
static inline void vi_store_64_bytes(uint8_t *p, vi v, int64_t n) {
    _mm512_mask_storeu_epi8(p, n < 64 ? ((uint64_t)1 << n) - 1 : ~(uint64_t)0, v);
}
static inline vi vi_mul_code(vi code, vi weight) { return _mm512_madd_epi16(code, weight); }
