/// int8 GEMM on AMX: tiles of 32×32 sums, 64 products deep a step. One or two rows take vpdpbusd, over the same panels.
///
/// The tile unit multiplies while the vector units run the epilogue: the sums of a tile are left in memory and become
/// floats a few rows at a time between the steps of the next tile.
#include <math.h>
#include <string.h>

#include "../qlinear.h"
#include "../rungs.h"

#if defined(__x86_64__)

#define QRT_TILE_ROWS 8
enum { MR = 32, NR = 32, KR = 64, CODE_OFFSET = 0, HALF = 16 };

#include "../vector/simd_avx512.h"

#include "../vector/math.inc.h"

#include "../vector/activation.inc.h"
#include "../vector/gemm_q8.inc.h"

#include "../avx512vnni/gemm_q8_u8.inc.h"

#undef VI_SATURATED_BYTES  // windows are copied here, see below
#include "../vector/gemm_q8_dot4.inc.h"

/// Fewer rows leave the tile unit idle for longer than the weights take to arrive.
enum { FEWEST_ROWS = 3 };

// -------------------------------------------------------------------------------------------- tiles

/// What ldtilecfg reads (Intel SDM, volume 1, 18.2): for each tile its rows and the bytes of a row.
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config;

#ifndef QRT_EMULATE_AMX
/// By hand, so that compilers without the target amx-int8 do. Sums are in tiles 0 to 3, codes of 16 rows in 4 and 5,
/// weights of 16 columns in 6 and 7.
#define TILE_CONFIGURE(config) __asm__ volatile("ldtilecfg %0" ::"m"(config))
#define TILE_RELEASE() __asm__ volatile("tilerelease" ::)
#define TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile ::)
#define TILE_LOAD(tile, from, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile ::"r"(from), "r"((int64_t)(stride)))
#define TILE_STORE(tile, to, stride) \
    __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" ::"r"(to), "r"((int64_t)(stride)) : "memory")
