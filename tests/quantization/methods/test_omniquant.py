"""OmniQuant: ranges of weights are clipped by what the block makes of it."""

from __future__ import annotations

import gc
import weakref
from functools import cache
from typing import Any

import numpy as np
import pytest
from onnx import helper

import qruntime
from qruntime.errors import CalibrationError, QuantizationError
from qruntime.quantization.methods import OmniQuant
from qruntime.quantization.scheme import parse
from qruntime.runtime.segments import Segment, fed_values
from tests.quantization.architectures import ARCHITECTURES
from tests.quantization.tuning.watching import Watched, assert_what_is_learned_runs, block_losses, codes, feeds, floats, same_codes
from tests.small_models import FLOAT, assert_same_bits, encoder_bytes, model_bytes, random

torch = pytest.importorskip("torch", reason="gradients need torch: make test-train installs it")

FULL = "block loss of full ranges"


@cache
def quantized(*steps: Any, scheme: str = "W3A16-g16") -> qruntime.Model:
    return qruntime.load(encoder_bytes(layers=3), threads=1).quantize(list(steps), scheme=scheme, data=feeds())


@pytest.mark.parametrize("scheme", ["W3A16-g16", "W2A16", "W4A4", "Wnf4A16-g16"])
def test_every_block_loses_less(scheme: str):
    losses = block_losses(quantized("OmniQuant", scheme=scheme), "block loss", FULL)
    assert len(losses) == 3
    assert all(np.isfinite(after) and after < before for after, before in losses)


def test_a_decoder_with_shared_heads_loses_less():
    made = ARCHITECTURES["decoder"]
    model = made.load().quantize("OmniQuant", scheme="W3A16-g16", data=made.feeds(6))
    losses = block_losses(model, "block loss", FULL)
    assert len(losses) == 2
    assert all(after < before for after, before in losses)


@pytest.mark.parametrize("scheme", ["W3A16-g16", "W4A8"])
def test_outputs_come_closer_to_those_of_the_float_model(scheme: str):
    exact = qruntime.load(encoder_bytes(layers=3))
    learned, nearest = (
        sum(float(np.square(model.run(feed)["y"] - exact.run(feed)["y"]).mean()) for feed in feeds(12)[6:])
        for model in (quantized(OmniQuant(), scheme=scheme), quantized(scheme=scheme))
    )
    assert learned < 0.95 * nearest


@pytest.mark.parametrize("step", [OmniQuant(steps=0), OmniQuant(rates=(0.0,))], ids=str)
def test_without_steps_it_is_round_to_nearest(step: OmniQuant):
    learned, nearest = quantized(step), quantized()
    assert same_codes(learned, nearest)
    for name, one in floats(nearest).items():
        assert_same_bits(one, floats(learned)[name])


def test_shares_without_end_are_full_ranges():
    from qruntime.quantization.methods.omniquant import Clipped
    from qruntime.quantization.tuning.fake_quantization import parameters

    def compare(part: Any, tuned: Any) -> int:
        for one in part.parameters.values():
            if one.args is not None:
                clipped = Clipped(one)
                endless = {name: torch.full_like(tensor, torch.inf) for name, tensor in clipped.start().items()}
                for grid, matrix in zip(clipped.grids(endless), clipped.matrices, strict=True):
                    for made, wanted in zip(grid, parameters(matrix, one.args), strict=True):
                        assert_same_bits(made.numpy(), wanted.numpy())
                assert all(torch.isfinite(clipped.rounded(clipped.start())).flatten())
        return len(part.parameters)

    step = Watched(OmniQuant(steps=0), compare)
    qruntime.load(encoder_bytes(layers=1)).quantize([step], scheme="W3A16-g16", data=feeds())
    assert step.seen == [16]


def test_shares_lie_between_0_and_1_and_are_not_all_alike():
    learned, nearest = (codes(quantized(*steps, scheme="W3A16-g16-sym")) for steps in (("OmniQuant",), ()))
    shares = np.concatenate([(one[1] / other[1]).ravel() for one, other in zip(learned, nearest, strict=True)])
    assert len(shares) == 3 * (4 * 32 * 2 + 128 * 2 + 32 * 8)
    assert (shares > 0).all()
    assert (shares < 1).all()
    assert np.ptp(shares) > 0.05


