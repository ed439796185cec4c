"""quantize_dynamic on every kind of layer: numbers, what is left alone, the saved form, the report."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import qruntime
from qruntime import QuantizationError
from qruntime.quantization import default_dynamic_qconfig
from tests.small_models import (
    FLOAT,
    assert_same_bits,
    encoder_bytes,
    linear_bytes,
    model_bytes,
    random,
    recurrent_bytes,
)


def gemm_bytes(
    m: int = 5, k: int = 24, n: int = 10, *, bias: tuple[int, ...] | None = None, opset: int = 17, **attributes: object
) -> bytes:
    trans_a, trans_b = attributes.get("transA", 0), attributes.get("transB", 0)
    weights = {"w": random(*((n, k) if trans_b else (k, n)))}
    if bias is not None:
        weights["b"] = random(*bias, seed=1)
    node = helper.make_node("Gemm", ["x", *weights], ["y"], name="/fc/Gemm", **attributes)
    return model_bytes([node], [("x", FLOAT, ["k", "m"] if trans_a else ["m", k])], [("y", FLOAT, ["m", n])], weights, opset)


def dynamic_reference(x: np.ndarray, w: np.ndarray, *, per_channel: bool = False, per_tensor_x: bool = False) -> np.ndarray:
    """x @ w in float64 over the integers of both: what the definition of dynamic quantization says."""
    amax = np.abs(w).max(axis=0) if per_channel else np.abs(w).max()
    w_scale = np.where(amax == 0, 1, amax / np.float32(127.5)).astype(np.float32)
    wq = np.clip(np.rint(w / w_scale), -127, 127).astype(np.float64)
    axis = None if per_tensor_x else -1
    low = np.minimum(x.min(axis=axis, keepdims=True), 0)
    high = np.maximum(x.max(axis=axis, keepdims=True), 0)
    scale = ((high - low) / np.float32(255)).astype(np.float32)
    scale = np.where(scale == 0, np.float32(1), scale)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    xq = np.clip(np.rint(x / scale) + zero, 0, 255) - zero
    return (xq.astype(np.float64) @ wq) * scale.astype(np.float64) * w_scale.astype(np.float64)


def assert_one_code_apart(y: np.ndarray, expected: np.ndarray, x: np.ndarray, w: np.ndarray) -> None:
    """Rounding at a tie may fall either way: at most one activation code, times the largest weight, per output."""
    step = (x.max() - min(x.min(), 0)) / 255 * np.abs(w).max()
    np.testing.assert_allclose(y, expected, rtol=0, atol=step + 1e-5)
    assert np.median(np.abs(y - expected)) < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("activation", ["per_token", "per_tensor"])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("shape", [(1, 16), (9, 16), (2, 3, 16)])
def test_matmul_is_the_integer_product(shape: tuple[int, ...], per_channel: bool, activation: str):
    w = random(16, 8) * np.linspace(0.1, 3, 8, dtype=np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    data = model_bytes([node], [("x", FLOAT, [None] * len(shape))], [("y", FLOAT, None)], {"w": w})
    x = random(*shape, seed=3)
    y = qruntime.load(data).quantize_dynamic(per_channel=per_channel, activation=activation)(x)
    expected = dynamic_reference(x, w, per_channel=per_channel, per_tensor_x=activation == "per_tensor")
    assert_one_code_apart(y, expected, x, w)


def test_per_tensor_activations_see_the_whole_batch():
    model = qruntime.load(linear_bytes()).quantize_dynamic(activation="per_tensor")
    x = random(3, 16)
    x[2] *= 50
    assert not np.array_equal(model(x)[:2], model(x[:2]))


@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("beta", [1.0, 2.0])
@pytest.mark.parametrize("bias", [None, (10,), (1, 10), (1,), (), (5, 1), (5, 10)], ids=str)
def test_gemm(trans_b: int, alpha: float, beta: float, bias: tuple[int, ...] | None):
    model = qruntime.load(gemm_bytes(transB=trans_b, alpha=alpha, beta=beta, bias=bias))
    x = random(5, 24, seed=3)
    w = random(10, 24).T if trans_b else random(24, 10)
    expected = alpha * (x.astype(np.float64) @ w) + (0 if bias is None else beta * random(*bias, seed=1))
    np.testing.assert_allclose(model(x), expected, rtol=0, atol=24 * np.finfo(np.float32).eps * np.abs(expected).max())
    for per_channel in (False, True):
        quantized = model.quantize_dynamic(per_channel=per_channel)
        assert len(quantized.report.layers) == 1
        y = quantized(x)
        assert y.dtype == np.float32
        assert 1e-5 < np.abs(y - expected).max() < 0.03 * np.abs(expected).max()


def test_gemm_with_a_transposed_left_side_is_skipped():
    model = qruntime.load(gemm_bytes(transA=1)).quantize_dynamic()
    assert not model.report.layers
    assert [(s.name, s.reason) for s in model.report.skipped] == [("/fc/Gemm", "the left-hand side is transposed")]
    x = random(24, 5)
    assert_same_bits(model(x), qruntime.load(gemm_bytes(transA=1))(x))


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers(op: str, per_channel: bool, bias: bool, directions: int):
    model = qruntime.load(recurrent_bytes(op, 12, 16, directions=directions, bias=bias))
    quantized = model.quantize_dynamic(per_channel=per_channel)
    (layer,) = quantized.report.layers
    assert (layer.op_type, layer.kind, layer.shape) == (op, op, (12, 16))
    x = random(6, 3, 12, seed=5)
    for y, expected in zip(quantized(x), model(x), strict=True):
        assert 0 < np.abs(y - expected).max() < 0.1  # activations are bounded by 1


def both_branches_bytes() -> bytes:
    """If(flag): x @ w else: x @ w @ w, the weight shared from outside, and one of the branch's own."""
    then_w = random(8, 8, seed=4)
    then = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["t"], name="then1"), helper.make_node("MatMul", ["t", "own"], ["then_y"], name="then2")],
        "then", [], [helper.make_tensor_value_info("then_y", FLOAT, None)], [numpy_helper.from_array(then_w, "own")],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["else_y"], name="else1")],
        "else",
        [],
        [helper.make_tensor_value_info("else_y", FLOAT, None)],
    )
    node = helper.make_node("If", ["flag"], ["y"], then_branch=then, else_branch=other)
    infos = [("flag", TensorProto.BOOL, []), ("x", FLOAT, ["n", 8])]
    return model_bytes([node], infos, [("y", FLOAT, ["n", 8])], {"w": random(8, 8)})


