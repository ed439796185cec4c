"""The first pass over a loaded graph: constants behind a dequantization become stored values, marks become marks."""

from __future__ import annotations

from collections.abc import Callable

from qruntime.ir import Graph, Node, StoredTensor, TypeInfo
from qruntime.ir.marks import from_metadata, without_mark
from qruntime.passes.cleanup import remove_dead_nodes
from qruntime.passes.rewriting import QRUNTIME, trace
from qruntime.passes.stored import cast_chain, dequantize_linear, functions, half, moves, outliers
from qruntime.passes.stored.embedding_rows import read_embedding_rows
from qruntime.passes.stored.function_bodies import NAMES

_READERS: dict[str, list[Callable[[Node], StoredTensor | None]]] = {
    "DequantizeLinear": [dequantize_linear.read],
    "Mul": [cast_chain.read],
    "Cast": [half.read, moves.read],
    **{op_type: [moves.read] for op_type in moves.OPERATORS},
    **{name: [outliers.read if name == outliers.NAME else functions.read] for name in NAMES},
}
"""By the last operator of a form."""


def read_stored(graph: Graph) -> None:
    """Codes with what dequantizes them  →  one constant that is `stored`."""
    for node in graph.walk_nodes():
        if node.metadata and (mark := from_metadata(node.metadata)) is not None:
            node.mark, node.metadata = mark, without_mark(node.metadata)
    is_changed = False
    for nested in graph.walk_graphs():
        gone = [node for node in nested.nodes if node.op_type in _READERS and _read(node)]
        if gone:
            nested.remove(*gone)
            is_changed = True
    if is_changed:
        remove_dead_nodes(graph)  # the rest of a form, before it is computed as a constant
    read_embedding_rows(graph)


def _read(node: Node) -> bool:
    output = node.outputs[0]
    if output.output_of or node.domain != (QRUNTIME if node.op_type in NAMES else ""):
        return False
    for read in _READERS[node.op_type]:
        stored = read(node)
        if stored is not None:
            trace(f"read_stored at {node.label}: {stored.format} {list(stored.shape)}")
            output.producer, output.stored = None, stored
            output.type = TypeInfo("tensor", stored.element_type, stored.shape)
            output.name = output.name.removesuffix("_transposed").removesuffix("_dequantized")
            return True
    return False
