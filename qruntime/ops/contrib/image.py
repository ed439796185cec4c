"""Pooling and sampling of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qruntime.ir import Node
from qruntime.ops.checks import integers, limit_shape, require_rank, require_shape
from qruntime.ops.contrib.domain import MICROSOFT, standard
from qruntime.ops.image import grid_sample_16
from qruntime.ops.pooling import sliding
from qruntime.ops.registry import NativeCall, operator
from qruntime.ops.windows import window


@operator("NhwcMaxPool", domain=MICROSOFT)
def nhwc_max_pool(
    x: np.ndarray,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> np.ndarray:
    """MaxPool of 8-bit codes (N, *spatial, C)."""
    require_rank("the input", x, 3, -1)
    y = standard(
        "MaxPool", np.moveaxis(x, -1, 1), kernel_shape=kernel_shape, auto_pad=auto_pad, ceil_mode=ceil_mode,
        dilations=dilations, pads=pads, strides=strides,
    )  # fmt: skip
    return np.ascontiguousarray(np.moveaxis(y, 1, -1))


@nhwc_max_pool.native
def _(node: Node) -> NativeCall | None:
    return sliding(node, "code_max_pool")


@operator("MaxpoolWithMask", domain=MICROSOFT)
def max_pool_with_mask(
    x: np.ndarray,
    mask: np.ndarray,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    pads: Sequence[int] | None = None,
    storage_order: int = 0,
    strides: Sequence[int] | None = None,
) -> np.ndarray:
    """MaxPool of x (N, C, *spatial) in which a 0 of mask (1, 1, *spatial) ends each row of a window; the lowest number
    where nothing is left.

    ONNX Runtime never looks at the first element of a mask of two or three spatial dimensions, and for masks of
    several planes it reads at offsets that no dimension explains; those are refused.
    """
    require_rank("X", x, 3, 5)
    require_shape("the mask", mask, (1, 1, *x.shape[2:]))
    if storage_order:
        raise ValueError(f"storage_order must be 0, got {storage_order}")
    seen = mask.astype(bool)
    if x.ndim > 3:
        seen.reshape(-1)[:1] = True
    win = window(x.shape[2:], kernel_shape, strides, None, pads, auto_pad)
    lowest = np.finfo(x.dtype).min
    y = np.full((*x.shape[:2], *win.output), lowest, x.dtype)
    for position in np.ndindex(win.output):
        low = [p * s - b for p, s, b in zip(position, win.strides, win.begin, strict=True)]
        part: tuple[Any, ...] = (..., *(slice(max(at, 0), max(at + k, 0)) for at, k in zip(low, win.kernel, strict=True)))
        inside = np.logical_and.accumulate(seen[part], axis=-1)
        values = np.where(inside, x[part], lowest)
        place: tuple[Any, ...] = (..., *position)
        y[place] = values.max(axis=tuple(range(2, x.ndim)), initial=lowest)
    return y


@operator("GridSample", domain=MICROSOFT)
def grid_sample(
    x: np.ndarray, grid: np.ndarray, *, align_corners: int = 0, mode: str = "bilinear", padding_mode: str = "zeros"
) -> np.ndarray:
    """The standard GridSample of images (N, C, H, W)."""
    require_rank("X", x, 4)
    return grid_sample_16(x, grid, align_corners=align_corners, mode=mode, padding_mode=padding_mode)


@operator("CropAndResize", domain=MICROSOFT, shape_inputs=(3,))
def crop_and_resize(
    x: np.ndarray,
    rois: np.ndarray,
    batch_indices: np.ndarray,
    crop_size: np.ndarray,
    *,
    extrapolation_value: float = 0.0,
    mode: str = "bilinear",
) -> np.ndarray:
    """Boxes (R, 4) of y1, x1, y2, x2 in [0, 1] of the images x (N, C, H, W) that batch_indices (R) name, resized to
    crop_size (height, width) with corners on corners: (R, C, height, width).

    What lies outside an image is `extrapolation_value`.
    """
    require_rank("X", x, 4)
    require_rank("batch_indices", batch_indices, 1)
    require_shape("rois", rois, (batch_indices.shape[0], 4))
    if mode not in ("bilinear", "nearest"):
        raise ValueError(f"mode must be bilinear or nearest, got {mode!r}")
    size = integers(crop_size, "crop_size")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"crop_size must be a positive height and width, got {size}")
    if batch_indices.size and not 0 <= int(batch_indices.min()) <= int(batch_indices.max()) < x.shape[0]:
        raise ValueError(f"batch_indices must lie in [0, {x.shape[0]}), got {batch_indices.min()} to {batch_indices.max()}")
    y = np.full(limit_shape((rois.shape[0], x.shape[1], *size)), extrapolation_value, x.dtype)
    for box, image, crop in zip(rois, batch_indices, y, strict=True):
        rows, columns = (_positions(box[i], box[i + 2], n, out) for i, (n, out) in enumerate(zip(x.shape[2:], size, strict=True)))
        inside = [(at >= 0) & (at <= n - 1) for at, n in zip((rows, columns), x.shape[2:], strict=True)]
        sampled = _sampled(x[image], rows[inside[0]], columns[inside[1]], mode)
        crop[:, inside[0][:, None] & inside[1]] = sampled.reshape(x.shape[1], -1)
    return y


def _positions(first: np.floating, last: np.floating, size: int, count: int) -> np.ndarray:
    """Where `count` rows of a crop lie in an image of `size` rows; a single one lies in the middle of the box."""
    if count == 1:
        return np.array([0.5 * (float(first) + float(last)) * (size - 1)], first.dtype)
    step = (last - first) * first.dtype.type(size - 1) / first.dtype.type(count - 1)
    at = first * first.dtype.type(size - 1) + np.arange(count, dtype=first.dtype) * step
    at[-1] = last * first.dtype.type(size - 1)
    return at


def _sampled(image: np.ndarray, rows: np.ndarray, columns: np.ndarray, mode: str) -> np.ndarray:
    """image (C, H, W) at all pairs of `rows` and `columns`, which lie inside it."""
    if mode == "nearest":  # halves away from zero
        return image[:, np.floor(rows + 0.5).astype(np.int64)[:, None], np.floor(columns + 0.5).astype(np.int64)]
    top, left = np.floor(rows).astype(np.int64), np.floor(columns).astype(np.int64)
    bottom, right = np.ceil(rows).astype(np.int64), np.ceil(columns).astype(np.int64)
    down, along = (rows - top)[:, None], columns - left
    above = image[:, top[:, None], left] + (image[:, top[:, None], right] - image[:, top[:, None], left]) * along
    below = image[:, bottom[:, None], left] + (image[:, bottom[:, None], right] - image[:, bottom[:, None], left]) * along
    return above + (below - above) * down
