"""Attention reads the codes of a cache where its keys and values come from one, with the same result; else it reads numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import qruntime
from qruntime.ir import clone
from qruntime.passes import pipeline
from tests.passes.lowering import lowered_ops, model
from tests.quantization.decoders import LAYERS, SHAPES, Decoder
from tests.quantization.test_cache import with_codes
from tests.small_models import random

B, H, S, T, D = 2, 2, 3, 5, 8
Nodes = list[tuple[str, list[str], list[str], dict[str, Any]]]


def cache(name: str, bits: int = 4, labels: str = "") -> Nodes:
    """What `name` is once it was codes, under `<name>_read`."""
    kind, attributes = ("Clusters", {"bits": bits, "clusters": 2}) if labels else ("", {"bits": bits})
    given = [labels] if labels else []
    return [
        (f"QuantizeCache{kind}", [name, *given], [f"{name}_codes", f"{name}_ranges"], {"domain": "qruntime", **attributes}),
        (f"DequantizeCache{kind}", [f"{name}_codes", f"{name}_ranges", *given], [f"{name}_read"], {"domain": "qruntime", **attributes}),
    ]


def attention(k: str = "k_read", v: str = "v_read") -> Nodes:
    return [
        ("Transpose", [k], ["kt"], {"perm": (0, 1, 3, 2)}),
        ("MatMul", ["q", "kt"], ["scores"], {}),
        ("Softmax", ["scores"], ["weights"], {"axis": -1}),
        ("MatMul", ["weights", v], ["y"], {}),
    ]


def feed(heads: int = H) -> dict[str, np.ndarray]:
    return {"q": random(B, heads, S, D), "k": random(B, H, T, D, seed=1), "v": random(B, H, T, D, seed=2)}


def ops(nodes: Nodes, inputs: dict[str, np.ndarray], constants: dict[str, np.ndarray] | None = None) -> dict[str, int]:
    return dict(lowered_ops(model(nodes, inputs, ["y"], constants), inputs))


def test_both_come_from_codes():
    assert ops([*cache("k"), *cache("v"), *attention()], feed()) == {"QuantizeCache": 2, "CachedAttention": 1}


def test_clusters():
    labels = {"lk": np.arange(D, dtype=np.uint8) % 2, "lv": (np.arange(H * D, dtype=np.uint8) % 3 // 2).reshape(H, 1, D)}
    nodes = [*cache("k", labels="lk"), *cache("v", labels="lv"), *attention()]
    assert ops(nodes, feed(), labels) == {"QuantizeCacheClusters": 2, "CachedAttention": 1}


@pytest.mark.parametrize(
    "nodes",
    [
        [*cache("k"), *attention(v="v")],
        [*cache("v"), *attention(k="k")],
        [*cache("k"), *cache("v", bits=8), *attention()],
    ],
    ids=["values are floats", "keys are floats", "other bits"],
)
def test_what_is_no_pair_of_codes(nodes: Nodes):
    assert "CachedAttention" not in ops(nodes, feed())


def repeated(name: str, times: str, final: str) -> Nodes:
    return [
        ("Unsqueeze", [f"{name}_read", "two"], [f"{name}_one"], {}),
        ("Expand", [f"{name}_one", times], [f"{name}_wide"], {}),
        ("Reshape", [f"{name}_wide", final], [f"{name}_repeated"], {}),
    ]


@pytest.mark.parametrize("expanded", [(B, H, 3, T, D), (1, 1, 3, 1, 1), (1, H, 3, T, D)])
@pytest.mark.parametrize("final", [(B, 3 * H, T, D), (B, 3 * H, -1, D)])
def test_repeated_heads(expanded: tuple[int, ...], final: tuple[int, ...]):
    """Shapes that come as inputs: whatever they say, the result is that of the definitions."""
    inputs = {**feed(3 * H), "times": np.array(expanded), "final": np.array(final)}
    nodes = [*cache("k"), *cache("v"), *repeated("k", "times", "final"), *repeated("v", "times", "final")]
    made = ops([*nodes, *attention("k_repeated", "v_repeated")], inputs, {"two": np.array([2])})
    assert made == {"QuantizeCache": 2, "CachedAttention": 1}


@pytest.mark.parametrize("others", [(1, 1, 3, 1, 1), (1, 3, 3, 1, 1), (1, 1, 2, 1, 1)])
def test_heads_repeated_in_two_ways(others: tuple[int, ...]):
    """Of k and of v; a way that is not the other's in the end is an error of the definitions too."""
    inputs = {**feed(3 * H), "times": np.array((B, H, 3, T, D)), "others": np.array(others), "final": np.array((B, 3 * H, T, D))}
    nodes = [*cache("k"), *cache("v"), *repeated("k", "times", "final"), *repeated("v", "others", "final")]
    nodes += attention("k_repeated", "v_repeated")
    if others[1:3] == (1, 3):
        assert ops(nodes, inputs, {"two": np.array([2])}) == {"QuantizeCache": 2, "CachedAttention": 1}
        return
    with pytest.raises(qruntime.RunError, match="CachedAttention"):
        model(nodes, inputs, ["y"], {"two": np.array([2])}).run(inputs)


@pytest.mark.parametrize("kind", SHAPES)
def test_caches_of_decoders(kind: str):
    quantized, _ = with_codes(qruntime.load(Decoder(kind).bytes()))
    lowered = pipeline.lowered(clone(quantized.graph))
    found = [node.op_type for node in lowered.nodes]
    if kind.endswith("attention"):
        assert "Attention" in found or "MultiHeadAttention" in found
    else:
        assert found.count("CachedAttention") == LAYERS
        assert "DequantizeCache" not in found
