"""Files that are damaged, malicious or something else: InvalidModel or UnsupportedModel, nothing else."""

from __future__ import annotations

import io
import os
import random
import socket
import struct
import time
import zipfile

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qruntime.errors import InputError, InvalidModel, UnsupportedModel
from qruntime.onnx_io import functions, messages
from qruntime.onnx_io.exporter import save_graph, serialize
from qruntime.onnx_io.external_data import ExternalData
from qruntime.onnx_io.graph_builder import Limits
from qruntime.onnx_io.importer import load_graph
from qruntime.onnx_io.messages import ModelProto, NodeProto
from qruntime.onnx_io.tensors import decode
from qruntime.onnx_io.wire import encode, parse, part_bytes, varint
from qruntime.ops.families import MODULES

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
IMPORTS = [helper.make_opsetid("", 18)]


def info(name: str, *shape: int | str, kind: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model(nodes=None, inputs=None, outputs=None, initializers=(), **fields) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])] if nodes is None else nodes,
        "g",
        [info("x", 3)] if inputs is None else inputs,
        [info("y", 3)] if outputs is None else outputs,
        initializers,
    )
    return helper.make_model(graph, opset_imports=fields.pop("imports", IMPORTS), ir_version=8, **fields)


def tensor_model(**fields) -> onnx.ModelProto:
    return model([helper.make_node("Add", ["x", "w"], ["y"])], initializers=[TensorProto(name="w", **fields)])


def with_attribute(**fields) -> onnx.ModelProto:
    node = helper.make_node("LeakyRelu", ["x"], ["y"])
    node.attribute.append(onnx.AttributeProto(**fields))
    return model([node])


def nested(levels: int) -> bytes:
    """If in If in If …; encoded by hand, for protobuf refuses to."""

    def field(number: int, body: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(body)) + body

    graph = b""
    for _ in range(levels):
        attribute = field(1, b"then_branch") + field(6, graph) + varint(20 << 3) + varint(5)
        graph = field(1, field(2, b"y") + field(4, b"If") + field(5, attribute)) + field(12, field(1, b"y"))
    return varint(1 << 3) + varint(8) + field(8, varint(2 << 3) + varint(18)) + field(7, graph)


def sparse(dims, values, indices) -> onnx.ModelProto:
    item = onnx.SparseTensorProto(dims=dims)
    item.values.CopyFrom(numpy_helper.from_array(np.float32(values), "w"))
    item.indices.CopyFrom(numpy_helper.from_array(np.int64(indices)))
    proto = model([helper.make_node("Add", ["x", "w"], ["y"])])
    proto.graph.sparse_initializer.append(item)
    return proto


GOOD = model(initializers=[numpy_helper.from_array(np.ones(3, np.float32), "w")]).SerializeToString()
ZIP = io.BytesIO()
with zipfile.ZipFile(ZIP, "w") as archive:
    archive.writestr("data.pkl", b"x")

