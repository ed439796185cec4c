"""Keys and values in training: rounded as the cache of codes of the model that comes out will hold them."""

from __future__ import annotations

import numpy as np
import pytest

from qruntime.ops.cache_codes import dequantize_cache, fit_cache
from tests.quantization.tuning.models import decoder
from tests.small_models import assert_same_bits, random

torch = pytest.importorskip("torch", reason="gradients need torch: make test-train installs it")

from qruntime.quantization import QuantizedModule  # noqa: E402
from qruntime.quantization.tuning.fake_quantization import rounded_for_cache  # noqa: E402

KINDS = ["stacked", "separate", "tokens first", "merged heads", "split", "attention", "causal attention"]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_gives_the_bits_of_codes(bits: int):
    x = random(7, 3, 16) * np.float32(10) ** np.arange(-4, 3, dtype=np.float32)[:, None, None]
    x[0], x[1, 0], x[1, 1], x[1, 2] = 0, 3.7, -0.0, np.where(np.arange(16) % 2, 3e38, -3e38)
    x[2, 0, 3] = np.nan
    with np.errstate(all="ignore"):
        expected = dequantize_cache.definition(*fit_cache.definition(x, bits=bits), bits=bits)
    tensor = torch.from_numpy(x.copy()).requires_grad_()
    made = rounded_for_cache(tensor, bits)
    assert_same_bits(made.detach().numpy(), expected)
    made.backward(torch.arange(16.0).expand(7, 3, 16))
    assert torch.equal(tensor.grad, torch.arange(16.0).expand(7, 3, 16))


@pytest.mark.parametrize("scheme", ["W8A16-KV8", "W16A16-KV4"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_trained_is_what_runs(kind: str, scheme: str):
    model, feed = decoder(kind)
    module = QuantizedModule(model, scheme)
    with torch.no_grad():
        trained, runs = module.train()(**feed), module.eval()(**feed)
        module.is_quantized = False
        plain = module.train()(**feed)
    expected = model.run(feed)
    for name, made in trained.items():
        assert np.abs((made - runs[name]).numpy()).max() < 1e-6 * float(runs[name].abs().max()), name
        assert np.abs((made - plain[name]).numpy()).max() > 1e-4, name
        assert made.shape == expected[name].shape


def test_the_model_holds_codes_and_the_module_floats():
    model, feed = decoder("stacked")
    module = QuantizedModule(model, "W8A8-KV4").eval()
    integer = module.to_model()
    assert {value.name: value.type.shape[-1] for value in integer.graph.inputs if value.name != "x"} == {"past": 4, "past_ranges": 2}
    codes, ranges = fit_cache.definition(feed["past"], bits=4)
    made = integer.run({"x": feed["x"], "past": codes, "past_ranges": ranges})
    runs = module(**feed)
    assert_same_bits(runs["y"].detach().numpy(), made["y"])
    assert_same_bits(runs["present"].detach().numpy(), dequantize_cache.definition(made["present"], made["present_ranges"], bits=4))
    assert_same_bits(integer.run({"x": feed["x"], "past": codes, "past_ranges": ranges})["present"], made["present"])


def test_keys_and_values_are_trained_through_their_rounding():
    model, feed = decoder("separate")
    feed = {name: array if name == "x" else array[:, :, :0] for name, array in feed.items()}
    module = QuantizedModule(model, "W2A8-KV4")
    target = torch.from_numpy(model.run(feed)["y"])
    before = float((module.eval()(**feed)["y"] - target).square().mean().detach())
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    module.train()
    for _ in range(40):
        optimizer.zero_grad()
        (module(**feed)["y"] - target).square().mean().backward()
        optimizer.step()
    assert float((module.eval()(**feed)["y"] - target).square().mean().detach()) < 0.5 * before


def test_caches_that_cannot_be_codes_stay_and_are_named():
    model, feed = decoder("separate")
    for value in model.graph.inputs[1:2]:
        value.type = value.type._replace(shape=(*value.type.shape[:-1], None))
    module = QuantizedModule(model, "W8A8-KV8").eval()
    assert [row.name for row in module.to_model().report.skipped if row.op_type == "cache"] == ["past.0.key"]
    assert len(module.to_model().report.caches) == 3
    assert module(**feed)["present.0.key"].shape == model.run(feed)["present.0.key"].shape
