"""Rounding weights to codes, against its definition in numpy."""

from __future__ import annotations

import numpy as np
import pytest

from qruntime._kernels import weight_codes
from tests.small_models import random

SHAPES = [(1, 1), (3, 5), (70, 257), (129, 300), (2, 16641), (0, 4), (4, 0)]


@pytest.mark.parametrize("by_column", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_against_the_definition(shape: tuple[int, int], symmetric: bool, by_column: bool):
    x = random(*shape) * np.float32(3)
    slices = shape[by_column]
    scale = np.float32(2.0) ** (np.arange(slices) % 4 - 5)
    # Halves of steps are ties; the largest values lie beyond the codes.
    x = np.where(random(*shape, seed=1) > 0, x, np.rint(x) / 64).astype(np.float32)
    zero = np.zeros(slices) if symmetric else np.arange(slices) * 37 % 256 - 128.0
    lowest = -127 if symmetric else -128
    forms = np.stack([scale, 1 / scale, lowest - zero, 127 - zero, zero]).astype(np.float32)
    q, signal, noise = np.empty(shape, np.int8), np.ones(slices), np.ones(slices)
    weight_codes(x, by_column, forms, q, signal, noise)
    s, z = (part[None] if by_column else part[:, None] for part in (scale.astype(np.float64), zero))
    steps = x / s
    codes = np.clip(np.rint(steps) + z, lowest, 127)
    np.testing.assert_array_equal(q, codes)
    # Powers are added to what was there. At most 64 positive terms in float, each of a few roundings, then double.
    bound = 80 * 2.0**-24
    np.testing.assert_allclose(signal - 1, (steps**2).sum(1 - by_column), rtol=bound, atol=1e-12)
    np.testing.assert_allclose(noise - 1, ((codes - z - steps) ** 2).sum(1 - by_column), rtol=bound, atol=1e-12)


def test_what_does_not_fit_is_refused():
    x, q = np.zeros((3, 4), np.float32), np.zeros((3, 4), np.int8)
    with pytest.raises(ValueError, match="q needs the shape of x"):
        weight_codes(x, True, np.ones((5, 4), np.float32), q[:2], np.zeros(4), np.zeros(4))
    with pytest.raises(ValueError, match="need 4 columns"):
        weight_codes(x, True, np.ones((5, 3), np.float32), q, np.zeros(4), np.zeros(4))
