"""SmoothQuant: what its scales make of activations and weights."""

from __future__ import annotations

import numpy as np
import pytest

from qruntime.errors import QuantizationError
from qruntime.quantization.methods.smoothquant import ALPHAS, SmoothQuant
from qruntime.quantization.reasons import Reason
from qruntime.quantization.rehearsal import rounded_rows, rounded_weight
from qruntime.quantization.steps import Equivalence, SiteView
from tests.quantization.methods.sites import linear, rows, site


def smoothed(view: SiteView, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """max|X| and max|W| over all readers, of each channel, after it."""
    made = SmoothQuant(alpha).choose(view)
    assert isinstance(made, Equivalence)
    assert made.shift is None
    assert made.order is None
    weights = np.max([np.abs(weight * made.scale).max(axis=0) for weight in view.weights], axis=0)
    return view.statistics.absmax / made.scale, weights


def test_alpha_says_who_has_the_outliers():
    view = site(rows(), "W8A8-static")
    np.testing.assert_allclose(smoothed(view, 0)[1], 1, rtol=1e-5)
    np.testing.assert_allclose(smoothed(view, 1)[0], 1, rtol=1e-5)
    activations, weights = smoothed(view, 0.5)
    np.testing.assert_allclose(activations, weights, rtol=1e-5)


def test_channels_that_must_have_one_scale_have_it():
    ties = np.arange(64) // 2
    made = SmoothQuant(0.5).choose(site(rows(), "W8A8", ties=ties))
    assert isinstance(made, Equivalence)
    assert (made.scale[::2] == made.scale[1::2]).all()
    free = SmoothQuant(0.5).choose(site(rows(), "W8A8"))
    assert isinstance(free, Equivalence)
    assert (made.scale == np.maximum(free.scale[::2], free.scale[1::2]).repeat(2)).all()


def test_what_is_lost_to_one_static_range():
    view = site(rows(), "W8A8-static")
    inputs = view.schemes[0].inputs
    wanted = linear(view)

    def lost(scale: np.ndarray) -> float:
        low, high = (view.statistics.low / scale).min(), (view.statistics.high / scale).max()
        x = rounded_rows(view.runs[0] / scale, inputs, low, high)
        made = view.outputs([x], [rounded_weight(weight * scale, view.schemes[0]) for weight in view.weights])[0]
        return float(((made - wanted) ** 2).sum())

    made = SmoothQuant().choose(view)
    assert isinstance(made, Equivalence)
    assert lost(made.scale) < 0.15 * lost(np.ones(64, np.float32))
    assert (view.statistics.absmax / made.scale).max() < 0.5 * view.statistics.absmax.max()


def test_without_alpha_each_tensor_has_the_one_that_loses_least():
    """Weights whose rows are far apart bear more with a scale for each: the larger α is better, and where outliers are few the smaller."""
    chosen = set()
    for seed in range(6):
        x = np.random.default_rng(seed).standard_normal((96, 64)).astype(np.float32)
        x[:, : 1 + seed] *= np.float32(4 ** (1 + seed))
        view = site(x, "W8A8-static")
        made = SmoothQuant().choose(view)
        assert isinstance(made, Equivalence)
        tried = [SmoothQuant(alpha).choose(view) for alpha in ALPHAS]
        losses = [lost_with(view, one) for one in tried]
        assert made.facts == {"alpha": ALPHAS[int(np.argmin(losses))]}
        np.testing.assert_array_equal(made.scale, tried[int(np.argmin(losses))].scale)
        chosen.add(made.facts["alpha"])
    assert len(chosen) > 1


def lost_with(view: SiteView, made: Equivalence | Reason) -> float:
    """What readers lose, of codes that are rounded in numpy."""
    assert isinstance(made, Equivalence)
    scale = made.scale
    low, high = (view.statistics.low / scale).min(), (view.statistics.high / scale).max()
    x = rounded_rows(view.runs[0] / scale, view.schemes[0].inputs, low, high)
    outputs = view.outputs([x], [rounded_weight(weight * scale, view.schemes[0]) for weight in view.weights])[0]
    return float(((outputs - linear(view)) ** 2).sum())


def test_zeros_have_a_scale():
    x = rows()
    x[:, 5] = 0
    made = SmoothQuant().choose(site(x, "W8A8"))
    assert isinstance(made, Equivalence)
    assert np.isfinite(made.scale).all()
    assert (made.scale > 0).all()


def test_where_it_does_nothing():
    assert isinstance(SmoothQuant().choose(site(rows(), "W4A16")), Reason)
    left = SmoothQuant().choose(site(rows(), "W8A8", allows=frozenset({"order"})))
    assert left == "nothing before the tensor can absorb a scale"
    forced = SmoothQuant(insert=True).choose(site(rows(), "W8A8", allows=frozenset()))
    assert isinstance(forced, Equivalence)
    assert forced.insert
    static = SmoothQuant().choose(site(rows(), "W8A8-static", allows=frozenset()))
    assert isinstance(static, Equivalence)
    assert static.insert
    assert isinstance(SmoothQuant(insert=False).choose(site(rows(), "W8A8-static", allows=frozenset())), Reason)
    with pytest.raises(QuantizationError, match="alpha of SmoothQuant must be 0 to 1, got 2"):
        SmoothQuant(2)
