# The executor: a flat list of bound nodes over numbered slots.

def widens(str kernel not None) -> bool:
    """Whether the kernel of that name stands for its operator in narrower floats too."""
    return qrt_widens(kernel.encode())


class Step(NamedTuple):
    """One node of an executable: a kernel, a definition, or a kernel with a definition for what it declines.

    Slots are numbers; −1 is an absent input. Outputs lie in `num_outputs` slots from `first_output` on.
    """

    label: str
    first_output: int
    num_outputs: int = 1
    kernel: Optional[str] = None              # name of a node function
    ints: Sequence[int] = ()                  # its parameters
    floats: Sequence[float] = ()
    packed: Sequence[Optional[Packed]] = ()
    inputs: Sequence[int] = ()                # slots that it reads
    dying: int = 0                            # bit i: nobody reads input i after it
    arguments: Sequence[int] = ()             # slots that the definition reads
    definition: Optional[Callable[..., Any]] = None
    released: Sequence[int] = ()              # slots that are emptied afterwards


cdef bint _is_interrupted(void *frame) noexcept with gil:
    """Whether a signal ends the run of a Frame, which then holds the exception."""
    try:
        PyErr_CheckSignals()
    except BaseException as error:
        (<Frame>frame).interrupt = error
        return True
    return False


@cython.final
@cython.no_gc_clear
cdef class Frame:
    """Slots and free buffers of one run at a time."""

    cdef qrt_tensor *slots
    cdef const qrt_tensor **inputs
    cdef int num_slots
    cdef bint completed  # whether its last run was
    cdef qrt_run run
    cdef qrt_lanes lanes
    cdef list objects
    cdef object interrupt  # what ended the run

    def __cinit__(self, Executable plan):
        cdef int i, slot
        self.num_slots = plan.num_slots
        self.slots = <qrt_tensor *>calloc(max(1, plan.num_slots), sizeof(qrt_tensor))
        self.inputs = <const qrt_tensor **>calloc(max(1, plan.num_input_refs), sizeof(qrt_tensor *))
        if self.slots == NULL or self.inputs == NULL:
            raise MemoryError
        memset(&self.run, 0, sizeof(qrt_run))
        memset(&self.lanes, 0, sizeof(qrt_lanes))
        self.objects = [None] * plan.num_slots
        for slot, array in plan.native_constants:
            _describe(&self.slots[slot], array, _native_code(array))
        for slot, value in plan.native_constants + plan.python_constants:
            self.objects[slot] = value
        for i in range(plan.num_input_refs):
            if plan.input_refs[i] >= 0:
                self.inputs[i] = &self.slots[plan.input_refs[i]]

    def __dealloc__(self):
        cdef int i
        if self.slots != NULL:
            for i in range(self.num_slots):
                qrt_release(&self.run, &self.slots[i])
            _bury(&self.run)
            qrt_run_clear(&self.run)
        qrt_lanes_clear(&self.lanes)
        free(self.slots)
        free(self.inputs)


