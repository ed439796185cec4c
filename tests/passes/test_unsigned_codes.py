"""int8 activations that are uint8 when lowered: the same bits, and no trace of it outside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import qruntime
from qruntime.ir import Graph, clone
from qruntime.passes import pipeline, unsigned_codes
from qruntime.runtime.plan import Planner
from tests.small_models import assert_same_bits

RNG = np.random.default_rng(11)
MICROSOFT = ("QLinearAdd", "QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearMul")
SCALED = ["s", "z"]
CONSTANTS: dict[str, Any] = {
    "s": np.float32(0.06), "z": np.int8(-5), "t": np.float32(0.04), "u": np.int8(9), "ws": np.float32(0.002), "wz": np.int8(0),
    "w": RNG.integers(-128, 128, (8, 8, 3, 3)).astype(np.int8), "matrix": RNG.integers(-128, 128, (8, 6)).astype(np.int8),
    "first": RNG.integers(-128, 128, (8, 3, 3, 3)).astype(np.int8), "codes": RNG.integers(-128, 128, (8, 1, 1)).astype(np.int8),
    "zero": np.asarray([0]), "four": np.asarray([4]), "axis": np.asarray([1]), "parts": np.asarray([4, 4]),
    "scales": np.asarray([1, 1, 2, 2], np.float32), "pads": np.asarray([0, 0, 1, 1, 0, 0, 1, 1]),
}  # fmt: skip
Step = tuple[str, list[str], list[str], dict[str, Any]]


def conv(x: str, y: str, w: str = "w", to: tuple[str, str] = ("s", "z")) -> Step:
    return "QLinearConv", [x, "s", "z", w, "ws", "wz", *to], [y], {"pads": [1] * 4}


START: list[Step] = [("QuantizeLinear", ["x", *SCALED], ["q"], {}), conv("q", "a", "first")]
END: Step = ("DequantizeLinear", ["v", *SCALED], ["y"], {})
CASES: dict[str, tuple[list[Step], int]] = {  # steps from a on, and the tables that put codes back
    "layers": ([conv("a", "b"), conv("b", "v"), END], 0),
    "a table": ([("QLinearLeakyRelu", ["a", *SCALED, "t", "u"], ["v"], {"alpha": 0.3}), END], 0),
    "another scale": ([conv("a", "b", to=("t", "u")), ("DequantizeLinear", ["b", "t", "u"], ["y"], {})], 0),
    "a zero point that is not written": ([conv("a", "b"), ("DequantizeLinear", ["b", "s"], ["y"], {})], 0),
    "pairs": (
        [
            ("QLinearAdd", ["a", *SCALED, conv("a", "b")[2][0], *SCALED, "t", "u"], ["c"], {}),
            ("QLinearMul", ["c", "t", "u", "codes", *SCALED, *SCALED], ["v"], {}), END,
        ],
        0,
    ),
    "no zero points": ([("QLinearAdd", ["a", "s", "", conv("a", "b")[2][0], "s", "", "s", ""], ["v"], {}), END], 0),
    "poolings": (
        [
            ("MaxPool", ["a"], ["b"], {"kernel_shape": [3, 3], "pads": [1] * 4}),
            ("QLinearAveragePool", ["b", *SCALED, "t", "u"], ["c"], {"kernel_shape": [2, 2]}),
            ("QLinearGlobalAveragePool", ["c", "t", "u", *SCALED], ["v"], {}), END,
        ],
        0,
    ),
    "parts": (
        [
            ("Split", ["a", "parts"], ["b", "c"], {"axis": 1}), ("Slice", ["a", "zero", "four", "axis"], ["d"], {}),
            ("Concat", ["c", "d"], ["e"], {"axis": 1}), ("Resize", ["e", "", "scales"], ["f"], {"mode": "nearest"}), conv("f", "v"), END,
        ],
        0,
    ),
    "a matrix": (
        [
            ("QLinearGlobalAveragePool", ["a", *SCALED, *SCALED], ["b"], {}), ("Flatten", ["b"], ["c"], {}),
            ("QLinearMatMul", ["c", *SCALED, "matrix", "ws", "wz", *SCALED], ["v"], {}), END,
        ],
        0,
    ),
    "readers that do not know": (
        [("Pad", ["a", "pads", "z"], ["b"], {}), ("Cast", ["a"], ["n"], {"to": 1}), conv("b", "v"), END, ("Neg", ["n"], ["m"], {})],
        1,
    ),
}  # fmt: skip


def graph_of(steps: list[Step], outputs: dict[str, int]) -> Graph:
    made = [
        helper.make_node(op, ins, outs, domain="com.microsoft" if op in (*MICROSOFT, "QLinearLeakyRelu") else "", **a)
        for op, ins, outs, a in steps
    ]
    graph = helper.make_graph(
        made, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None] * 4)],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in CONSTANTS.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return qruntime.load(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()).graph


def lowered(graph: Graph) -> Graph:
    made = pipeline.lowered(clone(graph))
    made.check()
    return made


def check(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> Graph:
    """The graph as lowered, after its outputs were found to be those without the pass."""
    x = RNG.standard_normal((2, 3, 9, 8)).astype(np.float32) * np.float32(3)
    with monkeypatch.context() as patch:
        passes = [one for one in pipeline.LOWERED if one is not unsigned_codes.keep_codes_unsigned]
        assert len(passes) + 1 == len(pipeline.LOWERED)
        patch.setattr(pipeline, "LOWERED", passes)
        signed = lowered(graph)
    made = lowered(graph)
    expected, found = (Planner(g, num_threads=1).plan().executable.run([x]) for g in (signed, made))
    for one, other in zip(expected, found, strict=True):
        assert_same_bits(one, other)
        assert one.size
        assert len(np.unique(one)) > 3
    return made


def tables(graph: Graph) -> int:
    return sum(node.is_op("CodeTable", domain="qruntime") for node in graph.walk_nodes())


def int8_layers(graph: Graph) -> int:
    layers = [node for node in graph.walk_nodes() if node.is_op("QLinearConv", "QLinearMatMul", domain="qruntime")]
    return sum(
        value is not None and value.data is not None and value.data.dtype == np.int8
        for node in layers
        for value in (node.input(2), node.input(7))
    )


@pytest.mark.parametrize("name", list(CASES))
def test_the_bits_are_those_of_int8(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, restored = CASES[name]
    needed = (
        [conv("a", "b")] if "b" not in {o for _, _, outs, _ in steps for o in outs} and any("b" in ins for _, ins, _, _ in steps) else []
    )
    outputs = {"y": TensorProto.FLOAT} | ({"m": TensorProto.FLOAT} if name == "readers that do not know" else {})
    graph = graph_of([*START, *needed, *steps], outputs)
    made = check(graph, monkeypatch)
    assert int8_layers(made) == (1 if name == "readers that do not know" else 0)  # what Pad gives stays int8
    assert tables(made) == restored


def test_what_the_graph_gives_stays_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    made = check(graph_of([*START, conv("a", "y")], {"y": TensorProto.INT8, "a": TensorProto.INT8}), monkeypatch)
    assert tables(made) == 0
    assert int8_layers(made) == 3  # q alone is raised


def test_graphs_without_convolutions_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[Step] = [
        START[0], ("Flatten", ["q"], ["f"], {"axis": 3}), ("QLinearMatMul", ["f", *SCALED, "matrix", "ws", "wz", *SCALED], ["v"], {}), END,
    ]  # fmt: skip
    made = check(graph_of(steps, {"y": TensorProto.FLOAT}), monkeypatch)
    assert int8_layers(made) == 2
