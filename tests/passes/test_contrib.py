"""Fused operators of ONNX Runtime come apart into standard ones that compute the same; what has no pieces stays, with a reason."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from qruntime.passes.contrib import expand_contrib
from tests.passes.lowering import after, imported, reasons

B, S, W, HEADS = 2, 3, 8, 2


def rng(*shape, seed=0):
    return np.random.default_rng(seed + sum(shape)).standard_normal(shape).astype(np.float32)


X = {"x": rng(B, S, W)}
WEIGHTS = {
    "w": rng(W, W) / 3, "wide": rng(W, 3 * W) / 3, "bias": rng(W, seed=1), "wide_bias": rng(3 * W, seed=1), "scale": rng(W, seed=2),
    "skip": rng(B, S, W, seed=3), "short": np.array([S, S - 1], np.int32), "past": rng(2, B, HEADS, 2, W // HEADS),
}  # fmt: skip
MICROSOFT = "com.microsoft"


def node(op, inputs, outputs=("y",), domain=MICROSOFT, **attributes):
    return (op, ["x", *inputs], list(outputs), {"domain": domain, **attributes})


def ops(*nodes, outputs=("y",), inputs=X, **constants):
    graph = imported(list(nodes), inputs, outputs, WEIGHTS | constants)
    return after(expand_contrib, graph, inputs, rtol=1e-4, atol=1e-5)


EXPANDED = {
    "Gelu": (node("Gelu", []), {"Gelu": 1}),
    "BiasGelu": (node("BiasGelu", ["bias"]), {"Add": 1, "Gelu": 1}),
    "FastGelu": (node("FastGelu", []), {"Gelu": 1}),
    "FastGelu with a bias": (node("FastGelu", ["bias"]), {"Add": 1, "Gelu": 1}),
    "QuickGelu": (node("QuickGelu", []), {"Mul": 2, "Sigmoid": 1}),
    "QuickGelu of slope 1": (node("QuickGelu", [], alpha=1.0), {"Mul": 1, "Sigmoid": 1}),
    "SkipLayerNormalization": (node("SkipLayerNormalization", ["skip", "scale", "bias"]), {"Add": 1, "LayerNormalization": 1}),
    "SkipLayerNormalization with a bias": (
        node("SkipLayerNormalization", ["skip", "scale", "bias", "bias"], epsilon=1e-3), {"Add": 2, "LayerNormalization": 1}
    ),
    "SkipSimplifiedLayerNormalization": (node("SkipSimplifiedLayerNormalization", ["skip", "scale"]), {"Add": 1, "RMSNormalization": 1}),
    "SimplifiedLayerNormalization": (node("SimplifiedLayerNormalization", ["scale"]), {"RMSNormalization": 1}),
    "SimplifiedLayerNormalization of no domain": (node("SimplifiedLayerNormalization", ["scale"], domain=""), {"RMSNormalization": 1}),
    "FusedMatMul": (node("FusedMatMul", ["w"], transB=1, alpha=0.5), {"MatMul": 1}),
    "FusedMatMul of two inputs": (node("FusedMatMul", ["x"], transB=1, alpha=0.5), {"Transpose": 1, "MatMul": 1, "Mul": 1}),
    "TransposeMatMul": (node("TransposeMatMul", ["x"], transA=1), {"Transpose": 1, "MatMul": 1}),
    "GemmFastGelu": (node("GemmFastGelu", ["w", "bias"]), {"MatMul": 1, "Add": 1, "Gelu": 1}),
    "Attention": (node("Attention", ["wide", "wide_bias"], num_heads=HEADS), {"MatMul": 1, "Add": 1, "Reshape": 2, "Attention": 1}),
    "MultiHeadAttention": (node("MultiHeadAttention", ["x", "x"], num_heads=HEADS), {"Attention": 1}),
    "MultiHeadAttention with a bias": (
        node("MultiHeadAttention", ["x", "x", "wide_bias"], num_heads=HEADS), {"Add": 3, "Attention": 1}
    ),
}  # fmt: skip


@pytest.mark.parametrize(("fused", "expected"), EXPANDED.values(), ids=list(EXPANDED))
def test_pieces_compute_the_same(fused, expected):
    assert ops(fused) == expected


def matrix(op, inputs, **attributes):
    return (op, inputs, ["y"], {"domain": MICROSOFT, **attributes})


@pytest.mark.parametrize(
    ("activation", "parameters", "piece"),
    [
        ("Relu", {}, "Relu"), ("Tanh", {}, "Tanh"), ("LeakyRelu", {"activation_alpha": 0.2}, "LeakyRelu"),
        ("HardSigmoid", {"activation_alpha": 0.2, "activation_beta": 0.4}, "HardSigmoid"),
    ],
)  # fmt: skip
def test_fused_gemm(activation, parameters, piece):
    inputs = {"a": rng(3, W)}
    fused = matrix("FusedGemm", ["a", "w", "bias"], activation=activation, transB=1, alpha=0.5, **parameters)
    assert ops(fused, inputs=inputs) == {"Gemm": 1, piece: 1}


def test_fused_conv():
    image = {"a": rng(1, 2, 5, 5)}
    conv = {"k": rng(3, 2, 3, 3), "b": rng(3), "z": rng(1, 3, 3, 3)}
    clip = matrix("FusedConv", ["a", "k", "b"], activation="Clip", activation_params=[0.0, 1.0])
    assert ops(clip, inputs=image, **conv) == {"Conv": 1, "Clip": 1}
    assert ops(matrix("FusedConv", ["a", "k", "b", "z"], activation="Relu"), inputs=image, **conv) == {"Conv": 1, "Add": 1, "Relu": 1}


def test_attention_with_a_past_is_attention_of_parts():
    fused = node("Attention", ["wide", "wide_bias", "", "past"], ("y", "present"), num_heads=HEADS)
    found = ops(fused, outputs=("y", "present"))
    assert found["MultiHeadAttention"] == 1
    assert found["Attention"] == 0


@pytest.mark.parametrize("mask", [np.ones((B, S), np.int32), np.int32([[1, 1, 0], [1, 0, 0]])])
def test_a_raw_mask_is_added(mask):
    found = ops(node("Attention", ["wide", "wide_bias", "mask"], num_heads=HEADS), mask=mask)
    assert found["Attention"] == found["Where"] == 1


def test_lengths_as_a_mask_are_for_attention_of_parts():
    found = ops(node("Attention", ["wide", "wide_bias", "short"], num_heads=HEADS))
    assert found["MultiHeadAttention"] == 1


DECLINED = {
    "a batch is transposed": node("FusedMatMul", ["x"], transBatchA=1, transBatchB=1),
    "the bias has shape [8], need [24]": node("Attention", ["wide", "bias"], num_heads=HEADS),
    "it is causal or has a padding mask, or a past in a buffer": node("MultiHeadAttention", ["x", "x"], num_heads=HEADS, unidirectional=1),
    "it is rotary, or shares the buffer of its past": node("Attention", ["wide", "wide_bias"], num_heads=HEADS, do_rotary=1),
    "a further output is read": node("SkipLayerNormalization", ["skip", "scale", "bias"], ("y", "mean")),
    "an input is missing": node("SkipLayerNormalization", ["skip", ""]),
    "the activation Softmax": ("FusedGemm", ["a", "w"], ["y"], {"domain": MICROSOFT, "activation": "Softmax"}),
    "the weight is computed at run time": node("MatMulNBits", ["codes", "scale"], K=W, N=W, bits=4, block_size=16),
    "do not fill 24 columns": node("Attention", ["wide", "wide_bias"], num_heads=HEADS, qkv_hidden_sizes=[8, 8, 4], unidirectional=1),
}  # fmt: skip


@pytest.mark.parametrize("reason", DECLINED)
def test_what_has_no_pieces_stays_and_says_why(reason, capsys, monkeypatch):
    monkeypatch.setenv("QRUNTIME_TRACE", "passes")
    fused = DECLINED[reason]
    inputs = X | {"a": rng(3, W), "codes": rng(W, 1, 8)}
    graph = imported([fused], inputs, fused[2], WEIGHTS)
    expand_contrib(graph)
    graph.check()
    assert [n.op_type for n in graph.nodes] == [fused[0]]
    (said,) = reasons(capsys)
    assert said.endswith(reason)
    assert f"{MICROSOFT}.{fused[0]} 'y'" in said


def test_a_matrix_of_unknown_rank_stays(capsys, monkeypatch):
    monkeypatch.setenv("QRUNTIME_TRACE", "passes")
    nodes = [("SequenceConstruct", ["x"], ["s"], {}), ("SequenceAt", ["s", "first"], ["m"], {})]
    nodes.append(matrix("FusedMatMul", ["x", "m"], transB=1))
    assert ops(*nodes, first=np.int64(0))["FusedMatMul"] == 1
    assert "what is transposed has an unknown rank" in reasons(capsys)[0]


def test_in_a_branch_too():

    made = [helper.make_tensor_value_info("t", 1, None)]
    then = helper.make_graph([helper.make_node("QuickGelu", ["x"], ["t"], domain=MICROSOFT)], "b", [], made)
    other = helper.make_graph([helper.make_node("Neg", ["x"], ["t"])], "o", [], made)
    choice = ("If", ["flag"], ["y"], {"then_branch": then, "else_branch": other})
    assert ops(choice, inputs=X | {"flag": np.array(True)})["QuickGelu"] == 0
