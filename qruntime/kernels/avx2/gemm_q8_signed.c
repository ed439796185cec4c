/// int8 GEMM on AVX2: exact sums from vpmaddubsw, which multiplies twice as much as vpmaddwd but saturates.
///
/// The codes of a row are kept as magnitude and sign of a' = q − c, c their mean, for a product of int8 and int8 has a
/// bit to spare:
///
///     a' · w = |a'| · (w ^ s) + |a'| · (a' < 0),     s = −1 where a' < 0, else 0
///
/// The second part belongs to the row alone. |w ^ s| ≤ 128, so products may be added in int16 while their |a'| sum to
/// at most 256. Four codes of a row nearly always do, for most lie near the mean. So while a row is packed its quads of
/// codes are put in pairs that do, mostly neighbours; a pair then meets every panel of weights with four products a
/// lane before vpmaddwd widens them. What cannot be paired meets them with two, or, where two codes lie far out, one.
#include <math.h>
#include <string.h>

#include "../rungs.h"
#include "gemm_q8.h"

#if defined(__x86_64__)

enum { MR = 1, NR = 64, KR = 32, QUAD = 4, OCTET = 8 };

/// Largest depth of a block of weights, which stays in the L1 cache while rows pass, and its pairs of quads.
enum { BLOCK_K = 384, BLOCK_PAIRS = BLOCK_K / OCTET };

/// Largest Σ |a'| of products added in int16: −128 · 256 is its end.
enum { LIMIT = 256 };

/// The quads of a block: first pairs that meet weights with four products a lane, then with two, the rest one by one.
typedef struct {
    uint8_t num_fours, num_twos;
    uint8_t quads[BLOCK_PAIRS][2];
} schedule;

/// A row: this, then for each quad of codes four magnitudes and four signs, then the schedules of its blocks.
typedef struct {
    int32_t center;
    int32_t start;      ///< Σ |a'| over a' < 0
    int32_t unused[14];
} row_head;

static inline int8_t *row_codes(const void *row) { return (int8_t *)row + sizeof(row_head); }
static inline schedule *row_schedules(const void *row, int64_t k_padded) {
    return (schedule *)(row_codes(row) + 2 * k_padded);
}
static int64_t num_blocks(int64_t k_padded) { return (k_padded + BLOCK_K - 1) / BLOCK_K; }
/// Blocks of one row are of equal depth but for the last.
static int64_t block_depth(int64_t k_padded) {
    int64_t blocks = num_blocks(k_padded), depth = blocks ? (k_padded + blocks - 1) / blocks : KR;
    return (depth + KR - 1) / KR * KR;
}
static int64_t signed_row_bytes(int64_t k_padded) {
    return (int64_t)sizeof(row_head) + 2 * k_padded + num_blocks(k_padded) * (int64_t)sizeof(schedule);
}

#include "../vector/simd_avx2.h"

#include "../vector/math.inc.h"

#include "../vector/activation.inc.h"

static inline int32_t code_offset(const qrt_q8_block *block, int r) {
    return ((const row_head *)((const char *)block->a + r * block->a_stride_bytes))->center;
}
#include "../vector/gemm_q8.inc.h"
#include "quantize_u8.inc.h"

// -------------------------------------------------------------------------------------- activations

/// Of one block: Σ |a'| in the two lanes of each quad; bit i says that octet i breaks the limit with four products a
/// lane, or with two.
typedef struct {
    int16_t sums[BLOCK_K / 4][2];
    uint64_t not_four, not_two;
} block_sums;

static inline bool fit(const int16_t *x, const int16_t *y) { return x[0] + y[0] <= LIMIT && x[1] + y[1] <= LIMIT; }

/// Exchange quads between octet `i`, which breaks the limit, and one that does not, so that both keep it.
static bool exchange(const block_sums *s, uint64_t broken, uint8_t (*quads)[2], int num_octets, int i) {
    uint8_t *x = quads[i];
    for (int j = 0; j < num_octets; j++) {
        if (broken >> j & 1) continue;
        uint8_t *y = quads[j];
        for (int way = 0; way < 2; way++) {
            if (!fit(s->sums[x[0]], s->sums[y[way]]) || !fit(s->sums[x[1]], s->sums[y[1 - way]])) continue;
            uint8_t moved = x[1];
            x[1] = y[way];
            y[way] = moved;
            return true;
        }
    }
    return false;
}

