"""Models whose tools left `DequantizeLinear → operator → QuantizeLinear` with constant scales: the operator on codes.

    Conv, MatMul, Gemm with constant weights        QLinearConv, QLinearMatMul
    Add, Mul, Concat, AveragePool, GlobalAveragePool  the QLinear operator of that name
    Relu and Clip behind one of them                a limit of its codes
    what moves elements or picks some               the same operator, before the dequantization

Moving is exact. The others compute as the integer operator is defined, where the file says: in float, then rounded. A code
may differ where a number lies next to the middle between two codes, by one.

A weight without scale, a bias that is not stored as sums are (int32 with the product of both scales): such a node stays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from qruntime.ir import Graph, Node, TypeInfo, Value, constant
from qruntime.ir.dtypes import onnx_code
from qruntime.ir.formats import INTEGERS, UNSIGNED
from qruntime.ops.contrib.domain import MICROSOFT
from qruntime.ops.elementwise import widen
from qruntime.ops.quantize_linear import quantize_linear
from qruntime.passes.activations import activation_in
from qruntime.passes.cleanup import remove_dead_nodes
from qruntime.passes.rewriting import Builder, Skip, only_reader, trace
from qruntime.passes.scaled_codes import (
    Codes,
    Scale,
    all_codes,
    dequantized_codes,
    is_dequantize,
    quantizers,
)

_MOVING = frozenset({
    "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Resize", "Slice", "SpaceToDepth", "Split",
    "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Operators whose outputs hold elements of their first input and nothing else."""


def compute_on_codes(graph: Graph) -> None:
    """DequantizeLinear → operator → QuantizeLinear  →  the operator on 8-bit codes."""
    if not any(is_dequantize(node) for node in graph.walk_nodes()):
        return
    for nested in graph.walk_graphs():
        for node in list(nested.nodes):
            if node.graph is not nested or node.domain or (node.mark is not None and node.mark.is_dynamic):
                continue
            if node.op_type in _MOVING:
                made = _move(nested, node)
            elif node.op_type in _OPERATORS:
                made = _compute(nested, node)
            else:
                continue
            if isinstance(made, Skip):
                trace(f"compute_on_codes declines at {node.label}: {made}")
            else:
                trace(f"compute_on_codes at {node.label}")
    remove_dead_nodes(graph)


def _move(graph: Graph, node: Node) -> Skip | None:
    """move(dequantized(codes))  →  dequantized(move(codes))"""
    codes = dequantized_codes(node.input(0))
    if codes is None or codes.value.data is not None:
        return Skip("its input is not dequantized with one scale")
    if node.op_type == "MaxPool" and len(node.outputs) > 1:
        return Skip("the positions of maxima are read")
    if node.op_type == "Resize" and (
        node.attr("mode", "nearest") != "nearest" or node.attr("coordinate_transformation_mode", "") == "tf_crop_and_resize"
    ):
        return Skip("it interpolates")
    if node.op_type == "Split" and any(output.output_of and not output.uses for output in node.outputs):
        return Skip("an output is one of the graph")
    source = node.inputs[0].producer  # type: ignore[union-attr]
    assert source is not None
    kind = TypeInfo("tensor", onnx_code(codes.scale.dtype))
    moved = [Value(f"{output.name}/codes", kind) for output in node.outputs]
    new = Node(
        node.op_type, [codes.value, *node.inputs[1:]], moved, dict(node.attributes), version=node.version, name=node.name,
        metadata=dict(node.metadata), origin=[node],
    )  # fmt: skip
    graph.insert_before(node, new)
    for old, output in zip(node.outputs, moved, strict=True):
        op = Builder(source)
        real = op.DequantizeLinear(output, codes.scale.scale, codes.scale.zero_point, domain="")
        graph.insert_before(node, *op.nodes)
        graph.replace_uses(old, real)
    return None


class _Site(NamedTuple):
    """An operator between its inputs as codes and what its result is quantized to, None where it stays float32."""

    node: Node
    to: Scale | None


