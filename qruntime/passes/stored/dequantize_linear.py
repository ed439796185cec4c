"""`DequantizeLinear(codes, scale, zero_point)`: one scale, one along an axis, or one for every block along it."""

from __future__ import annotations

import numpy as np

from qruntime.ir import HeldCodes, Node, StoredTensor, TypeInfo, Value, constant, stored_constant
from qruntime.ir.dtypes import onnx_code
from qruntime.ir.formats import FORMATS, FP4, FP8, FP8_E5M2, Format
from qruntime.ir.narrow import NarrowArray
from qruntime.ir.stored import held
from qruntime.ops.elementwise import is_packable
from qruntime.passes.rewriting import as_attribute

_FLOAT = 1

FORMAT_OF_TYPE: dict[str, Format] = {
    **{name: FORMATS[name] for name in ("int8", "uint8", "int4", "uint4", "int2", "uint2", "int16", "uint16", "int32")},
    "float4_e2m1fn": FP4,
    **{one.name: one for one in (FP8, FP8_E5M2)},
}
"""By the name of the element type that ONNX gives the codes."""


def read(node: Node) -> StoredTensor | None:
    zero_value, scales, found = node.input(2), _constant_scale(node.input(1)), constant_codes(node.input(0))
    if not node.is_op("DequantizeLinear") or found is None or scales is None:
        return None
    (form, codes), (scale, dtype) = found, scales
    if codes.size == 0 or not is_packable(scale.dtype) or not np.isfinite(scale.astype(np.float32)).all():
        return None
    block, axis = node.attr("block_size", 0), node.attr("axis", 1)
    shape = _scale_shape(codes.shape, scale.shape, axis, block)
    if shape is None:
        return None
    zero = None
    if zero_value is not None:
        of_type = constant_codes(zero_value)
        if of_type is None or of_type[0] is not form or of_type[1].size != scale.size:
            return None
        zero = of_type[1].unpacked() if isinstance(of_type[1], NarrowArray) else of_type[1]
        if not form.is_integer and zero.any():
            return None
    if not form.is_integer:
        zero = None
    elif zero is None:
        zero = np.zeros(shape, codes.dtype if isinstance(codes, np.ndarray) else np.int8 if form.is_signed else np.uint8)
    return StoredTensor(
        form, HeldCodes(codes), scale.reshape(shape), None if zero is None else zero.reshape(shape), block=block,
        block_axis=axis % codes.ndim if codes.ndim else 0, dtype=dtype,
    )  # fmt: skip


def _constant_scale(value: Value | None) -> tuple[np.ndarray, np.dtype] | None:
    """Scales as they are stored, and the type that they have there: of float16 they may be widened first."""
    if value is None:
        return None
    if value.data is not None:
        return value.data, value.data.dtype
    cast = value.producer
    source = cast.input(0) if cast is not None and cast.is_op("Cast") and cast.attr("to") == _FLOAT else None
    if source is None or source.data is None or source.data.dtype != np.float16:
        return None
    return source.data, np.dtype(np.float32)


def constant_codes(value: Value | None) -> tuple[Format, np.ndarray | NarrowArray] | None:
    """The codes of a constant and their format; None of what is none."""
    if value is None or not value.is_constant:
        return None
    if value.stored is not None:
        return (value.stored.format, value.stored.codes) if value.stored.is_bare else None
    assert value.data is not None
    form = FORMAT_OF_TYPE.get(value.data.dtype.name)
    return None if form is None else (form, narrowed(value.data, form))


def narrowed(codes: np.ndarray, form: Format) -> np.ndarray | NarrowArray:
    """Codes as a `StoredTensor` of that format holds them."""
    if form.bits >= 8:
        return codes if form.is_integer else codes.view(np.uint8)
    return NarrowArray.of(codes.view(np.int8 if form.is_signed else np.uint8), form.bits)