def test_subgraphs_are_quantized_too(tmp_path):
    model = qruntime.load(both_branches_bytes())
    quantized = model.quantize_dynamic()
    assert {layer.name for layer in quantized.report.layers} == {"then1", "then2", "else1"}
    x = random(3, 8, seed=9)
    quantized.save(tmp_path / "q.onnx")
    onnx.checker.check_model(str(tmp_path / "q.onnx"), full_check=True)
    again = qruntime.load(tmp_path / "q.onnx")
    for flag in (True, False):
        y, expected = quantized(flag, x), model(flag, x)
        assert 0 < np.abs(y - expected).max() < 0.05 * np.abs(expected).max()
        assert_same_bits(again(flag, x), y)


def test_a_shared_weight_is_stored_once(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["t"], name="first"),
        helper.make_node("MatMul", ["t", "w"], ["y"], name="second"),
    ]
    data = model_bytes(nodes, [("x", FLOAT, ["n", 64])], [("y", FLOAT, ["n", 64])], {"w": random(64, 64)})
    quantized = qruntime.load(data).quantize_dynamic()
    first, second = quantized.report.layers
    assert (first.shared, second.shared) == (False, True)
    assert quantized.report.bytes_before == 64 * 64 * 4
    assert quantized.report.bytes_after == 64 * 64 + 4
    quantized.save(tmp_path / "q.onnx")
    stored = onnx.load(tmp_path / "q.onnx").graph.initializer
    assert [t.data_type for t in stored].count(TensorProto.INT8) <= 2  # the codes and their zero point
    assert (tmp_path / "q.onnx").stat().st_size < 64 * 64 * 1.5


