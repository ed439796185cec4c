"""`model.quantize(scheme=…)`: grids, the files that hold them, and what computes with them."""

from __future__ import annotations

import copy
import pickle
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import qruntime
from qruntime.errors import QuantizationError
from qruntime.ir import clone
from qruntime.ir.formats import FORMATS, FP4, FP8, NF4
from qruntime.ops.linear import dynamic_quantized_linear
from qruntime.passes.stored import decode_what_is_left
from qruntime.quantization.grid import nearest
from qruntime.quantization.scheme import TENSOR, Granularity, Inputs, QArgs, Scheme, parse
from qruntime.runtime.plan import Planner
from tests.small_models import assert_same_bits, model_bytes, random, recurrent_bytes

FLOAT = onnx.TensorProto.FLOAT
WEIGHT_ONLY = [
    "W2A16-g64", "W3A16", "W3A16-g16-sym", "W4A16-g32", "W4A16-tensor", "W4A16-g128-sym", "W5A16-g20", "W6A16", "W7A16-g16", "W8A16",
    "W8A16-g32", "W8A16-asym", "Wnf4A16-g64", "Wfp4A16-g32", "Wfp8A16", "Wovp4A16", "Wovp4A16-g32", "W16A16",
]  # fmt: skip

TWO_LEVEL = ["W3A16-g16-bilevel", "W8A16-asym-bilevel", "W4A16-g32-double", "W8A16-double", "Wnf4A16-g64-double"]


def linear(k: int = 75, n: int = 13, opset: int = 17) -> qruntime.Model:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("Gemm", ["h", "v", "b"], ["y"], name="second", transB=1, alpha=0.5),
    ]
    weights = {"w": random(k, n), "v": random(9, n, seed=1), "b": random(9, seed=2)}
    return qruntime.load(model_bytes(nodes, [("x", FLOAT, ["m", k])], [("y", FLOAT, ["m", 9])], weights, opset=opset))


def stored(model: qruntime.Model, node: int = 0) -> Any:
    return model.graph.nodes[node].input(1).stored


def test_what_a_scheme_says():
    assert parse("W4A16-g128").weights == QArgs(FORMATS["uint4"], Granularity("group", 128), symmetric=False)
    assert parse("w3a16").weights == QArgs(FORMATS["uint3"], symmetric=False)
    assert parse("W8A8").weights == QArgs(FORMATS["int8"])
    static = Inputs(granularity=TENSOR, is_static=True)
    assert (parse("W8A8").inputs, parse("W8A8-static").inputs, parse("W8A16").inputs) == (Inputs(), static, None)
    assert parse("W4A4-KV4") == Scheme(parse("W4A16").weights, Inputs(FORMATS["uint4"]), FORMATS["uint4"])
    assert parse("W6A6-static").inputs == replace(static, format=FORMATS["uint6"])
    assert parse("Wfp4Afp8-g256").inputs == parse("Wnf4Afp8").inputs == Inputs(FP8)
    assert parse("w16a16-kv8") == Scheme(QArgs(FORMATS["float16"], Granularity("tensor")), cache=FORMATS["uint8"])
    assert str(parse("W4A4-KV4")) == "uint4 channel affine weights, uint4 activations per token, uint4 cache"
    assert parse("W4A4").inputs.ranges == "per_token"
    assert static.ranges == "static"
    assert parse("W4A16-sym-tensor").weights == QArgs(FORMATS["int4"], Granularity("tensor"))
    assert [parse(f"W{name}A16-g64").weights.format for name in ("nf4", "fp4", "fp8")] == [NF4, FP4, FP8]
    assert parse(parse("W2A16")) == parse("W2A16")


