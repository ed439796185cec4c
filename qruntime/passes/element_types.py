"""Element types of values as far as operators decide them, and where results are narrow floats."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from qruntime.ir import Graph, Node, Value
from qruntime.ir.dtypes import onnx_code
from qruntime.passes.rewriting import QRUNTIME

_FLOAT, _INT64, _BOOL = 1, 7, 9
_NARROW = (10, 16)  # float16, bfloat16

_BOOLEAN = frozenset({
    "Not", "And", "Or", "Xor", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "IsNaN", "IsInf",
})  # fmt: skip
_INTEGER = frozenset({"Shape", "Size", "NonZero", "ArgMax", "ArgMin"})
_LIKE_FIRST = frozenset({
    "Abs", "Add", "Attention", "AveragePool", "BatchNormalization", "Clip", "Concat", "Conv", "ConvTranspose", "Cos",
    "Div", "Dropout", "Einsum", "Elu", "Erf", "Exp", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Gelu",
    "Gemm", "GlobalAveragePool", "GroupNormalization", "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization",
    "LayerNormalization", "LeakyRelu", "Log", "MatMul", "Max", "MaxPool", "Mean", "Min", "Mul", "Neg", "PRelu", "Pad",
    "Pow", "RMSNormalization", "Range", "Reciprocal", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Relu",
    "Reshape", "Resize", "ScatterND", "Sigmoid", "Sin", "Slice", "Softmax", "Softplus", "Split", "Sqrt", "Squeeze",
    "Sub", "Sum", "Tanh", "Tile", "Transpose", "Trilu", "Unsqueeze",
})  # fmt: skip
_LOWERED_LIKE_FIRST = frozenset({
    "Attention", "Conv", "ConvTranspose", "DynamicQuantizedConv", "DynamicQuantizedLinear", "HardSwish",
    "LayerNormalization", "Linear", "RMSNormalization", "Silu", "Gelu",
})  # fmt: skip


def element_types(graph: Graph) -> Mapping[Value, int]:
    """ONNX codes of the element types that computed values and inputs surely have; others are not in it."""
    known: dict[Value, int] = {}
    for nested in graph.walk_graphs():
        for value in nested.inputs:
            if nested is graph and value.type is not None and value.type.kind == "tensor":
                known[value] = value.type.dtype  # checked at every run
        for node in nested.nodes:
            code = _of_node(node, known)
            if code:
                known.update(dict.fromkeys(node.outputs if node.is_op("Split") else node.outputs[:1], code))
    return known


def element_type(value: Value | None, known: Mapping[Value, int]) -> int:
    """ONNX code of the element type of `value`, 0 when it is not known."""
    if value is None:
        return 0
    return onnx_code(value.data.dtype) if value.data is not None else known.get(value, 0)


def _of_node(node: Node, known: Mapping[Value, int]) -> int:
    """ONNX code of the first output's element type, 0 when it is not known."""
    if node.domain:
        is_like_first = node.domain == QRUNTIME and node.op_type in _LOWERED_LIKE_FIRST
        return element_type(node.input(0), known) if is_like_first else 0
    if node.op_type == "Cast":
        return int(node.attr("to", 0))
    if node.op_type in _BOOLEAN:
        return _BOOL
    if node.op_type in _INTEGER:
        return _INT64
    if node.op_type == "ConstantOfShape":
        value = node.attr("value")
        return _FLOAT if value is None else onnx_code(value.dtype)
    if node.op_type in ("CastLike", "DequantizeLinear", "Where"):
        return element_type(node.input(1), known)
    return element_type(node.input(0), known) if node.op_type in _LIKE_FIRST else 0


def narrow_results(graph: Graph) -> Callable[[Value], bool]:
    """Whether a value of `graph` is, or may be, float16 or bfloat16.

    The operator that makes such a value rounds it. Passes that put one node in place of several would leave out what is
    rounded in between, so they ask this first. A value whose type is not known counts where the graph has such types.
    """
    if not _mentions_narrow(graph):
        return lambda value: False
    known = element_types(graph)

    def is_narrow(value: Value) -> bool:
        code = element_type(value, known)
        if not code and value.type is not None:
            code = value.type.dtype
        return not code or code in _NARROW

    return is_narrow


def _mentions_narrow(graph: Graph) -> bool:
    for nested in graph.walk_graphs():
        for value in nested.inputs:
            declared = value.type
            while declared is not None and declared.elem is not None:
                declared = declared.elem
            if declared is None or declared.dtype in (0, *_NARROW):
                return True
        if any(_makes_narrow(node) for node in nested.nodes):
            return True
    return False


def _makes_narrow(node: Node) -> bool:
    if any(value is not None and value.data is not None and onnx_code(value.data.dtype) in _NARROW for value in node.inputs):
        return True
    found = [node.attr(name) for name in ("to", "dtype", "output_dtype", "value") if name in node.attributes]
    return any(onnx_code(a.dtype) in _NARROW if isinstance(a, np.ndarray) else a in _NARROW for a in found)