CASES = {
    "matmul": lambda opset: linear_bytes(24, 10, opset=opset),
    "gemm": lambda opset: gemm_bytes(opset=opset, bias=(10,), transB=1),
    "gemm rows": lambda opset: gemm_bytes(opset=opset, bias=(10,)),
    "lstm": lambda opset: recurrent_bytes("LSTM", 24, 6, directions=2, opset=opset),
    "gru": lambda opset: recurrent_bytes("GRU", 24, 6, opset=opset),
    "rnn": lambda opset: recurrent_bytes("RNN", 24, 6, opset=opset),
}


@pytest.mark.parametrize("opset", [7, 9, 10, 11, 13, 14, 17, 19, 21, 23])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_saved_models_are_valid_and_the_same(case: str, per_channel: bool, opset: int, tmp_path):
    quantized = qruntime.load(CASES[case](opset)).quantize_dynamic(per_channel=per_channel)
    assert len(quantized.report.layers) == 1
    path = tmp_path / "q.onnx"
    quantized.save(path)
    onnx.checker.check_model(str(path), full_check=True)
    stored = onnx.load(path)
    assert [o.version for o in stored.opset_import if not o.domain] == [opset]
    assert all(not node.domain for node in stored.graph.node)
    again = qruntime.load(path)
    x = random(*([6, 3, 24] if case in ("lstm", "gru", "rnn") else [5, 24]), seed=3)
    for a, b in zip(_tuple(again(x)), _tuple(quantized(x)), strict=True):
        assert_same_bits(a, b)
    # Saving what was loaded loses nothing either, nor does quantizing it once more.
    again.save(tmp_path / "again.onnx")
    assert_same_bits(_tuple(qruntime.load(tmp_path / "again.onnx")(x))[0], _tuple(quantized(x))[0])
    twice = again.quantize_dynamic()
    assert_same_bits(_tuple(twice(x))[0], _tuple(quantized(x))[0])


def _tuple(results: object) -> tuple[np.ndarray, ...]:
    return results if isinstance(results, tuple) else (results,)  # type: ignore[return-value]


@pytest.mark.parametrize("opset", [9, 19, 21, 23])
def test_other_runtimes_read_the_saved_form_as_weight_only(opset: int, tmp_path):
    """onnx's own evaluator, which has DequantizeLinear from opset 19 on, multiplies in float."""
    from onnx.reference import ReferenceEvaluator

    model = qruntime.load(linear_bytes(24, 10, opset=opset))
    quantized = model.quantize_dynamic()
    quantized.save(tmp_path / "q.onnx")
    x = random(5, 24, seed=3)
    (y,) = ReferenceEvaluator(str(tmp_path / "q.onnx")).run(None, {"x": x})
    expected = model(x)
    assert 0 < np.abs(y - expected).max() < 0.03 * np.abs(expected).max()


def test_a_reloaded_model_reports_what_is_quantized(tmp_path):
    quantized = qruntime.load(encoder_bytes()).quantize_dynamic()
    quantized.save(tmp_path / "q.onnx")
    again = qruntime.load(tmp_path / "q.onnx")
    assert len(again.report.layers) == len(quantized.report.layers) == 12
    assert again.report.bytes_after == quantized.report.bytes_after
    assert again.report.bytes_before == quantized.report.bytes_before
    for a, b in zip(again.report.layers, quantized.report.layers, strict=True):
        assert (a.name, a.shape, a.scheme) == (b.name, b.shape, b.scheme)
        assert math.isclose(a.snr_db, b.snr_db, abs_tol=0.01)
    assert str(again) == str(quantized)


def two_layers_bytes() -> bytes:
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="/encoder/layer.0/fc/MatMul"),
        helper.make_node("Gemm", ["h", "w2"], ["y"], name="/decoder/out/Gemm"),
    ]
    return model_bytes(nodes, [("x", FLOAT, ["n", 8])], [("y", FLOAT, ["n", 4])], {"w1": random(8, 6), "w2": random(6, 4)})