@pytest.mark.parametrize(
    "text",
    ["", "W4", "W9A16", "W1A16", "W4A16-g8", "W4A16-g64-channel", "W4A16-sym-asym", "W4A16-static", "Wnf4A8", "Wnf4A16-asym", "W4A1",
     "W4A9", "W4Anf4", "W8Afp8-static", "W16A8", "W4A4-KV3", "W4A4-KV4-KV8", "W4A4-KV4-KV4", "W4A16-g", "W4A16-fast",
     "W4A16-sym-sym", "W4A16-g16-sym-bilevel", "Wnf4A16-bilevel", "W4A16-tensor-double", "W4A16-double-bilevel", "W16A16-double",
     "W16A16-f16", "W4A16-f16-pow2", None, 4],
    ids=str,
)  # fmt: skip
def test_schemes_that_mean_nothing(text: Any):
    with pytest.raises(QuantizationError, match=r"scheme|group|granularity|scales"):
        parse(text)


@pytest.mark.parametrize(
    "fields",
    [
        {"format": FORMATS["int8"]}, {"format": NF4}, {"granularity": "channel"}, {"granularity": "cluster", "is_static": True},
        {"clusters": 4}, {"granularity": "cluster", "clusters": -1, "is_static": True}, {"granularity": "cluster", "clusters": 4},
        {"is_static": True}, {"format": FP8, "granularity": "tensor"},
    ],
    ids=str,
)  # fmt: skip
def test_inputs_that_mean_nothing(fields: dict[str, Any]):
    with pytest.raises(QuantizationError, match=r"activations|granularity"):
        Inputs(**fields)


def test_integer_activations_need_weights_whose_products_are_exact():
    with pytest.raises(QuantizationError, match="needs weights of 2 to 8 bits, fp4 or ovp4, got nf4 g64"):
        Scheme(parse("Wnf4A16-g64").weights, Inputs())
    with pytest.raises(QuantizationError, match="got float"):
        Scheme(None, Inputs())


def test_tables_are_those_of_their_standards():
    assert FP4.values.tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for form, dtype in ((FP8, ml_dtypes.float8_e4m3fn), (FORMATS["float8_e5m2"], ml_dtypes.float8_e5m2)):
        np.testing.assert_array_equal(form.values, np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32))
    assert len(set(NF4.values)) == 16
    assert np.all(np.diff(NF4.values) > 0)


@pytest.mark.parametrize("scheme", WEIGHT_ONLY[:-1])
@pytest.mark.parametrize("transposed", [False, True])
def test_codes_are_the_nearest(scheme: str, transposed: bool):
    """No other code of the group is closer, and the least scale reaches every weight."""
    args, w = parse(scheme).weights, random(11, 75)
    assert args is not None
    made = nearest(np.ascontiguousarray(w.T).T if transposed else w, args).stored
    codes, values = made.unpacked(), made.values()
    assert codes.min() >= args.format.qmin
    assert codes.max() <= args.format.qmax
    scale = np.broadcast_to(made.expanded(made.scale), w.shape)
    grid = np.unique(args.format.values[np.isfinite(args.format.values)] if args.format.table else np.arange(-255, 256, dtype=np.float32))
    best = np.abs(w[..., None] / scale[..., None] - grid).min(axis=-1)
    if args.format.is_integer and made.zero_point is not None:
        assert np.abs(w / scale - values).max() <= 1.01  # an end of the range may be cut by the rounded zero point
    else:
        np.testing.assert_allclose(np.abs(w / scale - values), best, atol=1e-4)
    np.testing.assert_array_equal(made.decoded(), values * scale)


STANDARD = {
    19: {"W8A16", "W8A16-asym", "Wfp8A16"},
    21: {"W4A16-g32", "W4A16-tensor", "W4A16-g128-sym", "W8A16-g32"},
    23: {"Wfp4A16-g32"},
    25: {"W2A16-g64"},
}
"""The schemes that DequantizeLinear can say from an opset on."""


