"""Weights rounded as an observer says, in the float32 arithmetic of torch and of ONNX Runtime.

    scale = max(max|W| / ((qmax − qmin) / 2), eps)      q = clamp(rint(W · (1 / scale)), qmin, qmax)     (symmetric)

With −128 … 127 the divisor is 127.5: the largest positive weight saturates, the largest negative one does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qruntime._kernels import table_codes
from qruntime.errors import QuantizationError
from qruntime.ir import HeldCodes, StoredTensor
from qruntime.ir.formats import INT8, UINT4, UINT8, Format
from qruntime.ir.narrow import NarrowArray
from qruntime.quantization.ranges import best_share, row_blocks
from qruntime.quantization.rounding import Matrix, Rounded, RoundToHalf, RoundToNearest, decibels, snr_db
from qruntime.quantization.solving import Rounding
from qruntime.quantization.torch_names.qconfig import RANGES, EngineObserver, HistogramObserver, Observer


def solve_of(observer: Observer, engine: str) -> Rounding:
    """How an observer's weights become codes: in our own way, where it leaves that to our engine; else to the letter.

    Raises QuantizationError for an observer of another element type than layers have.
    """
    if observer.dtype == "float16":
        return RoundToHalf()
    if observer.dtype in ("quint8", "quint4x2"):
        return ObservedRows(observer)
    if observer.dtype != "qint8":
        raise QuantizationError(f"the weights of this layer need an observer of dtype 'qint8' or 'float16', got {observer.dtype!r}")
    if not isinstance(observer, EngineObserver):
        return Observed(observer)
    if engine == "qruntime":
        return RoundToNearest({None: None, "tensor": False, "channel": True}[observer.granularity])
    return AsOnnxRuntime(observer) if engine == "onnxruntime" else Observed(observer)


@dataclass(frozen=True)
class Observed:
    """int8 codes as torch makes them with an observer of that description."""

    observer: Observer
    format: Format = INT8

    def solve(self, matrix: Matrix) -> Rounded:
        """Raises ValueError when the weight holds NaN or infinity."""
        low, high = _range(matrix, self.observer)
        with np.errstate(all="ignore"):
            scale, zero_point = parameters(low, high, self.observer)
            inverse = np.float32(1) / scale
            q = np.rint(matrix.values * inverse) + zero_point
        q = np.clip(np.nan_to_num(q), *RANGES["qint8"]).astype(np.int8)  # as in torch, beyond quant_min and quant_max
        return _rounded(matrix, q, scale, zero_point.astype(np.int8))


@dataclass(frozen=True)
class AsOnnxRuntime:
    """int8 codes as ONNX Runtime makes them of symmetric weights."""

    observer: Observer
    format: Format = INT8

    def solve(self, matrix: Matrix) -> Rounded:
        """Raises ValueError when the weight holds NaN or infinity."""
        low, high = _range(matrix, self.observer)
        span = np.maximum(np.abs(low), np.abs(high)).astype(np.float64) * 2 / 254
        scale = np.asarray(np.where(span < np.finfo(np.float32).tiny, 1, span), np.float32)
        q = np.clip(np.rint(matrix.values / scale), -128, 127).astype(np.int8)
        return _rounded(matrix, q, scale, np.zeros(scale.shape, np.int8))


@dataclass(frozen=True)
class ObservedRows:
    """The rows of a table in 8 or 4 bits, with a scale and a float offset each, in torch's arithmetic."""

    observer: Observer

    @property
    def format(self) -> Format:
        return UINT4 if self.observer.dtype == "quint4x2" else UINT8

    def solve(self, matrix: Matrix) -> Rounded:
        """Raises ValueError for a table that is empty or holds NaN or infinity, or an odd number of columns in 4 bits."""
        table = matrix.values
        if self.format is UINT4 and table.shape[1] % 2:
            raise ValueError(f"the table has {table.shape[1]} columns, quint4x2 needs an even number")
        q, scale, offset, snr = quantize_rows(table, self.observer)
        codes: np.ndarray | NarrowArray = q
        if self.format is UINT4:
            half = q.shape[1] // 2
            pairs = np.left_shift(q[:, half:], 4, order="C")
            pairs |= q[:, :half]
            codes = NarrowArray(pairs.reshape(-1), 4, False, table.shape, in_halves=True)
        return Rounded(StoredTensor(self.format, HeldCodes(codes), scale, offset=offset), snr)


def _range(matrix: Matrix, observer: Observer) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest weight, or those of each output channel, with the rank of the matrix."""
    weight, axis = matrix.values, 1 - matrix.along if observer.per_channel else None
    low, high = weight.min(axis=axis, keepdims=True), weight.max(axis=axis, keepdims=True)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError("the weight holds NaN or infinity")
    if isinstance(observer, HistogramObserver):
        if not observer.symmetric or observer.per_channel:
            raise QuantizationError(f"HistogramObserver needs qscheme 'per_tensor_symmetric' for weights, got {observer.qscheme!r}")
        share = np.float32(best_share(weight, float(np.maximum(-low, high).max())))
        low, high = low * share, high * share
    return low, high


def parameters(low: np.ndarray, high: np.ndarray, observer: Observer) -> tuple[np.ndarray, np.ndarray]:
    """Scale float32 and zero point for values between `low` and `high` (float32)."""
    qmin, qmax = observer.codes
    low, high = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
    eps = np.float32(observer.eps)
    if observer.symmetric:
        scale = np.asarray(np.maximum(np.maximum(-low, high) / np.float32((qmax - qmin) / 2), eps))
        return scale, np.zeros(scale.shape, np.int32)
    scale = np.asarray(np.maximum((high - low) / np.float32(qmax - qmin), eps))
    zero_point = np.clip(qmin - np.rint(low / scale), qmin, qmax)
    return scale, np.asarray(zero_point, np.int32)


def _rounded(matrix: Matrix, q: np.ndarray, scale: np.ndarray, zero_point: np.ndarray) -> Rounded:
    restored = (q.astype(np.float32) - zero_point.astype(np.float32)) * scale
    return Rounded(matrix.stored(StoredTensor(INT8, HeldCodes(q), scale, zero_point)), snr_db(matrix.values, restored))


def quantize_rows(table: np.ndarray, observer: Observer) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Codes uint8 [N, D], scale and offset float32 [N, 1] of `table`, with torch's arithmetic; signal to noise in dB.

    Raises ValueError for a table that is empty or holds NaN or infinity.
    """
    q = np.empty(table.shape, np.uint8)
    scale, offset = np.empty((2, table.shape[0], 1), np.float32)
    signal = noise = 0.0
    for part in row_blocks(table):  # a block that is not contiguous, not aligned or of a narrow float is copied
        block = np.require(table[part], np.float32, ["C", "A"])
        powers = table_codes(block, *observer.codes, observer.eps, q[part], scale[part, 0], offset[part, 0])
        signal, noise = signal + powers[0], noise + powers[1]
    return q, scale, offset, decibels(signal, noise)
