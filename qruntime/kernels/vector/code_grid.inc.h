/// Rounding to a grid (code_grid.h) in loops that the compiler vectorizes for the target region that includes them; portable
/// includes them too.

/// Numbers that are rounded at a time while their codes are in cache, and entries of a table that are all looked at.
enum { PIECE = 256, FEW_ENTRIES = 16 };

static void round_to_integers(const qrt_code_grid *grid, int64_t at, int64_t count, const float *restrict x, float *restrict code,
                              float *restrict values) {
    float scale = grid->scale[at], divisor = grid->divisor[at], zero = grid->zero_point[at];
    for (int64_t j = 0; j < count; j++) code[j] = qrt_nearest_code(grid, x[j] / divisor, zero);
    for (int64_t j = 0; j < count; j++) values[j] = (code[j] - zero + 0.0f) * scale;  // no zero but one
}

static void round_to_entries(const qrt_code_grid *grid, int64_t at, int64_t count, const float *restrict x, int32_t *restrict entry,
                             float *restrict values) {
    float scale = grid->scale[at], divisor = grid->divisor[at];
    if (grid->num_entries <= FEW_ENTRIES) {
        for (int64_t j = 0; j < count; j++) entry[j] = 0, values[j] = x[j] / divisor;
        for (int64_t e = 0; e + 1 < grid->num_entries; e++)
            for (int64_t j = 0; j < count; j++) entry[j] += grid->middles[e] < values[j];
    } else {
        for (int64_t j = 0; j < count; j++) entry[j] = (int32_t)qrt_nearest_entry(grid, x[j] / divisor);
    }
    for (int64_t j = 0; j < count; j++) values[j] = grid->entries[entry[j]] * scale;
}

/// Columns from j on that are rounded at a time: of one group.
static int64_t piece_from(const qrt_code_grid *grid, int64_t j, int64_t k) {
    const int64_t most = k - j < PIECE ? k - j : PIECE;
    int64_t count = 1;
    if (grid->groups == 1) return most;
    while (count < most && grid->group[j + count] == grid->group[j]) count++;
    return count;
}

static void round_to_grid(const qrt_code_grid *grid, int64_t n, int64_t k, const float *x, uint8_t *codes, float *values) {
    float code[PIECE];
    int32_t entry[PIECE];
    for (int64_t j = 0, count; j < k; j += count) {
        const int64_t group = grid->groups == 1 ? 0 : grid->group[j];
        count = piece_from(grid, j, k);
        for (int64_t i = 0, here = j; i < n; i++, here += k) {
            int64_t at = i * grid->groups + group;
            if (grid->num_entries) {
                round_to_entries(grid, at, count, x + here, entry, values + here);
                for (int64_t c = 0; c < count; c++) codes[here + c] = grid->codes[entry[c]];
            } else {
                round_to_integers(grid, at, count, x + here, code, values + here);
                for (int64_t c = 0; c < count; c++) codes[here + c] = (uint8_t)(int32_t)code[c];
            }
        }
    }
}