#define TILE_DOT(sums, codes, weights) \
    __asm__ volatile("tdpbusd %%tmm" #weights ", %%tmm" #codes ", %%tmm" #sums ::)
#endif

/// For `rows` ≤ 32 rows: the first 16 in tiles 0, 1 and 4, the rest in 2, 3 and 5.
static void configure_tiles(int rows) {
    tile_config config = {.palette = 1};
    int low = rows < HALF ? rows : HALF, high = rows - low;
    const int heights[8] = {low, low, high, high, low, high, HALF, HALF};
    for (int tile = 0; tile < 8; tile++) {
        config.rows[tile] = (uint8_t)(heights[tile] ? heights[tile] : 1);
        config.row_bytes[tile] = 64;
    }
    TILE_CONFIGURE(config);
}

// ----------------------------------------------------------------------------------------- epilogue

/// Sums of a tile on their way to y.
typedef struct {
    const qrt_q8_weights *w;
    const qrt_q8_block *block;
    int64_t column;         ///< first of the panel
    vm columns[VECTORS];    ///< those that y has
    vi col_sums[VECTORS];   ///< split, see below
    int first_row, rows, done;
    int32_t acc[MR * NR] __attribute__((aligned(64)));
} tile_sums;

/// A column sum as two int16, low + 128 · high: |Σ_k qw| ≤ 128 · QRT_Q8_MAX_K = 128 · 2^15, so both fit, and one
/// vpdpwssd multiplies it by a zero point, where a 32-bit multiply and a subtraction take three instructions.
static inline vi split_sums(vi sums) {
    vi low = vi_sub(vi_and(vi_add(sums, vi_set(64)), vi_set(127)), vi_set(64));
    vi high = vi_sra(vi_sub(sums, low), 7);
    return _mm512_or_si512(vi_and(low, vi_set(0xffff)), vi_sll(high, 16));
}

static inline vi zero_point_pair(int32_t zero_point) {
    return vi_set((int32_t)((uint16_t)-zero_point | (uint32_t)(uint16_t)(-zero_point * 128) << 16));
}

/// Rows t->done … until−1. What all rows share is in registers: y may alias anything, for all the compiler knows.
static inline __attribute__((always_inline)) void finish_some(tile_sums *t, int until, const int activation) {
    const qrt_q8_weights *w = t->w;
    const qrt_q8_block *block = t->block;
    const qrt_epilogue *e = &block->epilogue;
    const qrt_q8_row *row = block->rows + t->first_row + t->done;
    int64_t first = t->first_row + t->done, y_stride = block->ldy_elems, column = t->column;
    float *y = block->y + first * y_stride;
    const float *residual = added_row(e->residual, first, e->residual_stride_elems);
    const float *addend = added_row(e->addend, first, e->addend_stride_elems);
    const vf low = vf_set(block->low), high = vf_set(block->high);
    const int32_t *acc = t->acc + t->done * NR, *end = t->acc + until * NR;
    const bool has_bias = w->bias;
    vf scales[VECTORS], bias[VECTORS];
    vi col_sums[VECTORS];
    vm columns[VECTORS];
    int64_t places[VECTORS];
#pragma GCC unroll 2
    for (int v = 0; v < VECTORS; v++) {
        places[v] = qrt_q8_column(block, column + v * VL);
        scales[v] = vf_load(w->scales + column + v * VL);
        bias[v] = has_bias ? vf_load(w->bias + column + v * VL) : vf_set(0.0f);
        col_sums[v] = t->col_sums[v];
        columns[v] = t->columns[v];
    }
    t->done = until;
    for (; acc < end; acc += NR, row++, y += y_stride) {
        vf scale = vf_set(row->scale);
        vi pair = zero_point_pair(row->zero_point);
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; v++) {
            vi sums = vi_dot2(vi_load(acc + v * VL), col_sums[v], pair);
            vf x = vf_mul(vi_to_vf(sums), vf_mul(scale, scales[v]));
            if (has_bias) x = vf_add(x, bias[v]);
            if (addend) x = vf_add(x, _mm512_maskz_loadu_ps(columns[v], addend + places[v]));
            x = activated(x, activation, low, high);
            if (residual) x = vf_add(x, _mm512_maskz_loadu_ps(columns[v], residual + places[v]));
            _mm512_mask_storeu_ps(y + places[v], columns[v], x);
        }
        if (residual) residual += e->residual_stride_elems;
        if (addend) addend += e->addend_stride_elems;
    }
}

#define FINISH_SOME(activation)                                                                                        \
    case activation: finish_some(t, until, activation); return

static __attribute__((noinline)) void finish_until(tile_sums *t, int until) {
    if (until > t->rows) until = t->rows;
    switch (activation_of(t->block)) {
        FINISH_SOME(QRT_ACT_NONE);
        FINISH_SOME(QRT_ACT_RELU);
        FINISH_SOME(QRT_ACT_GELU);
        FINISH_SOME(QRT_ACT_GELU_TANH);
        FINISH_SOME(QRT_ACT_SILU);
        FINISH_SOME(QRT_ACT_SIGMOID);
        FINISH_SOME(QRT_ACT_TANH);
        FINISH_SOME(CLIP);
    }
}

// ----------------------------------------------------------------------------------------- multiply

