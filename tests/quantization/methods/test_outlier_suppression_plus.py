"""Outlier Suppression+: where channels are moved, which are scaled, and what it gains."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qruntime.errors import QuantizationError
from qruntime.quantization.methods.outlier_suppression_plus import OutlierSuppressionPlus, thresholds
from qruntime.quantization.methods.smoothquant import SmoothQuant
from qruntime.quantization.reasons import Reason
from qruntime.quantization.rehearsal import losses_of_scales, rounded_rows, rounded_weight
from qruntime.quantization.steps import Equivalence, SiteView
from tests.quantization.methods.sites import linear, rows, site

SCHEME = "W6A6-static"
ASYMMETRIC = site(rows(shift=200), SCHEME)


def chosen(view: SiteView, **options: object) -> Equivalence:
    made = OutlierSuppressionPlus(**options).choose(view)  # type: ignore[arg-type]
    assert isinstance(made, Equivalence)
    return made


def lost(view: SiteView, made: Equivalence) -> float:
    """Of the outputs, with the readers' biases taking the shift."""
    shift = np.zeros(64, np.float32) if made.shift is None else made.shift
    scale = np.ones(64, np.float32) if made.scale is None else made.scale
    low, high = ((view.statistics.low - shift) / scale).min(), ((view.statistics.high - shift) / scale).max()
    x = rounded_rows((view.runs[0] - shift) / scale, view.schemes[0].inputs, low, high)
    weights = [rounded_weight(weight * scale, view.schemes[0]) for weight in view.weights]
    bias = np.concatenate([weight @ shift for weight in view.weights])
    return float(((view.outputs([x], weights)[0] + bias - linear(view)) ** 2).sum())


def test_channels_lie_in_the_middle_after_the_shift():
    made = chosen(ASYMMETRIC)
    moved = ASYMMETRIC.runs[0] - made.shift
    np.testing.assert_allclose(moved.max(axis=0), -moved.min(axis=0), rtol=1e-4, atol=1e-4)


def test_only_channels_beyond_the_threshold_are_scaled():
    made = chosen(ASYMMETRIC)
    reach = np.abs(ASYMMETRIC.runs[0] - made.shift).max(axis=0)
    threshold = made.facts["threshold"]
    assert (made.scale[reach <= threshold * 0.999] == 1).all()
    np.testing.assert_allclose((reach / made.scale)[made.scale > 1], threshold, rtol=1e-4)
    assert 1 < (made.scale > 1).sum() < 64


def test_what_is_lost():
    best = lost(ASYMMETRIC, chosen(ASYMMETRIC))
    smooth = SmoothQuant().choose(ASYMMETRIC)
    assert isinstance(smooth, Equivalence)
    assert best < 0.8 * lost(ASYMMETRIC, smooth) < lost(ASYMMETRIC, Equivalence())
    assert best < lost(ASYMMETRIC, chosen(ASYMMETRIC, shift=False))


def test_the_choice_is_no_worse_than_none():
    facts = chosen(ASYMMETRIC).facts
    assert facts["loss"] <= facts["loss without"]
    even = site(rows(outliers=1), SCHEME)
    assert chosen(even).facts["loss"] <= chosen(even).facts["loss without"]


def test_thresholds_below_all_channels_are_tried_once():
    """They scale all alike: the choice is that of all thresholds."""
    lying_apart, tried = site(rows(outliers=3, shift=200), SCHEME), []

    def side_by_side(function, several):
        losses = [function(one) for one in several]
        tried.extend(zip(several, losses, strict=True))
        return losses

    view = replace(lying_apart, side_by_side=side_by_side)
    made, middle = chosen(view), OutlierSuppressionPlus().middle(view)
    low, high = view.statistics.low - middle, view.statistics.high - middle
    reach = np.maximum(-low, high)
    every = [np.maximum(1, reach / one).astype(np.float32) for one in thresholds(float(reach.max()), 25)]
    below = sum((one > 1).all() for one in every)
    assert below > 2
    assert len(tried) == 25 - below + 1
    losses = losses_of_scales(lying_apart, middle, low, high, every)
    assert np.array_equal(made.scale, every[int(np.argmin(losses))])
    assert made.facts["loss"] == min(losses)


def test_a_symmetric_tensor_is_not_shifted():
    x = rows()
    both = site(np.concatenate([x, -x]), SCHEME)
    made, without = chosen(both), chosen(both, shift=False)
    assert made.shift is None
    assert np.array_equal(made.scale, without.scale)


def test_norms_without_a_summand_are_scaled_only():
    made = chosen(site(rows(shift=200), SCHEME, allows=frozenset({"scale"})))
    assert made.shift is None
    assert made.scale is not None


def test_where_it_does_nothing():
    assert isinstance(OutlierSuppressionPlus().choose(site(rows(), "W4A16")), Reason)
    assert isinstance(OutlierSuppressionPlus().choose(site(rows(), SCHEME, allows=frozenset())), Reason)
    assert thresholds(0, 5).tolist() == [1]
    made = chosen(site(np.zeros((20, 64), np.float32), SCHEME))
    assert (made.scale, made.shift) == (None, None)
    with pytest.raises(QuantizationError, match="1 or more, got 0"):
        OutlierSuppressionPlus(0)
