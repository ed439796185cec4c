"""engine="fbgemm" and "qnnpack", and dtype="float16", against numbers stored from torch 2.13 (make_torch_vectors.py)."""

from __future__ import annotations

import runpy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qruntime
from qruntime.quantization import float_qparams_weight_only_qconfig, float_qparams_weight_only_qconfig_4bit

VECTORS = np.load(Path(__file__).with_name("torch_vectors.npz"))
MODELS = sorted({key.partition("/")[0] for key in VECTORS} - {"embedding8", "embedding4"})
LINEAR = [name for name in MODELS if "linear" in name or name == "founding"]
RECURRENT = [name for name in MODELS if name not in LINEAR]
VARIANTS: dict[str, dict[str, Any]] = {
    "fbgemm": {"engine": "fbgemm"},
    "channel": {"engine": "fbgemm", "per_channel": True},
    "qnnpack": {"engine": "qnnpack"},
    "float16_": {"dtype": "float16"},
}


@cache
def model(name: str) -> qruntime.Model:
    return qruntime.load(VECTORS[f"{name}/onnx"].tobytes())


def several(name: str, what: str) -> list[np.ndarray]:
    return [VECTORS[f"{name}/{what}{i}"] for i in range(8) if f"{name}/{what}{i}" in VECTORS]


def outputs(model: qruntime.Model, name: str) -> tuple[np.ndarray, ...]:
    result = model(*several(name, "x"))
    return result if isinstance(result, tuple) else (result,)


def error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / (np.abs(expected).max() or 1))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs(name: str, variant: str, tmp_path):
    quantized = model(name).quantize_dynamic(**VARIANTS[variant])
    assert not [s for s in quantized.report.skipped if "not selected" not in s.reason]
    limit = 2e-5 if variant == "float16_" else 3e-6 if name in LINEAR else 5e-5
    expected = several(name, variant)
    assert expected
    for y, torch_y in zip(outputs(quantized, name), expected, strict=True):
        assert error(y, torch_y) <= limit
    quantized.save(tmp_path / "q.onnx")
    again = qruntime.load(tmp_path / "q.onnx")
    for y, before in zip(outputs(again, name), outputs(quantized, name), strict=True):
        np.testing.assert_array_equal(y, before)
    assert str(again) == str(quantized)


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("variant", ["fbgemm", "channel", "qnnpack"])
def test_linear_layers_agree_to_the_last_bit(name: str, variant: str):
    """Of finite sums one rounding is emulated in double precision, which could round twice: none of these do."""
    y = outputs(model(name).quantize_dynamic(**VARIANTS[variant]), name)[0]
    np.testing.assert_array_equal(y, VECTORS[f"{name}/{variant}0"])


@pytest.mark.parametrize("name", LINEAR)
def test_codes_and_scales_are_exact(name: str):
    quantized = model(name).quantize_dynamic(engine="fbgemm")
    nodes = [node for node in quantized.graph.nodes if node.is_op("MatMul", "Gemm")]
    for i, node in enumerate(nodes):
        weight = node.input(1).stored
        assert weight is not None
        q = weight.codes if node.attr("transB", 0) else weight.codes.T
        np.testing.assert_array_equal(q, VECTORS[f"{name}/weight{i}"])
        assert weight.scale == VECTORS[f"{name}/scale{i}"]
        assert not weight.zero_point.any()


@pytest.mark.parametrize("name", ["linear", "two_linears", "lstm2_bidirectional", "gru2"])
def test_the_default_is_closer_to_float_than_torch_is(name: str):
    """Eight bits per row against seven per tensor."""
    ours = outputs(model(name).quantize_dynamic(), name)[0]
    y, torch_y = several(name, "float")[0], several(name, "fbgemm")[0]
    assert np.square(ours - y).mean() < np.square(torch_y - y).mean()


def test_the_founding_example(capsys):
    runpy.run_path(str(Path(__file__).parents[2] / "examples/founding/founding.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "(fc): Linear(in_features=2, out_features=2)" in printed
    assert "largest difference to torch 2.13: 0.0e+00" in printed
    quantized = model("founding").quantize_dynamic(engine="fbgemm")
    assert "(fc): DynamicQuantizedLinear(in_features=2, out_features=2, dtype=torch.qint8, qscheme=torch.per_tensor_affine)" in str(
        quantized
    )
    np.testing.assert_array_equal(VECTORS["founding/weight0"], [[-1, 83], [-128, -114]])
    assert abs(VECTORS["founding/scale0"] - 0.004564554896) < 1e-11


@pytest.mark.parametrize("bits", [8, 4])
def test_embeddings(bits: int, tmp_path):
    """torch rounds the scales and offsets of its 4-bit tables to half precision; ours are float32."""
    name = f"embedding{bits}"
    ids = VECTORS[f"{name}/x0"]
    qconfig = float_qparams_weight_only_qconfig if bits == 8 else float_qparams_weight_only_qconfig_4bit
    quantized = model(name).quantize_dynamic({"Embedding": qconfig})
    assert len(quantized.report.layers) == 1
    rows = quantized(ids)
    assert error(rows, VECTORS[f"{name}/fbgemm0"]) <= (3e-6 if bits == 8 else 1e-3)
    np.testing.assert_array_equal(model(name).quantize_dynamic(dtype="quint8" if bits == 8 else "quint4x2")(ids), rows)
