"""ZeroQuant-V2: a branch of low rank holds the greatest part of an error that its rank allows."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from qruntime.errors import QuantizationError
from qruntime.ir import StoredTensor
from qruntime.quantization.grid import nearest
from qruntime.quantization.methods.zeroquant_v2 import LowRank
from qruntime.quantization.scheme import parse
from qruntime.quantization.statistics import SIGMA, Statistics
from qruntime.quantization.steps import LowRankFactors

SHAPES = [(96, 160), (160, 96), (64, 64), (1, 40), (40, 3)]


def layer(n: int, k: int, scheme: str = "W4A16") -> tuple[np.ndarray, np.ndarray]:
    """A weight with heavy tails, and what its codes stand for."""
    weight = np.random.default_rng(n + k).standard_t(5, (n, k)).astype(np.float32)
    args = parse(scheme).weights
    assert args is not None
    return weight, nearest(weight, args).stored.decoded()


def rows(k: int, count: int = 512) -> np.ndarray:
    """Channels of very different power, and correlated."""
    rng = np.random.default_rng(k)
    return (rng.standard_normal((count, k)) @ rng.standard_normal((k, k)) * np.geomspace(0.03, 3, k)).astype(np.float32)


def seen(x: np.ndarray) -> Statistics:
    wide = x.astype(np.float64)
    return Statistics(len(x), x.min(axis=0), x.max(axis=0), sigma=wide.T @ wide)


def power_left(weight: np.ndarray, restored: np.ndarray, factors: LowRankFactors) -> float:
    return float(np.sum((weight.astype(np.float64) - restored - factors.product()) ** 2))


@pytest.mark.parametrize("shape", [*SHAPES, (500, 420), (420, 500)])
@pytest.mark.parametrize("rank", [1, 5, 8])
def test_no_factors_of_that_rank_leave_less(shape: tuple[int, int], rank: int) -> None:
    """Eckart and Young: what is left is the power of the singular values behind the first ones."""
    weight, restored = layer(*shape)
    sigma = np.linalg.svd(weight.astype(np.float64) - restored, compute_uv=False)
    factors = LowRank(rank, bits=None).branch(weight, restored)
    assert factors.rank == min(rank, *shape)
    np.testing.assert_allclose(power_left(weight, restored, factors), np.sum(sigma[rank:] ** 2), rtol=1e-5, atol=1e-12 * np.sum(sigma**2))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_rank_leaves_less_and_the_last_nothing(shape: tuple[int, int]) -> None:
    weight, restored = layer(*shape)
    ranks = [rank for rank in (1, 2, 4, 8, 16, 32, 64, 96) if rank <= min(shape)]
    left = [power_left(weight, restored, LowRank(rank, bits=None).branch(weight, restored)) for rank in ranks]
    assert all(after < before for before, after in pairwise(left))
    whole = LowRank(10_000, bits=None).branch(weight, restored)
    assert whole.rank == min(shape)
    np.testing.assert_allclose(restored + whole.product(), weight, rtol=0, atol=1e-5 * np.abs(weight).max())


@pytest.mark.parametrize("shape", SHAPES)
def test_factors_of_8_bits_cost_less_than_2_percent(shape: tuple[int, int]) -> None:
    weight, restored = layer(*shape)
    exact = power_left(weight, restored, LowRank(8, bits=None).branch(weight, restored))
    factors = LowRank(8).branch(weight, restored)
    coded = power_left(weight, restored, factors)
    total = np.sum((weight.astype(np.float64) - restored) ** 2)
    assert coded <= 1.02 * exact + 1e-4 * total
    assert factors.facts["error_left"] == pytest.approx(coded / total, rel=1e-6)
    for factor in (factors.left, factors.right):
        assert isinstance(factor, StoredTensor)
        assert (factor.format.name, factor.scale.shape) == ("int8", (factor.shape[0], 1))
    assert factors.left.nbytes + factors.right.nbytes == factors.rank * sum(shape) + 4 * (shape[0] + factors.rank)


def test_fewer_bits_of_factors_cost_more() -> None:
    weight, restored = layer(96, 160)
    left = [power_left(weight, restored, LowRank(8, bits=bits).branch(weight, restored)) for bits in (None, 8, 4, 2)]
    assert left == sorted(left)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [512, 8])
def test_with_activations_no_factors_leave_less_of_the_outputs(shape: tuple[int, int], count: int) -> None:
    """The power of the output errors is that of the singular values of X · Eᵀ, also where Σ has no inverse."""
    weight, restored = layer(*shape)
    x = rows(shape[1], count)
    error = (weight.astype(np.float64) - restored) @ x.T
    sigma = np.linalg.svd(error, compute_uv=False)

    def left(step: LowRank) -> float:
        factors = step.branch(weight, restored, seen(x))
        return float(np.sum((error - factors.product().astype(np.float64) @ x.T) ** 2))

    aware, unaware = left(LowRank(4, bits=None, activation_aware=True)), left(LowRank(4, bits=None))
    np.testing.assert_allclose(aware, np.sum(sigma[4:] ** 2), rtol=1e-4, atol=1e-9 * np.sum(sigma**2))
    assert aware <= unaware * (1 + 1e-6) + 1e-9 * np.sum(sigma**2)
    if min(shape) > 4 and count > 8:
        assert aware < 0.8 * unaware


def test_the_output_error_falls() -> None:
    """By 5 % at rank 8 of 192 and 4 bits; more at 2 bits with more of the rank."""
    x = rows(192)
    for scheme, rank, most in (("W4A16", 8, 0.95), ("W2A16", 16, 0.9)):
        weight, restored = layer(192, 192, scheme)
        restored_with = restored + LowRank(rank).branch(weight, restored).product()
        assert np.sum((x @ (weight - restored_with).T) ** 2) < most * np.sum((x @ (weight - restored).T) ** 2)


def test_the_error_counts_and_not_the_weight() -> None:
    weight, restored = layer(40, 56)
    far = (np.round(np.random.default_rng(1).standard_normal((40, 56)) * 8) / 8).astype(np.float32)
    moved = LowRank(4, bits=None).branch(weight + far, restored + far)
    np.testing.assert_allclose(moved.product(), LowRank(4, bits=None).branch(weight, restored).product(), atol=1e-5)


def test_an_error_of_less_rank_needs_no_more() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((30, 50)).astype(np.float32)
    assert LowRank(4).branch(weight, weight).rank == 0
    assert LowRank(4).branch(weight, weight).product().shape == (30, 50)
    assert LowRank(4, activation_aware=True).branch(weight, weight, seen(rows(50))).rank == 0
    error = np.outer(np.arange(30) - 12, np.arange(50) - 20).astype(np.float32) / 64
    factors = LowRank(4, bits=None).branch(error, np.zeros_like(error))
    np.testing.assert_allclose(factors.product(), error, atol=1e-5)


def test_finer_groups_leave_less() -> None:
    errors = []
    for scheme in ("W4A16", "W4A16-g128", "W4A16-g64", "W4A16-g32"):
        weight, restored = layer(64, 256, scheme)
        errors.append(np.sum((weight - restored) ** 2))
    assert errors == sorted(errors, reverse=True)


def test_what_it_needs_and_refuses() -> None:
    weight, restored = layer(8, 8)
    assert LowRank().requires == frozenset()
    assert LowRank(activation_aware=True).requires == {SIGMA}
    with pytest.raises(ValueError, match="needs the rows"):
        LowRank(activation_aware=True).branch(weight, restored, None)
    with pytest.raises(QuantizationError, match="need 1 or more"):
        LowRank(0)
    with pytest.raises(QuantizationError, match="2 to 8 bits"):
        LowRank(8, bits=1)
