"""GroupQueryAttention: few key and value heads for many of the queries, over a cache that the caller owns."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from qruntime.ir import Node
from qruntime.ops.attention import split_heads
from qruntime.ops.checks import limit_shape, require_rank, require_shape, scalar
from qruntime.ops.contrib.domain import MICROSOFT
from qruntime.ops.contrib.kv_cache import KeyValueCache, Window
from qruntime.ops.contrib.rotary import check_caches, check_positions, rotated
from qruntime.ops.precision import working_dtype
from qruntime.ops.products import matmul
from qruntime.ops.registry import NativeCall, operator


class Chunk(NamedTuple):
    """What one sequence of a batch brings: `new` tokens after `past` cached ones."""

    past: int
    new: int

    @property
    def total(self) -> int:
        return self.past + self.new


def split_projections(
    query: np.ndarray, key: np.ndarray | None, value: np.ndarray | None, num_heads: int, kv_num_heads: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Heads [B, N, S, H] of queries, keys and values that come apart or packed in `query`."""
    if num_heads < 1 or kv_num_heads < 1 or num_heads % kv_num_heads:
        raise ValueError(f"num_heads must be a multiple of kv_num_heads, both above 0, got {num_heads} and {kv_num_heads}")
    require_rank("query", query, 3)
    if (key is None) != (value is None):
        raise ValueError("key and value must both be given or both be packed in query")
    if key is None or value is None:
        heads = split_heads("the packed query", query, num_heads + 2 * kv_num_heads)
        ends = (num_heads, num_heads + kv_num_heads)
        return heads[:, : ends[0]], heads[:, ends[0] : ends[1]], heads[:, ends[1] :]
    require_rank("key", key, 3)
    q = split_heads("query", query, num_heads)
    expected = (query.shape[0], key.shape[1], kv_num_heads * q.shape[3])
    require_shape("key", key, expected)
    require_shape("value", value, expected)
    return q, split_heads("key", key, kv_num_heads), split_heads("value", value, kv_num_heads)


def _chunks(batch: int, length: int, seqlens_k: np.ndarray, total_length: int, query_seqlens: np.ndarray | None) -> list[Chunk]:
    """Past and new tokens of every sequence; ValueError where the counts do not fit `length` new ones."""
    ends = seqlens_k.reshape(-1)
    require_shape("seqlens_k", ends, (batch,))
    require_shape("query_seqlens", query_seqlens, (batch,))
    chunks = []
    for b in range(batch):
        total = int(ends[b]) + 1
        new = min(length, total) if query_seqlens is None else int(query_seqlens[b])
        if not 1 <= total <= total_length or not 0 <= new <= min(length, total):
            raise ValueError(
                f"seqlens_k + 1 must lie in [1, {total_length}], the total sequence length, and the new tokens in "
                f"[0, {length}] and not above it, got {total} and {new} in row {b}"
            )
        chunks.append(Chunk(total - new, new))
    return chunks


def _normalized(x: np.ndarray, weight: np.ndarray | None, epsilon: float) -> np.ndarray:
    """Every head of x [..., H] over its root mean square, times `weight` [H]."""
    if weight is None:
        return x
    require_shape("q_norm_weight and k_norm_weight", weight, x.shape[-1:])
    wide = x.astype(working_dtype(x.dtype))
    mean = np.mean(wide * wide, axis=-1, keepdims=True)
    return (wide / np.sqrt(mean + wide.dtype.type(epsilon)) * weight.astype(wide.dtype)).astype(x.dtype)


def softmax_with_sink(scores: np.ndarray, sink: np.ndarray | None) -> np.ndarray:
    """Softmax over the last axis of scores [N, S, T] with one more term `sink` [N] in every sum; a row of -inf gives zeros."""
    peak = scores.max(axis=-1, keepdims=True, initial=-np.inf)
    if sink is not None:
        peak = np.maximum(peak, sink[:, None, None])
    peak = np.where(np.isneginf(peak), peak.dtype.type(0), peak)
    powers = np.exp(scores - peak)
    total = powers.sum(axis=-1, keepdims=True)
    if sink is not None:
        total = total + np.exp(sink[:, None, None] - peak)
    return powers / np.where(total == 0, total.dtype.type(1), total)


