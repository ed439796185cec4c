"""What all elementwise definitions share: element types, IEEE exceptions, rank-0 results."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

Function = Callable[..., np.ndarray]


def is_float(dtype: np.dtype) -> bool:
    """True also for the float types of ml_dtypes, most of which have kind "V"."""
    return dtype.kind == "f" or (dtype.kind == "V" and "float" in dtype.name)


def is_narrow_float(dtype: np.dtype) -> bool:
    """float16, bfloat16 and below: computed in float32 and rounded once at the end."""
    return is_float(dtype) and dtype.itemsize < 4


def is_packable(dtype: np.dtype) -> bool:
    """True for the types of constants that kernels of float32 pack."""
    return dtype == np.float32 or dtype.name in ("float16", "bfloat16")


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


def rounded_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compute narrow floats in float32 and round every float32 output to the type of the first input.

    For fused operators: what they compute on the way is rounded nowhere.
    """

    @functools.wraps(function)
    def definition(x: np.ndarray, *others: np.ndarray | None, **attributes: Any) -> Any:
        if not is_narrow_float(x.dtype):
            return function(x, *others, **attributes)
        outputs = function(widen(x), *(other if other is None else widen(other) for other in others), **attributes)
        if isinstance(outputs, tuple):
            return tuple(narrow(y, x.dtype) for y in outputs)
        return narrow(outputs, x.dtype)

    return definition


def constant(x: np.ndarray, value: float) -> np.ndarray:
    """`value` as a rank-0 array of the element type of `x`, so that numpy never promotes."""
    return np.asarray(value, x.dtype)