@pytest.mark.parametrize("how", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_scheme_that_was_copied_is_the_same(how: Any):
    assert all(how(one) is one for one in FORMATS.values())
    other = how(replace(NF4, name="a table of one's own"))
    assert other.table == NF4.table
    model = qruntime.load(recurrent_bytes("GRU"))  # which takes int8 and no other
    assert len(model.quantize(scheme=how(parse("W8A8"))).report.layers) == 1


@pytest.mark.parametrize("scheme", [*WEIGHT_ONLY, *TWO_LEVEL, "W4A16-g32-f16", "W8A16-f16", "W3A16-pow2"])
@pytest.mark.parametrize("opset", STANDARD)
def test_files_hold_what_they_say(scheme: str, opset: int, tmp_path: Path):
    """Standard operators decode to the same numbers; here the codes come back, and nothing of them is computed at run time."""
    model, x = linear(opset=opset), random(5, 75, seed=3)
    quantized = model.quantize(scheme=scheme)
    y = quantized(x)
    path = tmp_path / "q.onnx"
    quantized.save(path)
    onnx.checker.check_model(str(path), full_check=True)
    again = qruntime.load(path)
    assert_same_bits(again(x), y)
    assert [node.op_type for node in again.graph.nodes] == ["MatMul", "Gemm"]
    for node in (0, 1):
        assert stored(again, node).format is stored(quantized, node).format
        np.testing.assert_array_equal(stored(again, node).unpacked(), stored(quantized, node).unpacked())
        np.testing.assert_array_equal(stored(again, node).decoded(), stored(quantized, node).decoded())
    expected = ReferenceEvaluator(onnx.load(path)).run(None, {"x": x})[0]
    np.testing.assert_allclose(y, expected, atol=2e-5 * np.abs(expected).max())
    used = {node.op_type for node in onnx.load(path).graph.node} - {"MatMul", "Gemm", "Transpose"}
    is_standard = any(scheme in schemes for since, schemes in STANDARD.items() if since <= opset)
    second_is_blocked = scheme == "W8A16-g32" and opset < 21  # 32 of the 13 inputs of the second layer are all of them
    assert scheme == "W16A16" or second_is_blocked or (used == {"DequantizeLinear"}) is is_standard
    rows, before = again.report.layers, quantized.report.layers
    assert [(row.scheme, row.bytes_after) for row in rows] == [(row.scheme, row.bytes_after) for row in before]


@pytest.mark.parametrize("scheme", ["W3A16", "W8A16-asym", "W4A16-g512", "W4A16-g300", "Wnf4A16", "W4A16-g32", "W6A16"])
def test_long_groups_of_lopsided_activations(scheme: str):
    """Sums of one long chain, less a zero point times the sum of a row, would lose digits."""
    model, x = linear(k=1536, n=24), random(4, 1536, seed=8) + np.float32(1)
    quantized = model.quantize(scheme=scheme, exclude=["second"])
    exact = x.astype(np.float64) @ stored(quantized).decoded()
    made = quantized.run({"x": x})["y"]
    second = random(9, 24, seed=1).astype(np.float64).T
    expected = 0.5 * (exact @ second) + random(9, seed=2)
    assert np.abs(made - expected).max() < 5e-6 * (np.abs(exact).max() * np.abs(second).sum(axis=0).max())


BITS = {"W2A16-g64": 2 + 40 / 64, "W3A16-g128": 3 + 40 / 128, "W4A16-g32-sym": 4 + 32 / 32, "W4A16-g32-sym-f16": 4 + 16 / 32,
        "Wnf4A16-g64": 4 + 32 / 64, "W8A16": 8, "W3A16-g16-bilevel": 3 + 6 / 16 + 64 / 256,
        "Wnf4A16-g64-double": 4 + 8 / 64 + 32 / (64 * 256)}  # fmt: skip


@pytest.mark.parametrize(("scheme", "bits"), BITS.items())
@pytest.mark.parametrize("opset", [17, 25])
def test_bits_on_disk(scheme: str, bits: float, opset: int, tmp_path: Path):
    bits -= 6 / 64 if (scheme, opset) == ("W2A16-g64", 25) else 0  # a zero point in 2 bits, not in a byte
    w = random(1024, 512)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    made = qruntime.load(model_bytes(nodes, [("x", FLOAT, ["m", 1024])], [("y", FLOAT, ["m", 512])], {"w": w}, opset=opset))
    made.quantize(scheme=scheme).save(tmp_path / "q.onnx")
    assert (tmp_path / "q.onnx").stat().st_size * 8 / w.size == pytest.approx(bits, rel=0.02)


@pytest.mark.parametrize("scheme", ["W4A8-g32", "W3A8", "W8A8", "W8A8-asym", "Wfp4A8-g16", "W6A8-g64", "W2A8-g64"])
def test_integer_products_with_rows_of_eight_bits(scheme: str, tmp_path: Path):
    """Rows are rounded as everywhere, sums within a group are exact: so the error is that of the rows alone."""
    model, x = linear(), random(6, 75, seed=4)
    quantized, weights_alone = model.quantize(scheme=scheme), model.quantize(scheme=scheme.replace("A8", "A16"))
    y = quantized(x)
    reach = np.abs(stored(quantized).decoded()).sum(axis=0).max() * (x.max() - min(x.min(), 0)) / 255
    assert 0 < np.abs(y - weights_alone(x)).max() < 2 * reach
    assert_same_bits(quantized(x[2:3]), y[2:3])
    quantized.save(tmp_path / "q.onnx")
    assert_same_bits(qruntime.load(tmp_path / "q.onnx")(x), y)


@pytest.mark.parametrize("scheme", ["W4A8-g32", "W4A8-g32-sym", "W3A8", "W2A8-g64", "W6A8-g64", "W8A8-g32", "Wfp4A8-g16"])
def test_a_kernel_has_the_bits_of_the_definition(scheme: str):
    """Two layers that read the same rows, which are quantized once for both."""
    nodes = [helper.make_node("MatMul", ["x", weight], [output]) for weight, output in (("w", "y"), ("v", "z"))]
    weights = {"w": random(75, 13), "v": random(75, 40, seed=1)}
    outputs = [("y", FLOAT, ["m", 13]), ("z", FLOAT, ["m", 40])]
    quantized = qruntime.load(model_bytes(nodes, [("x", FLOAT, ["m", 75])], outputs, weights)).quantize(scheme=scheme)
    x = random(6, 75, seed=4)
    for i, got in enumerate(quantized(x)):
        assert_same_bits(got, dynamic_quantized_linear(x, stored(quantized, i), None))
    (node,) = quantized.profile({"x": x}, repeat=1).nodes
    assert (node.op_type, node.kernel) == ("MergedDynamicQuantizedLinear", "linear_nbits_q8")


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("scheme", ["W4A16-g16", "W3A16", "Wnf4A16-g16", "W5A16-g20", "W8A16", "W8A8"])
def test_recurrent_layers(op: str, scheme: str, tmp_path: Path):
    model, x = qruntime.load(recurrent_bytes(op, 20, 24, directions=2)), random(5, 3, 20, seed=5)
    quantized = model.quantize(scheme=scheme)
    (row,) = quantized.report.layers
    assert row.kind == op
    outputs = quantized(x)
    quantized.save(tmp_path / "q.onnx")
    again = qruntime.load(tmp_path / "q.onnx")
    assert [node.op_type for node in again.graph.nodes] == [op]
    (call,) = again._plan(tuple(again.graph.output_names)).nodes
    assert call.source == "native"
    if "A16" in scheme:
        graph = clone(quantized.graph)
        decode_what_is_left(graph)
        for y, expected in zip(outputs, Planner(graph, num_threads=1).plan().executable.run([x]), strict=True):
            np.testing.assert_allclose(y, expected, atol=2e-6)
    for y, z in zip(outputs, again(x), strict=True):
        assert_same_bits(y, z)


def test_embeddings_and_convolutions_are_quantized_where_they_are_named(tmp_path: Path):
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], name="look_up"),
        helper.make_node("Transpose", ["rows"], ["image"], perm=[0, 2, 1]),
        helper.make_node("Conv", ["image", "filter"], ["y"], name="conv"),
    ]
    weights = {"table": random(40, 24), "filter": random(6, 24, 3, seed=1)}
    model = qruntime.load(model_bytes(nodes, [("ids", onnx.TensorProto.INT64, ["b", "s"])], [("y", FLOAT, ["b", 6, "t"])], weights))
    assert not model.quantize().report.layers
    quantized = model.quantize(overrides={"Embedding": "W4A16-g16", "Conv": "W4A16"})
    rows = [(row.kind, row.scheme) for row in quantized.report.layers]
    assert rows == [("Embedding", "uint4 g16 affine"), ("Conv", "uint4 channel affine")]
    ids = np.arange(12).reshape(2, 6)
    y = quantized(ids)
    quantized.save(tmp_path / "q.onnx")
    assert_same_bits(qruntime.load(tmp_path / "q.onnx")(ids), y)
    table = quantized.graph.nodes[0].input(0).stored.decoded()
    filters = quantized.graph.nodes[2].input(1).stored.decoded()
    expected = sum(np.einsum("bsc,oc->bos", table[ids][:, t : t + 4], filters[:, :, t]) for t in range(3))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    (skipped,) = (s for s in model.quantize(overrides={"Conv": "W4A16-g16"}).report.skipped if s.name == "conv")
    assert "not groups" in skipped.reason


