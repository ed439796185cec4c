#include "kernels.h"

#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include "rungs.h"

static bool always(void) { return true; }

#if defined(__x86_64__)
static bool has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
static bool has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

#if defined(QRT_EMULATE_VNNI) && defined(QRT_EMULATE_AMX)
static bool has_avx_vnni(void) { return has_avx2(); }
static bool has_avx512vnni(void) { return has_avx512(); }
static bool has_avx512bf16(void) { return has_avx512(); }
static bool has_amx(void) { return has_avx512(); }
#else
/// gcc 12 does not know the name avxvnni here: leaf 7, subleaf 1, EAX bit 4.
static bool has_avx_vnni(void) {
    unsigned eax, ebx, ecx, edx;
    return has_avx2() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 4 & 1);
}
static bool has_avx512vnni(void) { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }

/// Leaf 7, subleaf 1, EAX bit 5.
static bool has_avx512bf16(void) {
    unsigned eax, ebx, ecx, edx;
    return has_avx512vnni() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax >> 5 & 1);
}

/// Leaf 7, EDX bits 24 (tiles) and 25 (int8). Linux hands tile registers, XSAVE component 18, only to processes that
/// ask (arch_prctl 0x1023, ARCH_REQ_XCOMP_PERM); a kernel that grants them has switched them on.
static bool has_amx(void) {
#if defined(__linux__)
    unsigned eax, ebx, ecx, edx;
    return has_avx512vnni() && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx >> 24 & 3) == 3 &&
           syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
    return false;
#endif
}
#endif
#elif defined(__aarch64__)
static bool has_dotprod(void) {
#if defined(__linux__)
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#elif defined(__APPLE__)
    int answer = 0;
    size_t size = sizeof answer;
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &answer, &size, NULL, 0) == 0 && answer;
#else
    return false;
#endif
}
#endif

static void overlay_portable(qrt_kernel_table *t) {
    qrt_portable_gemm_f32(t);
    qrt_portable_gemm_f64(t);
    qrt_portable_conv_f32(t);
    qrt_portable_conv_q8(t);
    qrt_portable_gemm_q8(t);
    qrt_portable_gemm_nbits(t);
    qrt_portable_gemm_nbits_q8(t);
    qrt_portable_gemm_clusters(t);
    qrt_portable_pointwise(t);
    qrt_portable_qlinear(t);
    qrt_portable_outlier_pairs(t);
    qrt_portable_rows(t);
    qrt_portable_rnn(t);
    qrt_portable_attention(t);
    qrt_portable_column_sums(t);
    qrt_portable_dft(t);
    qrt_portable_gram(t);
    qrt_portable_cache_codes(t);
    qrt_portable_code_grid(t);
}

#if defined(__x86_64__)
static void overlay_avx2(qrt_kernel_table *t) {
    qrt_avx2_gemm_f32(t);
    qrt_avx2_gemm_f64(t);
    qrt_avx2_conv_f32(t);
    qrt_avx2_conv_q8(t);
    qrt_avx2_gemm_q8(t);
    qrt_avx2_gemm_nbits(t);
    qrt_avx2_gemm_nbits_q8(t);
    qrt_avx2_gemm_clusters(t);
    qrt_avx2_pointwise(t);
    qrt_avx2_qlinear(t);
    qrt_avx2_outlier_pairs(t);
    qrt_avx2_rows(t);
    qrt_avx2_rnn(t);
    qrt_avx2_attention(t);
    qrt_avx2_column_sums(t);
    qrt_avx2_dft(t);
    qrt_avx2_gram(t);
    qrt_avx2_cache_codes(t);
    qrt_avx2_code_grid(t);
}
static void overlay_avx_vnni(qrt_kernel_table *t) {
    qrt_avx_vnni_gemm_q8(t);
    qrt_avx_vnni_gemm_nbits_q8(t);
    qrt_avx_vnni_gemm_clusters(t);
    qrt_avx_vnni_attention(t);
    qrt_avx_vnni_gram(t);
}
static void overlay_avx512(qrt_kernel_table *t) {
    qrt_avx512_gemm_f32(t);
    qrt_avx512_gemm_f64(t);
    qrt_avx512_conv_f32(t);
    qrt_avx512_conv_q8(t);
    qrt_avx512_gemm_nbits(t);
    qrt_avx512_pointwise(t);
    qrt_avx512_qlinear(t);
    qrt_avx512_outlier_pairs(t);
    qrt_avx512_rows(t);
    qrt_avx512_rnn(t);
    qrt_avx512_attention(t);
    qrt_avx512_column_sums(t);
    qrt_avx512_dft(t);
    qrt_avx512_gram(t);
    qrt_avx512_cache_codes(t);
    qrt_avx512_code_grid(t);
}
static void overlay_avx512vnni(qrt_kernel_table *t) {
    qrt_avx512vnni_gemm_q8(t);
    qrt_avx512vnni_gemm_nbits_q8(t);
    qrt_avx512vnni_gemm_clusters(t);
    qrt_avx512vnni_attention(t);
    qrt_avx512vnni_qlinear(t);
    qrt_avx512vnni_gram(t);
}
static void overlay_avx512bf16(qrt_kernel_table *t) { qrt_avx512bf16_gemm_nbits(t); }
static void overlay_amx(qrt_kernel_table *t) { qrt_amx_gemm_q8(t); }
#elif defined(__aarch64__)
static void overlay_neon(qrt_kernel_table *t) {
    qrt_neon_gemm_f32(t);
    qrt_neon_gemm_f64(t);
    qrt_neon_conv_f32(t);
    qrt_neon_conv_q8(t);
    qrt_neon_gemm_q8(t);
    qrt_neon_gemm_nbits(t);
    qrt_neon_gemm_nbits_q8(t);
    qrt_neon_gemm_clusters(t);
    qrt_neon_pointwise(t);
    qrt_neon_qlinear(t);
    qrt_neon_rows(t);
    qrt_neon_rnn(t);
    qrt_neon_attention(t);
    qrt_neon_gram(t);
}
static void overlay_neon_dotprod(qrt_kernel_table *t) {
    qrt_neon_dotprod_gemm_q8(t);
    qrt_neon_dotprod_gemm_nbits_q8(t);
    qrt_neon_dotprod_gemm_clusters(t);
}
#endif

const qrt_rung qrt_ladder[] = {
    {"portable", always, overlay_portable},
#if defined(__x86_64__)
    {"avx2", has_avx2, overlay_avx2},
    {"avx_vnni", has_avx_vnni, overlay_avx_vnni},
    {"avx512", has_avx512, overlay_avx512},
    {"avx512vnni", has_avx512vnni, overlay_avx512vnni},
    {"avx512bf16", has_avx512bf16, overlay_avx512bf16},
    {"amx", has_amx, overlay_amx},
#elif defined(__aarch64__)
    {"neon", always, overlay_neon},
    {"neon_dotprod", has_dotprod, overlay_neon_dotprod},
#endif
    {NULL, NULL, NULL},
};

qrt_kernel_table qrt_kernels;

bool qrt_build_table(const char *name, qrt_kernel_table *table) {
    const qrt_rung *cap = NULL;
    for (const qrt_rung *rung = qrt_ladder; rung->name; rung++)
        if (!strcmp(rung->name, name) && rung->is_supported()) cap = rung;
    if (!cap) return false;
    memset(table, 0, sizeof *table);
    for (const qrt_rung *rung = qrt_ladder; rung <= cap; rung++)
        if (rung->is_supported()) {
            rung->overlay(table);
            table->isa = rung->name;
        }
    return true;
}
