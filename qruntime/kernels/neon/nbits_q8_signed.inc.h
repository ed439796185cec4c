/// What ../vector/gemm_nbits_q8.inc.h asks for, of add_signed, which multiplies signed bytes alone: u of 8 bits becomes
/// u − 128.

static inline int8x16_t four_at(const void *a) {
    int32_t four;
    memcpy(&four, a, sizeof four);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}
static inline vi add_narrow(vi sums, vi u, const void *a) { return add_signed(sums, vreinterpretq_s8_s32(u), four_at(a)); }
static inline vi add_wide(vi sums, vi u, const void *a) {
    return add_signed(sums, veorq_s8(vreinterpretq_s8_s32(u), vdupq_n_s8(-128)), four_at(a));
}
static inline vi widened(vi sums) { return sums; }
#define MOST_PRODUCTS(most) INT64_MAX
static inline vi add_short(vi sums, vi w, vi factor) { return vi_add(sums, vi_mul(w, factor)); }
static inline vi short_factor(int32_t x) { return vi_set(x); }
