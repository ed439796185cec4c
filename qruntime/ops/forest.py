"""Decision trees as arrays: what every form of tree ensemble is read into, its numpy definition, and the form that the
kernel walks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qruntime import _kernels
from qruntime.ops.checks import limit_shape

MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ", "BRANCH_MEMBER", "LEAF")
LEQ, LT, GTE, GT, EQ, NEQ, MEMBER, LEAF = range(len(MODES))
AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")

Float = type[np.float32] | type[np.float64]


@dataclass
class Forest:
    """Nodes of all trees in one numbering; votes are sorted by the node they belong to.

    `members` are the values of the nodes of mode BRANCH_MEMBER.
    """

    roots: np.ndarray
    modes: np.ndarray
    features: np.ndarray
    thresholds: np.ndarray
    missing_true: np.ndarray
    true_child: np.ndarray
    false_child: np.ndarray
    vote_nodes: np.ndarray
    vote_targets: np.ndarray
    vote_weights: np.ndarray
    members: dict[int, np.ndarray]

    def check(self, targets: int) -> None:
        """ValueError for children, features or targets outside their range, and for branches that form a cycle."""
        nodes = len(self.modes)
        inner = self.modes != LEAF
        for name, index in (("true", self.true_child), ("false", self.false_child)):
            used = index[inner]
            if used.size and (used.min() < 0 or used.max() >= nodes):
                raise ValueError(f"a {name} branch leads outside the {nodes} nodes")
        for name, index, limit in (
            ("root", self.roots, nodes),
            ("feature", self.features, 2**31),
            ("vote's node", self.vote_nodes, nodes),
            ("target", self.vote_targets, targets),
        ):
            if index.size and (index.min() < 0 or index.max() >= limit):
                raise ValueError(f"a {name} lies outside [0, {limit})")
        levels(inner, np.stack((self.true_child, self.false_child), axis=1))

    def leaves(self, x: np.ndarray) -> np.ndarray:
        """Leaf that each row of X (N, F) reaches in each tree, (N, trees)."""
        limit_shape((x.shape[0], len(self.roots)), "the leaves")
        inner = self.modes != LEAF
        if inner.any() and self.features[inner].max() >= x.shape[1]:
            raise ValueError(f"a node reads feature {self.features[inner].max()}, X has the shape {x.shape}")
        at = np.broadcast_to(self.roots, (x.shape[0], len(self.roots))).copy()
        rows, trees = np.nonzero(self.modes[at] != LEAF)
        while rows.size:
            node = at[rows, trees]
            goes_true = self._goes_true(node, x[rows, self.features[node]])
            at[rows, trees] = np.where(goes_true, self.true_child[node], self.false_child[node])
            going = self.modes[at[rows, trees]] != LEAF
            rows, trees = rows[going], trees[going]
        return at

    def _goes_true(self, node: np.ndarray, value: np.ndarray) -> np.ndarray:
        mode, threshold = self.modes[node], self.thresholds[node]
        answers = (
            value <= threshold,
            value < threshold,
            value >= threshold,
            value > threshold,
            value == threshold,
            value != threshold,
        )
        goes = np.zeros(node.shape, np.bool_)
        for code, answer in enumerate(answers):
            goes |= (mode == code) & answer
        for member in np.unique(node[mode == MEMBER]).tolist():
            chosen = node == member
            goes[chosen] = np.isin(value[chosen], self.members[member])
        missing = np.isnan(value)
        return np.where(missing, self.missing_true[node] | ((mode == NEQ) & goes), goes)

    def scores(self, x: np.ndarray, targets: int, aggregate: str) -> np.ndarray:
        """Aggregated votes (N, targets), float64."""
        shape = limit_shape((x.shape[0], targets), "the scores")
        leaves = self.leaves(x)
        counts = np.bincount(self.vote_nodes, minlength=len(self.modes))
        starts = np.concatenate(([0], np.cumsum(counts)[:-1])) if counts.size else counts
        start = {"MIN": np.inf, "MAX": -np.inf}.get(aggregate, 0.0)
        result = np.full(shape, start, np.float64)
        combine = {"MIN": np.minimum, "MAX": np.maximum}.get(aggregate, np.add)
        for vote in range(int(counts.max()) if counts.size else 0):
            rows, trees = np.nonzero(counts[leaves] > vote)
            entry = starts[leaves[rows, trees]] + vote
            combine.at(result, (rows, self.vote_targets[entry]), self.vote_weights[entry])
        if aggregate == "AVERAGE" and len(self.roots):
            result /= len(self.roots)
        return np.where(np.isinf(result) & (result == start), 0, result) if start else result


def levels(inner: np.ndarray, children: np.ndarray) -> list[np.ndarray]:
    """The nodes in groups such that branches lead to later groups only; ValueError when branches form a cycle.

    inner: bool (nodes); children: (nodes, any), of which those of inner nodes are branches.
    """
    open_parents = np.bincount(children[inner].reshape(-1), minlength=len(inner))
    level = np.flatnonzero(open_parents == 0)
    found = []
    while level.size:
        found.append(level)
        below = children[level[inner[level]]].reshape(-1)
        np.subtract.at(open_parents, below, 1)
        level = np.unique(below[open_parents[below] == 0])
    if sum(len(level) for level in found) != len(inner):
        raise ValueError("the branches of a tree form a cycle")
    return found


@dataclass
class CompiledForest:
    """A forest as kernels/nodes/tree_ensemble.c walks it: nodes ask `x <= threshold` and nothing else.

    What stands for the other modes is exact: `x < t` is `x <= the float before t`, `x > t` has the children of
    `x <= t` exchanged, equality is a pair of nodes and membership a search tree of such pairs.
    """

    nodes: np.ndarray
    """int32 (nodes, 4 or 6): threshold (the bits of float32, float64), feature, child when it holds, other child."""
    nan_child: np.ndarray
    """uint8 (nodes): which child NaN goes to."""
    roots: np.ndarray
    depths: np.ndarray
    """int32 (trees): branches on the longest way to a leaf."""
    leaves: np.ndarray
    """The nodes of the forest that the last of `nodes` stand for."""

    @property
    def first_leaf(self) -> int:
        return len(self.nodes) - len(self.leaves)


def compiled(forest: Forest, dtype: Float) -> CompiledForest:
    """`forest`, which has been checked, for features of `dtype`."""
    questions = _Questions(forest, dtype)
    inner, children = questions.inner, questions.children
    order = levels(inner, children)
    height = np.zeros(len(inner), np.int64)
    for level in reversed(order):
        asking = level[inner[level]]
        height[asking] = 1 + height[children[asking]].max(axis=1)
    tree = np.full(len(inner), -1)
    tree[forest.roots] = np.arange(len(forest.roots))
    at_level = np.empty(len(inner), np.int64)
    for depth, level in enumerate(order):
        at_level[level] = depth
        asking = level[inner[level] & (tree[level] >= 0)]
        for side in range(2):
            below = children[asking, side]
            tree[below] = np.where(tree[below] < 0, tree[asking], tree[below])
    # Leaves last; what a walk reads one after the other lies together.
    kept = np.lexsort((at_level, tree, ~inner))
    kept = kept[tree[kept] >= 0]
    number = np.full(len(inner), -1)
    number[kept] = np.arange(len(kept))
    leaves = kept[~inner[kept]]
    own = np.arange(len(kept))
    to = np.where(inner[kept, None], number[children[kept]], own[:, None])
    if len(inner) >= 2**31:
        raise ValueError(f"at most 2³¹ nodes can be numbered, got {len(inner)}")
    words = np.dtype(dtype).itemsize // 4
    nodes = np.zeros((len(kept), 4 if words == 1 else 6), np.int32)
    nodes[:, :words] = np.where(inner[kept], questions.thresholds[kept], 0).astype(dtype).view(np.int32).reshape(-1, words)
    nodes[:, words] = np.where(inner[kept], questions.features[kept], 0)
    nodes[:, words + 1 : words + 3] = to
    return CompiledForest(
        nodes,
        questions.nan_child[kept].astype(np.uint8),
        number[forest.roots].astype(np.int32),
        height[forest.roots].astype(np.int32),
        leaves,
    )


class _Questions:
    """The nodes of a forest with `x <= threshold` as their only question; new ones stand behind those of the forest."""

    def __init__(self, forest: Forest, dtype: Float):
        self.inner = forest.modes != LEAF
        self.features = forest.features
        at_most, below = _limits(forest.thresholds, dtype)
        mode = forest.modes
        is_equality = np.isin(mode, (EQ, NEQ))
        true, false, nan_goes_true = forest.true_child, forest.false_child, forest.missing_true | (mode == NEQ)
        true, false = np.where(mode == NEQ, false, true), np.where(mode == NEQ, true, false)
        nan_goes_true = np.where(mode == NEQ, ~nan_goes_true, nan_goes_true)
        # A comparison with NaN never holds, and its opposite must not.
        is_opposite = np.isin(mode, (GT, GTE)) & ~np.isnan(forest.thresholds)
        self.thresholds = np.where(np.isin(mode, (LT, GTE)), below, at_most)
        self.children = np.where(is_opposite[:, None], np.stack((false, true), 1), np.stack((true, false), 1))
        self.nan_child = np.where(nan_goes_true, is_opposite, ~is_opposite)
        # x = t: at most t, and then not at most the number before it.
        equal = np.flatnonzero(is_equality)
        self._append(self.features[equal], below[equal], false[equal], true[equal], nan_goes_true[equal])
        self.children[equal, 0] = len(mode) + np.arange(len(equal))
        search = _Search(len(self.inner))
        for node, members in forest.members.items():
            values = np.unique(members[~np.isnan(members)])
            at, before = _limits(values, dtype)
            held = at == values
            true_child, false_child = self.children[node].tolist()
            # NaN alone goes to the first child, and is no member.
            self.children[node, 0] = false_child if self.nan_child[node] else true_child
            self.children[node, 1] = search.root(self.features[node], at[held].tolist(), before[held].tolist(), true_child, false_child)
            self.thresholds[node] = np.nan
            self.nan_child[node] = 0
        if search.rows:
            features, thresholds, first, other = (np.asarray(column) for column in zip(*search.rows, strict=True))
            self._append(features, thresholds.astype(dtype), first, other, np.zeros(len(features), np.bool_))

    def _append(self, features: np.ndarray, thresholds: np.ndarray, first: np.ndarray, other: np.ndarray, nan_to_other: np.ndarray) -> None:
        self.inner = np.concatenate((self.inner, np.ones(len(features), np.bool_)))
        self.features = np.concatenate((self.features, features))
        self.thresholds = np.concatenate((self.thresholds, thresholds))
        self.children = np.concatenate((self.children, np.stack((first, other), 1)))
        self.nan_child = np.concatenate((self.nan_child, nan_to_other))


class _Search:
    """Nodes that find out whether a number is one of a sorted list, numbered from `start` on."""

    def __init__(self, start: int):
        self.start = start
        self.rows: list[tuple[int, float, int, int]] = []

    def root(self, feature: int, values: list[float], below: list[float], true: int, false: int) -> int:
        """The node to begin at; `below` are the numbers before the values."""

        def ask(threshold: float, first: int, other: int) -> int:
            self.rows.append((feature, threshold, first, other))
            return self.start + len(self.rows) - 1

        def search(low: int, high: int) -> int:
            if high - low == 1:
                return ask(values[low], ask(below[low], false, true), false)
            middle = (low + high) // 2
            return ask(values[middle - 1], search(low, middle), search(middle, high))

        return search(0, len(values)) if values else false


def _limits(thresholds: np.ndarray, dtype: Float) -> tuple[np.ndarray, np.ndarray]:
    """The largest number of `dtype` that is at most, and that is below, each threshold; NaN where there is none."""
    with np.errstate(over="ignore"):
        at_most = thresholds.astype(dtype)
    at_most = np.where(at_most > thresholds, np.nextafter(at_most, dtype(-np.inf)), at_most)
    below = np.where(at_most == thresholds, np.nextafter(at_most, dtype(-np.inf)), at_most)
    return at_most, np.where(thresholds == -np.inf, dtype(np.nan), below)


@dataclass
class ForestArrays:
    """A compiled forest with its votes in the order of its leaves."""

    forms: dict[Float, CompiledForest]
    leaf_weights: np.ndarray | None
    """float64 (leaves), when every leaf votes once at most and all for `target`."""
    vote_starts: np.ndarray
    vote_targets: np.ndarray
    vote_weights: np.ndarray
    target: int

    @classmethod
    def of(cls, forest: Forest, aggregate: str, dtypes: Sequence[Float]) -> ForestArrays:
        """`forest`, which has been checked, for rows of each of `dtypes`."""
        forms = {dtype: compiled(forest, dtype) for dtype in dtypes}
        leaves = forms[dtypes[0]].leaves
        counts = np.bincount(forest.vote_nodes, minlength=len(forest.modes))
        starts = np.concatenate(([0], np.cumsum(counts)))
        own = counts[leaves]
        ends = np.cumsum(own)
        entries = np.repeat(starts[leaves] - (ends - own), own) + np.arange(int(own.sum()))
        targets, weights = forest.vote_targets[entries], forest.vote_weights[entries]
        voted = np.unique(targets)
        leaf_weights = None
        if aggregate in ("SUM", "AVERAGE") and len(voted) == 1 and own.max(initial=0) == 1:
            leaf_weights = np.zeros(len(own))
            leaf_weights[own == 1] = weights
        vote_starts = np.concatenate(([0], ends)).astype(np.int64)
        return cls(forms, leaf_weights, vote_starts, targets.astype(np.int32), weights, int(voted[0]) if len(voted) else 0)

    def packed(self) -> list[_kernels.Packed | None]:
        """What the kernel takes, up to base values and labels."""
        one = next(iter(self.forms.values()))
        nodes = [self.forms[dtype].nodes if dtype in self.forms else None for dtype in (np.float32, np.float64)]
        votes = [self.leaf_weights, self.vote_starts, self.vote_targets, self.vote_weights]
        return [None if array is None else _kernels.PackedArray(array) for array in (*nodes, one.nan_child, one.roots, one.depths, *votes)]
