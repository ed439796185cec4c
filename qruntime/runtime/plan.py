"""From a lowered graph to an executable: order, slots, lifetimes, and how each node is called.

A node is called in one of three ways, in this order of preference: by the C node function its binder
chose, by its numpy definition, by `onnx.reference`. The native way may decline at run time, then the
definition takes over; so every native node keeps its definition at hand.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from qruntime import _kernels
from qruntime.errors import QRuntimeError, UnsupportedModel, UnsupportedOp
from qruntime.ir import Attribute, AttributeType, Graph, Node, Value
from qruntime.onnx_io.mapped_file import drop_pages
from qruntime.ops import registry
from qruntime.ops.registry import NativeCall, OpSpec
from qruntime.runtime import reference
from qruntime.runtime.shape_dependence import shape_only_nodes


class PlannedNode(NamedTuple):
    """How one node will be called; `summary()` shows it."""

    node: Node
    native: NativeCall | None
    definition: Callable[..., Any] | None
    arguments: tuple[Value | None, ...]
    source: str  # "native", "numpy" or "reference"


class Plan(NamedTuple):
    executable: _kernels.Executable
    nodes: list[PlannedNode]
    subplans: list[Plan]


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
            f"{len(missing)} operators are not supported: {listed}. Export the model without them, or report which exporter wrote it."
        )


def make_plan(graph: Graph, outputs: Sequence[Value] | None = None, *, num_threads: int) -> Plan:
    """Bind `graph` (lowered) for this machine; `outputs` limits the work to what they need."""
    return _make_plan(graph, list(graph.outputs if outputs is None else outputs), [], num_threads)


def _make_plan(graph: Graph, outputs: list[Value], captures: list[Value], num_threads: int) -> Plan:
    subplans: list[Plan] = []
    planned = [_plan_node(node, subplans, num_threads) for node in _needed_nodes(graph, outputs)]
    inputs = [*graph.inputs, *captures]
    slots: dict[Value, int] = {}
    constants: list[tuple[int, Any]] = []
    for value in (*inputs, *(output for call in planned for output in call.node.outputs)):
        slots[value] = len(slots)
    for read in (*(v for call in planned for v in call.arguments), *outputs):
        if read is not None and read.is_constant and read not in slots:
            slots[read] = len(slots)
            constants.append((slots[read], read.data))

    memoised, boundary = shape_only_nodes([call.node for call in planned], graph.inputs if not captures else [], outputs)
    kept = {slots[v] for v in (*outputs, *inputs)} | {slot for slot, _ in constants}
    held = {slots[v] for v in boundary}
    last_use: dict[int, int] = {}
    for index, call in enumerate(planned):
        for touched in (*call.node.outputs, *call.arguments):
            if touched is not None:
                last_use[slots[touched]] = index
    released: list[list[int]] = [[] for _ in planned]
    for slot, index in last_use.items():
        if slot not in kept:
            released[index].append(slot)

    steps = []
    for index, call in enumerate(planned):
        arguments = [-1 if v is None else slots[v] for v in call.arguments]
        kernel_inputs: list[int] = []
        kernel: str | None = None
        ints: Sequence[int] = ()
        floats: Sequence[float] = ()
        packed: Sequence[Any] = ()
        dying = 0
        if call.native is not None:
            kernel, ints, floats, packed = call.native.kernel, call.native.ints, call.native.floats, call.native.packed
            chosen = range(len(arguments)) if call.native.inputs is None else call.native.inputs
            kernel_inputs = [arguments[i] if i < len(arguments) else -1 for i in chosen]
            for i, slot in enumerate(kernel_inputs[:64]):
                if slot in released[index] and slot not in held and kernel_inputs.count(slot) == 1:
                    dying |= 1 << i
        first_output = slots[call.node.outputs[0]] if call.node.outputs else 0
        steps.append((
            kernel, list(ints), list(floats), list(packed), kernel_inputs, arguments,
            first_output, len(call.node.outputs), dying, released[index], call.definition, call.node.label,
        ))  # fmt: skip
    aligned = {slots[v] for call in planned for v in _aligned_inputs(call)} | {slots[v] for v in outputs}
    executable = _kernels.Executable(
        len(slots),
        [(slot, np.require(data, requirements="A") if slot in aligned else data) for slot, data in constants],
        [slots[v] for v in inputs],
        [slots[v] for v in outputs],
        steps,
        {i for i, call in enumerate(planned) if call.node in memoised},
        [slots[v] for v in boundary],
        num_threads,
    )
    drop_pages(array for call in planned for array in _packed_constants(call))
    return Plan(executable, planned, subplans)


def _aligned_inputs(call: PlannedNode) -> list[Value]:
    """What the kernel of a node reads as elements, so that they must be aligned."""
    if call.native is None:
        return []
    chosen = range(len(call.arguments)) if call.native.inputs is None else call.native.inputs
    read = [call.arguments[i] for i in chosen if i < len(call.arguments) and i not in call.native.unaligned]
    return [v for v in read if v is not None]


def _packed_constants(call: PlannedNode) -> list[np.ndarray]:
    """Constants that only the definition of a native node reads: the kernel has them packed."""
    if call.native is None or call.native.inputs is None:
        return []
    return [v.data for i, v in enumerate(call.arguments) if v is not None and v.data is not None and i not in call.native.inputs]


def _needed_nodes(graph: Graph, outputs: Sequence[Value]) -> list[Node]:
    wanted: set[Value] = set(outputs)
    needed = []
    for node in reversed(graph.nodes):
        if wanted.isdisjoint(node.outputs):
            continue
        needed.append(node)
        wanted.update(v for v in node.inputs if v is not None)
        if node.subgraphs:
            wanted.update(node.captured())
    return needed[::-1]


def _plan_node(node: Node, subplans: list[Plan], num_threads: int) -> PlannedNode:
    spec = registry.find(node.domain, node.op_type, node.version)
    if spec is None:
        return PlannedNode(node, None, reference.definition(node), node.inputs, "reference")
    native = None
    if spec.binder is not None:
        try:
            native = spec.binder(node)
        except QRuntimeError:
            raise
        except (ValueError, TypeError, IndexError, OverflowError):
            native = None  # odd attributes or constants: the definition reports them when it runs
    if native is not None and not _kernels.has_node(native.kernel):
        raise RuntimeError(f"{node.label}: no kernel is called {native.kernel!r}")
    definition, arguments = _bind_definition(node, spec, subplans, num_threads)
    return PlannedNode(node, native, definition, arguments, "native" if native else "numpy")


def _bind_definition(
    node: Node, spec: OpSpec, subplans: list[Plan], num_threads: int
) -> tuple[Callable[..., Any], tuple[Value | None, ...]]:
    keywords: dict[str, Any] = {}
    graphs: dict[str, Graph] = {}
    for name, attribute in node.attributes.items():
        if name not in spec.keywords:
            known = sorted(spec.keywords)
            raise UnsupportedModel(f"{node.label}: attribute {name!r} is not supported (opset {node.version}); supported are {known}")
        if attribute.type is AttributeType.GRAPH:
            graphs[name] = attribute.value
        else:
            keywords[name] = _plain(attribute)
    if "num_outputs" in spec.keywords and "num_outputs" not in keywords:
        keywords["num_outputs"] = len(node.outputs)
    if "output_types" in spec.keywords:
        keywords["output_types"] = tuple(v.type for v in node.outputs)
    if not graphs:
        bound = functools.partial(spec.definition, **keywords) if keywords else spec.definition
        return bound, node.inputs
    return _bind_subgraphs(node, functools.partial(spec.definition, **keywords), graphs, subplans, num_threads)


def _plain(attribute: Attribute) -> Any:
    return attribute.value


def _bind_subgraphs(
    node: Node, definition: Callable[..., Any], graphs: dict[str, Graph], subplans: list[Plan], num_threads: int
) -> tuple[Callable[..., Any], tuple[Value | None, ...]]:
    """The node reads what its subgraphs capture as further arguments; each call binds them anew."""
    captured = [v for v in node.captured() if not v.is_constant]
    position = {value: i for i, value in enumerate(captured)}
    branches: dict[str, tuple[_kernels.Executable, list[int]]] = {}
    for name, graph in graphs.items():
        own = [v for v in graph.captured() if not v.is_constant]
        plan = _make_plan(graph, list(graph.outputs), own, num_threads)
        subplans.append(plan)
        branches[name] = (plan.executable, [position[v] for v in own])
    num_inputs = len(node.inputs)

    def call(*arguments: Any) -> Any:
        outer = arguments[num_inputs:]
        bound = {}
        for name, (executable, positions) in branches.items():
            bound[name] = functools.partial(_run_branch, executable, [outer[i] for i in positions])
        return definition(*arguments[:num_inputs], **bound)

    return call, (*node.inputs, *captured)


def _run_branch(executable: _kernels.Executable, captured: list[Any], *values: Any) -> tuple[Any, ...]:
    return tuple(executable.run([np.asarray(v) if isinstance(v, (int, float, bool)) else v for v in (*values, *captured)]))
