"""MoFQ: the format that is chosen is the one with the smaller error, layer by layer."""

from __future__ import annotations

import numpy as np
import pytest

from qruntime.errors import QuantizationError
from qruntime.ir.formats import FORMATS, FP4, FP8, UINT8
from qruntime.quantization.grid import nearest
from qruntime.quantization.methods.mofq import MoFQ, candidates
from qruntime.quantization.scheme import FLOAT32, Inputs, Scheme, parse
from qruntime.quantization.statistics import SAMPLE
from qruntime.quantization.steps import Choose
from tests.quantization.methods.layers_made import Made, correlated, seen

INT4, INT8 = FORMATS["int4"], FORMATS["int8"]


def uniform() -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, size=(40, 256)).astype(np.float32)


def heavy_tails() -> np.ndarray:
    return np.random.default_rng(2).standard_t(3, size=(40, 256)).astype(np.float32)


def squared_error(weight: np.ndarray, scheme: Scheme) -> float:
    assert scheme.weights is not None
    return float(np.mean((nearest(weight, scheme.weights).stored.decoded() - weight) ** 2))


@pytest.mark.parametrize("scheme", ["W4A16", "W4A16-g64", "Wfp4A16-g32", "W8A16", "Wfp8A16-tensor"])
def test_the_choice_is_the_argmin_and_the_sum_is_no_worse_than_either(scheme: str) -> None:
    weights = [uniform(), heavy_tails(), *(correlated(seed=seed).weight for seed in range(3))]
    best, each = 0.0, [0.0, 0.0]
    for weight in weights:
        chosen, facts = MoFQ().scheme("layer", weight, parse(scheme), None)
        errors = [squared_error(weight, one) for one in candidates(parse(scheme))]
        assert squared_error(weight, chosen) == min(errors)
        assert chosen.weights is not None
        assert facts[f"tensor error of {chosen.weights.format}"] == min(facts.values())
        assert len(facts) == 2
        best, each = best + min(errors), [total + error for total, error in zip(each, errors, strict=True)]
    assert best <= min(each)


def test_both_formats_are_chosen() -> None:
    formats = [MoFQ().scheme("layer", weight, parse("W4A16"), None)[0].weights for weight in (uniform(), heavy_tails())]
    assert [args.format for args in formats if args is not None] == [INT4, FP4]
    assert all(args is not None and args.symmetric and args.scales.kind == FLOAT32 for args in formats)


def test_weights_of_eight_bits_are_integers_and_activations_with_outliers_are_floats() -> None:
    weight = np.random.default_rng(1).uniform(-1, 1, size=(4, 4096)).astype(np.float32)
    rows = np.random.default_rng(0).normal(size=(64, 4096)).astype(np.float32)
    rows[:, 5] = 100
    without, with_data = (MoFQ().scheme("layer", weight, parse("W8A8"), statistics)[0] for statistics in (None, seen(rows)))
    assert (without.weights and without.weights.format, without.inputs) == (INT8, Inputs(UINT8))
    assert (with_data.weights and with_data.weights.format, with_data.inputs) == (FP8, Inputs(FP8))


@pytest.mark.parametrize("scheme", ["W4A16", "W4A8", "W8A8", "W8A8-static", "Wfp4Afp8"])
def test_the_metric_of_outputs_finds_the_smaller_error_of_outputs(scheme: str) -> None:
    for made in (correlated(), _one_channel_matters()):
        chosen, facts = MoFQ("output").scheme("layer", made.weight, parse(scheme), made.statistics)
        other, _ = MoFQ("tensor").scheme("layer", made.weight, parse(scheme), made.statistics)
        own, others = (facts[f"output error of {one.weights.format}"] for one in (chosen, other) if one.weights is not None)
        assert own == min(facts.values()) <= others


def test_the_metric_changes_choices() -> None:
    made = _one_channel_matters()
    choices = [MoFQ(metric).scheme("layer", made.weight, parse("W4A16"), made.statistics)[0].weights for metric in ("tensor", "output")]
    assert [args.format for args in choices if args is not None] == [FP4, INT4]


def _one_channel_matters() -> Made:
    """Heavy tails but in the one channel that is read, whose weights lie where integers are denser than FP4."""
    weight = heavy_tails()
    top = np.abs(weight[:, 1:]).max(axis=1)
    weight[:, 0] = np.random.default_rng(3).uniform(0.7, 1.0, len(weight)) * top
    rows = np.full((64, 256), 1e-4, np.float32)
    rows[:, 0] = np.random.default_rng(4).normal(size=64)
    return Made(weight, seen(rows), rows)


def test_what_it_cannot_choose_for_is_said() -> None:
    assert isinstance(MoFQ(), Choose)
    assert (MoFQ().requires, MoFQ("output").requires) == (frozenset(), {SAMPLE})
    with pytest.raises(QuantizationError, match="4 or of 8 bits, got a scheme with uint3"):
        MoFQ().scheme("layer", uniform(), parse("W3A16"), None)
    with pytest.raises(ValueError, match="metric"):
        MoFQ("mse")
    with pytest.raises(ValueError, match="not known"):
        MoFQ("output").scheme("layer", uniform(), parse("W4A16"), None)
    assert MoFQ().scheme("layer", uniform(), Scheme(None), None) == (Scheme(None), {})
