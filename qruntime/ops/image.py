"""Resampling of images: Resize, Upsample, GridSample and AffineGrid."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from qruntime import _kernels
from qruntime.ir import Node
from qruntime.ops.checks import limit_shape, normalize_axis, require_rank, require_shape
from qruntime.ops.interpolation import (
    cubic_kernel,
    cubic_weights,
    finite_coordinates,
    gather_weighted,
    linear_taps,
    zeros_outside,
)
from qruntime.ops.products import matmul
from qruntime.ops.registry import NativeCall, operator

NEAREST_MODES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _original_coordinates(mode: str, size: int, scale: float, output: int, roi: tuple[float, float] | None) -> np.ndarray:
    """Positions on an input axis of `size` that the `output` positions of the resized axis stand for."""
    x = np.arange(output, dtype=np.float64)
    resized = scale * size
    if mode == "half_pixel":
        return (x + 0.5) / scale - 0.5
    if mode == "pytorch_half_pixel":
        return (x + 0.5) / scale - 0.5 if resized > 1 else np.full(output, -0.5)
    if mode == "asymmetric":
        return x / scale
    if mode == "tf_half_pixel_for_nn":
        return (x + 0.5) / scale
    if mode == "align_corners":
        return x * (size - 1) / (resized - 1) if resized != 1 else np.zeros(output)
    if mode == "half_pixel_symmetric":
        return size / 2 * (1 - output / resized) + (x + 0.5) / scale - 0.5
    if mode == "tf_crop_and_resize":
        if roi is None:
            raise ValueError("tf_crop_and_resize needs roi")
        start, end = roi
        length = float(np.float32(end) - np.float32(start))  # float32: a border case must round as elsewhere
        if resized == 1:
            return np.full(output, (start + end) * (size - 1) / 2)
        return start * (size - 1) + x * length * (size - 1) / (resized - 1)
    raise ValueError(f"unknown coordinate_transformation_mode {mode!r}")


def _filter_taps(x: np.ndarray, mode: str, scale: float, antialias: bool, a: float) -> tuple[np.ndarray, np.ndarray]:
    """First input position and weights (outputs, taps) of the interpolation around each coordinate."""
    radius = 1 if mode == "linear" else 2
    stretch = min(scale, 1.0) if antialias else 1.0
    if stretch == 1.0:
        # A whole coordinate counts as the right neighbour, as the standard's reference has it; the
        # difference shows only with exclude_outside.
        low = np.ceil(x) - 1
        fraction = x - low
        taps = [1 - fraction, fraction] if mode == "linear" else cubic_weights(fraction, a)
        return low.astype(np.int64) - (radius - 1), np.stack(taps, axis=1)
    low = np.ceil(x) - 1
    reach = math.floor(-radius / stretch) + 1
    width = 2 - 2 * reach
    distance = (np.arange(reach, reach + width) - (x - low)[:, None]) * stretch
    weights = np.clip(1 - np.abs(distance), 0, 1) if mode == "linear" else cubic_kernel(distance, a)
    weights /= weights.sum(axis=1, keepdims=True)
    return low.astype(np.int64) + reach, weights


def _resize_axis(
    x: np.ndarray, axis: int, coordinates: np.ndarray, mode: str, scale: float, antialias: bool, a: float, exclude: bool
) -> np.ndarray:
    size = x.shape[axis]
    first, weights = _filter_taps(finite_coordinates(coordinates), mode, scale, antialias, a)
    index = first[:, None] + np.arange(weights.shape[1])
    if exclude:
        weights = np.where((index >= 0) & (index < size), weights, 0)
        total = weights.sum(axis=1, keepdims=True)
        weights = np.divide(weights, total, out=np.zeros_like(weights), where=total != 0)
    index = np.clip(index, 0, size - 1)
    spread = (-1, *(1,) * (x.ndim - axis - 1))
    weights = weights.astype(x.dtype)
    y = np.take(x, index[:, 0], axis=axis) * weights[:, 0].reshape(spread)
    for t in range(1, weights.shape[1]):
        y += np.take(x, index[:, t], axis=axis) * weights[:, t].reshape(spread)
    return y


def _scales(scales: np.ndarray, count: int) -> list[float]:
    values = [float(v) for v in scales.reshape(-1)]
    if len(values) != count:
        raise ValueError(f"scales must have {count} values, got {len(values)}")
    if not all(math.isfinite(v) and v > 0 for v in values):
        raise ValueError(f"scales must be positive, got {values}")
    return values


def resize_axes(
    x: np.ndarray,
    axes: Sequence[int],
    scales: Sequence[float],
    sizes: Sequence[int],
    *,
    mode: str,
    coordinates: str,
    nearest: Callable[[np.ndarray], np.ndarray] | None = None,
    roi: Sequence[float] = (),
    antialias: bool = False,
    cubic_coeff_a: float = -0.75,
    exclude_outside: bool = False,
    extrapolation_value: float = 0.0,
) -> np.ndarray:
    """`x` with `axes` resampled to `sizes`, one axis after the other, the first of `x` first."""
    shape = list(x.shape)
    for axis, size in zip(axes, sizes, strict=True):
        shape[axis] = size
    shape = list(limit_shape(shape))
    if math.prod(shape) == 0:
        return np.empty(shape, x.dtype)
    if x.size == 0:
        raise ValueError(f"cannot resize the empty shape {x.shape} to {tuple(shape)}")
    wide = np.dtype(np.float32) if x.dtype.itemsize < 4 and x.dtype.kind not in "iub" else x.dtype
    if x.dtype.kind in "iub" and mode != "nearest":
        wide = np.dtype(np.float64)
    y = x if mode == "nearest" else x.astype(wide, copy=False)
    outside = []
    count = len(axes)
    for i in sorted(range(count), key=lambda i: axes[i]):
        axis, scale, size = axes[i], scales[i], sizes[i]
        bounds = (float(roi[i]), float(roi[i + count])) if len(roi) else None
        length = x.shape[axis]
        if size == length and scale == 1 and coordinates != "tf_crop_and_resize":
            continue
        at = _original_coordinates(coordinates, length, scale, size, bounds)
        if coordinates == "tf_crop_and_resize":
            outside.append((axis, (at < 0) | (at > length - 1)))
        if mode == "nearest":
            rounded = (nearest or NEAREST_MODES["round_prefer_floor"])(finite_coordinates(at))
            y = np.take(y, np.clip(rounded, 0, length - 1).astype(np.int64), axis=axis)
        else:
            if antialias and scale < 1:
                limit_shape((size, math.ceil(4 / scale) + 4), "the filter")
            y = _resize_axis(y, axis, at, mode, scale, antialias, cubic_coeff_a, exclude_outside)
    for axis, where in outside:
        if where.any():
            y = np.where(where.reshape(-1, *(1,) * (x.ndim - axis - 1)), np.asarray(extrapolation_value, y.dtype), y)
    if y.dtype != x.dtype and x.dtype.kind in "iu":
        limits = np.iinfo(x.dtype)
        y = np.clip(np.trunc(y), limits.min, limits.max)
    if y is x:
        return x.copy()
    return y.astype(x.dtype, copy=False)


def _scaled_sizes(shape: Sequence[int], scales: Sequence[float]) -> list[int]:
    # float32 as in the standard's shape inference: 10 × 0.7 is 7 there.
    return [math.floor(float(np.float32(n) * np.float32(s))) for n, s in zip(shape, scales, strict=True)]


@operator("Resize", since=11, shape_inputs=(1, 2, 3))
def resize(
    x: np.ndarray,
    roi: np.ndarray | None = None,
    scales: np.ndarray | None = None,
    sizes: np.ndarray | None = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> np.ndarray:
    """X of any rank resampled to `sizes`, or to floor(shape · scales), on `axes` (default: all)."""
    if mode not in ("nearest", "linear", "cubic"):
        raise ValueError(f"mode must be nearest, linear or cubic, got {mode!r}")
    if nearest_mode not in NEAREST_MODES:
        raise ValueError(f"nearest_mode must be one of {', '.join(NEAREST_MODES)}, got {nearest_mode!r}")
    over = list(range(x.ndim)) if axes is None else [normalize_axis(axis, x.ndim) for axis in axes]
    if len(set(over)) != len(over):
        raise ValueError(f"axes must differ, got {tuple(axes or ())}")
    shape = [x.shape[axis] for axis in over]
    # Version 11 has to pass an empty tensor for what it does not use.
    if sizes is not None and sizes.size:
        wanted = [int(v) for v in sizes.reshape(-1)]
        if len(wanted) != len(over) or any(v < 0 for v in wanted):
            raise ValueError(f"sizes must be {len(over)} sizes, got {wanted}")
        factors = [w / n if n else 1.0 for w, n in zip(wanted, shape, strict=True)]
        if keep_aspect_ratio_policy != "stretch":
            choose = {"not_larger": min, "not_smaller": max}.get(keep_aspect_ratio_policy)
            if choose is None:
                raise ValueError(f"unknown keep_aspect_ratio_policy {keep_aspect_ratio_policy!r}")
            factors = [choose(factors, default=1.0)] * len(over)
            wanted = [math.floor(f * n + 0.5) for f, n in zip(factors, shape, strict=True)]
    elif scales is not None and scales.size:
        factors = _scales(scales, len(over))
        wanted = _scaled_sizes(shape, factors)
    elif not over:
        factors, wanted = [], []
    else:
        raise ValueError("scales or sizes is needed")
    region: list[float] = []
    if coordinate_transformation_mode == "tf_crop_and_resize":
        region = [] if roi is None else [float(v) for v in roi.reshape(-1)]
        if len(region) != 2 * len(over):
            raise ValueError(f"roi must have {2 * len(over)} values, got {len(region)}")
    return resize_axes(
        x,
        over,
        [f if f > 0 else 1.0 for f in factors],
        wanted,
        mode=mode,
        coordinates=coordinate_transformation_mode,
        nearest=NEAREST_MODES[nearest_mode],
        roi=region,
        antialias=bool(antialias),
        cubic_coeff_a=cubic_coeff_a,
        exclude_outside=bool(exclude_outside),
        extrapolation_value=extrapolation_value,
    )


def _upsampled(x: np.ndarray, scales: Sequence[float], mode: str) -> np.ndarray:
    if mode in ("bilinear", "trilinear"):
        mode = "linear"
    if mode not in ("nearest", "linear"):
        raise ValueError(f"mode must be nearest or linear, got {mode!r}")
    sizes = _scaled_sizes(x.shape, scales)
    y = x
    for axis, (scale, size) in enumerate(zip(scales, sizes, strict=True)):
        # ONNX Runtime takes the right neighbour when this version shrinks an axis.
        nearest = np.ceil if scale < 1 else np.floor
        y = resize_axes(y, [axis], [scale], [size], mode=mode, coordinates="asymmetric", nearest=nearest)
    return y


_NONE = -1
"""No such input of the node function."""


@resize.native
def _(node: Node) -> NativeCall | None:
    """Antialiasing, crops, excluded borders and kept aspect ratios stay with the definition."""
    mode, coordinates = node.attr("mode", "nearest"), node.attr("coordinate_transformation_mode", "half_pixel")
    if node.attr("antialias", 0) or node.attr("exclude_outside", 0) or coordinates not in _kernels.COORDINATES:
        return None
    if node.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
        return None
    rounding = _kernels.NEAREST_MODE[node.attr("nearest_mode", "round_prefer_floor")]
    ints = [_kernels.INTERPOLATION[mode], _kernels.COORDINATES[coordinates], rounding, 2, 3, *(node.attr("axes") or ())]
    return NativeCall("resize", ints=ints, floats=[node.attr("cubic_coeff_a", -0.75)])


@operator("Resize", since=10, shape_inputs=(1,))
def resize_10(x: np.ndarray, scales: np.ndarray, *, mode: str = "nearest") -> np.ndarray:
    """Version 10: asymmetric coordinates only."""
    return _upsampled(x, _scales(scales, x.ndim), mode)


@operator("Upsample", since=9, shape_inputs=(1,))
def upsample(x: np.ndarray, scales: np.ndarray, *, mode: str = "nearest") -> np.ndarray:
    """X of any rank resampled to floor(shape · scales), asymmetric coordinates."""
    return _upsampled(x, _scales(scales, x.ndim), mode)


@operator("Upsample", since=7)
def upsample_7(x: np.ndarray, *, scales: Sequence[float], mode: str = "nearest") -> np.ndarray:
    """Version 7: the scales are an attribute."""
    return _upsampled(x, _scales(np.asarray(scales), x.ndim), mode)


@operator("Upsample", since=1)
def upsample_1(x: np.ndarray, *, height_scale: float, width_scale: float, mode: str = "nearest") -> np.ndarray:
    """Version 1: X (N, C, H, W), two scales."""
    require_rank("X", x, 4)
    scales = np.asarray((1.0, 1.0, height_scale, width_scale))
    return _upsampled(x, _scales(scales, 4), mode)


def _upsample_call(node: Node, scales_input: int, scales: Sequence[float] = ()) -> NativeCall:
    mode = {"bilinear": "linear", "trilinear": "linear"}.get(node.attr("mode", "nearest"), node.attr("mode", "nearest"))
    if mode == "cubic":
        raise ValueError("mode must be nearest or linear")
    rounding = _kernels.NEAREST_MODE["floor_or_shrinking_ceil"]
    ints = [_kernels.INTERPOLATION[mode], _kernels.COORDINATES["asymmetric"], rounding, scales_input, _NONE]
    return NativeCall("resize", ints=ints, floats=[0.0, *scales])


resize_10.native(lambda node: _upsample_call(node, 1))
upsample.native(lambda node: _upsample_call(node, 1))
upsample_7.native(lambda node: _upsample_call(node, _NONE, node.attr("scales")))
upsample_1.native(lambda node: _upsample_call(node, _NONE, (1.0, 1.0, node.attr("height_scale"), node.attr("width_scale"))))


def _reflected(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """Positions mirrored at `low` and `high` until they lie between them."""
    span = high - low
    if span <= 0:
        return np.zeros_like(x)
    offset = np.mod(x - low, 2 * span)
    return low + np.where(offset > span, 2 * span - offset, offset)


_GRID_MODES = {"bilinear": "linear", "bicubic": "cubic"}
"""Names of version 16."""


def _grid_sample(x: np.ndarray, grid: np.ndarray, mode: str, padding_mode: str, align_corners: int) -> np.ndarray:
    mode = _GRID_MODES.get(mode, mode)
    if mode not in ("linear", "nearest", "cubic"):
        raise ValueError(f"mode must be linear, nearest or cubic, got {mode!r}")
    if padding_mode not in ("zeros", "border", "reflection"):
        raise ValueError(f"padding_mode must be zeros, border or reflection, got {padding_mode!r}")
    require_rank("X", x, 3, -1)
    spatial = x.shape[2:]
    rank = len(spatial)
    if grid.ndim != x.ndim or grid.shape[0] != x.shape[0] or grid.shape[-1] != rank:
        raise ValueError(f"grid must have the shape ({x.shape[0]}, *{rank} sizes, {rank}), got {grid.shape}")
    output = limit_shape((*x.shape[:2], *grid.shape[1:-1]))
    if math.prod(output) == 0:
        return np.empty(output, x.dtype)
    wide = np.dtype(np.float64) if x.dtype.kind in "iub" or x.dtype == np.float64 else np.dtype(np.float32)
    edges = [(0.0, n - 1.0) if align_corners else (-0.5, n - 0.5) for n in spatial]

    def outside(axis: int, index: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        if padding_mode == "zeros":
            return zeros_outside(spatial)(axis, index)
        size = spatial[axis]
        if padding_mode == "reflection":
            index = _reflected(index.astype(np.float64), *edges[axis]).astype(np.int64)
        return np.clip(index, 0, size - 1), None

    if math.prod(spatial) == 0:
        return np.zeros(output, x.dtype)
    result = np.empty((*x.shape[:2], math.prod(output[2:])), wide)
    for n in range(x.shape[0]):
        taps: list[Sequence[tuple[np.ndarray, np.ndarray | None]]] = []
        for axis in range(rank):
            size = spatial[axis]
            # The last coordinate of the grid belongs to the last axis reversed: x is the width.
            g: np.ndarray = grid[n, ..., rank - 1 - axis].reshape(-1).astype(wide)
            at = (g + 1) / 2 * (size - 1) if align_corners else ((g + 1) * size - 1) / 2
            at = finite_coordinates(at)
            if mode == "nearest":
                at = np.rint(at)
            if mode != "cubic":
                low, high = edges[axis]
                if padding_mode == "border":
                    at = np.clip(at, 0, size - 1)
                elif padding_mode == "reflection":
                    at = np.where((at < low) | (at > high), _reflected(at, low, high), at).astype(wide)
            if mode == "nearest":
                taps.append([(np.rint(at).astype(np.int64), None)])
            elif mode == "linear":
                taps.append(linear_taps(at))
            else:
                low_neighbour = np.floor(at)
                weights = cubic_weights(at - low_neighbour, -0.75)
                first = low_neighbour.astype(np.int64) - 1
                taps.append([(first + t, weight) for t, weight in enumerate(weights)])
        result[n] = gather_weighted(x[n].astype(wide, copy=False), taps, outside)
    y = result.reshape(output)
    return np.trunc(y).astype(x.dtype) if x.dtype.kind in "iu" else y.astype(x.dtype, copy=False)


@operator("GridSample", since=16)
def grid_sample_16(
    x: np.ndarray, grid: np.ndarray, *, align_corners: int = 0, mode: str = "bilinear", padding_mode: str = "zeros"
) -> np.ndarray:
    """Version 16: the modes are called bilinear, nearest and bicubic."""
    return _grid_sample(x, grid, mode, padding_mode, align_corners)


@operator("GridSample", since=20)
def grid_sample(
    x: np.ndarray, grid: np.ndarray, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> np.ndarray:
    """X (N, C, *spatial) sampled at grid (N, *output, rank), coordinates in [-1, 1] → (N, C, *output)."""
    return _grid_sample(x, grid, mode, padding_mode, align_corners)


def _grid_sample_call(node: Node) -> NativeCall:
    mode, padding = node.attr("mode", "linear"), node.attr("padding_mode", "zeros")
    ints = [_kernels.INTERPOLATION[_GRID_MODES.get(mode, mode)], _kernels.GRID_PADDING[padding]]
    return NativeCall("grid_sample", ints=[*ints, node.attr("align_corners", 0)])


grid_sample_16.native(_grid_sample_call)
grid_sample.native(_grid_sample_call)


@operator("AffineGrid", since=20, shape_inputs=(1,))
def affine_grid(theta: np.ndarray, size: np.ndarray, *, align_corners: int = 0) -> np.ndarray:
    """theta (N, r, r + 1), size (N, C, *spatial) → sampling grid (N, *spatial, r) for GridSample."""
    sizes = [int(v) for v in size.reshape(-1)]
    rank = len(sizes) - 2
    if rank not in (2, 3):
        raise ValueError(f"size must have 4 or 5 values, got {sizes}")
    require_rank("theta", theta, 3)
    require_shape("theta", theta, (sizes[0], rank, rank + 1))
    spatial = limit_shape((*sizes[2:], rank + 1), "the grid")[:rank]
    shape = limit_shape((sizes[0], *spatial, rank), "the grid")
    points = np.ones((*spatial, rank + 1), theta.dtype)
    for axis, n in enumerate(spatial):
        if align_corners:
            steps = np.linspace(-1.0, 1.0, n) if n > 1 else np.zeros(n)
        else:
            steps = (np.arange(n, dtype=np.float64) + 0.5) * (2 / max(n, 1)) - 1
        points[..., rank - 1 - axis] = steps.reshape(-1, *(1,) * (rank - 1 - axis))
    flat = points.reshape(-1, rank + 1)
    return matmul(flat, theta.transpose(0, 2, 1)).reshape(shape).astype(theta.dtype, copy=False)
