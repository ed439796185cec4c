"""Tree ensembles of the domain ai.onnx.ml: all trees and all rows step down together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qruntime.ops.checks import limit_shape, require_rank
from qruntime.ops.ml import DOMAIN, class_labels, post_transformed
from qruntime.ops.registry import operator

MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ", "BRANCH_MEMBER", "LEAF")
LEAF = MODES.index("LEAF")
AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")
POST_TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")


@dataclass
class Forest:
    """Nodes of all trees in one numbering; votes are sorted by the node they belong to."""

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
        """ValueError for children, features or targets outside their range."""
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

    def leaves(self, x: np.ndarray) -> np.ndarray:
        """Leaf that each row of X (N, F) reaches in each tree, (N, trees)."""
        limit_shape((x.shape[0], len(self.roots)), "the leaves")
        inner = self.modes != LEAF
        if inner.any() and self.features[inner].max() >= x.shape[1]:
            raise ValueError(f"a node reads feature {self.features[inner].max()}, X has the shape {x.shape}")
        at = np.broadcast_to(self.roots, (x.shape[0], len(self.roots))).copy()
        rows, trees = np.nonzero(self.modes[at] != LEAF)
        for _ in range(len(self.modes) + 1):
            if not rows.size:
                return at
            node = at[rows, trees]
            goes_true = self._goes_true(node, x[rows, self.features[node]])
            at[rows, trees] = np.where(goes_true, self.true_child[node], self.false_child[node])
            going = self.modes[at[rows, trees]] != LEAF
            rows, trees = rows[going], trees[going]
        raise ValueError("the branches of a tree form a cycle")

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
        for member in np.unique(node[mode == MODES.index("BRANCH_MEMBER")]).tolist():
            chosen = node == member
            goes[chosen] = np.isin(value[chosen], self.members[member])
        missing = np.isnan(value)
        return np.where(missing, self.missing_true[node] | ((mode == MODES.index("BRANCH_NEQ")) & goes), goes)

    def scores(self, x: np.ndarray, targets: int, aggregate: str) -> np.ndarray:
        """Aggregated votes (N, targets), float64."""
        shape = limit_shape((x.shape[0], targets), "the scores")
        if aggregate not in AGGREGATES:
            raise ValueError(f"aggregate_function must be one of {', '.join(AGGREGATES)}, got {aggregate!r}")
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


def _features(x: np.ndarray) -> np.ndarray:
    require_rank("X", x, 1, 2)
    x = x.reshape(1, -1) if x.ndim == 1 else x
    return x if x.dtype == np.float64 else x.astype(np.float32)


def _sorted_votes(
    nodes: np.ndarray, targets: Sequence[int], weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    order = np.argsort(nodes, kind="stable")
    return nodes[order], np.asarray(targets, np.int64)[order], weights.astype(np.float64)[order]


def _one_of(values: Sequence[float] | None, tensor: np.ndarray | None) -> np.ndarray:
    return tensor.reshape(-1) if tensor is not None else np.asarray(values or (), np.float32)


def _forest(
    treeids: Sequence[int],
    nodeids: Sequence[int],
    featureids: Sequence[int],
    modes: Sequence[str],
    values: np.ndarray,
    true_ids: Sequence[int],
    false_ids: Sequence[int],
    missing: Sequence[int] | None,
    vote_trees: Sequence[int],
    vote_nodes: Sequence[int],
    vote_targets: Sequence[int],
    vote_weights: np.ndarray,
) -> Forest:
    """The forest that the parallel lists of TreeEnsembleRegressor and -Classifier describe."""
    count = len(nodeids)
    if any(len(column) != count for column in (treeids, featureids, modes, values, true_ids, false_ids)):
        raise ValueError(f"the attributes nodes_* must all have {count} values")
    if any(len(column) != len(vote_nodes) for column in (vote_trees, vote_targets, vote_weights)):
        raise ValueError(f"the attributes of the votes must all have {len(vote_nodes)} values")
    if missing and len(missing) != count:
        raise ValueError(f"nodes_missing_value_tracks_true must have {count} values, got {len(missing)}")
    unknown = set(modes) - set(MODES)
    if unknown:
        raise ValueError(f"unknown nodes_modes {sorted(unknown)}")
    position = {key: i for i, key in enumerate(zip(treeids, nodeids, strict=True))}
    if len(position) != count:
        raise ValueError("a node id appears twice in one tree")
    codes = np.asarray([MODES.index(mode) for mode in modes], np.int64)

    def children(ids: Sequence[int]) -> np.ndarray:
        return np.asarray([position.get(key, -1) for key in zip(treeids, ids, strict=True)], np.int64)

    true_child, false_child = children(true_ids), children(false_ids)
    inner = codes != LEAF
    reached = np.zeros(count, np.bool_)
    for child in (true_child[inner], false_child[inner]):
        reached[child[child >= 0]] = True
    # The first node of a tree that nothing leads to is its root.
    roots: dict[int, int] = {}
    for i, tree in enumerate(treeids):
        if not reached[i]:
            roots.setdefault(tree, i)
    votes = np.asarray([position.get(key, -1) for key in zip(vote_trees, vote_nodes, strict=True)], np.int64)
    return Forest(
        np.asarray(list(roots.values()), np.int64),
        codes,
        np.where(inner, np.asarray(featureids, np.int64), 0),
        values,
        np.asarray(missing or [0] * count, np.int64) != 0,
        true_child,
        false_child,
        *_sorted_votes(votes, vote_targets, vote_weights),
        {},
    )


@operator("TreeEnsembleRegressor", domain=DOMAIN)
def tree_ensemble_regressor(
    x: np.ndarray,
    *,
    aggregate_function: str = "SUM",
    base_values: Sequence[float] | None = None,
    base_values_as_tensor: np.ndarray | None = None,
    n_targets: int = 1,
    nodes_falsenodeids: Sequence[int] = (),
    nodes_featureids: Sequence[int] = (),
    nodes_hitrates: Sequence[float] | None = None,
    nodes_hitrates_as_tensor: np.ndarray | None = None,
    nodes_missing_value_tracks_true: Sequence[int] | None = None,
    nodes_modes: Sequence[str] = (),
    nodes_nodeids: Sequence[int] = (),
    nodes_treeids: Sequence[int] = (),
    nodes_truenodeids: Sequence[int] = (),
    nodes_values: Sequence[float] | None = None,
    nodes_values_as_tensor: np.ndarray | None = None,
    post_transform: str = "NONE",
    target_ids: Sequence[int] = (),
    target_nodeids: Sequence[int] = (),
    target_treeids: Sequence[int] = (),
    target_weights: Sequence[float] | None = None,
    target_weights_as_tensor: np.ndarray | None = None,
) -> np.ndarray:
    """X (N, F) → float32 (N, n_targets)."""
    x = _features(x)
    forest = _forest(
        nodes_treeids, nodes_nodeids, nodes_featureids, nodes_modes, _one_of(nodes_values, nodes_values_as_tensor),
        nodes_truenodeids, nodes_falsenodeids, nodes_missing_value_tracks_true, target_treeids, target_nodeids,
        target_ids, _one_of(target_weights, target_weights_as_tensor),
    )  # fmt: skip
    forest.check(n_targets)
    scores = forest.scores(x, n_targets, aggregate_function)
    base = _one_of(base_values, base_values_as_tensor)
    if base.size:
        if base.size not in (1, n_targets):
            raise ValueError(f"base_values must have {n_targets} values, got {base.size}")
        scores = scores + base
    return post_transformed(scores, post_transform).astype(np.float32)


@operator("TreeEnsembleClassifier", domain=DOMAIN)
def tree_ensemble_classifier(
    x: np.ndarray,
    *,
    base_values: Sequence[float] | None = None,
    base_values_as_tensor: np.ndarray | None = None,
    class_ids: Sequence[int] = (),
    class_nodeids: Sequence[int] = (),
    class_treeids: Sequence[int] = (),
    class_weights: Sequence[float] | None = None,
    class_weights_as_tensor: np.ndarray | None = None,
    classlabels_int64s: Sequence[int] | None = None,
    classlabels_strings: Sequence[str] | None = None,
    nodes_falsenodeids: Sequence[int] = (),
    nodes_featureids: Sequence[int] = (),
    nodes_hitrates: Sequence[float] | None = None,
    nodes_hitrates_as_tensor: np.ndarray | None = None,
    nodes_missing_value_tracks_true: Sequence[int] | None = None,
    nodes_modes: Sequence[str] = (),
    nodes_nodeids: Sequence[int] = (),
    nodes_treeids: Sequence[int] = (),
    nodes_truenodeids: Sequence[int] = (),
    nodes_values: Sequence[float] | None = None,
    nodes_values_as_tensor: np.ndarray | None = None,
    post_transform: str = "NONE",
) -> tuple[np.ndarray, np.ndarray]:
    """X (N, F) → labels (N) and float32 scores (N, classes).

    When all votes for two classes bear the id 0, their sum s is the score of the second one: the first
    gets 1 - s where all weights are positive (probabilities) and no transform follows, else -s.
    """
    x = _features(x)
    labels = class_labels(classlabels_int64s, classlabels_strings)
    weights = _one_of(class_weights, class_weights_as_tensor)
    forest = _forest(
        nodes_treeids, nodes_nodeids, nodes_featureids, nodes_modes, _one_of(nodes_values, nodes_values_as_tensor),
        nodes_truenodeids, nodes_falsenodeids, nodes_missing_value_tracks_true, class_treeids, class_nodeids,
        class_ids, weights,
    )  # fmt: skip
    forest.check(len(labels))
    scores = forest.scores(x, len(labels), "SUM")
    base = _one_of(base_values, base_values_as_tensor)
    binary = len(labels) == 2 and len(set(class_ids)) == 1
    if base.size:
        if base.size != len(labels) and not (binary and base.size == 1):
            raise ValueError(f"base_values must have {len(labels)} values, got {base.size}")
        scores = scores + base
    if binary:
        score = scores[:, int(class_ids[0])]
        positive = bool((weights >= 0).all())
        best = (score > (0.5 if positive else 0)).astype(np.int64)
        if class_ids[0] == 0:
            other = 1 - score if positive and post_transform in ("NONE", "PROBIT") else -score
            scores = np.stack((other, score), axis=1)
    else:
        best = scores.argmax(axis=1)
    return labels[best], post_transformed(scores, post_transform).astype(np.float32)


def _member_sets(modes: np.ndarray, values: np.ndarray | None) -> dict[int, np.ndarray]:
    """The values of each BRANCH_MEMBER node: one list for all, in node order, NaN between the sets."""
    nodes = np.nonzero(modes == MODES.index("BRANCH_MEMBER"))[0].tolist()
    if not nodes:
        return {}
    if values is None:
        raise ValueError("BRANCH_MEMBER needs membership_values")
    ends = np.nonzero(np.isnan(values))[0]
    sets = [part[~np.isnan(part)] for part in np.split(values, ends)]
    if len(sets) < len(nodes):
        raise ValueError(f"{len(nodes)} BRANCH_MEMBER nodes need as many sets, got {len(sets)}")
    return dict(zip(nodes, sets, strict=False))


@operator("TreeEnsemble", domain=DOMAIN, since=5)
def tree_ensemble(
    x: np.ndarray,
    *,
    leaf_targetids: Sequence[int],
    leaf_weights: np.ndarray,
    nodes_falseleafs: Sequence[int],
    nodes_falsenodeids: Sequence[int],
    nodes_featureids: Sequence[int],
    nodes_modes: np.ndarray,
    nodes_splits: np.ndarray,
    nodes_trueleafs: Sequence[int],
    nodes_truenodeids: Sequence[int],
    tree_roots: Sequence[int],
    aggregate_function: int = 1,
    membership_values: np.ndarray | None = None,
    n_targets: int = 1,
    nodes_hitrates: np.ndarray | None = None,
    nodes_missing_value_tracks_true: Sequence[int] | None = None,
    post_transform: int = 0,
) -> np.ndarray:
    """X (N, F) → (N, n_targets) in the dtype of X."""
    inner, leaves = len(nodes_featureids), len(leaf_targetids)
    columns = (nodes_falseleafs, nodes_falsenodeids, nodes_modes, nodes_splits, nodes_trueleafs, nodes_truenodeids)
    if any(len(column) != inner for column in columns) or len(leaf_weights) != leaves:
        raise ValueError(f"the attributes nodes_* must have {inner} values and leaf_weights {leaves}")
    missing = nodes_missing_value_tracks_true or (0,) * inner
    if len(missing) != inner:
        raise ValueError(f"nodes_missing_value_tracks_true must have {inner} values, got {len(missing)}")
    if not 0 <= aggregate_function < len(AGGREGATES) or not 0 <= post_transform < len(POST_TRANSFORMS):
        raise ValueError(f"aggregate_function {aggregate_function} or post_transform {post_transform} is unknown")
    modes = np.asarray(nodes_modes).astype(np.int64)
    if modes.size and (modes.min() < 0 or modes.max() >= LEAF):
        raise ValueError(f"nodes_modes must lie in [0, {LEAF - 1}]")

    def children(is_leaf: Sequence[int], ids: Sequence[int]) -> np.ndarray:
        index = np.asarray(ids, np.int64)
        leaf = np.asarray(is_leaf, np.int64) != 0
        limit = np.where(leaf, leaves, inner)
        return np.concatenate((np.where((index >= 0) & (index < limit), index + leaf * inner, -1), np.full(leaves, -1)))

    def extended(values: np.ndarray, fill: int) -> np.ndarray:
        return np.concatenate((values, np.full(leaves, fill, values.dtype)))

    forest = Forest(
        np.asarray(tree_roots, np.int64),
        extended(modes, LEAF),
        extended(np.asarray(nodes_featureids, np.int64), 0),
        extended(np.asarray(nodes_splits), 0),
        extended(np.asarray(missing, np.int64), 0) != 0,
        children(nodes_trueleafs, nodes_truenodeids),
        children(nodes_falseleafs, nodes_falsenodeids),
        *_sorted_votes(inner + np.arange(leaves), leaf_targetids, np.asarray(leaf_weights)),
        _member_sets(modes, membership_values),
    )
    forest.check(n_targets)
    scores = forest.scores(_features(x), n_targets, AGGREGATES[aggregate_function])
    return post_transformed(scores, POST_TRANSFORMS[post_transform]).astype(x.dtype)