def test_static_activations(tmp_path: Path):
    """Ranges are those of the data, integers those of the definitions, and a file other runtimes read says the same."""
    model = linear()
    data = [{"x": random(7, 75, seed=seed)} for seed in range(4)]
    quantized = model.quantize(scheme="W8A8-static", data=data)
    pair = ["QuantizeLinear", "DequantizeLinear"]
    assert [node.op_type for node in quantized.graph.nodes] == [*pair, "MatMul", *pair, "Gemm"]
    scale, zero_point = (quantized.graph.nodes[0].input(i).data for i in (1, 2))
    every = np.concatenate([feed["x"] for feed in data])
    assert scale == np.float32((float(every.max()) - float(every.min())) / 255)
    assert zero_point == np.rint(-float(every.min()) / float(scale))
    x = random(5, 75, seed=9)
    y = quantized(x)
    path = tmp_path / "q.onnx"
    quantized.save(path)
    onnx.checker.check_model(str(path), full_check=True)
    again = qruntime.load(path)
    assert_same_bits(again(x), y)
    expected = model(x)
    assert 0 < np.abs(y - expected).max() < 0.05 * np.abs(expected).max()
    assert all(call.source == "native" for call in again._plan(("y",)).nodes)
    assert_same_bits(quantized(x[1:2]), y[1:2])
    folder = tmp_path / "calibration"
    folder.mkdir()
    for i, feed in enumerate(data):
        np.savez(folder / f"{i}.npz", **feed)
    for source in (iter(data), lambda: iter(data), folder, str(folder)):
        assert_same_bits(model.quantize(scheme="W8A8-static", data=source)(x), y)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "no feed"), ([{"z": 1}], "data\\[0\\]: unknown input 'z'"), ([{}], "missing input 'x'"), (5, "data must be"),
        ([{"x": np.zeros((2, 4), np.float32)}], "data\\[0\\]: input 'x'"), ([3], "data\\[0\\] must be a mapping"),
        ([{"x": np.full((2, 75), np.nan, np.float32)}], "makes NaN or infinity of 'x'"), ("/nowhere.npz", "cannot read .*/nowhere.npz"),
    ],
)  # fmt: skip
def test_data_that_do_not_fit(data: Any, message: str):
    with pytest.raises(QuantizationError, match=message):
        linear().quantize(scheme="W8A8-static", data=data)


