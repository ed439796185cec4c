"""What is saved says the same as what was loaded, and onnx accepts it."""

from __future__ import annotations

import glob
import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import qruntime
from qruntime.errors import SaveError
from qruntime.ir import Attribute, AttributeType, Graph, ModelInfo, Node, TypeInfo, UnusedValue, Value
from qruntime.ir.dtypes import ONNX_TYPES
from qruntime.onnx_io import exporter
from qruntime.onnx_io.exporter import save_graph, serialize
from qruntime.onnx_io.files import write
from qruntime.onnx_io.importer import load_graph

DATA = os.path.join(os.path.dirname(onnx.__file__), "backend", "test", "data")
CASES = sorted(
    os.path.dirname(path)
    for group in ("simple", "pytorch-converted", "pytorch-operator")
    for path in glob.glob(os.path.join(DATA, group, "*", "model.onnx"))
)
FLOAT = TensorProto.FLOAT


def feeds_of(folder: str, model: onnx.ModelProto) -> dict[str, np.ndarray]:
    feeds = {}
    for index, info in enumerate(model.graph.input):
        path = os.path.join(folder, "test_data_set_0", f"input_{index}.pb")
        if os.path.exists(path):
            feeds[info.name] = numpy_helper.to_array(onnx.load_tensor(path))
    return feeds


def assert_equal_outputs(before: onnx.ModelProto, after: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> None:
    expected = ReferenceEvaluator(before).run(None, feeds)
    got = ReferenceEvaluator(after).run(None, feeds)
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def same_structure(a: Graph, b: Graph) -> None:
    assert [(v.name, v.type) for v in a.inputs] == [(v.name, v.type) for v in b.inputs]
    assert (a.output_names, a.output_types) == (b.output_names, b.output_types)
    nodes = [n for n in b.nodes if not n.name.endswith("_copy")]
    assert len(a.nodes) == len(nodes)
    for mine, theirs in zip(a.nodes, nodes, strict=True):
        assert (mine.op_type, mine.domain, mine.name, mine.metadata) == (
            theirs.op_type,
            theirs.domain,
            theirs.name,
            theirs.metadata,
        )
        assert len(mine.outputs) == len(theirs.outputs)
        for key, (kind, value) in mine.attributes.items():
            assert theirs.attributes[key].type is kind
            if kind is AttributeType.GRAPH:
                same_structure_of_subgraph(value, theirs.attributes[key].value)
            elif kind is AttributeType.TENSOR:
                assert value.dtype == theirs.attributes[key].value.dtype
                assert value.tobytes() == theirs.attributes[key].value.tobytes()
            else:
                assert theirs.attributes[key].value == value
        for x, y in zip(mine.inputs, theirs.inputs, strict=False):
            assert (x is None) == (y is None)
            if x is not None and x.is_constant:
                assert y.is_constant
                assert (x.data.dtype, x.data.shape) == (y.data.dtype, y.data.shape)
                if x.data.dtype == object:
                    assert x.data.tolist() == y.data.tolist()
                else:
                    assert x.data.tobytes() == y.data.tobytes()


def same_structure_of_subgraph(a: Graph, b: Graph) -> None:
    assert len(a.inputs) == len(b.inputs)
    assert len(a.outputs) == len(b.outputs)
    assert [n.op_type for n in a.nodes] == [n.op_type for n in b.nodes if not n.name.endswith("_copy")]


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: os.path.relpath(folder, DATA))
def test_backend_models(folder: str, tmp_path) -> None:
    before = onnx.load(os.path.join(folder, "model.onnx"))
    graph, info = load_graph(os.path.join(folder, "model.onnx"))
    target = tmp_path / "saved.onnx"
    save_graph(graph, info, target)
    if "gradient" not in folder:  # its domain has no schemas
        onnx.checker.check_model(os.fspath(target))
    again, info_again = load_graph(target)
    again.check()
    same_structure(graph, again)
    assert info_again.opset_imports.items() <= info.opset_imports.items() | {("", info_again.opset_imports.get(""))}
    if os.path.basename(folder) in RUN:
        assert_equal_outputs(before, onnx.load(target), feeds_of(folder, before))


