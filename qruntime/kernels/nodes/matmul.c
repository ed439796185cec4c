/// Products of two tensors of floats or doubles of which neither is packed beforehand.
#include "../nodes.h"
#include "../threads.h"

/// A block of packed panels stays within this size, so that it lies in the second-level cache.
enum { BLOCK_BYTES = 256 * 1024 };

/// Fewer multiply-adds than this are not worth waking a thread for.
enum { MIN_PARALLEL_WORK = 1 << 18 };

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

/// What follows the sums of doubles: alpha · sum + beta · added[m, n], `added` NULL for none, strides 0 where repeated.
typedef struct {
    double alpha, beta;
    const double *added;
    int64_t row_stride, column_stride;
} f64_epilogue;

/// c[i] = epilogue(a[i] · b[i]) for i in 0 … batch-1, each matrix dense, b perhaps transposed ([n, k]).
typedef struct {
    int32_t dtype;                                ///< QRT_F32 or QRT_F64, of all three
    const void *a, *b;
    void *c;
    int64_t m, n, k;
    bool transpose_b;
    const qrt_f32_epilogue *epilogue;
    const f64_epilogue *wide_epilogue;            ///< of doubles
    int64_t batch;
    int rank;                                     ///< of the batch
    int64_t dims[QRT_MAX_RANK];
    int64_t a_strides[QRT_MAX_RANK], b_strides[QRT_MAX_RANK];  ///< in elements, 0 where broadcast
    // How the work is cut: units of some rows times some columns of one matrix, dealt to slots in runs.
    int64_t rows, columns, row_blocks, column_blocks, slots;
    bool packs;
    void *scratch;
    int64_t scratch_elems;                        ///< of one slot
} product;

/// Rows i … and columns j … of one matrix, which begin at elements a, b and c.
typedef struct {
    int64_t a, b, c, i, j, rows, columns;
} unit;

static unit locate(const product *p, int64_t index) {
    int64_t column_block = index % p->column_blocks, row_block = index / p->column_blocks % p->row_blocks;
    int64_t matrix = index / p->column_blocks / p->row_blocks;
    unit u = {.i = row_block * p->rows, .j = column_block * p->columns};
    u.rows = min64(p->rows, p->m - u.i);
    u.columns = min64(p->columns, p->n - u.j);
    u.a = u.i * p->k;
    u.b = p->transpose_b ? u.j * p->k : u.j;
    u.c = (matrix * p->m + u.i) * p->n + u.j;
    for (int d = p->rank - 1; d >= 0; d--) {
        int64_t at = matrix % p->dims[d];
        matrix /= p->dims[d];
        u.a += at * p->a_strides[d];
        u.b += at * p->b_strides[d];
    }
    return u;
}

static void multiply_f32(const product *p, const unit *u, float *panels) {
    const qrt_gemm_f32 *kernel = &qrt_kernels.gemm_f32;
    const float *a = (const float *)p->a + u->a, *b = (const float *)p->b + u->b;
    float *c = (float *)p->c + u->c;
    const qrt_f32_epilogue epilogue = qrt_f32_epilogue_at(p->epilogue, u->i, u->j);
    if (!p->packs) {
        qrt_f32_gemm_strips(kernel, u->rows, u->columns, p->k, a, p->k, b, p->n, kernel->nr, &epilogue, c, p->n);
        return;
    }
    kernel->pack(p->k, u->columns, b, p->transpose_b ? 1 : p->n, p->transpose_b ? p->k : 1, panels);
    qrt_f32_gemm(kernel, u->rows, u->columns, p->k, a, p->k, panels, &epilogue, c, p->n);
}

static void finish_f64(const product *p, const unit *u, double *c) {
    const f64_epilogue *e = p->wide_epilogue;
    if (e->alpha == 1.0 && !e->added) return;
    for (int64_t i = 0; i < u->rows; i++, c += p->n)
        for (int64_t j = 0; j < u->columns; j++) {
            c[j] *= e->alpha;
            if (e->added) c[j] += e->beta * e->added[(u->i + i) * e->row_stride + (u->j + j) * e->column_stride];
        }
}

