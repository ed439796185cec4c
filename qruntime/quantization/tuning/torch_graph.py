"""A graph, or a part of one, as torch computes it: values from given values, with gradients.

    part = TorchGraph(graph, starts=[x], wanted=[y])         # nodes of the graph itself, in its canonical form
    made = part.run({x: tensor})                             # {y: tensor}
    made = part.run({x: tensor}, {weight: other})            # with a tensor in place of a constant

Operators that gradients flow through are in operators/, one line each. Shapes, masks and positions, which have none, are
computed by the definitions of the runtime. Layers whose mark says that activations are quantized at every run round what they
read as the kernels do, straight through for gradients; so do QuantizeLinear and DequantizeLinear.

Floats narrower than float32 are computed in float32: gradients of float16 would vanish below 6e-8.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from qruntime.errors import InputError, UnsupportedOp, counted
from qruntime.ir import Graph, Node, Value, needed_nodes
from qruntime.ops import registry
from qruntime.ops.elementwise import is_packable, widen
from qruntime.quantization.tuning import operators
from qruntime.quantization.tuning.fake_quantization import Rounding, rounding_of_mark
from qruntime.quantization.tuning.operators.products import Scaled
from qruntime.runtime.plan import definition_of

_FLOATS = frozenset({0, 1, 10, 11, 16})
"""ONNX codes of element types that may have a gradient; 0 of those that are not known."""


class _Step(NamedTuple):
    node: Node
    function: Callable[..., Any]
    has_gradient: bool
    shapes: frozenset[int]
    """Inputs whose data decide a shape: lists of integers."""
    released: tuple[Value, ...]


class TorchGraph:
    """The nodes of `graph`, as it is now, that make `wanted` where `starts` are known.

    `parameters` are the constants that may have a gradient, by default all floats of more than one number. The most that lives
    at a time is what later nodes read, and what torch keeps for gradients.

    UnsupportedOp lists every operator that gradients would have to flow through and cannot.
    """

    def __init__(
        self,
        graph: Graph,
        starts: Iterable[Value] | None = None,
        wanted: Iterable[Value] | None = None,
        *,
        parameters: Iterable[Value] | None = None,
    ):
        self.starts = tuple(dict.fromkeys(graph.inputs if starts is None else starts))
        self.wanted = tuple(dict.fromkeys(graph.outputs if wanted is None else wanted))
        self.nodes = needed_nodes(graph, self.wanted, self.starts)
        self._check_starts()
        everywhere = _with_gradients(graph.nodes, graph.inputs, None)
        given = [value for value in self.starts if value in everywhere or value.producer is None]
        floats = _with_gradients(self.nodes, given, None if parameters is None else frozenset(parameters))
        floats.update(output for node in self.nodes if _rounds(node) for output in node.outputs)
        _check_supported([node for node in self.nodes if floats.issuperset(node.outputs)])
        self._steps = self._planned(floats)
        self._constants: dict[Value, Any] = {}

    @property
    def constants(self) -> list[Value]:
        """What its nodes read of constants, each once."""
        known = set(self.starts)
        read = (value for node in self.nodes for value in node.inputs if value is not None and value.is_constant)
        return [value for value in dict.fromkeys(read) if value not in known]

    def run(
        self,
        known: Mapping[Value, Any],
        replaced: Mapping[Value, Any] | None = None,
        *,
        roundings: Mapping[Node, Rounding | None] | None = None,
        places: Mapping[Node, Mapping[int, Rounding]] | None = None,
        recompute: bool = False,
    ) -> dict[Value, Any]:
        """The wanted values, tensors, from tensors or arrays for all `starts`; `known` may hold more.

        `replaced` holds tensors, or Scaled ones, that stand for constants. `roundings`: how a layer rounds what it reads, in place of
        what its mark says; None: not at all. `places`: what other nodes do to inputs of theirs first, by place. With `recompute` what
        gradients need is kept of a few values between nodes, and made again part by part on the way back (Chen et al., Training Deep
        Nets with Sublinear Memory Cost, 2016): the same bits, a third more work, and of all activations about one part in √nodes at
        a time.

        InputError for a start that is not given, and with its place for a node that fails.
        """
        roundings, places = roundings or {}, places or {}
        missing = [value.name for value in self.starts if value not in known]
        if missing:
            raise InputError(f"the part of the graph starts from {missing[0]!r}, which is not given")
        values: dict[Value, Any] = {value: known[value] for value in self.starts}
        values.update(replaced or {})
        if recompute:
            from torch.utils.checkpoint import checkpoint

            for part in self._parts():
                values = checkpoint(self._passed, part, values, roundings, places, use_reentrant=False)
        else:
            values = self._passed(self._steps, values, roundings, places)
        return {value: _as_tensor(self._held(value, values)) for value in self.wanted}

    def _passed(
        self,
        steps: Sequence[_Step],
        values: Mapping[Value, Any],
        roundings: Mapping[Node, Rounding | None],
        places: Mapping[Node, Mapping[int, Rounding]],
    ) -> dict[Value, Any]:
        """What is known behind `steps` and read later, from what was known before them."""
        known = dict(values)
        for step in steps:
            try:
                made = self._computed(step, known, roundings, places.get(step.node, {}))
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                raise InputError(f"{step.node.label}: torch cannot compute it: {error}") from error
            for value, one in zip(step.node.outputs, made if isinstance(made, (tuple, list)) else (made,)):
                known[value] = one
            for value in step.released:
                known.pop(value, None)
        return known

    def _parts(self) -> list[list[_Step]]:
        """The steps in about √steps parts, divided where the fewest values wait."""
        width = max(1, math.isqrt(len(self._steps)))
        waiting, count = [], 0
        for step in self._steps:
            count += len(step.node.outputs) - len(step.released)
            waiting.append(count)
        cuts = [min(range(first, min(first + width, len(waiting))), key=waiting.__getitem__) + 1 for first in range(0, len(waiting), width)]
        return [self._steps[first:last] for first, last in pairwise([0, *cuts[:-1], len(self._steps)])]

    def _computed(
        self, step: _Step, values: dict[Value, Any], roundings: Mapping[Node, Rounding | None], places: Mapping[int, Rounding]
    ) -> Any:
        given: list[Any] = [None if value is None else self._held(value, values) for value in step.node.inputs]
        if not step.has_gradient:
            if step.node.is_op("Shape", "Size") and not step.node.attributes:
                shape = np.array(np.shape(given[0]), np.int64)
                return shape if step.node.op_type == "Shape" else np.asarray(shape.prod())
            with np.errstate(all="ignore"):
                return step.function(*map(_as_array, given))
        read = [_as_list(one) if i in step.shapes else _as_read(one, step.node, i) for i, one in enumerate(given)]
        for place, rounded in places.items():
            read[place] = rounded(read[place])
        mark = step.node.mark
        rounding = roundings[step.node] if step.node in roundings else None if mark is None else rounding_of_mark(mark)
        if rounding is None:
            return step.function(step.node, *read)
        if step.node.op_type in operators.ROUNDING_WITHIN:
            return step.function(step.node, *read, rounding=rounding)
        return step.function(step.node, rounding(read[0]), *read[1:])

    def _held(self, value: Value, values: Mapping[Value, Any]) -> Any:
        if value in values:
            return values[value]
        if value not in self._constants:
            held = value.stored.decoded() if value.stored is not None else value.data
            assert held is not None
            self._constants[value] = _as_tensor(held) if held.dtype.kind == "f" and held.size > 1 else held
        return self._constants[value]

    def _planned(self, floats: set[Value]) -> list[_Step]:
        last = {value: node for node in self.nodes for value in (*node.inputs, *node.outputs) if value is not None}
        kept = {*self.wanted, *(value for value in last if value.is_constant)}
        released: dict[Node, list[Value]] = {}
        for value, node in last.items():
            if value not in kept:
                released.setdefault(node, []).append(value)
        steps = []
        for node in self.nodes:
            has_gradient = floats.issuperset(node.outputs)
            function = operators.table()[node.domain, node.op_type] if has_gradient else definition_of(node)
            spec = registry.find(node.domain, node.op_type, node.version)
            shapes = frozenset(() if spec is None else spec.shape_inputs or ())
            steps.append(_Step(node, function, has_gradient, shapes, tuple(released.get(node, ()))))
        return steps

    def _check_starts(self) -> None:
        known = {*self.starts, *(value for node in self.nodes for value in node.outputs)}
        for node in self.nodes:
            for value in (*node.inputs, *node.captured()):
                if value is not None and not value.is_constant and value not in known:
                    listed = ", ".join(repr(start.name) for start in self.starts) or "nothing"
                    raise InputError(f"{node.label} needs {value.name!r}, which is not computed from {listed}; start from it too")


def _rounds(node: Node) -> bool:
    """Whether a layer rounds what it reads at every run, which the definition of its operator does not."""
    return node.mark is not None and rounding_of_mark(node.mark) is not None


def _with_gradients(nodes: Sequence[Node], starts: Iterable[Value], parameters: frozenset[Value] | None) -> set[Value]:
    """Values that may have one."""
    found = {value for value in starts if value.type is None or value.type.dtype in _FLOATS}

    def is_source(value: Value) -> bool:
        return value in parameters if parameters is not None else value.is_constant and _is_float(value)

    for node in nodes:
        reads = any(value is not None and (value in found or is_source(value)) for value in node.inputs)
        if operators.passes_gradients(node) and (reads or any(value in found for value in node.captured())):
            found.update(node.outputs)
    return found


def _check_supported(nodes: Sequence[Node]) -> None:
    missing: Counter[str] = Counter()
    first: dict[str, str] = {}
    for node in nodes:
        if (node.domain, node.op_type) not in operators.table() or node.subgraphs:
            op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            missing[op] += 1
            first.setdefault(op, node.name or node.outputs[0].name)
    if missing:
        listed = ", ".join(f"{op} ×{count} (first {first[op]!r})" for op, count in missing.items())
        raise UnsupportedOp(f"no gradients through {counted(len(missing), 'operator')}: {listed}. Methods without gradients need none.")


def _is_float(value: Value) -> bool:
    if value.stored is not None:
        return not value.stored.is_bare
    return value.data is not None and is_packable(value.data.dtype) and value.data.size > 1


def _as_read(held: Any, node: Node, place: int) -> Any:
    return held if isinstance(held, Scaled) and held.is_of_outputs(node, place) else _as_tensor(held)


def _as_tensor(held: Any) -> Any:
    import torch

    if isinstance(held, Scaled):
        return held.tensor()
    if held is None or isinstance(held, torch.Tensor):
        return held.float() if held is not None and held.dtype in (torch.float16, torch.bfloat16) else held
    array = np.require(widen(np.asarray(held)), requirements="A")
    with warnings.catch_warnings():  # nothing here writes to what a file is mapped to
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array) if min(array.strides, default=0) >= 0 else torch.from_numpy(array.copy())


def _as_array(held: Any) -> Any:
    return held.detach().numpy() if hasattr(held, "detach") else held


def _as_list(held: Any) -> list[Any] | None:
    return None if held is None else np.atleast_1d(_as_array(held)).tolist()
