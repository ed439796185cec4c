"""Models in float16 quantize: int8 weights behind a Cast, float16 activations in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import qruntime
from tests.small_models import assert_same_bits, model_bytes

CODES = {np.float16: TensorProto.FLOAT16, np.float32: TensorProto.FLOAT}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16)


# operator, shape of x, constants, attributes, kinds
LAYERS: dict[str, tuple[str, tuple[int, ...], list[np.ndarray], dict[str, Any], set[str]]] = {
    "MatMul": ("MatMul", (5, 64), [normal(64, 48)], {}, {"Linear"}),
    "Gemm": ("Gemm", (5, 64), [normal(48, 64), normal(48, seed=1)], {"transB": 1, "alpha": 0.5}, {"Linear"}),
    "Conv": ("Conv", (2, 16, 9, 9), [normal(24, 16, 3, 3), normal(24, seed=1)], {"pads": [1] * 4}, {"Conv"}),
    "LSTM": ("LSTM", (6, 3, 16), [normal(2, 80, 16), normal(2, 80, 20, seed=1), normal(2, 160, seed=2)],
             {"hidden_size": 20, "direction": "bidirectional"}, {"LSTM"}),
    "GRU": ("GRU", (6, 3, 16), [normal(1, 60, 16), normal(1, 60, 20, seed=1), normal(1, 120, seed=2)], {"hidden_size": 20}, {"GRU"}),
}  # fmt: skip


def layer(name: str, dtype: type, opset: int = 17) -> bytes:
    op, shape, constants, attributes, _ = LAYERS[name]
    weights = {f"w{i}": data.astype(dtype) for i, data in enumerate(constants)}
    node = helper.make_node(op, ["x", *weights], ["y"], name="layer", **attributes)
    y_dims = ["a", "b", "c", "d"][: 2 if op in ("MatMul", "Gemm") else 4]
    return model_bytes([node], [("x", CODES[dtype], shape)], [("y", CODES[dtype], y_dims)], weights, opset)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_that_of_float32_rounded(name: str, per_channel: bool, tmp_path: Path):
    kinds, x = LAYERS[name][4], normal(*LAYERS[name][1], seed=9)
    quantized = qruntime.load(layer(name, np.float16)).quantize_dynamic(kinds, per_channel=per_channel)
    wide = qruntime.load(layer(name, np.float32)).quantize_dynamic(kinds, per_channel=per_channel)
    got = quantized(x)
    assert_same_bits(got, wide(x.astype(np.float32)).astype(np.float16))
    assert "not native" not in quantized.summary()
    (report,) = quantized.report.layers
    assert report.bytes_before == sum(data.nbytes for data in LAYERS[name][2][: 2 if name in ("LSTM", "GRU") else 1])

    path = tmp_path / "half.onnx"
    quantized.save(path)
    onnx.checker.check_model(str(path), full_check=True)
    again = qruntime.load(path)
    assert_same_bits(again(x), got)
    assert again.report.layers[0].bytes_before == report.bytes_before


@pytest.mark.parametrize("opset", [7, 9, 10, 13, 17])
def test_opsets_without_dequantization(opset: int, tmp_path: Path):
    x = normal(5, 64, seed=9)
    for per_channel in (False, True):
        quantized = qruntime.load(layer("Gemm", np.float16, opset)).quantize_dynamic(per_channel=per_channel)
        path = tmp_path / "half.onnx"
        quantized.save(path)
        onnx.checker.check_model(str(path), full_check=True)
        assert_same_bits(qruntime.load(path)(x), quantized(x))


def run(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    io = TensorProto.FLOAT16
    return qruntime.load(model_bytes(nodes, [("x", io, None)], [("y", io, None)], weights, 21))(x)


def test_codes_that_nobody_marked_are_a_float16_weight():
    """As another tool leaves them, behind a Cast or with scales in float16."""
    codes, scale, x = np.arange(-60, 60, dtype=np.int8).reshape(12, 10), np.float32(0.0123), normal(5, 12)
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    cast = helper.make_node("Cast", ["wide"], ["w"], to=TensorProto.FLOAT16)
    behind_cast = [helper.make_node("DequantizeLinear", ["q", "s"], ["wide"]), cast, product]
    half_scale = [helper.make_node("DequantizeLinear", ["q", "s"], ["w"]), product]
    for nodes, stored in ((behind_cast, scale), (half_scale, scale.astype(np.float16))):
        real = (codes.astype(np.float32) * stored.astype(np.float32)).astype(np.float16)
        assert_same_bits(run(nodes, {"q": codes, "s": stored}, x), run([product], {"w": real}, x))


def test_half_precision_of_what_has_it_is_refused():
    report = qruntime.load(layer("MatMul", np.float16)).quantize_dynamic(dtype="float16").report
    assert [(s.name, s.reason) for s in report.skipped] == [("layer", "the weight is float16 already")]
