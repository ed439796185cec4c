"""One scale for a weight costs no output channel more than it can bear; where it would, each channel gets its own."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from onnx import helper

import qruntime
from qruntime import QuantizationError
from qruntime.quantization import (
    EngineObserver,
    MinMaxObserver,
    PerChannelMinMaxObserver,
    QConfig,
    default_dynamic_qconfig,
    default_weight_observer,
    per_channel_dynamic_qconfig,
    quantize_dynamic,
)
from qruntime.quantization.ranges import FLOOR_DB, SLACK_DB
from qruntime.quantization.rounding import Matrix, quantize, quantize_shared
from tests.small_models import FLOAT, assert_same_bits, model_bytes, random, recurrent_bytes


def channel_db(weight: np.ndarray, axis: int, made) -> np.ndarray:
    """Signal-to-noise ratio of each slice along `axis`, from the restored weight in float64."""
    stored = made.stored.transposed() if axis else made.stored
    error = stored.codes.astype(np.float64) * stored.scale.astype(np.float64) - weight
    others = tuple(i for i in range(weight.ndim) if i != axis)
    return 10 * np.log10((weight.astype(np.float64) ** 2).sum(others) / np.maximum((error**2).sum(others), 1e-300))


def blank_head(k: int = 64, n: int = 3000) -> np.ndarray:
    """Small columns, and one that decides: the head of a text recogniser with its blank."""
    w = random(k, n, seed=5) * np.float32(0.085)
    w[:, 7] = random(k, seed=6) * np.float32(0.27)
    w[:4, 7] = [2.4, -1.9, 1.7, -1.2]
    return w


def linear(w: np.ndarray, *, transposed: bool = False, opset: int = 17) -> bytes:
    node = helper.make_node("Gemm", ["x", "w"], ["y"], name="/head/Gemm", transB=1) if transposed else None
    node = node or helper.make_node("MatMul", ["x", "w"], ["y"], name="/head/MatMul")
    return model_bytes([node], [("x", FLOAT, ["n", w.shape[int(transposed)]])], [("y", FLOAT, ["n", None])], {"w": w}, opset)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("opset", [11, 17])
def test_a_column_that_one_scale_would_clip_has_its_own(transposed: bool, opset: int, tmp_path):
    w = blank_head()
    model = qruntime.load(linear(np.ascontiguousarray(w.T) if transposed else w, transposed=transposed, opset=opset))
    quantized = model.quantize_dynamic()
    (layer,) = quantized.report.layers
    assert layer.scheme == "per_channel_affine"
    assert re.fullmatch(r"one scale would leave channel \d+ at -?\d+\.\d dB, its own holds \d+\.\d", layer.reason)
    assert "1 layer has one scale per channel, as one for the tensor holds less than 30 dB of a channel (/head/" in quantized.summary()
    x = random(50, 64, seed=8)
    y, expected = quantized(x), model(x)
    assert np.sqrt(((y - expected)[:, 7] ** 2).mean()) < 0.03 * np.sqrt((expected[:, 7] ** 2).mean())
    assert_same_bits(y, model.quantize_dynamic(per_channel=True)(x))
    quantized.save(tmp_path / "q.onnx")
    onnx.checker.check_model(str(tmp_path / "q.onnx"), full_check=True)
    again = qruntime.load(tmp_path / "q.onnx")
    assert again.report.layers[0].reason == layer.reason
    assert_same_bits(again(x), y)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("spread", [1.0, 3.0, 10.0, 100.0])
def test_every_channel_holds_the_floor(axis: int, spread: float):
    """Whatever the spread of the channels: the floor, or what a scale of its own would hold less the slack."""
    rng = np.random.default_rng(int(spread))
    w = (rng.standard_normal((96, 64)) * spread ** rng.uniform(-1, 1, (96, 1))).astype(np.float32)
    w = np.ascontiguousarray(w if axis == 0 else w.T)
    made = quantize_shared(Matrix(w, axis))
    own = channel_db(w, axis, quantize(Matrix(w, axis), per_channel=True))
    # The choice knows rounding errors by their expectation; a mean of 64 squares is within 2 dB of it.
    assert (channel_db(w, axis, made) >= np.minimum(FLOOR_DB, own - SLACK_DB) - 2).all()
    assert made.stored.has_one_scale == (spread == 1.0)
    assert not made.stored.has_one_scale or made.snr_db >= quantize(Matrix(w, axis)).snr_db - 0.1


def test_one_scale_is_the_range_of_least_error_where_all_can_bear_it():
    w = random(256, 64)
    made = quantize_shared(Matrix(w, 1))
    assert made.stored.has_one_scale
    assert made.reason == ""
    best = quantize(Matrix(w, 1), range="mse")
    assert quantize(Matrix(w, 1)).snr_db < made.snr_db <= best.snr_db + 1e-6  # float sums, by columns and by rows


def test_strictly_one_scale_loses_least_where_it_loses_most():
    w = blank_head()
    strict, clipped, whole = quantize_shared(Matrix(w, 1), strict=True), quantize(Matrix(w, 1), range="mse"), quantize(Matrix(w, 1))
    assert strict.stored.has_one_scale
    assert strict.reason == ""
    worst = [channel_db(w, 1, made).min() for made in (strict, clipped, whole)]
    assert worst[0] >= max(worst) - 0.5
    assert worst[0] > worst[1] + 10


def test_the_three_requests():
    model, x = qruntime.load(linear(blank_head())), random(9, 64, seed=3)
    schemes = {value: model.quantize_dynamic(per_channel=value).report.layers[0].scheme for value in (None, False, True)}
    assert schemes == {None: "per_channel_affine", False: "per_tensor_affine", True: "per_channel_affine"}
    assert not model.quantize_dynamic(per_channel=True).report.layers[0].reason
    assert_same_bits(quantize_dynamic(model, {"Linear"}, per_channel=False)(x), model.quantize_dynamic(per_channel=False)(x))
    for value in (False, True):
        with pytest.raises(QuantizationError, match=f"per_channel={value} says nothing beside a dict"):
            model.quantize_dynamic({"Linear": default_dynamic_qconfig}, per_channel=value)


def codes(model: qruntime.Model):
    stored = model.graph.nodes[-1].input(1).stored
    return [stored.codes, stored.scale.reshape(-1)]


@pytest.mark.parametrize("engine", ["qruntime", "fbgemm", "qnnpack", "onnxruntime"])
def test_observers_are_followed_to_the_letter(engine: str):
    """Also one that says what the default would; the presets say one scale, or one per channel."""
    w = blank_head()
    model = qruntime.load(linear(w))
    for observer in (MinMaxObserver(dtype="qint8", qscheme="per_tensor_symmetric"), default_weight_observer.with_args(eps=2**-20)):
        scale = codes(model.quantize_dynamic({"": QConfig(None, observer)}, engine=engine))[1]
        assert scale == np.abs(w).max() / np.float32(127.5)
    observer = PerChannelMinMaxObserver(dtype="qint8", qscheme="per_channel_symmetric")
    np.testing.assert_array_equal(
        codes(model.quantize_dynamic({"": QConfig(None, observer)}, engine=engine))[1], np.abs(w).max(axis=0) / np.float32(127.5)
    )
    for qconfig, per_channel in ((default_dynamic_qconfig, False), (per_channel_dynamic_qconfig, True)):
        for made, expected in zip(
            codes(model.quantize_dynamic({"": qconfig}, engine=engine)),
            codes(model.quantize_dynamic(per_channel=per_channel, engine=engine)), strict=True,
        ):  # fmt: skip
            np.testing.assert_array_equal(made, expected)
    assert EngineObserver(granularity="tensor") == default_weight_observer != EngineObserver()


@pytest.mark.parametrize("engine", ["fbgemm", "qnnpack", "onnxruntime"])
def test_other_engines_keep_one_scale(engine: str):
    model = qruntime.load(linear(blank_head()))
    assert model.quantize_dynamic(engine=engine).report.layers[0].scheme == "per_tensor_affine"
    x = random(3, 64)
    assert_same_bits(model.quantize_dynamic(engine=engine)(x), model.quantize_dynamic(engine=engine, per_channel=False)(x))


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("which", ["W", "R"])
def test_gates_of_one_direction(op: str, which: str, tmp_path):
    """A row of one direction's weight that needs its own scale does not decide for the other weight or direction."""
    proto = onnx.load_from_string(recurrent_bytes(op, 12, 16, directions=2))
    name = proto.graph.node[0].input[1 if which == "W" else 2]
    tensor = next(t for t in proto.graph.initializer if t.name == name)
    data = onnx.numpy_helper.to_array(tensor).copy()
    data[1, 3] *= np.float32(1000)
    tensor.CopyFrom(onnx.numpy_helper.from_array(data, name))
    model = qruntime.load(proto.SerializeToString())
    quantized = model.quantize_dynamic()
    (layer,) = quantized.report.layers
    assert layer.scheme == "per_channel_affine"
    assert layer.reason
    gates = [stored[d] for stored in (quantized.graph.nodes[-1].input(i).stored for i in (1, 2)) for d in (0, 1)]
    assert [direction.has_one_scale for direction in gates].count(True) == 3
    x = random(6, 3, 12, seed=5)
    outputs = quantized(x)
    for y, expected in zip(outputs, model(x), strict=True):
        assert np.abs(y - expected).max() < 0.1
    assert any(call.node.op_type == f"DynamicQuantized{op}" for call in quantized._plan(tuple(quantized.graph.output_names)).nodes)
    quantized.save(tmp_path / "q.onnx")
    again = qruntime.load(tmp_path / "q.onnx")
    assert again.report.layers[0].scheme == "per_channel_affine"
    for y, expected in zip(again(x), outputs, strict=True):
        assert_same_bits(y, expected)


