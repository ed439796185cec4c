#include "column_rounding.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "threads.h"

/// Lane groups that go through a block of columns one after the other while its panels are in cache, columns of a block, and
/// entries of a table that are all looked at.
enum { GROUPS = 4, ROWS = GROUPS * QRT_LANES, BLOCK = 32, FEW_ENTRIES = 16 };

typedef double (*lanes)[QRT_LANES];

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t padded(int64_t k) { return (k + QRT_PANEL - 1) / QRT_PANEL * QRT_PANEL; }

// ------------------------------------------------------------------------------------------- the grid

typedef struct {
    float scale[QRT_LANES], divisor[QRT_LANES], zero_point[QRT_LANES];
} grid_lanes;

/// Rows first … first + QRT_LANES − 1 side by side, a copy of the last where there are fewer.
static void spread_grid(const qrt_code_grid *grid, int64_t n, int64_t first, grid_lanes *out) {
    for (int64_t l = 0; l < QRT_LANES; l++) {
        int64_t row = min64(first + l, n - 1) * grid->groups;
        for (int64_t g = 0; g < grid->groups; g++) {
            out[g].scale[l] = grid->scale[row + g];
            out[g].divisor[l] = grid->divisor[row + g];
            out[g].zero_point[l] = grid->zero_point[row + g];
        }
    }
}

static void round_to_integers(const qrt_code_grid *grid, const grid_lanes *own, const double *x, float *real, uint8_t *codes) {
    float code[QRT_LANES];
    for (int l = 0; l < QRT_LANES; l++) {
        code[l] = qrt_nearest_code(grid, (float)x[l] / own->divisor[l], own->zero_point[l]);
        real[l] = (code[l] - own->zero_point[l]) * own->scale[l];
    }
    for (int l = 0; l < QRT_LANES; l++) codes[l] = (uint8_t)(int32_t)code[l];
}

static void round_to_entries(const qrt_code_grid *grid, const grid_lanes *own, const double *x, float *real, uint8_t *codes) {
    float share[QRT_LANES];
    int32_t entry[QRT_LANES] = {0};
    for (int l = 0; l < QRT_LANES; l++) share[l] = (float)x[l] / own->divisor[l];
    if (grid->num_entries <= FEW_ENTRIES) {
        for (int64_t e = 0; e + 1 < grid->num_entries; e++)
            for (int l = 0; l < QRT_LANES; l++) entry[l] += grid->middles[e] < share[l];
    } else {
        for (int l = 0; l < QRT_LANES; l++) entry[l] = (int32_t)qrt_nearest_entry(grid, share[l]);
    }
    for (int l = 0; l < QRT_LANES; l++) {
        real[l] = grid->entries[entry[l]] * own->scale[l];
        codes[l] = grid->codes[entry[l]];
    }
}

static inline void round_lanes(const qrt_code_grid *grid, const grid_lanes *own, const double *x, float *real, uint8_t *codes) {
    if (grid->num_entries)
        round_to_entries(grid, own, x, real, codes);
    else
        round_to_integers(grid, own, x, real, codes);
}

// ------------------------------------------------------------------------------------------- lanes of rows

/// What is known of QRT_LANES rows: columns in their order, rows side by side.
typedef struct {
    int64_t first;  ///< row
    lanes x;        ///< what is to be rounded, or (w − ŵ) Σ
    lanes change;   ///< of the columns that are done, for those to come
    lanes now;      ///< w of feedback, ŵ of descent
    uint8_t (*codes)[QRT_LANES];
    grid_lanes *grid;
    int32_t *columns;  ///< those whose changes count
} row_lanes;

static size_t lanes_bytes(const qrt_column_rounding *r) {
    int64_t k = padded(r->k);
    size_t bytes = (size_t)k * (3 * sizeof(double[QRT_LANES]) + QRT_LANES + sizeof(int32_t)) + (size_t)r->grid->groups * sizeof(grid_lanes);
    return (bytes + 63) / 64 * 64;
}

