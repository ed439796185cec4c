"""Rows of marked layers rounded to 8-bit floats, once for all layers that read them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

import qruntime
from qruntime.ir import LayerMark, clone
from qruntime.ops.rounded_activations import round_to_float8
from qruntime.passes.float8_activations import round_to_float8 as rewrite
from tests.small_models import assert_same_bits, model_bytes, random

FLOAT = onnx.TensorProto.FLOAT
MARK = LayerMark("per_token", codes="float8_e4m3fn")


def model() -> qruntime.Model:
    """Two layers of one x, one of something else, and a product of two results."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Gemm", ["x", "v", "b"], ["c"], transB=1),
        helper.make_node("Relu", ["x"], ["r"]), helper.make_node("MatMul", ["r", "w"], ["d"]),
        helper.make_node("MatMul", ["a", "c"], ["e"]),
    ]  # fmt: skip
    weights = {"w": random(5, 5), "v": random(5, 5, seed=1), "b": random(5, seed=2)}
    outputs = [(name, FLOAT, [5, 5]) for name in "ade"]
    return qruntime.load(model_bytes(nodes, [("x", FLOAT, [5, 5])], outputs, weights))


def test_layers_that_read_the_same_rows_share_them():
    made = model()
    for node in made.graph.nodes:
        node.mark = MARK if node.op_type != "Relu" else None
    graph = clone(made.graph)
    rewrite(graph)
    kinds = [node.op_type for node in graph.nodes]
    assert kinds == ["RoundToFloat8", "MatMul", "Gemm", "Relu", "RoundToFloat8", "MatMul", "MatMul"]
    assert graph.nodes[1].input(0) is graph.nodes[2].input(0) is graph.nodes[0].outputs[0]
    assert graph.nodes[-1].input(0) is graph.nodes[1].outputs[0], "both are computed, so this is no layer"
    x = random(5, 5, seed=3)
    plain = model()
    a, d, _ = made(x)
    assert_same_bits(a, plain(round_to_float8(x))[0])
    assert_same_bits(d, plain(np.maximum(round_to_float8(np.maximum(x, 0)), 0))[1])


def test_other_marks_are_not_for_it():
    made = model()
    for node, mark in zip(
        made.graph.nodes, (None, LayerMark(), None, MARK._replace(activations="static"), LayerMark("per_token")), strict=True
    ):
        node.mark = mark
    rewrite(made.graph)
    assert "RoundToFloat8" not in [node.op_type for node in made.graph.nodes]
