"""Rows that layers inside of branches and loops read are those of their runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import qruntime
from qruntime.quantization.calibration import Calibration
from qruntime.quantization.layers import layer_of
from qruntime.quantization.nested_rows import outermost
from tests.small_models import FLOAT, model_bytes, random

K = 6
WEIGHT = random(K, K) / 2
N = helper.make_node


def body(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: dict[str, np.ndarray] | None = None) -> onnx.GraphProto:
    return helper.make_graph(nodes, "body", inputs, outputs, [numpy_helper.from_array(w, n) for n, w in (weights or {}).items()])


def floats(name: str, *shape: Any) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, FLOAT, shape)


def scalar(name: str, dtype: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, [])


def loop(prefix: str = "", rounds: str = "rounds") -> onnx.NodeProto:
    """state ← tanh(state · w), with each state given out beside the last one."""
    names = [f"{prefix}{name}" for name in ("state", "product", "next", "goes", "go", "each")]
    state, product, after, goes, go, each = names
    nodes = [N("MatMul", [state, "w"], [product], name=f"{prefix}inside"), N("Tanh", [product], [after]),
             N("Identity", [go], [goes]), N("Identity", [after], [each])]  # fmt: skip
    inputs = [scalar(f"{prefix}round", TensorProto.INT64), scalar(go, TensorProto.BOOL), floats(state, "m", K)]
    made = body(nodes, inputs, [scalar(goes, TensorProto.BOOL), floats(after, "m", K), floats(each, "m", K)])
    return N("Loop", [rounds, "", "x"], [f"{prefix}last", f"{prefix}all"], body=made, name=f"{prefix}loop")


def seen(nodes: list[onnx.NodeProto], output: str, name: str, feeds: list[np.ndarray], **weights: np.ndarray) -> list[np.ndarray]:
    held = {"w": WEIGHT, "rounds": np.int64(3), "none": np.int64(0), **weights}
    graph = qruntime.load(model_bytes(nodes, [("x", FLOAT, ["m", K])], [(output, FLOAT, None)], held)).graph
    (node,) = (node for node in graph.walk_nodes() if node.name == name)
    assert outermost(graph, node) is next(one for one in graph.nodes if one.subgraphs)
    before = [(one.op_type, len(one.outputs)) for one in graph.walk_nodes()]
    layer = layer_of(node)
    assert layer is not None
    (group,) = Calibration(graph, [{"x": x} for x in feeds], num_threads=1).groups([layer])
    (found,) = group.rows(layer)
    assert [(one.op_type, len(one.outputs)) for one in graph.walk_nodes()] == before
    return found


def states(x: np.ndarray, rounds: int = 3) -> np.ndarray:
    rows = []
    for _ in range(rounds):
        rows.append(x)
        x = np.tanh(x @ WEIGHT)
    return np.concatenate(rows)


def test_of_a_loop_all_rounds():
    x = random(4, K, seed=1)
    (rows,) = seen([loop()], "last", "inside", [x])
    np.testing.assert_allclose(rows, states(x), atol=1e-5)
    assert seen([loop(rounds="none")], "last", "inside", [x]) == []


def choice(then: onnx.GraphProto) -> list[onnx.NodeProto]:
    other = body([N("Neg", ["x"], ["negative"])], [], [floats("negative", "m", K)])
    condition = [N("ReduceSum", ["x"], ["sum"], keepdims=0), N("Greater", ["sum", "zero"], ["is_above"])]
    return [*condition, N("If", ["is_above"], ["y"], then_branch=then, else_branch=other, name="if")]


def test_of_a_branch_the_feeds_that_take_it():
    then = body([N("Abs", ["x"], ["a"]), N("MatMul", ["a", "w"], ["t"], name="inside")], [], [floats("t", "m", K)])
    feeds = [np.abs(random(3, K, seed=i)) * sign for i, sign in enumerate((1, -1, 1))]
    rows = seen(choice(then), "y", "inside", feeds, zero=np.float32(0))
    assert [len(one) for one in rows] == [3, 0, 3]
    np.testing.assert_array_equal(rows[2], np.abs(feeds[2]))
    captured = body([N("MatMul", ["x", "w"], ["t"], name="inside")], [], [floats("t", "m", K)])
    rows = seen(choice(captured), "y", "inside", feeds, zero=np.float32(0))
    assert [len(one) for one in rows] == [3, 0, 3]


def test_of_a_loop_in_a_branch():
    then = body([loop("in_"), N("Identity", ["in_last"], ["t"])], [], [floats("t", "m", K)])
    feeds = [np.abs(random(3, K, seed=i)) * sign for i, sign in enumerate((1, -1))]
    rows = seen(choice(then), "y", "in_inside", feeds, zero=np.float32(0))
    np.testing.assert_allclose(rows[0], states(feeds[0]), atol=1e-5)
    assert rows[1].shape == (0, K)


def test_of_a_scan_all_steps():
    """state ← tanh((state + element) · w) over the rows of x, from zeros."""
    nodes = [N("Add", ["state", "element"], ["sum"]), N("MatMul", ["sum", "w"], ["product"], name="inside"),
             N("Tanh", ["product"], ["next"]), N("Identity", ["next"], ["each"])]  # fmt: skip
    made = body(nodes, [floats("state", 1, K), floats("element", K)], [floats("next", 1, K), floats("each", 1, K)])
    scan = N("Scan", ["start", "x"], ["last", "all"], body=made, num_scan_inputs=1, scan_output_axes=[0], name="scan")
    x = random(5, K, seed=2)
    (rows,) = seen([scan], "last", "inside", [x], start=np.zeros((1, K), np.float32))
    state, wanted = np.zeros((1, K), np.float32), []
    for element in x:
        wanted.append(state + element)
        state = np.tanh(wanted[-1] @ WEIGHT)
    np.testing.assert_allclose(rows, np.concatenate(wanted), atol=1e-5)
