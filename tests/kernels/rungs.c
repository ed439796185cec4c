/// Every rung of this CPU against the definition, slot by slot: integers and plain epilogues bit for bit, floats
/// against double precision within the bound of the header. Needs nothing but the C kernels, so it runs where Python
/// does not, under an emulator for one. Prints a line a rung; the exit code is 1 when something differs.
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "code_product.h"
#include "kernels.h"

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))
static const double EPS = FLT_EPSILON;

static qrt_kernel_table definition, rung;
static int64_t num_checks, num_failures;

static void check(bool good, const char *what, int64_t i, int64_t j, double got, double want) {
    num_checks++;
    if (good) return;
    if (num_failures++ < 20)
        printf("%s: %s [%lld, %lld]: %.9g, expected %.9g\n", rung.isa, what, (long long)i, (long long)j, got, want);
}

/// Also infinities and NaN have to be in the same places.
static void check_close(double got, double want, double bound, const char *what, int64_t i, int64_t j) {
    double rounded = (float)want;
    bool good = isnan(rounded) ? isnan(got) : isinf(rounded) || isinf(got) ? got == rounded : fabs(got - want) <= bound;
    check(good, what, i, j, got, want);
}

static void check_same(float got, float want, const char *what, int64_t i, int64_t j) {
    uint32_t x, y;
    memcpy(&x, &got, sizeof x);
    memcpy(&y, &want, sizeof y);
    check(x == y || (isnan(got) && isnan(want)), what, i, j, got, want);
}

// --------------------------------------------------------------------------------------------- data

static uint64_t state = 1;
static uint32_t random_bits(void) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}
static float uniform(float low, float high) { return low + (high - low) * ((float)(random_bits() >> 8) * 0x1p-24f); }
static void fill_uniform(float *x, int64_t n, float range) {
    for (int64_t i = 0; i < n; i++) x[i] = uniform(-range, range);
}

/// Arrays end where a page begins that must not be touched: a kernel that reads or writes beyond one crashes.
static struct { char *pages; size_t size; } arrays[64];
static int num_arrays;

static void *array(int64_t n, size_t item) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), bytes = (size_t)n * item, inside = (bytes + page - 1) / page * page;
    if (num_arrays == COUNT(arrays)) abort();
    char *pages = mmap(NULL, inside + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED || mprotect(pages + inside, page, PROT_NONE)) abort();
    arrays[num_arrays].pages = pages;
    arrays[num_arrays++].size = inside + page;
    return pages + inside - bytes;
}

/// All arrays at once, at the end of a case.
static void release(void) {
    while (num_arrays) munmap(arrays[num_arrays - 1].pages, arrays[num_arrays - 1].size), num_arrays--;
}
static float *floats(int64_t n) { return array(n, sizeof(float)); }

static const float UNTOUCHED = -12345.75f;
static float *untouched(int64_t n) {
    float *x = floats(n);
    for (int64_t i = 0; i < n; i++) x[i] = UNTOUCHED;
    return x;
}

// ---------------------------------------------------------------------------------------- int8 GEMM

typedef enum { RANDOM_CODES, LOWEST, HIGHEST, ALTERNATING, TIES, NUM_CODE_FILLS } code_fill;

static void fill_weights(int8_t *w, int64_t n, code_fill fill) {
    for (int64_t i = 0; i < n; i++)
        w[i] = (int8_t)(fill == RANDOM_CODES ? (int)(random_bits() % 256) - 128
                        : fill == LOWEST     ? -128
                        : fill == HIGHEST    ? 127
                        : i & 1              ? -128
                                             : 127);
}

/// Codes are at their ends, or values halfway between two codes: the scale of −100 … 155 is 1.
static float activation_of(code_fill fill, int64_t i) {
    switch (fill) {
    case LOWEST: return -1.0f;
    case HIGHEST: return 1.0f;
    case ALTERNATING: return i & 1 ? 1.0f : -1.0f;
    case TIES: return i % 50 == 0 ? -100.0f : i % 50 == 1 ? 155.0f : (float)(random_bits() % 254) - 99.5f;
    default: return uniform(-1, 2);
    }
}
static void fill_activations(float *a, int64_t m, int64_t k, code_fill fill) {
    for (int64_t i = 0; i < m * k; i++) a[i] = activation_of(fill, i);
}

typedef struct {
    int64_t m, k, n;
    bool per_channel, zero_points, with_bias, columns_first, residual;
    qrt_q8_grid grid;
    qrt_activation activation;
} q8_case;

static float *q8_linear(const qrt_gemm_q8 *kernel, const q8_case *c, const float *a, const int8_t *w, const float *scales,
                        const int32_t *zero_points, const float *bias, const float *residual, int64_t ldy) {
    qrt_q8_weights *packed =
        qrt_q8_pack(kernel, w, c->columns_first ? 1 : c->n, c->columns_first ? c->k : 1, c->k, c->n, scales,
                    c->zero_points ? zero_points : NULL, c->per_channel ? c->n : 1, c->with_bias ? bias : NULL, NULL, 1);
    if (!packed) abort();
    int8_t *unpacked = array(c->k * c->n, 1);
    qrt_q8_unpack(packed, unpacked, c->columns_first ? 1 : c->n, c->columns_first ? c->k : 1);
    check_same(memcmp(unpacked, w, (size_t)(c->k * c->n)) != 0, 0, "gemm_q8 unpack", c->k, c->n);
    qrt_buffer *scratch = qrt_buffer_new(qrt_scratch_bytes(&packed->base, c->m));
    if (!scratch) abort();
    qrt_epilogue epilogue = {.activation = c->activation, .residual = c->residual ? residual : NULL, .residual_stride_elems = c->n};
    float *y = untouched(c->m * ldy);
    qrt_linear_serial(&packed->base, a, c->k, c->m, c->grid, &epilogue, y, ldy, scratch->data);
    qrt_buffer_drop(scratch);
    qrt_weights_free(&packed->base);
    return y;
}

/// `special` goes into the middle row, unless it is 0.
static void check_q8(const q8_case *c, code_fill activations, code_fill weights, float special) {
    int64_t m = c->m, k = c->k, n = c->n, ldy = n + 3;
    float *a = floats(m * k), *scales = floats(n + 1), *bias = floats(n), *residual = floats(m * n);
    int8_t *w = array(k * n, 1);
    int32_t *zero_points = array(n + 1, sizeof(int32_t));
    fill_activations(a, m, k, activations);
    if (special != 0 && m && k) a[m / 2 * k + k / 2] = special;
    fill_weights(w, k * n, weights);
    for (int64_t j = 0; j <= n; j++) {
        scales[j] = uniform(1e-3f, 1e-1f);
        zero_points[j] = (int32_t)(random_bits() % 256) - 128;
    }
    fill_uniform(bias, n, 2);
    fill_uniform(residual, m * n, 2);
    float *want = q8_linear(&definition.gemm_q8, c, a, w, scales, zero_points, bias, residual, ldy);
    float *got = q8_linear(&rung.gemm_q8, c, a, w, scales, zero_points, bias, residual, ldy);
    for (int64_t i = 0; i < m * ldy; i++) {
        double x = want[i];
        if (c->activation <= QRT_ACT_RELU || i % ldy >= n) check_same(got[i], want[i], "gemm_q8", i / ldy, i % ldy);
        else check_close(got[i], x, 8 * EPS * (fabs(x) + 1) + 8 * EPS * 2, "gemm_q8 activation", i / ldy, i % ldy);
    }
    if (c->grid.mode == QRT_PER_TOKEN && m > 1) {
        q8_case one = *c;
        one.m = 1;
        float *alone = q8_linear(&rung.gemm_q8, &one, a + (m - 1) * k, w, scales, zero_points, bias,
                                 residual + (m - 1) * n, ldy);
        for (int64_t j = 0; j < n; j++) check_same(alone[j], got[(m - 1) * ldy + j], "gemm_q8, a row alone", m - 1, j);
    }
    release();
}

static void check_gemm_q8(void) {
    static const int64_t ms[] = {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 17, 33}, ks[] = {0, 1, 3, 4, 5, 7, 8, 9, 31, 64, 65, 130};
    static const int64_t ns[] = {0, 1, 3, 4, 11, 12, 13, 16, 17, 24, 25, 31, 48, 49, 67};
    for (int i = 0; i < COUNT(ms); i++)
        for (int j = 0; j < COUNT(ks); j++)
            for (int l = 0; l < COUNT(ns); l++) {
                uint32_t bits = random_bits() >> 8;
                q8_case c = {
                    ms[i], ks[j], ns[l], bits & 1, bits & 2, bits & 4, bits & 8, bits & 16, bits >> 5 & 1,
                    (qrt_activation)(bits & 64 ? QRT_ACT_NONE : bits >> 7 & 1),
                };
                check_q8(&c, RANDOM_CODES, RANDOM_CODES, 0);
            }
    // Sums as large as they come: int16 and saturating shortcuts would show.
    for (int a = 0; a < NUM_CODE_FILLS; a++)
        for (int w = 0; w < NUM_CODE_FILLS; w++)
            for (int zero_points = 0; zero_points < 2; zero_points++)
                for (int64_t m = 1; m <= 34; m += 11) {
                    q8_case c = {m, 515, 61, true, zero_points, true, false, false, QRT_Q8_ANY_GRID, QRT_ACT_NONE};
                    check_q8(&c, (code_fill)a, (code_fill)w, 0);
                }
    // At the end of int32, and beyond it.
    static const int64_t longs[] = {QRT_Q8_MAX_K - 1, QRT_Q8_MAX_K, QRT_Q8_MAX_K + 1, 2 * QRT_Q8_MAX_K + 77};
    for (int i = 0; i < COUNT(longs); i++)
        for (int w = 0; w < NUM_CODE_FILLS; w++) {
            q8_case c = {3, longs[i], 5, true, w & 1, true, false, false, QRT_Q8_ANY_GRID, QRT_ACT_NONE};
            check_q8(&c, w ? HIGHEST : RANDOM_CODES, (code_fill)w, 0);
        }
    static const float specials[] = {NAN, INFINITY, -INFINITY, FLT_MAX, -FLT_MAX, 1e-45f, 1e30f};
    for (int i = 0; i < COUNT(specials); i++)
        for (int64_t m = 1; m <= 9; m += 4)
            for (int zero_points = 0; zero_points < 2; zero_points++)
                for (int mode = 0; mode < 2; mode++) {
                    q8_case c = {m, 37, 29, true, zero_points, true, true, true, {(qrt_range_mode)mode, m == 5 ? 15 : 255}, QRT_ACT_RELU};
                    check_q8(&c, RANDOM_CODES, RANDOM_CODES, specials[i]);
                }
    for (int activation = QRT_ACT_GELU; activation <= QRT_ACT_TANH; activation++)
        for (int64_t n = 1; n < 70; n += 17) {
            q8_case c = {5, 40, n, true, false, true, false, n & 1, {QRT_PER_TOKEN, (4 << n % 7) - 1}, (qrt_activation)activation};
            check_q8(&c, RANDOM_CODES, RANDOM_CODES, 0);
        }
    for (int64_t k = 0; k < 140; k++) {
        float *a = floats(k);
        fill_uniform(a, k, 3);
        for (int special = -1; special < COUNT(specials); special++) {
            if (special >= 0 && k) a[random_bits() % k] = specials[special];
            float lo = 0, hi = 0, want_lo = 0, want_hi = 0;
            rung.gemm_q8.codes.range(a, k, &lo, &hi);
            definition.gemm_q8.codes.range(a, k, &want_lo, &want_hi);
            check_same(lo, want_lo, "range, lo", k, special);
            check_same(hi, want_hi, "range, hi", k, special);
        }
        release();
    }
}

// ---------------------------------------------------------------- low-bit weights, quantized activations

typedef struct {
    int64_t m, k, n, group;
    int bits;
    const int8_t *integers;
    bool zero_points, with_bias, residual;
    qrt_activation activation;
    code_fill activations, weights;
} nbits_case;

static float *nbits_q8_linear(const qrt_gemm_nbits_q8 *kernel, const nbits_case *c, int64_t m, const float *a,
                              const qrt_nbits_q8_spec *spec, const uint8_t *codes, const float *residual, int64_t ldy) {
    qrt_nbits_q8_weights *packed = qrt_nbits_q8_new(spec, kernel, NULL);
    const qrt_nbits_source source = {.rows = codes, .row_stride_bytes = c->k, .bits = 8};
    if (!packed || !qrt_nbits_fill(&packed->w, 0, c->n, &source, 1)) abort();
    qrt_nbits_q8_finish(packed, 1);
    const qrt_weights *w = &packed->w.base;
    qrt_buffer *scratch = qrt_buffer_new(qrt_scratch_bytes(w, m));
    if (!scratch) abort();
    qrt_epilogue epilogue = {.activation = c->activation, .residual = c->residual ? residual : NULL, .residual_stride_elems = c->n};
    float *y = untouched(m * ldy);
    qrt_linear_serial(w, a, c->k, m, QRT_Q8_ANY_GRID, &epilogue, y, ldy, scratch->data);
    qrt_buffer_drop(scratch);
    qrt_weights_free(&packed->w.base);
    return y;
}

static void check_nbits_q8(const nbits_case *c) {
    int64_t m = c->m, k = c->k, n = c->n, ldy = n + 3, groups = (k + c->group - 1) / c->group;
    float *a = floats(m * k), *scales = floats(n * groups), *bias = floats(n), *residual = floats(m * n), values[16];
    uint8_t *codes = array(n * k, 1), *zero_points = array(n * groups, 1);
    const int most = (1 << c->bits) - 1;
    fill_activations(a, m, k, c->activations);
    for (int64_t i = 0; i < n * k; i++)
        codes[i] = (uint8_t)(c->weights == RANDOM_CODES ? random_bits() & (uint32_t)most
                             : c->weights == LOWEST     ? 0
                             : c->weights == HIGHEST    ? most
                             : i & 1                    ? 0
                                                        : most);
    for (int64_t i = 0; i < n * groups; i++) {
        scales[i] = uniform(1e-3f, 1e-1f);
        zero_points[i] = (uint8_t)(random_bits() & (uint32_t)most);
    }
    fill_uniform(bias, n, 2);
    fill_uniform(residual, m * n, 2);
    for (int i = 0; c->integers && i < 16; i++) values[i] = c->integers[i];
    qrt_nbits_q8_spec spec = {
        .weights = {.k = k, .n = n, .group = c->group, .bits = c->bits, .table = c->integers ? values : NULL, .scales = scales,
                    .bias = c->with_bias ? bias : NULL},
        .integers = c->integers, .zero_points = c->zero_points && !c->integers ? zero_points : NULL,
    };
    float *want = nbits_q8_linear(&definition.gemm_nbits_q8, c, m, a, &spec, codes, residual, ldy);
    float *got = nbits_q8_linear(&rung.gemm_nbits_q8, c, m, a, &spec, codes, residual, ldy);
    for (int64_t i = 0; i < m * ldy; i++) {
        double x = want[i];
        if (c->activation <= QRT_ACT_RELU || i % ldy >= n) check_same(got[i], want[i], "gemm_nbits_q8", i / ldy, i % ldy);
        else check_close(got[i], x, 8 * EPS * (fabs(x) + 3), "gemm_nbits_q8 activation", i / ldy, i % ldy);
    }
    if (m > 1) {
        float *alone = nbits_q8_linear(&rung.gemm_nbits_q8, c, 1, a + (m - 1) * k, &spec, codes, residual + (m - 1) * n, ldy);
        for (int64_t j = 0; j < n; j++) check_same(alone[j], got[(m - 1) * ldy + j], "gemm_nbits_q8, a row alone", m - 1, j);
    }
    release();
}

