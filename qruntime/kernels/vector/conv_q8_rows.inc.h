/// Loops over rows of an image that the compiler vectorizes for the target region that includes them; portable includes them too.

static inline __attribute__((always_inline)) void
widen_by(uint32_t *restrict of_least, int32_t *restrict of_greatest, const char *restrict least, const char *restrict greatest, const int64_t step, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t low;
        int32_t high;
        memcpy(&low, least + 4 * step * i, sizeof low);
        memcpy(&high, greatest + 4 * step * i, sizeof high);
        of_least[i] = low > of_least[i] ? low : of_least[i];
        of_greatest[i] = high > of_greatest[i] ? high : of_greatest[i];
    }
}

static void widen(qrt_extremes of, const void *least, const void *greatest, int64_t step, int64_t n) {
    if (step == 1) widen_by(of.least, of.greatest, least, greatest, 1, n);
    else if (step == 2) widen_by(of.least, of.greatest, least, greatest, 2, n);
    else widen_by(of.least, of.greatest, least, greatest, step, n);
}

static inline __attribute__((always_inline)) void
interleave_with(const int64_t channels, const float *restrict from, int64_t plane, int64_t n, float *restrict to) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t c = 0; c < channels; c++) to[i * channels + c] = from[c * plane + i];
}

static void interleave(const float *from, int64_t plane, int64_t channels, int64_t n, float *to) {
    switch (channels) {
    case 1: memcpy(to, from, (size_t)n * sizeof *to); return;
    case 2: interleave_with(2, from, plane, n, to); return;
    case 3: interleave_with(3, from, plane, n, to); return;
    case 4: interleave_with(4, from, plane, n, to); return;
    default: interleave_with(channels, from, plane, n, to);
    }
}
