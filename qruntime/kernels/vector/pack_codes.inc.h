/// Codes that are known already as packed activations: items of type ITEM, moved by CODE_OFFSET. A loop that the compiler
/// vectorizes for the target region that includes it; portable includes it too.

static void pack_codes(const uint8_t *restrict codes, uint8_t flip, int32_t zero_point, int64_t k, int64_t k_padded,
                       void *restrict packed, int64_t *sum) {
    (void)zero_point;
    ITEM *q = packed;
    for (int64_t i = 0; i < k; i++) q[i] = (ITEM)((codes[i] ^ flip) - CODE_OFFSET);
    memset(q + k, 0, (size_t)(k_padded - k) * sizeof *q);
    if (!sum) return;
    int64_t total = 0;
    for (int64_t i = 0; i < k; i++) total += codes[i] ^ flip;
    *sum = total;
}

#undef ITEM
