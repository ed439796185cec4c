"""`Mul(Sub(Cast(codes), zero_point), scale)`: the same for opsets whose DequantizeLinear is missing, or knows no axis."""

from __future__ import annotations

import numpy as np

from qruntime.ir import Attribute, AttributeType, HeldCodes, Node, StoredTensor, TypeInfo, Value, constant
from qruntime.ir.formats import INT8, Format
from qruntime.ir.narrow import NarrowArray
from qruntime.passes.stored.dequantize_linear import constant_codes

_FLOAT = 1


def read(node: Node) -> StoredTensor | None:
    if not node.is_op("Mul"):
        return None
    inner, scale = node.input(0), _data(node.input(1))
    if inner is None or inner.producer is None or scale is None or scale.dtype != np.float32 or not np.isfinite(scale).all():
        return None
    zero: np.ndarray | None = None
    cast = inner.producer
    if cast.is_op("Sub"):
        zero, inner = _data(cast.input(1)), cast.input(0)
        if zero is None or zero.dtype != np.float32 or inner is None or inner.producer is None:
            return None
        cast = inner.producer
    found = constant_codes(cast.input(0))
    if not cast.is_op("Cast") or cast.attr("to") != _FLOAT or found is None:
        return None
    form, codes = found
    if not (form is INT8 or isinstance(codes, NarrowArray)) or not form.is_integer or codes.ndim < 2:
        return None
    shape = (1,) * (codes.ndim - scale.ndim) + scale.shape
    if codes.size == 0 or len(shape) > codes.ndim or any(n not in (1, m) for n, m in zip(shape, codes.shape)):
        return None
    if zero is not None and not _is_code(zero, scale, form):
        return None
    dtype = np.int8 if form.is_signed else np.uint8
    zero = np.zeros(shape, dtype) if zero is None else zero.astype(dtype).reshape(shape)
    return StoredTensor(form, HeldCodes(codes), scale.reshape(shape), zero)


def _data(value: Value | None) -> np.ndarray | None:
    return None if value is None else value.data


def _is_code(zero: np.ndarray, scale: np.ndarray, form: Format) -> bool:
    with np.errstate(invalid="ignore"):
        return zero.shape == scale.shape and bool(np.all((zero == np.rint(zero)) & (zero >= form.qmin) & (zero <= form.qmax)))


def write(name: str, stored: StoredTensor, version: int, nodes: list[Node]) -> Value | None:
    scale, zero_point = stored.scale, stored.zero_point
    if stored.format is not INT8 or stored.offset is not None or stored.block or not isinstance(scale, np.ndarray):
        return None
    if isinstance(zero_point, StoredTensor):
        return None
    typ = TypeInfo("tensor", _FLOAT, stored.shape)
    cast = Value(f"{name}_cast", typ)
    to = {"to": Attribute(AttributeType.INT, _FLOAT)}
    nodes.append(Node("Cast", [constant(f"{name}_quantized", stored.unpacked())], [cast], to, version=version))
    centred = cast
    if zero_point is not None and zero_point.any():
        centred = Value(f"{name}_centred", typ)
        zero = zero_point.astype(np.float32)
        nodes.append(Node("Sub", [cast, constant(f"{name}_zero_point", zero)], [centred], version=version))
    output = Value(f"{name}_dequantized", typ)
    factor = (scale.reshape((1,) * stored.ndim) if scale.size == 1 else scale).astype(np.float32, copy=False)
    nodes.append(Node("Mul", [centred, constant(f"{name}_scale", factor)], [output], version=version))
    return output
