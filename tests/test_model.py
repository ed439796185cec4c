"""Running models: what may be fed, what comes back, and what the errors say."""

from __future__ import annotations

import os
import pickle
import re

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import qruntime
from qruntime import InputError, RunError
from tests.small_models import FLOAT, assert_same_bits, linear_bytes, model_bytes, one_node, random


@pytest.fixture(scope="module")
def add_one() -> qruntime.Model:
    """y = x + 1 over float32 [rows, 3]."""
    return one_node("Add", [("x", FLOAT, ["rows", 3])], [("y", FLOAT, ["rows", 3])], {"one": np.float32(1)})


class OnlyDLPack:
    """What other array libraries hand over."""

    def __init__(self, array: np.ndarray):
        self.array = array

    def __dlpack__(self, **options: object) -> object:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


class OnlyArrayMethod:
    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return np.arange(6, dtype=np.float32).reshape(2, 3)


X = np.arange(6, dtype=np.float32).reshape(2, 3)
READ_ONLY = X.copy()
READ_ONLY.flags.writeable = False

FEEDS = {
    "array": X,
    "list of floats": X.tolist(),
    "list of ints": [[0, 1, 2], [3, 4, 5]],
    "tuple of arrays": (X[0], X[1]),
    "dlpack": OnlyDLPack(X),
    "__array__": OnlyArrayMethod(),
    "memoryview": memoryview(X),
    "fortran order": np.asfortranarray(X),
    "every second column": np.repeat(X, 2, axis=1)[:, ::2],
    "reversed rows": X[::-1].copy()[::-1],
    "transposed": X.T.copy().T,
    "broadcast": np.broadcast_to(X, (2, 3)),
    "read-only": READ_ONLY,
    "big-endian": X.astype(">f4"),
    "unaligned": np.frombuffer(b"\0" + X.tobytes(), np.uint8)[1:].view(np.float32).reshape(2, 3),
    "subclass": X.view(np.matrix),
    "memory map": X,
}


@pytest.mark.parametrize("kind", FEEDS)
def test_feeds_that_mean_the_same_array(add_one: qruntime.Model, kind: str, tmp_path):
    value = FEEDS[kind]
    if kind == "memory map":
        X.tofile(tmp_path / "x")
        value = np.memmap(tmp_path / "x", np.float32, "r", shape=(2, 3))
    for _ in range(2):  # the second run takes the short way
        y = add_one.run({"x": value})["y"]
        assert type(y) is np.ndarray
        assert_same_bits(y, X + 1)
    assert_same_bits(np.asarray(add_one(value)), X + 1)


@pytest.mark.parametrize("value", [2.5, 2, True, np.float32(2.5), np.array(2.5, np.float32)])
def test_scalars_feed_rank_0(value: object):
    model = one_node("Neg", [("x", FLOAT, [])], [("y", FLOAT, [])])
    y = model(value)
    assert isinstance(y, np.ndarray)
    assert_same_bits(y, np.array(-float(value), np.float32))  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(0, 3), (5, 3)])
def test_any_number_of_rows(add_one: qruntime.Model, shape: tuple[int, ...]):
    assert_same_bits(add_one(np.zeros(shape, np.float32)), np.ones(shape, np.float32))


