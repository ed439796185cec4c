/// Products of panels of codes. Before it: a simd_*.h, vi_pairs_add(sums, a, b): sums + a₀·b₀ + a₁·b₁ of the two int16 of each lane,
/// and GRAM_TALL: rows of the product whose sums are in registers.

enum { GRAM_VECS = QRT_GRAM_PANEL / VL };

static void gram_panels(const int16_t *a, const int16_t *b, int64_t *sums) {
    for (int top = 0; top < QRT_GRAM_PANEL; top += GRAM_TALL) {
        vi acc[GRAM_TALL][GRAM_VECS];
#pragma GCC unroll 8
        for (int i = 0; i < GRAM_TALL; i++)
#pragma GCC unroll 4
            for (int v = 0; v < GRAM_VECS; v++) acc[i][v] = vi_set(0);
        const int32_t *pairs = (const int32_t *)a + top, *others = (const int32_t *)b;
        for (int t = 0; t < QRT_GRAM_ROWS / 2; t++, pairs += QRT_GRAM_PANEL, others += QRT_GRAM_PANEL) {
            vi other[GRAM_VECS];
#pragma GCC unroll 4
            for (int v = 0; v < GRAM_VECS; v++) other[v] = vi_load(others + v * VL);
#pragma GCC unroll 8
            for (int i = 0; i < GRAM_TALL; i++) {
                vi pair = vi_set(pairs[i]);
#pragma GCC unroll 4
                for (int v = 0; v < GRAM_VECS; v++) acc[i][v] = vi_pairs_add(acc[i][v], pair, other[v]);
            }
        }
        int32_t made[GRAM_TALL * QRT_GRAM_PANEL];
#pragma GCC unroll 8
        for (int i = 0; i < GRAM_TALL; i++)
#pragma GCC unroll 4
            for (int v = 0; v < GRAM_VECS; v++) vi_store(made + i * QRT_GRAM_PANEL + v * VL, acc[i][v]);
        int64_t *out = sums + top * QRT_GRAM_PANEL;
        for (int i = 0; i < GRAM_TALL * QRT_GRAM_PANEL; i++) out[i] += made[i];
    }
}