static void check_gemm_nbits_q8(void) {
    static const int8_t narrow[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    static const int8_t wide[16] = {0, 1, 2, 3, 4, 5, 6, 7, -128, -7, -6, -5, -4, 96, 127, -1};
    static const struct { int bits; const int8_t *integers; } formats[] = {{2, NULL}, {3, NULL}, {4, NULL}, {8, NULL}, {4, narrow}, {4, wide}};
    static const int64_t ms[] = {0, 1, 2, 3, 4, 5, 7, 8, 9, 17}, ks[] = {0, 1, 4, 7, 8, 15, 16, 33, 64, 130, 257};
    static const int64_t ns[] = {1, 15, 16, 17, 31, 33, 48, 65}, groups[] = {5, 16, 32, 64, 100, 128, 1000};
    for (int f = 0; f < COUNT(formats); f++)
        for (int j = 0; j < COUNT(ks); j++)
            for (int i = 0; i < 40; i++) {
                uint32_t bits = random_bits() >> 8;
                nbits_case c = {
                    .m = ms[i % COUNT(ms)], .k = ks[j], .n = ns[random_bits() % COUNT(ns)], .group = groups[random_bits() % COUNT(groups)],
                    .bits = formats[f].bits, .integers = formats[f].integers, .zero_points = bits & 1, .with_bias = bits & 2,
                    .residual = bits & 4, .activation = (qrt_activation)(bits >> 3 & 1),
                    .activations = (code_fill)(bits >> 4 & 3), .weights = (code_fill)(bits >> 6 & 3),
                };
                check_nbits_q8(&c);
            }
    // Sums as large as they come, in groups that are long for int16 and for int32.
    static const int64_t longs[] = {300, 2500, 33000, 33100};
    for (int f = 0; f < COUNT(formats); f++)
        for (int i = 0; i < COUNT(longs); i++)
            for (int fill = 0; fill < 16; fill++) {
                nbits_case c = {
                    .m = 3, .k = longs[i], .n = 5, .group = longs[i], .bits = formats[f].bits, .integers = formats[f].integers,
                    .zero_points = i & 1, .activations = (code_fill)(fill % 4), .weights = (code_fill)(fill / 4),
                };
                check_nbits_q8(&c);
            }
    for (int activation = QRT_ACT_GELU; activation <= QRT_ACT_TANH; activation++)
        for (int64_t n = 1; n < 70; n += 17) {
            nbits_case c = {.m = 5, .k = 40, .n = n, .group = 32, .bits = 4, .with_bias = true, .residual = n & 1,
                            .activation = (qrt_activation)activation};
            check_nbits_q8(&c);
        }
}

// ------------------------------------------------------------------ low-bit weights, codes in clusters

typedef struct {
    int64_t m, n, clusters, most_fours;
    int bits;
    bool weight_zeros, with_bias, residual, half_scales;
    qrt_activation activation;
    code_fill activations, weights;
} clusters_case;

static uint8_t filled(code_fill fill, int64_t i, int least, int most) {
    return (uint8_t)(fill == RANDOM_CODES ? least + (int)(random_bits() % (uint32_t)(most - least + 1))
                     : fill == LOWEST     ? least
                     : fill == HIGHEST    ? most
                     : i & 1              ? least
                                          : most);
}

static float *clusters_linear(const qrt_gemm_clusters *kernel, const clusters_case *c, int64_t m, const uint8_t *a, const qrt_cluster_spec *spec,
                              const uint8_t *codes, const float *residual, int64_t ldy) {
    qrt_cluster_weights *packed = qrt_clusters_new(spec, kernel, NULL);
    const int64_t k = spec->weights.k;
    const qrt_nbits_source source = {.rows = codes, .row_stride_bytes = k, .bits = 8};
    if (!packed || !qrt_nbits_fill(&packed->w, 0, c->n, &source, 1)) abort();
    qrt_buffer *scratch = qrt_buffer_new(kernel->scratch_bytes(packed));
    if (!scratch) abort();
    float *y = untouched(m * ldy);
    const qrt_q8_block block = {
        .a = a, .a_stride_bytes = k, .num_rows = (int)m, .y = y, .ldy_elems = ldy,
        .epilogue = {.activation = c->activation, .residual = c->residual ? residual : NULL, .residual_stride_elems = c->n},
    };
    kernel->multiply(packed, &block, 0, packed->w.num_panels, scratch->data);
    qrt_buffer_drop(scratch);
    qrt_weights_free(&packed->w.base);
    return y;
}

static void check_clusters(const clusters_case *c) {
    int64_t m = c->m, n = c->n, ldy = n + 3, k = 0;
    const int most = (1 << c->bits) - 1;
    int32_t *fours = array(c->clusters, sizeof *fours);
    float *cluster_scales = floats(c->clusters), *scales = floats(n), *bias = floats(n), *residual = floats(m * n);
    uint16_t *halves = array(n, sizeof *halves);
    uint8_t *zero_points = array(c->clusters, 1), *weight_zeros = array(n, 1);
    for (int64_t i = 0; i < c->clusters; i++) {
        fours[i] = 1 + (int32_t)(random_bits() % (uint32_t)c->most_fours);
        k += 4 * fours[i];
        cluster_scales[i] = uniform(1e-3f, 1e-1f);
        zero_points[i] = (uint8_t)random_bits();
    }
    uint8_t *codes = array(n * k, 1), *a = array(m * k, 1);
    for (int64_t i = 0; i < m * k; i++) a[i] = filled(c->activations, i, 0, 255);
    for (int64_t i = 0; i < n * k; i++) codes[i] = filled(c->weights, i, 0, most);
    for (int64_t i = 0; i < n; i++) {
        halves[i] = (uint16_t)(0x2000 + random_bits() % 0x1000);
        scales[i] = uniform(1e-3f, 1e-1f);
        weight_zeros[i] = c->bits == 8 ? 128 : (uint8_t)(random_bits() & (uint32_t)most);
    }
    fill_uniform(bias, n, 2);
    fill_uniform(residual, m * n, 2);
    const qrt_cluster_spec spec = {
        .weights = {.k = k, .n = n, .group = k, .bits = c->bits, .scales = c->half_scales ? NULL : scales,
                    .half_scales = c->half_scales ? halves : NULL, .bias = c->with_bias ? bias : NULL},
        .weight_zeros = c->weight_zeros ? weight_zeros : NULL, .num_clusters = c->clusters, .scales = cluster_scales,
        .zero_points = zero_points, .fours = fours,
    };
    float *want = clusters_linear(&definition.gemm_clusters, c, m, a, &spec, codes, residual, ldy);
    float *got = clusters_linear(&rung.gemm_clusters, c, m, a, &spec, codes, residual, ldy);
    for (int64_t i = 0; i < m * ldy; i++) {
        double x = want[i];
        if (c->activation <= QRT_ACT_RELU || i % ldy >= n) check_same(got[i], want[i], "gemm_clusters", i / ldy, i % ldy);
        else check_close(got[i], x, 8 * EPS * (fabs(x) + 3), "gemm_clusters activation", i / ldy, i % ldy);
    }
    if (m > 1) {
        float *alone = clusters_linear(&rung.gemm_clusters, c, 1, a + (m - 1) * k, &spec, codes, residual + (m - 1) * n, ldy);
        for (int64_t j = 0; j < n; j++) check_same(alone[j], got[(m - 1) * ldy + j], "gemm_clusters, a row alone", m - 1, j);
    }
    release();
}

static void check_gemm_clusters(void) {
    static const int64_t ms[] = {0, 1, 2, 3, 4, 5, 7, 8, 9, 17}, ns[] = {1, 15, 16, 17, 31, 33, 48, 65, 97}, counts[] = {1, 2, 5, 33};
    static const int bits[] = {2, 3, 4, 8};
    for (int b = 0; b < COUNT(bits); b++)
        for (int i = 0; i < COUNT(ms); i++)
            for (int j = 0; j < COUNT(ns); j++)
                for (int l = 0; l < COUNT(counts); l++) {
                    uint32_t flags = random_bits() >> 8;
                    clusters_case c = {
                        .m = ms[i], .n = ns[j], .clusters = counts[l], .most_fours = 1 + (int64_t)(random_bits() % 9), .bits = bits[b],
                        .weight_zeros = flags & 1, .with_bias = flags & 2, .residual = flags & 4, .half_scales = flags & 8,
                        .activation = (qrt_activation)(flags >> 4 & 1), .activations = (code_fill)(flags >> 5 & 3),
                        .weights = (code_fill)(flags >> 7 & 3),
                    };
                    check_clusters(&c);
                }
    // Sums as large as they come.
    for (int b = 0; b < COUNT(bits); b++)
        for (int fill = 0; fill < 16; fill++) {
            clusters_case c = {.m = 3, .n = 5, .clusters = 2, .most_fours = 3000, .bits = bits[b], .weight_zeros = fill & 1,
                               .activations = (code_fill)(fill % 4), .weights = (code_fill)(fill / 4)};
            check_clusters(&c);
        }
    for (int activation = QRT_ACT_GELU; activation <= QRT_ACT_TANH; activation++)
        for (int64_t n = 1; n < 70; n += 17) {
            clusters_case c = {.m = 5, .n = n, .clusters = 4, .most_fours = 3, .bits = 4, .with_bias = true, .residual = n & 1,
                               .activation = (qrt_activation)activation};
            check_clusters(&c);
        }
}

static void check_codes_q8(void) {
    for (int64_t k = 0; k < 140; k++) {
        float *a = floats(k);
        uint8_t *got = array(k, 1), *want = array(k, 1);
        fill_activations(a, 1, k, k % 3 ? RANDOM_CODES : TIES);
        if (k) a[random_bits() % k] = k % 5 ? 300.0f : NAN;
        int64_t sum = 0, want_sum = 0;
        const int32_t qmax = (4 << k % 7) - 1, zero_point = qmax * 2 / 5;
        rung.codes_q8.quantize(a, k, k, 50.0f, zero_point, qmax, got, &sum);
        definition.codes_q8.quantize(a, k, k, 50.0f, zero_point, qmax, want, &want_sum);
        for (int64_t i = 0; i < k; i++) check(got[i] == want[i], "codes_q8", k, i, got[i], want[i]);
        check(sum == want_sum, "codes_q8, sum", k, 0, (double)sum, (double)want_sum);
        release();
    }
}

// --------------------------------------------------------------------------------------- float GEMM

static void check_gemm_f32_at(int64_t m, int64_t k, int64_t n, bool columns_first) {
    const qrt_gemm_f32 *kernel = &rung.gemm_f32;
    int64_t panels = (n + kernel->nr - 1) / kernel->nr, ldc = n + 2;
    float *a = floats(m * k), *b = floats(k * n), *packed = floats(panels * kernel->nr * k), *y = untouched(m * ldc);
    fill_uniform(a, m * k, 1);
    fill_uniform(b, k * n, 1);
    int64_t row_stride = columns_first ? 1 : n, col_stride = columns_first ? k : 1;
    kernel->pack(k, n, b, row_stride, col_stride, packed);
    for (int64_t j = 0; j < panels * kernel->nr; j++)
        for (int64_t p = 0; p < k; p++)
            check_same(packed[(j / kernel->nr * k + p) * kernel->nr + j % kernel->nr],
                       j < n ? b[p * row_stride + j * col_stride] : 0.0f, "gemm_f32 pack", p, j);
    for (int64_t j = 0; j < n; j += kernel->nr)
        kernel->strip(m, n - j < kernel->nr ? n - j : kernel->nr, k, a, k, packed + j * k, kernel->nr, packed, y + j, ldc, false);
    for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j < n; j++) {
            double exact = 0, size = 0;
            for (int64_t p = 0; p < k; p++) {
                double product = (double)a[i * k + p] * b[p * row_stride + j * col_stride];
                exact += product;
                size += fabs(product);
            }
            check_close(y[i * ldc + j], exact, (double)k * EPS * size, "gemm_f32 strip", i, j);
        }
        for (int64_t j = n; j < ldc; j++) check_same(y[i * ldc + j], UNTOUCHED, "gemm_f32 strip, beyond", i, j);
    }
    // A row alone, few rows streamed, k in two halves: the same bits.
    float *again = untouched(m * ldc);
    for (int64_t i = 0; i < m; i += 4) {
        int64_t rows = m - i < 4 ? m - i : 4;
        kernel->stream(rows, n, k, a + i * k, k, packed, again + i * ldc, ldc);
    }
    for (int64_t i = 0; i < m * ldc; i++) check_same(again[i], y[i], "gemm_f32 stream", i / ldc, i % ldc);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j += kernel->nr) {
            int64_t columns = n - j < kernel->nr ? n - j : kernel->nr, half = k / 2;
            float *c = again + i * ldc + j;
            kernel->strip(1, columns, half, a + i * k, k, packed + j * k, kernel->nr, packed, c, ldc, false);
            kernel->strip(1, columns, k - half, a + i * k + half, k, packed + j * k + half * kernel->nr, kernel->nr,
                          packed, c, ldc, true);
        }
    for (int64_t i = 0; i < m * ldc; i++) check_same(again[i], y[i], "gemm_f32 accumulate", i / ldc, i % ldc);
    // Rows of a strip in any order, in two halves: the same bits too.
    int64_t nr = kernel->nr, *places = array(k, sizeof *places);
    float *scattered = floats(k * nr), *c = floats(m * nr);
    for (int64_t p = 0; p < k; p++) places[p] = (k - 1 - p) * nr;
    for (int64_t j = 0; j < n; j += nr) {
        for (int64_t p = 0; p < k; p++) memcpy(scattered + places[p], packed + j * k + p * nr, sizeof *c * (size_t)nr);
        kernel->scattered_strip(m, k / 2, a, k, scattered, places, c, nr, false);
        kernel->scattered_strip(m, k - k / 2, a + k / 2, k, scattered, places + k / 2, c, nr, true);
        for (int64_t i = 0; i < m * nr; i++)
            if (j + i % nr < n) check_same(c[i], y[i / nr * ldc + j + i % nr], "gemm_f32 scattered", i / nr, j + i % nr);
    }

    float *row_bias = floats(m), *column_bias = floats(n), *addend = floats(m * n), *residual = floats(m * n), *want = floats(m * ldc);
    fill_uniform(addend, m * n, 1);
    fill_uniform(row_bias, m, 1);
    fill_uniform(column_bias, n, 1);
    fill_uniform(residual, m * n, 1);
    for (int activation = QRT_ACT_NONE; activation <= QRT_ACT_TANH; activation++) {
        bool plain = activation <= QRT_ACT_RELU;
        qrt_f32_epilogue e = {
            .alpha = activation & 1 ? 1.0f : 0.3f,
            .row_bias = activation & 2 ? row_bias : NULL,
            .column_bias = activation & 1 ? NULL : column_bias,
            .addend = activation & 2 ? NULL : addend,
            .addend_stride_elems = n,
            .activation = (qrt_activation)activation,
            .residual = activation & 4 ? NULL : residual,
            .residual_stride_elems = n,
        };
        memcpy(again, y, sizeof *y * (size_t)(m * ldc));
        memcpy(want, y, sizeof *y * (size_t)(m * ldc));
        kernel->finish(m, n, again, ldc, &e);
        definition.gemm_f32.finish(m, n, want, ldc, &e);
        for (int64_t i = 0; i < m * ldc; i++) {
            double bound = plain || i % ldc >= n ? 0 : 8 * EPS * (fabs(want[i]) + 2);
            check_close(again[i], want[i], bound, "gemm_f32 finish", i / ldc, i % ldc);
        }
    }
    release();
}

static void check_gemm_f32(void) {
    static const int64_t ms[] = {0, 1, 2, 3, 4, 5, 6, 7, 13, 25}, ks[] = {0, 1, 2, 7, 8, 9, 33};
    static const int64_t ns[] = {0, 1, 3, 4, 5, 8, 15, 16, 17, 31, 33, 64, 71};
    for (int i = 0; i < COUNT(ms); i++)
        for (int j = 0; j < COUNT(ks); j++)
            for (int l = 0; l < COUNT(ns); l++) check_gemm_f32_at(ms[i], ks[j], ns[l], (i + j + l) & 1);
    int64_t offsets[] = {0, 5, 2, 9};
    float x[120], w[] = {0.5f, -1.25f, 3, 0.1f};
    fill_uniform(x, COUNT(x), 2);
    for (int64_t n = 0; n <= 100; n++)
        for (int64_t taps = 0; taps <= 4; taps++) {
            float *y = untouched(n + 1);
            rung.gemm_f32.taps(n, taps, w, offsets, x, y);
            for (int64_t j = 0; j < n; j++) {
                double exact = 0;
                for (int64_t t = 0; t < taps; t++) exact += (double)w[t] * x[offsets[t] + j];
                check_close(y[j], exact, 4 * EPS * 10, "taps", n, j);
            }
            check_same(y[n], UNTOUCHED, "taps, beyond", n, n);
            release();
        }
}

// --------------------------------------------------------------------------------------- few bits

static int32_t pair_of_bfloat16(float first, float second) {
    uint32_t upper, lower;
    memcpy(&upper, &first, sizeof upper), memcpy(&lower, &second, sizeof lower);
    return (int32_t)(upper | lower >> 16);
}

/// Rows of codes at all widths against the decoded weights, and the rows one by one and together: the same bits. Rows may be of FP8,
/// and then as pairs if they are many.
static void check_nbits_at(int bits, const float *table, int64_t k, int64_t n, int64_t group, bool zeros, bool float8) {
    int64_t m = 11, groups = (k + group - 1) / group, ldy = n + 2;
    float *scales = floats(n * groups), *zero_points = floats(n * groups), *bias = floats(n), *a = floats(m * k);
    fill_uniform(scales, n * groups, 1);
    for (int64_t i = 0; i < n * groups; i++) zero_points[i] = table ? uniform(-1, 1) : (float)(random_bits() % (1u << bits));
    fill_uniform(bias, n, 1);
    fill_uniform(a, m * k, 1);
    if (float8) {
        float *rows = floats(m * k);
        for (int64_t i = 0; i < m; i++) definition.rows.round_to_float8(a + i * k, rows + i * k, k);
        a = rows;
    }
    uint8_t *codes = array(n * k, 1), *again = array(n * k, 1);
    for (int64_t i = 0; i < n * k; i++) codes[i] = (uint8_t)(random_bits() % (1u << bits));
    const qrt_nbits_spec spec = {
        .k = k, .n = n, .group = group, .bits = bits, .table = table, .scales = scales, .zero_points = zeros ? zero_points : NULL,
        .bias = bias, .reads_float8 = float8,
    };
    const qrt_nbits_source source = {.rows = codes, .row_stride_bytes = k, .bits = 8};
    qrt_nbits_weights *w = qrt_nbits_new(&spec, &rung.gemm_nbits, &rung.gemm_f32, NULL);
    if (!w || !qrt_nbits_fill(w, 0, n, &source, 1)) abort();
    qrt_nbits_unpack(w, 0, n, again, k);
    for (int64_t i = 0; i < n * k; i++) check(again[i] == codes[i], "nbits unpack", i / k, i % k, again[i], codes[i]);

    const qrt_epilogue none = {.activation = QRT_ACT_NONE};
    float *together = untouched(m * ldy), *alone = untouched(m * ldy);
    void *scratch = aligned_alloc(QRT_ALIGNMENT, (qrt_scratch_bytes(&w->base, m) + QRT_ALIGNMENT) / QRT_ALIGNMENT * QRT_ALIGNMENT);
    qrt_linear_serial(&w->base, a, k, m, QRT_Q8_ANY_GRID, &none, together, ldy, scratch);
    for (int64_t i = 0, rows = 1; i < m; i += rows, rows = rows % 4 + 1 < m - i ? rows % 4 + 1 : m - i)
        qrt_linear_serial(&w->base, a + i * k, k, rows, QRT_Q8_ANY_GRID, &none, alone + i * ldy, ldy, scratch);
    for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j < n; j++) {
            double exact = bias[j], size = 0;
            for (int64_t p = 0; p < k; p++) {
                int64_t at = j * groups + p / group;
                double code = codes[j * k + p], centre = 1 << (bits - 1);
                double value = table ? table[codes[j * k + p]] : code - (zeros ? 0 : centre), zero = zeros ? zero_points[at] : 0;
                exact += a[i * k + p] * scales[at] * (value - zero);
                size += fabs(a[i * k + p] * scales[at]) * (fabs(value) + fabs(zero) + (table ? 0 : centre));
            }
            check_close(together[i * ldy + j], exact, EPS * ((double)(k + 2 * groups + 3 * float8) * size + fabs(bias[j])), "nbits", i, j);
        }
        for (int64_t j = n; j < ldy; j++) check_same(together[i * ldy + j], UNTOUCHED, "nbits, beyond", i, j);
    }
    for (int64_t i = 0; i < m * ldy; i++) check_same(alone[i], together[i], "nbits, a row alone", i / ldy, i % ldy);
    free(scratch);
    qrt_weights_free(&w->base);
    release();
}

