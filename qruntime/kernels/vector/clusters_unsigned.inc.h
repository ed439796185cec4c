/// What clusters_dot4.inc.h asks for, of an instruction that takes unsigned codes and signed weights: vi_dot4.

static inline vi four_codes(const uint8_t *a) {
    int32_t four;
    memcpy(&four, a, sizeof four);
    return vi_set(four);
}
static inline vi add_four(vi sums, vi codes, vi w) { return vi_dot4(sums, codes, w); }

#include "clusters_dot4.inc.h"
