"""Drawn digits: data for examples, made here and always the same. They are no handwriting, and no benchmark.

A digit is a few strokes. Each picture bends its strokes, turns, slants, stretches and moves them, draws them with a pen of some
width, and adds noise and a smudge.
"""

from __future__ import annotations

import numpy as np

SIZE = 14
"""Pixels of a side."""

STROKES = {
    0: [[(5, 0), (2, 1), (0, 4), (0, 8), (2, 11), (5, 12), (8, 11), (10, 8), (10, 4), (8, 1), (5, 0)]],
    1: [[(2, 3), (6, 0), (6, 12)]],
    2: [[(1, 3), (2, 1), (5, 0), (8, 1), (9, 3), (8, 6), (1, 12), (10, 12)]],
    3: [[(1, 1), (5, 0), (9, 2), (8, 5), (4, 6), (9, 8), (9, 10), (5, 12), (1, 11)]],
    4: [[(7, 12), (7, 0), (0, 8), (10, 8)]],
    5: [[(9, 0), (2, 0), (1, 5), (6, 5), (9, 8), (8, 11), (5, 12), (1, 11)]],
    6: [[(8, 0), (3, 3), (0, 8), (2, 11), (6, 12), (9, 10), (8, 7), (4, 6), (1, 8)]],
    7: [[(0, 0), (10, 0), (4, 12)]],
    8: [[(5, 6), (1, 4), (2, 1), (5, 0), (8, 1), (9, 4), (5, 6), (0, 9), (2, 11), (5, 12), (8, 11), (10, 9), (5, 6)]],
    9: [[(9, 4), (6, 6), (2, 5), (1, 2), (4, 0), (8, 1), (9, 4), (8, 9), (5, 12)]],
}
"""Lines from point to point in a box 10 wide and 12 high, y downwards."""


def digits(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures [count, 1, SIZE, SIZE] float32 from 0 to 1, and what they show, int64 [count]."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 10, count)
    pictures = np.stack([_picture(int(label), random) for label in labels])
    return pictures[:, None].astype(np.float32), labels.astype(np.int64)


def _picture(label: int, random: np.random.Generator) -> np.ndarray:
    starts, ends = [], []
    for stroke in STROKES[label]:
        points = _moved((np.array(stroke, float) - (5, 6)) / 12, random)
        starts.append(points[:-1])
        ends.append(points[1:])
    pen, ink = random.uniform(0.03, 0.075), random.uniform(0.6, 1.0)
    picture = ink * _drawn(np.concatenate(starts), np.concatenate(ends), pen)
    smudge = random.uniform(-0.5, 0.5, (2, 2))
    picture = np.maximum(picture, random.uniform(0.2, 0.8) * _drawn(smudge[:1], smudge[:1] + 0.3 * smudge[1:], 0.03))
    return np.clip(picture + random.normal(0, 0.12, picture.shape), 0, 1)


def _moved(points: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Points around (0, 0), bent, then by a random affine map."""
    angle, slant = random.normal(0, 0.2), random.normal(0, 0.25)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shape = turn @ np.array([[random.uniform(0.6, 1.0), slant], [0, random.uniform(0.6, 0.95)]])
    return (points + random.normal(0, 0.025, points.shape)) @ shape.T + random.uniform(-0.12, 0.12, 2)


def _drawn(starts: np.ndarray, ends: np.ndarray, pen: float) -> np.ndarray:
    """Lines [n, 2] in a box from −0.5 to 0.5, drawn by a pen of that radius, with soft edges."""
    axis = (np.arange(SIZE) + 0.5) / SIZE - 0.5
    pixels = np.stack(np.meshgrid(axis, axis), -1)[..., None, :]
    along = ends - starts
    share = np.clip(((pixels - starts) * along).sum(-1) / np.maximum((along**2).sum(-1), 1e-9), 0, 1)
    distance = np.sqrt(((pixels - starts - share[..., None] * along) ** 2).sum(-1)).min(-1)
    return np.clip((pen - distance) * SIZE + 0.5, 0, 1)
