"""Dynamically quantized convolutions of lowered graphs (domain qruntime): of images, and of images whose channels lie in blocks."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

from qruntime import _kernels
from qruntime.ir import Node, StoredTensor
from qruntime.ops.channel_blocks import BLOCK, finished_in_blocks, in_blocks, out_of_blocks
from qruntime.ops.checks import limit_shape
from qruntime.ops.convolution import add_bias, check_convolution, convolution_geometry, convolve
from qruntime.ops.elementwise import rounded_once
from qruntime.ops.epilogue import activate, activation_of
from qruntime.ops.linear import quantize_rows
from qruntime.ops.products import matmul
from qruntime.ops.registry import NativeCall, operator
from qruntime.ops.windows import Window, padded, window, windows_view


@operator("DynamicQuantizedConv", domain="qruntime")
@rounded_once
def dynamic_quantized_conv(
    x: np.ndarray,
    w: StoredTensor,
    bias: np.ndarray | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
    activation: str = "none",
    parameters: Sequence[float] = (),
    range: str = "per_token",
    bits: int = 8,
) -> np.ndarray:
    """X (N, C, *spatial) float32, W (M, C / group, *kernel) int8 with one scale, or one per map → (N, M, *output).

    What a window covers in the channels of one group, padding as zeros, is a row and is quantized to `bits` bits from its
    own range (or from that of X); sums are exact integers. So an output depends on its own window and on nothing else:
    not on the other images, not on what lies elsewhere in the same image.
    """
    codes = w.unpacked()
    assert isinstance(w.scale, np.ndarray) and isinstance(w.zero_point, np.ndarray)
    check_convolution(x, codes, group, kernel_shape)
    win = window(x.shape[2:], w.shape[2:], strides, dilations, pads, auto_pad)
    shape = limit_shape((x.shape[0], w.shape[0], *win.output))
    if math.prod(shape) == 0:
        return np.zeros(shape, np.float32)
    weight = codes.astype(np.float64) - w.zero_point.astype(np.float64)
    if range == "per_tensor":
        codes, row_scale, row_zero = quantize_rows(x.reshape(1, -1), bits)
        # Sums of products of 9-bit integers are exact in float64.
        total = convolve((codes.astype(np.float64) - row_zero).reshape(x.shape), weight, group, win)
        row_scale = row_scale.reshape((1,) * x.ndim)
    else:
        total, row_scale = _windows(x, weight, group, win, bits)
    y = add_bias(total.astype(np.float32) * (row_scale * w.scale[..., 0]), bias)
    return activate(y, activation, parameters)


def _windows(x: np.ndarray, weight: np.ndarray, group: int, win: Window, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums (N, M, *output) as float64, and the scale of what each of them sums, of the same shape, as float32."""
    total = np.empty((x.shape[0], weight.shape[0], *win.output))
    scales = np.empty(total.shape, np.float32)
    positions, per_group = math.prod(win.output), weight.shape[0] // group
    rank = len(win.kernel)
    flat = weight.reshape(group, per_group, -1)
    for n, image in enumerate(windows_view(padded(x, win), win)):
        rows = image.reshape(group, -1, *image.shape[1:])
        rows = np.moveaxis(rows, 1, 1 + rank).reshape(group, positions, flat.shape[2])
        for g, channels in enumerate(rows):
            codes, scale, zero = quantize_rows(channels, bits)
            maps = slice(g * per_group, (g + 1) * per_group)
            total[n, maps] = matmul(flat[g], (codes.astype(np.float64) - zero).T).reshape(per_group, *win.output)
            scales[n, maps] = scale.reshape(win.output)
    return total, scales


@dynamic_quantized_conv.native
def _conv_q8(node: Node) -> NativeCall | None:
    weight, bias_value = node.input(1), node.input(2)
    stored, bias = None if weight is None else weight.stored, None if bias_value is None else bias_value.data
    if stored is None or stored.size == 0 or not 3 <= stored.ndim <= 5:
        return None
    w = stored.unpacked()
    scale, zero_point = stored.scale, stored.zero_point
    assert isinstance(scale, np.ndarray) and isinstance(zero_point, np.ndarray)
    if node.attr("range", "per_token") != "per_token" or (bias is not None and bias.shape != w.shape[:1]):
        return None
    geometry = convolution_geometry(node, w.shape)
    group = node.attr("group", 1)
    if geometry is None or group < 1 or w.shape[0] % group:
        return None
    per_group = w.shape[0] // group
    matrix = np.moveaxis(w, 1, -1).reshape(w.shape[0], -1)  # taps, then channels, as the kernel gathers them
    packed = []
    for g in range(group):
        maps = slice(g * per_group, (g + 1) * per_group)
        own = maps if scale.size != 1 else slice(None)
        vectors = scale[own], zero_point[own], None if bias is None else bias[maps]
        packed.append(_kernels.PackedQ8(matrix[maps].T, *vectors, origin=(stored.held, g)))
    geometry[2], floats = activation_of(node)
    codes = functools.partial(_unpacked, w.shape)
    ints = [*geometry, *w.shape[2:], (1 << node.attr("bits", 8)) - 1]
    return NativeCall("conv_q8", ints=ints, floats=floats, packed=packed, inputs=[0], unpack={1: codes})


