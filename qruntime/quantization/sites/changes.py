"""One change of the channels of a tensor, and what it makes of the constants that take it on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from qruntime.ir import Graph, Node, Value, constant
from qruntime.onnx_io.mapped_file import drop_pages
from qruntime.quantization.reasons import Reason

SCALE: Final = "scale"
SHIFT: Final = "shift"
ORDER: Final = "order"
KINDS: Final = (SHIFT, SCALE, ORDER)
"""What an Equivalence does to a tensor, in this order."""


class Change(NamedTuple):
    """t becomes t / by, t − by or t[…, by], as `kind` says. `by` is [K]."""

    kind: str
    by: np.ndarray

    @property
    def is_nothing(self) -> bool:
        return bool(np.array_equal(self.by, nothing(self.kind, len(self.by)).by))


def nothing(kind: str, channels: int) -> Change:
    """The change of that kind that leaves everything as it is."""
    if kind == ORDER:
        return Change(kind, np.arange(channels))
    return Change(kind, np.full(channels, 1 if kind == SCALE else 0, np.float32))


class Blocked(Exception):
    """Why a change goes no further."""

    @property
    def reason(self) -> Reason:
        return Reason(str(self))


Edit = Callable[[], None]


def floats_of(node: Node, index: int) -> np.ndarray:
    """The numbers of a constant input that can be computed with; Blocked for others."""
    value = node.input(index)
    if value is None or not value.is_constant:
        raise Blocked(f"input {index} of {node.label} is computed at run time")
    if value.data is None:
        raise Blocked(f"{value.name!r}, which {node.label} reads, is stored in few bits")
    if value.data.dtype not in (np.float32, np.float64):
        raise Blocked(f"{value.name!r}, which {node.label} reads, is {value.data.dtype}: a change would be rounded, need float32")
    return value.data


def replace(node: Node, index: int, data: np.ndarray) -> None:
    """Let `node` alone read `data` in place of the constant that it reads now."""
    old = node.input(index)
    assert old is not None
    assert old.data is not None
    node.set_input(index, constant(old.name, np.ascontiguousarray(data, old.data.dtype)))
    if not old.is_read:
        drop_pages(old.arrays())


def give(node: Node, index: int, name: str, data: np.ndarray) -> None:
    """Let `node` read `data` as its input `index`, which is absent or a constant."""
    while len(node.inputs) <= index:
        node.append_input(None)
    node.set_input(index, constant(name, data))


def insert_after(graph: Graph, value: Value, node: Node) -> None:
    """Put `node`, which reads `value`, behind what makes it; all other readers of `value` read what `node` makes."""
    for user, index in list(value.uses):
        if user is not node:
            user.set_input(index, node.outputs[0])
    for given in list(value.output_of):
        given.outputs = [node.outputs[0] if one is value else one for one in given.outputs]
    producer = value.producer
    assert producer is not None
    following = graph.nodes[graph.nodes.index(producer) + 1 :][:1]
    if following:
        graph.insert_before(following[0], node)
    else:
        graph.append(node)
