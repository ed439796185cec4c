"""A change of the channels of a tensor, followed against the flow to what takes it on.

Every value on the way has *labels*: an array of integers, broadcast against its dimensions from the right, that says which
channel of the tensor an element belongs to, −1 for one that belongs to none. Movement of data is movement of labels; so heads
that are repeated, or halves that a rotary embedding turns, are found to be one where their labels meet, whoever wrote the graph.

What an operator does with a change is its rule (`rules.py`). A rule hands it on to inputs with `reach`, or notes an edit of
the constants that take it on. Edits are made once the whole way is known to be clear.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Mapping

import numpy as np

from qruntime.ir import Graph, Node, Value
from qruntime.quantization.sites.changes import ORDER, SCALE, Blocked, Change, Edit
from qruntime.quantization.sites.shapes import Shapes
from qruntime.quantization.sites.sizes import ONE

Use = tuple[Node, int]
Rule = Callable[["Trace", Node], None]
Rules = Mapping[tuple[str, str], Rule]

_DEEPEST = 4
"""Choices within choices: each doubles the work."""


class Ground:
    """What traces in one graph share. `cache_is_private` lets a change reach what a decoder keeps from run to run."""

    def __init__(self, graph: Graph, rules: Rules, *, cache_is_private: bool = False):
        self.graph, self.rules, self.cache_is_private = graph, rules, cache_is_private
        self.shapes = Shapes(graph)
        self._positions: dict[Graph, dict[Node, int]] = {}

    def positions(self, graph: Graph) -> dict[Node, int]:
        """Where each node stands in `graph`, which is no more changed than by nodes that come."""
        known = self._positions.get(graph, {})
        if len(known) != len(graph.nodes):
            known = self._positions[graph] = {node: position for position, node in enumerate(graph.nodes)}
        return known


class Trace:
    """The way of `change` from `value`, which nobody may read but `uses`; raises Blocked where it is not clear.


    `edits` make it. `ties` [K] numbers the channels: those of one number can only be changed alike. `parts` [K] numbers
    them, too: an order keeps every channel among those of its number. Who else reads a value is not asked unless `is_sole`.
    """

    def __init__(
        self,
        ground: Ground,
        value: Value,
        uses: Iterable[Use],
        change: Change,
        labels: np.ndarray | None = None,
        *,
        is_sole: bool = True,
        depth: int = 0,
    ):
        if depth > _DEEPEST:
            raise Blocked("there are too many ways back from here")
        if value.producer is None or value.producer.graph is None:
            raise Blocked(f"{value.name!r} is an input of the graph")
        self.ground, self.change, self.is_sole, self.depth = ground, change, is_sole, depth
        self.shapes = ground.shapes
        self.graph: Graph = value.producer.graph
        self.edits: list[Edit] = []
        self.roles: list[str] = []
        self.labels: dict[Value, np.ndarray] = {}
        self.parts = np.zeros(len(change.by), np.int64)
        self._parents = np.arange(len(change.by))
        self._consumed: set[Use] = set(uses)
        self._at = ground.positions(self.graph)
        self._pending: list[int] = []
        self._label(value, np.arange(len(change.by)) if labels is None else labels)
        while self._pending:
            self._step(self.graph.nodes[-heapq.heappop(self._pending)])
        for kept in [value for value in self.labels if value.producer is None]:
            self._check_readers(kept)
        self._check_change()

    @property
    def kind(self) -> str:
        return self.change.kind

    @property
    def ties(self) -> np.ndarray:
        while (above := self._parents[self._parents]).tolist() != self._parents.tolist():
            self._parents = above
        return self._parents

    # What rules do.

    def of(self, node: Node) -> np.ndarray:
        """Labels of the first output of `node`, the only one that may have some."""
        for output in node.outputs[1:]:
            if output in self.labels:
                raise Blocked(f"{output.name!r} is not the first that {node.label} makes")
        return self.labels[node.outputs[0]]

    def channels(self, node: Node) -> np.ndarray:
        """[N] labels of the last axis, the only one that may have some."""
        labels = self.of(node)
        if labels.size != labels.shape[-1]:
            raise Blocked(f"the channels are not the last axis of what {node.label} makes")
        return labels.reshape(-1)

    def reach(self, node: Node, index: int, labels: np.ndarray) -> None:
        """Follow the change to an input of `node`."""
        value = node.input(index)
        if value is None:
            raise Blocked(f"input {index} of {node.label} is missing")
        self._consumed.add((node, index))
        self._label(value, labels)

    def can_reach(self, node: Node, index: int, labels: np.ndarray, *, is_sole: bool) -> bool:
        """Whether the change could go on to this input and no other; who else reads what lies there is asked if `is_sole`."""
        value = node.input(index)
        if value is None:
            return False
        try:
            Trace(self.ground, value, [(node, index)], self.change, labels, is_sole=is_sole, depth=self.depth + 1)
        except Blocked:
            return False
        return True

    def along(self, labels: np.ndarray) -> np.ndarray:
        """What the elements with these labels are divided by, or lose."""
        return np.where(labels < 0, np.float32(self.kind == SCALE), self.change.by[labels])

    def sources(self, labels: np.ndarray) -> np.ndarray:
        """Which elements, counted row after row, those with these labels become in the new order."""
        flat, ties, channels = labels.reshape(-1), self.ties, len(self.change.by)
        held = np.flatnonzero(flat >= 0)
        at, at_tied = np.full(channels, -1), np.full(channels, -1)
        at[flat[held]] = at_tied[ties[flat[held]]] = held
        wanted = self.change.by[flat[held]]
        found = np.where(at[wanted] >= 0, at[wanted], at_tied[ties[wanted]])
        if (found < 0).any():
            raise Blocked("the order takes a channel from elsewhere")
        moved = np.arange(len(flat))
        moved[held] = found
        return moved

    def keep_apart(self, parts: Iterable[np.ndarray]) -> None:
        """No order may take a channel with labels of one part to another."""
        for number, labels in enumerate(parts):
            held = labels[labels >= 0]
            self.parts[held] = self.parts[held] * len(self.parts) + number
        self.parts = np.unique(self.parts, return_inverse=True)[1]

    # How it goes on.

    def _step(self, node: Node) -> None:
        """Nodes come in reverse: all of the way that reads what `node` makes has been here."""
        for output in node.outputs:
            if output in self.labels:
                self._check_readers(output)
        rule = self.ground.rules.get((node.domain, node.op_type))
        if rule is None:
            raise Blocked(f"{node.label} takes on no change of its channels")
        rule(self, node)

    def _label(self, value: Value, labels: np.ndarray) -> None:
        labels = self._fitted(value, labels)
        known = self.labels.get(value)
        self.labels[value] = labels if known is None else self._merged(value, known, labels)
        producer = value.producer
        if producer is None:
            if value.is_constant or not self.ground.cache_is_private:
                what = "a constant" if value.is_constant else "an input of the graph"
                raise Blocked(f"{value.name!r} is {what}")
        elif producer.graph is not self.graph:
            raise Blocked(f"{value.name!r} is made outside of the subgraph")
        elif known is None and all(output is value or output not in self.labels for output in producer.outputs):
            heapq.heappush(self._pending, -self._at[producer])

    def _fitted(self, value: Value, labels: np.ndarray) -> np.ndarray:
        """Labels where `value` is broadcast to what has `labels`: elements that are read as several channels tie them."""
        dims = self.shapes.dims(value)
        if dims is None:
            return labels
        for axis in range(labels.ndim):
            at = len(dims) - labels.ndim + axis
            if labels.shape[axis] == 1:
                continue
            if at < 0 or dims[at] == ONE:
                labels = self.tied(labels, axis)
            elif dims[at].is_known and dims[at].number != labels.shape[axis]:
                raise Blocked(f"{value.name!r} has {dims[at].number} channels, need {labels.shape[axis]}")
        return labels.reshape(labels.shape[max(0, labels.ndim - len(dims)) :])

    def tied(self, labels: np.ndarray, axis: int) -> np.ndarray:
        """Labels of elements that are read along `axis` as several channels."""
        first = np.take(labels, [0], axis)
        self._tie(np.broadcast_to(first, labels.shape), labels)
        return first

    def _merged(self, value: Value, known: np.ndarray, new: np.ndarray) -> np.ndarray:
        known, new = np.broadcast_arrays(known, new)
        both = (known >= 0) & (new >= 0) & (known != new)
        if both.any():
            if self.kind == ORDER:
                raise Blocked(f"{value.name!r} is read as channels of two places")
            self._tie(known[both], new[both])
        return np.where(known < 0, new, known)

    def _tie(self, a: np.ndarray, b: np.ndarray) -> None:
        if ((a < 0) != (b < 0)).any():
            raise Blocked("an element belongs to a channel in one place and to none in another")
        for one, other in zip(a[a != b].tolist(), b[a != b].tolist(), strict=True):
            one, other = self._root(one), self._root(other)
            self._parents[max(one, other)] = min(one, other)

    def _root(self, channel: int) -> int:
        while self._parents[channel] != channel:
            channel = int(self._parents[channel])
        return channel

    # Whether it may.

    def _check_readers(self, value: Value) -> None:
        if not self.is_sole:
            return
        labels = self.labels[value]
        if value.output_of and not self._may_leave(value):
            raise Blocked(f"{value.name!r} is an output of the graph")
        for user, index in value.uses:
            if (user, index) in self._consumed or reads_shape(user):
                continue
            if (labels < 0).any() and self._reads_nothing(user, index, labels):
                continue
            if leads_out(user, self.ground.graph):
                if self.ground.cache_is_private:
                    continue
                raise Blocked(f"{value.name!r} leaves the graph through {user.label}, as a cache does")
            where = " in a subgraph" if user.graph is not self.graph else ""
            raise Blocked(f"{user.label}{where} reads {value.name!r} too")

    def _may_leave(self, value: Value) -> bool:
        moved = value.producer is not None and value.producer.op_type in _MOVING
        return self.ground.cache_is_private and moved and value.output_of.keys() == {self.ground.graph}

    def _reads_nothing(self, user: Node, index: int, labels: np.ndarray) -> bool:
        """Whether what `user` takes of a value belongs to no channel."""
        from qruntime.quantization.sites.movement import taken

        found = taken(self.shapes, user, index, labels)
        return found is not None and bool((found < 0).all())

    def _check_change(self) -> None:
        by, ties = self.change.by, self.ties
        if self.kind != ORDER:
            if not np.array_equal(by, by[ties]):
                raise Blocked("channels that share one element (ties) were to be changed in different ways")
        elif not np.array_equal(ties[by], ties[by[ties]]):
            raise Blocked("the order parts channels that share one element (ties)")
        elif not np.array_equal(self.parts, self.parts[by]):
            raise Blocked("the order mixes parts that stay apart, such as heads of attention")


_MOVING: Collection[str] = frozenset({
    "Cast", "Concat", "Expand", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip


def reads_shape(node: Node) -> bool:
    """Whether a node, with all that reads what it makes, only moves data whose shape alone is asked for."""
    found = _moves(node)
    return found is not None and not any(output.output_of for one in found for output in one.outputs)


def leads_out(node: Node, graph: Graph) -> bool:
    """Whether a node, with all that reads what it makes, only moves data to outputs of `graph`."""
    givers = {giver for one in _moves(node) or [] for output in one.outputs for giver in output.output_of}
    return givers == {graph}


def _moves(node: Node) -> list[Node] | None:
    """The node and all behind it, but for those that ask for shapes; None where one of them does more than to move data."""
    found, seen = [node], {node}
    for one in found:
        if one.is_op("Shape", "Size"):
            continue
        if one.domain or one.op_type not in _MOVING:
            return None
        fresh = {user for output in one.outputs for user, _ in output.uses} - seen
        seen |= fresh
        found += fresh
    return [one for one in found if not one.is_op("Shape", "Size")]
