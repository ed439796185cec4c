/// int8 GEMM on AVX2: exact sums from vpmaddubsw, which multiplies twice as much as vpmaddwd but saturates.
///
/// Codes are moved to a' = q − 128 and kept as magnitude and sign, for a product of int8 and int8 has a bit to spare:
///
///     a' · w = |a'| · (w ^ s) + |a'| · (a' < 0),     s = −1 where a' < 0, else 0
///
/// The second part belongs to the row alone. |a'| ≤ 128 and |w ^ s| ≤ 128, and −128 · 128 · 2 still fits int16, so
/// a pair of products never saturates. Four fit when Σ max(w + 1, −w) ≤ 256, that is Σ (w ^ (w >> 7)) ≤ 252: so
/// weights are cut into *items*, the four weights of NR columns that meet the same four codes, and items whose sums
/// together keep that bound are paired and added in int16 before one vpmaddwd widens both. Items need not stay in
/// the order of k, each says where its codes are.
#include <math.h>
#include <string.h>

#include "../rungs.h"
#include "gemm_q8.h"

#if defined(__x86_64__)

enum { MR = 2, NR = 32, KR = 4, ITEM = KR * NR, VECTORS = NR / 8 };

/// What zero points of activations are moved by.
enum { CODE_OFFSET = 128 };

/// Largest Σ (w ^ (w >> 7)) over the four weights of a lane.
enum { LIMIT = 252 };

/// A panel: places of the codes, for every four codes the item they meet, then items. The first `num_paired` of `num_items`
/// are pairs, one after the other.
typedef struct {
    int32_t num_paired, num_items;
    int32_t places[];  ///< [num_items], in bytes; then the items of four codes each [num_items]
} panel_head;

static inline int32_t *items_of(const panel_head *head) { return (int32_t *)head->places + head->num_items; }

static int64_t head_bytes(int64_t num_items) {
    int64_t bytes = (int64_t)sizeof(panel_head) + 2 * num_items * (int64_t)sizeof(int32_t);
    return (bytes + QRT_ALIGNMENT - 1) / QRT_ALIGNMENT * QRT_ALIGNMENT;
}
static int64_t panel_bytes(int64_t k_padded) { return head_bytes(k_padded / KR) + k_padded * NR; }

#include "../vector/simd_avx2.h"

#include "../vector/math.inc.h"

#include "../vector/activation.inc.h"
#include "../vector/gemm_q8.inc.h"
#include "quantize_u8.inc.h"

// -------------------------------------------------------------------------------------- activations

/// Σ |a'| over a' < 0 is kept behind the row.
static inline int32_t *row_start(const void *packed, int64_t k_padded) { return (int32_t *)packed + k_padded / 2; }

/// 32 codes, `shift` between them and a', as four magnitudes, four signs, and so on. Adds Σ |a'| over a' < 0 to `total`.
static inline __attribute__((always_inline)) void split32(__m256i codes, __m256i shift, int8_t *out, __m256i *total) {
    __m256i zero = _mm256_setzero_si256(), shifted = _mm256_xor_si256(codes, shift);
    __m256i size = _mm256_abs_epi8(shifted), sign = _mm256_cmpgt_epi8(zero, shifted);
    *total = _mm256_add_epi64(*total, _mm256_sad_epu8(_mm256_and_si256(size, sign), zero));
    __m256i low = _mm256_unpacklo_epi32(size, sign), high = _mm256_unpackhi_epi32(size, sign);
    _mm256_storeu_si256((__m256i *)out, _mm256_permute2x128_si256(low, high, 0x20));
    _mm256_storeu_si256((__m256i *)(out + 32), _mm256_permute2x128_si256(low, high, 0x31));
}