RUN = {
    "test_Linear",
    "test_Conv2d_padding",
    "test_Embedding",
    "test_operator_addmm",
    "test_operator_repeat",
    "test_operator_pad",
    "test_expand_shape_model1",
    "test_single_relu_model",
    "test_sequence_model1",
}


def test_node_cases_round_trip(node_models: list[onnx.ModelProto]) -> None:
    rejected = []
    for model in node_models:
        graph, info = load_graph(model)
        saved = serialize(graph, info)
        again, _ = load_graph(saved)
        same_structure(graph, again)
        try:
            onnx.checker.check_model(model)
        except onnx.checker.ValidationError:
            continue
        try:
            onnx.checker.check_model(saved)
        except onnx.checker.ValidationError as error:
            rejected.append((model.graph.name, str(error)))
    assert not rejected


def test_control_flow_with_captures_runs_the_same() -> None:
    branch = helper.make_graph(
        [helper.make_node("Add", ["x", "late"], ["r"])], "then", [], [helper.make_tensor_value_info("r", FLOAT, [2])]
    )
    other = helper.make_graph(
        [helper.make_node("Constant", [], ["k"], value_floats=[5.0, 6.0])],
        "else",
        [],
        [helper.make_tensor_value_info("k", FLOAT, [2])],
    )
    body = helper.make_graph(
        [helper.make_node("Add", ["carried", "late"], ["next"]), helper.make_node("Identity", ["go"], ["stay"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", FLOAT, [2]),
        ],
        [
            helper.make_tensor_value_info("stay", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", FLOAT, [2]),
            helper.make_tensor_value_info("late", FLOAT, [2]),
        ],
    )
    nodes = [
        helper.make_node("Relu", ["x"], ["late"]),
        helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=other),
        helper.make_node("Loop", ["n", "always", "y"], ["z", "trace"], body=body),
    ]
    infos = [
        helper.make_tensor_value_info("x", FLOAT, [2]),
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
    ]
    given = [numpy_helper.from_array(np.int64(3), "n"), numpy_helper.from_array(np.bool_(True), "always")]
    outputs = [helper.make_tensor_value_info("z", FLOAT, [2]), helper.make_tensor_value_info("trace", FLOAT, [3, 2])]
    imports = [helper.make_opsetid("", 18)]
    before = helper.make_model(helper.make_graph(nodes, "g", infos, outputs, given), opset_imports=imports)
    shuffled = helper.make_model(helper.make_graph(nodes[::-1], "g", infos, outputs, given), opset_imports=imports, ir_version=8)
    graph, info = load_graph(shuffled)
    graph.check()
    assert [n.op_type for n in graph.nodes] == ["Relu", "If", "Loop"]
    saved = onnx.load_from_string(serialize(graph, info))
    onnx.checker.check_model(saved, full_check=True)
    for c in (True, False):
        assert_equal_outputs(before, saved, {"x": np.array([-1.0, 2.0], np.float32), "c": np.array(c)})


def value(name: str, *shape: int) -> Value:
    return Value(name, TypeInfo("tensor", 1, shape))


def test_outputs_that_are_inputs_constants_or_listed_twice() -> None:
    x = value("x", 2)
    y = value("y", 2)
    k = Value("k", data=np.ones(2, np.float32))
    graph = Graph([x], [x, y, y, k, k, x], [Node("Relu", [x], [y], version=17)])
    graph.output_names = ["x", "a", "b", "k", "k2", "copy"]
    graph.output_types = [TypeInfo("tensor", 1, (2,))] * 6
    for v in (y, k):
        v.type = TypeInfo("tensor", 1, (2,))
    saved = onnx.load_from_string(serialize(graph, ModelInfo(opset_imports={"": 17})))
    onnx.checker.check_model(saved, full_check=True)
    assert [o.name for o in saved.graph.output] == graph.output_names
    assert sum(n.op_type == "Identity" for n in saved.graph.node) == 4
    assert len(saved.graph.initializer) == 1
    got = ReferenceEvaluator(saved).run(None, {"x": np.array([-1, 2], np.float32)})
    expected = [[-1, 2], [0, 2], [0, 2], [1, 1], [1, 1], [-1, 2]]
    np.testing.assert_array_equal(got, expected)


def test_names_become_unique_and_absent_inputs_stay_empty() -> None:
    x, low = value("x", 2), Value("x", data=np.array(0, np.float32))
    hidden, y = value("y", 2), value("", 2)
    nodes = [Node("Clip", [x, low, None], [hidden], version=17), Node("Neg", [hidden], [y], version=17, name="n")]
    graph = Graph([x], [y], nodes)
    graph.output_names = ["y"]
    saved = onnx.load_from_string(serialize(graph, ModelInfo(opset_imports={"": 17})))
    onnx.checker.check_model(saved, full_check=True)
    assert list(saved.graph.node[0].input) == ["x", "x_1", ""]
    np.testing.assert_array_equal(ReferenceEvaluator(saved).run(None, {"x": np.array([-1, 2], np.float32)})[0], np.float32([0, -2]))


def one_weight_graph(array: np.ndarray) -> Graph:
    x = Value("x", TypeInfo("tensor", 1, ("n",)))
    y = Value("y", TypeInfo("tensor", 1, None))
    return Graph([x], [y], [Node("CastLike", [x, Value("w", data=array)], [y], version=19)])


def only_weight(graph: Graph) -> np.ndarray:
    (value,) = (*graph.constants(), *graph.stored_constants())
    return value.data if value.stored is None else value.stored.decoded()


@pytest.mark.parametrize("dtype", [name for name, _ in ONNX_TYPES.values() if name != "string"])
@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (3, 5), (2, 3, 4)], ids=str)
def test_element_types(dtype: str, shape: tuple[int, ...]) -> None:
    import ml_dtypes

    kind = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    count = int(np.prod(shape))
    numbers = np.arange(count) % 2 if dtype in ("bool", "int2", "uint2") else 1 + np.arange(count) % 7
    array = numbers.astype(np.float32).astype(kind).reshape(shape)
    saved = serialize(one_weight_graph(array), ModelInfo(opset_imports={"": 19}))
    theirs = numpy_helper.to_array(onnx.load_from_string(saved).graph.initializer[0])
    ours = only_weight(load_graph(saved)[0])
    for got in (ours, theirs):
        assert (got.dtype, got.shape) == (array.dtype, shape)
        assert np.array_equal(got.astype(np.complex128), array.astype(np.complex128))
    typed = helper.make_tensor("w", onnx.helper.np_dtype_to_tensor_dtype(kind), shape, array.reshape(-1).tolist())
    model = onnx.load_from_string(saved)
    model.graph.initializer[0].CopyFrom(typed)
    ours = only_weight(load_graph(model)[0])
    assert (ours.dtype, ours.shape) == (array.dtype, shape)
    assert np.array_equal(ours.astype(np.complex128), array.astype(np.complex128))


