/// Convolutions of channels in blocks over any vector: define before MAX_POSITIONS, MAX_BLOCKS, the list QRT_CONV_TILES with
/// TILE(blocks, positions) of each tile, QRT_CONV_TILES_IN_STEPS with IN_STEPS(blocks, positions), DEPTHWISE_POSITIONS and the list QRT_CONV_SLIDES with SLIDE(count) from 1 to that.

#include <math.h>

enum { BLOCK_VECTORS = QRT_CHANNEL_BLOCK / VL };

#define ALWAYS_INLINE static inline __attribute__((always_inline))

static const float zeros[QRT_CHANNEL_BLOCK];

ALWAYS_INLINE vf finished(vf sum, const float *bias, const float *addend, vf low, vf high) {
    if (bias) sum = vf_add(sum, vf_load(bias));
    if (addend) sum = vf_add(sum, vf_load(addend));
    return vf_min(high, vf_max(low, sum));  // in this order of operands NaN stays
}

ALWAYS_INLINE void store_tile(const int positions, const int vectors, vf sums[MAX_POSITIONS][MAX_BLOCKS * BLOCK_VECTORS], float *y, int64_t y_plane, int64_t y_step) {
#pragma GCC unroll 16
    for (int p = 0; p < positions; p++, y += y_step)
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++)
            vf_store(y + v / BLOCK_VECTORS * y_plane + v % BLOCK_VECTORS * VL, sums[p][v]);
}

/// The epilogue comes by value: every store could change one in memory.
ALWAYS_INLINE void finish_tile(const int positions, const int vectors, vf sums[MAX_POSITIONS][MAX_BLOCKS * BLOCK_VECTORS], float *y, int64_t y_plane, int64_t y_step,
                               const qrt_conv_epilogue e, const bool with_addend) {
    const vf low = vf_set(e.low), high = vf_set(e.high);
    const float *addend = e.addend;
#pragma GCC unroll 16
    for (int p = 0; p < positions; p++, y += y_step, addend = with_addend ? addend + y_step : NULL)
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++) {
            const int64_t block = v / BLOCK_VECTORS, lane = v % BLOCK_VECTORS * VL;
            const float *bias = e.bias ? e.bias + v * VL : NULL, *added = with_addend ? addend + block * e.addend_plane + lane : NULL;
            vf_store(y + block * y_plane + lane, finished(sums[p][v], bias, added, low, high));
        }
}

/// `step`, `positions` and `blocks` are constants at every call: all loops over the tile unroll into registers.
ALWAYS_INLINE void tile_of(const int step, const int positions, const int blocks, const qrt_conv_sums *s, float *y, int64_t y_plane, bool accumulate,
                           const qrt_conv_epilogue *epilogue) {
    const int vectors = blocks * BLOCK_VECTORS;
    int64_t y_step = s->y_step;
    vf sums[MAX_POSITIONS][MAX_BLOCKS * BLOCK_VECTORS];
#pragma GCC unroll 16
    for (int p = 0; p < positions; p++)
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++)
            sums[p][v] = accumulate ? vf_load(y + v / BLOCK_VECTORS * y_plane + p * y_step + v % BLOCK_VECTORS * VL) : vf_zero();
    __asm__("" : "+r"(y), "+r"(y_plane), "+r"(y_step));  // else compilers keep the address of every output across the sums
    if (epilogue && epilogue->addend)
        for (int b = 0; b < blocks; b++)
            for (int p = 0; p < positions; p++)
                __builtin_prefetch(epilogue->addend + b * epilogue->addend_plane + p * y_step, 0, 3);
    const float *w_plane = s->w, *ahead = s->ahead;
    for (int64_t i = 0; i < s->num_planes; i++, w_plane += s->w_plane) {
        const float *x = s->planes[i];
        const int64_t *place = s->places, count = i + 1 < s->num_planes ? s->num_floats : s->num_last_floats;
        for (int64_t t = 0; t < s->num_taps; t++, place += step ? 1 : positions) {
            __asm__("" : "+r"(s));  // what it says is read again, else compilers keep it in vectors
            const float *w = w_plane + s->taps[t], *first = step ? x + place[0] : x, *at[MAX_POSITIONS];
#pragma GCC unroll 16
            for (int p = 0; p < positions && !step; p++) at[p] = place[p] < 0 ? zeros : x + place[p];
            if (s->num_taps == 1 && step != 1 && step != 2)  // the next tile begins where this one ends; of several taps most was read
#pragma GCC unroll 16
                for (int p = 0; p < positions; p++)
                    __builtin_prefetch(step ? first + (positions + p) * step : at[p] + positions * QRT_CHANNEL_BLOCK, 0, 3);
            for (int64_t c = 0; c < count; c++, w += vectors * VL, first++, ahead += 16) {
                __asm__("" : "+r"(first));  // else compilers keep a pointer to every position, most of them in memory
                vf weights[MAX_BLOCKS * BLOCK_VECTORS];
#pragma GCC unroll 16
                for (int v = 0; v < vectors; v++) weights[v] = vf_load(w + v * VL);
                __builtin_prefetch(ahead, 0, 2);
#pragma GCC unroll 16
                for (int p = 0; p < positions; p++) {
                    const vf element = vf_set(step ? first[p * step] : at[p][c]);
#pragma GCC unroll 16
                    for (int v = 0; v < vectors; v++) sums[p][v] = vf_fma(element, weights[v], sums[p][v]);
                }
            }
        }
    }
    if (!epilogue) store_tile(positions, vectors, sums, y, y_plane, y_step);
    else if (epilogue->addend) finish_tile(positions, vectors, sums, y, y_plane, y_step, *epilogue, true);
    else finish_tile(positions, vectors, sums, y, y_plane, y_step, *epilogue, false);
}

