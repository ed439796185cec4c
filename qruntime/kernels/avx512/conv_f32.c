/// Convolutions of channels in blocks, AVX-512: tiles of 24 sums, of the 32 registers 4 hold weights. Where each position has a
/// pointer there are not enough of those for more than eight.
#include "../rungs.h"

enum { MAX_POSITIONS = 16, MAX_BLOCKS = 4, DEPTHWISE_POSITIONS = 8, ROW_POSITIONS = 8 };
#define OF_BLOCKS(BLOCKS) TILE(BLOCKS, 1) TILE(BLOCKS, 2) TILE(BLOCKS, 3) TILE(BLOCKS, 4) TILE(BLOCKS, 5) TILE(BLOCKS, 6)
#define QRT_CONV_TILES OF_BLOCKS(1) TILE(1, 7) TILE(1, 8) OF_BLOCKS(2) OF_BLOCKS(3) OF_BLOCKS(4)
#define QRT_CONV_TILES_IN_STEPS IN_STEPS(1, 16) IN_STEPS(2, 12) IN_STEPS(3, 8) IN_STEPS(4, 6)
#define QRT_CONV_SLIDES SLIDE(1) SLIDE(2) SLIDE(3) SLIDE(4) SLIDE(5) SLIDE(6) SLIDE(7) SLIDE(8)
#define QRT_CONV_ROWS ROW(1) ROW(2) ROW(3) ROW(4) ROW(5) ROW(6) ROW(7) ROW(8)

#include "../vector/simd_avx512.h"
#include "../vector/conv_f32.inc.h"
#include "../vector/depthwise_rows.inc.h"
#include "../vector/winograd.inc.h"

void qrt_avx512_conv_f32(qrt_kernel_table *t) {
    t->conv_f32 = (qrt_conv_f32){"avx512", MAX_BLOCKS, {8, 6, 6, 6}, {16, 12, 8, 6}, tile, depthwise, depthwise_row, maxima, means, spread, collect};
}

#include "../vector/simd_end.h"