def test_overrides_only_and_exclude():
    model = linear()
    mixed = model.quantize(scheme="W4A16-g32", overrides={"second": "W8A8"})
    assert [row.scheme for row in mixed.report.layers] == ["uint4 g32 affine", "per_channel_affine"]
    assert [row.name for row in model.quantize(overrides={"second": None}).report.layers] == ["first"]
    assert [row.name for row in model.quantize(only=["second"]).report.layers] == ["second"]
    assert [row.name for row in model.quantize(exclude=["second"]).report.layers] == ["first"]
    again = mixed.quantize(scheme="W3A16", only=["first"])
    assert [row.scheme for row in again.report.layers] == ["per_channel_affine", "uint3 channel affine"]
    assert again.report.kept == ("second",)
    with pytest.raises(QuantizationError, match="third"):
        model.quantize(exclude=["third"], strict=True)


def test_requests_that_cannot_be():
    model = linear()
    with pytest.raises(QuantizationError, match="data="):
        model.quantize(scheme="W8A8-static")
    with pytest.raises(QuantizationError, match="is no recipe; there are RTN, "):
        model.quantize("magic")
    with pytest.raises(QuantizationError, match="overrides"):
        model.quantize(overrides=["first"])  # type: ignore[arg-type]
    old = linear(opset=11)
    with pytest.raises(qruntime.SaveError, match="opset 13"):
        old.quantize(scheme="W3A16").save("/dev/null")