FIRST, SECOND = "/encoder/layer.0/fc/MatMul", "/decoder/out/Gemm"


class Linear:
    """Stands for torch.nn.Linear: a class known by its name."""


class LSTM:
    """Stands for torch.nn.LSTM."""


@pytest.mark.parametrize(
    ("arguments", "chosen"),
    [
        ({}, [FIRST, SECOND]),
        ({"only": ["MatMul"]}, [FIRST]),
        ({"only": "MatMul"}, [FIRST]),
        ({"only": [FIRST]}, [FIRST]),
        ({"only": ["encoder.layer.0.fc"]}, [FIRST]),
        ({"only": ["encoder"]}, [FIRST]),
        ({"only": ["encoder.*"]}, [FIRST]),
        ({"only": ["*/fc/*"]}, [FIRST]),
        ({"only": ["enc"]}, []),
        ({"only": []}, []),
        ({"exclude": ["decoder"]}, [FIRST]),
        ({"exclude": "Gemm"}, [FIRST]),
        ({"exclude": ["*"]}, []),
        ({"only": ["*"], "exclude": ["encoder"]}, [SECOND]),
        ({"qconfig_spec": {Linear}}, [FIRST, SECOND]),
        ({"qconfig_spec": {"Linear"}}, [FIRST, SECOND]),
        ({"qconfig_spec": {LSTM}}, []),
        ({"qconfig_spec": [Linear, LSTM]}, [FIRST, SECOND]),
        ({"qconfig_spec": {"encoder.layer.0.fc"}}, [FIRST]),
        ({"qconfig_spec": {Linear: default_dynamic_qconfig, "decoder.out": None}}, [FIRST]),
        ({"qconfig_spec": set()}, []),
        ({"only": (pattern for pattern in ["Gemm"])}, [SECOND]),
        ({"exclude": (pattern for pattern in ["Gemm"])}, [FIRST]),
    ],
)
def test_what_is_selected(arguments: dict, chosen: list[str]):
    model = qruntime.load(two_layers_bytes()).quantize_dynamic(**arguments)
    assert [layer.name for layer in model.report.layers] == chosen
    assert sorted([*chosen, *(s.name for s in model.report.skipped)]) == sorted([FIRST, SECOND])
    assert all("select" in s.reason or "exclude" in s.reason for s in model.report.skipped)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "int3"}, "int3"),
        ({"dtype": None}, "None"),
        ({"activation": "per_row"}, "per_token, per_tensor, got 'per_row'"),
        ({"qconfig_spec": "Linear"}, r"\{'Linear'\}"),
        ({"qconfig_spec": {5}}, "cannot select layers by 5"),
        ({"only": [5]}, "cannot select layers by 5"),
        ({"only": ["nothing.like.this"], "strict": True}, "'nothing.like.this'"),
        ({"exclude": ["nothing.like.this"], "strict": True}, "'nothing.like.this'"),
        ({"qconfig_spec": {"Conv"}, "strict": True}, "'Conv'"),
    ],
    ids=str,
)
def test_requests_that_mean_nothing(arguments: dict, message: str):
    model = qruntime.load(two_layers_bytes())
    with pytest.raises(QuantizationError, match=message):
        model.quantize_dynamic(**arguments)
    assert not model.report.layers


def skipping_bytes(kind: str) -> bytes:
    w: np.ndarray = random(8, 6)
    code = FLOAT
    if kind == "float64":
        w, code = w.astype(np.float64), TensorProto.DOUBLE
    elif kind in ("nan", "inf"):
        w[3, 2] = float(kind)
    elif kind == "empty":
        w = w[:0]
    elif kind == "rank 3":
        w = random(2, 8, 6)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")
    return model_bytes([node], [("x", code, ["n", w.shape[-2]])], [("y", code, None)], {"w": w})


SKIPPED = {
    "float64": "float64, need float32",
    "nan": "NaN or infinity",
    "inf": "NaN or infinity",
    "empty": "empty",
    "rank 3": "rank 3, need 2",
}


