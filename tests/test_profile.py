"""Model.profile: every node is timed, and the forms it is written in agree."""

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

import qruntime
from qruntime.ir import Node, Value
from qruntime.runtime.plan import PlannedNode
from qruntime.runtime.profile import make_profile
from tests.small_models import model_bytes

SHAKESPEARE = Path(__file__).parent.parent / "examples" / "shakespeare" / "shakespeare.onnx"


@pytest.fixture(scope="module")
def profile():
    model = qruntime.load(SHAKESPEARE, threads=1).quantize_dynamic()
    state = np.zeros((2, 1, 288), np.float32)
    return model.profile({"ids": np.zeros((16, 1), np.int64), "h": state, "c": state}, repeat=3)


def test_every_node_is_timed(profile):
    assert all(node.seconds > 0 for node in profile.nodes)
    operators = {operator: (kernel, count) for operator, kernel, count, _ in profile.by_operator()}
    assert operators["DynamicQuantizedLSTM"] == ("lstm", 2)
    assert operators["DynamicQuantizedLinear"] == ("linear_q8", 1)
    assert sum(row[3] for row in profile.by_operator()) == pytest.approx(profile.seconds)


def test_operations_are_products_with_weights(profile):
    steps, hidden = 16, 288
    found = {node.op_type: node.operations for node in profile.nodes if node.operations is not None}
    assert found["DynamicQuantizedLSTM"] == 2 * steps * 2 * hidden * 4 * hidden  # the second layer: input as wide as state
    assert found["DynamicQuantizedLinear"] % (2 * steps * hidden) == 0
    assert {node.op_type for node in profile.nodes if node.operations is None} & {"Gather", "Slice", "Squeeze"}


