"""What layers will make once they are quantized, before they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from qruntime.quantization.rehearsal import RehearsedLayer, losses_of_scales, rounded_rows, rounded_weight
from qruntime.quantization.scheme import parse
from tests.quantization.methods.sites import K, rows, site
from tests.small_models import random

WHOLE = ["W8A8", "W8A8-asym", "W6A6", "W4A4-sym", "W8A8-static", "W6A6-static", "W3A2-static"]
FLOATS = ["W6A6-g16", "W4A8-tensor", "Wfp4Afp8-g32", "W4A8-g16-f16", "W4A16", "Wnf4A16-g16", "W16A16"]
ROWS, WEIGHT = random(37, 48, seed=1) * 3, random(20, 48, seed=2)
FACTOR = np.exp2(random(48, seed=3))
BIAS = random(20, seed=4)


@pytest.mark.parametrize("scheme", [*WHOLE, *FLOATS])
@pytest.mark.parametrize("bias", [None, BIAS])
def test_the_product_is_that_of_rounded_rows_and_the_rounded_weight(scheme: str, bias: np.ndarray | None) -> None:
    one = parse(scheme)
    low, high = ROWS.min(), ROWS.max() / 2
    made = RehearsedLayer(WEIGHT, FACTOR, one, one.inputs, bias).product(ROWS, low, high)
    rows = rounded_rows(ROWS, one.inputs, low, high).astype(np.float64)
    weight = rounded_weight(WEIGHT * FACTOR, one).astype(np.float64)
    wanted = rows @ weight.T + (0 if bias is None else bias)
    size = np.abs(rows) @ np.abs(weight).T + 1
    assert (np.abs(made - wanted) <= 48 * 2.0**-23 * size).all()


def test_rows_beside_it_change_no_product() -> None:
    for scheme in ("W6A6", "W6A6-static", "W6A6-g16"):
        one = parse(scheme)
        layer = RehearsedLayer(WEIGHT, FACTOR, one, one.inputs)
        assert np.array_equal(layer.product(ROWS[3:5], -2, 2), layer.product(ROWS, -2, 2)[3:5])


def test_a_layer_that_stays_float() -> None:
    made = RehearsedLayer(WEIGHT, FACTOR, None, parse("W8A8").inputs).product(ROWS)
    wanted = rounded_rows(ROWS, parse("W8A8").inputs, 0, 0).astype(np.float64) @ (WEIGHT * FACTOR).astype(np.float64).T
    np.testing.assert_allclose(made, wanted, rtol=1e-4, atol=1e-4)


def losses(scheme: str, scales: list[np.ndarray], alike: int) -> tuple[list[float], int]:
    """And how many were tried."""
    tried: list[np.ndarray] = []

    def side_by_side(function: Callable[[np.ndarray], float], several: Sequence[np.ndarray]) -> list[float]:
        tried.extend(several)
        return [function(one) for one in several]

    view = replace(site(rows(), scheme), side_by_side=side_by_side)
    nothing, seen = np.zeros(K, np.float32), view.statistics
    return losses_of_scales(view, nothing, seen.low, seen.high, scales, alike), len(tried)


@pytest.mark.parametrize("scheme", ["W6A6", "W6A6-static"])
def test_multiples_of_a_scale_that_loses_more_are_not_tried(scheme: str) -> None:
    even, odd = np.ones(K, np.float32), np.exp2(random(K, seed=5) * 4).astype(np.float32)
    bad, every = losses(scheme, [even, odd, odd * 2, odd * 8], 0)
    assert every == 4
    assert bad[1] > 1.1 * bad[0]
    assert losses(scheme, [even, odd, odd * 2, odd * 8], 3) == (bad, 2)
    assert losses(scheme, [odd, even, even * 2, even * 8], 3)[1] == 4
    assert losses(scheme, [even, odd, odd * 2, odd * 8], 1)[1] == 4


def test_multiples_matter_where_scales_are_no_floats() -> None:
    even, odd = np.ones(K, np.float32), np.exp2(random(K, seed=5) * 4).astype(np.float32)
    assert losses("W4A8-g16-pow2", [even, odd, odd * 3, odd * 5], 3)[1] == 4
