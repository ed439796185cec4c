"""A language model of a few thousand weights: ids [b, s] → logits [b, s, VOCABULARY]; and texts for it."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

import qruntime
from tests.small_models import FLOAT, model_bytes, random

VOCABULARY, WIDTH, HIDDEN = 96, 16, 40


def language_model(*, masked: bool = False) -> qruntime.Model:
    """Tokens see those before them by a mean; two gated blocks with residuals and a head. `masked`: it has an attention_mask too."""
    weights = {
        "table": random(VOCABULARY, WIDTH),
        "scale": np.ones(WIDTH, np.float32),
        "shift": np.zeros(WIDTH, np.float32),
        "head.weight": random(WIDTH, VOCABULARY, seed=1) / 4,
        "axis": np.array(1, np.int64),
    }
    nodes = [helper.make_node("Gather", ["table", "ids"], ["h0"], name="/embed/Gather")]
    for i in range(2):
        parts = {"up": (WIDTH, HIDDEN), "gate": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH)}
        weights |= {f"l{i}.{part}": random(*shape, seed=3 * i + j + 2) / 4 for j, (part, shape) in enumerate(parts.items())}
        nodes += [
            helper.make_node("LayerNormalization", [f"h{i}", "scale", "shift"], [f"n{i}"], name=f"/l.{i}/norm/LayerNormalization"),
            helper.make_node("CumSum", [f"n{i}", "axis"], [f"c{i}"], name=f"/l.{i}/CumSum"),
            helper.make_node("MatMul", [f"c{i}", f"l{i}.up"], [f"u{i}"], name=f"/l.{i}/up/MatMul"),
            helper.make_node("MatMul", [f"n{i}", f"l{i}.gate"], [f"g{i}"], name=f"/l.{i}/gate/MatMul"),
            helper.make_node("Sigmoid", [f"g{i}"], [f"s{i}"], name=f"/l.{i}/Sigmoid"),
            helper.make_node("Mul", [f"u{i}", f"s{i}"], [f"m{i}"], name=f"/l.{i}/Mul"),
            helper.make_node("MatMul", [f"m{i}", f"l{i}.down"], [f"d{i}"], name=f"/l.{i}/down/MatMul"),
            helper.make_node("Add", [f"h{i}", f"d{i}"], [f"h{i + 1}"], name=f"/l.{i}/Add"),
        ]
    nodes.append(helper.make_node("MatMul", ["h2", "head.weight"], ["logits"], name="/head/MatMul"))
    inputs = [("ids", TensorProto.INT64, ["b", "s"])]
    if masked:
        inputs.append(("attention_mask", TensorProto.INT64, ["b", "s"]))
        nodes.append(helper.make_node("Identity", ["attention_mask"], ["seen"]))
    outputs = [("logits", FLOAT, ["b", "s", VOCABULARY]), *([("seen", TensorProto.INT64, ["b", "s"])] if masked else [])]
    return qruntime.load(model_bytes(nodes, inputs, outputs, weights))


def texts(count: int = 4, *, seed: int = 0, step: int = 1) -> list[dict[str, np.ndarray]]:
    """Rows in which each token is the one before it plus `step`."""
    random_ = np.random.default_rng(seed)
    return [{"ids": (random_.integers(VOCABULARY, size=(2, 1)) + step * np.arange(9)) % VOCABULARY} for _ in range(count)]
