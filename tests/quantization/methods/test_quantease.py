"""QuantEase: coordinate descent never goes up, ends where no neighbouring code is better, and outliers are as many as asked for."""

from __future__ import annotations

import numpy as np
import pytest

from qruntime import _kernels
from qruntime.quantization.methods.gptq import GPTQ
from qruntime.quantization.methods.quantease import QuantEase
from qruntime.quantization.methods.rtn import RTN
from qruntime.quantization.rounding import Rounded
from qruntime.quantization.scheme import QArgs
from qruntime.quantization.statistics import SIGMA, output_error
from tests.quantization.methods.layers_made import Made, correlated, seen, weight_args, with_sigma

SCHEMES = ["W3A16", "W3A16-g64", "W4A16-g32-sym", "Wnf4A16-g32", "Wfp4A16-g64"]


def made_by(step: RTN | GPTQ | QuantEase, made: Made, args: QArgs, start: Rounded | None = None) -> tuple[Rounded, float]:
    rounded = step.solve(made.weight, args, made.statistics, start).rounded
    return rounded, output_error(made.weight, rounded.stored.decoded(), made.statistics)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("begins", [RTN(), GPTQ()], ids=["RTN", "GPTQ"])
def test_no_sweep_makes_it_worse(begins: RTN | GPTQ, scheme: str) -> None:
    made, args = correlated(), weight_args(scheme)
    start, error = made_by(begins, made, args)
    first = error
    for sweeps in (1, 2, 3, 5, 9):
        _, after = made_by(QuantEase(sweeps, relaxation=False), made, args, start)
        assert after <= error
        error = after
    assert error < first


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_row_ends_worse_than_it_began(scheme: str, seed: int) -> None:
    """Although relaxed sweeps may make it worse on the way; and most rows end better."""
    made, args = correlated(seed=seed), weight_args(scheme)
    start, before = made_by(GPTQ(), made, args)
    rounded, after = made_by(QuantEase(), made, args, start)
    sigma = made.statistics.sigma
    assert sigma is not None
    lost = [(made.weight - one.stored.decoded()).astype(np.float64) for one in (start, rounded)]
    began, ended = (np.sum((one @ sigma) * one, axis=1) for one in lost)
    assert np.all(ended <= began * (1 + 1e-12))
    assert np.mean(ended < began) >= 0.5
    assert after < before
    np.testing.assert_array_equal(np.asarray(rounded.stored.scale), np.asarray(start.stored.scale))


@pytest.mark.parametrize("scheme", ["W3A16", "W4A16-g32-sym"])
def test_it_ends_where_no_neighbouring_code_is_better(scheme: str) -> None:
    """A change by δ of one weight changes the error by δ² Σ_jj − 2 δ [(W − Ŵ) Σ]_j."""
    made, args = correlated(n=16, k=48), weight_args(scheme)
    start, _ = made_by(GPTQ(), made, args)
    stored = made_by(QuantEase(200, relaxation=False), made, args, start)[0].stored
    again = made_by(QuantEase(1, relaxation=False), made, args, Rounded(stored, 0.0))[0].stored
    np.testing.assert_array_equal(stored.unpacked(), again.unpacked())
    sigma = made.statistics.sigma
    assert sigma is not None
    assert stored.scale is not None
    slope = (made.weight - stored.decoded()).astype(np.float64) @ sigma
    step, codes = stored.expanded(stored.scale).astype(np.float64), stored.unpacked()
    low = args.format.qmin if stored.zero_point is not None else -args.format.qmax
    for up in (1, -1):
        gain = step**2 * sigma.diagonal() - 2 * up * step * slope
        exists = (codes + float(up) >= low) & (codes + float(up) <= args.format.qmax)
        assert np.all(gain[exists] >= -1e-5 * (step**2 * sigma.diagonal())[exists])


def test_from_scratch_it_is_far_better_than_rounding_and_relaxed_sweeps_help() -> None:
    made, args = correlated(), weight_args("W3A16")
    _, rtn = made_by(RTN(), made, args)
    _, relaxed = made_by(QuantEase(), made, args)
    _, strict = made_by(QuantEase(relaxation=False), made, args)
    assert relaxed < strict <= 0.6 * rtn


