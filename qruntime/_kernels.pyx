"""The one border between Python and C: tensors, the executor loop, bindings. No arithmetic.

An `Executable` is a flat list of bound nodes over numbered slots. A slot holds a native tensor or, for
what native code does not handle (strings, sequences, exotic types), a Python object. The loop runs
native nodes without the GIL and takes it only for nodes that are Python. Each run borrows a `Frame`
(slots and free buffers), so that one executable serves many threads at once and, once warm, allocates
nothing but its outputs.
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

cimport numpy as cnp
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Optional

import numpy as np

from qruntime.errors import InputError, KernelUnavailable, RunError, SettingError, counted
from qruntime.ir.dtypes import numpy_dtype, onnx_code, type_name

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    bint PyArray_ISCARRAY_RO(cnp.ndarray)
    object PyArray_NewFromDescr(type subtype, cnp.dtype descr, int nd, cnp.npy_intp *dims, cnp.npy_intp *strides, void *data, int flags, object obj)

cdef extern from "tensor.h" nogil:
    enum: QRT_MAX_RANK
    ctypedef struct qrt_buffer:
        void *data
        size_t capacity
        size_t used
        int refcount
        int64_t room
        int64_t filled
        void *owner
        qrt_buffer *whole
        qrt_buffer *next
    ctypedef struct qrt_arena:
        qrt_buffer *whole
    ctypedef struct qrt_tensor:
        void *data
        qrt_buffer *buffer
        int64_t size
        int64_t *dims
        int32_t rank
        int32_t dtype
        int64_t room
        int32_t room_axis
    enum: QRT_LARGE
    ctypedef struct qrt_returned:
        qrt_buffer *buffers
        size_t bytes
        size_t limit
    ctypedef struct qrt_run:
        qrt_buffer *free_buffers
        qrt_buffer *graveyard
        size_t live_bytes
        size_t peak_bytes
        int num_threads
    ctypedef enum qrt_status:
        QRT_OK
        QRT_DECLINE
        QRT_NO_MEMORY
    size_t qrt_itemsize(int32_t)
    void qrt_run_begin(qrt_run *, int)
    void qrt_count(qrt_run *, size_t)
    void qrt_release(qrt_run *, qrt_tensor *)
    void qrt_strides(const qrt_tensor *, int64_t *)
    qrt_buffer *qrt_buffer_new(size_t)
    size_t qrt_arena_share(size_t)
    qrt_arena qrt_arena_new(size_t, int)
    void qrt_arena_close(qrt_arena *)
    void qrt_trim_memory()
    void qrt_buffer_retain(qrt_buffer *)
    void qrt_buffer_drop(qrt_buffer *)
    void qrt_return(qrt_returned *, qrt_buffer *)
    void qrt_take_returned(qrt_returned *, qrt_run *)
    void qrt_returned_clear(qrt_returned *)
    void qrt_run_clear(qrt_run *)

cdef extern from "nodes.h" nogil:
    ctypedef struct qrt_node:
        const int64_t *ints
        const double *floats
        void *const *packed
        int32_t num_ints
        int32_t num_floats
        int32_t num_packed
        int32_t num_inputs
        int32_t num_outputs
        uint64_t dying
        const qrt_tensor *const *widened
    ctypedef qrt_status (*qrt_node_fn)(const qrt_node *, qrt_run *, const qrt_tensor *const *, qrt_tensor *) noexcept nogil
    qrt_node_fn qrt_find_node(const char *)
    bint qrt_widens(const char *)
    qrt_status qrt_call_widened(qrt_node_fn, const qrt_node *, qrt_run *, const qrt_tensor *const *, qrt_tensor *) noexcept

cdef extern from "by_items.h" nogil:
    ctypedef struct qrt_step:
        qrt_node node
        qrt_node_fn fn
        int first_input
        int first_output
        int first_release
        int num_releases
        bint widens
        bint declined
        bint is_itemwise
        size_t weight_bytes
    ctypedef struct qrt_steps:
        const qrt_step *steps
        const int *input_refs
        const int *releases
        const char *is_constant
        int num_slots
        int num_input_refs
    ctypedef struct qrt_lanes:
        int count
    ctypedef struct qrt_interrupt:
        bint (*is_wanted)(void *) noexcept nogil
        void *context
    int qrt_run_by_items(const qrt_steps *, const int *, int, qrt_run *, qrt_tensor *, qrt_lanes *, const qrt_interrupt *)
    size_t qrt_lanes_free_bytes(const qrt_lanes *)
    void qrt_lanes_clear(qrt_lanes *)

cdef extern from "threads.h" nogil:
    int qrt_default_threads()

cdef extern from "weights.h" nogil:
    ctypedef struct qrt_weights_ops:
        const char *name
    ctypedef struct qrt_weights:
        const qrt_weights_ops *ops
        int64_t k
        int64_t n
        qrt_buffer *buffer
    void qrt_weights_free(qrt_weights *)

cdef extern from "gemm_q8.h" nogil:
    ctypedef struct qrt_gemm_q8:
        const char *name
    ctypedef struct qrt_q8_weights:
        qrt_weights base
        float *scales
        int64_t num_params
        int32_t *zero_points
        float *bias
    void qrt_q8_unpack(const qrt_q8_weights *, signed char *, int64_t, int64_t)
    size_t qrt_q8_packed_bytes(const qrt_gemm_q8 *, int64_t, int64_t, bint, bint)
    qrt_q8_weights *qrt_q8_pack(const qrt_gemm_q8 *, const signed char *, int64_t, int64_t, int64_t, int64_t,
                                const float *, const int32_t *, int64_t, const float *, qrt_arena *, int)

cdef extern from "gemm_f32.h" nogil:
    ctypedef struct qrt_gemm_f32:
        const char *name
    ctypedef struct qrt_f32_weights:
        qrt_weights base
        float *bias
    void qrt_f32_unpack(const qrt_f32_weights *, float *, int64_t, int64_t)
    size_t qrt_f32_packed_bytes(const qrt_gemm_f32 *, int64_t, int64_t, bint)
    qrt_f32_weights *qrt_f32_pack(const qrt_gemm_f32 *, const float *, int64_t, int64_t, int64_t, int64_t, const float *, qrt_arena *, int)

cdef extern from "conv_weights.h" nogil:
    ctypedef struct qrt_conv_f32:
        const char *name
    ctypedef struct qrt_conv_weights:
        qrt_weights base
    ctypedef enum qrt_conv_kind:
        QRT_CONV_BLOCKS
        QRT_CONV_COLUMNS
        QRT_CONV_DEPTHWISE
        QRT_CONV_GROUPED
        QRT_CONV_WINOGRAD
    size_t qrt_conv_packed_bytes(const qrt_conv_f32 *, qrt_conv_kind, int64_t, int32_t, const int64_t *)
    qrt_conv_weights *qrt_conv_pack(const qrt_conv_f32 *, qrt_conv_kind, int64_t, int32_t, const int64_t *, const float *, const float *, qrt_arena *, int)

cdef extern from "gemm_nbits_q8.h" nogil:
    ctypedef struct qrt_gemm_nbits_q8:
        pass

cdef extern from "gemm_clusters.h" nogil:
    ctypedef struct qrt_gemm_clusters:
        pass

cdef extern from "gemm_nbits.h" nogil:
    ctypedef struct qrt_gemm_nbits:
        const char *name

cdef extern from "outlier_pairs.h" nogil:
    ctypedef struct qrt_outlier_pairs:
        void (*values)(const float *, int64_t, float, signed char *) noexcept nogil
        void (*errors)(const float *, const float *, int64_t, const float *, int64_t, double *) noexcept nogil

cdef extern from "code_grid.h" nogil:
    ctypedef struct qrt_code_grid:
        const float *scale
        const float *divisor
        const float *zero_point
        bint is_fractional
        const int32_t *group
        int64_t groups
        float low
        float high
        int64_t num_entries
        const float *entries
        const float *middles
        const uint8_t *codes
    ctypedef struct qrt_code_grids:
        void (*round)(const qrt_code_grid *, int64_t, int64_t, const float *, uint8_t *, float *) noexcept nogil

cdef extern from "kernels.h" nogil:
    ctypedef struct qrt_kernel_table:
        const char *isa
        qrt_gemm_q8 gemm_q8
        qrt_gemm_nbits gemm_nbits
        qrt_gemm_nbits_q8 gemm_nbits_q8
        qrt_gemm_clusters gemm_clusters
        qrt_gemm_f32 gemm_f32
        qrt_conv_f32 conv_f32
        qrt_outlier_pairs outlier_pairs
        qrt_code_grids code_grid
    ctypedef struct qrt_rung:
        const char *name
        bint (*is_supported)() noexcept nogil
    const qrt_rung qrt_ladder[]
    qrt_kernel_table qrt_kernels
    bint qrt_build_table(const char *, qrt_kernel_table *)

cdef extern from *:
    """
    #include <time.h>
    static inline double qrt_seconds(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return t.tv_sec + 1e-9 * t.tv_nsec;
    }
    /* A few milliseconds coarse, and a quarter of the cost where the system has such a clock. */
    static inline int64_t qrt_milliseconds(void) {
        struct timespec t;
    #ifdef CLOCK_MONOTONIC_COARSE
        clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    #else
        clock_gettime(CLOCK_MONOTONIC, &t);
    #endif
        return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
    }
    """
    double qrt_seconds() nogil
    int64_t qrt_milliseconds() nogil


def isa() -> str:
    """Name of the instruction-set rung in force. KernelUnavailable when QRUNTIME_ISA names one that this CPU lacks."""
    if _unavailable is not None:
        raise KernelUnavailable(_unavailable)
    return qrt_kernels.isa.decode()


def available_isas() -> list:
    """Rungs this CPU and build offer, worst first."""
    names = []
    cdef const qrt_rung *rung = qrt_ladder
    while rung.name != NULL:
        if rung.is_supported():
            names.append(rung.name.decode())
        rung += 1
    return names


def set_isa(str name) -> None:
    """Build the kernel table of rung `name` and put it in force.

    For start-up and for tests: plans made before keep the packed weights of the rung they were made for.
    """
    global _unavailable
    if not qrt_build_table(name.encode(), &qrt_kernels):
        offered = ", ".join(available_isas())
        raise KernelUnavailable(f"QRUNTIME_ISA={name!r}, but this CPU offers: {offered}. Unset it or choose one of these.")
    _unavailable = None


def trim_memory() -> None:
    """Give the system what the allocator keeps of freed arrays: large ones that were freed before may be kept, too."""
    with nogil:
        qrt_trim_memory()


def default_threads() -> int:
    """Threads a run uses unless told otherwise. Raises SettingError when QRUNTIME_NUM_THREADS is no number of threads."""
    text = os.environ.get("QRUNTIME_NUM_THREADS", "").strip()
    if text and not (text.isascii() and text.isdecimal() and text.strip("0")):
        raise SettingError(f"QRUNTIME_NUM_THREADS={text!r}: needs a whole number of at least 1. Set one, or unset it.")
    return qrt_default_threads()


include "_packed.pxi"
include "_nbits.pxi"
include "_tensors.pxi"
include "_product.pxi"
include "_outlier_pairs.pxi"
include "_weight_codes.pxi"
include "_column_rounding.pxi"
include "_gram.pxi"
include "_nearest_centers.pxi"
include "_dictionaries.pxi"
include "_executor.pxi"


def call_node(str kernel, inputs, ints=(), floats=(), packed=(), int num_outputs=1, int num_threads=1):
    """Run one node function on arrays: list of outputs (None where left empty), or None when it declines.

    For what no graph holds: steps of quantization, tests and benchmarks of kernels.
    """
    cdef list arrays = [None if x is None else np.require(x, requirements="CA") for x in inputs]
    constants, slots = [], []
    for i, array in enumerate(arrays):
        slots.append(-1 if array is None else i)
        if array is not None:
            constants.append((i, array))

    declined = []

    def note(*_):
        declined.append(True)
        return (None,) * num_outputs

    n = len(arrays)
    step = Step(kernel, n, num_outputs, kernel, ints, floats, packed, slots, arguments=slots, definition=note)
    plan = Executable(n + num_outputs, constants, [], list(range(n, n + num_outputs)), [step], set(), [], num_threads)
    results = plan.run(())
    return None if declined else results


_unavailable = None
"""Why the rung that the environment asks for is not in force. Models refuse to work then; an import that fails would leave
the command line no chance to say it."""

set_isa(available_isas().pop())
try:
    set_isa(os.environ.get("QRUNTIME_ISA") or isa())
except KernelUnavailable as error:
    _unavailable = str(error)


cdef extern from "kernels.h" nogil:
    const char *const qrt_unary_names[]
    const char *const qrt_binary_names[]
    const char *const qrt_reduce_names[]

cdef extern from "nodes/enumerations.h" nogil:
    const char *const qrt_activation_names[]
    const char *const qrt_range_names[]
    const char *const qrt_auto_pad_names[]
    const char *const qrt_interpolation_names[]
    const char *const qrt_coordinates_names[]
    const char *const qrt_nearest_mode_names[]
    const char *const qrt_grid_padding_names[]
    const char *const qrt_pad_mode_names[]
    const char *const qrt_scatter_reduction_names[]
    const char *const qrt_direction_names[]
    const char *const qrt_tree_aggregate_names[]
    const char *const qrt_post_transform_names[]
    const char *const qrt_tree_output_names[]
    const char *const qrt_vector_output_names[]
    const char *const qrt_vector_kernel_names[]
    const char *const qrt_decision_names[]
    const char *const qrt_norm_names[]
    const char *const qrt_roi_mode_names[]


cdef dict _opcodes(const char *const *names):
    opcodes = {}
    while names[len(opcodes)] != NULL:
        opcodes[names[len(opcodes)].decode()] = len(opcodes)
    return opcodes


UNARY = _opcodes(qrt_unary_names)
"""Opcode by name: the first integer of node "unary"."""
BINARY = _opcodes(qrt_binary_names)
"""Opcode by name: the first integer of node "binary"."""
REDUCE = _opcodes(qrt_reduce_names)
"""Opcode by name: the first integer of node "reduce"."""

# Values by name of the enumerations in kernels/nodes/enumerations.h.
ACTIVATION = _opcodes(qrt_activation_names)
RANGE = _opcodes(qrt_range_names)
AUTO_PAD = _opcodes(qrt_auto_pad_names)
INTERPOLATION = _opcodes(qrt_interpolation_names)
COORDINATES = _opcodes(qrt_coordinates_names)
NEAREST_MODE = _opcodes(qrt_nearest_mode_names)
GRID_PADDING = _opcodes(qrt_grid_padding_names)
PAD_MODE = _opcodes(qrt_pad_mode_names)
SCATTER_REDUCTION = _opcodes(qrt_scatter_reduction_names)
DIRECTION = _opcodes(qrt_direction_names)
TREE_AGGREGATE = _opcodes(qrt_tree_aggregate_names)
POST_TRANSFORM = _opcodes(qrt_post_transform_names)
TREE_OUTPUT = _opcodes(qrt_tree_output_names)
VECTOR_OUTPUT = _opcodes(qrt_vector_output_names)
VECTOR_KERNEL = _opcodes(qrt_vector_kernel_names)
DECISION = _opcodes(qrt_decision_names)
NORM = _opcodes(qrt_norm_names)
ROI_MODE = _opcodes(qrt_roi_mode_names)
