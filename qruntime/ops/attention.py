"""Attention, its linear and flexible variants, and rotary position embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qruntime.ir import Node, Value
from qruntime.ir.dtypes import numpy_dtype
from qruntime.ops.checks import limit_shape, require_rank, require_shape
from qruntime.ops.fused_attention import LAYOUTS
from qruntime.ops.precision import working_dtype
from qruntime.ops.products import matmul
from qruntime.ops.registry import NativeCall, operator


def _matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Product computed in float32 at least, in the dtype of `a`."""
    wide = working_dtype(a.dtype)
    return matmul(a.astype(wide, copy=False), b.astype(wide, copy=False)).astype(a.dtype, copy=False)


def masked_softmax(scores: np.ndarray) -> np.ndarray:
    """Softmax over the last axis in which a row of -inf becomes zeros."""
    if not scores.shape[-1]:
        return scores
    peak = scores.max(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        powers = np.exp(scores - np.where(np.isneginf(peak), peak.dtype.type(0), peak))
    total = powers.sum(axis=-1, keepdims=True)
    return powers / np.where(total == 0, total.dtype.type(1), total)


def split_heads(name: str, x: np.ndarray, heads: int | None) -> np.ndarray:
    """(N, S, heads · size) → (N, heads, S, size); ValueError when `heads` does not divide the last axis."""
    if heads is None or heads < 1 or x.shape[2] % heads:
        raise ValueError(f"the number of heads of {name} must divide {x.shape[2]}, got {heads}")
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).transpose(0, 2, 1, 3)