#define CASE(BLOCKS, POSITIONS) case BLOCKS * (MAX_POSITIONS + 1) + POSITIONS:
#define TILE(BLOCKS, POSITIONS) \
    CASE(BLOCKS, POSITIONS) tile_of(0, POSITIONS, BLOCKS, sums, y, y_plane, accumulate, epilogue); break;
#define IN_STEPS(BLOCKS, POSITIONS) CASE(BLOCKS, POSITIONS) tile_of(step, POSITIONS, BLOCKS, sums, y, y_plane, accumulate, epilogue); break;

ALWAYS_INLINE void tile_in_steps(const int step, const qrt_conv_sums *sums, int num_positions, int num_blocks, float *y, int64_t y_plane,
                                 bool accumulate, const qrt_conv_epilogue *epilogue) {
    switch (num_blocks * (MAX_POSITIONS + 1) + num_positions) {
        QRT_CONV_TILES_IN_STEPS
    }
}

#define STEP(N) case N: tile_in_steps(N, sums, num_positions, num_blocks, y, y_plane, accumulate, epilogue); return;

static void tile(const qrt_conv_sums *sums, int num_positions, int num_blocks, float *y, int64_t y_plane, bool accumulate,
                 const qrt_conv_epilogue *epilogue) {
    switch (sums->step) {
        QRT_CONV_STEPS(STEP)
    }
    switch (num_blocks * (MAX_POSITIONS + 1) + num_positions) {
        QRT_CONV_TILES
    }
}

ALWAYS_INLINE void depthwise_of(const int positions, int64_t step, int64_t num_taps, const int64_t *places, const int64_t *taps,
                                const float *w, const float *x, float *y, const qrt_conv_epilogue *e) {
    vf sums[DEPTHWISE_POSITIONS][BLOCK_VECTORS];
#pragma GCC unroll 8
    for (int p = 0; p < positions; p++)
#pragma GCC unroll 4
        for (int v = 0; v < BLOCK_VECTORS; v++) sums[p][v] = vf_zero();
    for (int64_t t = 0; t < num_taps; t++) {
        const float *at = x + places[t], *weights = w + taps[t];
#pragma GCC unroll 8
        for (int p = 0; p < positions; p++)
#pragma GCC unroll 4
            for (int v = 0; v < BLOCK_VECTORS; v++)
                sums[p][v] = vf_fma(vf_load(at + p * step + v * VL), vf_load(weights + v * VL), sums[p][v]);
    }
    const vf low = vf_set(e->low), high = vf_set(e->high);
#pragma GCC unroll 8
    for (int p = 0; p < positions; p++)
#pragma GCC unroll 4
        for (int v = 0; v < BLOCK_VECTORS; v++) {
            const int64_t place = p * QRT_CHANNEL_BLOCK + v * VL;
            vf_store(y + place, finished(sums[p][v], e->bias ? e->bias + v * VL : NULL, e->addend ? e->addend + place : NULL, low, high));
        }
}

