"""Outlier-victim pairs: scales, and weights as codes.

    α₀ = max(|μ + 3σ|, |μ − 3σ|),   scale = r · α₀ / 7

r is 1, or of several ratios the one at which the whole rounding loses least. What is beyond is an outlier or its victim: with
a scale that reached the greatest value there would be no outliers. `counts` [K] say how much a channel matters: what it loses
is counted so many times.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from qruntime import _kernels
from qruntime.ir.formats import MARKER, OVP4
from qruntime.quantization.ranges import row_blocks
from qruntime.quantization.scheme import TENSOR, Granularity
from qruntime.quantization.statistics import Statistics
from qruntime.quantization.steps import InputRange

MOST_NORMAL = 7
_MOST_NUMBERS = 1 << 18


def scales(
    weight: np.ndarray, granularity: Granularity, ratios: tuple[float, ...] = (1.0,), counts: np.ndarray | None = None
) -> np.ndarray:
    """Of `weight` [N, K] float32, [N or 1, groups] float32: of ratios that lose the same the first; 1 where all is 0.

    Raises ValueError when the weight holds NaN or infinity.
    """
    if granularity.kind == TENSOR:
        return np.full((1, 1), scale_of(weight, ratios, counts=counts), np.float32)
    parts = list(_groups(weight.shape[1], granularity.size))
    found = np.empty((weight.shape[0], len(parts)), np.float32)
    for rows in row_blocks(weight):
        for i, columns in enumerate(parts):
            block = np.ascontiguousarray(weight[rows, columns], np.float32)
            tried = _tried(_three_sigma(block), ratios)
            found[rows, i] = _least(tried, _errors(block, tried, None if counts is None else counts[columns]))
    return found


def scale_of(
    rows: np.ndarray, ratios: tuple[float, ...] = (1.0,), times: np.ndarray | None = None, counts: np.ndarray | None = None
) -> np.floating:
    """Of all of `rows` [T, K] float32 together, each counted `times` [T]. Raises ValueError when they hold NaN or infinity."""
    times = np.ones(len(rows)) if times is None else times
    tried = _tried(_three_sigma_of_all(rows, times), ratios)
    errors = np.zeros(tried.shape)
    for part in row_blocks(rows):
        block = np.ascontiguousarray(rows[part], np.float32)
        errors += times[part] @ _errors(block, np.ascontiguousarray(np.broadcast_to(tried, (len(block), tried.shape[1]))), counts)
    return _least(tried, errors)[0]


def input_range(statistics: Statistics, ratios: tuple[float, ...] = (1.0,), weights: Sequence[np.ndarray] = ()) -> InputRange:
    """Of activations: the range of the integers among them, ±7 of their scale.

    The rows of greatest numbers count once; what the sample holds beside them stands for all others, with at most 2^18 numbers.
    A channel counts as much as an error of it moves the outputs of layers with `weights` [N, K].
    """
    sample = statistics.sample
    assert sample is not None
    rows, times = statistics.rows_with_times(_MOST_NUMBERS)
    scale = scale_of(rows, ratios, times, np.sum([powers(weight) for weight in weights], axis=0) if weights else None)
    return InputRange(-MOST_NORMAL * scale, MOST_NORMAL * scale, {"outlier pairs of inputs": outlier_share(rounded(sample, scale))})


def powers(rows: np.ndarray) -> np.ndarray:
    """[K] float64: sums of squares of the columns of `rows` [T, K] float32."""
    return np.einsum("tk,tk->k", rows, rows, dtype=np.float64)


def _groups(k: int, size: int) -> Iterator[slice]:
    """Columns that share a scale; all of them without a size."""
    for start in range(0, k, size or max(1, k)):
        yield slice(start, min(k, start + (size or k)))


def _three_sigma(block: np.ndarray) -> np.ndarray:
    """α₀ of each row."""
    with np.errstate(invalid="ignore", over="ignore"):
        return _finite(np.abs(block.mean(axis=1, dtype=np.float64)) + 3 * block.std(axis=1, dtype=np.float64))


def _three_sigma_of_all(rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """α₀ of all rows together, each counted so many times; of rank 1."""
    numbers = max(1.0, counts.sum() * rows.shape[1])
    with np.errstate(invalid="ignore", over="ignore"):
        mean = counts @ rows.sum(axis=1, dtype=np.float64) / numbers
        variance = sum(counts[part] @ ((rows[part].astype(np.float64) - mean) ** 2).sum(axis=1) for part in row_blocks(rows)) / numbers
        return _finite(np.atleast_1d(np.abs(mean) + 3 * np.sqrt(variance)))


def _finite(alpha: np.ndarray) -> np.ndarray:
    if not np.isfinite(alpha).all():
        raise ValueError("the weight holds NaN or infinity")
    return alpha


def _tried(alpha: np.ndarray, ratios: tuple[float, ...]) -> np.ndarray:
    """Scales [rows, ratios] float32."""
    spans = np.where(alpha == 0, MOST_NORMAL, alpha)[:, None] * np.array(ratios) / MOST_NORMAL
    return np.clip(np.where(alpha[:, None] == 0, 1, spans), np.finfo(np.float32).tiny, np.finfo(np.float32).max).astype(np.float32)


def _errors(block: np.ndarray, tried: np.ndarray, counts: np.ndarray | None) -> np.ndarray:
    """What rounding loses, summed over each row; 0 where there is nothing to choose."""
    errors = np.zeros(tried.shape)
    if tried.shape[1] < 2:
        return errors
    shares = np.ones(block.shape[1]) if counts is None or not counts.any() else counts / counts.max()
    _kernels.pair_errors(block, shares.astype(np.float32), tried, errors)
    return errors * tried.astype(np.float64) ** 2


def _least(tried: np.ndarray, errors: np.ndarray) -> np.ndarray:
    return np.take_along_axis(tried, errors.argmin(axis=1)[:, None], axis=1)[:, 0]


def rounded(rows: np.ndarray, scale: np.ndarray | np.floating) -> np.ndarray:
    """`rows` [T, K] float32 in pairs along K, in units of `scale` of one element or [T]: int8."""
    values = np.empty(rows.shape, np.int8)
    _kernels.pair_values(
        np.ascontiguousarray(rows, np.float32), np.ascontiguousarray(np.broadcast_to(scale, rows.shape[0]), np.float32), values
    )
    return values


def codes(weight: np.ndarray, scale: np.ndarray, size: int = 0) -> np.ndarray:
    """Codes of OVP4 [N, K] uint8 of `weight` [N, K] float32 for scales [N or 1, groups] of `size` columns each.

    A last column without partner has no room for a marker: it is clipped to the integers.
    """
    n, k = weight.shape
    values = np.empty((n, k), np.int8)
    for i, columns in enumerate(_groups(k, size)):
        values[:, columns] = rounded(weight[:, columns], scale[:, i])
    if k % 2:
        np.clip(values[:, -1], -MOST_NORMAL, MOST_NORMAL, out=values[:, -1])
    return encoded(values)


def encoded(values: np.ndarray) -> np.ndarray:
    """The codes (uint8) of int8 values [N, K] of pairs along the rows."""
    made = _CODES[values.view(np.uint8)]
    is_outlier = np.abs(values) > MOST_NORMAL
    even = values.shape[1] // 2 * 2
    made[:, 0:even:2][is_outlier[:, 1:even:2]] = MARKER
    made[:, 1:even:2][is_outlier[:, 0:even:2]] = MARKER
    return made


def _codes() -> np.ndarray:
    """The code of every int8 that one stands for, by its byte."""
    assert OVP4.pairs is not None
    made = np.zeros(256, np.uint8)
    for beside_marker in (1, 0):
        for code in range(16):
            if code != MARKER:
                made[OVP4.pairs[16 * beside_marker + code] & 255] = code
    return made


_CODES = _codes()


def outlier_share(values: np.ndarray) -> float:
    """The share of pairs along the rows of `values` [T, K], in units of the scale, that hold an outlier."""
    even = values.shape[1] // 2 * 2
    is_outlier = np.abs(values[:, :even]) > MOST_NORMAL
    return float(2 * is_outlier.mean()) if is_outlier.size else 0.0
