"""Convolutions of lowered graphs (domain qruntime), with an activation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qruntime.ir import Node
from qruntime.ops import convolution
from qruntime.ops.epilogue import activate, activation_of
from qruntime.ops.registry import NativeCall, operator


@operator("Conv", domain="qruntime")
def conv(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None = None,
    *,
    activation: str = "none",
    parameters: Sequence[float] = (),
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> np.ndarray:
    """activation(Conv(x, w, b))"""
    y = convolution.conv(
        x, w, b, auto_pad=auto_pad, dilations=dilations, group=group, kernel_shape=kernel_shape, pads=pads, strides=strides
    )
    return activate(y, activation, parameters)


@conv.native
def _conv(node: Node) -> NativeCall | None:
    call = convolution.conv.binder(node) if convolution.conv.binder else None
    if call is None:
        return None
    ints = list(call.ints)
    ints[2], floats = activation_of(node)
    return NativeCall(call.kernel, ints=ints, floats=floats, packed=call.packed)


@operator("ConvTranspose", domain="qruntime")
def conv_transpose(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None = None,
    by_remainder: np.ndarray | None = None,
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
    """activation(ConvTranspose(x, w, b)); the kernel reads w in the order of `taps_by_remainder`."""
    y = convolution.conv_transpose(
        x, w, b, auto_pad=auto_pad, dilations=dilations, group=group, kernel_shape=kernel_shape,
        output_padding=output_padding, output_shape=output_shape, pads=pads, strides=strides,
    )  # fmt: skip
    return activate(y, activation, parameters)


def taps_by_remainder(w: np.ndarray, group: int, strides: Sequence[int], dilations: Sequence[int]) -> np.ndarray:
    """W (C, M / group, *kernel) of a ConvTranspose, flat: for each remainder modulo the stride, the last dim's fastest, the
    weights (M, C / group, *taps) of the convolution that makes the outputs with that remainder."""
    kernel, flat = w.shape[2:], convolution.outputs_first(w, group)
    taps = [[np.flatnonzero(np.arange(k) * d % s == r)[::-1] for r in range(s)] for k, s, d in zip(kernel, strides, dilations, strict=True)]
    parts = []
    for remainders in np.ndindex(*strides):
        chosen = [taps[i][r] for i, r in enumerate(remainders)]
        part = flat
        for axis, indices in enumerate(chosen):
            part = part.take(indices, 2 + axis)
        parts.append(part.reshape(-1))
    return np.concatenate(parts)


@conv_transpose.native
def _conv_transpose(node: Node) -> NativeCall | None:
    w = node.input(1)
    weight = None if w is None else w.data
    if weight is None or node.input(3) is None:
        return None
    geometry = convolution.transposed_geometry(node, weight.shape, node.attr("group", 1) * weight.shape[1])
    if geometry is None:
        return None
    geometry[2], floats = activation_of(node)
    return NativeCall("conv_transpose", ints=geometry, floats=floats, inputs=[0, 3, 2])
