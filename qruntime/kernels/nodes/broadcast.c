#include "broadcast.h"

#include <string.h>

#include "../threads.h"

bool qrt_broadcast_shape(const qrt_tensor *const *in, int num, int32_t *rank, int64_t *dims) {
    *rank = 0;
    for (int k = 0; k < num; k++)
        if (in[k]->rank > *rank) *rank = in[k]->rank;
    for (int i = 0; i < *rank; i++) dims[i] = 1;
    for (int k = 0; k < num; k++)
        for (int i = 0; i < in[k]->rank; i++) {
            int64_t d = in[k]->dims[i], *to = &dims[*rank - in[k]->rank + i];
            if (d == 1) continue;
            if (*to != 1 && *to != d) return false;
            *to = d;
        }
    return true;
}

qrt_iteration qrt_plan_iteration(const qrt_tensor *const *in, int num, int32_t rank, const int64_t *dims) {
    qrt_iteration it = {.first = QRT_MAX_RANK};
    int64_t next[3] = {1, 1, 1};
    for (int i = rank - 1; i >= 0; i--) {
        if (dims[i] == 1) continue;
        int64_t stride[3];
        bool merge = it.first <= QRT_LAST;
        for (int k = 0; k < num; k++) {
            int at = i - (rank - in[k]->rank);
            bool repeated = at < 0 || in[k]->dims[at] == 1;
            stride[k] = repeated ? 0 : next[k];
            if (!repeated) next[k] *= in[k]->dims[at];
            if (merge) merge = stride[k] == it.strides[k][it.first] * it.dims[it.first];
        }
        if (merge) {
            it.dims[it.first] *= dims[i];
            continue;
        }
        it.dims[--it.first] = dims[i];
        for (int k = 0; k < num; k++) it.strides[k][it.first] = stride[k];
    }
    if (it.first > QRT_LAST) {
        it.dims[--it.first] = 1;
        for (int k = 0; k < num; k++) it.strides[k][QRT_LAST] = 1;
    }
    return it;
}

/// Rows so short are copied side by side, so many of them at a time.
enum { SHORT_ROW = 64, COPY_BYTES = 4096 };

/// An operand whose rows are repeated along the dimension before the last, as one number for each channel of a block is, while the
/// others go on from row to row. −1 when there is none such.
static int find_repeated(const qrt_broadcast *call) {
    const qrt_iteration *it = &call->it;
    const int64_t n = it->dims[QRT_LAST];
    int found = -1;
    if (it->first == QRT_LAST || n > SHORT_ROW || call->itemsize == 0) return -1;
    for (int k = 0; k < call->num; k++) {
        const int64_t step = it->strides[k][QRT_LAST], row = it->strides[k][QRT_LAST - 1];
        if (step == 1 && row == 0 && found < 0) found = k;
        else if (row != step * n) return -1;
    }
    return found;
}

/// Makes one dimension of the last two.
static void join_rows(qrt_iteration *it) {
    it->dims[QRT_LAST] *= it->dims[QRT_LAST - 1];
    for (int i = QRT_LAST - 1; i > it->first; i--) {
        it->dims[i] = it->dims[i - 1];
        for (int k = 0; k < 3; k++) it->strides[k][i] = it->strides[k][i - 1];
    }
    it->first++;
}

static void copy_row(const qrt_broadcast *call, int64_t at, char *to) {
    const size_t bytes = (size_t)call->row * call->itemsize;
    for (int64_t i = 0; i < call->piece; i += call->row, to += bytes)
        memcpy(to, (const char *)call->in[call->repeated] + (size_t)at * call->itemsize, bytes);
}

static void run_task(void *context, int64_t task) {
    const qrt_broadcast *call = context;
    const qrt_iteration *it = &call->it;
    const int repeated = call->repeated;
    _Alignas(64) char copy[COPY_BYTES];
    qrt_broadcast on_copy;
    if (repeated >= 0) {
        on_copy = *call;
        on_copy.in[repeated] = copy;
    }
    int64_t first = task * call->runs_per_task, last = first + call->runs_per_task, copied = -1;
    if (last > call->runs) last = call->runs;
    int64_t row = first / call->pieces, piece = first % call->pieces;
    int64_t index[QRT_MAX_RANK], base[3] = {0, 0, 0};
    for (int64_t rest = row, i = QRT_LAST - 1; i >= it->first; i--) {
        index[i] = rest % it->dims[i];
        rest /= it->dims[i];
        for (int k = 0; k < call->num; k++) base[k] += index[i] * it->strides[k][i];
    }
    int steps[3];
    for (int k = 0; k < call->num; k++) steps[k] = (int)it->strides[k][QRT_LAST];
    for (int64_t r = first; r < last; r++) {
        int64_t start = piece * call->piece, left = it->dims[QRT_LAST] - start, at[3];
        for (int k = 0; k < call->num; k++) at[k] = base[k] + start * steps[k];
        if (repeated >= 0) {
            if (base[repeated] != copied) copy_row(call, base[repeated], copy);
            copied = base[repeated];
            at[repeated] = 0;
        }
        call->run(repeated < 0 ? call : &on_copy, at, row * it->dims[QRT_LAST] + start, left < call->piece ? left : call->piece, steps);
        if (++piece < call->pieces) continue;
        piece = 0;
        row++;
        for (int i = QRT_LAST - 1; i >= it->first; i--) {
            for (int k = 0; k < call->num; k++) base[k] += it->strides[k][i];
            if (++index[i] < it->dims[i]) break;
            for (int k = 0; k < call->num; k++) base[k] -= it->strides[k][i] * it->dims[i];
            index[i] = 0;
        }
    }
}

void qrt_run_broadcast(qrt_broadcast *call, qrt_run *run, int64_t size) {
    if (size == 0) return;
    call->repeated = find_repeated(call);
    call->row = call->it.dims[QRT_LAST];
    if (call->repeated >= 0) join_rows(&call->it);
    const int64_t inner = call->it.dims[QRT_LAST], most = call->repeated < 0 ? QRT_GRAIN : COPY_BYTES / (int64_t)call->itemsize / call->row * call->row;
    call->piece = inner < most ? inner : most;
    call->pieces = (inner + call->piece - 1) / call->piece;
    call->runs = size / inner * call->pieces;
    call->runs_per_task = (QRT_GRAIN + call->piece - 1) / call->piece;
    int64_t tasks = (call->runs + call->runs_per_task - 1) / call->runs_per_task;
    qrt_parallel_for(run->num_threads, tasks, run_task, call);
}

bool qrt_has_shape(const qrt_tensor *t, int32_t rank, const int64_t *dims) {
    return t->rank == rank && (rank == 0 || !memcmp(t->dims, dims, (size_t)rank * sizeof *dims));
}

qrt_status qrt_allocate_over(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, int first, int last,
                                int32_t dtype, int32_t rank, const int64_t *dims, qrt_tensor *out) {
    for (int i = first; i <= last; i++) {
        bool same = qrt_itemsize(in[i]->dtype) == qrt_itemsize(dtype) && qrt_has_shape(in[i], rank, dims);
        if (same && qrt_may_overwrite(node, in, i)) {
            qrt_alias(out, in[i], rank, dims);
            out->dtype = dtype;
            return QRT_OK;
        }
    }
    return qrt_alloc(run, out, dtype, rank, dims);
}
