"""Operators on 8-bit codes with constant scales  →  the layers of our domain, and what is left in standard operators.

    QLinearConv, ConvInteger             QLinearConv of our domain, channels last, between two transpositions
    QLinearMatMul, QGemm, MatMulInteger  QLinearMatMul of our domain
    QLinearConcat                        Concat, behind tables for inputs of other scales
    QLinearSoftmax                       DequantizeLinear → Softmax → QuantizeLinear
    CodeTable behind a layer             in the layer

An operator whose scales or weights are computed at run time stays, and so does one that fits none of this: its definition runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from qruntime.ir import Graph, Node, Value, constant
from qruntime.ops.contrib.domain import MICROSOFT
from qruntime.ops.quantize_linear import dequantize_linear, quantize_linear
from qruntime.passes.cleanup import remove_dead_nodes
from qruntime.passes.rewriting import QRUNTIME, Builder, Skip, only_reader, trace
from qruntime.passes.scaled_codes import Scale, all_codes, scale_of

_GEOMETRY = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


def lower_static_quantization(graph: Graph) -> None:
    """QLinearConv, QLinearMatMul, QGemm, ConvInteger, MatMulInteger, QLinearConcat, QLinearSoftmax  →  lowered layers."""
    for nested in graph.walk_graphs():
        for node in list(nested.nodes):
            lower = _LOWERED.get((node.domain, node.op_type))
            if lower is None or node.graph is not nested:
                continue
            op = Builder(node)
            made = lower(op, node)
            if isinstance(made, Skip):
                trace(f"lower_static_quantization declines at {node.label}: {made}")
                continue
            nested.insert_before(node, *op.nodes)
            nested.replace_uses(node.outputs[0], made)
            trace(f"lower_static_quantization at {node.label}")
    remove_dead_nodes(graph)


def channels_last(rank: int) -> tuple[int, ...]:
    """The permutation that takes channels from the second dim to the last."""
    return (0, *range(2, rank), 1)


def channels_second(rank: int) -> tuple[int, ...]:
    """The permutation that takes channels from the last dim to the second."""
    return (0, rank - 1, *range(1, rank - 1))


def _is_constant(value: Value | None) -> bool:
    return value is None or value.data is not None


def _conv(op: Builder, node: Node) -> Value | Skip:
    x, *parameters = (node.input(i) for i in range(9))
    return _convolution(op, node, x, parameters)


def _conv_integer(op: Builder, node: Node) -> Value | Skip:
    x, w, x_zero, w_zero = (node.input(i) for i in range(4))
    return _convolution(op, node, x, [None, x_zero, w, None, w_zero, None, None, None])


def _convolution(op: Builder, node: Node, x: Value | None, parameters: Sequence[Value | None]) -> Value | Skip:
    w = parameters[2]
    if x is None or w is None or w.data is None or not 3 <= w.data.ndim <= 5:
        return Skip("the weight is no constant of rank 3 to 5")
    if not all(_is_constant(value) for i, value in enumerate(parameters) if i != 1 or node.op_type == "QLinearConv"):
        return Skip("a parameter is computed at run time")
    attributes = {name: node.attributes[name] for name in _GEOMETRY if name in node.attributes}
    if node.attr("channels_last", 0):
        return op.QLinearConv(x, *parameters, **attributes)
    rank = w.data.ndim
    last = op.Transpose(x, domain="", perm=channels_last(rank))
    return op.Transpose(op.QLinearConv(last, *parameters, **attributes), domain="", perm=channels_second(rank))


def _matmul(op: Builder, node: Node) -> Value | Skip:
    a, a_scale, a_zero, b, *rest = (node.input(i) for i in range(8))
    if a_scale is None or a_scale.data is None or a_scale.data.size != 1:
        return Skip("the scale of the left-hand side is no constant, or one for each row")
    return _product(op, a, [a_scale, a_zero, b, *rest, None])


def _matmul_integer(op: Builder, node: Node) -> Value | Skip:
    a, b, a_zero, b_zero = (node.input(i) for i in range(4))
    if a_zero is not None and (a_zero.data is None or a_zero.data.size != 1):
        return Skip("the zero point of the left-hand side is no constant, or one for each row")
    return _product(op, a, [None, a_zero, b, None, b_zero, None, None, None])


def _gemm(op: Builder, node: Node) -> Value | Skip:
    a, a_scale, a_zero, b, b_scale, b_zero, c, y_scale, y_zero = (node.input(i) for i in range(9))
    alpha = np.float32(node.attr("alpha", 1.0))
    if node.attr("transA", 0) or b is None or b.data is None or a_scale is None or a_scale.data is None:
        return Skip("the left-hand side is transposed, or a parameter is computed at run time")
    if y_scale is not None and y_zero is None:
        return Skip("the result has no zero point that tells its type")
    if b.data.ndim != 2:
        return Skip(f"the weight has rank {b.data.ndim}, need 2")
    if node.attr("transB", 0):
        b = constant(b.name, b.data.T)
    if alpha != 1:
        a_scale = constant(f"{node.outputs[0].name}/scale", (alpha * a_scale.data).astype(np.float32))
    if c is not None:
        matrix = b.data
        assert matrix is not None
        if c.data is None or c.data.dtype != np.int32 or c.data.size not in (1, matrix.shape[1]) or c.data.shape[:-1] not in ((), (1,)):
            return Skip("C is no constant row of int32")
        c = constant(c.name, np.ascontiguousarray(np.broadcast_to(c.data.reshape(-1), matrix.shape[1])))
    return _product(op, a, [a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero, c])


def _product(op: Builder, a: Value | None, parameters: Sequence[Value | None]) -> Value | Skip:
    if a is None or not all(map(_is_constant, parameters)):
        return Skip("a parameter is computed at run time")
    b, y_scale = parameters[2], parameters[5]
    if b is None or b.data is None or b.data.ndim != 2:
        return Skip("the right-hand side is no matrix")
    if y_scale is not None and y_scale.data is not None and y_scale.data.size != 1:
        return Skip("the result has a scale for each row")
    return op.QLinearMatMul(a, *parameters)


def _concat(op: Builder, node: Node) -> Value | Skip:
    to = scale_of(node.input(0), node.input(1), 0)
    if to is None or len(node.inputs) < 5 or (len(node.inputs) - 2) % 3:
        return Skip("the scale of the result is no constant above 0")
    parts = []
    for i in range(2, len(node.inputs), 3):
        value, scale = node.input(i), scale_of(node.input(i + 1), node.input(i + 2), 0)
        if value is None or scale is None or scale.dtype != to.dtype:
            return Skip(f"the scale of input {i} is no constant above 0")
        parts.append(value if scale.same_as(to) else op.CodeTable(value, constant(f"{value.name}/rescaled", _rescaled(scale, to))))
    return op.Concat(*parts, domain="", axis=node.attr("axis", 1))


def _rescaled(scale: Scale, to: Scale) -> np.ndarray:
    """What becomes of every code of one scale at another."""
    return quantize_linear(dequantize_linear(all_codes(scale.dtype), *scale.arrays), *to.arrays)


def _softmax(op: Builder, node: Node) -> Value | Skip:
    scale, to = scale_of(node.input(1), node.input(2), 2), scale_of(node.input(3), node.input(4), 0)
    if node.attr("opset", 13) < 13:
        return Skip("it is over all axes from one on")
    if scale is None or to is None or node.input(2) is None:
        return Skip("a scale is no constant above 0")
    real = op.DequantizeLinear(node.input(0), *scale, domain="")
    made = op.QuantizeLinear(op.Softmax(real, domain="", axis=node.attr("axis", -1)), *to, domain="")
    for new in op.nodes:
        new.version = 13
    return made


_LOWERED: dict[tuple[str, str], Callable[[Builder, Node], Value | Skip]] = {
    ("", "ConvInteger"): _conv_integer,
    ("", "MatMulInteger"): _matmul_integer,
    ("", "QLinearConv"): _conv,
    ("", "QLinearMatMul"): _matmul,
    (MICROSOFT, "QGemm"): _gemm,
    (MICROSOFT, "QLinearConcat"): _concat,
    (MICROSOFT, "QLinearConv"): _conv,
    (MICROSOFT, "QLinearSoftmax"): _softmax,
}

_TABLE = 9
"""The input of QLinearConv and QLinearMatMul that is a table."""


def apply_code_tables(graph: Graph) -> None:
    """layer → CodeTable  →  the layer with the table; a transposition between them stays behind."""
    for nested in graph.walk_graphs():
        for node in list(nested.nodes):
            if not node.is_op("QLinearConv", "QLinearMatMul", domain=QRUNTIME) or node.input(_TABLE) is not None:
                continue
            if node.input(7) is None:
                continue  # its result is no code
            last = only_reader(nested, node)
            if last is not None and last.is_op("Transpose"):
                last = only_reader(nested, last)
            if last is None or not last.is_op("CodeTable", domain=QRUNTIME):
                continue
            while len(node.inputs) <= _TABLE:
                node.append_input(None)
            node.set_input(_TABLE, last.input(1))
            source = last.input(0)
            assert source is not None
            nested.replace_uses(last.outputs[0], source)
            nested.remove(last)
