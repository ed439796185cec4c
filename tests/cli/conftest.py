"""Small models, and a way to run the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qruntime.cli.main import main

SHAKESPEARE = Path(__file__).parents[2] / "examples" / "shakespeare" / "shakespeare.onnx"


class Finished(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out)


Command = Callable[..., Finished]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: object) -> Finished:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        return Finished(code, *capfd.readouterr())

    return run


def save(path: Path, nodes: list, inputs: list, outputs: list, constants: dict[str, np.ndarray]) -> Path:
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(data, name) for name, data in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="tests")
    model.ir_version = 8
    onnx.save(model, path)
    return path


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    """x [batch, 8] · W [8, 4] · V [4, 4], two Linears, and a MatMul of computed inputs."""
    random = np.random.default_rng(0)
    constants = {name: random.standard_normal((n, 4)).astype(np.float32) for name, n in (("w", 8), ("v", 4))}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="/encoder/layer.0/fc/MatMul"),
        helper.make_node("Relu", ["a"], ["r"], name="/encoder/layer.0/Relu"),
        helper.make_node("MatMul", ["r", "v"], ["y"], name="/head/MatMul"),
        helper.make_node("Transpose", ["y"], ["t"], name="/Transpose", perm=[1, 0]),
        helper.make_node("MatMul", ["t", "y"], ["z"], name="/MatMul"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, [4, 4])
    return save(tmp_path / "linear.onnx", nodes, [x], [y, z], constants)


@pytest.fixture
def lookup(tmp_path: Path) -> Path:
    """ids [batch, sequence] into a table of 5 rows, times a mask."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Cast", ["mask"], ["m"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["m", "last"], ["u"]),
        helper.make_node("Mul", ["rows", "u"], ["y"]),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"])
    mask = helper.make_tensor_value_info("mask", TensorProto.INT64, ["batch", "sequence"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "sequence", 3])
    constants = {"table": np.arange(15, dtype=np.float32).reshape(5, 3), "last": np.array([2])}
    return save(tmp_path / "lookup.onnx", nodes, [ids, mask], [y], constants)


@pytest.fixture
def scaled(tmp_path: Path) -> Callable[[float], Path]:
    """Models y = x · factor for x [n]."""

    def make(factor: float, output: str = "y") -> Path:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
        y = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n"])
        nodes = [helper.make_node("Mul", ["x", "factor"], [output])]
        return save(tmp_path / f"scaled_{factor}_{output}.onnx", nodes, [x], [y], {"factor": np.float32([factor])})

    return make
