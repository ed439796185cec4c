"""MatMulNBits: weights of 2, 4 or 8 bits in blocks along K."""

from __future__ import annotations

import numpy as np

from qruntime.ops.checks import limit_shape
from qruntime.ops.contrib.activations import biased
from qruntime.ops.contrib.domain import MICROSOFT, standard
from qruntime.ops.precision import working_dtype
from qruntime.ops.registry import operator

_OP = "MatMulNBits"


def unpacked(q: np.ndarray, bits: int) -> np.ndarray:
    """Codes [..., n] of bytes [..., n · bits / 8], the lowest bits first."""
    if bits == 8:
        return q
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (q[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return codes.reshape(*q.shape[:-1], q.shape[-1] * len(shifts))


def dequantized(
    b: np.ndarray,
    scales: np.ndarray,
    zero_points: np.ndarray | None,
    g_idx: np.ndarray | None,
    *,
    K: int,
    N: int,
    bits: int,
    block_size: int,
) -> np.ndarray:
    """The weight [K, N] in the type of `scales`. Raises ValueError for lengths that do not fit the attributes."""
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
    wide = working_dtype(scales.dtype)
    scale = scales.reshape(N, blocks).astype(wide)
    zero = np.full((N, blocks), 1 << (bits - 1), wide)
    if zero_points is not None:
        packed = -(-blocks * bits // 8)
        if zero_points.dtype == np.uint8 and zero_points.size == N * packed:
            zero = unpacked(zero_points.reshape(N, packed), bits)[:, :blocks].astype(wide)
        elif zero_points.dtype == scales.dtype and zero_points.size == N * blocks:
            zero = zero_points.reshape(N, blocks).astype(wide)
        else:
            raise ValueError(
                f"zero_points must be uint8 [{N}, {packed}] or {scales.dtype} [{N}, {blocks}], "
                f"got {zero_points.dtype} of shape {zero_points.shape}"
            )
    codes = unpacked(b.reshape(N, blocks * block_size * bits // 8), bits)[:, :K]
    if g_idx is None:
        group = np.arange(K) // block_size
    else:
        if g_idx.ndim != 1 or g_idx.size < K or g_idx.dtype.kind not in "iu":
            raise ValueError(f"g_idx must hold {K} integers, got {g_idx.dtype} of shape {g_idx.shape}")
        group = g_idx[:K].astype(np.int64)
        if group.min() < 0 or group.max() >= blocks:
            raise ValueError(f"g_idx must lie in [0, {blocks}), got {group.min()} to {group.max()}")
    weight = (codes.astype(wide) - zero[:, group]) * scale[:, group]
    return weight.T.astype(scales.dtype, copy=False)


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
    """a [..., K] times the dequantized weight [K, N], plus bias [N]. `accuracy_level` is a hint that needs no heed."""
    if weight_prepacked:
        raise ValueError(f"weights packed for one machine (weight_prepacked={weight_prepacked}) cannot be read")
    weight = dequantized(b, scales, zero_points, g_idx, K=K, N=N, bits=bits, block_size=block_size)
    if a.ndim == 0 or a.shape[-1] != K:
        raise ValueError(f"the last dimension of A must be {K}, got shape {a.shape}")
    return biased(standard("MatMul", a, weight.astype(a.dtype, copy=False)), bias)
