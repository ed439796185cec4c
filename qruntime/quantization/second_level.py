"""Scales and zero points that are codes in their turn, in blocks of rows (ScaleCoding).

bilevel     s ≈ s₂ · q + o,     q = 0 … 2^b − 1,      o = least of the block, s₂ = (greatest − least) / (2^b − 1), both float16
double      s ≈ s₂ · q + m,     q = −qmax … qmax,     m = mean of the scales of a group, s₂ = max|s − m| / qmax, both float32
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qruntime.ir import HeldCodes, StoredTensor
from qruntime.ir.formats import FORMATS
from qruntime.ir.stored import held, numbers
from qruntime.quantization.scheme import BILEVEL, ScaleCoding

Part = np.ndarray | StoredTensor

_LEAST_RANGE, _GREATEST_HALF = 2.0**-13, 65504
"""Between them float16 keeps the entries of a block to 2⁻¹⁰ of the greatest."""


def coded_scales(span: np.ndarray, coding: ScaleCoding) -> StoredTensor:
    """Scales `span` [N, groups] float64 as `coding` stores them. Where nothing is to be covered, 0, the least of the block will do."""
    owner, starts = _blocks(len(span), coding)
    least = np.minimum.reduceat(np.where(span > 0, span, np.inf), starts, axis=0)
    filled = np.where(span > 0, span, np.where(np.isfinite(least), least, 1.0)[owner])
    return _between_extremes(filled, coding) if coding.kind == BILEVEL else _around_mean(filled, coding)


def coded_zero_points(zero_point: np.ndarray, is_used: np.ndarray, coding: ScaleCoding) -> StoredTensor:
    """Zero points [N, groups] float64; for groups that are not used, all of whose weights are 0, a whole one among those of the block."""
    owner, starts = _blocks(len(zero_point), coding)
    used = np.add.reduceat(is_used.astype(np.float64), starts, axis=0)
    middle = np.rint(np.add.reduceat(np.where(is_used, zero_point, 0), starts, axis=0) / np.maximum(used, 1))
    return _between_extremes(np.where(is_used, zero_point, middle[owner]), coding)


def _blocks(rows: int, coding: ScaleCoding) -> tuple[np.ndarray, np.ndarray]:
    """The block of each row, and the first row of each block."""
    return np.arange(rows) // coding.group, np.arange(0, rows, coding.group)


def _between_extremes(values: np.ndarray, coding: ScaleCoding) -> StoredTensor:
    owner, starts = _blocks(len(values), coding)
    low, high = np.minimum.reduceat(values, starts, axis=0), np.maximum.reduceat(values, starts, axis=0)
    reach = np.maximum(np.abs(low), np.abs(high))
    is_half = reach.max(initial=0) <= _GREATEST_HALF and reach[reach > 0].min(initial=1) >= _LEAST_RANGE
    dtype = np.float16 if is_half else np.float32
    form = FORMATS[f"uint{coding.bits}"]
    offset = low.astype(dtype)
    scale = ((high - offset) / form.qmax).astype(dtype)
    shares = (values - offset[owner]) / np.where(scale > 0, scale, 1)[owner]
    codes = np.clip(np.rint(shares), 0, form.qmax).astype(np.uint8)
    return _stored(codes, form.name, scale, offset, coding)


def _around_mean(values: np.ndarray, coding: ScaleCoding) -> StoredTensor:
    owner, starts = _blocks(len(values), coding)
    form = FORMATS[f"int{coding.bits}"]
    mean = values.mean(axis=0, keepdims=True).astype(np.float32)
    apart = values - mean
    scale = (np.maximum.reduceat(np.abs(apart), starts, axis=0) / form.qmax).astype(np.float32)
    codes = np.clip(np.rint(apart / np.where(scale > 0, scale, 1)[owner]), -form.qmax, form.qmax).astype(np.int8)
    return _stored(codes, form.name, scale, mean, coding)


def _stored(codes: np.ndarray, name: str, scale: np.ndarray, offset: np.ndarray, coding: ScaleCoding) -> StoredTensor:
    block = coding.group if coding.group < len(codes) else 0
    return StoredTensor(FORMATS[name], HeldCodes(held(codes, FORMATS[name])), scale, offset=offset, block=block, block_axis=0)


def divisors(scale: Part) -> np.ndarray:
    """Scales as numbers to divide by: 1 for one that second-level codes brought to 0 or below, whose numbers are next to 0."""
    values = numbers(scale)
    return np.where(values > 0, values, np.float32(1))


def side_by_side(parts: Sequence[Part]) -> Part:
    """Parameters [N, groups] of groups that were made one after the other, all of them arrays or all of one coding."""
    if not all(isinstance(part, StoredTensor) for part in parts):
        return np.concatenate([numbers(part) for part in parts], axis=1)
    stored = [part for part in parts if isinstance(part, StoredTensor)]
    first, dtype = stored[0], np.result_type(*(part.offset.dtype for part in stored if part.offset is not None))
    scale = np.concatenate([numbers(part.scale) for part in stored if part.scale is not None], axis=1).astype(dtype, copy=False)
    offset = np.concatenate([part.offset for part in stored if part.offset is not None], axis=1).astype(dtype, copy=False)
    codes = held(np.concatenate([part.unpacked() for part in stored], axis=1), first.format)
    return StoredTensor(first.format, HeldCodes(codes), scale, offset=offset, block=first.block, block_axis=0)
