"""Which nodes depend on nothing but the shapes of the inputs.

Exporters write reshapes as chains Shape → Gather → Concat. Their results are the same whenever the
input shapes are, so the executor computes them once per input signature and remembers them.
"""

from __future__ import annotations

from collections.abc import Sequence

from qruntime.ir import Node, Value
from qruntime.ops import registry


def shape_only_nodes(nodes: Sequence[Node], inputs: Sequence[Value], outputs: Sequence[Value]) -> tuple[set[Node], list[Value]]:
    """Nodes (in running order) that depend on input shapes only, and those of their results that others read.

    `inputs` are the graph inputs whose shapes make the signature; empty switches the analysis off.
    """
    shape_known: set[Value] = {v for v in inputs if v.type is None or v.type.kind == "tensor"}
    data_known: set[Value] = set()
    found: set[Node] = set()
    if not shape_known:
        return found, []

    def has_data(value: Value) -> bool:
        return value.is_constant or value in data_known

    for node in nodes:
        spec = registry.find(node.domain, node.op_type, node.version)
        if spec is None or not spec.deterministic or node.subgraphs:
            continue
        read = [v for v in node.inputs if v is not None]
        if node.is_op("Shape", "Size"):
            if has_data(read[0]) or read[0] in shape_known:
                found.add(node)
        elif read and all(has_data(v) for v in read):
            found.add(node)
        if node in found:
            data_known.update(node.outputs)
            shape_known.update(node.outputs)
        elif (
            spec.shape_inputs is not None
            and all(v.is_constant or v in shape_known for v in read)
            and all(v is None or has_data(v) for v in (node.input(i) for i in spec.shape_inputs))
        ):
            shape_known.update(node.outputs)

    readers_outside = {
        v
        for node in nodes
        if node not in found
        for v in (*node.inputs, *(node.captured() if node.subgraphs else ()))
        if v is not None
    } | set(outputs)
    boundary = [v for node in nodes if node in found for v in node.outputs if v in readers_outside]
    return found, boundary
