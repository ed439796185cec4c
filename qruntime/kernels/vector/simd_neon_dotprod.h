/// simd_neon.h in a region with sdot, which simd_end.h closes.
#include <arm_neon.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

// gcc 12 knows the intrinsics of dot products only from Armv8.2 on, which every CPU that has them is.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif

#include "simd_neon.h"
