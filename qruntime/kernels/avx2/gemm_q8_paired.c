/// int8 GEMM on AVX2 for weights that are mostly small, as those of trained layers are: exact sums from
/// vpmaddubsw, which multiplies twice as much as vpmaddwd but saturates.
///
/// A pair of products 255 · (w0 + w1) fits int16 when the positive weights among them sum to at most 128 and the
/// negative ones to at least −128. So weights are cut into *items*, the four weights of NR columns that meet the
/// same four codes, and an item that breaks the bound is split in two. Items need not stay in the order of k,
/// each says where its codes are; hence two items whose sums together keep the bound are paired, and their products
/// are added in int16 before one vpmaddwd widens both.
#include <math.h>
#include <string.h>

#include "../rungs.h"
#include "gemm_q8.h"

#if defined(__x86_64__)

enum { MR = 3, NR = 16, KR = 4, ITEM = KR * NR };

/// Largest sum of the positive, or of minus the negative weights of a lane of 16 bits.
enum { LIMIT = 128 };

/// A panel: counts, places of the codes, items; pairs grow from the front and single items from the back.
typedef struct {
    int32_t num_pairs, first_single, capacity;
    int32_t places[];
} panel_head;

/// Beyond an eighth more items than k asks for, widening (gemm_q8.c) is faster.
static int64_t capacity_of(int64_t k_padded) { return k_padded / KR + k_padded / KR / 8 + 1; }
static int64_t head_bytes(int64_t capacity) {
    int64_t bytes = (int64_t)sizeof(panel_head) + capacity * (int64_t)sizeof(int32_t);
    return (bytes + QRT_ALIGNMENT - 1) / QRT_ALIGNMENT * QRT_ALIGNMENT;
}
static int64_t panel_bytes(int64_t k_padded) {
    int64_t capacity = capacity_of(k_padded);
    return head_bytes(capacity) + capacity * ITEM;
}

#include "../vector/simd_avx2.h"

#include "../vector/math.inc.h"

#include "../vector/activation.inc.h"
#include "../vector/gemm_q8.inc.h"
#include "quantize_u8.inc.h"

// ------------------------------------------------------------------------------------------ packing

/// Sums of the positive and of minus the negative weights, for each of the 32 lanes of an item; at most 255.
typedef struct {
    __m256i up, down;
} lane_sums;

static inline lane_sums sums_of(__m256i w0, __m256i w1) {
    __m256i ones = _mm256_set1_epi8(1), zero = _mm256_setzero_si256();
    __m256i up0 = _mm256_maddubs_epi16(ones, _mm256_max_epi8(w0, zero));
    __m256i up1 = _mm256_maddubs_epi16(ones, _mm256_max_epi8(w1, zero));
    __m256i down0 = _mm256_sub_epi16(zero, _mm256_maddubs_epi16(ones, _mm256_min_epi8(w0, zero)));
    __m256i down1 = _mm256_sub_epi16(zero, _mm256_maddubs_epi16(ones, _mm256_min_epi8(w1, zero)));
    return (lane_sums){_mm256_packus_epi16(up0, up1), _mm256_packus_epi16(down0, down1)};
}

static inline bool within(__m256i sums) {
    __m256i limit = _mm256_set1_epi8((char)LIMIT);
    return _mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_max_epu8(sums, limit), limit)) == -1;
}

static inline bool may_pair(lane_sums a, lane_sums b) {
    return within(_mm256_adds_epu8(a.up, b.up)) && within(_mm256_adds_epu8(a.down, b.down));
}

/// Where a lane breaks the bound, half of its weights, rounded down; 0 elsewhere. What is left, rounded up, keeps
/// the bound too, for no lane exceeds 254 or −256.
static inline __m256i half_of_excess(__m256i w) {
    __m256i zero = _mm256_setzero_si256(), ones = _mm256_set1_epi8(1);
    __m256i up = _mm256_maddubs_epi16(ones, _mm256_max_epi8(w, zero));
    __m256i down = _mm256_maddubs_epi16(ones, _mm256_min_epi8(w, zero));
    __m256i breaks = _mm256_or_si256(_mm256_cmpgt_epi16(up, _mm256_set1_epi16(LIMIT)),
                                     _mm256_cmpgt_epi16(_mm256_set1_epi16(-LIMIT), down));
    __m256i shifted = _mm256_srli_epi16(_mm256_xor_si256(w, _mm256_set1_epi8(-128)), 1);
    __m256i half = _mm256_sub_epi8(_mm256_and_si256(shifted, _mm256_set1_epi8(127)), _mm256_set1_epi8(64));
    return _mm256_and_si256(half, breaks);
}

