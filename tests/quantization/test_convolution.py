"""Conv with int8 weights: what selects it, its numerical contract, its file, and how it prints."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

import qruntime
from qruntime import quantization
from qruntime.ops.quantized_convolution import dynamic_quantized_conv
from qruntime.ops.windows import window
from tests.small_models import FLOAT, assert_same_bits, model_bytes, one_node, random

CASES: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((2, 3, 9), (4, 3, 3), {}),
    ((1, 4, 11), (6, 2, 3), {"group": 2, "strides": [2], "pads": [2, 1], "dilations": [2]}),
    ((3, 5, 7, 8), (70, 5, 1, 1), {}),
    ((2, 5, 7, 8), (3, 5, 1, 1), {"strides": [2, 3]}),
    ((2, 4, 10, 9), (5, 4, 3, 2), {"pads": [1, 0, 1, 2], "strides": [1, 2]}),
    ((1, 6, 12, 12), (9, 2, 3, 3), {"group": 3, "pads": [1, 1, 1, 1], "dilations": [1, 2]}),
    ((2, 3, 20, 13), (8, 3, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ((2, 3, 20, 13), (8, 3, 2, 2), {"auto_pad": "SAME_LOWER"}),
    ((1, 2, 5, 6, 7), (4, 2, 2, 3, 2), {"pads": [0, 1, 1, 1, 0, 0]}),
    ((1, 40, 30, 31), (33, 40, 3, 3), {"pads": [1, 1, 1, 1]}),
]


def by_hand(x: np.ndarray, codes: np.ndarray, scale: np.ndarray, bias: np.ndarray, attributes: dict[str, Any]) -> np.ndarray:
    """Window by window: one range, integer products, one scale."""
    group = attributes.get("group", 1)
    geometry = {name: attributes.get(name) for name in ("strides", "dilations", "pads")}
    win = window(x.shape[2:], codes.shape[2:], auto_pad=attributes.get("auto_pad", "NOTSET"), **geometry)
    y = np.zeros((x.shape[0], codes.shape[0], *win.output), np.float32)
    per_in, per_out = codes.shape[1], codes.shape[0] // group
    for n, g, position in itertools.product(range(x.shape[0]), range(group), np.ndindex(*win.output)):
        seen = np.zeros((per_in, *win.kernel), np.float32)
        for tap in np.ndindex(*win.kernel):
            at = [p * s - b + t * d for p, s, b, t, d in zip(position, win.strides, win.begin, tap, win.dilations, strict=True)]
            if all(0 <= a < size for a, size in zip(at, x.shape[2:], strict=True)):
                seen[(slice(None), *tap)] = x[(n, slice(g * per_in, (g + 1) * per_in), *at)]
        low, high = min(seen.min(), 0), max(seen.max(), 0)
        step = np.float32((np.float64(high) - np.float64(low)) / 255) or np.float32(1)
        zero = np.rint(-low / step)
        q = np.clip(np.rint(seen * (np.float32(1) / step)) + zero, 0, 255).astype(np.int64) - int(zero)
        for m in range(g * per_out, (g + 1) * per_out):
            total = np.float32((q * codes[m].astype(np.int64)).sum())
            y[(n, m, *position)] = total * (step * scale[m if scale.size > 1 else 0]) + bias[m]
    return y


def model(shape: tuple[int, ...], w: np.ndarray, attributes: dict[str, Any], threads: int | None = None, opset: int = 17) -> qruntime.Model:
    weights = {"w": w, "b": random(w.shape[0], seed=7)}
    dims = ["n", shape[1], *(f"d{i}" for i in range(len(shape) - 2))]
    return one_node(
        "Conv",
        [("x", FLOAT, dims)],
        [("y", FLOAT, ["n", *(None for _ in shape[1:])])],
        weights,
        opset,
        threads,
        **attributes,
    )


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(("shape", "weight", "attributes"), CASES, ids=str)
def test_rows_are_windows(shape, weight, attributes, per_channel: bool, rung: str):
    x, w = random(*shape), random(*weight, seed=1)
    quantized = model(shape, w, attributes).quantize_dynamic({"Conv"}, per_channel=per_channel)
    (layer,) = quantized.report.layers
    assert layer.scheme == ("per_channel_affine" if per_channel else "per_tensor_affine")
    assert layer.shape == (shape[1], weight[0], *weight[2:])
    assert "not native" not in quantized.summary()
    stored = quantized.graph.nodes[0].input(1).stored
    y = quantized(x)
    assert_same_bits(y, by_hand(x, stored.codes, stored.scale.reshape(-1), random(weight[0], seed=7), attributes))
    assert_same_bits(y, dynamic_quantized_conv(x, stored, random(weight[0], seed=7), **attributes))


@pytest.mark.parametrize(("shape", "weight", "attributes"), CASES, ids=str)
def test_error_is_that_of_eight_bits(shape, weight, attributes):
    x, floats = random(*shape), model(shape, random(*weight, seed=1), attributes)
    y = floats(x)
    assert np.abs(floats.quantize_dynamic({"Conv"}, per_channel=True)(x) - y).max() < 0.02 * np.abs(y).max()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_an_output_depends_on_its_window_alone(threads: int):
    x, w = random(3, 16, 24, 25), random(20, 16, 3, 3, seed=1)
    attributes = {"pads": [1, 1, 1, 1]}
    quantized = model(x.shape, w, attributes, threads).quantize_dynamic({"Conv"})
    y = quantized(x)
    assert_same_bits(y, model(x.shape, w, attributes, 1).quantize_dynamic({"Conv"})(x))
    assert_same_bits(quantized(x[1:2]), y[1:2])
    other = x.copy()
    other[0], other[2], other[1, :, :10], other[1, 0, 20, 5] = 1e6, np.nan, -1e3, np.nan
    changed = quantized(other)
    assert_same_bits(changed[1, :, 11:19], y[1, :, 11:19])
    assert np.isnan(changed[2]).all()
    sees_nan = np.isnan(changed[1]).all(axis=0)
    assert np.argwhere(sees_nan).tolist() == [[r, c] for r in (19, 20, 21) for c in (4, 5, 6)]
    assert not np.isnan(changed[1]).any(axis=0)[~sees_nan].any()


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("opset", [9, 12, 19])
def test_the_file_is_standard_and_loads_to_the_same_bits(opset: int, per_channel: bool, tmp_path):
    x, w = random(2, 4, 9, 9), random(6, 4, 3, 3, seed=1)
    floats = model(x.shape, w, {"pads": [1, 1, 1, 1]}, opset=opset)
    quantized = floats.quantize_dynamic({"Conv"}, per_channel=per_channel)
    quantized.save(tmp_path / "q.onnx")
    proto = onnx.load(tmp_path / "q.onnx")
    onnx.checker.check_model(proto, full_check=True)
    if opset != 12 or per_channel:  # onnx's own evaluator has no DequantizeLinear of old opsets
        (elsewhere,) = ReferenceEvaluator(proto).run(None, {"x": x})
        assert np.abs(elsewhere - floats(x)).max() < 0.03 * np.abs(elsewhere).max()
    again = qruntime.load(tmp_path / "q.onnx")
    assert_same_bits(again(x), quantized(x))
    assert str(again) == str(quantized)
    assert [layer._replace(snr_db=0) for layer in again.report.layers] == [layer._replace(snr_db=0) for layer in quantized.report.layers]
    assert not again.quantize_dynamic({"Conv"}).report.skipped


def test_asymmetric_weights_and_one_range_for_the_tensor():
    x, w = random(2, 6, 9, 9), random(8, 6, 3, 3, seed=1) + np.float32(0.4)
    floats = model(x.shape, w, {})
    y = floats(x)
    affine = quantization.QConfig(None, quantization.MinMaxObserver(dtype="qint8", qscheme="per_tensor_affine"))
    for quantized in (
        floats.quantize_dynamic({"Conv": affine}),
        floats.quantize_dynamic({"Conv"}, activation="per_tensor"),
    ):
        assert np.abs(quantized(x) - y).max() < 0.03 * np.abs(y).max()
    assert floats.quantize_dynamic({"Conv": affine}).graph.nodes[0].input(2).data.any()


def test_empty_and_zero_inputs():
    w = random(6, 4, 3, 3, seed=1)
    quantized = model((0, 4, 9, 9), w, {"pads": [1, 1, 1, 1]}).quantize_dynamic({"Conv"})
    assert quantized(np.zeros((0, 4, 9, 9), np.float32)).shape == (0, 6, 9, 9)
    y = quantized(np.zeros((1, 4, 9, 9), np.float32))
    np.testing.assert_array_equal(y, np.broadcast_to(random(6, seed=7).reshape(1, 6, 1, 1), y.shape))
    with pytest.raises(qruntime.InputError, match="4"):
        quantized(np.zeros((1, 5, 9, 9), np.float32))
    unpadded = model((1, 4, 9, 9), w, {}).quantize_dynamic({"Conv"})
    with pytest.raises(qruntime.RunError, match="kernel reaches over 3 positions"):
        unpadded(np.zeros((1, 4, 2, 9), np.float32))


def several() -> qruntime.Model:
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], name="/stem/conv/Conv", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "w1"], ["b"], name="/body/depthwise/Conv", group=8, pads=[1, 1, 1, 1]),
        helper.make_node("ConvTranspose", ["b", "w2"], ["c"], name="/body/up/ConvTranspose"),
        helper.make_node("Flatten", ["b"], ["d"], name="/body/Flatten", axis=3),
        helper.make_node("MatMul", ["d", "w3"], ["e"], name="/body/fc/MatMul"),
        helper.make_node("Reshape", ["b", "shape"], ["f"], name="/Reshape"),
        helper.make_node("Conv", ["f", "w4"], ["g"], name="/head/Conv"),
    ]
    weights = {
        "w0": random(8, 3, 3, 3), "w1": random(8, 1, 3, 3), "w2": random(8, 2, 2, 2), "w3": random(6, 4), "w4": random(5, 8, 3),
        "shape": np.array([0, 8, -1]),
    }  # fmt: skip
    outputs = [(name, FLOAT, None) for name in "ceg"]
    return qruntime.load(model_bytes(nodes, [("x", FLOAT, ["n", 3, 6, 6])], outputs, weights))


class Conv1d:
    """Stands for torch's class, which is recognised by its name."""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, "fc"),
        ({"qconfig_spec": {"Conv"}}, "stem head"),
        ({"qconfig_spec": {"Conv", "Linear"}}, "stem fc head"),
        ({"qconfig_spec": {"Conv2d"}}, "stem"),
        ({"qconfig_spec": {Conv1d}}, "head"),
        ({"qconfig_spec": {"stem.conv"}}, "stem"),
        ({"qconfig_spec": {"stem"}}, ""),
        ({"qconfig_spec": {""}}, "fc"),
        ({"qconfig_spec": {"", "Conv1d"}}, "fc head"),
        ({"qconfig_spec": {""}, "mapping": {"Conv", "Linear"}}, "stem fc head"),
        ({"qconfig_spec": {"Conv", "Linear"}, "mapping": {Conv1d: "DynamicQuantizedConv1d"}}, "head"),
        ({"qconfig_spec": {"Conv"}, "exclude": ["head"]}, "stem"),
        ({"qconfig_spec": {"Conv": None, "": quantization.default_dynamic_qconfig}}, "fc"),
        ({"qconfig_spec": {"Conv"}, "dtype": "float16"}, "stem depthwise head"),
        ({"qconfig_spec": {"ConvTranspose"}, "dtype": "float16"}, "up"),
        ({"qconfig_spec": {"ConvTranspose"}}, ""),
        ({"qconfig_spec": {"Conv"}, "engine": "fbgemm"}, ""),
    ],
)
def test_what_selects_convolutions(arguments: dict[str, Any], expected: str):
    floats = several()
    quantized = floats.quantize_dynamic(**arguments)
    names = [layer.name.strip("/").split("/") for layer in quantized.report.layers]
    found = [parts[0] if parts[0] != "body" else parts[1] for parts in names]
    assert sorted(found) == sorted(expected.split())
    assert len(found) + len(quantized.report.skipped) == 5
    x = random(2, 3, 6, 6)
    for y, of_float in zip(quantized(x), floats(x), strict=True):
        assert np.abs(y - of_float).max() < 0.05 * np.abs(of_float).max()


