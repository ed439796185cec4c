"""What all elementwise definitions share: element types, IEEE exceptions, rank-0 results."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

Function = Callable[..., np.ndarray]


def is_float(dtype: np.dtype) -> bool:
    """True also for the float types of ml_dtypes, most of which have kind "V"."""
    return dtype.kind == "f" or (dtype.kind == "V" and "float" in dtype.name)


def is_narrow_float(dtype: np.dtype) -> bool:
    """float16, bfloat16 and below: computed in float32 and rounded once at the end."""
    return is_float(dtype) and dtype.itemsize < 4


def widen(x: np.ndarray) -> np.ndarray:
    """`x`, in float32 if its float type is narrower."""
    return x.astype(np.float32) if is_narrow_float(x.dtype) else x


def narrow(y: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """`y` as an array (numpy turns rank-0 results into scalars) of element type `dtype`."""
    return np.asarray(y).astype(dtype, copy=False)


def pointwise(function: Function) -> Function:
    """Compute narrow floats in float32; give back the element type of the first input; no warnings.

    All tensors of a call must have the element type of the first.
    """

    @functools.wraps(function)
    def definition(x: np.ndarray, *others: np.ndarray, **attributes: float) -> np.ndarray:
        with np.errstate(all="ignore"):
            return narrow(function(widen(x), *map(widen, others), **attributes), x.dtype)

    return definition


def constant(x: np.ndarray, value: float) -> np.ndarray:
    """`value` as a rank-0 array of the element type of `x`, so that numpy never promotes."""
    return np.asarray(value, x.dtype)
