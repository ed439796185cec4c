"""GPTQ against the algorithm as the paper writes it, and what must hold of it whatever the weight."""

from __future__ import annotations

import numpy as np
import pytest

from qruntime import _kernels
from qruntime.quantization.grid import parameters, round_to, stored_as
from qruntime.quantization.hessian import factor_of
from qruntime.quantization.methods.gptq import GPTQ
from qruntime.quantization.methods.rtn import RTN
from qruntime.quantization.scheme import QArgs
from qruntime.quantization.statistics import SIGMA, Statistics, output_error
from qruntime.quantization.steps import Solve
from tests.quantization.methods.layers_made import correlated, seen, weight_args, with_sigma

GRIDS = [
    "W2A16", "W3A16", "W3A16-g64", "W4A16-sym", "W4A16-g32-sym", "W5A16-tensor", "W8A16", "W3A16-g16-bilevel",
    "Wnf4A16-g32", "Wfp4A16-g64", "Wfp8A16",
]  # fmt: skip
SMALL_SCALES = ["float16", "pow2"]


def codes_of(weight: np.ndarray, args: QArgs, statistics: Statistics | None, step: Solve) -> np.ndarray:
    return step.solve(weight, args, statistics, None).rounded.stored.unpacked()


def as_the_paper_writes_it(
    weight: np.ndarray, args: QArgs, statistics: Statistics, order: np.ndarray, lower: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, errors Err [N, K] in the order of columns, and the damped H in that order. `lower`: with the wrong triangle."""
    assert statistics.sigma is not None
    hessian = statistics.sigma.copy()
    hessian[np.diag_indices_from(hessian)] += 0.01 * hessian.diagonal().mean()
    hessian = hessian[np.ix_(order, order)]
    factor = np.linalg.cholesky(np.linalg.inv(hessian))
    upper = factor if lower else factor.T
    scale, zero_point = parameters(weight, args)
    current, errors = weight.astype(np.float64), np.zeros(weight.shape)
    codes = np.zeros(weight.shape, args.format.code_dtype)
    for j, column in enumerate(order):
        codes[:, column] = round_to(current.astype(np.float32), args, scale, zero_point)[:, column]
        restored = stored_as(args, codes, scale, zero_point).decoded()[:, column]
        errors[:, j] = (current[:, column] - restored) / upper[j, j]
        current[:, order[j:]] -= errors[:, j : j + 1] * upper[j, j:]
    return codes, errors, hessian


@pytest.mark.parametrize("actorder", ["static", None])
@pytest.mark.parametrize("scheme", GRIDS)
def test_codes_are_those_of_the_paper(scheme: str, actorder: str | None) -> None:
    """And its errors fulfil ‖Err‖² = tr((W − Q) H (W − Q)ᵀ), which no other factor of H does."""
    made, args = correlated(), weight_args(scheme)
    sigma = made.statistics.sigma
    assert sigma is not None
    order = np.argsort(-sigma.diagonal(), kind="stable") if actorder else np.arange(len(sigma))
    codes, errors, hessian = as_the_paper_writes_it(made.weight, args, made.statistics, order)
    stored = GPTQ(actorder=actorder).solve(made.weight, args, made.statistics).rounded.stored
    np.testing.assert_array_equal(stored.unpacked(), codes)
    lost = (made.weight.astype(np.float64) - stored.decoded())[:, order]
    np.testing.assert_allclose(np.sum(errors**2), np.sum((lost @ hessian) * lost), rtol=1e-6)


@pytest.mark.parametrize("scheme", GRIDS)
def test_inputs_without_correlation_change_nothing(scheme: str) -> None:
    made, args = correlated(), weight_args(scheme)
    plain = with_sigma(3.0 * np.eye(made.weight.shape[1]))
    np.testing.assert_array_equal(codes_of(made.weight, args, plain, GPTQ()), codes_of(made.weight, args, None, RTN()))


@pytest.mark.parametrize("scales", SMALL_SCALES)
def test_scales_are_rounded_before_the_codes(scales: str) -> None:
    made, args = correlated(), QArgs(weight_args("Wfp4A16-g64").format, weight_args("Wfp4A16-g64").granularity, True, scales)
    plain = with_sigma(np.eye(made.weight.shape[1]))
    np.testing.assert_array_equal(codes_of(made.weight, args, plain, GPTQ()), codes_of(made.weight, args, None, RTN()))
    order = np.arange(made.weight.shape[1])
    expected, _, _ = as_the_paper_writes_it(made.weight, args, made.statistics, order)
    np.testing.assert_array_equal(codes_of(made.weight, args, made.statistics, GPTQ(actorder=None)), expected)


@pytest.mark.parametrize("k", [1, 3, 31, 144])
@pytest.mark.parametrize("n", [1, 7, 8, 33])
def test_blocks_and_rows_beside_change_nothing(n: int, k: int) -> None:
    made, args = correlated(n, k), weight_args("W3A16-g16")
    codes = codes_of(made.weight, args, made.statistics, GPTQ())
    for block_size in (1, 32, k):
        np.testing.assert_array_equal(codes_of(made.weight, args, made.statistics, GPTQ(block_size=block_size)), codes)
    alone = [codes_of(row[None], args, made.statistics, GPTQ()) for row in made.weight]
    np.testing.assert_array_equal(np.concatenate(alone), codes)


def test_every_rung_has_the_same_codes(rung: str) -> None:
    made, args = correlated(), weight_args("W3A16")
    codes = codes_of(made.weight, args, made.statistics, GPTQ())
    before = _kernels.isa()
    _kernels.set_isa("portable")
    try:
        np.testing.assert_array_equal(codes_of(made.weight, args, made.statistics, GPTQ()), codes)
    finally:
        _kernels.set_isa(before)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scheme", ["W3A16", "W3A16-g32"])
def test_it_loses_far_less_than_rounding(scheme: str, seed: int) -> None:
    made, args = correlated(seed=seed), weight_args(scheme)
    rtn, gptq = (step.solve(made.weight, args, made.statistics, None).rounded.stored for step in (RTN(), GPTQ()))
    errors = [output_error(made.weight, stored.decoded(), made.statistics) for stored in (rtn, gptq)]
    assert errors[1] <= 0.6 * errors[0]
    assert np.mean(rtn.unpacked() != gptq.unpacked()) >= 0.1


def test_the_wrong_triangle_is_rounding() -> None:
    """Entries above the diagonal of a lower factor are zero: codes are plausible and no better than nearest ones."""
    made, args = correlated(), weight_args("W3A16")
    order = np.arange(made.weight.shape[1])
    wrong, _, _ = as_the_paper_writes_it(made.weight, args, made.statistics, order, lower=True)
    nearest = codes_of(made.weight, args, None, RTN())
    np.testing.assert_array_equal(wrong, nearest)
    assert np.mean(codes_of(made.weight, args, made.statistics, GPTQ(actorder=None)) != nearest) >= 0.1


@pytest.mark.parametrize("actorder", ["static", None])
def test_the_first_column_is_nearest_and_later_ones_are_not(actorder: str | None) -> None:
    made, args = correlated(), weight_args("W3A16")
    order = factor_of(made.statistics, 0.01, actorder is not None).order
    codes, nearest = codes_of(made.weight, args, made.statistics, GPTQ(actorder=actorder)), codes_of(made.weight, args, None, RTN())
    np.testing.assert_array_equal(codes[:, order[0]], nearest[:, order[0]])
    assert np.mean(codes[:, order[-1]] != nearest[:, order[-1]]) > 0.1


def test_codes_depend_on_the_data() -> None:
    made, args = correlated(), weight_args("W3A16")
    other = seen(np.roll(made.rows, 5, axis=1))
    assert np.any(codes_of(made.weight, args, made.statistics, GPTQ()) != codes_of(made.weight, args, other, GPTQ()))


def test_dead_inputs_have_no_say() -> None:
    """Their weights become 0 before scales are chosen, and the codes of the others are those of a layer without them."""
    made, args = correlated(), weight_args("W3A16")
    rows, weight = made.rows.copy(), made.weight.copy()
    dead = np.array([0, 17, 143])
    rows[:, dead], weight[:, dead] = 0, 100
    solved = GPTQ().solve(weight, args, seen(rows))
    alive = np.setdiff1d(np.arange(144), dead)
    assert not solved.rounded.stored.decoded()[:, dead].any()
    assert solved.facts == {"dead inputs": 3}
    expected = codes_of(weight[:, alive], args, seen(rows[:, alive]), GPTQ())
    np.testing.assert_array_equal(solved.rounded.stored.unpacked()[:, alive], expected)


def test_inputs_of_few_rows_are_damped_until_there_is_a_factor() -> None:
    made, args = correlated(), weight_args("W4A16-g32")
    few = seen(made.rows[:5])
    assert few.sigma is not None
    shifted = with_sigma(few.sigma - 0.05 * few.sigma.diagonal().mean() * np.eye(144))
    solved = GPTQ().solve(made.weight, args, few)
    assert solved.facts == {}
    assert GPTQ().solve(made.weight, args, shifted).facts["damping"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("sigma", "message"),
    [
        (None, "not known"),
        (np.zeros((144, 144)), "zero"),
        (np.full((144, 144), np.nan), "NaN"),
        (np.full((144, 144), 40.0) - 39 * np.eye(144), "no positive matrix"),
    ],
)
def test_a_sigma_that_is_none_is_refused(sigma: np.ndarray | None, message: str) -> None:
    made = correlated()
    row = np.ones(144, np.float32)
    with pytest.raises(ValueError, match=message):
        GPTQ().solve(made.weight, weight_args("W4A16"), Statistics(1, -row, row, sigma=sigma))


def test_a_weight_of_any_layout_and_one_that_is_not_finite() -> None:
    made, args = correlated(), weight_args("W3A16-g64")
    codes = codes_of(made.weight, args, made.statistics, GPTQ())
    turned = np.asfortranarray(made.weight)
    turned.flags.writeable = False
    np.testing.assert_array_equal(codes_of(turned, args, made.statistics, GPTQ()), codes)
    spoiled = made.weight.copy()
    spoiled[3, 5] = np.inf
    with pytest.raises(ValueError, match="NaN or infinity"):
        GPTQ().solve(spoiled, args, made.statistics)


def test_one_factor_serves_all_that_read_one_input() -> None:
    made = correlated()
    assert factor_of(made.statistics, 0.01, True) is factor_of(made.statistics, 0.01, True)
    assert factor_of(made.statistics, 0.01, True) is not factor_of(made.statistics, 0.01, False)


def test_a_step_says_what_it_needs_and_refuses_what_it_is_not() -> None:
    assert GPTQ().requires == {SIGMA}
    assert GPTQ() == GPTQ(8, 0.01, "static")
    for wrong in ({"block_size": 0}, {"dampening_frac": -1.0}, {"dampening_frac": float("nan")}, {"actorder": "group"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            GPTQ(**wrong)  # type: ignore[arg-type]
