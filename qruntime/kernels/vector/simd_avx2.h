/// SIMD vocabulary, AVX2 + FMA + F16C: opens a target region that simd_end.h closes.
///
///     #include <math.h> …                      everything else first
///     #include "../vector/simd_avx2.h"
///     #include "../vector/math.inc.h"          templates, written once for all rungs
///     #include "../vector/simd_end.h"
///
/// Meanings every simd_*.h shares:
/// - `vf` floats, `vi` int32, `vm` lane masks, all of VL lanes;
/// - `_n` loads read the first n lanes only (0 ≤ n ≤ VL) and set the others to 0, `_n` stores write them only;
/// - vf_fma(a, b, c) = a·b + c and vf_fnma(a, b, c) = c − a·b, rounded once;
/// - vf_min and vf_max answer b when a or b is NaN: vf_max(bound, x) keeps a NaN of x;
/// - comparisons are false for NaN, except vf_ne and vf_is_nan;
/// - vf_sum, vf_hmax, vf_hmin fold halves onto each other, in that fixed order.
#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#define VL 8
typedef __m256 vf;
typedef __m256i vi;
typedef __m256 vm;

static inline vf vf_set(float x) { return _mm256_set1_ps(x); }
static inline vf vf_zero(void) { return _mm256_setzero_ps(); }
static inline vi vi_set(int32_t x) { return _mm256_set1_epi32(x); }

/// Lanes below n are all ones.
static inline vi vi_first(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

static inline vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
static inline vf vf_load_n(const float *p, int64_t n) { return _mm256_maskload_ps(p, vi_first(n)); }
static inline void vf_store(float *p, vf v) { _mm256_storeu_ps(p, v); }
static inline void vf_store_n(float *p, vf v, int64_t n) { _mm256_maskstore_ps(p, vi_first(n), v); }
static inline vi vi_load(const int32_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline vi vi_load_n(const int32_t *p, int64_t n) { return _mm256_maskload_epi32(p, vi_first(n)); }
static inline void vi_store(int32_t *p, vi v) { _mm256_storeu_si256((__m256i *)p, v); }
static inline void vi_store_n(int32_t *p, vi v, int64_t n) { _mm256_maskstore_epi32(p, vi_first(n), v); }

static inline vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
static inline vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
static inline vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
static inline vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static inline vf vf_fnma(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a, b, c); }
static inline vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
static inline vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
static inline vf vf_sqrt(vf a) { return _mm256_sqrt_ps(a); }
static inline vf vf_round(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline vf vf_floor(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); }
static inline vf vf_ceil(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC); }

static inline vf vf_and(vf a, vf b) { return _mm256_and_ps(a, b); }
static inline vf vf_or(vf a, vf b) { return _mm256_or_ps(a, b); }
static inline vf vf_xor(vf a, vf b) { return _mm256_xor_ps(a, b); }
static inline vf vf_abs(vf a) { return _mm256_andnot_ps(vf_set(-0.0f), a); }
static inline vf vf_neg(vf a) { return _mm256_xor_ps(a, vf_set(-0.0f)); }
/// Magnitude of a (which must be ≥ 0), sign of s.
static inline vf vf_with_sign(vf a, vf s) { return _mm256_or_ps(a, _mm256_and_ps(s, vf_set(-0.0f))); }

static inline vm vf_lt(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
static inline vm vf_le(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_LE_OQ); }
static inline vm vf_eq(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
static inline vm vf_ne(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_NEQ_UQ); }
static inline vm vf_is_nan(vf a) { return _mm256_cmp_ps(a, a, _CMP_UNORD_Q); }
/// Lanes of a where the mask is set, of b elsewhere.
static inline vf vf_blend(vm m, vf a, vf b) { return _mm256_blendv_ps(b, a, m); }
static inline vm vm_and(vm a, vm b) { return _mm256_and_ps(a, b); }
static inline vm vm_or(vm a, vm b) { return _mm256_or_ps(a, b); }
static inline vm vm_first(int64_t n) { return _mm256_castsi256_ps(vi_first(n)); }
/// One bit a lane, lane 0 lowest.
static inline uint32_t vm_bits(vm m) { return (uint32_t)_mm256_movemask_ps(m); }

