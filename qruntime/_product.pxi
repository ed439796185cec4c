# Products of arrays by our own GEMM: for numpy definitions, on as many threads as the run that is under way may use, and for gradients.

cdef extern from *:
    """
    /// Threads of the run whose definition this thread is in; 0 outside of runs.
    static __thread int qrt_definition_threads = 0;
    """
    int qrt_definition_threads

cdef qrt_node_fn _matmul = qrt_find_node("matmul")


def matmul(cnp.ndarray a, cnp.ndarray b, bint transpose_b=False, int threads=0):
    """numpy.matmul(a, b) of two float32 or two float64 arrays of rank 1 to 8; None for what does not fit together.

    With `transpose_b` the last two dimensions of b are [N, K]. 0 `threads` are those of the run that is under way. Each element is a sum in the order of k, whatever the
    other rows, columns and matrices are.
    """
    cdef int64_t ints[1]
    cdef qrt_node node
    cdef qrt_run run
    cdef qrt_tensor tensors[3]
    cdef const qrt_tensor *inputs[2]
    cdef qrt_status status
    a, b = np.require(a, requirements="CA"), np.require(b, requirements="CA")
    if a.ndim > QRT_MAX_RANK or b.ndim > QRT_MAX_RANK:
        return None
    memset(&run, 0, sizeof(run))
    memset(tensors, 0, sizeof(tensors))
    memset(&node, 0, sizeof(node))
    _describe(&tensors[0], a, _native_code(a))
    _describe(&tensors[1], b, _native_code(b))
    inputs[0], inputs[1] = &tensors[0], &tensors[1]
    ints[0] = transpose_b
    node.ints, node.num_ints, node.num_inputs, node.num_outputs = ints, 1, 2, 1
    qrt_run_begin(&run, threads or qrt_definition_threads or qrt_default_threads())
    try:
        with nogil:
            status = _matmul(&node, &run, inputs, &tensors[2])
        if status == QRT_NO_MEMORY:
            raise MemoryError(f"no memory for the product of {shape_text(a)} and {shape_text(b)}")
        return None if status == QRT_DECLINE else _view(&tensors[2])
    finally:
        qrt_release(&run, &tensors[2])
        qrt_run_clear(&run)
