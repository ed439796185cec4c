"""Codes of scaled rows on every rung, against scaling, covering and rounding one after the other."""

from __future__ import annotations

import numpy as np
import pytest

from qruntime._kernels import row_codes
from qruntime.quantization.grid import channel_codes, nearest
from qruntime.quantization.scheme import parse
from tests.small_models import assert_same_bits, random

pytestmark = pytest.mark.usefixtures("rung")

SCHEMES = ["W8A8", "W8A8-asym", "W6A6", "W6A6-sym", "W4A8", "W3A8-sym", "W2A8"]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, 31), (4, 32), (5, 33), (7, 64), (3, 257), (40, 700)])
def test_codes_are_those_of_the_scaled_weight(scheme: str, shape: tuple[int, int]) -> None:
    args = parse(scheme).weights
    assert args is not None
    weight = random(*shape, seed=1) * np.exp2(random(shape[0], 1, seed=2) * 6)
    factor = np.exp2(random(shape[1], seed=3) * 3)
    if shape[0] > 2:
        weight[0], weight[1], weight[2] = 0, np.abs(weight[1]), -np.abs(weight[2])
        weight[-1] *= np.float32(1e-38)  # a scale below the least normal number
    wanted = nearest(weight * factor, args).stored
    codes, scale, zero_point = channel_codes(weight, factor, args)
    assert np.array_equal(codes, wanted.unpacked())
    assert_same_bits(scale, np.asarray(wanted.scale).reshape(-1))
    zeros = np.zeros(len(weight)) if wanted.zero_point is None else np.asarray(wanted.zero_point).reshape(-1)
    assert np.array_equal(zero_point, zeros)


@pytest.mark.parametrize("column", [0, 31, 32, 40])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_a_product_that_is_not_finite_is_refused(column: int, value: float) -> None:
    args = parse("W6A6").weights
    assert args is not None
    weight, factor = random(4, 41), np.full(41, 2, np.float32)
    weight[2, column] = value
    with pytest.raises(ValueError, match="the weight holds NaN or infinity"), np.errstate(over="ignore"):
        channel_codes(weight, factor, args)


def test_arguments_that_do_not_fit_are_refused() -> None:
    x, factor, codes, ends = random(4, 6), np.ones(6, np.float32), np.empty((4, 6), np.uint8), np.empty(4, np.float32)
    for given in (
        (x, factor[:5], 0, 63, False, codes, ends, ends),
        (x, factor, 0, 63, False, codes[:3], ends, ends),
        (x, factor, 0, 63, False, codes, ends[:3], ends),
        (x, factor, 0, 63, False, codes, ends, ends[:3]),
    ):
        with pytest.raises(ValueError, match=r"x of shape \(4, 6\) needs"):
            row_codes(*given)
    for low, high in ((1, 63), (0, 0), (0, 256), (-129, 5)):
        with pytest.raises(ValueError, match="do not lie in a byte with 0 among them"):
            row_codes(x, factor, low, high, False, codes, ends, ends)
    with pytest.raises(ValueError, match="x is empty"):
        row_codes(x[:0], factor, 0, 63, False, codes[:0], ends[:0], ends[:0])