static row_lanes lanes_at(const qrt_column_rounding *r, int64_t first, char *memory) {
    int64_t k = padded(r->k);
    row_lanes rows = {.first = first, .x = (lanes)memory};
    rows.change = rows.x + k;
    rows.now = rows.change + k;
    rows.grid = (grid_lanes *)(rows.now + k);
    rows.columns = (int32_t *)(rows.grid + r->grid->groups);
    rows.codes = (uint8_t(*)[QRT_LANES])(rows.columns + k);
    spread_grid(r->grid, r->n, first, rows.grid);
    return rows;
}

/// Column `order[j]` of a matrix [n, k] for the rows of `rows`; a copy of the last where there are fewer.
static void read_column(const qrt_column_rounding *r, const row_lanes *rows, const float *matrix, int64_t j, double *out) {
    for (int64_t l = 0; l < QRT_LANES; l++) out[l] = matrix[min64(rows->first + l, r->n - 1) * r->k + r->order[j]];
}

static void write_codes(const qrt_column_rounding *r, const row_lanes *rows) {
    int64_t count = min64(QRT_LANES, r->n - rows->first);
    for (int64_t j = 0; j < r->k; j++)
        for (int64_t l = 0; l < count; l++) r->codes[(rows->first + l) * r->k + r->order[j]] = rows->codes[j][l];
}

static void read_codes(const qrt_column_rounding *r, row_lanes *rows) {
    for (int64_t j = 0; j < r->k; j++)
        for (int64_t l = 0; l < QRT_LANES; l++) rows->codes[j][l] = r->codes[min64(rows->first + l, r->n - 1) * r->k + r->order[j]];
}

static const double *panel_of(const double *panels, int64_t k, int64_t column) { return panels + column / QRT_PANEL * k * QRT_PANEL; }

/// x += change · matrix for the columns a … b − 1, from the first `count` of rows->columns. `a` begins a panel.
static void accumulate(const row_lanes *rows, int64_t k, const double *panels, int64_t count, int64_t a, int64_t b) {
    for (int64_t j = a; count > 0 && j < b; j += QRT_PANEL)
        qrt_kernels.column_sums.accumulate(count, rows->columns, rows->change[0], panel_of(panels, k, j), rows->x[j]);
}

/// x += change · matrix for the columns a … b − 1, from column j alone.
static void add_change(const row_lanes *rows, int64_t k, const double *panels, int64_t j, int64_t a, int64_t b) {
    const double *change = rows->change[j];
    for (int64_t c = a; c < b; c++) {
        double factor = panel_of(panels, k, c)[j * QRT_PANEL + c % QRT_PANEL];
        for (int l = 0; l < QRT_LANES; l++) rows->x[c][l] += change[l] * factor;
    }
}

/// One task of a rounding: what becomes of `count` groups of lanes.
typedef struct {
    const qrt_column_rounding *of;
    void (*round)(const void *context, row_lanes *rows, int64_t count);
    const void *context;
    atomic_bool has_failed;
} rounding_task;

static void round_rows(void *context, int64_t index) {
    rounding_task *task = context;
    const qrt_column_rounding *r = task->of;
    int64_t first = index * ROWS, count = (min64(ROWS, r->n - first) + QRT_LANES - 1) / QRT_LANES;
    char *memory = aligned_alloc(64, (size_t)count * lanes_bytes(r));
    if (!memory) {
        atomic_store(&task->has_failed, true);
        return;
    }
    row_lanes rows[GROUPS];
    for (int64_t g = 0; g < count; g++) rows[g] = lanes_at(r, first + g * QRT_LANES, memory + (size_t)g * lanes_bytes(r));
    task->round(task->context, rows, count);
    for (int64_t g = 0; g < count; g++) write_codes(r, &rows[g]);
    free(memory);
}

