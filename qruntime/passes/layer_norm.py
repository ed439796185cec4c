"""Layer and RMS normalisation, as exporters decompose them."""

from __future__ import annotations

from typing import Any

import numpy as np

from qruntime.ir import Graph, Node, Value
from qruntime.passes.element_types import narrow_results
from qruntime.passes.linear import keeps_activation_shape
from qruntime.passes.rewriting import QRUNTIME, Rewrite, Skip, as_attribute, rewrite_graph, scalar, trace


def _axis(*reductions: Node) -> int | Skip:
    """First of the axes, counted from the end, over which every one of the reductions (of equal rank) runs."""
    sources = [node.input(0) for node in reductions]
    shapes = [v.type.shape for v in sources if v is not None and v.type is not None and v.type.shape is not None]
    found = set()
    for node in reductions:
        axes = node.attr("axes")
        if axes is None:
            given = node.input(1)
            axes = None if given is None or given.data is None else given.data.reshape(-1).tolist()
        if not axes or not node.attr("keepdims", 1):
            return Skip("the axes are not known, or dropped")
        axes = sorted(int(axis) for axis in axes)
        if axes[0] >= 0:
            if not shapes:
                return Skip(f"the rank is not known and the axes are {axes}")
            axes = [axis - len(shapes[0]) for axis in axes]
        if axes != list(range(axes[0], 0)):
            return Skip(f"the axes {axes} are not the last ones")
        found.add(axes[0])
    return found.pop() if len(found) == 1 else Skip("the two means run over different axes")


def _epsilon(value: Value) -> float | None:
    number = scalar(value)
    return number if number is not None and value.data is not None and value.data.ndim < 2 else None


def _means(op: Any, x: Any, axes: str, name: str) -> tuple[Any, ...]:
    """Before opset 18 the axes are an attribute, then an input."""
    return op.ReduceMean(x, name=name), op.ReduceMean(x, axes, name=name)


class FuseLayerNorm(Rewrite):
    """d = x − mean(x);  d / √(mean(d²) + ε)  →  LayerNormalization(x) without scale and bias"""

    needs = "ReduceMean"

    def pattern(self, op: Any, x: Any, epsilon: Any, axes: Any, axes_2: Any) -> Any:
        found = []
        for mean in _means(op, x, axes, "mean"):
            centred = op.Sub(x, mean)
            for square in (op.Pow(centred, 2.0), op.Mul(centred, centred)):
                for variance in _means(op, square, axes_2, "variance"):
                    deviation = op.Sqrt(op.Add(variance, epsilon))
                    found += _quotients(op, centred, deviation)
        return tuple(found)

    def check(self, epsilon: Value, mean: Node, variance: Node, **bound: Value) -> Skip | None:
        axis = _axis(mean, variance)
        if isinstance(axis, Skip):
            return axis
        return None if _epsilon(epsilon) is not None else Skip("epsilon is no constant number")

    def replace(self, op: Any, x: Value, epsilon: Value, mean: Node, **bound: Any) -> Value:
        return op.LayerNormalization(x, axis=_axis(mean), epsilon=_epsilon(epsilon))


class FuseRMSNorm(Rewrite):
    """x / √(mean(x²) + ε)  →  RMSNormalization(x) without scale"""

    needs = "ReduceMean"

    def pattern(self, op: Any, x: Any, epsilon: Any, axes: Any) -> Any:
        found = []
        for square in (op.Pow(x, 2.0), op.Mul(x, x)):
            for mean in _means(op, square, axes, "mean"):
                found += _quotients(op, x, op.Sqrt(op.Add(mean, epsilon)))
        return tuple(found)

    def check(self, epsilon: Value, mean: Node, **bound: Value) -> Skip | None:
        axis = _axis(mean)
        if isinstance(axis, Skip):
            return axis
        return None if _epsilon(epsilon) is not None else Skip("epsilon is no constant number")

    def replace(self, op: Any, x: Value, epsilon: Value, mean: Node, **bound: Any) -> Value:
        return op.RMSNormalization(x, axis=_axis(mean), epsilon=_epsilon(epsilon))


