/// Codes of few bits (nbits_weights.h) in registers, four along K a lane, over the vocabulary of simd_*.h.

#define ALWAYS_INLINE static inline __attribute__((always_inline))

#define IS_TABLE(kind) ((kind) == QRT_NBITS_TABLE || (kind) == QRT_NBITS_WIDE_TABLE)

/// Of one panel: 64 bytes of codes, and the high bits of 3.
#define STEP_BYTES(kind) ((kind) == QRT_NBITS_3 ? 96 : 64)

/// The lower 16 bits of a lane, four of them in each byte.
static inline vi spread_nibbles(vi bits) {
    bits = vi_add(vi_and(bits, vi_set(0x000000ff)), vi_and(vi_sll(bits, 8), vi_set(0x00ff0000)));
    return vi_add(vi_and(bits, vi_set(0x000f000f)), vi_and(vi_sll(bits, 4), vi_set(0x0f000f00)));
}

/// VL columns of a step as they lie, and of 3 bits the upper ones, four of them in each byte.
typedef struct {
    vi packed, high;
} step_codes;

ALWAYS_INLINE step_codes load_step(const int kind, const uint8_t *step, int column) {
    step_codes codes = {.packed = vi_hold(vi_load((const int32_t *)(const void *)(step + 4 * column)))};
    if (kind == QRT_NBITS_3) codes.high = spread_nibbles(vi_load_i16((const int16_t *)(const void *)(step + 64 + 2 * column)));
    return codes;
}

/// u of quad q, four k a lane.
ALWAYS_INLINE vi unpack(const int kind, const step_codes *codes, int q, vi table) {
    if (kind == QRT_NBITS_8) return codes->packed;
    if (kind == QRT_NBITS_2 || kind == QRT_NBITS_3) {
        const vi low = vi_and(q ? vi_srl(codes->packed, 2 * q) : codes->packed, vi_set(0x03030303));
        if (kind == QRT_NBITS_2) return low;
        const vi high = q < 2 ? vi_sll(codes->high, 2 - q) : q == 2 ? codes->high : vi_srl(codes->high, 1);
        return vi_add(low, vi_and(high, vi_set(0x04040404)));
    }
    const vi u = vi_and(q ? vi_srl(codes->packed, 4) : codes->packed, vi_set(0x0f0f0f0f));
    return IS_TABLE(kind) ? vi_lookup16(table, u) : u;
}
