"""Codes of caches and attention that reads them, against their definitions, on every rung."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import qruntime  # noqa: F401 (puts a rung in force)
from qruntime.ops.cache_codes import quantize_cache, quantize_cache_clusters
from tests.kernels.native_call import check, check_agreement, run_definition, run_native
from tests.small_models import random

pytestmark = pytest.mark.usefixtures("rung")
OURS: dict[str, Any] = {"version": 1, "domain": "qruntime"}


def rows(*shape: int, seed: int = 0) -> np.ndarray:
    """Of any magnitude, one of them constant, one NaN and one infinite where there are as many."""
    x = random(*shape, seed=seed) * np.exp2(random(*shape[:-1], 1, seed=seed + 1) * 8)
    flat = x.reshape(-1, shape[-1])
    for row, odd in ((1, 0.75), (2, np.nan), (4, -np.inf)):
        if len(flat) > row:
            flat[row, : None if odd == 0.75 else 1] = odd
    return x.astype(np.float32)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", ["QuantizeCache", "FitCache"])
@pytest.mark.parametrize("shape", [(8,), (0, 8), (3, 0, 8), (1, 4), (5, 12), (2, 3, 7, 64), (2, 2, 3, 100), (400, 68), (3, 2100)])
def test_to_codes_and_back(shape: tuple[int, ...], name: str, bits: int):
    for threads in (1, 3):
        codes, ranges = check(name, [rows(*shape)], bits=bits, num_outputs=2, num_threads=threads, **OURS)
        check("DequantizeCache", [codes, ranges], bits=bits, num_threads=threads, **OURS)


@pytest.mark.parametrize("labels", [(8,), (1, 8), (3, 1, 8), (2, 3, 5, 8), (1, 1, 5, 8)])
@pytest.mark.parametrize("clusters", [1, 3, 16])
@pytest.mark.parametrize("name", ["QuantizeCacheClusters", "FitCacheClusters"])
def test_clusters_to_codes_and_back(name: str, labels: tuple[int, ...], clusters: int):
    own = np.random.default_rng(1).integers(0, clusters, labels).astype(np.uint8)
    options: dict[str, Any] = {"bits": 4, "clusters": clusters, **OURS}
    codes, ranges = check(name, [rows(2, 3, 5, 8), own], num_outputs=2, **options)
    check("DequantizeCacheClusters", [codes, ranges, own], **options)


def test_what_does_not_fit_is_declined():
    x, labels = random(2, 3, 8), np.zeros(8, np.uint8)
    codes, ranges = quantize_cache(x, bits=4)
    for bits in (0, 1, 3, 16, -4, 1 << 40):
        check_agreement("QuantizeCache", [x], bits=bits, num_outputs=2, **OURS)
        check_agreement("DequantizeCache", [codes, ranges], bits=bits, **OURS)
    for odd in (x[..., :7], x.astype(np.float64), np.float32(1), np.zeros((2, 0), np.float32)):
        check_agreement("QuantizeCache", [odd], bits=4, num_outputs=2, **OURS)
    for clusters in (0, -1, 17, 1 << 40):
        check_agreement("QuantizeCacheClusters", [x, labels], bits=4, clusters=clusters, num_outputs=2, **OURS)
        check_agreement("DequantizeCacheClusters", [codes, ranges, labels], bits=4, clusters=clusters, **OURS)
    for odd in (labels + np.uint8(1), labels[:7], labels.astype(np.int8), np.zeros((2, 8), np.uint8), np.zeros((1, 1, 1, 8), np.uint8)):
        check_agreement("QuantizeCacheClusters", [x, odd], bits=4, clusters=1, num_outputs=2, **OURS)
        check_agreement("DequantizeCacheClusters", [codes, ranges, odd], bits=4, clusters=1, **OURS)
    for parts in ([codes, ranges[:1]], [codes, ranges[..., :1]], [codes.astype(np.int8), ranges], [codes[..., :0], ranges], [codes, codes]):
        check_agreement("DequantizeCache", parts, bits=4, **OURS)


# ------------------------------------------------------------------------- attention


def coded(heads: int, length: int, size: int, batch: int = 2, bits: int = 4, seed: int = 0) -> list[np.ndarray]:
    """Codes and ranges of k and of v [B, H, S, D]."""
    return [part for i in range(2) for part in quantize_cache(random(batch, heads, length, size, seed=seed + i), bits=bits)]


def agree(inputs: list[np.ndarray | None], threads: int = 1, **attributes: Any) -> np.ndarray:
    """The kernel on codes has the bits of the float kernel on what they stand for, and is near the definition."""
    native = run_native("CachedAttention", inputs, num_threads=threads, **attributes, **OURS)
    assert native is not None
    (defined,) = run_definition("CachedAttention", inputs, **attributes, **OURS)
    assert native[0].shape == defined.shape
    assert np.allclose(native[0], defined, rtol=1e-4, atol=1e-5)
    return native[0]


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 40), (3, 7), (17, 64), (40, 129)])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_attention_reads_codes(queries: int, keys: int, bits: int):
    q, parts = random(2, 4, queries, 16), coded(4, keys, 16, bits=bits)
    mask = np.arange(keys) <= np.arange(queries)[:, None] + keys - queries
    attributes: dict[str, Any] = {"bits": bits, "scale": 0.25}
    for one in (None, mask, np.where(mask, 0, -10).astype(np.float32)):
        y = agree([q, *parts, one], **attributes)
        floats = [run_definition("DequantizeCache", parts[i : i + 2], bits=bits, **OURS)[0] for i in (0, 2)]
        same = run_native("Attention", [q, *floats, one], scale=0.25, **OURS)
        assert same is not None
        assert np.array_equal(y, same[0])
        assert np.array_equal(y, agree([q, *parts, one], threads=3, **attributes))
        last = agree([q[:, :, -1:], *parts, None if one is None else one[-1:]], **attributes)
        assert np.array_equal(last[:, :, 0], y[:, :, -1])


@pytest.mark.parametrize("queries", [1, 5, 30])
@pytest.mark.parametrize("repeats", [1, 3])
def test_heads_in_groups(queries: int, repeats: int):
    q, parts, keys = random(2, 2 * repeats, queries, 8), coded(2, 21, 8), 21
    mask = random(2, 2 * repeats, queries, keys, seed=9)
    shapes = [np.array(shape, np.int64) for shape in ([2, 2, repeats, keys, 8], [2, 2 * repeats, keys, 8])]
    whole = agree([q, *parts, mask, None, None, None, *shapes, *shapes], bits=4)
    assert np.array_equal(whole, agree([q, *parts, mask], bits=4, kv_repeats=repeats))
    shapes[1][2] = -1
    assert np.array_equal(whole, agree([q, *parts, mask, None, None, None, *shapes, *shapes], bits=4))
    shapes[0] = np.array([1, 1, repeats, 1, 1])
    assert np.array_equal(whole, agree([q, *parts, mask, None, None, None, *shapes, *shapes], bits=4))
    for head in range(2 * repeats):
        of_head = [part[:, head // repeats : head // repeats + 1] for part in parts]
        alone = agree([q[:, head : head + 1], *of_head, mask[:, head : head + 1]], bits=4)
        assert np.array_equal(alone[:, 0], whole[:, head])


@pytest.mark.parametrize(
    ("expanded", "merged"),
    [
        ([2, 2, 3, 21, 8], [2, 6, -1, -1]),
        ([2, 2, 3, 21, 8], [2, 6, 8, 21]),
        ([2, 2, 3, 21, 8], [6, 2, 21, 8]),
        ([2, 2, 3, 21, 8], [2, 0, 21, 8]),
        ([2, 2, 3, 20, 8], [2, 6, 21, 8]),
        ([2, 2, 0, 21, 8], [2, 0, 21, 8]),
        ([1, 1, 1, 1, 1], [2, 6, 21, 8]),
        ([2, 2, 3, 21], [2, 6, 21, 8]),
        ([2, 2, 2, 21, 8], [2, 4, 21, 8]),
    ],
)
def test_shapes_that_say_something_else_are_left_to_the_definition(expanded: list[int], merged: list[int]):
    shapes = [np.array(shape, np.int64) for shape in (expanded, merged)]
    inputs = [random(2, 6, 4, 8), *coded(2, 21, 8), None, None, None, None, *shapes, *shapes]
    assert run_native("CachedAttention", inputs, bits=4, **OURS) is None


def test_clusters_and_layouts_of_attention():
    labels = [np.random.default_rng(i).integers(0, 4, (3, 1, 16)).astype(np.uint8) for i in range(2)]
    made = [quantize_cache_clusters(random(2, 3, 11, 16, seed=i), labels[i], bits=4, clusters=4) for i in range(2)]
    parts, q = [part for pair in made for part in pair], random(2, 3, 5, 16)
    attributes: dict[str, Any] = {"bits": 4, "clusters": 4}
    y = agree([q, *parts, None, None, *labels], **attributes)
    turned = [np.ascontiguousarray(part.transpose(0, 2, 1, 3)) for part in (q, *parts)]
    layouts = {f"{name}_layout": "BSHD" for name in ("q", "k", "v", "out")}
    same = agree([*turned, None, None, *(one.transpose(1, 0, 2) for one in labels)], **attributes, **layouts)
    assert np.array_equal(same.transpose(0, 2, 1, 3), y)
    of_tokens = np.random.default_rng(0).integers(0, 4, (11, 16)).astype(np.uint8)
    assert run_native("CachedAttention", [q, *parts, None, None, of_tokens, of_tokens], **attributes, **OURS) is None


def test_attention_without_keys_or_batch():
    for batch, keys, queries in ((0, 3, 2), (2, 3, 0), (2, 0, 0)):
        parts = coded(2, keys, 8, batch=batch)
        native = run_native("CachedAttention", [random(batch, 2, queries, 8), *parts], bits=4, **OURS)
        assert native is not None
        assert native[0].shape == (batch, 2, queries, 8)


def test_attention_declines_what_does_not_fit():
    q, parts = random(2, 4, 3, 8), coded(4, 5, 8)
    odd = [
        [q[:, :3], *parts], [q[:1], *parts], [q[..., :4], *parts], [q[0], *parts], [q, parts[1], *parts[1:]],
        [q, *parts[:2], *coded(4, 6, 8)[2:]], [q, *parts[:2], *coded(2, 5, 8)[2:]], [q, parts[0], parts[1][..., :1], *parts[2:]],
        [q, *(part[0] for part in parts)],
        [q, *parts, np.ones((3, 6), bool)], [q, *parts, None, np.ones(2, np.float32)], [q, *parts, None, None, np.zeros(8, np.uint8)],
    ]  # fmt: skip
    for inputs in odd[:-1]:
        assert run_native("CachedAttention", inputs, bits=4, **OURS) is None
    assert run_native("CachedAttention", odd[-1], bits=4, clusters=2, **OURS) is None
    for bits in (0, 3, 16, -4):
        assert run_native("CachedAttention", [q, *parts], bits=bits, **OURS) is None