static void multiply_f64(const product *p, const unit *u, double *panels) {
    const qrt_gemm_f64 *kernel = &qrt_kernels.gemm_f64;
    const double *a = (const double *)p->a + u->a, *b = (const double *)p->b + u->b;
    double *c = (double *)p->c + u->c;
    int64_t ldb = p->n, strip_stride = kernel->nr;
    if (p->packs) {
        qrt_f64_pack(kernel, p->k, u->columns, b, p->transpose_b ? 1 : p->n, p->transpose_b ? p->k : 1, panels);
        b = panels;
        ldb = kernel->nr;
        strip_stride = p->k * kernel->nr;
    }
    qrt_f64_gemm_strips(kernel, u->rows, u->columns, p->k, a, p->k, b, ldb, strip_stride, c, p->n, false);
    finish_f64(p, u, c);
}

static void multiply_slot(void *context, int64_t slot) {
    const product *p = context;
    int64_t units = p->batch * p->row_blocks * p->column_blocks;
    char *panels = (char *)p->scratch + (size_t)(slot * p->scratch_elems) * qrt_itemsize(p->dtype);
    for (int64_t index = units * slot / p->slots; index < units * (slot + 1) / p->slots; index++) {
        unit u = locate(p, index);
        if (p->dtype == QRT_F64)
            multiply_f64(p, &u, (double *)panels);
        else
            multiply_f32(p, &u, (float *)panels);
    }
}

static qrt_status multiply(product *p, qrt_run *run) {
    bool is_double = p->dtype == QRT_F64;
    int64_t mr = is_double ? qrt_kernels.gemm_f64.mr : qrt_kernels.gemm_f32.mr;
    int64_t nr = is_double ? qrt_kernels.gemm_f64.nr : qrt_kernels.gemm_f32.nr;
    double work = (double)p->batch * (double)p->m * (double)p->n * (double)p->k;
    int64_t threads = work < MIN_PARALLEL_WORK ? 1 : run->num_threads, wanted = threads == 1 ? 1 : 4 * threads;
    // Reading b where it lies is best when it is used by two or three tiles only, or has one strip.
    p->packs = p->transpose_b || p->m > 3 * mr;
    p->rows = p->m;
    int64_t block = BLOCK_BYTES / (int64_t)qrt_itemsize(p->dtype);
    p->columns = p->packs ? max64(1, block / max64(1, p->k) / nr) * nr : ceil_div(p->n, nr) * nr;
    if (p->batch < wanted) {
        int64_t parts = ceil_div(wanted, p->batch);
        p->columns = min64(p->columns, max64(1, ceil_div(ceil_div(p->n, nr), parts)) * nr);
        parts = ceil_div(parts, ceil_div(p->n, p->columns));
        p->rows = max64(min64(p->m, 4 * mr), ceil_div(p->m, parts));
    }
    p->columns = min64(p->columns, ceil_div(p->n, nr) * nr);
    p->row_blocks = ceil_div(p->m, p->rows);
    p->column_blocks = ceil_div(p->n, p->columns);
    p->slots = min64(wanted, p->batch * p->row_blocks * p->column_blocks);
    qrt_buffer *scratch = NULL;
    if (p->packs) {
        size_t bytes;
        if (__builtin_mul_overflow(p->columns, p->k, &p->scratch_elems) ||
            __builtin_mul_overflow((size_t)p->scratch_elems, (size_t)p->slots * qrt_itemsize(p->dtype), &bytes))
            return QRT_NO_MEMORY;
        scratch = qrt_scratch(run, bytes);
        if (!scratch) return QRT_NO_MEMORY;
        p->scratch = scratch->data;
    }
    qrt_parallel_for((int)threads, p->slots, multiply_slot, p);
    if (scratch) qrt_scratch_free(run, scratch);
    return QRT_OK;
}

static const qrt_f32_epilogue NO_EPILOGUE = {.alpha = 1.0f};

/// True for two tensors of one type that products are made of.
static bool are_factors(const qrt_tensor *a, const qrt_tensor *b) {
    return a && b && a->dtype == b->dtype && (a->dtype == QRT_F32 || a->dtype == QRT_F64);
}

