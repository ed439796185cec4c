"""Scales and zero points that are codes in their turn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qruntime.errors import QuantizationError
from qruntime.ir import StoredTensor
from qruntime.ir.stored import numbers, stack
from qruntime.quantization.grid import nearest
from qruntime.quantization.scheme import QArgs, ScaleCoding, parse
from qruntime.quantization.second_level import coded_scales, coded_zero_points, side_by_side
from tests.small_models import random


def args(text: str) -> QArgs:
    weights = parse(text).weights
    assert weights is not None
    return weights


def test_what_a_coding_says():
    assert args("W3A16-g16-bilevel").scales == ScaleCoding("bilevel", 3, 16) == ScaleCoding("bilevel")
    assert args("W4A16-g32-f16").scales == ScaleCoding("float16")
    assert args("W4A16-g32-pow2").scales == ScaleCoding("pow2")
    assert args("Wnf4A16-g64-double").scales == ScaleCoding("double", 8, 256)
    assert QArgs(args("W4A16").format, scales="pow2").scales == ScaleCoding("pow2")  # type: ignore[arg-type]
    assert str(args("W3A16-g16-bilevel")) == "uint3 g16 affine scales bilevel of 3 bits in 16 rows"


@pytest.mark.parametrize(
    "fields", [("float64",), ("pow2", 3), ("float16", 0, 16), ("bilevel", 1), ("bilevel", 9), ("double", 8, 1), ("double", 8, -4)], ids=str
)
def test_codings_that_mean_nothing(fields: Any):
    with pytest.raises(QuantizationError, match="scales"):
        ScaleCoding(*fields)


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 50])
@pytest.mark.parametrize("size", [1e-7, 1e-3, 1.0, 1e6])
def test_scales_of_a_block_are_near_one_of_eight(rows: int, size: float):
    span = size * (1 + np.random.default_rng(0).random((rows, 5)))
    coded = coded_scales(span, ScaleCoding("bilevel", 3, 16))
    made = coded.decoded()
    for first in range(0, rows, 16):
        block, real = span[first : first + 16], made[first : first + 16]
        reach = np.ptp(block, axis=0) / 7
        assert (np.abs(real - block) <= reach * 0.51 + 2.0**-9 * block.max(axis=0)).all()
        assert all(len(np.unique(column)) <= 8 for column in real.T)
    blocks = -(-rows // 16)
    item = 2 if 1e-3 <= size <= 1 else 4  # float16 holds no others well
    assert coded.nbytes == -(-rows * 5 * 3 // 8) + 2 * item * blocks * 5


def test_scales_around_their_mean():
    span = 1 + np.random.default_rng(1).random((300, 3))
    coded = coded_scales(span, ScaleCoding("double", 8, 256))
    assert np.abs(coded.decoded() - span).max() <= np.abs(span - span.mean(axis=0)).max() / 254 * 1.01
    assert coded.offset is not None
    np.testing.assert_allclose(coded.offset, span.mean(axis=0, keepdims=True), rtol=1e-6)


def test_groups_of_zeros_take_what_the_block_has():
    span, zero = np.ones((20, 2)), np.full((20, 2), 3.4)
    span[3, 0] = span[16:] = zero[3, 0] = zero[16:] = 0
    coding = ScaleCoding("bilevel", 3, 16)
    scale, zero_point = coded_scales(span, coding).decoded(), coded_zero_points(zero, span > 0, coding).decoded()
    assert (scale == 1).all()
    assert np.abs(zero_point[:16][span[:16] > 0] - 3.4).max() < 2.0**-5
    assert np.abs(zero_point[3, 0] - 3) < 2.0**-2
    assert (zero_point[16:] == 0).all()
    weight = random(20, 32)
    weight[:16] = 0
    assert not nearest(weight, args("W3A16-g16-bilevel")).stored.decoded()[:16].any()


@pytest.mark.parametrize("scheme", ["W3A16-g16-bilevel", "W3A16-g16-double"])
def test_codes_are_the_nearest_for_the_scales_that_are_stored(scheme: str):
    w = random(37, 75)
    made = nearest(w, args(scheme)).stored
    assert isinstance(made.scale, StoredTensor)
    assert made.zero_point is not None
    scale, zero = made.expanded(made.scale), made.expanded(made.zero_point)
    grid = scale[..., None] * (np.arange(8, dtype=np.float32) - zero[..., None])
    np.testing.assert_allclose(np.abs(made.decoded() - w), np.abs(grid - w[..., None]).min(axis=-1), atol=1e-6)


def test_parts_come_along():
    """Rows, the other way round, a factor, tensors on top of each other: what each decodes to."""
    made = nearest(random(37, 75), args("W3A16-g16-bilevel")).stored
    real, picked = made.decoded(), np.array([5, 36, 5, 0])
    np.testing.assert_array_equal(made.transposed().decoded(), real.T)
    np.testing.assert_array_equal(made.transposed().transposed().decoded(), real)
    np.testing.assert_array_equal(made.rows(picked).decoded(), real[picked])
    np.testing.assert_allclose(made.scaled(0.3).decoded(), real * np.float32(0.3), rtol=1e-5, atol=1e-7)
    other = nearest(1e-6 * random(37, 75, seed=1), args("W3A16-g16-bilevel")).stored
    both = stack([made, other])
    assert both is not None
    np.testing.assert_array_equal(both.decoded(), np.stack([real, other.decoded()]))
    for i, one in enumerate((made, other)):
        np.testing.assert_array_equal(both[i].decoded(), one.decoded())
    assert stack([made, nearest(random(37, 75), args("W3A16-g16")).stored]) is None
    assert made.nbytes == sum(array.nbytes for array in made.arrays())


@pytest.mark.parametrize("coding", [ScaleCoding("bilevel"), ScaleCoding("double")], ids=str)
def test_groups_made_one_after_the_other(coding: ScaleCoding):
    span = 1 + np.random.default_rng(2).random((40, 6))
    whole = coded_scales(span, coding)
    parts = side_by_side([coded_scales(span[:, i : i + 2], coding) for i in (0, 2, 4)])
    np.testing.assert_array_equal(numbers(parts), whole.decoded())
    assert parts.nbytes == whole.nbytes
    np.testing.assert_array_equal(side_by_side([span[:, :3], span[:, 3:]]), span)
