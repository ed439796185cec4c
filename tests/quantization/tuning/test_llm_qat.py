"""LLM-QAT: trained on what the model writes itself, at the scheme that it is going to have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

import qruntime
from qruntime.errors import CalibrationError, QuantizationError
from qruntime.quantization.generation import Decoder as Writer
from qruntime.quantization.methods.llm_qat import LLMQAT
from tests.quantization.decoders import Decoder
from tests.quantization.tuning.models import encoder
from tests.small_models import assert_same_bits

torch = pytest.importorskip("torch", reason="gradients need torch: make test-train installs it")

from qruntime.quantization import QuantizedModule  # noqa: E402

VOCABULARY = 40
FEW = {"texts": 12, "length": 10, "batch": 4, "lr": 3e-3}


def decoder(kind: str = "separate") -> qruntime.Model:
    return qruntime.load(Decoder(kind, vocabulary=VOCABULARY, has_positions=True).bytes())


def blank(model: qruntime.Model, ids: np.ndarray) -> dict[str, np.ndarray]:
    """A feed with empty caches, floats or codes."""
    known = {"ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.tile(np.arange(ids.shape[1]), (len(ids), 1))}
    sizes = {"b": len(ids), "t": 0}
    return {
        one.name: known[one.name] if one.name in known else np.zeros([sizes.get(size, size) for size in one.shape], one.dtype)
        for one in model.inputs
    }


def divergence(made: qruntime.Model, exact: qruntime.Model) -> float:
    """Of the next token, on texts that nobody trained on."""
    ids = Writer(exact).write(32, 12, seed=99)
    wanted, got = (torch.from_numpy(one.run(blank(one, ids))["logits"]).log_softmax(-1) for one in (exact, made))
    return float((wanted.exp() * (wanted - got)).sum(-1).mean())


@pytest.mark.parametrize(("kind", "scheme"), [("separate", "W3A8-KV4"), ("stacked", "W2A8"), ("causal attention", "W3A8-KV4")])
def test_it_follows_the_float_model_better_than_rounding(kind: str, scheme: str):
    model = decoder(kind)
    trained = model.quantize("LLM-QAT", scheme=scheme, texts=64, length=16, epochs=4, lr=3e-3)
    assert divergence(trained, model) < 0.6 * divergence(model.quantize(scheme=scheme), model)
    first, last = trained.report.layers[0].facts[0]["loss"]
    assert last < first
    assert trained.report.layers[0].facts[0]["trained on"] == "64 texts of 16 tokens of its own"
    assert all(row.scheme.startswith(f"uint{scheme[1]}") for row in trained.report.layers)
    if "KV" in scheme:
        assert {row.format for row in trained.report.caches} == {"uint4"}


def test_a_rate_of_0_is_rounding_to_nearest():
    model, ids = decoder(), np.arange(12)[None]
    trained, rounded = (model.quantize(*name, scheme="W4A8-KV8", **options) for name, options in (
        (("LLM-QAT",), FEW | {"lr": 0}), ((), {}),
    ))  # fmt: skip
    feed = blank(trained, ids)
    for name, made in rounded.run(feed).items():
        assert_same_bits(trained.run(feed)[name], made)


def test_making_activations_again_changes_no_bit():
    model, ids = decoder(), np.arange(12)[None]
    kept, again = (model.quantize("LLM-QAT", recompute=recompute, **FEW) for recompute in (False, True))
    assert_same_bits(kept.run(blank(kept, ids))["logits"], again.run(blank(again, ids))["logits"])


def test_a_model_of_float16_is_trained_too():
    model = qruntime.load(Decoder("stacked", dtype=TensorProto.FLOAT16, vocabulary=VOCABULARY).bytes())
    trained = model.quantize("LLM-QAT", scheme="W3A8-KV4", texts=64, length=16, lr=1e-3, epochs=4)
    first, last = trained.report.layers[0].facts[0]["loss"]
    assert last < first
    assert trained.run(blank(trained, np.arange(4)[None]))["logits"].dtype == np.float16


def test_the_seed_decides_the_codes():
    model, ids = decoder(), np.arange(12)[None]
    first, again, other = (model.quantize("LLM-QAT", seed=seed, **FEW) for seed in (1, 1, 2))
    logits = [one.run(blank(one, ids))["logits"] for one in (first, again, other)]
    assert_same_bits(logits[0], logits[1])
    assert (logits[0] != logits[2]).any()


def test_what_it_trains_is_what_a_module_trains(tmp_path: Path):
    """The module in evaluation mode, and its model saved and loaded."""
    model, ids = decoder(), np.arange(12)[None]
    module = QuantizedModule(model, "W3A8-KV4")
    facts = LLMQAT(**FEW).train(module, model, [], None, lambda done, total, what: None)
    made = model.quantize("LLM-QAT", scheme="W3A8-KV4", **FEW)
    assert facts["loss"] == made.report.layers[0].facts[0]["loss"]
    expected = module.eval().outputs(blank(model, ids))["logits"].detach().numpy()
    assert_same_bits(made.run(blank(made, ids))["logits"], expected)
    made.save(tmp_path / "trained.onnx")
    again = qruntime.load(tmp_path / "trained.onnx")
    assert_same_bits(again.run(blank(again, ids))["logits"], expected)


def test_it_takes_no_data():
    model = decoder()
    with pytest.raises(CalibrationError, match="LLMQAT takes no data: it trains on text that the model writes itself"):
        model.quantize("LLM-QAT", data=[blank(model, np.zeros((1, 4), np.int64))])


def test_progress_and_interrupts():
    model = decoder()
    before = model.run(blank(model, np.arange(5)[None]))["logits"]
    said: list[str] = []

    def until(stage: str, count: int):
        def tell(done: int, total: int, what: str) -> None:
            said.append(f"{done} of {total}: {what}")
            if what.startswith(stage) and done == count:
                raise KeyboardInterrupt

        return tell

    with pytest.raises(KeyboardInterrupt):
        model.quantize("LLM-QAT", progress=until("writes", 5), **FEW)
    assert said[-1] == "5 of 9: writes text to train on"
    with pytest.warns(UserWarning, match="was interrupted after 4 of 60 steps"):
        trained = model.quantize("LLM-QAT", scheme="W2A8", progress=until("loss", 4), **FEW | {"epochs": 20})
    assert said[-1].startswith("4 of 60: loss ")
    assert trained.report.layers[0].facts[0]["interrupted"] == "after 4 of 60 steps"
    assert_same_bits(model.run(blank(model, np.arange(5)[None]))["logits"], before)


class Stopped(Exception):
    pass


def test_a_run_that_was_killed_goes_on_to_the_same_bits(tmp_path: Path):
    model, ids = decoder(), np.arange(12)[None]
    whole = model.quantize("LLM-QAT", **FEW)
    options = FEW | {"checkpoint": tmp_path / "run"}

    def kill(done: int, total: int, what: str) -> None:
        if done == 2 and what.startswith("loss"):
            raise Stopped

    with pytest.raises(Stopped):
        model.quantize("LLM-QAT", progress=kill, **options)
    with pytest.raises(QuantizationError, match="is of a run with other data: name another file"):
        model.quantize("LLM-QAT", **options | {"length": 11})
    resumed = model.quantize("LLM-QAT", **options)
    assert_same_bits(resumed.run(blank(resumed, ids))["logits"], whole.run(blank(whole, ids))["logits"])


def test_what_means_nothing_is_an_error():
    model, _ = encoder(layers=1)
    with pytest.raises(CalibrationError, match="LLM-QAT trains on text that the model writes itself: it needs tokens"):
        model.quantize("LLM-QAT")
    for name, least in (("texts", 1), ("length", 2), ("batch", 1), ("epochs", 1)):
        with pytest.raises(QuantizationError, match=f"LLM-QAT: {name} must be a whole number of {least} or more, got 0"):
            model.quantize("LLM-QAT", **{name: 0})
    with pytest.raises(QuantizationError, match="lr must be a finite number of 0 or more, got -1"):
        model.quantize("LLM-QAT", lr=-1)
