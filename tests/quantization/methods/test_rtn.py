"""Round to nearest as a step, and steps bound to a layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from qruntime.quantization.grid import nearest, nearest_values
from qruntime.quantization.methods.rtn import RTN
from qruntime.quantization.rounding import Matrix, Rounded
from qruntime.quantization.scheme import QArgs, parse
from qruntime.quantization.solving import Solving
from qruntime.quantization.statistics import Statistics
from qruntime.quantization.steps import Solve, Solved


def weight_args(scheme: str) -> QArgs:
    args = parse(scheme).weights
    assert args is not None
    return args


@dataclass(frozen=True)
class Noting:
    """Passes on what it is given, and notes from where."""

    @property
    def requires(self) -> frozenset[str]:
        return frozenset()

    def solve(self, weight: np.ndarray, args: QArgs, statistics: Statistics | None, start: Rounded | None) -> Solved:
        assert start is not None
        return Solved(start, {"from": start.snr_db, "shape": weight.shape})


@pytest.mark.parametrize(
    "scheme",
    ["W2A16", "W6A16", "W8A8", "W3A16-g16", "W4A16-sym", "W4A16-tensor", "Wnf4A16-g16", "Wfp4A16", "W3A16-g16-bilevel",
     "W3A16-g16-double", "W4A16-g16-pow2", "Wovp4A16-g16"],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(1, 1), (33, 40), (900, 37)])
def test_values_of_codes_are_there_without_codes(scheme: str, shape: tuple[int, int]):
    w = np.random.default_rng(0).standard_t(4, shape).astype(np.float32)
    np.testing.assert_array_equal(nearest_values(w, weight_args(scheme)), nearest(w, weight_args(scheme)).stored.decoded())


def test_steps_go_on_from_one_another_and_tell_what_they_found():
    w = np.random.default_rng(0).normal(size=(6, 40)).astype(np.float32)
    args = weight_args("W4A16-g16")
    alone = RTN().solve(w, args).rounded
    for matrix in (Matrix(w, 0), Matrix(np.ascontiguousarray(w.T), 1)):
        made = Solving((RTN(), Noting()), args).solve(matrix)
        np.testing.assert_array_equal(made.stored.decoded(), alone.stored.decoded())
        assert made.facts == {"from": alone.snr_db, "shape": (6, 40)}
    assert isinstance(RTN(), Solve)
    np.testing.assert_array_equal(alone.stored.decoded(), nearest(w, args).stored.decoded())


def test_what_is_bound_compares_by_its_statistics():
    args, row = weight_args("W4A16"), np.zeros(3, np.float32)
    one, other = Statistics(1, row, row), Statistics(1, row, row)
    assert Solving((RTN(),), args, one) == Solving((RTN(),), args, one)
    assert Solving((RTN(),), args, one) != Solving((RTN(),), args, other)
    with pytest.raises(ValueError, match="without a step"):
        Solving((), args)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_no_scale_reaches_is_refused(value: float):
    w = np.ones((2, 20), np.float32)
    w[1, 3] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        RTN().solve(w, weight_args("W4A16-g16"))
