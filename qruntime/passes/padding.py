"""Zeros around an image that a node of its own puts there, as exporters do for causal and "same" convolutions.

    Conv(Pad(x, zeros), W, b)    Conv(x, W, b) with wider pads

Only where the result says the same: constant zeros, nothing cut, along spatial axes alone, and a weight that is finite, for
the sum of products has no products of padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qruntime.ir import Graph, Node, Value
from qruntime.passes.rewriting import Skip, as_attribute, scalar, splice, trace


def fold_padding(graph: Graph) -> None:
    """Conv over a Pad with zeros  →  Conv with wider pads; the Pad stays for what else reads it."""
    for nested in graph.walk_graphs():
        unread: dict[Node, list[Node]] = {}
        for node in nested.nodes:
            image = node.input(0) if node.is_op("Conv") else None
            pad = None if image is None else image.producer
            if pad is None or not pad.is_op("Pad"):
                continue
            pads = _joined(node, pad)
            if isinstance(pads, Skip):
                trace(f"fold_padding declines at {node.label}: {pads}")
                continue
            trace(f"fold_padding at {node.label}")
            node.set_input(0, pad.input(0))
            node.attributes["pads"] = as_attribute(pads)
            if not pad.outputs[0].uses and not pad.outputs[0].output_of:
                unread[pad] = []
        splice(nested, unread)


def _joined(conv: Node, pad: Node) -> Skip | list[int]:
    """What the convolution is to put around the image: all begins, then all ends."""
    rank = _rank_of_finite(conv.input(1))
    if isinstance(rank, Skip):
        return rank
    if rank < 3 or conv.attr("auto_pad", "NOTSET") != "NOTSET":
        return Skip("the convolution finds its pads by the size of the image")
    wider = _zeros_around(pad, rank)
    own = conv.attr("pads", ()) or (0,) * 2 * (rank - 2)
    if isinstance(wider, Skip):
        return wider
    if not isinstance(own, (list, tuple)) or len(own) != len(wider) or not all(isinstance(n, int) and n >= 0 for n in own):
        return Skip(f"the convolution has pads {own} for {rank - 2} spatial axes")
    return [mine + its for mine, its in zip(own, wider, strict=True)]


def _rank_of_finite(weight: Value | None) -> Skip | int:
    if weight is not None and weight.stored is not None:
        return len(weight.stored.shape)
    if weight is None or weight.data is None or weight.data.dtype.kind != "f":
        return Skip("the weight is computed at run time")
    return weight.data.ndim if np.isfinite(weight.data).all() else Skip("a weight is not finite, and padding times it is no zero")


def _zeros_around(pad: Node, rank: int) -> Skip | list[int]:
    """How many zeros the node puts around each spatial axis: all begins, then all ends."""
    by_attribute = pad.attr("pads", None)
    given = by_attribute if by_attribute is not None else _integers(pad.input(1))
    fill = pad.attr("value", 0.0) if by_attribute is not None else 0.0 if pad.input(2) is None else scalar(pad.input(2))
    axes = list(range(rank)) if pad.input(3) is None else _integers(pad.input(3))
    if pad.attr("mode", "constant") != "constant" or fill != 0:
        return Skip("what it puts around the image are no zeros")
    if given is None or axes is None or not all(isinstance(n, int) for n in given):
        return Skip("how much it puts there is computed at run time")
    if len(given) != 2 * len(axes) or not all(-rank <= axis < rank for axis in axes):
        return Skip("its axes are not those of the weight")
    around = [0] * 2 * rank
    for place, axis in enumerate(axes):
        around[axis % rank], around[rank + axis % rank] = given[place], given[len(axes) + place]
    begins, ends = around[:rank], around[rank:]
    if min(around) < 0 or any((*begins[:2], *ends[:2])):
        return Skip("it cuts, or pads batches or channels")
    return begins[2:] + ends[2:]


def _integers(value: Value | None) -> Sequence[int] | None:
    if value is None or value.data is None or value.data.dtype.kind not in "iu" or value.data.ndim != 1:
        return None
    return [int(n) for n in value.data]