def _unpacked(shape: Sequence[int], packed: Sequence[_kernels.PackedQ8]) -> np.ndarray:
    """W (M, C / group, *kernel) of the weights of each group."""
    maps, channels, *kernel = shape
    matrix = np.empty((maps, math.prod(kernel) * channels), np.int8)
    for rows, one in zip(np.split(matrix, len(packed)), packed, strict=True):
        one.unpack_into(rows.T)
    return np.moveaxis(matrix.reshape(maps, *kernel, channels), -1, 1)


@operator("BlockedQuantizedConv", domain="qruntime")
def blocked_quantized_conv(
    x: np.ndarray,
    w: StoredTensor,
    b: np.ndarray | None = None,
    residual: np.ndarray | None = None,
    addend: np.ndarray | None = None,
    *,
    kind: str = "blocks",
    activation: str = "none",
    parameters: Sequence[float] = (),
    bits: int = 8,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> np.ndarray:
    """activation(DynamicQuantizedConv(x, w, b) + addend) + residual, in blocks but for w, b, and for x where the kind is `columns`.

    X (N, ⌈C / 16⌉, *spatial, 16) or (N, C, *spatial) float32, W (M, C, *kernel) int8, residual and addend of the shape of the result
    (N, ⌈M / 16⌉, *output, 16).
    """
    image = x if kind == "columns" else out_of_blocks(x, w.shape[1])
    y = dynamic_quantized_conv(
        image, w, b, bits=bits, auto_pad=auto_pad, dilations=dilations, kernel_shape=kernel_shape, pads=pads, strides=strides
    )
    return finished_in_blocks(y, residual, addend, activation, parameters)


@blocked_quantized_conv.native
def _blocked_conv_q8(node: Node) -> NativeCall | None:
    weight, bias_value = node.input(1), node.input(2)
    stored, bias = None if weight is None else weight.stored, None if bias_value is None else bias_value.data
    if stored is None or stored.size == 0 or not 3 <= stored.ndim <= 5 or (bias_value is not None and bias is None):
        return None
    maps, channels, *kernel = stored.shape
    geometry = convolution_geometry(node, stored.shape)
    if geometry is None or (bias is not None and bias.shape != (maps,)):
        return None
    behind = -maps % BLOCK
    scale, zero_point = stored.scale, stored.zero_point
    assert isinstance(scale, np.ndarray) and isinstance(zero_point, np.ndarray)
    if scale.size != 1:
        scale, zero_point = (np.append(vector, np.full(behind, fill, vector.dtype)) for vector, fill in ((scale, 1), (zero_point, 0)))
    kind = node.attr("kind", "blocks")
    codes = stored.unpacked()
    pieces = np.concatenate([_in_pieces(codes, kind), np.zeros((behind, _num_pieces(stored.shape, kind) * BLOCK), np.int8)])
    if bias is not None:
        bias = np.append(bias, np.zeros(behind, bias.dtype))
    packed = _kernels.PackedQ8(pieces.T, scale, zero_point, bias, origin=(stored.held, kind))
    geometry[2], floats = activation_of(node)
    ints = [*geometry, *kernel, channels, maps, kind == "columns", (1 << node.attr("bits", 8)) - 1]
    unpack = functools.partial(_out_of_pieces, stored.shape, kind)
    return NativeCall("blocked_conv_q8", ints=ints, floats=floats, packed=[packed], inputs=[0, 3, 4], unpack={1: unpack})


def _num_pieces(shape: Sequence[int], kind: str) -> int:
    """Pieces of 16 numbers that a row of a weight of `shape` becomes."""
    _, channels, *kernel = shape
    if kind == "columns":
        return math.prod(kernel[:-1]) * -(-kernel[-1] * channels // BLOCK)
    return math.prod(kernel) * -(-channels // BLOCK)


def _in_pieces(codes: np.ndarray, kind: str) -> np.ndarray:
    """W (M, C, *kernel) → (M, pieces · 16) in the order in which kernels/nodes/blocked_conv_q8.c takes pieces of a window, zeros behind
    the last channel, or of columns behind each row of the window."""
    maps, channels, *kernel = codes.shape
    if kind == "columns":
        rows = np.moveaxis(codes, 1, -1).reshape(maps, math.prod(kernel[:-1]), kernel[-1] * channels)
        return np.pad(rows, ((0, 0), (0, 0), (0, -rows.shape[2] % BLOCK))).reshape(maps, -1)
    return in_blocks(codes).reshape(maps, -1)


def _out_of_pieces(shape: Sequence[int], kind: str, packed: Sequence[_kernels.PackedQ8]) -> np.ndarray:
    """W (M, C, *kernel) of weights in pieces."""
    maps, channels, *kernel = shape
    rows = np.empty(packed[0].shape[::-1], np.int8)
    packed[0].unpack_into(rows.T)
    rows = rows[:maps]
    if kind == "columns":
        rows = rows.reshape(maps, math.prod(kernel[:-1]), -1)[:, :, : kernel[-1] * channels]
        return np.moveaxis(rows.reshape(maps, *kernel, channels), -1, 1)
    return out_of_blocks(rows.reshape(maps, -1, *kernel, BLOCK), channels)
