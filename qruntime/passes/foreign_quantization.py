"""Models that other tools quantized, on the kernels that serve our own.

- `DynamicQuantizeLinear → MatMulInteger → Cast → Mul(scales)`, and the fused forms `DynamicQuantizeMatMul` and
  `MatMulIntegerToFloat`, become `DynamicQuantizedLinear` with one range per tensor; `DynamicQuantizeLSTM` likewise.

`DynamicQuantizeLinear` divides by its scale where the kernels multiply by the reciprocal: a code may differ by one,
and results by as much as that makes.
"""

from __future__ import annotations

import numpy as np

from qruntime.ir import Graph, HeldCodes, Node, StoredTensor, Value, constant, stored_constant
from qruntime.ir.formats import INT8
from qruntime.ops.contrib.domain import MICROSOFT
from qruntime.ops.contrib.quantized_matmul import as_int8
from qruntime.ops.contrib.recurrent import lstm_weight
from qruntime.passes.rewriting import QRUNTIME, Builder, Skip, as_attribute, only_reader, splice, trace

_FLOAT = 1


def lower_foreign_quantization(graph: Graph) -> None:
    """MatMulInteger chains, DynamicQuantizeMatMul, MatMulIntegerToFloat, DynamicQuantizeLSTM  →  dynamic kernels."""
    for nested in graph.walk_graphs():
        replaced: dict[Node, list[Node]] = {}
        for node in nested.nodes:
            if node.is_op("MatMulInteger"):
                made = _integer_chain(nested, node)
            elif node.is_op("MatMulIntegerToFloat", domain=MICROSOFT):
                made = _integer_to_float(node)
            elif node.is_op("DynamicQuantizeMatMul", domain=MICROSOFT):
                made = dynamic_linear(node, node, node.input(0), node.input(1), node.input(2), node.input(3), node.input(4))
            elif node.is_op("DynamicQuantizeLSTM", domain=MICROSOFT):
                made = _lstm(node)
            else:
                continue
            if isinstance(made, Skip):
                trace(f"lower_foreign_quantization declines at {node.label}: {made}")
                continue
            last, new = made
            for old, output in zip(last.outputs, new.outputs, strict=False):
                nested.replace_uses(old, output)
            replaced[last] = [new]
            trace(f"lower_foreign_quantization at {node.label}")
        splice(nested, replaced)


def dynamic_source(codes: Value | None, zero_point: Value | None, scale: Value | None = None) -> Node | Skip:
    """The DynamicQuantizeLinear that made `codes`, with that zero point (and scale, when given)."""
    node = None if codes is None else codes.producer
    if node is None or not node.is_op("DynamicQuantizeLinear") or codes is not node.outputs[0] or len(node.outputs) < 3:
        return Skip("the left-hand side is not quantized by DynamicQuantizeLinear")
    if zero_point is not node.outputs[2] or (scale is not None and scale is not node.outputs[1]):
        return Skip("the left-hand side has the scale or zero point of another tensor")
    return node


def _integer_chain(graph: Graph, node: Node) -> Skip | tuple[Node, Node]:
    """MatMulInteger(codes, W, zero, W's zero) → Cast(float) → Mul(scale · W's scale)."""
    source = dynamic_source(node.input(0), node.input(2))
    if isinstance(source, Skip):
        return source
    cast = only_reader(graph, node)
    if cast is None or not cast.is_op("Cast") or cast.attr("to") != _FLOAT:
        return Skip("no Cast to float alone reads the sums")
    mul = only_reader(graph, cast)
    if mul is None or not mul.is_op("Mul"):
        return Skip("no Mul alone reads the sums as float")
    factor = mul.input(1) if mul.input(0) is cast.outputs[0] else mul.input(0)
    scale = _other_factor(factor, source.outputs[1])
    if isinstance(scale, Skip):
        return scale
    return dynamic_linear(mul, node, source.input(0), node.input(1), scale, node.input(3), None)


