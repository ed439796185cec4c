"""Model.profile: every node is timed, and the forms it is written in agree."""

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

import qruntime
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
    assert "nodes: 1 numpy" in model.summary(feed)
    assert "not native: Abs ×1" in model.summary()
