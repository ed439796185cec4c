#include <math.h>

#include "../rungs.h"

/// 3 × 16 tiles fill 28 of the 32 registers: the products of even and of odd codes have sums of their own, until the end.
enum { MR = 3, NV = 4 };
#define QRT_TILES TILE(1) TILE(2) TILE(3)

#include "../vector/simd_neon.h"
#include "../vector/math.inc.h"
#include "../vector/attention.inc.h"
#include "../vector/attention_few.inc.h"

#define VI_PAIRS
typedef int32x4x2_t vi_pairs;
static inline vi_pairs vi_pairs_zero(void) { return (vi_pairs){{vi_set(0), vi_set(0)}}; }
static inline vi_pairs vi_pairs_add(vi_pairs sums, vi a, vi b) {
    int16x8_t x = vreinterpretq_s16_s32(a), y = vreinterpretq_s16_s32(b);
    sums.val[0] = vmlal_s16(sums.val[0], vget_low_s16(x), vget_low_s16(y));
    sums.val[1] = vmlal_high_s16(sums.val[1], x, y);
    return sums;
}
static inline vi vi_pairs_total(vi_pairs sums) { return vpaddq_s32(sums.val[0], sums.val[1]); }

#include "../vector/attention_q16.inc.h"

void qrt_neon_attention(qrt_kernel_table *t) {
    t->attention = (qrt_attention){exponentials, divide, few_scores, few_values};
    t->attention_q16 = ATTENTION_Q16;
}
