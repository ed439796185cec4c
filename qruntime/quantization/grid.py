"""Rounding to nearest on any grid: integers of 2 to 8 bits, NF4, FP4, FP8, OVP4; one scale for a tensor, a channel or a group.

    affine      scale = (hi − lo) / (2^b − 1),   zero_point = rint(−lo / scale) + qmin,   lo ≤ 0 ≤ hi
    symmetric   scale = max|w| / qmax,           codes −qmax … qmax
    tables      scale = max|w| / max|table|,     the nearest entry
    pairs       scale = (|mean| + 3 σ) / 7,      see outlier_pairs.py

Scales of float16, powers of two or codes (second_level.py) are rounded before the codes are, so that the codes are the nearest
for what is stored. With bilevel scales zero points are not rounded to whole numbers, but to codes of their own.
"""

from __future__ import annotations

import numpy as np

from qruntime._kernels import CodeGrid, round_to_grid, row_codes
from qruntime.ir import HeldCodes, StoredTensor
from qruntime.ir.formats import Format
from qruntime.ir.narrow import NarrowArray
from qruntime.ir.stored import numbers
from qruntime.quantization import outlier_pairs
from qruntime.quantization.ranges import row_blocks
from qruntime.quantization.rounding import Rounded, decibels, power
from qruntime.quantization.scheme import BILEVEL, GROUP, HALF, POW2, ROW_POW2, TENSOR, QArgs
from qruntime.quantization.second_level import Part, coded_scales, coded_zero_points, divisors


def nearest(weight: np.ndarray, args: QArgs) -> Rounded:
    """`weight` [N, K] float32 as the nearest codes of `args`. Raises ValueError when it holds NaN or infinity."""
    return nearest_for(weight, args, *parameters(weight, args))


def nearest_for(weight: np.ndarray, args: QArgs, scale: Part, zero_point: Part | None) -> Rounded:
    """The nearest codes for scales and zero points [N or 1, groups] of a finite `weight`."""
    codes, signal, noise = np.empty(weight.shape, args.format.code_dtype), 0.0, 0.0
    factor, shift = numbers(scale), None if zero_point is None else numbers(zero_point)
    for part in row_blocks(weight):
        block = np.ascontiguousarray(weight[part], np.float32)
        own = (factor, shift) if factor.shape[0] == 1 else (factor[part], None if shift is None else shift[part])
        codes[part], restored = _rounded(block, args, *own)
        signal, noise = signal + power(block), noise + power(restored - block)
    return Rounded(stored_as(args, codes, scale, zero_point), decibels(signal, noise))


