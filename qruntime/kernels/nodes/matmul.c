/// Products of two float tensors of which neither is packed beforehand.
#include "../nodes.h"
#include "../threads.h"

/// A block of packed panels stays within this many floats, so that it lies in the second-level cache.
enum { BLOCK_FLOATS = 64 * 1024 };

/// Fewer multiply-adds than this are not worth waking a thread for.
enum { MIN_PARALLEL_WORK = 1 << 18 };

static int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b != 0); }

/// c[i] = epilogue(a[i] · b[i]) for i in 0 … batch-1, each matrix dense, b perhaps transposed ([n, k]).
typedef struct {
    const float *a, *b;
    float *c;
    int64_t m, n, k;
    bool transpose_b;
    const qrt_f32_epilogue *epilogue;
    int64_t batch;
    int rank;                                     ///< of the batch
    int64_t dims[QRT_MAX_RANK];
    int64_t a_strides[QRT_MAX_RANK], b_strides[QRT_MAX_RANK];  ///< in floats, 0 where broadcast
    // How the work is cut: units of some rows times some columns of one matrix, dealt to slots in runs.
    int64_t rows, columns, row_blocks, column_blocks, slots;
    bool packs;
    float *scratch;
    int64_t scratch_floats;                       ///< of one slot
} product;

static void locate(const product *p, int64_t matrix, const float **a, const float **b) {
    *a = p->a;
    *b = p->b;
    for (int d = p->rank - 1; d >= 0; d--) {
        int64_t index = matrix % p->dims[d];
        matrix /= p->dims[d];
        *a += index * p->a_strides[d];
        *b += index * p->b_strides[d];
    }
}

static void multiply_unit(const product *p, int64_t unit, float *panels) {
    const qrt_gemm_f32 *kernel = &qrt_kernels.gemm_f32;
    int64_t column_block = unit % p->column_blocks, row_block = unit / p->column_blocks % p->row_blocks;
    int64_t matrix = unit / p->column_blocks / p->row_blocks, i = row_block * p->rows, j = column_block * p->columns;
    int64_t rows = min64(p->rows, p->m - i), columns = min64(p->columns, p->n - j);
    const float *a, *b;
    locate(p, matrix, &a, &b);
    a += i * p->k;
    float *c = p->c + (matrix * p->m + i) * p->n + j;
    qrt_f32_epilogue epilogue = *p->epilogue;
    if (epilogue.row_bias) epilogue.row_bias += i;
    if (epilogue.column_bias) epilogue.column_bias += j;
    if (epilogue.residual) epilogue.residual += i * epilogue.residual_stride_elems + j;
    if (!p->packs) {
        qrt_f32_gemm_strips(kernel, rows, columns, p->k, a, p->k, b + j, p->n, kernel->nr, &epilogue, c, p->n);
        return;
    }
    if (p->transpose_b)
        kernel->pack(p->k, columns, b + j * p->k, 1, p->k, panels);
    else
        kernel->pack(p->k, columns, b + j, p->n, 1, panels);
    qrt_f32_gemm(kernel, rows, columns, p->k, a, p->k, panels, &epilogue, c, p->n);
}

static void multiply_slot(void *context, int64_t slot) {
    const product *p = context;
    int64_t units = p->batch * p->row_blocks * p->column_blocks;
    float *panels = p->scratch + slot * p->scratch_floats;
    for (int64_t unit = units * slot / p->slots; unit < units * (slot + 1) / p->slots; unit++)
        multiply_unit(p, unit, panels);
}

