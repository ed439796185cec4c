"""Where the paths of several layers meet again: the product of attention, that of a gate, a sum."""

from __future__ import annotations

from collections.abc import Sequence

from qruntime.ir import Graph, Node, Value
from qruntime.quantization.sites.tracing import leads_out, reads_shape


def meeting_of(graph: Graph, nodes: Sequence[Node]) -> Value | None:
    """The nearest value through which all goes that any of `nodes` makes; None for one node alone, and where there is none.

    What only hands data to the outputs of the graph, as a decoder does with its cache, is no path.
    """
    if len(nodes) < 2:
        return None
    at = {node: position for position, node in enumerate(graph.nodes)}
    origins: dict[Node, frozenset[Node]] = {node: frozenset((node,)) for node in nodes}
    waiting = set(nodes)
    first = min(at[node] for node in nodes)
    for node in graph.nodes[first:]:
        if node in nodes:
            waiting.discard(node)
        elif node in origins:
            waiting.discard(node)
            if not waiting and origins[node] == frozenset(nodes) and len(node.outputs) == 1:
                return node.outputs[0]
        else:
            continue
        readers = [user for output in node.outputs for user, _ in output.uses if not reads_shape(user)]
        users = [user for user in readers if not leads_out(user, graph)]
        ends = not users and (readers or any(output.output_of for output in node.outputs))
        if ends or any(user.graph is not graph for user in users):
            return None
        for user in users:
            origins[user] = origins.get(user, frozenset()) | origins[node]
            waiting.add(user)
    return None
