"""Blocks, found by the residual stream."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from onnx import helper

import qruntime
from qruntime.quantization.tuning.blocks import blocks_of
from tests.quantization.decoders import SHAPES
from tests.quantization.tuning.models import cnn, decoder, encoder, recurrent
from tests.small_models import FLOAT, model_bytes, random


def stream(model: qruntime.Model) -> list[str]:
    blocks = blocks_of(model.graph)
    for before, after in pairwise(blocks):
        assert before.end is after.start
        assert not set(before.nodes) & set(after.nodes)
    return [block.start.name for block in blocks] + [blocks[-1].end.name]


def test_a_post_norm_encoder_has_its_norms_within():
    model, _ = encoder(layers=3)
    assert stream(model) == ["x", "l0.norm2", "l1.norm2", "l2.norm2"]
    first, *_ = blocks_of(model.graph)
    assert first.inputs == (first.start,)
    assert first.outputs == (first.end,)
    assert [node.outputs[0].name for node in first.nodes if node.op_type == "LayerNormalization"] == ["l0.norm1", "l0.norm2"]
    assert sum(node.op_type == "MatMul" for node in first.nodes) == 8


@pytest.mark.parametrize("kind", SHAPES)
def test_decoders_have_a_block_for_each_layer_that_gives_out_its_cache(kind: str):
    model, _ = decoder(kind)
    assert len(stream(model)) == 3
    for number, block in enumerate(blocks_of(model.graph)):
        assert {value.name for value in block.outputs} >= {f"present.{number}.key", f"present.{number}.value"}
        assert not {value.name for value in block.inputs} & {f"present.{number}.key", f"present.{number}.value"}


def pre_norm(opset: int, layers: int = 3, width: int = 16) -> qruntime.Model:
    """x + mlp(norm(x)) twice a layer, the first with a product of tokens; norms are made of pieces where there is no operator."""
    weights, nodes, h = {"eps": np.float32(1e-5), "two": np.float32(2)}, [], "x"

    def op(op_type: str, *inputs: str, **attributes: object) -> str:
        name = f"v{len(nodes)}"
        nodes.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))
        return name

    def weight(*shape: int) -> str:
        name = f"w{len(weights)}"
        weights[name] = random(*shape, seed=len(weights))
        return name

    def norm(h: str) -> str:
        if opset >= 17:
            return op("LayerNormalization", h, weight(width), weight(width))
        centred = op("Sub", h, op("ReduceMean", h, axes=[-1]))
        power = op("ReduceMean", op("Pow", centred, "two"), axes=[-1])
        return op("Add", op("Mul", op("Div", centred, op("Sqrt", op("Add", power, "eps"))), weight(width)), weight(width))

    ends = ["x"]
    for _ in range(layers):
        y = norm(h)
        q, k, v = (op("MatMul", y, weight(width, width)) for _ in range(3))
        scores = op("Softmax", op("MatMul", q, op("Transpose", k, perm=[0, 2, 1])), axis=-1)
        h = op("Add", op("MatMul", op("MatMul", scores, v), weight(width, width)), h)
        up = op("MatMul", norm(h), weight(width, 2 * width))
        gelu = op("Mul", up, op("Sigmoid", op("Add", up, op("Mul", up, up))))  # an addition that is no residual
        h = op("Add", h, op("MatMul", gelu, weight(2 * width, width)))
        ends.append(h)
    nodes.append(helper.make_node("MatMul", [norm(h), weight(width, 64)], ["y"], name="head"))
    model = qruntime.load(model_bytes(nodes, [("x", FLOAT, [2, 5, width])], [("y", FLOAT, [2, 5, 64])], weights, opset))
    assert stream(model) == ends
    return model


@pytest.mark.parametrize("opset", [13, 17])
def test_a_pre_norm_network_ends_its_blocks_with_additions(opset: int):
    last = blocks_of(pre_norm(opset).graph)[-1]
    assert sum(node.op_type == "MatMul" for node in last.nodes) == 8
    assert last.end.producer is not None and last.end.producer.op_type == "Add"


def test_a_residual_network_has_a_block_for_each_addition():
    weights, nodes, h = {}, [], "x"
    for i in range(3):
        weights[f"w{i}"] = random(4, 4, 3, 3, seed=i)
        nodes += [helper.make_node("Conv", [h, f"w{i}"], [f"c{i}"], pads=[1] * 4), helper.make_node("Relu", [f"c{i}"], [f"r{i}"])]
        nodes.append(helper.make_node("Add", [f"r{i}", h], [h := f"h{i}"]))
    model = qruntime.load(model_bytes(nodes, [("x", FLOAT, [1, 4, 6, 6])], [("h2", FLOAT, None)], weights))
    assert stream(model) == ["x", "h0", "h1", "h2"]


def test_networks_without_residuals_have_no_blocks():
    for made in (cnn(), recurrent("LSTM")):
        assert blocks_of(made[0].graph) == []
