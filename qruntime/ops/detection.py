"""Detection: NonMaxSuppression."""

from __future__ import annotations

import numpy as np

from qruntime.ir import Node
from qruntime.ops.checks import require_rank, require_shape
from qruntime.ops.registry import NativeCall, operator


def _corners(boxes: np.ndarray, center_point_box: int) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper corners (B, 2) of boxes (B, 4)."""
    if center_point_box:
        centre, half = boxes[:, :2], boxes[:, 2:] / 2
        return centre - half, centre + half
    return np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])


def _select(
    low: np.ndarray,
    high: np.ndarray,
    areas: np.ndarray,
    scores: np.ndarray,
    limit: int,
    iou: float,
    least: float | None,
) -> list[int]:
    order = np.argsort(-scores, kind="stable")
    if least is not None:
        order = order[scores[order] > least]
    selected: list[int] = []
    while order.size and len(selected) < limit:
        best, order = int(order[0]), order[1:]
        selected.append(best)
        sides = np.minimum(high[order], high[best]) - np.maximum(low[order], low[best])
        overlap = np.prod(np.maximum(sides, 0), axis=1)
        union = areas[order] + areas[best] - overlap
        # Degenerate boxes overlap with nothing.
        order = order[~((overlap > iou * union) & (union > 0))]
    return selected


@operator("NonMaxSuppression", since=10, shape_inputs=None)
def non_max_suppression(
    boxes: np.ndarray,
    scores: np.ndarray,
    max_output_boxes_per_class: np.ndarray | None = None,
    iou_threshold: np.ndarray | None = None,
    score_threshold: np.ndarray | None = None,
    *,
    center_point_box: int = 0,
) -> np.ndarray:
    """boxes (N, B, 4), scores (N, C, B) → selected (image, class, box) triples, int64 (count, 3)."""
    require_rank("boxes", boxes, 3)
    require_rank("scores", scores, 3)
    images, count = boxes.shape[:2]
    require_shape("boxes", boxes, (images, count, 4))
    require_shape("scores", scores, (images, scores.shape[1], count))
    if center_point_box not in (0, 1):
        raise ValueError(f"center_point_box must be 0 or 1, got {center_point_box}")
    for name, value in (
        ("max_output_boxes_per_class", max_output_boxes_per_class),
        ("iou_threshold", iou_threshold),
        ("score_threshold", score_threshold),
    ):
        if value is not None and value.size != 1:
            raise ValueError(f"{name} must be one value, got shape {value.shape}")
    limit = 0 if max_output_boxes_per_class is None else int(max_output_boxes_per_class.item())
    iou = 0.0 if iou_threshold is None else float(iou_threshold.item())
    least = None if score_threshold is None else float(score_threshold.item())
    if not 0 <= iou <= 1:
        raise ValueError(f"iou_threshold must lie in [0, 1], got {iou}")
    triples = []
    for image in range(images if limit > 0 else 0):
        low, high = _corners(boxes[image], center_point_box)
        areas = np.prod(high - low, axis=1)
        for klass in range(scores.shape[1]):
            for box in _select(low, high, areas, scores[image, klass], limit, iou, least):
                triples.append((image, klass, box))
    return np.asarray(triples, np.int64).reshape(-1, 3)


@non_max_suppression.native
def _(node: Node) -> NativeCall:
    return NativeCall("non_max_suppression", ints=[node.attr("center_point_box", 0)])