BAD_BYTES = {
    "empty": (b"", "it is empty"),
    "one byte": (b"\x08", "not an ONNX model"),
    "zeros": (bytes(1 << 16), "field number 0"),
    "html": (b"<!DOCTYPE html><html>404</html>", "web page"),
    "json": (b'{"model": 1}', "JSON"),
    "text": (b"hello, world, this is text", "not an ONNX model"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
    "zip": (ZIP.getvalue(), "torch.onnx.export"),
    "pickle": (b"\x80\x04\x95\x00\x00", "pickle"),
    "safetensors": (struct.pack("<Q", 40) + b'{"w":{"dtype":"F32"}}' + bytes(40), "safetensors"),
    "tflite": (b"\x1c\x00\x00\x00TFL3" + bytes(30), "TensorFlow Lite"),
    "gguf": (b"GGUF\x03\x00\x00\x00", "GGUF"),
    "trailing garbage": (GOOD + b"\xff\xff\xff", "not an ONNX model"),
    "varint of 11 bytes": (b"\x08" + b"\x80" * 10 + b"\x01", "longer than 10 bytes"),
    "varint above 64 bits": (b"\x08" + b"\xff" * 9 + b"\x7f", "exceeds 64 bits"),
    "length beyond the end": (b"\x08\x08\x3a\xff\xff\xff\xff\x0f", "runs past the end"),
    "length of 2^63": (b"\x08\x08\x3a" + b"\xff" * 9 + b"\x01", "runs past the end"),
    "wrong wire type": (b"\x0a\x01\x08", "'ir_version' .* wire type 2"),
    "group": (b"\x08\x08\xf3\x01", "wire type 3"),
    "invalid UTF-8": (b"\x08\x08\x12\x02\xff\xfe", "'producer_name' is not UTF-8"),
    "no graph": (b"\x08\x08", "no graph"),
    "graphs 33 deep": (nested(33), "deeper than 32"),
    "graphs 100 deep": (nested(100), "deeper than"),
    "graphs 3000 deep": (nested(3000), "deeper than"),
}


@pytest.mark.parametrize("what", BAD_BYTES)
def test_bad_bytes(what: str) -> None:
    data, message = BAD_BYTES[what]
    with pytest.raises(InvalidModel, match=message):
        load_graph(data)


def test_the_limit_of_nesting() -> None:
    graph, _ = load_graph(nested(31))
    assert sum(1 for _ in graph.walk_graphs()) == 32
    with pytest.raises(InvalidModel, match="deeper than 32"):
        load_graph(nested(32))


RELU = helper.make_node("Relu", ["x"], ["y"], name="act")
BAD_MODELS = {
    "no outputs": (model(outputs=[]), "no outputs"),
    "cycle": (
        model([helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])], outputs=[info("b")]),
        "cycle",
    ),
    "self-loop": (model([helper.make_node("Add", ["x", "y"], ["y"])]), "cycle"),
    "undefined input": (model([helper.make_node("Relu", ["nope"], ["y"], name="act")]), "'act'.*reads 'nope'"),
    "undefined output": (model(outputs=[info("nope", 3)]), "nothing makes its output 'nope'"),
    "output made twice": (model([RELU, RELU]), "'y' is made by"),
    "output that is an input": (model([helper.make_node("Relu", ["x"], ["x"])]), "cycle|already has"),
    "output that is an initializer": (
        model([helper.make_node("Relu", ["x"], ["w"])], initializers=[numpy_helper.from_array(np.float32(1), "w")]),
        "already has",
    ),
    "same output name twice": (model(outputs=[info("y", 3), info("y", 3)]), "listed twice"),
    "same input name twice": (model(inputs=[info("x", 3), info("x", 3)]), "given twice"),
    "initializer twice": (
        model(initializers=[numpy_helper.from_array(np.float32(1), "w")] * 2),
        "'w' is empty or given twice",
    ),
    "no op_type": (model([onnx.NodeProto(input=["x"], output=["y"])]), "no op_type"),
    "no ir_version": (onnx.ModelProto(graph=model().graph, opset_import=IMPORTS), "ir_version is 0"),
    "missing opset": (model(imports=[helper.make_opsetid("other", 1)]), "needs domain 'ai.onnx'"),
    "opset 0": (model(imports=[helper.make_opsetid("", 0)]), "opset 0"),
    "two opsets": (model(imports=[helper.make_opsetid("", 17), helper.make_opsetid("", 18)]), "versions 17 and 18"),
    "unknown domain": (model([helper.make_node("Relu", ["x"], ["y"], domain="his")]), "needs domain 'his'"),
    "attribute of another type": (with_attribute(name="alpha", type=2, f=1.0), "declared as INT"),
    "attribute with two values": (with_attribute(name="alpha", type=1, f=1.0, i=1), "declared as FLOAT"),
    "attribute of unknown type": (with_attribute(name="alpha", f=1.0, i=2), "has type 0"),
    "attribute without a value": (with_attribute(name="alpha", type=4), "declared as TENSOR"),
    "attribute without a name": (with_attribute(type=1, f=1.0), "without a name"),
    "constant without a value": (model([helper.make_node("Constant", [], ["y"])]), "exactly one value"),
    "constant of another type": (
        model([helper.make_node("Constant", [], ["y"], value_float=[1.0, 2.0])]),
        "cannot be FLOATS",
    ),
    "dims overflow": (tensor_model(data_type=1, dims=[1 << 40, 1 << 40], raw_data=b"0000"), "more bytes"),
    "dims overflow around zero": (tensor_model(data_type=1, dims=[0, 1 << 40, 1 << 40]), "more bytes"),
    "negative dim": (tensor_model(data_type=1, dims=[-1], raw_data=b"0000"), "'w' has a negative dimension"),
    "raw_data too short": (tensor_model(data_type=1, dims=[2], raw_data=b"0000"), "'w' .* needs 8 bytes but holds 4"),
    "raw_data too long": (tensor_model(data_type=1, dims=[2], raw_data=bytes(12)), "needs 8 bytes but holds 12"),
    "no data": (tensor_model(data_type=1, dims=[2]), "needs 8 bytes but holds 0"),
    "raw and typed data": (tensor_model(data_type=1, dims=[1], raw_data=b"0000", float_data=[1.0]), "both raw_data"),
    "two typed fields": (tensor_model(data_type=1, dims=[1], float_data=[1.0], int32_data=[1]), "belongs into"),
    "wrong typed field": (tensor_model(data_type=1, dims=[1], int32_data=[1]), "belongs into float_data"),
    "too few typed": (tensor_model(data_type=7, dims=[2], int64_data=[1]), "needs 2 numbers"),
    "complex of odd length": (tensor_model(data_type=14, dims=[1], float_data=[1.0]), "needs 2 numbers"),
    "unknown type": (tensor_model(data_type=99, dims=[1], raw_data=b"0"), "element type 99"),
    "type 0": (tensor_model(dims=[1], raw_data=b"0"), "element type 0"),
    "odd int4 too long": (tensor_model(data_type=22, dims=[3], raw_data=b"000"), "needs 2 bytes but holds 3"),
    "odd int4 too short": (tensor_model(data_type=22, dims=[3], int32_data=[1]), "needs 2 numbers"),
    "raw strings": (tensor_model(data_type=8, dims=[1], raw_data=b"a"), "strings"),
    "missing strings": (tensor_model(data_type=8, dims=[2], string_data=[b"a"]), "needs 2 numbers"),
    "unknown location": (tensor_model(data_type=1, dims=[1], data_location=1, raw_data=b"0000"), "only one"),
    "external from bytes": (
        tensor_model(data_type=1, dims=[1], data_location=1, external_data=[{"key": "location", "value": "w.bin"}]),
        "external_data_dir",
    ),
    "sparse index beyond": (sparse([2, 3], [1.0], [6]), "outside dims"),
    "sparse index negative": (sparse([2, 3], [1.0], [-1]), "outside dims"),
    "sparse pair beyond": (sparse([2, 3], [1.0], [[0, 3]]), "outside dims"),
    "sparse out of order": (sparse([6], [1.0, 2.0], [3, 1]), "ascending"),
    "sparse twice": (sparse([6], [1.0, 2.0], [3, 3]), "ascending"),
    "sparse counts": (sparse([6], [1.0, 2.0], [3]), "do not fit"),
    "sparse dims overflow": (sparse([1 << 40, 1 << 40], [1.0], [3]), "more bytes"),
}