static void plan(const block_sums *s, int num_octets, schedule *out) {
    uint8_t quads[BLOCK_PAIRS][2];
    for (int i = 0; i < num_octets; i++) {
        quads[i][0] = (uint8_t)(2 * i);
        quads[i][1] = (uint8_t)(2 * i + 1);
    }
    out->num_fours = (uint8_t)num_octets;
    out->num_twos = 0;
    uint64_t broken = s->not_four | s->not_two;
    if (!broken) {
        memcpy(out->quads, quads, sizeof quads);
        return;
    }
    for (int i = 0; i < num_octets; i++)
        if ((broken & ~s->not_two) >> i & 1 && exchange(s, broken, quads, num_octets, i)) broken &= ~(1ull << i);
    int placed = 0, counts[3] = {0};
    for (int kind = 0; kind < 3; kind++)
        for (int i = 0; i < num_octets; i++) {
            if ((int)(broken >> i & 1) + (int)(s->not_two >> i & 1) != kind) continue;
            memcpy(out->quads[placed++], quads[i], 2);
            counts[kind]++;
        }
    out->num_fours = (uint8_t)counts[0];
    out->num_twos = (uint8_t)counts[1];
}

static void quantize_signed(const float *a, int64_t k, int64_t k_padded, float inverse_scale, int32_t zero_point,
                            void *packed, int64_t *sum) {
    int8_t *out = row_codes(packed);
    uint8_t *codes = (uint8_t *)out + k_padded;  // each is read before anything is written there
    int64_t total;
    quantize(a, k, k_padded, inverse_scale, zero_point, codes, &total);
    if (sum) *sum = total;
    int32_t center = k ? (int32_t)((total + k / 2) / k) : 0;
    memset(codes + k, center, (size_t)(k_padded - k));
    const __m256i zero = _mm256_setzero_si256(), limit = _mm256_set1_epi16(LIMIT), c = _mm256_set1_epi8((char)center);
    __m256i start = zero;
    schedule *schedules = row_schedules(packed, k_padded);
    const int64_t depth = block_depth(k_padded);
    for (int64_t first = 0; first < k_padded; first += depth) {
        int64_t last = k_padded - first < depth ? k_padded : first + depth;
        block_sums sums;
        sums.not_four = sums.not_two = 0;
        for (int64_t i = first; i < last; i += KR) {
            __m256i q = _mm256_loadu_si256((const __m256i *)(codes + i)), high = _mm256_max_epu8(q, c);
            __m256i size = _mm256_sub_epi8(high, _mm256_min_epu8(q, c)), sign = _mm256_cmpeq_epi8(high, c);
            start = _mm256_add_epi64(start, _mm256_sad_epu8(_mm256_and_si256(size, sign), zero));
            __m256i x = _mm256_unpacklo_epi32(size, sign), y = _mm256_unpackhi_epi32(size, sign);
            _mm256_storeu_si256((__m256i *)(out + 2 * i), _mm256_permute2x128_si256(x, y, 0x20));
            _mm256_storeu_si256((__m256i *)(out + 2 * i + 32), _mm256_permute2x128_si256(x, y, 0x31));
            __m256i two = _mm256_maddubs_epi16(size, _mm256_set1_epi8(1));
            __m256i four = _mm256_add_epi16(two, _mm256_srli_epi64(two, 32));
            _mm256_storeu_si256((__m256i *)sums.sums[(i - first) / QUAD], two);
            uint32_t not_four = (uint32_t)_mm256_movemask_epi8(_mm256_cmpgt_epi16(four, limit)) & 0x0f0f0f0f;
            uint32_t not_two = (uint32_t)_mm256_movemask_epi8(_mm256_cmpgt_epi16(two, limit));
            if (not_four)
                for (int octet = 0; octet < 4; octet++) {
                    uint64_t bit = 1ull << ((i - first) / OCTET + octet);
                    if (not_four >> 8 * octet & 0xff) sums.not_four |= bit;
                    if (not_two >> 8 * octet & 0xff) sums.not_two |= bit;
                }
        }
        plan(&sums, (int)(last - first) / OCTET, schedules++);
    }
    __m128i starts = _mm_add_epi64(_mm256_castsi256_si128(start), _mm256_extracti128_si256(start, 1));
    row_head *head = packed;
    head->center = center;
    head->start = _mm_cvtsi128_si32(_mm_add_epi64(starts, _mm_unpackhi_epi64(starts, starts)));
}

