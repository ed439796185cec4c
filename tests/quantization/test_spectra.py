"""What makes or reads a spectrum stays float, unless it is named."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

import qruntime
from tests.small_models import FLOAT, assert_same_bits, model_bytes, random

N, BINS, BANDS = 64, 33, 8


def fourier(transposed: bool = False) -> dict[str, np.ndarray]:
    angle = 2 * np.pi * np.arange(N)[:, None] * np.arange(BINS) / N
    bank = np.maximum(0, 1 - np.abs(np.arange(BINS)[:, None] / 4 - np.arange(BANDS)))
    made = {"re": np.cos(angle), "im": -np.sin(angle), "bank": bank, "head": random(BANDS, 40)}
    return {name: data.astype(np.float32) for name, data in made.items()}


def log_mel(square: str, between: list[str]) -> bytes:
    """frames → DFT → power → bank → log → a learned layer."""
    weights: dict[str, np.ndarray] = {**fourier(), "two": np.float32(2).reshape(()), "eps": np.float32(1e-6).reshape(())}
    nodes = [helper.make_node("MatMul", ["x", part], [f"{part}_"], name=f"/dft/{part}/MatMul") for part in ("re", "im")]
    for part in ("re", "im"):
        nodes.append(helper.make_node("Transpose", [f"{part}_"], [f"{part}_t"], perm=[0, 1]))
        operands = [f"{part}_t", "two"] if square == "Pow" else [f"{part}_t"] * 2
        nodes.append(helper.make_node(square, operands, [f"{part}_2"]))
    nodes.append(helper.make_node("Add", ["re_2", "im_2"], ["power0"]))
    for i, op in enumerate(between):
        inputs = [f"power{i}", "eps"] if op == "Add" else [f"power{i}"]
        nodes.append(helper.make_node(op, inputs, [f"power{i + 1}"]))
    nodes += [
        helper.make_node("MatMul", [f"power{len(between)}", "bank"], ["mel"], name="/mel/MatMul"),
        helper.make_node("Add", ["mel", "eps"], ["mel_eps"]),
        helper.make_node("Log", ["mel_eps"], ["log"]),
        helper.make_node("MatMul", ["log", "head"], ["y"], name="/head/MatMul"),
    ]
    return model_bytes(nodes, [("x", FLOAT, ["n", N])], [("y", FLOAT, None)], weights)


@pytest.mark.parametrize("square", ["Pow", "Mul"])
@pytest.mark.parametrize("between", [[], ["Sqrt"], ["Add", "Sqrt"]], ids=str)
def test_transform_and_bank_stay_float(square: str, between: list[str]):
    model = qruntime.load(log_mel(square, between))
    quantized = model.quantize_dynamic()
    assert [layer.name for layer in quantized.report.layers] == ["/head/MatMul"]
    reasons = {skipped.name: skipped.reason for skipped in quantized.report.skipped}
    assert reasons["/dft/re/MatMul"].startswith("it makes a spectrum")
    assert reasons["/dft/im/MatMul"].startswith("it makes a spectrum")
    assert reasons["/mel/MatMul"].startswith("it reads a spectrum")
    assert "it reads a spectrum" in quantized.summary()
    model.quantize_dynamic(strict=True)  # nothing is wrong with them
    x = random(20, N)
    assert np.abs(quantized(x) - model(x)).max() < 0.05 * np.abs(model(x)).max()


def test_who_names_them_gets_them():
    model = qruntime.load(log_mel("Pow", []))
    for request in ({"only": ["mel"]}, {"only": "/mel/MatMul"}, {"qconfig_spec": {"mel"}}):
        assert [layer.name for layer in model.quantize_dynamic(**request).report.layers] == ["/mel/MatMul"]
    assert not model.quantize_dynamic({"Linear"}, only=["/mel/*"]).report.layers
    halves = model.quantize_dynamic(dtype="float16").report.layers
    assert len(halves) == 4  # half precision has the range


@pytest.mark.parametrize("op", ["STFT", "DFT"])
def test_operators_that_transform(op: str):
    weights = {"bank": random(33, 40), "frame": np.int64(16).reshape(()), "two": np.float32(2).reshape(()), "last": np.int64([-1])}
    if op == "STFT":
        weights["window"] = np.hanning(64).astype(np.float32)
        node, shape = helper.make_node("STFT", ["x", "frame", "window"], ["s"], onesided=1), [1, 256]
    else:
        node, shape = helper.make_node("DFT", ["x"], ["s"], axis=1, onesided=1), [1, 64, 1]
    nodes = [
        node,
        helper.make_node("Pow", ["s", "two"], ["p"]),
        helper.make_node("ReduceSum", ["p", "last"], ["power"], keepdims=0),
        helper.make_node("MatMul", ["power", "bank"], ["y"], name="fc"),
    ]
    model = qruntime.load(model_bytes(nodes, [("x", FLOAT, shape)], [("y", FLOAT, None)], weights))
    (skipped,) = model.quantize_dynamic().report.skipped
    assert skipped.reason.startswith("it reads a spectrum")


def test_squares_alone_are_no_spectrum():
    """A feed-forward block with squared ReLU, and a layer whose output is normalized by its length."""
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="up"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Mul", ["r", "r"], ["s"]),
        helper.make_node("MatMul", ["s", "b"], ["d"], name="down"),
        helper.make_node("ReduceL2", ["d"], ["length"], axes=[-1]),
        helper.make_node("Div", ["d", "length"], ["y"]),
    ]
    weights = {"a": random(16, 64), "b": random(64, 48)}
    model = qruntime.load(model_bytes(nodes, [("x", FLOAT, ["n", 16])], [("y", FLOAT, None)], weights))
    assert [layer.name for layer in model.quantize_dynamic().report.layers] == ["up", "down"]


def test_convolutions_of_a_signal():
    """The usual export of torch.stft: one Conv, whose output is cut into real and imaginary parts."""
    basis = np.concatenate([fourier()["re"].T, fourier()["im"].T])[:, None]
    ints = {"zero": np.int64([0]), "half": np.int64([BINS]), "end": np.int64([2 * BINS]), "one": np.int64([1])}
    nodes = [
        helper.make_node("Conv", ["x", "basis"], ["s"], name="stft", strides=[16]),
        helper.make_node("Slice", ["s", "zero", "half", "one"], ["re"]),
        helper.make_node("Slice", ["s", "half", "end", "one"], ["im"]),
        helper.make_node("Mul", ["re", "re"], ["re2"]),
        helper.make_node("Mul", ["im", "im"], ["im2"]),
        helper.make_node("Add", ["re2", "im2"], ["power"]),
        helper.make_node("Sqrt", ["power"], ["magnitude"]),
        helper.make_node("Conv", ["magnitude", "w1"], ["h"], name="conv1"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Conv", ["r", "w2"], ["y"], name="conv2"),
    ]
    weights = {"basis": basis, "w1": random(32, BINS, 3), "w2": random(32, 32, 3), **ints}
    model = qruntime.load(model_bytes(nodes, [("x", FLOAT, [1, 1, 400])], [("y", FLOAT, None)], weights))
    report = model.quantize_dynamic({"Conv"}).report
    assert [layer.name for layer in report.layers] == ["conv2"]
    assert [skipped.name for skipped in report.skipped] == ["stft", "conv1"]
    x = random(1, 1, 400)
    assert_same_bits(model.quantize_dynamic({"stft": None, "Conv": None})(x), model(x))
