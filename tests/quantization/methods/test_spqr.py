"""SpQR against the algorithm as the paper writes it, and what must hold of it whatever the weight."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import qruntime
from qruntime import _kernels
from qruntime.ir import StoredTensor
from qruntime.quantization.grid import parameters, round_to, stored_as
from qruntime.quantization.hessian import grouped_factor_of
from qruntime.quantization.methods.gptq import GPTQ
from qruntime.quantization.methods.spqr import SpQR, gains
from qruntime.quantization.scheme import CHANNEL, Granularity, QArgs, ScaleCoding
from qruntime.quantization.statistics import SIGMA, Statistics, output_error
from tests.quantization.methods.layers_made import correlated, seen, weight_args, with_sigma

DEFAULT = "W3A16-g16-bilevel"
GRIDS = [DEFAULT, "W3A16-g16", "W4A16-g32-bilevel", "W4A16-g64-sym", "W3A16-bilevel", "Wnf4A16-g32", "W2A16-g16-f16", "Wnf4A16-g64-double"]


def solved(step: SpQR | GPTQ, weight: np.ndarray, args: QArgs, statistics: Statistics) -> StoredTensor:
    return step.solve(weight, args, statistics, None).rounded.stored


def nearest_of(x: np.ndarray, args: QArgs) -> tuple[np.ndarray, np.ndarray]:
    """Codes of one grid for each row, and what they stand for."""
    scale, zero_point = parameters(np.ascontiguousarray(x, np.float32), args)
    codes = round_to(x.astype(np.float32), args, scale, zero_point)
    return codes, stored_as(args, codes, scale, zero_point).decoded()


def as_the_paper_writes_it(weight: np.ndarray, args: QArgs, statistics: Statistics, tau: float, damping: float = 0.1) -> dict[str, Any]:
    """Algorithm 1 with the factor of the inverse: what stands in place of the weight, where it is no code, and the errors [N, K] and
    the damped H, in the order of columns."""
    assert statistics.sigma is not None
    k = weight.shape[1]
    size = args.granularity.size or k
    order = grouped_factor_of(statistics, damping, size).order
    hessian = statistics.sigma.copy()
    hessian[np.diag_indices(k)] += damping * hessian.diagonal().mean()
    hessian = hessian[np.ix_(order, order)]
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    d = upper.diagonal()
    current, own = weight[:, order].astype(np.float64), replace(args, granularity=Granularity(CHANNEL))
    threshold = tau * np.mean(np.mean(current**2, axis=0) / d**2)
    real, errors, apart = np.zeros(weight.shape), np.zeros(weight.shape), np.zeros(weight.shape, bool)
    first = 0
    while first < k:
        columns = [j for j in range(first, k) if order[j] // size == order[first] // size]
        group = current[:, columns].astype(np.float32)
        if tau < np.inf:
            likely = gains(group, args, 1 / d[columns] ** 2) > threshold
            others = np.where(likely, 0, group).sum(axis=1, keepdims=True) / np.maximum(1, np.sum(~likely, axis=1, keepdims=True))
            group = np.where(likely, others, group).astype(np.float32)
        scale, zero_point = parameters(group, own)
        for j in columns:
            codes = round_to(current[:, j : j + 1].astype(np.float32), own, scale, zero_point)
            rounded = stored_as(own, codes, scale, zero_point).decoded()[:, 0]
            apart[:, j] = ((current[:, j] - rounded) / d[j]) ** 2 > threshold
            real[:, j] = np.where(apart[:, j], current[:, j], rounded)
            errors[:, j] = (current[:, j] - real[:, j]) / d[j]
            current[:, j:] -= errors[:, j : j + 1] * upper[j, j:]
        first = columns[-1] + 1
    back = np.argsort(order)
    return {"real": real[:, back], "apart": apart[:, back], "errors": errors, "hessian": hessian, "order": order}


def apart_of(stored: StoredTensor) -> np.ndarray:
    mask = np.zeros(stored.shape, bool)
    if stored.outliers is not None:
        mask[stored.outliers.indices(stored.shape)] = True
    return mask


@pytest.mark.parametrize("tau", [0.05, 0.2, np.inf])
@pytest.mark.parametrize("scheme", GRIDS)
def test_numbers_are_those_of_the_paper(scheme: str, tau: float) -> None:
    """And its errors fulfil ‖Err‖² = tr((W − Q) H (W − Q)ᵀ), which no other factor of H does."""
    made, args = correlated(), weight_args(scheme)
    expected = as_the_paper_writes_it(made.weight, args, made.statistics, tau)
    stored = solved(SpQR(tau), made.weight, args, made.statistics)
    np.testing.assert_array_equal(apart_of(stored), expected["apart"])
    np.testing.assert_allclose(stored.decoded(), expected["real"], rtol=2.0**-11, atol=1e-6)
    lost = (made.weight - stored.decoded().astype(np.float64))[:, expected["order"]]
    np.testing.assert_allclose(np.sum(expected["errors"] ** 2), np.sum((lost @ expected["hessian"]) * lost), rtol=1e-3)


@pytest.mark.parametrize("scheme", [DEFAULT, "W3A16-g16"])
def test_without_outliers_it_is_gptq_with_groups_made_on_the_way(scheme: str) -> None:
    """With inputs that have no correlation, GPTQ as it is here."""
    made, args = correlated(), weight_args(scheme)
    assert solved(SpQR(np.inf), made.weight, args, made.statistics).outliers is None
    plain = with_sigma(3.0 * np.eye(144))
    one, other = (solved(step, made.weight, args, plain) for step in (SpQR(np.inf), GPTQ()))
    np.testing.assert_array_equal(one.unpacked(), other.unpacked())
    np.testing.assert_array_equal(one.decoded(), other.decoded())


def test_gains_are_those_of_leaving_one_out() -> None:
    """The others of a group, with scales of their own, against all of it."""
    rng = np.random.default_rng(0)
    weight = rng.standard_t(3, size=(40, 16)).astype(np.float32)
    weight[:5] = np.abs(weight[:5])
    weight[5] = 0
    weight[6, :] = 2.5
    pivots = rng.uniform(0.5, 2, 16)
    for scheme in ("W3A16-g16", "W4A16-g16-sym", "Wnf4A16-g16"):
        args = weight_args(scheme)
        plain = QArgs(args.format, Granularity(CHANNEL), args.symmetric, ScaleCoding())
        whole = np.sum((weight - nearest_of(weight, plain)[1]) ** 2 * pivots, axis=1)
        expected = np.zeros(weight.shape)
        for t in range(16):
            rest = np.delete(weight, t, axis=1)
            expected[:, t] = whole - np.sum((rest - nearest_of(rest, plain)[1]) ** 2 * np.delete(pivots, t), axis=1)
        np.testing.assert_allclose(gains(weight, args, pivots), expected, atol=2e-4)


@pytest.mark.parametrize("seed", range(3))
def test_bits_are_those_of_the_formula(seed: int) -> None:
    made, args = correlated(n=64, k=240, seed=seed), weight_args(DEFAULT)
    solution = SpQR().solve(made.weight, args, made.statistics)
    stored, share = solution.rounded.stored, solution.facts["outliers"]
    assert 0.001 <= share <= 0.05
    assert 8 * stored.nbytes / stored.size == pytest.approx(3 + (3 + 3) / 16 + 64 / (16 * 16) + 32 * share, rel=0.01)
    codes = stored.unpacked()
    assert codes.dtype == np.uint8
    assert codes.max() <= 7


@pytest.mark.parametrize("seed", range(3))
def test_outliers_carry_what_codes_cannot(seed: int) -> None:
    made, args = correlated(seed=seed), weight_args(DEFAULT)
    stored = solved(SpQR(), made.weight, args, made.statistics)
    assert stored.outliers is not None
    errors = [output_error(made.weight, one.decoded(), made.statistics) for one in (stored, replace(stored, outliers=None))]
    assert errors[1] >= 5 * errors[0]
    beside = SpQR(np.inf).solve(made.weight, args, made.statistics).rounded.stored
    assert errors[0] <= 0.8 * output_error(made.weight, beside.decoded(), made.statistics)


@pytest.mark.parametrize("seed", range(3))
def test_it_loses_less_than_gptq_with_as_many_bits(seed: int) -> None:
    made = correlated(seed=seed)
    stored = solved(SpQR(), made.weight, weight_args(DEFAULT), made.statistics)
    assert 8 * stored.nbytes / stored.size <= 4.5
    beside = solved(GPTQ(), made.weight, weight_args("W4A16"), made.statistics)
    errors = [output_error(made.weight, one.decoded(), made.statistics) for one in (stored, beside)]
    assert errors[0] <= 0.75 * errors[1]


@pytest.mark.parametrize("n", [1, 15, 96, 100])
def test_scales_take_few_values_in_a_block_of_rows(n: int) -> None:
    made = correlated(n=n)
    stored = solved(SpQR(), made.weight, weight_args(DEFAULT), made.statistics)
    for part in (stored.scale, stored.zero_point):
        assert isinstance(part, StoredTensor)
        values = part.decoded()
        for first in range(0, n, 16):
            assert all(len(np.unique(column)) <= 8 for column in values[first : first + 16].T)


def test_outliers_are_exact_and_their_codes_next_to_zero() -> None:
    """What is stored there is what the updates had made of the weight: for the first group the weight itself."""
    made, args = correlated(), weight_args(DEFAULT)
    stored = solved(SpQR(), made.weight, args, made.statistics)
    first = grouped_factor_of(made.statistics, 0.1, 16).order[0]
    apart = apart_of(stored)
    assert apart[:, first].any()
    np.testing.assert_array_equal(stored.decoded()[apart[:, first], first], made.weight[apart[:, first], first].astype(np.float16))
    values = replace(stored, outliers=None).decoded()
    step = stored.expanded(stored.scale.decoded())  # type: ignore[union-attr]
    inside = np.abs(values[apart]) <= 0.51 * step[apart]
    assert inside.mean() >= 0.9  # where the grid reaches 0


@pytest.mark.parametrize(("n", "k"), [(1, 1), (9, 15), (33, 17), (1, 40), (33, 150)])
def test_shapes_that_are_no_multiples(n: int, k: int) -> None:
    made, args = correlated(n, k), weight_args(DEFAULT)
    expected = as_the_paper_writes_it(made.weight, args, made.statistics, 0.2)
    stored = solved(SpQR(0.2), made.weight, args, made.statistics)
    assert stored.shape == (n, k)
    np.testing.assert_allclose(stored.decoded(), expected["real"], rtol=2.0**-11, atol=1e-6)


def test_every_rung_has_the_same_numbers(rung: str) -> None:
    made, args = correlated(), weight_args(DEFAULT)
    stored = solved(SpQR(), made.weight, args, made.statistics)
    before = _kernels.isa()
    _kernels.set_isa("portable")
    try:
        fresh = seen(made.rows)
        np.testing.assert_array_equal(solved(SpQR(), made.weight, args, fresh).decoded(), stored.decoded())
    finally:
        _kernels.set_isa(before)


def test_codes_depend_on_the_data() -> None:
    made, args = correlated(), weight_args(DEFAULT)
    other = seen(np.roll(made.rows, 5, axis=1))
    one, two = (solved(SpQR(), made.weight, args, statistics) for statistics in (made.statistics, other))
    assert np.any(one.unpacked() != two.unpacked())
    assert np.any(apart_of(one) != apart_of(two))


def test_dead_inputs_have_no_say() -> None:
    made, args = correlated(), weight_args(DEFAULT)
    rows, weight = made.rows.copy(), made.weight.copy()
    dead = np.arange(32, 48)
    rows[:, dead], weight[:, dead] = 0, 100
    solution = SpQR().solve(weight, args, seen(rows))
    assert not solution.rounded.stored.decoded()[:, dead].any()
    assert solution.facts["dead inputs"] == 16
    alive = np.setdiff1d(np.arange(144), dead)
    expected = solved(SpQR(), weight[:, alive], args, seen(rows[:, alive]))
    np.testing.assert_array_equal(solution.rounded.stored.unpacked()[:, alive], expected.unpacked())


def test_a_weight_of_zeros_has_no_outliers() -> None:
    made = correlated()
    stored = solved(SpQR(), np.zeros_like(made.weight), weight_args(DEFAULT), made.statistics)
    assert stored.outliers is None
    assert not stored.decoded().any()


def test_what_it_refuses() -> None:
    made = correlated()
    spoiled = made.weight.copy()
    spoiled[3, 5] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity"):
        solved(SpQR(), spoiled, weight_args(DEFAULT), made.statistics)
    for scheme in ("W4A16-tensor", "Wovp4A16-g16"):
        with pytest.raises(ValueError, match="one group after the other"):
            solved(SpQR(), made.weight, weight_args(scheme), made.statistics)
    for wrong in ({"outlier_threshold": 0.0}, {"outlier_threshold": float("nan")}, {"dampening_frac": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SpQR(**wrong)
    assert SpQR().requires == {SIGMA}


def test_the_recipe() -> None:
    recipe = qruntime.quantization.recipes["SpQR"]
    assert (recipe.scheme, recipe.steps) == (DEFAULT, (SpQR(),))
