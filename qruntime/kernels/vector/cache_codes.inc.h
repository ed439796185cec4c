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

static inline float cache_share(float x, float scale, float low) {
    float share = (x - low) / scale;
    return scale > 0.0f && scale < INFINITY ? share : 0.0f;
}

static inline float cache_code(float share, float top) {
    float code = rintf(share);
    code = code > top ? top : code;
    return code < 0.0f ? 0.0f : code;
}

/// Over the channels of a cluster, with errors in parts of a step.
typedef struct {
    int64_t channels, code, error, square, both;
} cache_sums;

enum { CACHE_PARTS = 65536, CACHE_BLOCK = 128 };  // sums of a block are int32

static inline void cache_add_block(int64_t n, const float *restrict x, float scale, float low, float top, cache_sums *s) {
    int32_t code = 0, error = 0, square = 0, both = 0;
    for (int64_t j = 0; j < n; j++) {
        float share = cache_share(x[j], scale, low), rounded = cache_code(share, top);
        int32_t c = (int32_t)rounded, e = (int32_t)rintf((share - rounded) * CACHE_PARTS);
        code += c, error += e, square += c * c, both += c * e;
    }
    s->channels += n, s->code += code, s->error += error, s->square += square, s->both += both;
}

/// Scale and low of each cluster for which the codes of the row err least.
static void fit_cache_ranges(const qrt_cache_form *form, const float *x, const uint8_t *labels, float *ranges) {
    cache_sums sums[QRT_MOST_CLUSTERS] = {0};
    float *lows = ranges + form->clusters, top = (float)((1 << form->bits) - 1);
    int64_t step = labels ? 1 : CACHE_BLOCK;
    for (int64_t j = 0; j < form->channels; j += step) {
        int c = labels ? labels[j] : 0;
        int64_t n = form->channels - j < step ? form->channels - j : step;
        cache_add_block(n, x + j, ranges[c], lows[c], top, &sums[c]);
    }
    for (int64_t c = 0; c < form->clusters; c++) {
        double n = (double)sums[c].channels, code = (double)sums[c].code, error = (double)sums[c].error, scale = ranges[c];
        double spread = n * (double)sums[c].square - code * code;
        if (!(spread > 0)) continue;
        double slope = (n * (double)sums[c].both - code * error) / spread;
        ranges[c] = (float)(scale + scale * (slope / CACHE_PARTS));
        lows[c] = (float)(lows[c] + scale * ((error - slope * code) / (CACHE_PARTS * n)));
    }
}

static void quantize_cache(const qrt_cache_form *form, int64_t rows, const float *x, const uint8_t *labels, bool fits,
                           uint8_t *codes, float *ranges) {
    int64_t width = qrt_cache_row_bytes(form), clusters = form->clusters;
    float top = (float)((1 << form->bits) - 1);
    for (int64_t i = 0; i < rows; i++, x += form->channels, codes += width, ranges += 2 * clusters) {
        cache_ranges(form, x, labels, ranges);
        memset(codes, 0, (size_t)width);
        for (int64_t shift = 0, first = 0; shift < 8; shift += form->bits, first += width)
            for (int64_t j = 0; j < width; j++) {
                int c = labels ? labels[first + j] : 0;
                float share = cache_share(x[first + j], ranges[c], ranges[clusters + c]);
                codes[j] |= (uint8_t)((int32_t)cache_code(share, top) << shift);
            }
        if (fits) fit_cache_ranges(form, x, labels, ranges);
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
