"""Casts to the element type a value already has: exporters emit them for models that also run in half precision."""

from __future__ import annotations

from qruntime.ir import Graph
from qruntime.passes.element_types import element_type, element_types


def remove_casts(graph: Graph) -> None:
    """Cast(x, to=t)  →  x, where x surely has the element type t."""
    known = element_types(graph)
    for nested in graph.walk_graphs():
        gone = []
        for node in nested.nodes:
            source = node.input(0) if node.is_op("Cast") else None
            code = element_type(source, known)
            if source is None or not code or code != node.attr("to", 0) or node.outputs[0].output_of:
                continue
            nested.replace_uses(node.outputs[0], source)
            gone.append(node)
        nested.remove(*gone)
