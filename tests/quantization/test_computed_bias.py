"""Layers whose bias is computed at run time: int8 where the report says so, and float with the reason elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

import qruntime
from tests.small_models import FLOAT, assert_same_bits, model_bytes, random

X, W, V = random(5, 16), random(16, 12), random(12, 16)


def gemm(c: np.ndarray | None, opset: int = 17, constant: bool = False, **attributes: Any) -> qruntime.Model:
    """y = Gemm(x, w, Neg(c)), or of the constant −c, or without it."""
    nodes = [helper.make_node("Gemm", ["x", "w", *(["bias"] if c is not None else [])], ["y"], name="fc", **attributes)]
    inputs, weights = [("x", FLOAT, [5, 16])], {"w": V if attributes.get("transB") else W}
    if c is not None and constant:
        weights["bias"] = -c
    elif c is not None:
        nodes.insert(0, helper.make_node("Neg", ["c"], ["bias"]))
        inputs.append(("c", FLOAT, list(c.shape)))
    return qruntime.load(model_bytes(nodes, inputs, [("y", FLOAT, None)], weights, opset))


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("attributes", [{}, {"beta": 0.5}, {"beta": 0.0}, {"alpha": 3.0, "transB": 1}])
@pytest.mark.parametrize("shape", [(12,), (1, 12), (5, 12), (5, 1), (1,), ()])
def test_gemm_adds_it_to_the_product_of_integers(shape: tuple[int, ...], attributes: dict[str, Any], constant: bool) -> None:
    c = random(*shape, seed=2)
    quantized = gemm(c, constant=constant, **attributes).quantize_dynamic()
    assert [layer.name for layer in quantized.report.layers] == ["fc"]
    feed = {"x": X} if constant else {"x": X, "c": c}
    y = quantized.run(feed)["y"]
    product = gemm(None, **attributes).quantize_dynamic()(X)
    assert_same_bits(y, product + -c * np.float32(attributes.get("beta", 1.0)))
    calls = quantized._plan(("y",)).as_run()
    assert "DynamicQuantizedLinear" in {call.node.op_type for call in calls}
    assert {call.source for call in calls} == {"native"}


@pytest.mark.parametrize("opset", [7, 11])
def test_gemm_of_older_opsets(opset: int) -> None:
    c = random(12, seed=2)
    y = gemm(c, opset, beta=2.0).quantize_dynamic().run({"x": X, "c": c})["y"]
    assert_same_bits(y, gemm(None, opset).quantize_dynamic()(X) + -c * 2)


def test_what_follows_gemm_comes_after_the_bias() -> None:
    c = random(12, seed=2)
    nodes = [
        helper.make_node("Neg", ["c"], ["bias"]), helper.make_node("Gemm", ["x", "w", "bias"], ["g"], name="fc"),
        helper.make_node("Relu", ["g"], ["y"]),
    ]  # fmt: skip
    model = qruntime.load(model_bytes(nodes, [("x", FLOAT, [5, 16]), ("c", FLOAT, [12])], [("y", FLOAT, None)], {"w": W}))
    y = model.quantize_dynamic().run({"x": X, "c": c})["y"]
    assert_same_bits(y, np.maximum(gemm(None).quantize_dynamic()(X) - c, 0))


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1), ("Conv", 0)])
def test_others_stay_float_with_the_reason(op: str, gates: int) -> None:
    if op == "Conv":
        inputs, bias = [("x", FLOAT, [1, 8, 9, 9]), ("c", FLOAT, [8])], 8
        weights, attributes = {"w": random(8, 8, 3, 3)}, {}
        names = ["x", "w", "bias"]
    else:
        inputs, bias = [("x", FLOAT, [4, 2, 16]), ("c", FLOAT, [1, 2 * gates * 16])], 2 * gates * 16
        weights, attributes = {"w": random(1, gates * 16, 16), "r": random(1, gates * 16, 16, seed=1)}, {"hidden_size": 16}
        names = ["x", "w", "r", "bias"]
    nodes = [helper.make_node("Neg", ["c"], ["bias"]), helper.make_node(op, names, ["y"], name="layer", **attributes)]
    model = qruntime.load(model_bytes(nodes, inputs, [("y", FLOAT, None)], weights))
    quantized = model.quantize_dynamic({op})
    assert not quantized.report.layers
    assert [str(layer.reason) for layer in quantized.report.skipped] == ["the bias is computed at run time"]
    feed = {"x": random(*inputs[0][2], seed=3), "c": random(*inputs[1][2][:-1], bias, seed=4)}
    assert_same_bits(quantized.run(feed)["y"], model.run(feed)["y"])
    half = model.quantize_dynamic({op}, dtype="float16")
    assert [layer.scheme for layer in half.report.layers] == ["float16"]