REFUSED = {
    "float64": (
        X.astype(np.float64),
        r"input 'x': needs float32\[rows, 3\], got float64\[2, 3\].*astype\(np.float32\)",
    ),
    "float16": (X.astype(np.float16), r"needs float32\[rows, 3\], got float16\[2, 3\].*astype\(np.float32\)"),
    "bfloat16": (X.astype(ml_dtypes.bfloat16), r"needs float32\[rows, 3\], got bfloat16\[2, 3\]"),
    "int64": (X.astype(np.int64), r"needs float32\[rows, 3\], got int64\[2, 3\]"),
    "complex": (X.astype(np.complex64), r"needs float32\[rows, 3\], got complex64\[2, 3\]"),
    "rank": (X[0], r"needs float32\[rows, 3\], got float32\[3\]"),
    "rank 3": (X[None], r"needs float32\[rows, 3\], got float32\[1, 2, 3\]"),
    "dimension": (X[:, :2], r"needs float32\[rows, 3\], got float32\[2, 2\]"),
    "empty list": ([], r"needs float32\[rows, 3\], got float32\[0\]"),
    "scalar": (1.0, r"needs float32\[rows, 3\], got float32\[\]"),
    "None": (None, r"input 'x': got None"),
    "ragged": ([[1, 2, 3], [4]], r"input 'x': .*"),
    "string": ("abc", r"input 'x': .*"),
    "strings": ([["a", "b", "c"]], r"input 'x': .*"),
    "object": (object(), r"input 'x': .*"),
    "dictionary": ({"a": 1}, r"input 'x': .*"),
    "structured": (np.zeros((2, 3), [("a", "f4")]), r"input 'x': needs float32\[rows, 3\]"),
    "datetime": (np.zeros((2, 3), "M8[s]"), r"input 'x': needs float32\[rows, 3\]"),
    "huge int": ([[10**400, 0, 0]], r"input 'x': .*"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_values_that_do_not_fit_are_refused(add_one: qruntime.Model, kind: str):
    value, message = REFUSED[kind]
    for _ in range(2):
        with pytest.raises(InputError, match=message):
            add_one.run({"x": value})
        add_one.run({"x": X})


class _Stubborn:
    """Refuses as tensors do that need their gradient or live on another device."""

    def __init__(self, error: type[Exception]):
        self.error = error

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise self.error("use tensor.detach() first")


@pytest.mark.parametrize("error", [RuntimeError, TypeError, KeyError, AssertionError])
def test_errors_of_what_is_fed_name_the_input(add_one: qruntime.Model, error: type[Exception]):
    untyped = one_node("Identity", [("x", 0, None)], [("y", 0, None)])
    for model in (add_one, untyped):
        for value in (_Stubborn(error), [_Stubborn(error)]):
            if model is untyped and isinstance(value, list):
                continue  # a sequence
            with pytest.raises(InputError, match=r"input 'x': a .* cannot be viewed as an array.*tensor.detach\(\)") as caught:
                model.run({"x": value})
            assert isinstance(caught.value.__cause__, error)
    with pytest.raises(MemoryError):
        add_one.run({"x": _Stubborn(MemoryError)})


def test_lists_of_ints_too_large_for_the_type_are_refused():
    model = one_node("Identity", [("x", TensorProto.UINT8, [None])], [("y", TensorProto.UINT8, [None])])
    assert model([1, 255]).tolist() == [1, 255]
    for wrong in ([256], [-1], [1.5], [2**70]):
        with pytest.raises(InputError, match="input 'x'"):
            model(wrong)


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        ({}, r"missing input 'x'; the model's inputs are: x: float32\[rows, 3\]"),
        ({"z": X}, r"unknown input 'z'; the model's inputs are: x: float32\[rows, 3\]"),
        ({"x": X, "z": X}, "unknown input 'z'"),
        ({b"x": X}, "unknown input b'x'"),
        ({1: X}, "unknown input 1"),
    ],
)
def test_wrong_names(add_one: qruntime.Model, feed: dict, message: str):
    add_one.run({"x": X})
    with pytest.raises(InputError, match=message):
        add_one.run(feed)


@pytest.mark.parametrize("feed", [None, X, [X], "x"])
def test_a_feed_that_is_no_mapping(add_one: qruntime.Model, feed: object):
    with pytest.raises(InputError, match="mapping"):
        add_one.run(feed)  # type: ignore[arg-type]


def test_input_errors_are_value_errors(add_one: qruntime.Model):
    with pytest.raises(ValueError, match="missing"):
        add_one.run({})


