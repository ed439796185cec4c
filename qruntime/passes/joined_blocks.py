"""What joins images in blocks for one convolution alone moves bytes for nothing: the convolution reads each of them where it lies.

BlockedConv(Concat(a, b, …))  →  BlockedConv(a, b, …)
"""

from __future__ import annotations

from qruntime.ir import QRUNTIME, Graph, Node
from qruntime.passes.cleanup import remove_dead_nodes
from qruntime.passes.rewriting import only_reader

_MORE = 5
"""The input from which on further images are read: behind weight, bias, residual and addend."""

_MOST_IMAGES = 32


def read_blocks_apart(graph: Graph) -> None:
    """Convolutions of images in blocks read those that a Concat of channels joins for them."""
    found = False
    for nested in graph.walk_graphs():
        for node in nested.nodes:
            joined = _joined(nested, node)
            if joined is None:
                continue
            first, *more = joined.inputs
            node.set_input(0, first)
            while len(node.inputs) < _MORE:
                node.append_input(None)
            for value in more:
                node.append_input(value)
            found = True
    if found:
        remove_dead_nodes(graph)


def _joined(graph: Graph, node: Node) -> Node | None:
    """The Concat of channels that this convolution alone reads, as its image and nothing else."""
    if not node.is_op("BlockedConv", domain=QRUNTIME) or node.attr("kind", "blocks") != "blocks" or len(node.inputs) > _MORE:
        return None
    image = node.input(0)
    joined = None if image is None else image.producer
    if joined is None or not joined.is_op("Concat") or joined.attr("axis") != 1 or len(joined.inputs) > _MOST_IMAGES:
        return None
    return joined if node.inputs.count(image) == 1 and only_reader(graph, joined) is node else None