static void check_nbits_float8(void) {
    static const int64_t ks[] = {2, 16, 62, 130, 601, 1200}, groups[] = {5, 16, 64, 300, 2000};
    static const float of_bfloat16[16] = {-6, -4, -3, -2, -1.5f, -1, -0.5f, 0, 0.5f, 1, 1.5f, 2, 3, 4, 6, 0.0078125f};
    float wider[16];
    fill_uniform(wider, COUNT(wider), 1);
    for (int i = 0; i < COUNT(ks); i++)
        for (int g = 0; g < COUNT(groups); g++) {
            for (int bits = 2; bits <= 8; bits = bits == 4 ? 8 : bits + 1)
                check_nbits_at(bits, NULL, ks[i], 33 - bits, groups[g], (i + g + bits) % 2, true);
            check_nbits_at(4, of_bfloat16, ks[i], 70, groups[g], (i + g) % 2, true);
            check_nbits_at(4, wider, ks[i], 31, groups[g], (i + g) % 2, true);
        }
}

/// Pairs of bfloat16 have the bits of the float kernels, whatever begins and ends in a strip.
static void check_pairs_at(int64_t m, int64_t k, int64_t size, bool zeros, bool begun) {
    const int64_t nr = rung.gemm_f32.nr, groups = (k + size - 1) / size, lda = k + 2, ldc = nr + 3;
    float *a = floats(m * lda), *b = floats(k * nr), *scales = floats(groups * nr), *offsets = floats(groups * nr);
    float *sums = floats(m * groups), *before = floats(m * nr), *c = floats(m * ldc), *want = floats(m * ldc);
    int32_t *a_pairs = array(m * lda / 2, sizeof *a_pairs), *b_pairs = array(k * nr / 2, sizeof *b_pairs);
    for (int64_t i = 0; i < m * lda; i++) a[i] = (float)((int)(random_bits() % 255) - 127) / 16;
    for (int64_t i = 0; i < k * nr; i++) b[i] = (float)((int)(random_bits() % 255) - 127) / 1024;
    fill_uniform(scales, groups * nr, 1), fill_uniform(offsets, groups * nr, 1), fill_uniform(sums, m * groups, 9);
    fill_uniform(before, m * nr, 1), fill_uniform(c, m * ldc, 1);
    memcpy(want, c, (size_t)(m * ldc) * sizeof *c);
    for (int64_t i = 0; i < m; i++)
        for (int64_t p = 0; p < k; p += 2) a_pairs[i * lda / 2 + p / 2] = pair_of_bfloat16(a[i * lda + p], a[i * lda + p + 1]);
    for (int64_t p = 0; p < k; p += 2)
        for (int64_t j = 0; j < nr; j++) b_pairs[p / 2 * nr + j] = pair_of_bfloat16(b[p * nr + j], b[(p + 1) * nr + j]);
    qrt_f32_groups of_floats = {
        .size = size, .scales = scales, .zeros = zeros ? offsets : NULL, .stride = nr, .sums = sums, .sums_stride = groups,
        .begun = begun ? before : NULL, .begun_stride = nr,
    };
    qrt_f32_groups of_pairs = of_floats;
    of_pairs.size = size / 2;
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        rung.gemm_f32.grouped_strip(m, k, a, lda, b, nr, &of_floats, want, ldc, accumulate);
        rung.gemm_nbits.grouped_pair_strip(m, k / 2, a_pairs, lda / 2, b_pairs, nr, &of_pairs, c, ldc, accumulate);
        for (int64_t i = 0; i < m * ldc; i++) check_same(c[i], want[i], "pairs in groups", i / ldc, i % ldc);
        rung.gemm_f32.strip(m, nr, k, a, lda, b, nr, b, want, ldc, accumulate);
        rung.gemm_nbits.pair_strip(m, k / 2, a_pairs, lda / 2, b_pairs, nr, c, ldc, accumulate);
        for (int64_t i = 0; i < m * ldc; i++) check_same(c[i], want[i], "pairs", i / ldc, i % ldc);
    }
    release();
}

static void check_pairs(void) {
    check(!rung.gemm_nbits.pair_strip == !rung.gemm_nbits.grouped_pair_strip, "pairs of both kinds", 0, 0, 0, 0);
    if (!rung.gemm_nbits.pair_strip) return;
    for (int64_t m = 1; m <= 30; m++)
        for (int64_t k = 2; k <= 50; k += 16) {
            check_pairs_at(m, k, 16, m % 2, false);
            check_pairs_at(m, k, 64, m % 2, m % 3);
        }
}

static void check_gemm_nbits(void) {
    check_pairs();
    static const int64_t ks[] = {1, 7, 16, 61, 129, 600}, ns[] = {1, 15, 16, 33, 100}, groups[] = {5, 16, 64, 1000};
    float table[256];
    fill_uniform(table, COUNT(table), 1);
    for (int bits = 2; bits <= 8; bits = bits == 4 ? 8 : bits + 1)
        for (int i = 0; i < COUNT(ks); i++)
            for (int j = 0; j < COUNT(ns); j++)
                for (int g = 0; g < COUNT(groups); g++) {
                    check_nbits_at(bits, NULL, ks[i], ns[j], groups[g], (i + j + g) % 2, false);
                    if ((i + j + g) % 3 == 0) check_nbits_at(bits, table, ks[i], ns[j], groups[g], (i + j) % 2, false);
                }
    check_nbits_float8();
    // Of FP8 each code, the one with all bits set aside: it is no number.
    for (unsigned code = 0; code < 256; code++) {
        double exponent = code >> 3 & 15, mantissa = code & 7;
        double magnitude = exponent > 0 ? (8 + mantissa) * exp2(exponent - 10) : mantissa * 0x1p-9;
        table[code] = (float)((code & 127) == 127 ? NAN : code & 128 ? -magnitude : magnitude);
    }
    const float one = 1;
    for (unsigned code = 0; code < 256; code++) {
        const uint8_t row = (uint8_t)code;
        const qrt_nbits_spec spec = {.k = 1, .n = 1, .group = 1, .bits = 8, .table = table, .scales = &one};
        const qrt_nbits_source source = {.rows = &row, .row_stride_bytes = 1, .bits = 8};
        qrt_nbits_weights *w = qrt_nbits_new(&spec, &rung.gemm_nbits, &rung.gemm_f32, NULL);
        if (!w || !qrt_nbits_fill(w, 0, 1, &source, 1)) abort();
        float values[4 * QRT_NBITS_NR];
        check(w->coding == QRT_NBITS_E4M3, "the table of FP8", code, 0, w->coding, QRT_NBITS_E4M3);
        rung.gemm_nbits.decode(w, w->codes, 1, values, QRT_NBITS_NR);
        check_same(values[0], table[code], "FP8", code, 0);
        qrt_weights_free(&w->base);
    }
}

// -------------------------------------------------------------------------------------- double GEMM

static void check_gemm_f64_at(int64_t m, int64_t k, int64_t n) {
    const qrt_gemm_f64 *kernel = &rung.gemm_f64;
    int64_t nr = kernel->nr, panels = (n + nr - 1) / nr;
    double *a = array(m * k, sizeof *a), *b = array(k * n, sizeof *b), *packed = array(panels * nr * k, sizeof *packed);
    double *y = array(m * n, sizeof *y), *alone = array(n, sizeof *alone);
    for (int64_t i = 0; i < m * k; i++) a[i] = uniform(-1, 1);
    for (int64_t i = 0; i < k * n; i++) b[i] = uniform(-1, 1);
    qrt_f64_pack(kernel, k, n, b, n, 1, packed);
    qrt_f64_gemm_strips(kernel, m, n, k, a, k, packed, nr, k * nr, y, n, false);
    for (int64_t i = 0; i < m; i++) {
        for (int64_t j = 0; j < n; j++) {
            long double exact = 0, size = 0;
            for (int64_t p = 0; p < k; p++) {
                exact += (long double)a[i * k + p] * b[p * n + j];
                size += fabs(a[i * k + p] * b[p * n + j]);
            }
            bool good = fabs((double)(y[i * n + j] - exact)) <= (double)k * DBL_EPSILON * (double)size;
            check(good, "gemm_f64", i, j, y[i * n + j], (double)exact);
        }
        // A row alone, from where b lies, k in two halves: the same bits.
        int64_t half = k / 2;
        for (int64_t j = 0; j < n; j += nr) {
            int64_t columns = n - j < nr ? n - j : nr;
            kernel->strip(1, columns, half, a + i * k, k, b + j, n, alone + j, n, false);
        }
        qrt_f64_gemm_strips(kernel, 1, n, k - half, a + i * k + half, k, b + half * n, n, nr, alone, n, true);
        check(!memcmp(alone, y + i * n, sizeof *y * (size_t)n), "gemm_f64 row alone", i, 0, alone[0], y[i * n]);
    }
    release();
}

static void check_gemm_f64(void) {
    static const int64_t ms[] = {0, 1, 2, 5, 6, 7, 13, 29, 100}, ks[] = {0, 1, 2, 7, 33, 300}, ns[] = {1, 3, 7, 8, 9, 16, 17, 40};
    for (int i = 0; i < COUNT(ms); i++)
        for (int j = 0; j < COUNT(ks); j++)
            for (int l = 0; l < COUNT(ns); l++) check_gemm_f64_at(ms[i], ks[j], ns[l]);
}

// --------------------------------------------------------------------------------------------- gram

static void check_gram_codes(int64_t n, int kind) {
    float *x = array(n, sizeof *x), *y = array(n, sizeof *y), *inverse_step = array(n, sizeof *inverse_step);
    int32_t *pairs = array(QRT_GRAM_PANEL, sizeof *pairs);
    for (int64_t j = 0; j < n; j++) {
        inverse_step[j] = (float)(1 << random_bits() % 4);
        x[j] = (float)((int)(random_bits() % 4000) - 2000) / 4.0f, y[j] = -x[j] / 2;
    }
    const int64_t at = n - 1;
    if (kind == 1) x[at] = 4095.0f / inverse_step[at];
    if (kind == 2) y[at] = -4095.25f / inverse_step[at];
    if (kind == 3) x[at] = NAN;
    if (kind == 4) y[at] = -INFINITY;
    const bool fit = rung.gram.code_pairs(n, x, y, inverse_step, pairs);
    check(fit == (kind < 2), "gram codes fit", n, kind, fit, kind < 2);
    for (int64_t j = 0; fit && j < QRT_GRAM_PANEL; j++) {
        const int first = j < n ? (int)rintf(x[j] * inverse_step[j]) : 0, second = j < n ? (int)rintf(y[j] * inverse_step[j]) : 0;
        const int16_t *got = (int16_t *)(pairs + j);
        check(got[0] == first && got[1] == second, "gram codes", j, n, got[0], first);
    }
    release();
}

static void check_magnitudes(int64_t rows, int64_t n) {
    const float **x = array(rows, sizeof *x);
    float *inverse_step = array(n, sizeof *inverse_step), *values = array(rows * (n + 3), sizeof *values);
    int32_t *sums = array(n, sizeof *sums);
    for (int64_t j = 0; j < n; j++) inverse_step[j] = (float)(1 << random_bits() % 9);
    for (int64_t t = 0; t < rows; t++) {
        x[t] = values + t * (n + 3);
        for (int64_t j = 0; j < n + 3; j++) values[t * (n + 3) + j] = (float)((int)(random_bits() % 16000) - 8000) / 16.0f;
    }
    rung.gram.magnitudes(rows, n, x, 3, inverse_step, sums);
    for (int64_t j = 0; j < n; j++) {
        int64_t sum = 0;
        for (int64_t t = 0; t < rows; t++) sum += labs(lrintf(x[t][3 + j] * inverse_step[j]));
        check(sums[j] == sum, "magnitudes", j, rows, sums[j], (double)sum);
    }
    release();
}

static void check_gram(void) {
    for (int64_t n = 1; n <= QRT_GRAM_PANEL; n++)
        for (int kind = 0; kind < 5; kind++) check_gram_codes(n, kind);
    for (int64_t n = 1; n <= QRT_MAGNITUDE_COLUMNS; n++) check_magnitudes(n % 7 + 1, n);
    check_magnitudes(QRT_MAGNITUDE_ROWS, QRT_MAGNITUDE_COLUMNS);
    enum { CODES = QRT_GRAM_ROWS * QRT_GRAM_PANEL, SUMS = QRT_GRAM_PANEL * QRT_GRAM_PANEL };
    for (int kind = 0; kind < 4; kind++) {
        int16_t *a = array(CODES, sizeof *a), *b = array(CODES, sizeof *b);
        int64_t *sums = array(SUMS, sizeof *sums);
        for (int i = 0; i < CODES; i++) {
            int16_t most = QRT_GRAM_CODE, any = (int16_t)(random_bits() % (2 * QRT_GRAM_CODE + 1)) - QRT_GRAM_CODE;
            a[i] = kind == 0 ? any : kind == 1 ? most : -most;
            b[i] = kind == 0 ? any / 3 : kind == 3 ? -most : most;
        }
        for (int i = 0; i < SUMS; i++) sums[i] = (int64_t)i << 40;
        rung.gram.panels(a, b, sums);
        for (int i = 0; i < QRT_GRAM_PANEL; i++) {
            for (int j = 0; j < QRT_GRAM_PANEL; j++) {
                int64_t sum = (int64_t)(i * QRT_GRAM_PANEL + j) << 40, got = sums[i * QRT_GRAM_PANEL + j];
                for (int t = 0; t < QRT_GRAM_ROWS; t++) {
                    int64_t pair = t / 2 * QRT_GRAM_PANEL;
                    sum += (int64_t)a[(pair + i) * 2 + t % 2] * b[(pair + j) * 2 + t % 2];
                }
                check(got == sum, "gram", i, j, (double)got, (double)sum);
            }
        }
        release();
    }
}

// ---------------------------------------------------------------------------------------------- dft

static void check_dft_of(int64_t n) {
    float *roots = array(2 * n, sizeof *roots), *x[2][2];
    const int64_t size = 2 * n * QRT_DFT_LANES;
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 2; j++) x[i][j] = array(size, sizeof(float));
    qrt_dft_plan plan;
    check(qrt_dft_factorize(n, &plan), "dft factors", n, 0, 0, 1);
    qrt_dft_roots(n, roots);
    plan.roots = roots;
    fill_uniform(x[0][0], size, 1);
    memcpy(x[1][0], x[0][0], (size_t)size * sizeof(float));
    float *single = array(2 * n, sizeof *single), *work = array(2 * n, sizeof *work);
    for (int64_t i = 0; i < 2 * n; i++) single[i] = x[0][0][i * QRT_DFT_LANES + 3];
    const float *got = rung.dft.lanes(&plan, x[0][0], x[0][1]), *want = definition.dft.lanes(&plan, x[1][0], x[1][1]);
    const float *alone = rung.dft.single(&plan, single, work);
    for (int64_t i = 0; i < size; i++) check_same(got[i], want[i], "dft", n, i);
    for (int64_t i = 0; i < 2 * n; i++) check_same(alone[i], want[i * QRT_DFT_LANES + 3], "dft alone", n, i);
    release();
}

static void check_dft(void) {
    for (int64_t n = 1; n < 67; n++) check_dft_of(n);
    static const int64_t more[] = {100, 210, 256, 400, 512, 1024, 3721};
    for (int i = 0; i < COUNT(more); i++) check_dft_of(more[i]);
}

// ---------------------------------------------------------------------------------------- attention

static void check_attention(void) {
    for (int kind = QRT_MASK_NONE; kind <= QRT_MASK_PENALIZE; kind++)
        for (int64_t n = 1; n < 70; n += 1 + n / 9)
            for (int variant = 0; variant < 6; variant++) {
                enum { M = 6 };
                int64_t lds = n + 2, visible = variant & 1 ? n : n / 2 - 1;
                int64_t key_stride = variant % 3 != 2, mask_size = M * n;
                float *s = untouched(M * lds), *want = floats(M * lds), *added = floats(mask_size);
                uint8_t *bytes = array(mask_size, 1);
                for (int64_t i = 0; i < mask_size; i++) {
                    bytes[i] = random_bits() % 3 != 0;
                    added[i] = random_bits() % 4 ? uniform(-3, 3) : -INFINITY;
                }
                for (int64_t i = 0; i < M; i++) fill_uniform(s + i * lds, n, variant & 2 ? 60.0f : 3.0f);
                qrt_mask mask = {
                    (qrt_mask_kind)kind, kind == QRT_MASK_ADD ? (void *)added : (void *)bytes, n, key_stride,
                    variant & 1 ? -INFINITY : -1e4f,
                };
                float sums[M], want_sums[M], tops[M], want_tops[M], scale = 0.7f;
                memcpy(want, s, sizeof *s * (size_t)(M * lds));
                rung.attention.exponentials(M, n, s, lds, scale, &mask, visible, tops, sums);
                definition.attention.exponentials(M, n, want, lds, scale, &mask, visible, want_tops, want_sums);
                for (int64_t i = 0; i < M; i++) {
                    for (int64_t j = 0; j < n; j++) {
                        double e = want[i * lds + j];  // the polynomial loses 3e-9 · |x|, down to where it is 0
                        double loss = e > 0 ? 3 * EPS + 3e-9 * fabs(log(e)) : 0;
                        check_close(s[i * lds + j], e, e * loss + 1e-38, "exponentials", i, j);
                    }
                    check_same(tops[i], want_tops[i], "tops", i, n);
                    check_close(sums[i], want_sums[i], want_sums[i] * EPS * (4 + (double)n / 2), "sums", i, n);
                    for (int64_t j = n; j < lds; j++) check_same(s[i * lds + j], UNTOUCHED, "exponentials, beyond", i, j);
                }
                rung.attention.divide(M, n, s, lds, sums);
                for (int64_t i = 0; i < M * lds; i++) check(i % lds < n || s[i] == UNTOUCHED, "divide", i, n, s[i], 0);
                fill_uniform(s, M * lds, 3);
                memcpy(want, s, sizeof *s * (size_t)(M * lds));
                rung.attention.divide(M, n, s, lds, sums);
                definition.attention.divide(M, n, want, lds, sums);
                for (int64_t i = 0; i < M * lds; i++)
                    if (isfinite(want[i])) check_close(s[i], want[i], fabs((double)want[i]) * 2 * EPS, "divide", i / lds, i % lds);
                release();
            }
}