def channel_codes(weight: np.ndarray, factor: np.ndarray, args: QArgs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The codes of `nearest` of `weight` [N, K] · `factor` [K], a byte each, their scales and zero points [N] float32; for integers
    of at most 8 bits with a scale in float32 for each channel. Raises ValueError likewise."""
    form, n = args.format, len(weight)
    codes, scale, zero_point = np.empty(weight.shape, form.code_dtype), np.empty(n, np.float32), np.empty(n, np.float32)
    row_codes(
        np.ascontiguousarray(weight, np.float32), factor, form.qmin, form.qmax, args.symmetric, codes.view(np.uint8), scale, zero_point
    )
    return codes, scale, zero_point


def nearest_values(weight: np.ndarray, args: QArgs) -> np.ndarray:
    """What the nearest codes of `args` stand for, [N, K] float32, for those who want nothing else. Raises ValueError likewise."""
    return _rounded(np.ascontiguousarray(weight, np.float32), args, *parameters(weight, args))[1]


def _rounded(weight: np.ndarray, args: QArgs, scale: Part, zero_point: Part | None) -> tuple[np.ndarray, np.ndarray]:
    """Codes, a byte each as packing costs more than rounding, and what they stand for."""
    if args.format.is_paired:
        codes = round_to(weight, args, scale, zero_point)
        block = block_of(args, weight.shape[1])
        return codes, StoredTensor(args.format, HeldCodes(codes), scale, zero_point, block=block, block_axis=1).decoded()
    codes, values = np.empty(weight.shape, args.format.code_dtype), np.empty(weight.shape, np.float32)
    if weight.size:
        round_to_grid(weight, code_grid(args, scale, zero_point, weight.shape), codes.view(np.uint8), values)
    return codes, values


def stored_as(args: QArgs, codes: np.ndarray, scale: Part, zero_point: Part | None) -> StoredTensor:
    """Codes [N, K], a byte each, with parameters [N or 1, groups]."""
    held = codes if args.format.bits == 8 else NarrowArray.of(codes, args.format.bits)
    return StoredTensor(args.format, HeldCodes(held), scale, zero_point, block=block_of(args, codes.shape[1]), block_axis=1)


def block_of(args: QArgs, columns: int) -> int:
    """Of a matrix of so many columns, how many have scales of their own; 0 where all have the same."""
    return args.granularity.size if args.granularity.kind == GROUP and args.granularity.size < columns else 0


def parameters(weight: np.ndarray, args: QArgs) -> tuple[Part, Part | None]:
    """Scale and zero point (None of symmetric grids) [N or 1, groups] that cover every value of `weight` [N, K]."""
    form = args.format
    if form.is_paired:
        return rounded_scale(outlier_pairs.scales(weight, args.granularity), args), None
    low, high = _extremes(weight, args)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError("the weight holds NaN or infinity")
    if form.table is not None or args.symmetric:
        top = float(np.nanmax(form.values)) if form.table is not None else form.qmax
        return rounded_scale(np.maximum(-low, high) / top, args), None
    scale = rounded_scale((high - low) / (form.qmax - form.qmin), args)
    shift = -low / divisors(scale).astype(np.float64)
    if args.scales.kind == BILEVEL:
        return scale, coded_zero_points(shift, high > low, args.scales)
    zero_point = np.clip(np.rint(shift) + form.qmin, form.qmin, form.qmax)
    return scale, zero_point.astype(form.code_dtype)


def _extremes(weight: np.ndarray, args: QArgs) -> tuple[np.ndarray, np.ndarray]:
    """The least and greatest value of each group, 0 among them, as float64."""
    k = weight.shape[1]
    if args.granularity.kind == TENSOR:
        low, high = weight.min(keepdims=True, initial=0), weight.max(keepdims=True, initial=0)
    elif args.granularity.kind == GROUP:
        starts = np.arange(0, k, args.granularity.size)
        low = np.minimum(np.minimum.reduceat(weight, starts, axis=1), 0)
        high = np.maximum(np.maximum.reduceat(weight, starts, axis=1), 0)
    else:
        low, high = weight.min(axis=1, keepdims=True, initial=0), weight.max(axis=1, keepdims=True, initial=0)
    return low.astype(np.float64), high.astype(np.float64)


def rounded_scale(span: np.ndarray, args: QArgs) -> Part:
    """`span` as the scheme stores scales, never below what has a reciprocal; where nothing is to be covered 1, or what it may be."""
    if args.scales.has_codes:
        return coded_scales(span, args.scales)
    if args.scales.kind == ROW_POW2:
        return _shares_of_largest(span)
    span = np.where(span == 0, 1.0, np.maximum(span, np.finfo(np.float32).tiny))
    if args.scales.kind == POW2:
        return np.exp2(np.ceil(np.log2(span))).astype(np.float32)
    if args.scales.kind == HALF:
        return np.clip(span, 2.0**-24, 65504).astype(np.float16)
    return span.astype(np.float32)


_MOST_HALVINGS = 8
"""So many times half an entry of FP4 is still a number of FP8 (E4M3)."""


def _shares_of_largest(span: np.ndarray) -> np.ndarray:
    """The largest of each row times a power of two, the least that does not lie below the span."""
    largest = np.maximum(span.max(axis=1, keepdims=True, initial=0), np.finfo(np.float32).tiny).astype(np.float32)
    largest = np.where(span.any(axis=1, keepdims=True), largest, np.float32(1))
    _, exponent = np.frexp(largest / np.maximum(span, np.finfo(np.float64).tiny))  # a ratio lies in [2^(exponent − 1), 2^exponent)
    return np.ldexp(largest, -np.clip(exponent - 1, 0, _MOST_HALVINGS)).astype(np.float32)


def round_to(weight: np.ndarray, args: QArgs, scale: Part, zero_point: Part | None) -> np.ndarray:
    """Codes of `weight` [N, K] for scales and zero points [N or 1, groups]."""
    form, scale, zero_point = args.format, divisors(scale), None if zero_point is None else numbers(zero_point)
    if form.is_paired:
        return outlier_pairs.codes(weight, scale, args.granularity.size)
    if args.granularity.kind == GROUP:
        size, k = args.granularity.size, weight.shape[1]
        scale = np.repeat(scale, size, axis=1)[:, :k]
        zero_point = None if zero_point is None else np.repeat(zero_point, size, axis=1)[:, :k]
    shares = weight / scale
    if form.table is not None:
        return nearest_entry(shares, form)
    if zero_point is not None and zero_point.dtype.kind == "f":
        shares += zero_point
        return np.clip(np.rint(shares, out=shares), form.qmin, form.qmax).astype(form.code_dtype)
    codes = np.rint(shares, out=shares)
    if zero_point is not None:
        codes += zero_point
        return np.clip(codes, form.qmin, form.qmax).astype(form.code_dtype)
    return np.clip(codes, -form.qmax, form.qmax).astype(np.int8)


def nearest_entry(values: np.ndarray, form: Format) -> np.ndarray:
    """The code whose table entry is nearest, of two equally near the lower; of entries alike the first."""
    _, middles, codes = finite_entries(form)
    right = np.searchsorted(middles, values.reshape(-1), side="left")
    return codes[right].reshape(values.shape)


def finite_entries(form: Format) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The finite entries of a table, ascending and each once, what lies in the middle between two of them, and their codes."""
    finite = np.isfinite(form.values)
    entries, first = np.unique(form.values[finite], return_index=True)
    middles = (entries[1:].astype(np.float64) + entries[:-1]) / 2
    return entries, middles.astype(np.float32), np.flatnonzero(finite)[first].astype(np.uint8)


def code_grid(args: QArgs, scale: Part, zero_point: Part | None, shape: tuple[int, ...]) -> CodeGrid:
    """The same grid for kernels that round a weight of `shape` column by column: their codes are those of `round_to`.

    Raises ValueError for pairs: what one column becomes depends on the next.
    """
    if args.format.is_paired:
        raise ValueError(
            f"columns of {args.format} cannot be rounded one after the other, as two of them share a code; OliVe() rounds pairs"
        )
    n, k = shape
    form, shift = args.format, np.zeros((1, 1), np.int8) if zero_point is None else numbers(zero_point)
    each = np.broadcast_shapes((n, 1), numbers(scale).shape)
    factor, divisor, zero = (
        np.ascontiguousarray(np.broadcast_to(part, each), np.float32) for part in (numbers(scale), divisors(scale), shift)
    )
    group = np.arange(k, dtype=np.int32) // (args.granularity.size if args.granularity.kind == GROUP else k)
    low = -form.qmax if zero_point is None else form.qmin
    table = () if form.table is None else finite_entries(form)
    return CodeGrid(factor, divisor, zero, shift.dtype.kind == "f", group, low, form.qmax, *table)
