"""Poolings: sliding, global, un- and region-of-interest."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qruntime import _kernels
from qruntime.ir import Node
from qruntime.ops.checks import limit_shape, require_rank, require_shape
from qruntime.ops.precision import working_dtype
from qruntime.ops.registry import NativeCall, operator
from qruntime.ops.windows import Window, axis_taps, padded, per_axis, reduce_windows, tap_counts, window


def _lowest(dtype: np.dtype) -> float | int:
    return np.iinfo(dtype).min if dtype.kind in "iu" else -np.inf


def _max_with_indices(x: np.ndarray, win: Window, storage_order: int) -> tuple[np.ndarray, np.ndarray]:
    spatial = x.shape[2:]
    places = np.arange(math.prod(spatial)).reshape(spatial, order="F" if storage_order else "C")
    index = np.broadcast_to(places, x.shape)
    best, where = padded(x, win, _lowest(x.dtype)), padded(index, win, -1)
    # Innermost axis first and strict comparisons: of equal values the first in row-major order wins.
    for i in reversed(range(len(spatial))):
        taps = zip(axis_taps(best, win, i), axis_taps(where, win, i), strict=True)
        value, place = (first.copy() for first in next(taps))
        for candidate, at in taps:
            better = (candidate > value) | ((place < 0) & (at >= 0))
            if x.dtype.kind not in "iu":
                better |= (candidate != candidate) & (value == value)  # NaN wins
            better &= at >= 0
            np.copyto(value, candidate, where=better)
            np.copyto(place, at, where=better)
        best, where = value, place
    planes = np.arange(math.prod(x.shape[:2])).reshape(*x.shape[:2], *(1,) * len(spatial))
    return best, np.where(where < 0, -1, where + planes * math.prod(spatial))


@operator("MaxPool", since=1)
def max_pool(
    x: np.ndarray,
    *,
    kernel_shape: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    storage_order: int = 0,
    strides: Sequence[int] | None = None,
    num_outputs: int = 1,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """X (N, C, *spatial) → maxima (N, C, *output) and, as second output, their flat positions in X (int64)."""
    require_rank("X", x, 3, -1)
    win = window(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    if num_outputs > 1:
        return _max_with_indices(x, win, storage_order)
    wide = working_dtype(x.dtype) if x.dtype.kind == "V" else x.dtype
    return reduce_windows(np.maximum, padded(x.astype(wide, copy=False), win, _lowest(wide)), win).astype(x.dtype, copy=False)


def sliding(node: Node, kernel: str) -> NativeCall | None:
    """The call of a sliding pooling over one to three axes; None for more, or for attributes of odd lengths."""
    sizes = node.attr("kernel_shape", ())
    rank = len(sizes)
    strides, dilations = node.attr("strides", (1,) * rank), node.attr("dilations", (1,) * rank)
    pads = node.attr("pads", (0,) * 2 * rank)
    if rank not in (1, 2, 3) or not len(strides) == len(dilations) == rank or len(pads) != 2 * rank:
        return None
    auto_pad = _kernels.AUTO_PAD[node.attr("auto_pad", "NOTSET") or "NOTSET"]
    ints = [auto_pad, node.attr("ceil_mode", 0), node.attr("count_include_pad", 0)]
    for axis in zip(sizes, strides, dilations, pads[:rank], pads[rank:], strict=True):
        ints.extend(axis)
    return NativeCall(kernel, ints=ints)


@max_pool.native
def _(node: Node) -> NativeCall | None:
    return sliding(node, "max_pool") if len(node.outputs) == 1 else None


@operator("AveragePool", since=1)
def average_pool(
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
    """X (N, C, *spatial) → means (N, C, *output), over the input or over the input and its padding."""
    require_rank("X", x, 3, -1)
    win = window(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    wide = working_dtype(x.dtype)
    sums = reduce_windows(np.add, padded(x.astype(wide, copy=False), win), win)
    counts = tap_counts(win, x.shape[2:], bool(count_include_pad))
    return (sums / np.maximum(counts, 1).astype(wide)).astype(x.dtype, copy=False)


@average_pool.native
def _(node: Node) -> NativeCall | None:
    return sliding(node, "average_pool")


@operator("LpPool", since=1)
def lp_pool(
    x: np.ndarray,
    *,
    kernel_shape: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    p: float = 2,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> np.ndarray:
    """X (N, C, *spatial) → p-norms (N, C, *output) of the windows."""
    require_rank("X", x, 3, -1)
    if p <= 0:
        raise ValueError(f"p must be positive, got {p}")
    win = window(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    powers = np.abs(x.astype(working_dtype(x.dtype), copy=False)) ** p
    return (reduce_windows(np.add, padded(powers, win), win) ** (1 / p)).astype(x.dtype, copy=False)


def _spatial_axes(x: np.ndarray) -> tuple[int, ...]:
    require_rank("X", x, 2, -1)
    return tuple(range(2, x.ndim))


@operator("GlobalAveragePool", since=1)
def global_average_pool(x: np.ndarray) -> np.ndarray:
    """X (N, C, *spatial) → means (N, C, 1, …)."""
    axes = _spatial_axes(x)
    return x.mean(axis=axes, keepdims=True, dtype=working_dtype(x.dtype)).astype(x.dtype, copy=False)


@global_average_pool.native
def _(node: Node) -> NativeCall:
    return NativeCall("global_average_pool")


@operator("GlobalMaxPool", since=1)
def global_max_pool(x: np.ndarray) -> np.ndarray:
    """X (N, C, *spatial) → maxima (N, C, 1, …)."""
    axes = _spatial_axes(x)
    if not math.prod(x.shape[2:]):
        raise ValueError(f"no maximum of empty planes, X has shape {x.shape}")
    return x.max(axis=axes, keepdims=True)


@global_max_pool.native
def _(node: Node) -> NativeCall:
    return NativeCall("global_max_pool")


@operator("GlobalLpPool", since=1)
def global_lp_pool(x: np.ndarray, *, p: float = 2) -> np.ndarray:
    """X (N, C, *spatial) → p-norms (N, C, 1, …)."""
    axes = _spatial_axes(x)
    if p <= 0:
        raise ValueError(f"p must be positive, got {p}")
    powers = np.abs(x.astype(working_dtype(x.dtype), copy=False)) ** p
    return (powers.sum(axis=axes, keepdims=True) ** (1 / p)).astype(x.dtype, copy=False)


@operator("MaxUnpool", since=9, shape_inputs=(2,))
def max_unpool(
    x: np.ndarray,
    indices: np.ndarray,
    output_shape: np.ndarray | None = None,
    *,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> np.ndarray:
    """Put X (N, C, *pooled) back at the flat positions `indices`; zero elsewhere.

    The positions count in the shape that kernel, strides and pads give; a larger `output_shape` adds
    zeros behind it.
    """
    require_rank("X", x, 3, -1)
    require_shape("I", indices, x.shape)
    rank = x.ndim - 2
    if kernel_shape is None:
        raise ValueError("kernel_shape is needed")
    kernel = per_axis("kernel_shape", kernel_shape, rank, 1, 1)
    strides = per_axis("strides", strides, rank, 1, 1)
    pads = per_axis("pads", pads, 2 * rank, 0, 0)
    spatial = [(n - 1) * s + k - p - q for n, s, k, p, q in zip(x.shape[2:], strides, kernel, pads[:rank], pads[rank:], strict=True)]
    shape = limit_shape((*x.shape[:2], *spatial))
    y = np.zeros(shape, x.dtype)
    if indices.size and (indices.min() < 0 or indices.max() >= y.size):
        raise ValueError(f"indices must lie in [0, {y.size - 1}], got {indices.min()} to {indices.max()}")
    y.reshape(-1)[indices.reshape(-1)] = x.reshape(-1)
    if output_shape is None:
        return y
    wanted = limit_shape(output_shape.reshape(-1).tolist(), "output_shape")
    if len(wanted) != x.ndim or any(a < b for a, b in zip(wanted, shape, strict=True)):
        raise ValueError(f"output_shape {wanted} must have rank {x.ndim} and be at least {shape}")
    result = np.zeros(wanted, x.dtype)
    result[tuple(slice(0, n) for n in shape)] = y
    return result


def _roi_taps(positions: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Low and high neighbour and their weights; positions beyond one pixel around the image weigh nothing."""
    inside = (positions >= -1) & (positions <= size)
    clipped = np.clip(np.where(inside, positions, 0), 0, size - 1)
    low = np.floor(clipped).astype(np.int64)
    high = np.minimum(low + 1, size - 1)
    fraction = (clipped - low).astype(positions.dtype)
    return low, high, np.where(inside, 1 - fraction, 0), np.where(inside, fraction, 0)