@operator("GroupQueryAttention", domain=MICROSOFT, shape_inputs=(6,))
def group_query_attention(
    query: np.ndarray,
    key: np.ndarray | None,
    value: np.ndarray | None,
    past_key: np.ndarray | None,
    past_value: np.ndarray | None,
    seqlens_k: np.ndarray,
    total_sequence_length: np.ndarray,
    cos_cache: np.ndarray | None = None,
    sin_cache: np.ndarray | None = None,
    position_ids: np.ndarray | None = None,
    attention_bias: np.ndarray | None = None,
    head_sink: np.ndarray | None = None,
    k_scale: np.ndarray | None = None,
    v_scale: np.ndarray | None = None,
    q_norm_weight: np.ndarray | None = None,
    k_norm_weight: np.ndarray | None = None,
    query_seqlens: np.ndarray | None = None,
    *,
    num_heads: int,
    kv_num_heads: int,
    causal: int = 1,
    do_rotary: int = 0,
    k_norm_epsilon: float | None = None,
    k_quant_type: str = "NONE",
    kv_cache_bit_width: int = 0,
    local_window_size: int = -1,
    q_norm_epsilon: float | None = None,
    qk_norm_epsilon: float = 1e-6,
    qk_output: int = 0,
    rotary_interleaved: int = 0,
    scale: float = 0.0,
    sliding_window_cache: int = 0,
    smooth_softmax: int = -1,
    softcap: float = 0.0,
    v_quant_type: str = "NONE",
) -> tuple[np.ndarray | None, ...]:
    """query [B, S, N · H], key and value [B, S, Nk · H] (or all packed in query) → [B, S, N · H], the grown caches
    [B, Nk, C, H] and, with qk_output, scores (1, 0 where a key is hidden) or weights (2) [B, N, S, T].

    seqlens_k [B] holds the length of each sequence with its new tokens, less one; T = total_sequence_length is the longest
    of them. A cache longer than T is a buffer: its first rows are filled and it keeps its length. The new tokens are the
    last query_seqlens [B] (default: as many as there are) of each; rows of the output behind them are zeros. Caches may be
    int8 or packed 4-bit codes with k_scale and v_scale, and a window with sliding_window_cache.
    """
    q, k, v = split_projections(query, key, value, num_heads, kv_num_heads)
    batch, _, length, size = q.shape
    if k.shape[2] != length:
        raise ValueError(f"query and key must agree in length, got {length} and {k.shape[2]}")
    total_length = int(scalar(total_sequence_length, "total_sequence_length"))
    _check_options(causal, local_window_size, sliding_window_cache, qk_output, query_seqlens, past_key)
    chunks = _chunks(batch, length, seqlens_k, total_length, query_seqlens)
    q = _normalized(q, q_norm_weight, qk_norm_epsilon if q_norm_epsilon is None else q_norm_epsilon)
    k = _normalized(k, k_norm_weight, qk_norm_epsilon if k_norm_epsilon is None else k_norm_epsilon)
    if (q_norm_weight is None) != (k_norm_weight is None):
        raise ValueError("q_norm_weight and k_norm_weight must both be given or both be absent")
    if do_rotary:
        cos, sin = _angles(cos_cache, sin_cache, position_ids, chunks, length, size)
        q, k = (rotated(x, cos[:, None], sin[:, None], rotary_interleaved) for x in (q, k))
    window = Window(local_window_size) if sliding_window_cache else None
    keys = KeyValueCache("key", past_key, k, chunks, total_length, k_quant_type, kv_cache_bit_width, k_scale, window)
    values = KeyValueCache("value", past_value, v, chunks, total_length, v_quant_type, kv_cache_bit_width, v_scale, window)
    if (past_key is None) != (past_value is None):
        raise ValueError("past_key and past_value must both be given or both be absent")
    bias = _bias(attention_bias, (batch, num_heads, length, total_length))
    sink = _sink(head_sink, smooth_softmax, num_heads, working_dtype(q.dtype))

    limit_shape((batch, num_heads, length, total_length), "the scores")
    wide = working_dtype(q.dtype)
    factor = wide.type(scale or 1 / math.sqrt(max(size, 1)))
    y = np.zeros(q.shape, q.dtype)
    shown = np.zeros((batch, num_heads, length, total_length), q.dtype) if qk_output else None
    # One sequence at a time: what a row gets does not depend on the lengths of others.
    for b, chunk in enumerate(chunks):
        first, all_keys, all_values = keys.first(b), keys.rows(b), values.rows(b)
        groups = q[b, :, : chunk.new].astype(wide).reshape(kv_num_heads, -1, size)
        scores = matmul(groups, all_keys.astype(wide).swapaxes(1, 2)) * factor
        scores = scores.reshape(num_heads, chunk.new, all_keys.shape[1])
        if softcap > 0:
            scores = np.tanh(scores / wide.type(softcap)) * wide.type(softcap)
        if bias is not None:
            scores = scores + bias[b, :, : chunk.new, first : chunk.total].astype(wide)
        distance = np.arange(chunk.past, chunk.total)[:, None] - np.arange(first, chunk.total)
        hidden = (distance < 0) if causal else np.zeros_like(distance, bool)
        if local_window_size > 0:
            hidden |= distance >= local_window_size
        scores = np.where(hidden, wide.type(-np.inf), scores)
        weights = softmax_with_sink(scores, sink)
        if shown is not None:
            shown[b, :, : chunk.new, first : chunk.total] = weights if qk_output == 2 else np.where(hidden, 0, scores)
        grouped = weights.reshape(kv_num_heads, -1, all_keys.shape[1])
        y[b, :, : chunk.new] = matmul(grouped, all_values.astype(wide)).reshape(num_heads, chunk.new, size)
    output = np.ascontiguousarray(y.transpose(0, 2, 1, 3)).reshape(batch, length, num_heads * size)
    return output, keys.present, values.present, shown