/// k codes, byte ^ flip each; they may lie in the second half of `packed`, for each is read before anything is written there.
static void split_signs(const uint8_t *codes, uint8_t flip, int64_t k, int64_t k_padded, void *packed) {
    int8_t *out = packed;
    const __m256i shift = _mm256_set1_epi8((char)(flip ^ CODE_OFFSET));
    __m256i total = _mm256_setzero_si256();
    int64_t i = 0;
    for (; i + 32 <= k; i += 32) split32(_mm256_loadu_si256((const __m256i *)(codes + i)), shift, out + 2 * i, &total);
    if (i < k_padded) {
        uint8_t rest[32];
        int8_t split[64];
        _mm256_storeu_si256((__m256i *)rest, shift);  // a' = 0
        memcpy(rest, codes + i, (size_t)(k - i));
        split32(_mm256_loadu_si256((const __m256i *)rest), shift, split, &total);
        memcpy(out + 2 * i, split, (size_t)(2 * (k_padded - i)));
    }
    __m128i sums = _mm_add_epi64(_mm256_castsi256_si128(total), _mm256_extracti128_si256(total, 1));
    *row_start(packed, k_padded) = _mm_cvtsi128_si32(_mm_add_epi64(sums, _mm_unpackhi_epi64(sums, sums)));
}

static void quantize_signed(const float *a, int64_t k, int64_t k_padded, float inverse_scale, int32_t zero_point, int32_t qmax,
                            void *packed, int64_t *sum) {
    uint8_t *codes = (uint8_t *)packed + k_padded;
    quantize(a, k, k_padded, inverse_scale, zero_point, qmax, codes, sum);
    split_signs(codes, 0, k, k_padded, packed);
}

static void quantize_pieces(const float *x, int64_t step, int64_t n, const int64_t *places, int64_t num_pieces, bool any_outside,
                            int64_t k_padded, const float *inverse_scales, const qrt_q8_row *rows, int32_t qmax, void *packed,
                            int64_t stride_bytes) {
    uint8_t *row = packed;
    for (int64_t r = 0; r < n; r++, x += step, row += stride_bytes) {
        uint8_t *codes = row + k_padded;
        quantize_row_of_pieces(any_outside, x, places, num_pieces, inverse_scales[r], rows[r].zero_point, qmax, codes);
        split_signs(codes, 0, k_padded, k_padded, row);
    }
}

// ------------------------------------------------------------------------------------ codes in seven bits
//
// Codes of static quantization mostly lie in 0 … 127 above some offset: what ReLU leaves is small or 0. Then a code less that
// offset is the number itself, without a sign, two products of it and int8 fit int16, and so do four under the same bound
// of weights. What lies outside is a few codes' difference to the nearest number inside, kept as magnitude and sign beside
// the row, for the four codes of an item together. A row with more of it is kept as magnitudes and signs throughout.

/// Behind a row that pack_codes made: where quantize keeps `start`.
typedef struct {
    int32_t start;       ///< Σ |d| over negative differences d, or over all a' < 0
    int32_t num_excess;  ///< of the differences, or −1: magnitudes and signs of all codes
    int32_t offset;
} row_end;

/// Differences of four codes to the numbers that stand for them.
typedef struct {
    int32_t group;       ///< the codes are 4 · group …
    int32_t size, sign;  ///< four bytes each
} excess;

static inline row_end *end_of(const void *packed, int64_t k_padded) { return (row_end *)row_start(packed, k_padded); }
static inline excess *excess_of(const void *packed, int64_t k_padded) { return (excess *)((char *)packed + k_padded); }

/// So that the codes from a little below the zero point on are inside.
static int32_t code_offset(int32_t zero_point) { return zero_point <= 64 ? 0 : zero_point - 64 > 128 ? 128 : zero_point - 64; }

static void add_excess(const uint8_t *q, const uint8_t *inside, int32_t offset, int32_t group, excess *to, int32_t *start) {
    uint8_t size[KR];
    int8_t sign[KR];
    for (int j = 0; j < KR; j++) {
        int difference = q[j] - offset - inside[j];
        size[j] = (uint8_t)(difference < 0 ? -difference : difference);
        sign[j] = difference < 0 ? -1 : 0;
        *start += difference < 0 ? -difference : 0;
    }
    to->group = group;
    memcpy(&to->size, size, KR);
    memcpy(&to->sign, sign, KR);
}

/// n < 32 bytes without a call.
static inline void copy_rest(uint8_t *to, const uint8_t *from, int64_t n) {
    int64_t i = 0;
    for (int64_t size = 16; size >= 4; size /= 2) {
        if (!(n & size)) continue;
        if (size == 16) memcpy(to + i, from + i, 16);
        else if (size == 8) memcpy(to + i, from + i, 8);
        else memcpy(to + i, from + i, 4);
        i += size;
    }
    for (; i < n; i++) to[i] = from[i];
}

