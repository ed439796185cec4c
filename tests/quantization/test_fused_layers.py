"""Layers inside operators that other runtimes fuse, and weights that no quantized layer holds: none is passed over."""

import re
from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import qruntime
from qruntime.ir import clone
from qruntime.ops.families import MODULES
from qruntime.passes import pipeline
from qruntime.quantization.layers import FORMS

MS = "com.microsoft"
RNG = np.random.default_rng(3)


def numbers(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def made(nodes, inputs, weights, outputs=("y",), opset=17) -> qruntime.Model:
    """`nodes` are (operator, inputs, attributes); the last one makes the outputs, those before it h0, h1 …"""
    last = len(nodes) - 1
    protos = []
    for i, (op, names, attributes) in enumerate(nodes):
        domain = "" if op in STANDARD else MS
        protos.append(helper.make_node(op, names, list(outputs) if i == last else [f"h{i}"], name=f"the_{op}", domain=domain, **attributes))
    graph = helper.make_graph(
        protos,
        "g",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), [None] * a.ndim) for n, a in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(MS, 1)]
    return qruntime.load(helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString())


STANDARD = ("MatMul", "Einsum", "Relu", "DeformConv")
X, W, B = numbers(5, 32), numbers(32, 48), numbers(48)
# Small enough that no softmax decides for one key.
ROWS, PACKED, PACKED_BIAS = numbers(2, 7, 24), numbers(24, 72) / 8, numbers(72) / 8
IMAGE = numbers(1, 3, 8, 8)


LAYERS = {
    "FusedMatMul": (("FusedMatMul", ["x", "w"], {"alpha": 0.5}), X, {"w": W}),
    "FusedMatMul of a transposed weight": (("FusedMatMul", ["x", "w"], {"alpha": -2.0, "transB": 1}), X, {"w": W.T.copy()}),
    "TransposeMatMul": (("TransposeMatMul", ["x", "w"], {"transB": 1}), X, {"w": W.T.copy()}),
    "FusedGemm": (("FusedGemm", ["x", "w", "b"], {"activation": "Relu", "alpha": 3.0}), X, {"w": W, "b": B}),
    "FusedGemm of a transposed weight": (
        ("FusedGemm", ["x", "w", "b"], {"activation": "LeakyRelu", "transB": 1}), X, {"w": W.T.copy(), "b": B},
    ),
    "GemmFastGelu": (("GemmFastGelu", ["x", "w", "b"], {}), X, {"w": W, "b": B}),
    "GemmFastGelu without bias": (("GemmFastGelu", ["x", "w"], {}), X, {"w": W}),
    "Attention": (("Attention", ["x", "w", "b"], {"num_heads": 3}), ROWS, {"w": PACKED, "b": PACKED_BIAS}),
    "Attention without bias": (("Attention", ["x", "w"], {"num_heads": 3}), ROWS, {"w": PACKED}),
    "causal Attention": (("Attention", ["x", "w", "b"], {"num_heads": 3, "unidirectional": 1}), ROWS, {"w": PACKED, "b": PACKED_BIAS}),
    "Attention with narrow values": (
        ("Attention", ["x", "w", "b"], {"num_heads": 3, "qkv_hidden_sizes": [24, 24, 12]}),
        ROWS,
        {"w": PACKED[:, :60].copy(), "b": PACKED_BIAS[:60].copy()},
    ),
    "FusedConv": (("FusedConv", ["x", "w"], {"activation": "Relu", "pads": [1] * 4}), IMAGE, {"w": numbers(6, 3, 3, 3)}),
}  # fmt: skip


