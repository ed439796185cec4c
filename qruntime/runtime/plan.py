"""From a lowered graph to an executable: order, slots, lifetimes, and how each node is called.

A node is called in one of three ways, in this order of preference: by the C node function its binder
chose, by its numpy definition, by `onnx.reference`. The native way may decline at run time, then the
definition takes over; so every native node keeps its definition at hand.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from qruntime import _kernels
from qruntime.errors import InvalidModel, QRuntimeError, UnsupportedModel, UnsupportedOp, counted
from qruntime.ir import AttributeType, Graph, HeldCodes, Node, Value, needed_nodes, shares_of
from qruntime.onnx_io.mapped_file import drop_pages, owns_memory
from qruntime.ops import registry
from qruntime.ops.append_cache import growths, takes_room
from qruntime.ops.elementwise import is_narrow_float, is_packable, widen
from qruntime.ops.registry import NativeCall, OpSpec, Unpack
from qruntime.runtime import reference
from qruntime.runtime.itemwise import itemwise_nodes
from qruntime.runtime.recent import Recent
from qruntime.runtime.shape_dependence import shape_only_nodes

_READ_FLOAT16 = ("unary", "binary")
"""Kernels that take float16 as it is, a cache full at a time."""

_MOST_PLANS = 32
"""Choices of outputs that stay planned. Planning one again is quick: the weights are packed."""


class PlannedNode(NamedTuple):
    """How one node will be called. `subplans` are those of its subgraphs."""

    node: Node
    native: NativeCall | None
    definition: Callable[..., Any] | None
    arguments: tuple[Value | None, ...]
    source: str  # "native", "numpy" or "reference"
    subplans: tuple[Plan, ...] = ()
    widened: tuple[tuple[int, np.ndarray], ...] = ()  # inputs of the kernel that are constants, in float32

    @property
    def kernel(self) -> str | None:
        """Name of the C function that is tried first, and the kinds of weights that it reads where it takes any."""
        if self.native is None or self.native.kernel != "linear":
            return None if self.native is None else self.native.kernel
        return "_".join(["linear", *dict.fromkeys(weights.kind for weights in self.native.packed)])


class Plan(NamedTuple):
    executable: _kernels.Executable
    nodes: list[PlannedNode]
    inputs: tuple[Value, ...]
    """Those of the graph, in the order in which a run takes them."""

    def as_run(self) -> list[PlannedNode]:
        """The nodes as they ran last: one whose kernel declined ran as its definition says. What never ran is as planned."""
        return [
            call._replace(native=None, source="numpy") if declined else call
            for call, declined in zip(self.nodes, self.executable.declined, strict=True)
        ]

    @property
    def subplans(self) -> list[Plan]:
        """Those of all subgraphs, not of their subgraphs in turn."""
        return [below for call in self.nodes for below in call.subplans]

    def walk(self) -> Iterator[Plan]:
        """This plan and those of all subgraphs, nested ones included."""
        yield self
        for below in self.subplans:
            yield from below.walk()


def check_supported(graph: Graph) -> None:
    """Raise one UnsupportedOp that lists every operator, nested graphs included, without a definition."""
    missing: Counter[str] = Counter()
    first: dict[str, str] = {}
    for node in graph.walk_nodes():
        if registry.find(node.domain, node.op_type, node.version) is None and not reference.has(node):
            op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            missing[op] += 1
            first.setdefault(op, node.name or node.outputs[0].name)
    if missing:
        listed = ", ".join(f"{op} ×{count} (first {first[op]!r})" for op, count in missing.items())
        raise UnsupportedOp(
            f"{counted(len(missing), 'operator')} not supported: {listed}. "
            "Export the model without them, or report which exporter wrote it."
        )


@dataclass(frozen=True)
class Unpacking:
    """Codes as they are held, out of the packed weights of a node."""

    unpack: Unpack
    packed: Sequence[_kernels.PackedWeights]
    is_turned: bool

    def __call__(self) -> np.ndarray:
        codes = self.unpack(self.packed)
        return codes.T if self.is_turned else codes


def _readers_of_codes(graph: Graph) -> dict[HeldCodes, list[tuple[Node, int]]]:
    """Who reads codes that were made in memory, not those of a file that somebody else holds."""
    readers: dict[HeldCodes, list[tuple[Node, int]]] = {}
    for node in graph.walk_nodes():
        for index, value in enumerate(node.inputs):
            if value is not None and value.stored is not None:
                codes = value.stored.held
                if codes.memory is None or owns_memory(codes.memory):
                    readers.setdefault(codes, []).append((node, index))
    return readers


class Planner:
    """Makes the plans of one lowered graph for this machine.

    A node is bound once: all plans that need it share its packed weights. So do nodes that read one weight.
    `recent` are plans by the names of the outputs that they compute.
    """

    def __init__(self, graph: Graph, *, num_threads: int):
        self.graph = graph
        self.num_threads = num_threads
        self.recent: Recent[tuple[str, ...], Plan] = Recent(_MOST_PLANS)
        self._bound: dict[Node, PlannedNode] = {}
        self._widened: dict[Value, np.ndarray] = {}
        self._packed: dict[tuple[Any, ...], tuple[_kernels.Packed, Any]] = {}
        self._shares = shares_of(graph)
        self._readers = _readers_of_codes(graph)  # until the codes are given up, or cannot be

    def plan(self, outputs: Sequence[Value] | None = None) -> Plan:
        """A plan that computes `outputs` (default: those of the graph) and nothing else."""
        return self._plan(self.graph, self.graph.outputs if outputs is None else outputs, [])

    def give_up_codes(self) -> None:
        """Codes in memory that all their readers have packed are held packed alone."""
        gone = False
        for codes, readers in list(self._readers.items()):
            if all(node in self._bound for node, _ in readers):
                del self._readers[codes]
                sources = [self._unpacking(node, index) for node, index in readers]
                if sources[0] is not None and None not in sources:
                    codes.give_up(sources[0])
                    gone = True
        if gone:
            _kernels.trim_memory()

    def _unpacking(self, node: Node, index: int) -> Unpacking | None:
        """What makes the codes of that input again; None when the definition of the node reads them at every run."""
        native, value = self._bound[node].native, node.input(index)
        assert value is not None and value.stored is not None
        unpack = None if native is None else native.unpack.get(index)
        return None if native is None or unpack is None else Unpacking(unpack, native.packed, value.stored.is_turned)

    def _plan(self, graph: Graph, outputs: Sequence[Value], captures: list[Value]) -> Plan:
        planned = [self._bind(node) for node in needed_nodes(graph, outputs)]
        executable = _executable(planned, [*graph.inputs, *captures], outputs, graph.inputs if not captures else [], self.num_threads)
        drop_pages(array for call in planned for array in _packed_constants(call))
        return Plan(executable, planned, tuple(graph.inputs))

    def _bind(self, node: Node) -> PlannedNode:
        call = self._bound.get(node)
        if call is None:
            call = self._bound[node] = self._bind_anew(node)
        return call

    def _bind_anew(self, node: Node) -> PlannedNode:
        spec = registry.find(node.domain, node.op_type, node.version)
        definition = definition_of(node)
        if spec is None:
            return PlannedNode(node, None, definition, node.inputs, "reference")
        if node.subgraphs:
            return self._bind_subgraphs(node, definition)
        native = _bind_kernel(node, spec)
        if native is not None:
            native.packed = [None if packed is None else self._packed_once(packed) for packed in native.packed]
        widened = () if native is None else tuple(self._widened_constants(node, native))
        return PlannedNode(node, native, definition, node.inputs, "native" if native else "numpy", widened=widened)

    def _widened_constants(self, node: Node, native: NativeCall) -> Iterator[tuple[int, np.ndarray]]:
        """What a kernel of float32 would otherwise widen at every run."""
        if not native.widens or not _kernels.widens(native.kernel) or native.kernel in _READ_FLOAT16:
            return
        for position, i in enumerate(range(len(node.inputs)) if native.inputs is None else native.inputs):
            value = node.input(i)
            if value is None or value.data is None or not is_narrow_float(value.data.dtype) or not is_packable(value.data.dtype):
                continue
            if value not in self._widened:
                self._widened[value] = np.ascontiguousarray(widen(value.data))
            yield position, self._widened[value]

    def _packed_once(self, packed: _kernels.Packed) -> _kernels.Packed:
        """`packed`, or what an earlier node packs of the same weight. The weight is held, lest another takes its address."""
        weight, key = packed.source()
        return self._packed.setdefault(key, (packed, weight))[0]

    def _bind_subgraphs(self, node: Node, definition: Callable[..., Any]) -> PlannedNode:
        """The node reads what its subgraphs capture as further arguments; each call binds them anew."""
        captured = [v for v in node.captured() if not v.is_constant]
        position = {value: i for i, value in enumerate(captured)}
        branches: dict[str, tuple[_kernels.Executable, list[int]]] = {}
        subplans: list[Plan] = []
        for name, attribute in node.attributes.items():
            if attribute.type is not AttributeType.GRAPH:
                continue
            graph = attribute.value
            own = [v for v in graph.captured() if not v.is_constant]
            plan = self._plan(graph, graph.outputs, own)
            subplans.append(plan)
            branches[name] = (plan.executable, [position[v] for v in own])
        num_inputs = len(node.inputs)

        def call(*arguments: Any) -> Any:
            outer = arguments[num_inputs:]
            bound = {}
            for name, (executable, positions) in branches.items():
                bound[name] = functools.partial(_run_branch, executable, [outer[i] for i in positions])
            return definition(*arguments[:num_inputs], **bound)

        return PlannedNode(node, None, call, (*node.inputs, *captured), "numpy", tuple(subplans))


def _executable(
    planned: list[PlannedNode], inputs: list[Value], outputs: Sequence[Value], signature: Sequence[Value], num_threads: int
) -> _kernels.Executable:
    """Slots, lifetimes and steps; the shapes of the inputs in `signature` are what shape-only nodes depend on."""
    slots: dict[Value, int] = {}
    for value in inputs:
        slots[value] = len(slots)
    for call in planned:
        for value in call.node.outputs:
            slots[value] = len(slots)
    constants: list[tuple[int, Any]] = []
    for read in (*(v for call in planned for v in call.arguments), *outputs):
        if read is not None and read.is_constant and read not in slots:
            slots[read] = len(slots)
            constants.append((slots[read], read.stored if read.data is None else read.data))
    arguments = [[-1 if v is None else slots[v] for v in call.arguments] for call in planned]

    memoised, boundary = shape_only_nodes([call.node for call in planned], signature, outputs)
    held = {slots[v] for v in boundary}
    last_use: dict[int, int] = {}
    for index, call in enumerate(planned):
        for value in call.node.outputs:
            last_use[slots[value]] = index
        for slot in arguments[index]:
            last_use[slot] = index
    for kept in (-1, *(slots[v] for v in (*outputs, *inputs)), *(slot for slot, _ in constants)):
        last_use.pop(kept, None)
    released: list[list[int]] = [[] for _ in planned]
    for slot, index in last_use.items():
        released[index].append(slot)

    steps = []
    for index, call in enumerate(planned):
        native, read_slots = call.native, arguments[index]
        kernel_inputs: list[int] = []
        dying = 0
        if native is not None:
            if native.inputs is None:
                kernel_inputs = read_slots
            else:
                kernel_inputs = [read_slots[i] if i < len(read_slots) else -1 for i in native.inputs]
            for slot in released[index]:
                if slot not in held and kernel_inputs.count(slot) == 1 and kernel_inputs.index(slot) < 64:
                    dying |= 1 << kernel_inputs.index(slot)
        first_output = slots[call.node.outputs[0]] if call.node.outputs else 0
        step = _kernels.Step(
            inputs=kernel_inputs,
            arguments=read_slots,
            first_output=first_output,
            num_outputs=len(call.node.outputs),
            dying=dying,
            released=released[index],
            definition=call.definition,
            label=call.node.label,
        )
        if native is not None:
            step = step._replace(kernel=native.kernel, ints=native.ints, floats=native.floats, packed=native.packed)
        steps.append(step)
    caches = _caches(planned, signature)
    itemwise = itemwise_nodes([call.node for call in planned])
    aligned = {slots[v] for call in planned for v in _aligned_inputs(call)} | {slots[v] for v in outputs}
    return _kernels.Executable(
        len(slots),
        [(slot, np.require(data, requirements="A") if slot in aligned else data) for slot, data in constants],
        [slots[v] for v in inputs],
        [slots[v] for v in outputs],
        steps,
        {i for i, call in enumerate(planned) if call.node in memoised},
        [slots[v] for v in boundary],
        num_threads,
        {i for i, call in enumerate(planned) if call.native is not None and not call.native.widens},
        {(i, position): array for i, call in enumerate(planned) for position, array in call.widened},
        {inputs.index(value): axis for value, axis in caches.items()},
        {i for i, call in enumerate(planned) if call.node in itemwise},
    )


def _caches(planned: list[PlannedNode], inputs: Sequence[Value]) -> dict[Value, int]:
    """Inputs that may come with room in their buffer, with the axis along which they grow."""
    readers: dict[Value, list[tuple[Node, int]]] = {}
    for call in planned:
        for index, value in enumerate(call.arguments):
            if value is not None:
                readers.setdefault(value, []).append((call.node, index))
    caches: dict[Value, int] = {}
    for value in inputs:
        found = [growth for node, index in readers.get(value, []) for growth in growths(node) if growth.place == index]
        reached = [value, *(v for growth in found for v in growth.outputs)]
        if found and all(takes_room(*reader) for v in reached for reader in readers.get(v, [])):
            caches[value] = found[0].axis
    return caches


def _aligned_inputs(call: PlannedNode) -> list[Value]:
    """What the kernel of a node reads as elements, so that they must be aligned."""
    if call.native is None:
        return []
    chosen = range(len(call.arguments)) if call.native.inputs is None else call.native.inputs
    read = [call.arguments[i] for i in chosen if i < len(call.arguments) and i not in call.native.unaligned]
    return [v for v in read if v is not None]


def _packed_constants(call: PlannedNode) -> list[np.ndarray]:
    """Constants that only the definition of a native node reads: the kernel has them packed or widened."""
    if call.native is None:
        return []
    read = list(range(len(call.arguments)) if call.native.inputs is None else call.native.inputs)
    for position, _ in call.widened:
        read[position] = -1
    packed = [v for i, v in enumerate(call.arguments) if v is not None and v.is_constant and i not in read]
    return [array for value in packed for array in value.arrays()]


def _bind_kernel(node: Node, spec: OpSpec) -> NativeCall | None:
    if spec.binder is None:
        return None
    try:
        return spec.binder(node)
    except QRuntimeError:
        raise
    except (ValueError, TypeError, LookupError, OverflowError):
        return None  # odd attributes or constants: the definition reports them when it runs


def definition_of(node: Node) -> Callable[..., Any]:
    """The definition of a node with the attributes that are no graphs, as a function of its inputs."""
    spec = registry.find(node.domain, node.op_type, node.version)
    if spec is None:
        return reference.definition(node)
    keywords: dict[str, Any] = {}
    for name, attribute in node.attributes.items():
        if name not in spec.keywords:
            known = sorted(spec.keywords)
            raise UnsupportedModel(f"{node.label}: attribute {name!r} is not supported (opset {node.version}); supported are {known}")
        if attribute.type is not AttributeType.GRAPH:
            keywords[name] = attribute.value
    missing = sorted(spec.required - node.attributes.keys())
    if missing:
        raise InvalidModel(f"{node.label}: the attribute {missing[0]!r}, which {node.op_type} must have, is missing (opset {node.version})")
    if "num_outputs" in spec.keywords and "num_outputs" not in keywords:
        keywords["num_outputs"] = len(node.outputs)
    if "subgraph_inputs" in spec.keywords:
        graphs = {name: a.value for name, a in node.attributes.items() if a.type is AttributeType.GRAPH}
        keywords["subgraph_inputs"] = {name: tuple(v.type for v in graph.inputs) for name, graph in graphs.items()}
    if "output_types" in spec.keywords:
        keywords["output_types"] = tuple(v.type for v in node.outputs)
    return spec.bound(keywords)


def _run_branch(executable: _kernels.Executable, captured: list[Any], *values: Any) -> tuple[Any, ...]:
    fed = [np.asarray(v) if isinstance(v, (int, float, bool)) else v for v in (*values, *captured)]
    return tuple(executable.run(fed, shared=True))
