"""Sequences through Loop: what grows step by step is not copied step by step, and belongs to the caller in the end."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

import qruntime
from tests.small_models import FLOAT


def _growing(read: str) -> qruntime.Model:
    """A Loop that inserts x + i into a sequence, n times; `read` is the operator that reads the sequence, or Identity."""
    body = helper.make_graph(
        [
            helper.make_node("Cast", ["i"], ["f"], to=FLOAT),
            helper.make_node("Add", ["x", "f"], ["element"]),
            helper.make_node("SequenceInsert", ["grown", "element"], ["longer"]),
            helper.make_node("SequenceInsert", ["longer", "x"], ["longest"]),
            helper.make_node("Identity", ["go"], ["go_on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_sequence_value_info("grown", FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_sequence_value_info("longest", FLOAT, None),
        ],
    )
    last = helper.make_node(read, ["made"], ["y"], **({"axis": 0} if read == "ConcatFromSequence" else {}))
    output = helper.make_tensor_value_info("y", FLOAT, None)
    if read == "Identity":
        output = helper.make_tensor_sequence_value_info("y", FLOAT, None)
    graph = helper.make_graph(
        [
            helper.make_node("SequenceEmpty", [], ["empty"]),
            helper.make_node("Loop", ["n", "", "empty"], ["made"], body=body),
            last,
        ],
        "g",
        [helper.make_tensor_value_info("n", TensorProto.INT64, []), helper.make_tensor_value_info("x", FLOAT, [1, 4])],
        [output],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return qruntime.load(proto.SerializeToString())


def _expected(x: np.ndarray, n: int) -> np.ndarray:
    return np.concatenate([row for i in range(n) for row in (x + np.float32(i), x)])


@pytest.mark.parametrize("n", [1, 300])
def test_a_sequence_grown_in_a_loop(n: int):
    x = np.arange(4, dtype=np.float32)[None]
    for _ in range(2):  # the second run finds the frames of the first
        y = _growing("ConcatFromSequence").run({"n": np.array(n), "x": x})["y"]
        np.testing.assert_array_equal(y, _expected(x, n))


def test_elements_of_a_result_belong_to_the_caller():
    model, x = _growing("Identity"), np.arange(4, dtype=np.float32)[None]
    first = model.run({"n": np.array(3), "x": x})["y"]
    kept = x.copy()
    x += 100
    np.testing.assert_array_equal(np.concatenate(first), _expected(kept, 3))
    for element in first:
        element[:] = -1
    np.testing.assert_array_equal(np.concatenate(model.run({"n": np.array(3), "x": kept})["y"]), _expected(kept, 3))


def test_a_run_that_shares_hands_elements_on():
    """What Loop relies on: its body's results are the elements that went in, not copies."""
    value = helper.make_tensor_sequence_value_info
    graph = helper.make_graph(
        [helper.make_node("SequenceInsert", ["s", "x"], ["t"])],
        "g",
        [value("s", FLOAT, None), helper.make_tensor_value_info("x", FLOAT, [2])],
        [value("t", FLOAT, None)],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = qruntime.load(proto.SerializeToString())
    given, x = [np.ones(2, np.float32)], np.zeros(2, np.float32)
    executable = model._plan(("t",)).executable
    (shared,) = executable.run([given, x], shared=True)
    assert shared[0] is given[0]
    assert len(given) == 1
    assert np.shares_memory(shared[1], x)
    (owned,) = executable.run([given, x])
    assert not any(np.shares_memory(a, b) for a, b in zip(owned, [given[0], x], strict=True))
