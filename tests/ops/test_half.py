"""float16 and bfloat16: an operator's result is that of float32 on the same numbers, rounded once, and kernels compute it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

import qruntime
from qruntime import _kernels
from qruntime.ops.registry import find
from tests.small_models import assert_same_bits, model_bytes

HALVES = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
INDEX = TensorProto.INT64


def half_dtype(name: str) -> np.dtype:
    if name == "float16":
        return np.dtype(np.float16)
    return np.dtype(pytest.importorskip("ml_dtypes").bfloat16)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def model(op: str, weights: list[np.ndarray | None], attributes: dict[str, Any], code: int, opset: int, outputs: int = 1, threads: int = 1):
    names = ["" if w is None else f"w{i}" for i, w in enumerate(weights)]
    node = helper.make_node(op, ["x", *names], [f"y{i}" for i in range(outputs)], **attributes)
    constants = {name: w for name, w in zip(names, weights, strict=True) if w is not None}
    out = INDEX if op.startswith("Arg") else TensorProto.BOOL if op in ("Less", "Equal") else code
    data = model_bytes([node], [("x", code, None)], [(f"y{i}", out, None) for i in range(outputs)], constants, opset)
    return qruntime.load(data, threads=threads)


def runs_natively(loaded: qruntime.Model) -> bool:
    return "not native" not in loaded.summary()


AXIS = np.array([1], np.int64)
LARGE = (7, 100, 300)  # goes by slices of rows, on three threads too
# operator, shape of x, further inputs, attributes, outputs
CASES: list[tuple[str, tuple[int, ...], list[np.ndarray | None], dict[str, Any], int]] = [
    *((op, (5, 33), [], {}, 1) for op in ("Relu", "Erf", "Sigmoid", "Tanh", "Exp", "Log", "Sqrt", "Gelu", "Neg", "Abs", "Round")),
    *((op, (5, 33), [normal(33, seed=1)], {}, 1) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Less", "Equal")),
    ("Add", (), [normal(1, seed=1).reshape(())], {}, 1),
    ("Relu", (0, 7), [], {}, 1),
    ("LeakyRelu", (5, 33), [], {"alpha": 0.3}, 1),
    ("Softmax", (5, 33), [], {}, 1), ("LogSoftmax", (5, 33), [], {"axis": 0}, 1),
    ("LayerNormalization", (5, 33), [normal(33, seed=1), normal(33, seed=2)], {}, 1),
    ("BatchNormalization", (3, 4, 5), [normal(4), normal(4, seed=1), normal(4, seed=2), np.abs(normal(4, seed=3))], {}, 1),
    ("ReduceSum", (5, 33), [AXIS], {}, 1), ("ReduceMean", (5, 33), [AXIS], {}, 1), ("ReduceMax", (5, 33), [AXIS], {"keepdims": 0}, 1),
    ("Softmax", LARGE, [], {}, 1), ("LogSoftmax", LARGE, [], {"axis": 1}, 1), ("Softmax", LARGE, [], {"axis": 0}, 1),
    ("LayerNormalization", LARGE, [normal(300, seed=1), normal(300, seed=2)], {}, 1),
    ("LayerNormalization", LARGE, [normal(100, 300, seed=1), None], {"axis": -2}, 1),
    ("ReduceMean", LARGE, [np.array([-1], np.int64)], {"keepdims": 0}, 1), ("ReduceMax", LARGE, [AXIS], {}, 1),
    ("ReduceL2", LARGE, [np.array([2, -2], np.int64)], {}, 1), ("ReduceSum", LARGE, [np.array([0], np.int64)], {}, 1),
    ("ReduceProd", (3, 5, 70, 70, 3), [np.array([4, 2], np.int64)], {"keepdims": 0}, 1), ("ReduceSum", LARGE, [], {}, 1),
    ("BatchNormalization", (3, 4, 70, 70), [normal(4), normal(4, seed=1), normal(4, seed=2), np.abs(normal(4, seed=3))], {}, 1),
    ("ArgMax", (5, 33), [], {"axis": 1}, 1),
    ("MatMul", (5, 300), [normal(300, 33, seed=1)], {}, 1), ("MatMul", (2, 5, 30), [normal(2, 30, 7, seed=1)], {}, 1),
    ("Gemm", (5, 300), [normal(300, 33, seed=1), normal(33, seed=2)], {}, 1),
    ("Gemm", (5, 300), [normal(33, 300, seed=1), normal(33, seed=2)], {"transB": 1, "alpha": 0.3, "beta": 2.0}, 1),
    ("Conv", (2, 8, 9, 9), [normal(6, 8, 3, 3, seed=1), normal(6, seed=2)], {"pads": [1] * 4}, 1),
    ("Conv", (2, 8, 9, 9), [normal(8, 1, 3, 3, seed=1)], {"group": 8}, 1),
    ("MaxPool", (2, 3, 9, 9), [], {"kernel_shape": [3, 3]}, 1),
    ("AveragePool", (2, 3, 9, 9), [], {"kernel_shape": [2, 2], "strides": [2, 2]}, 1),
    ("GridSample", (2, 3, 9, 9), [0.5 * normal(2, 4, 5, 2, seed=1)], {}, 1),
    ("GlobalAveragePool", (2, 3, 9, 9), [], {}, 1),
    ("LSTM", (7, 3, 8), [normal(1, 40, 8, seed=1), normal(1, 40, 10, seed=2), normal(1, 80, seed=3)], {"hidden_size": 10}, 3),
    ("GRU", (7, 3, 8), [normal(1, 30, 8, seed=1), normal(1, 30, 10, seed=2), normal(1, 60, seed=3)], {"hidden_size": 10}, 2),
    ("RNN", (7, 3, 8), [normal(1, 10, 8, seed=1), normal(1, 10, 10, seed=2)], {"hidden_size": 10}, 2),
]  # fmt: skip


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize(("op", "shape", "weights", "attributes", "outputs"), CASES, ids=[f"{c[0]} {c[1]}" for c in CASES])
def test_a_result_is_that_of_float32_rounded(
    op: str, shape: tuple[int, ...], weights: list[np.ndarray | None], attributes: dict[str, Any], outputs: int, kind: str
):
    dtype = half_dtype(kind)
    halves = [w if w is None or w.dtype != np.float32 else w.astype(dtype) for w in weights]
    wide = [w if w is None or w.dtype != dtype else w.astype(np.float32) for w in halves]
    x = normal(*shape, seed=9).astype(dtype)
    opset = 20 if op in ("Gelu", "GridSample") else 18
    loaded = model(op, halves, attributes, HALVES[kind], opset, outputs)
    got = loaded.run({"x": x})
    wanted = model(op, wide, attributes, TensorProto.FLOAT, opset, outputs).run({"x": x.astype(np.float32)})
    assert runs_natively(loaded)
    for name, y in wanted.items():
        assert_same_bits(got[name], y.astype(dtype) if y.dtype == np.float32 else y)
    for threads in (2, 3):
        again = model(op, halves, attributes, HALVES[kind], opset, outputs, threads).run({"x": x})
        for name, y in got.items():
            assert_same_bits(again[name], y)


def test_numbers_beyond_the_range_become_infinite_and_nan_stays():
    x = np.array([60000, -60000, 1, np.nan, np.inf, 6e-8, 65504], np.float16)
    doubled = model("Add", [x], {}, TensorProto.FLOAT16, 18)(x)
    assert_same_bits(doubled, np.array([np.inf, -np.inf, 2, np.nan, np.inf, 1.2e-7, np.inf], np.float16))
    # 65520 lies halfway between 65504 and what would be next: to even, that is to infinity.
    a, b = np.array([32752, 32752], np.float16), np.array([32752, 32768], np.float16)
    assert_same_bits(model("Add", [b], {}, TensorProto.FLOAT16, 18)(a), np.array([65504, np.inf], np.float16))


def test_sums_of_products_are_rounded_once():
    x = np.ones((1, 4097), np.float16)  # in float16 a sum of ones ends at 2048
    assert model("MatMul", [np.ones((4097, 1), np.float16)], {}, TensorProto.FLOAT16, 18)(x)[0, 0] == 4096


def test_every_operator_of_a_chain_rounds():
    """A layer, its bias and its activation do not become one, which would be rounded once."""
    w, b, x = (normal(*shape, seed=i).astype(np.float16) for i, shape in enumerate(((64, 48), (48,), (9, 64))))
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]), helper.make_node("Add", ["product", "b"], ["sum"]),
        helper.make_node("Sigmoid", ["sum"], ["y"]),
    ]  # fmt: skip
    outputs = [(name, TensorProto.FLOAT16, None) for name in ("y", "product", "sum")]
    data = model_bytes(nodes, [("x", TensorProto.FLOAT16, None)], outputs[:1], {"w": w, "b": b})
    shown = model_bytes(nodes, [("x", TensorProto.FLOAT16, None)], outputs, {"w": w, "b": b})
    y, product, total = qruntime.load(shown)(x)
    assert_same_bits(qruntime.load(data)(x), y)
    assert_same_bits(total, product + b)


@pytest.mark.parametrize("kernel", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", [(3, 301, 250), (3, 11, 5000)])
def test_slices_have_the_bits_of_the_whole(kernel: str, threads: int, shape: tuple[int, ...]):
    """The residual goes by slices as x does, and the sum that is asked for comes out of them."""
    x, residual = normal(*shape), normal(*shape, seed=1)
    inputs = [x, normal(shape[-1], seed=2), None, residual]
    for used in (inputs, inputs[:2]):
        halves = [None if a is None else a.astype(np.float16) for a in used]
        wide = [None if a is None else a.astype(np.float32) for a in halves]
        got = _kernels.call_node(kernel, halves, ints=[-1], floats=[1e-5], num_outputs=2, num_threads=threads)
        wanted = _kernels.call_node(kernel, wide, ints=[2], floats=[1e-5], num_outputs=2)
        for y, exact in zip(got, wanted, strict=True):
            assert_same_bits(y, exact.astype(np.float16))


def test_what_slices_cannot_do_is_declined():
    x = normal(70, 2000).astype(np.float16)
    assert _kernels.call_node("layer_norm", [x, normal(3).astype(np.float16)], ints=[1], floats=[1e-5]) is None
    assert _kernels.call_node("layer_norm", [x, None, None, x[:5]], ints=[1], floats=[1e-5]) is None
    assert _kernels.call_node("softmax", [x], ints=[2]) is None
    for axes in ([2], [1, -1], [1] * 9):
        assert _kernels.call_node("reduce", [x], ints=[0, 0, 0, *axes]) is None
    assert _kernels.call_node("reduce", [x, np.array([[1]])], ints=[0, 0, 0]) is None


Nodes = list[tuple[str, list[str], str, dict[str, Any]]]

# What passes put one node in place of, in float32: operator, inputs, output, attributes.
FUSED: dict[str, Nodes] = {
    "attention": [
        ("Transpose", ["x"], "k", {"perm": [0, 2, 1]}), ("MatMul", ["x", "k"], "scores", {}), ("Mul", ["scores", "half"], "scaled", {}),
        ("Softmax", ["scaled"], "weights", {}), ("MatMul", ["weights", "x"], "y", {}),
    ],
    "gelu": [
        ("Div", ["x", "root"], "a", {}), ("Erf", ["a"], "b", {}), ("Add", ["b", "one"], "c", {}), ("Mul", ["x", "c"], "d", {}),
        ("Mul", ["d", "half"], "y", {}),
    ],
    "silu": [("Sigmoid", ["x"], "gate", {}), ("Mul", ["x", "gate"], "y", {})],
    "layer norm": [
        ("ReduceMean", ["x", "last"], "mean", {}), ("Sub", ["x", "mean"], "centred", {}), ("Mul", ["centred", "centred"], "square", {}),
        ("ReduceMean", ["square", "last"], "variance", {}), ("Add", ["variance", "tiny"], "a", {}), ("Sqrt", ["a"], "b", {}),
        ("Div", ["centred", "b"], "y", {}),
    ],
    "residual norm": [
        ("Add", ["x", "vector"], "a", {}), ("Relu", ["x"], "r", {}), ("Add", ["a", "r"], "sum", {}),
        ("LayerNormalization", ["sum", "vector"], "y", {}),
    ],
}  # fmt: skip
CONSTANTS = {"half": 0.5, "one": 1.0, "root": np.sqrt(2.0), "tiny": 1e-3}


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize("pattern", FUSED)
def test_what_is_fused_in_float32_rounds_where_its_operators_do(pattern: str, kind: str):
    dtype, code = half_dtype(kind), HALVES[kind]
    constants = {name: np.array(value, dtype) for name, value in CONSTANTS.items()}
    constants |= {"last": np.array([-1], np.int64), "vector": normal(24, seed=3).astype(dtype)}
    nodes = [helper.make_node(op, ins, [out], **attributes) for op, ins, out, attributes in FUSED[pattern]]
    x = ("x", code, [2, 17, 24])
    used = {name: array for name, array in constants.items() if any(name in node.input for node in nodes)}
    made = [name for node in nodes for name in node.output][::-1]
    alone = qruntime.load(model_bytes(nodes, [x], [("y", code, None)], used, 18))
    shown = qruntime.load(model_bytes(nodes, [x], [(name, code, None) for name in made], used, 18))
    data = normal(2, 17, 24, seed=5).astype(dtype)
    assert runs_natively(alone)
    assert_same_bits(alone(data), shown.run({"x": data})["y"])


def test_attention_rounds_what_the_function_of_its_definition_rounds():
    q, k, v = (normal(1, 2, 5, 8, seed=i).astype(np.float16) for i in range(3))
    got = model("Attention", [k, v], {}, TensorProto.FLOAT16, 23)(q)
    assert_same_bits(got, find("", "Attention", 23)(q, k, v)[0])


def test_types_that_differ_are_an_error():
    node = helper.make_node("Add", ["x", "b"], ["y"])
    loaded = qruntime.load(model_bytes([node], [("x", TensorProto.FLOAT16, None)], [("y", TensorProto.FLOAT16, None)], {"b": normal(3)}))
    with pytest.raises(qruntime.RunError, match="float32"):
        loaded(np.ones(3, np.float16))
