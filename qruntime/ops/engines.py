"""Arithmetic of other runtimes' dynamically quantized layers, to the last rounding where they fix it.

All quantize activations per tensor: one scale and zero point for the whole input.

- fbgemm (torch on x86): 7-bit codes, a smallest scale, the zero point from the end of the range that is met
  more exactly, fused multiply-adds in quantizing and at the end. Sources: ChooseQuantizationParams in ATen's
  QuantUtils.h, FBGEMM's QuantUtils.cc and QuantizeAvx2.
- qnnpack (as torch has it on x86): the same with 8-bit codes; at the end multiplication and addition round separately.
- onnxruntime: DynamicQuantizeLinear and MatMulInteger.

These are definitions, not fast paths: they are here to compare with.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from qruntime.ir import StoredTensor
from qruntime.ops.products import matmul
from qruntime.ops.quantize_linear import dynamic_quantize_linear

ENGINES = ("fbgemm", "qnnpack", "onnxruntime")

_SMALLEST_SCALE = float(np.float32(6.1e-5))


class Codes(NamedTuple):
    """A quantized tensor: x ≈ scale · centred, where `centred` (float64, integers) is free of the zero point."""

    centred: np.ndarray
    scale: np.float32


def quantize(x: np.ndarray, engine: str) -> Codes:
    """Quantize float32 `x` of any shape as `engine` does. A NaN anywhere makes the scale NaN.

    Raises ValueError for an unknown engine.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    with np.errstate(all="ignore"):
        if engine == "onnxruntime":
            codes, one, zero = dynamic_quantize_linear(x)
            return Codes(codes.astype(np.float64) - float(zero), np.float32(one))
        low, high = (min(float(x.min()), 0.0), max(float(x.max()), 0.0)) if x.size else (0.0, 0.0)
        if x.size and (np.isnan(x.min()) or np.isinf(low) or np.isinf(high)):
            # torch refuses NaN and multiplies infinities by a scale that is infinite: no number comes of either.
            return Codes(np.zeros(x.shape), np.float32(np.nan))
        scale, zero_point = choose_parameters(low, high, 127 if engine == "fbgemm" else 255)
        # A fused multiply-add before rounding to a code: what lies just below a tie may reach it, or come off it.
        inverse = np.float32(1) / np.float32(scale)
        codes = np.rint((x.astype(np.float64) * inverse + zero_point).astype(np.float32))
    return Codes(np.clip(codes, 0, 255).astype(np.float64) - zero_point, np.float32(scale))


def choose_parameters(low: float, high: float, qmax: int) -> tuple[float, int]:
    """torch's scale (a double) and zero point for codes 0 … `qmax` and values `low` ≤ 0 ≤ `high`."""
    scale = (high - low) / qmax
    if np.float32(scale) == 0 or np.isinf(np.float32(1) / np.float32(scale)):
        scale = 0.1
    if scale < _SMALLEST_SCALE:
        grown = np.float32(_SMALLEST_SCALE) / np.float32(scale)
        scale = _SMALLEST_SCALE
        if low == 0:
            high = _SMALLEST_SCALE * qmax
        elif high == 0:
            low = -_SMALLEST_SCALE * qmax
        else:
            low, high = float(np.float32(low) * grown), float(np.float32(high) * grown)
    from_low, from_high = -low / scale, qmax - high / scale
    zero_point = from_low if -abs(low / scale) < qmax - abs(high / scale) else from_high
    return scale, int(np.clip(np.rint(zero_point), 0, qmax))


class Weights(NamedTuple):
    """A weight made ready for `product`: integers free of zero points as float64 [K, N], scale float32 [1] or [N]."""

    centred: np.ndarray
    scale: np.ndarray


def prepare(weight: StoredTensor) -> Weights:
    """Integers [K, N] with one scale and zero point, or one for each column."""
    assert isinstance(weight.scale, np.ndarray) and isinstance(weight.zero_point, np.ndarray)
    return Weights(weight.unpacked().astype(np.float64) - weight.zero_point.astype(np.float64), weight.scale.reshape(-1))


def product(x: np.ndarray, weights: Weights, bias: np.ndarray | None, engine: str) -> np.ndarray:
    """x [M, K] float32 → x · W + bias, [M, N] float32; `bias` is [N]."""
    codes = quantize(x, engine)
    # Products of 9-bit integers: their sums are exact in float64.
    total = matmul(codes.centred, weights.centred).astype(np.float32)
    with np.errstate(all="ignore"):
        scale = codes.scale * weights.scale
        if engine == "fbgemm" and bias is not None:
            # One rounding: the product of two floats is exact in float64.
            return (total.astype(np.float64) * scale + bias).astype(np.float32)
        y = total * scale
        return y if bias is None else y + bias
