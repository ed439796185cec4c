"""Conv with quantized weights."""

from __future__ import annotations

from qruntime.ir import Graph, Node, Value
from qruntime.passes.linear import constant, splice
from qruntime.passes.rewriting import Builder, Skip, trace
from qruntime.passes.weights import DYNAMIC, quantized_weight

_GEOMETRY = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


def lower_convolution(graph: Graph) -> None:
    """Conv over a dequantized W, marked dynamic  →  DynamicQuantizedConv."""
    for nested in graph.walk_graphs():
        lowered: dict[Node, list[Node]] = {}
        for node in nested.nodes:
            if not node.is_op("Conv") or DYNAMIC not in node.metadata:
                continue
            made = _lower(node)
            if isinstance(made, Skip):
                trace(f"lower_convolution declines at {node.label}: {made}")
                continue
            builder, output = made
            nested.replace_uses(node.outputs[0], output)
            lowered[node] = builder.nodes
        splice(nested, lowered)


def _lower(node: Node) -> Skip | tuple[Builder, Value]:
    weight, bias = node.input(1), node.input(2)
    stored = quantized_weight(weight)
    if weight is None or stored is None:
        return Skip("the weight is no int8 constant")
    if stored.axis not in (None, 0):
        return Skip("the scales do not run along the output channels")
    if bias is not None and bias.data is None:
        return Skip("the bias is computed at run time")
    attributes = {name: node.attributes[name] for name in _GEOMETRY if name in node.attributes}
    builder = Builder(node)
    return builder, builder.DynamicQuantizedConv(
        node.input(0),
        constant(weight.name, stored.q),
        constant(f"{weight.name}/scale", stored.scale),
        constant(f"{weight.name}/zero_point", stored.zero_point),
        bias,
        range=node.metadata[DYNAMIC],
        **attributes,
    )
