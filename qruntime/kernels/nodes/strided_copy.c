#include "strided_copy.h"

#include <string.h>

#include "../threads.h"
#include "four.h"

/// Below this many bytes a second thread costs more than it brings.
enum { PARALLEL_BYTES = 512 * 1024 };

typedef struct { uint64_t low, high; } u128;

#define COPY_RUNS_OF(T)                                                                                      \
    for (int64_t i = 0; i < count; i++) memcpy(t + i * to_stride, f + i * from_stride, sizeof(T))

void qrt_copy_runs(void *to, int64_t to_stride, const void *from, int64_t from_stride, int64_t count, int64_t bytes) {
    char *t = to;
    const char *f = from;
    switch (bytes) {
    case 0: return;
    case 1: COPY_RUNS_OF(uint8_t); return;
    case 2: COPY_RUNS_OF(uint16_t); return;
    case 4: COPY_RUNS_OF(uint32_t); return;
    case 8: COPY_RUNS_OF(uint64_t); return;
    case 16: COPY_RUNS_OF(u128); return;
    default:
        for (int64_t i = 0; i < count; i++) memcpy(t + i * to_stride, f + i * from_stride, (size_t)bytes);
    }
}

#define FILL(T)                                                                                              \
    do {                                                                                                     \
        T v, *t = to;                                                                                        \
        memcpy(&v, value, sizeof v);                                                                         \
        for (int64_t i = 0; i < count; i++) t[i] = v;                                                        \
    } while (0)

void qrt_fill(void *to, const void *value, size_t item, int64_t count) {
    static const char zeros[8];
    if (!memcmp(value, zeros, item)) {
        memset(to, 0, (size_t)count * item);
        return;
    }
    switch (item) {
    case 1: FILL(uint8_t); return;
    case 2: FILL(uint16_t); return;
    case 4: FILL(uint32_t); return;
    default: FILL(uint64_t); return;
    }
}

/// rows × columns elements; the target's columns are adjacent.
typedef struct {
    int64_t rows, columns;
    int64_t to_row, from_row, from_column;
    size_t item;
} plane;

typedef void (*plane_fn)(const plane *p, char *to, const char *from);

static void copy_rows(const plane *p, char *to, const char *from) {
    qrt_copy_runs(to, p->to_row, from, p->from_row, p->rows, p->columns * (int64_t)p->item);
}

#define COPY_COLUMNS(T, GET)                                                                                 \
    for (int64_t r = 0; r < p->rows; r++, to += p->to_row, from += p->from_row) {                            \
        const char *f = from;                                                                                \
        char *t = to;                                                                                        \
        for (int64_t c = 0; c < p->columns; c++, t += sizeof(T), f += GET) {                                 \
            T v;                                                                                             \
            memcpy(&v, f, sizeof v);                                                                         \
            memcpy(t, &v, sizeof v);                                                                         \
        }                                                                                                    \
    }

static void copy_columns(const plane *p, char *to, const char *from) {
    const int64_t step = p->from_column;
    switch (p->item) {
    case 1: COPY_COLUMNS(uint8_t, step); return;
    case 2: COPY_COLUMNS(uint16_t, step); return;
    case 4: COPY_COLUMNS(uint32_t, step); return;
    case 8: COPY_COLUMNS(uint64_t, step); return;
    default: COPY_COLUMNS(u128, step); return;
    }
}

/// Source column stride 0: each row holds one element again and again.
static void repeat_columns(const plane *p, char *to, const char *from) {
    if (p->item > 8) {
        copy_columns(p, to, from);
        return;
    }
    for (int64_t r = 0; r < p->rows; r++) qrt_fill(to + r * p->to_row, from + r * p->from_row, p->item, p->columns);
}

/// Transposition goes by tiles that are one cache line long and wide.
enum { LINE = 64 };

#define TRANSPOSE_TILE(T)                                                                                    \
    for (int64_t c = 0; c < columns; c++)                                                                    \
        for (int64_t r = 0; r < rows; r++)                                                                   \
            memcpy(to + r * to_row + c * (int64_t)sizeof(T), from + c * from_column + r * (int64_t)sizeof(T), sizeof(T))