def _quotients(op: Any, x: Any, root: Any) -> list[Any]:
    return [op.Div(x, root), op.Mul(x, op.Reciprocal(root)), op.Mul(x, op.Div(1.0, root))]


def fuse_layer_norm(graph: Graph) -> None:
    """Recognise decomposed LayerNormalization and RMSNormalization; scale and bias join them."""
    is_narrow = narrow_results(graph)
    rewrite_graph(graph, [FuseLayerNorm(), FuseRMSNorm()], keeps=is_narrow)
    for nested in graph.walk_graphs():
        gone: set[Node] = set()
        for node in nested.nodes:
            if node.is_op("LayerNormalization", "RMSNormalization", domain=QRUNTIME):
                _absorb_affine(nested, node, "Mul", 1, gone)
                _absorb_affine(nested, node, "Add", 2, gone)
        nested.nodes = [node for node in nested.nodes if node not in gone]


def _absorb_affine(graph: Graph, node: Node, op_type: str, position: int, gone: set[Node]) -> None:
    output = node.outputs[0]
    if output.output_of or len(output.uses) != 1 or len(node.inputs) > position:
        return
    (reader, index) = next(iter(output.uses))
    if reader.graph is not graph or not reader.is_op(op_type):
        return
    vector = reader.input(1 - index)
    if vector is None or vector.data is None or vector.data.dtype != np.float32:
        return
    if vector.data.ndim > -node.attr("axis"):
        return
    while len(node.inputs) < position:
        node.append_input(None)
    node.append_input(vector)
    graph.replace_uses(reader.outputs[0], output)
    for i in range(len(reader.inputs)):
        reader.set_input(i, None)
    reader.graph = None
    gone.add(reader)


def fuse_residual_norm(graph: Graph) -> None:
    """LayerNormalization(a + b), RMSNormalization(a + b)  →  one node that adds, and hands on the sum if it is read."""
    is_narrow = narrow_results(graph)
    for nested in graph.walk_graphs():
        gone: set[Node] = set()
        for node in nested.nodes:
            add = None if node.input(0) is None else node.input(0).producer  # type: ignore[union-attr]
            if add is None or add.graph is not nested or not add.is_op("Add"):
                continue
            if not node.is_op(*_NORMS) and not node.is_op(*_NORMS, domain=QRUNTIME):
                continue
            reason = Skip("the sum is rounded") if is_narrow(add.outputs[0]) else _declines(node, add)
            if reason is not None:
                trace(f"fuse_residual_norm declines at {node.label}: {reason}")
                continue
            _absorb_residual(nested, node, add)
            gone.add(add)
        if gone:
            nested.nodes = [node for node in nested.nodes if node not in gone]
            nested.sort()  # the sum may have been read before it was normalised


_NORMS = ("LayerNormalization", "RMSNormalization")


def _declines(node: Node, add: Node) -> Skip | None:
    if not all(v is not None and keeps_activation_shape(v) for v in add.inputs):
        return Skip("the shapes may differ")
    if len(node.inputs) > 3 or any(v is not None and not v.is_constant for v in node.inputs[1:]):
        return Skip("scale or bias are computed at run time")
    if node.attr("stash_type", 1) != 1 or any(o.uses or o.output_of for o in node.outputs[1:]):
        return Skip("it does not compute in float32, or its statistics are read")
    return None


def _absorb_residual(graph: Graph, node: Node, add: Node) -> None:
    a, b = add.inputs
    total = add.outputs[0]
    node.set_input(0, a)
    while len(node.inputs) < 3:
        node.append_input(None)
    node.append_input(b)
    node.domain, node.version = QRUNTIME, 1
    node.attributes = {
        "axis": as_attribute(int(node.attr("axis", -1))),
        "epsilon": as_attribute(float(node.attr("epsilon", 1e-5))),
    }
    for output in node.outputs[1:]:
        output.producer = None
    del node.outputs[1:]
    for i in range(2):
        add.set_input(i, None)
    add.graph = None
    if total.uses or total.output_of:
        handed_on = Value(total.name, total.type)
        handed_on.producer = node
        node.outputs.append(handed_on)
        graph.replace_uses(total, handed_on)
