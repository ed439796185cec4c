/// What gemm_nbits_q8.inc.h asks for, of an instruction that adds four products of unsigned and signed bytes to an int32
/// and loses nothing: vi_dot4.

static inline vi add_wide(vi sums, vi u, const void *a) {
    int32_t four;
    memcpy(&four, a, sizeof four);
    return vi_dot4(sums, u, vi_set(four));
}
static inline vi add_narrow(vi sums, vi u, const void *a) { return add_wide(sums, u, a); }
static inline vi widened(vi sums) { return sums; }
#define MOST_PRODUCTS(most) INT64_MAX
