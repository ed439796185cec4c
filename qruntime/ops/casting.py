"""Cast, CastLike and BitCast: every pair of element types."""

from __future__ import annotations

import math

import numpy as np

from qruntime.ir.dtypes import bits, numpy_dtype, onnx_code, type_name
from qruntime.ops.elementwise import is_float
from qruntime.ops.registry import operator

_FLOAT8 = {17: 448.0, 18: 240.0, 19: 57344.0, 20: 57344.0}
"""Largest value of each float8 type, by ONNX code."""
_FLOAT8_E8M0 = 24
_STRING = 8
_SMALL_INTEGERS = {21: (4, False), 22: (4, True), 25: (2, False), 26: (2, True)}
"""Integers below a byte: bits, signed."""


def _is_builtin(dtype: np.dtype) -> bool:
    """False for the types of ml_dtypes."""
    return dtype.isbuiltin == 1


def _format(value: np.floating | np.integer | np.bool_) -> str:
    """Shortest digits that read back as the same number, without a point where none is needed."""
    if value.dtype.kind in "biu":
        return str(int(value))
    real = float(value)
    if not math.isfinite(real):
        return "NaN" if math.isnan(real) else "INF" if real > 0 else "-INF"
    if real == 0 or 1e-5 <= abs(real) < 1e16:
        return np.format_float_positional(value, trim="-")
    return np.format_float_scientific(value, trim="-", exp_digits=2)


def _to_string(x: np.ndarray) -> np.ndarray:
    flat = [_format(v) for v in (x if _is_builtin(x.dtype) else x.astype(np.float32)).reshape(-1)]
    return np.array(flat, object).reshape(x.shape)


def _parse(text: object, dtype: np.dtype) -> int | float:
    text = str(text).strip()
    try:
        if dtype.kind in "iu":
            try:
                return int(text)
            except ValueError:
                return int(float(text))
        return float(text)
    except (ValueError, OverflowError):
        raise ValueError(f"cannot read the string {text!r} as {dtype}") from None


def _from_string(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    parsed = [_parse(v, dtype) for v in x.reshape(-1)]
    if dtype.kind not in "iu":
        return np.array(parsed, np.float64).reshape(x.shape).astype(dtype)
    limits = np.iinfo(dtype)
    for value, text in zip(parsed, x.reshape(-1), strict=True):
        if not limits.min <= value <= limits.max:
            raise ValueError(f"the string {text!r} does not fit {dtype}")
    return np.array(parsed, dtype).reshape(x.shape)


def _to_small_integers(x: np.ndarray, code: int) -> np.ndarray:
    """Higher bits are dropped, as for every fixed-point type."""
    width, signed = _SMALL_INTEGERS[code]
    word = x.astype(np.int64) & ((1 << width) - 1)
    if signed:
        word = np.where(word >= 1 << (width - 1), word - (1 << width), word)
    return word.astype(np.int8).astype(numpy_dtype(code))


def _to_e8m0(x: np.ndarray, saturate: bool, round_mode: str) -> np.ndarray:
    """Powers of two from 2^−127 to 2^127, code 255 for NaN; the sign is dropped."""
    mantissa, exponent = np.frexp(np.abs(x.astype(np.float64)))  # mantissa in [0.5, 1)
    if round_mode == "up":
        raised = mantissa > 0.5
    elif round_mode == "nearest":
        raised = mantissa >= 0.75
    elif round_mode == "down":
        raised = np.zeros_like(mantissa, bool)
    else:
        raise ValueError(f"round_mode must be up, down or nearest, got {round_mode!r}")
    code = exponent.astype(np.int64) - 1 + raised + 127
    code = np.where(mantissa == 0, -1, np.where(np.isinf(mantissa), 255, code))
    code = np.clip(code, 0, 254) if saturate else np.where((code < 0) | (code > 254), 255, code)
    code = np.where(np.isnan(mantissa), 255, code)
    return code.astype(np.uint8).view(numpy_dtype(_FLOAT8_E8M0))


def cast_to(x: np.ndarray, to: int, saturate: bool = True, round_mode: str = "up") -> np.ndarray:
    """`x` in the element type of ONNX code `to`.

    Integers keep their low bits; floats go to integers as in C (out of range is undefined there);
    floats go to float8 with saturation to the largest value unless `saturate` is false.
    """
    dtype = numpy_dtype(to)
    if to == _STRING:
        return x.astype(object) if x.dtype.kind in "OSU" else _to_string(x)
    with np.errstate(all="ignore"):
        if x.dtype.kind in "OSU":
            x = _from_string(x, dtype if _is_builtin(dtype) and dtype.kind in "fiu" else np.dtype(np.float64))
        if x.dtype == dtype:
            return x
        if to in _FLOAT8:
            wide = x if _is_builtin(x.dtype) and x.dtype.kind == "f" else x.astype(np.float32)
            if saturate:
                limit = wide.dtype.type(_FLOAT8[to])
                wide = np.minimum(np.maximum(wide, -limit), limit)
            return np.asarray(wide).astype(dtype)
        if to == _FLOAT8_E8M0:
            return _to_e8m0(x, saturate, round_mode)
        if to in _SMALL_INTEGERS:
            return _to_small_integers(x if _is_builtin(x.dtype) else x.astype(np.float32), to)
        if not _is_builtin(x.dtype):
            x = x.astype(np.float32 if is_float(x.dtype) else np.int8)  # both hold every value
        return x.astype(dtype)


@operator("Cast", since=19)
def cast(x: np.ndarray, *, to: int, saturate: int = 1, round_mode: str = "up") -> np.ndarray:
    return cast_to(x, to, bool(saturate), round_mode)


@operator("Cast", since=6)
def cast_6(x: np.ndarray, *, to: int) -> np.ndarray:
    return cast_to(x, to)


@operator("Cast", since=1)
def cast_1(x: np.ndarray, *, to: str) -> np.ndarray:
    """`to` is the name of the type in capitals."""
    names = {"FLOAT": "float32", "DOUBLE": "float64"}
    return cast_to(x, onnx_code(names.get(to, to.lower()) if to != "STRING" else object))


@operator("CastLike", since=15)
def cast_like(x: np.ndarray, target: np.ndarray, *, saturate: int = 1, round_mode: str = "up") -> np.ndarray:
    return cast_to(x, onnx_code(target.dtype), bool(saturate), round_mode)


def _to_words(x: np.ndarray, code: int) -> np.ndarray:
    if bits(code) >= 8:
        return x
    return x.view(np.uint8) & ((1 << bits(code)) - 1)


@operator("BitCast", since=26)
def bit_cast(x: np.ndarray, *, to: int) -> np.ndarray:
    code = onnx_code(x.dtype)
    dtype = numpy_dtype(to)
    if _STRING in (code, to) or bits(code) != bits(to):
        raise ValueError(f"types must have as many bits, got {type_name(code)} to {type_name(to)}")
    words = _to_words(x, code)
    if to in _SMALL_INTEGERS:
        return _to_small_integers(words, to)
    return np.asarray(words).view(dtype)