def _other_factor(product: Value | None, scale: Value) -> Value | Skip:
    """The constant by which `product` multiplies `scale`, one number or a vector."""
    if product is scale:
        return constant(f"{scale.name}/one", np.ones((), np.float32))
    node = None if product is None else product.producer
    if node is None or not node.is_op("Mul") or scale not in node.inputs:
        return Skip("the sums are not multiplied by the scale of the left-hand side")
    other = node.input(1) if node.input(0) is scale else node.input(0)
    if other is None or other.data is None or other.data.ndim > 1:
        return Skip("the scale of the weight is no constant number or vector")
    return other


def _integer_to_float(node: Node) -> Skip | tuple[Node, Node]:
    source = dynamic_source(node.input(0), node.input(4), node.input(2))
    if isinstance(source, Skip):
        return source
    return dynamic_linear(node, node, source.input(0), node.input(1), node.input(3), node.input(5), node.input(6))


def dynamic_linear(
    last: Node,
    product: Node,
    x: Value | None,
    weight: Value | None,
    scale: Value | None,
    zero_point: Value | None,
    bias: Value | None,
) -> Skip | tuple[Node, Node]:
    """(node that is replaced, DynamicQuantizedLinear that replaces it); `product` names it."""
    if x is None or weight is None or weight.data is None or scale is None or scale.data is None:
        return Skip("a weight or its scale is computed at run time")
    if any(v is not None and v.data is None for v in (zero_point, bias)):
        return Skip("a zero point or bias is computed at run time")
    if weight.data.ndim != 2:
        return Skip(f"the weight has rank {weight.data.ndim}, need 2")
    columns = weight.data.shape[1]
    if bias is not None and bias.data is not None and (bias.data.dtype != np.float32 or bias.data.shape != (columns,)):
        return Skip(f"the bias is {bias.data.dtype} {list(bias.data.shape)}, need float32 [{columns}]")
    try:
        q, scales, zeros = as_int8(weight.data, scale.data, None if zero_point is None else zero_point.data)
    except ValueError as error:
        return Skip(error)
    op = Builder(last)
    codes = StoredTensor(INT8, HeldCodes(q), scales.reshape(1, -1), zeros.reshape(1, -1))
    op.DynamicQuantizedLinear(x, stored_constant(weight.name, codes), bias, None, activation="none", range="per_tensor")
    (new,) = op.nodes
    new.name = product.name or new.name
    return last, new


def _lstm(node: Node) -> Skip | tuple[Node, Node]:
    w, r = (_data(node.input(i)) for i in (1, 2))
    w_scale, w_zero, r_scale, r_zero = (_data(node.input(i)) for i in (8, 9, 10, 11))
    bias = node.input(3)
    if w is None or r is None or w_scale is None or r_scale is None or w_zero is None or r_zero is None:
        return Skip("a weight, its scale or its zero point is no constant")
    if bias is not None and bias.data is None:
        return Skip("the bias is computed at run time")
    directions = 2 if node.attr("direction", "forward") == "bidirectional" else 1
    try:
        made = [lstm_weight("W", w, w_scale, w_zero, directions), lstm_weight("R", r, r_scale, r_zero, directions)]
    except ValueError as error:
        return Skip(error)
    stem = node.name or node.outputs[0].name
    weights = [stored_constant(f"{stem}/{name}", part) for name, part in zip("WR", made, strict=True)]
    inputs = [node.input(0), *weights, *(node.input(i) for i in range(3, 8))]
    attributes = {**node.attributes, "range": as_attribute("per_tensor")}
    outputs = [Value(f"{o.name}/quantized", o.type) for o in node.outputs]
    new = Node("DynamicQuantizedLSTM", inputs, outputs, attributes, domain=QRUNTIME, version=1, name=node.name, origin=[node])
    return node, new


def _data(value: Value | None) -> np.ndarray | None:
    return None if value is None else value.data