/// Products for few rows have the bits of the strips of the float GEMM, which are near the definition.
static void check_few_products(int64_t m, int64_t n, int64_t d) {
    const qrt_gemm_f32 *gemm = &rung.gemm_f32;
    int64_t ldq = d + 3, ldk = d + 5, lds = n + 2, panels = (n + gemm->nr - 1) / gemm->nr * gemm->nr;
    float *q = floats(m * ldq), *k = floats(n * ldk), *packed = floats(panels * d), *s = untouched(m * lds), *want = untouched(m * lds);
    fill_uniform(q, m * ldq, 2);
    fill_uniform(k, n * ldk, 2);
    gemm->pack(d, n, k, 1, ldk, packed);
    rung.attention.few_scores(m, n, d, q, ldq, k, ldk, s, lds);
    for (int64_t j = 0; j < n; j += gemm->nr)
        gemm->strip(m, n - j < gemm->nr ? n - j : gemm->nr, d, q, ldq, packed + j * d, gemm->nr, packed, want + j, lds, false);
    for (int64_t i = 0; i < m * lds; i++) check_same(s[i], want[i], "few scores", i / lds, i % lds);
    float *y = untouched(m * (d + 1)), *want_y = untouched(m * (d + 1));
    rung.attention.few_values(m, d, n, s, lds, k, ldk, y, d + 1);
    for (int64_t j = 0; j < d; j += gemm->nr)
        gemm->strip(m, d - j < gemm->nr ? d - j : gemm->nr, n, s, lds, k + j, ldk, k, want_y + j, d + 1, false);
    for (int64_t i = 0; i < m * (d + 1); i++) check_same(y[i], want_y[i], "few values", i / (d + 1), i % (d + 1));
    release();
}

static void check_few_rows(void) {
    for (int64_t m = 1; m <= 9; m++)
        for (int64_t n = 1; n < 300; n += 1 + n / 4)
            for (int64_t d = 1; d < 140; d += 1 + d / 3) check_few_products(m, n, d);
}

/// Rows of any magnitude, some that are not finite or too small for codes.
static float *rows_for_codes(int64_t m, int64_t n, int64_t stride) {
    float *x = floats(m * stride);
    for (int64_t i = 0; i < m; i++) {
        fill_uniform(x + i * stride, n, i % 5 == 2 ? 1e20f : i % 5 == 3 ? 1e-20f : 3.0f);
        if (i % 11 == 7) fill_uniform(x + i * stride, n, 1e-31f);
        if (i % 13 == 8 && n) x[i * stride + n / 2] = n & 1 ? NAN : -INFINITY;
    }
    return x;
}

static void check_codes(int64_t m, int64_t n) {
    int64_t stride = n + 3, ldc = (n + QRT_Q16_ROW - 1) / QRT_Q16_ROW * QRT_Q16_ROW, ldp = (n + 63) / 64 * 64;
    float *x = rows_for_codes(m, n, stride), limit = qrt_q16_limit(n);
    float *scales = untouched(m + 1), *want_scales = untouched(m + 1);
    int16_t *codes = array(m * ldc, sizeof *codes), *want = array(m * ldc, sizeof *want);
    int32_t *pairs = array((m + 1) / 2 * ldp, sizeof *pairs), *want_pairs = array((m + 1) / 2 * ldp, sizeof *pairs);
    rung.attention_q16.quantize(m, n, x, stride, limit, codes, ldc, scales);
    definition.attention_q16.quantize(m, n, x, stride, limit, want, ldc, want_scales);
    for (int64_t i = 0; i <= m; i++) check_same(scales[i], want_scales[i], "scales of codes", i, n);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n + n % 2; j++)
            check(codes[i * ldc + j] == want[i * ldc + j], "codes", i, j, codes[i * ldc + j], want[i * ldc + j]);
    rung.attention_q16.quantize_pairs(m, n, x, stride, QRT_Q16_VALUES, pairs, ldp, scales);
    definition.attention_q16.quantize_pairs(m, n, x, stride, QRT_Q16_VALUES, want_pairs, ldp, want_scales);
    for (int64_t i = 0; i <= m; i++) check_same(scales[i], want_scales[i], "scales of pairs", i, n);
    for (int64_t i = 0; i < (m + 1) / 2; i++)
        for (int64_t j = 0; j < n; j++)
            check(pairs[i * ldp + j] == want_pairs[i * ldp + j], "pairs", i, j, pairs[i * ldp + j], want_pairs[i * ldp + j]);
    release();
}

static void check_products_of_codes(int64_t m, int64_t n, int64_t k, bool extreme) {
    int64_t nr = rung.attention_q16.nr, lda = 2 * k + 4, ldb = nr + 16, ldc = n + 2;
    int limit = (int)qrt_q16_limit(2 * k);
    int16_t *a = array(m * lda, sizeof *a);
    int32_t *b = array(k * ldb, sizeof *b), *sums = array(m * ldc, sizeof *sums), *want = array(m * ldc, sizeof *want);
    for (int64_t i = 0; i < m * lda; i++) a[i] = (int16_t)(extreme ? limit : (int)(random_bits() % (2 * (unsigned)limit + 1)) - limit);
    for (int64_t i = 0; i < 2 * k * ldb; i++) {
        int16_t code = (int16_t)(extreme ? -limit : (int)(random_bits() % (2 * (unsigned)limit + 1)) - limit);
        memcpy((char *)b + 2 * i, &code, sizeof code);
    }
    for (int64_t i = 0; i < m * ldc; i++) sums[i] = want[i] = 77;
    rung.attention_q16.scores(m, n, k, a, lda, b, ldb, sums, ldc);
    definition.attention_q16.scores(m, n, k, a, lda, b, ldb, want, ldc);
    for (int64_t i = 0; i < m * ldc; i++) check(sums[i] == want[i], "sums of codes", i / ldc, i % ldc, sums[i], want[i]);
    float *y = untouched(m * ldc), *want_y = untouched(m * ldc), *factors = floats(m);
    fill_uniform(factors, m, 2);
    for (int more = 0; more < 2; more++) {
        rung.attention_q16.values(m, n, k, a, lda, b, ldb, factors, more, y, ldc);
        definition.attention_q16.values(m, n, k, a, lda, b, ldb, factors, more, want_y, ldc);
        for (int64_t i = 0; i < m * ldc; i++) check_same(y[i], want_y[i], "values of codes", i / ldc, i % ldc);
    }
    release();
}

/// Codes of weights may differ by the rounding of a float that lies between two.
static void check_exponentials_of_codes(qrt_mask_kind kind, int64_t n, int variant) {
    enum { M = 7 };
    int64_t lds = (n + QRT_Q16_ROW - 1) / QRT_Q16_ROW * QRT_Q16_ROW, visible = variant & 1 ? n : n / 2 - 1;
    int32_t *s = array(M * lds, sizeof *s), *want = array(M * lds, sizeof *want);
    float rows[M], *keys = floats(n), *values = floats(n), *added = floats(n);
    uint8_t *bytes = array(n, 1);
    for (int64_t i = 0; i < M * lds; i++) s[i] = want[i] = (int32_t)random_bits() >> 1;
    for (int64_t j = 0; j < n; j++) {
        keys[j] = uniform(0.1f, 1.0f);
        values[j] = j % 9 == 4 ? 0.0f : uniform(0.01f, 2.0f);
        bytes[j] = random_bits() % 3 != 0;
        added[j] = random_bits() % 4 ? uniform(-3, 3) : -INFINITY;
    }
    for (int i = 0; i < M; i++) rows[i] = uniform(-1, 1) * (variant & 2 ? 3e-8f : 3e-9f);
    if (variant & 4) rows[2] = NAN;
    if (variant & 4 && visible > 4) values[3] = NAN;
    qrt_mask mask = {kind, kind == QRT_MASK_ADD ? (void *)added : (void *)bytes, 0, 1, variant & 1 ? -INFINITY : -1e4f};
    qrt_q16_scales scales = {rows, keys, values};
    float tops[M], sums[M], factors[M], want_tops[M], want_sums[M], want_factors[M];
    rung.attention_q16.exponentials(M, n, s, lds, &scales, &mask, visible, tops, sums, factors);
    definition.attention_q16.exponentials(M, n, want, lds, &scales, &mask, visible, want_tops, want_sums, want_factors);
    for (int i = 0; i < M; i++) {
        const int16_t *codes = (const int16_t *)(s + i * lds), *want_codes = (const int16_t *)(want + i * lds);
        check_same(tops[i], want_tops[i], "tops of codes", i, n);
        check_close(sums[i], want_sums[i], want_sums[i] * 1e-5, "sums of e", i, n);
        check_close(factors[i], want_factors[i], fabs((double)want_factors[i]) * 2e-5, "factors", i, n);
        for (int64_t j = 0; j < n + n % 2; j++)
            check_close(codes[j], want_codes[j], 1 + 2e-5 * want_codes[j], "weights", i, j);
    }
    release();
}

static void check_attention_q16(void) {
    check(rung.attention_q16.nr == rung.gemm_f32.nr, "nr", 0, 0, rung.attention_q16.nr, rung.gemm_f32.nr);
    for (int64_t n = 0; n < 80; n += 1 + n / 7)
        for (int64_t m = 0; m < 20; m += 1 + m / 4) check_codes(m, n);
    int64_t nr = rung.attention_q16.nr, widths[] = {1, nr / 2 - 1, nr / 2 + 1, nr};
    for (int64_t m = 0; m < 34; m += 1 + m / 16)
        for (int w = 0; w < COUNT(widths); w++)
            for (int64_t k = 0; k < 40; k += 1 + k / 3) check_products_of_codes(m, widths[w], k, (m + w + k) % 3 == 0);
    for (int kind = QRT_MASK_NONE; kind <= QRT_MASK_PENALIZE; kind++)
        for (int64_t n = 1; n < 70; n += 1 + n / 9)
            for (int variant = 0; variant < 8; variant++) check_exponentials_of_codes((qrt_mask_kind)kind, n, variant);
}

// ------------------------------------------------------------------------- codes of a cache

static void check_cache_codes_at(qrt_cache_form form, int64_t rows, bool has_labels, bool fits) {
    int64_t width = qrt_cache_row_bytes(&form), n = rows * form.channels, ranges = 2 * form.clusters * rows;
    float *x = rows_for_codes(rows, form.channels, form.channels), *y = untouched(n + 1), *want_y = floats(n);
    uint8_t *labels = array(form.channels, 1), *codes = array(rows * width, 1), *want = array(rows * width, 1);
    float *own = floats(ranges), *want_own = floats(ranges);
    for (int64_t j = 0; j < form.channels; j++) labels[j] = (uint8_t)(random_bits() % (uint32_t)form.clusters);
    const uint8_t *given = has_labels ? labels : NULL;
    rung.cache_codes.quantize(&form, rows, x, given, fits, codes, own);
    definition.cache_codes.quantize(&form, rows, x, given, fits, want, want_own);
    for (int64_t i = 0; i < rows * width; i++) check(codes[i] == want[i], "codes of a cache", i, form.bits, codes[i], want[i]);
    for (int64_t i = 0; i < ranges; i++) check_same(own[i], want_own[i], "ranges of a cache", i, form.bits);
    int64_t every = rows ? (rows + 1) / 2 : 0;
    rung.cache_codes.dequantize(&form, every, codes, own, 2, given, y);
    definition.cache_codes.dequantize(&form, every, want, want_own, 2, given, want_y);
    for (int64_t i = 0; i < every * form.channels; i++) check_same(y[i], want_y[i], "numbers of a cache", i, form.bits);
    for (int64_t i = every * form.channels; i <= n; i++) check_same(y[i], UNTOUCHED, "numbers of a cache, beyond", i, form.bits);
    release();
}

static void check_cache_codes(void) {
    for (int64_t bits = 2; bits <= 8; bits *= 2)
        for (int64_t channels = 4; channels < 140; channels += 4 + channels / 8 * 4)
            for (int64_t rows = 0; rows < 15; rows += 1 + rows / 3)
                for (int fits = 0; fits < 2; fits++) {
                    check_cache_codes_at((qrt_cache_form){bits, channels, 1}, rows, false, fits);
                    check_cache_codes_at((qrt_cache_form){bits, channels, 1 + channels % QRT_MOST_CLUSTERS}, rows, true, fits);
                }
}

// ---------------------------------------------------------------------------------------- pointwise

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }
static double softplus(double x) { return fmax(x, 0) + log1p(exp(-fabs(x))); }
static double clipped(double x, double low, double high) { return x < low ? low : x > high ? high : x; }

static double exact_unary(qrt_unary_op op, double x, double p, double q) {
    switch (op) {
    case QRT_RELU: return x < 0 ? 0 : x;
    case QRT_LEAKY_RELU: return x < 0 ? p * x : x;
    case QRT_EXP: return exp(x);
    case QRT_LOG: return log(x);
    case QRT_SQRT: return sqrt(x);
    case QRT_RECIPROCAL: return 1 / x;
    case QRT_NEG: return -x;
    case QRT_ABS: return fabs(x);
    case QRT_TANH: return tanh(x);
    case QRT_SIGMOID: return sigmoid(x);
    case QRT_ERF: return erf(x);
    case QRT_GELU: return 0.5 * x * erfc(-x * sqrt(0.5));
    case QRT_GELU_TANH: return x * sigmoid(2 * sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x));
    case QRT_SILU: return x * sigmoid(x);
    case QRT_SOFTPLUS: return softplus(x);
    case QRT_ELU: return x < 0 ? p * expm1(x) : x;
    case QRT_SELU: return q * (x < 0 ? p * expm1(x) : x);
    case QRT_HARD_SIGMOID: return clipped(p * x + q, 0, 1);
    case QRT_HARD_SWISH: return x * clipped(x / 6 + 0.5, 0, 1);
    case QRT_CELU: return x < 0 ? p * expm1(x / p) : x;
    case QRT_THRESHOLDED_RELU: return x > p ? x : 0;
    case QRT_SHRINK: return x < -p ? x + q : x > p ? x - q : 0;
    case QRT_AFFINE: return p * x + q;
    case QRT_SCALED_TANH: return p * tanh(q * x);
    case QRT_FLOOR: return floor(x);
    case QRT_CEIL: return ceil(x);
    case QRT_ROUND: return rint(x);
    case QRT_SIN: return sin(x);
    case QRT_COS: return cos(x);
    case QRT_CLIP: return clipped(x, p, q);
    case QRT_SIGN: return isnan(x) ? x : (x > 0) - (x < 0);
    case QRT_SOFTSIGN: return x / (1 + fabs(x));
    case QRT_MISH: return x * tanh(softplus(x));
    case QRT_SQUARE: return x * x;
    case QRT_QUICK_GELU: return x * sigmoid(p * x);
    default: abort();
    }
}

/// As tests/kernels/test_pointwise.py: parameters, error in ulp, and absolute where the result nearly vanishes. Those of the sigmoid and of SELU hold
/// for all floats there are, which were tried: 2.48 and 2.32.
static const struct { double p, q, ulp, absolute; } UNARY[QRT_NUM_UNARY] = {
    [QRT_LEAKY_RELU] = {0.125, 0, 0.51, 0}, [QRT_EXP] = {0, 0, 1.1, 0}, [QRT_LOG] = {0, 0, 1.1, 0},
    [QRT_SQRT] = {0, 0, 0.51, 0}, [QRT_RECIPROCAL] = {0, 0, 0.51, 0}, [QRT_TANH] = {0, 0, 2.7, 0},
    [QRT_SIGMOID] = {0, 0, 2.5, 2e-36}, [QRT_ERF] = {0, 0, 1.3, 0}, [QRT_GELU] = {0, 0, 3.5, 3e-8},
    [QRT_GELU_TANH] = {0, 0, 3.5, 3e-8}, [QRT_SILU] = {0, 0, 3.2, 2e-36}, [QRT_SOFTPLUS] = {0, 0, 2.2, 2e-36},
    [QRT_ELU] = {1, 0, 1.1, 0}, [QRT_SELU] = {1.75, 1.125, 2.4, 0}, [QRT_HARD_SIGMOID] = {0.25, 0.5, 0.51, 0},
    [QRT_CELU] = {1.75, 0, 3.7, 0}, [QRT_THRESHOLDED_RELU] = {0.5, 0, 0, 0}, [QRT_SHRINK] = {0.5, 0.25, 0.51, 0},
    [QRT_AFFINE] = {1.75, -0.5, 0.51, 0}, [QRT_SCALED_TANH] = {1.75, 0.75, 3.8, 0}, [QRT_HARD_SWISH] = {0, 0, 2, 1e-6},
    [QRT_SIN] = {0, 0, 1.6, 0}, [QRT_COS] = {0, 0, 1.6, 0},
    [QRT_CLIP] = {-1.5, 2.5, 0, 0}, [QRT_SOFTSIGN] = {0, 0, 1.6, 0}, [QRT_MISH] = {0, 0, 4.2, 2e-36},
    [QRT_SQUARE] = {0, 0, 0.51, 0}, [QRT_QUICK_GELU] = {1.75, 0, 4.2, 3e-8},
};

static double spacing(double x) {
    float size = fminf(fabsf((float)x), 3e38f);
    return (double)nextafterf(size, INFINITY) - size;
}

static void check_unary(void) {
    static const float ranges[] = {1e-40f, 1e-3f, 0.5f, 1, 4, 10, 30, 104, 1e4f, 1e5f};
    enum { EACH = 700, N = EACH * 10 };
    static float x[N], y[N + 1], again[N + 1];
    for (int i = 0; i < N; i++) x[i] = uniform(-ranges[i / EACH], ranges[i / EACH]);
    for (int op = 0; op < QRT_NUM_UNARY; op++) {
        const char *name = qrt_unary_names[op];
        float p = (float)UNARY[op].p, q = (float)UNARY[op].q;
        y[N] = UNTOUCHED;
        rung.pointwise.unary[op](x, y, N, p, q);
        check_same(y[N], UNTOUCHED, name, N, N);
        for (int i = 0; i < N; i++) {
            double exact = exact_unary((qrt_unary_op)op, x[i], p, q);
            check_close(y[i], exact, UNARY[op].ulp * spacing(exact) + UNARY[op].absolute, name, i, 0);
        }
        // Split anywhere and in place: the same bits.
        for (int n = 0, from = 0; from + n < N && n < 40; from += n++) {
            memcpy(again, x + from, sizeof *x * (size_t)n);
            again[n] = UNTOUCHED;
            rung.pointwise.unary[op](again, again, n, p, q);
            for (int i = 0; i < n; i++) check_same(again[i], y[from + i], name, n, i);
            check_same(again[n], UNTOUCHED, name, n, n);
        }
        static const float limits[] = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, FLT_MAX, -FLT_MAX, FLT_MIN, 1e-45f};
        bool nan_or_limit = op == QRT_GELU || op == QRT_GELU_TANH || op == QRT_SILU || op == QRT_MISH ||
                            op == QRT_QUICK_GELU || op == QRT_HARD_SWISH || op == QRT_SOFTSIGN;
        rung.pointwise.unary[op](limits, y, COUNT(limits), p, q);
        for (int i = 0; i < COUNT(limits); i++) {
            if (isinf(limits[i]) && nan_or_limit) continue;
            double exact = exact_unary((qrt_unary_op)op, limits[i], p, q);
            check_close(y[i], exact, UNARY[op].ulp * spacing(exact) + UNARY[op].absolute, name, -1, i);
        }
    }
}

