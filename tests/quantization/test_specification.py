"""qconfig_spec, dtype, mapping, QConfig and observers: what torch's arguments mean here."""

from __future__ import annotations

import functools
from collections import namedtuple
from typing import Any

import numpy as np
import pytest
from onnx import helper

import qruntime
from qruntime import QuantizationError, quantization
from qruntime.quantization import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
    QConfig,
    default_dynamic_qconfig,
    float16_dynamic_qconfig,
    per_channel_dynamic_qconfig,
    quantize_dynamic,
)
from tests.small_models import FLOAT, assert_same_bits, model_bytes, random

NAMES = ["/encoder/layer.0/fc/MatMul", "/encoder/layer.1/fc/MatMul", "/head/Gemm"]
Q, C, H = default_dynamic_qconfig, per_channel_dynamic_qconfig, float16_dynamic_qconfig


def three() -> qruntime.Model:
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"], name=NAMES[0]),
        helper.make_node("MatMul", ["a", "w1"], ["b"], name=NAMES[1]),
        helper.make_node("Gemm", ["b", "w2"], ["y"], name=NAMES[2]),
    ]
    weights = {f"w{i}": random(8, 8, seed=i) for i in range(3)}
    return qruntime.load(model_bytes(nodes, [("x", FLOAT, ["n", 8])], [("y", FLOAT, ["n", 8])], weights))


def schemes(model: qruntime.Model) -> list[str]:
    letters = {"per_tensor_affine": "q", "per_channel_affine": "c", "float16": "h"}
    found = {layer.name: letters[layer.scheme] for layer in model.report.layers}
    return [found.get(name, "-") for name in NAMES]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"": Q}, "qqq"),
        ({"Linear": C}, "ccc"),
        ({"Linear": C, "head": Q}, "ccq"),
        ({"Linear": C, "head": None}, "cc-"),
        ({"Linear": C, NAMES[0]: None}, "-cc"),
        ({"encoder": Q}, "qq-"),
        ({"encoder": Q, "encoder.layer.1": C}, "qc-"),
        ({"encoder.layer.1": C, "encoder": Q}, "qc-"),
        ({"encoder.layer.1.fc": H, "encoder.layer.1": C, "": Q}, "qhq"),
        ({"": Q, "encoder": None}, "--q"),
        ({"Linear": Q, "encoder": None}, "--q"),
        ({"Linear": Q, "Gemm": C}, "qqc"),
        ({"": C, "Linear": Q}, "qqq"),
        ({"encoder/*": Q}, "qq-"),
        ({"/encoder/*": Q}, "qq-"),
        ({"encoder": None}, "---"),
        ({}, "---"),
        ({"LSTM": Q}, "---"),
        ({"head", "encoder.layer.0"}, "q-q"),
        ({""}, "qqq"),
    ],
)
@pytest.mark.filterwarnings("ignore:nothing in the model")
def test_precedence(spec: Any, expected: str):
    model = three().quantize_dynamic(spec)
    assert "".join(schemes(model)) == expected
    assert len(model.report.layers) + len(model.report.skipped) == 3


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("qint8", "q"), ("int8", "q"), (np.int8, "q"), (np.dtype("int8"), "q"), ("torch.qint8", "q"),
        ("float16", "h"), (np.float16, "h"), ("half", "h"), ("torch.float16", "h"), ("quint8", "-"), (np.uint8, "-"),
    ],
)  # fmt: skip
def test_dtypes_by_name(dtype: object, expected: str):
    assert schemes(three().quantize_dynamic(dtype=dtype)) == [expected] * 3


def test_mapping_replaces_the_default():
    assert schemes(three().quantize_dynamic(mapping={})) == ["-"] * 3
    assert schemes(three().quantize_dynamic(mapping={"Linear": "DynamicQuantizedLinear"})) == ["q"] * 3
    assert schemes(three().quantize_dynamic(None, "qint8", {"Gemm"})) == ["-", "-", "q"]
    with pytest.raises(QuantizationError, match="DynamicQuantizedLinear, got 'DynamicQuantizedLSTM'"):
        three().quantize_dynamic(mapping={"Linear": "DynamicQuantizedLSTM"})
    with pytest.raises(QuantizationError, match="no quantized form of 'BatchNorm'"):
        three().quantize_dynamic(mapping={"BatchNorm"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"qconfig_spec": {"Linear": "qint8"}}, "must be a QConfig, or None to exclude, got 'qint8'"),
        ({"qconfig_spec": {"Linear"}, "dtype": "qint32"}, "qint32"),
        ({"dtype": "qint32"}, "qint32"),
        ({"qconfig_spec": {"Linear": QConfig(None, None)}}, "weight observer must be one of"),
        ({"qconfig_spec": {"Linear": QConfig(None, MinMaxObserver())}}, "only dtypes for Linear are qint8 and float16, got quint8"),
        ({"qconfig_spec": {"Linear": Q}, "per_channel": True}, "per_channel_dynamic_qconfig"),
        ({"dtype": "float16", "per_channel": True}, "no scales"),
        ({"engine": "cuda"}, "qruntime, fbgemm, qnnpack, onnxruntime, got 'cuda'"),
        ({"engine": "fbgemm", "activation": "per_token"}, "quantizes activations per tensor"),
        ({"mapping": "Linear"}, r"\{'Linear'\}"),
    ],
)
def test_requests_that_mean_nothing(arguments: dict[str, Any], message: str):
    with pytest.raises(QuantizationError, match=message):
        three().quantize_dynamic(**arguments)


