"""AWQ: scales by the activations, and clipped ranges."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qruntime.errors import QuantizationError
from qruntime.quantization.methods.awq import AWQ, ClipRanges
from qruntime.quantization.methods.rtn import RTN
from qruntime.quantization.reasons import Reason
from qruntime.quantization.rehearsal import rounded_weight
from qruntime.quantization.scheme import parse
from qruntime.quantization.statistics import output_error
from qruntime.quantization.steps import Equivalence, SiteView
from tests.quantization.methods.sites import linear, rows, site

SCHEME = parse("W3A16-g32")


def uneven() -> SiteView:
    """Weights of one size over channels of very different ones."""
    view = site(rows(), SCHEME)
    return replace(view, weights=tuple(np.random.default_rng(2).standard_t(5, w.shape).astype(np.float32) for w in view.weights))


def lost(view: SiteView, scale: np.ndarray) -> float:
    weights = [rounded_weight(weight * scale, SCHEME) / scale for weight in view.weights]
    return float(((view.outputs(view.runs, weights)[0] - linear(view)) ** 2).mean())


def test_the_ratio_is_the_best_of_the_grid():
    view = uneven()
    made = AWQ(grid=10).choose(view)
    assert isinstance(made, Equivalence)
    tried = [lost(view, AWQ.scale(view.statistics.mean_abs, i / 10, None)) for i in range(10)]
    assert made.facts["ratio"] == int(np.argmin(tried)) / 10
    assert made.facts["loss"] == pytest.approx(min(tried), rel=1e-5)
    assert made.facts["loss without"] == pytest.approx(tried[0], rel=1e-5)
    assert lost(view, made.scale) < 0.7 * tried[0]
    assert made.scale.max() * made.scale.min() == pytest.approx(1, rel=1e-5)


def test_a_grid_of_nothing_is_round_to_nearest():
    made = AWQ(grid=1).choose(uneven())
    assert isinstance(made, Equivalence)
    assert (made.scale, made.facts["ratio"]) == (None, 0)
    assert (AWQ.scale(np.array([0.0, 1, 30]), 0, None) == 1).all()


def test_tied_channels_have_one_scale():
    ties = np.arange(64) % 32
    scale = AWQ.scale(uneven().statistics.mean_abs, 0.5, ties)
    assert (scale[:32] == scale[32:]).all()


def test_other_activations_make_other_scales():
    view = uneven()
    order = np.random.default_rng(0).permutation(64)
    means = view.statistics.mean_abs
    assert not np.array_equal(AWQ.scale(means, 0.5, None), AWQ.scale(means[order], 0.5, None))


def test_where_it_does_nothing():
    assert isinstance(AWQ().choose(site(rows(), SCHEME, allows=frozenset({"order"}))), Reason)
    assert isinstance(AWQ().choose(replace(uneven(), schemes=(None, None))), Reason)
    with pytest.raises(QuantizationError, match="grid of AWQ must be 1 or more"):
        AWQ(0)


@pytest.mark.parametrize("scheme", ["W3A16-g32", "W3A16-g20", "W3A16", "W4A16-g32-sym", "Wfp4A16-g32"])
def test_clipping_lowers_the_error(scheme: str):
    view, args = uneven(), parse(scheme).weights
    for weight in view.weights:
        made = ClipRanges().solve(weight, args, view.statistics, None).rounded.stored.decoded()
        nearest = RTN().solve(weight, args).rounded.stored.decoded()
        assert output_error(weight, made, view.statistics) < output_error(weight, nearest, view.statistics)


def test_no_clipping_is_round_to_nearest():
    view, args = uneven(), SCHEME.weights
    for step, statistics in (
        (ClipRanges(shares=1), view.statistics),
        (ClipRanges(), None),
        (ClipRanges(), replace(view.statistics, sample=None)),
    ):
        made = step.solve(view.weights[0], args, statistics, None).rounded.stored
        nearest = RTN().solve(view.weights[0], args).rounded.stored
        assert np.array_equal(made.unpacked(), nearest.unpacked())
        assert np.array_equal(made.scale, nearest.scale)
