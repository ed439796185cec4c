"""Models of float16 and bfloat16: trained in float32, and what is made of them is of their type again."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import qruntime
from tests.small_models import assert_same_bits, encoder_bytes, random

torch = pytest.importorskip("torch", reason="gradients need torch: make test-train installs it")

from qruntime.quantization import QuantizedModule  # noqa: E402
from qruntime.quantization.tuning.torch_graph import TorchGraph  # noqa: E402

TYPES = [TensorProto.FLOAT16, TensorProto.BFLOAT16]


def of_type(code: int, *, wide: bool = False) -> qruntime.Model:
    """An encoder whose floats are of that type; `wide`: these same numbers, in float32."""
    made = onnx.load_from_string(encoder_bytes(layers=2))
    dtype = helper.tensor_dtype_to_np_dtype(code)
    for tensor in made.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            narrow = array.astype(dtype)
            tensor.CopyFrom(numpy_helper.from_array(narrow.astype(np.float32) if wide else narrow, tensor.name))
    if not wide:
        for value in (*made.graph.input, *made.graph.output):
            value.type.tensor_type.elem_type = code
    made.opset_import[0].version = 22
    return qruntime.load(made.SerializeToString())


def feeds(code: int, count: int = 4) -> list[dict[str, np.ndarray]]:
    dtype = helper.tensor_dtype_to_np_dtype(code)
    return [{"x": random(2, 5, 32, seed=i).astype(dtype)} for i in range(count)]


def error(model: qruntime.Model, exact: qruntime.Model, code: int) -> float:
    return float(np.mean([np.square(model(feed["x"]).astype(np.float32) - exact(feed["x"]).astype(np.float32)) for feed in feeds(code)]))


@pytest.mark.parametrize("code", TYPES)
def test_torch_computes_what_the_same_numbers_in_float32_give(code: int):
    narrow, wide, (feed,) = TorchGraph(of_type(code).graph), TorchGraph(of_type(code, wide=True).graph), feeds(code, 1)
    (made,) = narrow.run({narrow.starts[0]: feed["x"]}).values()
    (expected,) = wide.run({wide.starts[0]: feed["x"].astype(np.float32)}).values()
    assert made.dtype == torch.float32
    assert torch.equal(made, expected)


@pytest.mark.parametrize("steps", ["minmax", "lsq"])
@pytest.mark.parametrize("scheme", ["W2A16-g16", "W2A8"])
def test_a_model_of_float16_is_trained(scheme: str, steps: str):
    code = TensorProto.FLOAT16
    model = of_type(code)
    trained = model.quantize("QAT", scheme=scheme, data=feeds(code), loss="mse", epochs=10, lr=3e-3, steps=steps)
    assert error(trained, model, code) < 0.8 * error(model.quantize(scheme=scheme), model, code)
    assert trained(feeds(code)[0]["x"]).dtype == np.float16


def test_gradients_do_not_vanish():
    """Of a loss that is a millionth as large they are a millionth; float16 ends at 6e-8."""
    (feed,) = feeds(TensorProto.FLOAT16, 1)
    found = []
    for factor in (1.0, 1e-6):
        module = QuantizedModule(of_type(TensorProto.FLOAT16), "W4A16-g16")
        ((module(torch.from_numpy(feed["x"])) - 1).pow(3).mean() * factor).backward()
        found.append(torch.cat([parameter.grad.flatten() / factor for parameter in module.parameters()]))
    assert float((found[1] - found[0]).norm() / found[0].norm()) < 1e-3


@pytest.mark.parametrize("code", TYPES)
def test_a_module_gives_the_numbers_of_its_model_in_float32(code: int):
    model, (feed,) = of_type(code), feeds(code, 1)
    module = QuantizedModule(model, "W8A8")
    assert len(list(module.parameters())) == 2 * (2 * 6 + 2 * 2)
    given = torch.from_numpy(feed["x"]) if code == TensorProto.FLOAT16 else feed["x"]
    module(given).square().mean().backward()
    made, expected = module.eval()(given).detach(), model.quantize(scheme="W8A8")(feed["x"])
    assert_same_bits(made.numpy(), expected.astype(np.float32))
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("code", TYPES)
@pytest.mark.parametrize(
    ("method", "scheme"), [("OmniQuant", "W3A16"), ("OmniQuant", "W4A4"), ("ZeroQuant-LKD", "W4A8"), (["RTN", "NormTweaking"], "W3A16")]
)
def test_methods_by_block_learn(method: object, scheme: str, code: int):
    model = of_type(code)
    made = model.quantize(method, scheme=scheme, data=feeds(code))
    assert made(feeds(code)[0]["x"]).dtype == model(feeds(code)[0]["x"]).dtype
    assert any(fact["rate"] > 0 for row in made.report.layers for fact in row.facts if "rate" in fact)


@pytest.mark.parametrize("code", TYPES)
@pytest.mark.parametrize("method", ["PEQA", "QLoRA"])
def test_adapters_learn(method: str, code: int):
    base = of_type(code).quantize(scheme="W4A16-g16")
    data = [feed | {"wanted": random(2, 5, 32, seed=9)} for feed in feeds(code)]
    before = base(data[0]["x"])
    tuned = base.finetune(method, data, loss=lambda made, feed: (made["y"] - feed["wanted"]).square().mean(), epochs=6, lr=1e-2)
    assert tuned.adapter is not None
    assert tuned.adapter.losses[-1] < 0.98 * tuned.adapter.losses[0]
    assert (tuned(data[0]["x"]) != before).any()
    tuned.unload_adapter()
    assert_same_bits(tuned(data[0]["x"]), before)
