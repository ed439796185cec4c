"""MatMulNBits: weights of 2, 4 or 8 bits in blocks along K."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from qruntime.ops.checks import limit_shape
from qruntime.ops.contrib.activations import biased
from qruntime.ops.contrib.domain import MICROSOFT
from qruntime.ops.elementwise import narrow, widen
from qruntime.ops.precision import working_dtype
from qruntime.ops.products import matmul
from qruntime.ops.registry import operator

_OP = "MatMulNBits"


def unpacked(q: np.ndarray, bits: int) -> np.ndarray:
    """Codes [..., n] of bytes [..., n · bits / 8], the lowest bits first."""
    if bits == 8:
        return q
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (q[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return codes.reshape(*q.shape[:-1], q.shape[-1] * len(shifts))


class Blocks(NamedTuple):
    """A weight [N, K] in blocks along K, as the operator holds it."""

    rows: np.ndarray
    """Codes, uint8 [N, bytes], a row in whole blocks."""
    scale: np.ndarray
    """[N, blocks]"""
    zero_point: np.ndarray
    """[N, blocks], uint8 or of the type of the scales."""
    group: np.ndarray | None
    """int64 [K], which block's scale each of the inputs has; None where they follow one another."""


def blocks_of(
    b: np.ndarray,
    scales: np.ndarray,
    zero_points: np.ndarray | None,
    g_idx: np.ndarray | None,
    *,
    K: int,
    N: int,
    bits: int,
    block_size: int,
) -> Blocks:
    """The inputs of the operator in the shapes that its attributes say. Raises ValueError where they do not fit."""
    if bits not in (2, 4, 8) or K < 1 or N < 1 or block_size < 16 or block_size & (block_size - 1):
        raise ValueError(
            f"needs bits 2, 4 or 8, K and N above 0 and block_size a power of two from 16 on, "
            f"got bits={bits}, K={K}, N={N}, block_size={block_size}"
        )
    limit_shape((N, K + block_size), "the weight")
    blocks = -(-K // block_size)
    if b.dtype != np.uint8 or b.size != N * blocks * block_size * bits // 8:
        raise ValueError(f"B must be uint8 [{N}, {blocks}, {block_size * bits // 8}], got {b.dtype} of shape {b.shape}")
    if scales.size != N * blocks:
        raise ValueError(f"scales must have {N} × {blocks} values, got shape {scales.shape}")
    zero = np.broadcast_to(np.uint8(1 << (bits - 1)), (N, blocks))
    if zero_points is not None:
        packed = -(-blocks * bits // 8)
        if zero_points.dtype == np.uint8 and zero_points.size == N * packed:
            zero = unpacked(zero_points.reshape(N, packed), bits)[:, :blocks]
        elif zero_points.dtype == scales.dtype and zero_points.size == N * blocks:
            zero = zero_points.reshape(N, blocks)
        else:
            raise ValueError(
                f"zero_points must be uint8 [{N}, {packed}] or {scales.dtype} [{N}, {blocks}], "
                f"got {zero_points.dtype} of shape {zero_points.shape}"
            )
    group = None
    if g_idx is not None:
        if g_idx.ndim != 1 or g_idx.size < K or g_idx.dtype.kind not in "iu":
            raise ValueError(f"g_idx must hold {K} integers, got {g_idx.dtype} of shape {g_idx.shape}")
        group = g_idx[:K].astype(np.int64)
        if group.min() < 0 or group.max() >= blocks:
            raise ValueError(f"g_idx must lie in [0, {blocks}), got {group.min()} to {group.max()}")
    return Blocks(b.reshape(N, -1), scales.reshape(N, blocks), zero, group)


def dequantized(parts: Blocks, K: int, bits: int, block_size: int) -> np.ndarray:
    """The weight [K, N], in float32 where the scales are narrower."""
    wide = working_dtype(parts.scale.dtype)
    group = np.arange(K) // block_size if parts.group is None else parts.group
    codes = unpacked(parts.rows, bits)[:, :K].astype(wide)
    return ((codes - parts.zero_point.astype(wide)[:, group]) * parts.scale.astype(wide)[:, group]).T


@operator("MatMulNBits", domain=MICROSOFT)
def matmul_nbits(
    a: np.ndarray,
    b: np.ndarray,
    scales: np.ndarray,
    zero_points: np.ndarray | None = None,
    g_idx: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    *,
    K: int,
    N: int,
    bits: int = 4,
    block_size: int = 32,
    accuracy_level: int = 0,
    weight_prepacked: int = 0,
) -> np.ndarray:
    """a [..., K] times the dequantized weight [K, N], plus bias [N]. `accuracy_level` is a hint that needs no heed.

    Floats narrower than float32 are widened, and rounded after the product.
    """
    if weight_prepacked:
        raise ValueError(f"weights packed for one machine (weight_prepacked={weight_prepacked}) cannot be read")
    parts = blocks_of(b, scales, zero_points, g_idx, K=K, N=N, bits=bits, block_size=block_size)
    if a.ndim == 0 or a.shape[-1] != K:
        raise ValueError(f"the last dimension of A must be {K}, got shape {a.shape}")
    return biased(narrow(matmul(widen(a), dequantized(parts, K, bits, block_size)), a.dtype), bias)
