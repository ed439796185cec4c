"""`DequantizeLinear(codes, scale, zero_point)`: one scale, one along an axis, or one for every block along it."""

from __future__ import annotations

import numpy as np

from qruntime.ir import Attribute, AttributeType, Node, StoredTensor, TypeInfo, Value, constant
from qruntime.ir.dtypes import onnx_code
from qruntime.ir.formats import FORMATS, FP4, FP8, FP8_E5M2, Format
from qruntime.ir.narrow import NarrowArray
from qruntime.ops.elementwise import is_packable

FORMAT_OF_TYPE: dict[str, Format] = {
    **{name: FORMATS[name] for name in ("int8", "uint8", "int4", "uint4", "int2", "uint2", "int16", "uint16", "int32")},
    "float4_e2m1fn": FP4,
    **{one.name: one for one in (FP8, FP8_E5M2)},
}
"""By the name of the element type that ONNX gives the codes."""


def read(node: Node) -> StoredTensor | None:
    if not node.is_op("DequantizeLinear"):
        return None
    codes, scale, zero = (None if v is None else v.data for v in (node.input(i) for i in range(3)))
    if codes is None or scale is None or (zero is None and node.input(2) is not None):
        return None
    form = FORMAT_OF_TYPE.get(codes.dtype.name)
    if form is None or codes.size == 0 or not is_packable(scale.dtype) or not np.isfinite(scale.astype(np.float32)).all():
        return None
    block, axis = node.attr("block_size", 0), node.attr("axis", 1)
    shape = _scale_shape(codes.shape, scale.shape, axis, block)
    if shape is None or (zero is not None and (zero.size != scale.size or zero.dtype != codes.dtype or not form.is_integer)):
        return None
    if zero is None and form.is_integer:
        zero = np.zeros(shape, codes.dtype) if form.bits >= 8 else np.zeros(shape, np.int8 if form.is_signed else np.uint8)
    elif zero is not None:
        zero = (zero.astype(np.int8 if form.is_signed else np.uint8) if form.bits < 8 else zero).reshape(shape)
    return StoredTensor(
        form, narrowed(codes, form), scale.reshape(shape), zero, block=block, block_axis=axis % codes.ndim if codes.ndim else 0,
        dtype=scale.dtype,
    )  # fmt: skip


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


def write(name: str, stored: StoredTensor, version: int, nodes: list[Node]) -> Value | None:
    """The real numbers of `stored`, made by a node that joins `nodes`; None when the operator of that opset cannot."""
    assert stored.scale is not None
    axes = [i for i, n in enumerate(stored.scale.shape) if n != 1]
    if stored.offset is not None or len(axes) > 1 or version < (13 if axes else 10) or stored.codes.ndim == 0 or stored.block:
        return None
    if not isinstance(stored.codes, np.ndarray) or not stored.format.is_integer:
        return None
    flat = (-1,) if axes else ()
    inputs = [constant(f"{name}_quantized", stored.codes), constant(f"{name}_scale", stored.scale.reshape(flat))]
    if stored.zero_point is not None and stored.zero_point.any():
        inputs.append(constant(f"{name}_zero_point", stored.zero_point.reshape(flat)))
    attributes = {"axis": Attribute(AttributeType.INT, axes[0])} if axes else {}
    output = Value(f"{name}_dequantized", TypeInfo("tensor", onnx_code(stored.scale.dtype), stored.shape))
    nodes.append(Node("DequantizeLinear", inputs, [output], attributes, version=version))
    return output
