"""Windows of 3 × 3 by Winograd's products: 16 multiplications where there were 36, within a bound of their own (kernels/conv_f32.h).

BlockedConv(kind="blocks", 3 × 3, no strides, no dilations)  →  BlockedConv(kind="winograd")
"""

from __future__ import annotations

from qruntime.ir import QRUNTIME, Graph, Node
from qruntime.passes.rewriting import Skip, as_attribute, trace

_LEAST_CHANNELS = 32
"""Of inputs and of outputs: with fewer, what is spread and collected costs as much as the products that are spared."""


def multiply_less(graph: Graph) -> None:
    """Convolutions of images in blocks that Winograd's products make."""
    for node in graph.walk_nodes():
        if not node.is_op("BlockedConv", domain=QRUNTIME) or node.attr("kind", "blocks") != "blocks":
            continue
        why = _obstacle(node)
        trace(f"multiply_less at {node.label}" if why is None else f"multiply_less declines at {node.label}: {why}")
        if why is None:
            node.attributes["kind"] = as_attribute("winograd")


def _obstacle(node: Node) -> Skip | None:
    weight = node.input(1)
    shape = None if weight is None or weight.data is None else weight.data.shape
    if shape is None or len(shape) != 4 or shape[2:] != (3, 3):
        return Skip("its windows are not of 3 × 3")
    if set(node.attr("strides") or (1,)) != {1} or set(node.attr("dilations") or (1,)) != {1}:
        return Skip("its windows have strides or dilations")
    if node.attr("group", 1) != 1:
        return Skip("its channels are in groups")
    if min(shape[:2]) < _LEAST_CHANNELS:
        return Skip(f"{min(shape[:2])} channels are too few")
    return None
