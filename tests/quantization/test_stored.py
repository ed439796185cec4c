"""Requests on models that are quantized already: by an earlier call, or by another tool."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import qruntime
from qruntime.quantization import default_dynamic_qconfig, per_channel_dynamic_qconfig
from tests.small_models import (
    FLOAT,
    assert_same_bits,
    encoder_bytes,
    linear_bytes,
    model_bytes,
    random,
    recurrent_bytes,
)

FIRST, SECOND = "/encoder/fc/MatMul", "/head/Gemm"
X = random(5, 24, seed=9)


def floats(opset: int = 17) -> qruntime.Model:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name=FIRST),
        helper.make_node("Gemm", ["h", "v", "b"], ["y"], name=SECOND, transB=1),
    ]
    weights = {"w": random(24, 16), "v": random(8, 16, seed=1), "b": random(8, seed=2)}
    return qruntime.load(model_bytes(nodes, [("x", FLOAT, ["n", 24])], [("y", FLOAT, ["n", 8])], weights, opset))


def reloaded(model: qruntime.Model, folder: Path) -> qruntime.Model:
    path = folder / "q.onnx"
    model.save(path)
    onnx.checker.check_model(str(path), full_check=True)
    return qruntime.load(path)


def codes(model: qruntime.Model) -> list[Any]:
    return [node.input(1).stored for node in model.graph.nodes if node.is_op("MatMul", "Gemm")]


def rows(model: qruntime.Model) -> dict[str, tuple[str, str]]:
    return {layer.name: (layer.scheme, layer.source) for layer in model.report.layers}


def dequantized(model: qruntime.Model) -> qruntime.Model:
    """The float model over the values that the codes stand for."""
    w, v = (weight.decoded() for weight in codes(model))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name=FIRST),
        helper.make_node("Gemm", ["h", "v", "b"], ["y"], name=SECOND, transB=1),
    ]
    return qruntime.load(model_bytes(nodes, [("x", FLOAT, ["n", 24])], [("y", FLOAT, ["n", 8])], {"w": w, "v": v, "b": random(8, seed=2)}))


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("arguments", [{}, {"only": ["head"]}, {"dtype": "int8"}])
def test_what_is_stored_as_asked_for_stays_and_is_said_to(arguments: dict, saved: bool, tmp_path: Path):
    int8 = floats().quantize_dynamic()
    int8 = reloaded(int8, tmp_path) if saved else int8
    again = int8.quantize_dynamic(**arguments)
    assert_same_bits(again(X), int8(X))
    assert again.report.kept == (FIRST, SECOND)
    assert rows(again) == rows(int8)
    assert "2 layers were quantized before and left so (first /encoder/fc/MatMul)" in again.summary()
    assert floats().quantize_dynamic().report.kept == ()


@pytest.mark.parametrize("opset", [9, 17])
@pytest.mark.parametrize(
    "arguments",
    [
        {"per_channel": True},
        {"per_channel": True, "strict": True},
        {"dtype": "float16"},
        {"engine": "fbgemm"},
        {"qconfig_spec": {"Linear": per_channel_dynamic_qconfig}},
    ],
    ids=str,
)
def test_another_form_is_made_of_the_values_that_were_stored(arguments: dict[str, Any], opset: int, tmp_path: Path):
    int8 = reloaded(floats(opset).quantize_dynamic(), tmp_path)
    made = int8.quantize_dynamic(**arguments)
    expected = dequantized(int8).quantize_dynamic(**arguments)
    assert_same_bits(made(X), expected(X))
    assert not np.array_equal(made(X), int8(X))
    assert [layer._replace(source="float") for layer in made.report.layers] == list(expected.report.layers)
    assert {layer.source for layer in made.report.layers} == {"int8"}
    assert made.report.kept == ()
    assert "2 layers are quantized from int8 (first /encoder/fc/MatMul)" in made.summary()
    again = reloaded(made, tmp_path)
    assert_same_bits(again(X), made(X))
    assert rows(again) == rows(made)
    assert str(again) == str(made)


def test_part_of_a_model_is_quantized_anew():
    int8 = floats().quantize_dynamic()
    made = int8.quantize_dynamic({"head": per_channel_dynamic_qconfig})
    assert rows(made) == {FIRST: ("per_tensor_affine", "float"), SECOND: ("per_channel_affine", "int8")}
    assert made.report.kept == (FIRST,)
    assert [weight.scale.shape for weight in codes(made)] == [(1, 1), (8, 1)]


def test_float16_becomes_int8_when_named():
    half = floats().quantize_dynamic(dtype="float16")
    kept = half.quantize_dynamic()
    assert rows(kept) == {FIRST: ("float16", "float"), SECOND: ("float16", "float")}
    assert kept.report.kept == (FIRST, SECOND)
    made = half.quantize_dynamic({"Linear"})
    assert {source for _, source in rows(made).values()} == {"float16"}
    assert {scheme for scheme, _ in rows(made).values()} == {"per_tensor_affine"}
    assert np.abs(made(X) - floats()(X)).max() < 0.05 * np.abs(floats()(X)).max()


def test_models_of_half_precision_are_quantized_anew_too(tmp_path: Path):
    w = random(24, 16).astype(np.float16)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")
    data = model_bytes([node], [("x", TensorProto.FLOAT16, ["n", 24])], [("y", TensorProto.FLOAT16, ["n", 16])], {"w": w})
    model, x = qruntime.load(data), X.astype(np.float16)
    int8 = reloaded(model.quantize_dynamic(), tmp_path)
    assert rows(int8) == {"fc": ("per_tensor_affine", "float")}
    assert int8.quantize_dynamic().report.kept == ("fc",)
    made = int8.quantize_dynamic(per_channel=True)
    assert rows(made) == {"fc": ("per_channel_affine", "int8")}
    assert made(x).dtype == np.float16
    assert np.abs(made(x).astype(np.float32) - model(x)).max() < 0.05 * np.abs(model(x)).max()
    assert_same_bits(reloaded(made, tmp_path)(x), made(x))


def test_activations_are_treated_otherwise_over_the_same_codes():
    int8 = floats().quantize_dynamic()
    made = int8.quantize_dynamic(activation="per_tensor")
    assert_same_bits(made(X), floats().quantize_dynamic(activation="per_tensor")(X))
    assert made.report.kept == ()
    assert {layer.source for layer in made.report.layers} == {"float"}
    assert made.quantize_dynamic().report.kept == (FIRST, SECOND)


@pytest.mark.parametrize("arguments", [{"exclude": ["head"]}, {"qconfig_spec": {"": default_dynamic_qconfig, "head": None}}])
def test_what_is_excluded_after_the_fact_stays_int8_and_is_said_to(arguments: dict[str, Any]):
    int8 = floats().quantize_dynamic()
    with pytest.warns(UserWarning, match="quantized before stay so: '/head/Gemm'; float weights") as caught:
        again = int8.quantize_dynamic(**arguments)
    assert caught[0].filename == __file__
    assert_same_bits(again(X), int8(X))
    assert SECOND in again.report.kept


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers_are_quantized_anew(op: str, tmp_path: Path):
    x = random(6, 3, 5, seed=5)
    model = qruntime.load(recurrent_bytes(op, directions=2))
    int8 = reloaded(model.quantize_dynamic(), tmp_path)
    made = int8.quantize_dynamic(per_channel=True)
    (layer,) = made.report.layers
    assert (layer.scheme, layer.source, layer.shared) == ("per_channel_affine", "int8", False)
    for y, expected in zip(made(x), model(x), strict=True):
        assert 0 < np.abs(y - expected).max() < 0.1
    assert_same_bits(reloaded(made, tmp_path)(x)[0], made(x)[0])


def test_a_shared_weight_is_stored_once_again(tmp_path: Path):
    nodes = [helper.make_node("MatMul", ["x", "w"], ["t"], name="a"), helper.make_node("MatMul", ["t", "w"], ["y"], name="b")]
    data = model_bytes(nodes, [("x", FLOAT, ["n", 64])], [("y", FLOAT, ["n", 64])], {"w": random(64, 64)})
    made = qruntime.load(data).quantize_dynamic().quantize_dynamic(per_channel=True)
    assert [layer.shared for layer in made.report.layers] == [False, True]
    made.save(tmp_path / "q.onnx")
    assert (tmp_path / "q.onnx").stat().st_size < 64 * 64 * 1.5


def test_what_cannot_be_made_anew_stays_whole():
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")]
    conv = qruntime.load(model_bytes(nodes, [("x", FLOAT, [1, 8, 9, 9])], [("y", FLOAT, None)], {"w": random(16, 8, 3, 3)}))
    x = random(1, 8, 9, 9)
    int8 = conv.quantize_dynamic({"Conv"})
    again = int8.quantize_dynamic({"Conv"}, engine="fbgemm")
    assert [s.reason for s in again.report.skipped] == ["engine 'fbgemm' is not defined for Conv"]
    assert again.report.kept == ("conv",)
    assert_same_bits(again(x), int8(x))
    assert rows(again) == rows(int8)
    with pytest.raises(qruntime.QuantizationError, match="not defined for Conv"):
        int8.quantize_dynamic({"Conv"}, engine="fbgemm", strict=True)


def test_embeddings_stay_in_their_form():
    node = helper.make_node("Gather", ["table", "ids"], ["y"], name="emb")
    data = model_bytes([node], [("ids", TensorProto.INT64, ["n"])], [("y", FLOAT, None)], {"table": random(40, 6)})
    int8 = qruntime.load(data).quantize_dynamic(dtype="quint8")
    assert int8.quantize_dynamic(dtype="quint8").report.kept == ("emb",)
    again = int8.quantize_dynamic(dtype="quint4x2")
    assert [s.reason for s in again.report.skipped] == ["the table is stored as quint8 already; other forms are made from the float model"]
    assert again.report.kept == ("emb",)
    assert "1 candidate is left as stored before:" in again.summary()


# What other tools store


def qdq(
    codes: Any,
    code: int,
    scale: np.ndarray,
    zero: Any = None,
    *,
    axis: int = 1,
    block: int = 0,
    static: bool = False,
    flip: bool = False,
    opset: int = 21,
) -> qruntime.Model:
    """x @ DequantizeLinear(codes), with a fixed range for x where `static`, the codes [N, K] where `flip`."""
    initializers = [
        helper.make_tensor("codes", code, codes.shape, codes.astype(np.float32).ravel()),
        onnx.numpy_helper.from_array(scale, "scale"),
    ]
    if zero is not None:
        initializers.append(helper.make_tensor("zero", code, np.shape(zero), np.ravel(zero)))
    attributes = {} if scale.ndim == 0 else {"axis": axis}
    attributes |= {"block_size": block} if block else {}
    nodes = [helper.make_node("DequantizeLinear", [i.name for i in initializers], ["v" if flip else "w"], **attributes)]
    nodes += [helper.make_node("Transpose", ["v"], ["w"], perm=[1, 0])] if flip else []
    k, n = codes.shape[::-1] if flip else codes.shape
    if static:
        initializers += [
            onnx.numpy_helper.from_array(np.float32(0.05), "s"), onnx.numpy_helper.from_array(np.uint8(128), "z"),
        ]  # fmt: skip
        nodes += [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]), helper.make_node("DequantizeLinear", ["q", "s", "z"], ["xq"])]
    nodes.append(helper.make_node("MatMul", ["xq" if static else "x", "w"], ["y"], name="fc"))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["n", k])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", n])],
        initializers,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=11)
    return qruntime.load(made.SerializeToString())


def integers(low: int, high: int) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high, (32, 16))


def scales(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(0.5, 1.5, shape).astype(np.float32) / 100


@pytest.mark.parametrize("scale", [scales(), scales(16)], ids=["tensor", "channel"])
def test_int8_weights_of_others_are_taken_as_they_are(scale: np.ndarray, tmp_path: Path):
    model = qdq(integers(-127, 128), TensorProto.INT8, scale)
    x = random(3, 32)
    made = model.quantize_dynamic()
    scheme = "per_channel_affine" if scale.ndim else "per_tensor_affine"
    assert rows(made) == {"fc": (scheme, "int8")}
    assert math.isnan(made.report.layers[0].snr_db)
    assert np.array_equal(codes(made)[0].codes, codes(model)[0].codes)
    assert 0 < np.abs(made(x) - model(x)).max() < 0.02 * np.abs(model(x)).max()
    again = reloaded(made, tmp_path)
    assert_same_bits(again(x), made(x))
    assert rows(again) == rows(made)
    assert again.quantize_dynamic().report.kept == ("fc",)


def test_activations_with_fixed_ranges_stay_unless_named():
    model = qdq(integers(-127, 128), TensorProto.INT8, scales(), static=True)
    left = model.quantize_dynamic()
    assert not left.report.layers
    assert "fixed ranges already; name the layer" in left.report.skipped[0].reason
    assert rows(model.quantize_dynamic({"Linear"})) == {"fc": ("per_tensor_affine", "int8")}
    assert model.quantize_dynamic(strict=True).report.layers == ()


STORED = {
    "uint8": lambda: qdq(integers(0, 256), TensorProto.UINT8, scales(), 128),
    "int8 along the rows": lambda: qdq(integers(-127, 128), TensorProto.INT8, scales(32), axis=0),
    "int4 in blocks of 16": lambda: qdq(integers(-8, 8), TensorProto.INT4, scales(2, 16), axis=0, block=16),
    "uint4 in blocks of 16": lambda: qdq(integers(0, 16), TensorProto.UINT4, scales(2, 16), axis=0, block=16),
    "int8 in blocks of 16": lambda: qdq(integers(-127, 128), TensorProto.INT8, scales(2, 16), axis=0, block=16),
    "float8_e4m3fn": lambda: qdq(random(32, 16), TensorProto.FLOAT8E4M3FN, scales()),
    "float8_e5m2 per channel": lambda: qdq(random(32, 16), TensorProto.FLOAT8E5M2, scales(16)),
    "float4e2m1": lambda: qdq(integers(-2, 3), TensorProto.FLOAT4E2M1, scales(), opset=23),
}


@pytest.mark.parametrize("name", STORED)
def test_other_weights_of_others_stay_unless_named(name: str, tmp_path: Path):
    model = STORED[name]()
    x = random(3, 32)
    left = model.quantize_dynamic()
    assert left.report.layers == ()
    (skipped,) = left.report.skipped
    dtype = name.split()[0]
    assert skipped.reason.startswith(f"the weight is stored as {dtype[:6]}")
    assert skipped.reason.endswith("; name the layer in qconfig_spec to quantize it anew")
    assert "left as stored before:" in left.summary()
    assert "both inputs are computed" not in left.summary()
    assert_same_bits(left(x), model(x))
    assert model.quantize_dynamic(strict=True).report.skipped == (skipped,)
    for arguments in ({"qconfig_spec": {"fc"}}, {"only": ["fc"]}, {"per_channel": True}, {"dtype": "float16"}):
        made = model.quantize_dynamic(**arguments)
        ((_, source),) = rows(made).values()
        assert source.startswith(dtype[:6])
        assert made.report.skipped == ()
        assert np.abs(made(x) - model(x)).max() <= 0.02 * np.abs(model(x)).max()
        assert_same_bits(reloaded(made, tmp_path)(x), made(x))


def bits4() -> qruntime.Model:
    rng = np.random.default_rng(0)
    weights = {"q": rng.integers(0, 256, (5, 2, 16)).astype(np.uint8), "s": scales(5, 2), "w": random(5, 4)}
    nodes = [
        helper.make_node("MatMulNBits", ["x", "q", "s"], ["h"], name="low", domain="com.microsoft", K=64, N=5, bits=4, block_size=32),
        helper.make_node("MatMul", ["h", "w"], ["y"], name="fc"),
    ]
    model = onnx.load_from_string(model_bytes(nodes, [("x", FLOAT, ["n", 64])], [("y", FLOAT, ["n", 4])], weights))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return qruntime.load(model.SerializeToString())


@pytest.mark.parametrize("arguments", [{}, {"qconfig_spec": {"Linear"}}, {"strict": True}])
def test_layers_that_other_tools_made_their_own_are_listed(arguments: dict[str, Any]):
    made = bits4().quantize_dynamic(**arguments)
    assert [layer.name for layer in made.report.layers] == ["fc"]
    (skipped,) = made.report.skipped
    assert (skipped.name, skipped.op_type) == ("low", "MatMulNBits")
    assert skipped.reason == "MatMulNBits holds its weight in 4 bits already; other forms are made from the float model"
    assert "1 candidate is left as stored before:" in made.summary()


def test_a_long_way_from_the_codes_is_gone():
    nodes = [helper.make_node("DequantizeLinear", ["q", "s"], ["w0"])]
    nodes += [helper.make_node("Transpose", [f"w{i}"], [f"w{i + 1}"], perm=[1, 0]) for i in range(3000)]
    nodes.append(helper.make_node("MatMul", ["x", "w3000"], ["y"], name="fc"))
    weights = {"q": integers(-127, 128).astype(np.int8), "s": scales()}
    model = qruntime.load(model_bytes(nodes, [("x", FLOAT, ["n", 32])], [("y", FLOAT, ["n", 16])], weights))
    assert [node.op_type for node in model.graph.nodes] == ["MatMul"]
    assert rows(model.quantize_dynamic()) == {"fc": ("per_tensor_affine", "int8")}


def test_codes_that_are_transposed_are_taken_as_they_are():
    model = qdq(integers(-127, 128).T, TensorProto.INT8, scales(16), axis=0, flip=True)
    assert rows(model.quantize_dynamic()) == {"fc": ("per_channel_affine", "int8")}


def test_a_whole_encoder_is_quantized_anew(tmp_path: Path):
    model = qruntime.load(encoder_bytes())
    x = random(2, 5, 32)
    int8 = reloaded(model.quantize_dynamic(), tmp_path)
    made = int8.quantize_dynamic(per_channel=True, strict=True)
    assert len(made.report.layers) == 12
    assert {layer.scheme for layer in made.report.layers} == {"per_channel_affine"}
    error = np.abs(made(x) - model(x)).max()
    assert error < 0.1 * np.abs(model(x)).max()
    assert_same_bits(reloaded(made, tmp_path)(x), made(x))


def test_a_failing_call_leaves_the_model_alone():
    model = qruntime.load(linear_bytes()).quantize_dynamic()
    before = rows(model)
    with pytest.raises(qruntime.QuantizationError):
        model.quantize_dynamic({"fc": per_channel_dynamic_qconfig, "nowhere": None}, strict=True, inplace=True)
    assert rows(model) == before
