/// What ../vector/clusters_dot4.inc.h asks for, of add_signed, which multiplies signed bytes alone: codes become a − 128.

static inline vi four_codes(const uint8_t *a) {
    int32_t four;
    memcpy(&four, a, sizeof four);
    return veorq_s32(vdupq_n_s32(four), vdupq_n_s32((int32_t)0x80808080));
}
static inline vi add_four(vi sums, vi codes, vi w) {
    return add_signed(sums, vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(codes));
}
static inline vi less(vi u, vi zero_points) {
    return vreinterpretq_s32_s8(vsubq_s8(vreinterpretq_s8_s32(u), vreinterpretq_s8_s32(zero_points)));
}

#include "../vector/clusters_dot4.inc.h"
