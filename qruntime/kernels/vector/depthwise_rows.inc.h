/// Depthwise windows along a row over any vector, after conv_f32.inc.h: define before ROW_POSITIONS and the list QRT_CONV_ROWS with
/// ROW(count) from 1 to that.
///
/// Windows next to each other share pixels: each is loaded once for a row of a tile, whose weights and sums stay in registers.
/// Where outputs sum several channels, each lane gets the first channel of its group, then the second, and so on.

/// Taps at a time of windows that are not listed.
enum { PIECE = 4 };

static const int32_t lane_numbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/// Which pixels of a tile may be outside: none, those that not every window of it has, or any.
typedef enum { NO_PIXEL, PIXELS_OF_ENDS, ANY_PIXEL } outside_pixels;

/// Adds the products of `taps` taps next to each other to every sum; grouped, of the channel of each lane that `lanes` says. `positions`, `taps`, `step`, `outside` and `is_grouped` (more than one channel) are constants at every call.
ALWAYS_INLINE void add_taps(const int positions, const int taps, const int step, const outside_pixels outside, const bool is_grouped, vi lanes,
                            int64_t begin, int64_t end, const float *from, const float *w, vf *sums) {
    const int last = (positions - 1) * step;
    vf weights[QRT_CONV_MAX_WINDOW];
#pragma GCC unroll 8
    for (int k = 0; k < taps; k++) weights[k] = vf_load(w + k * QRT_CHANNEL_BLOCK);
#pragma GCC unroll 32
    for (int i = 0; i < last + taps; i++) {
        const float *at = from + i * QRT_CHANNEL_BLOCK;
        if (outside == ANY_PIXEL || (outside == PIXELS_OF_ENDS && (i < taps - 1 || i > last))) at = i >= begin && i < end ? at : zeros;
        const vf pixel = is_grouped ? vf_pick(at, lanes) : vf_load(at);
#pragma GCC unroll 8
        for (int k = 0; k < taps; k++)
            if (i >= k && (i - k) % step == 0 && i - k <= last) sums[(i - k) / step] = vf_fma(pixel, weights[k], sums[(i - k) / step]);
    }
}

ALWAYS_INLINE void finish_row(const int positions, int64_t v, vf low, vf high, const vf *sums, float *y, const float *addend, const qrt_conv_epilogue *e) {
#pragma GCC unroll 16
    for (int p = 0; p < positions; p++) {
        const int64_t place = p * QRT_CHANNEL_BLOCK + v;
        vf_store(y + place, finished(sums[p], e->bias ? e->bias + v : NULL, addend ? addend + place : NULL, low, high));
    }
}

/// `positions`, `window`, `step`, `is_whole` (no pixel is outside) and `is_grouped` are constants at every call.
ALWAYS_INLINE void row_tile(const int positions, const int window, const int step, const bool is_whole, const bool is_grouped, int64_t begin, int64_t end,
                            const qrt_conv_row *row, const float *x, float *y, const float *addend, const qrt_conv_epilogue *e) {
    const int64_t group = is_grouped ? row->group : 1;
    const vi firsts = is_grouped ? vi_and(vi_load(lane_numbers), vi_set(-(int32_t)group)) : vi_set(0);
    const vf low = vf_set(e->low), high = vf_set(e->high);
    for (int64_t v = 0; v < QRT_CHANNEL_BLOCK; v += VL) {
        vf sums[ROW_POSITIONS];
#pragma GCC unroll 16
        for (int p = 0; p < positions; p++) sums[p] = vf_zero();
        const float *line = x + (is_grouped ? v & -group : v), *w = row->w + v;
        for (int64_t h = 0; h < row->rows; h++, line += row->x_row)
            for (int64_t j = 0; j < group; j++, w += window * QRT_CHANNEL_BLOCK) {
                const vi lanes = is_grouped ? vi_add(firsts, vi_set((int32_t)(j % VL))) : firsts;
                add_taps(positions, window, step, is_whole ? NO_PIXEL : PIXELS_OF_ENDS, is_grouped, lanes, begin, end, line + j / VL * VL, w, sums);
            }
        finish_row(positions, v, low, high, sums, y, addend, e);
    }
}