static qrt_status multiply(product *p, qrt_run *run) {
    const qrt_gemm_f32 *kernel = &qrt_kernels.gemm_f32;
    double work = (double)p->batch * (double)p->m * (double)p->n * (double)p->k;
    int64_t threads = work < MIN_PARALLEL_WORK ? 1 : run->num_threads, wanted = threads == 1 ? 1 : 4 * threads;
    int64_t nr = kernel->nr;
    // Reading b where it lies is best when it is used by two or three tiles only, or has one strip.
    p->packs = p->transpose_b || p->m > 3 * kernel->mr;
    p->rows = p->m;
    p->columns = p->packs ? max64(1, BLOCK_FLOATS / max64(1, p->k) / nr) * nr : ceil_div(p->n, nr) * nr;
    if (p->batch < wanted) {
        int64_t parts = ceil_div(wanted, p->batch);
        p->columns = min64(p->columns, max64(1, ceil_div(ceil_div(p->n, nr), parts)) * nr);
        parts = ceil_div(parts, ceil_div(p->n, p->columns));
        p->rows = max64(min64(p->m, 4 * kernel->mr), ceil_div(p->m, parts));
    }
    p->columns = min64(p->columns, ceil_div(p->n, nr) * nr);
    p->row_blocks = ceil_div(p->m, p->rows);
    p->column_blocks = ceil_div(p->n, p->columns);
    p->slots = min64(wanted, p->batch * p->row_blocks * p->column_blocks);
    qrt_buffer *scratch = NULL;
    if (p->packs) {
        size_t bytes;
        if (__builtin_mul_overflow(p->columns, p->k, &p->scratch_floats) ||
            __builtin_mul_overflow((size_t)p->scratch_floats, (size_t)p->slots * sizeof(float), &bytes))
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

/// ints: transpose_b (the last two dims of b are [N, K]). floats: alpha.
/// Inputs: float32 a [..., M, K], b [..., K, N] as numpy.matmul takes them. Output: alpha · a · b.
static qrt_status matmul(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *a = in[0], *b = in[1];
    if (!a || !b || a->dtype != QRT_F32 || b->dtype != QRT_F32 || a->rank < 1 || b->rank < 1) return QRT_DECLINE;
    qrt_f32_epilogue epilogue = NO_EPILOGUE;
    if (node->num_floats > 0) epilogue.alpha = (float)node->floats[0];
    product p = {.a = a->data, .b = b->data, .epilogue = &epilogue, .batch = 1};
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
    qrt_status status = qrt_alloc(run, &out[0], QRT_F32, rank, dims);
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
static void transpose(const float *from, int64_t rows, int64_t columns, float *to) {
    for (int64_t i0 = 0; i0 < rows; i0 += 16)
        for (int64_t j0 = 0; j0 < columns; j0 += 16)
            for (int64_t j = j0; j < min64(j0 + 16, columns); j++)
                for (int64_t i = i0; i < min64(i0 + 16, rows); i++) to[j * rows + i] = from[i * columns + j];
}

/// ints: trans_a, trans_b. floats: alpha, beta.
/// Inputs: float32 a [M, K] or [K, M], b [K, N] or [N, K], optional c that broadcasts to [M, N].
/// Output: alpha · a · b + beta · c.
static qrt_status gemm(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, qrt_tensor *out) {
    const qrt_tensor *a = in[0], *b = in[1], *c = node->num_inputs > 2 ? in[2] : NULL;
    if (!a || !b || a->dtype != QRT_F32 || b->dtype != QRT_F32 || a->rank != 2 || b->rank != 2) return QRT_DECLINE;
    bool trans_a = node->ints[0], trans_b = node->ints[1];
    float beta = (float)node->floats[1];
    qrt_f32_epilogue epilogue = NO_EPILOGUE;
    epilogue.alpha = (float)node->floats[0];
    product p = {.a = a->data, .b = b->data, .epilogue = &epilogue, .batch = 1, .transpose_b = trans_b};
    p.m = a->dims[trans_a ? 1 : 0];
    p.k = a->dims[trans_a ? 0 : 1];
    p.n = b->dims[trans_b ? 0 : 1];
    if (b->dims[trans_b ? 1 : 0] != p.k) return QRT_DECLINE;
    int64_t c_rows = 1, c_columns = 1;
    if (c) {
        if (c->dtype != QRT_F32 || c->rank > 2) return QRT_DECLINE;
        if (c->rank == 2) c_rows = c->dims[0];
        if (c->rank >= 1) c_columns = c->dims[c->rank - 1];
        if ((c_rows != 1 && c_rows != p.m) || (c_columns != 1 && c_columns != p.n)) return QRT_DECLINE;
        if (beta == 0.0f) c = NULL;
    }
    const int64_t dims[2] = {p.m, p.n};
    qrt_status status = qrt_alloc(run, &out[0], QRT_F32, 2, dims);
    if (status != QRT_OK || out[0].size == 0) return status;
    p.c = out[0].data;

    qrt_buffer *scaled = NULL, *transposed = NULL;
    status = QRT_NO_MEMORY;
    if (trans_a && p.k > 0) {
        if (!(transposed = qrt_scratch(run, (size_t)a->size * sizeof(float)))) goto done;
        transpose(a->data, p.k, p.m, transposed->data);
        p.a = transposed->data;
    }
    if (c) {
        const float *added = c->data;
        bool is_scalar = c_rows == 1 && c_columns == 1;
        if (beta != 1.0f || is_scalar) {
            int64_t size = is_scalar ? p.n : c->size;
            if (!(scaled = qrt_scratch(run, (size_t)size * sizeof(float)))) goto done;
            float *to = scaled->data;
            for (int64_t i = 0; i < size; i++) to[i] = beta * added[is_scalar ? 0 : i];
            added = to;
        }
        if (c_rows == 1)
            epilogue.column_bias = added;
        else if (c_columns == 1)
            epilogue.row_bias = added;
        else {
            epilogue.residual = added;
            epilogue.residual_stride_elems = p.n;
        }
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
