"""Linear layers of lowered graphs (domain qruntime): x · W + bias, addend, activation, residual, in that order."""

from __future__ import annotations

import builtins
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from qruntime import _kernels
from qruntime.ir import Node, StoredTensor, Value
from qruntime.ir.formats import INT8, Format
from qruntime.ir.stored import numbers
from qruntime.ops import engines
from qruntime.ops.elementwise import narrow, widen
from qruntime.ops.epilogue import activate, activation_code, activation_of
from qruntime.ops.low_bit_weights import pack_nbits, unpack_nbits
from qruntime.ops.products import matmul
from qruntime.ops.registry import NativeCall, Unpack, operator


def _check_last_dimension(x: np.ndarray, weight: np.ndarray | StoredTensor) -> None:
    if x.ndim == 0 or x.shape[-1] != weight.shape[0]:
        raise ValueError(
            f"the weight [{weight.shape[0]}, {weight.shape[1]}] needs an input whose last dimension is {weight.shape[0]}, "
            f"got {_kernels.shape_text(x)}"
        )


def _finish(
    y: np.ndarray,
    bias: np.ndarray | None,
    residual: np.ndarray | None,
    activation: str,
    parameters: Sequence[float],
    dtype: np.dtype,
) -> np.ndarray:
    """The epilogue on float32 (or wider) sums, rounded to `dtype` at its end."""
    if bias is not None:
        y = y + widen(bias)
    y = activate(y, activation, parameters)
    return narrow(y if residual is None else y + widen(residual), dtype)


@operator("Linear", domain="qruntime")
def linear(
    x: np.ndarray,
    weight: np.ndarray | StoredTensor,
    bias: np.ndarray | None,
    residual: np.ndarray | None = None,
    addend: np.ndarray | None = None,
    *,
    activation: str = "none",
    parameters: Sequence[float] = (),
) -> np.ndarray:
    """x [..., K], weight [K, N], bias [N] → [..., N]; floats narrower than float32 are rounded once, at the end.

    Of a stored weight the numbers count that it decodes to; its kernels never make all of them at once.
    """
    _check_last_dimension(x, weight)
    numbers = weight.decoded() if isinstance(weight, StoredTensor) else weight
    y = matmul(widen(x), widen(numbers))
    if bias is not None:
        y = y + widen(bias)
    return _finish(y, addend, residual, activation, parameters, x.dtype)


@linear.native
def _linear(node: Node) -> NativeCall | None:
    weight = node.input(1)
    code, floats = activation_of(node)
    held = None if weight is None else weight.stored
    packed: _kernels.Packed | None
    if held is None:
        packed = _kernels.PackedF32(_data(weight), _data(node.input(2)))
    else:
        reads_float8 = held.outliers is None and _is_float8(node.input(0))
        packed = pack_nbits(held, _data(node.input(2)), "float8" if reads_float8 else "float")
    ints = [code, _kernels.RANGE["per_token"]]  # which weights for float activations do not look at
    unpack = {} if held is None else {1: _codes_in(held, 0)}
    return None if packed is None else NativeCall("linear", ints=ints, floats=floats, packed=[packed], inputs=[0, 3, 4], unpack=unpack)


def _is_float8(x: Value | None) -> bool:
    """Whether the rows of `x` are numbers of E4M3 times one scale each."""
    return x is not None and x.producer is not None and x.producer.is_op("RoundToFloat8", domain="qruntime")