@pytest.mark.parametrize(
    "weight",
    [
        np.zeros((4, 3), np.float32), np.full((4, 3), 1e-42, np.float32), np.full((1, 1), -3, np.float32),
        np.diag(np.float32([1e-30, 1, 1e30])), np.float32([[3e38, -3e38], [1, 2]]), np.eye(5, dtype=np.float32)[:, ::-1],
        np.float32([[0, 1e-20], [0, 1]]), np.ones((1, 7), np.float32).T,
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("strict", [False, True])
def test_odd_weights(weight: np.ndarray, axis: int, strict: bool):
    made = quantize_shared(Matrix(weight, axis), strict=strict)
    stored = made.stored.transposed() if axis else made.stored
    assert stored.shape == weight.shape
    assert np.isfinite(stored.scale).all()
    restored = stored.codes.astype(np.float64) * stored.scale
    assert (np.abs(restored - weight) <= 0.51 * stored.scale).all()
    assert made.stored.has_one_scale or not strict


@pytest.mark.parametrize("axis", [0, 1])
def test_channels_along_either_axis(axis: int):
    rows = random(4, 15) * np.float32([1, 1e3, 1e-3, 1])[:, None]
    weight = np.ascontiguousarray(rows.T if axis else rows)
    stored = quantize_shared(Matrix(weight, axis)).stored
    assert stored.scale.shape == (4, 1)
    assert (stored.codes.T if axis else stored.codes).flags.c_contiguous  # as the model stores it
    assert np.abs(stored.decoded() - rows).max(axis=1) == pytest.approx(stored.scale[:, 0] / 2, rel=0.2)
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="NaN or infinity"):
            quantize_shared(Matrix(np.where(weight == weight[1, 2], np.float32(bad), weight), axis))