@pytest.fixture(scope="module")
def three_outputs() -> qruntime.Model:
    """total = a + b, same = a + b as well, copy = a."""
    nodes = [
        helper.make_node("Add", ["a", "b"], ["total"]),
        helper.make_node("Add", ["a", "b"], ["same"]),
        helper.make_node("Identity", ["a"], ["copy"]),
    ]
    infos = [(name, FLOAT, ["n"]) for name in ("total", "same", "copy")]
    return qruntime.load(model_bytes(nodes, [("a", FLOAT, ["n"]), ("b", FLOAT, ["n"])], infos))


A, B = np.array([1, 2], np.float32), np.array([10, 20], np.float32)


def test_outputs_come_in_the_models_order(three_outputs: qruntime.Model):
    assert list(three_outputs.run({"b": B, "a": A})) == ["total", "same", "copy"]
    assert isinstance(three_outputs(A, B), tuple)
    assert three_outputs(A, B)[2].tolist() == [1, 2]


@pytest.mark.parametrize("names", [["copy"], ["same", "total"], ["total", "total"], [], ("copy", "same", "total")])
def test_outputs_can_be_chosen(three_outputs: qruntime.Model, names: list[str]):
    chosen = three_outputs.run({"a": A, "b": B}, names)
    everything = three_outputs.run({"a": A, "b": B})
    assert list(chosen) == list(dict.fromkeys(names))
    for name, value in chosen.items():
        assert_same_bits(value, everything[name])


def test_unknown_outputs_are_refused(three_outputs: qruntime.Model):
    with pytest.raises(InputError, match=r"unknown output 'nothing'; the model's outputs are: total: float32\[n\]; same"):
        three_outputs.run({"a": A, "b": B}, ["nothing"])


def test_a_string_of_outputs_is_refused(three_outputs: qruntime.Model):
    with pytest.raises(InputError, match=r"outputs.*\['total'\]"):
        three_outputs.run({"a": A, "b": B}, "total")


def test_out_is_written_and_returned(three_outputs: qruntime.Model):
    buffer = np.zeros(2, np.float32)
    results = three_outputs.run({"a": A, "b": B}, out={"total": buffer})
    assert results["total"] is buffer
    assert buffer.tolist() == [11, 22]
    strided = np.zeros(4, np.float32)
    three_outputs.run({"a": A, "b": B}, out={"total": strided[::2]})
    assert strided.tolist() == [11, 0, 22, 0]


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ({"total": np.zeros(3, np.float32)}, r"'total' needs float32\[2\], got float32\[3\]"),
        ({"total": np.zeros(2)}, r"'total' needs float32\[2\], got float64\[2\]"),
        ({"total": [0, 0]}, r"'total' needs float32\[2\], got sequence of 2"),
        ({"nothing": np.zeros(2, np.float32)}, "'nothing' is not among"),
        ({"total": READ_ONLY.ravel()[:2]}, "read-only"),
    ],
)
def test_out_that_does_not_fit_is_refused(three_outputs: qruntime.Model, out: dict, message: str):
    with pytest.raises(InputError, match=message):
        three_outputs.run({"a": A, "b": B}, out=out)


def test_out_may_be_an_input_of_the_same_run(three_outputs: qruntime.Model):
    a = A.copy()
    results = three_outputs.run({"a": a, "b": B}, out={"total": a})
    assert a.tolist() == [11, 22]
    assert results["copy"].tolist() == [1, 2]


def test_outputs_own_their_memory(three_outputs: qruntime.Model):
    a = A.copy()
    first = three_outputs.run({"a": a, "b": B})
    arrays = [*first.values(), a]
    for i, one in enumerate(arrays):
        assert one.flags.writeable
        for other in arrays[i + 1 :]:
            assert not np.shares_memory(one, other)
    for value in first.values():
        value[:] = np.nan
    assert a.tolist() == [1, 2]
    assert three_outputs.run({"a": a, "b": B})["total"].tolist() == [11, 22]