@pytest.mark.parametrize("order", ["F", "strided"])
def test_arrays_that_are_not_in_c_order(order: str) -> None:
    array = np.arange(60000, dtype=np.float32).reshape(300, 200)
    array = np.asfortranarray(array) if order == "F" else array[::2, ::-1]
    saved = onnx.load_from_string(serialize(one_weight_graph(array), ModelInfo(opset_imports={"": 19})))
    np.testing.assert_array_equal(numpy_helper.to_array(saved.graph.initializer[0]), array)


def test_metadata_raises_the_ir_version() -> None:
    graph = one_weight_graph(np.float32([1, 2]))
    info = ModelInfo(ir_version=8, opset_imports={"": 19}, metadata={"a": "1"})
    assert load_graph(serialize(graph, info))[1].ir_version == 8
    graph.nodes[0].metadata["quantized"] = "dynamic"
    again, info = load_graph(serialize(graph, info, metadata={"b": "2"}))
    assert info.ir_version == 10
    assert info.metadata == {"a": "1", "b": "2"}
    assert again.nodes[0].metadata == {"quantized": "dynamic"}


DECLARED = [1, "seqlen"]


@pytest.mark.parametrize("known", [None, [], ["a", "b"], [1, 7]], ids=str)
@pytest.mark.parametrize("ops", ["Relu", "Identity", "Relu Identity", "Identity Relu", "Relu Dropout Identity"])
def test_outputs_keep_their_declared_shapes(tmp_path, ops: str, known: list | None) -> None:
    """Whatever a file says, or does not, of the value that an output comes to be."""
    names = ["x", *(f"t{i}" for i in range(1, len(ops.split()))), "y"]
    nodes = [helper.make_node(op, [a], [b]) for op, a, b in zip(ops.split(), names, names[1:])]
    infos = [helper.make_tensor_value_info(name, FLOAT, known or None) for name in names[1:] if known is not None]
    x, y = (helper.make_tensor_value_info(name, FLOAT, DECLARED) for name in "xy")
    model = load(helper.make_graph(nodes, "g", [x], [y], value_info=infos))
    assert str(model.outputs[0]) == "y: float32[1, seqlen]"
    model.save(tmp_path / "m.onnx")
    saved = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(saved)
    assert saved.graph.output[0] == y
    assert saved.graph.input[0] == x


