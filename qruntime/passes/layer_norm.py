"""Layer and RMS normalisation, as exporters decompose them."""

from __future__ import annotations

from typing import Any

import numpy as np

from qruntime.ir import Graph, Node, Value
from qruntime.passes.rewriting import QRUNTIME, Rewrite, Skip, as_attribute, rewrite_graph, scalar, trace


def _axis(*reductions: Node | None) -> int | Skip:
    """First of the axes, counted from the end, over which every one of the reductions runs."""
    found = set()
    for node in reductions:
        if node is None:
            continue
        axes = node.attr("axes")
        if axes is None:
            given = node.input(1)
            axes = None if given is None or given.data is None else given.data.reshape(-1).tolist()
        if axes is None or not node.attr("keepdims", 1):
            return Skip("the axes are not known, or dropped")
        axes = sorted(int(axis) for axis in axes)
        source = node.input(0)
        if axes and axes[0] >= 0:
            shape = None if source is None or source.type is None else source.type.shape
            if shape is None:
                return Skip(f"the rank is not known and the axes are {axes}")
            axes = [axis - len(shape) for axis in axes]
        if not axes or axes != list(range(axes[0], 0)):
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
    rewrite_graph(graph, [FuseLayerNorm(), FuseRMSNorm()])
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
    if vector is None or vector.data is None or vector.data.dtype != np.float32 or vector.data.ndim > -node.attr("axis"):
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
    for nested in graph.walk_graphs():
        gone: set[Node] = set()
        for node in nested.nodes:
            reason = _absorb_residual(nested, node, gone)
            if reason:
                trace(f"fuse_residual_norm declines at {node.label}: {reason}")
        nested.nodes = [node for node in nested.nodes if node not in gone]


def _absorb_residual(graph: Graph, node: Node, gone: set[Node]) -> Skip | None:
    return None