/// False when too many codes lie outside.
static bool pack_inside(const uint8_t *codes, uint8_t flip, int32_t offset, int64_t k, int64_t k_padded, void *packed) {
    const __m256i flips = _mm256_set1_epi8((char)flip), offsets = _mm256_set1_epi8((char)offset), most = _mm256_set1_epi8(127);
    const int32_t limit = (int32_t)(k_padded / 16);
    excess *outside = excess_of(packed, k_padded);
    int32_t count = 0, start = 0;
    for (int64_t i = 0; i < k_padded; i += 32) {
        uint8_t bytes[32], numbers[32];
        const bool whole = i + 32 <= k;
        if (!whole) {
            _mm256_storeu_si256((__m256i *)bytes, _mm256_xor_si256(offsets, flips));  // the number 0
            copy_rest(bytes, codes + i, k - i);
        }
        __m256i q = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(whole ? codes + i : bytes)), flips);
        __m256i inside = _mm256_min_epu8(_mm256_subs_epu8(q, offsets), most);
        __m256i same = _mm256_cmpeq_epi8(_mm256_add_epi8(inside, offsets), q);
        if (i + 32 <= k_padded) {
            _mm256_storeu_si256((__m256i *)((char *)packed + i), inside);
        } else {
            _mm256_storeu_si256((__m256i *)numbers, inside);
            copy_rest((uint8_t *)packed + i, numbers, k_padded - i);
        }
        uint32_t other = ~(uint32_t)_mm256_movemask_epi8(same);
        if (!other) continue;
        _mm256_storeu_si256((__m256i *)bytes, q);
        _mm256_storeu_si256((__m256i *)numbers, inside);
        while (other) {
            int at = __builtin_ctz(other) / KR;
            if (count == limit) return false;
            add_excess(bytes + KR * at, numbers + KR * at, offset, (int32_t)(i / KR) + at, &outside[count++], &start);
            other &= ~((uint32_t)0xf << KR * at);
        }
    }
    *end_of(packed, k_padded) = (row_end){start, count, offset};
    return true;
}

static void pack_codes(const uint8_t *codes, uint8_t flip, int32_t zero_point, int64_t k, int64_t k_padded, void *packed,
                       int64_t *sum) {
    int32_t offset = code_offset(zero_point);
    if (!pack_inside(codes, flip, offset, k, k_padded, packed)) {
        split_signs(codes, flip, k, k_padded, packed);
        end_of(packed, k_padded)->num_excess = -1;
        end_of(packed, k_padded)->offset = offset;
    }
    if (!sum) return;
    int64_t total = 0;
    for (int64_t i = 0; i < k; i++) total += codes[i] ^ flip;
    *sum = total;
}

// ------------------------------------------------------------------------------------------ packing

/// Items that wait for a partner, oldest first: what is hard to pair is tried first.
enum { WAITING = 96 };

typedef struct {
    __m256i sums[2];        ///< of the 64 lanes of the item
    __m256i w[VECTORS];
    int32_t place;
} item;

/// Four rows of 16 columns as lanes of four.
static inline void interleave16(const int8_t *w, int64_t row_stride_elems, __m256i *out) {
    __m128i r0 = _mm_loadu_si128((const __m128i *)w);
    __m128i r1 = _mm_loadu_si128((const __m128i *)(w + row_stride_elems));
    __m128i r2 = _mm_loadu_si128((const __m128i *)(w + 2 * row_stride_elems));
    __m128i r3 = _mm_loadu_si128((const __m128i *)(w + 3 * row_stride_elems));
    __m128i low01 = _mm_unpacklo_epi8(r0, r1), low23 = _mm_unpacklo_epi8(r2, r3);
    __m128i high01 = _mm_unpackhi_epi8(r0, r1), high23 = _mm_unpackhi_epi8(r2, r3);
    out[0] = _mm256_set_m128i(_mm_unpackhi_epi16(low01, low23), _mm_unpacklo_epi16(low01, low23));
    out[1] = _mm256_set_m128i(_mm_unpackhi_epi16(high01, high23), _mm_unpacklo_epi16(high01, high23));
}

