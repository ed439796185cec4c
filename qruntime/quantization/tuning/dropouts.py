"""Dropout of a file that was exported in training mode: a module drops while it is trained, and what it becomes does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from qruntime.errors import QuantizationError
from qruntime.ir import Graph, Node
from qruntime.passes.cleanup import remove_identities
from qruntime.passes.rewriting import as_attribute

Dropping = Callable[[Any], Any]


class Dropouts:
    """Those of `graph` that are in training mode. They draw from torch's generator; a `seed` in the file, which would make the same
    draw at every step, does not count. QuantizationError for a share that is not known."""

    def __init__(self, graph: Graph):
        self.is_on = False
        self.places: dict[Node, dict[int, Dropping]] = {node: {0: self._dropping(_ratio(node))} for node in graph.nodes if drops(node)}
        """What they do to their input."""

    def _dropping(self, ratio: float) -> Dropping:
        def dropping(x: Any) -> Any:
            import torch

            return torch.nn.functional.dropout(x, ratio, training=self.is_on)

        return dropping


def drops(node: Node) -> bool:
    """Whether a node is Dropout that draws at every run."""
    if not node.is_op("Dropout"):
        return False
    if node.version < 7:
        return not node.attr("is_test", 0)
    training = node.input(2)
    return training is not None and training.is_constant and bool(np.any(training.data))


def stop_dropping(graph: Graph) -> None:
    """Make every Dropout of `graph` what it is in inference."""
    dropping = [node for node in graph.walk_nodes() if drops(node)]
    for node in dropping:
        if node.version < 7:
            node.attributes["is_test"] = as_attribute(1)
        else:
            node.set_input(2, None)
    if dropping:
        remove_identities(graph)


def _ratio(node: Node) -> float:
    given = node.input(1)
    if given is None:
        return float(node.attr("ratio", 0.5))
    if given.data is None or given.data.size != 1:
        raise QuantizationError(f"{node.label}: its ratio must be one number that the file holds, to be dropped with in training")
    return float(given.data.item())
