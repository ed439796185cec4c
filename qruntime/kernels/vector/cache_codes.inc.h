/// The kernels of cache_codes.h in loops that the compiler vectorizes for the target region that includes them; portable
/// includes them too.

/// Scale and low of each cluster of a row.
static void cache_ranges(const qrt_cache_form *form, const float *x, const uint8_t *labels, float *ranges) {
    int64_t clusters = form->clusters;
    float low = x[0], high = x[0], top = (float)((1 << form->bits) - 1);
    bool is_nan = false;
    for (int64_t j = 0; j < form->channels; j++) {
        is_nan |= isnan(x[j]);
        low = x[j] < low ? x[j] : low;
        high = x[j] > high ? x[j] : high;
    }
    float *lows = ranges + clusters, highs[QRT_MOST_CLUSTERS];
    for (int64_t c = 0; c < clusters; c++) {
        lows[c] = labels ? high : low;  // of a cluster without channels, too
        highs[c] = labels ? low : high;
    }
    for (int64_t j = 0; labels && j < form->channels; j++) {
        int c = labels[j];
        lows[c] = x[j] < lows[c] ? x[j] : lows[c];
        highs[c] = x[j] > highs[c] ? x[j] : highs[c];
    }
    for (int64_t c = 0; c < clusters; c++) {
        lows[c] = is_nan ? NAN : lows[c] + 0.0f;  // one kind of zero
        highs[c] = (highs[c] > lows[c] ? highs[c] : lows[c]) + 0.0f;
        ranges[c] = (highs[c] - lows[c]) / top;
    }
}

static inline uint8_t cache_code(float x, float scale, float low, float top) {
    float share = rintf((x - low) / scale);
    share = scale > 0.0f && scale < INFINITY ? share : 0.0f;
    share = share > top ? top : share;
    return (uint8_t)(int32_t)(share < 0.0f ? 0.0f : share);
}

static void quantize_cache(const qrt_cache_form *form, int64_t rows, const float *x, const uint8_t *labels, uint8_t *codes,
                           float *ranges) {
    int64_t width = qrt_cache_row_bytes(form), clusters = form->clusters;
    float top = (float)((1 << form->bits) - 1);
    for (int64_t i = 0; i < rows; i++, x += form->channels, codes += width, ranges += 2 * clusters) {
        cache_ranges(form, x, labels, ranges);
        memset(codes, 0, (size_t)width);
        for (int64_t shift = 0, first = 0; shift < 8; shift += form->bits, first += width)
            for (int64_t j = 0; j < width; j++) {
                int c = labels ? labels[first + j] : 0;
                codes[j] |= (uint8_t)(cache_code(x[first + j], ranges[c], ranges[clusters + c], top) << shift);
            }
    }
}

/// One place of the bytes of a row.
static inline void cache_reals(int64_t width, const uint8_t *restrict codes, int shift, int mask, float scale, float low,
                               float *restrict y) {
    for (int64_t j = 0; j < width; j++) y[j] = (float)(codes[j] >> shift & mask) * scale + low;
}

static inline void cache_reals_of_clusters(int64_t width, const uint8_t *restrict codes, int shift, int mask,
                                           const float *restrict scales, const float *restrict lows,
                                           const uint8_t *restrict labels, float *restrict y) {
    for (int64_t j = 0; j < width; j++) y[j] = (float)(codes[j] >> shift & mask) * scales[labels[j]] + lows[labels[j]];
}

static void dequantize_cache(const qrt_cache_form *form, int64_t rows, const uint8_t *codes, const float *ranges, int64_t step,
                             const uint8_t *labels, float *y) {
    int64_t width = qrt_cache_row_bytes(form), clusters = form->clusters;
    int bits = (int)form->bits, mask = (1 << bits) - 1;
    for (int64_t i = 0; i < rows; i++, codes += step * width, ranges += 2 * step * clusters)
        for (int shift = 0; shift < 8; shift += bits, y += width) {
            if (labels)
                cache_reals_of_clusters(width, codes, shift, mask, ranges, ranges + clusters, labels + shift / bits * width, y);
            else if (bits == 4 && shift)
                cache_reals(width, codes, 4, 15, ranges[0], ranges[clusters], y);
            else
                cache_reals(width, codes, shift, mask, ranges[0], ranges[clusters], y);
        }
}
