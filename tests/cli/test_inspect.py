from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from tests.cli.conftest import SHAKESPEARE, Command, save


def test_text(command: Command, linear: Path) -> None:
    done = command("inspect", linear)
    assert done.code == 0
    assert done.err == ""
    assert "x: float32[batch, 8]" in done.out
    assert "z: float32[4, 4]" in done.out
    assert "MatMul ×3" in done.out
    assert "No layer is quantized." in done.out
    assert "\x1b" not in done.out


def test_json(command: Command, linear: Path) -> None:
    found = command("inspect", linear, "--json").json
    assert found["schema"] == 1
    assert found["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["batch", 8]}]
    assert found["opset"] == {"": 17}
    assert found["producer"]["name"] == "tests"
    assert found["operators"] == {"MatMul": 3, "Relu": 1, "Transpose": 1}
    assert found["parameters"] == 8 * 4 + 4 * 4
    assert found["file_bytes"] == linear.stat().st_size
    assert sum(found["runs"].values()) >= 4
    assert "nodes" not in found
    assert "weights" not in found


def test_nodes_and_weights(command: Command, linear: Path) -> None:
    found = command("inspect", linear, "--nodes", "--weights", "--json").json
    assert {node["source"] for node in found["nodes"]} <= {"native", "numpy", "reference"}
    assert "/MatMul" in {node["name"] for node in found["nodes"]}
    assert {"name": "w", "dtype": "float32", "shape": [8, 4], "bytes": 128} in found["weights"]
    text = command("inspect", linear, "--nodes", "--weights").out
    assert "/head/MatMul" in text
    assert "8×4" in text


def test_a_quantized_model_has_as_many_parameters(command: Command, tmp_path: Path) -> None:
    target = tmp_path / "int8.onnx"
    command("convert", SHAKESPEARE, target, "--per-channel")
    before, after = command("inspect", SHAKESPEARE, "--json").json, command("inspect", target, "--json").json
    assert before["parameters"] == after["parameters"] == 1_096_609
    assert [layer["op_type"] for layer in after["quantized"]] == ["LSTM", "LSTM", "MatMul"]
    assert before["metadata"] == after["metadata"]


def test_names_do_not_drive_the_terminal(command: Command, tmp_path: Path) -> None:
    name = "\x1b[2J\n\u202eevil" + "x" * 5000
    x = helper.make_tensor_value_info(name, TensorProto.FLOAT, ["\x1b]0;\x07"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    node = helper.make_node("MatMul", [name, "\x1bw"], ["y"], name=name)
    path = save(tmp_path / "m.onnx", [node], [x], [y], {"\x1bw": np.ones((2, 2), np.float32)})
    done = command("inspect", path, "--nodes", "--weights")
    assert done.code == 0
    assert "\x1b" not in done.out
    assert "\x07" not in done.out
    assert "\u202e" not in done.out
    assert max(map(len, done.out.splitlines())) < 300
    assert command("inspect", path, "--nodes", "--json").json["nodes"][0]["inputs"][0] == name


def test_subgraphs_are_counted(command: Command, tmp_path: Path) -> None:
    branches = {}
    for branch, op in (("then_branch", "Neg"), ("else_branch", "Abs")):
        out = helper.make_tensor_value_info(branch, TensorProto.FLOAT, None)
        branches[branch] = helper.make_graph([helper.make_node(op, ["x"], [branch])], branch, [], [out])
    node = helper.make_node("If", ["c"], ["y"], **branches)
    c = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    path = save(tmp_path / "if.onnx", [node], [c, x], [y], {})
    found = command("inspect", path, "--json").json
    assert found["operators"] == {"If": 1, "Neg": 1, "Abs": 1}
    assert sum(found["runs"].values()) == 3


def test_models_that_others_quantized(command: Command, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])
    y = helper.make_tensor_value_info("y", TensorProto.INT32, [2, 2])
    path = save(tmp_path / "m.onnx", nodes, [x], [y], {"w": np.ones((2, 2), np.int8)})
    done = command("inspect", path)
    assert "quantized by another tool:\n  DynamicQuantizeLinear ×1, MatMulInteger ×1" in done.out
    assert "No layer is quantized" not in done.out
    assert command("inspect", path, "--json").json["quantized_by_others"] == {
        "DynamicQuantizeLinear": 1,
        "MatMulInteger": 1,
    }


def test_a_kernel_that_declines_is_not_named(command: Command, tmp_path: Path) -> None:
    int16 = TensorProto.INT16
    x, y = (helper.make_tensor_value_info(name, int16, [4]) for name in "xy")
    path = save(tmp_path / "abs.onnx", [helper.make_node("Abs", ["x"], ["y"])], [x], [y], {})
    (node,) = command("inspect", path, "--nodes", "--json").json["nodes"]
    assert (node["source"], node["kernel"]) == ("numpy", None)


def test_shares_of_a_run(command: Command, tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.INT16, ["n", 2]) for name in "xy")
    path = save(tmp_path / "m.onnx", [helper.make_node("Abs", ["x"], ["y"])], [x], [y], {})
    found = command("inspect", path, "--json", "--shape", "n=3").json["run"]
    assert found["inputs"] == {"x": [3, 2]}
    assert found["seconds"] > 0
    assert found["shares"] == {"numpy": 1.0}
    assert found["without_kernel"] == [{"operator": "Abs", "ran_as": "numpy", "nodes": 1, "share": 1.0}]
    text = command("inspect", path).out
    assert "on x[1, 2]: 100.0% numpy" in text
    assert "not native: Abs ×1 100.0% (numpy)" in text
    assert "guessed n=1" in text


def test_what_cannot_be_run_is_inspected_all_the_same(command: Command, tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in "xy")
    path = save(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "x"], ["y"])], [x], [y], {})
    done = command("inspect", path)
    assert done.code == 0
    assert "time: not measured, " in done.out
    found = command("inspect", path, "--json").json["run"]
    assert found["seconds"] is None
    assert "MatMul" in found["reason"]
    assert command("inspect", path, "--shape", "z=1").code == 2
