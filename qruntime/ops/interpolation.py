"""Sampling of images at fractional positions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

FAR = 2.0**30
"""Coordinates are clipped to this, which is outside of any image, before they become integers."""


def finite_coordinates(x: np.ndarray) -> np.ndarray:
    """Coordinates that can be cast to integers: NaN becomes -FAR, the rest is clipped to ±FAR."""
    return np.clip(np.where(np.isnan(x), -FAR, x), -FAR, FAR)


def cubic_weights(fraction: np.ndarray, a: float) -> list[np.ndarray]:
    """Weights of the four neighbours -1, 0, 1, 2 for positions `fraction` past neighbour 0 (Keys, 1981)."""
    return [cubic_kernel(fraction - t, a) for t in (-1, 0, 1, 2)]


def cubic_kernel(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' convolution kernel with the free parameter `a`."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0)).astype(x.dtype)


def gather_weighted(
    image: np.ndarray,
    taps: Sequence[Sequence[tuple[np.ndarray, np.ndarray | None]]],
    outside: Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray | None]],
) -> np.ndarray:
    """Weighted sum over the product of per-axis taps.

    image (C, *spatial); taps[axis] is a list of (index, weight or None), each of shape (P); `outside`
    maps the indices of an axis into the image and says which are inside (None: all). Returns (C, P).
    """
    spatial = image.shape[1:]
    flat = image.reshape(image.shape[0], math.prod(spatial))
    mapped = []
    for axis, axis_taps in enumerate(taps):
        entries = []
        for neighbour, share in axis_taps:
            place, inside = outside(axis, neighbour)
            if inside is not None:
                share = inside.astype(image.dtype) if share is None else np.where(inside, share, 0)
            entries.append((place, share))
        mapped.append(entries)
    result = np.zeros((image.shape[0], len(taps[0][0][0])), image.dtype)
    if flat.shape[1] == 0:
        return result
    for combination in itertools.product(*mapped):
        index: np.ndarray | int = 0
        weight: np.ndarray | None = None
        for size, (i, w) in zip(spatial, combination, strict=True):
            index = index * size + i
            if w is not None:
                weight = w if weight is None else weight * w
        values = flat[:, index]
        if weight is None:
            result += values
        else:
            # A weight of zero hides the value, even Inf and NaN: it may stand for padding.
            result += np.where(weight == 0, 0, values) * weight
    return result


def zeros_outside(spatial: Sequence[int]) -> Callable[[int, np.ndarray], tuple[np.ndarray, np.ndarray | None]]:
    """Rule for `gather_weighted`: values outside the image are zero."""

    def rule(axis: int, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inside = (index >= 0) & (index < spatial[axis])
        return np.where(inside, index, 0), inside

    return rule


def linear_taps(x: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The two neighbours of each position with their weights."""
    x = finite_coordinates(x)
    low = np.floor(x)
    index, fraction = low.astype(np.int64), x - low
    return [(index, 1 - fraction), (index + 1, fraction)]


def sample_linear(image: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
    """Multilinear samples (C, P) of image (C, *spatial) at coordinates (rank, P); zero outside."""
    return gather_weighted(image, [linear_taps(x) for x in coordinates], zeros_outside(image.shape[1:]))
