"""The blocks of a network, found by its residual stream and not by names.

A residual is an addition one of whose summands is computed from the other through a layer: the other is the stream. Between two
such additions lies a half of a block. Halves that mix tokens (attention, recurrence) begin a block, and those behind them that do
not (feed-forward) belong to it; where no half mixes tokens each is a block of its own. What stands between an addition and where
the stream is read next, the norm of post-norm encoders, belongs to the block before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from qruntime.ir import Graph, Node, Value, needed_nodes, read_by
from qruntime.quantization.selection import layer_kind

_MIXING = frozenset({"Attention", "MultiHeadAttention", "GroupQueryAttention", "LSTM", "GRU", "RNN"})


@dataclass(frozen=True, eq=False)
class Block:
    """Nodes of a graph, in running order, that compute `end` from `start`."""

    start: Value
    """The stream before the block."""
    end: Value
    """The stream behind it."""
    nodes: tuple[Node, ...]
    inputs: tuple[Value, ...]
    """All that the nodes read from outside: `start`, then masks, positions, caches; no constants."""
    outputs: tuple[Value, ...]
    """All of it that is read outside: `end`, then what caches and later nodes take."""


def blocks_of(graph: Graph) -> list[Block]:
    """The blocks of `graph`, first to last, each ending where the next starts; none of a network without residuals."""
    primary = needed_nodes(graph, [max(graph.outputs, key=lambda value: _layers_behind(graph, value))]) if graph.outputs else []
    ends = _stream(primary)
    if len(ends) < 2:
        return []
    halves = [_between(graph, primary, start, end) for start, end in pairwise(ends)]
    firsts = [i for i, nodes in enumerate(halves) if any(_mixes(node) for node in nodes)] or list(range(len(halves)))
    bounds = [0, *firsts[1:], len(halves)]
    return [_block(graph, primary, ends[first], ends[last]) for first, last in pairwise(bounds)]


def _layers_behind(graph: Graph, value: Value) -> int:
    return sum(layer_kind(node) is not None for node in needed_nodes(graph, [value]))


def _stream(nodes: Sequence[Node]) -> list[Value]:
    """Where halves begin, and where the last one ends."""
    joins = sorted(_residuals(nodes), key=lambda join: join.place)
    chain: list[_Join] = []
    for join in joins:
        if not chain or chain[-1].end is join.start or join.follows(chain[-1].end):
            chain.append(join)
    if not chain:
        return []
    last = chain[-1].end
    if len(chain) > 1:
        last = _behind_alike(nodes, last, _kinds(needed_nodes_within(nodes, chain[-2].end, chain[-1].start))) or last
    return [*(join.start for join in chain), last]


@dataclass(frozen=True, eq=False)
class _Join:
    """A residual: the stream before it and behind it, and the place in running order of what makes the former."""

    start: Value
    end: Value
    place: int
    ancestors: frozenset[Value]
    """Of `start`."""

    def follows(self, value: Value) -> bool:
        return value in self.ancestors


def _residuals(nodes: Sequence[Node]) -> Iterator[_Join]:
    """Additions of what is computed from the other summand through a layer. Sets of values are bits of integers."""
    number: dict[Value, int] = {}
    values: list[Value] = []
    behind: dict[Value, int] = {}
    through_layer: dict[Value, int] = {}

    def bit(value: Value) -> int:
        if value not in number:
            number[value] = len(values)
            values.append(value)
        return 1 << number[value]

    for node in nodes:
        read = [value for value in read_by(node) if not value.is_constant]
        above = layered = 0
        for value in read:
            above |= behind.get(value, 0) | bit(value)
            layered |= through_layer.get(value, 0)
        if layer_kind(node) is not None or node.op_type in _MIXING:
            layered |= above
        for output in node.outputs:
            bit(output)
            behind[output], through_layer[output] = above, layered
        if node.is_op("Add", "Sum") and len(read) == 2:
            for start, other in (read, read[::-1]):
                if through_layer.get(other, 0) & bit(start):
                    ancestors = behind.get(start, 0)
                    yield _Join(start, node.outputs[0], number[start], frozenset(v for i, v in enumerate(values) if ancestors >> i & 1))


def needed_nodes_within(nodes: Sequence[Node], start: Value, end: Value) -> list[Node]:
    """Those of `nodes`, in running order, that compute `end` from `start`: behind the one and before the other."""
    behind = {start}
    made = []
    for node in nodes:
        if not behind.isdisjoint(read_by(node)):
            behind.update(node.outputs)
            made.append(node)
    needed, found = {end}, []
    for node in reversed(made):
        if not needed.isdisjoint(node.outputs) and start not in node.outputs:
            needed.update(read_by(node))
            found.append(node)
    return found[::-1]


def _kinds(nodes: Sequence[Node]) -> list[str]:
    return [node.op_type for node in nodes]


def _behind_alike(nodes: Sequence[Node], start: Value, kinds: list[str]) -> Value | None:
    """What nodes of the same operators make of `start` as stand behind the other additions."""
    if not kinds:
        return None
    ends = (node.outputs[0] for node in nodes if node.op_type == kinds[-1])
    return next((end for end in ends if _kinds(needed_nodes_within(nodes, start, end)) == kinds), None)


def _between(graph: Graph, primary: Sequence[Node], start: Value, end: Value) -> list[Node]:
    return needed_nodes_within(primary, start, end)


def _mixes(node: Node) -> bool:
    """Whether a node brings tokens together: a product of two tensors that are computed, or an operator that holds one."""
    if node.op_type in _MIXING:
        return True
    read = [value for value in node.inputs if value is not None and not value.is_constant]
    return node.is_op("MatMul", "Einsum") and len(read) == 2


def _block(graph: Graph, primary: Sequence[Node], start: Value, end: Value) -> Block:
    nodes = _between(graph, primary, start, end)
    made = dict.fromkeys(output for node in nodes for output in node.outputs)
    inside = set(nodes)
    read = dict.fromkeys([start, *(value for node in nodes for value in read_by(node) if not value.is_constant and value not in made)])
    used = [value for value in made if value.output_of or any(_owner(user, graph) not in inside for user, _ in value.uses)]
    return Block(start, end, tuple(nodes), tuple(read), tuple(dict.fromkeys([end, *used])))


def _owner(node: Node, graph: Graph) -> Node | None:
    """A node of `graph` itself; None for one of a subgraph, which counts as outside."""
    return node if node.graph is graph else None