def test_a_weight_that_is_no_number_stays():
    w = random(32, 8)
    w[3, 4] = np.nan
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="fc")]
    model = qruntime.load(model_bytes(nodes, [("x", FLOAT, ["m", 32])], [("y", FLOAT, ["m", 8])], {"w": w}))
    (skipped,) = model.quantize(scheme="W4A16-g16").report.skipped
    assert skipped.reason == "the weight holds NaN or infinity"


def hostile(change: Any) -> bytes:
    """A saved file with one attribute or initializer of its call changed."""
    made = linear()
    path = Path(tempfile.mkdtemp()) / "hostile.onnx"
    made.quantize(scheme="W4A16-g16").save(path)
    proto = onnx.load(path)
    path.unlink()
    change(proto)
    return proto.SerializeToString()


def _retype(proto: onnx.ModelProto, name: str, value: Any) -> None:
    _attribute(proto, name).CopyFrom(helper.make_attribute(name, value))


def _replace(proto: onnx.ModelProto, suffix: str, data: np.ndarray) -> None:
    tensor = next(t for t in proto.graph.initializer if t.name.endswith(suffix))
    tensor.CopyFrom(numpy_helper.from_array(data, tensor.name))


@pytest.mark.parametrize(
    "change",
    [
        lambda p: _attribute(p, "shape").ints.__setitem__(0, 1 << 40),
        lambda p: _attribute(p, "shape").ints.__setitem__(1, -4),
        lambda p: setattr(_attribute(p, "bits"), "i", 3),
        lambda p: setattr(_attribute(p, "block_size"), "i", 0),
        lambda p: setattr(_attribute(p, "format"), "s", b"int99"),
        lambda p: setattr(_attribute(p, "format"), "s", b"nf4"),
        lambda p: _retype(p, "shape", 3.5),
        lambda p: _retype(p, "block_size", "long"),
        lambda p: _retype(p, "format", [1, 2]),
        lambda p: _replace(p, "_quantized", np.zeros(3, np.uint8)),
        lambda p: _replace(p, "_scale", np.ones((2, 2), np.float32)),
    ],
    ids=range(11),
)
def test_calls_that_lie_are_refused(change: Any):
    with pytest.raises(qruntime.QRuntimeError):
        qruntime.load(hostile(change)).run({"x": random(2, 75)})


def _attribute(proto: onnx.ModelProto, name: str) -> onnx.AttributeProto:
    call = next(node for node in proto.graph.node if node.op_type == "DequantizeAffine")
    return next(a for a in call.attribute if a.name == name)
