"""GatherPacked: look-ups in tables whose rows are blocks of the formats that GGML numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from qruntime.ir.dtypes import numpy_dtype
from qruntime.ops.checks import require_rank
from qruntime.ops.contrib.domain import MICROSOFT
from qruntime.ops.contrib.matmul_nbits import unpacked
from qruntime.ops.registry import operator

_Q2, _Q4, _Q8, _F16 = 2, 4, 8, "<f2"


def _half(block: np.ndarray, at: int) -> np.ndarray:
    """The float16 at byte `at` of blocks [n, bytes], as float32 [n, 1]."""
    return np.ascontiguousarray(block[:, at : at + 2]).view(_F16).astype(np.float32)


def _nibbles(codes: np.ndarray, group: int) -> np.ndarray:
    """4-bit codes of bytes [n, count]: the low halves of each `group` bytes, then their high halves."""
    grouped = codes.reshape(codes.shape[0], -1, group)
    return np.stack([grouped & 15, grouped >> 4], axis=2).reshape(codes.shape[0], -1)


def _floats(dtype: str) -> Callable[[np.ndarray], np.ndarray]:
    return lambda block: np.ascontiguousarray(block).view(dtype).astype(np.float32)


def _bfloat16(block: np.ndarray) -> np.ndarray:
    return (np.ascontiguousarray(block).view("<u2").astype(np.uint32) << 16).view(np.float32)


def _q2_0(block: np.ndarray) -> np.ndarray:
    return (unpacked(block[:, 2:], _Q2).astype(np.float32) - 1) * _half(block, 0)


def _q4_0(block: np.ndarray) -> np.ndarray:
    return (_nibbles(block[:, 2:], 16).astype(np.float32) - 8) * _half(block, 0)


def _q5_0(block: np.ndarray) -> np.ndarray:
    fifth = unpacked(block[:, 2:6], 1) << 4
    return ((_nibbles(block[:, 6:], 16) | fifth).astype(np.float32) - 16) * _half(block, 0)


def _q8_0(block: np.ndarray) -> np.ndarray:
    return block[:, 2:].view(np.int8).astype(np.float32) * _half(block, 0)


def _q5_k(block: np.ndarray) -> np.ndarray:
    """8 sub-blocks of 32 with 6-bit scales and minima, which 12 bytes hold."""
    s = block[:, 4:16]
    low, middle, high = s[:, :4], s[:, 4:8], s[:, 8:]
    scale = np.concatenate([low & 63, (high & 15) | ((low >> 6) << 4)], axis=1)
    minimum = np.concatenate([middle & 63, (high >> 4) | ((middle >> 6) << 4)], axis=1)
    # Bit i of a byte of block[:, 16:48] belongs to sub-block i.
    fifth = ((block[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & 1) << 4
    codes = _nibbles(block[:, 48:], 32).reshape(-1, 8, 32) | fifth
    values = codes.astype(np.float32) * (_half(block, 0) * scale)[:, :, None]
    return (values - (_half(block, 2) * minimum)[:, :, None]).reshape(-1, 256)


def _q6_k(block: np.ndarray) -> np.ndarray:
    """16 sub-blocks of 16 with 8-bit scales; each half of 128 codes has 64 bytes of low and 32 of high bits."""
    low = _nibbles(block[:, :128], 64).reshape(-1, 2, 4, 32)
    high = ((block[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3) << 4
    scale = block[:, 192:208].view(np.int8).astype(np.float32) * _half(block, 208)
    codes = (low | high).astype(np.float32).reshape(-1, 16, 16) - 32
    return (codes * scale[:, :, None]).reshape(-1, 256)


_IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


def _iq4_nl(block: np.ndarray) -> np.ndarray:
    return _IQ4_VALUES[_nibbles(block[:, 2:], 16)] * _half(block, 0)


def _iq4_xs(block: np.ndarray) -> np.ndarray:
    """8 sub-blocks of 32 with 6-bit scales: 4 low bits each in 4 bytes, 2 high bits each in 2."""
    scale = unpacked(block[:, 4:8], _Q4) | (unpacked(block[:, 2:4], _Q2) << 4)
    scale = (scale.astype(np.float32) - 32) * _half(block, 0)
    codes = _nibbles(block[:, 8:], 16).reshape(-1, 8, 32)
    return (_IQ4_VALUES[codes] * scale[:, :, None]).reshape(-1, 256)


class _Format(NamedTuple):
    """Elements and bytes of a block, and its values: float32 [n, elements] of bytes [n, size]."""

    elements: int
    size: int
    values: Callable[[np.ndarray], np.ndarray]


_FORMATS = {
    0: _Format(1, 4, _floats("<f4")),
    1: _Format(1, 2, _floats("<f2")),
    2: _Format(32, 18, _q4_0),
    6: _Format(32, 22, _q5_0),
    8: _Format(32, 34, _q8_0),
    13: _Format(256, 176, _q5_k),
    14: _Format(256, 210, _q6_k),
    20: _Format(32, 18, _iq4_nl),
    23: _Format(256, 136, _iq4_xs),
    30: _Format(1, 2, _bfloat16),
    42: _Format(64, 18, _q2_0),
}
_WITH_GRIDS = {16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 22: "IQ2_S"}
"""Formats whose codes point into grids of hundreds of vectors, which this package does not carry."""


@operator("GatherPacked", domain=MICROSOFT)
def gather_packed(data: np.ndarray, indices: np.ndarray, *, K: int, packed_type: int, output_dtype: int = 16) -> np.ndarray:
    """Rows of a table of packed bytes [rows, bytes], as [..., K] of the element type `output_dtype` (a float type).

    An index that is out of range selects row 0, as in ONNX Runtime.
    """
    require_rank("data", data, 2)
    if packed_type not in _FORMATS:
        name = f" ({_WITH_GRIDS[packed_type]})" if packed_type in _WITH_GRIDS else ""
        raise ValueError(f"packed_type must be one of {sorted(_FORMATS)}, got {packed_type}{name}, which is not supported")
    form = _FORMATS[packed_type]
    if K < 1 or K % form.elements:
        raise ValueError(f"K must be a positive multiple of {form.elements} for packed_type {packed_type}, got {K}")
    width = K // form.elements * form.size
    if data.dtype != np.uint8 or data.shape[1] != width or not data.shape[0]:
        raise ValueError(f"data must be uint8 [rows, {width}] with one row at least, got {data.dtype} of shape {data.shape}")
    if indices.dtype.kind not in "iu":
        raise ValueError(f"indices must be integers, got {indices.dtype}")
    dtype = numpy_dtype(output_dtype)
    if dtype.name not in ("float32", "float16", "bfloat16"):
        raise ValueError(f"output_dtype must be float32, float16 or bfloat16, got {dtype}")
    inside = (indices >= 0) & (indices < data.shape[0])
    rows = data[np.where(inside, indices, 0).astype(np.int64)]
    values = form.values(np.ascontiguousarray(rows.reshape(-1, form.size)))
    with np.errstate(over="ignore"):
        return values.reshape(*indices.shape, K).astype(dtype, copy=False)