def _roi_align(
    x: np.ndarray,
    rois: np.ndarray,
    batch_indices: np.ndarray,
    mode: str,
    output_height: int,
    output_width: int,
    sampling_ratio: int,
    spatial_scale: float,
    half_pixel: bool,
) -> np.ndarray:
    require_rank("X", x, 4)
    require_rank("rois", rois, 2)
    count = rois.shape[0]
    require_shape("rois", rois, (count, 4))
    require_shape("batch_indices", batch_indices, (count,))
    if mode not in ("avg", "max"):
        raise ValueError(f"mode must be avg or max, got {mode!r}")
    if output_height < 1 or output_width < 1 or sampling_ratio < 0:
        raise ValueError(
            f"output_height and output_width must be at least 1 and sampling_ratio at least 0, "
            f"got {output_height}, {output_width} and {sampling_ratio}"
        )
    if count and (batch_indices.min() < 0 or batch_indices.max() >= x.shape[0]):
        raise ValueError(f"batch_indices must lie in [0, {x.shape[0] - 1}]")
    channels, height, width = x.shape[1:]
    wide = working_dtype(x.dtype)
    result = np.zeros(limit_shape((count, channels, output_height, output_width)), wide)
    if result.size and not height * width:
        raise ValueError(f"X has no pixels, its shape is {x.shape}")
    offset = 0.5 if half_pixel else 0.0
    for n in range(count):
        x1, y1, x2, y2 = (float(v) * spatial_scale - offset for v in rois[n])
        if not all(map(math.isfinite, (x1, y1, x2, y2))):
            raise ValueError(f"region {n} is not finite: {rois[n].tolist()}")
        roi_height, roi_width = y2 - y1, x2 - x1
        if not half_pixel:
            roi_height, roi_width = max(roi_height, 1.0), max(roi_width, 1.0)
        grid_h = sampling_ratio or max(math.ceil(roi_height / output_height), 0)
        grid_w = sampling_ratio or max(math.ceil(roi_width / output_width), 0)
        if not grid_h * grid_w:
            continue
        limit_shape((channels, output_height * grid_h, output_width * grid_w, 4), "the samples of a region")
        steps_y = np.arange(output_height * grid_h) + 0.5
        steps_x = np.arange(output_width * grid_w) + 0.5
        ys = (y1 + steps_y * (roi_height / output_height / grid_h)).astype(wide)
        xs = (x1 + steps_x * (roi_width / output_width / grid_w)).astype(wide)
        y_low, y_high, wy_low, wy_high = _roi_taps(ys, height)
        x_low, x_high, wx_low, wx_high = _roi_taps(xs, width)
        image = x[int(batch_indices[n])].astype(wide, copy=False)
        products = [
            image[:, iy[:, None], ix] * (wy[:, None] * wx)
            for iy, wy in ((y_low, wy_low), (y_high, wy_high))
            for ix, wx in ((x_low, wx_low), (x_high, wx_high))
        ]
        bins = (channels, output_height, grid_h, output_width, grid_w)
        if mode == "avg":
            samples = sum(products).reshape(bins)
            result[n] = sum(samples[:, :, i, :, j] for i in range(grid_h) for j in range(grid_w)) / (grid_h * grid_w)
        else:
            # The standard takes the largest weighted neighbour, not the largest interpolated value. Of two zeros the positive one.
            result[n] = np.maximum.reduce(products).reshape(bins).max(axis=(2, 4)) + 0
    return result.astype(x.dtype, copy=False)


