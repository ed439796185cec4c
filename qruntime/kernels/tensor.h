/// Tensors, buffers and the state of one run.
///
/// A tensor is dense and in C order, unless it has room (below). Its bytes belong to a reference-counted buffer, or, when
/// `buffer` is NULL, to somebody who outlives the run (the caller's inputs, constants).
///
/// Buffers that die during a run go back to a free list of the same run state and are handed out
/// again, so that a model in steady state allocates nothing. Buffers that are free are let go when all of
/// them together exceed twice what recent runs needed at once. Nothing is shared between two runs that
/// are under way at the same time, but for what the next paragraph says.
///
/// A cache grows along one axis, and its buffer may have room for more than it holds: then the tensor lies as if that
/// dimension were `room`. What lies behind it belongs to nobody until somebody claims it (qrt_claim_room): so the cache of a
/// later run is the same buffer with more of it in use, and who holds the cache of an earlier run sees no change. Only nodes
/// that the plan knows to read such tensors get them; all others take what is dense.
#ifndef QRT_TENSOR_H
#define QRT_TENSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { QRT_MAX_RANK = 8, QRT_ALIGNMENT = 64 };

/// Same codes as ONNX TensorProto.DataType, so no table is needed at the border.
typedef enum {
    QRT_F32 = 1, QRT_U8 = 2, QRT_I8 = 3, QRT_U16 = 4, QRT_I16 = 5, QRT_I32 = 6, QRT_I64 = 7,
    QRT_BOOL = 9, QRT_F16 = 10, QRT_F64 = 11, QRT_U32 = 12, QRT_U64 = 13, QRT_BF16 = 16
} qrt_dtype;

typedef enum {
    QRT_OK = 0,
    QRT_DECLINE = 1,   ///< not for this kernel: the numpy definition takes over (and reports errors)
    QRT_NO_MEMORY = 2
} qrt_status;

typedef struct qrt_buffer {
    void *data;             ///< aligned to QRT_ALIGNMENT unless `owner` is set
    size_t capacity;        ///< bytes
    size_t used;            ///< of them, by the tensor or the scratch of a run
    int refcount;           ///< atomic
    int64_t room;           ///< 0, or the size of the axis along which a cache in it may grow
    int64_t filled;         ///< of that, what is in use by one tensor or another; atomic
    void *owner;            ///< PyObject that holds the bytes, or NULL when we allocated them
    struct qrt_buffer *whole; ///< buffer that `data` is a part of and that is held, or NULL
    struct qrt_buffer *next; ///< free list
} qrt_buffer;

/// Buffers that are made together and lie one after the other in one allocation, freed with the last of them.
typedef struct {
    qrt_buffer *whole;
    size_t used;
} qrt_arena;

typedef struct {
    void *data;
    qrt_buffer *buffer;
    int64_t size;           ///< number of elements, the product of dims
    int64_t dims[QRT_MAX_RANK];
    int32_t rank;
    int32_t dtype;          ///< qrt_dtype; 0 = the slot is empty or holds a Python object
    int64_t room;           ///< 0: dense; else strides are those of a dense tensor whose dims[room_axis] is this
    int32_t room_axis;
} qrt_tensor;

/// Large outputs that their readers have dropped, for the next run: malloc would hand the pages back and fault them in
/// again. Threads may return buffers and take them at the same time. Starts as zeros.
typedef struct {
    qrt_buffer *buffers;
    size_t bytes;           ///< in `buffers`
    size_t limit;           ///< what is returned beyond so many bytes is freed
} qrt_returned;

/// State of one run: free buffers and what the kernels may use. Owned by one thread at a time.
typedef struct qrt_run {
    qrt_buffer *free_buffers;
    qrt_buffer *graveyard;  ///< dead buffers owned by Python objects, to be dropped with the GIL held
    size_t live_bytes;      ///< what tensors and scratch use at this moment
    size_t wasted_bytes;    ///< what their buffers have beyond that
    size_t peak_bytes;      ///< the most in use in this run
    size_t recent_peak;     ///< the most in use in recent runs
    int num_threads;        ///< at most this many, the caller's included
} qrt_run;

/// To be called before the first node of every run.
void qrt_run_begin(qrt_run *run, int num_threads);
/// `bytes` more are in use; `qrt_release` and `qrt_scratch_free` take them off again.
void qrt_count(qrt_run *run, size_t bytes);

/// Bytes of one element, 0 for a type that native code does not handle.
size_t qrt_itemsize(int32_t dtype);

/// Give `out` a dtype, a shape and uninitialised memory. Fails on overflow or when memory is short.
qrt_status qrt_alloc(qrt_run *run, qrt_tensor *out, int32_t dtype, int32_t rank, const int64_t *dims);

/// As qrt_alloc, with room for `room` ≥ dims[axis] along an axis; what is there counts as in use.
qrt_status qrt_alloc_room(qrt_run *run, qrt_tensor *out, int32_t dtype, int32_t rank, const int64_t *dims, int32_t axis, int64_t room);

/// Take the room behind the first `from` of `t`'s buffer up to `to`. False when there is not so much, or when somebody has
/// taken what comes after `from` already.
bool qrt_claim_room(const qrt_tensor *t, int64_t from, int64_t to);

/// Strides in elements.
void qrt_strides(const qrt_tensor *t, int64_t *strides);

/// Make `out` a second view of `in`, which is dense, with another shape of the same size (no copy).
void qrt_alias(qrt_tensor *out, const qrt_tensor *in, int32_t rank, const int64_t *dims);

/// Let go of a tensor: its buffer returns to the run's free list when nobody else holds it.
void qrt_release(qrt_run *run, qrt_tensor *t);

/// Working memory within one node call: aligned, uninitialised; give it back with `qrt_scratch_free`.
qrt_buffer *qrt_scratch(qrt_run *run, size_t bytes);
void qrt_scratch_free(qrt_run *run, qrt_buffer *buffer);

/// A buffer that is not of any run (graph outputs, packed weights). NULL when memory is short.
qrt_buffer *qrt_buffer_new(size_t bytes);

/// What a buffer of `bytes` takes of an arena.
size_t qrt_arena_share(size_t bytes);
/// Room for `bytes`, the sum of shares; on huge pages where it fills them, which `num_threads` threads make ready.
/// Without memory the arena is empty.
qrt_arena qrt_arena_new(size_t bytes, int num_threads);
/// The next part of the arena, or a buffer of its own when `arena` is NULL or has no room. NULL when memory is short.
qrt_buffer *qrt_arena_take(qrt_arena *arena, size_t bytes);
/// No more is taken; the buffers stay.
void qrt_arena_close(qrt_arena *arena);

/// Give the system what malloc keeps of freed memory, where malloc can be told.
void qrt_trim_memory(void);
void qrt_buffer_retain(qrt_buffer *buffer);
/// Drop one reference; frees the bytes at the last one. Not for buffers with an owner.
void qrt_buffer_drop(qrt_buffer *buffer);

/// Outputs of so many bytes are worth returning.
enum { QRT_LARGE = 1 << 20 };
/// As qrt_buffer_drop, but the bytes go to `returned`.
void qrt_return(qrt_returned *returned, qrt_buffer *buffer);
/// Everything in `returned` becomes free buffers of the run.
void qrt_take_returned(qrt_returned *returned, qrt_run *run);
void qrt_returned_clear(qrt_returned *returned);

/// Free everything a run state holds on its free list.
void qrt_run_clear(qrt_run *run);

/// Overflow-checked product of dims; false when it overflows or a dim is negative.
bool qrt_num_elements(int32_t rank, const int64_t *dims, int64_t *size);

#endif
