"""Small models of every kind that is trained, and feeds for them."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, helper

import qruntime
from tests.quantization.decoders import Decoder
from tests.small_models import FLOAT, encoder_bytes, model_bytes, random, recurrent_bytes

SIZES = {"b": 2, "s": 3, "t": 4, "bh": 4}


def decoder(kind: str = "separate") -> tuple[qruntime.Model, dict[str, np.ndarray]]:
    made = Decoder(kind)
    shapes = {name: [SIZES.get(size, size) for size in shape] for name, _, shape in made.inputs}
    return qruntime.load(made.bytes()), {name: random(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}


def encoder(layers: int = 2) -> tuple[qruntime.Model, dict[str, np.ndarray]]:
    return qruntime.load(encoder_bytes(layers=layers)), {"x": random(2, 5, 32)}


def recurrent(op: str, **options: object) -> tuple[qruntime.Model, dict[str, np.ndarray]]:
    return qruntime.load(recurrent_bytes(op, directions=2, **options)), {"x": random(7, 3, 5)}  # type: ignore[arg-type]


def cnn() -> tuple[qruntime.Model, dict[str, np.ndarray]]:
    """Two convolutions with a pooling between them, one with a stride and uneven padding; a Gemm over what is left."""
    weights = {
        "c1.w": random(8, 3, 3, 3) / 5,
        "c1.b": random(8, seed=1) / 5,
        "c2.w": random(8, 4, 3, 3, seed=2) / 6,
        "c2.b": random(8, seed=3) / 5,
        "bn.scale": random(8, seed=4) ** 2 + np.float32(0.5),
        "bn.bias": random(8, seed=5),
        "bn.mean": random(8, seed=6),
        "bn.var": random(8, seed=7) ** 2 + np.float32(0.5),
        "fc.w": random(6, 8, seed=8) / 3,
        "fc.b": random(6, seed=9),
    }
    nodes: list[NodeProto] = [
        helper.make_node("Conv", ["x", "c1.w", "c1.b"], ["1"], name="/c1/Conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["1"], ["2"]),
        helper.make_node("BatchNormalization", ["2", "bn.scale", "bn.bias", "bn.mean", "bn.var"], ["3"]),
        helper.make_node("MaxPool", ["3"], ["4"], kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
        helper.make_node("Conv", ["4", "c2.w", "c2.b"], ["5"], name="/c2/Conv", pads=[0, 1, 1, 1], strides=[2, 1], group=2),
        helper.make_node("Relu", ["5"], ["6"]),
        helper.make_node("AveragePool", ["6"], ["7"], kernel_shape=[2, 2], pads=[1, 0, 0, 1]),
        helper.make_node("GlobalAveragePool", ["7"], ["8"]),
        helper.make_node("Flatten", ["8"], ["9"]),
        helper.make_node("Gemm", ["9", "fc.w", "fc.b"], ["y"], name="/fc/Gemm", transB=1),
    ]
    made = model_bytes(nodes, [("x", FLOAT, ["n", 3, 9, 9])], [("y", FLOAT, ["n", 6])], weights)
    return qruntime.load(made), {"x": random(2, 3, 9, 9)}


MODELS = {
    "encoder": encoder,
    "decoder": decoder,
    "decoder, tokens first": lambda: decoder("tokens first"),
    "decoder, merged heads": lambda: decoder("merged heads"),
    "decoder, split": lambda: decoder("split"),
    "decoder, stacked": lambda: decoder("stacked"),
    "decoder, Attention": lambda: decoder("attention"),
    "decoder, causal Attention": lambda: decoder("causal attention"),
    "LSTM": lambda: recurrent("LSTM"),
    "GRU": lambda: recurrent("GRU"),
    "RNN": lambda: recurrent("RNN"),
    "CNN": cnn,
}
