"""Attention with packed projections, of floats and of 8-bit codes; what its masks and scores mean."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qruntime.ops.attention import masked_softmax, split_heads
from qruntime.ops.checks import limit_shape, require_rank, require_shape
from qruntime.ops.contrib.domain import MICROSOFT, standard
from qruntime.ops.contrib.quantized_matmul import matmul_integer_to_float
from qruntime.ops.precision import working_dtype
from qruntime.ops.products import matmul
from qruntime.ops.registry import operator

MASKED = -10000.0
"""Added to the scores of hidden keys where an attribute does not say otherwise."""


def mask_bias(mask: np.ndarray | None, batch: int, queries: int, keys: int, value: float) -> np.ndarray | None:
    """What `mask` adds to scores [B, N, S, T]: `value` where a key is hidden.

    Masks are ends [B], ends and starts [2·B], or raw ones: [B, T], [B, S, T], [B, 1, M, M] with M ≥ T. One of shape
    [B, 1] or [1, 1] only holds the place: ONNX Runtime then hides nothing.
    """
    if mask is None or (mask.shape in ((batch, 1), (1, 1)) and mask.shape != (batch, keys)):
        return None
    positions = np.arange(keys)
    if mask.ndim == 1 and mask.shape[0] in (batch, 2 * batch):
        seen = positions < mask[:batch, None]
        if mask.shape[0] == 2 * batch and batch:
            seen &= positions >= mask[batch:, None]
        seen = seen[:, None, None]
    elif mask.shape == (batch, keys):
        seen = mask[:, None, None] > 0
    elif mask.shape == (batch, queries, keys):
        seen = mask[:, None] > 0
    elif mask.ndim == 4 and mask.shape[:2] == (batch, 1) and mask.shape[2] == mask.shape[3] >= keys:
        seen = mask[:, :, keys - queries : keys, :keys] > 0
    else:
        raise ValueError(
            f"the mask must have the shape ({batch},), ({2 * batch},), {(batch, keys)}, {(batch, queries, keys)} "
            f"or ({batch}, 1, M, M) with M ≥ {keys}, got {mask.shape}"
        )
    return np.where(seen, np.float32(0), np.float32(value))


def attend(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    bias: np.ndarray | None,
    attention_bias: np.ndarray | None,
    *,
    scale: float,
    past: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """softmax(q · kᵀ · scale + biases) · v of [B, N, S, H], as [B, S, N · Hv], and what the softmax is of [B, N, S, T].

    `past` is the number of cached keys in causal attention: query s sees the keys up to past + s. None lets it see all.
    """
    if q.shape[:2] != k.shape[:2] or k.shape[:3] != v.shape[:3] or q.shape[3] != k.shape[3]:
        raise ValueError(f"queries {q.shape}, keys {k.shape} and values {v.shape} do not fit")
    batch, heads, queries, size = q.shape
    keys = k.shape[2]
    limit_shape((batch, heads, queries, keys), "the scores")
    wide = working_dtype(q.dtype)
    factor = wide.type(scale or (1 / math.sqrt(size) if size else 1))
    scores = matmul(q.astype(wide, copy=False), k.astype(wide, copy=False).swapaxes(-1, -2)) * factor
    for extra in (bias, attention_bias):
        if extra is not None:
            try:
                fits = np.broadcast_shapes(extra.shape, scores.shape) == scores.shape
            except ValueError:
                fits = False
            if not fits:
                raise ValueError(f"the attention bias must broadcast to {scores.shape}, got {extra.shape}")
            scores = scores + extra.astype(wide, copy=False)
    if past is not None:
        hidden = np.arange(keys) > np.arange(queries)[:, None] + past
        scores = np.where(hidden, wide.type(-np.inf), scores)
    y = matmul(masked_softmax(scores), v.astype(wide, copy=False)).astype(q.dtype, copy=False)
    y = np.ascontiguousarray(y.transpose(0, 2, 1, 3)).reshape(batch, queries, heads * v.shape[3])
    return y, np.maximum(scores, np.finfo(q.dtype).min).astype(q.dtype, copy=False)


def _packed(
    projected: np.ndarray,
    mask: np.ndarray | None,
    past: np.ndarray | None,
    attention_bias: np.ndarray | None,
    num_heads: int,
    sizes: tuple[int, int, int],
    causal: int,
    scale: float,
    filter_value: float,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Attention over the last dimension of `projected`, which holds q, k and v; and the grown cache."""
    if num_heads < 1 or any(size % num_heads or size < 0 for size in sizes) or sizes[0] != sizes[1]:
        raise ValueError(f"num_heads {num_heads} must divide the hidden sizes {sizes} of q, k (equal) and v")
    parts = np.split(projected, (sizes[0], sizes[0] + sizes[1]), axis=2)
    q, k, v = (split_heads(name, part, num_heads) for name, part in zip("qkv", parts, strict=True))
    batch = q.shape[0]
    present = None
    if past is not None:
        if sizes[1] != sizes[2]:
            raise ValueError(f"a past needs keys and values of equal size, got {sizes}")
        expected = (2, batch, num_heads, past.shape[3] if past.ndim == 5 else 0, k.shape[3])
        require_shape("past", past, expected)
        k, v = np.concatenate([past[0], k], axis=2), np.concatenate([past[1], v], axis=2)
    if sizes[1] == sizes[2]:
        present = np.stack([k, v])
    bias = mask_bias(mask, batch, q.shape[2], k.shape[2], filter_value)
    cached = k.shape[2] - q.shape[2] if causal else None
    return attend(q, k, v, bias, attention_bias, scale=scale, past=cached)[0], present


