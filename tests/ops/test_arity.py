"""How many inputs and outputs operators have: what their definitions say, what ONNX says, and what models get to hear."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx import TensorProto, defs, helper, numpy_helper

import qruntime
from qruntime import InvalidModel, QRuntimeError
from qruntime.ops import registry
from qruntime.ops.arity import _length, arity
from tests.small_models import encoder_bytes, recurrent_bytes

FLOAT = TensorProto.FLOAT
UNLIMITED = 1 << 30

LOOSER = {
    "Attention": "4 outputs",
    "BatchNormalization": "5 or 3 outputs",
    "GRU": "2 outputs",
    "Gemm": "a bias before opset 11",
    "LSTM": "3 outputs",
    "Loop": "both limits, or none",
    "MaxPool": "one output before opset 8",
    "OptionalHasElement": "its input before opset 18",
    "Pad": "no axes before opset 18",
    "RNN": "2 outputs",
    "Resize": "scales before opset 13",
    "Scan": "its lengths",
    "Adagrad": "one tensor", "Adam": "one tensor", "Momentum": "one tensor",
}  # fmt: skip
"""Operators whose definitions say less than ONNX: what ONNX wants of them besides."""


def schemas() -> Iterator[tuple[defs.OpSchema, registry.OpSpec]]:
    for schema in defs.get_all_schemas_with_history():
        spec = registry.find(schema.domain, schema.name, schema.since_version)
        if spec is not None and not schema.deprecated:
            yield schema, spec


def test_definitions_say_what_onnx_says() -> None:
    looser, count = set(), 0
    for schema, spec in schemas():
        least, most, outputs, needed = arity(spec)
        said = (least, UNLIMITED if most is None else most, UNLIMITED if outputs is None else outputs)
        wanted = (schema.min_input, min(schema.max_input, UNLIMITED), min(schema.max_output, UNLIMITED))
        assert said[0] <= wanted[0] and said[1] >= wanted[1] and said[2] >= wanted[2], (schema.name, said, wanted)
        if said != wanted and spec.prepare is None:  # what is prepared need not tell
            looser.add(schema.name)
        for name, formal in zip(needed, schema.inputs):
            assert not name or formal.option is not defs.OpSchema.FormalParameterOption.Optional, (schema.name, formal.name)
        count += 1
    assert count > 400
    assert looser <= set(LOOSER)


@pytest.mark.parametrize(
    ("annotation", "outputs"),
    [
        ("np.ndarray", 1), ("Any", 1), ("list[tuple[Any, Any]]", 1),
        ("list[Any] | tuple[list[Any], ...]", None), ("tuple[np.ndarray]", 1), ("tuple[a, b, c]", 3),
        ("tuple[dict[str, int], list[tuple[a, b]]]", 2), ("np.ndarray | tuple[np.ndarray, ...]", None),
        ("tuple[np.ndarray, np.ndarray | None]", 2), ("tuple[a, b] | None", 2), ("tuple[dict[str, int], ...]", None),
    ],
)  # fmt: skip
def test_annotations(annotation: str, outputs: int | None) -> None:
    assert _length(annotation) == outputs


def graph_of(nodes: list[onnx.NodeProto], name: str = "g", **rest: list) -> onnx.GraphProto:
    inputs = [helper.make_tensor_value_info(n, FLOAT, [2]) for n in rest.get("inputs", "abc")]
    return helper.make_graph(nodes, name, inputs, [helper.make_tensor_value_info("y", FLOAT, [2])])


def load(nodes: list[onnx.NodeProto], functions: list[onnx.FunctionProto] = []) -> qruntime.Model:  # noqa: B006
    imports = [helper.make_opsetid(domain, version) for domain, version in (("", 17), ("com.microsoft", 1), ("f", 1))]
    model = helper.make_model(graph_of(nodes), opset_imports=imports, functions=functions, ir_version=8)
    return qruntime.load(model.SerializeToString())


@pytest.mark.parametrize(
    ("op", "inputs", "outputs", "message"),
    [
        ("Where", "a", "y", "takes 3 inputs, the model gives 1"),
        ("Where", "abc-", "y", "takes 3 inputs, the model gives 4"),
        ("Add", "a", "y", "takes 2 inputs, the model gives 1"),
        ("Add", "", "y", "takes 2 inputs, the model gives 0"),
        ("Add", "a-", "y", r"needs its input 1 \(\w+\), the model leaves it empty"),
        ("Relu", "-", "y", r"needs its input 0 \(x\), the model leaves it empty"),
        ("Clip", "abca", "y", "takes 1 to 3 inputs, the model gives 4"),
        ("Concat", "", "y", "takes 1 input or more, the model gives 0"),
        ("Relu", "a", "yz", "makes 1 output, the model names 2"),
        ("Relu", "a", "-y", "makes 1 output, the model names 2"),
        ("Dropout", "a", "yzw", "makes 1 to 2 outputs, the model names 3"),
        ("Relu", "a", "", "needs an output, the model names none"),
        ("com.microsoft.BiasGelu", "a", "y", "takes 2 inputs, the model gives 1"),
    ],
)
@pytest.mark.parametrize("where", ["graph", "branch", "function"])
def test_nodes_that_do_not_fit_are_named(op: str, inputs: str, outputs: str, message: str, where: str) -> None:
    domain, _, op_type = op.rpartition(".")
    lists = [["" if name == "-" else name for name in names] for names in (inputs, outputs)]
    node = helper.make_node(op_type, *lists, name="it", domain=domain)
    nodes, functions = [node], []
    if "y" not in outputs:
        nodes.append(helper.make_node("Neg", ["a"], ["y"]))
    if where == "branch":
        branch = graph_of(nodes, inputs=[])
        constant = helper.make_node("Constant", [], ["go"], value=numpy_helper.from_array(np.array(True)))
        nodes = [constant, helper.make_node("If", ["go"], ["y"], then_branch=branch, else_branch=branch)]
    if where == "function":
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        functions = [helper.make_function("f", "F", ["a", "b", "c"], ["y"], nodes, imports)]
        nodes = [helper.make_node("F", ["a", "b", "c"], ["y"], name="call", domain="f")]
    name = "call/it" if where == "function" else "it"
    with pytest.raises(InvalidModel, match=f"{op} '{name}': {message}"):
        load(nodes, functions)


@pytest.mark.parametrize(
    ("op", "inputs", "outputs"),
    [("Clip", ["a", "", "high"], ["y"]), ("Clip", ["a", "", ""], ["y"]), ("Dropout", ["a"], ["y", "mask"]), ("Concat", ["a"], ["y"])],
)  # fmt: skip
def test_what_may_be_left_out_may_be_left_out(op: str, inputs: list[str], outputs: list[str]) -> None:
    high = helper.make_node("Constant", [], ["high"], value_float=5.0)
    attributes = {"axis": 0} if op == "Concat" else {}
    model = load([high, helper.make_node(op, inputs, outputs, **attributes)])
    assert model(*[[1.0, 2.0]] * 3).tolist() == [1, 2]


@pytest.mark.parametrize("limits", [["n", ""], ["n"]])
def test_a_loop_that_only_counts(limits: list[str], tmp_path) -> None:
    info = helper.make_tensor_value_info
    nodes = [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["i"], ["element"])]
    body = helper.make_graph(
        nodes, "body", [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, [])],
        [info("on", TensorProto.BOOL, []), info("element", TensorProto.INT64, [])],
    )  # fmt: skip
    graph = helper.make_graph(
        [helper.make_node("Loop", limits, ["y"], body=body)], "g", [info("n", TensorProto.INT64, [])], [info("y", TensorProto.INT64, ["n"])]
    )
    model = qruntime.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())
    assert model(3).tolist() == [0, 1, 2]
    model.save(tmp_path / "m.onnx")
    assert list(onnx.load(tmp_path / "m.onnx").graph.node[0].input) == limits
    assert qruntime.load(tmp_path / "m.onnx")(3).tolist() == [0, 1, 2]


@pytest.mark.parametrize("data", [encoder_bytes(16, layers=1), recurrent_bytes("LSTM")], ids=["encoder", "LSTM"])
def test_no_mutation_of_inputs_or_outputs_confuses_a_pass(data: bytes) -> None:
    """Each is refused, or runs: with an error of ours where it must."""
    original = onnx.load_from_string(data)
    (x,) = qruntime.load(data).inputs
    feed = {x.name: np.ones([d if isinstance(d, int) else 3 for d in x.shape or ()], np.float32)}
    refused = 0
    for index, node in enumerate(original.graph.node):
        for field in ("input", "output"):
            names = list(getattr(node, field))
            more = ["", names[0]] if field == "input" else ["extra", "extra2"]
            changes = [[*names, more[0]], [*names, *more]]
            for i in range(len(names)):
                changes += [[*names[:i], *names[i + 1 :]], [*names[:i], "", *names[i + 1 :]]]
            for change in changes:
                mutated = onnx.ModelProto()
                mutated.CopyFrom(original)
                changed = getattr(mutated.graph.node[index], field)
                del changed[:]
                changed.extend(change)
                with contextlib.suppress(QRuntimeError):
                    refused += 1
                    qruntime.load(mutated.SerializeToString()).quantize_dynamic().run(feed)
                    refused -= 1
    assert refused > 10