enum { WAITING = 8 };

typedef struct {
    panel_head *head;
    int8_t *items;
    int count;                      ///< of waiting items
    lane_sums sums[WAITING];
    __m256i w[WAITING][2];
    int32_t places[WAITING];
} pairing;

static inline void put(pairing *p, int64_t at, int32_t place, __m256i w0, __m256i w1) {
    _mm256_store_si256((__m256i *)(p->items + at * ITEM), w0);
    _mm256_store_si256((__m256i *)(p->items + at * ITEM + 32), w1);
    p->head->places[at] = place;
}

static inline bool put_single(pairing *p, int i) {
    if (p->head->first_single <= 2 * p->head->num_pairs) return false;
    put(p, --p->head->first_single, p->places[i], p->w[i][0], p->w[i][1]);
    return true;
}

static inline void remove_waiting(pairing *p, int i) {
    for (p->count--; i < p->count; i++) {
        p->sums[i] = p->sums[i + 1];
        p->w[i][0] = p->w[i + 1][0];
        p->w[i][1] = p->w[i + 1][1];
        p->places[i] = p->places[i + 1];
    }
}

/// Pair an item that keeps the bound with one that waits, or let it wait. False when the panel is full.
static bool add_item(pairing *p, int32_t place, __m256i w0, __m256i w1, lane_sums sums) {
    for (int i = 0; i < p->count; i++) {
        if (!may_pair(sums, p->sums[i])) continue;
        if (p->head->first_single < 2 * p->head->num_pairs + 2) return false;
        put(p, 2 * p->head->num_pairs, p->places[i], p->w[i][0], p->w[i][1]);
        put(p, 2 * p->head->num_pairs + 1, place, w0, w1);
        p->head->num_pairs++;
        remove_waiting(p, i);
        return true;
    }
    if (p->count == WAITING) {
        if (!put_single(p, 0)) return false;
        remove_waiting(p, 0);
    }
    p->sums[p->count] = sums;
    p->w[p->count][0] = w0;
    p->w[p->count][1] = w1;
    p->places[p->count++] = place;
    return true;
}

/// Four rows of NR columns as lanes of four.
static inline void load_item(const int8_t *w, int64_t row_stride_elems, int64_t col_stride_elems, int64_t rows,
                             int64_t n, __m256i *w0, __m256i *w1) {
    if (rows == KR && n == NR && col_stride_elems == 1) {
        __m128i r0 = _mm_loadu_si128((const __m128i *)w);
        __m128i r1 = _mm_loadu_si128((const __m128i *)(w + row_stride_elems));
        __m128i r2 = _mm_loadu_si128((const __m128i *)(w + 2 * row_stride_elems));
        __m128i r3 = _mm_loadu_si128((const __m128i *)(w + 3 * row_stride_elems));
        __m128i low01 = _mm_unpacklo_epi8(r0, r1), low23 = _mm_unpacklo_epi8(r2, r3);
        __m128i high01 = _mm_unpackhi_epi8(r0, r1), high23 = _mm_unpackhi_epi8(r2, r3);
        *w0 = _mm256_set_m128i(_mm_unpackhi_epi16(low01, low23), _mm_unpacklo_epi16(low01, low23));
        *w1 = _mm256_set_m128i(_mm_unpackhi_epi16(high01, high23), _mm_unpacklo_epi16(high01, high23));
        return;
    }
    int8_t item[ITEM] = {0};
    if (rows == KR && row_stride_elems == 1)
        for (int64_t j = 0; j < n; j++) memcpy(item + j * KR, w + j * col_stride_elems, KR);
    else
        for (int64_t j = 0; j < n; j++)
            for (int64_t i = 0; i < rows; i++) item[j * KR + i] = w[i * row_stride_elems + j * col_stride_elems];
    *w0 = _mm256_loadu_si256((const __m256i *)item);
    *w1 = _mm256_loadu_si256((const __m256i *)(item + 32));
}

