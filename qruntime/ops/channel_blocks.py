"""Images of lowered graphs whose channels lie in blocks of 16 (domain qruntime): how they are made, convolved, pooled.

An image [N, C, *spatial] in blocks is [N, ⌈C / 16⌉, *spatial, 16]. Behind the last channel lies anything; the definitions put zeros there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from qruntime import _kernels
from qruntime.ir import Node
from qruntime.ops import convolution, pooling
from qruntime.ops.checks import require_rank
from qruntime.ops.epilogue import activate, activation_of
from qruntime.ops.registry import NativeCall, operator

BLOCK = 16
"""Channels of a block, as kernels/conv_f32.h has it."""


def in_blocks(x: np.ndarray) -> np.ndarray:
    """[N, C, *spatial] → [N, ⌈C / 16⌉, *spatial, 16]"""
    images, channels, *spatial = x.shape
    blocks = -(-channels // BLOCK)
    whole = np.zeros((images, blocks * BLOCK, *spatial), x.dtype)
    whole[:, :channels] = x
    return np.ascontiguousarray(np.moveaxis(whole.reshape(images, blocks, BLOCK, *spatial), 2, -1))


def out_of_blocks(x: np.ndarray, channels: int | None = None) -> np.ndarray:
    """[N, ⌈C / 16⌉, *spatial, 16] → [N, C, *spatial]; all channels of the blocks unless told how many there are."""
    require_rank("X", x, 3, -1)
    images, blocks, *spatial, size = x.shape
    if channels is None:
        channels = blocks * size
    if size != BLOCK or not (blocks - 1) * BLOCK < channels <= blocks * BLOCK:
        raise ValueError(f"{channels} channels lie in {-(-channels // BLOCK)} blocks of {BLOCK}, got {x.shape}")
    return np.ascontiguousarray(np.moveaxis(x, -1, 2).reshape(images, blocks * BLOCK, *spatial)[:, :channels])


@operator("BlockChannels", domain="qruntime")
def block_channels(x: np.ndarray, *, channels: int) -> np.ndarray:
    """[N, channels, *spatial] → [N, ⌈channels / 16⌉, *spatial, 16]

    Raises ValueError where X has other channels, which could not be told from its blocks any more.
    """
    require_rank("X", x, 2, -1)
    if x.shape[1] != channels:
        raise ValueError(f"X must have the {channels} channels of the weight, got shape {x.shape}")
    return in_blocks(x)


@block_channels.native
def _(node: Node) -> NativeCall:
    return NativeCall("block_channels", ints=[node.attr("channels")], widens=False)


@operator("UnblockChannels", domain="qruntime")
def unblock_channels(x: np.ndarray, *, channels: int) -> np.ndarray:
    """[N, ⌈channels / 16⌉, *spatial, 16] → [N, channels, *spatial]"""
    return out_of_blocks(x, channels)


@unblock_channels.native
def _(node: Node) -> NativeCall:
    return NativeCall("unblock_channels", ints=[node.attr("channels")], widens=False)


@operator("BlockedShape", domain="qruntime")
def blocked_shape(x: np.ndarray, *, channels: int, start: int = 0, end: int | None = None) -> np.ndarray:
    """What Shape says of the image [N, channels, *spatial] that `x` is in blocks."""
    return np.asarray((x.shape[0], channels, *x.shape[2:-1])[start:end], np.int64)


@operator("BlockedConv", domain="qruntime")
def blocked_conv(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None = None,
    residual: np.ndarray | None = None,
    addend: np.ndarray | None = None,
    *more: np.ndarray,
    kind: str = "blocks",
    activation: str = "none",
    parameters: Sequence[float] = (),
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> np.ndarray:
    """activation(Conv(x, w, b) + addend) + residual, in blocks but for w, b, and for x where the kind is `columns`.

    The channels of `more` follow those of x, whose blocks are full then.
    """
    if more:
        x = np.concatenate([x, *more], axis=1)
    image = x if kind == "columns" else out_of_blocks(x, w.shape[1] * group)
    y = convolution.conv(
        image, w, b, auto_pad=auto_pad, dilations=dilations, group=group, kernel_shape=kernel_shape, pads=pads, strides=strides
    )
    return finished_in_blocks(y, residual, addend, activation, parameters)


def finished_in_blocks(
    y: np.ndarray, residual: np.ndarray | None, addend: np.ndarray | None, activation: str, parameters: Sequence[float]
) -> np.ndarray:
    """activation(y + addend) + residual in blocks; y, what a convolution makes, has its channels side by side."""
    y = in_blocks(y)
    y = activate(y if addend is None else y + addend, activation, parameters)
    return y if residual is None else y + residual


@blocked_conv.native
def _blocked_conv(node: Node) -> NativeCall | None:
    w, b = node.input(1), node.input(2)
    weight, bias = None if w is None else w.data, None if b is None else b.data
    if weight is None or (b is not None and bias is None):
        return None
    ints = convolution.convolution_geometry(node, weight.shape)
    if ints is None:
        return None
    kind = node.attr("kind", "blocks")
    ints[2], floats = activation_of(node)
    kernel = {"depthwise": "blocked_depthwise_conv", "grouped": "blocked_depthwise_conv", "winograd": "winograd_conv"}.get(
        kind, "blocked_conv"
    )
    packed = _kernels.PackedConv(weight, bias, kind, node.attr("group", 1) if kind == "blocks" else 1)
    return NativeCall(kernel, ints=ints, floats=floats, packed=[packed], inputs=[0, *range(3, max(5, len(node.inputs)))])


def phase_order(window: Sequence[int], strides: Sequence[int] | None, dilations: Sequence[int] | None) -> np.ndarray:
    """The taps of a window, flat, such that those which an output position meets lie together: in the order of their places modulo the
    strides, along the first axis, the second and so on, then in their own."""
    rank = len(window)
    taps = np.indices(window).reshape(rank, -1)
    steps, apart = (np.asarray(given or (1,) * rank)[:, None] for given in (strides, dilations))
    return np.lexsort((*taps[::-1], *(taps * apart % steps)[::-1]))


def weights_by_phase(w: np.ndarray, group: int, strides: Sequence[int] | None, dilations: Sequence[int] | None) -> np.ndarray:
    """Weights of a ConvTranspose [C, M / group, *window] for BlockedConvTranspose: [M, C / group, *window], taps in `phase_order`."""
    turned = convolution.outputs_first(w, group)
    order = phase_order(w.shape[2:], strides, dilations)
    return np.ascontiguousarray(turned.reshape(*turned.shape[:2], -1)[:, :, order].reshape(turned.shape))


@operator("BlockedConvTranspose", domain="qruntime")
def blocked_conv_transpose(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None = None,
    residual: np.ndarray | None = None,
    addend: np.ndarray | None = None,
    *,
    activation: str = "none",
    parameters: Sequence[float] = (),
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> np.ndarray:
    """activation(ConvTranspose(x, w, b) + addend) + residual, in blocks but for b and for w, which `weights_by_phase` made."""
    image = out_of_blocks(x, w.shape[1] * group)
    taps = np.empty((*w.shape[:2], math.prod(w.shape[2:])), w.dtype)
    taps[:, :, phase_order(w.shape[2:], strides, dilations)] = w.reshape(taps.shape)
    y = convolution.conv_transpose.definition(
        image, convolution.outputs_first(taps.reshape(w.shape), group), b, auto_pad=auto_pad, dilations=dilations, group=group,
        kernel_shape=kernel_shape, output_padding=output_padding, output_shape=output_shape, pads=pads, strides=strides,
    )  # fmt: skip
    return finished_in_blocks(y, residual, addend, activation, parameters)


@blocked_conv_transpose.native
def _blocked_conv_transpose(node: Node) -> NativeCall | None:
    w, b = node.input(1), node.input(2)
    weight, bias = None if w is None else w.data, None if b is None else b.data
    if weight is None or (b is not None and bias is None):
        return None
    ints = convolution.transposed_geometry(node, weight.shape, weight.shape[0])
    if ints is None:
        return None
    ints[2], floats = activation_of(node)
    packed = _kernels.PackedConv(weight, bias, "blocks", node.attr("group", 1))
    return NativeCall("blocked_conv_transpose", ints=ints, floats=floats, packed=[packed], inputs=[0, 3, 4])


def _pooled(definition: Callable[..., np.ndarray], kernel: str) -> None:
    @operator(f"Blocked{kernel}", domain="qruntime")
    def blocked_pooling(
        x: np.ndarray,
        *,
        kernel_shape: Sequence[int] | None = None,
        auto_pad: str = "NOTSET",
        ceil_mode: int = 0,
        count_include_pad: int = 0,
        dilations: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> np.ndarray:
        counts = {"count_include_pad": count_include_pad} if kernel == "AveragePool" else {}
        y = definition(
            out_of_blocks(x), kernel_shape=kernel_shape, auto_pad=auto_pad, ceil_mode=ceil_mode, dilations=dilations, pads=pads,
            strides=strides, **counts,
        )  # fmt: skip
        return in_blocks(y)

    blocked_pooling.native(lambda node: pooling.sliding(node, "blocked_max_pool" if kernel == "MaxPool" else "blocked_average_pool"))


_pooled(pooling.max_pool.definition, "MaxPool")
_pooled(pooling.average_pool.definition, "AveragePool")


@operator("BlockedGlobalAveragePool", domain="qruntime")
def blocked_global_average_pool(x: np.ndarray) -> np.ndarray:
    """[N, blocks, *spatial, 16] → means [N, blocks, 1, …, 16]"""
    return in_blocks(pooling.global_average_pool.definition(out_of_blocks(x)))


@blocked_global_average_pool.native
def _(node: Node) -> NativeCall:
    return NativeCall("blocked_global_average_pool", widens=False)
