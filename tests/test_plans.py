"""Plans of one model: what they share."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

import qruntime
from qruntime.passes import pipeline
from tests.small_models import FLOAT, assert_same_bits, model_bytes, random


@pytest.fixture
def model() -> qruntime.Model:
    """hidden = x · w, y = hidden · v"""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["hidden"]), helper.make_node("MatMul", ["hidden", "v"], ["y"])]
    outputs = [("hidden", FLOAT, ["rows", 8]), ("y", FLOAT, ["rows", 4])]
    weights = {"w": random(16, 8), "v": random(8, 4, seed=1)}
    return qruntime.load(model_bytes(nodes, [("x", FLOAT, ["rows", 16])], outputs, weights)).quantize_dynamic()


def packed(model: qruntime.Model, *outputs: str) -> list[object]:
    return [weights for call in model._plan(outputs).nodes if call.native for weights in call.native.packed]


def test_plans_of_some_outputs_share_lowered_graph_and_packed_weights(model, monkeypatch):
    lowerings = []
    lowered = pipeline.lowered
    monkeypatch.setattr(pipeline, "lowered", lambda graph, **how: lowerings.append(graph) or lowered(graph, **how))
    feed = {"x": random(3, 16, seed=2)}
    hidden = model.run(feed, outputs=["hidden"])
    both = model.run(feed)
    y = model.run(feed, outputs=["y"])
    assert_same_bits(both["hidden"], hidden["hidden"])
    assert_same_bits(both["y"], y["y"])
    assert len(lowerings) == 1
    first, second = packed(model, "hidden", "y")
    assert packed(model, "hidden") == [first]
    assert packed(model, "y") == [first, second]


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layers_that_share_weights_share_what_is_packed(op: str, gates: int, kind: str):
    code, rows = FLOAT if kind == "float32" else TensorProto.DOUBLE, gates * 8
    shapes = {"w": (1, rows, 16), "r": (1, rows, 8), "b": (1, 2 * rows), "other": (1, 2 * rows)}
    weights = {name: random(*shape, seed=i).astype(kind) for i, (name, shape) in enumerate(shapes.items())}
    nodes = [helper.make_node(op, ["x", "w", "r", bias], [f"y{i}"], hidden_size=8) for i, bias in enumerate(("b", "b", "other"))]
    outputs = [(f"y{i}", code, None) for i in range(3)]
    model = qruntime.load(model_bytes(nodes, [("x", code, ["t", "b", 16])], outputs, weights))
    x = random(5, 2, 16, seed=9).astype(kind)
    y0, y1, y2 = model.run({"x": x}).values()
    assert_same_bits(y0, y1)
    assert not np.array_equal(y0, y2)
    first, second, third = (call.native.packed for call in model._plan(("y0", "y1", "y2")).nodes)
    assert all(a is b for a, b in zip(first, second, strict=True))
    assert first[0] is not third[0]


def test_a_model_that_is_quantized_in_place_is_lowered_anew():
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = qruntime.load(model_bytes([node], [("x", FLOAT, ["rows", 16])], [("y", FLOAT, ["rows", 8])], {"w": random(16, 8)}))
    feed = {"x": random(3, 16, seed=2)}
    exact = model.run(feed)["y"]
    model.quantize_dynamic(inplace=True)
    assert not np.array_equal(model.run(feed)["y"], exact)


def test_weights_that_a_kernel_packs_are_not_copied_besides():
    """Transposed, they are nothing that native code could read in place; only the definition may want them."""
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    model = qruntime.load(model_bytes([node], [("x", FLOAT, ["rows", 16])], [("y", FLOAT, ["rows", 8])], {"w": random(8, 16)}))
    executable = model._plan(("y",)).executable
    (weight,) = (v.data for v in model.graph.constants())
    constants = [value for _, value in (*executable.native_constants, *executable.python_constants)]
    assert [value.shape for value in constants] == [(16, 8)]
    assert np.shares_memory(constants[0], weight)