@operator("Attention", domain=MICROSOFT)
def attention(
    x: np.ndarray,
    weights: np.ndarray,
    bias: np.ndarray | None = None,
    mask_index: np.ndarray | None = None,
    past: np.ndarray | None = None,
    attention_bias: np.ndarray | None = None,
    past_sequence_length: np.ndarray | None = None,
    *,
    num_heads: int,
    unidirectional: int = 0,
    qkv_hidden_sizes: Sequence[int] | None = None,
    scale: float = 0.0,
    mask_filter_value: float = MASKED,
    do_rotary: int = 0,
    past_present_share_buffer: int = 0,
    rotary_embedding_dim: int = 0,
) -> tuple[np.ndarray, np.ndarray | None]:
    """x [B, S, I], weights [I, 3 · D] and bias of q, k and v side by side → [B, S, D] and present [2, B, N, T, H]."""
    if do_rotary or past_present_share_buffer:
        raise ValueError("do_rotary and past_present_share_buffer are not supported")
    require_rank("the input", x, 3)
    require_rank("weights", weights, 2)
    require_shape("bias", bias, weights.shape[1:])
    sizes = _hidden_sizes(weights.shape[1], qkv_hidden_sizes)
    projected = standard("MatMul", x, weights)
    if bias is not None:
        projected = projected + bias
    return _packed(projected, mask_index, past, attention_bias, num_heads, sizes, unidirectional, scale, mask_filter_value)


def _hidden_sizes(total: int, sizes: Sequence[int] | None) -> tuple[int, int, int]:
    if not sizes:
        sizes = (total // 3,) * 3
    if len(sizes) != 3 or sum(sizes) != total or min(sizes) < 0:
        raise ValueError(f"the weights have {total} columns, which the hidden sizes {tuple(sizes)} must fill")
    return sizes[0], sizes[1], sizes[2]


@operator("QAttention", domain=MICROSOFT)
def qattention(
    x: np.ndarray,
    weights: np.ndarray,
    bias: np.ndarray,
    x_scale: np.ndarray,
    weight_scale: np.ndarray,
    mask_index: np.ndarray | None = None,
    x_zero_point: np.ndarray | None = None,
    weight_zero_point: np.ndarray | None = None,
    past: np.ndarray | None = None,
    *,
    num_heads: int,
    unidirectional: int = 0,
    past_sequence_length: int = 0,
    do_rotary: int = 0,
    scale: float = 0.0,
    mask_filter_value: float = MASKED,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Attention whose input and weights are 8-bit codes; weight parameters per tensor or per column."""
    if do_rotary:
        raise ValueError("do_rotary is not supported")
    require_rank("the input", x, 3)
    require_rank("weights", weights, 2)
    require_shape("bias", bias, weights.shape[1:])
    projected = matmul_integer_to_float(x, weights, x_scale, weight_scale, x_zero_point, weight_zero_point, bias)
    sizes = _hidden_sizes(weights.shape[1], None)
    return _packed(projected, mask_index, past, None, num_heads, sizes, unidirectional, scale, mask_filter_value)
