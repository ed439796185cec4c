"""Convolutions: Conv, ConvTranspose, ConvInteger, QLinearConv, DeformConv, Col2Im, CausalConvWithState."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qruntime import _kernels
from qruntime.ir import Node
from qruntime.ops.checks import limit_shape, require_rank, require_shape
from qruntime.ops.elementwise import is_packable
from qruntime.ops.interpolation import sample_linear
from qruntime.ops.precision import working_dtype
from qruntime.ops.products import matmul
from qruntime.ops.quantize_linear import integers_as_float, requantized
from qruntime.ops.registry import NativeCall, operator
from qruntime.ops.windows import Window, padded, per_axis, window, windows_view

COLUMN_ELEMENTS = 1 << 23
"""Most elements of the unfolded input that are made at a time."""


def check_convolution(x: np.ndarray, w: np.ndarray, group: int, kernel_shape: Sequence[int] | None) -> None:
    """Raise ValueError unless X (N, C, *spatial) and W (M, C / group, *kernel) fit together."""
    require_rank("X", x, 3, -1)
    if w.ndim != x.ndim:
        raise ValueError(f"W must have the rank of X, got shapes {w.shape} and {x.shape}")
    if group < 1 or x.shape[1] % group or w.shape[0] % group:
        raise ValueError(f"group {group} must divide the channels of X {x.shape} and of W {w.shape}")
    if w.shape[1] * group != x.shape[1]:
        raise ValueError(f"W must have {x.shape[1] // group} input channels ({x.shape[1]} of X / group {group}), got shape {w.shape}")
    if kernel_shape is not None and tuple(kernel_shape) != w.shape[2:]:
        raise ValueError(f"kernel_shape {tuple(kernel_shape)} differs from that of W {w.shape}")


def convolve(x: np.ndarray, w: np.ndarray, group: int, win: Window) -> np.ndarray:
    """Cross-correlation (N, M, *output) of inputs that `check_convolution` accepts, in their dtype."""
    batch, channels = x.shape[:2]
    filters = w.shape[0]
    result = np.zeros(limit_shape((batch, filters, *win.output)), x.dtype)
    if result.size == 0 or channels == 0:
        return result
    x = padded(x, win)
    if channels == group:
        # One input channel per group: adding up the taps reads less than unfolding.
        taps = w.reshape(group, filters // group, *win.kernel)
        grouped = result.reshape(batch, group, filters // group, *win.output)
        spread = (slice(None), slice(None), *(None,) * len(win.kernel))
        for index in np.ndindex(win.kernel):
            weight, reached = (..., *index), (slice(None), slice(None), None, *win.tap(index))
            grouped += taps[weight][spread] * x[reached]
        return result
    weights = w.reshape(group, filters // group, -1)
    views = windows_view(x, win)
    rank = len(win.kernel)
    order = (0, *range(1 + rank, 1 + 2 * rank), *range(1, 1 + rank))
    row_elements = channels * math.prod(win.kernel) * math.prod(win.output[1:])
    rows = max(COLUMN_ELEMENTS // row_elements, 1)
    for image, out in zip(views, result, strict=True):
        for start in range(0, win.output[0], rows):
            block = image[:, start : start + rows]
            columns = block.transpose(order).reshape(group, weights.shape[2], -1)
            product = matmul(weights, columns)
            out[:, start : start + rows] = product.reshape(filters, *block.shape[1 : 1 + rank])
    return result


def add_bias(y: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """Add one value per channel in place."""
    if bias is not None:
        require_shape("B", bias, (y.shape[1],))
        y += bias.astype(y.dtype).reshape(-1, *(1,) * (y.ndim - 2))
    return y


@operator("Conv", since=1)
def conv(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> np.ndarray:
    """X (N, C, *spatial), W (M, C / group, *kernel), B (M) → (N, M, *output)."""
    check_convolution(x, w, group, kernel_shape)
    win = window(x.shape[2:], w.shape[2:], strides, dilations, pads, auto_pad)
    wide = working_dtype(x.dtype)
    y = convolve(x.astype(wide, copy=False), w.astype(wide, copy=False), group, win)
    return add_bias(y, b).astype(x.dtype, copy=False)


def convolution_geometry(node: Node, shape: Sequence[int]) -> list[int] | None:
    """Integers that the kernels take for a weight of `shape`; None when the attributes do not fit it."""
    rank = len(shape) - 2
    auto_pad = node.attr("auto_pad", "NOTSET")
    pads = node.attr("pads", ()) or (0,) * (2 * rank)
    if auto_pad != "NOTSET":
        pads = (0,) * (2 * rank)
    strides, dilations = node.attr("strides", ()) or (1,) * rank, node.attr("dilations", ()) or (1,) * rank
    if len(pads) != 2 * rank or len(strides) != rank or len(dilations) != rank or auto_pad not in _kernels.AUTO_PAD:
        return None
    if tuple(node.attr("kernel_shape", shape[2:])) != tuple(shape[2:]):
        return None
    return [rank, node.attr("group", 1), 0, _kernels.AUTO_PAD[auto_pad], *strides, *pads, *dilations]


def outputs_first(w: np.ndarray, group: int) -> np.ndarray:
    """Weights of a ConvTranspose [C, M / group, *window] as those of a Conv, [M, C / group, *window]. It is its own inverse."""
    grouped = w.reshape(group, w.shape[0] // group, *w.shape[1:]).swapaxes(1, 2)
    return np.ascontiguousarray(grouped.reshape(-1, *grouped.shape[2:]))


def transposed_geometry(node: Node, shape: Sequence[int], maps: int) -> list[int] | None:
    """The same of a ConvTranspose with a weight of `shape` and as many outputs as `maps`."""
    geometry = convolution_geometry(node, shape)
    if geometry is None:
        return None
    rank = geometry[0]
    extra, wanted = node.attr("output_padding", ()) or (0,) * rank, node.attr("output_shape", ())
    if len(extra) != rank or (wanted and len(wanted) < rank):
        return None
    wanted = tuple(wanted)[-rank:] if wanted else (0,) * rank
    if any(size == 0 for size in wanted) and node.attr("output_shape", ()):
        return None
    return [*geometry[:4], maps, *geometry[4:], *shape[2:], *extra, *wanted]


@conv.native
def _conv(node: Node) -> NativeCall | None:
    w = node.input(1)
    weight = None if w is None else w.data
    if weight is None or not is_packable(weight.dtype) or not 3 <= weight.ndim <= 5:
        return None
    ints = convolution_geometry(node, weight.shape)
    if ints is None:
        return None
    group = node.attr("group", 1)
    packed = [_kernels.PackedF32(weight.reshape(weight.shape[0], -1).T)] if group == 1 and weight.size else []
    return NativeCall("conv", ints=ints, packed=packed)


def _without_zero_point(name: str, x: np.ndarray, zero_point: np.ndarray | None, channels: int) -> np.ndarray:
    """`x` minus a zero point that is one value, or one per slice of axis 0, as int32."""
    if zero_point is None:
        return x.astype(np.int32)
    if zero_point.size == 1:
        return x.astype(np.int32) - zero_point.reshape(()).astype(np.int32)
    require_shape(name, zero_point, (channels,))
    return x.astype(np.int32) - zero_point.astype(np.int32).reshape(-1, *(1,) * (x.ndim - 1))


def integer_convolution(
    x: np.ndarray,
    w: np.ndarray,
    x_zero_point: np.ndarray | None,
    w_zero_point: np.ndarray | None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> np.ndarray:
    """Conv of 8-bit tensors minus their zero points, exact, as int64."""
    check_convolution(x, w, group, kernel_shape)
    win = window(x.shape[2:], w.shape[2:], strides, dilations, pads, auto_pad)
    if x_zero_point is not None and x_zero_point.size != 1:
        raise ValueError(f"x_zero_point must be one value, got shape {x_zero_point.shape}")
    x = _without_zero_point("x_zero_point", x, x_zero_point, 1)
    w = _without_zero_point("w_zero_point", w, w_zero_point, w.shape[0])
    exact = integers_as_float(math.prod(w.shape[1:]))
    # int64 first: a sum beyond int32 wraps instead of being undefined.
    return convolve(x.astype(exact), w.astype(exact), group, win).astype(np.int64)


@operator("ConvInteger", since=10)
def conv_integer(
    x: np.ndarray,
    w: np.ndarray,
    x_zero_point: np.ndarray | None = None,
    w_zero_point: np.ndarray | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> np.ndarray:
    """Conv of 8-bit tensors minus their zero points (of W one, or one per filter) → int32."""
    acc = integer_convolution(
        x, w, x_zero_point, w_zero_point, auto_pad=auto_pad, dilations=dilations, group=group, kernel_shape=kernel_shape,
        pads=pads, strides=strides,
    )  # fmt: skip
    return acc.astype(np.int32)


@operator("QLinearConv", since=10)
def qlinear_conv(
    x: np.ndarray,
    x_scale: np.ndarray,
    x_zero_point: np.ndarray,
    w: np.ndarray,
    w_scale: np.ndarray,
    w_zero_point: np.ndarray,
    y_scale: np.ndarray,
    y_zero_point: np.ndarray,
    b: np.ndarray | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> np.ndarray:
    """Conv of 8-bit tensors, requantized to the type of `y_zero_point`; scales of W one, or one per filter."""
    for name, value in (("x_scale", x_scale), ("y_scale", y_scale), ("y_zero_point", y_zero_point)):
        if value.size != 1:
            raise ValueError(f"{name} must be one value, got shape {value.shape}")
    if w.ndim and w_scale.size not in (1, w.shape[0]):
        raise ValueError(f"w_scale must have 1 or {w.shape[0]} values, got shape {w_scale.shape}")
    acc = integer_convolution(
        x, w, x_zero_point, w_zero_point, auto_pad=auto_pad, dilations=dilations, group=group, kernel_shape=kernel_shape,
        pads=pads, strides=strides,
    )  # fmt: skip
    acc = add_bias(acc, b)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        multiplier = x_scale.reshape(()) * w_scale.reshape(-1) / y_scale.reshape(())
    return requantized(acc, multiplier.reshape(-1, *(1,) * (w.ndim - 2)), y_zero_point.reshape(()))


def fold(columns: np.ndarray, win: Window, spatial: Sequence[int]) -> np.ndarray:
    """Adjoint of unfolding: (N, C, *kernel, *positions) added up into (N, C, *spatial).

    Taps that fall outside [0, spatial) after the padding in front is taken off are dropped.
    """
    full = [max((o - 1) * s + e if o else 0, 0) for o, s, e in zip(win.output, win.strides, win.extents, strict=True)]
    total = np.zeros(limit_shape((*columns.shape[:2], *full), "the scattered output"), columns.dtype)
    for index in np.ndindex(win.kernel):
        place, tap = (slice(None), slice(None), *win.tap(index)), (slice(None), slice(None), *index)
        total[place] += columns[tap]
    result = np.zeros(limit_shape((*columns.shape[:2], *spatial)), columns.dtype)
    target, source = [slice(None)] * 2, [slice(None)] * 2
    for have, want, begin in zip(full, spatial, win.begin, strict=True):
        first = max(-begin, 0)
        count = max(min(have - max(begin, 0), want - first), 0)
        target.append(slice(first, first + count))
        source.append(slice(max(begin, 0), max(begin, 0) + count))
    result[tuple(target)] = total[tuple(source)]
    return result


def transposed_output(
    spatial: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    auto_pad: str,
    output_padding: Sequence[int] | None,
    output_shape: Sequence[int] | None,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of what a transposed convolution of axes of the sizes `spatial` makes: how much is left out in front, and how much is kept."""
    rank = len(spatial)
    strides = per_axis("strides", strides, rank, 1, 1)
    dilations = per_axis("dilations", dilations, rank, 1, 1)
    extra = per_axis("output_padding", output_padding, rank, 0, 0)
    full = [(n - 1) * s + (k - 1) * d + 1 + e for n, s, k, d, e in zip(spatial, strides, kernel, dilations, extra, strict=True)]
    if auto_pad in ("SAME_UPPER", "SAME_LOWER") or output_shape:
        if output_shape:
            wanted = per_axis("output_shape", tuple(output_shape)[-rank:], rank, 0, 0)
        else:
            wanted = tuple(n * s for n, s in zip(spatial, strides, strict=True))
        total = [max(f - o, 0) for f, o in zip(full, wanted, strict=True)]
        return tuple(t // 2 if auto_pad == "SAME_UPPER" else t - t // 2 for t in total), wanted
    pads = (0,) * (2 * rank) if auto_pad == "VALID" else per_axis("pads", pads, 2 * rank, 0, 0)
    return tuple(pads[:rank]), tuple(f - p - q for f, p, q in zip(full, pads[:rank], pads[rank:], strict=True))


@operator("ConvTranspose", since=1)
def conv_transpose(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> np.ndarray:
    """X (N, C, *spatial), W (C, M / group, *kernel), B (M) → (N, M, *output)."""
    require_rank("X", x, 3, -1)
    if w.ndim != x.ndim or w.shape[0] != x.shape[1]:
        raise ValueError(f"W must have the rank of X and its channels first, got {w.shape} for X {x.shape}")
    if group < 1 or x.shape[1] % group:
        raise ValueError(f"group {group} must divide the channels of X {x.shape}")
    if kernel_shape is not None and tuple(kernel_shape) != w.shape[2:]:
        raise ValueError(f"kernel_shape {tuple(kernel_shape)} differs from that of W {w.shape}")
    spatial, kernel = x.shape[2:], w.shape[2:]
    rank = len(spatial)
    kernel = per_axis("the kernel of W", kernel, rank, 1, 1)
    strides = per_axis("strides", strides, rank, 1, 1)
    dilations = per_axis("dilations", dilations, rank, 1, 1)
    begin, wanted = transposed_output(spatial, kernel, strides, dilations, pads, auto_pad, output_padding, output_shape)
    limit_shape((x.shape[0], w.shape[1] * group, *wanted))
    win = Window(kernel, strides, dilations, begin, begin, tuple(spatial))
    wide = working_dtype(x.dtype)
    per_group = x.shape[1] // group
    columns_shape = limit_shape((x.shape[0], group * w.shape[1], *kernel, *spatial), "the unfolded output")
    weights = w.astype(wide, copy=False).reshape(group, per_group, -1).transpose(0, 2, 1)
    columns = matmul(weights, x.astype(wide, copy=False).reshape(x.shape[0], group, per_group, math.prod(spatial)))
    y = fold(columns.reshape(columns_shape), win, wanted)
    return add_bias(y, b).astype(x.dtype, copy=False)


@operator("Col2Im", since=18, shape_inputs=(1, 2))
def col2im(
    x: np.ndarray,
    image_shape: np.ndarray,
    block_shape: np.ndarray,
    *,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> np.ndarray:
    """Columns (N, C · prod(block), L) added up into images (N, C, *image_shape)."""
    require_rank("input", x, 3)
    spatial = per_axis("image_shape", image_shape.reshape(-1).tolist(), image_shape.size, 0, 0)
    win = window(spatial, block_shape.reshape(-1).tolist(), strides, dilations, pads)
    block, positions = math.prod(win.kernel), math.prod(win.output)
    if x.shape[1] % block or x.shape[2] != positions:
        raise ValueError(
            f"input must have the shape (N, C · {block}, {positions}) for image_shape {spatial} and block_shape {win.kernel}, got {x.shape}"
        )
    return fold(x.reshape(x.shape[0], x.shape[1] // block, *win.kernel, *win.output), win, spatial)


@operator("DeformConv", since=19)
def deform_conv(
    x: np.ndarray,
    w: np.ndarray,
    offset: np.ndarray,
    b: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    *,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    offset_group: int = 1,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> np.ndarray:
    """Conv whose taps are displaced by `offset` (N, offset_group · taps · rank, *output), scaled by `mask`."""
    check_convolution(x, w, group, kernel_shape)
    batch, channels = x.shape[:2]
    spatial = x.shape[2:]
    rank = len(spatial)
    win = window(spatial, w.shape[2:], strides, dilations, pads)
    taps = math.prod(win.kernel)
    if offset_group < 1 or channels % offset_group:
        raise ValueError(f"offset_group {offset_group} must divide the channels of X {x.shape}")
    require_shape("offset", offset, (batch, offset_group * taps * rank, *win.output))
    require_shape("mask", mask, (batch, offset_group * taps, *win.output))
    limit_shape((channels, taps, *win.output), "the unfolded input")
    wide = working_dtype(x.dtype)
    positions = math.prod(win.output)
    base = np.empty((rank, taps, positions), wide)
    for i, grid in enumerate(np.meshgrid(*[np.arange(o) for o in win.output], indexing="ij")):
        tap = np.indices(win.kernel)[i].reshape(-1, 1) * win.dilations[i]
        base[i] = grid.reshape(1, -1) * win.strides[i] - win.begin[i] + tap
    offsets = offset.astype(wide).reshape(batch, offset_group, taps, rank, positions).transpose(0, 1, 3, 2, 4)
    scales = None if mask is None else mask.astype(wide).reshape(batch, offset_group, taps, positions)
    weights = w.astype(wide, copy=False).reshape(group, w.shape[0] // group, -1)
    images = x.astype(wide, copy=False).reshape(batch, offset_group, channels // offset_group, *spatial)
    result = np.empty((batch, w.shape[0], positions), wide)
    for n in range(batch):
        columns = np.empty((offset_group, channels // offset_group, taps, positions), wide)
        for g in range(offset_group):
            coordinates = (base + offsets[n, g]).reshape(rank, taps * positions)
            columns[g] = sample_linear(images[n, g], coordinates).reshape(columns[g].shape)
            if scales is not None:
                columns[g] *= scales[n, g]
        unfolded = columns.reshape(group, weights.shape[2], positions)
        result[n] = matmul(weights, unfolded).reshape(w.shape[0], positions)
    y = result.reshape(batch, w.shape[0], *win.output)
    return add_bias(y, b).astype(x.dtype, copy=False)


@operator("CausalConvWithState", since=27)
def causal_conv_with_state(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    past_state: np.ndarray | None = None,
    *,
    activation: str = "none",
) -> tuple[np.ndarray, np.ndarray]:
    """Depthwise causal convolution of (N, C, L) with (C, 1, k) → output (N, C, L), state (N, C, k - 1)."""
    require_rank("input", x, 3)
    require_rank("weight", weight, 3)
    batch, channels, length = x.shape
    kernel = weight.shape[2]
    if activation not in ("none", "silu", "swish"):
        raise ValueError(f"activation must be none, silu or swish, got {activation!r}")
    if kernel < 1:
        raise ValueError(f"the kernel must have at least one tap, got weight of shape {weight.shape}")
    require_shape("weight", weight, (channels, 1, kernel))
    require_shape("past_state", past_state, (batch, channels, kernel - 1))
    past = np.zeros((batch, channels, kernel - 1), x.dtype) if past_state is None else past_state
    history = np.concatenate((past.astype(x.dtype, copy=False), x), axis=2)
    wide = working_dtype(x.dtype)
    taps, wide_history = weight.astype(wide)[:, 0], history.astype(wide, copy=False)
    y = np.zeros(x.shape, wide)
    for t in range(kernel):
        y += taps[:, t, None] * wide_history[:, :, t : t + length]
    y = add_bias(y, bias)
    if activation != "none":
        with np.errstate(over="ignore"):
            y = y / (1 + np.exp(-y))
    return y.astype(x.dtype), history[:, :, length:].copy()
