"""A constant that is another one transposed is written as Transpose of it: a table of embeddings whose rows are looked up and
which scores the vocabulary, too, stands in a file once, as it did in the one it was loaded from."""

from __future__ import annotations

import numpy as np

from qruntime.ir import Graph, Node, Value
from qruntime.passes.rewriting import as_attribute

_LEAST = 1 << 12
"""Bytes of a constant from which on a node is worth it."""


def transposed_constants(graph: Graph) -> list[tuple[Value, Value, tuple[int, ...]]]:
    """Each constant of `graph` that is a view of another one, with that one and how its axes are permuted."""
    large = [(value, value.data) for value in graph.constants() if value.data is not None and value.data.nbytes >= _LEAST]
    plain = {_place(data): (value, data) for value, data in large if data.flags.c_contiguous}
    found = []
    for value, data in large:
        if data.flags.c_contiguous or value.output_of or _place(data) not in plain:
            continue
        source, whole = plain[_place(data)]
        order = np.argsort([-stride for stride in data.strides], kind="stable")  # its axes as they follow in memory
        perm = tuple(int(axis) for axis in np.argsort(order))
        if data.ndim == whole.ndim and whole.transpose(perm).strides == data.strides and whole.transpose(perm).shape == data.shape:
            found.append((value, source, perm))
    return found


def _place(data: np.ndarray) -> tuple[object, ...]:
    return data.dtype, data.nbytes, data.__array_interface__["data"][0]


def write_transposed(graph: Graph, opset: int) -> None:
    """Constants that are views of others  →  Transpose of those."""
    nodes = []
    for value, source, perm in transposed_constants(graph):
        output = Value(value.name, value.type)
        nodes.append(Node("Transpose", [source], [output], {"perm": as_attribute(perm)}, version=opset))
        graph.replace_uses(value, output)
    if nodes:
        graph.insert_before(graph.nodes[0], *nodes)