static inline void load_item(const int8_t *w, int64_t row_stride_elems, int64_t col_stride_elems, int64_t rows,
                             int64_t n, item *made) {
    if (rows == KR && n == NR && col_stride_elems == 1) {
        interleave16(w, row_stride_elems, made->w);
        interleave16(w + 16, row_stride_elems, made->w + 2);
    } else {
        int8_t bytes[ITEM] = {0};
        for (int64_t j = 0; j < n; j++)
            for (int64_t i = 0; i < rows; i++) bytes[j * KR + i] = w[i * row_stride_elems + j * col_stride_elems];
        memcpy(made->w, bytes, ITEM);
    }
    __m256i lanes[VECTORS], ones = _mm256_set1_epi8(1), zero = _mm256_setzero_si256();
    for (int v = 0; v < VECTORS; v++)
        lanes[v] = _mm256_maddubs_epi16(_mm256_xor_si256(made->w[v], _mm256_cmpgt_epi8(zero, made->w[v])), ones);
    made->sums[0] = _mm256_packus_epi16(lanes[0], lanes[1]);
    made->sums[1] = _mm256_packus_epi16(lanes[2], lanes[3]);
}

static inline bool may_pair(const item *x, const item *y) {
    __m256i limit = _mm256_set1_epi8((char)LIMIT);
    __m256i most = _mm256_max_epu8(_mm256_adds_epu8(x->sums[0], y->sums[0]), _mm256_adds_epu8(x->sums[1], y->sums[1]));
    return _mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_max_epu8(most, limit), limit)) == -1;
}

typedef struct {
    panel_head *head;
    int8_t *items;
    int32_t first_single;  ///< pairs grow from the front, single items from the back
} packing;

static inline void put(packing *p, int32_t at, const item *x) {
    memcpy(p->items + (int64_t)at * ITEM, x->w, ITEM);
    p->head->places[at] = x->place;
    items_of(p->head)[x->place / (2 * KR)] = at;
}

static bool pack_panel(const int8_t *w, int64_t row_stride_elems, int64_t col_stride_elems, int64_t k, int64_t n,
                       void *panel) {
    if (k > QRT_Q8_MAX_K) return false;
    panel_head *head = panel;
    head->num_items = (int32_t)((k + KR - 1) / KR);
    head->num_paired = 0;
    packing p = {head, (int8_t *)panel + head_bytes(head->num_items), head->num_items};
    item waiting[WAITING];
    int count = 0;
    for (int64_t i = 0; i < k; i += KR) {
        item made = {.place = (int32_t)(2 * i)};
        load_item(w + i * row_stride_elems, row_stride_elems, col_stride_elems, k - i < KR ? k - i : KR, n, &made);
        int at = 0;
        while (at < count && !may_pair(&made, &waiting[at])) at++;
        bool paired = at < count;
        if (paired) {
            put(&p, head->num_paired++, &waiting[at]);
            put(&p, head->num_paired++, &made);
        } else if (count == WAITING) {
            put(&p, --p.first_single, &waiting[at = 0]);
        }
        if (paired || count == WAITING) {
            count--;
            memmove(waiting + at, waiting + at + 1, sizeof *waiting * (size_t)(count - at));
        }
        if (!paired) waiting[count++] = made;
    }
    for (int i = 0; i < count; i++) put(&p, --p.first_single, &waiting[i]);
    return true;
}

static void unpack_panel(const void *panel, int64_t k, int64_t n, int8_t *w, int64_t row_stride_elems, int64_t col_stride_elems) {
    const panel_head *head = panel;
    const int8_t *from = (const int8_t *)panel + head_bytes(head->num_items);
    for (int32_t at = 0; at < head->num_items; at++, from += ITEM) {
        int64_t first = head->places[at] / 2, rows = k - first < KR ? k - first : KR;
        for (int64_t j = 0; j < n; j++)
            for (int64_t i = 0; i < rows; i++)
                w[(first + i) * row_stride_elems + j * col_stride_elems] = from[j * KR + i];
    }
}

// -------------------------------------------------------------------------------------------- tiles

static inline __attribute__((always_inline)) __m256i four_at(const int8_t *a) {
    int32_t four;
    memcpy(&four, a, sizeof four);
    return _mm256_set1_epi32(four);
}

enum { PREFETCH_BYTES = 2048 };

/// Keeps the compiler from regrouping sums, for which it would need more registers than there are.
#define HOLD(a) __asm__("" : "+x"(a))

