"""Models that other tools quantized, on the kernels that serve our own.

- `DynamicQuantizeLinear → MatMulInteger → Cast → Mul(scales)`, and the fused forms `DynamicQuantizeMatMul` and
  `MatMulIntegerToFloat`, become `DynamicQuantizedLinear` with one range per tensor; `DynamicQuantizeLSTM` likewise.
- A weight behind a `DequantizeLinear` that no dynamic kernel reads as codes becomes a float constant, so that
  weight-only models and those with static QDQ pairs run on the float kernels. The pairs on activations stay.
  Of a quantized table, rows are looked up as codes and dequantized then.

`DynamicQuantizeLinear` divides by its scale where the kernels multiply by the reciprocal: a code may differ by one,
and results by as much as that makes.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from qruntime.ir import Graph, Node, Value
from qruntime.ops import registry
from qruntime.ops.contrib.domain import MICROSOFT
from qruntime.ops.contrib.quantized_matmul import as_int8
from qruntime.ops.contrib.recurrent import lstm_weight
from qruntime.passes.linear import constant, only_reader, splice
from qruntime.passes.rewriting import QRUNTIME, Builder, Skip, as_attribute, trace
from qruntime.passes.weights import DYNAMIC, quantized_weight

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
                made = dynamic_linear(
                    node, node, node.input(0), node.input(1), node.input(2), node.input(3), node.input(4)
                )
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
    op.DynamicQuantizedLinear(
        x,
        weight if q is weight.data else constant(weight.name, q),
        constant(f"{weight.name}/scale", scales),
        constant(f"{weight.name}/zero_point", zeros),
        bias,
        None,
        activation="none",
        range="per_tensor",
    )
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
        made = (*lstm_weight("W", w, w_scale, w_zero, directions), *lstm_weight("R", r, r_scale, r_zero, directions))
    except ValueError as error:
        return Skip(error)
    names = [
        f"{node.name or node.outputs[0].name}/{name}{part}" for name in "WR" for part in ("", "/scale", "/zero_point")
    ]
    weights = [constant(name, data) for name, data in zip(names, made, strict=True)]
    inputs = [node.input(0), *weights, *(node.input(i) for i in range(3, 8))]
    attributes = {**node.attributes, "range": as_attribute("per_tensor")}
    outputs = [Value(f"{o.name}/quantized", o.type) for o in node.outputs]
    new = Node("DynamicQuantizedLSTM", inputs, outputs, attributes, domain=QRUNTIME, version=1, name=node.name, origin=[node])
    return node, new


def _data(value: Value | None) -> np.ndarray | None:
    return None if value is None else value.data


_DEQUANTIZING = frozenset({"Cast", "DequantizeLinear", "Mul"})
"""Last operators of the stored forms that `weights.py` recognises."""


def fold_dequantized_weights(graph: Graph) -> None:
    """Constants behind a dequantization become float constants, for readers that are not dynamic layers."""
    _look_up_codes(graph)
    folded: dict[Value, Value | None] = {}
    for nested in graph.walk_graphs():
        for node in nested.nodes:
            for index, value in enumerate(node.inputs):
                if value is None or value.producer is None or value.producer.op_type not in _DEQUANTIZING or _reads_codes(node):
                    continue
                if value not in folded:
                    folded[value] = dequantized_constant(value)
                new = folded[value]
                if new is not None:
                    node.set_input(index, new)


def _look_up_codes(graph: Graph) -> None:
    """Gather(DequantizeLinear(table), i)  →  DequantizeLinear(Gather(table, i)), with one scale for all."""
    for nested in graph.walk_graphs():
        replaced: dict[Node, list[Node]] = {}
        for node in nested.nodes:
            table = node.input(0)
            dequantize = None if table is None or not node.is_op("Gather") else table.producer
            if dequantize is None or not dequantize.is_op("DequantizeLinear") or dequantize.attr("block_size", 0):
                continue
            codes, scale, zero = (dequantize.input(i) for i in range(3))
            if codes is None or codes.data is None or scale is None or scale.data is None or scale.data.size != 1:
                continue
            if zero is not None and (zero.data is None or zero.data.size != 1):
                continue
            op = Builder(node)
            rows = op.Gather(codes, node.input(1), domain="", **node.attributes)
            op = Builder(dequantize)
            real = op.DequantizeLinear(rows, scale, zero, domain="", **dequantize.attributes)
            nested.replace_uses(node.outputs[0], real)
            replaced[node] = [rows.producer, real.producer]  # type: ignore[list-item]
        splice(nested, replaced)


def _reads_codes(node: Node) -> bool:
    """Whether a later pass takes the codes themselves from before the dequantization."""
    if DYNAMIC in node.metadata:
        return True
    return node.is_op("Cast", "Concat") and any(_reads_codes(user) for user in _readers(node.outputs))


def _readers(values: Iterable[Value]) -> list[Node]:
    return [user for value in values for user, _ in value.uses]


def dequantized_constant(value: Value) -> Value | None:
    """The float constant behind a dequantization, None for any other value."""
    weight = quantized_weight(value)
    if weight is not None:
        return constant(value.name, weight.dequantize())
    node = value.producer
    if node is None or not node.is_op("DequantizeLinear") or any(v is not None and v.data is None for v in node.inputs):
        return None
    spec = registry.find(node.domain, node.op_type, node.version)
    if spec is None:
        return None
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    try:
        data = spec(*(None if v is None else v.data for v in node.inputs), **attributes)
    except (ValueError, TypeError) as error:  # the run will report it, with the node's name
        trace(f"fold_dequantized_weights declines at {node.label}: {error}")
        return None
    return constant(value.name, data)
