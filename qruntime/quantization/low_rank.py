"""Branches of low rank beside linear layers, as nodes of the graph:

    layer(x)  →  Add(layer(x), MatMul(MatMul(x, right), left))

Standard operators over two more weights, so every runtime runs what is saved; passes/linear.py makes the addition part of the last
product. `x` is what the layer reads before anything quantizes it. The two products are marked as a branch: whoever looks for
layers does not find them, and reports count them with the layer that they stand beside.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from qruntime.ir import QRUNTIME, Graph, LayerMark, Node, StoredTensor, Value, constant, stored_constant
from qruntime.ir.marks import LOW_RANK
from qruntime.ops.contrib.domain import MICROSOFT
from qruntime.passes.rounded_activations import before_rounding
from qruntime.passes.stored.writing import opset_beside
from qruntime.quantization.layers import Layer
from qruntime.quantization.selection import layer_name
from qruntime.quantization.steps import LowRankFactors

_SUMS = frozenset({("", "MatMul"), ("", "Gemm"), (MICROSOFT, "FusedMatMul"), (MICROSOFT, "TransposeMatMul")})
"""Operators whose result is a sum that more can be added to: nothing follows within them."""


class LowRankBranch(NamedTuple):
    """The nodes beside one layer."""

    right: Node
    left: Node
    joint: Node
    """Add"""

    @property
    def weights(self) -> list[Value]:
        return [value for node in (self.right, self.left) if (value := node.input(1)) is not None]

    @property
    def rank(self) -> int:
        shape = self.weights[0].shape
        assert shape is not None
        return shape[1]

    @property
    def nbytes(self) -> int:
        """Of both factors, as files hold them."""
        return sum(one.nbytes for value in self.weights if (one := value.stored or value.data) is not None)

    def __str__(self) -> str:
        """Its rank, and the format of its factors."""
        stored, data = self.weights[0].stored, self.weights[0].data
        return f"rank {self.rank} in {stored.format.name if stored is not None else data.dtype}"  # type: ignore[union-attr]


def why_no_branch(layer: Layer) -> str | None:
    """Why there can be no branch beside a layer; None when there can."""
    if layer.kind != "Linear":
        return f"branches of low rank stand beside linear layers, not beside {layer.kind}"
    if (layer.node.domain, layer.node.op_type) not in _SUMS:
        return f"{layer.node.op_type} does more than a product, so that nothing can be added to the product"
    return None


def insert_branch(graph: Graph, layer: Layer, factors: LowRankFactors) -> None:
    """Put a branch beside a layer of `graph` or of a graph nested in it; of rank 0 none."""
    node, value = layer.node, layer.weights[0]
    x, nested = float_input(node), node.graph
    assert why_no_branch(layer) is None and x is not None and value is not None and nested is not None
    if factors.rank == 0:
        return
    dtype = value.stored.dtype if value.stored is not None else value.data.dtype  # type: ignore[union-attr]
    alpha, name, version = float(node.attr("alpha", 1.0)), layer_name(node), opset_beside(graph, node)
    right = _weight(f"{value.name}.right", factors.right, dtype)
    left = _weight(f"{value.name}.left", factors.left, dtype, alpha)
    y = node.outputs[0]
    narrow, wide, total = Value(f"{y.name}/low_rank"), Value(f"{y.name}/branch", y.type), Value(f"{y.name}/total", y.type)
    nested.replace_uses(y, total)
    made = [
        Node("MatMul", [x, right], [narrow], version=version, name=f"{name}/right", origin=[node]),
        Node("MatMul", [narrow, left], [wide], version=version, name=f"{name}/left", origin=[node]),
        Node("Add", [y, wide], [total], version=version, name=f"{name}/total", origin=[node]),
    ]
    for product in made[:2]:
        product.mark = LayerMark(role=LOW_RANK)
    nested.insert_after(node, *made)


def _weight(name: str, factor: np.ndarray | StoredTensor, dtype: np.dtype, scale: float = 1.0) -> Value:
    """A factor as the right-hand side of a MatMul, `scale` times as large."""
    if isinstance(factor, StoredTensor):
        held = factor if scale == 1 else factor.scaled(scale)
        return stored_constant(name, replace(held.transposed(), dtype=dtype))
    return constant(name, np.ascontiguousarray((factor * np.float32(scale)).T.astype(dtype)))


def float_input(node: Node) -> Value | None:
    """What a layer reads, before static quantization of it where there is one."""
    value = node.input(0)
    narrowed = None if value is None else _behind(value, "Cast")
    if value is None or narrowed is None:
        return None if value is None else _before_rounding(value)
    source = _before_rounding(narrowed)  # narrow floats are widened before they are rounded
    return value if source is narrowed else _behind(source, "Cast") or value


def _before_rounding(value: Value) -> Value:
    return _behind(value, "OutlierVictimPairs", QRUNTIME) or before_rounding(value)


def _behind(value: Value, op_type: str, domain: str = "") -> Value | None:
    """What the operator reads that makes `value`; None where another one does."""
    return value.producer.input(0) if value.producer is not None and value.producer.is_op(op_type, domain=domain) else None


def branches_beside(node: Node) -> list[LowRankBranch]:
    """The branches of a layer, the first inserted last."""
    found: list[LowRankBranch] = []
    value = node.outputs[0]
    while (branch := _joined_with(value)) is not None:
        found.append(branch)
        value = branch.joint.outputs[0]
    return found


def _joined_with(value: Value) -> LowRankBranch | None:
    for user, index in value.uses:
        other = user.input(1 - index) if user.is_op("Add") else None
        left = None if other is None else other.producer
        narrow = None if left is None or not _is_factor(left) else left.input(0)
        right = None if narrow is None else narrow.producer
        if left is not None and right is not None and _is_factor(right):
            return LowRankBranch(right, left, user)
    return None


def _is_factor(node: Node) -> bool:
    weight = node.input(1)
    return node.mark is not None and node.mark.role == LOW_RANK and weight is not None and weight.shape is not None
