"""Constants of element types that numpy lacks: held as the file holds them, and read without ml_dtypes where codes are enough."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import qruntime
from qruntime.errors import InvalidModel, QRuntimeError, UnsupportedModel
from qruntime.ir import dtypes
from qruntime.ir.narrow import NarrowArray, pack

RNG = np.random.default_rng(8)
BITS = {
    TensorProto.INT4: 4, TensorProto.UINT4: 4, TensorProto.INT2: 2, TensorProto.UINT2: 2, TensorProto.FLOAT4E2M1: 4,
    TensorProto.FLOAT8E4M3FN: 8, TensorProto.FLOAT8E5M2: 8,
}  # fmt: skip


def tensor(name: str, kind: int, shape: tuple[int, ...]) -> TensorProto:
    """Finite numbers of any type: the highest bits of FP8 exponents stay 0."""
    size = int(np.prod(shape))
    codes = RNG.integers(0, 1 << min(BITS[kind], 6), size).astype(np.uint8)
    return helper.make_tensor(name, kind, shape, (codes if BITS[kind] == 8 else pack(codes, BITS[kind])).tobytes(), raw=True)


def model(nodes: list, inputs: list, outputs: list, constants: list, domains: dict[str, int] | None = None) -> bytes:
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants)
    opsets = [helper.make_opsetid(domain, version) for domain, version in {"": 25, **(domains or {})}.items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=13).SerializeToString()


def dequantized(kind: int, shape: tuple[int, ...] = (40, 9)) -> bytes:
    scale = helper.make_tensor("s", TensorProto.FLOAT, [shape[1]], RNG.uniform(0.5, 1, shape[1]).astype(np.float32))
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=1),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="fc"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", shape[0]])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", shape[1]])
    return model(nodes, [x], [y], [tensor("q", kind, shape), scale])


def as_file(loaded: qruntime.Model, folder: Path) -> bytes:
    loaded.save(folder / "m.onnx")
    return (folder / "m.onnx").read_bytes()


@pytest.fixture
def no_ml_dtypes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    dtypes.numpy_dtype.cache_clear()
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    yield
    dtypes.numpy_dtype.cache_clear()


@pytest.mark.parametrize("kind", BITS)
def test_weights_need_no_other_package(kind: int, no_ml_dtypes: None, tmp_path: Path) -> None:
    data = dequantized(kind)
    loaded = qruntime.load(data)
    (node,) = loaded.graph.nodes
    stored = node.input(1).stored
    (proto,) = (t for t in onnx.load_from_string(data).graph.initializer if t.name == "q")
    codes = stored.codes.data if isinstance(stored.codes, NarrowArray) else stored.codes
    assert codes.tobytes() == proto.raw_data
    x = RNG.standard_normal((3, 40)).astype(np.float32)
    np.testing.assert_allclose(loaded(x), x @ stored.decoded(), atol=1e-4, rtol=1e-5)
    saved = onnx.load_from_string(as_file(loaded, tmp_path))
    assert {t.data_type: t.raw_data for t in saved.graph.initializer if t.data_type == kind} == {kind: proto.raw_data}


@pytest.mark.parametrize("kind", BITS)
def test_meaning_is_that_of_the_element_type(kind: int, tmp_path: Path) -> None:
    """As numbers they are what onnx makes of them."""
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    held = tensor("q", kind, (5, 3))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])
    nodes = [helper.make_node("Cast", ["q"], ["h"], to=TensorProto.FLOAT), helper.make_node("Add", ["h", "x"], ["y"])]
    expected = onnx.numpy_helper.to_array(held).astype(np.float32)
    as_node = [helper.make_node("Constant", [], ["q"], value=held), *nodes]
    for data in (model(nodes, [x], [y], [held]), model(as_node, [x], [y], [])):
        loaded = qruntime.load(data)
        np.testing.assert_array_equal(loaded(np.zeros(3, np.float32)), expected)
        np.testing.assert_array_equal(qruntime.load(as_file(loaded, tmp_path))(np.zeros(3, np.float32)), expected)


def test_who_needs_the_numbers_says_what_is_missing(no_ml_dtypes: None) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy")
    nodes = [helper.make_node("Cast", ["q"], ["h"], to=TensorProto.FLOAT), helper.make_node("Add", ["h", "x"], ["y"])]
    with pytest.raises(UnsupportedModel, match="pip install ml_dtypes"):
        qruntime.load(model(nodes, [x], [y], [tensor("q", TensorProto.INT4, (5, 3))]))(np.zeros(3, np.float32))


def test_an_output_may_be_such_a_constant(tmp_path: Path) -> None:
    held = tensor("q", TensorProto.UINT4, (7,))
    x, y = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]), helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    out = helper.make_tensor_value_info("q", TensorProto.UINT4, [7])
    loaded = qruntime.load(model([helper.make_node("Abs", ["x"], ["y"])], [x], [y, out], [held]))
    for one in (loaded, qruntime.load(as_file(loaded, tmp_path))):
        found = one.run({"x": np.zeros(1, np.float32)})["q"]
        np.testing.assert_array_equal(found.astype(np.int32), onnx.numpy_helper.to_array(held).astype(np.int32))


@pytest.mark.parametrize("turn", ["Transpose", "Identity"])
def test_a_move_of_codes_moves_codes(turn: str, no_ml_dtypes: None) -> None:
    shape = (9, 40) if turn == "Transpose" else (40, 9)
    data = onnx.load_from_string(dequantized(TensorProto.INT4))
    held = tensor("p", TensorProto.INT4, shape)
    data.graph.initializer[0].CopyFrom(held)
    data.graph.node.insert(0, helper.make_node(turn, ["p"], ["q"]))
    (node,) = qruntime.load(data.SerializeToString()).graph.nodes
    codes = node.input(1).stored.unpacked()
    np.testing.assert_array_equal(codes & 15, (lambda c: c.T if turn == "Transpose" else c)(raw_codes(held).reshape(shape)))


def test_codes_behind_a_cast_are_stored_too(no_ml_dtypes: None) -> None:
    """As exporters write what DequantizeLinear of their opset could not."""
    held, zero = tensor("q", TensorProto.UINT4, (9, 6)), np.full(6, 7, np.float32)
    scale = RNG.uniform(0.5, 1, 6).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["q"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["c", "z"], ["d"]),
        helper.make_node("Mul", ["d", "s"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 9), ("y", 6)))
    constants = [held, onnx.numpy_helper.from_array(zero, "z"), onnx.numpy_helper.from_array(scale, "s")]
    loaded = qruntime.load(model(nodes, [x], [y], constants))
    (node,) = loaded.graph.nodes
    expected = (raw_codes(held).reshape(9, 6).astype(np.float32) - zero) * scale
    np.testing.assert_array_equal(node.input(1).stored.decoded(), expected)


def raw_codes(held: TensorProto) -> np.ndarray:
    data = np.frombuffer(held.raw_data, np.uint8)
    return np.stack([data & 15, data >> 4], axis=-1).reshape(-1)


@pytest.mark.parametrize("kind", [TensorProto.INT4, TensorProto.UINT4])
def test_look_ups_in_blocks_unpack_rows_alone(kind: int, no_ml_dtypes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tensor("table", kind, (50, 32))
    zero = tensor("zero", kind, (50, 2))
    scale = RNG.uniform(0.5, 1, (50, 2)).astype(np.float32)
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [None])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    names = ["table", "ids", "scale", "zero"]
    node = helper.make_node("GatherBlockQuantized", names, ["y"], domain="com.microsoft", block_size=16, quantize_axis=1)
    constants = [table, zero, onnx.numpy_helper.from_array(scale, "scale")]
    loaded = qruntime.load(model([node], [ids], [y], constants, {"com.microsoft": 1}))
    codes, zeros = (raw_codes(one).astype(np.int8).reshape(50, -1) for one in (table, zero))
    if kind == TensorProto.INT4:
        codes, zeros = codes - 16 * (codes > 7), zeros - 16 * (zeros > 7)
    picked = np.array([3, -1, 0])
    unpacked: list[int] = []
    whole = NarrowArray.unpacked
    monkeypatch.setattr(NarrowArray, "unpacked", lambda self: (unpacked.append(self.shape[0]), whole(self))[1])
    expected = (codes - np.repeat(zeros, 16, axis=1)) * np.repeat(scale, 16, axis=1)
    np.testing.assert_allclose(loaded(picked), expected[picked], rtol=1e-6)
    assert max(unpacked[:1]) == 3, "of the table only three rows"
    assert not loaded(np.array([50])).any()


def test_numbers_are_no_codes_to_look_up() -> None:
    """A constant that was dequantized is float, whatever it is stored as."""
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["table"], axis=1),
        helper.make_node("GatherBlockQuantized", ["table", "ids", "scale"], ["y"], domain="com.microsoft", block_size=16),
    ]
    arrays = {"s": np.ones(32, np.float32), "scale": np.ones((5, 2), np.float32)}
    constants = [tensor("q", TensorProto.UINT4, (5, 32)), *(onnx.numpy_helper.from_array(a, name) for name, a in arrays.items())]
    ids, y = (helper.make_tensor_value_info(n, t, [None]) for n, t in (("ids", TensorProto.INT64), ("y", TensorProto.FLOAT)))
    loaded = qruntime.load(model(nodes, [ids], [y], constants, {"com.microsoft": 1}))
    with pytest.raises(QRuntimeError, match="data must be uint8"):
        loaded(np.array([0]))


def test_bytes_that_do_not_fit() -> None:
    held = tensor("q", TensorProto.INT4, (40, 9))
    data = onnx.load_from_string(dequantized(TensorProto.INT4))
    for raw, dims in ((held.raw_data[:-1], (40, 9)), (held.raw_data, (40, 10)), (held.raw_data, (-40, -9))):
        data.graph.initializer[0].CopyFrom(TensorProto(name="q", data_type=TensorProto.INT4, dims=dims, raw_data=raw))
        with pytest.raises(InvalidModel, match=r"needs|negative"):
            qruntime.load(data.SerializeToString())