/// The same of single channels and a window of any size, some taps at a time.
ALWAYS_INLINE void row_tile_of_any_window(const int positions, const int step, const bool is_whole, int64_t begin, int64_t end, const qrt_conv_row *row,
                                          const float *x, float *y, const float *addend, const qrt_conv_epilogue *e) {
    const outside_pixels outside = is_whole ? NO_PIXEL : ANY_PIXEL;
    const vf low = vf_set(e->low), high = vf_set(e->high);
    for (int64_t v = 0; v < QRT_CHANNEL_BLOCK; v += VL) {
        vf sums[ROW_POSITIONS];
#pragma GCC unroll 16
        for (int p = 0; p < positions; p++) sums[p] = vf_zero();
        const float *line = x + v, *w = row->w + v;
        for (int64_t h = 0; h < row->rows; h++, line += row->x_row) {
            int64_t k = 0;
            for (; k + PIECE <= row->window; k += PIECE, w += PIECE * QRT_CHANNEL_BLOCK)
                add_taps(positions, PIECE, step, outside, false, vi_set(0), begin - k, end - k, line + k * QRT_CHANNEL_BLOCK, w, sums);
            for (; k < row->window; k++, w += QRT_CHANNEL_BLOCK)
                add_taps(positions, 1, step, outside, false, vi_set(0), begin - k, end - k, line + k * QRT_CHANNEL_BLOCK, w, sums);
        }
        finish_row(positions, v, low, high, sums, y, addend, e);
    }
}

/// A `window` of 0 is any.
#define ROW_TILE(COUNT, IS_WHOLE) \
    case 2 * COUNT + IS_WHOLE: \
        if (window) row_tile(COUNT, window, step, IS_WHOLE, is_grouped, begin, end, row, x, y, addend, &e); \
        else row_tile_of_any_window(COUNT, step, IS_WHOLE, begin, end, row, x, y, addend, &e); \
        break;
#define ROW(COUNT) ROW_TILE(COUNT, false) ROW_TILE(COUNT, true)

ALWAYS_INLINE void row_of(const int window, const int step, const bool is_grouped, int64_t n, const qrt_conv_row *row, float *y, const qrt_conv_epilogue e) {
    const float *x = row->x, *addend = e.addend;
    int64_t begin = row->begin, end = row->end;
    for (int64_t left = (n + ROW_POSITIONS - 1) / ROW_POSITIONS, count; n > 0; n -= count, left--) {
        count = (n + left - 1) / left;
        const bool is_whole = begin <= 0 && end >= (count - 1) * step + (window ? window : row->window);
        switch (2 * count + is_whole) {
            QRT_CONV_ROWS
        }
        const int64_t pixels = count * step;
        x += pixels * QRT_CHANNEL_BLOCK;
        begin -= pixels;
        end -= pixels;
        y += count * QRT_CHANNEL_BLOCK;
        if (addend) addend += count * QRT_CHANNEL_BLOCK;
    }
}

#define WINDOW_OF(GROUPED, SIZE, STEP) \
    if (row->window == SIZE && row->step == STEP) { \
        row_of(SIZE, STEP, GROUPED, n, row, y, *epilogue); \
        return; \
    }
#define WINDOW(SIZE, STEP) WINDOW_OF(false, SIZE, STEP)
#define GROUP_WINDOW(SIZE, STEP) WINDOW_OF(true, SIZE, STEP)

/// Apart, where it takes no registers from the others.
static __attribute__((noinline)) void row_of_any_window(int64_t n, const qrt_conv_row *row, float *y, const qrt_conv_epilogue *epilogue) {
    if (row->step == 1) row_of(0, 1, false, n, row, y, *epilogue);
    else row_of(0, 2, false, n, row, y, *epilogue);
}

static void depthwise_row(int64_t n, const qrt_conv_row *row, float *y, const qrt_conv_epilogue *epilogue) {
    if (row->group == 1) {
        QRT_CONV_WINDOWS(WINDOW)
        row_of_any_window(n, row, y, epilogue);
    } else {
        QRT_CONV_GROUP_WINDOWS(GROUP_WINDOW)
    }
}