/// ints: transpose_b (the last two dims of b are [N, K]). floats: alpha.
/// Inputs: float32 or float64 a [..., M, K], b [..., K, N] as numpy.matmul takes them. Output: alpha · a · b.
static qrt_status matmul(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *a = in[0], *b = in[1];
    if (!are_factors(a, b) || a->rank < 1 || b->rank < 1) return QRT_DECLINE;
    f64_epilogue wide_epilogue = {.alpha = node->num_floats > 0 ? node->floats[0] : 1.0};
    qrt_f32_epilogue epilogue = NO_EPILOGUE;
    epilogue.alpha = (float)wide_epilogue.alpha;
    product p = {.dtype = a->dtype, .a = a->data, .b = b->data, .epilogue = &epilogue, .wide_epilogue = &wide_epilogue,
                 .batch = 1};
    p.transpose_b = node->num_ints > 0 && node->ints[0] && b->rank > 1;
    p.m = a->rank > 1 ? a->dims[a->rank - 2] : 1;
    p.k = a->dims[a->rank - 1];
    p.n = b->rank > 1 ? b->dims[b->rank - (p.transpose_b ? 2 : 1)] : 1;
    int64_t depth = b->rank > 1 ? b->dims[b->rank - (p.transpose_b ? 1 : 2)] : b->dims[0];
    if (depth != p.k) return QRT_DECLINE;
    int a_batch = a->rank > 2 ? a->rank - 2 : 0, b_batch = b->rank > 2 ? b->rank - 2 : 0;
    p.rank = a_batch > b_batch ? a_batch : b_batch;
    int64_t a_stride = a->size ? p.m * p.k : 0, b_stride = b->size ? p.k * p.n : 0;
    bool b_is_single = true;
    for (int d = p.rank - 1, i = a_batch - 1, j = b_batch - 1; d >= 0; d--, i--, j--) {
        int64_t a_dim = i >= 0 ? a->dims[i] : 1, b_dim = j >= 0 ? b->dims[j] : 1;
        if (a_dim != b_dim && a_dim != 1 && b_dim != 1) return QRT_DECLINE;
        p.dims[d] = a_dim == 1 ? b_dim : a_dim;
        p.a_strides[d] = a_dim == 1 ? 0 : a_stride;
        p.b_strides[d] = b_dim == 1 ? 0 : b_stride;
        b_is_single &= b_dim == 1;
        a_stride *= a_dim;
        b_stride *= b_dim;
    }
    int64_t dims[QRT_MAX_RANK];
    int rank = 0;
    for (; rank < p.rank; rank++) dims[rank] = p.dims[rank];
    if (!qrt_num_elements(p.rank, dims, &p.batch)) return QRT_DECLINE;
    if (a->rank > 1) dims[rank++] = p.m;
    if (b->rank > 1) dims[rank++] = p.n;
    qrt_status status = qrt_alloc(run, &out[0], a->dtype, rank, dims);
    if (status != QRT_OK || out[0].size == 0) return status;
    p.c = out[0].data;
    if (b_is_single) {  // one tall matrix against one b
        p.m *= p.batch;
        p.batch = 1;
        p.rank = 0;
    }
    return multiply(&p, run);
}

/// to[j, i] = from[i, j], in squares that fit the cache.
#define TRANSPOSE(name, type)                                                                                     \
    static void name(const type *from, int64_t rows, int64_t columns, type *to) {                                 \
        for (int64_t i0 = 0; i0 < rows; i0 += 16)                                                                 \
            for (int64_t j0 = 0; j0 < columns; j0 += 16)                                                          \
                for (int64_t j = j0; j < min64(j0 + 16, columns); j++)                                            \
                    for (int64_t i = i0; i < min64(i0 + 16, rows); i++) to[j * rows + i] = from[i * columns + j]; \
    }
TRANSPOSE(transpose_f32, float)
TRANSPOSE(transpose_f64, double)