@pytest.mark.parametrize(("group", "window"), [(1, (3, 3)), (24, (3, 3)), (2, (1, 1)), (1, (5,))])
def test_operations_of_convolutions(group, window):
    channels, maps, size = 24, 48 if group < 24 else 24, 12
    weights = {"w": np.ones((maps, channels // group, *window), np.float32)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], group=group), helper.make_node("Relu", ["y"], ["z"])]
    infos = [("x", TensorProto.FLOAT, ["n", channels, *[size] * len(window)])], [("z", TensorProto.FLOAT, None)]
    model = qruntime.load(model_bytes(nodes, *infos, weights))
    positions = np.prod([size - taps + 1 for taps in window])
    wanted = 2 * 3 * positions * weights["w"].size
    feed = {"x": np.ones((3, channels, *[size] * len(window)), np.float32)}
    for run in (model, model.quantize_dynamic({"Conv"})):
        counted = [node.operations for node in run.profile(feed, repeat=1).nodes if "Conv" in node.op_type]
        assert counted == [wanted]


def test_operations_of_layers_on_codes():
    def one(value, dtype):
        return np.full((), value, dtype)

    scales = {"s": one(0.1, np.float32), "z": one(3, np.uint8), "zw": one(0, np.int8)}
    codes = {"w": np.ones((8, 4, 3, 3), np.int8), "v": np.ones((8 * 49, 20), np.int8)}
    nodes = [
        helper.make_node("QLinearConv", ["x", "s", "z", "w", "s", "zw", "s", "z"], ["c"]),
        helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("QLinearMatMul", ["f", "s", "z", "v", "s", "zw", "s", "z"], ["y"]),
    ]
    infos = [("x", TensorProto.UINT8, ["n", 4, 9, 9])], [("y", TensorProto.UINT8, None)]
    model = qruntime.load(model_bytes(nodes, *infos, {**scales, **codes}))
    counted = {node.op_type: node.operations for node in model.profile({"x": np.ones((2, 4, 9, 9), np.uint8)}, repeat=1).nodes}
    assert counted["QLinearConv"] == 2 * 2 * 49 * codes["w"].size
    assert counted["QLinearMatMul"] == 2 * 2 * codes["v"].size


def test_written_forms_agree(profile):
    table = str(profile).splitlines()
    assert len(table) == len(profile.by_operator()) + 2
    data = json.loads(profile.to_json())
    assert data["schema"] == 1
    assert len(data["nodes"]) == len(profile.nodes)
    events = json.loads(profile.to_chrome_trace())["traceEvents"]
    assert [event["cat"] for event in events] == [node.op_type for node in profile.nodes]
    assert events[-1]["ts"] + events[-1]["dur"] == pytest.approx(profile.seconds * 1e6)


def test_wrong_arguments_are_refused():
    model = qruntime.load(SHAKESPEARE)
    with pytest.raises(qruntime.InputError, match="missing input 'ids'"):
        model.profile({})
    with pytest.raises(qruntime.InputError, match="at least 1"):
        model.profile({}, repeat=0)


def test_what_a_kernel_declines_is_called_numpy():
    nodes = [helper.make_node("Abs", ["x"], ["y"])]
    model = qruntime.load(model_bytes(nodes, [("x", TensorProto.INT16, ["n"])], [("y", TensorProto.INT16, ["n"])]))
    feed = {"x": np.arange(-4, 4, dtype=np.int16)}
    assert [(node.op_type, node.kernel) for node in model.profile(feed, repeat=1).nodes] == [("Abs", None)]
    profile = model.profile(feed, repeat=1)
    assert profile.shares() == {"numpy": 1.0}
    assert [row[:3] for row in profile.without_kernel()] == [("Abs", "numpy", 1)]
    assert str(profile).endswith("without a kernel: 100.0% numpy")
    assert "nodes: 1 numpy" in model.summary(feed)
    assert "not native: Abs ×1" in model.summary()


def test_what_onnx_reference_runs_is_called_so():
    node = Node("Odd", [], [Value("y")], name="odd")
    made = make_profile([PlannedNode(node, None, None, (), "reference")], [[(1e-6, -1)]])
    assert made.by_operator()[0][:2] == ("Odd", "reference")
    assert "reference" in str(made)
    assert json.loads(made.to_chrome_trace())["traceEvents"][0]["args"] == {"kernel": "reference"}


def test_what_is_in_a_subgraph_counts_as_it_ran_too():
    a, n = (helper.make_tensor_value_info(name, TensorProto.INT16, None) for name in "an")
    branch = helper.make_graph([helper.make_node("Abs", ["x"], ["a"])], "b", [], [a])
    other = helper.make_graph([helper.make_node("Neg", ["x"], ["n"])], "o", [], [n])
    nodes = [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=other)]
    inputs = [("x", TensorProto.INT16, ["n"]), ("c", TensorProto.BOOL, [])]
    model = qruntime.load(model_bytes(nodes, inputs, [("y", TensorProto.INT16, None)]))
    plan = model._tried({"x": np.arange(-4, 4, dtype=np.int16), "c": np.array(True)})
    ran = {call.node.op_type: call.kernel for below in plan.walk() for call in below.as_run()}
    assert ran["Abs"] is None
    assert ran["Neg"] is not None  # never ran: as planned


def test_the_summary_tells_of_the_run_that_was_asked_for():
    """A model of which a weight is fed has another plan, with declines of its own."""
    nodes = [helper.make_node("Abs", ["w"], ["a"]), helper.make_node("Add", ["x", "a"], ["y"])]
    infos = [("x", TensorProto.INT16, ["n"]), ("w", TensorProto.INT16, ["n"])]
    data = model_bytes(nodes, infos, [("y", TensorProto.INT16, None)], {"w": np.arange(-2, 2, dtype=np.int16)})
    model = qruntime.load(data)
    x = np.arange(4, dtype=np.int16)
    assert "Abs" not in model.summary({"x": x})
    assert "Abs ×1" in model.summary({"x": x, "w": x})


def test_shares_are_of_the_whole_time():
    nodes = [Node(op, [], [Value(op)], name=op) for op in ("Abs", "Neg", "Odd", "Odd")]
    planned = [PlannedNode(node, None, None, (), source) for node, source in zip(nodes, ("numpy", "numpy", "reference", "reference"))]
    made = make_profile(planned, [[(2e-6, -1), (1e-6, -1), (4e-6, -1), (1e-6, -1)]])
    assert made.shares() == pytest.approx({"numpy": 3 / 8, "reference": 5 / 8})
    assert [row[:3] for row in made.without_kernel()] == [("Odd", "reference", 2), ("Abs", "numpy", 1), ("Neg", "numpy", 1)]
    assert [row[3] for row in made.without_kernel()] == pytest.approx([5 / 8, 2 / 8, 1 / 8])


def test_the_time_of_a_branch_is_not_that_of_numpy():
    a = helper.make_tensor_value_info("a", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Neg", ["x"], ["a"])], "b", [], [a])
    nodes = [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)]
    inputs = [("c", TensorProto.BOOL, []), ("x", TensorProto.FLOAT, ["n"])]
    model = qruntime.load(model_bytes(nodes, inputs, [("y", TensorProto.FLOAT, ["n"])]))
    profile = model.profile({"c": np.bool_(True), "x": np.zeros(3, np.float32)}, repeat=1)
    assert profile.shares() == {"subgraphs": 1.0}
    assert [row[:3] for row in profile.without_kernel()] == [("If", "subgraphs", 1)]
