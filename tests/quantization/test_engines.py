"""The arithmetic of other runtimes, by their published formulas and by the operators that define them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

import qruntime
from qruntime.ops import engines
from tests.small_models import FLOAT, assert_same_bits, linear_bytes, model_bytes, random

SCALES = [1e-38, 1e-5, 1e-3, 1.0, 3e4, 1e30]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("per_channel", [False, True])
def test_onnxruntime_is_dynamic_quantize_linear_and_matmul_integer(scale: float, per_channel: bool):
    x, w, b = random(5, 40) * np.float32(scale), random(40, 12, seed=1), random(12, seed=2)
    data = linear_bytes(weight=w)
    amax = np.abs(w).max(axis=0) if per_channel else np.abs(w).max()
    w_scale = (amax.astype(np.float64) * 2 / 254).astype(np.float32)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
        helper.make_node("MatMulInteger", ["xq", "wq", "xz"], ["acc"]),
        helper.make_node("Cast", ["acc"], ["facc"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["xs", "ws"], ["s"]),
        helper.make_node("Mul", ["facc", "s"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["y"]),
    ]
    b = onnx.numpy_helper.to_array(onnx.load_from_string(data).graph.initializer[1])
    weights = {"wq": np.rint(w / w_scale).astype(np.int8), "ws": w_scale, "b": b}
    expected = ReferenceEvaluator(model_bytes(nodes, [("x", FLOAT, None)], [("y", FLOAT, None)], weights)).run(None, {"x": x})[0]
    y = qruntime.load(data).quantize_dynamic(engine="onnxruntime", per_channel=per_channel)(x)
    assert_same_bits(y, expected)


@pytest.mark.parametrize(
    ("low", "high", "qmax", "scale", "zero_point"),
    [
        (-2.0, 1.0, 127, 3 / 127, 85),  # the founding example
        (0.0, 0.0, 127, 0.1, 0),
        (0.0, 255.0, 255, 1.0, 0),
        (-255.0, 0.0, 255, 1.0, 255),
        (-1e-6, 3e-6, 127, float(np.float32(6.1e-5)), 32),
        (0.0, 1e-6, 255, float(np.float32(6.1e-5)), 0),
        (-1e-6, 0.0, 255, float(np.float32(6.1e-5)), 255),
    ],
)
def test_torch_parameters(low: float, high: float, qmax: int, scale: float, zero_point: int):
    assert engines.choose_parameters(low, high, qmax) == (pytest.approx(scale, rel=1e-12), zero_point)


def test_the_fused_multiply_add_decides_at_a_tie():
    """27.499998 + 62 rounds to 89.5 in float32, which goes to the even code 90; a product rounded by itself would give 89."""
    low, high = np.float32(-0.6244288682937622), np.float32(0.6644395589828491)
    x = np.array([low, high, 0.2790856659412384], np.float32)
    assert engines.quantize(x, "fbgemm").centred.tolist() == [-62, 65, 28]
    scale = engines.quantize(x, "fbgemm").scale
    assert x[2] * (np.float32(1) / scale) < np.float32(27.5)
    # The same of 8 bits: −5.4999986 + 138 is 132.5 in float32.
    x = np.array([-138 * np.float32(0.0254094992), 117 * np.float32(0.0254094992), -5.4999986 * np.float32(0.0254094992)], np.float32)
    assert engines.quantize(x, "qnnpack").centred.tolist() == [-138, 117, -6]


@pytest.mark.parametrize("engine", engines.ENGINES)
@pytest.mark.parametrize("shape", [(0, 16), (1, 16), (2, 3, 16)], ids=str)
def test_shapes_and_odd_values(engine: str, shape: tuple[int, ...]):
    w = random(16, 8)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")
    model = qruntime.load(model_bytes([node], [("x", FLOAT, None)], [("y", FLOAT, None)], {"w": w})).quantize_dynamic(engine=engine)
    x = random(*shape)
    assert model(x).shape == (*shape[:-1], 8)
    assert not model(x * 0).any()
    if x.size:
        x[..., 3] = np.nan
        assert np.isnan(model(x)).all()


def test_small_inputs_vanish_where_torch_loses_them():
    model, x = qruntime.load(linear_bytes(bias=False)), random(4, 16) * np.float32(1e-5)
    expected = model(x)
    lost = model.quantize_dynamic(engine="fbgemm")(x)
    assert np.abs(lost - expected).max() > 0.9 * np.abs(expected).max()
    kept = model.quantize_dynamic()(x)
    assert np.abs(kept - expected).max() < 0.03 * np.abs(expected).max()


def test_an_engine_that_a_file_names_and_nobody_knows_stays_float(tmp_path):
    quantized = qruntime.load(linear_bytes()).quantize_dynamic(engine="fbgemm")
    quantized.save(tmp_path / "q.onnx")
    data = onnx.load(tmp_path / "q.onnx")
    for node in data.graph.node:
        for entry in node.metadata_props:
            entry.value = entry.value.replace("fbgemm", "abacus")
    x = random(3, 16)
    expected = qruntime.load(linear_bytes())(x)
    np.testing.assert_allclose(qruntime.load(data.SerializeToString())(x), expected, atol=0.05 * np.abs(expected).max())
