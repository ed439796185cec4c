"""Conv and ConvTranspose with constant weights, float or int8."""

from __future__ import annotations

import math

import numpy as np

from qruntime.ir import Graph, Node, Value, constant, stored_constant
from qruntime.ops.elementwise import is_packable, widen
from qruntime.ops.fused_convolution import taps_by_remainder
from qruntime.passes.linear import int8_codes, row_attributes
from qruntime.passes.rewriting import Builder, Skip, splice, trace

_MAX_REMAINDERS = 4096
"""The weights of a ConvTranspose are sorted by remainders modulo the strides, of which there must not be too many."""

_GEOMETRY = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
_TRANSPOSED = ("output_padding", "output_shape")


def lower_convolution(graph: Graph) -> None:
    """Conv, ConvTranspose  →  those of our domain, whose epilogue has an activation; Conv over a dequantized W, marked
    dynamic  →  DynamicQuantizedConv."""
    sorted_taps: _SortedTaps = {}
    for nested in graph.walk_graphs():
        lowered: dict[Node, list[Node]] = {}
        for node in nested.nodes:
            if not node.is_op("Conv", "ConvTranspose"):
                continue
            made = _lower_quantized(node) if _is_dynamic(node) else _lower_float(node, sorted_taps)
            if isinstance(made, Skip):
                trace(f"lower_convolution declines at {node.label}: {made}")
                continue
            builder, output = made
            nested.replace_uses(node.outputs[0], output)
            lowered[node] = builder.nodes
        splice(nested, lowered)


_SortedTaps = dict[tuple[Value, int, tuple[int, ...], tuple[int, ...]], Value]


def _lower_float(node: Node, sorted_taps: _SortedTaps) -> Skip | tuple[Builder, Value]:
    """`sorted_taps` holds the weights of ConvTranspose nodes as their kernel reads them, for other nodes that share them."""
    weight = node.input(1)
    w = None if weight is None else weight.data
    if weight is None or w is None or not is_packable(w.dtype):
        return Skip("the weight is no constant of float32 or narrower")
    if node.op_type == "Conv" and w.dtype != np.float32:
        return Skip("an activation after it is rounded apart")
    if not 3 <= w.ndim <= 5 or w.size == 0:
        return Skip(f"the weight has the shape {list(w.shape)}")
    if not node.attributes.keys() <= {*_GEOMETRY, *_TRANSPOSED}:
        return Skip("an attribute is none of a convolution")  # the definition reports it
    builder = Builder(node)
    if node.op_type == "Conv":
        return builder, builder.Conv(node.input(0), weight, node.input(2), activation="none", **node.attributes)
    group = node.attr("group", 1)
    strides, dilations = (_per_axis(node, name, w.ndim - 2) for name in ("strides", "dilations"))
    if strides is None or dilations is None or not isinstance(group, int) or group < 1 or w.shape[0] % group:
        return Skip("the attributes do not fit the weight")
    if math.prod(strides) > _MAX_REMAINDERS:
        return Skip(f"strides {strides} leave more than {_MAX_REMAINDERS} remainders")
    if not np.isfinite(widen(w)).all():
        return Skip("a weight is not finite")  # the kernel would multiply it with padding, the definition does not
    key = (weight, group, strides, dilations)
    if key not in sorted_taps:
        sorted_taps[key] = constant(f"{weight.name}/by_remainder", taps_by_remainder(w, group, strides, dilations))
    return builder, builder.ConvTranspose(node.input(0), weight, node.input(2), sorted_taps[key], activation="none", **node.attributes)


def _per_axis(node: Node, name: str, rank: int) -> tuple[int, ...] | None:
    """Positive integers, one for each spatial dim; None when the attribute is something else."""
    values = node.attr(name, ()) or (1,) * rank
    if not isinstance(values, (tuple, list)) or len(values) != rank:
        return None
    return tuple(values) if all(isinstance(value, int) and value > 0 for value in values) else None


def _is_dynamic(node: Node) -> bool:
    weight = node.input(1)
    return weight is not None and weight.stored is not None


def _lower_quantized(node: Node) -> Skip | tuple[Builder, Value]:
    weight, bias = node.input(1), node.input(2)
    codes = None if weight is None else int8_codes(weight)
    if weight is None or codes is None or codes.scale is None or node.mark is None:
        return Skip("the weight is no int8 constant")
    if codes.scale.size not in (1, codes.scale.shape[0]):
        return Skip("the scales do not run along the output channels")
    if bias is not None and bias.data is None:
        return Skip("the bias is computed at run time")
    attributes = {name: node.attributes[name] for name in _GEOMETRY if name in node.attributes}
    builder = Builder(node)
    return builder, builder.DynamicQuantizedConv(
        node.input(0), stored_constant(weight.name, codes), bias, activation="none", **row_attributes(node), **attributes
    )
