/// Depthwise windows on AVX512-VNNI: the codes of four rows of a column are woven together once, for all windows that cover it.
#include <math.h>
#include <string.h>

#include "../kernels.h"
#include "../rungs.h"

#if defined(__x86_64__)

#include "../vector/simd_avx512.h"

#include "dot4.inc.h"

#define ALWAYS_INLINE static inline __attribute__((always_inline))

enum { VECTORS = 4, BLOCK = QRT_DEPTHWISE_BLOCK, WOVEN = QRT_DEPTHWISE_ROWS * BLOCK };

/// Bytes of four rows in turn: vector v has, lane by lane, channels 4v … 4v + 3 of 16.
ALWAYS_INLINE void weave(const __m512i *row, int8_t *to) {
    __m512i low01 = _mm512_unpacklo_epi8(row[0], row[1]), high01 = _mm512_unpackhi_epi8(row[0], row[1]);
    __m512i low23 = _mm512_unpacklo_epi8(row[2], row[3]), high23 = _mm512_unpackhi_epi8(row[2], row[3]);
    _mm512_store_si512(to, _mm512_unpacklo_epi16(low01, low23));
    _mm512_store_si512(to + 64, _mm512_unpackhi_epi16(low01, low23));
    _mm512_store_si512(to + 128, _mm512_unpacklo_epi16(high01, high23));
    _mm512_store_si512(to + 192, _mm512_unpackhi_epi16(high01, high23));
}

/// All columns that windows cover, of a group of rows and the channels in `valid` from `channel` on.
ALWAYS_INLINE void weave_line(const qrt_depthwise_line *d, int64_t first_row, int64_t reach, int64_t channel, __mmask64 valid, int8_t *to) {
    const __m512i flip = _mm512_set1_epi8((char)d->flip), outside = _mm512_set1_epi8((char)(d->padding ^ d->flip));
    const uint8_t *lines[QRT_DEPTHWISE_ROWS] = {NULL};
    for (int r = 0; r < QRT_DEPTHWISE_ROWS && first_row + r < d->rows; r++) lines[r] = d->lines[first_row + r];
    for (int64_t p = 0; p < reach; p++, to += WOVEN) {
        const int64_t column = p - d->begin;
        const bool is_inside = column >= 0 && column < d->width;
        __m512i row[QRT_DEPTHWISE_ROWS];
#pragma GCC unroll 4
        for (int r = 0; r < QRT_DEPTHWISE_ROWS; r++) {
            row[r] = outside;
            if (is_inside && lines[r])
                row[r] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(valid, lines[r] + column * d->channels + channel), flip);
        }
        weave(row, to);
    }
}

typedef struct {
    vi offsets[VECTORS];
    vf multipliers[VECTORS], high;
    vi zero, flip;
} block_constants;

ALWAYS_INLINE void store_block(const block_constants *b, vi *sums, __mmask64 valid, uint8_t *y) {
    vi code[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) code[v] = _mm512_cvtps_epi32(vf_min(vf_mul(vi_to_vf(sums[v]), b->multipliers[v]), b->high));
    __m512i low = _mm512_adds_epi16(_mm512_packs_epi32(code[0], code[1]), b->zero);
    __m512i high = _mm512_adds_epi16(_mm512_packs_epi32(code[2], code[3]), b->zero);
    _mm512_mask_storeu_epi8(y, valid, _mm512_xor_si512(_mm512_packus_epi16(low, high), b->flip));
}

/// `columns` of one group of rows, and `summands` of each weight, constants: the weights stay in registers.
ALWAYS_INLINE void few_columns(const qrt_depthwise_line *d, const block_constants *b, const int columns, const int summands, const int8_t *w,
                               const int8_t *woven, __mmask64 valid, uint8_t *y) {
    vi weights[6][VECTORS];
#pragma GCC unroll 6
    for (int t = 0; t < summands * columns; t++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) weights[t][v] = vi_load((const int32_t *)(const void *)(w + (t * VECTORS + v) * 64));
    const int64_t step = d->stride * WOVEN, apart = d->dilation * WOVEN, outputs = d->outputs, channels = d->channels;
    const block_constants constants = *b;
    for (int64_t o = 0; o < outputs; o++, woven += step, y += channels) {
        vi sums[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) sums[v] = constants.offsets[v];
#pragma GCC unroll 3
        for (int t = 0; t < columns; t++)
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) {
                const vi codes = vi_load((const int32_t *)(const void *)(woven + t * apart + v * 64));
                sums[v] = vi_dot4(sums[v], codes, weights[t][v]);
                if (summands > 1) sums[v] = vi_dot4(sums[v], codes, weights[columns + t][v]);
            }
        store_block(&constants, sums, valid, y);
    }
}

