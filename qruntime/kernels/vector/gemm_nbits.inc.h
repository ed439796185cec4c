/// Products of float activations with weights of few bits over any vector. Define before:
/// - STREAMED_PANELS(rows): panels that so many rows take at once, most of them one row, so that there are enough independent sums and they fit
///   into registers;
/// - vi_select(mask, a, b): the bits of a where those of the mask are set, of b elsewhere, where they are not in the mask;
/// - vi_load_upper(p): vi_load(p) without the lower 16 bits, perhaps with others in the upper ones;
/// - KEEP(x): x is to stay in a register;
/// - vi_load_u16(p): VL uint16, widened;
/// - vf_table16(table, index): table[index modulo 16].

enum { NR = QRT_NBITS_NR, NV = NR / VL, STREAMED_ROWS = QRT_NBITS_STREAMED_ROWS, MAX_PANELS = STREAMED_PANELS(1) };

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/// Codes of a word: bytes, or halves of them.
#define CODES_OF_WORD(bits) ((bits) == 8 ? 4 : 8)
#define STEP(bits) ((bits) == 8 ? 4 : (bits) == 4 ? 8 : 16)
#define STEP_BYTES(bits) ((bits) == 3 ? 96 : 64)

/// The step of VL columns as words of 8 codes, as codes of 4 bits lie, or of 4 bytes. `step` is where the step of all
/// columns begins, v the vector in it.
ALWAYS_INLINE void load_words(const int bits, const uint8_t *step, int v, vi *words) {
    vi packed = vi_load((const int32_t *)(step + 4 * VL * v));
    if (bits >= 4) {
        words[0] = packed;
        return;
    }
    words[0] = vi_or(vi_and(packed, vi_set(0x03030303)), vi_and(vi_sll(packed, 2), vi_set(0x30303030)));
    words[1] = vi_or(vi_and(vi_srl(packed, 4), vi_set(0x03030303)), vi_and(vi_srl(packed, 2), vi_set(0x30303030)));
    if (bits == 3) {
        // The upper bits, four of them to a byte.
        vi upper = vi_load_u16((const uint16_t *)(step + 64) + v * VL);
        upper = vi_and(vi_or(upper, vi_sll(upper, 8)), vi_set(0x00FF00FF));
        upper = vi_and(vi_or(upper, vi_sll(upper, 4)), vi_set(0x0F0F0F0F));
        words[0] = vi_or(words[0], vi_or(vi_and(vi_sll(upper, 2), vi_set(0x04040404)), vi_and(vi_sll(upper, 5), vi_set(0x40404040))));
        words[1] = vi_or(words[1], vi_or(vi_and(upper, vi_set(0x04040404)), vi_and(vi_sll(upper, 3), vi_set(0x40404040))));
    }
}

/// Code j stands at this bit of its word.
#define PLACE(bits, j) ((bits) == 8 ? 8 * (j) : 8 * ((j) % 4) + (j) / 4 * 4)

/// Beside an exponent that gives its lowest bit the weight of 1, a code is a number at once: from it a constant is taken,
/// and both steps are exact. Codes in the upper half of a word are shifted, for want of mantissa.
typedef struct {
    vi mask, exponent;
    vf less;
} uniform_place;

ALWAYS_INLINE uniform_place uniform_at(const int bits, int j) {
    const int place = PLACE(bits, j) % 16;
    return (uniform_place){
        vi_set(((1 << bits) - 1) << place), vi_set((150 - place) << 23),
        vf_set((float)(1 << (23 - place)) + (float)(1 << (bits - 1))),
    };
}
ALWAYS_INLINE bool is_upper(const int bits, int j) { return PLACE(bits, j) >= 16; }
ALWAYS_INLINE vf uniform(uniform_place at, vi word) { return vf_sub(vi_as_vf(vi_select(at.mask, word, at.exponent)), at.less); }

/// FP8: exponents from 1 on need the bias of float32; a number without the leading 1 lies where that formula gives twice
/// as much less the leading 1, and only there that is the lesser of both.
ALWAYS_INLINE vf e4m3(vi shifted) {
    vi magnitude = vi_and(shifted, vi_set(0x07F00000));
    vf normal = vi_as_vf(vi_add(magnitude, vi_set(120 << 23)));
    vf x = vf_min(normal, vf_sub(vf_add(normal, normal), vf_set(0x1p-6f)));
    x = vf_blend(vi_eq(magnitude, vi_set(0x07F00000)), vf_set(__builtin_nanf("")), x);
    return vf_or(x, vi_as_vf(vi_and(vi_sll(shifted, 4), vi_set((int32_t)0x80000000))));
}