static bool in_parallel(rounding_task *task, int num_threads) {
    qrt_parallel_for(num_threads, (task->of->n + ROWS - 1) / ROWS, round_rows, task);
    return !atomic_load(&task->has_failed);
}

// ------------------------------------------------------------------------------------------- feedback

typedef struct {
    const qrt_column_rounding *of;
    const double *coupling;
    int64_t block;
    const qrt_kept_apart *apart;
} feedback;

/// Keep what column j would lose too much of.
static void keep_apart(const feedback *f, row_lanes *rows, int64_t j, const grid_lanes *own, float *real) {
    static const double zeros[QRT_LANES];
    const qrt_column_rounding *r = f->of;
    const double *x = rows->x[j], limit = f->apart->limits[j];
    float real_zeros[QRT_LANES];
    uint8_t zero_codes[QRT_LANES];
    bool is_apart[QRT_LANES], any = false;
    for (int l = 0; l < QRT_LANES; l++) {
        double loss = x[l] - (double)real[l];
        is_apart[l] = loss * loss > limit;
        any = any || is_apart[l];
    }
    if (any) round_lanes(r->grid, own, zeros, real_zeros, zero_codes);
    for (int l = 0; any && l < QRT_LANES; l++)
        if (is_apart[l]) real[l] = (float)x[l], rows->codes[j][l] = zero_codes[l];
    int64_t count = min64(QRT_LANES, r->n - rows->first), at = rows->first * r->k + r->order[j];
    for (int64_t l = 0; l < count; l++, at += r->k) f->apart->reals[at] = real[l], f->apart->is_apart[at] = is_apart[l];
}

static void finish_columns(const feedback *f, row_lanes *rows, int64_t a, int64_t b) {
    const qrt_column_rounding *r = f->of;
    for (int64_t j = a; j < b; j++) {
        float real[QRT_LANES];
        const double *weight = rows->now[j];
        const grid_lanes *own = &rows->grid[r->grid->group[r->order[j]]];
        round_lanes(r->grid, own, rows->x[j], real, rows->codes[j]);
        if (f->apart) keep_apart(f, rows, j, own, real);
        for (int l = 0; l < QRT_LANES; l++) rows->change[j][l] = weight[l] - (double)real[l];
        add_change(rows, r->k, f->coupling, j, j + 1, b);
    }
}

static void round_with_feedback(const void *context, row_lanes *rows, int64_t count) {
    const feedback *f = context;
    const qrt_column_rounding *r = f->of;
    for (int64_t g = 0; g < count; g++)
        for (int64_t j = 0; j < padded(r->k); j++) {
            rows[g].columns[j] = (int32_t)j;
            read_column(r, &rows[g], r->weight, min64(j, r->k - 1), rows[g].now[j]);
            memcpy(rows[g].x[j], rows[g].now[j], sizeof *rows[g].x);
        }
    for (int64_t a = 0; a < r->k; a += f->block) {
        int64_t b = min64(a + f->block, r->k);
        for (int64_t g = 0; g < count; g++) {
            accumulate(&rows[g], r->k, f->coupling, a, a, b);
            finish_columns(f, &rows[g], a, b);
        }
    }
}

bool qrt_round_with_feedback(const qrt_column_rounding *r, const double *coupling, int64_t block, const qrt_kept_apart *apart,
                             int num_threads) {
    feedback f = {r, coupling, padded(block), apart};
    rounding_task task = {.of = r, .round = round_with_feedback, .context = &f};
    return in_parallel(&task, num_threads);
}

// ------------------------------------------------------------------------------------------- descent

typedef struct {
    const qrt_column_rounding *of;
    const double *sigma, *diagonal;
    const float *start;
    bool is_feasible;
    int64_t sweeps;
    const uint8_t *is_relaxed;
} descent;

