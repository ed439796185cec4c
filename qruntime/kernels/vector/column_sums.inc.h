/// Sums over columns. Before it: `vec`, a vector of doubles that may alias, and STEP, the columns whose sums are in registers.

enum { VECS = QRT_LANES * sizeof(double) / sizeof(vec) };

static inline __attribute__((always_inline)) void step(int64_t count, const int32_t *columns, const double *changes,
                                                       const double *panel, double *x) {
    vec sums[STEP][VECS];
#pragma GCC unroll 4
    for (int j = 0; j < STEP; j++)
#pragma GCC unroll 4
        for (int v = 0; v < VECS; v++) sums[j][v] = ((const vec *)x)[j * VECS + v];
    for (int64_t p = 0; p < count; p++) {
        const vec *change = (const vec *)(changes + columns[p] * QRT_LANES);
        const double *row = panel + columns[p] * QRT_PANEL;
#pragma GCC unroll 4
        for (int j = 0; j < STEP; j++)
#pragma GCC unroll 4
            for (int v = 0; v < VECS; v++) sums[j][v] += change[v] * row[j];
    }
#pragma GCC unroll 4
    for (int j = 0; j < STEP; j++)
#pragma GCC unroll 4
        for (int v = 0; v < VECS; v++) ((vec *)x)[j * VECS + v] = sums[j][v];
}

static void accumulate(int64_t count, const int32_t *columns, const double *changes, const double *panel, double *x) {
#pragma GCC unroll 4
    for (int j = 0; j < QRT_PANEL; j += STEP) step(count, columns, changes, panel + j, x + j * QRT_LANES);
}