static const float EDGES[] = {0.0f, -0.0f, 1, -1, INFINITY, -INFINITY, NAN, 1e-45f, FLT_MAX, 2.5f};

static void check_binary_f32(void) {
    float a[40], b[40], y[41], want[41];
    uint8_t bytes[41], want_bytes[41];
    for (int op = 0; op < QRT_NUM_BINARY; op++) {
        qrt_binary_fn f = rung.pointwise.binary_f32[op], g = definition.pointwise.binary_f32[op];
        check(!f == !g, qrt_binary_names[op], 0, 0, 0, 0);
        if (!f) continue;
        bool compares = op >= QRT_EQUAL && op <= QRT_GREATER_EQUAL;
        for (int n = 0; n <= 40; n++)
            for (int steps = 0; steps < 4; steps++) {
                for (int i = 0; i < 40; i++) {
                    a[i] = random_bits() & 1 ? EDGES[random_bits() % COUNT(EDGES)] : uniform(-9, 9);
                    b[i] = random_bits() & 1 ? EDGES[random_bits() % COUNT(EDGES)] : uniform(-9, 9);
                }
                memset(bytes, 9, sizeof bytes);
                memset(want_bytes, 9, sizeof want_bytes);
                y[n] = want[n] = UNTOUCHED;
                f(a, b, compares ? (void *)bytes : (void *)y, n, steps & 1, steps >> 1);
                g(a, b, compares ? (void *)want_bytes : (void *)want, n, steps & 1, steps >> 1);
                for (int i = 0; i <= n; i++)
                    if (compares) check(bytes[i] == want_bytes[i], qrt_binary_names[op], n, i, bytes[i], want_bytes[i]);
                    // Of two zeros min and max may answer either.
                    else if ((op == QRT_MIN || op == QRT_MAX) && y[i] == want[i]) num_checks++;
                    else check_same(y[i], want[i], qrt_binary_names[op], n, i);
            }
    }
}

/// Operations of doubles are a few roundings of the same numbers on every rung, fused on some: within this of each other.
static const double UNARY_F64_ULP[QRT_NUM_UNARY] = {
    [QRT_TANH] = 10, [QRT_SIGMOID] = 8, [QRT_ERF] = 7, [QRT_GELU] = 18, [QRT_GELU_TANH] = 10, [QRT_SILU] = 10, [QRT_SOFTPLUS] = 10, [QRT_ELU] = 6,
    [QRT_SELU] = 8, [QRT_CELU] = 10, [QRT_SCALED_TANH] = 13, [QRT_MISH] = 16, [QRT_QUICK_GELU] = 10,
};

static void check_same_f64(double got, double want, const char *what, int64_t i, int64_t j) {
    check(!memcmp(&got, &want, sizeof got) || (isnan(got) && isnan(want)), what, i, j, got, want);
}

static void check_unary_f64(void) {
    enum { N = 4000 };
    static double x[N], y[N + 1], want[N], again[N + 1];
    for (int i = 0; i < N; i++) x[i] = uniform(-1, 1) * (i % 3 == 0 ? 1.0 : i % 3 == 1 ? 30.0 : 800.0);
    for (int i = 0; i < COUNT(EDGES); i++) x[i] = EDGES[i];
    for (int op = 0; op < QRT_NUM_UNARY; op++) {
        const char *name = qrt_unary_names[op];
        qrt_unary_f64_fn f = rung.pointwise.unary_f64[op], g = definition.pointwise.unary_f64[op];
        check(!f == !g, name, 0, 0, 0, 0);
        if (!f) continue;
        y[N] = UNTOUCHED;
        f(x, y, N, 1.75, 0.75);
        g(x, want, N, 1.75, 0.75);
        check_same_f64(y[N], UNTOUCHED, name, N, N);
        for (int i = 0; i < N; i++) {
            double size = fmin(fabs(want[i]), 1e308), unit = nextafter(size, INFINITY) - size;
            double bound = UNARY_F64_ULP[op] * unit + (UNARY_F64_ULP[op] ? 4e-320 : 0);  // subnormal e^x, times an x of 800
            bool is_close = isfinite(y[i]) && isfinite(want[i]) && fabs(y[i] - want[i]) <= bound;
            if (is_close) num_checks++;
            else check_same_f64(y[i], want[i], name, i, 64);
        }
        for (int n = 0, from = 0; from + n < N && n < 40; from += n++) {  // split anywhere and in place: the same bits
            memcpy(again, x + from, sizeof *x * (size_t)n);
            again[n] = UNTOUCHED;
            f(again, again, n, 1.75, 0.75);
            for (int i = 0; i < n; i++) check_same_f64(again[i], y[from + i], name, n, i);
            check_same_f64(again[n], UNTOUCHED, name, n, n);
        }
    }
}

static void check_twice(void) {
    for (int64_t n = 0; n < 150; n++) {
        uint32_t *x = array(n, sizeof *x), *y = array(2 * n + 1, sizeof *y);
        for (int64_t i = 0; i < n; i++) x[i] = 0x9e3779b9u * (uint32_t)(i + 1);
        y[2 * n] = 77;
        rung.pointwise.twice(x, y, n);
        for (int64_t i = 0; i < 2 * n; i++) check(y[i] == x[i / 2], "twice", n, i, y[i], x[i / 2]);
        check(y[2 * n] == 77, "twice, beyond", n, 2 * n, y[2 * n], 77);
        release();
    }
}

static void check_binary_f64(void) {
    double a[40], b[40], y[41], want[41];
    for (int op = 0; op < QRT_NUM_BINARY; op++) {
        qrt_binary_fn f = rung.pointwise.binary_f64[op], g = definition.pointwise.binary_f64[op];
        check(!f == !g, qrt_binary_names[op], 0, 64, 0, 0);
        for (int n = 0; f && n <= 40; n++)
            for (int steps = 0; steps < 4; steps++) {
                for (int i = 0; i < 40; i++) {
                    a[i] = random_bits() & 1 ? (double)EDGES[random_bits() % COUNT(EDGES)] : uniform(-9, 9);
                    b[i] = random_bits() & 1 ? (double)EDGES[random_bits() % COUNT(EDGES)] : uniform(-9, 9);
                }
                for (int i = 0; i <= 40; i++) y[i] = want[i] = UNTOUCHED;
                f(a, b, y, n, steps & 1, steps >> 1);
                g(a, b, want, n, steps & 1, steps >> 1);
                for (int i = 0; i <= n; i++)  // bytes of a comparison are compared as what they lie in
                    check_same_f64(y[i], want[i], qrt_binary_names[op], n, i);
            }
    }
}

static void check_integers(const qrt_binary_fn *fs, const qrt_binary_fn *gs, int item, bool is_bool) {
    for (int op = 0; op < QRT_NUM_BINARY; op++) {
        check(!fs[op] == !gs[op], qrt_binary_names[op], 0, item, 0, 0);
        if (!fs[op]) continue;
        for (int n = 0; n <= 40; n++)
            for (int steps = 0; steps < 4; steps++) {
                int64_t a[40], b[40], y[41], want[41];
                for (int i = 0; i < 40; i++) {
                    int64_t x = (int64_t)((uint64_t)random_bits() << 32 | random_bits());
                    int64_t z = random_bits() & 1 ? (int64_t)(random_bits() % 100) + 1 : x >> 3 | 0x100000001;
                    void *at = (char *)a + i * item, *bt = (char *)b + i * item;
                    if (item == 8) memcpy(at, &x, 8), memcpy(bt, &z, 8);
                    else if (item == 4) memcpy(at, &(int32_t){(int32_t)x}, 4), memcpy(bt, &(int32_t){(int32_t)z}, 4);
                    else *(uint8_t *)at = x & 1, *(uint8_t *)bt = x >> 1 & 1;
                }
                memset(y, 7, sizeof y);
                memset(want, 7, sizeof want);
                fs[op](a, b, y, n, steps & 1, steps >> 1);
                gs[op](a, b, want, n, steps & 1, steps >> 1);
                check(!memcmp(y, want, sizeof y), qrt_binary_names[op], n, is_bool ? 1 : item, 0, 0);
            }
    }
}

static void check_half_precision(void) {
    enum { N = 1 << 16 };
    static uint16_t halves[N], back[N], want_back[N];
    static float wide[N], want[N];
    for (int i = 0; i < N; i++) halves[i] = (uint16_t)i;
    rung.pointwise.f16_to_f32(halves, wide, N);
    definition.pointwise.f16_to_f32(halves, want, N);
    check(!memcmp(wide, want, sizeof wide), "f16_to_f32", 0, 0, 0, 0);
    for (int shift = -1; shift <= 1; shift++) {  // a float below, at and above the middle of two halves
        for (int i = 0; i < N; i++) {
            uint32_t bits;
            memcpy(&bits, &want[i], sizeof bits);
            bits += (uint32_t)(0x1000 + shift);
            memcpy(&wide[i], &bits, sizeof bits);
        }
        rung.pointwise.f32_to_f16(wide, back, N);
        definition.pointwise.f32_to_f16(wide, want_back, N);
        for (int i = 0; i < N; i++) check(back[i] == want_back[i], "f32_to_f16", i, shift, back[i], want_back[i]);
    }
    for (int n = 0; n < 40; n++) {
        back[n] = 77;
        wide[n] = UNTOUCHED;
        rung.pointwise.f32_to_f16(want + 1000, back, n);
        rung.pointwise.f16_to_f32(halves + 1000, wide, n);
        for (int i = 0; i < n; i++) check(back[i] == halves[1000 + i] && wide[i] == want[1000 + i], "halves", n, i, wide[i], 0);
        check(back[n] == 77 && wide[n] == UNTOUCHED, "halves, beyond", n, n, wide[n], 0);
    }
}

/// Of every number what the rung does in float, rounded once.
static void check_unary_f16(void) {
    enum { N = 1 << 16 };
    static uint16_t x[N], y[N + 1], want[N], again[41];
    static float wide[N];
    for (int i = 0; i < N; i++) x[i] = (uint16_t)i;
    for (int op = 0; op < QRT_NUM_UNARY; op++) {
        y[N] = 77;
        rung.pointwise.unary_f16[op](x, y, N, 0.75f, 1.25f);
        rung.pointwise.f16_to_f32(x, wide, N);
        rung.pointwise.unary[op](wide, wide, N, 0.75f, 1.25f);
        rung.pointwise.f32_to_f16(wide, want, N);
        for (int i = 0; i < N; i++) {
            bool nan = (want[i] & 0x7fff) > 0x7c00;
            check(nan ? (y[i] & 0x7fff) > 0x7c00 : y[i] == want[i], qrt_unary_names[op], i, 16, y[i], want[i]);
        }
        check(y[N] == 77, "unary of float16, beyond", op, N, y[N], 77);
        for (int n = 0, from = 15000; n < 40; from += n++) {  // split anywhere and in place: the same bits
            memcpy(again, x + from, sizeof *x * (size_t)n);
            again[n] = 77;
            rung.pointwise.unary_f16[op](again, again, n, 0.75f, 1.25f);
            for (int i = 0; i < n; i++) check(again[i] == y[from + i], qrt_unary_names[op], n, i, again[i], y[from + i]);
            check(again[n] == 77, "unary of float16 in place, beyond", op, n, again[n], 77);
        }
    }
}

// --------------------------------------------------------------------------------------------- rows

/// The bits of the same numbers in float.
static void check_reductions_f16(int64_t rows, int64_t n) {
    const int64_t stride = n + 1;
    uint16_t *x = array(rows * stride, sizeof *x);
    float *wide = floats(rows * stride), *y = untouched(n + 1), *want = floats(n);
    for (int64_t i = 0; i < rows * stride; i++) wide[i] = uniform(-2, 2);
    definition.pointwise.f32_to_f16(wide, x, rows * stride);
    definition.pointwise.f16_to_f32(x, wide, rows * stride);
    for (int op = 0; op < QRT_NUM_REDUCE_KERNELS; op++) {
        for (int64_t i = 0; i < rows; i++)
            check_same(rung.rows.reduce_f16[op](x + i * stride, n), rung.rows.reduce[op](wide + i * stride, n), qrt_reduce_names[op], n, i);
        rung.rows.reduce_columns_f16[op](x, stride, rows, n, y);
        rung.rows.reduce_columns[op](wide, stride, rows, n, want);
        for (int64_t j = 0; j < n; j++) check_same(y[j], want[j], qrt_reduce_names[op], rows, j);
        check_same(y[n], UNTOUCHED, "columns of float16, beyond", rows, n);
    }
    release();
}

static void check_softmax(const float *x, int64_t n, double spread) {
    float *y = untouched(n + 1);
    double top = -INFINITY, sum = 0, loss = 4 + spread + (double)n / 64;
    for (int64_t i = 0; i < n; i++) top = fmax(top, x[i]);
    for (int64_t i = 0; i < n; i++) sum += exp(x[i] - top);
    rung.rows.softmax(x, y, n);
    for (int64_t i = 0; i < n; i++) {
        double exact = exp(x[i] - top) / sum;
        check_close(y[i], exact, exact * EPS * loss + 1e-37, "softmax", n, i);
    }
    rung.rows.log_softmax(x, y, n);
    for (int64_t i = 0; i < n; i++) {
        double exact = x[i] - top - log(sum);
        check_close(y[i], exact, EPS * (2 + (double)n / 64 + fabs(exact)), "log_softmax", n, i);
    }
    check_same(y[n], UNTOUCHED, "softmax, beyond", n, n);
}

static void check_norm_row(bool centred, const float *x, const float *residual, const float *sum, const float *y,
                           int64_t n, const qrt_norm_params *params) {
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < n; i++) {
        check_same(sum[i], residual ? x[i] + residual[i] : x[i], "norm, sum", n, i);
        mean += centred ? (double)sum[i] / (double)n : 0;
    }
    for (int64_t i = 0; i < n; i++) variance += (sum[i] - mean) * (sum[i] - mean) / (double)n;
    for (int64_t i = 0; i < n; i++) {
        double scale = params->scale ? params->scale[i] : 1, bias = params->bias ? params->bias[i] : 0;
        double exact = (sum[i] - mean) / sqrt(variance + params->epsilon);
        double bound = EPS * (8 + (double)n / 64) * (1 + fabs(exact)) * (fabs(scale) + fabs(bias));
        check_close(y[i], exact * scale + bias, bound, centred ? "layer_norm" : "rms_norm", n, i);
    }
}

static void check_norm(bool centred, int64_t rows, const float *x, const float *residual, int64_t n,
                       const qrt_norm_params *params) {
    float *y = untouched(rows * n + 1), *sum = untouched(rows * n + 1);
    (centred ? rung.rows.layer_norm : rung.rows.rms_norm)(rows, x, residual, sum, y, n, params);
    for (int64_t r = 0; r < rows; r++)
        check_norm_row(centred, x + r * n, residual ? residual + r * n : NULL, sum + r * n, y + r * n, n, params);
    check(sum[rows * n] == UNTOUCHED && y[rows * n] == UNTOUCHED, "norm, beyond", n, n, y[rows * n], UNTOUCHED);
}

/// Doubles against the definition's; both lie within the same bound of the exact numbers.
static void check_rows_f64(int64_t n) {
    enum { ROWS = 3 };
    const int64_t size = ROWS * n;
    double *in[4], *out[4];
    for (int i = 0; i < 4; i++) {
        in[i] = array(size, sizeof(double));
        out[i] = array(size + 1, sizeof(double));
        for (int64_t j = 0; j < size; j++) in[i][j] = uniform(-3, 3);
        out[i][size] = UNTOUCHED;
    }
    for (int variant = 0; variant < 16; variant++) {
        qrt_norm_params_f64 params = {variant & 1 ? in[2] : NULL, variant & 2 ? in[3] : NULL, 1e-5};
        const double *residual = variant & 4 ? in[1] : NULL;
        const qrt_rows *f = &rung.rows, *g = &definition.rows;
        (variant & 8 ? f->layer_norm_f64 : f->rms_norm_f64)(ROWS, in[0], residual, out[1], out[0], n, &params);
        (variant & 8 ? g->layer_norm_f64 : g->rms_norm_f64)(ROWS, in[0], residual, out[3], out[2], n, &params);
        for (int64_t j = 0; j < size; j++) {
            double bound = 2 * DBL_EPSILON * (8 + (double)n / 16) * (1 + fabs(out[2][j])) * 12;
            check(fabs(out[0][j] - out[2][j]) <= bound, "norm of doubles", n, j, out[0][j], out[2][j]);
            if (residual) check_same_f64(out[1][j], out[3][j], "norm of doubles, sum", n, j);
        }
    }
    for (int is_log = 0; is_log < 2; is_log++) {
        (is_log ? rung.rows.log_softmax_f64 : rung.rows.softmax_f64)(in[0], out[0], n);
        (is_log ? definition.rows.log_softmax_f64 : definition.rows.softmax_f64)(in[0], out[2], n);
        for (int64_t j = 0; j < n; j++) {
            double bound = 2 * DBL_EPSILON * (8 + (double)n / 16) * (is_log ? 1 + fabs(out[2][j]) : out[2][j]);
            check(fabs(out[0][j] - out[2][j]) <= bound, "softmax of doubles", n, j, out[0][j], out[2][j]);
        }
    }
    for (int i = 0; i < 4; i++) check_same_f64(out[i][size], UNTOUCHED, "rows of doubles, beyond", n, i);
}