@pytest.mark.parametrize(("scheme", "per_group"), [("W3A16-g16", 2), ("W3A16-g16-sym", 1), ("W4A8", 2)])
def test_two_numbers_are_learned_for_every_range(scheme: str, per_group: int):
    from qruntime.quantization.methods.omniquant import Clipped

    def count(part: Any, tuned: Any) -> int:
        clipped = [Clipped(one) for one in part.parameters.values() if one.args is not None]
        return sum(tensor.numel() for one in clipped for tensor in one.start().values())

    step = Watched(OmniQuant(steps=0), count)
    qruntime.load(encoder_bytes(layers=1)).quantize([step], scheme=scheme, data=feeds())
    groups = 4 * 32 + 128 + 32 if parse(scheme).weights.granularity.size == 0 else 4 * 32 * 2 + 128 * 2 + 32 * 8
    assert step.seen == [per_group * groups]


def test_later_blocks_keep_to_the_rate_of_the_first():
    step = Watched(OmniQuant(rates=(0.3, 0.1)), lambda part, tuned: dict(part.kept))
    qruntime.load(encoder_bytes(layers=3)).quantize([step], scheme="W3A16-g16", data=feeds())
    first, *later = step.seen
    assert list(first.values()) in ([0.3], [0.1])
    assert later == [first, first]


def test_the_report_has_the_errors_of_outputs():
    """Of layers within blocks and of the head behind them."""
    made = ARCHITECTURES["decoder"]
    report = made.load().quantize("OmniQuant", scheme="W3A16-g16", data=made.feeds(6)).report
    assert len(report.layers) == 15
    assert sum(not row.facts for row in report.layers) == 1
    for row in report.layers:
        assert 0 < row.error < 1
        assert 0 < row.rtn_error < 1


def test_a_feed_that_makes_no_numbers_is_named():
    """Whether it is among the few that errors of layers are measured on, the first and the third of these, or not."""
    for bad in (1, 2):
        data = [{"x": random(1, 2048, 32, seed=i)} for i in range(4)]
        data[bad]["x"][0, 7] = np.nan
        with pytest.raises(CalibrationError, match=rf"data\[{bad}\] makes NaN or infinity of"):
            qruntime.load(encoder_bytes()).quantize("OmniQuant", scheme="W3A16-g16", data=data)


def one_layer(k: int = 192) -> tuple[bytes, list[dict[str, np.ndarray]]]:
    """x + x W with weights that have far tails, and inputs that go together, three of them far from 0."""
    rng = np.random.default_rng(5)
    weight = (rng.standard_t(5, (k, k)) / k**0.5).astype(np.float32)
    mixed = rng.standard_normal((k, k)) * (np.arange(1, k + 1) ** -0.7)[:, None]
    mixed[:, [3, 50, 111]] *= 6
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Add", ["x", "p"], ["y"])]
    away = np.zeros(k)
    away[[3, 50, 111]] = 3 * mixed[:, [3, 50, 111]].std(0) * k**0.5
    data = [{"x": (rng.standard_normal((256, k)) @ mixed + away).astype(np.float32)} for _ in range(4)]
    return model_bytes(nodes, [("x", FLOAT, ["t", k])], [("y", FLOAT, ["t", k])], {"w": weight}), data


@pytest.mark.parametrize("bits", [2, 3])
def test_a_layer_with_outliers_loses_far_less(bits: int):
    model, data = one_layer()
    step = OmniQuant(steps=60, rates=(0.1,))
    ((after, before),) = block_losses(qruntime.load(model).quantize([step], scheme=f"W{bits}A16", data=data), "block loss", FULL)
    assert after <= 0.6 * before


@pytest.mark.parametrize("scheme", ["W3A16-g16", "W4A8", "W4A4", "W4A8-static", "Wnf4A16-g16"])
def test_what_is_learned_is_what_runs(scheme: str):
    assert_what_is_learned_runs(OmniQuant(), scheme)


def test_the_same_bits_every_time_and_for_any_number_of_threads():
    x = feeds()[0]["x"]
    again = qruntime.load(encoder_bytes(layers=3), threads=2).quantize("OmniQuant", scheme="W3A16-g16", data=feeds())
    assert_same_bits(quantized("OmniQuant")(x), again(x))