static inline vi vf_as_vi(vf a) { return _mm256_castps_si256(a); }
static inline vf vi_as_vf(vi a) { return _mm256_castsi256_ps(a); }
static inline vi vf_to_vi(vf a) { return _mm256_cvtps_epi32(a); }  ///< rounds half to even
static inline vf vi_to_vf(vi a) { return _mm256_cvtepi32_ps(a); }
static inline vi vi_add(vi a, vi b) { return _mm256_add_epi32(a, b); }
static inline vi vi_sub(vi a, vi b) { return _mm256_sub_epi32(a, b); }
static inline vi vi_and(vi a, vi b) { return _mm256_and_si256(a, b); }
static inline vi vi_xor(vi a, vi b) { return _mm256_xor_si256(a, b); }
#define vi_sll(a, bits) _mm256_slli_epi32(a, bits)
#define vi_srl(a, bits) _mm256_srli_epi32(a, bits)
#define vi_sra(a, bits) _mm256_srai_epi32(a, bits)
static inline vm vi_eq(vi a, vi b) { return _mm256_castsi256_ps(_mm256_cmpeq_epi32(a, b)); }

static inline float vf_sum(vf v) {
    __m128 h = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    h = _mm_add_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)));
}
static inline float vf_hmax(vf v) {
    __m128 h = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    h = _mm_max_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)));
}
static inline float vf_hmin(vf v) {
    __m128 h = _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    h = _mm_min_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_min_ss(h, _mm_movehdup_ps(h)));
}

/// s · 2^n for int32 lanes −252 ≤ n ≤ 254 and 1/2 ≤ s < 2: correctly rounded, also into denormals.
static inline vf vf_ldexp(vf s, vi n) {
    vi half = vi_sra(n, 1), rest = vi_sub(n, half);
    vf scale = vi_as_vf(vi_sll(vi_add(half, vi_set(127)), 23));
    return vf_mul(vf_mul(s, scale), vi_as_vf(vi_sll(vi_add(rest, vi_set(127)), 23)));
}

/// VL / 2 doubles, with the meanings of `vf`.
typedef __m256d vd;
static inline __m256i vd_first(int64_t n) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
static inline vd vd_set(double x) { return _mm256_set1_pd(x); }
static inline vd vd_zero(void) { return _mm256_setzero_pd(); }
static inline vd vd_load(const double *p) { return _mm256_loadu_pd(p); }
static inline vd vd_load_n(const double *p, int64_t n) { return _mm256_maskload_pd(p, vd_first(n)); }
static inline void vd_store(double *p, vd v) { _mm256_storeu_pd(p, v); }
static inline void vd_store_n(double *p, vd v, int64_t n) { _mm256_maskstore_pd(p, vd_first(n), v); }
static inline vd vd_fma(vd a, vd b, vd c) { return _mm256_fmadd_pd(a, b, c); }

/// (a − b) / divisor in double, rounded to float.
static inline vf vf_divided_difference(vf a, vf b, double divisor) {
    const vd by = vd_set(divisor);
    const __m128 a_high = _mm256_extractf128_ps(a, 1), b_high = _mm256_extractf128_ps(b, 1);
    const vd low = _mm256_sub_pd(_mm256_cvtps_pd(_mm256_castps256_ps128(a)), _mm256_cvtps_pd(_mm256_castps256_ps128(b)));
    const vd high = _mm256_sub_pd(_mm256_cvtps_pd(a_high), _mm256_cvtps_pd(b_high));
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm256_cvtpd_ps(_mm256_div_pd(low, by))), _mm256_cvtpd_ps(_mm256_div_pd(high, by)), 1);
}

/// Bytes 0 or 1.
static inline void vm_store_bytes(uint8_t *p, vm m) {
    __m256i words = _mm256_srli_epi32(_mm256_castps_si256(m), 31);
    __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storel_epi64((__m128i *)p, _mm_packus_epi16(halves, halves));
}

/// Lanes whose byte is not 0; `_n` reads n ≤ VL bytes, and lanes beyond them are off.
static inline vm vm_of_bytes(__m128i bytes) {
    __m256i words = _mm256_cvtepu8_epi32(bytes);
    return _mm256_castsi256_ps(_mm256_cmpgt_epi32(words, _mm256_setzero_si256()));
}
static inline vm vm_load_bytes(const uint8_t *p) { return vm_of_bytes(_mm_loadl_epi64((const __m128i *)p)); }
static inline vm vm_load_bytes_n(const uint8_t *p, int64_t n) {
    uint8_t bytes[16] = {0};
    for (int64_t i = 0; i < n; i++) bytes[i] = p[i];
    return vm_load_bytes(bytes);
}