/// One row streams its weights: ask for those some 100 cycles ahead, past the end of the panel for the next one.
static inline __attribute__((always_inline)) void prefetch(const __m256i *b, int bytes) {
    for (int i = 0; i < bytes; i += 64) _mm_prefetch((const char *)b + PREFETCH_BYTES + i, _MM_HINT_T0);
}

/// Two products each of four codes and weights, of |a'| and the sign of a', or of codes in seven bits.
static inline __attribute__((always_inline)) __m256i products(const bool has_signs, __m256i codes, __m256i sign, __m256i w) {
    return _mm256_maddubs_epi16(codes, has_signs ? _mm256_xor_si256(sign, w) : w);
}

/// acc[rows][NR] of rows that split_signs made, or that pack_inside made, without what lies outside.
static inline __attribute__((always_inline)) void
tile(const int rows, const bool has_signs, const int8_t *a, int64_t stride, int64_t k_padded, const panel_head *head, int32_t *acc) {
    const int half = has_signs ? 0 : 1;  // places are counted in two bytes a code
    const bool streams = rows == 1 && has_signs;  // codes in seven bits come from convolutions: many rows, weights in cache
    const __m256i ones = _mm256_set1_epi16(1), none = _mm256_setzero_si256();
    const __m256i *b = (const __m256i *)((const char *)head + head_bytes(head->num_items));
    const int32_t *place = head->places, *pairs_end = place + head->num_paired, *end = place + head->num_items;
    __m256i c[MR][VECTORS];
#pragma GCC unroll 2
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) c[r][v] = _mm256_set1_epi32(*row_start(a + r * stride, k_padded));
    for (; place < pairs_end; place += 2, b += 2 * VECTORS) {
        const int8_t *first = a + (place[0] >> half), *second = a + (place[1] >> half);
        if (streams) prefetch(b, 2 * ITEM);
#pragma GCC unroll 2
        for (int r = 0; r < rows; r++) {
            __m256i x = four_at(first + r * stride), x_sign = has_signs ? four_at(first + r * stride + KR) : none;
            __m256i y = four_at(second + r * stride), y_sign = has_signs ? four_at(second + r * stride + KR) : none;
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) {
                __m256i s = products(has_signs, x, x_sign, b[v]);
                s = _mm256_add_epi16(s, products(has_signs, y, y_sign, b[VECTORS + v]));
                c[r][v] = _mm256_add_epi32(c[r][v], _mm256_madd_epi16(s, ones));
                HOLD(c[r][v]);
            }
        }
    }
    for (; place < end; place++, b += VECTORS) {
        const int8_t *first = a + (*place >> half);
        if (streams) prefetch(b, ITEM);
#pragma GCC unroll 2
        for (int r = 0; r < rows; r++) {
            __m256i x = four_at(first + r * stride), x_sign = has_signs ? four_at(first + r * stride + KR) : none;
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) {
                __m256i s = products(has_signs, x, x_sign, b[v]);
                c[r][v] = _mm256_add_epi32(c[r][v], _mm256_madd_epi16(s, ones));
                HOLD(c[r][v]);
            }
        }
    }
#pragma GCC unroll 2
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) _mm256_storeu_si256((__m256i *)(acc + r * NR + v * 8), c[r][v]);
}

#define DEFINE_TILE(name, rows, has_signs)                                                                                 \
    static __attribute__((noinline)) void                                                                                  \
    name(const int8_t *a, int64_t stride, int64_t k_padded, const panel_head *head, int32_t *acc) {                        \
        tile(rows, has_signs, a, stride, k_padded, head, acc);                                                             \
    }
DEFINE_TILE(tile1, 1, true)
DEFINE_TILE(tile2, 2, true)
DEFINE_TILE(inside_tile1, 1, false)
DEFINE_TILE(inside_tile2, 2, false)

static void multiply(const qrt_q8_weights *w, const qrt_q8_block *block, int64_t first, int64_t last) {
    int64_t stride = block->a_stride_bytes;
    for (int64_t panel = first; panel < last; panel++) {
        const panel_head *head = (const panel_head *)((const char *)w->panels + panel * w->panel_bytes);
        for (int r = 0; r < block->num_rows; r += MR) {
            int rows = block->num_rows - r < MR ? 1 : MR;
            const int8_t *a = (const int8_t *)block->a + r * stride;
            int32_t acc[MR * NR];
            (rows == 1 ? tile1 : tile2)(a, stride, w->k_padded, head, acc);
            finish_tile(w, block, panel, r, rows, acc);
        }
    }
}

