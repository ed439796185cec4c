/// Outlier-victim pairs in plain C, which the compiler vectorizes for the target region that includes it; portable includes
/// it too. RUNG names the rung.
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

/// Pairs whose two halves lie in the first-level cache while every scale is tried on them, and sums side by side.
enum { CHUNK = 512, LANES = 8 };

/// Floats that are not negative are in the order of their bits: every choice below is one of integers, which compilers make
/// without a branch and of several pairs at once.
typedef int32_t magnitude;

static const magnitude BEYOND = 0x41180000;                              // 9.5
static const magnitude SEVEN = 0x40e00000, TWELVE = 0x41400000, MOST = 0x42c00000;  // 7, 12, 96

static inline magnitude bits_of(float x) {
    magnitude bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
static inline float float_of(magnitude bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
static inline magnitude lesser(magnitude a, magnitude b) { return a < b ? a : b; }
static inline magnitude greater(magnitude a, magnitude b) { return a > b ? a : b; }

/// |v|, 0 of NaN.
static inline magnitude magnitude_of(float v) {
    const magnitude bits = bits_of(v) & 0x7fffffff;
    return bits & -(bits <= 0x7f800000);
}

/// Adding and taking away 1.5 · 2^23 rounds half to even what is below 2^22, with instructions that every target has.
static inline float to_integer(float x) { return (x + 12582912.0f) - 12582912.0f; }

static inline magnitude rounded(magnitude a) {
    const magnitude normal = lesser(bits_of(to_integer(float_of(a))), SEVEN);
    const magnitude coarse = (lesser(a, MOST) + 0x1fffff + (a >> 22 & 1)) & ~0x3fffff;  // one bit of mantissa
    const magnitude outlier = greater(coarse, TWELVE);
    const magnitude beyond = -(a > BEYOND);
    return (outlier & beyond) | (normal & ~beyond);
}

/// What becomes of the first and of the second of a pair.
static inline magnitude first_of(magnitude a, magnitude b) { return rounded(a) & -(b <= greater(a, BEYOND)); }
static inline magnitude second_of(magnitude a, magnitude b) { return rounded(b) & -(a <= greater(b - 1, BEYOND)); }

static inline int8_t with_sign(magnitude of, float like) {
    const int32_t value = (int32_t)float_of(of);
    return (int8_t)(like < 0 ? -value : value);
}

static void pair_values(const float *restrict x, int64_t k, float scale, int8_t *restrict values) {
    const int64_t pairs = k / 2;
    for (int64_t i = 0; i < pairs; i++) {
        const magnitude a = magnitude_of(x[2 * i] / scale), b = magnitude_of(x[2 * i + 1] / scale);
        values[2 * i] = with_sign(first_of(a, b), x[2 * i]);
        values[2 * i + 1] = with_sign(second_of(a, b), x[2 * i + 1]);
    }
    if (k % 2) values[k - 1] = with_sign(first_of(magnitude_of(x[k - 1] / scale), 0), x[k - 1]);
}

/// The first and second elements of so many pairs, apart.
typedef struct {
    float first[CHUNK], second[CHUNK];
} halves;

static void split(const float *restrict x, int64_t n, int64_t padded, halves *restrict into) {
    const int64_t pairs = n / 2;
    for (int64_t i = 0; i < pairs; i++) into->first[i] = x[2 * i], into->second[i] = x[2 * i + 1];
    for (int64_t i = pairs; i < padded; i++) into->first[i] = into->second[i] = 0;
    if (n % 2) into->first[pairs] = x[n - 1];
}

static double error_of(const halves *restrict x, const halves *restrict weights, int64_t pairs, float scale) {
    float sums[LANES] = {0};
    for (int64_t i = 0; i < pairs; i += LANES)
        for (int j = 0; j < LANES; j++) {
            const magnitude a = magnitude_of(x->first[i + j] / scale), b = magnitude_of(x->second[i + j] / scale);
            const float lost = float_of(a) - float_of(first_of(a, b)), lost_too = float_of(b) - float_of(second_of(a, b));
            sums[j] += lost * lost * weights->first[i + j] + lost_too * lost_too * weights->second[i + j];
        }
    double sum = 0;
    for (int j = 0; j < LANES; j++) sum += (double)sums[j];
    return sum;
}

static void pair_errors(const float *x, const float *weights, int64_t k, const float *scales, int64_t count, double *errors) {
    halves rows, counted;
    for (int64_t start = 0; start < k; start += 2 * CHUNK) {
        const int64_t n = k - start < 2 * CHUNK ? k - start : 2 * CHUNK, padded = ((n + 1) / 2 + LANES - 1) / LANES * LANES;
        split(x + start, n, padded, &rows);
        split(weights + start, n, padded, &counted);
        for (int64_t s = 0; s < count; s++) errors[s] += error_of(&rows, &counted, padded, scales[s]);
    }
}

void JOIN(JOIN(qrt_, RUNG), _outlier_pairs)(qrt_kernel_table *t) { t->outlier_pairs = (qrt_outlier_pairs){pair_values, pair_errors}; }
