"""Points beside centres: which is nearest, how far it is, what rounds of k-means make of them, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from qruntime._kernels import nearest_centers, settle_centers

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


def settled(points: np.ndarray, centers: np.ndarray, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Of one start, as numpy has it."""
    labels = ((points[:, None] - centers) ** 2).sum(axis=2).argmin(axis=1)
    for _ in range(rounds):
        sizes = np.bincount(labels, minlength=len(centers))
        sums = np.stack([np.bincount(labels, own, minlength=len(centers)) for own in points.T], axis=1)
        centers = sums[sizes > 0] / sizes[sizes > 0, None]
        distances = ((points[:, None] - centers) ** 2).sum(axis=2)
        if np.array_equal(labels, distances.argmin(axis=1)):
            break
        labels = distances.argmin(axis=1)
    return labels, distances.min(axis=1)


@pytest.mark.parametrize("centers", [1, 3, 16, 33])
@pytest.mark.parametrize("rounds", [1, 2, 100])
def test_rounds_from_several_starts(centers: int, rounds: int) -> None:
    """Whole numbers leave some centers without points: they are dropped. What a start makes is what it makes alone."""
    for points in (RNG.integers(-4, 5, (90, 2)).astype(np.float64), RNG.standard_normal((90, 2))):
        starts = points[RNG.integers(90, size=(5, centers))]
        labels, squares = np.full((5, 90), -1), np.full((5, 90), np.nan)
        settle_centers(points, starts.copy(), labels, squares, rounds)
        for number, start in enumerate(starts):
            wanted = settled(points, start, rounds)
            np.testing.assert_array_equal(labels[number], wanted[0])
            np.testing.assert_array_equal(squares[number], wanted[1])


def test_starts_that_do_not_fit_are_refused() -> None:
    points, labels, squares = np.ones((4, 2)), np.empty((3, 4), np.int64), np.empty((3, 4))
    for given in (
        (points, np.ones((3, 0, 2)), labels, squares),
        (points, np.ones((3, 5, 1)), labels, squares),
        (points, np.ones((2, 5, 2)), labels, squares),
        (points, np.ones((3, 5, 2)), labels[:, :3].copy(), squares),
        (points, np.ones((3, 5, 2)), labels, squares[:2]),
        (points[:0], np.ones((3, 5, 2)), labels[:, :0].copy(), squares[:, :0].copy()),
    ):
        with pytest.raises(ValueError, match="points of 2 numbers need several centers"):
            settle_centers(*given, 10)