/// The products of what lies outside.
static void add_outside(const int8_t *a, int64_t k_padded, const panel_head *head, int32_t *acc) {
    const __m256i ones = _mm256_set1_epi16(1);
    const __m256i *items = (const __m256i *)((const char *)head + head_bytes(head->num_items));
    const excess *outside = excess_of(a, k_padded), *end = outside + end_of(a, k_padded)->num_excess;
    if (outside == end) return;
    __m256i c[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) c[v] = _mm256_loadu_si256((const __m256i *)(acc + v * 8));
    for (; outside < end; outside++) {
        const __m256i *b = items + (int64_t)items_of(head)[outside->group] * VECTORS;
        __m256i size = _mm256_set1_epi32(outside->size), sign = _mm256_set1_epi32(outside->sign);
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++)
            c[v] = _mm256_add_epi32(c[v], _mm256_madd_epi16(_mm256_maddubs_epi16(size, _mm256_xor_si256(sign, b[v])), ones));
    }
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) _mm256_storeu_si256((__m256i *)(acc + v * 8), c[v]);
}

/// Sums of q − 128 as sums of q − offset.
static void move_offset(int32_t offset, const int32_t *col_sums, int32_t *acc) {
    for (int j = 0; j < NR; j++) acc[j] += (CODE_OFFSET - offset) * col_sums[j];
}

/// One row of either kind.
static void row_sums(const qrt_q8_weights *w, const int8_t *a, const panel_head *head, const int32_t *col_sums, int32_t *acc) {
    const row_end end = *end_of(a, w->k_padded);
    if (end.num_excess >= 0) {
        inside_tile1(a, 0, w->k_padded, head, acc);
        add_outside(a, w->k_padded, head, acc);
        return;
    }
    tile1(a, 0, w->k_padded, head, acc);
    move_offset(end.offset, col_sums, acc);
}

static void sums(const qrt_q8_weights *w, const qrt_q8_block *block, int64_t panel, int32_t *acc) {
    const panel_head *head = (const panel_head *)((const char *)w->panels + panel * w->panel_bytes);
    const int64_t stride = block->a_stride_bytes, k = w->k_padded;
    const int8_t *a = block->a;
    const int32_t *col_sums = w->col_sums + panel * NR;
    for (int r = 0; r < block->num_rows; r += MR, a += MR * stride, acc += MR * NR) {
        const bool two = block->num_rows - r >= MR;
        const bool inside = end_of(a, k)->num_excess >= 0;
        if (!two || inside != (end_of(a + stride, k)->num_excess >= 0)) {
            row_sums(w, a, head, col_sums, acc);
            if (two) row_sums(w, a + stride, head, col_sums, acc + NR);
        } else if (inside) {
            inside_tile2(a, stride, k, head, acc);
            add_outside(a, k, head, acc);
            add_outside(a + stride, k, head, acc + NR);
        } else {
            tile2(a, stride, k, head, acc);
            move_offset(end_of(a, k)->offset, col_sums, acc);
            move_offset(end_of(a + stride, k)->offset, col_sums, acc + NR);
        }
    }
}

#include "../vector/simd_end.h"

void qrt_avx2_gemm_q8(qrt_kernel_table *t) {
    t->codes_q8 = (qrt_codes_q8){range, quantize, NULL, NULL};
    t->gemm_q8 = (qrt_gemm_q8){
        .name = "avx2", .mr = MR, .nr = NR, .kr = KR, .item_bytes = 2,
        .block_rows = QRT_Q8_BLOCK_ROWS, .block_bytes = QRT_Q8_BLOCK_BYTES, .fallback = &qrt_avx2_gemm_q8_widening,
        .codes = {range, quantize_signed, pack_codes, quantize_pieces}, .panel_bytes = panel_bytes, .pack_panel = pack_panel,
        .unpack_panel = unpack_panel,
        .multiply = multiply, .sums = sums, .code_offset = code_offset, .finish = finish,
    };
}

#endif
