/// Broadcasting by numpy's rules, for nodes whose outputs are computed run by run.
#ifndef QRT_BROADCAST_H
#define QRT_BROADCAST_H

#include "../nodes.h"

/// Elements of one task. Below two of these a second thread costs more than it brings.
enum { QRT_GRAIN = 16384 };

/// Broadcasting reduced to what differs: dimensions of 1 dropped, neighbours merged where every operand
/// walks them alike. Right-aligned: `first` … QRT_LAST are in use. Strides are in elements, 0 where an operand
/// is repeated; those of QRT_LAST are 0 or 1.
enum { QRT_LAST = QRT_MAX_RANK - 1 };
typedef struct {
    int first;
    int64_t dims[QRT_MAX_RANK];
    int64_t strides[3][QRT_MAX_RANK];
} qrt_iteration;

/// Shape of the result; false when the operands do not fit together.
bool qrt_broadcast_shape(const qrt_tensor *const *in, int num, int32_t *rank, int64_t *dims);

qrt_iteration qrt_plan_iteration(const qrt_tensor *const *in, int num, int32_t rank, const int64_t *dims);

bool qrt_has_shape(const qrt_tensor *t, int32_t rank, const int64_t *dims);

/// Allocate the output, over operand i in first … last of the same shape and item size when that one may be overwritten.
qrt_status qrt_allocate_over(const qrt_node *node, qrt_run *run, const qrt_tensor *const *in, int first, int last, int32_t dtype,
                             int32_t rank, const int64_t *dims, qrt_tensor *out);

typedef struct qrt_broadcast qrt_broadcast;

/// One contiguous run of the output, operands at element offsets `at`.
typedef void (*qrt_broadcast_fn)(const qrt_broadcast *call, const int64_t *at, int64_t out, int64_t n, const int *steps);

struct qrt_broadcast {
    qrt_iteration it;
    int num;
    qrt_broadcast_fn run;
    int64_t runs;        ///< runs in all: products of the outer dims times pieces of the inner one
    int64_t pieces;      ///< pieces of one inner dimension
    int64_t piece;       ///< elements of a piece
    int64_t runs_per_task;
    int repeated;        ///< operand whose short rows are laid side by side, so that many make one run; −1 where none is
    int64_t row;         ///< elements of such a row
    const void *in[3];
    void *out;
    const void *kernel;
    size_t itemsize, out_itemsize;  ///< the former 0 where operands differ
};

/// All runs of an output of `size` elements, in parallel where it pays.
void qrt_run_broadcast(qrt_broadcast *call, qrt_run *run, int64_t size);

#endif
