"""Points beside centres: which is nearest, how far it is, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from qruntime._kernels import nearest_centers

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("centers", [1, 2, 15, 16, 17, 40])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_the_first_of_the_nearest(centers: int, dimensions: int) -> None:
    """Small whole numbers: many points are equally near to several centres."""
    points, among = (RNG.integers(-4, 5, (n, dimensions)).astype(np.float64) for n in (70, centers))
    labels, squares = np.full(70, -1), np.full(70, np.nan)
    nearest_centers(points, among, labels, squares)
    distances = ((points[:, None] - among) ** 2).sum(axis=2)
    np.testing.assert_array_equal(labels, distances.argmin(axis=1))
    np.testing.assert_array_equal(squares, distances.min(axis=1))


def test_sizes_of_zero() -> None:
    nearest_centers(np.empty((0, 2)), np.ones((3, 2)), np.empty(0, np.int64), np.empty(0))
    labels, squares = np.full(4, 7), np.full(4, 7.0)
    nearest_centers(np.empty((4, 0)), np.empty((3, 0)), labels, squares)
    assert not labels.any() and not squares.any()


def test_arguments_that_do_not_fit_are_refused() -> None:
    points, labels, squares = np.ones((4, 2)), np.empty(4, np.int64), np.empty(4)
    for given in (
        (points, np.ones((0, 2)), labels, squares),
        (points, np.ones((3, 1)), labels, squares),
        (points, points, labels[:3], squares),
        (points, points, labels, squares[:3]),
    ):
        with pytest.raises(ValueError, match="4 points of 2 numbers"):
            nearest_centers(*given)
