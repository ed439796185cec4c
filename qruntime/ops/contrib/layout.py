"""Operators that arrange, index and make tensors, mostly forerunners of standard ones."""

from __future__ import annotations

import numpy as np

from qruntime.ops.checks import limit_shape, normalize_axis, require_rank, scalar
from qruntime.ops.contrib.domain import MICROSOFT, standard
from qruntime.ops.registry import operator


@operator("SampleOp", domain=MICROSOFT)
def sample(x: np.ndarray) -> np.ndarray:
    """x itself."""
    return x


@operator("ExpandDims", domain=MICROSOFT, shape_inputs=(1,))
def expand_dims(x: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """x with a dimension of 1 at `axis` of the result."""
    return standard("Unsqueeze", x, scalar(axis, "axis").reshape(1))


@operator("Pad", domain=MICROSOFT, shape_inputs=(1,))
def pad(x: np.ndarray, pads: np.ndarray, value: np.ndarray | None = None, *, mode: str = "constant") -> np.ndarray:
    """The standard Pad; pads [2 · rank] or [1, 2 · rank], `value` one number."""
    if pads.ndim == 2 and pads.shape[0] == 1:
        pads = pads[0]
    return standard("Pad", x, pads, None if value is None else scalar(value, "value"), mode=mode)


@operator("Range", domain=MICROSOFT, shape_inputs=(0, 1, 2))
def range_(start: np.ndarray, limit: np.ndarray, delta: np.ndarray | None = None) -> np.ndarray:
    """The standard Range of scalars or vectors of one number, `delta` 1 when it is absent."""
    return standard("Range", start, limit, np.ones((), start.dtype) if delta is None else delta)


@operator("GatherND", domain=MICROSOFT)
def gather_nd(x: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """The standard GatherND without batch dimensions."""
    return standard("GatherND", x, indices)


@operator("Unique", domain=MICROSOFT, shape_inputs=None)
def unique(x: np.ndarray) -> tuple[np.ndarray, ...]:
    """The values of x [N] in the order in which they first occur, the place among them of every element, how often each occurs."""
    require_rank("the input", x, 1)
    values, first, places, counts = np.unique(x, return_index=True, return_inverse=True, return_counts=True, equal_nan=False)
    order = np.argsort(first)
    return values[order], np.argsort(order)[places], counts[order]


@operator("UnfoldTensor", domain=MICROSOFT)
def unfold_tensor(x: np.ndarray, *, size: int, dim: int = -1, step: int = 1) -> np.ndarray:
    """All slices of `size` elements along `dim`, `step` apart, as a new last dimension."""
    axis = normalize_axis(dim, x.ndim, "dim")
    if not 1 <= size <= x.shape[axis] or step < 1:
        raise ValueError(
            f"needs a size in [1, {x.shape[axis]}], the length of dimension {axis}, and a positive step, got size {size} and step {step}"
        )
    count = (x.shape[axis] - size) // step + 1
    limit_shape((*x.shape[:axis], count, *x.shape[axis + 1 :], size))
    windows = np.lib.stride_tricks.sliding_window_view(x, size, axis)
    return np.ascontiguousarray(windows[(slice(None),) * axis + (slice(None, None, step),)])