ALWAYS_INLINE vf looked_up(const float *values, const uint8_t *codes) {
    float found[VL];
    for (int i = 0; i < VL; i++) found[i] = values[codes[4 * i]];
    return vf_load(found);
}

/// The values of code j of a word; `at` is where its columns stand, for tables that no register holds.
ALWAYS_INLINE vf value_of(const qrt_nbits_coding coding, const int bits, vi word, int j, const uint8_t *at, const float *values) {
    switch (coding) {
    case QRT_NBITS_UNIFORM: return uniform(uniform_at(bits, j), is_upper(bits, j) ? vi_srl(word, 16) : word);
    case QRT_NBITS_TABLE16:
        switch (j) {
        case 0: return vf_table16(values, word);
        case 1: return vf_table16(values, vi_srl(word, 8));
        case 2: return vf_table16(values, vi_srl(word, 16));
        case 3: return vf_table16(values, vi_srl(word, 24));
        case 4: return vf_table16(values, vi_srl(word, 4));
        case 5: return vf_table16(values, vi_srl(word, 12));
        case 6: return vf_table16(values, vi_srl(word, 20));
        default: return vf_table16(values, vi_srl(word, 28));
        }
    case QRT_NBITS_E4M3:
        switch (j) {
        case 0: return e4m3(vi_sll(word, 20));
        case 1: return e4m3(vi_sll(word, 12));
        case 2: return e4m3(vi_sll(word, 4));
        default: return e4m3(vi_srl(word, 4));
        }
    default: return looked_up(values, at + j);
    }
}

/// Decoded values of one panel, for what a step leaves over and for codings that take long to decode.
enum { DECODED_STEPS = 64 };

ALWAYS_INLINE void decode_steps(const qrt_nbits_coding coding, const int bits, const qrt_nbits_weights *w, const uint8_t *codes,
                                int64_t k, float *values, int64_t stride) {
    const int step = STEP(bits);
    for (int64_t i = 0; i < k; i += step, codes += STEP_BYTES(bits), values += step * stride)
#pragma GCC unroll 4
        for (int v = 0; v < NV; v++) {
            vi words[2];
            load_words(bits, codes, v, words);
#pragma GCC unroll 16
            for (int j = 0; j < step; j++)
                vf_store(values + j * stride + v * VL, value_of(coding, bits, words[j / CODES_OF_WORD(bits)], j % CODES_OF_WORD(bits),
                                                                codes + 4 * VL * v, w->values));
        }
}

/// A step times its activations, for `rows` rows and `panels` panels, `panel_bytes` from one to the next.
ALWAYS_INLINE void multiply_step(const qrt_nbits_coding coding, const int bits, const int rows, const int panels,
                                 const uint8_t *codes, int64_t panel_bytes, const float *a, int64_t lda, const float *values,
                                 vf sums[][MAX_PANELS * NV]) {
    const int step = STEP(bits);
    vi words[MAX_PANELS * NV][2];
    if (coding != QRT_NBITS_UNIFORM) {
#pragma GCC unroll 16
        for (int i = 0; i < panels * NV; i++) load_words(bits, codes + i / NV * panel_bytes, i % NV, words[i]);
    }
#pragma GCC unroll 16
    for (int j = 0; j < step; j++) {
        vf x[STREAMED_ROWS];
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) x[r] = vf_set(a[r * lda + j]);
        uniform_place at = uniform_at(bits, j);
        if (coding == QRT_NBITS_UNIFORM) {
            KEEP(at.mask);
            KEEP(at.exponent);
            KEEP(at.less);
        }
#pragma GCC unroll 16
        for (int i = 0; i < panels * NV; i++) {
            const uint8_t *columns = codes + i / NV * panel_bytes + 4 * VL * (i % NV);
            vf value;
            if (coding == QRT_NBITS_UNIFORM)  // the words are read anew for every code: that is cheaper than keeping them
                value = uniform(at, is_upper(bits, j) ? vi_load_upper(columns) : vi_load((const int32_t *)columns));
            else
                value = value_of(coding, bits, words[i][j / CODES_OF_WORD(bits)], j % CODES_OF_WORD(bits), columns, values);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) sums[r][i] = vf_fma(x[r], value, sums[r][i]);
        }
    }
}

/// `count` rows of decoded values times their activations.
ALWAYS_INLINE void multiply_decoded(const int rows, const int panels, int64_t count, const float *values, const float *a, int64_t lda,
                                    vf sums[][MAX_PANELS * NV]) {
    for (int64_t k = 0; k < count; k++, values += panels * NR) {
        vf x[STREAMED_ROWS];
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) x[r] = vf_set(a[r * lda + k]);
#pragma GCC unroll 16
        for (int i = 0; i < panels * NV; i++) {
            vf value = vf_load(values + i * VL);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) sums[r][i] = vf_fma(x[r], value, sums[r][i]);
        }
    }
}