/// Add an item whatever its sums.
static bool add_bounded(pairing *p, int32_t place, __m256i w0, __m256i w1) {
    lane_sums sums = sums_of(w0, w1);
    if (within(sums.up) && within(sums.down)) return add_item(p, place, w0, w1, sums);
    __m256i rest0 = half_of_excess(w0), rest1 = half_of_excess(w1);
    w0 = _mm256_sub_epi8(w0, rest0);
    w1 = _mm256_sub_epi8(w1, rest1);
    return add_item(p, place, w0, w1, sums_of(w0, w1)) && add_item(p, place, rest0, rest1, sums_of(rest0, rest1));
}

/// Zero points of up to 8 columns, each in four bytes; zeros where there is no column.
static inline __m256i zero_bytes(const int32_t *zero_points, int64_t n) {
    if (!zero_points || n <= 0) return _mm256_setzero_si256();
    __m256i z = vi_load_n(zero_points, n < 8 ? n : 8);
    __m128i low_bytes = _mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
    return _mm256_shuffle_epi8(z, _mm256_broadcastsi128_si256(low_bytes));
}

static inline __m256i first_rows(__m256i item, int64_t rows) {
    return _mm256_and_si256(item, _mm256_set1_epi32((int32_t)((1u << 8 * rows) - 1)));
}

static inline bool is_zero(__m256i v) { return _mm256_testz_si256(v, v); }

/// Weights minus zero points; what then lies beyond int8 becomes an item of its own.
static bool pack_panel(const int8_t *w, int64_t row_stride_elems, int64_t col_stride_elems, int64_t k, int64_t n,
                       const int32_t *zero_points, void *panel) {
    if (k > QRT_Q8_MAX_K) return false;
    for (int64_t j = 0; zero_points && j < n; j++)
        if (zero_points[j] == INT8_MIN) return false;  // 127 + 128 is more than two items hold
    int64_t k_padded = (k + KR - 1) / KR * KR;
    panel_head *head = panel;
    head->capacity = head->first_single = (int32_t)capacity_of(k_padded);
    head->num_pairs = 0;
    pairing p = {.head = head, .items = (int8_t *)panel + head_bytes(head->capacity)};
    __m256i zero0 = zero_bytes(zero_points, n), zero1 = zero_bytes(zero_points ? zero_points + 8 : NULL, n - 8);
    for (int64_t i = 0; i < k; i += KR) {
        __m256i source0, source1;
        int64_t rows = k - i < KR ? k - i : KR;
        load_item(w + i * row_stride_elems, row_stride_elems, col_stride_elems, rows, n, &source0, &source1);
        if (rows < KR) {
            zero0 = first_rows(zero0, rows);
            zero1 = first_rows(zero1, rows);
        }
        __m256i w0 = _mm256_subs_epi8(source0, zero0), w1 = _mm256_subs_epi8(source1, zero1);
        __m256i beyond0 = _mm256_sub_epi8(_mm256_sub_epi8(source0, zero0), w0);
        __m256i beyond1 = _mm256_sub_epi8(_mm256_sub_epi8(source1, zero1), w1);
        if (!is_zero(_mm256_or_si256(beyond0, beyond1)) && !add_bounded(&p, (int32_t)i, beyond0, beyond1)) return false;
        if (!add_bounded(&p, (int32_t)i, w0, w1)) return false;
    }
    for (int i = 0; i < p.count; i++)
        if (!put_single(&p, i)) return false;
    return true;
}

// -------------------------------------------------------------------------------------------- tiles

#define HOLD(a, b) __asm__("" : "+x"(a), "+x"(b))

static inline __attribute__((always_inline)) __m256i codes_at(const uint8_t *a) {
    int32_t codes;
    memcpy(&codes, a, sizeof codes);
    return _mm256_set1_epi32(codes);
}

