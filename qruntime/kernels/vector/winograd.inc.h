/// Into and out of Winograd's products, see conv_f32.h; behind conv_f32.inc.h.

/// Bᵀ of four.
#define SPREAD(TO, A, B, C, D) TO(0) = vf_sub(A, C), TO(1) = vf_add(B, C), TO(2) = vf_sub(C, B), TO(3) = vf_sub(B, D)

static void spread(int64_t n, const int64_t *places, const float *x, float *v, int64_t v_stride) {
    for (int64_t t = 0; t < n; t++, places += 16, v += QRT_CHANNEL_BLOCK)
        for (int lane = 0; lane < QRT_CHANNEL_BLOCK; lane += VL) {
            vf d[4][4];
#pragma GCC unroll 4
            for (int i = 0; i < 4; i++) {
                vf row[4];
#pragma GCC unroll 4
                for (int j = 0; j < 4; j++) row[j] = vf_load((places[4 * i + j] == QRT_OUTSIDE ? zeros : x + places[4 * i + j]) + lane);
#define TO(J) d[i][J]
                SPREAD(TO, row[0], row[1], row[2], row[3]);
#undef TO
            }
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                vf column[4];
#define TO(I) column[I]
                SPREAD(TO, d[0][j], d[1][j], d[2][j], d[3][j]);
#undef TO
#pragma GCC unroll 4
                for (int i = 0; i < 4; i++) vf_store(v + (4 * i + j) * v_stride + lane, column[i]);
            }
        }
}

ALWAYS_INLINE void collect_all(int64_t n, const int64_t *places, const float *m, int64_t m_stride, float *y, const qrt_conv_epilogue e,
                               const bool with_addend) {
    const vf low = vf_set(e.low), high = vf_set(e.high);
    for (int64_t t = 0; t < n; t++, places += 4, m += QRT_CHANNEL_BLOCK)
        for (int lane = 0; lane < QRT_CHANNEL_BLOCK; lane += VL) {
            vf s[2][4];
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                const float *at = m + j * m_stride + lane;
                const vf a = vf_load(at), b = vf_load(at + 4 * m_stride), c = vf_load(at + 8 * m_stride), d = vf_load(at + 12 * m_stride);
                s[0][j] = vf_add(vf_add(a, b), c);
                s[1][j] = vf_sub(vf_sub(b, c), d);
            }
#pragma GCC unroll 4
            for (int o = 0; o < 4; o++) {
                const vf *row = s[o / 2], sum = o % 2 ? vf_sub(vf_sub(row[1], row[2]), row[3]) : vf_add(vf_add(row[0], row[1]), row[2]);
                if (places[o] == QRT_OUTSIDE) continue;
                vf_store(y + places[o] + lane, finished(sum, e.bias ? e.bias + lane : NULL, with_addend ? e.addend + places[o] + lane : NULL, low, high));
            }
        }
}

static void collect(int64_t n, const int64_t *places, const float *m, int64_t m_stride, float *y, const qrt_conv_epilogue *epilogue) {
    if (epilogue->addend) collect_all(n, places, m, m_stride, y, *epilogue, true);
    else collect_all(n, places, m, m_stride, y, *epilogue, false);
}