static void decode(const qrt_nbits_weights *w, const uint8_t *codes, int64_t k, float *values, int64_t stride);

/// How far ahead of its use a panel is fetched from memory.
enum { CODES_AHEAD = 1024, GROUPS_AHEAD = 4 };

/// `ahead` of a stream through one of `panels` panels that goes on in the one behind them; `left` of it are in this one.
ALWAYS_INLINE int64_t onward(int64_t ahead, int64_t left, const int panels, int64_t panel_length) {
    return left > ahead ? ahead : ahead + (panels - 1) * panel_length;
}

ALWAYS_INLINE void fetch_scales(const qrt_nbits_weights *w, const int panels, int64_t panel, int64_t g) {
    const int64_t ahead = onward(GROUPS_AHEAD, w->num_groups - g, panels, w->num_groups);
#pragma GCC unroll 16
    for (int p = 0; p < panels; p++) {
        const int64_t at = qrt_nbits_group_at(w, panel + p, g + ahead);
        if (w->half_scales) __builtin_prefetch(w->half_scales + at, 0, 3);
        else __builtin_prefetch(w->scales + at, 0, 3);
        if (w->zeros) __builtin_prefetch(w->zeros + at, 0, 3);
    }
}

/// Totals of `rows` rows and `panels` panels from `panel` on. `fused`: whole steps are decoded into registers.
ALWAYS_INLINE void flow(const bool fused, const qrt_nbits_coding coding, const int bits, const int rows, const int panels,
                        const qrt_nbits_weights *w, const float *a, int64_t lda, const float *group_sums, int64_t sums_stride,
                        int64_t panel, float *c, int64_t ldc) {
    float totals[STREAMED_ROWS][MAX_PANELS * NR] = {{0}};
    const uint8_t *end = qrt_nbits_codes(w, panel + 1, 0);
    for (int64_t g = 0; g < w->num_groups; g++) {
        int64_t depth = qrt_nbits_depth(w, g), i = 0;
        const float *x = a + g * w->group;
        const uint8_t *codes = qrt_nbits_codes(w, panel, g);
        if (rows <= 2) fetch_scales(w, panels, panel, g);
        vf sums[STREAMED_ROWS][MAX_PANELS * NV];
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
            for (int v = 0; v < panels * NV; v++) sums[r][v] = vf_zero();
        for (; fused && i + STEP(bits) <= depth; i += STEP(bits)) {
            const int64_t ahead = onward(CODES_AHEAD, end - codes, panels, w->panel_bytes);
#pragma GCC unroll 16
            for (int p = 0; rows <= 2 && p < panels; p++) __builtin_prefetch(codes + p * w->panel_bytes + ahead, 0, 3);
            multiply_step(coding, bits, rows, panels, codes, w->panel_bytes, x + i, lda, w->values, sums);
            codes += STEP_BYTES(bits);
        }
        const int step = qrt_nbits_step(w->bits);
        for (; i < depth; i += DECODED_STEPS) {
            float values[DECODED_STEPS * MAX_PANELS * NR];
            int64_t count = depth - i < DECODED_STEPS ? depth - i : DECODED_STEPS;
            for (int p = 0; p < panels; p++) decode(w, codes + p * w->panel_bytes, count, values + p * NR, panels * NR);
            codes += DECODED_STEPS / step * qrt_nbits_step_bytes(w->bits);
            multiply_decoded(rows, panels, count, values, x + i, lda, sums);
        }
#pragma GCC unroll 16
        for (int v = 0; v < panels * NV; v++) {
            int64_t at = qrt_nbits_group_at(w, panel + v / NV, g) + v % NV * VL;
            vf scale = w->half_scales ? vf_load_f16(w->half_scales + at) : vf_load(w->scales + at);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) {
                vf sum = sums[r][v];
                if (w->zeros) sum = vf_fnma(vf_load(w->zeros + at), vf_set(group_sums[r * sums_stride + g]), sum);
                vf_store(totals[r] + v * VL, vf_fma(scale, sum, vf_load(totals[r] + v * VL)));
            }
        }
    }
    int64_t columns = w->base.n - panel * NR;
    if (columns > panels * NR) columns = panels * NR;
    for (int r = 0; r < rows; r++) memcpy(c + r * ldc, totals[r], (size_t)columns * sizeof *c);
}

