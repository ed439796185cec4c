"""8-bit codes with their scale and zero point, as static quantization has them in a graph."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from qruntime.ir import Graph, Node, StoredTensor, Value, constant
from qruntime.ir.dtypes import numpy_dtype, onnx_code
from qruntime.ir.formats import INT8, UINT8
from qruntime.ops.contrib.domain import MICROSOFT
from qruntime.ops.elementwise import widen

_UINT8, _INT8 = 2, 3
"""Codes of ONNX element types."""


_TELLS_TYPE = {
    "CodeTable": 1, "QGemm": 8, "QLinearAdd": 7, "QLinearAveragePool": 4, "QLinearConcat": 1, "QLinearConv": 7,
    "QLinearGlobalAveragePool": 4, "QLinearLeakyRelu": 4, "QLinearMatMul": 7, "QLinearMul": 7, "QLinearSigmoid": 4,
    "QLinearSoftmax": 4, "QuantizeLinear": 2,
}  # fmt: skip
"""The input, a zero point or a table, that has the type of the result."""


class Scale(NamedTuple):
    """real = (code − zero_point) · scale, one of each for a whole tensor: constants float32 and uint8 or int8."""

    scale: Value
    zero_point: Value

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Scale and zero point, of rank 0."""
        assert self.scale.data is not None
        assert self.zero_point.data is not None
        return self.scale.data.reshape(()), self.zero_point.data.reshape(())

    @property
    def dtype(self) -> np.dtype:
        return self.arrays[1].dtype

    def same_as(self, other: Scale) -> bool:
        return self.dtype == other.dtype and all(a == b for a, b in zip(self.arrays, other.arrays, strict=True))


class Codes(NamedTuple):
    value: Value
    scale: Scale


def scale_of(scale: Value | None, zero_point: Value | None, default: int) -> Scale | None:
    """Constants of a whole tensor that make sense: a finite scale above 0. `default` is the type of an absent zero point."""
    if scale is None or scale.data is None or scale.data.dtype != np.float32 or scale.data.size != 1:
        return None
    if not (np.isfinite(scale.data).all() and scale.data.reshape(()) > 0):
        return None
    if zero_point is None:
        if default not in (_UINT8, _INT8):
            return None
        return Scale(scale, constant(f"{scale.name}/zero_point", np.zeros((), numpy_dtype(default))))
    if zero_point.data is None or zero_point.data.size != 1 or zero_point.data.dtype not in (np.uint8, np.int8):
        return None
    return Scale(scale, zero_point)


def is_quantize(node: Node) -> bool:
    return node.is_op("QuantizeLinear") or node.is_op("QuantizeLinear", domain=MICROSOFT)


def is_dequantize(node: Node) -> bool:
    return node.is_op("DequantizeLinear") or node.is_op("DequantizeLinear", domain=MICROSOFT)


def dequantized_codes(value: Value | None) -> Codes | None:
    """The codes of which `value` is the dequantization to float32, with one scale; constants too."""
    if value is not None and value.stored is not None:
        return _constant_codes(value.name, value.stored)
    node = None if value is None else value.producer
    if node is None or not is_dequantize(node) or node.attr("block_size", 0) or node.attr("output_dtype", 0) not in (0, 1):
        return None
    codes = node.input(0)
    if codes is None:
        return None
    scale = scale_of(node.input(1), node.input(2), element_type(codes))
    return None if scale is None else Codes(codes, scale)


def _constant_codes(name: str, stored: StoredTensor) -> Codes | None:
    if stored.format not in (INT8, UINT8) or not stored.has_one_scale or stored.offset is not None or stored.dtype != np.float32:
        return None
    if not stored.is_plain:
        return None
    assert isinstance(stored.scale, np.ndarray) and not isinstance(stored.zero_point, StoredTensor)
    codes = stored.unpacked()
    zero = np.zeros((), codes.dtype) if stored.zero_point is None else stored.zero_point.reshape(())
    parameters = constant(f"{name}/scale", widen(stored.scale.reshape(()))), constant(f"{name}/zero_point", zero)
    scale = scale_of(*parameters, 0)
    return None if scale is None else Codes(constant(f"{name}/codes", codes), scale)


def element_type(value: Value) -> int:
    """The ONNX element type of `value`, 0 where it is not known."""
    if value.data is not None:
        return {np.dtype(np.uint8): _UINT8, np.dtype(np.int8): _INT8}.get(value.data.dtype, 0)
    if value.type is not None and value.type.dtype:
        return value.type.dtype
    node = value.producer
    if node is None:
        return 0
    told_by = node.input(_TELLS_TYPE[node.op_type]) if node.op_type in _TELLS_TYPE else None
    if told_by is not None and told_by.data is not None:
        return onnx_code(told_by.data.dtype)
    return node.attr("output_dtype", 0) or _UINT8 if is_quantize(node) else 0


def quantization_of(node: Node) -> Scale | None:
    """The scale to which a QuantizeLinear quantizes a whole tensor of float32."""
    if not is_quantize(node) or node.attr("block_size", 0) or node.attr("precision", 0) not in (0, 1):
        return None
    scale = scale_of(node.input(1), node.input(2), node.attr("output_dtype", 0) or _UINT8)
    if scale is None or (node.attr("output_dtype", 0) and numpy_dtype(node.attr("output_dtype")) != scale.dtype):
        return None
    return scale


def quantizers(graph: Graph, value: Value) -> tuple[list[Node], Scale] | None:
    """The nodes of `graph` that read `value`, when all of them quantize it to one scale."""
    readers = list(dict.fromkeys(user for user, _ in value.uses))
    if value.output_of or not readers or any(reader.graph is not graph for reader in readers):
        return None
    found: Scale | None = None
    for reader in readers:
        scale = quantization_of(reader) if reader.input(0) is value else None
        if scale is None or (found is not None and not found.same_as(scale)):
            return None
        found = scale
    assert found is not None
    return readers, found


def all_codes(dtype: np.dtype) -> np.ndarray:
    """Every code of an 8-bit type, in the order of their bytes."""
    return np.arange(256, dtype=np.uint8).view(dtype)
