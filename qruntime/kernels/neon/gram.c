/// Codes of rows and products of panels of codes, two rows at a time by widening products.
#include "../rungs.h"

#include "../vector/simd_neon.h"

static inline vi vi_pairs_add(vi sums, vi a, vi b) {
    int16x8_t x = vreinterpretq_s16_s32(a), y = vreinterpretq_s16_s32(b);
    return vi_add(sums, vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y)));
}

enum { GRAM_TALL = 8, GRAM_WIDE = 2 };

#include "../vector/gram.inc.h"

void qrt_neon_gram(qrt_kernel_table *t) { t->gram = (qrt_gram){gram_code_pairs, gram_panels, gram_magnitudes}; }
