"""The standard nodes that take the place of one that says more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from qruntime.ir import Node, Value, constant
from qruntime.ops.contrib.domain import NEWEST
from qruntime.passes.known_ranks import Known
from qruntime.passes.rewriting import Builder


class Pieces:
    """Makes nodes of the standard domain, of the opset given: `op.Add(x, y)` returns the new value.

    `ranks` are those of values of the graph, for who has to know them.
    """

    def __init__(self, node: Node, opset: int = NEWEST, ranks: Mapping[Value, Known] | None = None):
        self.builder = Builder(node, opset)
        self.ranks = ranks or {}

    def __getattr__(self, op_type: str) -> Callable[..., Value]:
        make = getattr(self.builder, op_type)
        return lambda *inputs, **attributes: make(*inputs, domain="", **attributes)

    def several(self, count: int, op_type: str, *inputs: Value | None, domain: str = "", **attributes: Any) -> list[Value]:
        """The outputs of a node that has `count` of them."""
        first = getattr(self.builder, op_type)(*inputs, domain=domain, **attributes)
        node = self.builder.nodes[-1]
        for index in range(1, count):
            further = Value(f"{first.name}/{index}")
            further.producer = node
            node.outputs.append(further)
        return list(node.outputs)

    def number(self, value: float) -> Value:
        return constant(f"{value}", np.array(value, np.float32))

    def withdraw(self) -> None:
        """Let go of what the nodes read: they will not be used."""
        for node in self.builder.nodes:
            for index in range(len(node.inputs)):
                node.set_input(index, None)
