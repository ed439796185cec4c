/// Convolutions of channels in blocks, Advanced SIMD: tiles of 5 × 16 fill 20 of the 32 registers, 4 hold weights.
#include "../rungs.h"

enum { MAX_POSITIONS = 5, MAX_BLOCKS = 1, DEPTHWISE_POSITIONS = 4, ROW_POSITIONS = 6 };
#define QRT_CONV_TILES TILE(1, 1) TILE(1, 2) TILE(1, 3) TILE(1, 4) TILE(1, 5)
#define QRT_CONV_TILES_IN_STEPS IN_STEPS(1, 5)
#define QRT_CONV_SLIDES SLIDE(1) SLIDE(2) SLIDE(3) SLIDE(4)
#define QRT_CONV_ROWS ROW(1) ROW(2) ROW(3) ROW(4) ROW(5) ROW(6)

#include "../vector/simd_neon.h"
#include "../vector/conv_f32.inc.h"
#include "../vector/depthwise_rows.inc.h"
#include "../vector/winograd.inc.h"

void qrt_neon_conv_f32(qrt_kernel_table *t) {
    t->conv_f32 = (qrt_conv_f32){"neon", MAX_BLOCKS, {MAX_POSITIONS}, {MAX_POSITIONS}, tile, depthwise, depthwise_row, maxima, means, spread, collect};
}
