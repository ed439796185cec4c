/// Loops over bytes, which the compiler vectorizes for the target region that includes them; portable includes them too.

static void max_u8(const uint8_t *a, const uint8_t *b, uint8_t *y, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = a[i] > b[i] ? a[i] : b[i];
}

static void max_i8(const uint8_t *va, const uint8_t *vb, uint8_t *vy, int64_t n) {
    const int8_t *a = (const int8_t *)va, *b = (const int8_t *)vb;
    int8_t *y = (int8_t *)vy;
    for (int64_t i = 0; i < n; i++) y[i] = a[i] > b[i] ? a[i] : b[i];
}

#ifndef LOOK_UP
static void look_up(const uint8_t *table, const uint8_t *x, uint8_t *y, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = table[x[i]];
}
#endif

static void row_sums(const uint8_t *x, int64_t stride, int64_t rows, int64_t k, int32_t *sums) {
    if (k == 3) {  // the colours of an image
        for (int64_t r = 0; r < rows; r++, x += stride) sums[r] = x[0] + x[1] + x[2];
        return;
    }
    for (int64_t r = 0; r < rows; r++, x += stride) {
        int32_t sum = 0;
        for (int64_t i = 0; i < k; i++) sum += x[i];
        sums[r] = sum;
    }
}

static void accumulate(const uint8_t *restrict x, int32_t *restrict sums, int64_t n, uint8_t flip) {
    for (int64_t i = 0; i < n; i++) sums[i] += x[i] ^ flip;
}
