"""dtype="float16": half the file, float32 arithmetic."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

import qruntime
from tests.small_models import assert_same_bits, encoder_bytes, linear_bytes, random, recurrent_bytes

MODELS = {
    "linear": linear_bytes(160, 120),
    "encoder": encoder_bytes(64),
    "lstm": recurrent_bytes("LSTM", 48, 64, directions=2),
    "gru": recurrent_bytes("GRU", 48, 64),
}


def feed(name: str) -> np.ndarray:
    return random(*{"linear": (5, 160), "encoder": (2, 7, 64)}.get(name, (6, 3, 48)), seed=8)


def results(model: qruntime.Model, x: np.ndarray) -> list[np.ndarray]:
    y = model(x)
    return list(y) if isinstance(y, tuple) else [y]


@pytest.mark.parametrize("name", MODELS)
def test_half_the_file_and_the_numbers_of_rounded_weights(name: str, tmp_path):
    model = qruntime.load(MODELS[name])
    quantized = model.quantize_dynamic(dtype="float16")
    x = feed(name)
    path = tmp_path / "h.onnx"
    quantized.save(path)
    onnx.checker.check_model(str(path), full_check=True)
    assert path.stat().st_size <= 0.52 * len(MODELS[name])
    for y, expected in zip(results(quantized, x), results(model, x), strict=True):
        assert 0 < np.abs(y - expected).max() < 4e-3 * max(1, np.abs(expected).max())
    again = qruntime.load(path)
    for a, b in zip(results(again, x), results(quantized, x), strict=True):
        assert_same_bits(a, b)
    assert "numpy" not in again.summary().rpartition("nodes:")[2]
    assert str(again) == str(quantized)
    assert [layer._replace(snr_db=0) for layer in again.report.layers] == [layer._replace(snr_db=0) for layer in quantized.report.layers]
    again.save(tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").stat().st_size <= 0.52 * len(MODELS[name])
    (y, *_) = ReferenceEvaluator(str(path)).run(None, {"x": x})
    np.testing.assert_allclose(y, results(quantized, x)[0], rtol=0, atol=2e-5 * max(1, np.abs(y).max()))


def test_printing():
    quantized = qruntime.load(MODELS["linear"]).quantize_dynamic(dtype="float16")
    assert "(fc): DynamicQuantizedLinear(in_features=160, out_features=120, dtype=torch.float16)" in str(quantized)
    assert [layer.scheme for layer in quantized.report.layers] == ["float16"]
    assert "DynamicQuantizedLSTM(48, 64, bidirectional=True)" in str(qruntime.load(MODELS["lstm"]).quantize_dynamic(dtype="float16"))


def test_weights_saturate_and_say_so(tmp_path):
    weight = np.array([[1e6, -1e6, 65504, 1.0]], np.float32)
    with pytest.warns(UserWarning, match="2 weights beyond ±65504, the range of float16, clamped to it; quantize to int8, or") as caught:
        quantized = qruntime.load(linear_bytes(weight=weight, bias=False)).quantize_dynamic(dtype="float16")
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(quantized(np.float32([[1.0]])), [[65504, 0, 65504, 1]])
    np.testing.assert_array_equal(quantized(np.float32([[-1.0]])), [[0, 65504, 0, 0]])
    quantized.save(tmp_path / "half.onnx")
    for model in (quantized, qruntime.load(tmp_path / "half.onnx")):
        assert model.report.layers[0].reason == "2 weights beyond ±65504, the range of float16, clamped to it"
        assert "1 layer has weights that float16 does not reach (" in model.summary()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantized.quantize_dynamic(dtype="float16")  # nothing new is clamped
        qruntime.load(linear_bytes()).quantize_dynamic(dtype="float16")


def test_weights_that_are_no_numbers_are_skipped():
    weight = random(4, 4)
    weight[1, 1] = np.inf
    report = qruntime.load(linear_bytes(weight=weight)).quantize_dynamic(dtype="float16").report
    assert [s.reason for s in report.skipped] == ["the weight holds NaN or infinity"]


def test_quantizing_twice_changes_nothing():
    quantized = qruntime.load(MODELS["linear"]).quantize_dynamic(dtype="float16")
    twice = quantized.quantize_dynamic(strict=True)
    assert [layer.scheme for layer in twice.report.layers] == ["float16"]
    assert_same_bits(twice(feed("linear")), quantized(feed("linear")))
