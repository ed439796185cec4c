/// Codes of rows and products of panels of codes. Before it: a simd_*.h, vi_pairs_add(sums, a, b): sums + a₀·b₀ + a₁·b₁ of the two
/// int16 of each lane, and GRAM_TALL × GRAM_WIDE vectors of sums that fit the registers.

enum { GRAM_VECS = QRT_GRAM_PANEL / VL, MAGNITUDE_VECS = 4 };

static inline vi pair_of_codes(vf first, vf second, vm *fit) {
    const vf most = vf_set(QRT_GRAM_CODE);
    *fit = vm_and(*fit, vm_and(vf_le(vf_abs(first), most), vf_le(vf_abs(second), most)));
    return vi_add(vi_and(vf_to_vi(first), vi_set(0xFFFF)), vi_sll(vf_to_vi(second), 16));
}

static bool gram_code_pairs(int64_t n, const float *x, const float *y, const float *inverse_step, int32_t *pairs) {
    vm fit = vf_eq(vf_zero(), vf_zero());
    if (n == QRT_GRAM_PANEL) {
#pragma GCC unroll 8
        for (int j = 0; j < QRT_GRAM_PANEL; j += VL) {
            const vf units = vf_load(inverse_step + j);
            vi_store(pairs + j, pair_of_codes(vf_mul(vf_load(x + j), units), vf_mul(vf_load(y + j), units), &fit));
        }
    } else {
        for (int64_t j = 0; j < QRT_GRAM_PANEL; j += VL) {
            const int64_t some = n - j < 0 ? 0 : n - j < VL ? n - j : VL;
            const vf units = vf_load_n(inverse_step + j, some);
            vi_store(pairs + j, pair_of_codes(vf_mul(vf_load_n(x + j, some), units), vf_mul(vf_load_n(y + j, some), units), &fit));
        }
    }
    return vm_bits(fit) == vm_bits(vf_eq(vf_zero(), vf_zero()));
}

static void gram_panels(const int16_t *a, const int16_t *b, int64_t *sums) {
    for (int tile = 0; tile < QRT_GRAM_PANEL / GRAM_TALL * (GRAM_VECS / GRAM_WIDE); tile++) {
        const int top = tile / (GRAM_VECS / GRAM_WIDE) * GRAM_TALL, left = tile % (GRAM_VECS / GRAM_WIDE) * GRAM_WIDE * VL;
        vi acc[GRAM_TALL][GRAM_WIDE];
#pragma GCC unroll 8
        for (int i = 0; i < GRAM_TALL; i++)
#pragma GCC unroll 4
            for (int v = 0; v < GRAM_WIDE; v++) acc[i][v] = vi_set(0);
        const int32_t *pairs = (const int32_t *)a + top, *others = (const int32_t *)b + left;
        for (int t = 0; t < QRT_GRAM_ROWS / 2; t++, pairs += QRT_GRAM_PANEL, others += QRT_GRAM_PANEL) {
            vi other[GRAM_WIDE];
#pragma GCC unroll 4
            for (int v = 0; v < GRAM_WIDE; v++) other[v] = vi_load(others + v * VL);
#pragma GCC unroll 8
            for (int i = 0; i < GRAM_TALL; i++) {
                vi pair = vi_set(pairs[i]);
#pragma GCC unroll 4
                for (int v = 0; v < GRAM_WIDE; v++) acc[i][v] = vi_pairs_add(acc[i][v], pair, other[v]);
            }
        }
        int32_t made[GRAM_TALL][GRAM_WIDE * VL];
#pragma GCC unroll 8
        for (int i = 0; i < GRAM_TALL; i++)
#pragma GCC unroll 4
            for (int v = 0; v < GRAM_WIDE; v++) vi_store(made[i] + v * VL, acc[i][v]);
        for (int i = 0; i < GRAM_TALL; i++) {
            int64_t *out = sums + (top + i) * QRT_GRAM_PANEL + left;
            for (int j = 0; j < GRAM_WIDE * VL; j++) out[j] += made[i][j];
        }
    }
}

static inline vi magnitude_of_code(vf units) { return vf_to_vi(vf_abs(units)); }

static void gram_magnitudes(int64_t rows, int64_t n, const float *const *x, int64_t first, const float *inverse_step, int32_t *sums) {
    int64_t j = 0;
    for (; j + MAGNITUDE_VECS * VL <= n; j += MAGNITUDE_VECS * VL) {
        vf units[MAGNITUDE_VECS];
        vi acc[MAGNITUDE_VECS];
#pragma GCC unroll 4
        for (int v = 0; v < MAGNITUDE_VECS; v++) units[v] = vf_load(inverse_step + j + v * VL), acc[v] = vi_set(0);
        for (int64_t t = 0; t < rows; t++) {
            const float *row = x[t] + first + j;
#pragma GCC unroll 4
            for (int v = 0; v < MAGNITUDE_VECS; v++) acc[v] = vi_add(acc[v], magnitude_of_code(vf_mul(vf_load(row + v * VL), units[v])));
        }
#pragma GCC unroll 4
        for (int v = 0; v < MAGNITUDE_VECS; v++) vi_store(sums + j + v * VL, acc[v]);
    }
    for (; j < n; j += VL) {
        const int64_t some = n - j < VL ? n - j : VL;
        const vf units = vf_load_n(inverse_step + j, some);
        vi acc = vi_set(0);
        int32_t made[VL];
        for (int64_t t = 0; t < rows; t++) acc = vi_add(acc, magnitude_of_code(vf_mul(vf_load_n(x[t] + first + j, some), units)));
        vi_store(made, acc);
        memcpy(sums + j, made, (size_t)some * sizeof *made);
    }
}
