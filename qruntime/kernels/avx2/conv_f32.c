/// Convolutions of channels in blocks, AVX2 + FMA: tiles of 6 × 16 fill 12 of the 16 registers, 2 hold weights.
#include "../rungs.h"

enum { MAX_POSITIONS = 6, MAX_BLOCKS = 1, DEPTHWISE_POSITIONS = 4, ROW_POSITIONS = 6 };
#define QRT_CONV_TILES TILE(1, 1) TILE(1, 2) TILE(1, 3) TILE(1, 4) TILE(1, 5) TILE(1, 6)
#define QRT_CONV_TILES_IN_STEPS IN_STEPS(1, 6)
#define QRT_CONV_SLIDES SLIDE(1) SLIDE(2) SLIDE(3) SLIDE(4)
#define QRT_CONV_ROWS ROW(1) ROW(2) ROW(3) ROW(4) ROW(5) ROW(6)

#include "../vector/simd_avx2.h"
#include "../vector/conv_f32.inc.h"
#include "../vector/depthwise_rows.inc.h"
#include "../vector/winograd.inc.h"

void qrt_avx2_conv_f32(qrt_kernel_table *t) {
    t->conv_f32 = (qrt_conv_f32){"avx2", MAX_BLOCKS, {MAX_POSITIONS}, {MAX_POSITIONS}, tile, depthwise, depthwise_row, maxima, means, spread, collect};
}

#include "../vector/simd_end.h"
