"""Operators that arrange elements without computing: reshape, transpose, join, cut, pad."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qruntime import _kernels
from qruntime.ir import Node
from qruntime.ops.checks import integers, limit_shape, normalize_axes, normalize_axis, same_dtype, scalar
from qruntime.ops.registry import NativeCall, operator


def _reshape(x: np.ndarray, shape: list[int], allowzero: int) -> np.ndarray:
    """0 copies the input's dimension (unless `allowzero`), one −1 takes what is left."""
    if any(d < -1 for d in shape) or shape.count(-1) > 1:
        raise ValueError(f"a shape may hold one -1 and nothing below, got {shape}")
    if allowzero and 0 in shape and -1 in shape:
        raise ValueError(f"with allowzero a shape cannot hold both 0 and -1, got {shape}")
    target = list(shape)
    if not allowzero:
        for i, d in enumerate(shape):
            if d == 0:
                if i >= x.ndim:
                    raise ValueError(f"shape {shape} copies dimension {i} of an input of shape {x.shape}")
                target[i] = x.shape[i]
    known = math.prod(d for d in target if d != -1)
    if -1 in target:
        if known == 0 or x.size % known:
            raise ValueError(f"cannot reshape {x.shape} to {shape}: {x.size} elements do not divide by {known}")
        target[target.index(-1)] = x.size // known
    elif known != x.size:
        raise ValueError(f"cannot reshape {x.shape} to {shape}: {x.size} elements are not {known}")
    return x.reshape(target)


@operator("Reshape", since=5, shape_inputs=(1,))
def reshape(x: np.ndarray, shape: np.ndarray, *, allowzero: int = 0) -> np.ndarray:
    return _reshape(x, integers(shape, "shape"), allowzero)


@reshape.native
def _(node: Node) -> NativeCall:
    return NativeCall("reshape", ints=[node.attr("allowzero", 0)], inputs=[0, 1])


@operator("Reshape", since=1)
def reshape_1(x: np.ndarray, *, shape: Sequence[int] = ()) -> np.ndarray:
    return _reshape(x, list(shape), allowzero=0)


@reshape_1.native
def _(node: Node) -> NativeCall:
    return NativeCall("reshape", ints=[0, *node.attr("shape", ())], inputs=[0])


@operator("Flatten", since=1)
def flatten(x: np.ndarray, *, axis: int = 1) -> np.ndarray:
    """A matrix: the dimensions before `axis`, and the rest."""
    if not -x.ndim <= axis <= x.ndim:
        raise ValueError(f"axis must lie in [{-x.ndim}, {x.ndim}], got {axis}")
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@flatten.native
def _(node: Node) -> NativeCall:
    return NativeCall("flatten", ints=[node.attr("axis", 1)])


def _squeeze(x: np.ndarray, axes: list[int] | None) -> np.ndarray:
    if axes is None:
        return x.reshape([d for d in x.shape if d != 1])
    gone = normalize_axes(axes, x.ndim)
    for axis in gone:
        if x.shape[axis] != 1:
            raise ValueError(f"axis {axis} cannot be squeezed: shape {x.shape}")
    return x.reshape([d for i, d in enumerate(x.shape) if i not in gone])