@operator("RoiAlign", since=10)
def roi_align_10(
    x: np.ndarray,
    rois: np.ndarray,
    batch_indices: np.ndarray,
    *,
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> np.ndarray:
    """As version 16 with regions that are not shifted by half a pixel."""
    return _roi_align(x, rois, batch_indices, mode, output_height, output_width, sampling_ratio, spatial_scale, half_pixel=False)


@operator("RoiAlign", since=16)
def roi_align(
    x: np.ndarray,
    rois: np.ndarray,
    batch_indices: np.ndarray,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> np.ndarray:
    """X (N, C, H, W), rois (R, 4) as x1, y1, x2, y2, batch_indices (R) → (R, C, output_height, output_width)."""
    if coordinate_transformation_mode not in ("half_pixel", "output_half_pixel"):
        raise ValueError(f"coordinate_transformation_mode must be half_pixel or output_half_pixel, got {coordinate_transformation_mode!r}")
    half_pixel = coordinate_transformation_mode == "half_pixel"
    return _roi_align(x, rois, batch_indices, mode, output_height, output_width, sampling_ratio, spatial_scale, half_pixel)


def _roi_align_call(node: Node) -> NativeCall:
    coordinates = node.attr("coordinate_transformation_mode", "half_pixel") if node.version >= 16 else "output_half_pixel"
    ints = [
        _kernels.ROI_MODE[node.attr("mode", "avg")],
        node.attr("output_height", 1),
        node.attr("output_width", 1),
        node.attr("sampling_ratio", 0),
        {"output_half_pixel": 0, "half_pixel": 1}[coordinates],
    ]
    return NativeCall("roi_align", ints=ints, floats=[node.attr("spatial_scale", 1.0)])


roi_align_10.native(_roi_align_call)
roi_align.native(_roi_align_call)


@operator("MaxRoiPool", since=1)
def max_roi_pool(x: np.ndarray, rois: np.ndarray, *, pooled_shape: Sequence[int], spatial_scale: float = 1.0) -> np.ndarray:
    """X (N, C, H, W), rois (R, 5) as batch, x1, y1, x2, y2 → (R, C, *pooled_shape); empty bins are 0."""
    require_rank("X", x, 4)
    require_rank("rois", rois, 2)
    require_shape("rois", rois, (rois.shape[0], 5))
    pooled = per_axis("pooled_shape", pooled_shape, 2, 1, 1)
    sizes = x.shape[2:]
    result = np.zeros(limit_shape((rois.shape[0], x.shape[1], *pooled)), x.dtype)
    for n, roi in enumerate(rois.astype(np.float64)):
        if not np.isfinite(roi).all() or not 0 <= roi[0] < x.shape[0]:
            raise ValueError(f"region {n} must be finite and name one of {x.shape[0]} images, got {roi.tolist()}")
        image = x[int(roi[0])]
        bounds = []
        for axis, size in enumerate(sizes):
            # C's round(): half away from zero.
            low, high = (math.floor(v * spatial_scale + 0.5) for v in (roi[2 - axis], roi[4 - axis]))
            step = max(high - low + 1, 1) / pooled[axis]
            bounds.append(
                [
                    (min(max(math.floor(i * step) + low, 0), size), min(max(math.ceil((i + 1) * step) + low, 0), size))
                    for i in range(pooled[axis])
                ]
            )
        for i, (top, bottom) in enumerate(bounds[0]):
            for j, (left, right) in enumerate(bounds[1]):
                if bottom > top and right > left:
                    result[n, :, i, j] = image[:, top:bottom, left:right].max(axis=(1, 2))
    return result