def test_an_output_that_is_an_input_is_a_copy():
    x = np.arange(3, dtype=np.float32)
    model = one_node("Identity", [("x", FLOAT, ["n"])], [("y", FLOAT, ["n"])])
    for _ in range(2):
        y = model(x)
        assert not np.shares_memory(x, y)
        y[0] = 9
        assert x[0] == 0


def test_an_output_that_is_a_constant_is_a_copy():
    node = helper.make_node("Identity", ["w"], ["y"])
    model = qruntime.load(model_bytes([node], [], [("y", FLOAT, [2])], {"w": A}))
    for _ in range(2):
        y = model()
        assert y.tolist() == [1, 2]
        y[:] = 7


def test_a_string_constant_can_be_an_output():
    node = helper.make_node("Identity", ["w"], ["y"])
    model = qruntime.load(model_bytes([node], [], [("y", TensorProto.STRING, [2])], {"w": np.array(["a", "b"], object)}))
    for _ in range(2):
        y = model()
        assert y.tolist() == ["a", "b"]
        y[:] = "changed"


def test_a_view_of_an_input_is_a_copy():
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    shape = {"shape": np.array([3, 2], np.int64)}
    model = one_node("Reshape", [("x", FLOAT, [2, 3])], [("y", FLOAT, [3, 2])], shape)
    y = model(x)
    assert not np.shares_memory(x, y)
    model(x)[:] = 1
    assert x.ravel().tolist() == [0, 1, 2, 3, 4, 5]


def test_results_of_earlier_runs_stay_as_they_were():
    model = qruntime.load(linear_bytes())
    inputs = [random(3, 16, seed=i) for i in range(8)]
    kept = [model(x) for x in inputs]
    copies = [y.copy() for y in kept]
    for x in inputs[::-1]:
        model(x)
    for y, copy in zip(kept, copies, strict=True):
        assert_same_bits(y, copy)


def test_running_twice_gives_the_same():
    x = random(7, 16)
    model = qruntime.load(linear_bytes())
    assert_same_bits(model(x), model(x))
    assert_same_bits(model(x), qruntime.load(linear_bytes())(x))


def test_inputs_are_not_written_to():
    x = -np.abs(random(4, 16))
    before = x.copy()
    one_node("Relu", [("x", FLOAT, [4, 16])], [("y", FLOAT, [4, 16])])(x)
    qruntime.load(linear_bytes())(x)
    assert_same_bits(x, before)


def test_too_many_positional_values(add_one: qruntime.Model):
    with pytest.raises(InputError, match=r"1 inputs? \(x\), got 2"):
        add_one(X, X)


def test_an_input_with_a_default_may_be_left_out():
    node = helper.make_node("Add", ["x", "step"], ["y"])
    inputs = [("x", FLOAT, ["n"]), ("step", FLOAT, [])]
    model = qruntime.load(model_bytes([node], inputs, [("y", FLOAT, ["n"])], {"step": np.float32(5)}))
    for _ in range(2):
        assert model.run({"x": A})["y"].tolist() == [6, 7]
        assert model.run({"x": A, "step": np.float32(1)})["y"].tolist() == [2, 3]
        assert model(A).tolist() == [6, 7]


def test_an_optional_input_may_be_left_out_or_none():
    tensor = helper.make_tensor_type_proto(FLOAT, ["n"])
    maybe = helper.make_value_info("x", helper.make_optional_type_proto(tensor))
    answer = helper.make_tensor_value_info("y", TensorProto.BOOL, [])
    graph = helper.make_graph([helper.make_node("OptionalHasElement", ["x"], ["y"])], "g", [maybe], [answer])
    model = qruntime.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8).SerializeToString())
    assert not model.run({})["y"]
    assert not model.run({"x": None})["y"]
    assert model.run({"x": A})["y"]