@pytest.mark.parametrize("scheme", SCHEMES)
def test_inputs_without_correlation_leave_the_nearest_codes(scheme: str) -> None:
    made, args = correlated(), weight_args(scheme)
    plain = Made(made.weight, with_sigma(2.0 * np.eye(144)), made.rows)
    np.testing.assert_array_equal(made_by(QuantEase(), plain, args)[0].stored.unpacked(), made_by(RTN(), plain, args)[0].stored.unpacked())


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("scheme", ["W3A16", "W3A16-g64"])
def test_outliers_are_as_many_as_asked_for_and_each_round_is_better(scheme: str, structured: bool) -> None:
    made, args = correlated(), weight_args(scheme)
    errors = []
    for sweeps in (1, 4, 12):
        rounded, error = made_by(QuantEase(sweeps, outliers=0.03, structured=structured), made, args)
        errors.append(error)
        outliers = rounded.stored.outliers
        assert outliers is not None
        columns = np.bincount(outliers.indices(made.weight.shape)[1], minlength=144)
        assert outliers.count == (96 * int(0.03 * 144) if structured else int(0.03 * 96 * 144))
        assert not structured or set(columns) == {0, 96}
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("seed", range(3))
def test_one_weight_in_a_hundred_apart_saves_a_third_of_the_error(seed: int) -> None:
    made, args = correlated(192, 192, seed), weight_args("W3A16")
    _, without = made_by(QuantEase(), made, args)
    rounded, error = made_by(QuantEase(outliers=0.01), made, args)
    assert error <= 0.7 * without
    start, gptq = made_by(GPTQ(), made, args)
    assert made_by(QuantEase(outliers=0.01), made, args, start)[1] < gptq
    assert rounded.stored.nbytes * 8 / rounded.stored.size < 3.6


def test_dead_inputs_keep_the_nearest_codes() -> None:
    made, args = correlated(), weight_args("W3A16")
    rows = made.rows.copy()
    rows[:, [3, 99]] = 0
    dead = Made(made.weight, seen(rows), rows)
    stored, nearest = made_by(QuantEase(), dead, args)[0].stored, made_by(RTN(), dead, args)[0].stored
    np.testing.assert_array_equal(stored.unpacked()[:, [3, 99]], nearest.unpacked()[:, [3, 99]])


@pytest.mark.parametrize("k", [1, 3, 33])
@pytest.mark.parametrize("n", [1, 9, 33])
def test_rows_beside_and_rungs_change_nothing(n: int, k: int, rung: str) -> None:
    made, args = correlated(n, k), weight_args("W3A16")
    codes = made_by(QuantEase(5), made, args)[0].stored.unpacked()
    alone = [QuantEase(5).solve(row[None], args, made.statistics).rounded.stored.unpacked() for row in made.weight]
    np.testing.assert_array_equal(np.concatenate(alone), codes)
    before = _kernels.isa()
    _kernels.set_isa("portable")
    try:
        np.testing.assert_array_equal(made_by(QuantEase(5), made, args)[0].stored.unpacked(), codes)
    finally:
        _kernels.set_isa(before)


def test_codes_of_another_scheme_are_no_start() -> None:
    made = correlated()
    start, _ = made_by(GPTQ(), made, weight_args("W4A16-g32"))
    for scheme in ("W3A16-g32", "W4A16", "W4A16-g64"):
        with pytest.raises(ValueError, match="alone"):
            QuantEase().solve(made.weight, weight_args(scheme), made.statistics, start)


def test_a_step_says_what_it_needs_and_refuses_what_it_is_not() -> None:
    assert QuantEase().requires == {SIGMA}
    assert QuantEase.refines
    for name, value in (("iterations", 0), ("outliers", -0.1), ("outliers", 0.5), ("outliers", float("nan"))):
        with pytest.raises(ValueError, match=name):
            QuantEase(**{name: value})  # type: ignore[arg-type]
