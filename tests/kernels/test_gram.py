"""Exact sums over rows: what they are, what they leave out, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from qruntime._kernels import GRAM_CODE, gram_of_codes, sum_magnitudes

RNG = np.random.default_rng(0)


def gram(x: np.ndarray, inverse_step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    total, apart = np.full((x.shape[1],) * 2, 7, np.int64), np.full(len(x), 7, np.uint8)
    gram_of_codes([x[: len(x) // 3], x[len(x) // 3 :]], inverse_step, total, apart)
    return total, apart


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 127, 128, 129, 300, 4500])
@pytest.mark.parametrize("channels", [1, 15, 16, 17, 31, 32, 33, 64, 100])
def test_sums_are_those_of_the_codes(rows: int, channels: int) -> None:
    x = RNG.uniform(-10, 10, (rows, channels)).astype(np.float32)
    inverse_step = np.exp2(RNG.integers(-2, 9, channels)).astype(np.float32)
    codes = np.rint(x * inverse_step).astype(np.int64)
    apart = (np.abs(codes) > GRAM_CODE).any(axis=1)
    total, marks = gram(x, inverse_step)
    np.testing.assert_array_equal(marks != 0, apart)
    np.testing.assert_array_equal(np.triu(total), np.triu(codes[~apart].T @ codes[~apart]))
    sums = np.full(channels, 7, np.int64)
    sum_magnitudes([x[: rows // 2], x[rows // 2 :]], inverse_step, sums)
    np.testing.assert_array_equal(sums, np.abs(codes).sum(axis=0))


def test_the_largest_codes_do_not_overflow() -> None:
    total, apart = gram(np.full((1000, 3), GRAM_CODE, np.float32), np.ones(3, np.float32))
    assert not apart.any() and total[0, 2] == 1000 * GRAM_CODE**2


@pytest.mark.parametrize("value", [GRAM_CODE + 1, -GRAM_CODE - 1, np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("left_out", [[3], [4], [2, 3], [0, 3, 4], [0, 1, 2, 3, 4]])
@pytest.mark.parametrize("channel", [0, 31, 39])
def test_a_row_that_does_not_fit_is_left_out(value: float, left_out: list[int], channel: int) -> None:
    x = np.ones((5, 40), np.float32)
    x[left_out, channel] = value
    total, apart = gram(x, np.ones(40, np.float32))
    assert np.flatnonzero(apart).tolist() == left_out and (np.triu(total) == np.triu(np.full((40, 40), 5 - len(left_out)))).all()


def test_arguments_that_do_not_fit_are_refused() -> None:
    x, steps, total, apart = np.ones((4, 6), np.float32), np.ones(6, np.float32), np.zeros((6, 6), np.int64), np.zeros(4, np.uint8)
    for given in (
        ([x], steps[:5], total, apart),
        ([x[:, :5].copy(), x], steps, total, np.zeros(8, np.uint8)),
        ([x], steps, total[:5], apart),
        ([x], steps, total[:, :5].copy(), apart),
        ([x], steps, total, apart[:3]),
        ([x, x], steps, total, apart),
    ):
        with pytest.raises(ValueError, match=r"rows of \d channels (are )?need"):
            gram_of_codes(*given)
    for few in (([x], steps[:5], np.zeros(6, np.int64)), ([x], steps, np.zeros(5, np.int64))):
        with pytest.raises(ValueError, match="channels"):
            sum_magnitudes(*few)
