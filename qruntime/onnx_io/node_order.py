"""Running order of the nodes of a file, found by name.

Files list nodes in any order, and a subgraph may read a value whose producer comes after its own node.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from qruntime.errors import InvalidModel
from qruntime.onnx_io.messages import AttributeProto, GraphProto, NodeProto

_NOTHING: set[str] = set()


def label(node: NodeProto) -> str:
    op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    return f"node {op} {node.name or (node.output[0] if node.output else '')!r}"


def in_running_order(nodes: Sequence[NodeProto], where: str) -> Sequence[NodeProto]:
    """`nodes`, each after the producers of what it or its subgraphs read (stable).

    Raises InvalidModel when an output name is given twice, or for a cycle.
    """
    made: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in node.output:
            if name:
                if name in made:
                    raise InvalidModel(f"{where}: {name!r} is made by {label(nodes[made[name]])} and by {label(node)}")
                made[name] = index
    for index, node in enumerate(nodes):
        for name in node.input:
            if name in made and made[name] >= index:
                return _sorted(nodes, made, where)
        if node.attribute and any(made.get(name, -1) >= index for name in _captured(node)):
            return _sorted(nodes, made, where)
    return nodes


def _sorted(nodes: Sequence[NodeProto], made: dict[str, int], where: str) -> list[NodeProto]:
    needs: list[set[int]] = []
    readers: list[list[int]] = [[] for _ in nodes]
    for index, node in enumerate(nodes):
        needs.append({made[name] for name in (*node.input, *_captured(node)) if name in made})
        for producer in needs[index]:
            readers[producer].append(index)
    ready = [index for index in range(len(nodes)) if not needs[index]]
    ordered = []
    while ready:
        done = heapq.heappop(ready)
        ordered.append(nodes[done])
        for reader in readers[done]:
            needs[reader].discard(done)
            if not needs[reader]:
                heapq.heappush(ready, reader)
    if len(ordered) < len(nodes):
        stuck = next(index for index in range(len(nodes)) if needs[index])
        raise InvalidModel(f"{where}: there is a cycle; {label(nodes[stuck])} depends on its own output")
    return ordered


def subgraphs(attributes: Sequence[AttributeProto]) -> list[GraphProto]:
    found: list[GraphProto] = []
    for attribute in attributes:
        if attribute.g is not None:
            found.append(attribute.g)
        if attribute.graphs:
            found.extend(attribute.graphs)
    return found


def _captured(node: NodeProto) -> set[str]:
    graphs = subgraphs(node.attribute)
    return set().union(*map(_free_names, graphs)) if graphs else _NOTHING


def _free_names(graph: GraphProto) -> set[str]:
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    read = {value.name for value in graph.output}
    for node in graph.node:
        own.update(node.output)
        read.update(node.input)
        if node.attribute:
            read |= _captured(node)
    return read - own
