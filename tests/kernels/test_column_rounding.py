"""What solvers ask of C: sums over columns are the same bits on every rung, and arguments that do not fit are refused before use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qruntime._kernels import COLUMN_PANEL, CodeGrid, round_by_descent, round_with_feedback

N, K = 5, 9


def grid(**changed: Any) -> CodeGrid:
    ones = np.ones((N, 2), np.float32)
    given = {
        "scale": ones, "divisor": ones, "zero_point": ones * 0, "fractional": False,
        "group": (np.arange(K, dtype=np.int32) // 5), "low": -7, "high": 7,
    }  # fmt: skip
    return CodeGrid(**(given | changed))


def arguments(**changed: Any) -> dict[str, Any]:
    weight = np.random.default_rng(0).normal(size=(N, K)).astype(np.float32) * 3
    given = {
        "weight": weight, "order": np.arange(K, dtype=np.int32), "grid": grid(), "codes": np.zeros((N, K), np.uint8),
    }  # fmt: skip
    return given | changed


def table(entries: int, middles: int, codes: int) -> dict[str, Any]:
    return {
        "entries": np.arange(entries, dtype=np.float32),
        "middles": np.arange(middles, dtype=np.float32),
        "entry_codes": np.zeros(codes, np.uint8),
    }


def panels(k: int = K) -> np.ndarray:
    return np.zeros((-(-k // COLUMN_PANEL), k, COLUMN_PANEL))


def feedback(**changed: Any) -> np.ndarray:
    given = arguments(coupling=panels(), block=4) | changed
    round_with_feedback(**given)
    return np.asarray(given["codes"])


def descent(**changed: Any) -> np.ndarray:
    given = arguments(sigma=panels(), diagonal=np.ones(K), is_feasible=False, is_relaxed=np.zeros(1, np.uint8)) | changed
    round_by_descent(**({"start": given["weight"]} | given))
    return np.asarray(given["codes"])


@pytest.mark.parametrize("call", [feedback, descent])
def test_without_coupling_codes_are_the_nearest(call: Any) -> None:
    expected = np.clip(np.rint(arguments()["weight"]), -7, 7).astype(np.int8)
    np.testing.assert_array_equal(call().view(np.int8), expected)


@pytest.mark.parametrize("far", [1e30, -1e30, 3e38])
def test_numbers_beyond_the_grid_are_its_ends(far: float) -> None:
    weight = np.full((N, K), far, np.float32)
    assert set(feedback(weight=weight).view(np.int8).reshape(-1)) == {7 if far > 0 else -7}


@pytest.mark.parametrize("call", [feedback, descent])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"order": np.zeros(K, np.int32)}, "every column once"),
        ({"order": np.arange(1, K + 1, dtype=np.int32)}, "every column once"),
        ({"order": -np.arange(K, dtype=np.int32)}, "every column once"),
        ({"order": np.arange(K - 1, dtype=np.int32)}, "the order needs"),
        ({"codes": np.zeros((N, K + 1), np.uint8)}, "shape of the weight"),
        ({"weight": np.zeros((N + 1, K), np.float32)}, "shape of the weight"),
    ],
)
def test_arguments_that_do_not_fit(call: Any, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(**changed)


def test_matrices_blocks_and_sweeps_that_do_not_fit() -> None:
    for wrong in (panels(K + 1), panels()[:-1], np.zeros((3, K, COLUMN_PANEL + 1))):
        with pytest.raises(ValueError, match="in panels of"):
            feedback(coupling=wrong)
        with pytest.raises(ValueError, match="in panels of"):
            descent(sigma=wrong)
    with pytest.raises(ValueError, match="a block has"):
        feedback(block=0)
    for relaxed in (np.zeros(0, np.uint8), np.ones(1, np.uint8)):
        with pytest.raises(ValueError, match="last sweep"):
            descent(is_relaxed=relaxed)
    for changed in ({"diagonal": np.ones(K - 1)}, {"start": np.zeros((N, K - 1), np.float32)}):
        with pytest.raises(ValueError, match="the start needs"):
            descent(**changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"group": np.full(K, 2, np.int32)}, "is of group 2"),
        ({"group": np.full(K, -1, np.int32)}, "is of group -1"),
        ({"group": np.zeros(0, np.int32)}, "a grid needs"),
        ({"scale": np.ones((0, 2), np.float32)}, "a grid needs"),
        ({"divisor": np.ones((N, 1), np.float32)}, "2 groups"),
        ({"zero_point": np.ones((N - 1, 2), np.float32)}, "5 rows"),
        ({"high": 256}, "in a byte"),
        ({"low": 8}, "in a byte"),
        (table(entries=4, middles=4, codes=4), "table"),
        (table(entries=4, middles=3, codes=3), "table"),
        (table(entries=1, middles=0, codes=1), "table"),
    ],
)
def test_grids_that_are_none(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grid(**changed)
