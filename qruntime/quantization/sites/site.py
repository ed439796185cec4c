"""A tensor that layers read, with what can absorb a change of its channels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qruntime.ir import Graph, Node, Value, constant
from qruntime.passes.rewriting import as_attribute
from qruntime.passes.stored.writing import opset_beside
from qruntime.quantization.reasons import Reason
from qruntime.quantization.sites.changes import KINDS, ORDER, SCALE, SHIFT, Blocked, Change, nothing
from qruntime.quantization.sites.meeting import meeting_of
from qruntime.quantization.sites.readers import Reader
from qruntime.quantization.sites.tracing import Ground, Trace
from qruntime.quantization.steps import Equivalence


class Site:
    """The tensor [..., K] that `readers`, layers of one graph, read."""

    def __init__(self, ground: Ground, readers: Sequence[Reader]):
        self._ground, self.readers = ground, tuple(readers)
        graph = self.readers[0].node.graph
        assert graph is not None
        self.graph: Graph = graph
        self.channels = self.readers[0].channels
        self.reasons: dict[str, Reason] = {}
        traces = {kind: trace for kind in KINDS if (trace := self._survey(kind)) is not None}
        self.allows = frozenset(traces)
        self.role = _role(traces)
        self.ties = ties_of([trace.ties for trace in traces.values()])
        self.parts = parts_of(traces[ORDER].parts) if ORDER in traces else None

    @property
    def value(self) -> Value:
        """The tensor: another one when a change put a node before the readers."""
        value = self.readers[0].node.input(0)
        assert value is not None
        return value

    @property
    def meets(self) -> Value | None:
        """Where the paths of the readers meet again; None for one reader, and where they do not."""
        return meeting_of(self.graph, [reader.node for reader in self.readers])

    def __repr__(self) -> str:
        return f"Site({self.value.name!r}, {self.role}, {', '.join(sorted(self.allows)) or 'nothing'}, {len(self.readers)} readers)"

    def apply(self, equivalence: Equivalence, insert: bool = False) -> Reason | None:
        """Change the tensor, and the layers that read it so that they give what they gave.

        What cannot be absorbed is done by nodes before the readers where `insert` allows it. Else nothing changes, and the
        reason is returned. Raises ValueError for arrays that are no change of this tensor.
        """
        changes = [change for change in changes_of(equivalence, self.channels, self.value.name) if not change.is_nothing]
        try:
            for change in changes:
                for reader in self.readers:
                    reader.edits(self._ground, change, {})
                if not insert:
                    self._trace(change)
        except Blocked as blocked:
            return blocked.reason
        for change in changes:
            self._make(change)
        return None

    def _make(self, change: Change) -> None:
        try:
            edits = self._trace(change).edits
        except Blocked:
            edits = []
            self._insert(change)
        made: dict[Value, Value] = {}
        for reader in self.readers:
            edits += reader.edits(self._ground, change, made)
        for edit in edits:
            edit()

    def _trace(self, change: Change) -> Trace:
        return Trace(self._ground, self.value, [(reader.node, 0) for reader in self.readers], change)

    def _survey(self, kind: str) -> Trace | None:
        try:
            return self._trace(nothing(kind, self.channels))
        except Blocked as blocked:
            self.reasons[kind] = blocked.reason
            return None

    def _insert(self, change: Change) -> None:
        """A node before the readers that makes the change."""
        nodes = [reader.node for reader in self.readers]
        first = min(nodes, key=self.graph.nodes.index)
        value, by, name = self.value, change.by, f"{self.value.name}/{change.kind}"
        changed = Value(name, value.type)
        op_type = {SHIFT: "Sub", SCALE: "Mul", ORDER: "Gather"}[change.kind]
        operand = by if change.kind == ORDER else self._like_weights(1 / by if change.kind == SCALE else by)
        attributes = {"axis": as_attribute(-1)} if change.kind == ORDER else {}
        version = opset_beside(self._ground.graph, first)
        node = Node(op_type, [value, constant(f"{name}/by", operand)], [changed], attributes, version=version, name=name)
        self.graph.insert_before(first, node)
        for reader in nodes:
            reader.set_input(0, changed)
        self._ground.shapes.is_like(changed, value)

    def _like_weights(self, numbers: np.ndarray) -> np.ndarray:
        weight = self.readers[0].weight.data
        assert weight is not None
        return numbers.astype(weight.dtype)


def changes_of(equivalence: Equivalence, channels: int, name: str) -> list[Change]:
    """One after the other; ValueError for arrays that are no change of so many channels."""
    changes = []
    for kind, given in ((SHIFT, equivalence.shift), (SCALE, equivalence.scale), (ORDER, equivalence.order)):
        if given is None:
            continue
        by: np.ndarray = np.asarray(given, np.int64 if kind == ORDER else np.float32)
        if by.shape != (channels,):
            raise ValueError(f"the {kind} of {name!r} has shape {list(by.shape)}, need [{channels}]")
        if kind == ORDER and not np.array_equal(np.sort(by), np.arange(channels)):
            raise ValueError(f"the order of {name!r} is no permutation")
        if kind != ORDER and not (np.isfinite(by).all() and (kind == SHIFT or (by > 0).all())):
            raise ValueError(f"the {kind} of {name!r} must be finite{' and above 0' if kind == SCALE else ''}")
        changes.append(Change(kind, by))
    return changes


def _role(traces: dict[str, Trace]) -> str:
    """What stands before the tensor, as the way of the change that goes farthest tells."""
    for kind in (SCALE, ORDER, SHIFT):
        if kind in traces:
            roles = traces[kind].roles
            return "activation" if kind == ORDER and "activation" in roles else roles[0]
    return "none"


def ties_of(found: Sequence[np.ndarray]) -> np.ndarray | None:
    """The coarsest of several ways to number channels that change alike; None where each is free."""
    ties = min(found, key=lambda one: len(np.unique(one)), default=None)
    return None if ties is None or len(np.unique(ties)) == len(ties) else ties.astype(np.int64)


def parts_of(numbers: np.ndarray) -> np.ndarray | None:
    """What an order must not mix; None for one part."""
    return numbers.astype(np.int64) if numbers.any() else None
