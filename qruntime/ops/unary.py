"""Functions of one tensor, element by element."""

from __future__ import annotations

import numpy as np

from qruntime.ops.elementwise import Function, is_float, narrow, pointwise
from qruntime.ops.error_function import erf
from qruntime.ops.registry import operator


def _erf(x: np.ndarray) -> np.ndarray:
    return erf(x.astype(np.float64))


# name → (first opset, function); later opsets only add element types
_FUNCTIONS: dict[str, tuple[int, Function]] = {
    "Abs": (1, np.abs),
    "Acos": (7, np.arccos),
    "Acosh": (9, np.arccosh),
    "Asin": (7, np.arcsin),
    "Asinh": (9, np.arcsinh),
    "Atan": (7, np.arctan),
    "Atanh": (9, np.arctanh),
    "Ceil": (1, np.ceil),
    "Cos": (7, np.cos),
    "Cosh": (9, np.cosh),
    "Erf": (9, _erf),
    "Exp": (1, np.exp),
    "Floor": (1, np.floor),
    "Log": (1, np.log),
    "Neg": (1, np.negative),
    "Reciprocal": (1, lambda x: x.dtype.type(1) / x),
    "Round": (11, np.rint),  # half to even
    "Sign": (9, np.sign),
    "Sin": (7, np.sin),
    "Sinh": (9, np.sinh),
    "Sqrt": (1, np.sqrt),
    "Tan": (7, np.tan),
    "Tanh": (1, np.tanh),
}


def _one_input(function: Function) -> Function:
    compute = pointwise(lambda x: function(x))

    def definition(x: np.ndarray) -> np.ndarray:
        return compute(x)

    return definition


for _name, (_since, _function) in _FUNCTIONS.items():
    operator(_name, since=_since)(_one_input(_function))


@operator("Not", since=1)
def logical_not(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.logical_not(x))


@operator("BitwiseNot", since=18)
def bitwise_not(x: np.ndarray) -> np.ndarray:
    return narrow(np.bitwise_not(x), x.dtype)


@operator("IsNaN", since=9)
def is_nan(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.isnan(x)) if is_float(x.dtype) else np.zeros(x.shape, bool)


@operator("IsInf", since=10)
def is_inf(x: np.ndarray, *, detect_negative: int = 1, detect_positive: int = 1) -> np.ndarray:
    if not is_float(x.dtype):
        return np.zeros(x.shape, bool)
    wanted = np.isinf(x)
    if not detect_negative:
        wanted = wanted & ~np.signbit(x)
    if not detect_positive:
        wanted = wanted & np.signbit(x)
    return np.asarray(wanted, bool)
