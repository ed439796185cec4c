"""Layers on 8-bit codes of lowered graphs (domain qruntime), whose scales are known before the model runs.

A layer that has no scale of its output gives float32 numbers, and without any scales its exact sums. A table is what
becomes of every code at last: an activation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qruntime import _kernels
from qruntime.ir import Node
from qruntime.ir.dtypes import onnx_code
from qruntime.ops import convolution, linear_algebra
from qruntime.ops.contrib.quantized_matmul import int8_codes
from qruntime.ops.quantize_linear import requantized
from qruntime.ops.registry import NativeCall, operator

_MAX_K = 32768
"""QRT_Q8_MAX_K of kernels/gemm_q8.h."""

_FLOAT, _INT32 = 1, 6
"""Codes of ONNX element types."""


@operator("CodeTable", domain="qruntime")
def code_table(x: np.ndarray, table: np.ndarray) -> np.ndarray:
    """x uint8 or int8 of any shape → table[x], of the type of the table, uint8 or int8 [256], by the bytes of x."""
    if x.dtype not in (np.uint8, np.int8) or table.shape != (256,):
        raise ValueError(f"needs 8-bit codes and a table of 256, got {x.dtype} and shape {table.shape}")
    return table[x.view(np.uint8)]


@code_table.native
def _code_table(node: Node) -> NativeCall | None:
    table = _data(node, 1)
    if table is None or table.shape != (256,) or table.dtype not in (np.uint8, np.int8):
        return None
    return NativeCall("code_table", ints=[onnx_code(table.dtype)], packed=[_kernels.PackedArray(table)], inputs=[0])


def _finish(
    acc: np.ndarray, x_scale: np.ndarray | None, w_scale: np.ndarray | None, y_scale: np.ndarray | None,
    y_zero_point: np.ndarray | None, table: np.ndarray | None,
) -> np.ndarray:  # fmt: skip
    """What becomes of integer sums whose last axis has one value for each scale of a weight."""
    if x_scale is None or w_scale is None:
        return acc.astype(np.int32)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        multiplier = x_scale.reshape(()) * w_scale.reshape(-1)
        if y_scale is None or y_zero_point is None:
            return acc.astype(np.float32) * multiplier
        y = requantized(acc, multiplier / y_scale.reshape(()), y_zero_point.reshape(()))
    return y if table is None else code_table(y, table)


@operator("QLinearConv", domain="qruntime")
def qlinear_conv(
    x: np.ndarray,
    x_scale: np.ndarray | None,
    x_zero_point: np.ndarray | None,
    w: np.ndarray,
    w_scale: np.ndarray | None,
    w_zero_point: np.ndarray | None,
    y_scale: np.ndarray | None,
    y_zero_point: np.ndarray | None,
    b: np.ndarray | None = None,
    table: np.ndarray | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> np.ndarray:
    """QLinearConv of x (N, *spatial, C) → (N, *output, M); W stays (M, C / group, *kernel). Without scales int32 sums."""
    acc = convolution.integer_convolution(
        np.moveaxis(x, -1, 1), w, x_zero_point, w_zero_point, auto_pad=auto_pad, dilations=dilations, group=group,
        kernel_shape=kernel_shape, pads=pads, strides=strides,
    )  # fmt: skip
    acc = np.ascontiguousarray(np.moveaxis(convolution.add_bias(acc, b), 1, -1))
    return _finish(acc, x_scale, w_scale, y_scale, y_zero_point, table)


@operator("QLinearMatMul", domain="qruntime")
def qlinear_matmul(
    x: np.ndarray,
    x_scale: np.ndarray | None,
    x_zero_point: np.ndarray | None,
    w: np.ndarray,
    w_scale: np.ndarray | None,
    w_zero_point: np.ndarray | None,
    y_scale: np.ndarray | None,
    y_zero_point: np.ndarray | None,
    b: np.ndarray | None = None,
    table: np.ndarray | None = None,
) -> np.ndarray:
    """Codes x [..., K] times w [K, N] plus b int32 [N], requantized; float32 without y_scale, int32 without any scale."""
    acc = linear_algebra.integer_product(x, w, x_zero_point, w_zero_point).astype(np.int64)
    return _finish(acc if b is None else acc + b, x_scale, w_scale, y_scale, y_zero_point, table)


class _Parameters:
    """The constants of a layer as kernels take them. ValueError when they do not suit."""

    def __init__(self, node: Node, maps: int, maps_axis: int):
        w = _data(node, 3)
        scale = [_data(node, i) for i in (1, 4, 6)]
        zeros = [_data(node, i) for i in (2, 5, 7)]
        self.bias, self.table = _data(node, 8), _data(node, 9)
        if w is None or any(node.input(i) is not None and _data(node, i) is None for i in (1, 4, 5, 6, 7, 8, 9)):
            raise ValueError("a parameter is computed at run time")
        self.weight = int8_codes(w)
        self.weight_zeros = np.zeros(1, np.int32)
        if zeros[1] is not None:
            self.weight_zeros = int8_codes(zeros[1]).reshape(-1).astype(np.int32)
        elif w.dtype == np.uint8:
            self.weight_zeros = np.full(1, -128, np.int32)
        self.multiplier = np.ones(1, np.float32)
        self.dtype = _INT32
        if scale[0] is not None and scale[1] is not None:
            if any(s is not None and s.dtype != np.float32 for s in scale) or scale[0].size != 1:
                raise ValueError("scales must be float32, those of activations one value")
            with np.errstate(all="ignore"):
                self.multiplier = scale[0].reshape(()) * scale[1].reshape(-1)
                self.dtype = _FLOAT
                if scale[2] is not None and zeros[2] is not None:
                    self.multiplier = self.multiplier / scale[2].reshape(())
                    self.dtype = onnx_code(zeros[2].dtype)
        self.y_zero = 0 if zeros[2] is None else int(zeros[2].reshape(()))
        self.runtime_zero = node.input(2) is not None and zeros[0] is None
        self.x_zero = 0 if zeros[0] is None else int(zeros[0].reshape(()))
        self.x_dtype = None if zeros[0] is None else onnx_code(zeros[0].dtype)
        if not np.isfinite(self.multiplier).all():
            raise ValueError("a multiplier is not finite")
        if self.bias is not None and (self.bias.dtype != np.int32 or self.bias.shape != (maps,)):
            raise ValueError("the bias is no int32 vector")
        if any(v.size not in (1, maps) for v in (self.multiplier, self.weight_zeros)):
            raise ValueError("scales or zero points of the weight are neither one nor one for each map")
        # No sum may leave int32: codes less their zero point are below 256.
        along = [1] * w.ndim
        along[maps_axis] = -1
        centred = np.abs(self.weight.astype(np.int64) - self.weight_zeros.reshape(along))
        most = 255 * centred.sum(axis=tuple(i for i in range(w.ndim) if i != maps_axis))
        if self.bias is not None:
            most = most + np.abs(self.bias.astype(np.int64))
        if w.size // maps > _MAX_K or most.max() > np.iinfo(np.int32).max:
            raise ValueError("sums may leave int32")

    def per_map(self, values: np.ndarray, maps: slice) -> np.ndarray:
        return values if values.size == 1 else values[maps]

    def tables(self) -> list[_kernels.PackedArray]:
        return [] if self.table is None else [_kernels.PackedArray(self.table)]


def _data(node: Node, index: int) -> np.ndarray | None:
    value = node.input(index)
    return None if value is None else value.data


def _packed(weight: np.ndarray, p: _Parameters, maps: slice, origin: np.ndarray | None = None) -> _kernels.PackedQ8:
    scale, zeros = p.per_map(p.multiplier, maps), p.per_map(p.weight_zeros, maps)
    size = max(scale.size, zeros.size)
    return _kernels.PackedQ8(weight, np.broadcast_to(scale, size), np.broadcast_to(zeros, size), None, origin=origin)


_PIECE_STEP = 4
"""QRT_PIECE_STEP of kernels/nodes/code_windows.h."""


def _rows_filled(w: np.ndarray, geometry: Sequence[int], group: int) -> np.ndarray:
    """w (M, *kernel, C / group) as a matrix whose rows of windows begin at whole steps: see qrt_row_of_window."""
    rank = w.ndim - 2
    rows, dilation = math.prod(w.shape[1:rank]), geometry[4 + 4 * rank - 1]
    matrix = w.reshape(w.shape[0], rows, -1)
    if group == 1 and dilation == 1 and rows > 1:
        matrix = np.pad(matrix, ((0, 0), (0, 0), (0, -matrix.shape[2] % _PIECE_STEP)))
    return matrix.reshape(w.shape[0], -1)


def _int8_summands(w: np.ndarray) -> list[np.ndarray] | None:
    """Integers of −255 … 255 as one or two summands of int8; None for 255."""
    first = np.clip(w, -128, 127)
    rest = w - first
    if rest.max() > 127:
        return None
    return [first, rest] if rest.any() else [first]


def woven(summands: list[np.ndarray], columns: int, offsets: np.ndarray, multipliers: np.ndarray) -> list[np.ndarray]:
    """Summands of weights [rows · columns, C], offsets and multipliers [C] of windows of single channels as kernels/qlinear.h has them
    along lines."""
    channels = summands[0].shape[1]
    blocks, rows = -(-channels // 64), summands[0].shape[0] // columns
    groups = -(-rows // 4)
    padded = np.zeros((len(summands), groups * 4, columns, blocks * 64), np.int8)
    padded[:, :rows, :, :channels] = np.reshape(summands, (len(summands), rows, columns, channels))
    weights = padded.reshape(len(summands), groups, 4, columns, blocks, 4, 4, 4).transpose(4, 0, 1, 3, 6, 5, 7, 2)
    found = [np.ascontiguousarray(weights)]
    for vector in (offsets, multipliers):
        filled = np.zeros(blocks * 64, vector.dtype)
        filled[:channels] = vector
        found.append(np.ascontiguousarray(filled.reshape(blocks, 4, 4, 4).transpose(0, 2, 1, 3)))
    return found


@qlinear_conv.native
def _conv(node: Node) -> NativeCall | None:
    w = _data(node, 3)
    if w is None or w.size == 0 or not 3 <= w.ndim <= 5:
        return None
    maps, group = w.shape[0], node.attr("group", 1)
    geometry = convolution.convolution_geometry(node, w.shape)
    try:
        p = _Parameters(node, maps, 0)
    except ValueError:
        return None
    if geometry is None or group < 1 or maps % group:
        return None
    taps_last = np.moveaxis(p.weight, 1, -1)  # taps, then channels, as the kernel gathers them
    is_depthwise = group == maps and w.shape[1] == 1 and p.dtype != _INT32 and p.x_dtype is not None
    packed: list[_kernels.Packed] = []
    if is_depthwise:
        centred = (taps_last.reshape(maps, -1).astype(np.int32) - p.weight_zeros.reshape(-1, 1)).T
        zero = p.x_zero + (128 if p.x_dtype == onnx_code(np.dtype(np.int8)) else 0)
        offsets = (0 if p.bias is None else p.bias.astype(np.int64)) - zero * centred.sum(axis=0, dtype=np.int64)
        if np.abs(offsets).max() > np.iinfo(np.int32).max:
            return None
        vectors = centred, offsets.astype(np.int32), np.broadcast_to(p.multiplier, maps)
        packed += map(_kernels.PackedArray, map(np.ascontiguousarray, vectors))
        summands = _int8_summands(centred)
        if summands is not None:
            packed += map(_kernels.PackedArray, woven(summands, w.shape[-1], *vectors[1:]))
    else:
        matrix = _rows_filled(taps_last, geometry, group)
        for g in range(group):
            own = slice(g * (maps // group), (g + 1) * (maps // group))
            packed.append(_packed(matrix[own].T, p, own, origin=w[own]))
        packed += [] if p.bias is None else [_kernels.PackedArray(p.bias)]
    flags = [maps, is_depthwise, p.bias is not None, p.table is not None]
    types = [p.x_dtype or 0, p.dtype, p.x_zero, p.y_zero]
    inputs = [0, 2] if p.runtime_zero else [0]
    ints = [*geometry, *w.shape[2:], *map(int, flags), *types]
    return NativeCall("qlinear_conv", ints=ints, packed=[*packed, *p.tables()], inputs=inputs)


@qlinear_matmul.native
def _matmul(node: Node) -> NativeCall | None:
    w = _data(node, 3)
    if w is None or w.size == 0 or w.ndim != 2:
        return None
    try:
        p = _Parameters(node, w.shape[1], 1)
    except ValueError:
        return None
    packed: list[_kernels.Packed] = [_packed(p.weight, p, slice(None))]
    packed += [] if p.bias is None else [_kernels.PackedArray(p.bias)]
    ints = [p.bias is not None, p.table is not None, p.x_dtype or 0, p.dtype, p.x_zero, p.y_zero]
    inputs = [0, 2] if p.runtime_zero else [0]
    return NativeCall("qlinear_matmul", ints=list(map(int, ints)), packed=[*packed, *p.tables()], inputs=inputs)