/// Sums of `rows` rows from `a` and one panel, while `t` is finished; they replace its sums.
static inline __attribute__((always_inline)) void
multiply_tile(const uint8_t *a, int64_t stride, const int8_t *b, int64_t k_padded, bool two, tile_sums *t,
              const char *ahead, int64_t ahead_bytes) {
    int per_step = (int)((t->rows * KR + k_padded - 1) / (k_padded ? k_padded : 1));
    TILE_ZERO(0);
    TILE_ZERO(1);
    if (two) {
        TILE_ZERO(2);
        TILE_ZERO(3);
    }
    for (int64_t k = 0; k < k_padded; k += KR, b += KR * NR) {
        TILE_LOAD(4, a + k, stride);
        TILE_LOAD(6, b, NR * GROUP);
        TILE_LOAD(7, b + HALF * GROUP, NR * GROUP);
        TILE_DOT(0, 4, 6);
        TILE_DOT(1, 4, 7);
        if (two) {
            TILE_LOAD(5, a + HALF * stride + k, stride);
            TILE_DOT(2, 5, 6);
            TILE_DOT(3, 5, 7);
        }
        for (const char *end = ahead + ahead_bytes; ahead < end; ahead += 64) __builtin_prefetch(ahead, 0, 2);
        if (t->done < t->rows) finish_until(t, t->done + per_step);
    }
    finish_until(t, t->rows);
    TILE_STORE(0, t->acc, NR * sizeof(int32_t));
    TILE_STORE(1, t->acc + HALF, NR * sizeof(int32_t));
    if (two) {
        TILE_STORE(2, t->acc + HALF * NR, NR * sizeof(int32_t));
        TILE_STORE(3, t->acc + HALF * NR + HALF, NR * sizeof(int32_t));
    }
}

static void multiply(const qrt_q8_weights *w, const qrt_q8_block *block, int64_t first, int64_t last) {
    if (block->num_rows < FEWEST_ROWS) {
        multiply_rows(w, block, first, last);
        return;
    }
    tile_sums t = {.w = w, .block = block};
    int configured = 0, tiles_of_rows = (block->num_rows + MR - 1) / MR;
    // The next panel comes into the L2 cache while this one is used again and again; used once, it comes by itself.
    int64_t ahead_bytes = tiles_of_rows > 1 ? (KR * NR / tiles_of_rows + 63) / 64 * 64 : 0;
    __asm__ volatile("" ::: "memory");  // what tiles load is in memory
    for (int64_t panel = first; panel < last; panel++) {
        const int8_t *b = (const int8_t *)w->panels + panel * w->panel_bytes;
        const char *ahead = (const char *)b + w->panel_bytes;
        for (int r = 0; r < block->num_rows; r += MR, ahead += ahead_bytes * (w->k_padded / KR)) {
            const uint8_t *a = (const uint8_t *)block->a + r * block->a_stride_bytes;
            int rows = block->num_rows - r < MR ? block->num_rows - r : MR;
            if (rows != configured) configure_tiles(configured = rows);
            if (rows > HALF) multiply_tile(a, block->a_stride_bytes, b, w->k_padded, true, &t, ahead, ahead_bytes);
            else multiply_tile(a, block->a_stride_bytes, b, w->k_padded, false, &t, ahead, ahead_bytes);
            if (w->zero_points) {
                finish_tile(w, block, panel, r, rows, t.acc);
                continue;
            }
            t.column = panel * NR;
            for (int v = 0; v < VECTORS; v++) {
                int64_t left = w->base.n - t.column - v * VL;
                t.columns[v] = left >= VL ? (vm)0xffff : left > 0 ? vm_first(left) : (vm)0;
                t.col_sums[v] = split_sums(vi_load(w->col_sums + t.column + v * VL));
            }
            t.first_row = r;
            t.rows = rows;
            t.done = 0;
        }
    }
    // A thread must not keep tiles: the kernel would save 8 KB at every switch, and foreign code expects them free.
    TILE_RELEASE();
    finish_until(&t, t.rows);
}

#include "../vector/simd_end.h"

void qrt_amx_gemm_q8(qrt_kernel_table *t) {
    t->gemm_q8 = dot4_gemm_q8;
    t->gemm_q8.window_sums = NULL;  // pieces are no multiples of so many
    t->gemm_q8.name = "amx";
    t->gemm_q8.multiply = multiply;
    t->gemm_q8.codes.quantize_pieces = quantize_pieces;
    t->gemm_q8.block_rows = 512;
    t->gemm_q8.block_bytes = 1 << 20;
}

#endif
