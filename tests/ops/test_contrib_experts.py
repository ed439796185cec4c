"""Experts and gates: the forms that ONNX Runtime runs on no CPU, and inputs that do not fit."""

from __future__ import annotations

import numpy as np
import pytest

from qruntime.errors import QRuntimeError
from tests.ops.one_node import close, floats, run
from tests.ops.test_contrib import softmax


def sigmoid(x):
    return 1 / (1 + np.exp(-x.astype(np.float64)))


@pytest.mark.parametrize("fusion", [0, 1, 2])
def test_experts_with_swiglu(fusion):
    """Gate and linear part come from two layers, interleaved or side by side."""
    x, router = floats(3, 8), floats(3, 4)
    gate, linear, down = floats(4, 6, 8), floats(4, 6, 8), floats(4, 8, 6)
    fused = np.stack([gate, linear], axis=2).reshape(4, 12, 8) if fusion == 1 else np.concatenate([gate, linear], axis=1)
    inputs = [x, router, gate if fusion == 0 else fused, None, down, None, *([linear] if fusion == 0 else [])]
    settings = {"activation_type": "swiglu", "swiglu_fusion": fusion, "activation_alpha": 1.7, "activation_beta": 1.0, "swiglu_limit": 0.5}
    found = run("MoE", inputs, k=2, normalize_routing_weights=1, **settings)
    for row in range(3):
        best = np.argsort(-router[row])[:2]
        shares = softmax(router[row, best].astype(np.float64))
        expected = 0
        for expert, share in zip(best, shares, strict=True):
            g, up = np.minimum(gate[expert] @ x[row], 0.5), np.clip(linear[expert] @ x[row], -0.5, 0.5)
            expected = expected + share * (down[expert] @ (g * sigmoid(1.7 * g) * (up + 1)))
        close(found[row], expected, atol=1e-5)
    alone = run("MoE", [x[1:2], router[1:2], *inputs[2:]], k=2, normalize_routing_weights=1, **settings)
    assert np.array_equal(found[1:2], alone)


@pytest.mark.parametrize(
    ("op", "attributes", "message"),
    [
        ("MoE", {"k": 5}, r"k must lie in \[1, 4\]"),
        ("MoE", {"activation_type": "other"}, "activation_type must be"),
        ("MoE", {"use_sparse_mixer": 1}, "use_sparse_mixer must be 0"),
        ("MoE", {"activation_type": "swiglu"}, "third layer"),
        ("MoE", {"activation_type": "swiglu", "swiglu_fusion": 1}, "weights of fc1 must have the shape"),
        ("QMoE", {"quant_type": "fp8"}, "quant_type must be int"),
        ("QMoE", {"weights_prepacked": 1}, "packed for one machine"),
        ("QMoE", {"expert_weight_bits": 3}, "2, 4 or 8 bits"),
        ("QMoE", {"expert_weight_bits": 8, "block_size": 16}, "must divide"),
        ("QMoE", {}, "weights of fc1 must be uint8"),
    ],
)
def test_experts_say_what_does_not_fit(op, attributes, message):
    x, router = floats(3, 8), floats(3, 4)
    if op == "MoE":
        inputs = [x, router, floats(4, 6, 8), None, floats(4, 8, 6)]
    else:
        inputs = [x, router, np.zeros((4, 6, 8), np.uint8), floats(4, 6), None, np.zeros((4, 8, 6), np.uint8), floats(4, 8)]
    with pytest.raises(QRuntimeError, match=message):
        run(op, inputs, **attributes)


def test_gates_say_what_is_not_supported():
    x = floats(2, 3, 4)
    with pytest.raises(QRuntimeError, match="gate_weight must be absent"):
        run("GatedAdd", [x, x, x, floats(4, 1)])
    with pytest.raises(QRuntimeError, match="gate must have the shape"):
        run("GatedAdd", [x, x, x])
    with pytest.raises(QRuntimeError, match="projection_weight"):
        run("MoEGroupRouter", [x, floats(4), floats(4, 4)], top_k=1)
    with pytest.raises(QRuntimeError, match="num_branches must divide"):
        run("BranchwiseRMSNorm", [x], num_branches=3)
    with pytest.raises(QRuntimeError, match="scale must be 1"):
        run("RotaryEmbedding", [floats(1, 2, 8), np.array([0]), floats(9, 4), floats(9, 4)], scale=2.0)
