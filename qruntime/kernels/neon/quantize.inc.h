/// Codes of activations. After simd_neon.h.

/// Eight codes: rounded, moved by the zero point and, by two conversions that saturate and by `most`, limited. What is NaN
/// becomes 0, as in portable.
static inline uint8x8_t codes_of_8(vf x0, vf x1, vf inverse_scale, vf zero_point, uint8x8_t most) {
    uint32x4_t q0 = vcvtq_u32_f32(vaddq_f32(vrndnq_f32(vmulq_f32(x0, inverse_scale)), zero_point));
    uint32x4_t q1 = vcvtq_u32_f32(vaddq_f32(vrndnq_f32(vmulq_f32(x1, inverse_scale)), zero_point));
    return vmin_u8(vqmovn_u16(vcombine_u16(vqmovn_u32(q0), vqmovn_u32(q1))), most);
}

/// The last 1 … 7 of a row, followed by zeros.
static inline uint8x8_t codes_of_rest(const float *a, int64_t rest, vf inverse_scale, vf zero_point, uint8x8_t most) {
    vf x0 = vf_load_n(a, rest < VL ? rest : VL), x1 = vf_load_n(a + (rest < VL ? 0 : VL), rest < VL ? 0 : rest - VL);
    uint64_t valid = ((uint64_t)1 << 8 * rest) - 1;
    return vand_u8(codes_of_8(x0, x1, inverse_scale, zero_point, most), vcreate_u8(valid));
}

/// A byte each, with the bits of `flipped` flipped. k_padded − k < 8.
static inline __attribute__((always_inline)) void
quantize_bytes_with(const uint8_t flipped, const float *a, int64_t k, int64_t k_padded, float inverse_scale,
                    int32_t zero_point, int32_t qmax, void *packed, int64_t *sum) {
    uint8_t *q = packed;
    vf inverse = vf_set(inverse_scale), zero = vf_set((float)zero_point);
    uint8x8_t most = vdup_n_u8((uint8_t)qmax);
    int64_t total = 0, i = 0;
    for (; i + 8 <= k; i += 8) {
        uint8x8_t codes = codes_of_8(vf_load(a + i), vf_load(a + i + VL), inverse, zero, most);
        total += vaddlv_u8(codes);
        vst1_u8(q + i, veor_u8(codes, vdup_n_u8(flipped)));
    }
    if (i < k) {
        uint8x8_t codes = codes_of_rest(a + i, k - i, inverse, zero, most);
        total += vaddlv_u8(codes);
        uint8_t bytes[8];
        vst1_u8(bytes, veor_u8(codes, vdup_n_u8(flipped)));
        memcpy(q + i, bytes, (size_t)(k_padded - i));
    }
    if (sum) *sum = total;
}