def _scale_shape(shape: tuple[int, ...], scale: tuple[int, ...], axis: int, block: int) -> tuple[int, ...] | None:
    """The shape of scales with the rank of the codes; None when they do not fit."""
    rank = len(shape)
    if not isinstance(axis, int) or not isinstance(block, int) or block < 0:
        return None
    if (block or len(scale) == 1) and not -rank <= axis < max(rank, 1):
        return None
    if block:
        expected = list(shape)
        expected[axis] = -(-shape[axis] // block)
        return scale if scale == tuple(expected) else None
    if scale in ((), (1,)):
        return (1,) * rank
    if len(scale) != 1 or scale[0] != shape[axis]:
        return None
    return tuple(scale[0] if i == axis % rank else 1 for i in range(rank))


_SINCE = {
    **dict.fromkeys(("int8", "uint8", "int32"), 10), **dict.fromkeys(("float8_e4m3fn", "float8_e5m2"), 19),
    **dict.fromkeys(("int4", "uint4", "int16", "uint16"), 21), "float4_e2m1fn": 23, **dict.fromkeys(("int2", "uint2"), 25),
}  # fmt: skip
_WITH_AXIS, _WITH_BLOCKS = 13, 21
"""The first opset whose DequantizeLinear takes codes of a type, scales along an axis, and of blocks."""


def write(name: str, stored: StoredTensor, version: int, nodes: list[Node]) -> Value | None:
    """The real numbers of `stored`, made by a node that joins `nodes`; None when the operator of that opset cannot."""
    form, scale, zero_point = stored.format, stored.scale, stored.zero_point
    if not isinstance(scale, np.ndarray) or isinstance(zero_point, StoredTensor):
        return None
    axes = [i for i, n in enumerate(scale.shape) if n != 1]
    attributes = {"axis": axes[0]} if axes else {}
    if stored.block:
        attributes = {"axis": stored.block_axis, "block_size": stored.block}
        if scale.shape != _scale_shape(stored.shape, scale.shape, stored.block_axis, stored.block):
            return None
    elif len(axes) > 1:
        return None
    needed = max(_SINCE.get(form.name, version + 1), _WITH_BLOCKS if stored.block else _WITH_AXIS if axes else 0)
    is_whole = zero_point is None or zero_point.dtype.kind in "iu"
    if version < needed or not is_whole or stored.offset is not None or stored.ndim == 0 or not _has_type(scale, stored.dtype):
        return None
    shape = scale.shape if stored.block else (-1,) if axes else ()
    scales = constant(f"{name}_scale", scale.reshape(shape))
    if scale.dtype != stored.dtype:
        narrow, scales = scales, Value(f"{name}_scale_widened", TypeInfo("tensor", _FLOAT, scales.shape))
        nodes.append(Node("Cast", [narrow], [scales], {"to": as_attribute(_FLOAT)}, version=version))
    inputs: list[Value | None] = [_constant(f"{name}_quantized", form, stored.codes), scales]
    if zero_point is not None and zero_point.any():
        inputs.append(_constant(f"{name}_zero_point", form, held(zero_point.reshape(shape), form)))
    output = Value(f"{name}_dequantized", TypeInfo("tensor", onnx_code(stored.dtype), stored.shape))
    made = {key: as_attribute(value) for key, value in attributes.items()}
    nodes.append(Node("DequantizeLinear", inputs, [output], made, version=version))
    return output


def _has_type(scale: np.ndarray, dtype: np.dtype) -> bool:
    """Whether scales are of the type of the numbers, or are once they are widened."""
    return scale.dtype == dtype or (scale.dtype == np.float16 and dtype == np.float32)


def _constant(name: str, form: Format, codes: np.ndarray | NarrowArray) -> Value:
    """Codes as a constant of their element type."""
    if isinstance(codes, np.ndarray) and form.is_integer:
        return constant(name, codes)
    return stored_constant(name, StoredTensor(form, HeldCodes(codes)))