/// No multiply-add is in them: the bits are the definition's.
static void check_reductions_f64(int64_t rows, int64_t n) {
    const int64_t stride = n + 1;
    for (int op = 0; op < QRT_NUM_REDUCE_KERNELS; op++) {
        double *x = array(rows * stride, sizeof *x), *y = array(n + 1, sizeof *y), *want = array(n + 1, sizeof *want);
        for (int64_t i = 0; i < rows * stride; i++) x[i] = op == QRT_REDUCE_PROD ? uniform(0.9f, 1.1f) : uniform(-2, 2);
        for (int has_nan = 0; has_nan < 2 && rows * n > 0; has_nan++) {
            if (has_nan) x[rows / 2 * stride + n / 2] = NAN;
            for (int64_t i = 0; i < rows; i++) {
                double sum = definition.rows.reduce_f64[op](x + i * stride, n);
                check_same_f64(rung.rows.reduce_f64[op](x + i * stride, n), sum, qrt_reduce_names[op], n, i);
                check(isnan(sum) == (has_nan && i == rows / 2), "reduction of NaN", n, i, sum, 0);
            }
            y[n] = UNTOUCHED;
            rung.rows.reduce_columns_f64[op](x, stride, rows, n, y);
            definition.rows.reduce_columns_f64[op](x, stride, rows, n, want);
            for (int64_t j = 0; j < n; j++) check_same_f64(y[j], want[j], qrt_reduce_names[op], rows, j);
            check_same_f64(y[n], UNTOUCHED, "columns of doubles, beyond", rows, n);
        }
        release();
    }
}

static void check_float8(int64_t n) {
    float *x = floats(n), *y = untouched(n + 1), *want = untouched(n + 1);
    for (int64_t j = 0; j < n; j++) x[j] = ldexpf(uniform(-1, 1), (int)(random_bits() % 24) - 12);
    for (int special = 0; special < 4; special++) {
        if (special) x[random_bits() % n] = special == 1 ? 0.0f : special == 2 ? INFINITY : NAN;
        rung.rows.round_to_float8(x, y, n);
        definition.rows.round_to_float8(x, want, n);
        for (int64_t j = 0; j <= n; j++) check_same(y[j], want[j], "float8", j, special);
    }
    release();
}

static void check_rows(void) {
    static const int64_t widths[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 700, 2047, 2049, 5000};
    for (int w = 0; w < COUNT(widths); w++) {
        int64_t n = widths[w];
        check_rows_f64(n);
        check_float8(n);
        enum { ROWS = 6 };
        float *x = floats(ROWS * n), *residual = floats(ROWS * n), *scale = floats(n), *bias = floats(n);
        for (int spread = 1; spread <= 60; spread += 59) {
            fill_uniform(x, n, (float)spread);
            check_softmax(x, n, 2 * spread);
        }
        fill_uniform(x, ROWS * n, 3);
        fill_uniform(residual, ROWS * n, 3);
        fill_uniform(scale, n, 2);
        fill_uniform(bias, n, 2);
        for (int variant = 0; variant < 8; variant++) {
            qrt_norm_params params = {variant & 1 ? scale : NULL, variant & 2 ? bias : NULL, 1e-5f};
            for (int64_t rows = 1; n > 3 && rows <= ROWS; rows += 5)
                check_norm(variant & 4, rows, x, variant & 1 ? residual : NULL, n, &params);
        }
        for (int op = 0; op < QRT_NUM_REDUCE_KERNELS; op++) {
            double size = 0;
            for (int64_t i = 0; i < n; i++) {
                if (op == QRT_REDUCE_PROD) x[i] = uniform(0.9f, 1.1f);
                size += op == QRT_REDUCE_SUM_SQUARE ? (double)x[i] * x[i] : fabs(x[i]);
            }
            double want = definition.rows.reduce[op](x, n), bound = EPS * (2 + (double)n / 16) * size;
            if (op == QRT_REDUCE_MAX || op == QRT_REDUCE_MIN) bound = 0;
            if (op == QRT_REDUCE_PROD) bound = EPS * (double)n * want;
            check_close(rung.rows.reduce[op](x, n), want, bound, qrt_reduce_names[op], n, 0);
            float kept = x[n / 2];
            x[n / 2] = NAN;
            check(isnan(rung.rows.reduce[op](x, n)), qrt_reduce_names[op], n, -1, 0, NAN);
            x[n / 2] = kept;
        }
        if (n > 1) {
            float *y = floats(n);
            x[n / 3] = NAN;
            rung.rows.softmax(x, y, n);
            for (int64_t i = 0; i < n; i++) check(isnan(y[i]), "softmax of NaN", n, i, y[i], NAN);
        }
        release();
    }
    for (int64_t n = 0; n < 80; n += 1 + n / 8)
        for (int64_t height = 0; height < 140; height += 1 + height / 2) {
            check_reductions_f64(height, n);
            check_reductions_f16(height, n);
        }
    check_reductions_f64(1, 5000);
    check_reductions_f16(1, 5000);
    for (int op = 0; op < QRT_NUM_REDUCE_KERNELS; op++)
        for (int64_t columns = 0; columns < 80; columns += 1 + columns / 8)
            for (int64_t rows = 0; rows < 140; rows += 1 + rows / 2) {
                int64_t stride = columns + 1;
                float *x = floats(rows * stride), *y = untouched(columns + 1), *want = untouched(columns + 1);
                for (int64_t i = 0; i < rows * stride; i++) x[i] = op == QRT_REDUCE_PROD ? uniform(0.9f, 1.1f) : uniform(-2, 2);
                rung.rows.reduce_columns[op](x, stride, rows, columns, y);
                definition.rows.reduce_columns[op](x, stride, rows, columns, want);
                double bound = op == QRT_REDUCE_MAX || op == QRT_REDUCE_MIN ? 0 : EPS * (double)rows * (double)(rows + 1) * 4;
                if (op == QRT_REDUCE_PROD) bound = EPS * (double)rows;
                for (int64_t j = 0; j < columns; j++) {
                    double size = op == QRT_REDUCE_PROD ? want[j] : 1;
                    check_close(y[j], want[j], bound * size, qrt_reduce_names[op], rows, j);
                }
                check_same(y[columns], UNTOUCHED, "columns, beyond", rows, columns);
                release();
            }
}

// ------------------------------------------------------------------------------------------ recurrent

typedef void (*cell_fn)(const qrt_rnn *rnn, const float *gates, int64_t hidden, const qrt_lstm_options *options,
                        float *c, float *h, float *y);

static void cell_lstm(const qrt_rnn *rnn, const float *gates, int64_t hidden, const qrt_lstm_options *options, float *c,
                      float *h, float *y) {
    rnn->lstm(gates, hidden, options, c, h, y);
}
static void cell_gru_after(const qrt_rnn *rnn, const float *gates, int64_t hidden, const qrt_lstm_options *options,
                           float *c, float *h, float *y) {
    (void)c;
    rnn->gru_reset_after(gates, gates + hidden, hidden, options->clip, h, y);
}
static void cell_gru_before(const qrt_rnn *rnn, const float *gates, int64_t hidden, const qrt_lstm_options *options,
                            float *c, float *h, float *y) {
    rnn->gru_reset(gates, hidden, options->clip, h, c);
    rnn->gru_update(gates, gates + 2 * hidden, hidden, options->clip, h, y);
}
static void cell_tanh(const qrt_rnn *rnn, const float *gates, int64_t hidden, const qrt_lstm_options *options, float *c,
                      float *h, float *y) {
    (void)c;
    rnn->rnn_tanh(gates, hidden, options->clip, h, y);
}

static void check_rnn(void) {
    static const struct { const char *name; cell_fn cell; } cells[] = {
        {"lstm", cell_lstm}, {"gru, reset after", cell_gru_after}, {"gru, reset before", cell_gru_before},
        {"rnn_tanh", cell_tanh},
    };
    for (int cell = 0; cell < COUNT(cells); cell++)
        for (int64_t hidden = 0; hidden < 40; hidden++)
            for (int variant = 0; variant < 16; variant++) {
                float range = variant & 1 ? 60.0f : 3.0f;
                float *gates = floats(4 * hidden), *peepholes = floats(3 * hidden);
                fill_uniform(gates, 4 * hidden, range);
                fill_uniform(peepholes, 3 * hidden, 1);
                if (hidden > 2) gates[hidden / 2] = NAN, gates[hidden - 1] = INFINITY;
                qrt_lstm_options options = {variant & 2 ? peepholes : NULL, variant & 4 ? 2.5f : INFINITY, variant & 8};
                float *state[2][3];
                for (int s = 0; s < 3; s++) {
                    state[0][s] = untouched(hidden + 1);
                    if (s < 2) fill_uniform(state[0][s], hidden, 1);
                    state[1][s] = floats(hidden + 1);
                    memcpy(state[1][s], state[0][s], sizeof(float) * (size_t)(hidden + 1));
                }
                cells[cell].cell(&rung.rnn, gates, hidden, &options, state[0][0], state[0][1], state[0][2]);
                cells[cell].cell(&definition.rnn, gates, hidden, &options, state[1][0], state[1][1], state[1][2]);
                for (int s = 0; s < 3; s++) {
                    for (int64_t j = 0; j <= hidden; j++)
                        check_close(state[0][s][j], state[1][s][j], j < hidden ? 4 * EPS * range : 0, cells[cell].name,
                                    hidden, j);
                }
                release();
            }
}

// -------------------------------------------------------------------------- codes of known scales

typedef struct {
    const uint8_t *a;
    int64_t k;
} code_walk;

static const uint8_t *next_codes(void *context, uint8_t *room) {
    (void)room;
    code_walk *walk = context;
    walk->a += walk->k;
    return walk->a - walk->k;
}

typedef struct {
    int64_t m, k, n;
    int32_t zero, dtype;
    bool weight_zeros;
    int outside;        ///< one code in so many is any; the others lie near the zero point
} code_case;

static uint8_t *code_product(const qrt_kernel_table *table, const code_case *c, bool is_dense, const uint8_t *a, const int8_t *w,
                             const float *multipliers, const int32_t *zeros, const int32_t *bias) {
    qrt_q8_weights *packed =
        qrt_q8_pack(&table->gemm_q8, w, c->n, 1, c->k, c->n, multipliers, c->weight_zeros ? zeros : NULL, c->n, NULL, NULL, 1);
    if (!packed) abort();
    qrt_kernels = *table;
    qrt_buffer *scratch = qrt_buffer_new(qrt_code_scratch_bytes(packed, c->m));
    if (!scratch) abort();
    const uint8_t flip = c->dtype == QRT_I8 ? 0x80 : 0;
    qrt_code_layer layer = {packed, bias, c->zero, flip, c->dtype, qrt_requantize_to(c->zero, flip), NULL};
    code_walk walk = {a, c->k};
    qrt_code_rows rows = {next_codes, &walk, is_dense ? a : NULL};
    uint8_t *y = array(c->m * c->n * (c->dtype == QRT_I32 ? 4 : 1), 1);
    const int64_t half = packed->num_panels / 2;
    qrt_code_product(&layer, &rows, c->m, 0, half, y, c->n, scratch->data);
    walk.a = a;
    qrt_code_product(&layer, &rows, c->m, half, packed->num_panels, y, c->n, scratch->data);
    qrt_kernels = definition;
    qrt_buffer_drop(scratch);
    qrt_weights_free(&packed->base);
    return y;
}

static void check_code_product(const code_case *c) {
    uint8_t *a = array(c->m * c->k, 1);
    int8_t *w = array(c->k * c->n, 1);
    float *multipliers = floats(c->n);
    int32_t *zeros = array(c->n, sizeof *zeros), *bias = array(c->n, sizeof *bias);
    for (int64_t i = 0; i < c->m * c->k; i++) {
        int near = c->zero + (int)(random_bits() % 60) - 8;
        bool any = (random_bits() >> 8) % (uint32_t)c->outside == 0;
        a[i] = (uint8_t)(any ? random_bits() : (uint32_t)(near < 0 ? 0 : near > 255 ? 255 : near));
    }
    fill_weights(w, c->k * c->n, RANDOM_CODES);
    for (int64_t j = 0; j < c->n; j++) {
        multipliers[j] = uniform(1e-4f, 1e-2f);
        zeros[j] = (int32_t)(random_bits() % 256) - 128;
        bias[j] = (int32_t)(random_bits() % 20000) - 10000;
    }
    const uint8_t *want = code_product(&definition, c, false, a, w, multipliers, zeros, bias);
    const uint8_t *got = code_product(&rung, c, false, a, w, multipliers, zeros, bias);
    const uint8_t *dense = code_product(&rung, c, true, a, w, multipliers, zeros, bias);
    const int64_t bytes = c->m * c->n * (c->dtype == QRT_I32 ? 4 : 1);
    for (int64_t i = 0; i < bytes; i++) check_same(got[i], want[i], "product of known codes", i, c->k);
    for (int64_t i = 0; i < bytes; i++) check_same(dense[i], want[i], "product of known codes where they lie", i, c->k);
    release();
}

static void check_code_loops(int64_t n, uint8_t flip) {
    uint8_t *a = array(n, 1), *b = array(n, 1), *want = array(n, 1), *got = array(n, 1), *table = array(256, 1);
    int32_t *w = array(3 * n, sizeof *w), *sums = array(n, sizeof *sums), *more = array(n, sizeof *more);
    float *multipliers = floats(n), *numbers = floats(n), *real = floats(n), *reals = floats(n);
    for (int64_t i = 0; i < n; i++) {
        numbers[i] = i % 19 == 3 ? NAN : i % 19 == 5 ? -INFINITY : i % 19 == 7 ? 1e30f : i % 3 ? uniform(-150, 150) : 0.35f * (float)(i % 40);
        a[i] = (uint8_t)random_bits();
        b[i] = (uint8_t)random_bits();
        sums[i] = more[i] = (int32_t)(random_bits() % 100000) - 50000;
        multipliers[i] = uniform(1e-4f, 1e-2f);
        for (int t = 0; t < 3; t++) w[t * n + i] = (int32_t)(random_bits() % 511) - 255;
    }
    for (int i = 0; i < 256; i++) table[i] = (uint8_t)random_bits();
    const qrt_qlinear *one = &rung.qlinear, *other = &definition.qlinear;
    const qrt_qlinear_pair pair = {{0.02f, 100}, {0.03f, 7}, {0.05f, 131}, flip};
    const uint8_t *taps[3] = {a, b, a};
    const qrt_depthwise window = {taps, 3, n, w, sums, multipliers, flip, qrt_requantize_to(77, flip)};
    for (int which = 0; which < 13; which++) {
        const qrt_qlinear *use[2] = {other, one};
        for (int i = 0; i < 2; i++) {
            uint8_t *y = i ? got : want;
            if (which < 3) use[i]->add(a, b, y, n, which != 1, which != 2, &pair);
            else if (which < 6) use[i]->mul(a, b, y, n, which != 4, which != 5, &pair);
            else if (which == 6) use[i]->depthwise(&window, y);
            else if (which == 7) use[i]->max_u8(a, b, y, n);
            else if (which == 8) use[i]->max_i8(a, b, y, n);
            else if (which == 9) use[i]->average(sums, y, n, 7, 0.003f, &window.requantize);
            else if (which == 10) use[i]->look_up(table, a, y, n);
            else if (which == 11) use[i]->look_up(table, memcpy(y, a, (size_t)n), y, n);
            else use[i]->quantize(numbers, y, n, 0.7f, &window.requantize);
        }
        for (int64_t i = 0; i < n; i++) check_same(got[i], want[i], "loop over codes", i, which);
    }
    one->dequantize(a, real, n, pair.a, flip);
    other->dequantize(a, reals, n, pair.a, flip);
    for (int64_t i = 0; i < n; i++) check_same(real[i], reals[i], "numbers of codes", i, flip);
    const int64_t k = n / 3 + 1, rows = n / k;
    int32_t *row_sums = array(2 * rows, sizeof *row_sums);
    one->row_sums(a, k, rows, k, row_sums);
    other->row_sums(a, k, rows, k, row_sums + rows);
    for (int64_t r = 0; r < rows; r++) check_same((float)row_sums[r], (float)row_sums[rows + r], "sums of rows", r, k);
    one->accumulate(a, sums, n, flip);
    other->accumulate(a, more, n, flip);
    for (int64_t i = 0; i < n; i++) check_same((float)sums[i], (float)more[i], "sums of codes", i, flip);
    release();
}

typedef struct {
    int64_t channels, rows, columns, width, stride, dilation, begin, outputs, summands;
    uint8_t flip;
} line_case;

/// Windows along a line against windows one by one; the second row, if any, lies outside of the image.
static void check_depthwise_line(const line_case *c) {
    if (!rung.qlinear.depthwise_line) return;
    enum { MOST_ROWS = 8, MOST_TAPS = 40, ZERO = 100 };
    const int64_t blocks = (c->channels + QRT_DEPTHWISE_BLOCK - 1) / QRT_DEPTHWISE_BLOCK, padded = blocks * QRT_DEPTHWISE_BLOCK;
    const int64_t groups = qrt_depthwise_groups(c->rows), reach = qrt_depthwise_reach(c->outputs, c->stride, c->columns, c->dilation);
    const uint8_t *lines[MOST_ROWS], *taps[MOST_TAPS];
    uint8_t *outside = array(c->channels, 1), *got = array(c->outputs * c->channels, 1), *want = array(c->channels, 1);
    for (int64_t r = 0; r < c->rows; r++) {
        uint8_t *line = array(c->width * c->channels, 1);
        for (int64_t i = 0; i < c->width * c->channels; i++) line[i] = (uint8_t)random_bits();
        lines[r] = r == 1 ? NULL : line;
    }
    memset(outside, ZERO, (size_t)c->channels);
    int32_t *w = array(c->rows * c->columns * c->channels, sizeof *w), *offsets = array(c->channels, sizeof *offsets);
    int32_t *woven_offsets = array(padded, sizeof *woven_offsets);
    float *multipliers = floats(c->channels), *woven_multipliers = floats(padded);
    int8_t *woven = array(c->summands * padded * groups * 4 * c->columns, 1);
    memset(woven, 0, (size_t)(c->summands * padded * groups * 4 * c->columns));
    memset(woven_offsets, 0, (size_t)padded * sizeof *woven_offsets);
    memset(woven_multipliers, 0, (size_t)padded * sizeof *woven_multipliers);
    for (int64_t ch = 0; ch < c->channels; ch++) {
        const int64_t at = ch % 64, place = ch - at + at / 4 % 4 * 16 + at / 16 * 4 + at % 4;
        woven_offsets[place] = offsets[ch] = (int32_t)(random_bits() % 100000) - 50000;
        woven_multipliers[place] = multipliers[ch] = uniform(1e-4f, 1e-2f);
        for (int64_t r = 0; r < c->rows; r++)
            for (int64_t t = 0; t < c->columns; t++) {
                for (int64_t s = 0; s < c->summands; s++) {
                    const int8_t value = (int8_t)random_bits();
                    w[(r * c->columns + t) * c->channels + ch] = value + (s ? w[(r * c->columns + t) * c->channels + ch] : 0);
                    const int64_t group = (ch / 64 * c->summands + s) * groups + r / 4;
                    woven[((group * c->columns + t) * 64 + place % 64) * 4 + r % 4] = value;
                }
            }
    }
    qrt_buffer *room = qrt_buffer_new((size_t)qrt_depthwise_room(c->rows, reach));
    if (!room) abort();
    const qrt_requantize to = qrt_requantize_to(77, c->flip);
    const qrt_depthwise_line line = {
        .lines = lines, .width = c->width, .channels = c->channels, .rows = c->rows, .columns = c->columns, .stride = c->stride,
        .dilation = c->dilation, .begin = c->begin, .outputs = c->outputs, .summands = c->summands, .w = woven, .offsets = woven_offsets,
        .multipliers = woven_multipliers, .flip = c->flip, .padding = ZERO, .requantize = to, .room = room->data,
    };
    rung.qlinear.depthwise_line(&line, got);
    for (int64_t o = 0; o < c->outputs; o++) {
        for (int64_t r = 0; r < c->rows; r++)
            for (int64_t t = 0; t < c->columns; t++) {
                const int64_t column = o * c->stride + t * c->dilation - c->begin;
                const bool is_inside = lines[r] && column >= 0 && column < c->width;
                taps[r * c->columns + t] = is_inside ? lines[r] + column * c->channels : outside;
            }
        const qrt_depthwise window = {taps, c->rows * c->columns, c->channels, w, offsets, multipliers, c->flip, to};
        definition.qlinear.depthwise(&window, want);
        for (int64_t i = 0; i < c->channels; i++) check_same(got[o * c->channels + i], want[i], "windows along a line", o, i);
    }
    qrt_buffer_drop(room);
    release();
}

