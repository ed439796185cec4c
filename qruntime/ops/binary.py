"""Functions of two or more tensors, element by element, with numpy's broadcasting."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from qruntime.ops.activations import swish_value
from qruntime.ops.checks import same_dtype, scalar
from qruntime.ops.elementwise import Function, is_float, is_narrow_float, narrow, widen
from qruntime.ops.registry import operator


def _align_legacy(a: np.ndarray, b: np.ndarray, axis: int | None, broadcast: int) -> np.ndarray:
    """`b` shaped for numpy's broadcasting from opset 1–6's: its dimensions start at `axis` of `a`."""
    if not broadcast:
        if a.shape != b.shape:
            raise ValueError(f"shapes must be equal without broadcast=1, got {a.shape} and {b.shape}")
        return b
    if axis is None:
        return b
    if axis < 0:
        axis += a.ndim
    trailing = a.ndim - axis - b.ndim
    if axis < 0 or trailing < 0:
        raise ValueError(f"axis {axis} leaves no room for shape {b.shape} in {a.shape}")
    return b.reshape(b.shape + (1,) * trailing)


def _register(name: str, since: int, function: Function) -> None:
    """Operators that are older than numpy's broadcasting get their first form too."""
    operator(name, since=since)(function)
    if since == 7:

        @operator(name, since=1)
        def legacy_definition(a: np.ndarray, b: np.ndarray, *, axis: int | None = None, broadcast: int = 0) -> np.ndarray:
            return function(a, _align_legacy(a, b, axis, broadcast))