#define SLIDE(COUNT) case COUNT: depthwise_of(COUNT, step, num_taps, places, taps, w, x, y, &e); break;

ALWAYS_INLINE void depthwise_rows(int64_t n, int64_t step, int64_t num_taps, const int64_t *places, const int64_t *taps, const float *w,
                                  const float *x, float *y, qrt_conv_epilogue e) {
    if (n <= 0) return;
    const int64_t tiles = (n + DEPTHWISE_POSITIONS - 1) / DEPTHWISE_POSITIONS, least = n / tiles, larger = n % tiles;
    for (int64_t i = 0; i < tiles; i++) {
        const int64_t count = i < larger ? least + 1 : least;
        switch (count) {
            QRT_CONV_SLIDES
        }
        x += count * step;
        y += count * QRT_CHANNEL_BLOCK;
        if (e.addend) e.addend += count * QRT_CHANNEL_BLOCK;
    }
}

static void depthwise(int64_t n, int64_t step, int64_t num_taps, const int64_t *places, const int64_t *taps, const float *w,
                      const float *x, float *y, const qrt_conv_epilogue *epilogue) {
    // Constant steps make constant offsets.
    if (step == QRT_CHANNEL_BLOCK) depthwise_rows(n, QRT_CHANNEL_BLOCK, num_taps, places, taps, w, x, y, *epilogue);
    else if (step == 2 * QRT_CHANNEL_BLOCK) depthwise_rows(n, 2 * QRT_CHANNEL_BLOCK, num_taps, places, taps, w, x, y, *epilogue);
    else depthwise_rows(n, step, num_taps, places, taps, w, x, y, *epilogue);
}

ALWAYS_INLINE vf greater(vf a, vf b) { return vf_blend(vf_is_nan(a), a, vf_max(a, b)); }

ALWAYS_INLINE void pool_of(const int positions, const bool is_max, int64_t step, int64_t num_taps, const int64_t *places, vf divisor,
                           const float *x, float *y) {
    vf found[DEPTHWISE_POSITIONS][BLOCK_VECTORS];
#pragma GCC unroll 8
    for (int p = 0; p < positions; p++)
#pragma GCC unroll 4
        for (int v = 0; v < BLOCK_VECTORS; v++) found[p][v] = is_max ? vf_set(-INFINITY) : vf_zero();
    for (int64_t t = 0; t < num_taps; t++) {
        const float *at = x + places[t];
#pragma GCC unroll 8
        for (int p = 0; p < positions; p++)
#pragma GCC unroll 4
            for (int v = 0; v < BLOCK_VECTORS; v++) {
                const vf element = vf_load(at + p * step + v * VL);
                found[p][v] = is_max ? greater(element, found[p][v]) : vf_add(found[p][v], element);
            }
    }
#pragma GCC unroll 8
    for (int p = 0; p < positions; p++)
#pragma GCC unroll 4
        for (int v = 0; v < BLOCK_VECTORS; v++)
            vf_store(y + p * QRT_CHANNEL_BLOCK + v * VL, is_max ? found[p][v] : vf_div(found[p][v], divisor));
}

#undef SLIDE
#define SLIDE(COUNT) case COUNT: pool_of(COUNT, is_max, step, num_taps, places, vf_set(divisor), x, y); break;

ALWAYS_INLINE void pool(const bool is_max, int64_t n, int64_t step, int64_t num_taps, const int64_t *places, float divisor, const float *x, float *y) {
    for (int64_t left = (n + DEPTHWISE_POSITIONS - 1) / DEPTHWISE_POSITIONS, count; n > 0; n -= count, left--) {
        count = (n + left - 1) / left;
        switch (count) {
            QRT_CONV_SLIDES
        }
        x += count * step;
        y += count * QRT_CHANNEL_BLOCK;
    }
}

static void maxima(int64_t n, int64_t step, int64_t num_taps, const int64_t *places, const float *x, float *y) {
    pool(true, n, step, num_taps, places, 1, x, y);
}

static void means(int64_t n, int64_t step, int64_t num_taps, const int64_t *places, float divisor, const float *x, float *y) {
    pool(false, n, step, num_taps, places, divisor, x, y);
}
