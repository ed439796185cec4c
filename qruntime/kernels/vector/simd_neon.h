/// SIMD vocabulary, Advanced SIMD of AArch64: see simd_avx2.h for the meanings. Every AArch64 has it, so no region is
/// opened, and simd_end.h is not included after it.
#include <arm_neon.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define VL 4
typedef float32x4_t vf;
typedef int32x4_t vi;
typedef uint32x4_t vm;

static inline vf vf_set(float x) { return vdupq_n_f32(x); }
static inline vf vf_zero(void) { return vdupq_n_f32(0.0f); }
static inline vi vi_set(int32_t x) { return vdupq_n_s32(x); }

static inline vi vf_as_vi(vf a) { return vreinterpretq_s32_f32(a); }
static inline vf vi_as_vf(vi a) { return vreinterpretq_f32_s32(a); }
static inline vm vm_of(vf a) { return vreinterpretq_u32_f32(a); }
static inline vf vf_of(vm a) { return vreinterpretq_f32_u32(a); }

static inline vm vm_first(int64_t n) {
    static const int32_t lanes[VL] = {0, 1, 2, 3};
    return vcgtq_s32(vdupq_n_s32((int32_t)n), vld1q_s32(lanes));
}

/// There are no masked loads: three lanes are two and one.
static inline vf vf_load(const float *p) { return vld1q_f32(p); }
static inline vf vf_load_n(const float *p, int64_t n) {
    vf v = vf_zero();
    switch (n) {
    case 1: return vld1q_lane_f32(p, v, 0);
    case 2: return vcombine_f32(vld1_f32(p), vdup_n_f32(0.0f));
    case 3: return vld1q_lane_f32(p + 2, vcombine_f32(vld1_f32(p), vdup_n_f32(0.0f)), 2);
    case 4: return vf_load(p);
    default: return v;
    }
}
static inline void vf_store(float *p, vf v) { vst1q_f32(p, v); }
static inline void vf_store_n(float *p, vf v, int64_t n) {
    switch (n) {
    case 1: vst1q_lane_f32(p, v, 0); break;
    case 2: vst1_f32(p, vget_low_f32(v)); break;
    case 3:
        vst1_f32(p, vget_low_f32(v));
        vst1q_lane_f32(p + 2, v, 2);
        break;
    case 4: vf_store(p, v); break;
    default: break;
    }
}
static inline vi vi_load(const int32_t *p) { return vld1q_s32(p); }
static inline void vi_store(int32_t *p, vi v) { vst1q_s32(p, v); }

