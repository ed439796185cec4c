"""Outlier-victim pairs in whole numbers of a byte, which products of 8-bit codes take as they are: sums are exact."""

from __future__ import annotations

import numpy as np

from qruntime.ir import Graph, Node, TypeInfo, Value, constant, stored_constant
from qruntime.ir.dtypes import onnx_code
from qruntime.passes.rewriting import QRUNTIME, Builder, splice, trace

_INT8 = onnx_code(np.dtype(np.int8))
_LEAST_OPSET = 10  # of DequantizeLinear


def lower_outlier_pairs(graph: Graph) -> None:
    """Weights stored as pairs  →  int8;   OutlierVictimPairs(x, scale)  →  DequantizeLinear(OutlierVictimCodes(x), scale)."""
    for value in graph.stored_constants():
        if value.stored is not None and value.stored.format.is_paired:
            _widen(value)
    for nested in graph.walk_graphs():
        replaced: dict[Node, list[Node]] = {}
        for node in nested.nodes:
            if node.is_op("OutlierVictimPairs", domain=QRUNTIME) and (made := _codes(node)) is not None:
                builder, real = made
                nested.replace_uses(node.outputs[0], real)
                replaced[node] = builder.nodes
                trace(f"lower_outlier_pairs at {node.label}")
        splice(nested, replaced)


def _widen(value: Value) -> None:
    """For all that read it but look-ups of rows, which decode no more than they need."""
    assert value.stored is not None
    readers = [(node, index) for node, index in value.uses if not (node.is_op("Gather") and index == 0)]
    if readers:
        wide = stored_constant(value.name, value.stored.in_int8)
        for node, index in readers:
            node.set_input(index, wide)


def _codes(node: Node) -> tuple[Builder, Value] | None:
    """None where the scale is no constant that makes sense: the definition says why."""
    x, scale = node.input(0), node.input(1)
    if x is None or scale is None or scale.data is None or scale.data.size != 1 or scale.data.dtype != np.float32:
        return None
    number = float(scale.data.reshape(()))
    if not 0 < number < np.inf:
        return None
    op = Builder(node, opset=_LEAST_OPSET)
    codes = op.OutlierVictimCodes(x, scale=number)
    codes.type = TypeInfo("tensor", _INT8, None if x.type is None else x.type.shape)
    zero = constant(f"{scale.name}/zero_point", np.zeros((), np.int8))
    return op, op.DequantizeLinear(codes, constant(scale.name, scale.data.reshape(())), zero, domain="")
