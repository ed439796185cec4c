"""Whole models, small, of the kinds that people quantize, and data for them.

Some channels of what norms and embeddings make are many times the others, as in models that are worth a method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

import qruntime
from qruntime.quantization import recipes
from tests.quantization.sites.attending import attend, ints, repeated, rotary, to_heads
from tests.quantization.sites.nets import Net

Feed = Mapping[str, np.ndarray]

K, HEADS, KV_HEADS, SIZE, HIDDEN, VOCABULARY = 32, 4, 2, 8, 48, 64
"""Of the transformers: features, heads of queries and of keys, features of a head, of the feed-forward part, and tokens."""


class Architecture(NamedTuple):
    data: bytes
    feed: Callable[[int, int], Feed]
    """feed(seed, batch)"""
    axes: Mapping[str, int]
    """Of each input, and of each output, the axis along which a batch lies."""

    def load(self, **keywords: Any) -> qruntime.Model:
        return qruntime.load(self.data, **keywords)

    def feeds(self, count: int = 4, batch: int = 8) -> list[Feed]:
        return [self.feed(seed, batch) for seed in range(count)]


class _Net(Net):
    """A Net whose linear layers have names, and norms in two forms: one operator, or those that older exporters write."""

    def __init__(self, is_fused: bool, opset: int):
        super().__init__(opset=opset)
        self.is_fused = is_fused

    def named(self, name: str, x: str, k: int, n: int, *, bias: bool = False) -> str:
        product = self.op("MatMul", x, self.weight(k, n))
        self.nodes[-1].name = name
        return self.op("Add", product, self.numbers(n)) if bias else product

    def gains(self, n: int) -> np.ndarray:
        gain = self.numbers(n, near=1)
        gain[:: n // 3] *= 20
        return gain

    def rms_norm(self, x: str) -> str:
        gain = self.gains(K)
        if self.is_fused:
            return str(self.op("RMSNormalization", x, gain, axis=-1, epsilon=1e-5))
        power = self.op("ReduceMean", self.op("Pow", x, np.float32(2)), axes=[-1])
        root = self.op("Sqrt", self.op("Add", power, np.float32(1e-5)))
        return str(self.op("Mul", self.op("Mul", x, self.op("Div", np.float32(1), root)), gain))

    def layer_norm(self, x: str) -> str:
        gain, shift = self.gains(K), 4 * self.numbers(K)
        if self.is_fused:
            return str(self.op("LayerNormalization", x, gain, shift, axis=-1, epsilon=1e-5))
        centered = self.op("Sub", x, self.op("ReduceMean", x, axes=[-1]))
        power = self.op("ReduceMean", self.op("Pow", centered, np.float32(2)), axes=[-1])
        scaled = self.op("Div", centered, self.op("Sqrt", self.op("Add", power, np.float32(1e-5))))
        return str(self.op("Add", self.op("Mul", scaled, gain), shift))


def decoder(is_fused: bool = False, layers: int = 2) -> Architecture:
    """Pre-norm: RMSNorm, rotary positions, four heads that share two of keys and values, a cache of these, a gated MLP."""
    net = _Net(is_fused, 23 if is_fused else 17)
    inputs: dict[str, Any] = {"ids": ["b", "s"]}
    outputs: dict[str, Any] = {}
    x = net.op("Gather", net.numbers(VOCABULARY, K), "ids")
    for layer in range(layers):
        past = [f"past.{layer}.{part}" for part in ("key", "value")]
        inputs |= {name: ["b", KV_HEADS, None, SIZE] for name in past}
        h = net.rms_norm(x)
        q, k, v = (
            to_heads(net, net.named(f"/layers.{layer}/{name}/MatMul", h, K, n * SIZE), n)
            for name, n in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))
        )
        start = net.op("Gather", net.op("Shape", past[0]), ints(2)[0], axis=0)
        q, k = rotary(net, q, start, SIZE), rotary(net, k, start, SIZE)
        k, v = net.op("Concat", past[0], k, axis=2), net.op("Concat", past[1], v, axis=2)
        outputs |= {k: inputs[past[0]], v: inputs[past[0]]}
        read = attend(net, q, *(repeated(net, one, HEADS // KV_HEADS) for one in (k, v)))
        x = net.op("Add", x, net.named(f"/layers.{layer}/o/MatMul", read, K, K))
        h = net.rms_norm(x)
        gate, up = (net.named(f"/layers.{layer}/{name}/MatMul", h, K, HIDDEN) for name in ("gate", "up"))
        gated = net.op("Mul", net.op("Mul", gate, net.op("Sigmoid", gate)), up)
        x = net.op("Add", x, net.named(f"/layers.{layer}/down/MatMul", gated, HIDDEN, K))
    y = net.named("/head/MatMul", net.rms_norm(x), K, VOCABULARY)
    outputs = {y: ["b", "s", VOCABULARY], **outputs}

    def feed(seed: int, batch: int) -> Feed:
        random = np.random.default_rng(seed)
        caches = {n: random.standard_normal((batch, KV_HEADS, 3, SIZE), dtype=np.float32) for n in inputs if n != "ids"}
        return {"ids": random.integers(0, VOCABULARY, (batch, 5)), **caches}

    return Architecture(net.bytes(inputs, outputs), feed, dict.fromkeys([*inputs, *outputs], 0))


def encoder(is_fused: bool = False) -> Architecture:
    """Post-norm, in the shape of BERT: masked attention, GELU, and a pooled token."""
    net = _Net(is_fused, 17)
    words = net.op("Gather", net.numbers(VOCABULARY, K), "ids")
    x = net.layer_norm(net.op("Add", words, net.op("Slice", net.numbers(1, 16, K), ints(0), net.op("Shape", "ids", start=1), ints(1))))
    hidden = net.op("Unsqueeze", net.op("Sub", np.float32(1), net.op("Cast", "ids_mask", to=1)), ints(1, 2))
    added = net.op("Mul", hidden, np.float32(-1e4))
    for layer in range(1):
        q, k, v = (to_heads(net, net.named(f"/layer.{layer}/{name}/MatMul", x, K, K, bias=True), HEADS) for name in ("q", "k", "v"))
        scores = net.op("Div", net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2])), np.float32(SIZE**0.5))
        mixed = net.op("MatMul", net.op("Softmax", net.op("Add", scores, added), axis=-1), v)
        joined = net.op("Reshape", net.op("Transpose", mixed, perm=[0, 2, 1, 3]), ints(0, 0, -1))
        x = net.layer_norm(net.op("Add", x, net.named(f"/layer.{layer}/o/MatMul", joined, K, K, bias=True)))
        up = net.named(f"/layer.{layer}/up/MatMul", x, K, HIDDEN, bias=True)
        bent = net.op("Add", net.op("Erf", net.op("Div", up, np.float32(2**0.5))), np.float32(1))
        down = net.named(f"/layer.{layer}/down/MatMul", net.op("Mul", net.op("Mul", up, bent), np.float32(0.5)), HIDDEN, K, bias=True)
        x = net.layer_norm(net.op("Add", x, down))
    first = net.op("Gather", x, ints(0)[0], axis=1)
    pooled = net.op("Tanh", net.op("Gemm", first, net.weight(K, K).T.copy(), net.numbers(K), transB=1))
    net.nodes[-2].name = "/pooler/Gemm"

    def feed(seed: int, batch: int) -> Feed:
        random = np.random.default_rng(seed)
        mask = np.arange(6) < random.integers(3, 7, (batch, 1))
        return {"ids": random.integers(0, VOCABULARY, (batch, 6)), "ids_mask": mask.astype(np.int64)}

    shapes: dict[str, Any] = {"ids": ["b", "s"], "ids_mask": ["b", "s"]}
    return Architecture(net.bytes(shapes, {x: ["b", "s", K], pooled: ["b", K]}), feed, dict.fromkeys(["ids", "ids_mask", x, pooled], 0))


def mlp() -> Architecture:
    """Linear, ReLU, linear, GELU, linear, of inputs whose channels differ; the last layer has one output."""
    net = _Net(False, 17)
    h = net.op("Relu", net.named("/first/MatMul", "x", 40, 48, bias=True))
    h = net.op("Relu", net.op("Gemm", h, net.weight(48, 24).T.copy(), net.numbers(24), transB=1, alpha=0.5))
    net.nodes[-2].name = "/second/Gemm"
    y = net.named("/last/MatMul", h, 24, 1, bias=True)

    def feed(seed: int, batch: int) -> Feed:
        rows = np.random.default_rng(seed).standard_normal((3 * batch, 40)) * np.exp(np.linspace(-2, 3, 40))
        return {"x": rows.astype(np.float32)}

    return Architecture(net.bytes({"x": ["b", 40]}, {y: ["b", 1]}), feed, {"x": 0, y: 0})


def lstm() -> Architecture:
    """An embedding, two LSTMs, the second in both directions, and a linear layer."""
    net, h = _Net(False, 17), 24
    x = net.op("Gather", net.numbers(VOCABULARY, K), "ids")
    y, _, _ = net.op("LSTM", x, net.numbers(1, 4 * h, K) / 4, net.numbers(1, 4 * h, h) / 4, net.numbers(1, 8 * h), count=3, hidden_size=h)
    net.nodes[-1].name = "/first/LSTM"
    y = net.op("Squeeze", y, ints(1))
    y = net.op("LSTM", y, net.numbers(2, 4 * h, h) / 4, net.numbers(2, 4 * h, h) / 4, hidden_size=h, direction="bidirectional")
    net.nodes[-1].name = "/second/LSTM"
    y = net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), ints(0, 0, 2 * h))
    y = net.named("/head/MatMul", y, 2 * h, VOCABULARY, bias=True)
    feed = lambda seed, batch: {"ids": np.random.default_rng(seed).integers(0, VOCABULARY, (7, batch))}  # noqa: E731
    return Architecture(net.bytes({"ids": ["t", "b"]}, {y: ["t", "b", VOCABULARY]}), feed, {"ids": 1, y: 1})


def cnn() -> Architecture:
    """Two convolutions, a depthwise one between them, a mean over the image, and a linear layer."""
    net = _Net(False, 17)
    h = net.op("Relu", net.op("Conv", "x", net.numbers(8, 3, 3, 3), net.numbers(8), pads=[1, 1, 1, 1], strides=[2, 2]))
    net.nodes[-2].name = "/conv1/Conv"
    h = net.op("Relu", net.op("Conv", h, net.numbers(8, 1, 3, 3), group=8, pads=[1, 1, 1, 1]))
    net.nodes[-2].name = "/depthwise/Conv"
    h = net.op("Relu", net.op("Conv", h, net.numbers(32, 8, 1, 1), net.numbers(32)))
    net.nodes[-2].name = "/conv2/Conv"
    h = net.op("Reshape", net.op("ReduceMean", h, axes=[2, 3], keepdims=0), ints(0, 32))
    y = net.named("/head/MatMul", h, 32, 10, bias=True)
    feed = lambda seed, batch: {"x": np.random.default_rng(seed).standard_normal((batch, 3, 8, 8), dtype=np.float32)}  # noqa: E731
    return Architecture(net.bytes({"x": ["b", 3, 8, 8]}, {y: ["b", 10]}), feed, {"x": 0, y: 0})


NAMES = [name for name in recipes if not recipes[name].has_gradients]
"""Recipes that any architecture has layers for; those with gradients go block by block, and have tests of their own (tuning/)."""

ARCHITECTURES = {
    "block": decoder(layers=1),
    "decoder": decoder(),
    "fused decoder": decoder(is_fused=True),
    "encoder": encoder(),
    "fused encoder": encoder(is_fused=True),
    "mlp": mlp(),
    "lstm": lstm(),
    "cnn": cnn(),
}
