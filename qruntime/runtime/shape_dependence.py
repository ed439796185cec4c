"""Which nodes depend on nothing but the shapes of the inputs.

Exporters write reshapes as chains Shape → Gather → Concat. Their results are the same whenever the
input shapes are, so the executor computes them once per input signature and remembers them.
"""

from __future__ import annotations

from collections.abc import Sequence

from qruntime.ir import QRUNTIME, Node, Value
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

    for node in nodes:
        spec = registry.find(node.domain, node.op_type, node.version)
        if spec is None or not spec.deterministic or node.subgraphs:
            continue
        read = [v for v in node.inputs if v is not None and v.data is None]
        if node.is_op("Shape", "Size") or node.is_op("BlockedShape", domain=QRUNTIME):
            depends_on_shapes = shape_known.issuperset(read)
        else:
            depends_on_shapes = data_known.issuperset(read) and node.inputs.count(None) < len(node.inputs)
        if depends_on_shapes:
            found.add(node)
            data_known.update(node.outputs)
            shape_known.update(node.outputs)
        elif (
            spec.shape_inputs is not None
            and shape_known.issuperset(read)
            and data_known.issuperset(v for i in spec.shape_inputs if (v := node.input(i)) is not None and v.data is None)
        ):
            shape_known.update(node.outputs)

    read_outside: set[Value | None] = set(outputs)
    for node in nodes:
        if node not in found:
            read_outside.update(node.inputs)
            if node.subgraphs:
                read_outside.update(node.captured())
    boundary = [v for node in nodes if node in found for v in node.outputs if v in read_outside]
    return found, boundary
