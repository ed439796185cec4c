"""Rounding to nearest on every rung, against its definition in numpy."""

from __future__ import annotations

import numpy as np
import pytest

from qruntime._kernels import round_to_grid
from qruntime.quantization.grid import code_grid, nearest, nearest_values, parameters, round_to, stored_as
from qruntime.quantization.scheme import QArgs, parse
from tests.small_models import assert_same_bits, random

pytestmark = pytest.mark.usefixtures("rung")

SCHEMES = [
    "W8A16", "W8A16-asym", "W4A16", "W3A16-sym", "W2A16-g16", "W4A16-g32-sym", "W5A16-g16", "W4A16-tensor", "Wnf4A16-g16", "Wfp4A16-g32",
    "Wfp8A16", "Wnf4A16-g16-double", "W3A16-g16-bilevel", "Wfp4A16-g32-pow2", "W4A16-g16-f16",
]  # fmt: skip


def args_of(scheme: str) -> QArgs:
    args = parse(scheme).weights
    assert args is not None
    return args


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 64), (40, 100), (5, 700)])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_kernel_rounds_as_numpy_does(scheme: str, shape: tuple[int, int]):
    args, weight = args_of(scheme), random(*shape, seed=1) * np.exp2(random(shape[0], 1, seed=2) * 6)
    weight[0], weight[-1, -1] = np.where(weight[0] < 0, -0.0, 0.0), 3e38
    scale, zero_point = parameters(weight, args)
    with np.errstate(over="ignore"):
        codes = round_to(weight, args, scale, zero_point)
        values = stored_as(args, codes, scale, zero_point).decoded()
    assert_same_bits(nearest_values(weight, args), values)
    made = nearest(weight, args).stored
    assert np.array_equal(made.unpacked(), codes)


def test_numbers_in_the_middle_go_to_the_even_code_and_the_lower_entry():
    integers, table = args_of("W4A16-tensor-sym"), args_of("Wfp4A16-tensor")
    weight = np.array([[7, 0.5, 1.5, -0.5, -2.5]], np.float32)
    assert nearest_values(weight, integers).tolist() == [[7, 0, 2, 0, -2]]
    weight = np.array([[6, 0.25, 0.75, -0.25, 5]], np.float32)
    assert nearest_values(weight, table).tolist() == [[6, 0, 0.5, -0.5, 4]]


def test_what_has_another_shape_is_refused():
    args, weight = args_of("W4A16"), random(4, 6)
    grid, codes = code_grid(args, *parameters(weight, args), weight.shape), np.empty((4, 6), np.uint8)
    for x, own, values in (
        (random(4, 5), codes, np.empty((4, 6), np.float32)),
        (weight, codes[:3], np.empty((4, 6), np.float32)),
        (weight, codes, np.empty((4, 7), np.float32)),
    ):
        with pytest.raises(ValueError, match="shape of x"):
            round_to_grid(x, grid, own, values)


def test_weights_of_no_rows_or_columns():
    for shape in ((0, 4), (4, 0), (0, 0)):
        assert nearest_values(np.zeros(shape, np.float32), args_of("W4A16")).shape == shape
