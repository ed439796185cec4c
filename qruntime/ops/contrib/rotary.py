"""RotaryEmbedding as ONNX Runtime had it before the standard operator."""

from __future__ import annotations

import numpy as np

from qruntime.ops.checks import require_rank
from qruntime.ops.contrib.domain import MICROSOFT
from qruntime.ops.registry import operator


@operator("RotaryEmbedding", domain=MICROSOFT)
def rotary_embedding(
    x: np.ndarray,
    position_ids: np.ndarray,
    cos_cache: np.ndarray,
    sin_cache: np.ndarray,
    *,
    interleaved: int = 0,
    is_packed_batching: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
    scale: float = 1.0,
) -> np.ndarray:
    """x [B, S, N·H] or [B, N, S, H] turned by the angles of its positions; position_ids [1] (an offset) or [B, S]."""
    require_rank("the input", x, 3, 4)
    require_rank("cos_cache", cos_cache, 2)
    half = cos_cache.shape[1]
    if cos_cache.shape != sin_cache.shape or not half:
        raise ValueError(f"the caches must have one shape, got {cos_cache.shape} and {sin_cache.shape}")
    if x.ndim == 4:
        heads = x.transpose(0, 2, 1, 3)
    else:
        if rotary_embedding_dim and not num_heads:
            raise ValueError("num_heads must be given together with rotary_embedding_dim")
        size = x.shape[2] // num_heads if num_heads > 0 else 2 * half
        if not size or x.shape[2] % size or (num_heads > 0 and x.shape[2] % num_heads):
            raise ValueError(f"the last dimension {x.shape[2]} cannot be split into heads of {size}")
        heads = x.reshape(*x.shape[:2], x.shape[2] // size, size)
    batch, length, _, size = heads.shape
    turned = rotary_embedding_dim or 2 * half
    if turned != 2 * half or turned > size:
        raise ValueError(f"caches of width {half} turn {2 * half} of the {size} values of a head, asked are {turned}")
    if position_ids.size == 1:
        positions = np.broadcast_to(position_ids.reshape(()) + np.arange(length), (batch, length))
    elif position_ids.shape == (batch, length):
        positions = position_ids
    else:
        raise ValueError(f"position_ids must have the shape (1,) or {(batch, length)}, got {position_ids.shape}")
    if positions.size and not 0 <= int(positions.min()) <= int(positions.max()) < cos_cache.shape[0]:
        raise IndexError(f"positions must lie in [0, {cos_cache.shape[0]}), got {positions.min()} to {positions.max()}")
    cos, sin = (cache[positions][:, :, None] for cache in (cos_cache, sin_cache))
    if interleaved:
        first, second = heads[..., 0:turned:2], heads[..., 1:turned:2]
    else:
        first, second = heads[..., :half], heads[..., half:turned]
    pairs = (first * cos - second * sin, first * sin + second * cos)
    rotated = (
        np.stack(pairs, axis=-1).reshape(*first.shape[:-1], turned) if interleaved else np.concatenate(pairs, axis=-1)
    )
    y = np.concatenate([rotated, heads[..., turned:]], axis=-1).astype(x.dtype, copy=False)
    return np.ascontiguousarray(y.transpose(0, 2, 1, 3)) if x.ndim == 4 else y.reshape(x.shape)