@pytest.mark.parametrize("kind", SKIPPED)
@pytest.mark.parametrize("per_channel", [False, True])
def test_weights_that_cannot_be_quantized_are_skipped_with_a_reason(kind: str, per_channel: bool):
    model = qruntime.load(skipping_bytes(kind))
    quantized = model.quantize_dynamic(per_channel=per_channel)
    assert not quantized.report.layers
    (skipped,) = quantized.report.skipped
    assert (skipped.name, skipped.op_type) == ("fc", "MatMul")
    assert SKIPPED[kind] in skipped.reason
    assert skipped.reason in quantized.summary()
    (info,) = model.inputs
    x = np.ones((3, info.shape[1] or 0), info.dtype)  # type: ignore[index]
    assert_same_bits(quantized(x), model(x))
    with pytest.raises(QuantizationError, match="fc") as caught:
        model.quantize_dynamic(strict=True, per_channel=per_channel)
    assert "exclude" in str(caught.value)
    model.quantize_dynamic(strict=True, exclude=["fc"])


def test_products_of_two_computed_values_are_no_fault():
    model = qruntime.load(encoder_bytes()).quantize_dynamic(strict=True)
    assert {s.reason for s in model.report.skipped} == {"both inputs are computed"}


def test_a_constant_left_side_is_skipped():
    node = helper.make_node("MatMul", ["w", "x"], ["y"], name="fc")
    model = qruntime.load(model_bytes([node], [("x", FLOAT, [8, "n"])], [("y", FLOAT, None)], {"w": random(6, 8)}))
    assert [s.reason for s in model.quantize_dynamic().report.skipped] == ["the constant is the left-hand side"]


def test_embeddings_and_biases_stay_float(tmp_path):
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        helper.make_node("MatMul", ["x", "w"], ["t"]),
        helper.make_node("Add", ["t", "b"], ["y"]),
    ]
    weights = {"table": random(50, 8), "w": random(8, 4), "b": random(4)}
    data = model_bytes(nodes, [("ids", TensorProto.INT64, ["n"])], [("y", FLOAT, ["n", 4])], weights)
    qruntime.load(data).quantize_dynamic().save(tmp_path / "q.onnx")
    stored = {t.name: t for t in onnx.load(tmp_path / "q.onnx").graph.initializer}
    assert_same_bits(numpy_helper.to_array(stored["table"]), weights["table"])
    assert_same_bits(numpy_helper.to_array(stored["b"]), weights["b"])
    assert "w" not in stored