def test_reasons():
    reasons = {s.name: s.reason for s in several().quantize_dynamic({"Conv", "ConvTranspose"}).report.skipped}
    assert "depthwise" in reasons["/body/depthwise/Conv"]
    assert "no int8 form of ConvTranspose" in reasons["/body/up/ConvTranspose"]
    reasons = {s.name: s.reason for s in several().quantize_dynamic().report.skipped}
    assert reasons["/head/Conv"] == "not selected: qconfig_spec must name Conv, or the layer"
    skipped = several().quantize_dynamic({"Conv"}, engine="qnnpack").report.skipped
    assert "engine 'qnnpack' is not defined for Conv" in {s.reason for s in skipped}
    with pytest.raises(qruntime.QuantizationError, match="depthwise"):
        several().quantize_dynamic({"Conv"}, strict=True)
    assert several().quantize_dynamic(strict=True).report.layers


def test_printing():
    printed = str(several().quantize_dynamic({"Conv"}))
    scheme = "dtype=torch.qint8, qscheme=torch.per_tensor_affine"
    first = f"DynamicQuantizedConv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False, {scheme})"
    assert first in printed
    assert f"(head): DynamicQuantizedConv1d(8, 5, kernel_size=(3,), stride=(1,), bias=False, {scheme})" in printed
    assert "(up): ConvTranspose2d(8, 2, kernel_size=(2, 2), stride=(1, 1), bias=False)" in printed


def test_weights_that_cannot_be_quantized():
    w = random(4, 3, 3, 3)
    w[0, 0, 0, 0] = np.nan
    (skipped,) = model((1, 3, 8, 8), w, {}).quantize_dynamic({"Conv"}).report.skipped
    assert skipped.reason == "the weight holds NaN or infinity"
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv")
    computed = qruntime.load(model_bytes([node], [("x", FLOAT, [1, 3, 8, 8]), ("w", FLOAT, [4, 3, 3, 3])], [("y", FLOAT, None)]))
    (skipped,) = computed.quantize_dynamic({"Conv"}).report.skipped
    assert skipped.reason == "the weight is computed at run time"