def quantize_rows(x: np.ndarray, bits: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes 0 … 2^bits − 1 as uint8 [M, K], scale float32 [M, 1] and zero point [M, 1] of `x` float32 [M, K], as
    kernels/codes_q8.h says."""
    most = (1 << bits) - 1
    low = np.minimum(x.min(axis=1, keepdims=True, initial=0), 0)
    high = np.maximum(x.max(axis=1, keepdims=True, initial=0), 0)
    scale = ((high.astype(np.float64) - low.astype(np.float64)) / most).astype(np.float32)
    scale = np.where(scale == 0, np.float32(1), np.maximum(scale, np.finfo(np.float32).tiny))
    with np.errstate(invalid="ignore"):
        zero_point = np.nan_to_num(np.clip(np.rint(-low / scale), 0, most))
        codes = np.rint(x * (np.float32(1) / scale)) + zero_point
    return np.nan_to_num(np.clip(codes, 0, most)).astype(np.uint8), scale, zero_point.astype(np.int32)


@operator("DynamicQuantizedLinear", domain="qruntime")
def dynamic_quantized_linear(
    x: np.ndarray,
    weight: StoredTensor,
    bias: np.ndarray | None,
    residual: np.ndarray | None = None,
    *,
    activation: str = "none",
    parameters: Sequence[float] = (),
    range: str = "per_token",
    bits: int = 8,
    scale: float = 1.0,
    zero_point: int = 0,
    engine: str = "qruntime",
) -> np.ndarray:
    """x [..., K] float32 or narrower, weight [K, N] of integers with one scale, one per column or one per group → [..., N] of that type.

    Each row of x (or the whole of it) is quantized to `bits` bits from its own range; sums are exact integers. With the `range`
    static, x holds what codes of `scale` and `zero_point` stand for, as RoundToCodes makes it.
    Another `engine` quantizes and rounds as qruntime/ops/engines.py says.
    """
    _check_last_dimension(x, weight)
    rows = widen(x).reshape(math.prod(x.shape[:-1]), x.shape[-1])
    if engine != "qruntime":
        y = engines.product(rows, engines.prepare(weight), bias, engine)
        return _finish(y.reshape(*x.shape[:-1], weight.shape[1]), None, residual, activation, parameters, x.dtype)
    centred, row_scale = _centred(rows, range, bits, scale)
    if weight.block or weight.format is not INT8:
        y = _sum_groups(centred, weight) * row_scale
        return _finish(y.reshape(*x.shape[:-1], weight.shape[1]), bias, residual, activation, parameters, x.dtype)
    assert isinstance(weight.scale, np.ndarray) and isinstance(weight.zero_point, np.ndarray)
    total = centred @ (weight.unpacked().astype(np.int64) - weight.zero_point.astype(np.int64))
    y = total.astype(np.float32) * (row_scale * weight.scale)
    return _finish(y.reshape(*x.shape[:-1], weight.shape[1]), bias, residual, activation, parameters, x.dtype)


def _centred(rows: np.ndarray, range: str, bits: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Codes less their zero point, int64 [M, K], and their scale, float32 [M, 1] or one for all."""
    if range == "static":
        row_scale = np.float32(scale)
        return np.rint(rows / row_scale).astype(np.int64), np.asarray(row_scale)
    codes, row_scale, row_zero = quantize_rows(rows if range == "per_token" else rows.reshape(1, -1), bits)
    return codes.astype(np.int64).reshape(rows.shape) - row_zero, row_scale


def _sum_groups(centred: np.ndarray, weight: StoredTensor) -> np.ndarray:
    """Σ over the groups of K, in ascending order, of scale · (the exact sum within the group), float32 [M, N]."""
    assert weight.scale is not None
    scale = numbers(weight.scale)
    values = weight.values()  # integers, or those of a table, whose sums are exact in float64
    k, size = weight.shape[0], weight.block or max(weight.shape[0], 1)
    y = np.zeros((centred.shape[0], weight.shape[1]), np.float32)
    for i, first in enumerate(builtins.range(0, k, size)):
        group = slice(first, first + size)
        y += matmul(centred[:, group].astype(np.float64), values[group].astype(np.float64)).astype(np.float32) * scale[i]
    return y


@dynamic_quantized_linear.native
def _linear_q8(node: Node) -> NativeCall | None:
    weight = node.input(1)
    if node.attr("engine", "qruntime") != "qruntime" or weight is None or weight.stored is None:
        return None
    packed = _packed_for_codes(weight, node.input(2), node.attr("range", "per_token"))
    if packed is None:
        return None
    code, floats = activation_of(node)
    ints, floats = _with_grid(node, [code], floats)
    unpack = {1: _codes_in(weight.stored, 0)}
    return NativeCall("linear", ints=ints, floats=floats, packed=[packed], inputs=[0, 3], unpack=unpack)


@operator("MergedDynamicQuantizedLinear", domain="qruntime")
def merged_dynamic_quantized_linear(
    x: np.ndarray,
    *parameters: Any,
    activations: tuple[str, ...],
    range: str = "per_token",
    bits: int = 8,
    scale: float = 1.0,
    zero_point: int = 0,
) -> tuple[np.ndarray, ...]:
    """Several DynamicQuantizedLinear of one x: weight and bias of each; one output for each."""
    layers = zip(activations, parameters[::2], parameters[1::2])
    rows = {"range": range, "bits": bits, "scale": scale, "zero_point": zero_point}
    return tuple(dynamic_quantized_linear(x, *layer, activation=activation, **rows) for activation, *layer in layers)


@merged_dynamic_quantized_linear.native
def _merged_linear_q8(node: Node) -> NativeCall | None:
    mode = node.attr("range", "per_token")
    packed = [_packed_for_codes(node.input(i), node.input(i + 1), mode) for i in range(1, len(node.inputs), 2)]
    if None in packed:
        return None
    ints, floats = _with_grid(node, list(map(activation_code, node.attr("activations"))), [])
    weights = [None if value is None else value.stored for value in node.inputs[1::2]]
    unpack = {1 + 2 * i: _codes_in(weight, i) for i, weight in enumerate(weights) if weight is not None}
    return NativeCall("linear", ints=ints, floats=floats, packed=packed, inputs=[0], unpack=unpack)


def _with_grid(node: Node, codes: list[int], floats: Sequence[float]) -> tuple[list[int], list[float]]:
    """Integers and floats of the node "linear": those of the activation functions, then how what is read becomes codes."""
    mode, most = node.attr("range", "per_token"), (1 << node.attr("bits", 8)) - 1
    ints = [*codes, _kernels.RANGE[mode], most]
    if mode != "static":
        return ints, list(floats)
    return [*ints, node.attr("zero_point", 0)], [*floats, *[0.0] * (2 * len(codes) - len(floats)), node.attr("scale", 1.0)]


def _packed_for_codes(weight: Value | None, bias: Value | None, mode: str) -> _kernels.Packed | None:
    """A weight that codes of activations are multiplied by; None where no kernel has its form."""
    stored = None if weight is None else weight.stored
    assert stored is not None and stored.scale is not None
    if stored.block or stored.format is not INT8:
        return pack_nbits(stored, _data(bias), mode)
    assert isinstance(stored.scale, np.ndarray) and isinstance(stored.zero_point, np.ndarray)
    return _kernels.PackedQ8(stored.unpacked(), stored.scale, stored.zero_point, _data(bias), (stored.held, stored.is_turned))


def _codes_in(stored: StoredTensor, position: int) -> Unpack:
    """What makes the codes [K, N] of `stored` of the packed weights of a node."""
    return functools.partial(_unpacked, position, stored.format, stored.is_turned)


def _unpacked(position: int, form: Format, is_turned: bool, packed: Sequence[Any]) -> np.ndarray:
    weights = packed[position]
    if isinstance(weights, _kernels.PackedNBits):
        return unpack_nbits(weights, form)
    codes = np.empty(weights.shape, np.int8, order="F" if is_turned else "C")  # as they were held
    weights.unpack_into(codes)
    return codes


def _data(value: Value | None) -> Any:
    return None if value is None else value.data