@pytest.mark.parametrize("what", BAD_MODELS)
def test_bad_models(what: str) -> None:
    proto, message = BAD_MODELS[what]
    with pytest.raises(InvalidModel, match=message):
        load_graph(proto)


UNSUPPORTED = {
    "opset 999": (model(imports=[helper.make_opsetid("", 999)]), "newer than 28"),
    "ir_version 99": (onnx.ModelProto(ir_version=99, graph=model().graph, opset_import=IMPORTS), "newer than 14"),
    "large sparse": (sparse([1 << 20, 1 << 20], [1.0], [3]), "sparse_bytes"),
    "rank 40": (tensor_model(data_type=1, dims=[1] * 40, raw_data=b"0000"), "40 dimensions"),
}


@pytest.mark.parametrize("what", UNSUPPORTED)
def test_unsupported_models(what: str) -> None:
    proto, message = UNSUPPORTED[what]
    with pytest.raises(UnsupportedModel, match=message):
        load_graph(proto)


LOWERED = sorted(name for domain, name in MODULES if domain == "qruntime" and (domain, name, "") not in functions.OURS)
OURS = [*IMPORTS, helper.make_opsetid("qruntime", 1)]


@pytest.mark.parametrize("where", ["graph", "branch", "function"])
@pytest.mark.parametrize("op_type", LOWERED)
def test_lowered_operators_are_not_for_files(op_type: str, where: str) -> None:
    """Their kernels trust the passes that make them; constants as inputs would even be folded at load."""
    ours = helper.make_node(op_type, ["w", "w", "w"], ["z"], domain="qruntime", name="hostile", domain_specific=1)
    z, w = info("z", 3), numpy_helper.from_array(np.ones(3, np.float32), "w")
    if where == "graph":
        proto = model([ours], outputs=[z], initializers=[w], imports=OURS)
    elif where == "branch":
        branch = helper.make_graph([ours], "branch", [], [z])
        choice = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
        proto = model([choice], inputs=[info("c", kind=TensorProto.BOOL)], initializers=[w], imports=OURS)
    else:
        function = helper.make_function("mine", "f", ["w"], ["z"], [ours], OURS)
        call = helper.make_node("f", ["x"], ["y"], domain="mine")
        proto = model([call], imports=[*OURS, helper.make_opsetid("mine", 1)], functions=[function])
    with pytest.raises(UnsupportedModel, match=rf"node qruntime\.{op_type} 'hostile': .* a file cannot name one"):
        load_graph(proto)


