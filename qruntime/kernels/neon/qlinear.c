#include <math.h>

#include "../kernels.h"
#include "../rungs.h"
#include "../vector/simd_neon.h"
#define RUNG neon
#define LOOK_UP

/// Four tables of 64 bytes: an index beyond one leaves what is there.
static void look_up(const uint8_t *table, const uint8_t *x, uint8_t *y, int64_t n) {
    uint8x16x4_t part[4];
    for (int p = 0; p < 4; p++) part[p] = vld1q_u8_x4(table + 64 * p);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        uint8x16_t at = vld1q_u8(x + i), found = vqtbl4q_u8(part[0], at);
        for (int p = 1; p < 4; p++) {
            at = vsubq_u8(at, vdupq_n_u8(64));
            found = vqtbx4q_u8(found, part[p], at);
        }
        vst1q_u8(y + i, found);
    }
    for (; i < n; i++) y[i] = table[x[i]];
}

#include "../vector/qlinear.inc.h"