/// Columns 0 … 3 of VL rows that begin `stride` floats apart.
static inline void vf_transpose4(const float *p, int64_t stride, vf *columns) {
    vf r[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        r[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p + i * stride)), _mm_loadu_ps(p + (4 + i) * stride), 1);
    __m256d low01 = _mm256_castps_pd(_mm256_unpacklo_ps(r[0], r[1])), low23 = _mm256_castps_pd(_mm256_unpacklo_ps(r[2], r[3]));
    __m256d high01 = _mm256_castps_pd(_mm256_unpackhi_ps(r[0], r[1])), high23 = _mm256_castps_pd(_mm256_unpackhi_ps(r[2], r[3]));
    columns[0] = _mm256_castpd_ps(_mm256_unpacklo_pd(low01, low23));
    columns[1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low01, low23));
    columns[2] = _mm256_castpd_ps(_mm256_unpacklo_pd(high01, high23));
    columns[3] = _mm256_castpd_ps(_mm256_unpackhi_pd(high01, high23));
}

/// VL IEEE half-precision numbers.
static inline vf vf_load_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
static inline void vf_store_f16(uint16_t *p, vf v) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

/// NaN in either.
static inline vm vf_unordered(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_UNORD_Q); }
static inline vi vi_mul(vi a, vi b) { return _mm256_mullo_epi32(a, b); }
static inline vi vi_max(vi a, vi b) { return _mm256_max_epi32(a, b); }
static inline vi vi_max_unsigned(vi a, vi b) { return _mm256_max_epu32(a, b); }

/// The greatest lane of each of four vectors, its bits as a float.
static inline void vi_hmax4(const vi *v, float *greatest) {
    vi low = _mm256_max_epi32(_mm256_unpacklo_epi32(v[0], v[1]), _mm256_unpackhi_epi32(v[0], v[1]));
    vi high = _mm256_max_epi32(_mm256_unpacklo_epi32(v[2], v[3]), _mm256_unpackhi_epi32(v[2], v[3]));
    vi w = _mm256_max_epi32(_mm256_unpacklo_epi64(low, high), _mm256_unpackhi_epi64(low, high));
    __m128i q = _mm_max_epi32(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
    _mm_storeu_ps(greatest, _mm_castsi128_ps(q));
}

/// VL numbers that fit 16 bits.
static inline void vi_store_i16(int16_t *p, vi v) {
    _mm_storeu_si128((__m128i *)p, _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
}

/// Lanes from bytes 0 … 255, and into bytes: lanes are 0 … 255.
static inline vi vi_load_bytes(const uint8_t *p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)); }
static inline vi vi_load_bytes_n(const uint8_t *p, int64_t n) {
    uint8_t bytes[VL] = {0};
    memcpy(bytes, p, (size_t)n);
    return vi_load_bytes(bytes);
}
static inline void vi_store_bytes(uint8_t *p, vi v) {
    __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storel_epi64((__m128i *)p, _mm_packus_epi16(halves, halves));
}
static inline void vi_store_bytes_n(uint8_t *p, vi v, int64_t n) {
    uint8_t bytes[VL];
    vi_store_bytes(bytes, v);
    memcpy(p, bytes, (size_t)n);
}
/// Four vectors, one after the other.
static inline void vi_store_bytes4(uint8_t *p, const vi *v) {
    __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
    bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256((__m256i *)p, bytes);
}
/// Lanes 0 … 255 times lanes that fit 16 bits: cheaper than vi_mul where 32-bit products are slow.
static inline vi vi_mul_code(vi code, vi weight) { return _mm256_madd_epi16(code, weight); }

/// VL numbers of 16 bits.
static inline vi vi_load_i16(const int16_t *p) { return _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)p)); }

/// v, which from here on is in a register: gcc loads what two instructions read twice.
static inline vi vi_hold(vi v) {
    __asm__("" : "+x"(v));
    return v;
}

/// source[lane] for each of VL lanes from 0 to VL − 1.
static inline vf vf_pick(const float *source, vi lanes) { return _mm256_permutevar8x32_ps(vf_load(source), lanes); }

/// A table of 16 bytes, and its entries for indices of 0 … 15 in every byte.
static inline vi vi_table16(const uint8_t *table) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table));
}
static inline vi vi_lookup16(vi table, vi indices) { return _mm256_shuffle_epi8(table, indices); }
