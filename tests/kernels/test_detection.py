"""NonMaxSuppression: the boxes that the definition selects, in its order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.native_call import check, check_agreement, run_native

F32 = np.float32


def random_boxes(rng: np.random.Generator, images: int, count: int, spread: float) -> np.ndarray:
    """Two opposite corners in any order; some boxes twice, some without an area."""
    low = np.round(rng.random((images, count, 2)) * spread, 1)
    boxes = np.concatenate([low, low + np.round(rng.random((images, count, 2)) * 3, 1)], -1).astype(F32)
    boxes = np.where(rng.random((images, count, 1)) < 0.3, boxes[..., [2, 3, 0, 1]], boxes)
    if count > 2:
        boxes[:, 1] = boxes[:, 0]
    return boxes


@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32),
    images=st.integers(0, 3),
    classes=st.integers(0, 3),
    count=st.sampled_from([0, 1, 2, 15, 16, 17, 70]),
    limit=st.sampled_from([-1, 0, 1, 5, 2**50]),
    iou=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    least=st.sampled_from([None, -np.inf, 0.3, np.nan]),
    centre=st.integers(0, 1),
)
def test_like_the_definition(seed, images, classes, count, limit, iou, least, centre):
    rng = np.random.default_rng(seed)
    boxes = random_boxes(rng, images, count, rng.choice([1, 10]))
    scores = rng.choice(np.linspace(-1, 1, 9), (images, classes, count)).astype(F32)
    scores[rng.random(scores.shape) < 0.05] = np.nan
    thresholds = [np.array([iou], F32), None if least is None else np.array(least, F32)]
    check("NonMaxSuppression", [boxes, scores, np.array([limit]), *thresholds], center_point_box=centre)


def test_threads_and_many_boxes():
    rng = np.random.default_rng(0)
    boxes, scores = random_boxes(rng, 2, 1500, 100), rng.random((2, 6, 1500)).astype(F32)
    for threads in (1, 2, 3):
        check("NonMaxSuppression", [boxes, scores, np.array([40]), np.array([0.3], F32)], num_threads=threads)


def test_absent_inputs():
    boxes, scores = np.zeros((1, 2, 4), F32), np.zeros((1, 1, 2), F32)
    check("NonMaxSuppression", [boxes, scores])
    check("NonMaxSuppression", [boxes, scores, np.array([2])])


@pytest.mark.parametrize(
    "inputs",
    [
        [np.zeros((1, 2, 3), F32), np.zeros((1, 1, 2), F32), np.array([1])],
        [np.zeros((1, 2, 4), F32), np.zeros((1, 1, 3), F32), np.array([1])],
        [np.zeros((2, 2, 4), F32), np.zeros((1, 1, 2), F32), np.array([1])],
        [np.zeros((2, 4), F32), np.zeros((1, 1, 2), F32), np.array([1])],
        [np.zeros((1, 2, 4), F32), np.zeros((1, 1, 2), F32), np.array([1, 1])],
        [np.zeros((1, 2, 4), F32), np.zeros((1, 1, 2), F32), np.array([1]), np.array([1.5], F32)],
        [np.zeros((1, 2, 4), F32), np.zeros((1, 1, 2), F32), np.array([1]), np.array([np.nan], F32)],
        [np.zeros((1, 2, 4), F32), np.zeros((1, 1, 2), F32), np.array([1]), None, np.array([0, 0], F32)],
    ],
)
def test_bad_input_is_declined(inputs):
    check_agreement("NonMaxSuppression", inputs)
    assert run_native("NonMaxSuppression", inputs) is None


@pytest.mark.parametrize("odd", [np.nan, np.inf, 3e38])
def test_what_is_not_finite_is_left_to_the_definition(odd):
    boxes = np.array([[[0, 0, 1, 1], [0, 0, odd, odd]]], F32)
    assert run_native("NonMaxSuppression", [boxes, np.ones((1, 1, 2), F32), np.array([2])]) is None


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("centre", [0, 1])
def test_a_box_that_does_not_come_into_question_may_be_anything(odd, centre):
    """Padding of a detector's boxes: below the threshold, or behind the last that is asked for."""
    rng = np.random.default_rng(0)
    boxes, scores = random_boxes(rng, 2, 40, 10), rng.random((2, 3, 40)).astype(F32)
    boxes[0, 17, :2], boxes[0, 17, 2:], scores[0, :, 17] = 0, odd, 0.1
    check("NonMaxSuppression", [boxes, scores, np.array([40]), np.array([0.5], F32), np.array([0.2], F32)], center_point_box=centre)
    check("NonMaxSuppression", [boxes, scores, np.array([3]), np.array([0.5], F32)], center_point_box=centre)
    inputs = [boxes, scores, np.array([40]), np.array([0.5], F32)]
    assert run_native("NonMaxSuppression", inputs, center_point_box=centre) is None  # now the last to be looked at does
    check_agreement("NonMaxSuppression", inputs, center_point_box=centre)