ALWAYS_INLINE void flows(const bool fused, const qrt_nbits_coding coding, const int bits, const int rows, const qrt_nbits_weights *w,
                         const float *a, int64_t lda, const float *sums, int64_t sums_stride, int64_t first, int64_t last, float *c,
                         int64_t ldc) {
    const int panels = STREAMED_PANELS(rows);
    for (; first + panels <= last; first += panels, c += panels * NR)
        flow(fused, coding, bits, rows, panels, w, a, lda, sums, sums_stride, first, c, ldc);
    for (; first < last; first++, c += NR) flow(fused, coding, bits, rows, 1, w, a, lda, sums, sums_stride, first, c, ldc);
}

#define STREAM(NAME, FUSED, CODING, BITS)                                                                                 \
    static void stream_##NAME(const qrt_nbits_weights *w, int64_t m, const float *a, int64_t lda, const float *sums,      \
                              int64_t sums_stride, int64_t first, int64_t last, float *c, int64_t ldc) {                  \
        switch (m) {                                                                                                      \
        case 1: flows(FUSED, CODING, BITS, 1, w, a, lda, sums, sums_stride, first, last, c, ldc); break;                  \
        case 2: flows(FUSED, CODING, BITS, 2, w, a, lda, sums, sums_stride, first, last, c, ldc); break;                  \
        case 3: flows(FUSED, CODING, BITS, 3, w, a, lda, sums, sums_stride, first, last, c, ldc); break;                  \
        default: flows(FUSED, CODING, BITS, 4, w, a, lda, sums, sums_stride, first, last, c, ldc); break;                 \
        }                                                                                                                 \
    }

#define DECODE(NAME, CODING, BITS)                                                                                        \
    static void decode_##NAME(const qrt_nbits_weights *w, const uint8_t *codes, int64_t k, float *values, int64_t stride) { \
        decode_steps(CODING, BITS, w, codes, k, values, stride);                                                          \
    }

DECODE(uniform2, QRT_NBITS_UNIFORM, 2)
DECODE(uniform3, QRT_NBITS_UNIFORM, 3)
DECODE(uniform4, QRT_NBITS_UNIFORM, 4)
DECODE(uniform8, QRT_NBITS_UNIFORM, 8)
DECODE(table2, QRT_NBITS_TABLE16, 2)
DECODE(table3, QRT_NBITS_TABLE16, 3)
DECODE(table4, QRT_NBITS_TABLE16, 4)
DECODE(table8, QRT_NBITS_TABLE256, 8)
DECODE(fp8, QRT_NBITS_E4M3, 8)

static void decode(const qrt_nbits_weights *w, const uint8_t *codes, int64_t k, float *values, int64_t stride) {
    switch (w->coding) {
    case QRT_NBITS_UNIFORM:
        switch (w->bits) {
        case 2: decode_uniform2(w, codes, k, values, stride); break;
        case 3: decode_uniform3(w, codes, k, values, stride); break;
        case 4: decode_uniform4(w, codes, k, values, stride); break;
        default: decode_uniform8(w, codes, k, values, stride); break;
        }
        break;
    case QRT_NBITS_TABLE16:
        switch (w->bits) {
        case 2: decode_table2(w, codes, k, values, stride); break;
        case 3: decode_table3(w, codes, k, values, stride); break;
        default: decode_table4(w, codes, k, values, stride); break;
        }
        break;
    case QRT_NBITS_E4M3: decode_fp8(w, codes, k, values, stride); break;
    case QRT_NBITS_TABLE256: decode_table8(w, codes, k, values, stride); break;
    }
}

/// Those of which many are met, or that pay in registers; the rest takes the way over memory.
STREAM(uniform4, true, QRT_NBITS_UNIFORM, 4)
STREAM(uniform8, true, QRT_NBITS_UNIFORM, 8)
STREAM(table4, true, QRT_NBITS_TABLE16, 4)
STREAM(decoded, false, QRT_NBITS_TABLE256, 8)

static void stream(const qrt_nbits_weights *w, int64_t m, const float *a, int64_t lda, const float *sums, int64_t sums_stride,
                   int64_t first, int64_t last, float *c, int64_t ldc) {
    if (w->coding == QRT_NBITS_UNIFORM && w->bits == 4)
        stream_uniform4(w, m, a, lda, sums, sums_stride, first, last, c, ldc);
    else if (w->coding == QRT_NBITS_UNIFORM && w->bits == 8)
        stream_uniform8(w, m, a, lda, sums, sums_stride, first, last, c, ldc);
    else if (w->coding == QRT_NBITS_TABLE16 && w->bits == 4)
        stream_table4(w, m, a, lda, sums, sums_stride, first, last, c, ldc);
    else
        stream_decoded(w, m, a, lda, sums, sums_stride, first, last, c, ldc);
}