@pytest.mark.parametrize(
    ("code", "dtype"),
    [
        (TensorProto.FLOAT, np.float32), (TensorProto.DOUBLE, np.float64), (TensorProto.FLOAT16, np.float16),
        (TensorProto.BFLOAT16, ml_dtypes.bfloat16), (TensorProto.INT8, np.int8), (TensorProto.UINT8, np.uint8),
        (TensorProto.INT16, np.int16), (TensorProto.UINT16, np.uint16), (TensorProto.INT32, np.int32),
        (TensorProto.UINT32, np.uint32), (TensorProto.INT64, np.int64), (TensorProto.UINT64, np.uint64),
        (TensorProto.BOOL, np.bool_), (TensorProto.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn),
        (TensorProto.FLOAT8E5M2, ml_dtypes.float8_e5m2), (TensorProto.INT4, ml_dtypes.int4), (TensorProto.UINT4, ml_dtypes.uint4),
        (TensorProto.FLOAT8E5M2FNUZ, ml_dtypes.float8_e5m2fnuz), (TensorProto.FLOAT4E2M1, ml_dtypes.float4_e2m1fn),
    ],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 0, 3), (1,) * 8])
def test_every_element_type_passes_through(code: int, dtype: object, shape: tuple[int, ...]):
    model = one_node("Identity", [("x", code, list(shape))], [("y", code, list(shape))], opset=23)
    x = np.ones(shape, dtype)
    for _ in range(2):
        y = model(x)
        assert y.dtype == x.dtype
        assert y.shape == shape
        assert y.tobytes() == x.tobytes()
        assert y is not x


def test_strings_pass_through():
    model = one_node("Identity", [("x", TensorProto.STRING, [None])], [("y", TensorProto.STRING, [None])])
    for value in (["a", "ß"], np.array(["a", "ß"]), np.array(["a", "ß"], object)):
        y = model(value)
        assert y.tolist() == ["a", "ß"]
        y[0] = "changed"
    assert model(["a", "ß"]).tolist() == ["a", "ß"]
    with pytest.raises(InputError, match="needs strings, got int64"):
        model([1, 2])


def test_errors_of_nodes_name_the_node_and_its_inputs():
    node = helper.make_node("MatMul", ["a", "b"], ["y"], name="/encoder/attention/MatMul")
    infos = [("a", FLOAT, None), ("b", FLOAT, None)]
    model = qruntime.load(model_bytes([node], infos, [("y", FLOAT, None)]))
    with pytest.raises(RunError) as caught:
        model(np.zeros((2, 3), np.float32), np.zeros((4, 5), np.float32))
    text = str(caught.value)
    for fact in ("MatMul", "/encoder/attention/MatMul", "float32[2, 3]", "float32[4, 5]"):
        assert fact in text
    assert model(np.ones((2, 3), np.float32), np.ones((3, 5), np.float32)).shape == (2, 5)


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("shape", [(3, 15), (15,), (), (0, 17)])
def test_a_linear_layer_says_what_width_it_needs(shape: tuple[int, ...], quantized: bool):
    node = helper.make_node("MatMul", ["x", "w"], ["scores"])
    model = qruntime.load(model_bytes([node], [("x", FLOAT, None)], [("scores", FLOAT, None)], {"w": random(16, 8)}))
    model = model.quantize_dynamic() if quantized else model
    got = re.escape(f"got float32[{', '.join(map(str, shape))}]")
    with pytest.raises(RunError, match=rf"'scores'.*\[16, 8\] needs an input whose last dimension is 16, {got}"):
        model(np.zeros(shape, np.float32))


def test_a_run_after_a_failure_is_unharmed():
    nodes = [
        helper.make_node("Add", ["a", "a"], ["double"]),
        helper.make_node("Gather", ["double", "index"], ["picked"]),
        helper.make_node("Neg", ["picked"], ["y"]),
    ]
    infos = [("a", FLOAT, ["n"]), ("index", TensorProto.INT64, ["m"])]
    model = qruntime.load(model_bytes(nodes, infos, [("y", FLOAT, ["m"])]))
    good = model(A, [0, 1, 0])
    for _ in range(20):
        with pytest.raises(RunError, match="Gather"):
            model(A, [7])
        assert_same_bits(model(A, [0, 1, 0]), good)


