"""Models of a few nodes, written with onnx's own helpers so that our importer is not testing itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import qruntime

FLOAT = TensorProto.FLOAT
Info = tuple[str, int, Sequence[int | str | None] | None]


def model_bytes(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Info],
    outputs: Sequence[Info],
    weights: Mapping[str, np.ndarray] | None = None,
    opset: int = 17,
) -> bytes:
    graph = helper.make_graph(
        list(nodes),
        "small",
        [helper.make_tensor_value_info(*i) for i in inputs],
        [helper.make_tensor_value_info(*o) for o in outputs],
        [numpy_helper.from_array(np.asarray(data), name) for name, data in (weights or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return model.SerializeToString()


def one_node(
    op: str,
    inputs: Sequence[Info],
    outputs: Sequence[Info],
    weights: Mapping[str, np.ndarray] | None = None,
    opset: int = 17,
    threads: int | None = None,
    **attributes: Any,
) -> qruntime.Model:
    """A model of a single node that reads `inputs`, then `weights`."""
    names = [i[0] for i in inputs] + list(weights or {})
    node = helper.make_node(op, names, [o[0] for o in outputs], name=f"the_{op.lower()}", **attributes)
    return qruntime.load(model_bytes([node], inputs, outputs, weights, opset), threads=threads)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def linear_bytes(k: int = 16, n: int = 8, *, bias: bool = True, opset: int = 17, weight: np.ndarray | None = None) -> bytes:
    """y = relu(x @ w + b), x float32 [batch, k]."""
    weight = random(k, n) if weight is None else weight
    k, n = weight.shape
    weights = {"w": weight}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["product" if bias else "sum"], name="/fc/MatMul")]
    if bias:
        weights["b"] = random(n, seed=1)
        nodes.append(helper.make_node("Add", ["product", "b"], ["sum"], name="/fc/Add"))
    nodes.append(helper.make_node("Relu", ["sum"], ["y"], name="/act/Relu"))
    return model_bytes(nodes, [("x", FLOAT, ["batch", k])], [("y", FLOAT, ["batch", n])], weights, opset)


def recurrent_bytes(op: str, input_size: int = 5, hidden: int = 4, *, directions: int = 1, opset: int = 17, bias: bool = True) -> bytes:
    """x [time, batch, input_size] → y [time, directions, batch, hidden] and the last state."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    quarter = np.float32(0.25)  # larger weights make the states chaotic, and int8 follows another path than float
    weights = {
        "w": random(directions, gates * hidden, input_size),
        "r": random(directions, gates * hidden, hidden, seed=1) * quarter,
    }
    if bias:
        weights["b"] = random(directions, 2 * gates * hidden, seed=2) * quarter
    node = helper.make_node(
        op,
        ["x", *weights],
        ["y", "h"],
        name="rnn",
        hidden_size=hidden,
        direction="bidirectional" if directions == 2 else "forward",
    )
    inputs = [("x", FLOAT, ["time", "batch", input_size])]
    outputs = [("y", FLOAT, ["time", directions, "batch", hidden]), ("h", FLOAT, [directions, "batch", hidden])]
    return model_bytes([node], inputs, outputs, weights, opset)


def encoder_bytes(width: int = 32, *, layers: int = 2) -> bytes:
    """A small transformer encoder over x [batch, time, width] with a residual, layer norms and GELU."""
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, np.ndarray] = {"eps": np.float32(1e-5), "shape": np.array([0, 0, 4, width // 4], np.int64)}
    weights |= {
        "joined": np.array([0, 0, width], np.int64),
        "root2": np.float32(2**0.5),
        "one": np.float32(1),
        "half": np.float32(0.5),
    }
    weights["temperature"] = np.float32((width // 4) ** -0.5)

    def add(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], name=f"/{output}/{op}", **attributes))
        return output

    def linear(x: str, name: str, k: int, n: int) -> str:
        weights[f"{name}.w"] = random(k, n, seed=len(weights)) / np.float32(k**0.5)
        weights[f"{name}.b"] = random(n, seed=len(weights)) / np.float32(10)
        return add("Add", [add("MatMul", [x, f"{name}.w"], f"{name}.product"), f"{name}.b"], name)

    def normalize(x: str, name: str) -> str:
        weights[f"{name}.scale"], weights[f"{name}.shift"] = np.ones(width, np.float32), np.zeros(width, np.float32)
        return add("LayerNormalization", [x, f"{name}.scale", f"{name}.shift"], name, axis=-1)

    x = "x"
    for i in range(layers):
        heads = []
        for kind, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
            split = add("Reshape", [linear(x, f"l{i}.{kind}", width, width), "shape"], f"l{i}.{kind}.split")
            heads.append(add("Transpose", [split], f"l{i}.{kind}.heads", perm=perm))
        scores = add("Mul", [add("MatMul", heads[:2], f"l{i}.scores"), "temperature"], f"l{i}.scaled")
        mixed = add("MatMul", [add("Softmax", [scores], f"l{i}.weights", axis=-1), heads[2]], f"l{i}.mixed")
        mixed = add("Reshape", [add("Transpose", [mixed], f"l{i}.back", perm=[0, 2, 1, 3]), "joined"], f"l{i}.joined")
        x = normalize(add("Add", [x, linear(mixed, f"l{i}.out", width, width)], f"l{i}.sum1"), f"l{i}.norm1")
        up = linear(x, f"l{i}.up", width, 4 * width)
        erf = add("Add", [add("Erf", [add("Div", [up, "root2"], f"l{i}.g1")], f"l{i}.g2"), "one"], f"l{i}.g3")
        gelu = add("Mul", [add("Mul", [up, erf], f"l{i}.g4"), "half"], f"l{i}.gelu")
        x = normalize(add("Add", [x, linear(gelu, f"l{i}.down", 4 * width, width)], f"l{i}.sum2"), f"l{i}.norm2")
    add("Identity", [x], "y")
    return model_bytes(nodes, [("x", FLOAT, ["batch", "time", width])], [("y", FLOAT, ["batch", "time", width])], weights)


def assert_same_bits(a: np.ndarray, b: np.ndarray) -> None:
    """Equal bit for bit, NaN and the sign of zero included."""
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    same = (
        np.ascontiguousarray(a).view(np.uint8) == np.ascontiguousarray(b).view(np.uint8)
        if a.size and a.ndim
        else a.tobytes() == b.tobytes()
    )
    assert np.all(same), f"differ at {np.argwhere(a != b)[:5].tolist()}: {a[a != b][:5]} and {b[a != b][:5]}"