def test_a_weight_that_is_also_a_table_stays_for_the_table(tmp_path):
    """Tied embeddings: Gather reads the float table, MatMul the int8 codes of its transpose."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        helper.make_node("Transpose", ["table"], ["w"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    data = model_bytes(nodes, [("ids", TensorProto.INT64, ["n"])], [("y", FLOAT, ["n", 50])], {"table": random(50, 8)})
    model = qruntime.load(data)
    quantized = model.quantize_dynamic()
    assert len(quantized.report.layers) == 1
    expected = model([1, 2, 49])
    assert 0 < np.abs(quantized([1, 2, 49]) - expected).max() < 0.05 * np.abs(expected).max()


def test_the_original_model_is_left_alone():
    model = qruntime.load(two_layers_bytes())
    x = random(3, 8, seed=7)
    before = model(x)
    quantized = model.quantize_dynamic()
    assert quantized is not model
    assert_same_bits(model(x), before)
    assert not model.report.layers
    assert not np.array_equal(quantized(x), before)
    assert "Quantized" not in str(model)


def test_inplace_changes_and_returns_the_model():
    model = qruntime.load(two_layers_bytes())
    x = random(3, 8, seed=7)
    before = model(x)
    expected = model.quantize_dynamic()(x)
    assert model.quantize_dynamic(inplace=True) is model
    assert not np.array_equal(model(x), before)
    assert_same_bits(model(x), expected)
    assert_same_bits(model.run({"x": x})["y"], expected)


def test_a_failed_request_leaves_an_inplace_model_alone():
    model = qruntime.load(skipping_bytes("nan"))
    before = str(model)
    x = np.ones((2, 8), np.float32)
    expected = model(x)
    with pytest.raises(QuantizationError):
        model.quantize_dynamic(strict=True, inplace=True)
    assert str(model) == before
    assert_same_bits(model(x), expected)


def test_a_strict_failure_leaves_an_inplace_model_whole():
    """One good layer, one bad: either all or nothing."""
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="good"),
        helper.make_node("MatMul", ["h", "w2"], ["y"], name="bad"),
    ]
    bad = random(6, 4)
    bad[0] = np.nan
    model = qruntime.load(model_bytes(nodes, [("x", FLOAT, ["n", 8])], [("y", FLOAT, ["n", 4])], {"w1": random(8, 6), "w2": bad}))
    with pytest.raises(QuantizationError, match="bad"):
        model.quantize_dynamic(strict=True, inplace=True)
    assert "Quantized" not in str(model)
    assert not model.report.layers


def test_what_the_report_says():
    model = qruntime.load(two_layers_bytes()).quantize_dynamic()
    first, second = model.report.layers
    assert (first.op_type, first.kind, first.shape, first.scheme) == ("MatMul", "Linear", (8, 6), "per_tensor_affine")
    assert (second.op_type, second.shape) == ("Gemm", (6, 4))
    assert first.bytes_before == 8 * 6 * 4
    assert first.bytes_after == 8 * 6 + 4
    assert 30 < first.snr_db < 60
    per_channel = qruntime.load(two_layers_bytes()).quantize_dynamic(per_channel=True).report.layers
    assert per_channel[0].scheme == "per_channel_affine"
    assert per_channel[0].snr_db > first.snr_db


def test_how_models_print():
    text = str(qruntime.load(two_layers_bytes()).quantize_dynamic())
    assert "(fc): DynamicQuantizedLinear(in_features=8, out_features=6, dtype=torch.qint8, qscheme=torch.per_tensor_affine)" in text
    assert "(encoder): Module(" in text
    text = str(qruntime.load(recurrent_bytes("LSTM", 12, 16)).quantize_dynamic())
    assert "DynamicQuantizedLSTM(12, 16" in text


def test_exact_weights_lose_nothing():
    """Weights that are integers up to 127 are their own codes."""
    w = np.arange(-127, 128, dtype=np.float32)[:, None]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = qruntime.load(model_bytes([node], [("x", FLOAT, ["n", 255])], [("y", FLOAT, ["n", 1])], {"w": w})).quantize_dynamic()
    assert model.report.layers[0].snr_db == math.inf
    x = np.eye(255, dtype=np.float32) * 255
    assert_same_bits(model(x), 255 * w)


@pytest.mark.parametrize("magnitude", [0.0, 1e-45, 1e-38, 1e-30, 1e30, 3e38])
def test_weights_of_any_magnitude(magnitude: float):
    w = (np.sign(random(8, 6)) * np.float32(magnitude)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = qruntime.load(model_bytes([node], [("x", FLOAT, ["n", 8])], [("y", FLOAT, ["n", 6])], {"w": w}))
    x = np.eye(8, dtype=np.float32)
    y = model.quantize_dynamic()(x)
    assert np.isfinite(y).all()
    np.testing.assert_allclose(y, w, rtol=0.01, atol=2e-38)
    assert len(model.quantize_dynamic().report.layers) == 1


@pytest.mark.parametrize("magnitude", [1e-30, 1e-10, 1.0, 1e10, 1e30])
def test_signal_to_noise_does_not_depend_on_the_unit(magnitude):
    from qruntime.quantization.rounding import Matrix, quantize

    weight = np.random.default_rng(0).standard_normal((32, 16)).astype(np.float32)
    for form in ({}, {"per_channel": True}, {"range": "mse"}):
        expected = quantize(Matrix(weight, 1), **form).snr_db
        assert 30 < expected < 60
        assert quantize(Matrix(weight * np.float32(magnitude), 1), **form).snr_db == pytest.approx(expected, abs=0.1)
