/// Closes the region that simd_avx2.h or simd_avx512.h opened.
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
