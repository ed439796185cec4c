"""Attention over a cache of codes (lowered graphs, domain qruntime): keys and values are decoded head by head, never as a whole."""

from __future__ import annotations

import numpy as np

from qruntime.ir import Node
from qruntime.ops.cache_codes import dequantize_cache, dequantize_cache_clusters
from qruntime.ops.fused_attention import LAYOUTS, fused_attention
from qruntime.ops.registry import NativeCall, operator


@operator("CachedAttention", domain="qruntime")
def cached_attention(
    q: np.ndarray,
    k_codes: np.ndarray,
    k_ranges: np.ndarray,
    v_codes: np.ndarray,
    v_ranges: np.ndarray,
    mask: np.ndarray | None = None,
    scale_tensor: np.ndarray | None = None,
    k_labels: np.ndarray | None = None,
    v_labels: np.ndarray | None = None,
    k_expanded: np.ndarray | None = None,
    k_merged: np.ndarray | None = None,
    v_expanded: np.ndarray | None = None,
    v_merged: np.ndarray | None = None,
    lengths: np.ndarray | None = None,
    *,
    bits: int,
    clusters: int = 1,
    scale: float = 1.0,
    fill: float = -np.inf,
    fill_adds: int = 0,
    q_layout: str = "BHSD",
    k_layout: str = "BHSD",
    v_layout: str = "BHSD",
    out_layout: str = "BHSD",
    parts: tuple[int, ...] = (0, 0, 0),
    kv_repeats: int = 1,
    allowzero: int = 0,
    causal: int = 0,
    causal_offset: int = -1,
    pads_mask: int = 0,
    nan_rows_to_zero: int = 0,
) -> np.ndarray:
    """qruntime.Attention on what the codes stand for, as ops/cache_codes.py defines it."""
    k, v = (
        dequantize_cache(codes, ranges, bits=bits)
        if labels is None
        else dequantize_cache_clusters(codes, ranges, labels, bits=bits, clusters=clusters)
        for codes, ranges, labels in ((k_codes, k_ranges, k_labels), (v_codes, v_ranges, v_labels))
    )
    return fused_attention(
        q, k, v, mask, scale_tensor, k_expanded, k_merged, v_expanded, v_merged, lengths, scale=scale, fill=fill, fill_adds=fill_adds,
        q_layout=q_layout, k_layout=k_layout, v_layout=v_layout, out_layout=out_layout, parts=parts, kv_repeats=kv_repeats,
        allowzero=allowzero, causal=causal, causal_offset=causal_offset, pads_mask=pads_mask, nan_rows_to_zero=nan_rows_to_zero,
    )  # fmt: skip


@cached_attention.native
def _(node: Node) -> NativeCall:
    layouts = [LAYOUTS[node.attr(f"{name}_layout", "BHSD")] for name in ("q", "k", "v", "out")]
    part = node.attr("parts", (0, 0, 0))[0]
    ints = [*layouts, part, node.attr("fill_adds", 0), node.attr("nan_rows_to_zero", 0), node.attr("kv_repeats", 1)]
    ints += [node.attr("bits"), node.attr("clusters", 1), node.attr("causal", 0), node.attr("causal_offset", -1)]
    return NativeCall("cached_attention", ints=ints, floats=[node.attr("scale", 1.0), node.attr("fill", -np.inf)], widens=False)
