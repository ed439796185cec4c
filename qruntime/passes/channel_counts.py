"""How many channels an image has is asked of its shape at run time, as by chunk of torch, and known of the weights that made it.

Gather(Shape(Conv(x, w)), 1)   →   the number of outputs of w
"""

from __future__ import annotations

import numpy as np

from qruntime.ir import QRUNTIME, Graph, Node, Value, constant
from qruntime.passes.cleanup import fold_all_constants, remove_dead_nodes
from qruntime.passes.rewriting import trace

_KEEPING = (
    "AveragePool", "BatchNormalization", "Clip", "Dropout", "Elu", "Gelu", "HardSigmoid", "HardSwish", "InstanceNormalization", "LeakyRelu",
    "MaxPool", "Mish", "Relu", "Sigmoid", "Softplus", "Swish", "Tanh",
)  # fmt: skip
"""Operators whose first output has the channels of the first input, whatever the others are."""

_OF_OUR_DOMAIN = ("Gelu", "HardSwish", "Silu")


def fold_channel_counts(graph: Graph) -> None:
    """Channels that a graph reads of the shape of an image which a convolution made, and what follows of them  →  constants."""
    found_any = False
    for nested in graph.walk_graphs():
        channels: dict[Value, tuple[int, int]] = {}
        shapes: dict[Value, tuple[int, int]] = {}
        for node in nested.nodes:
            if node.is_op("Shape") and node.inputs[0] in channels and not node.attr("start", 0) and "end" not in node.attributes:
                shapes[node.outputs[0]] = channels[node.inputs[0]]
            elif node.is_op("Gather") and node.inputs[0] in shapes:
                count, rank = shapes[node.inputs[0]]
                index = node.inputs[1].data if node.inputs[1] is not None else None
                if index is not None and index.size == 1 and int(index.reshape(-1)[0]) in (1, 1 - rank):
                    trace(f"fold_channel_counts at {node.label}: {count}")
                    known = constant(f"{node.outputs[0].name}/channels", np.full(index.shape, count, np.int64))
                    nested.replace_uses(node.outputs[0], known)
                    found_any = True
            else:
                found = _channels(node, channels)
                if found is not None:
                    channels[node.outputs[0]] = found
    if found_any:
        fold_all_constants(graph)
        remove_dead_nodes(graph)


def _channels(node: Node, known: dict[Value, tuple[int, int]]) -> tuple[int, int] | None:
    """Channels and rank of the first output, where they are certain."""
    if node.is_op("Conv") or node.is_op("Conv", "DynamicQuantizedConv", domain=QRUNTIME):
        weight = node.input(1)
        shape = None if weight is None else weight.shape
        return None if shape is None or len(shape) < 3 else (shape[0], len(shape))
    first, second = node.input(0), node.input(1)
    if first is None:
        return None
    if node.is_op(*_KEEPING) or node.is_op(*_OF_OUR_DOMAIN, domain=QRUNTIME):
        return known.get(first)
    if node.is_op("Add", "Mul") and second is not None:
        found = [known[value] for value in (first, second) if value in known]
        if len(found) == 2 and found[0] == found[1]:
            return found[0]
        other = second if first in known else first
        if len(found) == 1 and other.data is not None and other.data.size == 1 and other.data.ndim <= found[0][1]:
            return found[0]
    return None
