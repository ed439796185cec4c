"""ZeroQuant's distillation: the floats of a block are trained for what they become, block after block."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

import qruntime
from qruntime.errors import QuantizationError
from qruntime.quantization.methods import LayerDistillation
from tests.quantization.architectures import ARCHITECTURES
from tests.quantization.tuning.watching import Watched, assert_what_is_learned_runs, block_losses, feeds, floats, same_codes
from tests.small_models import assert_same_bits, encoder_bytes

pytest.importorskip("torch", reason="gradients need torch: make test-train installs it")

SCHEME = "W4A8-sym"
STEP = LayerDistillation(rates=(3e-4, 1e-3))


@cache
def quantized(*steps: Any, scheme: str = SCHEME) -> qruntime.Model:
    return qruntime.load(encoder_bytes(layers=3), threads=1).quantize(list(steps), scheme=scheme, data=feeds())


@pytest.mark.parametrize("stream", ["float", "quantized"])
def test_every_block_comes_closer(stream: str):
    losses = block_losses(quantized(LayerDistillation(20, (1e-3,), stream), "ZeroQuant"), "block loss", "block loss before")
    assert len(losses) == 3
    assert all(after <= 0.7 * before for after, before in losses)


def test_a_decoder_comes_closer_by_the_name_of_the_recipe():
    made = ARCHITECTURES["decoder"]
    overrides = {"*/down/*": SCHEME, "*/up/*": SCHEME, "*/gate/*": SCHEME}
    losses = block_losses(made.load().quantize("ZeroQuant-LKD", overrides=overrides, data=made.feeds(6)), "block loss", "block loss before")
    assert len(losses) == 2
    assert all(after < before for after, before in losses)


def test_outputs_come_closer_to_those_of_the_float_model():
    exact = qruntime.load(encoder_bytes(layers=3))
    learned, nearest = (
        sum(float(np.square(model.run(feed)["y"] - exact.run(feed)["y"]).mean()) for feed in feeds(12)[6:])
        for model in (quantized(STEP, "ZeroQuant"), quantized("ZeroQuant"))
    )
    assert learned < 0.8 * nearest


@pytest.mark.parametrize("step", [LayerDistillation(rates=(0.0,)), LayerDistillation(steps=0)], ids=str)
def test_a_rate_of_zero_changes_nothing(step: LayerDistillation):
    learned, plain = quantized(step, "ZeroQuant"), quantized("ZeroQuant")
    assert same_codes(learned, plain)
    for name, one in floats(plain).items():
        assert_same_bits(one, floats(learned)[name])


def test_every_float_of_a_block_is_trained_and_none_of_others():
    kept: dict[str, np.ndarray] = {}

    def look(part: Any, tuned: Any) -> tuple[int, int]:
        """How many numbers are trained, and which constants that earlier blocks saw have changed since they were trained."""
        constants = {value.name: value for node in part.graph.nodes for value in node.inputs if value is not None and value.is_constant}
        later = {name: np.array(value.data) for name, value in constants.items() if value.data is not None and name not in done}
        moved = sum(not np.array_equal(kept.get(name, one), one) for name, one in later.items())
        kept.update(later)
        done.update(tuned.constants)
        return sum(one.size for one in tuned.constants.values()), moved

    done: set[str] = set()
    step = Watched(STEP, look)
    qruntime.load(encoder_bytes(layers=3)).quantize([step], scheme=SCHEME, data=feeds())
    weights, biases, norms = 4 * 32 * 32 + 2 * 32 * 128, 4 * 32 + 128 + 32, 4 * 32
    assert step.seen == [(weights + biases + norms, 0)] * 3


def test_earlier_blocks_stay_as_they_are():
    found: list[dict[str, np.ndarray]] = []

    def look(part: Any, tuned: Any) -> int:
        """How many constants of the blocks before have moved since the last block."""
        inside = set(part.block.nodes)
        first = next(i for i, node in enumerate(part.graph.nodes) if node in inside)
        now = {}
        for node in part.graph.nodes[:first]:
            for place, value in enumerate(node.inputs):
                if value is not None and value.is_constant:
                    now[f"{node.name}.{place}"] = value.data if value.stored is None else value.stored.decoded()
        before = found[-1] if found else {}
        found.append(now)
        return sum(not np.array_equal(one, now[name]) for name, one in before.items())

    step = Watched(STEP, look)
    qruntime.load(encoder_bytes(layers=3)).quantize([step], scheme=SCHEME, data=feeds())
    assert step.seen == [0, 0, 0]
    assert len(found[0]) < len(found[1]) < len(found[2])


@pytest.mark.parametrize("scheme", [SCHEME, "W3A16-g16", "W8A8-static"])
def test_what_is_trained_is_what_runs(scheme: str):
    assert_what_is_learned_runs(STEP, scheme)


def test_the_same_bits_every_time_and_for_any_number_of_threads():
    x = feeds()[0]["x"]
    again = qruntime.load(encoder_bytes(layers=3), threads=2).quantize([STEP, "ZeroQuant"], scheme=SCHEME, data=feeds())
    assert_same_bits(quantized(STEP, "ZeroQuant")(x), again(x))


def test_it_stands_before_what_makes_the_codes():
    with pytest.raises(QuantizationError, match=r"the order is \[LayerDistillation, RowGroups\]"):
        quantized("ZeroQuant", LayerDistillation())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rates": ()}, r"rates must be one or more finite numbers of 0 or more, as in rates=\(1e-3,\), got \(\)"),
        ({"rates": 1e-3}, r"rates must be one or more finite numbers .*, got 0\.001"),
        ({"rates": (1e-3, -1)}, "each of rates must be a finite number of 0 or more, got -1"),
        ({"steps": -1}, "steps must be a whole number of 0 or more, got -1"),
        ({"steps": 1.5}, r"steps must be a whole number of 0 or more, got 1\.5"),
        ({"stream": "both"}, "'both'"),
    ],
)
def test_arguments_that_mean_nothing(wrong: Any, message: str):
    with pytest.raises(QuantizationError, match=message):
        LayerDistillation(**wrong)
