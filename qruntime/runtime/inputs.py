"""What users feed: arrays that fit the declared inputs, made from anything numpy can view."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np

from qruntime import _kernels
from qruntime.errors import InputError
from qruntime.ir import Value
from qruntime.ir.dtypes import numpy_dtype


def fixed_shape(value: Value) -> tuple[int, ...] | None:
    """The declared dimensions, -1 where any size will do; None when the rank is unknown."""
    if value.type is None or value.type.shape is None or value.type.kind != "tensor":
        return None
    return tuple(d if isinstance(d, int) and d >= 0 else -1 for d in value.type.shape)


def convert_input(declared: Value, value: Any) -> Any:
    """`value` as the executor takes it for the input `declared`; InputError says what does not fit."""
    name, typ = declared.name, declared.type
    if typ is not None and typ.kind == "optional" and typ.elem is not None:
        typ = typ.elem if value is not None else None
    if typ is None or typ.kind != "tensor" or typ.dtype == 0:
        if typ is None or typ.kind == "tensor":
            return value if value is None or isinstance(value, list) else _as_array(name, value)
        if typ.kind == "sequence":
            if not isinstance(value, (list, tuple)):
                raise InputError(f"input {name!r}: needs {typ}, got {_kernels.shape_text(value)}; pass a list")
            return [v if isinstance(v, (list, tuple)) else _as_array(name, v) for v in value]
        return value
    wanted = numpy_dtype(typ.dtype)
    array = _as_array(name, value, wanted)
    if wanted.kind == "O":
        if array.dtype.kind not in "OSUT":
            raise InputError(f"input {name!r}: needs strings, got {array.dtype}")
        array = array.astype(object)
    elif array.dtype != wanted:
        raise InputError(f"input {name!r}: needs {typ}, got {_kernels.shape_text(array)}; convert it with .astype(np.{wanted.name})")
    if typ.shape is not None:
        fits = array.ndim == len(typ.shape) and all(not isinstance(d, int) or d < 0 or d == n for d, n in zip(typ.shape, array.shape))
        if not fits:
            raise InputError(f"input {name!r}: needs {typ}, got {_kernels.shape_text(array)}")
    return array


def _as_array(name: str, value: Any, wanted: np.dtype | None = None) -> np.ndarray:
    """A view of `value` where numpy can make one; Python numbers and lists take the wanted element type."""
    if isinstance(value, (np.ndarray, np.generic)):
        array = np.asarray(value)
        return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    if value is None:
        raise InputError(f"input {name!r}: got None, needs an array")
    try:
        return _converted(value, wanted)
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # it is the code of `value` that runs: a tensor that needs its gradient, a closed file
        what = "an array" if wanted is None else f"an array of {wanted}"
        raise InputError(f"input {name!r}: a {type(value).__name__} that cannot be viewed as {what}: {error}") from error


def _converted(value: Any, wanted: np.dtype | None) -> np.ndarray:
    if hasattr(value, "__dlpack__") and not hasattr(value, "__array_interface__"):
        with contextlib.suppress(TypeError, ValueError, RuntimeError, BufferError):
            return np.from_dlpack(value)
    array = np.asarray(value)
    is_plain = isinstance(value, (bool, int, float, complex, str, list, tuple))
    if is_plain and wanted is not None and wanted.kind != "O" and array.dtype != wanted:
        is_number = array.dtype.kind in "iu" and wanted.kind in "iufV"
        if array.size and not is_number and not np.can_cast(array.dtype, wanted, "same_kind"):
            return array
        return np.asarray(value, dtype=wanted)
    return array
