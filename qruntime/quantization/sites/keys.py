"""Queries and keys: what the product of attention sums over may be scaled in one and unscaled in the other.

    Σ_d q_d · k_d = Σ_d (q_d · s_d) · (k_d / s_d)

and taken in another order in both. A rotary embedding turns pairs of channels, which so must have one scale; heads of queries
that read the same keys share theirs.
"""

from __future__ import annotations

import numpy as np

from qruntime.ir import Graph, Node
from qruntime.quantization.reasons import Reason
from qruntime.quantization.sites.changes import ORDER, SCALE, Blocked, Change, nothing
from qruntime.quantization.sites.rules import RULES
from qruntime.quantization.sites.site import changes_of, parts_of, ties_of
from qruntime.quantization.sites.tracing import Ground, Trace
from qruntime.quantization.steps import Equivalence


class KeySite:
    """The product of queries [..., h, s, d] and keys [..., h, d, t]: K = h · d channels, head after head."""

    role = "keys"

    def __init__(self, ground: Ground, product: Node):
        self._ground, self.product = ground, product
        self._heads, self._size = _channels(ground, product)
        self.channels = int(np.prod(self._heads)) * self._size
        self.reasons: dict[str, Reason] = {}
        found: dict[str, tuple[Trace, Trace]] = {}
        for kind in (SCALE, ORDER):
            try:
                found[kind] = self._traces(nothing(kind, self.channels))
            except Blocked as blocked:
                self.reasons[kind] = blocked.reason
        self.allows = frozenset(found)
        self.ties = ties_of([_joined(queries.ties, keys.ties) for queries, keys in found.values()])
        self.parts = parts_of(np.arange(self.channels) // self._size) if ORDER in found else None

    def __repr__(self) -> str:
        return f"KeySite({self.product.label}, {', '.join(sorted(self.allows)) or 'nothing'})"

    def apply(self, equivalence: Equivalence) -> Reason | None:
        """Change the keys, and the queries the other way; where that cannot be nothing changes, and the reason is returned.

        Raises ValueError for arrays that are no change of these channels.
        """
        changes = [change for change in changes_of(equivalence, self.channels, self.product.label) if not change.is_nothing]
        try:
            for change in changes:
                self._traces(change)
        except Blocked as blocked:
            return blocked.reason
        for change in changes:
            for trace in self._traces(change):
                for edit in trace.edits:
                    edit()
        return None

    def _traces(self, change: Change) -> tuple[Trace, Trace]:
        if change.kind not in (SCALE, ORDER):
            raise Blocked(f"{self.product.label} would give something else for shifted keys")
        if change.kind == ORDER and (change.by // self._size != np.arange(self.channels) // self._size).any():
            raise Blocked("the order mixes parts that stay apart, such as heads of attention")
        inverse = Change(SCALE, 1 / change.by) if change.kind == SCALE else change
        ids = np.arange(self.channels).reshape(*self._heads, self._size)
        return self._one(0, inverse, np.expand_dims(ids, -2)), self._one(1, change, np.expand_dims(ids, -1))

    def _one(self, index: int, change: Change, labels: np.ndarray) -> Trace:
        value = self.product.input(index)
        assert value is not None
        return Trace(self._ground, value, [(self.product, index)], change, labels)


def find_key_sites(graph: Graph, *, cache_is_private: bool = False) -> list[KeySite]:
    """A site for every product of two computed tensors both of which come from layers. `cache_is_private` as in `find_sites`."""
    ground = Ground(graph, RULES, cache_is_private=cache_is_private)
    sites = []
    for node in graph.walk_nodes():
        if node.is_op("MatMul") and all(value is not None and not value.is_constant for value in node.inputs):
            try:
                site = KeySite(ground, node)
            except Blocked:
                continue
            if site.allows:
                sites.append(site)
    return sites


def _channels(ground: Ground, product: Node) -> tuple[tuple[int, ...], int]:
    """The heads, by axes of the product that hold them, and the channels of each; Blocked where they are not known."""
    queries, keys = (ground.shapes.dims(value) for value in product.inputs)
    if queries is None or keys is None or min(len(queries), len(keys)) < 2 or not queries[-1].is_known:
        raise Blocked(f"the shapes around {product.label} are not known")
    rank = max(len(queries), len(keys)) - 2
    heads = []
    for axis in range(-rank, 0):
        sizes = [dims[axis - 2] for dims in (queries, keys) if len(dims) - 2 >= -axis]
        heads.append(max((size.number for size in sizes if size.is_known), default=1))
    return tuple(heads), queries[-1].number


def _joined(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """What is tied in one of two ways."""
    while not (np.array_equal(a, a[b]) and np.array_equal(b, b[a])):
        a = b = np.minimum(a[b], b[a])
        a = b = a[a]
    return np.minimum(a, b)
