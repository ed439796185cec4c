"""Losses over class scores."""

from __future__ import annotations

import math

import numpy as np

from qruntime.ops.checks import require_rank, require_shape
from qruntime.ops.precision import working_dtype
from qruntime.ops.registry import operator


def _negative_log_likelihood(
    log_probabilities: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None,
    reduction: str,
    ignore_index: int | None,
) -> np.ndarray:
    """Loss in the dtype of `log_probabilities` (N, C, …) for classes `target` (N, …)."""
    if reduction not in ("none", "sum", "mean"):
        raise ValueError(f"reduction must be none, sum or mean, got {reduction!r}")
    classes = log_probabilities.shape[1]
    require_shape("target", target, (log_probabilities.shape[0], *log_probabilities.shape[2:]))
    require_shape("weight", weight, (classes,))
    ignored = np.zeros(target.shape, np.bool_) if ignore_index is None else target == ignore_index
    labels = np.where(ignored, 0, target)
    if labels.size and (labels.min() < 0 or labels.max() >= classes):
        raise ValueError(f"target must lie in [0, {classes - 1}], got {labels.min()} to {labels.max()}")
    dtype = log_probabilities.dtype
    if not classes:
        losses = np.zeros(target.shape, dtype)
        factors = np.zeros(target.shape, dtype)
    else:
        losses = -np.take_along_axis(log_probabilities, labels[:, None].astype(np.int64), axis=1)[:, 0]
        factors = np.ones(target.shape, dtype) if weight is None else weight.astype(dtype)[labels]
        factors = np.where(ignored, dtype.type(0), factors)
        losses = np.where(ignored, dtype.type(0), losses * factors)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return np.asarray(losses.sum(dtype=dtype))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(losses.sum(dtype=dtype) / factors.sum(dtype=dtype))


@operator("NegativeLogLikelihoodLoss", since=12)
def negative_log_likelihood_loss(
    x: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> np.ndarray:
    """Log probabilities (N, C, …), target (N, …), weight (C) → loss, (N, …) or a scalar."""
    require_rank("input", x, 2, -1)
    wide = x.astype(working_dtype(x.dtype), copy=False)
    loss = _negative_log_likelihood(wide, target, weight, reduction, ignore_index)
    return loss.astype(x.dtype, copy=False)


@operator("SoftmaxCrossEntropyLoss", since=12)
def softmax_cross_entropy_loss(
    scores: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (N, C, …), labels (N, …), weights (C) → loss, (N, …) or a scalar, and log probabilities."""
    require_rank("scores", scores, 2, -1)
    wide = scores.astype(working_dtype(scores.dtype), copy=False)
    if math.prod(wide.shape):
        shifted = wide - wide.max(axis=1, keepdims=True)
        wide = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    loss = _negative_log_likelihood(wide, labels, weights, reduction, ignore_index)
    return loss.astype(scores.dtype, copy=False), wide.astype(scores.dtype, copy=False)
