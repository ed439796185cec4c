"""Tree ensembles of the domain ai.onnx.ml."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from qruntime import _kernels
from qruntime.ir import Node
from qruntime.ops.forest import AGGREGATES, LEAF, MEMBER, MODES, Float, Forest, ForestArrays
from qruntime.ops.ml import DOMAIN, POST_TRANSFORMS, class_labels, feature_rows, post_transformed
from qruntime.ops.registry import NativeCall, operator

FLOAT64 = 11


@dataclass
class Ensemble:
    """A checked forest and what becomes of its votes.

    `voted` is the class that all votes are for when there are two classes, else None: its score makes that of the
    other one when it is class 0.
    """

    forest: Forest
    targets: int
    aggregate: str
    post_transform: str
    output: str
    base: np.ndarray
    labels: np.ndarray | None = None
    voted: int | None = None
    is_probability: bool = False

    def __post_init__(self) -> None:
        if self.aggregate not in AGGREGATES:
            raise ValueError(f"aggregate_function must be one of {', '.join(AGGREGATES)}, got {self.aggregate!r}")
        if self.post_transform not in POST_TRANSFORMS:
            raise ValueError(f"post_transform must be one of {', '.join(POST_TRANSFORMS)}, got {self.post_transform!r}")
        self.forest.check(self.targets)
        if self.base.size not in (0, self.targets) and not (self.base.size == 1 and (self.labels is None or self.voted is not None)):
            raise ValueError(f"base_values must have {self.targets} values, got {self.base.size}")

    def __call__(self, x: np.ndarray) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """X (N, F) or (F) → scores (N, targets), behind the labels (N) of a classifier."""
        scores = self.forest.scores(feature_rows(x), self.targets, self.aggregate)
        if self.base.size:
            scores = scores + self.base
        dtype = x.dtype if self.output == "same_type" else np.dtype(np.float32)
        if self.labels is None:
            return post_transformed(scores, self.post_transform).astype(dtype)
        if self.voted is None:
            best = scores.argmax(axis=1)
        else:
            score = scores[:, self.voted]
            best = (score > (0.5 if self.is_probability else 0)).astype(np.int64)
            if self.voted == 0:
                is_share = self.is_probability and self.post_transform in ("NONE", "PROBIT")
                scores = np.stack((1 - score if is_share else -score, score), axis=1)
        return self.labels[best], post_transformed(scores, self.post_transform).astype(dtype)

    def native_call(self, node: Node) -> NativeCall | None:
        """The kernel, unless labels are strings, which `lower_string_labels` looks up behind it, or PROBIT follows."""
        if self.post_transform == "PROBIT" or (self.labels is not None and self.labels.dtype != np.int64):
            return None
        type = node.inputs[0].type if node.inputs[0] is not None else None
        known = type.dtype if type is not None else 0
        dtypes: Sequence[Float] = (np.float32, np.float64) if not known else (np.float64,) if known == FLOAT64 else (np.float32,)
        arrays = ForestArrays.of(self.forest, self.aggregate, dtypes)
        one = arrays.forms[dtypes[0]]
        used = self.forest.features[self.forest.modes != LEAF]
        ints = [
            one.first_leaf, int(used.max(initial=-1)) + 1, int(one.depths.sum(dtype=np.int64)), self.targets,
            arrays.target if self.voted is None else self.voted, _kernels.TREE_AGGREGATE[self.aggregate],
            _kernels.POST_TRANSFORM[self.post_transform], _kernels.TREE_OUTPUT[self.output],
            self.voted is not None, self.voted == 0, self.is_probability,
        ]  # fmt: skip
        base = _kernels.PackedArray(self.base.astype(np.float64)) if self.base.size else None
        labels = None if self.labels is None else _kernels.PackedArray(self.labels)
        return NativeCall("tree_ensemble", ints=ints, packed=[*arrays.packed(), base, labels], inputs=[0])


def _sorted_votes(nodes: np.ndarray, targets: Sequence[int], weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
    code_of = {mode: code for code, mode in enumerate(MODES) if code != MEMBER}
    unknown = set(modes) - code_of.keys()
    if unknown:
        raise ValueError(f"unknown nodes_modes {sorted(unknown)}")
    codes = np.asarray([code_of[mode] for mode in modes], np.int64)
    inner = codes != LEAF
    find = _finder(treeids, nodeids)
    true_child, false_child = find(treeids, true_ids), find(treeids, false_ids)
    reached = np.zeros(count, np.bool_)
    for child in (true_child[inner], false_child[inner]):
        reached[child[child >= 0]] = True
    # The first node of a tree that nothing leads to is its root.
    unreached = np.flatnonzero(~reached)
    firsts = np.unique(np.asarray(treeids, np.int64)[unreached], return_index=True)[1]
    return Forest(
        unreached[np.sort(firsts)],
        codes,
        np.where(inner, np.asarray(featureids, np.int64), 0),
        values,
        np.asarray(missing or [0] * count, np.int64) != 0,
        true_child,
        false_child,
        *_sorted_votes(find(vote_trees, vote_nodes), vote_targets, vote_weights),
        {},
    )


def _finder(treeids: Sequence[int], nodeids: Sequence[int]) -> Callable[[Sequence[int], Sequence[int]], np.ndarray]:
    """A function from trees and ids of nodes in them to their positions in the lists given here, -1 for what is not there."""
    trees, tree_of = np.unique(np.asarray(treeids, np.int64), return_inverse=True)
    nodes, node_of = np.unique(np.asarray(nodeids, np.int64), return_inverse=True)
    keys = tree_of * len(nodes) + node_of
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    if (keys[1:] == keys[:-1]).any():
        raise ValueError("a node id appears twice in one tree")

    def place(values: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        at = np.minimum(np.searchsorted(values, wanted), max(len(values) - 1, 0))
        return at, values[at] == wanted if len(values) else np.zeros(len(wanted), np.bool_)

    def find(wanted_trees: Sequence[int], wanted_nodes: Sequence[int]) -> np.ndarray:
        tree, has_tree = place(trees, np.asarray(wanted_trees, np.int64))
        node, has_node = place(nodes, np.asarray(wanted_nodes, np.int64))
        at, is_pair = place(keys, tree * len(nodes) + node)
        return np.where(has_tree & has_node & is_pair, order[at] if len(order) else -1, -1)

    return find


@operator("TreeEnsembleRegressor", domain=DOMAIN, prepared=True)
def tree_ensemble_regressor(
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
) -> Ensemble:
    """X (N, F) → float32 (N, n_targets)."""
    forest = _forest(
        nodes_treeids, nodes_nodeids, nodes_featureids, nodes_modes, _one_of(nodes_values, nodes_values_as_tensor),
        nodes_truenodeids, nodes_falsenodeids, nodes_missing_value_tracks_true, target_treeids, target_nodeids,
        target_ids, _one_of(target_weights, target_weights_as_tensor),
    )  # fmt: skip
    base = _one_of(base_values, base_values_as_tensor)
    return Ensemble(forest, n_targets, aggregate_function, post_transform, "regressor", base)


@operator("TreeEnsembleClassifier", domain=DOMAIN, prepared=True)
def tree_ensemble_classifier(
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
) -> Ensemble:
    """X (N, F) → labels (N) and float32 scores (N, classes).

    When all votes for two classes bear the id 0, their sum s is the score of the second one: the first
    gets 1 - s where all weights are positive (probabilities) and no transform follows, else -s.
    """
    labels = class_labels(classlabels_int64s, classlabels_strings)
    weights = _one_of(class_weights, class_weights_as_tensor)
    forest = _forest(
        nodes_treeids, nodes_nodeids, nodes_featureids, nodes_modes, _one_of(nodes_values, nodes_values_as_tensor),
        nodes_truenodeids, nodes_falsenodeids, nodes_missing_value_tracks_true, class_treeids, class_nodeids,
        class_ids, weights,
    )  # fmt: skip
    base = _one_of(base_values, base_values_as_tensor)
    voted = int(class_ids[0]) if len(labels) == 2 and len(set(class_ids)) == 1 else None
    return Ensemble(forest, len(labels), "SUM", post_transform, "classifier", base, labels, voted, bool((weights >= 0).all()))


def _member_sets(modes: np.ndarray, values: np.ndarray | None) -> dict[int, np.ndarray]:
    """The values of each BRANCH_MEMBER node: one list for all, in node order, NaN between the sets."""
    nodes = np.nonzero(modes == MEMBER)[0].tolist()
    if not nodes:
        return {}
    if values is None:
        raise ValueError("BRANCH_MEMBER needs membership_values")
    ends = np.nonzero(np.isnan(values))[0]
    sets = [part[~np.isnan(part)] for part in np.split(values, ends)]
    if len(sets) < len(nodes):
        raise ValueError(f"{len(nodes)} BRANCH_MEMBER nodes need as many sets, got {len(sets)}")
    return dict(zip(nodes, sets, strict=False))


@operator("TreeEnsemble", domain=DOMAIN, since=5, prepared=True)
def tree_ensemble(
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
) -> Ensemble:
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
    return Ensemble(forest, n_targets, AGGREGATES[aggregate_function], POST_TRANSFORMS[post_transform], "same_type", np.zeros(0))


tree_ensemble_regressor.native(lambda node: tree_ensemble_regressor.prepared(node).native_call(node))
tree_ensemble_classifier.native(lambda node: tree_ensemble_classifier.prepared(node).native_call(node))
tree_ensemble.native(lambda node: tree_ensemble.prepared(node).native_call(node))
