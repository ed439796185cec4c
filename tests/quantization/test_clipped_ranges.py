"""Ranges that leave extremes out: the share at which rounding to nearest loses least, and what GPTQ makes of it."""

from __future__ import annotations

import numpy as np
import pytest

from qruntime.quantization.clipped_ranges import SHARES, clipped
from qruntime.quantization.grid import nearest_values
from qruntime.quantization.methods import GPTQ, RTN
from qruntime.quantization.statistics import output_error
from tests.quantization.methods.layers_made import correlated, weight_args


@pytest.mark.parametrize("scheme", ["W3A16", "W2A16", "W4A16-sym", "W3A16-g16", "W4A16-g40", "W3A16-tensor", "Wnf4A16-g16"])
def test_the_share_is_the_one_that_loses_least(scheme: str):
    rng, args = np.random.default_rng(1), weight_args(scheme)
    weight, counts = rng.standard_t(3, (7, 48)).astype(np.float32), rng.random(48)
    found = clipped(weight, args, counts)
    size = args.granularity.size or 48
    rows = [slice(None)] if args.granularity.kind == "tensor" else [slice(i, i + 1) for i in range(7)]
    for row in rows:
        for start in range(0, 48, size):
            part, own = weight[row, start : start + size], counts[start : start + size]
            low, high = min(part.min(), 0), max(part.max(), 0)
            tried = [np.clip(part, np.float32(p) * low, np.float32(p) * high) for p in SHARES]
            lost = [float((((nearest_values(one, args) - part) ** 2) @ own).sum()) for one in tried]
            mine = float((((nearest_values(found[row, start : start + size], args) - part) ** 2) @ own).sum())
            assert mine == pytest.approx(min(lost), rel=1e-4)


def test_weights_that_count_for_nothing_keep_their_range():
    weight = np.random.default_rng(2).standard_t(3, (5, 32)).astype(np.float32)
    np.testing.assert_array_equal(clipped(weight, weight_args("W3A16"), np.zeros(32)), weight)
    assert clipped(weight[:, :0], weight_args("W3A16"), np.zeros(0)).shape == (5, 0)


@pytest.mark.parametrize("scheme", ["W2A16", "W3A16", "W4A16", "W3A16-sym"])
def test_gptq_loses_less_with_it(scheme: str):
    """In its own measure, on weights with heavy tails; and its codes are still made by the updates."""
    made, args = correlated(), weight_args(scheme)
    plain, found = (GPTQ(mse=mse).solve(made.weight, args, made.statistics).rounded.stored for mse in (False, True))
    errors = [output_error(made.weight, one.decoded(), made.statistics) for one in (plain, found)]
    assert errors[1] < 0.8 * errors[0]
    assert (np.asarray(found.scale) <= np.asarray(plain.scale)).all()
    nearest = RTN().solve(clipped(made.weight, args, made.statistics.sigma.diagonal()), args).rounded.stored  # type: ignore[union-attr]
    np.testing.assert_array_equal(np.asarray(found.scale), np.asarray(nearest.scale))
    assert np.mean(found.unpacked() != nearest.unpacked()) > 0.1
