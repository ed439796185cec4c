/// What one core of this machine can do at most: products from registers alone, and bytes read.
///
/// Prints one JSON object: int8 and float operations a second (two for each multiply-add, in billions) by instruction
/// set, and the bandwidth of reading buffers of several sizes (GB/s). Built and run by kernels.py.
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

enum { ROUNDS = 2000000, CHAINS = 12 };

/// Twelve independent chains, unrolled: more than latency times throughput of any instruction here.
#define CHAIN_12(INSTRUCTION) \
    INSTRUCTION(0) INSTRUCTION(1) INSTRUCTION(2) INSTRUCTION(3) INSTRUCTION(4) INSTRUCTION(5) \
    INSTRUCTION(6) INSTRUCTION(7) INSTRUCTION(8) INSTRUCTION(9) INSTRUCTION(10) INSTRUCTION(11)

#define MEASURE(NAME, TARGET, INSTRUCTIONS, OPERATIONS)                                                             \
    static TARGET double NAME(void) {                                                                               \
        double best = 1e30;                                                                                         \
        for (int repeat = 0; repeat < 5; repeat++) {                                                                \
            double start = now();                                                                                   \
            for (int i = 0; i < ROUNDS; i++) __asm__ volatile(CHAIN_12(INSTRUCTIONS)::                              \
                : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", \
                  "xmm12", "xmm13", "xmm14");                                                                       \
            double seconds = now() - start;                                                                         \
            if (seconds < best) best = seconds;                                                                     \
        }                                                                                                           \
        return 1e-9 * ROUNDS * CHAINS * (OPERATIONS) / best;                                                        \
    }

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#define FMA_256(i) "vfmadd231ps %%ymm12, %%ymm13, %%ymm" #i "\n"
#define FMA_512(i) "vfmadd231ps %%zmm12, %%zmm13, %%zmm" #i "\n"
/// Exact products of 8-bit codes: bytes to pairs, pairs to int32, the sum.
#define MADD_256(i) \
    "vpmaddubsw %%ymm12, %%ymm13, %%ymm14\n vpmaddwd %%ymm12, %%ymm14, %%ymm14\n vpaddd %%ymm14, %%ymm" #i ", %%ymm" #i "\n"
#define VNNI_256(i) "%{vex%} vpdpbusd %%ymm12, %%ymm13, %%ymm" #i "\n"
#define VNNI_512(i) "vpdpbusd %%zmm12, %%zmm13, %%zmm" #i "\n"

MEASURE(fma_256, , FMA_256, 16)
MEASURE(fma_512, , FMA_512, 32)
MEASURE(madd_256, , MADD_256, 64)
MEASURE(vnni_256, , VNNI_256, 64)
MEASURE(vnni_512, , VNNI_512, 128)

static double amx(void) {
    struct { uint8_t palette, start, reserved[14]; uint16_t row_bytes[16]; uint8_t rows[16]; } config = {.palette = 1};
    for (int i = 0; i < 8; i++) config.row_bytes[i] = 64, config.rows[i] = 16;
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
    double best = 1e30;
    for (int repeat = 0; repeat < 5; repeat++) {
        double start = now();
        for (int i = 0; i < ROUNDS / 4; i++)
            __asm__ volatile("tdpbusd %%tmm6, %%tmm4, %%tmm0\n tdpbusd %%tmm7, %%tmm4, %%tmm1\n"
                             "tdpbusd %%tmm6, %%tmm5, %%tmm2\n tdpbusd %%tmm7, %%tmm5, %%tmm3" ::);
        double seconds = now() - start;
        if (seconds < best) best = seconds;
    }
    __asm__ volatile("tilerelease" ::);
    return 1e-9 * (ROUNDS / 4) * 4 * (2.0 * 16 * 16 * 64) / best;
}

static bool has(const char *name) {
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!strcmp(name, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (!strcmp(name, "avx_vnni")) return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
    if (!strcmp(name, "avx512")) return __builtin_cpu_supports("avx512f");
    if (!strcmp(name, "avx512vnni")) return __builtin_cpu_supports("avx512vnni");
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 24 & 3) == 3 && syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}

static void print_peaks(void) {
    const struct { const char *kind, *isa; double (*measure)(void); } all[] = {
        {"int8", "avx2", madd_256}, {"int8", "avx_vnni", vnni_256}, {"int8", "avx512vnni", vnni_512}, {"int8", "amx", amx},
        {"float", "avx2", fma_256}, {"float", "avx512", fma_512},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (has(all[i].isa)) printf("\"%s %s\": %.1f, ", all[i].kind, all[i].isa, all[i].measure());
}
#else
static void print_peaks(void) {}
#endif

/// Sums of 64-bit words in eight chains, which compilers turn into vectors of what every CPU of the kind has.
static double read_speed(size_t bytes) {
    uint64_t *words = malloc(bytes), sink = 0;
    if (!words) return 0;
    memset(words, 1, bytes);
    double best = 1e30;
    for (int repeat = 0; repeat < 5; repeat++) {
        size_t passes = ((size_t)1 << 28) / bytes + 1;
        double start = now();
        for (size_t pass = 0; pass < passes; pass++) {
            uint64_t sums[8] = {pass};
            for (size_t i = 0; i + 8 <= bytes / sizeof *words; i += 8)
                for (int j = 0; j < 8; j++) sums[j] += words[i + (size_t)j];
            for (int j = 0; j < 8; j++) sink += sums[j];
        }
        double seconds = (now() - start) / (double)passes;
        if (seconds < best) best = seconds;
    }
    free(words);
    volatile uint64_t keep = sink;
    (void)keep;
    return 1e-9 * (double)bytes / best;
}

int main(void) {
    printf("{");
    print_peaks();
    const int kilobytes[] = {256, 1024, 4096, 16384, 262144};
    for (size_t i = 0; i < sizeof kilobytes / sizeof *kilobytes; i++)
        printf("%s\"read %d KB\": %.1f", i ? ", " : "", kilobytes[i], read_speed((size_t)kilobytes[i] << 10));
    printf("}\n");
}
