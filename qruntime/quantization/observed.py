"""Weights rounded as an observer says, in the float32 arithmetic of torch and of ONNX Runtime.

    scale = max(max|W| / ((qmax − qmin) / 2), eps)      q = clamp(rint(W · (1 / scale)), qmin, qmax)     (symmetric)

With −128 … 127 the divisor is 127.5: the largest positive weight saturates, the largest negative one does not.
"""

from __future__ import annotations

import numpy as np

from qruntime.errors import QuantizationError
from qruntime.quantization.formats import Int8, QuantizedTensor, quantize, quantize_shared
from qruntime.quantization.qconfig import RANGES, EngineObserver, HistogramObserver, Observer
from qruntime.quantization.ranges import best_share

_BLOCK = 1 << 14


def quantize_weight(weight: np.ndarray, observer: Observer, channel_axis: int, engine: str) -> QuantizedTensor:
    """Codes of `weight` (float32, not empty) with one scale, or one for each slice along `channel_axis`.

    An EngineObserver leaves the form to `engine`. Any other observer is followed to the letter.

    Raises ValueError when the weight holds NaN or infinity, QuantizationError for an observer of no int8.
    """
    if observer.dtype != "qint8":
        raise QuantizationError(f"the weights of this layer need an observer of dtype 'qint8' or 'float16', got {observer.dtype!r}")
    axis = channel_axis if observer.per_channel else None
    if isinstance(observer, EngineObserver) and engine == "qruntime":
        if axis is None:
            return quantize_shared(weight, channel_axis, strict=observer.granularity == "tensor")
        return quantize(weight, Int8(axis))
    low, high = _range(weight, observer, axis)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError("the weight holds NaN or infinity")
    if isinstance(observer, EngineObserver) and engine == "onnxruntime":
        return _onnxruntime(weight, low, high, axis)
    with np.errstate(all="ignore"):
        scale, zero_point = parameters(low, high, observer)
        inverse = np.float32(1) / scale
        shape = _along(weight, axis)
        q = np.rint(weight * inverse.reshape(shape)) + zero_point.reshape(shape)
    q = np.clip(np.nan_to_num(q), *RANGES["qint8"]).astype(np.int8)  # as in torch, beyond quant_min and quant_max
    return _tensor(weight, q, scale, zero_point.astype(np.int8), axis)


def _range(weight: np.ndarray, observer: Observer, axis: int | None) -> tuple[np.ndarray, np.ndarray]:
    others = None if axis is None else tuple(i for i in range(weight.ndim) if i != axis)
    low, high = np.asarray(weight.min(axis=others)), np.asarray(weight.max(axis=others))
    if isinstance(observer, HistogramObserver):
        if not observer.symmetric or observer.per_channel:
            raise QuantizationError(f"HistogramObserver needs qscheme 'per_tensor_symmetric' for weights, got {observer.qscheme!r}")
        bound = float(np.maximum(-low, high))
        share = np.float32(best_share(weight, bound) if np.isfinite(bound) else 1)
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


def _onnxruntime(weight: np.ndarray, low: np.ndarray, high: np.ndarray, axis: int | None) -> QuantizedTensor:
    span = np.maximum(np.abs(low), np.abs(high)).astype(np.float64) * 2 / 254
    scale = np.asarray(np.where(span < np.finfo(np.float32).tiny, 1, span), np.float32)
    q = np.clip(np.rint(weight / scale.reshape(_along(weight, axis))), -128, 127).astype(np.int8)
    return _tensor(weight, q, scale, np.zeros(scale.shape, np.int8), axis)


def _along(weight: np.ndarray, axis: int | None) -> tuple[int, ...]:
    """Shape that lays a value per slice along `axis`."""
    return () if axis is None else tuple(-1 if i == axis else 1 for i in range(weight.ndim))


def _tensor(weight: np.ndarray, q: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, axis: int | None) -> QuantizedTensor:
    shape = _along(weight, axis)
    restored = (q.astype(np.float32) - zero_point.astype(np.float32).reshape(shape)) * scale.reshape(shape)
    return QuantizedTensor(q, scale, zero_point, axis, snr_db(weight, restored))


def snr_db(weight: np.ndarray, restored: np.ndarray) -> float:
    """Power of the weight over that of its rounding error, in decibels; inf when nothing was lost."""
    signal = noise = 0.0
    flat, other = weight.ravel(), restored.ravel()
    for start in range(0, flat.size, _BLOCK):  # blocks that stay in cache
        block = flat[start : start + _BLOCK]
        signal += power(block)
        noise += power(other[start : start + _BLOCK] - block)
    return decibels(signal, noise)


def power(block: np.ndarray) -> float:
    """Sum of squares of float32: in float32 where it is far from the ends of that, else in float64."""
    flat = block.reshape(-1)
    total = float(np.einsum("i,i->", flat, flat))
    if 1e-24 < total < 1e36 or not flat.any():
        return total
    return float(np.einsum("i,i->", flat, flat, dtype=np.float64))


def decibels(signal: float, noise: float) -> float:
    """The ratio of two powers; inf when there is no noise."""
    with np.errstate(divide="ignore"):
        return float("inf") if noise == 0 else 10 * float(np.log10(max(signal, 1e-300) / noise))