static inline vf vf_add(vf a, vf b) { return vaddq_f32(a, b); }
static inline vf vf_sub(vf a, vf b) { return vsubq_f32(a, b); }
static inline vf vf_mul(vf a, vf b) { return vmulq_f32(a, b); }
static inline vf vf_div(vf a, vf b) { return vdivq_f32(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
static inline vf vf_fnma(vf a, vf b, vf c) { return vfmsq_f32(c, a, b); }
/// fmin and fmax treat NaN and signed zeros otherwise.
static inline vf vf_min(vf a, vf b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
static inline vf vf_max(vf a, vf b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
static inline vf vf_sqrt(vf a) { return vsqrtq_f32(a); }
static inline vf vf_round(vf a) { return vrndnq_f32(a); }
static inline vf vf_floor(vf a) { return vrndmq_f32(a); }
static inline vf vf_ceil(vf a) { return vrndpq_f32(a); }

static inline vf vf_and(vf a, vf b) { return vf_of(vandq_u32(vm_of(a), vm_of(b))); }
static inline vf vf_or(vf a, vf b) { return vf_of(vorrq_u32(vm_of(a), vm_of(b))); }
static inline vf vf_xor(vf a, vf b) { return vf_of(veorq_u32(vm_of(a), vm_of(b))); }
static inline vf vf_abs(vf a) { return vabsq_f32(a); }
static inline vf vf_neg(vf a) { return vnegq_f32(a); }
static inline vf vf_with_sign(vf a, vf s) { return vbslq_f32(vdupq_n_u32(0x80000000u), s, a); }

typedef float64x2_t vd;
static inline vd vd_set(double x) { return vdupq_n_f64(x); }
static inline vd vd_zero(void) { return vdupq_n_f64(0.0); }
static inline vd vd_load(const double *p) { return vld1q_f64(p); }
static inline vd vd_load_n(const double *p, int64_t n) {
    return n == 2 ? vd_load(p) : n == 1 ? vld1q_lane_f64(p, vd_zero(), 0) : vd_zero();
}
static inline void vd_store(double *p, vd v) { vst1q_f64(p, v); }
static inline void vd_store_n(double *p, vd v, int64_t n) {
    if (n == 2)
        vd_store(p, v);
    else if (n == 1)
        vst1q_lane_f64(p, v, 0);
}
static inline vd vd_fma(vd a, vd b, vd c) { return vfmaq_f64(c, a, b); }

static inline vm vf_lt(vf a, vf b) { return vcltq_f32(a, b); }
static inline vm vf_le(vf a, vf b) { return vcleq_f32(a, b); }
static inline vm vf_eq(vf a, vf b) { return vceqq_f32(a, b); }
static inline vm vf_ne(vf a, vf b) { return vmvnq_u32(vceqq_f32(a, b)); }
static inline vm vf_is_nan(vf a) { return vf_ne(a, a); }
static inline vf vf_blend(vm m, vf a, vf b) { return vbslq_f32(m, a, b); }
static inline vm vm_and(vm a, vm b) { return vandq_u32(a, b); }
static inline vm vm_or(vm a, vm b) { return vorrq_u32(a, b); }
static inline uint32_t vm_bits(vm m) {
    static const uint32_t bits[VL] = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(m, vld1q_u32(bits)));
}
static inline vm vf_unordered(vf a, vf b) { return vorrq_u32(vf_is_nan(a), vf_is_nan(b)); }

static inline vi vf_to_vi(vf a) { return vcvtnq_s32_f32(a); }
static inline vf vi_to_vf(vi a) { return vcvtq_f32_s32(a); }
static inline vi vi_add(vi a, vi b) { return vaddq_s32(a, b); }
static inline vi vi_sub(vi a, vi b) { return vsubq_s32(a, b); }
static inline vi vi_mul(vi a, vi b) { return vmulq_s32(a, b); }
static inline vi vi_max(vi a, vi b) { return vmaxq_s32(a, b); }
static inline vi vi_max_unsigned(vi a, vi b) {
    return vreinterpretq_s32_u32(vmaxq_u32(vreinterpretq_u32_s32(a), vreinterpretq_u32_s32(b)));
}
static inline void vi_hmax4(const vi *v, float *greatest) {
    vi w = vpmaxq_s32(vpmaxq_s32(v[0], v[1]), vpmaxq_s32(v[2], v[3]));
    vst1q_f32(greatest, vi_as_vf(w));
}
static inline void vi_store_i16(int16_t *p, vi v) { vst1_s16(p, vmovn_s32(v)); }
static inline vi vi_load_i16(const int16_t *p) { return vmovl_s16(vld1_s16(p)); }
static inline vi vi_hold(vi v) {
    __asm__("" : "+w"(v));
    return v;
}
static inline vf vf_pick(const float *source, vi lanes) {
    const uint8x16_t bytes = vreinterpretq_u8_s32(vaddq_s32(vmulq_s32(lanes, vdupq_n_s32(0x04040404)), vdupq_n_s32(0x03020100)));
    return vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(vf_load(source)), bytes));
}
static inline vi vi_table16(const uint8_t *table) { return vreinterpretq_s32_u8(vld1q_u8(table)); }
static inline vi vi_lookup16(vi table, vi indices) {
    return vreinterpretq_s32_u8(vqtbl1q_u8(vreinterpretq_u8_s32(table), vreinterpretq_u8_s32(indices)));
}
static inline vi vi_and(vi a, vi b) { return vandq_s32(a, b); }
static inline vi vi_xor(vi a, vi b) { return veorq_s32(a, b); }
#define vi_sll(a, bits) vshlq_n_s32(a, bits)
#define vi_srl(a, bits) vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(a), bits))
#define vi_sra(a, bits) vshrq_n_s32(a, bits)
static inline vm vi_eq(vi a, vi b) { return vceqq_s32(a, b); }

static inline vf vf_divided_difference(vf a, vf b, double divisor) {
    const float64x2_t by = vdupq_n_f64(divisor);
    const float64x2_t low = vsubq_f64(vcvt_f64_f32(vget_low_f32(a)), vcvt_f64_f32(vget_low_f32(b)));
    const float64x2_t high = vsubq_f64(vcvt_high_f64_f32(a), vcvt_high_f64_f32(b));
    return vcvt_high_f32_f64(vcvt_f32_f64(vdivq_f64(low, by)), vdivq_f64(high, by));
}
static inline float vf_sum(vf v) {
    vf h = vf_add(v, vextq_f32(v, v, 2));
    return vgetq_lane_f32(h, 0) + vgetq_lane_f32(h, 1);
}
static inline float vf_hmax(vf v) {
    vf h = vf_max(v, vextq_f32(v, v, 2));
    return vgetq_lane_f32(vf_max(h, vdupq_laneq_f32(h, 1)), 0);
}
static inline float vf_hmin(vf v) {
    vf h = vf_min(v, vextq_f32(v, v, 2));
    return vgetq_lane_f32(vf_min(h, vdupq_laneq_f32(h, 1)), 0);
}

static inline vf vf_ldexp(vf s, vi n) {
    vi half = vi_sra(n, 1), rest = vi_sub(n, half);
    vf scale = vi_as_vf(vi_sll(vi_add(half, vi_set(127)), 23));
    return vf_mul(vf_mul(s, scale), vi_as_vf(vi_sll(vi_add(rest, vi_set(127)), 23)));
}

static inline void vm_store_bytes(uint8_t *p, vm m) {
    uint16x4_t halves = vmovn_u32(vshrq_n_u32(m, 31));
    uint32_t bytes = vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(halves, halves))), 0);
    memcpy(p, &bytes, sizeof bytes);
}

