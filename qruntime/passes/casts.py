"""Casts to the element type a value already has: exporters emit them for models that also run in half precision."""

from __future__ import annotations

from qruntime.ir import Graph, Node, Value
from qruntime.ir.dtypes import onnx_code

_FLOAT, _INT64, _BOOL = 1, 7, 9

_BOOLEAN = frozenset({
    "Not", "And", "Or", "Xor", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "IsNaN", "IsInf",
})  # fmt: skip
_INTEGER = frozenset({"Shape", "Size", "NonZero", "ArgMax", "ArgMin"})
_LIKE_FIRST = frozenset({
    "Abs", "Add", "Concat", "Conv", "Cos", "Div", "Einsum", "Elu", "Erf", "Exp", "Expand", "Flatten", "Gather",
    "GatherElements", "GatherND", "Gelu", "Gemm", "Identity", "LayerNormalization", "Log", "MatMul", "Max", "Mean",
    "Min", "Mul", "Neg", "Pad", "Pow", "RMSNormalization", "Range", "Reciprocal", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceSum", "Relu", "Reshape", "ScatterND", "Sigmoid", "Sin", "Slice", "Softmax", "Split", "Sqrt",
    "Squeeze", "Sub", "Sum", "Tanh", "Tile", "Transpose", "Trilu", "Unsqueeze",
})  # fmt: skip


def remove_casts(graph: Graph) -> None:
    """Cast(x, to=t)  →  x, where x surely has the element type t."""
    known: dict[Value, int] = {}
    for nested in graph.walk_graphs():
        for value in nested.inputs:
            if nested is graph and value.type is not None and value.type.kind == "tensor":
                known[value] = value.type.dtype  # checked at every run
        gone = []
        for node in nested.nodes:
            code = _element_type(node, known)
            if not code:
                continue
            for output in node.outputs if node.is_op("Split") else node.outputs[:1]:
                known[output] = code
            source = node.input(0) if node.is_op("Cast") else None
            if source is not None and _known(source, known) == code and not node.outputs[0].output_of:
                nested.replace_uses(node.outputs[0], source)
                gone.append(node)
        nested.remove(*gone)


def _known(value: Value | None, known: dict[Value, int]) -> int:
    if value is None:
        return 0
    return onnx_code(value.data.dtype) if value.data is not None else known.get(value, 0)


def _element_type(node: Node, known: dict[Value, int]) -> int:
    """ONNX code of the first output's element type, 0 when it is not known."""
    if node.domain:
        return 0
    if node.op_type == "Cast":
        return int(node.attr("to", 0))
    if node.op_type in _BOOLEAN:
        return _BOOL
    if node.op_type in _INTEGER:
        return _INT64
    if node.op_type == "ConstantOfShape":
        value = node.attr("value")
        return _FLOAT if value is None else onnx_code(value.dtype)
    if node.op_type == "Where":
        return _known(node.input(1), known)
    return _known(node.input(0), known) if node.op_type in _LIKE_FIRST else 0
