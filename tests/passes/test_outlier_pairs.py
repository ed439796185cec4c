"""Outlier-victim pairs become whole numbers of a byte, of weights and of static activations, where the scale is a constant."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

import qruntime
from qruntime.ir import Graph, Node, StoredTensor, Value, clone, constant
from qruntime.ir.formats import INT8
from qruntime.passes.outlier_pairs import lower_outlier_pairs
from tests.small_models import assert_same_bits, model_bytes, random

FLOAT = onnx.TensorProto.FLOAT
K, N = 16, 5


def quantized(scheme: str) -> qruntime.Model:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Gather", ["t", "ids"], ["z"]),
    ]
    inputs = [("x", FLOAT, ["m", K]), ("ids", onnx.TensorProto.INT64, ["s"])]
    outputs = [("y", FLOAT, ["m", N]), ("z", FLOAT, ["s", K])]
    model = qruntime.load(model_bytes(nodes, inputs, outputs, {"w": random(K, N), "t": random(7, K, seed=1)}))
    data = [{"x": random(40, K, seed=2), "ids": np.arange(3)}]
    return model.quantize(scheme=scheme, data=data, overrides={"Embedding": "Wovp4A16"})


def lowered(model: qruntime.Model) -> Graph:
    graph = clone(model.graph)
    lower_outlier_pairs(graph)
    graph.check()
    return graph


def stored(node: Node, index: int) -> StoredTensor:
    value = node.input(index)
    assert value is not None
    assert value.stored is not None
    return value.stored


def test_weights_become_int8_and_mean_the_same() -> None:
    model = quantized("Wovp4A16")
    before = next(stored(node, 1) for node in model.graph.nodes if node.op_type == "MatMul")
    after = next(stored(node, 1) for node in lowered(model).nodes if node.op_type == "MatMul")
    assert before.format.is_paired
    assert after.format is INT8
    assert_same_bits(after.decoded(), before.decoded())


def test_a_table_of_rows_stays_as_it_is_stored() -> None:
    """A look-up decodes the rows it needs."""
    (table,) = [stored(node, 0) for node in lowered(quantized("Wovp4A16")).nodes if node.op_type == "Gather"]
    assert table.format.is_paired


def test_rounded_activations_become_codes() -> None:
    model = quantized("Wovp4Aovp4")
    assert "OutlierVictimPairs" in [node.op_type for node in model.graph.nodes]
    kinds = [node.op_type for node in lowered(model).nodes]
    assert "OutlierVictimPairs" not in kinds
    assert kinds[kinds.index("OutlierVictimCodes") + 1] == "DequantizeLinear"


@pytest.mark.parametrize("scale", [0.0, -1.0, np.inf, np.nan])
def test_a_scale_that_makes_no_sense_is_left_to_the_definition(scale: float) -> None:
    model = quantized("Wovp4Aovp4")
    (node,) = [node for node in model.graph.nodes if node.op_type == "OutlierVictimPairs"]
    node.set_input(1, constant("scale", np.array(scale, np.float32)))
    assert "OutlierVictimPairs" in [node.op_type for node in lowered(model).nodes]


def test_a_scale_of_a_run_is_left_to_the_definition() -> None:
    model = quantized("Wovp4Aovp4")
    (node,) = [node for node in model.graph.nodes if node.op_type == "OutlierVictimPairs"]
    node.set_input(1, Value("scale"))
    graph = model.graph
    lower_outlier_pairs(graph)
    assert "OutlierVictimPairs" in [node.op_type for node in graph.nodes]


def test_outputs_stay_the_same() -> None:
    """Sums of few whole numbers are exact in both: one scale behind them rounds alike to a few parts in 2²⁴."""
    model = quantized("Wovp4Aovp4")
    feed = {"x": random(6, K, seed=3), "ids": np.array([6, 0])}
    pairs = next(node for node in model.graph.nodes if node.op_type == "OutlierVictimPairs")
    step = pairs.input(1)
    assert step is not None
    assert step.data is not None
    from qruntime.ops.outlier_pairs import outlier_victim_pairs

    weight = next(stored(node, 1) for node in model.graph.nodes if node.op_type == "MatMul").decoded()
    expected = outlier_victim_pairs(feed["x"], step.data) @ weight
    np.testing.assert_allclose(model.run(feed)["y"], expected, rtol=2e-5, atol=1e-5 * np.abs(expected).max())
