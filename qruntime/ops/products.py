"""Products of matrices for definitions, by our own GEMM.

numpy's would be by a BLAS whose sums depend on how many rows come together, and whose threads know no limit of ours.
"""

from __future__ import annotations

import math

import numpy as np

from qruntime import _kernels
from qruntime.ops.elementwise import is_narrow_float, narrow, widen

_NATIVE = (np.dtype(np.float32), np.dtype(np.float64))
_MAX_RANK = 8

_EXACT_TERMS = 256
"""Products of two differences of 8-bit numbers are below 2^16: float32 holds the sum of so many exactly."""


def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """numpy.matmul(a, b), float sums in the order of k: a row's bits depend on nothing but the row and `b`.

    Floats narrower than float32 are multiplied in float32 and rounded once. Runs on as many threads as the run whose
    definition calls it. Raises ValueError for shapes that do not fit.
    """
    if a.dtype != b.dtype:
        wide = np.result_type(a, b)
        a, b = a.astype(wide, copy=False), b.astype(wide, copy=False)
    if is_narrow_float(a.dtype):
        return narrow(matmul(widen(a), widen(b)), a.dtype)
    if a.dtype not in _NATIVE or a.ndim == 0 or b.ndim == 0:
        return np.asarray(np.matmul(a, b))  # integers: loops of numpy's own, exact in any order
    if max(a.ndim, b.ndim) > _MAX_RANK:
        return _flattened(a, b)
    transposed = b.ndim > 1 and not b.flags.c_contiguous and b.swapaxes(-1, -2).flags.c_contiguous
    y = _kernels.matmul(a, b.swapaxes(-1, -2) if transposed else b, transposed)
    return np.asarray(np.matmul(a, b)) if y is None else y  # which says what does not fit


def _flattened(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    flat = [np.broadcast_to(x, (*batch, *x.shape[-2:])).reshape(math.prod(batch), *x.shape[-2:]) for x in (a, b) if x.ndim > 1]
    if len(flat) < 2:
        vector = a if a.ndim == 1 else b
        flat.insert(0 if vector is a else 1, vector)
    y = matmul(*flat)
    return y.reshape(*batch, *y.shape[1:])


def exact_matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The product of integers given as float32, each the difference of two 8-bit numbers, as int32, wrapping."""
    if a.ndim == 0 or b.ndim == 0 or a.shape[-1] != b.shape[-2 if b.ndim > 1 else 0]:
        raise ValueError(f"shapes {a.shape} and {b.shape} cannot be multiplied")
    total = matmul(a[..., :_EXACT_TERMS], _rows(b, 0)).astype(np.int32)
    for k in range(_EXACT_TERMS, a.shape[-1], _EXACT_TERMS):
        total += matmul(a[..., k : k + _EXACT_TERMS], _rows(b, k)).astype(np.int32)
    return total


def _rows(b: np.ndarray, start: int) -> np.ndarray:
    rows = slice(start, start + _EXACT_TERMS)
    return b[rows] if b.ndim == 1 else b[..., rows, :]
