/// What gemm_nbits_q8.inc.h asks for, of an instruction that adds four products of unsigned and signed bytes to an int32
/// and loses nothing: vi_dot4, and one that does so with pairs of 16 bits: vi_dot2.

static inline vi add_wide(vi sums, vi u, const void *a) {
    int32_t four;
    memcpy(&four, a, sizeof four);
    return vi_dot4(sums, u, vi_set(four));
}
static inline vi add_narrow(vi sums, vi u, const void *a) { return add_wide(sums, u, a); }
static inline vi widened(vi sums) { return sums; }
#define MOST_PRODUCTS(most) INT64_MAX

/// w, sign-extended, is a pair whose upper half is not to count.
static inline vi add_short(vi sums, vi w, vi factor) { return vi_dot2(sums, w, factor); }
static inline vi short_factor(int32_t x) { return vi_set(x & 0xffff); }