/// to[r][c] = from[c][r] for r, c < 4.
static inline void transpose_4x4(char *to, int64_t to_row, const char *from, int64_t from_column) {
    u32x4 v[4];
    for (int c = 0; c < 4; c++) memcpy(&v[c], from + c * from_column, sizeof v[c]);
    transpose_four(v);
    for (int r = 0; r < 4; r++) memcpy(to + r * to_row, &v[r], sizeof v[r]);
}

typedef uint16_t u16x8 __attribute__((vector_size(16)));
typedef uint64_t u64x2 __attribute__((vector_size(16)));

/// The same of elements of 2 bytes, r, c < 8: to interleave the first half of the rows with the second turns the bits of row
/// and column by one place, so that three times change them over.
static inline void transpose_8x8(char *to, int64_t to_row, const char *from, int64_t from_column) {
    u16x8 v[8], w[8];
    for (int c = 0; c < 8; c++) memcpy(&v[c], from + c * from_column, sizeof v[c]);
    for (int turn = 0; turn < 3; turn++) {
        for (int i = 0; i < 4; i++) {
            w[2 * i] = __builtin_shufflevector(v[i], v[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
            w[2 * i + 1] = __builtin_shufflevector(v[i], v[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
        }
        memcpy(v, w, sizeof v);
    }
    for (int r = 0; r < 8; r++) memcpy(to + r * to_row, &v[r], sizeof v[r]);
}

/// Of elements of 8 bytes, r, c < 2.
static inline void transpose_2x2(char *to, int64_t to_row, const char *from, int64_t from_column) {
    u64x2 a, b;
    memcpy(&a, from, sizeof a);
    memcpy(&b, from + from_column, sizeof b);
    const u64x2 first = __builtin_shufflevector(a, b, 0, 2), second = __builtin_shufflevector(a, b, 1, 3);
    memcpy(to, &first, sizeof first);
    memcpy(to + to_row, &second, sizeof second);
}

/// to[r][c] = from[c][r] for r, c < 16, bytes.
static inline void transpose_16x16(char *to, int64_t to_row, const char *from, int64_t from_column) {
    u8x16 v[16];
    for (int c = 0; c < 16; c++) memcpy(&v[c], from + c * from_column, sizeof v[c]);
    transpose_sixteen(v);
    for (int r = 0; r < 16; r++) memcpy(to + r * to_row, &v[r], sizeof v[r]);
}

/// Few columns of bytes, as the colours of an image are, that have no gaps between rows: sixteen rows at a time.
static void interleave_bytes(char *to, const char *from, int64_t from_column, int64_t rows, int64_t columns) {
    int64_t r = 0;
    for (; r + 16 <= rows; r += 16, to += 16 * columns) {
        u8x16 v[4] = {{0}, {0}, {0}, {0}};
        for (int64_t c = 0; c < columns; c++) memcpy(&v[c], from + c * from_column + r, sizeof v[c]);
        const u8x16 even[2] = {interleave_first(v[0], v[2]), interleave_second(v[0], v[2])};
        const u8x16 odd[2] = {interleave_first(v[1], v[3]), interleave_second(v[1], v[3])};
        uint32_t of_row[16];
        for (int half = 0; half < 2; half++) {
            const u8x16 first = interleave_first(even[half], odd[half]), second = interleave_second(even[half], odd[half]);
            memcpy(of_row + 8 * half, &first, sizeof first);
            memcpy(of_row + 8 * half + 4, &second, sizeof second);
        }
        for (int i = 0; i < 15; i++) memcpy(to + i * columns, of_row + i, 4);  // the next row overwrites what is too much
        memcpy(to + 15 * columns, of_row + 15, (size_t)columns);
    }
    for (int64_t c = 0; c < columns; c++)
        for (int64_t i = r; i < rows; i++) to[(i - r) * columns + c] = from[c * from_column + i];
}

/// By squares of `side` elements, then one by one what is left of the columns and the rows.
#define TRANSPOSE_SQUARES(T, side, square)                                                                    \
    do {                                                                                                      \
        const int64_t item_ = sizeof(T), whole_rows = rows / side * side, whole_columns = columns / side * side; \
        for (int64_t c = 0; c < whole_columns; c += side)                                                     \
            for (int64_t r = 0; r < whole_rows; r += side)                                                    \
                square(to + r * to_row + c * item_, to_row, from + c * from_column + r * item_, from_column); \
        for (int64_t c = 0; c < columns; c++)                                                                 \
            for (int64_t r = c < whole_columns ? whole_rows : 0; r < rows; r++)                               \
                memcpy(to + r * to_row + c * item_, from + c * from_column + r * item_, sizeof(T));           \
    } while (0)

static void transpose_bytes(char *to, int64_t to_row, const char *from, int64_t from_column, int64_t rows, int64_t columns) {
    if (columns <= 4 && columns == to_row) {
        interleave_bytes(to, from, from_column, rows, columns);
        return;
    }
    TRANSPOSE_SQUARES(uint8_t, 16, transpose_16x16);
}

static void transpose_tile(char *to, int64_t to_row, const char *from, int64_t from_column, size_t item, int64_t rows, int64_t columns) {
    switch (item) {
    case 1: transpose_bytes(to, to_row, from, from_column, rows, columns); return;
    case 2: TRANSPOSE_SQUARES(uint16_t, 8, transpose_8x8); return;
    case 4: TRANSPOSE_SQUARES(uint32_t, 4, transpose_4x4); return;
    case 8: TRANSPOSE_SQUARES(uint64_t, 2, transpose_2x2); return;
    default: TRANSPOSE_TILE(u128); return;
    }
}

/// Lines this far apart meet in one or two sets of a first-level cache.
static inline bool collides(int64_t stride) { return stride % 2048 == 0; }

/// The source's rows are adjacent elements: a transposition.
static void transpose_plane(const plane *p, char *to, const char *from) {
    const int64_t item = (int64_t)p->item, side = LINE / item;
    // A tile of its own between the two sides lets each line be read once and written once, whole.
    const bool goes_through_tile = collides(p->to_row) || collides(p->from_column);
    char tile[LINE * LINE] __attribute__((aligned(LINE)));
    for (int64_t r = 0; r < p->rows; r += side) {
        int64_t rows = p->rows - r < side ? p->rows - r : side;
        for (int64_t c = 0; c < p->columns; c += side) {
            int64_t columns = p->columns - c < side ? p->columns - c : side;
            const char *f = from + c * p->from_column + r * item;
            char *t = to + r * p->to_row + c * item;
            if (goes_through_tile && columns == side) {
                transpose_tile(tile, LINE, f, p->from_column, p->item, rows, columns);
                for (int64_t k = 0; k < rows; k++) memcpy(t + k * p->to_row, tile + k * LINE, LINE);
            } else {
                transpose_tile(t, p->to_row, f, p->from_column, p->item, rows, columns);
            }
        }
    }
}

typedef struct {
    char *to;
    const char *from;
    qrt_arrangement outer;
    plane plane;
    plane_fn copy;
    int64_t row_block, num_blocks;   ///< a plane is cut into blocks of rows
    int64_t num_units, units_per_task;
} job;

static void run_units(void *context, int64_t task) {
    const job *j = context;
    int64_t unit = task * j->units_per_task, end = unit + j->units_per_task;
    if (end > j->num_units) end = j->num_units;
    int64_t index[QRT_COPY_RANK], block = unit % j->num_blocks, at = unit / j->num_blocks;
    char *to = j->to;
    const char *from = j->from;
    const qrt_arrangement *o = &j->outer;
    for (int i = o->rank - 1; i >= 0; i--) {
        index[i] = at % o->dims[i];
        at /= o->dims[i];
        to += index[i] * o->to_strides[i];
        from += index[i] * o->from_strides[i];
    }
    plane p = j->plane;
    for (; unit < end; unit++) {
        int64_t row = block * j->row_block;
        p.rows = j->plane.rows - row < j->row_block ? j->plane.rows - row : j->row_block;
        j->copy(&p, to + row * p.to_row, from + row * p.from_row);
        if (++block < j->num_blocks) continue;
        block = 0;
        for (int i = o->rank - 1; i >= 0; i--) {
            to += o->to_strides[i];
            from += o->from_strides[i];
            if (++index[i] < o->dims[i]) break;
            to -= o->dims[i] * o->to_strides[i];
            from -= o->dims[i] * o->from_strides[i];
            index[i] = 0;
        }
    }
}

/// Drop dimensions of one element and join neighbours that both sides walk through evenly.
/// False when there is nothing to copy.
static bool collapse(const qrt_arrangement *a, qrt_arrangement *c) {
    c->rank = 0;
    for (int i = 0; i < a->rank; i++) {
        if (a->dims[i] == 0) return false;
        if (a->dims[i] == 1) continue;
        int last = c->rank - 1;
        if (last >= 0 && c->to_strides[last] == a->to_strides[i] * a->dims[i] &&
            c->from_strides[last] == a->from_strides[i] * a->dims[i]) {
            c->dims[last] *= a->dims[i];
        } else {
            last = c->rank++;
            c->dims[last] = a->dims[i];
        }
        c->to_strides[last] = a->to_strides[i];
        c->from_strides[last] = a->from_strides[i];
    }
    return true;
}

static void drop_dim(qrt_arrangement *a, int at) {
    a->rank--;
    for (int i = at; i < a->rank; i++) {
        a->dims[i] = a->dims[i + 1];
        a->to_strides[i] = a->to_strides[i + 1];
        a->from_strides[i] = a->from_strides[i + 1];
    }
}

void qrt_copy_strided(int num_threads, void *to, const void *from, size_t item, const qrt_arrangement *arrangement) {
    job j = {.to = to, .from = from};
    qrt_arrangement *a = &j.outer;
    if (!collapse(arrangement, a)) return;
    // A short run of adjacent elements moves as one wider element.
    if (a->rank > 1) {
        int last = a->rank - 1;
        int64_t run = a->dims[last] * (int64_t)item;
        if (a->to_strides[last] == (int64_t)item && a->from_strides[last] == (int64_t)item &&
            (run == 2 || run == 4 || run == 8 || run == 16)) {
            item = (size_t)run;
            drop_dim(a, last);
        }
    }
    plane *p = &j.plane;
    p->item = item;
    p->rows = p->columns = 1;
    p->from_column = (int64_t)item;
    p->to_row = p->from_row = 0;
    int rows_at = a->rank - 2;
    j.copy = copy_rows;
    if (a->rank > 0) {
        int last = a->rank - 1;
        if (a->to_strides[last] == (int64_t)item) {
            p->columns = a->dims[last];
            p->from_column = a->from_strides[last];
            if (p->from_column == 0) {
                j.copy = repeat_columns;
            } else if (p->from_column != (int64_t)item) {
                j.copy = copy_columns;
                for (int i = 0; i < last; i++) {
                    if (a->from_strides[i] != (int64_t)item) continue;
                    rows_at = i;
                    if (a->dims[i] >= 4) j.copy = transpose_plane;
                }
            }
            drop_dim(a, last);
        } else {
            rows_at = last;  // the target's last dimension has gaps: runs of one element
        }
    }
    if (rows_at >= 0) {
        p->rows = a->dims[rows_at];
        p->to_row = a->to_strides[rows_at];
        p->from_row = a->from_strides[rows_at];
        drop_dim(a, rows_at);
    }
    int64_t num_outer = 1;
    for (int i = 0; i < a->rank; i++) num_outer *= a->dims[i];
    j.row_block = p->rows;
    j.num_blocks = 1;
    int64_t bytes = num_outer * p->rows * p->columns * (int64_t)item;
    if (num_threads <= 1 || bytes < PARALLEL_BYTES) {
        j.num_units = j.units_per_task = num_outer;
        run_units(&j, 0);
        return;
    }
    int64_t num_tasks = 4 * (int64_t)num_threads;
    if (num_outer < num_tasks) {
        int64_t blocks = (num_tasks + num_outer - 1) / num_outer;
        j.row_block = ((p->rows + blocks - 1) / blocks + LINE - 1) / LINE * LINE;
        j.num_blocks = (p->rows + j.row_block - 1) / j.row_block;
    }
    j.num_units = num_outer * j.num_blocks;
    j.units_per_task = (j.num_units + num_tasks - 1) / num_tasks;
    qrt_parallel_for(num_threads, (j.num_units + j.units_per_task - 1) / j.units_per_task, run_units, &j);
}
