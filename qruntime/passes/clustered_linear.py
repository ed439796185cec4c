"""Linear layers whose activations have a range for each cluster of channels, as those of RPTQ."""

from __future__ import annotations

import numpy as np

from qruntime.ir import Graph, Node, Value, constant
from qruntime.ops.clustered_linear import Clusters, clusters_of, fits_clusters
from qruntime.passes.rewriting import QRUNTIME, Builder, Skip, splice, trace
from qruntime.passes.scaled_codes import is_dequantize

_LEAST_OPSET = 13
"""QuantizeLinear has an axis from then on."""


def multiply_clusters(graph: Graph) -> None:
    """Linear(x, W), where x stands for codes with a scale for each channel  →  ClusteredLinear(Gather(codes), W), the channels in the
    order of their clusters.

    x may be RoundToCodes(source), whose codes are found then, or DequantizeLinear(codes). Codes are put in order once for all layers.
    """
    for nested in graph.walk_graphs():
        ordered: dict[Value, Value] = {}
        replaced: dict[Node, list[Node]] = {}
        for node in nested.nodes:
            if not node.is_op("Linear", domain=QRUNTIME):
                continue
            made = _lower(node, ordered)
            if isinstance(made, Skip):
                trace(f"multiply_clusters declines at {node.label}: {made}")
            elif made is not None:
                builder, output = made
                nested.replace_uses(node.outputs[0], output)
                replaced[node] = builder.nodes
                trace(f"multiply_clusters at {node.label}")
        splice(nested, replaced)


def _lower(node: Node, ordered: dict[Value, Value]) -> tuple[Builder, Value] | Skip | None:
    """`ordered` holds the codes of tensors in their new order."""
    x, weight, bias = node.input(0), node.input(1), node.input(2)
    if x is None or weight is None or weight.stored is None:
        return None
    rounding = _rounding_of(x, weight.shape)
    if rounding is None:
        return None
    scale, zero_point = rounding.inputs[1:3]
    assert scale is not None and scale.data is not None
    assert zero_point is not None and zero_point.data is not None
    clusters = clusters_of(scale.data, zero_point.data)
    if not clusters.is_worth_it:
        return Skip(f"{len(clusters.fours)} clusters of {scale.data.size} channels are sooner multiplied as floats")
    if not fits_clusters(weight.stored):
        return Skip("the weight has no form of the kernel: integers with scales and zero points of columns")
    builder = Builder(node, opset=_LEAST_OPSET)
    if x not in ordered:
        ordered[x] = _in_order(builder, rounding, clusters)
    return builder, builder.ClusteredLinear(ordered[x], weight, bias, None, scale, zero_point, activation="none")


def _rounding_of(x: Value, shape: tuple[int, ...] | None) -> Node | None:
    """The node that makes `x` of codes uint8, or rounds to them, with finite scales above 0 for each index of the last axis."""
    node = x.producer
    if node is None or shape is None or not (node.is_op("RoundToCodes", domain=QRUNTIME) or is_dequantize(node)):
        return None
    if node.attr("block_size", 0) or node.attr("output_dtype", 0) not in (0, 1) or node.attr("axis", 1) != -1:
        return None
    scale, zero_point = (None if value is None else value.data for value in (node.input(1), node.input(2)))
    if scale is None or zero_point is None or scale.shape != shape[:1] or zero_point.shape != shape[:1]:
        return None
    if scale.dtype != np.float32 or zero_point.dtype != np.uint8 or not (np.isfinite(scale) & (scale > 0)).all():
        return None
    return node


def _in_order(op: Builder, rounding: Node, clusters: Clusters) -> Value:
    codes = rounding.input(0)
    if not is_dequantize(rounding):
        codes = op.QuantizeLinear(codes, *rounding.inputs[1:3], axis=-1, most=rounding.attr("most", 255))
    return op.Gather(codes, constant(f"{rounding.outputs[0].name}/channels", clusters.places), domain="", axis=-1)
