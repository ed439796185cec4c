"""Embedding tables in 8 and 4 bits: numbers, the stored form, the kernel, what is refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

import qruntime
from qruntime import QuantizationError, _kernels
from qruntime.ops import registry
from qruntime.quantization import (
    default_dynamic_qconfig,
    default_float_qparams_observer,
    default_float_qparams_observer_4bit,
    float_qparams_weight_only_qconfig,
)
from qruntime.quantization.torch_names.arithmetic import quantize_rows
from tests.small_models import FLOAT, assert_same_bits, model_bytes, random

BITS = {"quint8": 8, "quint4x2": 4}


def lookup(table: np.ndarray, *, opset: int = 17, indices: int = TensorProto.INT64, **attributes: int) -> bytes:
    node = helper.make_node("Gather", ["table", "ids"], ["rows"], name="/embed/Gather", **attributes)
    nodes = [node, helper.make_node("MatMul", ["rows", "w"], ["y"], name="/fc/MatMul")]
    weights = {"table": table, "w": random(table.shape[1], 3)}
    outputs = [("y", FLOAT, ["n", "t", 3]), ("rows", FLOAT, ["n", "t", table.shape[1]])]
    return model_bytes(nodes, [("ids", indices, ["n", "t"])], outputs, weights, opset)


@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("opset", [7, 11, 13, 17, 21, 23])
def test_rows_are_close_and_the_file_is_small_and_valid(dtype: str, opset: int, tmp_path):
    table = random(500, 64) * np.linspace(0.1, 10, 500, dtype=np.float32)[:, None] + 3
    model = qruntime.load(lookup(table, opset=opset))
    quantized = model.quantize_dynamic(dtype=dtype)
    ids = np.random.default_rng(0).integers(-500, 500, (4, 7))
    rows = quantized(ids)[1]
    step = (table.max(axis=1) - table.min(axis=1)) / (2 ** BITS[dtype] - 1)
    assert np.all(np.abs(rows - table[ids]) <= 0.501 * step[ids][..., None])
    path = tmp_path / "q.onnx"
    quantized.save(path)
    onnx.checker.check_model(str(path), full_check=True)
    assert path.stat().st_size < table.nbytes * (BITS[dtype] / 32 + 8 / 256) + 3000
    again = qruntime.load(path)
    for a, b in zip(again(ids), quantized(ids), strict=True):
        assert_same_bits(a, b)
    assert str(again) == str(quantized)
    (layer,), (before,) = again.report.layers, quantized.report.layers
    assert layer == before._replace(snr_db=layer.snr_db)
    assert abs(layer.snr_db - before.snr_db) < 0.01
    if opset >= 13:
        assert_same_bits(ReferenceEvaluator(str(path)).run(None, {"ids": ids % 500})[1], quantized(ids % 500)[1])


@pytest.mark.parametrize("dtype", BITS)
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_rows_of_narrow_floats_keep_their_type(kind: str, dtype: str, tmp_path):
    narrow = np.dtype(np.float16) if kind == "float16" else np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    code = TensorProto.FLOAT16 if kind == "float16" else TensorProto.BFLOAT16
    table, ids = random(50, 16).astype(narrow), np.array([[-1, 0], [7, 49]])
    node = helper.make_node("Gather", ["table", "ids"], ["y"], name="/embed/Gather")
    data = model_bytes([node], [("ids", TensorProto.INT64, ["n", "t"])], [("y", code, ["n", "t", 16])], {"table": table}, 17)
    quantized = qruntime.load(data).quantize_dynamic(dtype=dtype)
    q, scale, offset, _ = quantize_rows(
        table.astype(np.float32), default_float_qparams_observer if dtype == "quint8" else default_float_qparams_observer_4bit
    )
    assert_same_bits(quantized(ids), (q[ids] * scale[ids] + offset[ids]).astype(narrow))
    quantized.save(tmp_path / "q.onnx")
    onnx.checker.check_model(str(tmp_path / "q.onnx"), full_check=True)
    again = qruntime.load(tmp_path / "q.onnx")
    assert_same_bits(again(ids), quantized(ids))
    (layer,), (before,) = again.report.layers, quantized.report.layers
    assert layer == before._replace(snr_db=layer.snr_db)
    assert layer.bytes_before == table.nbytes


def test_printing_and_one_native_node():
    quantized = qruntime.load(lookup(random(30, 8))).quantize_dynamic(dtype="quint8")
    assert (
        "(embed): QuantizedEmbedding(num_embeddings=30, embedding_dim=8, dtype=torch.quint8,"
        " qscheme=torch.per_channel_affine_float_qparams)"
    ) in str(quantized)
    assert "(embed): Embedding(30, 8)" in str(qruntime.load(lookup(random(30, 8))))
    assert "nodes: 2 native" in quantized.summary()


def test_with_linear_layers_in_one_call():
    model = qruntime.load(lookup(random(30, 8)))
    spec = {"Embedding": float_qparams_weight_only_qconfig, "Linear": default_dynamic_qconfig}
    assert {layer.kind for layer in model.quantize_dynamic(spec).report.layers} == {"Embedding", "Linear"}
    twice = model.quantize_dynamic().quantize_dynamic(dtype="quint8")
    assert {layer.kind for layer in twice.report.layers} == {"Embedding", "Linear"}
    ids = np.arange(6).reshape(2, 3)
    assert_same_bits(twice(ids)[0], model.quantize_dynamic(spec)(ids)[0])


def test_a_table_read_twice_counts_once():
    nodes = [helper.make_node("Gather", ["table", name], [f"{name}_rows"], name=name) for name in ("a", "b")]
    infos = [(name, TensorProto.INT64, ["n"]) for name in ("a", "b")]
    data = model_bytes(nodes, infos, [("a_rows", FLOAT, None), ("b_rows", FLOAT, None)], {"table": random(40, 8)})
    quantized = qruntime.load(data).quantize_dynamic(dtype="quint8")
    assert [layer.shared for layer in quantized.report.layers] == [False, True]
    assert quantized.report.bytes_before == 40 * 8 * 4
    assert quantized.report.bytes_after == 40 * (8 + 8)


@pytest.mark.parametrize("values", [0.0, 5.0, -1e-9, 1e30])
def test_constant_rows(values: float):
    table = np.full((4, 6), values, np.float32)
    y = qruntime.load(lookup(table)).quantize_dynamic(dtype="quint8")([[0, 3]])[1]
    np.testing.assert_allclose(y, table[:2][None], rtol=1e-6, atol=2e-9)


@pytest.mark.parametrize("qmax", [15, 255])
@pytest.mark.parametrize("shape", [(1, 2), (700, 130), (3, 70000)], ids=str)
def test_codes_are_those_of_the_formula(shape: tuple[int, ...], qmax: int):
    """In blocks, with rows of any magnitude; the ratio is that of float64 sums."""
    table = random(*shape) * np.float32(10.0) ** np.arange(shape[0], dtype=np.float32)[:, None].clip(0, 30)
    table[-1] *= np.float32(1e-30)
    observer = default_float_qparams_observer if qmax == 255 else default_float_qparams_observer_4bit
    q, scale, offset, snr = quantize_rows(table, observer)
    low, high = table.min(axis=1, keepdims=True), table.max(axis=1, keepdims=True)
    expected = (high - low) / np.float32(qmax)
    expected = np.where(expected > np.float32(observer.eps), expected, np.float32(1))
    zero_point = -low / expected
    assert_same_bits(scale, expected)
    assert_same_bits(offset, -zero_point * expected)
    assert_same_bits(q, np.clip(np.rint(table * (np.float32(1) / expected) + zero_point), 0, qmax).astype(np.uint8))
    error = (q * scale + offset).astype(np.float64) - table
    assert snr == pytest.approx(10 * np.log10((table.astype(np.float64) ** 2).sum() / (error**2).sum()), abs=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_tables_that_do_not_lie_in_order(dtype: type):
    """Reversed, transposed, every other column, read-only, not aligned: the codes of a copy in order."""
    base = random(40, 66).astype(dtype)
    bytes_of = np.zeros(base.nbytes + 1, np.uint8)
    bytes_of[1:] = base.view(np.uint8).reshape(-1)
    unaligned = bytes_of[1:].view(dtype).reshape(base.shape)
    frozen = base.copy()
    frozen.flags.writeable = False
    for table in (base[::-1], base.T, base[:, ::2], base[:, ::-1], frozen, unaligned):
        found = quantize_rows(table, default_float_qparams_observer)
        wanted = quantize_rows(np.array(table, np.float32, order="C"), default_float_qparams_observer)
        for a, b in zip(found[:3], wanted[:3], strict=True):
            assert_same_bits(a, b)
        assert found[3] == wanted[3]


def test_what_is_skipped():
    bad = random(4, 6)
    bad[2, 2] = np.nan
    reasons = {}
    for name, table, dtype in (("nan", bad, "quint8"), ("odd", random(4, 5), "quint4x2"), ("empty", random(0, 6), "quint8")):
        (found,) = [s for s in qruntime.load(lookup(table)).quantize_dynamic(dtype=dtype).report.skipped if s.op_type == "Gather"]
        reasons[name] = found.reason
    assert reasons == {
        "nan": "the table holds NaN or infinity",
        "odd": "the table has 5 columns, quint4x2 needs an even number",
        "empty": "the table is empty",
    }


def test_the_default_leaves_embeddings_alone_and_says_how_to_ask():
    report = qruntime.load(lookup(random(30, 8))).quantize_dynamic().report
    (reason,) = [s.reason for s in report.skipped]
    assert "'Embedding': float_qparams_weight_only_qconfig" in reason
    assert "dtype='quint8' them alone" in reason
    qruntime.load(lookup(random(30, 8))).quantize_dynamic(strict=True)


def test_embeddings_need_their_own_qconfig():
    model = qruntime.load(lookup(random(30, 8)))
    for arguments in ({"qconfig_spec": {"Embedding"}}, {"qconfig_spec": {"Embedding": default_dynamic_qconfig}}):
        with pytest.raises(QuantizationError, match="float_qparams_weight_only_qconfig"):
            model.quantize_dynamic(**arguments)
    with pytest.raises(QuantizationError, match="only dtypes for Linear are qint8 and float16"):
        model.quantize_dynamic({"Linear"}, dtype="quint8")


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7, 3), (600, 5)], ids=str)
def test_kernel(shape: tuple[int, ...], threads: int, bits: int):
    rng = np.random.default_rng(0)
    for width in (0, 1, 3, 16, 33):
        codes = rng.integers(0, 256, (50, width)).astype(np.uint8)
        scale, offset = random(50, 1), random(50, 1, seed=1)
        for dtype in (np.int64, np.int32):
            ids = np.asarray(rng.integers(-50, 50, shape), dtype)
            inputs = [codes, scale, offset, ids]
            (found,) = _kernels.call_node("embedding", inputs, [bits], [], [], num_threads=threads)
            spec = registry.find("qruntime", "QuantizedEmbedding", 1)
            assert spec is not None
            assert_same_bits(found, spec.definition(*inputs, bits=bits))


def test_kernel_declines():
    codes, scale = np.zeros((5, 4), np.uint8), random(5, 1)
    for inputs in (
        [codes, scale, scale, np.array([5])],
        [codes, scale, scale, np.array([-6])],
        [codes, scale[:4], scale, np.array([0])],
        [codes.astype(np.int8), scale, scale, np.array([0])],
        [codes, scale, scale, np.array([0.0], np.float32)],
        [codes[0], scale, scale, np.array([0])],
    ):
        assert _kernels.call_node("embedding", inputs, [8], [], []) is None
    assert _kernels.call_node("embedding", [codes, scale, scale, np.array([0])], [2], [], []) is None


def test_an_index_out_of_range_is_an_error():
    quantized = qruntime.load(lookup(random(30, 8))).quantize_dynamic(dtype="quint8")
    with pytest.raises(qruntime.RunError, match="29"):
        quantized([[30]])


@pytest.mark.parametrize("key", ["qruntime.dtype", "qruntime.dynamic", "qruntime.engine"])
@pytest.mark.parametrize("value", ["quint8", "quint4x2", "float16", "per_token", "nonsense"])
def test_metadata_that_lie_change_nothing(key: str, value: str):
    data = onnx.load_from_string(lookup(random(30, 8)))
    for node in data.graph.node:
        entry = node.metadata_props.add()
        entry.key, entry.value = key, value
    model, honest = qruntime.load(data.SerializeToString()), qruntime.load(lookup(random(30, 8)))
    ids = np.arange(6).reshape(2, 3)
    assert not model.report.layers
    assert "Quantized" not in str(model) or key != "qruntime.engine"
    for quantized, expected in ((model, honest), (model.quantize_dynamic(dtype="quint8"), honest.quantize_dynamic(dtype="quint8"))):
        for a, b in zip(quantized(ids), expected(ids), strict=True):
            assert_same_bits(a, b)
