"""Definitions may return views of their inputs; what leaves a run must own its bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

import qruntime


def _load(path: Path, nodes: list[onnx.NodeProto], inputs: list[str], output: onnx.ValueInfoProto) -> qruntime.Model:
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in inputs]
    graph = helper.make_graph(nodes, "g", infos, [output])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return qruntime.load(path)


def test_a_branch_that_returns_what_it_captures(tmp_path: Path) -> None:
    """The captured tensor is borrowed there; its bytes are gone when the branch has run."""

    def branch(name: str, op_type: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"])
        return helper.make_graph([helper.make_node(op_type, ["y", "x"][: 2 if op_type == "CastLike" else 1], [name])], name, [], [out])

    nodes = [
        helper.make_node("Add", ["x", "x"], ["y"]),
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Cast", ["s"], ["c"], to=TensorProto.BOOL),
        helper.make_node("If", ["c"], ["z"], then_branch=branch("t", "CastLike"), else_branch=branch("e", "Neg")),
        helper.make_node("Add", ["z", "z"], ["w"]),
        helper.make_node("Add", ["w", "y"], ["v"]),
        helper.make_node("Add", ["v", "z"], ["out"]),
    ]
    model = _load(tmp_path / "m.onnx", nodes, ["x"], helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n"]))
    x = np.arange(1, 2000, dtype=np.float32)
    for _ in range(3):
        np.testing.assert_array_equal(model.run({"x": x})["out"], 8 * x)


def test_sequences_outlive_the_inputs_they_hold(tmp_path: Path) -> None:
    out = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    model = _load(tmp_path / "m.onnx", [helper.make_node("SequenceConstruct", ["x", "y"], ["s"])], ["x", "y"], out)
    x, y = np.ones(1000, np.float32), np.full(1000, 2, np.float32)
    (first, second) = model.run({"x": x, "y": y})["s"]
    assert not np.shares_memory(first, x)
    x[:], y[:] = 7, 7
    assert (first == 1).all()
    assert (second == 2).all()


def test_an_output_never_shares_memory_with_an_input(tmp_path: Path) -> None:
    like = helper.make_node("CastLike", ["x", "y"], ["out"])
    model = _load(tmp_path / "m.onnx", [like], ["x", "y"], helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n"]))
    x = np.ones(1000, np.float32)
    out = model.run({"x": x, "y": x})["out"]
    assert not np.shares_memory(out, x)
    assert out.flags.owndata or out.base is not None