def test_one_block_is_held_at_a_time():
    seen: list[weakref.ref[Any]] = []

    def look(part: Any, tuned: Any) -> int:
        gc.collect()
        alive = sum(one() is not None for one in seen)
        seen.append(weakref.ref(part))
        return alive

    step = Watched(OmniQuant(), look)
    qruntime.load(encoder_bytes(layers=4)).quantize([step], scheme="W3A16-g16", data=feeds())
    assert step.seen == [0, 0, 0, 0]


def decoder(look: Any, step: Any = OmniQuant(), scheme: str = "W6A6") -> Watched:  # noqa: B008
    made = ARCHITECTURES["fused decoder"]
    watched = Watched(step, look)
    made.load(threads=1).quantize([watched], scheme=scheme, data=made.feeds(4))
    return watched


def test_scales_are_learned_behind_norms_where_activations_are_quantized():
    step = decoder(lambda part, tuned: [(one.shape, bool((one > 0).all()), float(np.ptp(one)) > 0) for one in tuned.scales.values()])
    better = [found for found in step.seen if found]  # others keep full ranges
    assert better
    assert all(found == [((32,), True, True)] * 2 for found in better)
    assert decoder(lambda part, tuned: len(tuned.scales), scheme="W3A16-g16").seen == [0, 0]
    assert decoder(lambda part, tuned: len(tuned.scales), OmniQuant(transform=False)).seen == [0, 0]


def test_scales_leave_the_float_block_what_it_is():
    def look(part: Any, tuned: Any) -> float:
        before = part.run(0, is_quantized=False).detach()
        part.scale(tuned.scales)
        part.renew()
        after = part.run(0, is_quantized=False).detach()
        return float((after - before).abs().max() / before.abs().max())

    assert max(decoder(look).seen) <= 1e-4


def test_a_block_that_is_scaled_runs_as_it_was_learned():
    step = decoder(lambda part, tuned: (part, tuned.facts["block loss"], [part.target(i) for i in range(part.batches)]))
    for part, loss, targets in step.seen:
        graph, end = part.graph, part.block.end
        segment = Segment(graph, graph.inputs, [end], num_threads=1, lower=True)
        made = [segment.run(fed_values(graph, feed))[end] for feed in ARCHITECTURES["fused decoder"].feeds(4)]
        found = np.mean([np.square(one - wanted.numpy()).mean() for one, wanted in zip(made, targets, strict=True)])
        assert found == pytest.approx(loss, rel=0.02)


def test_scales_gain_where_activations_have_outliers():
    """Of the blocks that see the same inputs, the first."""
    losses = [decoder(lambda part, tuned: tuned.facts["block loss"], OmniQuant(transform=on), "W4A4").seen[0] for on in (True, False)]
    assert losses[0] < 0.8 * losses[1]


def test_ranges_that_cannot_be_learned_are_told():
    model = quantized(OmniQuant(), scheme="W4A16-g16-f16")
    assert same_codes(model, quantized(scheme="W4A16-g16-f16"))
    assert all(row.facts[0]["ranges that are not learned"] == "those of uint4 g16 affine scales float16" for row in model.report.layers)


def test_codes_of_others_would_not_keep_to_the_ranges():
    with pytest.raises(QuantizationError, match="OmniQuant learns the grids of codes, and GPTQ would not keep to them"):
        quantized(OmniQuant(), "GPTQ")


@pytest.mark.parametrize("wrong", [{"rates": ()}, {"rates": (-1.0,)}, {"steps": -1}, {"rates": 0.1}, {"rates": (np.nan,)}, {"steps": 1.5}])
def test_arguments_that_mean_nothing(wrong: Any):
    with pytest.raises(QuantizationError, match="of 0 or more"):
        OmniQuant(**wrong)


def test_it_finds_its_recipe_in_files_too(tmp_path: Any):
    model = quantized("OmniQuant")
    model.save(tmp_path / "saved.onnx")
    x = random(2, 5, 32)
    assert_same_bits(qruntime.load(tmp_path / "saved.onnx", threads=1)(x), model(x))