def _compute(graph: Graph, node: Node) -> Skip | None:
    last, bounds = node, []
    while True:
        reader = only_reader(graph, last)
        limits = None if reader is None else _limits(reader)
        if reader is None or limits is None or reader.input(0) is not last.outputs[0]:
            break
        last = reader
        bounds.append(limits)
    found = quantizers(graph, last.outputs[0])
    if found is None and node.op_type not in _GIVES_FLOAT:
        return Skip("its result is not quantized to one scale alone")
    readers, to = found if found is not None else ([], None)
    op = Builder(node)
    made = _OPERATORS[node.op_type](op, _Site(node, to))
    if isinstance(made, Skip):
        return made
    if to is None:
        graph.insert_before(node, *op.nodes)
        graph.replace_uses(node.outputs[0], made)
        return None
    table = _limited(bounds, to)
    if table is not None:
        made = op.CodeTable(made, constant(f"{node.outputs[0].name}/limits", table))
    graph.insert_before(readers[0], *op.nodes)
    for reader in readers:
        graph.replace_uses(reader.outputs[0], made)
    return None


def _limits(node: Node) -> tuple[float, float] | None:
    """The bounds that Relu or Clip keeps its input within."""
    found = activation_in(node)
    if found is None or found.name not in ("relu", "clip"):
        return None
    low, high = (0.0, np.inf) if found.name == "relu" else found.parameters
    return None if low != low or high != high else (low, high)


def _limited(bounds: list[tuple[float, float]], to: Scale) -> np.ndarray | None:
    """What limits make of every code, None when nothing: quantization keeps the order of numbers."""
    scale, zero = to.arrays
    codes = all_codes(to.dtype)
    table = codes
    for low, high in bounds:
        least, most = quantize_linear(np.asarray([low, high], np.float32), scale, zero)
        table = np.minimum(np.maximum(table, least), most)  # in the order of Clip, whose upper bound wins
    return None if np.array_equal(table, codes) else table


def _operand(node: Node, index: int) -> Codes | Skip:
    codes = dequantized_codes(node.input(index))
    return Skip(f"input {index} is not dequantized with one scale") if codes is None else codes


_BYTES = tuple(form for form in (*INTEGERS, *UNSIGNED) if form.bits > 4)


class _Weight(NamedTuple):
    codes: np.ndarray
    scale: np.ndarray  # float32 [1] or one for each slice of `axis`
    zero_point: np.ndarray  # of the type of the codes and the size of the scale


def _weight(value: Value | None, axis: int) -> _Weight | Skip:
    """A constant weight of codes that take a byte each in every kernel, with one scale or one for each slice of `axis`."""
    stored = None if value is None else value.stored
    if stored is None or not isinstance(stored.scale, np.ndarray) or stored.format not in _BYTES or stored.dtype != np.float32:
        return Skip("the weight is no constant of 5 to 8 bits with float32 scales")
    if stored.block or stored.offset is not None or any(n != 1 and i != axis for i, n in enumerate(stored.scale.shape)):
        return Skip("the scales of the weight run along another axis")
    codes, zero_point = stored.unpacked(), stored.zero_point
    zeros = np.zeros(stored.scale.shape, codes.dtype) if zero_point is None else zero_point
    if stored.outliers is not None or not isinstance(zeros, np.ndarray):
        return Skip("the weight has outliers, or zero points that are codes")
    return _Weight(codes, widen(stored.scale.reshape(-1)), zeros.reshape(-1))


def _bias(value: Value | None, x_scale: np.ndarray, w_scale: np.ndarray, maps: int) -> np.ndarray | Skip | None:
    """A bias stored as sums are: int32 whose scale is the product of the scales."""
    if value is None:
        return None
    stored = value.stored
    if stored is None or not isinstance(stored.scale, np.ndarray) or stored.format.name != "int32" or stored.size not in (1, maps):
        return Skip("the bias is no constant of int32 codes")
    if stored.is_shifted:
        return Skip("the bias has a zero point")
    if not np.allclose(stored.scale.reshape(-1), x_scale * w_scale, rtol=1e-6, atol=0):
        return Skip("the scale of the bias is not the product of the scales")
    return np.ascontiguousarray(np.broadcast_to(stored.unpacked().reshape(-1), maps))


def _constants(name: str, weight: _Weight, bias: np.ndarray | None) -> tuple[list[Value], Value | None]:
    vectors = (("weight", weight.codes), ("weight/scale", weight.scale), ("weight/zero_point", weight.zero_point))
    values = [constant(f"{name}/{part}", data) for part, data in vectors]
    return values, None if bias is None else constant(f"{name}/bias", bias)


