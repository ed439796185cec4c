"""Which files belong to a model."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qruntime.errors import InvalidModel
from qruntime.onnx_io.model_files import model_files, size_on_disk


def elsewhere(name: str, location: str, count: int, offset: int = 0) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[count], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": offset, "length": 4 * count}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def test_a_model_of_one_file_is_as_large_as_the_file(tmp_path: Path) -> None:
    """Its weights may be larger: constants that folding makes are in no file."""
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"], value=numpy_helper.from_array(np.zeros(1, np.float32))),
        helper.make_node("Add", ["x", "zeros"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [500, 500]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(np.array([500, 500]), "shape")])
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph), path)
    (tmp_path / "m.onnx.data").write_bytes(bytes(1000))  # of somebody else
    assert model_files(path) == [os.path.realpath(path)]
    assert size_on_disk(path) == path.stat().st_size < 1000


def test_every_file_that_a_tensor_lies_in_counts_once(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["b"], value=elsewhere("", "branch.bin", 3))],
        "branch", [], [helper.make_tensor_value_info("b", TensorProto.FLOAT, [3])],
    )  # fmt: skip
    nodes = [
        helper.make_node("If", ["c"], ["t"], then_branch=branch, else_branch=branch),
        helper.make_node("F", ["t"], ["y"], domain="f"),
    ]
    body = [helper.make_node("Constant", [], ["k"], value=elsewhere("", "function.bin", 3)), helper.make_node("Add", ["a", "k"], ["r"])]
    function = helper.make_function("f", "F", ["a"], ["r"], body, [helper.make_opsetid("", 17)])
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])],
        [elsewhere("v", "shared.bin", 2), elsewhere("w", "shared.bin", 2, 8), elsewhere("u", "./shared.bin", 2)],
    )  # fmt: skip
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(graph, functions=[function]).SerializeToString())
    for name, size in (("shared.bin", 4096), ("branch.bin", 12), ("function.bin", 12)):
        (tmp_path / name).write_bytes(bytes(size))
    assert sorted(map(os.path.basename, model_files(path))) == ["branch.bin", "function.bin", "m.onnx", "shared.bin"]
    assert size_on_disk(path) == path.stat().st_size + 4096 + 12 + 12
    os.unlink(tmp_path / "function.bin")
    with pytest.raises(InvalidModel, match=r"no file 'function.bin'"):
        size_on_disk(path)


def test_links_are_followed(tmp_path: Path) -> None:
    blobs, folder = tmp_path / "blobs", tmp_path / "models"
    blobs.mkdir(), folder.mkdir()
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "g",
        *([helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])] for name in "xy"), [elsewhere("w", "w.bin", 2)],
    )  # fmt: skip
    (blobs / "a").write_bytes(helper.make_model(graph).SerializeToString())
    (blobs / "b").write_bytes(bytes(100))
    os.symlink("../blobs/a", folder / "m.onnx")
    os.symlink("../blobs/b", folder / "w.bin")
    assert size_on_disk(folder / "m.onnx") == (blobs / "a").stat().st_size + 100