_PLAIN = {
    "k_quant_type": "NONE", "kv_cache_bit_width": 0, "local_window_size": -1, "qk_output": 0, "sliding_window_cache": 0, "softcap": 0.0,
    "v_quant_type": "NONE",
}  # fmt: skip
"""What the kernel knows of options."""
_BEYOND = range(11, 17)
"""Inputs that it does not take: sinks, scales, norms, lengths of queries."""


@group_query_attention.native
def _(node: Node) -> NativeCall | None:
    """Caches of float32 that are whole, without cap, window and scores."""
    if any(node.attr(name, plain) != plain for name, plain in _PLAIN.items()) or node.attr("smooth_softmax", -1) > 0:
        return None
    if any(node.input(i) is not None for i in _BEYOND) or any(output.is_read for output in node.outputs[3:]):
        return None
    ints = [node.attr("num_heads"), node.attr("kv_num_heads"), node.attr("causal", 1), node.attr("do_rotary", 0)]
    inputs = list(range(min(len(node.inputs), _BEYOND[0])))
    scale = node.attr("scale", 0.0)
    if any(not isinstance(number, int) for number in ints) or scale < 0:
        return None
    ints.append(node.attr("rotary_interleaved", 0))
    return NativeCall("group_query_attention", ints=ints, floats=[scale], inputs=inputs, widens=False)


def _check_options(
    causal: int,
    local_window_size: int,
    sliding_window_cache: int,
    qk_output: int,
    query_seqlens: np.ndarray | None,
    past_key: np.ndarray | None,
) -> None:
    if qk_output not in (0, 1, 2):
        raise ValueError(f"qk_output must be 0, 1 or 2, got {qk_output}")
    if local_window_size == 0 or local_window_size < -1 or (not causal and local_window_size != -1):
        raise ValueError(f"local_window_size must be positive or -1, and -1 with causal=0, got {local_window_size}")
    if sliding_window_cache and (local_window_size < 1 or past_key is None):
        raise ValueError("sliding_window_cache needs local_window_size above 0 and caches")
    if query_seqlens is not None and (not causal or past_key is None):
        raise ValueError("query_seqlens needs causal=1 and caches")


def _angles(
    cos_cache: np.ndarray | None,
    sin_cache: np.ndarray | None,
    position_ids: np.ndarray | None,
    chunks: list[Chunk],
    length: int,
    size: int,
) -> list[np.ndarray]:
    """cos and sin [B, S, R] of the positions that are given or follow the cached tokens; padding takes position 0."""
    if cos_cache is None or sin_cache is None:
        raise ValueError("do_rotary needs cos_cache and sin_cache")
    check_caches(cos_cache, sin_cache, size)
    if position_ids is None:
        positions = np.array([[c.past + s if s < c.new else 0 for s in range(length)] for c in chunks], np.int64)
        positions = positions.reshape(len(chunks), length)
    elif position_ids.size == 1:
        positions = np.broadcast_to(position_ids.reshape(()) + np.arange(length), (len(chunks), length))
    else:
        require_shape("position_ids", position_ids, (len(chunks), length))
        positions = position_ids
    check_positions(positions, cos_cache.shape[0])
    return [cache[positions] for cache in (cos_cache, sin_cache)]


def _bias(bias: np.ndarray | None, shape: tuple[int, int, int, int]) -> np.ndarray | None:
    if bias is None:
        return None
    if bias.ndim != 4 or bias.shape[0] not in (1, shape[0]) or bias.shape[1] not in (1, shape[1]) or bias.shape[2:] != shape[2:]:
        raise ValueError(f"attention_bias must broadcast to {shape} in its first two dimensions, got {bias.shape}")
    return np.broadcast_to(bias, shape)


def _sink(head_sink: np.ndarray | None, smooth_softmax: int, num_heads: int, dtype: np.dtype) -> np.ndarray | None:
    """The further term of the softmax of every head: given, or 0 for a smooth one."""
    require_shape("head_sink", head_sink, (num_heads,))
    if head_sink is not None:
        return head_sink.astype(dtype)
    return np.zeros(num_heads, dtype) if smooth_softmax > 0 else None