def _conv(op: Builder, site: _Site) -> Value | Skip:
    node = site.node
    x, weight = _operand(node, 0), _weight(node.input(1), 0)
    if isinstance(x, Skip):
        return x
    if isinstance(weight, Skip):
        return weight
    bias = _bias(node.input(2), x.scale.arrays[0], weight.scale, weight.codes.shape[0])
    if isinstance(bias, Skip):
        return bias
    if site.to is None:
        return Skip("its result is not quantized to one scale alone")
    values, bias_value = _constants(node.outputs[0].name, weight, bias)
    return op.QLinearConv(x.value, *x.scale, *values, *site.to, bias_value, domain="", **node.attributes)


def _linear(op: Builder, site: _Site) -> Value | Skip:
    """MatMul and Gemm."""
    node = site.node
    is_gemm = node.op_type == "Gemm"
    transposed, alpha = bool(is_gemm and node.attr("transB", 0)), np.float32(node.attr("alpha", 1.0) if is_gemm else 1.0)
    x, weight = _operand(node, 0), _weight(node.input(1), 0 if transposed else 1)
    if isinstance(x, Skip):
        return x
    if isinstance(weight, Skip):
        return weight
    if weight.codes.ndim != 2 or (is_gemm and (node.attr("transA", 0) or node.attr("beta", 1.0) != 1.0)):
        return Skip("the weight is no matrix, or an attribute scales or transposes")
    if transposed:
        weight = weight._replace(codes=weight.codes.T)
    x_scale = x.scale.scale if alpha == 1 else constant(f"{node.outputs[0].name}/scale", x.scale.arrays[0] * alpha)
    assert x_scale.data is not None
    bias = _bias(node.input(2) if is_gemm else None, x_scale.data.reshape(()), weight.scale, weight.codes.shape[1])
    if isinstance(bias, Skip):
        return bias
    values, bias_value = _constants(node.outputs[0].name, weight, bias)
    to = (None, None) if site.to is None else site.to
    return op.QLinearMatMul(x.value, x_scale, x.scale.zero_point, *values, *to, bias_value)


def _pair(op: Builder, site: _Site) -> Value | Skip:
    """Add and Mul."""
    a, b = _operand(site.node, 0), _operand(site.node, 1)
    if isinstance(a, Skip):
        return a
    if isinstance(b, Skip):
        return b
    assert site.to is not None
    if not a.scale.dtype == b.scale.dtype == site.to.dtype:
        return Skip("its codes are of two types")
    operator: Callable[..., Value] = getattr(op, f"QLinear{site.node.op_type}")
    return operator(a.value, *a.scale, b.value, *b.scale, *site.to, domain=MICROSOFT)


def _concat(op: Builder, site: _Site) -> Value | Skip:
    parts: list[Any] = []
    assert site.to is not None
    for index in range(len(site.node.inputs)):
        part = _operand(site.node, index)
        if isinstance(part, Skip):
            return part
        if part.scale.dtype != site.to.dtype:
            return Skip("its codes are of two types")
        parts += [part.value, *part.scale]
    return op.QLinearConcat(*site.to, *parts, domain=MICROSOFT, **site.node.attributes)


def _average(op: Builder, site: _Site) -> Value | Skip:
    """AveragePool and GlobalAveragePool."""
    x = _operand(site.node, 0)
    assert site.to is not None
    if isinstance(x, Skip):
        return x
    if x.scale.dtype != site.to.dtype:
        return Skip("its codes are of two types")
    attributes = dict(site.node.attributes)
    if any(step != 1 for step in site.node.attr("dilations", ())):
        return Skip("its windows have gaps")
    attributes.pop("dilations", None)
    operator: Callable[..., Value] = getattr(op, f"QLinear{site.node.op_type}")
    return operator(x.value, *x.scale, *site.to, domain=MICROSOFT, **attributes)


_OPERATORS: dict[str, Callable[[Builder, _Site], Value | Skip]] = {
    "Add": _pair,
    "AveragePool": _average,
    "Concat": _concat,
    "Conv": _conv,
    "Gemm": _linear,
    "GlobalAveragePool": _average,
    "MatMul": _linear,
    "Mul": _pair,
}

_GIVES_FLOAT = ("Gemm", "MatMul")
"""Operators whose integer form has a result in float32, too."""