static void check_depthwise_lines(void) {
    static const int64_t channels[] = {1, 31, 64, 65, 200};
    for (int i = 0; i < COUNT(channels); i++)
        for (int64_t rows = 1; rows < 6; rows++)
            for (int64_t columns = 1; columns < 6; columns++) {
                uint32_t bits = random_bits() >> 8;
                line_case c = {channels[i], rows, columns, 9, 1 + (bits & 1), 1 + (bits >> 1 & 1), bits >> 2 & 3, 7, 1 + (bits >> 5 & 1), bits & 16 ? 0x80 : 0};
                check_depthwise_line(&c);
            }
}

static void check_qlinear(void) {
    static const int64_t ms[] = {1, 2, 3, 17, 35}, ks[] = {1, 4, 27, 31, 32, 33, 64, 147, 200}, ns[] = {1, 8, 31, 33, 70};
    static const int32_t zeros[] = {0, 30, 128, 255}, dtypes[] = {QRT_U8, QRT_I8, QRT_I32};
    for (int i = 0; i < COUNT(ms); i++)
        for (int j = 0; j < COUNT(ks); j++)
            for (int l = 0; l < COUNT(ns); l++) {
                uint32_t bits = random_bits() >> 8;
                code_case c = {ms[i], ks[j], ns[l], zeros[bits % 4], dtypes[bits / 4 % 3], bits & 64, bits & 128 ? 2 : 40};
                check_code_product(&c);
            }
    for (int64_t n = 1; n < 150; n++) check_code_loops(n, n & 1 ? 0x80 : 0);
}

/// Panels that lack vectors of columns.
static void check_few_columns(void) {
    static const int64_t ms[] = {1, 7, 8, 16, 35}, ks[] = {4, 27, 64}, ns[] = {16, 17, 32, 48, 64, 80, 96};
    static const int32_t dtypes[] = {QRT_U8, QRT_I8, QRT_I32};
    for (int i = 0; i < COUNT(ms); i++)
        for (int j = 0; j < COUNT(ks); j++)
            for (int l = 0; l < COUNT(ns); l++) {
                uint32_t bits = random_bits() >> 8;
                code_case c = {ms[i], ks[j], ns[l], 30, dtypes[bits % 3], bits & 64, bits & 128 ? 2 : 40};
                check_code_product(&c);
            }
}

// ------------------------------------------------------------------------------ channels in blocks

enum { WIDE = 2 * QRT_CONV_MAX_POSITIONS, MOST_TAPS = 5 };

typedef struct {
    int positions, blocks;
    int64_t planes, num_floats, num_last_floats, taps, step;
    bool outside, accumulate, with_bias, with_addend, clips;
    int64_t spread;  // of outputs, in positions
} conv_case;

/// One tile of a rung against double precision; also its positions one by one, and its planes in two halves: the same bits.
static void check_conv_tile(const conv_case *c) {
    const int64_t distance = c->step ? c->step : 7, plane = (c->positions - 1) * distance + MOST_TAPS * 3 + c->num_floats;
    const int64_t columns = c->blocks * QRT_CHANNEL_BLOCK, tap_floats = c->num_floats * columns, w_plane = c->taps * tap_floats;
    const int64_t y_step = c->spread * QRT_CHANNEL_BLOCK, y_plane = c->positions * y_step, size = c->blocks * y_plane;
    float *x = floats(c->planes * plane - c->num_floats + c->num_last_floats), *w = floats(c->planes * w_plane), *bias = floats(columns);
    float *addend = floats(size), *before = floats(size), *y = floats(size), *again = floats(size);
    int64_t *places = array(c->taps * (c->step ? 1 : c->positions), sizeof *places), *taps = array(c->taps, sizeof *taps);
    fill_uniform(x, c->planes * plane - c->num_floats + c->num_last_floats, 1);
    fill_uniform(w, c->planes * w_plane, 1);
    fill_uniform(bias, columns, 1);
    fill_uniform(addend, size, 1);
    fill_uniform(before, size, 1);
    const float **planes = array(c->planes, sizeof *planes);
    for (int64_t i = 0; i < c->planes; i++) planes[i] = x + i * plane;
    int64_t at[MOST_TAPS][WIDE];
    for (int64_t t = 0; t < c->taps; t++) {
        taps[t] = (c->taps - 1 - t) * tap_floats;
        for (int p = 0; p < c->positions; p++) {
            at[t][p] = t * 3 + p * distance;
            if (!c->step && c->outside && (random_bits() >> 8) % 3 == 0) at[t][p] = QRT_OUTSIDE;
            if (!c->step) places[t * c->positions + p] = at[t][p];
        }
        if (c->step) places[t] = at[t][0];
    }
    const qrt_conv_epilogue e = {
        .bias = c->with_bias ? bias : NULL, .addend = c->with_addend ? addend : NULL, .addend_plane = y_plane,
        .low = c->clips ? -0.5f : -INFINITY, .high = c->clips ? 0.75f : INFINITY,
    };
    qrt_conv_sums sums = {
        .planes = planes, .num_planes = c->planes, .num_floats = c->num_floats, .num_last_floats = c->num_last_floats,
        .step = c->step, .num_taps = c->taps, .places = places, .w = w, .w_plane = w_plane, .taps = taps, .y_step = y_step, .ahead = w,
    };
    memcpy(y, before, sizeof *y * (size_t)size);
    rung.conv_f32.tile(&sums, c->positions, c->blocks, y, y_plane, c->accumulate, &e);
    for (int64_t i = 0; i < size; i++) {
        const int64_t block = i / y_plane, p = i % y_plane / y_step, column = block * QRT_CHANNEL_BLOCK + i % QRT_CHANNEL_BLOCK;
        if (i % y_step >= QRT_CHANNEL_BLOCK) {
            check_same(y[i], before[i], "conv_f32 tile, between outputs", i, c->spread);
            continue;
        }
        double exact = c->accumulate ? before[i] : 0, total = fabs(exact), added = 0, k = c->accumulate;
        for (int64_t q = 0; q < c->planes; q++)
            for (int64_t t = 0; t < c->taps; t++)
                for (int64_t f = 0; f < (q + 1 < c->planes ? c->num_floats : c->num_last_floats); f++, k++) {
                    if (at[t][p] == QRT_OUTSIDE) continue;
                    double product = (double)x[q * plane + at[t][p] + f] * w[q * w_plane + taps[t] + f * columns + column];
                    exact += product;
                    total += fabs(product);
                }
        if (c->with_bias) exact += bias[column], added += fabs(bias[column]);
        if (c->with_addend) exact += addend[i], added += fabs(addend[i]);
        if (c->clips) exact = clipped(exact, -0.5, 0.75);
        check_close(y[i], exact, k * EPS * total + EPS * added * (c->with_addend ? 2 : 1) + (c->with_addend ? EPS * total : 0), "conv_f32 tile", i, c->step);
    }
    // Each position by itself, in pointers to it, one block at a time: another tile, the same bits.
    for (int b = 0; b < c->blocks; b++)
        for (int p = 0; p < c->positions; p++) {
            int64_t *one = array(c->taps, sizeof *one), *its_taps = array(c->taps, sizeof *its_taps), at_y = b * y_plane + p * y_step;
            float *part = floats(c->planes * c->taps * c->num_floats * QRT_CHANNEL_BLOCK);
            for (int64_t t = 0; t < c->taps; t++) {
                one[t] = at[t][p];
                its_taps[t] = taps[t] / c->blocks;
            }
            for (int64_t i = 0; i < c->planes * c->taps * c->num_floats; i++)
                memcpy(part + i * QRT_CHANNEL_BLOCK, w + i * columns + b * QRT_CHANNEL_BLOCK, QRT_CHANNEL_BLOCK * sizeof *w);
            qrt_conv_sums alone = sums;
            alone.step = 0, alone.places = one, alone.taps = its_taps, alone.w = part, alone.w_plane = w_plane / c->blocks;
            qrt_conv_epilogue its = e;
            if (its.bias) its.bias += b * QRT_CHANNEL_BLOCK;
            if (its.addend) its.addend += at_y;
            memcpy(again + at_y, before + at_y, QRT_CHANNEL_BLOCK * sizeof *y);
            rung.conv_f32.tile(&alone, 1, 1, again + at_y, y_plane, c->accumulate, &its);
            for (int v = 0; v < QRT_CHANNEL_BLOCK; v++) check_same(again[at_y + v], y[at_y + v], "conv_f32, a position alone", p, b);
            num_arrays -= 3;
            for (int i = 0; i < 3; i++) munmap(arrays[num_arrays + i].pages, arrays[num_arrays + i].size);
        }
    if (c->planes > 1) {
        memcpy(again, before, sizeof *y * (size_t)size);
        qrt_conv_sums half = sums;
        half.num_planes = c->planes / 2;
        half.num_last_floats = c->num_floats;
        rung.conv_f32.tile(&half, c->positions, c->blocks, again, y_plane, c->accumulate, NULL);
        half.planes += half.num_planes;
        half.w += half.num_planes * w_plane;
        half.num_planes = c->planes - half.num_planes;
        half.num_last_floats = c->num_last_floats;
        rung.conv_f32.tile(&half, c->positions, c->blocks, again, y_plane, true, &e);
        for (int64_t i = 0; i < size; i++) check_same(again[i], y[i], "conv_f32 accumulate", i, c->planes);
    }
    release();
}

/// n positions of one block under a window of its own weights or none; positions one by one give the same bits.
static void check_conv_window(int64_t n, int64_t step, int64_t num_taps, bool special) {
    const int64_t length = (n > 0 ? n - 1 : 0) * step + 3 * MOST_TAPS * QRT_CHANNEL_BLOCK;
    float *x = floats(length), *w = floats(num_taps * QRT_CHANNEL_BLOCK), *bias = floats(QRT_CHANNEL_BLOCK), *addend = floats(n * QRT_CHANNEL_BLOCK);
    float *y[3], *alone = floats(QRT_CHANNEL_BLOCK);
    int64_t *places = array(num_taps, sizeof *places), *taps = array(num_taps, sizeof *taps);
    for (int i = 0; i < 3; i++) y[i] = untouched(n * QRT_CHANNEL_BLOCK);
    fill_uniform(x, length, 1);
    fill_uniform(w, num_taps * QRT_CHANNEL_BLOCK, 1);
    fill_uniform(bias, QRT_CHANNEL_BLOCK, 1);
    fill_uniform(addend, n * QRT_CHANNEL_BLOCK, 1);
    for (int64_t i = 0; special && i < length; i += 37) x[i] = EDGES[i / 37 % COUNT(EDGES)];
    for (int64_t t = 0; t < num_taps; t++) {
        places[t] = 3 * t * QRT_CHANNEL_BLOCK;
        taps[t] = (num_taps - 1 - t) * QRT_CHANNEL_BLOCK;
    }
    const qrt_conv_epilogue e = {bias, addend, n * QRT_CHANNEL_BLOCK, -0.5f, 2.0f};
    const qrt_conv_f32 *kernel = &rung.conv_f32;
    kernel->depthwise(n, step, num_taps, places, taps, w, x, y[0], &e);
    kernel->maxima(n, step, num_taps, places, x, y[1]);
    kernel->means(n, step, num_taps, places, 3.0f, x, y[2]);
    float *want = untouched(n * QRT_CHANNEL_BLOCK);
    definition.conv_f32.maxima(n, step, num_taps, places, x, want);
    for (int64_t i = 0; i < n * QRT_CHANNEL_BLOCK; i++) check(y[1][i] == want[i] || (isnan(y[1][i]) && isnan(want[i])), "conv_f32 maxima", i, n, y[1][i], want[i]);
    definition.conv_f32.means(n, step, num_taps, places, 3.0f, x, want);
    for (int64_t i = 0; i < n * QRT_CHANNEL_BLOCK; i++) check_same(y[2][i], want[i], "conv_f32 means", i, n);
    for (int64_t p = 0; p < n; p++) {
        for (int v = 0; v < QRT_CHANNEL_BLOCK; v++) {
            const int64_t i = p * QRT_CHANNEL_BLOCK + v;
            double exact = 0, total = 0, added = fabs(bias[v]) + fabs(addend[i]);
            for (int64_t t = 0; t < num_taps; t++) {
                double product = (double)x[p * step + places[t] + v] * w[taps[t] + v];
                exact += product;
                total += fabs(product);
            }
            exact = exact + bias[v] + addend[i];
            double bound = ((double)num_taps + 1) * EPS * total + 2 * EPS * added;
            check_close(y[0][i], isnan(exact) ? exact : clipped(exact, -0.5, 2), bound, "conv_f32 depthwise", i, n);
        }
        qrt_conv_epilogue its = e;
        its.addend += p * QRT_CHANNEL_BLOCK;
        for (int i = 0; i < 3; i++) {
            if (i == 0) kernel->depthwise(1, 5, num_taps, places, taps, w, x + p * step, alone, &its);
            else if (i == 1) kernel->maxima(1, 5, num_taps, places, x + p * step, alone);
            else kernel->means(1, 5, num_taps, places, 3.0f, x + p * step, alone);
            for (int v = 0; v < QRT_CHANNEL_BLOCK; v++) check_same(alone[v], y[i][p * QRT_CHANNEL_BLOCK + v], "conv_f32, a window alone", p, i);
        }
    }
    release();
}

/// n windows of a row of one block, `before` pixels of which are outside in front of the image and `behind` at its end; windows one by one
/// give the same bits.
static void check_conv_row(int64_t n, int64_t group, int64_t window, int64_t step, int64_t rows, int64_t before, int64_t behind, bool special) {
    const int64_t pixels = (n - 1) * step + window - before - behind, x_row = (pixels + 2) * QRT_CHANNEL_BLOCK;
    const int64_t length = rows > 0 ? (rows - 1) * x_row + pixels * QRT_CHANNEL_BLOCK : 0;
    float *x = floats(length), *w = floats(rows * group * window * QRT_CHANNEL_BLOCK), *bias = floats(QRT_CHANNEL_BLOCK), *addend = floats(n * QRT_CHANNEL_BLOCK);
    float *y = untouched(n * QRT_CHANNEL_BLOCK), *alone = floats(QRT_CHANNEL_BLOCK);
    fill_uniform(x, length, 1);
    fill_uniform(w, rows * group * window * QRT_CHANNEL_BLOCK, 1);
    fill_uniform(bias, QRT_CHANNEL_BLOCK, 1);
    fill_uniform(addend, n * QRT_CHANNEL_BLOCK, 1);
    for (int64_t i = 0; special && i < length; i += 37) {
        const float edge = EDGES[i / 37 % COUNT(EDGES)];
        x[i] = edge == FLT_MAX ? 1e30f : edge;  // of which no sum overflows on its way
    }
    const qrt_conv_row row = {x - before * QRT_CHANNEL_BLOCK, x_row, w, group, rows, window, step, before, before + pixels};
    const qrt_conv_epilogue e = {bias, addend, n * QRT_CHANNEL_BLOCK, -0.5f, 2.0f};
    rung.conv_f32.depthwise_row(n, &row, y, &e);
    for (int64_t p = 0; p < n; p++) {
        for (int v = 0; v < QRT_CHANNEL_BLOCK; v++) {
            const int64_t at = p * QRT_CHANNEL_BLOCK + v;
            double exact = 0, total = 0, added = fabs(bias[v]) + fabs(addend[at]);
            for (int64_t line = 0; line < rows * group; line++)
                for (int64_t k = 0; k < window; k++) {
                    const int64_t i = p * step + k - before, h = line / group, c = v / group * group + line % group;
                    if (i < 0 || i >= pixels) continue;
                    double product = (double)x[h * x_row + i * QRT_CHANNEL_BLOCK + c] * w[(line * window + k) * QRT_CHANNEL_BLOCK + v];
                    exact += product;
                    total += fabs(product);
                }
            exact = exact + bias[v] + addend[at];
            double bound = ((double)(rows * group * window) + 1) * EPS * total + 2 * EPS * added;
            check_close(y[at], isnan(exact) ? exact : clipped(exact, -0.5, 2), bound, "conv_f32 depthwise_row", at, n);
        }
        qrt_conv_row its_row = row;
        qrt_conv_epilogue its = e;
        its_row.x += p * step * QRT_CHANNEL_BLOCK, its_row.begin -= p * step, its_row.end -= p * step;
        its.addend += p * QRT_CHANNEL_BLOCK;
        rung.conv_f32.depthwise_row(1, &its_row, alone, &its);
        for (int v = 0; v < QRT_CHANNEL_BLOCK; v++) check_same(alone[v], y[p * QRT_CHANNEL_BLOCK + v], "conv_f32, a window of a row alone", p, n);
    }
    release();
}

