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

static void round_to_grid(const qrt_code_grid *grid, int64_t n, int64_t k, const float *x, uint8_t *codes, float *values) {
    float code[PIECE];
    int32_t entry[PIECE];
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0, count; j < k; j += count, x += count, codes += count, values += count) {
            int32_t group = grid->group[j];
            for (count = 1; count < PIECE && j + count < k && grid->group[j + count] == group;) count++;
            int64_t at = i * grid->groups + group;
            if (grid->num_entries) {
                round_to_entries(grid, at, count, x, entry, values);
                for (int64_t c = 0; c < count; c++) codes[c] = grid->codes[entry[c]];
            } else {
                round_to_integers(grid, at, count, x, code, values);
                for (int64_t c = 0; c < count; c++) codes[c] = (uint8_t)(int32_t)code[c];
            }
        }
}
