"""Training that goes on from codes: what it starts from is what the codes are, and their grids stay until they are learned."""

from __future__ import annotations

import copy

import numpy as np
import pytest

import qruntime
from qruntime.errors import QuantizationError
from qruntime.quantization import GPTQ, QAT, LowRank
from qruntime.quantization.recipe import Recipe
from tests.quantization.tuning.models import cnn, decoder, encoder, recurrent
from tests.small_models import assert_same_bits, random

torch = pytest.importorskip("torch", reason="gradients need torch: make test-train installs it")

from qruntime.quantization import QuantizedModule  # noqa: E402

MODELS = {"encoder": encoder, "decoder": decoder, "LSTM": lambda: recurrent("LSTM"), "CNN": cnn}
RATE_0 = {"steps": "lsq", "lr": 0.0, "loss": "mse"}


def feeds(count: int = 30) -> list[dict[str, np.ndarray]]:
    return [{"x": random(4, 5, 32, seed=20 + i)} for i in range(count)]


@pytest.mark.parametrize("scheme", ["W4A8", "W4A8-g32", "W3A16-g16", "W4A8-tensor", "W8A8", "W4A16-sym", "Wnf4A16-g16", "W8A16-asym"])
@pytest.mark.parametrize("steps", [["GPTQ"], ["AWQ", "GPTQ"], [GPTQ(mse=True), "QuantEase"]], ids=["GPTQ", "AWQ", "QuantEase"])
def test_a_rate_of_0_leaves_the_codes(scheme: str, steps: list):
    model, feed = encoder(layers=1)
    codes = model.quantize(steps, scheme=scheme, data=feeds())
    trained = model.quantize([*steps, "QAT"], scheme=scheme, data=feeds(), **RATE_0)
    assert_same_bits(trained(feed["x"]), codes(feed["x"]))
    assert "GPTQ" in trained.report.layers[0].facts[0]["from the codes of"]


@pytest.mark.parametrize("kind", MODELS)
def test_a_module_begins_with_the_model_that_it_is_made_of(kind: str):
    model, feed = MODELS[kind]()
    overrides = {"Conv": "W8A8"} if kind == "CNN" else {}
    codes = model.quantize(scheme="W8A8", overrides=overrides)
    module = QuantizedModule(codes, "W8A8", overrides=overrides, steps="lsq", from_codes=True)
    assert module.to_quantize == len(codes.report.layers)
    for begun in (module.to_model(), copy.deepcopy(module).to_model()):
        for name, made in begun.run(feed).items():
            assert_same_bits(made, codes.run(feed)[name])


def test_training_goes_on():
    model, _ = encoder(layers=1)
    codes = model.quantize([GPTQ(mse=True)], scheme="W3A8", data=feeds())
    trained = model.quantize([GPTQ(mse=True), "QAT"], scheme="W3A8", data=feeds(), steps="lsq", lr=3e-3, loss="mse", epochs=4)
    seen = feeds()

    def error(of: qruntime.Model) -> float:
        return float(np.mean([np.square(of(one["x"]) - model(one["x"])).mean() for one in seen]))

    assert error(trained) < 0.8 * error(codes)


@pytest.mark.parametrize("scheme", ["W4A16", "W4A16-sym", "W4A16-g16", "W3A16-g24", "W4A16-tensor"])
def test_weights_lean_towards_the_floats_that_codes_were_made_of(scheme: str):
    model, feed = encoder(layers=1)
    codes = model.quantize("GPTQ", scheme=scheme, data=feeds())
    module = QuantizedModule(codes, scheme, steps="lsq", from_codes=True)
    middles = {name: one.detach().clone() for name, one in module.named_parameters()}
    floats = {value.name: value.data for value in model.graph.constants()}
    module.lean(floats)
    assert_same_bits(module.to_model()(feed["x"]), codes(feed["x"]))
    moved = 0
    for name, steps in module.step_sizes().items():
        given, middle, now = torch.from_numpy(np.array(floats[name])), middles[name], dict(module.named_parameters())[name].detach()
        within = (now - middle).abs() <= 0.3501 * steps[0].max()
        ends = (now - given).abs() < 1e-7
        assert bool((within | ends).all())
        assert bool(((now - given).abs() <= (middle - given).abs() + 1e-7).all())
        moved += int((now != middle).sum())
    assert moved > 0


def test_what_stands_in_codes_stays_unless_training_goes_on_from_them():
    codes = encoder(layers=1)[0].quantize(scheme="W4A8")
    assert QuantizedModule(codes, "W4A8", steps="lsq").to_quantize == 0
    module = QuantizedModule(codes, "W4A8", steps="lsq", from_codes=True)
    assert module.to_quantize == len(module.step_sizes()) == len(codes.report.layers)


def test_layers_in_float_begin_as_they_do_without_codes():
    model, _ = encoder(layers=1)
    some = model.quantize(scheme="W4A8", only=["*.q.*"])
    module = QuantizedModule(some, "W4A8", steps="lsq", from_codes=True)
    plain = QuantizedModule(model, "W4A8", steps="lsq")
    assert module.to_quantize == plain.to_quantize
    changed = [name for name, steps in module.step_sizes().items() if not torch.equal(steps[0], plain.step_sizes()[name][0])]
    assert len(changed) == len(some.report.layers)


def test_static_ranges_are_learned_anew():
    model, feed = encoder(layers=1)
    module = QuantizedModule(model.quantize(scheme="W8A8-static", data=feeds(4)), "W8A8-static", steps="lsq", from_codes=True)
    module(feed["x"])
    made = module.eval().to_model()
    assert sum(node.op_type == "QuantizeLinear" for node in made.graph.nodes) > 0
    assert_same_bits(module(feed["x"]).detach().numpy(), made(feed["x"]))


def test_caches_are_rounded_in_training_alone():
    model, feed = decoder()
    data = [{name: random(*array.shape, seed=10 * i + j) for j, (name, array) in enumerate(feed.items())} for i in range(40)]
    trained = model.quantize(["GPTQ", "QAT"], scheme="W8A8-KV8", data=data, **RATE_0)
    plain = model.quantize("GPTQ", scheme="W8A8-KV8", data=data)
    assert [value.type.dtype for value in trained.graph.inputs] == [value.type.dtype for value in plain.graph.inputs]


def test_what_means_nothing_is_an_error():
    model, _ = encoder(layers=1)
    with pytest.raises(QuantizationError, match="train on from codes with steps='lsq'"):
        model.quantize(["GPTQ", "QAT"], scheme="W4A8", data=feeds())
    with pytest.raises(QuantizationError, match="QAT goes on from codes of steps such as AWQ and GPTQ: LowRank has no place before it"):
        Recipe("", steps=(GPTQ(), LowRank(2), QAT()))
    with pytest.raises(QuantizationError, match="QAT has no place before it"):
        Recipe("", steps=(QAT(), QAT()))
    with pytest.raises(QuantizationError, match="cannot follow QAT"):
        Recipe("", steps=(QAT(), GPTQ()))
    with pytest.raises(QuantizationError, match="has codes, uint3, that are not on grids of uint4 channel affine"):
        QuantizedModule(model.quantize(scheme="W3A16"), "W4A16", steps="lsq", from_codes=True)
    with pytest.raises(QuantizationError, match="LLMQAT trains the whole model and makes its codes: GPTQ has no place beside it"):
        model.quantize(["GPTQ", "LLM-QAT"], data=feeds())