/// A window at every border that leaves a pixel of each, or at every few of them.
static void check_conv_rows(int64_t group, int64_t window, int64_t step, int64_t apart) {
    for (int64_t n = 1; n <= 19; n++)
        for (int64_t before = 0; before < window; before += apart)
            for (int64_t behind = 0; behind < window; behind += apart) {
                const uint32_t bits = random_bits() >> 8;
                if ((n - 1) * step + window > before + behind) check_conv_row(n, group, window, step, bits % 5, before, behind, bits & 64);
            }
}

// --------------------------------------------------------------- quantized convolutions of channels in blocks

/// Rows against weights of whole blocks of columns: y, residual and addend in blocks, with a gap between them.
static float *q8_in_blocks(const qrt_gemm_q8 *kernel, int64_t m, int64_t k, int64_t n, const float *a, const int8_t *w, const float *scales,
                           const int32_t *zero_points, const float *bias, const float *residual, const float *addend, bool clips) {
    qrt_q8_weights *packed = qrt_q8_pack(kernel, w, n, 1, k, n, scales, zero_points, n, bias, NULL, 1);
    if (!packed) abort();
    const int64_t plane = m * QRT_CHANNEL_BLOCK + 5;
    qrt_q8_row *rows = array(m, sizeof *rows);
    char *codes = array(m * packed->row_bytes, 1);
    float *y = untouched(n / QRT_CHANNEL_BLOCK * plane);
    qrt_q8_quantize_rows(&packed->kernel->codes, a, k, m, k, packed->k_padded, 255, NULL, zero_points, rows, codes, packed->row_bytes);
    const qrt_q8_block block = {
        .a = codes, .a_stride_bytes = packed->row_bytes, .rows = rows, .num_rows = (int)m, .y = y, .ldy_elems = QRT_CHANNEL_BLOCK,
        .gap_elems = plane - QRT_CHANNEL_BLOCK, .clips = clips, .low = -0.5f, .high = 0.75f,
        .epilogue = {.activation = clips ? QRT_ACT_NONE : QRT_ACT_RELU, .addend = addend, .addend_stride_elems = QRT_CHANNEL_BLOCK,
                     .residual = residual, .residual_stride_elems = QRT_CHANNEL_BLOCK},
    };
    ((const qrt_q8_kind *)packed->base.ops)->multiply(&packed->base, &block, 0, packed->num_panels);
    qrt_weights_free(&packed->base);
    return y;
}

static void check_q8_in_blocks(int64_t m, int64_t k, int64_t n, bool clips) {
    const int64_t size = n / QRT_CHANNEL_BLOCK * (m * QRT_CHANNEL_BLOCK + 5);
    const uint32_t bits = random_bits() >> 8;
    float *a = floats(m * k), *scales = floats(n), *bias = floats(n), *residual = floats(size), *addend = floats(size);
    int8_t *w = array(k * n, 1);
    int32_t *zero_points = array(n, sizeof(int32_t));
    fill_activations(a, m, k, RANDOM_CODES);
    fill_weights(w, k * n, RANDOM_CODES);
    fill_uniform(bias, n, 1);
    fill_uniform(residual, size, 1);
    fill_uniform(addend, size, 1);
    for (int64_t j = 0; j < n; j++) {
        scales[j] = uniform(1e-5f, 1e-4f);
        zero_points[j] = (int32_t)(random_bits() % 256) - 128;
    }
    const float *with[] = {bits & 1 ? bias : NULL, bits & 2 ? residual : NULL, bits & 4 ? addend : NULL};
    const int32_t *zeros = bits & 24 ? NULL : zero_points;
    float *want = q8_in_blocks(&definition.gemm_q8, m, k, n, a, w, scales, zeros, with[0], with[1], with[2], clips);
    float *got = q8_in_blocks(&rung.gemm_q8, m, k, n, a, w, scales, zeros, with[0], with[1], with[2], clips);
    for (int64_t i = 0; i < size; i++) check_same(got[i], want[i], "gemm_q8 in blocks", i, k);
    release();
}

/// Extremes of pixels, and the parameters of rows that have them.
static void check_extremes(int64_t n, int64_t channels, int special) {
    const int64_t step = 32, blocks = (channels + QRT_CHANNEL_BLOCK - 1) / QRT_CHANNEL_BLOCK, plane = n * step + 3;
    const int64_t length = (blocks - 1) * plane + (n > 0 ? n - 1 : 0) * step + (channels - 1) % QRT_CHANNEL_BLOCK + 1;
    float *x = floats(length), *inverse[2];
    uint32_t *least[2];
    int32_t *greatest[2];
    qrt_q8_row *rows[2];
    const float low = special % 3 == 0 ? 0.0f : -2.0f, high = special % 3 == 1 ? -0.5f : 2.0f;
    for (int64_t i = 0; i < length; i++) x[i] = uniform(low, high);
    for (int64_t i = special; special > 2 && i < length; i += 37) x[i] = EDGES[(i + special) / 37 % COUNT(EDGES)];
    for (int i = 0; i < 2; i++) {
        least[i] = array(n, sizeof **least);
        greatest[i] = array(n, sizeof **greatest);
        rows[i] = array(n, sizeof **rows);
        inverse[i] = floats(n);
        memset(rows[i], 0, (size_t)n * sizeof **rows);
        const qrt_conv_q8 *kernel = i ? &rung.conv_q8 : &definition.conv_q8;
        kernel->extremes(x, step, plane, channels, n, (qrt_extremes){least[i], greatest[i]});
        kernel->parameters(least[i], greatest[i], n, special & 1 ? 255 : 15, rows[i], inverse[i]);
    }
    for (int64_t p = 0; p < n; p++) {
        check(least[0][p] == least[1][p], "conv_q8 least", p, channels, least[1][p], least[0][p]);
        check(greatest[0][p] == greatest[1][p], "conv_q8 greatest", p, channels, greatest[1][p], greatest[0][p]);
        check_same(rows[1][p].scale, rows[0][p].scale, "conv_q8 scale", p, channels);
        check_same(inverse[1][p], inverse[0][p], "conv_q8 inverse scale", p, channels);
        check(rows[0][p].zero_point == rows[1][p].zero_point, "conv_q8 zero point", p, channels, rows[1][p].zero_point, rows[0][p].zero_point);
        float lo = 0, hi = 0;
        for (int64_t b = 0; b < blocks; b++) {
            const int64_t left = channels - b * QRT_CHANNEL_BLOCK;
            definition.codes_q8.range(x + b * plane + p * step, left < QRT_CHANNEL_BLOCK ? left : QRT_CHANNEL_BLOCK, &lo, &hi);
        }
        const qrt_q8_row want = qrt_q8_parameters(lo, hi, special & 1 ? 255 : 15);
        check_same(rows[1][p].scale, want.scale, "conv_q8 scale of a range", p, channels);
        check(rows[1][p].zero_point == want.zero_point, "conv_q8 zero point of a range", p, channels, rows[1][p].zero_point, want.zero_point);
    }
    release();
}

/// Two rows in pieces against the same floats one after the other.
static void check_pieces(int64_t num_pieces, bool any_outside, int32_t zero_point, int32_t qmax) {
    enum { ROWS = 2, STEP = 7 };
    const qrt_gemm_q8 *kernel = &rung.gemm_q8;
    const int64_t k = num_pieces * QRT_CHANNEL_BLOCK, k_padded = (k + kernel->kr - 1) / kernel->kr * kernel->kr, length = k + 40;
    const int64_t stride = qrt_q8_row_stride(k_padded * kernel->item_bytes + QRT_ALIGNMENT);
    if (!kernel->codes.quantize_pieces) return;
    float *x = floats(length), *row = floats(k);
    int64_t *places = array(num_pieces, sizeof *places);
    uint8_t *want = array(stride, 1), *got = array(ROWS * stride, 1);
    const float inverse_scales[ROWS] = {60.0f, 35.0f};
    const qrt_q8_row rows[ROWS] = {{1.0f, zero_point, 0}, {1.0f, zero_point / 2, 0}};
    fill_uniform(x, length, 3);
    for (int64_t i = 0; i < length; i += 29) x[i] = EDGES[i / 29 % COUNT(EDGES)];
    for (int64_t i = 0; i < num_pieces; i++) {
        const bool is_outside = any_outside && random_bits() >> 8 & 1;
        const int64_t last = length - QRT_CHANNEL_BLOCK - (ROWS - 1) * STEP;
        places[i] = is_outside ? QRT_OUTSIDE : i == 0 ? last : (int64_t)(random_bits() >> 8) % (last + 1);
    }
    kernel->codes.quantize_pieces(x, STEP, ROWS, places, num_pieces, any_outside, k_padded, inverse_scales, rows, qmax, got, stride);
    for (int r = 0; r < ROWS; r++) {
        for (int64_t i = 0; i < k; i++) {
            const int64_t place = places[i / QRT_CHANNEL_BLOCK];
            row[i] = place == QRT_OUTSIDE ? 0 : x[r * STEP + place + i % QRT_CHANNEL_BLOCK];
        }
        kernel->codes.quantize(row, k, k_padded, inverse_scales[r], rows[r].zero_point, qmax, want, NULL);
        for (int64_t i = 0; i < k_padded * kernel->item_bytes; i++)
            check(got[r * stride + i] == want[i], "codes of pieces", i, num_pieces, got[r * stride + i], want[i]);
    }
    release();
}

/// Extremes along a row, and channels put beside each other, against the definition.
static void check_rows_of_images(int64_t n, int64_t step, int64_t channels) {
    const int64_t length = n > 0 ? (n - 1) * step + 1 : 0, plane = n + 3;
    float *x = floats(length), *image = floats(channels > 0 && n > 0 ? (channels - 1) * plane + n : 0), *y[2];
    uint32_t *least[2];
    int32_t *greatest[2];
    fill_uniform(x, length, 1);
    for (int64_t i = 0; i < length; i += 5) x[i] = EDGES[i / 5 % COUNT(EDGES)];
    fill_uniform(image, channels > 0 && n > 0 ? (channels - 1) * plane + n : 0, 1);
    for (int i = 0; i < 2; i++) {
        const qrt_conv_q8 *kernel = i ? &rung.conv_q8 : &definition.conv_q8;
        least[i] = array(n, sizeof **least);
        greatest[i] = array(n, sizeof **greatest);
        y[i] = untouched(n * channels);
        for (int64_t p = 0; p < n; p++) {
            least[i][p] = (uint32_t)p << 26;
            greatest[i][p] = (int32_t)p << 24;
        }
        kernel->widen((qrt_extremes){least[i], greatest[i]}, x, x, step, n);
        kernel->interleave(image, plane, channels, n, y[i]);
    }
    for (int64_t p = 0; p < n; p++) {
        check(least[0][p] == least[1][p], "conv_q8 widen, least", p, step, least[1][p], least[0][p]);
        check(greatest[0][p] == greatest[1][p], "conv_q8 widen, greatest", p, step, greatest[1][p], greatest[0][p]);
    }
    for (int64_t i = 0; i < n * channels; i++) {
        check_same(y[1][i], image[i % channels * plane + i / channels], "conv_q8 interleave", i, channels);
        check_same(y[0][i], y[1][i], "conv_q8 interleave, defined", i, channels);
    }
    release();
}

static void check_conv_q8(void) {
    static const int64_t ms[] = {1, 7, 8, 15, 16, 17, 31, 40}, ks[] = {16, 48, 144, 400};
    for (int i = 0; i < COUNT(ms); i++)
        for (int j = 0; j < COUNT(ks); j++)
            for (int64_t n = QRT_CHANNEL_BLOCK; n <= 8 * QRT_CHANNEL_BLOCK; n += QRT_CHANNEL_BLOCK)
                for (int clips = 0; clips < 2; clips++) check_q8_in_blocks(ms[i], ks[j], n, clips);
    for (int64_t n = 0; n < 12; n++)
        for (int64_t channels = 1; channels < 50; channels++)
            for (int special = 0; special < 8; special++) check_extremes(n, channels, special);
    for (int64_t n = 60; n < 135; n += 7) check_extremes(n, 17, 3);
    for (int64_t n = 0; n < 70; n++)
        for (int64_t i = 1; i < 6; i++) check_rows_of_images(n, i, i);
    for (int64_t pieces = 0; pieces < 30; pieces++)
        for (int outside = 0; outside < 2; outside++)
            for (int32_t zero_point = 0; zero_point < 256; zero_point += 85) check_pieces(pieces, outside, zero_point > 127 ? 127 : zero_point, zero_point > 127 ? 127 : 255);
}

/// Quads into Winograd's products and out of them: portable's bits, of sums in one order; quads one by one give the same.
static void check_winograd(int64_t n, bool with_addend) {
    const int64_t stride = (n + 1) * QRT_CHANNEL_BLOCK, pixels = 40 * QRT_CHANNEL_BLOCK;
    float *x = floats(pixels), *bias = floats(QRT_CHANNEL_BLOCK), *addend = floats(pixels);
    float *v[2], *y[2], *alone = floats(16 * QRT_CHANNEL_BLOCK);
    int64_t *in = array(n * 16, sizeof *in), *out = array(n * 4, sizeof *out);
    fill_uniform(x, pixels, 1);
    fill_uniform(bias, QRT_CHANNEL_BLOCK, 1);
    fill_uniform(addend, pixels, 1);
    for (int64_t i = 0; i < n * 16; i++) in[i] = i % 5 == 3 ? QRT_OUTSIDE : i * 7 % 40 * QRT_CHANNEL_BLOCK;
    for (int64_t i = 0; i < n * 4; i++) out[i] = i % 7 == 5 ? QRT_OUTSIDE : i % 40 * QRT_CHANNEL_BLOCK;
    const qrt_conv_epilogue e = {bias, with_addend ? addend : NULL, pixels, -0.5f, 2.0f};
    const qrt_conv_f32 *kernels[] = {&rung.conv_f32, &definition.conv_f32};
    for (int i = 0; i < 2; i++) {
        v[i] = untouched(16 * stride);
        y[i] = untouched(pixels);
        kernels[i]->spread(n, in, x, v[i], stride);
        kernels[i]->collect(n, out, v[1 - i] ? v[0] : v[i], stride, y[i], &e);
    }
    for (int64_t i = 0; i < 16 * stride; i++) check_same(v[0][i], v[1][i], "conv_f32 spread", i, n);
    for (int64_t i = 0; i < pixels; i++) check_same(y[0][i], y[1][i], "conv_f32 collect", i, n);
    for (int64_t q = 0; q < n; q++) {
        rung.conv_f32.spread(1, in + q * 16, x, alone, QRT_CHANNEL_BLOCK);
        for (int i = 0; i < 16; i++)
            for (int c = 0; c < QRT_CHANNEL_BLOCK; c++)
                check_same(alone[i * QRT_CHANNEL_BLOCK + c], v[0][i * stride + q * QRT_CHANNEL_BLOCK + c], "conv_f32, a quad alone", q, i);
    }
    release();
}

static void check_conv_f32(void) {
    for (int64_t n = 0; n <= 9; n++) check_winograd(n, n % 2);
    static const int64_t steps[] = {1, 2, QRT_CHANNEL_BLOCK, 2 * QRT_CHANNEL_BLOCK}, sizes[] = {1, 3, 7, 16}, window_steps[] = {16, 32, 48};
    for (int blocks = 1; blocks <= rung.conv_f32.blocks; blocks++)
        for (int positions = 1; positions <= WIDE; positions++)
            for (int s = -1; s < COUNT(steps); s++) {
                if (s < 0 ? positions > rung.conv_f32.positions[blocks - 1] : positions != rung.conv_f32.in_steps[blocks - 1]) continue;
                for (int i = 0; i < 24; i++) {
                    const uint32_t bits = random_bits() >> 8;
                    const int64_t num_floats = sizes[bits >> 5 & 3];
                    conv_case c = {
                        positions, blocks, 1 + i % 4, num_floats, 1 + (int64_t)(bits >> 7) % num_floats, i % (MOST_TAPS + 1), s < 0 ? 0 : steps[s],
                        bits >> 11 & 1, bits & 1, bits & 2, bits & 4, bits & 8, 1 + (bits >> 12) % 3,
                    };
                    check_conv_tile(&c);
                }
            }
    for (int64_t n = 0; n <= 21; n++)
        for (int64_t taps = 0; taps <= MOST_TAPS; taps++)
            for (int s = 0; s < COUNT(window_steps); s++)
                for (int special = 0; special < 2; special++) check_conv_window(n, window_steps[s], taps, special);
#define CHECK_ROWS(WINDOW, STEP) check_conv_rows(1, WINDOW, STEP, 1);
#define CHECK_GROUPS(WINDOW, STEP) \
    for (int64_t group = 2; group <= 8; group *= 2) check_conv_rows(group, WINDOW, STEP, 1);
    QRT_CONV_WINDOWS(CHECK_ROWS)
    QRT_CONV_GROUP_WINDOWS(CHECK_GROUPS)
    static const int64_t other_windows[] = {1, 2, 4, 7, 8, 9, 15, 22};
    for (int i = 0; i < COUNT(other_windows); i++)
        for (int64_t step = 1; step <= 2; step++) check_conv_rows(1, other_windows[i], step, 1 + other_windows[i] / 5);
#undef CHECK_ROWS
#undef CHECK_GROUPS
}

int main(void) {
    int64_t failures = 0;
    if (!qrt_build_table("portable", &definition)) return 1;
    qrt_kernels = definition;
    for (const qrt_rung *step = qrt_ladder; step->name; step++) {
        if (!qrt_build_table(step->name, &rung)) {
            printf("%s: not on this CPU\n", step->name);
            continue;
        }
        num_checks = num_failures = 0;
        check_gemm_q8();
        check_qlinear();
        check_codes_q8();
        check_gemm_nbits_q8();
        check_gemm_clusters();
        check_gemm_f32();
        check_gemm_nbits();
        check_gemm_f64();
        check_gram();
        check_attention();
        check_attention_q16();
        check_cache_codes();
        check_unary();
        check_binary_f32();
        check_unary_f64();
        check_binary_f64();
        check_twice();
        check_integers(rung.pointwise.binary_i32, definition.pointwise.binary_i32, 4, false);
        check_integers(rung.pointwise.binary_i64, definition.pointwise.binary_i64, 8, false);
        check_integers(rung.pointwise.binary_bool, definition.pointwise.binary_bool, 1, true);
        check_half_precision();
        check_unary_f16();
        check_rows();
        check_rnn();
        check_dft();
        check_few_rows();
        check_depthwise_lines();
        check_few_columns();
        check_conv_f32();
        check_conv_q8();
        printf("%s: %lld checks, %lld failures\n", step->name, (long long)num_checks, (long long)num_failures);
        failures += num_failures;
    }
    return failures != 0;
}