def test_a_function_of_our_domain_is_what_its_body_says() -> None:
    function = helper.make_function("qruntime", "Linear", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])], IMPORTS)
    call = helper.make_node("Linear", ["x"], ["y"], domain="qruntime")
    graph, _ = load_graph(model([call], imports=OURS, functions=[function]))
    assert [(node.domain, node.op_type) for node in graph.nodes] == [("", "Neg")]


def test_sparse_tensors_share_their_limit() -> None:
    proto = sparse([1000], [1.0], [3])
    proto.graph.sparse_initializer.add().CopyFrom(proto.graph.sparse_initializer[0])
    proto.graph.sparse_initializer[1].values.name = "w2"
    load_graph(proto, limits=Limits(sparse_bytes=8000))
    with pytest.raises(UnsupportedModel, match="sparse_bytes"):
        load_graph(proto, limits=Limits(sparse_bytes=7999))


@pytest.mark.parametrize("indices", [[1, 4, 5], [[0, 1], [1, 1], [1, 2]]], ids=["flat", "pairs"])
def test_sparse_layouts(indices) -> None:
    graph, _ = load_graph(sparse([2, 3], [1.0, 2.0, 3.0], indices))
    np.testing.assert_array_equal(graph.constants()[0].data, np.float32([[0, 1, 0], [0, 2, 3]]))


# --- things that are odd but valid --------------------------------------------------------------------


def test_unknown_fields_and_duplicates() -> None:
    extra = b"\xf8\x07\x05" + b"\xfa\x07\x02ab" + b"\xf9\x07" + bytes(8) + b"\xfd\x07" + bytes(4)
    graph, model_info = load_graph(b"\x12\x01a" + extra + GOOD + b"\x12\x01b")
    assert model_info.producer_name == "b"
    assert graph.nodes[0].op_type == "Relu"