def _check_heads(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> None:
    """Shapes (N, heads, S, size) of queries, keys and values must fit together."""
    if not q.shape[0] == k.shape[0] == v.shape[0] or k.shape[1:3] != v.shape[1:3] or q.shape[3] != k.shape[3]:
        raise ValueError(f"Q (N, Hq, Sq, d), K (N, Hkv, Skv, d) and V (N, Hkv, Skv, dv) do not fit: {q.shape}, {k.shape}, {v.shape}")
    if k.shape[1] < 1 or q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads are no multiple of {k.shape[1]} key heads")
    limit_shape((*q.shape[:3], k.shape[2]), "the scores")


def _positional_mask(queries: int, keys: int, offset: np.ndarray, causal: bool, left: int, right: int) -> np.ndarray | None:
    """Which key each query may see, (1 or N, 1, Sq, Skv) bool; None when all of them."""
    if not causal and left < 0 and right < 0:
        return None
    distance = np.arange(keys) - (np.arange(queries)[:, None] + offset.reshape(-1, 1, 1, 1))
    allowed = np.ones(distance.shape, np.bool_)
    if causal:
        allowed &= distance <= 0
    if left >= 0:
        allowed &= distance >= -left
    if right >= 0:
        allowed &= distance <= right
    return allowed


def _mask_bias(mask: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Additive form of `attn_mask`, extended to all keys with -inf."""
    if mask.ndim == 0:
        mask = mask.reshape(1)
    if mask.shape[-1] > shape[-1] or mask.ndim > 4:
        raise ValueError(f"attn_mask must broadcast to {shape}, got {mask.shape}")
    if mask.dtype == np.bool_:
        mask = np.where(mask, 0, -np.inf)
    bias = mask.astype(dtype)
    missing = shape[-1] - mask.shape[-1]
    if missing and mask.shape[-1] != 1:
        bias = np.concatenate((bias, np.full((*mask.shape[:-1], missing), -np.inf, dtype)), axis=-1)
    try:
        np.broadcast_to(bias, shape)
    except ValueError:
        raise ValueError(f"attn_mask must broadcast to {shape}, got {mask.shape}") from None
    return bias


@operator("Attention", since=23)
def attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    attn_mask: np.ndarray | None = None,
    past_key: np.ndarray | None = None,
    past_value: np.ndarray | None = None,
    nonpad_kv_seqlen: np.ndarray | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    left_window_size: int = -1,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
    num_outputs: int = 1,
) -> tuple[np.ndarray, ...]:
    """Q (N, Hq, Sq, d), K (N, Hkv, Skv, d), V (N, Hkv, Skv, dv), or packed (N, S, H · d) with head counts.

    Returns Y in the layout of Q, the present key and value (N, Hkv, past + Skv, ·) and the scores
    (N, Hq, Sq, past + Skv) of the stage `qk_matmul_output_mode`: 0 raw, 1 capped, 2 with bias, 3 softmax.
    """
    packed = q.ndim == 3
    for name, value in (("Q", q), ("K", k), ("V", v)):
        require_rank(name, value, 3 if packed else 4)
    if qk_matmul_output_mode not in (0, 1, 2, 3):
        raise ValueError(f"qk_matmul_output_mode must lie in [0, 3], got {qk_matmul_output_mode}")
    if left_window_size < -1 or right_window_size < -1:
        raise ValueError(f"window sizes must be -1 or more, got {left_window_size} and {right_window_size}")
    if (past_key is None) != (past_value is None):
        raise ValueError("past_key and past_value belong together")
    if nonpad_kv_seqlen is not None and past_key is not None:
        raise ValueError("nonpad_kv_seqlen cannot be combined with past_key and past_value")
    if packed:
        q = split_heads("Q", q, q_num_heads)
        k = split_heads("K", k, kv_num_heads)
        v = split_heads("V", v, kv_num_heads)
    offset = np.zeros(1, np.int64)
    if past_key is not None and past_value is not None:
        for name, past, new in (("past_key", past_key, k), ("past_value", past_value, v)):
            require_rank(name, past, 4)
            require_shape(name, past, (*new.shape[:2], past_key.shape[2], new.shape[3]))
        offset[:] = past_key.shape[2]
        k = np.concatenate((past_key, k), axis=2)
        v = np.concatenate((past_value, v), axis=2)
    _check_heads(q, k, v)
    batch, heads, queries, size = q.shape
    keys = k.shape[2]
    shape = (batch, heads, queries, keys)
    bias: Any = None
    if attn_mask is not None:
        bias = _mask_bias(attn_mask, shape, q.dtype)
    allowed = None
    if nonpad_kv_seqlen is not None:
        lengths = nonpad_kv_seqlen.reshape(-1)
        require_shape("nonpad_kv_seqlen", lengths, (batch,))
        offset = lengths - queries
        allowed = np.arange(keys) < lengths.reshape(-1, 1, 1, 1)
    positional = _positional_mask(queries, keys, offset, bool(is_causal), left_window_size, right_window_size)
    if positional is not None:
        allowed = positional if allowed is None else allowed & positional
    if allowed is not None:
        hidden = np.where(allowed, q.dtype.type(0), q.dtype.type(-np.inf))
        bias = hidden if bias is None else bias + hidden

    repeats = heads // k.shape[1]
    all_k = np.repeat(k, repeats, axis=1) if repeats > 1 else k
    all_v = np.repeat(v, repeats, axis=1) if repeats > 1 else v
    if scale is None:
        scale = 1 / math.sqrt(size) if size else 1.0
    if scale < 0:
        raise ValueError(f"scale must not be negative, got {scale}")
    root = q.dtype.type(math.sqrt(scale))
    scores = _matmul(q * root, all_k.swapaxes(2, 3) * root)
    stages = [scores]
    if softcap > 0:
        scores = (np.tanh(scores / q.dtype.type(softcap)) * q.dtype.type(softcap)).astype(q.dtype, copy=False)
    stages.append(scores)
    if bias is not None:
        scores = scores + bias
    stages.append(scores)
    precision = numpy_dtype(softmax_precision) if softmax_precision else scores.dtype
    weights = masked_softmax(scores.astype(precision, copy=False))
    if bias is not None and keys:
        blocked = np.isneginf(np.max(bias, axis=-1, keepdims=True))
        weights = np.where(blocked, weights.dtype.type(0), weights)
    weights = weights.astype(q.dtype, copy=False)
    stages.append(weights)
    y = _matmul(weights, all_v.astype(q.dtype, copy=False))
    if packed:
        y = y.transpose(0, 2, 1, 3).reshape(batch, queries, heads * v.shape[3])
    return y, k, v, stages[qk_matmul_output_mode].astype(q.dtype, copy=False)


_DEAD_ROWS_MASKED_TO_ZERO = 2
_FLOAT = 1


def _is_read(node: Node, index: int) -> bool:
    return index < len(node.outputs) and bool(node.outputs[index].uses or node.outputs[index].output_of)


def _has_rank(value: Value | None, rank: int) -> bool:
    shape = None if value is None or value.type is None else value.type.shape
    return shape is not None and len(shape) == rank


@attention.native
def _attention(node: Node) -> NativeCall | None:
    """Without cache, cap and windows; [B, S, H · D] when the node says the numbers of heads. ONNX defines it as a function:
    of float16, what is scaled, scores and weights are rounded."""
    if any(node.input(i) is not None for i in (4, 5, 6)) or any(_is_read(node, i) for i in (1, 2, 3)):
        return None
    windows = node.attr("left_window_size", -1), node.attr("right_window_size", -1)
    if node.attr("softcap", 0.0) or windows != (-1, -1) or node.attr("softmax_precision", _FLOAT) != _FLOAT:
        return None
    scale = node.attr("scale")
    if scale is not None and scale < 0:
        return None
    q_heads, kv_heads = node.attr("q_num_heads", 0), node.attr("kv_num_heads", 0)
    if not (q_heads and kv_heads) and _has_rank(node.input(0), 3):
        return None
    layout = LAYOUTS["BSR" if q_heads and kv_heads else "BHSD"]
    causal = node.attr("is_causal", 0)
    ints = [0, layout, layout, layout, layout, q_heads, kv_heads, 0, 0, 0, 0, 0, 0, 0, 0, causal, 0, 0]
    inputs = [0, 1, 2] if node.input(3) is None else [0, 1, 2, 3]
    floats = [np.nan if scale is None else scale, -np.inf]
    return NativeCall("attention", ints=[*ints, _DEAD_ROWS_MASKED_TO_ZERO], floats=floats, inputs=inputs, widens=False)


@operator("RotaryEmbedding", since=23)
def rotary_embedding(
    x: np.ndarray,
    cos_cache: np.ndarray,
    sin_cache: np.ndarray,
    position_ids: np.ndarray | None = None,
    *,
    interleaved: int = 0,
    num_heads: int | None = None,
    rotary_embedding_dim: int = 0,
) -> np.ndarray:
    """X (N, H, S, d) or packed (N, S, H · d), rotated by the angles of each position.

    The caches are (positions, rotated / 2) with position_ids (N, S), else (N, S, rotated / 2).
    """
    require_rank("X", x, 3, 4)
    packed = x.ndim == 3
    heads = split_heads("X", x, num_heads) if packed else x
    batch, _, length, size = heads.shape
    rotated = rotary_embedding_dim or size
    if rotated < 0 or rotated % 2 or rotated > size:
        raise ValueError(f"the rotated part must be even and at most the head size {size}, got {rotated}")
    caches = []
    for name, cache in (("cos_cache", cos_cache), ("sin_cache", sin_cache)):
        if position_ids is not None:
            require_rank(name, cache, 2)
            require_shape("position_ids", position_ids, (batch, length))
            if position_ids.size and (position_ids.min() < 0 or position_ids.max() >= cache.shape[0]):
                raise ValueError(f"position_ids must lie in [0, {cache.shape[0] - 1}], got {position_ids.min()} to {position_ids.max()}")
            cache = cache[position_ids]
        require_shape(name, cache, (batch, length, rotated // 2))
        caches.append(cache[:, None].astype(x.dtype, copy=False))
    cos, sin = caches
    part = heads[..., :rotated]
    if interleaved:
        first, second = part[..., 0::2], part[..., 1::2]
    else:
        first, second = part[..., : rotated // 2], part[..., rotated // 2 :]
    y = heads.copy()
    real, imaginary = cos * first - sin * second, sin * first + cos * second
    if interleaved:
        y[..., 0:rotated:2], y[..., 1:rotated:2] = real, imaginary
    else:
        y[..., : rotated // 2], y[..., rotated // 2 : rotated] = real, imaginary
    return y.transpose(0, 2, 1, 3).reshape(x.shape) if packed else y


@operator("LinearAttention", since=27)
def linear_attention(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    past_state: np.ndarray | None = None,
    decay: np.ndarray | None = None,
    beta: np.ndarray | None = None,
    *,
    q_num_heads: int,
    kv_num_heads: int,
    chunk_size: int = 64,
    scale: float = 0.0,
    update_rule: str = "gated_delta",
) -> tuple[np.ndarray, np.ndarray]:
    """Attention as a recurrence over a state (N, Hkv, dk, dv): output (N, T, Hq · dv) and the last state.

    query (N, T, Hq · dk), key (N, T, Hkv · dk), value (N, T, Hkv · dv), decay (N, T, Hkv or Hkv · dk) in
    log space, beta (N, T, Hkv or 1).
    """
    if update_rule not in ("linear", "gated", "delta", "gated_delta"):
        raise ValueError(f"update_rule must be linear, gated, delta or gated_delta, got {update_rule!r}")
    gated, corrected = "gated" in update_rule, "delta" in update_rule
    for name, given, needed in (("decay", decay, gated), ("beta", beta, corrected)):
        if (given is not None) != needed:
            raise ValueError(f"update_rule {update_rule} {'needs' if needed else 'takes no'} {name}")
    for name, given in (("query", query), ("key", key), ("value", value)):
        require_rank(name, given, 3)
    q = split_heads("query", query, q_num_heads).astype(np.float32)
    k = split_heads("key", key, kv_num_heads).astype(np.float32)
    v = split_heads("value", value, kv_num_heads).astype(np.float32)
    _check_heads(q, k, v)
    batch, heads, steps, size = q.shape
    if k.shape[2] != steps:
        raise ValueError(f"query and key must agree in length, got {query.shape} and {key.shape}")
    state_shape = limit_shape((batch, kv_num_heads, size, v.shape[3]), "the state")
    require_shape("past_state", past_state, state_shape)
    state = np.zeros(state_shape, np.float32) if past_state is None else past_state.astype(np.float32)
    growth = rate = None
    if decay is not None:
        require_rank("decay", decay, 3)
        if decay.shape[:2] != (batch, steps) or decay.shape[2] not in (kv_num_heads, kv_num_heads * size):
            raise ValueError(f"decay must have the shape ({batch}, {steps}, {kv_num_heads} or {kv_num_heads * size}), got {decay.shape}")
        growth = np.exp(split_heads("decay", decay.astype(np.float32), kv_num_heads))
    if beta is not None:
        require_rank("beta", beta, 3)
        if beta.shape[:2] != (batch, steps) or beta.shape[2] not in (kv_num_heads, 1):
            raise ValueError(f"beta must have the shape ({batch}, {steps}, {kv_num_heads} or 1), got {beta.shape}")
        rate = beta.astype(np.float32).transpose(0, 2, 1)[..., None]
    factor = np.float32(scale or 1 / math.sqrt(max(size, 1)))
    outputs = np.empty((batch, heads, steps, v.shape[3]), np.float32)
    for t in range(steps):
        if growth is not None:
            state = state * growth[:, :, t, :, None]
        update = v[:, :, t]
        if rate is not None:
            recalled = matmul(k[:, :, t, None], state)[:, :, 0]
            update = rate[:, :, t] * (update - recalled)
        state = state + k[:, :, t, :, None] * update[:, :, None]
        read = np.repeat(state, heads // kv_num_heads, axis=1)
        outputs[:, :, t] = factor * matmul(q[:, :, t, None], read)[:, :, 0]
    y = outputs.transpose(0, 2, 1, 3).reshape(batch, steps, heads * v.shape[3]).astype(query.dtype)
    return y, state.astype(query.dtype if past_state is None else past_state.dtype)


@operator("FlexAttention", since=1, domain="ai.onnx.preview")
def flex_attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    *,
    prob_mod: Callable[..., Sequence[Any]] | None = None,
    scale: float | None = None,
    score_mod: Callable[..., Sequence[Any]] | None = None,
    softmax_precision: int | None = None,
) -> np.ndarray:
    """Attention of (N, H, S, d) tensors whose scores and probabilities pass through subgraphs."""
    for name, value in (("Q", q), ("K", k), ("V", v)):
        require_rank(name, value, 4)
    _check_heads(q, k, v)
    repeats = q.shape[1] // k.shape[1]
    default = np.dtype(np.float64) if q.dtype == np.float64 else np.dtype(np.float32)
    precision = numpy_dtype(softmax_precision) if softmax_precision else default
    if scale is None:
        scale = 1 / math.sqrt(max(q.shape[3], 1))
    wide = working_dtype(q.dtype)
    keys = np.repeat(k.astype(wide, copy=False), repeats, axis=1).swapaxes(2, 3)
    scores = (matmul(q.astype(wide, copy=False), keys) * wide.type(scale)).astype(precision, copy=False)
    if score_mod is not None:
        (scores,) = score_mod(scores)
    weights = masked_softmax(scores)
    if prob_mod is not None:
        (weights,) = prob_mod(weights)
    values = np.repeat(v.astype(wide, copy=False), repeats, axis=1)
    return matmul(weights.astype(wide, copy=False), values).astype(q.dtype, copy=False)