def load(graph: onnx.GraphProto) -> qruntime.Model:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return qruntime.load(model.SerializeToString())


def test_outputs_without_a_shape_get_what_is_known() -> None:
    y = helper.make_tensor_value_info("y", FLOAT, None)
    weight = numpy_helper.from_array(np.ones((2, 3), np.float32), "w")
    model = load(helper.make_graph([helper.make_node("Neg", ["w"], ["y"])], "g", [], [y], [weight]))
    assert str(model.outputs[0]) == "y: float32[2, 3]"


def test_outputs_of_branches_keep_their_declared_shapes(tmp_path) -> None:
    t = helper.make_tensor_value_info("t", FLOAT, DECLARED)
    unknown = helper.make_tensor_value_info("a", FLOAT, None)
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Identity", ["a"], ["t"])]
    branch = helper.make_graph(nodes, "branch", [], [t], value_info=[unknown])
    model = load(helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)], "g",
        [helper.make_tensor_value_info("c", TensorProto.BOOL, []), helper.make_tensor_value_info("x", FLOAT, DECLARED)],
        [helper.make_tensor_value_info("y", FLOAT, DECLARED)],
    ))  # fmt: skip
    model.save(tmp_path / "m.onnx")
    for attribute in onnx.load(tmp_path / "m.onnx").graph.node[0].attribute:
        assert attribute.g.output[0].type == t.type


def test_external_data(tmp_path) -> None:
    big = np.arange(1 << 19, dtype=np.float32)
    x = Value("x", TypeInfo("tensor", 1, None))
    a, b, c = (value(name) for name in "abc")
    nodes = [
        Node("Add", [x, Value("small", data=np.ones(3, np.float32))], [a], version=19),
        Node("Add", [a, Value("medium", data=np.ones(1001, np.float32))], [b], version=19),
        Node("Add", [b, Value("big", data=big)], [c], version=19),
    ]
    path = tmp_path / "m.onnx"
    graph = Graph([x], [c], nodes)
    save_graph(graph, ModelInfo(opset_imports={"": 19}), path, external_data=True)
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "m.onnx.data"]
    saved = onnx.load(path, load_external_data=False)
    where = {t.name: {e.key: e.value for e in t.external_data} for t in saved.graph.initializer}
    assert not where["small"]
    assert int(where["medium"]["offset"]) % 64 == 0
    assert int(where["big"]["offset"]) % 4096 == 0
    full = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    again, info = load_graph(path)
    for constant in again.constants():
        np.testing.assert_array_equal(constant.data, full[constant.name])
        assert constant.data.flags.aligned
        assert not constant.data.flags.writeable
    # The file being written is the one whose pages are mapped.
    save_graph(again, info, path, external_data=True)
    np.testing.assert_array_equal(again.constants()[2].data, big)
    np.testing.assert_array_equal(load_graph(path)[0].constants()[2].data, big)
    save_graph(again, info, path)
    assert not onnx.load(path, load_external_data=False).graph.initializer[2].external_data


FAILING_CALLS = 7
"""Two temporary files opened and flushed, two renamed, one folder opened; flushing that is a courtesy."""