@operator("Squeeze", since=13, shape_inputs=(1,))
def squeeze(x: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
    return _squeeze(x, None if axes is None else integers(axes, "axes"))


@squeeze.native
def _(node: Node) -> NativeCall:
    return NativeCall("squeeze", inputs=[0, 1])


@operator("Squeeze", since=1)
def squeeze_1(x: np.ndarray, *, axes: Sequence[int] | None = None) -> np.ndarray:
    return _squeeze(x, None if axes is None else list(axes))


@squeeze_1.native
def _(node: Node) -> NativeCall | None:
    axes = node.attr("axes")
    return None if axes == () else NativeCall("squeeze", ints=axes or (), inputs=[0])


def _unsqueeze(x: np.ndarray, axes: list[int]) -> np.ndarray:
    new = normalize_axes(axes, x.ndim + len(axes))
    dims = iter(x.shape)
    return x.reshape([1 if i in new else next(dims) for i in range(x.ndim + len(axes))])


@operator("Unsqueeze", since=13, shape_inputs=(1,))
def unsqueeze(x: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """`axes` refer to the output."""
    return _unsqueeze(x, integers(axes, "axes"))


@unsqueeze.native
def _(node: Node) -> NativeCall:
    return NativeCall("unsqueeze", inputs=[0, 1])


@operator("Unsqueeze", since=1)
def unsqueeze_1(x: np.ndarray, *, axes: Sequence[int]) -> np.ndarray:
    return _unsqueeze(x, list(axes))


@unsqueeze_1.native
def _(node: Node) -> NativeCall:
    return NativeCall("unsqueeze", ints=node.attr("axes"), inputs=[0])


@operator("Transpose", since=1)
def transpose(x: np.ndarray, *, perm: Sequence[int] | None = None) -> np.ndarray:
    """Dimension i of the output is dimension perm[i] of the input; reversed without `perm`."""
    if perm is None:
        return x.transpose()
    if sorted(perm) != list(range(x.ndim)):
        raise ValueError(f"perm must be a permutation of 0 to {x.ndim - 1}, got {list(perm)}")
    return x.transpose(perm)


@transpose.native
def _(node: Node) -> NativeCall | None:
    perm = node.attr("perm")
    return None if perm == () else NativeCall("transpose", ints=perm or ())


@operator("Expand", since=8, shape_inputs=(1,))
def expand(x: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """`x` broadcast together with `shape`: a dimension of 1 on either side stretches."""
    wanted = integers(shape, "shape")
    rank = max(x.ndim, len(wanted))
    dims = (1,) * (rank - x.ndim) + x.shape
    wanted = [1] * (rank - len(wanted)) + wanted
    if any(d != w and d != 1 and w != 1 for d, w in zip(dims, wanted, strict=True)):
        raise ValueError(f"shape {x.shape} cannot be expanded to {wanted}")
    target = limit_shape(w if d == 1 else d for d, w in zip(dims, wanted, strict=True))
    return np.broadcast_to(x, target).copy()


@expand.native
def _(node: Node) -> NativeCall:
    return NativeCall("expand")


def _tile(x: np.ndarray, repeats: list[int]) -> np.ndarray:
    if len(repeats) != x.ndim:
        raise ValueError(f"one repeat per dimension is needed, got {repeats} for shape {x.shape}")
    limit_shape(repeats, "repeats")
    limit_shape(d * r for d, r in zip(x.shape, repeats, strict=True))
    return np.tile(x, repeats)


@operator("Tile", since=6, shape_inputs=(1,))
def tile(x: np.ndarray, repeats: np.ndarray) -> np.ndarray:
    return _tile(x, integers(repeats, "repeats"))


@tile.native
def _(node: Node) -> NativeCall:
    return NativeCall("tile")


@operator("Tile", since=1, shape_inputs=(1, 2))
def tile_1(x: np.ndarray, tiles: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """`tiles` copies along one axis."""
    repeats = [1] * x.ndim
    repeats[normalize_axis(int(scalar(axis, "axis")), x.ndim)] = int(scalar(tiles, "tiles"))
    return _tile(x, repeats)


def concatenate(inputs: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """Join along `axis`; all other dimensions must agree."""
    if not inputs:
        raise ValueError("at least one tensor is needed, got none")
    same_dtype(*inputs)
    first = inputs[0]
    axis = normalize_axis(axis, first.ndim)
    others = first.shape[:axis] + first.shape[axis + 1 :]
    for x in inputs:
        if x.ndim != first.ndim or x.shape[:axis] + x.shape[axis + 1 :] != others:
            raise ValueError(f"shapes must agree except at axis {axis}, got {[x.shape for x in inputs]}")
    return np.concatenate(inputs, axis)


@operator("Concat", since=1)
def concat(*inputs: np.ndarray, axis: int = 1) -> np.ndarray:
    return concatenate(inputs, axis)


@concat.native
def _(node: Node) -> NativeCall:
    return NativeCall("concat", ints=[node.attr("axis", 1)])


def split_at(x: np.ndarray, sizes: list[int], axis: int) -> tuple[np.ndarray, ...]:
    """Pieces of the given sizes, which must fill the axis."""
    if any(s < 0 for s in sizes) or sum(sizes) != x.shape[axis]:
        raise ValueError(f"sizes must sum to {x.shape[axis]}, dimension {axis} of {x.shape}, got {sizes}")
    pieces, start = [], 0
    for length in sizes:
        pieces.append(x[(slice(None),) * axis + (slice(start, start + length),)])
        start += length
    return tuple(pieces)


def _split(x: np.ndarray, sizes: Sequence[int] | np.ndarray | None, axis: int, count: int, uneven: bool) -> tuple[np.ndarray, ...]:
    axis = normalize_axis(axis, x.ndim)
    if sizes is not None:
        parts = integers(sizes, "split")
        if len(parts) != count:
            raise ValueError(f"{count} outputs need as many sizes, got {parts}")
        return split_at(x, parts, axis)
    total = x.shape[axis]
    if count < 1 or (total % count and not uneven):
        raise ValueError(f"dimension {axis} of {x.shape} cannot be split evenly into {count}")
    chunk = -(-total // count)
    return split_at(x, [min(chunk, max(total - i * chunk, 0)) for i in range(count)], axis)


@operator("Split", since=18, shape_inputs=(1,))
def split(x: np.ndarray, sizes: np.ndarray | None = None, *, axis: int = 0, num_outputs: int) -> tuple[np.ndarray, ...]:
    """Pieces of the given sizes, or `num_outputs` equal ones of which the last may be smaller."""
    return _split(x, sizes, axis, num_outputs, uneven=True)


@split.native
def _(node: Node) -> NativeCall:
    return NativeCall("split", ints=[node.attr("axis", 0), 1], inputs=[0, 1])


@operator("Split", since=13, shape_inputs=(1,))
def split_13(x: np.ndarray, sizes: np.ndarray | None = None, *, axis: int = 0, num_outputs: int) -> tuple[np.ndarray, ...]:
    return _split(x, sizes, axis, num_outputs, uneven=False)


@split_13.native
def _(node: Node) -> NativeCall:
    return NativeCall("split", ints=[node.attr("axis", 0), 0], inputs=[0, 1])


@operator("Split", since=2)
def split_2(x: np.ndarray, *, axis: int = 0, split: Sequence[int] | None = None, num_outputs: int) -> tuple[np.ndarray, ...]:
    return _split(x, split, axis, num_outputs, uneven=False)


@split_2.native
def _(node: Node) -> NativeCall:
    return NativeCall("split", ints=[node.attr("axis", 0), 0, *node.attr("split", ())], inputs=[0])


@operator("Split", since=1, shape_inputs=(1,))
def split_1(
    x: np.ndarray,
    sizes: np.ndarray | None = None,
    *,
    axis: int = 0,
    split: Sequence[int] | None = None,
    num_outputs: int,
) -> tuple[np.ndarray, ...]:
    return _split(x, split if sizes is None else sizes, axis, num_outputs, uneven=False)


def _clamp(value: int, low: int, high: int) -> int:
    return max(low, min(value, high))


def _slice(x: np.ndarray, starts: list[int], ends: list[int], axes: list[int], steps: list[int]) -> np.ndarray:
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise ValueError(f"starts, ends, axes and steps differ in length: {starts}, {ends}, {axes}, {steps}")
    window = [slice(None)] * x.ndim
    for axis, start, end, step in zip(normalize_axes(axes, x.ndim), starts, ends, steps, strict=True):
        size = x.shape[axis]
        if step == 0:
            raise ValueError(f"steps must not be 0, got {steps}")
        start = start + size if start < 0 else start
        end = end + size if end < 0 else end
        if size == 0:
            continue
        if step > 0:
            window[axis] = slice(_clamp(start, 0, size), _clamp(end, 0, size), step)
        else:
            last = _clamp(end, -1, size - 1)
            window[axis] = slice(_clamp(start, 0, size - 1), None if last < 0 else last, step)
    return x[tuple(window)]


@operator("Slice", since=10, shape_inputs=(1, 2, 3, 4))
def slice_(
    x: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    axes: np.ndarray | None = None,
    steps: np.ndarray | None = None,
) -> np.ndarray:
    """Windows with steps; what lies outside of a dimension is cut."""
    first = integers(starts, "starts")
    return _slice(
        x,
        first,
        integers(ends, "ends"),
        list(range(len(first))) if axes is None else integers(axes, "axes"),
        [1] * len(first) if steps is None else integers(steps, "steps"),
    )


@slice_.native
def _(node: Node) -> NativeCall:
    return NativeCall("slice", inputs=[0, 1, 2, 3, 4])


@operator("Slice", since=1)
def slice_1(x: np.ndarray, *, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int] | None = None) -> np.ndarray:
    chosen = list(range(len(starts))) if axes is None else list(axes)
    return _slice(x, list(starts), list(ends), chosen, [1] * len(starts))


@slice_1.native
def _(node: Node) -> NativeCall | None:
    starts, ends = node.attr("starts"), node.attr("ends")
    axes = node.attr("axes", tuple(range(len(starts))))
    if not len(starts) == len(ends) == len(axes):
        return None
    return NativeCall("slice", ints=[*starts, *ends, *axes, *(1 for _ in starts)], inputs=[0])


def _source_positions(mode: str, before: int, size: int, after: int) -> np.ndarray:
    """For each position along a padded axis, where its element comes from."""
    positions = np.arange(-before, size + after)
    if mode == "edge":
        return np.clip(positions, 0, size - 1)
    if mode == "wrap":
        return positions % size
    period = max(2 * (size - 1), 1)
    positions = positions % period
    return np.minimum(positions, period - positions) if size > 1 else positions * 0


def _pad(x: np.ndarray, pads: list[int], mode: str, fill: np.ndarray, axes: list[int] | None) -> np.ndarray:
    if mode not in ("constant", "reflect", "edge", "wrap"):
        raise ValueError(f"mode must be constant, reflect, edge or wrap, got {mode!r}")
    chosen = normalize_axes(range(x.ndim) if axes is None else axes, x.ndim)
    if len(pads) != 2 * len(chosen):
        raise ValueError(f"{len(chosen)} axes need {2 * len(chosen)} pads, got {len(pads)}")
    amounts = dict(zip(chosen, zip(pads[: len(chosen)], pads[len(chosen) :], strict=True), strict=True))
    before, after = ([amounts.get(axis, (0, 0))[side] for axis in range(x.ndim)] for side in (0, 1))
    for b, d, a in zip(before, x.shape, after, strict=True):
        if min(b, 0) + d + min(a, 0) < 0:
            raise ValueError(f"pads {pads} cut more than there is in shape {x.shape}")
    target = limit_shape(b + d + a for b, d, a in zip(before, x.shape, after, strict=True))
    if mode == "constant":
        y = np.full(target, fill, x.dtype)
        inner = tuple(slice(max(b, 0), t - max(a, 0)) for b, t, a in zip(before, target, after, strict=True))
        y[inner] = x[tuple(slice(max(-b, 0), d - max(-a, 0)) for b, d, a in zip(before, x.shape, after, strict=True))]
        return y
    y = x
    for axis, (b, a) in amounts.items():
        if b or a:
            if x.shape[axis] == 0 and target[axis]:
                raise ValueError(f"mode {mode!r} needs elements to repeat, got shape {x.shape}")
            y = np.take(y, _source_positions(mode, b, x.shape[axis], a), axis)
    return y


def _zero(dtype: np.dtype) -> np.ndarray:
    return np.array("", object) if dtype.kind == "O" else np.zeros((), dtype)


@operator("Pad", since=11, shape_inputs=(1, 3))
def pad(
    x: np.ndarray,
    pads: np.ndarray,
    value: np.ndarray | None = None,
    axes: np.ndarray | None = None,
    *,
    mode: str = "constant",
) -> np.ndarray:
    """`pads` are all begins, then all ends; negative ones cut."""
    fill = _zero(x.dtype) if value is None else scalar(value, "constant_value")
    same_dtype(x, fill)
    return _pad(x, integers(pads, "pads"), mode, fill, None if axes is None else integers(axes, "axes"))


@pad.native
def _(node: Node) -> NativeCall:
    return NativeCall("pad", ints=[_kernels.PAD_MODE[node.attr("mode", "constant")]], inputs=[0, 1, 2, 3])


def _pad_by_attributes(node: Node, pads: Sequence[int]) -> NativeCall:
    mode = _kernels.PAD_MODE[node.attr("mode", "constant")]
    return NativeCall("pad", ints=[mode, *pads], floats=[node.attr("value", 0.0)], inputs=[0])


@operator("Pad", since=2)
def pad_2(x: np.ndarray, *, pads: Sequence[int], mode: str = "constant", value: float = 0.0) -> np.ndarray:
    return _pad(x, list(pads), mode, np.asarray(value).astype(x.dtype), None)


@pad_2.native
def _(node: Node) -> NativeCall:
    return _pad_by_attributes(node, node.attr("pads"))


@operator("Pad", since=1)
def pad_1(x: np.ndarray, *, paddings: Sequence[int], mode: str = "constant", value: float = 0.0) -> np.ndarray:
    return _pad(x, list(paddings), mode, np.asarray(value).astype(x.dtype), None)


@pad_1.native
def _(node: Node) -> NativeCall:
    return _pad_by_attributes(node, node.attr("paddings"))


@operator("CenterCropPad", since=18, shape_inputs=(1,))
def center_crop_pad(x: np.ndarray, shape: np.ndarray, *, axes: Sequence[int] | None = None) -> np.ndarray:
    """Cut or pad with zeros around the centre; odd rests go to the end."""
    wanted = integers(shape, "shape")
    chosen = normalize_axes(range(x.ndim) if axes is None else axes, x.ndim)
    if len(wanted) != len(chosen):
        raise ValueError(f"{len(chosen)} axes need as many sizes, got {wanted}")
    limit_shape(wanted, "shape")
    before, after = [], []
    for axis, size in zip(chosen, wanted, strict=True):
        extra = size - x.shape[axis]
        before.append(extra // 2 if extra > 0 else -(-extra // 2))
        after.append(extra - before[-1])
    return _pad(x, before + after, "constant", _zero(x.dtype), list(chosen))


_IMAGE_MODES = ("DCR", "CRD")


def _image_blocks(x: np.ndarray, blocksize: int, mode: str) -> tuple[int, int, int, int]:
    if x.ndim != 4:
        raise ValueError(f"a tensor [N, C, H, W] is needed, got shape {x.shape}")
    if blocksize < 1 or mode not in _IMAGE_MODES:
        raise ValueError(f"blocksize must be positive and mode DCR or CRD, got {blocksize} and {mode!r}")
    return x.shape


@operator("DepthToSpace", since=1)
def depth_to_space(x: np.ndarray, *, blocksize: int, mode: str = "DCR") -> np.ndarray:
    n, c, h, w = _image_blocks(x, blocksize, mode)
    if c % blocksize**2:
        raise ValueError(f"{c} channels do not divide by {blocksize}²")
    depth = c // blocksize**2
    if mode == "DCR":
        y = x.reshape(n, blocksize, blocksize, depth, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, depth, blocksize, blocksize, h, w).transpose(0, 1, 4, 2, 5, 3)
    return y.reshape(n, depth, h * blocksize, w * blocksize)


@depth_to_space.native
def _(node: Node) -> NativeCall:
    return NativeCall("depth_to_space", ints=[node.attr("blocksize"), _IMAGE_MODES.index(node.attr("mode", "DCR"))])


@operator("SpaceToDepth", since=1)
def space_to_depth(x: np.ndarray, *, blocksize: int, mode: str = "DCR") -> np.ndarray:
    n, c, h, w = _image_blocks(x, blocksize, mode)
    if h % blocksize or w % blocksize:
        raise ValueError(f"{h}×{w} does not divide into blocks of {blocksize}×{blocksize}")
    blocks = x.reshape(n, c, h // blocksize, blocksize, w // blocksize, blocksize)
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return blocks.transpose(order).reshape(n, c * blocksize**2, h // blocksize, w // blocksize)


@space_to_depth.native
def _(node: Node) -> NativeCall:
    return NativeCall("space_to_depth", ints=[node.attr("blocksize"), _IMAGE_MODES.index(node.attr("mode", "DCR"))])


@operator("Trilu", since=14)
def trilu(x: np.ndarray, k: np.ndarray | None = None, *, upper: int = 1) -> np.ndarray:
    """Keep the elements on and above (below with upper=0) diagonal `k`; zero elsewhere."""
    if x.ndim < 2:
        raise ValueError(f"matrices are needed, got shape {x.shape}")
    rows, columns = np.ogrid[: x.shape[-2], : x.shape[-1]]
    diagonal = 0 if k is None else int(scalar(k, "k"))
    # a diagonal beyond the matrix selects all or nothing; clamped, it cannot overflow
    diagonal = _clamp(diagonal, -x.shape[-2] - 1, x.shape[-1] + 1)
    keep = columns - rows >= diagonal if upper else columns - rows <= diagonal
    return np.where(keep, x, _zero(x.dtype)).astype(x.dtype, copy=False)


@trilu.native
def _(node: Node) -> NativeCall:
    return NativeCall("trilu", ints=[node.attr("upper", 1)])
