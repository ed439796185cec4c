"""Rotary position embeddings as ONNX Runtime had them before the standard operator, also over several axes of positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qruntime.ops.checks import require_rank, require_shape
from qruntime.ops.contrib.domain import MICROSOFT
from qruntime.ops.precision import working_dtype
from qruntime.ops.registry import operator


def rotated(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, interleaved: int) -> np.ndarray:
    """x [..., H] whose first 2 · R values are turned by the angles of cos and sin [..., R], which broadcast against it.

    Pairs are value i and i + R, or neighbours with `interleaved`.
    """
    half = cos.shape[-1]
    wide = working_dtype(x.dtype)
    part = x[..., : 2 * half].astype(wide, copy=False)
    cos, sin = cos.astype(wide, copy=False), sin.astype(wide, copy=False)
    first, second = (part[..., 0::2], part[..., 1::2]) if interleaved else (part[..., :half], part[..., half:])
    pairs = (first * cos - second * sin, first * sin + second * cos)
    turned = np.stack(pairs, axis=-1).reshape(part.shape) if interleaved else np.concatenate(pairs, axis=-1)
    return np.concatenate([turned.astype(x.dtype, copy=False), x[..., 2 * half :]], axis=-1)


def check_caches(cos_cache: np.ndarray, sin_cache: np.ndarray, head_size: int) -> int:
    """Half of what the caches [positions, R] turn of a head; ValueError when they do not fit it."""
    require_rank("cos_cache", cos_cache, 2)
    half = cos_cache.shape[1]
    if cos_cache.shape != sin_cache.shape or not 1 <= half <= head_size // 2:
        raise ValueError(
            f"the caches must have one shape (positions, at most {head_size // 2}), got {cos_cache.shape} and {sin_cache.shape}"
        )
    return half


def check_positions(positions: np.ndarray, count: int) -> None:
    """All positions lie in [0, count)."""
    if positions.dtype.kind not in "iu":
        raise ValueError(f"positions must be integers, got {positions.dtype}")
    if positions.size and not 0 <= int(positions.min()) <= int(positions.max()) < count:
        raise ValueError(f"positions must lie in [0, {count}), got {positions.min()} to {positions.max()}")


def _split(x: np.ndarray, num_heads: int, rotary_embedding_dim: int, half: int) -> np.ndarray:
    """x [B, S, N · H] or [B, N, S, H] as [B, S, N, H]."""
    require_rank("the input", x, 3, 4)
    if num_heads < 0 or rotary_embedding_dim < 0:
        raise ValueError(f"num_heads and rotary_embedding_dim must not be negative, got {num_heads} and {rotary_embedding_dim}")
    if x.ndim == 4:
        return x.transpose(0, 2, 1, 3)
    if rotary_embedding_dim and not num_heads:
        raise ValueError("num_heads must be given together with rotary_embedding_dim")
    size = x.shape[2] // num_heads if num_heads else 2 * half
    if not size or x.shape[2] % size or (num_heads and x.shape[2] % num_heads):
        raise ValueError(f"the last dimension {x.shape[2]} cannot be split into heads of {size}")
    return x.reshape(*x.shape[:2], x.shape[2] // size, size)


def _apply(x: np.ndarray, cos: np.ndarray, sin: np.ndarray, num_heads: int, rotary_embedding_dim: int, interleaved: int) -> np.ndarray:
    """x in its own layout, turned by the angles of cos and sin [B, S, R]."""
    half = cos.shape[-1]
    heads = _split(x, num_heads, rotary_embedding_dim, half)
    if (rotary_embedding_dim or 2 * half) != 2 * half or 2 * half > heads.shape[3]:
        raise ValueError(
            f"caches of width {half} turn {2 * half} of the {heads.shape[3]} values of a head, asked are {rotary_embedding_dim or 2 * half}"
        )
    y = rotated(heads, cos[:, :, None], sin[:, :, None], interleaved)
    return np.ascontiguousarray(y.transpose(0, 2, 1, 3)) if x.ndim == 4 else y.reshape(x.shape)


def _check_scale(scale: float) -> None:
    """The attribute that no implementation reads; is_packed_batching only lifts a check of theirs."""
    if scale not in (0.0, 1.0):
        raise ValueError(f"scale must be 1, got {scale}")


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
    _check_scale(scale)
    require_rank("the input", x, 3, 4)
    check_caches(cos_cache, sin_cache, x.shape[-1])
    batch, length = x.shape[0], x.shape[2] if x.ndim == 4 else x.shape[1]
    if position_ids.size == 1:
        positions = np.broadcast_to(position_ids.reshape(()) + np.arange(length), (batch, length))
    else:
        positions = position_ids
        require_shape("position_ids", positions, (batch, length))
    check_positions(positions, cos_cache.shape[0])
    return _apply(x, cos_cache[positions], sin_cache[positions], num_heads, rotary_embedding_dim, interleaved)


@operator("MRotaryEmbedding", domain=MICROSOFT)
def multimodal_rotary_embedding(
    x: np.ndarray,
    position_ids: np.ndarray,
    cos_cache: np.ndarray,
    sin_cache: np.ndarray,
    *,
    mrope_section: Sequence[int],
    interleaved: int = 0,
    is_packed_batching: int = 0,
    mrope_layout: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
    scale: float = 1.0,
) -> np.ndarray:
    """RotaryEmbedding with three positions of each token, position_ids [3, B, S]: time, height and width.

    mrope_section says how many of the R angles each of them gives: one range after the other, or with mrope_layout 1
    every third angle is of the height and every third of the width as far as those reach, the rest of the time.
    """
    _check_scale(scale)
    require_rank("the input", x, 3, 4)
    half = check_caches(cos_cache, sin_cache, x.shape[-1])
    batch, length = x.shape[0], x.shape[2] if x.ndim == 4 else x.shape[1]
    require_shape("position_ids", position_ids, (3, batch, length))
    check_positions(position_ids, cos_cache.shape[0])
    if len(mrope_section) != 3 or min(mrope_section) < 0 or sum(mrope_section) != half:
        raise ValueError(f"mrope_section must be three numbers with the sum {half}, none negative, got {list(mrope_section)}")
    if mrope_layout not in (0, 1):
        raise ValueError(f"mrope_layout must be 0 or 1, got {mrope_layout}")
    if mrope_layout == 0:
        source = np.repeat(np.arange(3), mrope_section)
    else:
        source = np.zeros(half, np.int64)
        for axis in (1, 2):
            source[axis : mrope_section[axis] * 3 : 3] = axis
    positions = position_ids[source].transpose(1, 2, 0)
    cos, sin = (cache[positions, np.arange(half)] for cache in (cos_cache, sin_cache))
    return _apply(x, cos, sin, num_heads, rotary_embedding_dim, interleaved)