def test_descriptions_of_inputs_and_outputs(add_one: qruntime.Model):
    (info,) = add_one.inputs
    assert info == ("x", "float32", ("rows", 3))
    assert str(info) == "x: float32[rows, 3]"
    assert [o.name for o in add_one.outputs] == ["y"]


def test_sources_that_are_no_models(tmp_path):
    for source in (b"", b"hello", bytes(100), b"\xff" * 64):
        with pytest.raises(qruntime.InvalidModel):
            qruntime.load(source)
    with pytest.raises(FileNotFoundError):
        qruntime.load(tmp_path / "missing.onnx")
    with pytest.raises(qruntime.InvalidModel, match=f"{re.escape(str(tmp_path))}.* is a directory"):
        qruntime.load(tmp_path)
    for source in (None, 5, ["a"]):
        with pytest.raises((TypeError, InputError)):
            qruntime.load(source)  # type: ignore[arg-type]


def test_models_load_from_paths_bytes_and_files(tmp_path):
    data = linear_bytes()
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    x = random(2, 16)
    expected = qruntime.load(data)(x)
    with open(path, "rb") as file:
        for source in (path, str(path), bytearray(data), memoryview(data), file):
            assert_same_bits(qruntime.load(source)(x), expected)


def test_weights_elsewhere(tmp_path):
    """Bytes and files have no folder of their own; what is named is searched with the checks of any other."""
    data = linear_bytes()
    elsewhere = tmp_path / "weights"
    elsewhere.mkdir()
    proto = onnx.load_from_string(data)
    onnx.save(proto, elsewhere / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    os.rename(elsewhere / "m.onnx", tmp_path / "m.onnx")
    x = random(2, 16)
    with open(tmp_path / "m.onnx", "rb") as file:
        for source in (tmp_path / "m.onnx", (tmp_path / "m.onnx").read_bytes(), file):
            with pytest.raises(qruntime.InvalidModel, match=r"external_data_dir=\.\.\."):
                qruntime.load(source)
            if source is file:
                file.seek(0)
            model = qruntime.load(source, external_data_dir=elsewhere)
            assert_same_bits(model(x), qruntime.load(data)(x))
            assert_same_bits(pickle.loads(pickle.dumps(model))(x), model(x))
    os.rename(elsewhere / "w.bin", tmp_path / "w.bin")
    os.symlink("../w.bin", elsewhere / "w.bin")
    with pytest.raises(qruntime.InvalidModel, match="leads outside the folder"):
        qruntime.load((tmp_path / "m.onnx").read_bytes(), external_data_dir=elsewhere)


@pytest.mark.parametrize("threads", [0, -1])
def test_a_number_of_threads_below_one_is_refused(threads: int):
    with pytest.raises(InputError, match="threads must be at least 1"):
        qruntime.load(linear_bytes(), threads=threads)


def test_all_missing_operators_are_listed_at_once():
    nodes = [helper.make_node(op, ["x"], [op], domain="my.domain", name=op.lower()) for op in ("Alpha", "Beta", "Alpha")]
    nodes[2].output[0] = "other"
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", FLOAT, [1])],
            [helper.make_tensor_value_info("Beta", FLOAT, [1])],
        ),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("my.domain", 1)],
    )
    with pytest.raises(qruntime.UnsupportedOp, match=r"^1 operator not supported: my\.domain\.Beta ×1") as caught:
        qruntime.load(model.SerializeToString())
    assert isinstance(caught.value, qruntime.UnsupportedModel)
    for node in model.graph.node:
        model.graph.output.append(helper.make_tensor_value_info(node.output[0], FLOAT, [1]))
    del model.graph.output[0]
    with pytest.raises(qruntime.UnsupportedOp, match=r"^2 operators not supported: my\.domain\.Alpha ×2 .*Beta ×1"):
        qruntime.load(model.SerializeToString())