@pytest.mark.parametrize("name", ["with\0nul", "n" * 10_000_000, "ünï cödé\n"], ids=["nul", "10 MB", "unicode"])
def test_odd_names(name: str) -> None:
    proto = model([helper.make_node("Relu", ["x"], [name])], outputs=[info(name, 3)])
    graph, model_info = load_graph(proto)
    assert graph.output_names == [name]
    assert load_graph(serialize(graph, model_info))[0].output_names == [name]


def test_typed_numbers_wrap_into_their_type() -> None:
    packed = tensor_model(data_type=3, dims=[3], int32_data=[-1, 127, -128])
    np.testing.assert_array_equal(load_graph(packed)[0].constants()[0].data, np.int8([-1, 127, -128]))


@pytest.mark.parametrize("count", [1, 5, 40, 1000])
def test_packed_and_unpacked_numbers(count: int) -> None:
    rng = random.Random(count)
    ints = [rng.choice([rng.getrandbits(rng.randint(1, 63)), -rng.getrandbits(62)]) for _ in range(count)]
    proto = tensor_model(data_type=7, dims=[count], int64_data=ints).SerializeToString()
    np.testing.assert_array_equal(load_graph(proto)[0].constants()[0].data, ints)
    node = helper.make_node("Custom", ["x"], ["y"], axes=ints, scales=[0.5] * count)
    raw = node.SerializeToString()
    unpacked = parse(NodeProto, memoryview(raw))
    assert list(unpacked.attribute[0].ints) == ints
    packed = b"".join(map(part_bytes, encode(unpacked)))
    assert parse(NodeProto, memoryview(packed)) == unpacked
    assert list(onnx.NodeProto.FromString(packed).attribute[0].ints) == ints
    one_by_one = b"".join(b"\x38" + varint(i) for i in ints)  # int64_data is field 7, unpacked here
    head = TensorProto(name="w", data_type=7, dims=[count]).SerializeToString()
    tensor = parse(messages.TensorProto, memoryview(head + one_by_one))
    np.testing.assert_array_equal(decode(tensor, ExternalData()), ints)


def test_strings_that_are_not_utf8_stay_bytes() -> None:
    proto = tensor_model(data_type=8, dims=[2], string_data=["é".encode(), b"\xff"])
    graph, model_info = load_graph(proto)
    assert graph.constants()[0].data.tolist() == ["é", b"\xff"]
    assert load_graph(serialize(graph, model_info))[0].constants()[0].data.tolist() == ["é", b"\xff"]


def test_booleans_are_zero_or_one() -> None:
    data = load_graph(tensor_model(data_type=9, dims=[3], raw_data=b"\x00\x01\x07"))[0].constants()[0].data
    assert data.view(np.uint8).tolist() == [0, 1, 1]


def test_old_attributes_without_a_type() -> None:
    assert load_graph(with_attribute(name="alpha", f=0.5))[0].nodes[0].attr("alpha") == 0.5


def test_initializers_that_are_inputs() -> None:
    proto = model(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [info("x", 3), info("w", 3)],
        initializers=[numpy_helper.from_array(np.ones(3, np.float32), "w")],
    )
    graph, model_info = load_graph(proto)
    assert [v.name for v in graph.inputs] == ["x", "w"]
    assert [(v.name, data.tolist()) for v, data in graph.input_defaults.items()] == [("w", [1, 1, 1])]
    again, _ = load_graph(serialize(graph, model_info))
    assert [v.name for v in again.input_defaults] == ["w"]
    proto.ir_version = 3
    graph, model_info = load_graph(proto)
    assert [v.name for v in graph.inputs] == ["x"]
    assert graph.constants()[0].name == "w"
    assert load_graph(serialize(graph, model_info))[1].ir_version == 4