ALWAYS_INLINE void any_columns(const qrt_depthwise_line *d, const block_constants *b, int64_t groups, int64_t reach, const int8_t *w,
                               const int8_t *woven, __mmask64 valid, uint8_t *y) {
    for (int64_t o = 0; o < d->outputs; o++, woven += d->stride * WOVEN, y += d->channels) {
        vi sums[VECTORS];
        const int8_t *weights = w;
        for (int v = 0; v < VECTORS; v++) sums[v] = b->offsets[v];
        for (int64_t g = 0; g < groups * d->summands; g++)
            for (int64_t t = 0; t < d->columns; t++, weights += WOVEN) {
                const int8_t *codes = woven + (g % groups * reach + t * d->dilation) * WOVEN;
#pragma GCC unroll 4
                for (int v = 0; v < VECTORS; v++)
                    sums[v] = vi_dot4(sums[v], vi_load((const int32_t *)(const void *)(codes + v * 64)),
                                      vi_load((const int32_t *)(const void *)(weights + v * 64)));
            }
        store_block(b, sums, valid, y);
    }
}

static void depthwise_line(const qrt_depthwise_line *d, uint8_t *y) {
    const int64_t reach = qrt_depthwise_reach(d->outputs, d->stride, d->columns, d->dilation), groups = qrt_depthwise_groups(d->rows);
    int8_t *woven = d->room;
    for (int64_t channel = 0; channel < d->channels; channel += BLOCK) {
        const int64_t left = d->channels - channel;
        const __mmask64 valid = left < BLOCK ? ((uint64_t)1 << left) - 1 : ~(uint64_t)0;
        for (int64_t g = 0; g < groups; g++) weave_line(d, g * QRT_DEPTHWISE_ROWS, reach, channel, valid, woven + g * reach * WOVEN);
        block_constants b = {
            .high = vf_set(d->requantize.high), .zero = vi_set(d->requantize.zero * 0x10001), .flip = vi_set(d->requantize.flip * 0x01010101),
        };
        for (int v = 0; v < VECTORS; v++) {
            b.offsets[v] = vi_load(d->offsets + channel + v * VL);
            b.multipliers[v] = vf_load(d->multipliers + channel + v * VL);
        }
        const int8_t *w = d->w + channel / BLOCK * d->summands * groups * d->columns * WOVEN;
        if (groups == 1 && d->summands == 1 && d->columns == 3) few_columns(d, &b, 3, 1, w, woven, valid, y + channel);
        else if (groups == 1 && d->columns == 3) few_columns(d, &b, 3, 2, w, woven, valid, y + channel);
        else any_columns(d, &b, groups, reach, w, woven, valid, y + channel);
    }
}

/// Two permutations of 128 bytes each. AVX512-VBMI, which one generation of CPUs with VNNI lacks.
static __attribute__((target("avx512vbmi"))) void look_up(const uint8_t *table, const uint8_t *x, uint8_t *y, int64_t n) {
    __m512i part[4];
    for (int i = 0; i < 4; i++) part[i] = _mm512_loadu_si512(table + 64 * i);
    for (int64_t i = 0; i < n; i += 64) {
        const __mmask64 valid = n - i < 64 ? ((uint64_t)1 << (n - i)) - 1 : ~(uint64_t)0;
        const __m512i at = _mm512_maskz_loadu_epi8(valid, x + i);
        const __m512i low = _mm512_permutex2var_epi8(part[0], at, part[1]), high = _mm512_permutex2var_epi8(part[2], at, part[3]);
        _mm512_mask_storeu_epi8(y + i, valid, _mm512_mask_mov_epi8(low, _mm512_movepi8_mask(at), high));
    }
}

void qrt_avx512vnni_qlinear(qrt_kernel_table *t) {
    t->qlinear.depthwise_line = depthwise_line;
    if (__builtin_cpu_supports("avx512vbmi")) t->qlinear.look_up = look_up;
}

#include "../vector/simd_end.h"

#endif
