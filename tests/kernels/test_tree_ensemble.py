"""Tree ensembles: the same leaves as the definition, votes summed in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qruntime import _kernels
from tests.kernels.native_call import run_definition, run_native

ML = "ai.onnx.ml"
MODES = ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ"]
GRID = np.array([-np.inf, -2.5, -1, -1e-45, -0.0, 0, 1e-45, 0.1, 1, 2, 3e38, np.inf, np.nan], np.float32)
"""Thresholds and features come from the same few numbers, so that they meet, and from their neighbours."""


def random_nodes(rng: np.random.Generator, trees: int, features: int, modes: list[str], depth: int) -> dict[str, Any]:
    """The attributes nodes_* of random trees, ids of nodes and trees not in order."""
    columns: dict[str, list[Any]] = {
        k: [] for k in ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids", "missing_value_tracks_true")
    }

    def grow(tree: int, ids: list[int], level: int) -> int:
        own = ids.pop()
        leaf = level == 0 or rng.random() < 0.2
        children = (0, 0) if leaf else (grow(tree, ids, level - 1), grow(tree, ids, level - 1))
        row = (tree, own, rng.integers(features), rng.choice(GRID), "LEAF" if leaf else rng.choice(modes), *children, rng.integers(2))
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value.item() if isinstance(value, np.generic) else value)
        return own

    for tree in rng.permutation(trees).tolist():
        grow(tree * 3 - 1, rng.permutation(2 ** (depth + 2)).tolist(), depth)
    return {f"nodes_{name}": tuple(column) for name, column in columns.items()}


def random_votes(rng: np.random.Generator, nodes: dict[str, Any], targets: int, prefix: str, most: int) -> dict[str, Any]:
    leaves = [i for i, mode in enumerate(nodes["nodes_modes"]) if mode == "LEAF"]
    chosen = rng.permutation([i for i in leaves for _ in range(rng.integers(most + 1) if most > 1 else 1)]).tolist()
    return {
        f"{prefix}_treeids": tuple(nodes["nodes_treeids"][i] for i in chosen),
        f"{prefix}_nodeids": tuple(nodes["nodes_nodeids"][i] for i in chosen),
        f"{prefix}_ids": tuple(rng.integers(targets, size=len(chosen)).tolist()),
        f"{prefix}_weights": tuple(rng.standard_normal(len(chosen)).astype(np.float32).tolist()),
    }


def rows_for(rng: np.random.Generator, rows: int, features: int, dtype: type) -> np.ndarray:
    """Rows, two out of three without NaN."""
    x = rng.choice(GRID, (rows, features)).astype(np.float64)
    nudged = rng.random(x.shape) < 0.2
    x[nudged] = np.nextafter(x[nudged].astype(dtype) if np.dtype(dtype).kind == "f" else x[nudged], np.inf)
    x[np.isnan(x) & (np.arange(rows)[:, None] % 3 > 0)] = 0.5
    if np.dtype(dtype).kind == "f":
        return x.astype(dtype)
    return np.clip(np.nan_to_num(x), -3, 2**24 + 1).astype(dtype)


def close(native: list[np.ndarray] | None, expected: list[np.ndarray], terms: int, largest: float) -> None:
    """Sums of `terms` float64 votes in another order, then one rounding to the type of the output."""
    assert native is not None, "the kernel declined"
    for y, want in zip(native, expected, strict=True):
        assert (y.dtype, y.shape) == (want.dtype, want.shape)
        if y.dtype.kind == "i":
            np.testing.assert_array_equal(y, want)
        else:
            np.testing.assert_allclose(y, want, rtol=2 * np.finfo(y.dtype).eps, atol=terms * largest * 2.0**-52)


def both_ways(op: str, x: np.ndarray, outputs: int, terms: int, largest: float, **attributes: Any) -> list[np.ndarray]:
    options: dict[str, Any] = {"domain": ML, "version": 5 if op == "TreeEnsemble" else 3, "num_outputs": outputs, **attributes}
    native = run_native(op, [x], **options)
    with np.errstate(all="ignore"):
        close(native, run_definition(op, [x], **options), terms, largest)
    assert native is not None
    for threads in (1, 2, 3):
        again = run_native(op, [x], num_threads=threads, **options)
        assert again is not None
        for y, z in zip(again, native, strict=True):
            assert y.tobytes() == z.tobytes()
    for row in (0, len(x) // 2, len(x) - 1) if len(x) else ():
        alone = run_native(op, [x[row : row + 1]], **options)
        assert alone is not None
        for y, z in zip(alone, native, strict=True):
            assert y.tobytes() == z[row : row + 1].tobytes()
    return native


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    trees=st.integers(1, 19),
    depth=st.integers(0, 7),
    rows=st.sampled_from([0, 1, 2, 7, 8, 9, 17, 130]),
    targets=st.integers(1, 4),
    dtype=st.sampled_from([np.float32, np.float64, np.int32, np.int64]),
    aggregate=st.sampled_from(["SUM", "AVERAGE", "MIN", "MAX"]),
    transform=st.sampled_from(["NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO"]),
    modes=st.sampled_from([MODES, MODES[:1], ["BRANCH_LT"], ["BRANCH_GT", "BRANCH_GTE"], ["BRANCH_EQ"]]),
    most=st.sampled_from([1, 3]),
    base=st.sampled_from([0, 1, None]),
)
def test_regressor(seed, trees, depth, rows, targets, dtype, aggregate, transform, modes, most, base):
    rng = np.random.default_rng(seed)
    nodes = random_nodes(rng, trees, 5, modes, depth)
    votes = random_votes(rng, nodes, targets, "target", most)
    given_base = tuple(rng.standard_normal(targets if base is None else base).astype(np.float32).tolist())
    both_ways(
        "TreeEnsembleRegressor", rows_for(rng, rows, 5, dtype), 1, 3 * trees + 1, 6.0, n_targets=targets,
        aggregate_function=aggregate, post_transform=transform, **nodes, **votes, **({"base_values": given_base} if given_base else {}),
    )  # fmt: skip


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    classes=st.integers(1, 4),
    voted=st.sampled_from([None, 0, 1]),
    is_probability=st.booleans(),
    rows=st.sampled_from([1, 9, 40]),
    transform=st.sampled_from(["NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO"]),
    base=st.booleans(),
)
def test_classifier(seed, classes, voted, is_probability, rows, transform, base):
    rng = np.random.default_rng(seed)
    classes = classes if voted is None else 2
    nodes = random_nodes(rng, 7, 5, MODES, 4)
    votes = random_votes(rng, nodes, classes, "class", 1 if voted is not None else 3)
    # Votes that are multiples of 1/8 have exact sums: labels then never hang on their order.
    weights = [round(8 * w) / 8 for w in votes["class_weights"]]
    votes["class_weights"] = tuple(abs(w) / 8 if is_probability else w for w in weights)
    if voted is not None:
        votes["class_ids"] = (voted,) * len(votes["class_ids"])
    labels = tuple(rng.permutation(classes * 10)[:classes].tolist())
    extra = {"base_values": tuple(rng.integers(-2, 3, classes).astype(float).tolist())} if base else {}
    both_ways(
        "TreeEnsembleClassifier", rows_for(rng, rows, 5, np.float32), 2, 22, 6.0, classlabels_int64s=labels,
        post_transform=transform, **nodes, **votes, **extra,
    )  # fmt: skip


def member_sets(rng: np.random.Generator, nodes: int) -> np.ndarray:
    """One set for each node, NaN behind each."""
    numbers = GRID[~np.isnan(GRID)]
    sets = [np.append(rng.choice(numbers, rng.integers(1, 7)), np.float32(np.nan)) for _ in range(nodes)]
    return np.concatenate([np.zeros(0, np.float32), *sets])


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), dtype=st.sampled_from([np.float32, np.float64]), inner=st.integers(1, 30), rows=st.sampled_from([1, 20]))
def test_version_5_with_members(seed, dtype, inner, rows):
    rng = np.random.default_rng(seed)
    # Node i leads to nodes behind it, or to a leaf of its own.
    ends = rng.random((inner, 2)) < 0.5
    ends[-1] = True
    to = np.array([[rng.integers(i + 1, inner) if not e else 2 * i + s for s, e in enumerate(ends[i])] for i in range(inner)])
    modes = rng.integers(0, 7, inner).astype(np.uint8)
    values = member_sets(rng, int((modes == 6).sum()))
    both_ways(
        "TreeEnsemble", rows_for(rng, rows, 4, dtype), 1, 8, 6.0, n_targets=3, tree_roots=tuple(rng.integers(0, inner, 6).tolist()),
        nodes_featureids=tuple(rng.integers(0, 4, inner).tolist()), nodes_modes=modes,
        nodes_splits=rng.choice(GRID, inner).astype(dtype), nodes_truenodeids=tuple(to[:, 0].tolist()),
        nodes_falsenodeids=tuple(to[:, 1].tolist()), nodes_trueleafs=tuple(ends[:, 0].astype(int).tolist()),
        nodes_falseleafs=tuple(ends[:, 1].astype(int).tolist()), leaf_targetids=tuple(rng.integers(0, 3, 2 * inner).tolist()),
        leaf_weights=rng.standard_normal(2 * inner).astype(dtype), membership_values=values.astype(dtype),
        nodes_missing_value_tracks_true=tuple(rng.integers(0, 2, inner).tolist()), aggregate_function=int(rng.integers(4)),
        post_transform=int(rng.integers(4)),
    )  # fmt: skip


def test_float64_thresholds_are_exact_for_float32_rows():
    """0.1 in float64 lies between two float32 numbers; one is below it, the other above."""
    low = np.float32(0.1) if np.float32(0.1) < 0.1 else np.nextafter(np.float32(0.1), np.float32(0))
    x = np.array([[low], [np.nextafter(low, np.float32(1))]], np.float32)
    answers = {"BRANCH_LEQ": [1, 0], "BRANCH_LT": [1, 0], "BRANCH_GT": [0, 1], "BRANCH_EQ": [0, 0], "BRANCH_NEQ": [1, 1]}
    for mode, expected in answers.items():
        (y,) = both_ways("TreeEnsembleRegressor", x, 1, 1, 1.0, **stump(mode), nodes_values_as_tensor=np.array([0.1, 0, 0]))
        assert y[:, 0].tolist() == expected, mode


def stump(mode: str = "BRANCH_LEQ") -> dict[str, Any]:
    return {
        "nodes_treeids": (0, 0, 0), "nodes_nodeids": (0, 1, 2), "nodes_featureids": (0, 0, 0), "nodes_modes": (mode, "LEAF", "LEAF"),
        "nodes_truenodeids": (1, 0, 0), "nodes_falsenodeids": (2, 0, 0), "target_treeids": (0, 0), "target_nodeids": (1, 2),
        "target_ids": (0, 0), "target_weights": (1.0, 0.0),
    }  # fmt: skip


def test_many_trees_on_threads_and_one_row_of_rank_1():
    rng = np.random.default_rng(0)
    nodes = random_nodes(rng, 300, 6, MODES[:2], 6)
    votes = random_votes(rng, nodes, 2, "target", 1)
    x = rows_for(rng, 3, 6, np.float32)
    y = both_ways("TreeEnsembleRegressor", x, 1, 300, 6.0, n_targets=2, **nodes, **votes)[0]
    one = run_native("TreeEnsembleRegressor", [x[1]], domain=ML, version=3, n_targets=2, num_threads=2, **nodes, **votes)
    assert one is not None
    np.testing.assert_array_equal(one[0], y[1:2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodes_truenodeids": (0, 0, 0)}, "cycle"),
        ({"nodes_truenodeids": (7, 0, 0)}, "outside the 3 nodes"),
        ({"nodes_featureids": (-1, 0, 0)}, "feature"),
        ({"nodes_featureids": (0, 0)}, "must all have 3 values"),
        ({"nodes_values": (0.0,)}, "must all have 3 values"),
        ({"nodes_modes": ("BRANCH_MEMBER", "LEAF", "LEAF")}, "unknown nodes_modes"),
        ({"nodes_nodeids": (0, 1, 1)}, "twice"),
        ({"nodes_missing_value_tracks_true": (1,)}, "nodes_missing_value_tracks_true"),
        ({"target_ids": (0, 5)}, "target"),
        ({"target_nodeids": (1, 9)}, "vote's node"),
        ({"target_weights": (1.0,)}, "votes must all have 2"),
        ({"base_values": (1.0, 2.0)}, "base_values"),
        ({"aggregate_function": "MEDIAN"}, "aggregate_function"),
        ({"post_transform": "TWICE"}, "post_transform"),
    ],
)
def test_hostile_attributes_are_refused(change, message):
    attributes = {**stump(), "nodes_values": (0.0, 0.0, 0.0), **change}
    x = np.zeros((2, 1), np.float32)
    with pytest.raises(ValueError, match=message):
        run_native("TreeEnsembleRegressor", [x], domain=ML, version=3, **attributes)
    with pytest.raises(ValueError, match=message):
        run_definition("TreeEnsembleRegressor", [x], domain=ML, version=3, **attributes)


def test_rows_that_do_not_fit_are_declined():
    attributes = {**stump(), "nodes_featureids": (2, 0, 0), "nodes_values": (0.0,) * 3}
    for x in (np.zeros((4, 2), np.float32), np.zeros((1, 1, 3), np.float32), np.zeros((), np.float32), np.zeros((4, 3), np.float16)):
        assert run_native("TreeEnsembleRegressor", [x], domain=ML, version=3, **attributes) is None


def test_a_cycle_that_rows_would_not_enter_is_refused_quickly():
    n = 3000
    attributes = {
        "nodes_treeids": (0,) * n, "nodes_nodeids": tuple(range(n)), "nodes_featureids": (0,) * n, "nodes_values": (0.0,) * n,
        "nodes_modes": ("BRANCH_LEQ",) * (n - 1) + ("LEAF",), "nodes_truenodeids": (*range(1, n), 0),
        "nodes_falsenodeids": (n - 1,) * n, "target_treeids": (0,), "target_nodeids": (n - 1,), "target_ids": (0,),
        "target_weights": (1.0,),
    }  # fmt: skip
    x = np.zeros((1, 1), np.float32)
    assert run_native("TreeEnsembleRegressor", [x], domain=ML, version=3, **attributes) == [np.ones((1, 1), np.float32)]
    attributes["nodes_falsenodeids"] = (n - 2,) * n
    with pytest.raises(ValueError, match="cycle"):
        run_native("TreeEnsembleRegressor", [x], domain=ML, version=3, **attributes)


def test_packed_arrays_take_native_types_only():
    with pytest.raises(ValueError, match="native element type"):
        _kernels.PackedArray(np.array(["a"], object))
    assert _kernels.PackedArray(np.zeros((2, 3), np.int16)).nbytes == 12
