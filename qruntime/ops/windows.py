"""Geometry of sliding windows: what convolutions and poolings have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from qruntime.ops.checks import limit_shape

AUTO_PADS = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")


class Window(NamedTuple):
    """One value per spatial axis each: kernel, strides, dilations, padding in front, positions."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    output: tuple[int, ...]

    @property
    def extents(self) -> tuple[int, ...]:
        """Input positions from the first to the last tap, both included."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    def tap(self, index: Sequence[int]) -> tuple[slice, ...]:
        """Slices of the padded axes that tap `index` of the kernel meets, one element per position."""
        return tuple(
            slice(t * d, t * d + (o - 1) * s + 1 if o else t * d, s)
            for t, d, s, o in zip(index, self.dilations, self.strides, self.output, strict=True)
        )


def per_axis(name: str, values: Sequence[int] | None, rank: int, default: int, low: int) -> tuple[int, ...]:
    """Attribute with one integer per axis; ValueError for a wrong count or a value below `low`."""
    values = (default,) * rank if values is None else tuple(int(v) for v in values)
    if len(values) != rank:
        raise ValueError(f"{name} must have {rank} values, one per spatial axis, got {values}")
    if any(v < low for v in values):
        raise ValueError(f"{name} must be at least {low}, got {values}")
    return values


def window(
    spatial: Sequence[int],
    kernel: Sequence[int] | None,
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
) -> Window:
    """Resolve the attributes of a convolution or pooling over axes of the sizes `spatial`.

    Raises ValueError for attributes of a wrong length or sign and for kernels larger than the padded input.
    """
    rank = len(spatial)
    if kernel is None:
        raise ValueError("kernel_shape is needed")
    kernel = per_axis("kernel_shape", kernel, rank, 1, 1)
    strides = per_axis("strides", strides, rank, 1, 1)
    dilations = per_axis("dilations", dilations, rank, 1, 1)
    auto_pad = auto_pad or "NOTSET"
    if auto_pad not in AUTO_PADS:
        raise ValueError(f"auto_pad must be one of {', '.join(AUTO_PADS)}, got {auto_pad!r}")
    extents = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    begin, end = [0] * rank, [0] * rank
    if auto_pad == "NOTSET" and pads is not None:
        pads = per_axis("pads", pads, 2 * rank, 0, 0)
        begin, end = list(pads[:rank]), list(pads[rank:])
    output = []
    for i, (size, extent, stride) in enumerate(zip(spatial, extents, strides, strict=True)):
        if auto_pad.startswith("SAME"):
            out = -(-size // stride)
            total = max((out - 1) * stride + extent - size, 0)
            smaller, larger = total // 2, total - total // 2
            begin[i], end[i] = (smaller, larger) if auto_pad == "SAME_UPPER" else (larger, smaller)
        else:
            room = size + begin[i] + end[i] - extent
            if room < 0 and size:
                raise ValueError(
                    f"the kernel reaches over {extent} positions of axis {i + 2}, which has {size} and {begin[i] + end[i]} of padding"
                )
            out = max(room // stride + 1, 0)
            # A window that would start in the padding behind the input does not count.
            if ceil_mode and auto_pad == "NOTSET" and room % stride and out * stride < size + begin[i]:
                out += 1
        output.append(out)
    return Window(kernel, strides, dilations, tuple(begin), tuple(end), tuple(output))


def padded(x: np.ndarray, w: Window, fill: Any = 0) -> np.ndarray:
    """`x` (N, C, *spatial) with exactly the positions around it that the windows reach; a view if none."""
    needed = [(o - 1) * s + e if o else 0 for o, s, e in zip(w.output, w.strides, w.extents, strict=True)]
    spatial = x.shape[2:]
    if not any(w.begin) and all(n <= size for n, size in zip(needed, spatial, strict=True)):
        return x
    result = np.full(limit_shape((*x.shape[:2], *needed), "the padded input"), fill, x.dtype)
    target, source = [slice(None)] * 2, [slice(None)] * 2
    for n, size, b in zip(needed, spatial, w.begin, strict=True):
        count = max(min(size, n - b), 0)
        target.append(slice(b, b + count))
        source.append(slice(0, count))
    result[tuple(target)] = x[tuple(source)]
    return result


def windows_view(x: np.ndarray, w: Window) -> np.ndarray:
    """View (N, C, *output, *kernel) of a padded input; every output position must be non-empty."""
    strides = x.strides[2:]
    return np.lib.stride_tricks.as_strided(
        x,
        (*x.shape[:2], *w.output, *w.kernel),
        (
            *x.strides[:2],
            *(a * s for a, s in zip(strides, w.strides, strict=True)),
            *(a * d for a, d in zip(strides, w.dilations, strict=True)),
        ),
        writeable=False,
    )


def reduce_windows(ufunc: np.ufunc, x: np.ndarray, w: Window) -> np.ndarray:
    """Reduce every window of a padded input with `ufunc`, one axis after the other, innermost first."""
    for i in reversed(range(len(w.kernel))):
        if w.output[i] == 1:
            whole = slice(0, w.extents[i], w.dilations[i])
            x = ufunc.reduce(_part(x, i, whole), axis=i + 2, keepdims=True)
            continue
        acc = _part(x, i, _axis_tap(w, i, 0)).copy()
        for t in range(1, w.kernel[i]):
            ufunc(acc, _part(x, i, _axis_tap(w, i, t)), out=acc)
        x = acc
    return x


def _part(x: np.ndarray, i: int, positions: slice) -> np.ndarray:
    """`positions` of spatial axis `i`."""
    index = (*(slice(None),) * (i + 2), positions)
    return x[index]


def _axis_tap(w: Window, i: int, t: int) -> slice:
    first = t * w.dilations[i]
    return slice(first, first + (w.output[i] - 1) * w.strides[i] + 1 if w.output[i] else first, w.strides[i])


def axis_taps(x: np.ndarray, w: Window, i: int) -> list[np.ndarray]:
    """Views of a padded input along spatial axis `i`, one per tap of the kernel."""
    return [_part(x, i, _axis_tap(w, i, t)) for t in range(w.kernel[i])]


def tap_counts(w: Window, spatial: Sequence[int], include_pad: bool) -> np.ndarray:
    """Number of taps (shape *output) that meet the input, or the input and its declared padding."""
    counts = np.ones((), np.int64)
    for i, size in enumerate(spatial):
        low, high = (0, w.begin[i] + size + w.end[i]) if include_pad else (w.begin[i], w.begin[i] + size)
        starts = np.arange(w.output[i]) * w.strides[i]
        first, last = (np.clip(-((starts - edge) // w.dilations[i]), 0, w.kernel[i]) for edge in (low, high))
        counts = counts[..., None] * np.maximum(last - first, 0)
    return counts
