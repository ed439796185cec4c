"""FPTQ: the policy, and what equalization makes of activations."""

from __future__ import annotations

import numpy as np
import pytest

from qruntime.errors import QuantizationError
from qruntime.ir.formats import UINT8
from qruntime.quantization.methods.fptq import ActivationMode, LogEqualize
from qruntime.quantization.observing import statistics_of
from qruntime.quantization.reasons import Reason, Unselected
from qruntime.quantization.rehearsal import rounded_rows
from qruntime.quantization.scheme import TENSOR, Inputs, parse
from qruntime.quantization.steps import Equivalence
from tests.quantization.methods.sites import linear, rows, site

SCHEME = parse("W4A8-g128")


def reaching(reach: float) -> np.ndarray:
    x = rows(outliers=1)
    return x * np.float32(reach / np.abs(x).max())


@pytest.mark.parametrize(("reach", "equalized", "static"), [(5, False, True), (60, True, True), (500, False, False)])
def test_the_policy(reach: float, equalized: bool, static: bool):
    view = site(reaching(reach), SCHEME)
    made = LogEqualize().choose(view)
    assert isinstance(made, Equivalence if equalized else Unselected)
    x = view.runs[0] / made.scale if isinstance(made, Equivalence) else view.runs[0]
    scheme, facts = ActivationMode().scheme("fc", view.weights[0], SCHEME, statistics_of([x], (), "x"))
    assert scheme.weights == SCHEME.weights
    assert scheme.inputs == (Inputs(UINT8, TENSOR, is_static=True) if static else Inputs(UINT8))
    assert facts["activations"] == ("static" if static else "per token")


def test_thresholds_may_be_others():
    assert isinstance(LogEqualize(1, 10).choose(site(reaching(60), SCHEME)), Unselected)
    assert isinstance(LogEqualize(1, 100).choose(site(reaching(60), SCHEME)), Equivalence)
    assert ActivationMode(100).scheme("fc", np.ones((2, 64)), SCHEME, statistics_of([reaching(60)], (), "x"))[1]["activations"] == "static"
    with pytest.raises(QuantizationError, match="0 ≤ v0 < v1, got 20 and 10"):
        LogEqualize(20, 10)


def test_equalized_channels_reach_the_logarithm_of_what_they_reached():
    x = reaching(60)
    x[:, 7] = 0
    view = site(x, SCHEME)
    made = LogEqualize().choose(view)
    assert isinstance(made, Equivalence)
    assert made.scale[7] == 1
    np.testing.assert_allclose(np.abs(x / made.scale).max(axis=0), np.log2(2 + np.abs(x).max(axis=0)) * (np.arange(64) != 7), rtol=1e-5)


def test_what_cannot_be_equalized_keeps_ranges_of_each_token():
    view = site(reaching(60), SCHEME, allows=frozenset({"shift"}))
    assert LogEqualize().choose(view) == "the range is 60, and nothing before the tensor can absorb a scale"
    assert ActivationMode().scheme("o", view.weights[0], SCHEME, view.statistics)[0].inputs == Inputs(UINT8)


def test_what_is_lost_to_one_static_range():
    view = site(rows(outliers=30), SCHEME)
    made = LogEqualize(v1=1e4).choose(view)
    assert isinstance(made, Equivalence)
    static = Inputs(UINT8, TENSOR, is_static=True)

    def lost(scale: np.ndarray) -> float:
        low, high = (view.statistics.low / scale).min(), (view.statistics.high / scale).max()
        x = rounded_rows(view.runs[0] / scale, static, low, high) * scale
        return float(((view.outputs([x], view.weights)[0] - linear(view)) ** 2).sum())

    assert lost(made.scale) < 0.2 * lost(np.ones(64, np.float32))


def test_schemes_without_quantized_activations_are_left():
    assert isinstance(LogEqualize().choose(site(reaching(60), "W4A16")), Reason)
    assert ActivationMode().scheme("fc", np.ones((2, 64)), parse("W4A16"), None) == (parse("W4A16"), {})