/// beta · c as the epilogue of floats takes it; `scaled` receives the buffer of a copy. False when memory is short.
static bool add_scaled(const qrt_tensor *c, int64_t rows, int64_t columns, float beta, int64_t n, qrt_run *run,
                       qrt_f32_epilogue *epilogue, qrt_buffer **scaled) {
    const float *added = c->data;
    bool is_scalar = rows == 1 && columns == 1;
    if (beta != 1.0f || is_scalar) {
        int64_t size = is_scalar ? n : c->size;
        if (!(*scaled = qrt_scratch(run, (size_t)size * sizeof(float)))) return false;
        float *to = (*scaled)->data;
        for (int64_t i = 0; i < size; i++) to[i] = beta * added[is_scalar ? 0 : i];
        added = to;
    }
    if (rows == 1)
        epilogue->column_bias = added;
    else if (columns == 1)
        epilogue->row_bias = added;
    else {
        epilogue->residual = added;
        epilogue->residual_stride_elems = n;
    }
    return true;
}

/// ints: trans_a, trans_b. floats: alpha, beta.
/// Inputs of one type, float32 or float64: a [M, K] or [K, M], b [K, N] or [N, K], optional c that broadcasts to [M, N].
/// Output: alpha · a · b + beta · c.
static qrt_status gemm(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *a = in[0], *b = in[1], *c = node->num_inputs > 2 ? in[2] : NULL;
    if (!are_factors(a, b) || a->rank != 2 || b->rank != 2) return QRT_DECLINE;
    bool trans_a = node->ints[0], trans_b = node->ints[1];
    f64_epilogue wide_epilogue = {.alpha = node->floats[0], .beta = node->floats[1]};
    qrt_f32_epilogue epilogue = NO_EPILOGUE;
    epilogue.alpha = (float)node->floats[0];
    product p = {.dtype = a->dtype, .a = a->data, .b = b->data, .epilogue = &epilogue, .wide_epilogue = &wide_epilogue,
                 .batch = 1, .transpose_b = trans_b};
    p.m = a->dims[trans_a ? 1 : 0];
    p.k = a->dims[trans_a ? 0 : 1];
    p.n = b->dims[trans_b ? 0 : 1];
    if (b->dims[trans_b ? 1 : 0] != p.k) return QRT_DECLINE;
    int64_t c_rows = 1, c_columns = 1;
    if (c) {
        if (c->dtype != a->dtype || c->rank > 2) return QRT_DECLINE;
        if (c->rank == 2) c_rows = c->dims[0];
        if (c->rank >= 1) c_columns = c->dims[c->rank - 1];
        if ((c_rows != 1 && c_rows != p.m) || (c_columns != 1 && c_columns != p.n)) return QRT_DECLINE;
        if (node->floats[1] == 0.0) c = NULL;
    }
    const int64_t dims[2] = {p.m, p.n};
    qrt_status status = qrt_alloc(run, &out[0], a->dtype, 2, dims);
    if (status != QRT_OK || out[0].size == 0) return status;
    p.c = out[0].data;

    qrt_buffer *scaled = NULL, *transposed = NULL;
    status = QRT_NO_MEMORY;
    if (trans_a && p.k > 0) {
        if (!(transposed = qrt_scratch(run, (size_t)a->size * qrt_itemsize(a->dtype)))) goto done;
        if (a->dtype == QRT_F64)
            transpose_f64(a->data, p.k, p.m, transposed->data);
        else
            transpose_f32(a->data, p.k, p.m, transposed->data);
        p.a = transposed->data;
    }
    if (c && c->dtype == QRT_F64) {
        wide_epilogue.added = c->data;
        wide_epilogue.row_stride = c_rows == 1 ? 0 : c_columns;
        wide_epilogue.column_stride = c_columns == 1 ? 0 : 1;
    } else if (c && !add_scaled(c, c_rows, c_columns, (float)node->floats[1], p.n, run, &epilogue, &scaled)) {
        goto done;
    }
    status = multiply(&p, run);
done:
    if (scaled) qrt_scratch_free(run, scaled);
    if (transposed) qrt_scratch_free(run, transposed);
    return status;
}

const qrt_node_entry qrt_matmul_nodes[] = {
    {"matmul", matmul},
    {"gemm", gemm},
    {NULL, NULL},
};
