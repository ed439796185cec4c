"""Stored weights as the kernels of few bits take them (kernels/gemm_nbits.h, kernels/gemm_nbits_q8.h)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qruntime import _kernels
from qruntime.ir import StoredTensor
from qruntime.ir.formats import FP4, Format
from qruntime.ir.narrow import NarrowArray
from qruntime.ir.stored import numbers

if TYPE_CHECKING:
    from qruntime.ops.clustered_linear import Clusters

_KERNEL_BITS = (2, 3, 4, 8)
_LONGEST_SUM = 256
_MOST_INPUTS = 1 << 16
"""Where there are outliers: their places are uint16."""


def fits_kernels(stored: StoredTensor) -> bool:
    """Whether a weight [K, N] has a form of the kernels: groups along K, or scales of columns, over integers or a table."""
    if stored.ndim != 2 or stored.scale is None or stored.offset is not None or stored.format.bits > 8 or stored.size == 0:
        return False
    if stored.dtype != np.float32 or (stored.block and stored.block_axis != 0):
        return False
    if stored.outliers is not None and stored.shape[0] > _MOST_INPUTS:
        return False
    return bool(stored.block) or stored.scale.shape[0] == 1


def fits_quantized_activations(stored: StoredTensor) -> bool:
    """Whether kernels multiply it by codes of activations, in whole numbers."""
    whole = stored.zero_point is None or stored.zero_point.dtype.kind in "iu"
    return fits_kernels(stored) and stored.outliers is None and whole and (stored.format.is_integer or stored.format is FP4)


def pack_nbits(
    stored: StoredTensor, bias: np.ndarray | None, activations: str = "float", origin: tuple[Any, ...] = ()
) -> _kernels.PackedNBits | None:
    """A weight [K, N] for activations that stay float, are of "float8", or are quantized "per_token", "per_tensor" or "static"; None
    where no kernel has its form.

    `origin` names codes that were cut out of others.
    """
    if not (fits_kernels if activations in ("float", "float8") else fits_quantized_activations)(stored):
        return None
    rows = stored.transposed()
    assert rows.scale is not None
    n, k = rows.shape
    group, repeats = _summed_together(rows.block, k)
    groups = (n, -(-k // group))
    scale = _by_group(numbers(rows.scale), groups, repeats)
    zero = None if rows.zero_point is None else _by_group(numbers(rows.zero_point), groups, repeats)
    bits, up = _kernel_codes(stored.format)
    codes, offset = rows.codes, 0
    origin = origin or (stored.held, stored.is_turned)
    if isinstance(codes, NarrowArray):
        if not codes.is_transposed and not codes.in_halves and bits == codes.bits and k * bits % 8 == 0:
            packed = {
                "codes": codes.data.reshape(n, -1), "k": k, "offset": up, "high_half_first": codes.high_first, "origin": origin,
            }  # fmt: skip
            return _packed(stored, packed, scale, zero, bias, bits, group, up, activations)
        codes = codes.unpacked()
    if bits == stored.format.bits == 8:
        codes, offset = codes.view(np.uint8), up
    else:
        codes = (codes.astype(np.int16) + up).astype(np.uint8)
    whole = {"codes": codes, "offset": offset, "origin": origin}
    return _packed(stored, whole, scale, zero, bias, bits, group, up, activations)


def pack_clusters(stored: StoredTensor, bias: np.ndarray | None, clusters: Clusters) -> _kernels.PackedNBits:
    """A weight [K, N] that `fits_clusters` (clustered_linear.py), for codes of activations in that order."""
    rows = stored.transposed()
    assert rows.scale is not None
    groups = rows.shape[0], 1
    bits, up = _kernel_codes(stored.format)
    codes = (rows.unpacked().astype(np.int16) + up).astype(np.uint8)
    zero = np.full(groups, up) if rows.zero_point is None else np.broadcast_to(numbers(rows.zero_point).astype(np.int64) + up, groups)
    ordered = np.where(clusters.fills, zero.astype(np.uint8), codes[:, clusters.places])
    return _kernels.PackedNBits(
        ordered, np.broadcast_to(numbers(rows.scale), groups), zero, bias, bits=bits, activations="clusters",
        clusters=(clusters.scale, clusters.zero_point, clusters.fours), origin=(stored.held, stored.is_turned, clusters.places.tobytes()),
    )  # fmt: skip


def unpack_nbits(packed: _kernels.PackedNBits, form: Format) -> np.ndarray:
    """The codes [K, N] of a weight of that format, a byte each."""
    codes = packed.unpacked()
    codes -= np.uint8(_kernel_codes(form)[1])
    return codes.view(np.int8 if form.is_signed else np.uint8).T


def _kernel_codes(form: Format) -> tuple[int, int]:
    """Bits of the codes that the kernels have for those of a format, and by how much they are greater: kernels count from 0,
    around the middle of their bits. Two's complement is moved up by half its range, and 5 to 7 bits to the middle of 8."""
    bits = next(width for width in _KERNEL_BITS if width >= form.bits)
    return bits, -form.qmin + (0 if form.table is not None else (1 << bits - 1) - (1 << form.bits - 1))


def _summed_together(block: int, k: int) -> tuple[int, int]:
    """How many weights the kernel sums before it scales them, and how often each scale then counts: the error of a sum grows
    with its length, so that long groups are several."""
    if not block:
        return min(k, _LONGEST_SUM), 1
    if block > _LONGEST_SUM and block % _LONGEST_SUM == 0:
        return _LONGEST_SUM, block // _LONGEST_SUM
    return block, 1


def _outliers(rows: StoredTensor) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Of a weight [N, K]: where those of each row begin, [N + 1]; their columns, and their values."""
    if rows.outliers is None:
        return None
    n, k = rows.shape
    ordered = rows.outliers.row_major(rows.shape)
    owner, inputs = np.divmod(ordered.positions(), k)
    return np.searchsorted(owner, np.arange(n + 1)), inputs.astype(np.uint16), ordered.values.astype(np.float32)


def _by_group(values: np.ndarray, groups: tuple[int, int], repeats: int) -> np.ndarray:
    wide = values.astype(np.float32, copy=False)
    return np.broadcast_to(np.repeat(wide, repeats, axis=1)[:, : groups[1]] if repeats > 1 else wide, groups)


def _packed(
    stored: StoredTensor, codes: dict, scale: np.ndarray, zero: np.ndarray | None, bias: np.ndarray | None, bits: int, group: int, up: int,
    activations: str,
) -> _kernels.PackedNBits:  # fmt: skip
    options = {**codes, "group": group, "activations": activations, "outliers": _outliers(stored.transposed())}
    if stored.format.table is not None:
        return _kernels.PackedNBits(scale=scale, bias=bias, table=stored.format.values, **options)
    offsets = None
    if up != 1 << (bits - 1) or (zero is not None and zero.any()):  # else zero points are what the kernels expect
        offsets = np.full(scale.shape, up, np.float32) if zero is None else zero + np.float32(up)
    return _kernels.PackedNBits(scale=scale, zero_point=offsets, bias=bias, bits=bits, **options)