def test_many_nodes() -> None:
    nodes = [helper.make_node("Identity", [f"v{i}"], [f"v{i + 1}"]) for i in range(20_000)]
    start = time.perf_counter()
    graph, _ = load_graph(model(nodes, [info("v0")], [info("v20000")]))
    assert len(graph.nodes) == 20_000
    assert time.perf_counter() - start < 10
    graph, _ = load_graph(model(nodes[::-1], [info("v0")], [info("v20000")]))
    graph.check()


# --- paths ---------------------------------------------------------------------------------------------


def test_paths(tmp_path) -> None:
    for name in ("with space.onnx", "ünï.onnx", "new\nline.onnx"):
        path = tmp_path / name
        path.write_bytes(GOOD)
        assert load_graph(path)[0].output_names == ["y"]
        assert load_graph(os.fspath(path))[0].output_names == ["y"]
    with open(path, "rb") as file:
        assert load_graph(file)[0].output_names == ["y"]
    with open(path, encoding="latin-1") as file, pytest.raises(InputError, match="binary mode"):
        load_graph(file)
    for data in (bytearray(GOOD), memoryview(GOOD)):
        assert load_graph(data)[0].output_names == ["y"]
    with pytest.raises(InputError, match="int"):
        load_graph(3)


def test_bad_paths(tmp_path, monkeypatch) -> None:
    with pytest.raises(FileNotFoundError):
        load_graph(tmp_path / "missing.onnx")
    with pytest.raises(InvalidModel, match="is a directory"):
        load_graph(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InvalidModel, match="not a regular file"):
        load_graph(tmp_path / "fifo")
    with pytest.raises(InvalidModel, match="not a regular file"):
        load_graph("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path)  # socket paths are short
        listener.bind("socket")
        with pytest.raises(InvalidModel, match="cannot be opened"):
            load_graph("socket")
    with pytest.raises(InvalidModel, match="cannot be opened"):
        load_graph("x" * 5000)
    with pytest.raises(InvalidModel, match="cannot be opened"):
        load_graph("nul\0.onnx")
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(InvalidModel, match=r"empty.onnx' is not an ONNX model: it is empty"):
        load_graph(tmp_path / "empty.onnx")
    with open(tmp_path / "sparse.onnx", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InvalidModel, match="field number 0"):
        load_graph(tmp_path / "sparse.onnx")


# --- external data -------------------------------------------------------------------------------------


def external(location: str, **entries: str) -> onnx.ModelProto:
    proto = tensor_model(data_type=1, dims=[3], data_location=1)
    for key, value in {"location": location, **entries}.items():
        proto.graph.initializer[0].external_data.add(key=key, value=value)
    return proto


@pytest.fixture
def folder(tmp_path):
    """<tmp>/secret.bin outside and <tmp>/model/w.bin inside."""
    (tmp_path / "model" / "sub").mkdir(parents=True)
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    (tmp_path / "model" / "w.bin").write_bytes(np.arange(16, dtype=np.float32).tobytes())
    return tmp_path / "model"


def load_in(folder, proto: onnx.ModelProto) -> np.ndarray:
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    return load_graph(folder / "m.onnx")[0].constants()[0].data


def test_external_data_is_mapped(folder) -> None:
    assert load_in(folder, external("w.bin")).tolist() == [0, 1, 2]
    assert load_in(folder, external("w.bin", offset="8", length="12", checksum="x")).tolist() == [2, 3, 4]
    assert load_in(folder, external("./w.bin", offset="52")).tolist() == [13, 14, 15]
    assert load_in(folder, external("w.bin", prepacked_0="1|2|3")).tolist() == [0, 1, 2]
    os.link(folder / "w.bin", folder / "hard.bin")
    assert load_in(folder, external("hard.bin")).tolist() == [0, 1, 2]


BAD_EXTERNAL = {
    "parent": (external("../secret.bin"), "not a relative path"),
    "parent in the middle": (external("sub/../../secret.bin"), "not a relative path"),
    "absolute": (external("/etc/passwd"), "not a relative path"),
    "empty": (external(""), "not a relative path"),
    "nul": (external("w.bin\0"), "not a relative path"),
    "missing": (external("nope.bin"), "no file 'nope.bin'"),
    "memory address": (external("*/_ORT_MEM_ADDR_/*", offset="4096"), "no file"),
    "folder": (external("sub"), "directory"),
    "symlink out": (external("link.bin"), "leads outside"),
    "symlinked folder": (external("out/secret.bin"), "leads outside"),
    "symlink loop": (external("loop.bin"), "no file|leads outside|cannot be"),
    "fifo": (external("fifo"), "not a regular file"),
    "device": (external("device"), "leads outside"),
    "offset past the end": (external("w.bin", offset="56"), "lie outside 'w.bin', which has 64"),
    "offset huge": (external("w.bin", offset="999999999999999999"), "lie outside"),
    "offset longer than any number": (external("w.bin", offset="9" * 30), "not a non-negative"),
    "offset negative": (external("w.bin", offset="-4"), "offset is '-4'"),
    "offset text": (external("w.bin", offset="four"), "offset is 'four'"),
    "offset of other digits": (external("w.bin", offset="٤"), "not a non-negative"),
    "length negative": (external("w.bin", length="-12"), "length is '-12'"),
    "length huge": (external("w.bin", length="1000000000000"), "need 12"),
    "length short": (external("w.bin", length="8"), "length is 8 bytes"),
    "unknown key": (external("w.bin", __class__="x"), "unknown key '__class__'"),
}


@pytest.mark.parametrize("what", BAD_EXTERNAL)
def test_bad_external_data(folder, what: str) -> None:
    os.symlink(folder.parent / "secret.bin", folder / "link.bin")
    os.symlink(folder.parent, folder / "out")
    os.symlink("loop.bin", folder / "loop.bin")
    os.symlink("/dev/zero", folder / "device")
    os.mkfifo(folder / "fifo")
    proto, message = BAD_EXTERNAL[what]
    with pytest.raises(InvalidModel, match=message):
        load_in(folder, proto)


def test_external_key_twice_and_location_missing(folder) -> None:
    twice = external("w.bin")
    twice.graph.initializer[0].external_data.add(key="location", value="w.bin")
    with pytest.raises(InvalidModel, match="given twice"):
        load_in(folder, twice)
    none = external("w.bin")
    del none.graph.initializer[0].external_data[:]
    with pytest.raises(InvalidModel, match="no key 'location'"):
        load_in(folder, none)


def test_sparse_and_attribute_tensors_go_through_the_same_check(folder) -> None:
    for where in ("values", "indices"):
        proto = sparse([3], [1.0], [2])
        tensor = getattr(proto.graph.sparse_initializer[0], where)
        tensor.ClearField("raw_data")
        tensor.data_location = 1
        tensor.external_data.add(key="location", value="../secret.bin")
        with pytest.raises(InvalidModel, match="not a relative path"):
            load_in(folder, proto)
    stray = external("../secret.bin").graph.initializer[0]
    with pytest.raises(InvalidModel, match="not a relative path"):
        load_in(folder, model([helper.make_node("Constant", [], ["y"], value=stray)]))


def test_a_cache_of_links_into_a_folder_of_blobs(tmp_path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "aaaa").write_bytes(external("w.bin").SerializeToString())
    (blobs / "bbbb").write_bytes(np.arange(3, dtype=np.float32).tobytes())
    os.symlink("../../blobs/aaaa", snapshot / "m.onnx")
    os.symlink("../../blobs/bbbb", snapshot / "w.bin")
    assert load_graph(snapshot / "m.onnx")[0].constants()[0].data.tolist() == [0, 1, 2]


def test_external_data_dir(folder) -> None:
    data = external("w.bin").SerializeToString()
    assert load_graph(data, external_data_dir=folder)[0].constants()[0].data.tolist() == [0, 1, 2]
    with pytest.raises(InvalidModel, match="there is no file"):
        load_graph(data, external_data_dir=folder / "sub")


# --- truncation and fuzz --------------------------------------------------------------------------------


def rich_model() -> bytes:
    branch = helper.make_graph([helper.make_node("Neg", ["x"], ["t"])], "branch", [], [info("t", 3)])
    other = helper.make_graph([helper.make_node("Constant", [], ["e"], value_floats=[1.0, 2.0, 3.0])], "other", [], [info("e", 3)])
    call = helper.make_node("F", ["i"], ["f"], domain="mine", axis=1)
    body = [helper.make_node("Relu", ["a"], ["t"]), helper.make_node("Neg", ["t"], ["b"])]
    nodes = [
        helper.make_node("If", ["c"], ["i"], then_branch=branch, else_branch=other),
        call,
        helper.make_node("Add", ["f", "w"], ["g"]),
        helper.make_node("Add", ["g", "s"], ["y"], name="last"),
    ]
    proto = model(
        nodes,
        [info("x", 3), info("c", kind=TensorProto.BOOL)],
        initializers=[
            helper.make_tensor("w", FLOAT, [3], [1.0, 2.0, 3.0]),
            numpy_helper.from_array(np.arange(3, dtype=np.float32), "raw"),
            helper.make_tensor("strings", TensorProto.STRING, [2], ["a", "b"]),
            helper.make_tensor("int4", TensorProto.INT4, [3], [1, 2, 3]),
        ],
        imports=[*IMPORTS, helper.make_opsetid("mine", 1)],
        functions=[helper.make_function("mine", "F", ["a"], ["b"], body, IMPORTS, ["axis"])],
    )
    proto.graph.sparse_initializer.add().CopyFrom(sparse([3], [1.0], [2]).graph.sparse_initializer[0])
    proto.graph.sparse_initializer[0].values.name = "s"
    proto.graph.value_info.append(info("f", "n"))
    return proto.SerializeToString()


def survives(data: bytes) -> bool:
    try:
        graph, _ = load_graph(data)
    except (InvalidModel, UnsupportedModel):
        return False
    graph.check()
    return True


def test_truncation() -> None:
    data = rich_model()
    assert survives(data)
    assert not any(survives(data[: len(data) * k // 64]) for k in range(64))


@pytest.mark.parametrize("seed", range(4))
def test_fuzz(seed: int) -> None:
    rng = random.Random(seed)
    original = rich_model()
    passed = 0
    for _ in range(1000):
        data = bytearray(original)
        for _ in range(rng.choice((1, 1, 1, 2, 8))):
            at = rng.randrange(len(data))
            action = rng.random()
            if action < 0.6:
                data[at] ^= 1 << rng.randrange(8)
            elif action < 0.75:
                data[at] = rng.choice((0, 1, 127, 128, 255))
            elif action < 0.85:
                del data[at : at + rng.randrange(1, 20)]
            elif action < 0.95:
                data[at:at] = data[rng.randrange(len(data)) :][: rng.randrange(1, 40)]
            else:
                data[at:at] = rng.randbytes(rng.randrange(1, 12))
            if not data:
                break
        passed += survives(bytes(data))
    assert 0 < passed < 1000


def test_random_bytes() -> None:
    rng = random.Random(7)
    for size in (1, 2, 10, 100, 1 << 20):
        for _ in range(20):
            assert not survives(rng.randbytes(size))


def test_saving_what_was_fuzzed(tmp_path) -> None:
    graph, model_info = load_graph(rich_model())
    save_graph(graph, model_info, tmp_path / "m.onnx")
    onnx.checker.check_model(tmp_path / "m.onnx", full_check=True)
    assert parse(ModelProto, memoryview((tmp_path / "m.onnx").read_bytes())).graph is not None