@cython.final
cdef class Executable:
    """A plan bound to slots, ready to run.

    `steps` are `Step`. `memoised` are the step numbers whose results depend on
    the input shapes only, `boundary` the slots they fill for the others. The kernels of `unwidened` steps
    do not stand for narrower floats; of those that do, `widened` gives constants in float32: {(step, input of the kernel): array}.
    `caches` are the inputs that may come with room, {input: axis along which it grows}: all steps that read them, and what
    is made of them in their buffers, take tensors that have room. `itemwise` are the steps in which items of a batch, the first
    dimension of all but constants, do not see each other.
    """

    cdef int num_slots, num_steps, num_input_refs, num_inputs, num_outputs
    cdef qrt_step *steps
    cdef qrt_steps view          # the same for C
    cdef char *is_constant       # by slot
    cdef readonly int by_items   # steps that the run which ended last took item by item
    cdef int64_t *ints
    cdef double *floats
    cdef void **packed
    cdef int *input_refs
    cdef qrt_tensor *wide        # constants in float32, and for each entry of input_refs NULL or one of them
    cdef const qrt_tensor **wide_refs
    cdef int *releases
    cdef int *order_all
    cdef int *order_rest
    cdef int num_rest
    cdef char *is_memoised       # by step
    cdef int *output_slots
    cdef int *input_slots
    cdef int *cache_axes         # by input; −1 for what is no cache
    cdef readonly list native_constants, python_constants
    cdef list labels, definitions, definition_inputs, keepalive
    cdef list boundary
    cdef char *is_boundary  # by slot
    cdef set constant_slots
    cdef dict memory
    cdef size_t memory_bytes
    cdef list frames
    cdef Returned returned
    cdef public int num_threads
    cdef tuple input_names, output_names
    cdef int *input_codes
    cdef list input_shapes
    cdef object convert

    def __cinit__(self, int num_slots, list constants, list input_slots, list output_slots, list steps, set memoised, list boundary, int num_threads, set unwidened=set(), dict widened={}, dict caches={}, set itemwise=set()):
        cdef int i, j, at_input = 0, at_release = 0
        cdef Py_ssize_t at_int = 0, at_float = 0, at_packed = 0
        cdef qrt_step *step
        self.num_slots = num_slots
        self.num_steps = len(steps)
        self.num_threads = num_threads
        self.num_inputs = len(input_slots)
        self.num_outputs = len(output_slots)
        self.native_constants, self.python_constants = [], []
        self.constant_slots = {slot for slot, _ in constants}
        read = {slot for s in steps for slot in s.inputs}.union(output_slots)
        for slot, value in constants:
            # A constant that definitions alone read may lie anywhere and in any order.
            if slot in read and isinstance(value, np.ndarray) and value.ndim <= QRT_MAX_RANK and _native_code(value):
                self.native_constants.append((slot, np.require(value, requirements="C")))
            else:
                self.python_constants.append((slot, value))
        self.num_input_refs = sum(len(s.inputs) for s in steps)
        self.steps = <qrt_step *>calloc(max(1, self.num_steps), sizeof(qrt_step))
        self.ints = <int64_t *>calloc(max(1, sum([len(s.ints) for s in steps])), sizeof(int64_t))
        self.floats = <double *>calloc(max(1, sum([len(s.floats) for s in steps])), sizeof(double))
        self.packed = <void **>calloc(max(1, sum([len(s.packed) for s in steps])), sizeof(void *))
        self.input_refs = <int *>calloc(max(1, self.num_input_refs), sizeof(int))
        self.wide = <qrt_tensor *>calloc(max(1, len(widened)), sizeof(qrt_tensor))
        self.wide_refs = <const qrt_tensor **>calloc(max(1, self.num_input_refs), sizeof(qrt_tensor *))
        self.releases = <int *>calloc(max(1, sum(len(s.released) for s in steps)), sizeof(int))
        self.order_all = <int *>calloc(max(1, self.num_steps), sizeof(int))
        self.order_rest = <int *>calloc(max(1, self.num_steps), sizeof(int))
        self.output_slots = <int *>calloc(max(1, self.num_outputs), sizeof(int))
        self.input_slots = <int *>calloc(max(1, self.num_inputs), sizeof(int))
        self.cache_axes = <int *>calloc(max(1, self.num_inputs), sizeof(int))
        self.is_boundary = <char *>calloc(max(1, num_slots), 1)
        self.is_constant = <char *>calloc(max(1, num_slots), 1)
        self.is_memoised = <char *>calloc(max(1, self.num_steps), 1)
        if (self.wide == NULL or self.wide_refs == NULL or self.steps == NULL or self.ints == NULL or self.floats == NULL or self.packed == NULL or self.input_refs == NULL or self.releases == NULL or self.order_all == NULL
                or self.order_rest == NULL or self.output_slots == NULL or self.input_slots == NULL or self.cache_axes == NULL or self.is_boundary == NULL or self.is_constant == NULL or self.is_memoised == NULL):
            raise MemoryError
        self.labels, self.definitions, self.definition_inputs, self.keepalive = [], [], [], []
        self.frames = []
        self.returned = Returned()
        self.memory = {}
        self.memory_bytes = 0
        self.boundary = list(boundary)
        for i in self.boundary:
            self.is_boundary[i] = 1
        for i in self.constant_slots:
            self.is_constant[i] = 1
        _pack_together([weights for s in steps for weights in s.packed], num_threads)
        for i, slot in enumerate(input_slots):
            self.input_slots[i] = slot
            self.cache_axes[i] = caches.get(i, -1)
        for i, slot in enumerate(output_slots):
            self.output_slots[i] = slot
        for i, s in enumerate(steps):
            step = &self.steps[i]
            self.labels.append(s.label)
            self.definitions.append(s.definition)
            self.definition_inputs.append(s.arguments)
            if s.kernel is not None:
                step.fn = qrt_find_node(s.kernel.encode())
                if step.fn == NULL:
                    raise RuntimeError(f"{s.label}: no kernel is called {s.kernel!r}")
                step.widens = i not in unwidened and qrt_widens(s.kernel.encode())
            self.keepalive.append(s.packed)
            step.node.ints = self.ints + at_int
            step.node.floats = self.floats + at_float
            step.node.packed = self.packed + at_packed
            for number in s.ints:
                self.ints[at_int] = number
                at_int += 1
            for number in s.floats:
                self.floats[at_float] = number
                at_float += 1
            step.is_itemwise = i in itemwise and step.fn != NULL
            for weights in s.packed:
                self.packed[at_packed] = _address(weights)
                at_packed += 1
                if isinstance(weights, PackedWeights):
                    step.weight_bytes += weights.nbytes
            step.node.num_ints = len(s.ints)
            step.node.num_floats = len(s.floats)
            step.node.num_packed = len(s.packed)
            step.node.num_inputs = len(s.inputs)
            step.node.num_outputs = s.num_outputs
            step.node.dying = s.dying
            step.node.widened = self.wide_refs + at_input
            step.first_input = at_input
            step.first_output = s.first_output
            step.first_release = at_release
            step.num_releases = len(s.released)
            for slot in s.inputs:
                self.input_refs[at_input] = slot
                at_input += 1
            for slot in s.released:
                self.releases[at_release] = slot
                at_release += 1
            self.order_all[i] = i
            self.is_memoised[i] = i in memoised
            if not self.is_memoised[i]:
                self.order_rest[self.num_rest] = i
                self.num_rest += 1

        self.view.steps, self.view.input_refs, self.view.releases = self.steps, self.input_refs, self.releases
        self.view.is_constant, self.view.num_slots, self.view.num_input_refs = self.is_constant, num_slots, self.num_input_refs
        first_input = [self.steps[i].first_input for i in range(self.num_steps)]
        for i, ((index, position), array) in enumerate(widened.items()):
            _describe(&self.wide[i], array, _native_code(array))
            self.wide_refs[<int>first_input[index] + <int>position] = &self.wide[i]
        self.keepalive.append(widened)

    def __dealloc__(self):
        free(self.wide)
        free(self.wide_refs)
        free(self.steps)
        free(self.ints)
        free(self.floats)
        free(self.packed)
        free(self.input_refs)
        free(self.releases)
        free(self.order_all)
        free(self.order_rest)
        free(self.output_slots)
        free(self.input_slots)
        free(self.cache_axes)
        free(self.is_boundary)
        free(self.is_constant)
        free(self.is_memoised)
        free(self.input_codes)

    def name_inputs(self, tuple input_names, list codes, list shapes, tuple output_names, convert):
        """Prepare `run_named`.

        `codes` are ONNX element codes (0: not a tensor that native code knows), `shapes` tuples of int
        (-1: any size) or None, `convert(i, value)` makes an array of input i from anything that is not
        one already, or raises InputError.
        """
        cdef int i
        self.input_names, self.output_names = input_names, output_names
        self.input_codes = <int *>calloc(max(1, self.num_inputs), sizeof(int))
        if self.input_codes == NULL:
            raise MemoryError
        for i in range(self.num_inputs):
            self.input_codes[i] = codes[i] if codes[i] < 17 and _TYPENUM[codes[i]] >= 0 else 0
        self.input_shapes = [None if s is None else np.array(s, dtype=np.int64) for s in shapes]
        self.convert = convert

    cdef bint _fits(self, int i, object value):
        """True when `value` is an array that can be used as it is."""
        cdef cnp.ndarray array, shape
        cdef const int64_t *wanted
        cdef int j
        if self.input_codes == NULL or type(value) is not np.ndarray:
            return False
        array = value
        if self.input_codes[i] == 0 or cnp.PyArray_TYPE(array) != _TYPENUM[self.input_codes[i]]:
            return False
        if not PyArray_ISCARRAY_RO(array) and (self.cache_axes[i] < 0 or not cnp.PyArray_ISBEHAVED_RO(array)):
            return False
        expected = self.input_shapes[i]
        if expected is None:
            return True
        shape = expected
        if cnp.PyArray_NDIM(array) != cnp.PyArray_DIM(shape, 0):
            return False
        wanted = <const int64_t *>cnp.PyArray_DATA(shape)
        for j in range(cnp.PyArray_NDIM(array)):
            if wanted[j] >= 0 and cnp.PyArray_DIM(array, j) != wanted[j]:
                return False
        return True

    cpdef list run_values(self, list values):
        """Outputs in order for values of any kind that `convert` understands."""
        cdef int i
        for i in range(self.num_inputs):
            if not self._fits(i, values[i]):
                values[i] = self.convert(i, values[i])
        return self.run(values)

    cpdef dict run_named(self, dict feed):
        """{output name: value} for {input name: value}; None when the names of `feed` do not match."""
        cdef int i
        cdef list values = [], results
        cdef dict named = {}
        if len(feed) != self.num_inputs:
            return None
        for i in range(self.num_inputs):
            name = self.input_names[i]
            if name not in feed:
                return None
            values.append(feed[name])
        results = self.run_values(values)
        for i in range(self.num_outputs):
            named[self.output_names[i]] = results[i]
        return named

    def __call__(self, *values):
        """Run on values that fit already (a subgraph, a test); returns the outputs as a tuple."""
        return tuple(self.run(values))

    cpdef list run(self, values, bint shared=False):
        """Outputs for `values`, one per input, each an ndarray of the declared type (or a Python value).

        With `shared`, elements of sequences may be views of what was fed: a Loop that grows one need not copy it at every step.
        """
        cdef Frame frame
        cdef int i
        try:
            frame = self.frames.pop()
        except IndexError:
            frame = Frame(self)
        qrt_run_begin(&frame.run, self.num_threads)
        if self.returned.stack.buffers != NULL:
            qrt_take_returned(&self.returned.stack, &frame.run)
        frame.completed = False
        try:
            self._feed(frame, values)
            remembered = self._execute(frame)  # held here: outputs may still view it, whatever another thread forgets
            results = self._collect(frame, shared)
            self.returned.stack.limit = 2 * frame.run.peak_bytes  # buffers are larger than what is in them
            frame.completed = True
            return results
        finally:
            self._forget_inputs(frame)
            self.frames.append(frame)

    @property
    def declined(self):
        """Of each step, whether its kernel left the work to the definition when it last ran."""
        return [self.steps[i].declined for i in range(self.num_steps)]

    def last_run(self):
        """(bytes in use at the peak, bytes of free buffers in all frames, input shapes) of the run that ended last;
        None before the first."""
        cdef Frame frame
        cdef qrt_buffer *buffer
        cdef qrt_tensor *t
        cdef size_t peak = 0, kept = self.returned.stack.bytes
        cdef list taken = [], shapes = None
        cdef int i
        try:
            while self.frames:
                taken.append(self.frames.pop())
        except IndexError:  # a run took the last one
            pass
        for frame in reversed(taken):
            buffer = frame.run.free_buffers
            while buffer != NULL:
                kept += buffer.capacity
                buffer = buffer.next
            kept += qrt_lanes_free_bytes(&frame.lanes)
            if frame.completed:
                peak = frame.run.peak_bytes
                shapes = []
                for i in range(self.num_inputs):
                    t = &frame.slots[self.input_slots[i]]
                    shapes.append(tuple([t.dims[j] for j in range(t.rank)]))
        self.frames.extend(reversed(taken))
        return None if shapes is None else (peak, kept, shapes)

    def time_steps(self, list values, int repeat):
        """[(seconds, elements of the first output) of each step, in running order] of `repeat` runs; −1 elements for what
        is no native tensor. Inputs as for `run_values`."""
        cdef Frame frame = Frame(self)
        cdef int i
        for i in range(self.num_inputs):
            if not self._fits(i, values[i]):
                values[i] = self.convert(i, values[i])
        return [self._time_run(frame, values) for _ in range(repeat)]

    cdef list _time_run(self, Frame frame, list values):
        cdef int i
        cdef double start, seconds
        cdef qrt_tensor *first
        cdef list times = []
        qrt_run_begin(&frame.run, self.num_threads)
        self._feed(frame, values)
        try:
            for i in range(self.num_steps):
                start = qrt_seconds()
                self._loop(frame, self.order_all + i, 1, False, None)
                seconds = qrt_seconds() - start
                first = &frame.slots[self.steps[i].first_output]
                times.append((seconds, first.size if first.dtype != 0 else -1))
        finally:
            self._abandon(frame)
            self._forget_inputs(frame)
        return times

    cdef int _feed(self, Frame frame, values) except -1:
        cdef int i, code, slot
        cdef cnp.ndarray array
        for i in range(self.num_inputs):
            value = values[i]
            slot = self.input_slots[i]
            frame.objects[slot] = value
            if isinstance(value, np.ndarray):
                array = value
                code = _native_code(array)
                if code != 0 and cnp.PyArray_NDIM(array) <= QRT_MAX_RANK:
                    if self.cache_axes[i] >= 0 and _lend(&frame.slots[slot], array, code, self.cache_axes[i]):
                        qrt_count(&frame.run, frame.slots[slot].buffer.used)
                        continue
                    if not PyArray_ISCARRAY_RO(array):
                        array = frame.objects[slot] = np.array(array, order="C", copy=True)
                    _describe(&frame.slots[slot], array, code)
        return 0

    cdef int _forget_inputs(self, Frame frame) except -1:
        cdef int i, slot
        for i in range(self.num_inputs):
            slot = self.input_slots[i]
            qrt_release(&frame.run, &frame.slots[slot])
            frame.objects[slot] = None
        if frame.run.graveyard != NULL:
            _bury(&frame.run)
        return 0

    cdef object _execute(self, Frame frame):
        cdef const int *order = self.order_all
        cdef int count = self.num_steps
        cdef bint remember = False
        key = entry = None
        if self.boundary:
            key = self._signature(frame)
            entry = self.memory.get(key)
            if entry is not None:
                for slot, array in entry:
                    _describe(&frame.slots[slot], array, _native_code(array))
                    frame.objects[slot] = array
                order, count = self.order_rest, self.num_rest
            else:
                remember = key is not None
        try:
            self._loop(frame, order, count, remember, key)
        except BaseException:
            self._abandon(frame)
            raise
        return entry

    cdef object _signature(self, Frame frame):
        """Shapes of the inputs as bytes; None when an input is no tensor."""
        cdef int64_t sizes[256]
        cdef int i, j, at = 0
        cdef qrt_tensor *t
        for i in range(self.num_inputs):
            t = &frame.slots[self.input_slots[i]]
            if t.dtype == 0 or at + t.rank + 1 > 256:
                return None
            sizes[at] = t.rank
            at += 1
            for j in range(t.rank):
                sizes[at] = t.dims[j]
                at += 1
        return PyBytes_FromStringAndSize(<char *>sizes, at * sizeof(int64_t))

    cdef int _loop(self, Frame frame, const int *order, int count, bint remember, object key) except -1:
        cdef int at = 0, i = 0, slot, done, by_items = 0
        cdef qrt_status status = QRT_OK
        cdef qrt_step *step
        cdef int64_t checked = qrt_milliseconds()
        cdef qrt_interrupt interrupt
        interrupt.is_wanted, interrupt.context = _is_interrupted, <void *>frame
        while at < count:
            with nogil:  # native nodes, up to the next one that needs Python
                status = QRT_OK
                while at < count:
                    step = &self.steps[order[at]]
                    if step.fn == NULL:
                        break
                    done = 0
                    if step.is_itemwise:
                        done = qrt_run_by_items(&self.view, order + at, count - at, &frame.run, frame.slots, &frame.lanes, &interrupt)
                        if done < 0:
                            with gil:
                                raised, frame.interrupt = frame.interrupt, None
                                raise raised
                        by_items += done
                    if done == 0:
                        status = step.fn(&step.node, &frame.run, frame.inputs + step.first_input, &frame.slots[step.first_output])
                        if status == QRT_DECLINE and step.widens:
                            status = qrt_call_widened(
                                step.fn, &step.node, &frame.run, frame.inputs + step.first_input, &frame.slots[step.first_output])
                        if status != QRT_OK:
                            break
                        done = 1
                    for i in range(at, at + done):
                        self._end_step(frame, order[i], remember)
                    at += done
                    if qrt_milliseconds() - checked > 50:
                        checked = qrt_milliseconds()
                        with gil:
                            PyErr_CheckSignals()
            if at >= count:
                break
            i = order[at]
            step = &self.steps[i]
            if status == QRT_NO_MEMORY:
                raise MemoryError(f"{self.labels[i]}: no memory for its outputs; inputs are {self._inputs_text(frame, i)}")
            step.declined = step.fn != NULL
            self._run_definition(frame, i)
            for j in range(step.num_releases):
                slot = self.releases[step.first_release + j]
                if not (remember and self.is_boundary[slot]):
                    self._release_one(frame, slot)
            at += 1
        self.by_items = by_items
        if remember:
            self._remember(frame, key)
        if order == self.order_rest:
            self._release_for_skipped(frame)
        return 0

    cdef void _release_for_skipped(self, Frame frame):
        """What a step that depends on shapes alone reads last is still there when the step was skipped."""
        cdef int i, j
        for i in range(self.num_steps):
            if self.is_memoised[i]:
                for j in range(self.steps[i].num_releases):
                    self._release_one(frame, self.releases[self.steps[i].first_release + j])

    cdef void _end_step(self, Frame frame, int i, bint remember) noexcept nogil:
        """A kernel served step i."""
        cdef qrt_step *step = &self.steps[i]
        cdef int j, slot
        step.declined = False
        for j in range(step.num_releases):
            slot = self.releases[step.first_release + j]
            if not (remember and self.is_boundary[slot]):
                qrt_release(&frame.run, &frame.slots[slot])

    cdef void _release_one(self, Frame frame, int slot):
        qrt_release(&frame.run, &frame.slots[slot])
        if frame.objects[slot] is not None:
            frame.objects[slot] = None

    cdef int _remember(self, Frame frame, object key) except -1:
        """Keep what depends on the input shapes only, for the next run with the same shapes."""
        cdef size_t total = 0
        cdef set outputs = {self.output_slots[i] for i in range(self.num_outputs)}
        entry = []
        for slot in self.boundary:
            if frame.slots[<int>slot].dtype == 0:
                return self._forget_rest(frame, outputs)
            array = np.array(_view(&frame.slots[<int>slot]))
            total += array.nbytes
            entry.append((slot, array))
        if total <= (16 << 20):
            # Few shapes recur in practice; a decoder whose past grows would otherwise fill the memory.
            while self.memory and (len(self.memory) >= 64 or self.memory_bytes + total > (16 << 20)):
                oldest = next(iter(self.memory))
                self.memory_bytes -= sum(a.nbytes for _, a in self.memory.pop(oldest))
            self.memory[key] = entry
            self.memory_bytes += total
        return self._forget_rest(frame, outputs)

    cdef int _forget_rest(self, Frame frame, set outputs) except -1:
        for slot in self.boundary:
            if slot not in outputs:
                self._release_one(frame, slot)
        return 0

    cdef int _run_definition(self, Frame frame, int i) except -1:
        global qrt_definition_threads
        cdef qrt_step *step = &self.steps[i]
        cdef int j, slot, outer, num_outputs = step.node.num_outputs
        definition = self.definitions[i]
        for j in range(num_outputs):
            qrt_release(&frame.run, &frame.slots[step.first_output + j])
        if frame.run.graveyard != NULL:
            _bury(&frame.run)
        arguments = [self._python_value(frame, slot) for slot in self.definition_inputs[i]]
        if definition is None:
            raise RunError(f"{self.labels[i]} cannot run on inputs {', '.join(map(shape_text, arguments))}")
        outer = qrt_definition_threads
        qrt_definition_threads = self.num_threads
        try:
            result = definition(*arguments)
        except MemoryError as error:
            shown = ", ".join(map(shape_text, arguments))
            raise MemoryError(f"{self.labels[i]}: {str(error) or 'no memory'} (inputs: {shown})") from error
        except (KeyboardInterrupt, RunError, RecursionError):
            raise
        except Exception as error:
            shown = ", ".join(map(shape_text, arguments))
            raise RunError(f"{self.labels[i]}: {error} (inputs: {shown})") from error
        finally:
            qrt_definition_threads = outer
        if not isinstance(result, tuple):
            result = (result,)
        if len(result) < num_outputs:
            raise RunError(f"{self.labels[i]}: makes {counted(len(result), 'output')}, but the model reads {num_outputs}")
        for j in range(num_outputs):
            slot = step.first_output + j
            frame.objects[slot] = result[j] if _store(&frame.slots[slot], result[j]) else None
            if frame.slots[slot].buffer != NULL:
                qrt_count(&frame.run, frame.slots[slot].buffer.used)
        return 0

    cdef object _python_value(self, Frame frame, int slot):
        if slot < 0:
            return None
        if frame.slots[slot].dtype != 0 and slot not in self.constant_slots:
            return _view(&frame.slots[slot], None, frame.objects[slot])
        return frame.objects[slot]

    def _inputs_text(self, Frame frame, int i):
        return ", ".join(shape_text(self._python_value(frame, slot)) for slot in self.definition_inputs[i])

    cdef list _collect(self, Frame frame, bint shared):
        cdef int i, slot
        cdef qrt_tensor *t
        cdef list results = []
        cdef cnp.ndarray array
        for i in range(self.num_outputs):
            slot = self.output_slots[i]
            t = &frame.slots[slot]
            if t.dtype == 0:
                results.append(frame.objects[slot] if shared else _owned(frame.objects[slot]))
                if not self._comes_again(i) and slot not in self.constant_slots:
                    frame.objects[slot] = None
                continue
            if self._comes_again(i) or slot in self.constant_slots:
                results.append(np.array(_view(t)))
                continue
            if t.room and t.data == t.buffer.data:  # shared with what earlier runs gave out, and with nothing else
                results.append(_view(t, self.returned))
                qrt_release(&frame.run, t)
            elif t.buffer != NULL and t.buffer.owner == NULL and t.buffer.refcount == 1:
                results.append(_view(t, self.returned))
                qrt_release(&frame.run, t)
            elif t.buffer != NULL and t.buffer.owner != NULL and t.buffer.refcount == 1 and self._is_own(<object>t.buffer.owner, t):
                array = <object>t.buffer.owner
                results.append(array)
                qrt_release(&frame.run, t)
            else:
                results.append(np.array(_view(t)))
                qrt_release(&frame.run, t)
        return results

    cdef bint _comes_again(self, int i):
        """True when a later output is the same slot."""
        cdef int j
        for j in range(i + 1, self.num_outputs):
            if self.output_slots[j] == self.output_slots[i]:
                return True
        return False

    cdef bint _is_own(self, cnp.ndarray array, qrt_tensor *t):
        """True when nobody but this slot can reach the array's bytes, and it has the tensor's shape."""
        cdef int i
        # A view of a borrowed tensor has neither a base nor bytes of its own.
        if not cnp.PyArray_CHKFLAGS(array, cnp.NPY_ARRAY_OWNDATA | cnp.NPY_ARRAY_WRITEABLE) or array.ndim != t.rank:
            return False
        for i in range(t.rank):
            if cnp.PyArray_DIM(array, i) != t.dims[i]:
                return False
        return True

    cdef int _abandon(self, Frame frame) except -1:
        """Empty every slot that is not a constant, after a failure."""
        cdef int i, j
        for i in range(self.num_steps):
            for j in range(self.steps[i].node.num_outputs):
                self._release_one(frame, self.steps[i].first_output + j)
        return 0