def lowered_ops(model) -> Counter:
    return Counter(node.op_type for node in pipeline.lowered(clone(model.graph)).walk_nodes())


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_a_fused_layer_is_quantized(name, per_channel, tmp_path):
    node, x, weights = LAYERS[name]
    model = made([node], {"x": x}, weights)
    kind = "Conv" if "Conv" in name else "Linear"
    quantized = model.quantize_dynamic({kind}, per_channel=per_channel)
    (layer,) = quantized.report.layers
    assert (layer.kind, layer.name, layer.op_type) == (kind, f"the_{node[0]}", node[0])
    assert layer.bytes_before == weights["w"].nbytes
    assert layer.scheme == ("per_channel_affine" if per_channel else "per_tensor_affine")
    assert not quantized.report.skipped
    assert f"DynamicQuantized{kind}" in str(quantized)
    assert lowered_ops(quantized)[f"DynamicQuantized{kind}"] == 1
    if kind == "Linear":
        k, n = weights["w"].shape[::-1] if "transposed" in name or "Transpose" in name else weights["w"].shape
        assert layer.shape == (k, n)
        printed = node[2].get("qkv_hidden_sizes", [n // 3] * 3) if node[0] == "Attention" else [n]
        assert re.findall(rf"in_features={k}, out_features=(\d+)", str(quantized)) == list(map(str, printed))
    expected, got = model.run({"x": x})["y"], quantized.run({"x": x})["y"]
    assert 0 < np.abs(got - expected).max() < 0.06 * np.abs(expected).max()
    # The file has the operator that was there, and a standard one that restores its weight.
    path = tmp_path / "m.onnx"
    quantized.save(path)
    saved = onnx.load(path)
    assert [n.op_type for n in saved.graph.node] == ["DequantizeLinear", node[0]]
    assert {o.domain: o.version for o in saved.opset_import} == {"": 17, MS: 1}
    again = qruntime.load(path)
    np.testing.assert_array_equal(again.run({"x": x})["y"], got)
    assert again.report.layers[0]._replace(snr_db=layer.snr_db) == layer
    # Each row by itself gives the same bits.
    if kind == "Linear":
        np.testing.assert_array_equal(quantized.run({"x": x[1:2]})["y"], got[1:2])


@pytest.mark.parametrize("name", LAYERS)
def test_a_fused_layer_is_stored_in_half_precision(name):
    node, x, weights = LAYERS[name]
    model = made([node], {"x": x}, weights)
    half = model.quantize_dynamic({"Conv", "Linear"}, dtype="float16")
    assert [layer.scheme for layer in half.report.layers] == ["float16"]
    expected = model.run({"x": x})["y"]
    assert np.abs(half.run({"x": x})["y"] - expected).max() < 4e-3 * np.abs(expected).max()


def test_a_fused_layer_is_the_layer_that_it_was_made_of():
    plain = made([("MatMul", ["x", "w"], {})], {"x": X}, {"w": W}).quantize_dynamic(per_channel=True)
    for node, w in ((("FusedMatMul", ["x", "w"], {}), W), (("FusedMatMul", ["x", "w"], {"transB": 1}), W.T.copy())):
        fused = made([node], {"x": X}, {"w": w}).quantize_dynamic(per_channel=True)
        np.testing.assert_array_equal(fused.run({"x": X})["y"], plain.run({"x": X})["y"])
        made_of, layer = (model.report.layers[0]._replace(name="", op_type="", snr_db=0.0) for model in (plain, fused))
        assert layer == made_of


@pytest.mark.parametrize("attributes", [{}, {"unidirectional": 1}, {"scale": 0.3}])
@pytest.mark.parametrize("masked", [(), (2,), (2, 11), (2, 7, 11)])
def test_attention_with_a_past(attributes, masked):
    past = numbers(2, 2, 3, 4, 8)
    mask = {} if not masked else {"m": RNG.integers(5, 11, masked) if masked == (2,) else RNG.integers(0, 2, masked)}
    mask = {name: a.astype(np.int32) for name, a in mask.items()}
    inputs = {"x": ROWS, **mask, "p": past}
    node = ("Attention", ["x", "w", "b", "m" if mask else "", "p"], {"num_heads": 3, **attributes})
    model = made([node], inputs, {"w": PACKED, "b": PACKED_BIAS}, outputs=("y", "present"))
    ops = lowered_ops(model)
    assert ops["Linear"] == 1
    assert ops["MultiHeadAttention"] == 1
    spec = qruntime.ops.registry.find(MS, "Attention", 1)
    expected = spec(ROWS, PACKED, PACKED_BIAS, mask.get("m"), past, num_heads=3, **attributes)
    for got, wanted in zip(model.run(inputs).values(), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
    quantized = model.quantize_dynamic()
    assert len(quantized.report.layers) == 1
    assert lowered_ops(quantized)["DynamicQuantizedLinear"] == 1
    assert np.abs(quantized.run(inputs)["present"] - expected[1]).max() < 0.05 * np.abs(expected[1]).max()


@pytest.mark.parametrize(
    ("node", "x", "weights", "reason"),
    [
        (("FusedMatMul", ["w", "x"], {}), numbers(32, 4), {"w": W.T.copy()}, "left-hand side"),
        (("FusedMatMul", ["x", "w"], {"transA": 1}), X.T.copy(), {"w": W}, "transposed"),
        (("FusedMatMul", ["x", "w"], {}), numbers(3, 5, 32), {"w": numbers(3, 32, 48)}, "rank 3"),
        (("FusedGemm", ["x", "w"], {"transA": 1}), X.T.copy(), {"w": W}, "transposed"),
        (("Einsum", ["x", "w"], {"equation": "nbk,nkj->nbj"}), numbers(3, 5, 32), {"w": numbers(3, 32, 48)}, "no product of rows"),
        (("Einsum", ["x", "w"], {"equation": "ab,bc,cd->ad"}), numbers(4, 70), {"w": numbers(70, 70)}, "two operands"),
        (("DeformConv", ["x", "w", "o"], {}), numbers(1, 8, 4, 4), {"w": numbers(512, 8, 1, 1), "o": numbers(1, 2, 4, 4)}, "DeformConv"),
    ],
)
def test_what_stays_float_is_in_the_report(node, x, weights, reason):
    if node[2].get("equation", "").count(",") == 2:
        node = (node[0], ["x", "w", "w"], node[2])
    model = made([node], {"x": x}, weights)
    quantized = model.quantize_dynamic({"Linear", "Conv"})
    assert not quantized.report.layers
    (skipped,) = quantized.report.skipped
    assert skipped.name == f"the_{node[0]}"
    assert reason in skipped.reason
    assert reason in quantized.summary()
    with pytest.raises(qruntime.QuantizationError, match="strict=True"):
        model.quantize_dynamic({"Linear", "Conv"}, strict=True)
    assert "not selected" in model.quantize_dynamic({"LSTM"}).report.skipped[0].reason


def test_tables_of_a_fused_embedding_are_in_the_report():
    ids = np.array([[1, 2, 3]], np.int32)
    tables = {"t": numbers(300, 16), "p": numbers(8, 16), "g": numbers(16), "b": numbers(16)}
    node = ("EmbedLayerNormalization", ["x", "", "t", "p", "", "g", "b"], {})
    model = made([node], {"x": ids}, tables, outputs=("y", "i"))
    assert [s.op_type for s in model.quantize_dynamic().report.skipped] == ["EmbedLayerNormalization"]
    (skipped,) = model.quantize_dynamic(dtype="quint8").report.skipped
    assert skipped.reason == "there is no quantized form of EmbedLayerNormalization"


def test_every_form_is_of_an_operator_that_runs_here():
    assert FORMS.keys() <= MODULES.keys()


def test_products_of_activations_are_no_news():
    inputs = {"x": numbers(2, 3, 4), "w": numbers(2, 4, 5)}
    einsum = made([("Einsum", ["x", "w"], {"equation": "bij,bjk->bik"})], inputs, {})
    assert not einsum.quantize_dynamic(strict=True).report.skipped
    for attributes in ({"alpha": 2.0}, {"transA": 1, "transB": 1}, {"transBatchA": 1, "transBatchB": 1}):
        fused = made([("FusedMatMul", ["x", "w"], attributes)], inputs, {})
        assert [s.reason for s in fused.quantize_dynamic(strict=True).report.skipped] == ["both inputs are computed"]


def test_names_and_operators_select_fused_layers():
    node, x, weights = LAYERS["FusedMatMul"]
    model = made([node], {"x": x}, weights)
    for chosen in ("the_FusedMatMul", "FusedMatMul", "Linear"):
        assert len(model.quantize_dynamic({chosen}).report.layers) == 1
        assert not model.quantize_dynamic(exclude=[chosen]).report.layers


def test_a_float_file_keeps_its_fused_operators(tmp_path):
    node, x, weights = LAYERS["Attention"]
    made([node], {"x": x}, weights).save(tmp_path / "m.onnx")
    assert [n.op_type for n in onnx.load(tmp_path / "m.onnx").graph.node] == ["Attention"]