def test_names_that_select_nothing_are_reported():
    with pytest.warns(UserWarning, match=r"encoder\.layer\.7"):
        model = three().quantize_dynamic({"encoder.layer.7", "LSTM", "head"})
    assert sorted(model.report.idle) == ["LSTM", "encoder.layer.7"]
    assert "nothing in the model is selected by: " in model.summary()
    with pytest.raises(QuantizationError, match=r"encoder\.layer\.7"):
        three().quantize_dynamic({"encoder.layer.7", "head"}, strict=True)
    assert three().quantize_dynamic().report.idle == ()


def test_the_function():
    x = random(3, 8)
    model = three()
    assert_same_bits(quantize_dynamic(model)(x), model.quantize_dynamic()(x))
    assert_same_bits(quantize_dynamic(model, {"Linear"}, dtype="float16")(x), model.quantize_dynamic(dtype="float16")(x))
    assert quantize_dynamic(model, inplace=True, per_channel=True) is model
    for name in quantization.__all__:
        assert hasattr(quantization, name)


def test_default_qconfigs_are_the_defaults():
    x = random(3, 8)
    for qconfig, arguments in ((Q, {}), (C, {"per_channel": True}), (H, {"dtype": "float16"})):
        assert_same_bits(three().quantize_dynamic({"Linear": qconfig})(x), three().quantize_dynamic(**arguments)(x))


def codes(observer: Any, engine: str = "qruntime") -> Any:
    model = three().quantize_dynamic({"head": QConfig(None, observer)}, engine=engine)
    return model.graph.nodes[-1].input(1).stored


@pytest.mark.parametrize("engine", ["qruntime", "fbgemm", "onnxruntime"])
def test_observers_are_followed(engine: str):
    w = random(8, 8, seed=2)
    affine = codes(MinMaxObserver(dtype="qint8"), engine)
    assert affine.zero_point[0, 0] != 0
    assert (affine.codes.min(), affine.codes.max()) == (-128, 127)
    assert np.isclose(affine.scale[0, 0], (w.max() - w.min()) / 255)
    reduced = codes(MinMaxObserver(dtype="qint8", qscheme="per_tensor_symmetric", reduce_range=True), engine)
    assert np.isclose(reduced.scale[0, 0], np.abs(w).max() / 63.5)
    limited = codes(MovingAverageMinMaxObserver(dtype="qint8", qscheme="per_tensor_symmetric", quant_min=-8, quant_max=7), engine)
    assert np.isclose(limited.scale[0, 0], np.abs(w).max() / 7.5)
    channels = codes(PerChannelMinMaxObserver(dtype="qint8"), engine)
    assert channels.scale.shape == (1, 8)
    assert channels.zero_point.any()
    assert np.isclose(channels.decoded(), w, atol=0.51 * channels.scale).all()
    histogram = codes(HistogramObserver(dtype="qint8", qscheme="per_tensor_symmetric"), engine)
    assert histogram.scale[0, 0] <= np.float32(np.abs(w).max() / 127.5)


def test_asymmetric_weights_compute_and_reload(tmp_path):
    model = three().quantize_dynamic({"": QConfig(None, MinMaxObserver(dtype="qint8"))})
    x = random(5, 8, seed=9)
    expected = three()(x)
    assert np.abs(model(x) - expected).max() < 0.05 * np.abs(expected).max()
    model.save(tmp_path / "q.onnx")
    assert_same_bits(qruntime.load(tmp_path / "q.onnx")(x), model(x))


def test_observers_are_frozen_values():
    assert MinMaxObserver.with_args(dtype="qint8") == MinMaxObserver(dtype="qint8") != MinMaxObserver()
    assert MinMaxObserver(dtype="qint8").with_args(eps=1e-3) == MinMaxObserver(dtype="qint8", eps=1e-3)
    assert PlaceholderObserver(dtype=np.float16).dtype == "float16"
    with pytest.raises(AttributeError):
        MinMaxObserver().dtype = "qint8"  # type: ignore[misc]


@pytest.mark.parametrize(
    "arguments",
    [
        {"dtype": "int3"}, {"qscheme": "per_row"}, {"quant_min": 0}, {"eps": 0}, {"quant_min": 5, "quant_max": 9},
        {"quant_min": 0, "quant_max": 256},
    ],
    ids=str,
)  # fmt: skip
def test_observers_that_cannot_be(arguments: dict[str, Any]):
    with pytest.raises(QuantizationError, match="MinMaxObserver"):
        MinMaxObserver(**arguments)


def test_a_qconfig_of_torch_is_read_by_its_names():
    """torch's with_args returns a wrapper of functools.partial over the observer's class."""

    class MinMaxObserver:
        pass

    class Wrapper:
        def __init__(self, p: functools.partial):
            self.p = p

    foreign = namedtuple("QConfig", ["activation", "weight"])
    made = foreign(None, Wrapper(functools.partial(MinMaxObserver, dtype="torch.qint8", qscheme="torch.per_tensor_affine")))
    model = three().quantize_dynamic({"head": made})
    assert model.graph.nodes[-1].input(1).stored.zero_point[0, 0] != 0  # type: ignore[union-attr]