/// List the columns outside of a … b − 1 that have changed since these were reached last.
static int64_t changed_columns(const row_lanes *rows, int64_t k, int64_t a, int64_t b) {
    int64_t count = 0;
    for (int64_t j = 0; j < k; j++) {
        if (j == a) j = b;
        if (j >= k) break;
        double any = 0;
        for (int l = 0; l < QRT_LANES; l++) any += fabs(rows->change[j][l]);
        if (any != 0) rows->columns[count++] = (int32_t)j;
    }
    return count;
}

/// ŵ from the start, and (w − ŵ) Σ.
static void begin_descent(const descent *d, row_lanes *rows) {
    const qrt_column_rounding *r = d->of;
    memset(rows->x, 0, (size_t)padded(r->k) * sizeof *rows->x);
    for (int64_t j = 0; j < r->k; j++) {
        read_column(r, rows, d->start, j, rows->now[j]);
        read_column(r, rows, r->weight, j, rows->change[j]);
        for (int l = 0; l < QRT_LANES; l++) rows->change[j][l] -= rows->now[j][l];
    }
    accumulate(rows, r->k, d->sigma, changed_columns(rows, r->k, r->k, r->k), 0, r->k);
    memset(rows->change, 0, (size_t)padded(r->k) * sizeof *rows->change);
    if (d->is_feasible) read_codes(r, rows);
}

/// Column j to its best value, or to the nearest code for it. `keeps`: ŵ is a code now, and stays unless another is nearer.
static bool descend_column(const descent *d, row_lanes *rows, int64_t j, bool is_relaxed, bool keeps) {
    const qrt_column_rounding *r = d->of;
    double best[QRT_LANES], *now = rows->now[j], *change = rows->change[j];
    double share = d->diagonal[j] > 0 ? 1 / d->diagonal[j] : 0;
    for (int l = 0; l < QRT_LANES; l++) best[l] = now[l] + rows->x[j][l] * share;
    if (is_relaxed) {
        for (int l = 0; l < QRT_LANES; l++) change[l] = now[l] - best[l], now[l] = best[l];
        return true;
    }
    float real[QRT_LANES];
    uint8_t codes[QRT_LANES];
    bool has_changed = false;
    round_lanes(r->grid, &rows->grid[r->grid->group[r->order[j]]], best, real, codes);
    for (int l = 0; l < QRT_LANES; l++) {
        bool stays = keeps && fabs(now[l] - best[l]) <= fabs((double)real[l] - best[l]);
        double next = stays ? now[l] : (double)real[l];
        rows->codes[j][l] = stays ? rows->codes[j][l] : codes[l];
        change[l] = now[l] - next;
        now[l] = next;
        has_changed = has_changed || change[l] != 0;
    }
    return has_changed;
}

static void descend(const void *context, row_lanes *rows, int64_t count) {
    const descent *d = context;
    const qrt_column_rounding *r = d->of;
    for (int64_t g = 0; g < count; g++) begin_descent(d, &rows[g]);
    bool keeps = d->is_feasible;
    for (int64_t sweep = 0; sweep < d->sweeps; sweep++) {
        for (int64_t a = 0; a < r->k; a += BLOCK) {
            int64_t b = min64(a + BLOCK, r->k);
            for (int64_t g = 0; g < count; g++) {
                accumulate(&rows[g], r->k, d->sigma, changed_columns(&rows[g], r->k, a, b), a, b);
                for (int64_t j = a; j < b; j++)
                    if (descend_column(d, &rows[g], j, d->is_relaxed[sweep], keeps)) add_change(&rows[g], r->k, d->sigma, j, a, b);
            }
        }
        keeps = !d->is_relaxed[sweep];
    }
}

bool qrt_round_by_descent(const qrt_column_rounding *r, const double *sigma, const double *diagonal, const float *start,
                          bool is_feasible, int64_t sweeps, const uint8_t *is_relaxed, int num_threads) {
    descent d = {r, sigma, diagonal, start, is_feasible, sweeps, is_relaxed};
    rounding_task task = {.of = r, .round = descend, .context = &d};
    return in_parallel(&task, num_threads);
}