@pytest.mark.parametrize("failing", range(1, FAILING_CALLS + 2))
def test_failed_saves_leave_the_old_files(tmp_path, monkeypatch, failing: int) -> None:
    path = tmp_path / "m.onnx"
    graph, info = one_weight_graph(np.ones(2000, np.float32)), ModelInfo(opset_imports={"": 19})
    save_graph(graph, info, path, external_data=True)
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    calls = 0

    def counted(real):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == failing:
                raise OSError(28, "No space left on device")
            return real(*args, **kwargs)

        return call

    for name in ("replace", "fsync", "open"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    new = one_weight_graph(np.zeros(2000, np.float32))
    if failing <= FAILING_CALLS:
        with pytest.raises(SaveError, match="No space left"):
            save_graph(new, info, path, external_data=True)
    else:
        save_graph(new, info, path, external_data=True)
    monkeypatch.undo()
    after = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    assert (after == before) is (failing <= FAILING_CALLS)
    assert sorted(after) == ["m.onnx", "m.onnx.data"]


def test_save_errors(tmp_path) -> None:
    graph, info = one_weight_graph(np.ones(2, np.float32)), ModelInfo(opset_imports={"": 19})
    for path in (tmp_path, tmp_path / "missing" / "m.onnx"):
        with pytest.raises(SaveError, match="cannot write"):
            save_graph(graph, info, path)
    graph.nodes[0].attributes["saturate"] = Attribute(AttributeType.INT, "one")
    with pytest.raises(SaveError, match="saturate"):
        serialize(graph, info)
    with pytest.raises(OSError, match="directory"):
        write({os.fspath(tmp_path): []})


def test_opset_of_inlined_nodes() -> None:
    x, y, z = value("x", 2), value("y", 2), value("z", 2)
    nodes = [Node("Relu", [x], [y], version=14), Node("Add", [y, y], [z], version=18)]
    graph = Graph([x], [z], nodes)
    assert load_graph(serialize(graph, ModelInfo(opset_imports={"": 18})))[1].opset_imports == {"": 18}
    nodes[0].version = 6
    nodes[0].op_type = "Squeeze"
    with pytest.raises(SaveError, match="written for opsets"):
        serialize(graph, ModelInfo(opset_imports={"": 18}))


def test_models_above_the_limit_of_protobuf(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(exporter, "EMBEDDED_LIMIT", 4000)
    graph, info = one_weight_graph(np.ones(2000, np.float32)), ModelInfo(opset_imports={"": 19})
    path = tmp_path / "m.onnx"
    with pytest.raises(SaveError, match="external_data=True"):
        save_graph(graph, info, path, external_data=False)
    with pytest.raises(SaveError, match="save it to a file, and load that"):
        serialize(graph, info)
    save_graph(graph, info, path)
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "m.onnx.data"]
    np.testing.assert_array_equal(load_graph(path)[0].constants()[0].data, np.ones(2000, np.float32))


def test_outputs_left_empty_stay_empty() -> None:
    node = helper.make_node("LSTM", ["x", "w", "r"], ["", "", "c"], hidden_size=1)
    infos = [helper.make_tensor_value_info(name, FLOAT, None) for name in "xwr"]
    graph = helper.make_graph([node], "g", infos, [helper.make_tensor_value_info("c", FLOAT, None)])
    loaded, info = load_graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    first, second, last = loaded.nodes[0].outputs
    assert isinstance(first, UnusedValue)
    assert first.name != second.name
    assert last is loaded.outputs[0]
    saved = onnx.load_from_string(serialize(loaded, info))
    assert list(saved.graph.node[0].output) == ["", "", "c"]


def test_a_folder_that_cannot_be_opened_leaves_the_old_file(tmp_path, monkeypatch):
    """One file has no backup, so what can fail must fail before it is replaced."""
    from qruntime.onnx_io import files

    opened = os.open

    def refuse_folders(path, flags, *rest, **named):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", path)
        return opened(path, flags, *rest, **named)

    (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(files.os, "open", refuse_folders)
    with pytest.raises(PermissionError):
        files.write({str(tmp_path / "a"): [b"new"]})
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]
