"""What quantization will do to activations, in floats: for steps that try before they choose.

The arithmetic is that of the codes: scale = (high − low) / (2^b − 1), zero_point = rint(−low / scale), round half to even.
"""

from __future__ import annotations

import numpy as np

from qruntime.ir.formats import FP8
from qruntime.quantization.grid import nearest_entry, nearest_values
from qruntime.quantization.scheme import TOKEN, Inputs, Scheme


def rounded_rows(rows: np.ndarray, inputs: Inputs | None, low: np.ndarray | float, high: np.ndarray | float) -> np.ndarray:
    """Rows [t, K] float32 as a layer with such activations sees them. `low` and `high`, one for all or one for each channel,
    are the range of static activations; others have that of each row."""
    if inputs is None:
        return rows
    if inputs.format is FP8:
        scale = _above_zero(np.abs(rows).max(axis=1, keepdims=True) / np.float32(448))
        return FP8.values[nearest_entry(rows / scale, FP8)] * scale
    if not inputs.is_static:
        axis = 1 if inputs.granularity == TOKEN else None
        low, high = rows.min(axis=axis, keepdims=True), rows.max(axis=axis, keepdims=True)
    low, high = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
    steps = np.float32((1 << inputs.format.bits) - 1)
    scale = _above_zero((high - low) / steps)
    zero = np.clip(np.rint(-low / scale), 0, steps)
    return (np.clip(np.rint(rows / scale) + zero, 0, steps) - zero) * scale


def rounded_weight(weight: np.ndarray, scheme: Scheme | None) -> np.ndarray:
    """A weight [N, K] as its nearest codes stand for it."""
    if scheme is None or scheme.weights is None or scheme.weights.format.is_float:
        return weight
    return nearest_values(np.ascontiguousarray(weight, np.float32), scheme.weights)


def _above_zero(scale: np.ndarray) -> np.ndarray:
    return np.where(scale > 0, scale, np.float32(1)).astype(np.float32)