// ------------------------------------------------------------------------------------------ packing

static int64_t panel_bytes(int64_t k_padded) { return k_padded * NR; }

/// Four rows of 16 columns as lanes of four.
static inline void interleave16(const int8_t *w, int64_t row_stride_elems, int8_t *out) {
    __m128i r0 = _mm_loadu_si128((const __m128i *)w);
    __m128i r1 = _mm_loadu_si128((const __m128i *)(w + row_stride_elems));
    __m128i r2 = _mm_loadu_si128((const __m128i *)(w + 2 * row_stride_elems));
    __m128i r3 = _mm_loadu_si128((const __m128i *)(w + 3 * row_stride_elems));
    __m128i low01 = _mm_unpacklo_epi8(r0, r1), low23 = _mm_unpacklo_epi8(r2, r3);
    __m128i high01 = _mm_unpackhi_epi8(r0, r1), high23 = _mm_unpackhi_epi8(r2, r3);
    _mm_store_si128((__m128i *)out, _mm_unpacklo_epi16(low01, low23));
    _mm_store_si128((__m128i *)(out + 16), _mm_unpackhi_epi16(low01, low23));
    _mm_store_si128((__m128i *)(out + 32), _mm_unpacklo_epi16(high01, high23));
    _mm_store_si128((__m128i *)(out + 48), _mm_unpackhi_epi16(high01, high23));
}

/// [k / 4][NR][4]
static bool pack_panel(const int8_t *w, int64_t row_stride_elems, int64_t col_stride_elems, int64_t k, int64_t n,
                       const int32_t *zero_points, void *panel) {
    (void)zero_points;
    if (k > QRT_Q8_MAX_K) return false;
    int8_t *out = memset(panel, 0, (size_t)panel_bytes((k + KR - 1) / KR * KR));
    for (int64_t i = 0; i < k; i += QUAD, out += QUAD * NR) {
        const int8_t *from = w + i * row_stride_elems;
        int64_t rows = k - i < QUAD ? k - i : QUAD;
        if (rows == QUAD && n == NR && col_stride_elems == 1)
            for (int j = 0; j < NR; j += 16) interleave16(from + j, row_stride_elems, out + j * QUAD);
        else if (rows == QUAD && row_stride_elems == 1)
            for (int64_t j = 0; j < n; j++) memcpy(out + j * QUAD, from + j * col_stride_elems, QUAD);
        else
            for (int64_t j = 0; j < n; j++)
                for (int64_t r = 0; r < rows; r++)
                    out[j * QUAD + r] = from[r * row_stride_elems + j * col_stride_elems];
    }
    return true;
}

// -------------------------------------------------------------------------------------------- tiles

static inline __attribute__((always_inline)) __m256i four_at(const int8_t *a) {
    int32_t four;
    memcpy(&four, a, sizeof four);
    return _mm256_set1_epi32(four);
}

/// Keeps the compiler from regrouping sums, for which it would need more registers than there are.
#define HOLD(a) __asm__("" : "+x"(a))

/// Add a block of a row against 8 · `vectors` columns to acc.
static inline __attribute__((always_inline)) void
row_block(const int vectors, const int8_t *codes, const schedule *s, int num_pairs, const __m256i *panel,
          int32_t *acc) {
    enum { STRIDE = NR / 8 };
    const __m256i ones = _mm256_set1_epi16(1);
    const uint8_t(*pair)[2] = s->quads, (*end)[2] = pair + s->num_fours;
    __m256i c[STRIDE];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++) c[v] = _mm256_loadu_si256((const __m256i *)(acc + 8 * v));
    for (; pair < end; pair++) {
        const int64_t first = (*pair)[0], second = (*pair)[1];
        const __m256i *b = panel + first * STRIDE, *d = panel + second * STRIDE;
        __m256i x = four_at(codes + first * 8), x_sign = four_at(codes + first * 8 + 4);
        __m256i y = four_at(codes + second * 8), y_sign = four_at(codes + second * 8 + 4);
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) {
            __m256i t = _mm256_maddubs_epi16(x, _mm256_xor_si256(x_sign, b[v]));
            t = _mm256_add_epi16(t, _mm256_maddubs_epi16(y, _mm256_xor_si256(y_sign, d[v])));
            c[v] = _mm256_add_epi32(c[v], _mm256_madd_epi16(t, ones));
            HOLD(c[v]);
        }
    }
    for (end += s->num_twos; pair < end; pair++)
        for (int i = 0; i < 2; i++) {
            const int8_t *a = codes + (int64_t)(*pair)[i] * 8;
            const __m256i *b = panel + (int64_t)(*pair)[i] * STRIDE;
            __m256i x = four_at(a), x_sign = four_at(a + 4);
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) {
                __m256i t = _mm256_maddubs_epi16(x, _mm256_xor_si256(x_sign, b[v]));
                c[v] = _mm256_add_epi32(c[v], _mm256_madd_epi16(t, ones));
                HOLD(c[v]);
            }
        }
    for (end = s->quads + num_pairs; pair < end; pair++)
        for (int i = 0; i < 4; i++) {
            const int8_t *a = codes + (int64_t)(*pair)[i / 2] * 8;
            const __m256i *b = panel + (int64_t)(*pair)[i / 2] * STRIDE;
            __m256i x = _mm256_and_si256(four_at(a), _mm256_set1_epi16(i % 2 ? -256 : 255)), x_sign = four_at(a + 4);
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) {
                __m256i t = _mm256_maddubs_epi16(x, _mm256_xor_si256(x_sign, b[v]));
                c[v] = _mm256_add_epi32(c[v], _mm256_madd_epi16(t, ones));
                HOLD(c[v]);
            }
        }
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++) _mm256_storeu_si256((__m256i *)(acc + 8 * v), c[v]);
}