static inline vm vm_load_bytes_n(const uint8_t *p, int64_t n) {
    uint8_t bytes[8] = {0};
    memcpy(bytes, p, (size_t)n);
    uint32x4_t words = vmovl_u16(vget_low_u16(vmovl_u8(vld1_u8(bytes))));
    return vtstq_u32(words, words);
}
static inline vm vm_load_bytes(const uint8_t *p) { return vm_load_bytes_n(p, VL); }

static inline void vf_transpose4(const float *p, int64_t stride, vf *columns) {
    float32x4x2_t low = vtrnq_f32(vld1q_f32(p), vld1q_f32(p + stride));
    float32x4x2_t high = vtrnq_f32(vld1q_f32(p + 2 * stride), vld1q_f32(p + 3 * stride));
    for (int j = 0; j < 2; j++) {
        columns[j] = vcombine_f32(vget_low_f32(low.val[j]), vget_low_f32(high.val[j]));
        columns[j + 2] = vcombine_f32(vget_high_f32(low.val[j]), vget_high_f32(high.val[j]));
    }
}

static inline vf vf_load_f16(const uint16_t *p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
static inline void vf_store_f16(uint16_t *p, vf v) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v))); }

static inline vi vi_load_n(const int32_t *p, int64_t n) {
    int32_t lanes[VL] = {0};
    memcpy(lanes, p, (size_t)n * sizeof *p);
    return vi_load(lanes);
}
static inline vi vi_load_bytes_n(const uint8_t *p, int64_t n) {
    uint8_t bytes[8] = {0};
    memcpy(bytes, p, (size_t)n);
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vld1_u8(bytes)))));
}
static inline vi vi_load_bytes(const uint8_t *p) { return vi_load_bytes_n(p, VL); }
static inline void vi_store_bytes_n(uint8_t *p, vi v, int64_t n) {
    int16x4_t halves = vmovn_s32(v);
    uint8_t bytes[8];
    vst1_u8(bytes, vreinterpret_u8_s8(vmovn_s16(vcombine_s16(halves, halves))));
    memcpy(p, bytes, (size_t)n);
}
static inline void vi_store_bytes(uint8_t *p, vi v) { vi_store_bytes_n(p, v, VL); }
static inline void vi_store_bytes4(uint8_t *p, const vi *v) {
    for (int i = 0; i < 4; i++) vi_store_bytes(p + i * VL, v[i]);
}
static inline vi vi_mul_code(vi code, vi weight) { return vmulq_s32(code, weight); }