def _arithmetic(function: Function) -> Function:
    def compute(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        same_dtype(a, b)
        with np.errstate(all="ignore"):
            return narrow(function(a, b), a.dtype)

    return compute


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Quotient; of integers rounded toward zero, and 0 where the divisor is 0."""
    if a.dtype.kind not in "iu":
        return np.true_divide(a, b)
    quotient = np.floor_divide(a, b)
    if a.dtype.kind == "u":
        return quotient
    inexact_negative = (quotient * b != a) & ((a < 0) != (b < 0)) & (b != 0)
    return quotient + inexact_negative


def _predicate(function: Callable[..., np.ndarray]) -> Function:
    def compute(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        same_dtype(a, b)
        with np.errstate(invalid="ignore"):
            return np.asarray(function(a, b)).astype(bool, copy=False)

    return compute


def _power(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x to the power y in the element type of x; negative powers of integers are truncated."""
    with np.errstate(all="ignore"):
        integers = x.dtype.kind in "iu" and y.dtype.kind in "iu"
        if integers and not (y.dtype.kind == "i" and np.any(y < 0)):
            return narrow(np.power(x, y.astype(x.dtype, copy=False)), x.dtype)
        if x.dtype == y.dtype and not integers:
            return narrow(np.power(widen(x), widen(y)), x.dtype)
        return narrow(np.power(x.astype(np.float64), y.astype(np.float64)), x.dtype)


# name → (opset from which shapes broadcast as in numpy, function)
_FUNCTIONS: dict[str, tuple[int, Function]] = {
    "Add": (7, _arithmetic(np.add)),
    "And": (7, _predicate(np.logical_and)),
    "BitwiseAnd": (18, _arithmetic(np.bitwise_and)),
    "BitwiseOr": (18, _arithmetic(np.bitwise_or)),
    "BitwiseXor": (18, _arithmetic(np.bitwise_xor)),
    "Div": (7, _arithmetic(_divide)),
    "Equal": (7, _predicate(np.equal)),
    "Greater": (7, _predicate(np.greater)),
    "GreaterOrEqual": (12, _predicate(np.greater_equal)),
    "Less": (7, _predicate(np.less)),
    "LessOrEqual": (12, _predicate(np.less_equal)),
    "Mul": (7, _arithmetic(np.multiply)),
    "Or": (7, _predicate(np.logical_or)),
    "Pow": (7, _power),
    "Sub": (7, _arithmetic(np.subtract)),
    "Xor": (7, _predicate(np.logical_xor)),
}

for _name, (_since, _function) in _FUNCTIONS.items():
    _register(_name, _since, _function)


@operator("Mod", since=10)
def mod(a: np.ndarray, b: np.ndarray, *, fmod: int = 0) -> np.ndarray:
    """Remainder with the sign of `b`, or of `a` with fmod=1; 0 for an integer divisor 0."""
    same_dtype(a, b)
    with np.errstate(all="ignore"):
        return narrow((np.fmod if fmod else np.mod)(widen(a), widen(b)), a.dtype)


@operator("BitShift", since=11)
def bit_shift(x: np.ndarray, y: np.ndarray, *, direction: str) -> np.ndarray:
    """Shift by any amount: what leaves the word is lost, the sign fills from the left."""
    same_dtype(x, y)
    if direction not in ("LEFT", "RIGHT"):
        raise ValueError(f"direction must be LEFT or RIGHT, got {direction!r}")
    bits = x.dtype.itemsize * 8
    outside = (y < 0) | (y >= bits)
    amount = np.where(outside, bits - 1, y).astype(x.dtype)
    if direction == "RIGHT":
        shifted = np.right_shift(x, amount)  # by bits − 1 at most, which leaves copies of the sign
        return narrow(shifted if x.dtype.kind == "i" else np.where(outside, x.dtype.type(0), shifted), x.dtype)
    return narrow(np.where(outside, x.dtype.type(0), np.left_shift(x, amount)), x.dtype)


@operator("PRelu", since=7)
def prelu(x: np.ndarray, slope: np.ndarray) -> np.ndarray:
    same_dtype(x, slope)
    with np.errstate(all="ignore"):
        return narrow(np.where(x < 0, x * slope, x), x.dtype)


@operator("PRelu", since=1)
def prelu_channels(x: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """One slope, or one for every channel (axis 1)."""
    if slope.size > 1 and slope.ndim == 1 and x.ndim > 2 and slope.size == x.shape[1]:
        slope = slope.reshape(-1, *(1,) * (x.ndim - 2))
    return prelu(x, slope)


@operator("SwiGLU", since=28)
def swiglu(a: np.ndarray, b: np.ndarray, *, alpha: float = 1.0) -> np.ndarray:
    same_dtype(a, b)
    if a.shape != b.shape:
        raise ValueError(f"gate and value must have one shape, got {a.shape} and {b.shape}")
    with np.errstate(all="ignore"):
        return narrow(swish_value(widen(a), alpha) * widen(b), a.dtype)


@operator("Where", since=9)
def where(condition: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    same_dtype(x, y)
    return narrow(np.where(condition.astype(bool, copy=False), x, y), x.dtype)


def _variadic(function: Function) -> Function:
    def definition(*inputs: np.ndarray) -> np.ndarray:
        if not inputs:
            raise ValueError("at least one input is needed, got none")
        same_dtype(*inputs)
        with np.errstate(all="ignore"):
            return narrow(functools.reduce(function, map(widen, inputs)), inputs[0].dtype)

    return definition


# maximum and minimum let NaN through
operator("Max", since=1)(_variadic(np.maximum))
operator("Min", since=1)(_variadic(np.minimum))
operator("Sum", since=1)(_variadic(np.add))


@operator("Mean", since=1)
def mean(*inputs: np.ndarray) -> np.ndarray:
    if not inputs:
        raise ValueError("at least one input is needed, got none")
    same_dtype(*inputs)
    with np.errstate(all="ignore"):
        total = functools.reduce(np.add, map(widen, inputs))
        return narrow(total / np.asarray(len(inputs), total.dtype), inputs[0].dtype)


def _clip(x: np.ndarray, low: np.ndarray | None, high: np.ndarray | None) -> np.ndarray:
    if low is not None:
        x = np.maximum(x, low)
    if high is not None:
        x = np.minimum(x, high)
    return np.asarray(x)


@operator("Clip", since=11)
def clip(x: np.ndarray, low: np.ndarray | None = None, high: np.ndarray | None = None) -> np.ndarray:
    """Bounds are scalars; `high` wins where low > high; NaN stays."""
    bounds = [None if b is None else scalar(b, n) for b, n in ((low, "min"), (high, "max"))]
    same_dtype(x, *(b for b in bounds if b is not None))
    return narrow(_clip(x, *bounds), x.dtype)


@operator("Clip", since=1)
def clip_attributes(x: np.ndarray, *, min: float = -3.4028234663852886e38, max: float = 3.4028234663852886e38) -> np.ndarray:
    if not is_float(x.dtype):
        raise ValueError(f"Clip before opset 11 takes floats, got {x.dtype}")
    kind = np.float32 if is_narrow_float(x.dtype) else x.dtype
    return narrow(_clip(widen(x), np.asarray(min, kind), np.asarray(max, kind)), x.dtype)