#define ROW_BLOCK(vectors)                                                                                             \
    static __attribute__((noinline)) void row_block##vectors(const int8_t *codes, const schedule *s, int num_pairs,    \
                                                             const __m256i *panel, int32_t *acc) {                     \
        row_block(vectors, codes, s, num_pairs, panel, acc);                                                           \
    }
ROW_BLOCK(2)
ROW_BLOCK(4)
ROW_BLOCK(8)

/// Rows whose sums wait together between two blocks.
enum { GROUP_ROWS = 128 };

static void multiply(const qrt_q8_weights *w, const qrt_q8_block *block, int64_t first, int64_t last) {
    const int64_t block_k = block_depth(w->k_padded);
    int32_t acc[GROUP_ROWS * NR];
    for (int64_t panel = first; panel < last; panel++) {
        int64_t columns = w->n - panel * NR;
        void (*add_block)(const int8_t *, const schedule *, int, const __m256i *, int32_t *) =
            columns > 32 ? row_block8 : columns > 16 ? row_block4 : row_block2;
        const char *b = (const char *)w->panels + panel * w->panel_bytes;
        for (int group = 0; group < block->num_rows; group += GROUP_ROWS) {
            int rows = block->num_rows - group < GROUP_ROWS ? block->num_rows - group : GROUP_ROWS;
            const char *a = (const char *)block->a + group * block->a_stride_bytes;
            for (int r = 0; r < rows; r++) {
                vi start = vi_set(((const row_head *)(a + r * block->a_stride_bytes))->start);
                for (int j = 0; j < NR; j += VL) vi_store(acc + r * NR + j, start);
            }
            for (int64_t k = 0, i = 0; k < w->k_padded; k += block_k, i++) {
                int64_t depth = w->k_padded - k < block_k ? w->k_padded - k : block_k;
                const __m256i *block_b = (const __m256i *)(b + k * NR);
                for (int r = 0; r < rows; r++) {
                    const char *row = a + r * block->a_stride_bytes;
                    add_block(row_codes(row) + 2 * k, row_schedules(row, w->k_padded) + i,
                              (int)(depth / OCTET), block_b, acc + r * NR);
                    if (k + depth == w->k_padded) finish_tile(w, block, panel, group + r, 1, acc + r * NR);
                }
            }
            if (!w->k_padded)
                for (int r = 0; r < rows; r++) finish_tile(w, block, panel, group + r, 1, acc + r * NR);
        }
    }
}

#include "../vector/simd_end.h"

void qrt_avx2_gemm_q8(qrt_kernel_table *t) {
    t->gemm_q8 = (qrt_gemm_q8){
        .name = "avx2", .mr = MR, .nr = NR, .kr = KR, .item_bytes = 2, .fallback = &qrt_avx2_gemm_q8_widening,
        .row_bytes = signed_row_bytes,
        .range = range, .quantize = quantize_signed, .panel_bytes = panel_bytes, .pack_panel = pack_panel,
        .multiply = multiply, .finish = finish,
    };
}

#endif
