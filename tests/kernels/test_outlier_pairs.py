"""Rounding to outlier-victim pairs: every rung, and the numpy definition, give the same integers."""

from __future__ import annotations

import numpy as np
import pytest

from qruntime import _kernels
from qruntime.ops.outlier_pairs import outlier_victim_pairs, pair_values
from tests.kernels.native_call import run_native

RNG = np.random.default_rng(7)
GRID = np.array([0, 1, 2, 3, 4, 5, 6, 7, 12, 16, 24, 32, 48, 64, 96], np.float32)
TIES = np.array([0.5, 1.5, 2.5, 6.5, 7.5, 9.5, np.nextafter(np.float32(9.5), np.float32(10)), 14, 20, 28, 40, 56, 80], np.float32)
TO_EVEN = [0, 2, 2, 6, 7, 7, 12, 16, 16, 32, 32, 64, 64]
ODD = np.array([0.0, -0.0, 1e38, -1e38, np.inf, -np.inf, np.nan, 1e-45, 96, 97, 2**22 + 1, -(2**24)], np.float32)


def data(*shape: int) -> np.ndarray:
    x = (RNG.standard_t(2, shape) * 4).astype(np.float32)
    flat = x.reshape(-1)
    flat[RNG.random(flat.size) < 0.1] = RNG.choice(np.concatenate([TIES, -TIES, ODD]), 1)
    return x


@pytest.mark.parametrize("sign", [1, -1])
def test_numbers_become_the_nearest_half_to_even(sign: int):
    """Each has a partner of 0, which never wins."""
    x = np.stack([sign * TIES, np.zeros_like(TIES)], axis=-1)
    for pairs in (x, x[:, ::-1]):
        values = pair_values(np.ascontiguousarray(pairs), np.float32(1))
        assert values.max(axis=1).tolist() == [max(0, sign * v) for v in TO_EVEN]
        assert (values.min(axis=1) + values.max(axis=1)).tolist() == [sign * v for v in TO_EVEN]
    every = (np.arange(1 << 15) / 256).astype(np.float32)
    alone = np.abs(pair_values(np.stack([every, np.zeros_like(every)], axis=-1), np.float32(1))[:, 0] - every)
    np.testing.assert_array_equal(alone, np.abs(every[:, None] - GRID).min(axis=1))


def test_of_two_the_larger_stays():
    pairs = [
        [50, 3],
        [3, -50],
        [-20, 70],
        [70, 20],
        [30, 30],
        [30, -30],
        [np.inf, -np.inf],
        [300, 200],
        [7.4, 9.4],
        [np.nan, 13],
        [9.6, 9.5],
    ]
    kept = [[48, 0], [0, -48], [0, 64], [64, 0], [32, 0], [32, 0], [96, 0], [96, 0], [7, 7], [0, 12], [12, 0]]
    assert pair_values(np.array(pairs, np.float32), np.float32(1)).tolist() == kept


def test_the_last_of_an_odd_row_is_nobodys_victim():
    x = np.array([[100, 1, 90], [1, 100, 2]], np.float32)
    assert pair_values(x, np.float32(1)).tolist() == [[96, 0, 96], [0, 96, 2]]


@pytest.mark.parametrize("shape", [(0,), (1,), (2,), (7,), (3, 0), (0, 4), (5, 1), (4, 33), (2, 3, 64), (3, 16385), (2, 1030)])
@pytest.mark.parametrize("threads", [1, 3])
def test_every_rung(rung: str, shape: tuple[int, ...], threads: int):
    x = data(*shape)
    for scale in (1.0, float(np.float32(0.37)), float(np.float32(1e-38)), float(np.float32(1e30))):
        found = run_native("OutlierVictimCodes", [x], domain="qruntime", version=1, scale=scale, num_threads=threads)
        assert found is not None
        assert found[0].dtype == np.int8
        np.testing.assert_array_equal(found[0], pair_values(x, np.float32(scale)))
        np.testing.assert_array_equal(outlier_victim_pairs(x, np.float32(scale)), found[0] * np.float32(scale))


def test_a_row_does_not_depend_on_others(rung: str):
    x = data(9, 70)
    whole = run_native("OutlierVictimCodes", [x], domain="qruntime", version=1, scale=0.5, num_threads=2)
    assert whole is not None
    for i, row in enumerate(x):
        alone = run_native("OutlierVictimCodes", [row[None]], domain="qruntime", version=1, scale=0.5)
        assert alone is not None
        np.testing.assert_array_equal(alone[0][0], whole[0][i])


def test_what_the_kernel_declines_and_the_definition_explains():
    x = data(2, 4)
    assert run_native("OutlierVictimCodes", [x.astype(np.float64)], domain="qruntime", version=1, scale=1.0) is None
    for scale in (0.0, -1.0, np.nan, np.inf):
        assert run_native("OutlierVictimCodes", [x], domain="qruntime", version=1, scale=scale) is None
        with pytest.raises(ValueError, match="one finite float32 above 0"):
            outlier_victim_pairs(x, np.float32(scale))
    with pytest.raises(ValueError, match="rank 1 at least"):
        outlier_victim_pairs(np.float32(3).reshape(()), np.float32(1))
    with pytest.raises(ValueError, match="must be float32"):
        outlier_victim_pairs(x.astype(np.float64), np.float32(1))
    with pytest.raises(ValueError, match="one finite float32"):
        outlier_victim_pairs(x, np.ones(2, np.float32))


@pytest.mark.parametrize("k", [1, 2, 15, 16, 17, 1023, 1024, 1025, 3000])
def test_errors_of_scales(rung: str, k: int):
    """Every rung adds in the same order; within float32 of the sum of squares."""
    x, weights = (RNG.standard_t(3, (3, k)) * 2).astype(np.float32), RNG.random(k, dtype=np.float32)
    scales = np.ascontiguousarray(np.broadcast_to(np.array([0.3, 1, 2.5], np.float32), (3, 3)))
    errors = np.zeros((3, 3))
    _kernels.pair_errors(x, weights, scales, errors)
    for i, scale in enumerate(scales[0]):
        lost = (x / scale).astype(np.float64) - pair_values(x, scale)
        np.testing.assert_allclose(errors[:, i], (lost**2) @ weights, rtol=1e-5)
    together = np.zeros((1, 3))
    _kernels.pair_errors(x, weights, scales[:1], together)
    np.testing.assert_allclose(together, errors.sum(axis=0, keepdims=True), rtol=1e-12)
    _kernels.set_isa("portable")
    same = np.zeros((3, 3))
    _kernels.pair_errors(x, weights, scales, same)
    np.testing.assert_array_equal(same, errors)


def test_shapes_are_checked():
    x, scale, values = np.zeros((2, 4), np.float32), np.ones(2, np.float32), np.zeros((2, 4), np.int8)
    with pytest.raises(ValueError, match="the shape of x"):
        _kernels.pair_values(x, scale[:1], values)
    with pytest.raises(ValueError, match="the shape of x"):
        _kernels.pair_values(x, scale, values[:, :3].copy())
    weights = np.ones(4, np.float32)
    with pytest.raises(ValueError, match="1 row or 2"):
        _kernels.pair_errors(x, weights, np.ones((3, 1), np.float32), np.zeros((3, 1)))
    with pytest.raises(ValueError, match="1 row or 2"):
        _kernels.pair_errors(x, weights, np.ones((2, 2), np.float32), np.zeros((2, 1)))
    with pytest.raises(ValueError, match="weights needs 4 elements"):
        _kernels.pair_errors(x, weights[:3], np.ones((2, 1), np.float32), np.zeros((2, 1)))
