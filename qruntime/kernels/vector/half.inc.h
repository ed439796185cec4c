/// Vectors of floats from and to arrays of floats or of float16: include after simd_*.h.
/// Elements from the i-th on, or n < VL of them: floats, or float16 when `half` (a constant) says so.
static inline __attribute__((always_inline)) vf load_of(bool half, const void *x, int64_t i) {
    return half ? vf_load_f16((const uint16_t *)x + i) : vf_load((const float *)x + i);
}
static inline __attribute__((always_inline)) vf load_of_n(bool half, const void *x, int64_t i, int64_t n) {
    if (!half) return vf_load_n((const float *)x + i, n);
    uint16_t lanes[VL] = {0};
    memcpy(lanes, (const uint16_t *)x + i, (size_t)n * sizeof *lanes);
    return vf_load_f16(lanes);
}
static inline __attribute__((always_inline)) void store_of(bool half, void *y, int64_t i, vf v) {
    if (half) vf_store_f16((uint16_t *)y + i, v);
    else vf_store((float *)y + i, v);
}
static inline __attribute__((always_inline)) void store_of_n(bool half, void *y, int64_t i, vf v, int64_t n) {
    uint16_t lanes[VL];
    if (!half) vf_store_n((float *)y + i, v, n);
    else {
        vf_store_f16(lanes, v);
        memcpy((uint16_t *)y + i, lanes, (size_t)n * sizeof *lanes);
    }
}
