/// Codes of rows and products of panels of codes, two rows at a time by vpmaddwd.
#include "../rungs.h"

#include "../vector/simd_avx2.h"

static inline vi vi_pairs_add(vi sums, vi a, vi b) { return vi_add(sums, _mm256_madd_epi16(a, b)); }

enum { GRAM_TALL = 4, GRAM_WIDE = 2 };

#include "../vector/gram.inc.h"

void qrt_avx2_gram(qrt_kernel_table *t) { t->gram = (qrt_gram){gram_code_pairs, gram_panels, gram_magnitudes}; }

#include "../vector/simd_end.h"
