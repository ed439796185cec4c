"""Norm Tweaking: channels of blocks get the means and variances of the float blocks, by their norms alone."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

import qruntime
from qruntime.errors import QuantizationError
from qruntime.quantization.methods import GPTQ, NormTweaking, SmoothQuant
from tests.quantization.architectures import ARCHITECTURES
from tests.quantization.tuning.watching import Watched, assert_what_is_learned_runs, block_losses, feeds, floats, same_codes
from tests.small_models import assert_same_bits, encoder_bytes

pytest.importorskip("torch", reason="gradients need torch: make test-train installs it")

MADE = ARCHITECTURES["decoder"]


@cache
def quantized(*steps: Any, scheme: str = "W3A16", threads: int = 1) -> qruntime.Model:
    return qruntime.load(encoder_bytes(layers=3), threads=threads).quantize(list(steps), scheme=scheme, data=feeds())


def test_norms_are_all_that_changes():
    plain, tweaked = quantized("RTN"), quantized("RTN", "NormTweaking")
    assert same_codes(plain, tweaked)
    before, after = floats(plain), floats(tweaked)
    assert before.keys() == after.keys()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {name for name in before if "norm" in name}
    assert len(changed) == 3 * 4


def test_a_block_tweaks_the_factors_and_summands_of_its_norms():
    step = Watched(NormTweaking(), lambda part, tuned: (sorted(tuned.constants), sum(one.size for one in tuned.constants.values())))
    qruntime.load(encoder_bytes(layers=3)).quantize([step], scheme="W3A16", data=feeds())
    assert [count for _, count in step.seen] == [4 * 32] * 3
    assert len({name for names, _ in step.seen for name in names}) == 12


@pytest.mark.parametrize("steps", [(NormTweaking(rates=(0.0,)),), (NormTweaking(steps=0),)], ids=str)
def test_a_rate_of_zero_changes_nothing(steps: Any):
    plain, same = quantized(GPTQ()), quantized(GPTQ(), *steps)
    assert same_codes(plain, same)
    before, after = floats(plain), floats(same)
    for name, one in before.items():
        assert_same_bits(one, after[name])


@pytest.mark.parametrize("steps", [("GPTQ", "NormTweaking"), (SmoothQuant(), GPTQ(), NormTweaking())], ids=str)
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_channels_come_closer_in_most_blocks(steps: Any, kind: str):
    scheme = "W3A8" if len(steps) == 3 else "W3A16"
    data = feeds() if kind == "encoder" else MADE.feeds(6)
    model = qruntime.load(encoder_bytes(layers=3)) if kind == "encoder" else MADE.load()
    losses = block_losses(model.quantize(list(steps), scheme=scheme, data=data), "channel distance", "channel distance before")
    assert len(losses) == (3 if kind == "encoder" else 2)
    assert all(after <= before for after, before in losses)
    assert sum(after < before for after, before in losses) >= 0.8 * len(losses)


def test_outputs_come_closer_to_those_of_the_float_model():
    exact = qruntime.load(encoder_bytes(layers=3))
    lost = dict.fromkeys(("plain", "tweaked"), 0.0)
    for feed in feeds(12)[6:]:
        for name, model in (("plain", quantized(scheme="W3A16")), ("tweaked", quantized(NormTweaking(), scheme="W3A16"))):
            lost[name] += float(np.square(model.run(feed)["y"] - exact.run(feed)["y"]).mean())
    assert lost["tweaked"] < 0.95 * lost["plain"]


def test_codes_of_a_block_are_there_before_its_norms_move():
    """GPTQ of the second block sees what the first makes with its norms as they became."""
    plain, tweaked = quantized(GPTQ()), quantized(GPTQ(), NormTweaking())
    codes = [[value.stored.unpacked() for value in model.graph.stored_constants()] for model in (plain, tweaked)]
    same = [np.array_equal(one, other) for one, other in zip(*codes, strict=True)]
    assert all(same[:6])
    assert not all(same[6:])


@pytest.mark.parametrize("scheme", ["W3A16-g16", "W4A8", "W8A8-static"])
def test_what_is_tweaked_is_what_runs(scheme: str):
    assert_what_is_learned_runs(NormTweaking(), scheme)


def test_the_same_bits_every_time_and_for_any_number_of_threads():
    x = feeds()[0]["x"]
    first = quantized(GPTQ(), NormTweaking())(x)
    again = qruntime.load(encoder_bytes(layers=3), threads=2).quantize([GPTQ(), NormTweaking()], scheme="W3A16", data=feeds())
    assert_same_bits(first, again(x))


def test_deeper_blocks_have_greater_rates():
    model = quantized(NormTweaking(rates=(1e-4,), growth=3.0))
    rates = sorted({facts["rate"] for row in model.report.layers for facts in row.facts if "rate" in facts})
    assert rates == pytest.approx([1e-4, 2e-4, 3e-4])


@pytest.mark.parametrize(
    "wrong",
    [{"rates": ()}, {"rates": (-1.0,)}, {"growth": -1.0}, {"steps": -1}, {"rates": 0.1}, {"rates": (np.nan,)}, {"steps": 1.5}],
)
def test_arguments_that_mean_nothing(wrong: Any):
    with pytest.raises(QuantizationError, match="of 0 or more"):
        NormTweaking(**wrong)