static inline __attribute__((always_inline)) void
tile(const int rows, const uint8_t *a, int64_t stride, const panel_head *head, int32_t *acc) {
    const __m256i ones = _mm256_set1_epi16(1);
    const __m256i *items = (const __m256i *)((const char *)head + head_bytes(head->capacity));
    const int32_t *place = head->places;
    __m256i c0[MR], c1[MR];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) c0[r] = c1[r] = _mm256_setzero_si256();
    const __m256i *b = items;
    for (const int32_t *end = place + 2 * head->num_pairs; place < end; place += 2, b += 4) {
        const uint8_t *first = a + place[0], *second = a + place[1];
        __m256i b0 = _mm256_load_si256(b), b1 = _mm256_load_si256(b + 1);
        __m256i b2 = _mm256_load_si256(b + 2), b3 = _mm256_load_si256(b + 3);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            __m256i x = codes_at(first + r * stride), y = codes_at(second + r * stride);
            __m256i s0 = _mm256_add_epi16(_mm256_maddubs_epi16(x, b0), _mm256_maddubs_epi16(y, b2));
            __m256i s1 = _mm256_add_epi16(_mm256_maddubs_epi16(x, b1), _mm256_maddubs_epi16(y, b3));
            c0[r] = _mm256_add_epi32(c0[r], _mm256_madd_epi16(s0, ones));
            c1[r] = _mm256_add_epi32(c1[r], _mm256_madd_epi16(s1, ones));
            HOLD(c0[r], c1[r]);
        }
    }
    b = items + 2 * (int64_t)head->first_single;
    place = head->places + head->first_single;
    for (const int32_t *end = head->places + head->capacity; place < end; place++, b += 2) {
        const uint8_t *first = a + *place;
        __m256i b0 = _mm256_load_si256(b), b1 = _mm256_load_si256(b + 1);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            __m256i x = codes_at(first + r * stride);
            c0[r] = _mm256_add_epi32(c0[r], _mm256_madd_epi16(_mm256_maddubs_epi16(x, b0), ones));
            c1[r] = _mm256_add_epi32(c1[r], _mm256_madd_epi16(_mm256_maddubs_epi16(x, b1), ones));
            HOLD(c0[r], c1[r]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        _mm256_storeu_si256((__m256i *)(acc + r * NR), c0[r]);
        _mm256_storeu_si256((__m256i *)(acc + r * NR + 8), c1[r]);
    }
}

static __attribute__((noinline)) void tile1(const uint8_t *a, int64_t stride, const panel_head *head, int32_t *acc) {
    tile(1, a, stride, head, acc);
}
static __attribute__((noinline)) void tile2(const uint8_t *a, int64_t stride, const panel_head *head, int32_t *acc) {
    tile(2, a, stride, head, acc);
}
static __attribute__((noinline)) void tile3(const uint8_t *a, int64_t stride, const panel_head *head, int32_t *acc) {
    tile(3, a, stride, head, acc);
}

static void multiply(const qrt_q8_weights *w, const qrt_q8_block *block, int64_t first, int64_t last) {
    int64_t stride = block->a_stride_bytes;
    for (int64_t panel = first; panel < last; panel++) {
        const panel_head *head = (const panel_head *)((const char *)w->panels + panel * w->panel_bytes);
        for (int r = 0; r < block->num_rows;) {
            int left = block->num_rows - r, rows = left == 4 ? 2 : left < MR ? left : MR;
            const uint8_t *a = (const uint8_t *)block->a + r * stride;
            int32_t acc[MR * NR];
            if (rows == 1) tile1(a, stride, head, acc);
            else if (rows == 2) tile2(a, stride, head, acc);
            else tile3(a, stride, head, acc);
            finish_tile(w, block, panel, r, rows, acc);
            r += rows;
        }
    }
}

#include "../vector/simd_end.h"

void qrt_avx2_gemm_q8(qrt_kernel_table *t) {
    t->gemm_q8 = (qrt_gemm_q8){
        .name = "avx2", .mr = MR, .nr = NR, .kr = KR, .item_bytes = 1, .fallback = &qrt_avx2_gemm_q8_widening,
        .range = range, .quantize = quantize, .panel_bytes = panel_bytes, .pack_panel = pack_panel,
        .subtracts_zero_points = true,
        .multiply = multiply, .finish = finish,
    };
}

#endif
