/// Groups of k whose sums, in the registers of a tile of MR × NV vectors, are scaled when they are done (gemm_f32.h). `rows` is a constant
/// at every call.

ALWAYS_INLINE void begin_group(const int rows, const qrt_f32_groups *group, vf sums[MR][NV]) {
    const float *begun = group->begun;
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) sums[i][v] = begun ? vf_load(begun + i * group->begun_stride + v * VL) : vf_zero();
}

/// The sums are scaled and added to c, which is in the cache; `group` is then the next.
ALWAYS_INLINE void end_group(const int rows, qrt_f32_groups *group, vf sums[MR][NV], float *c, int64_t ldc, bool accumulate) {
    if (group->zeros) {
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
            for (int v = 0; v < NV; v++)
                sums[i][v] = vf_fnma(vf_load(group->zeros + v * VL), vf_set(group->sums[i * group->sums_stride]), sums[i][v]);
        group->zeros += group->stride;
        group->sums++;
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) {
            float *at = c + i * ldc + v * VL;
            vf_store(at, vf_fma(vf_load(group->scales + v * VL), sums[i][v], accumulate ? vf_load(at) : vf_zero()));
        }
    group->scales += group->stride;
}
