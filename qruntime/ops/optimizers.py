"""One update step of the optimizers of ai.onnx.preview.training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qruntime.ops.registry import operator

DOMAIN = "ai.onnx.preview.training"


def _groups(
    rate: np.ndarray, count: np.ndarray, tensors: tuple[np.ndarray, ...], kinds: int
) -> tuple[np.float32, int, list[tuple[np.ndarray, ...]]]:
    """Learning rate, update count and per optimized tensor its value, gradient and accumulators."""
    if rate.size != 1 or count.size != 1:
        raise ValueError(f"R and T must be one value each, got shapes {rate.shape} and {count.shape}")
    if len(tensors) % kinds or not tensors:
        raise ValueError(f"the inputs after R and T must be a multiple of {kinds} tensors, got {len(tensors)}")
    number = len(tensors) // kinds
    groups = [tuple(tensors[i + k * number] for k in range(kinds)) for i in range(number)]
    for group in groups:
        if any(tensor.shape != group[0].shape for tensor in group):
            raise ValueError(f"a tensor and what belongs to it differ in shape: {[t.shape for t in group]}")
    return rate.reshape(()).item(), int(count.reshape(()).item()), groups


def _flat(groups: Sequence[tuple[np.ndarray, ...]], like: Sequence[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    """All new values, then all of the first accumulator, … in the dtypes of the inputs they replace."""
    return tuple(group[k].astype(old[0].dtype, copy=False) for k in range(len(groups[0])) for group, old in zip(groups, like, strict=True))


@operator("Adagrad", domain=DOMAIN)
def adagrad(
    rate: np.ndarray,
    count: np.ndarray,
    *tensors: np.ndarray,
    decay_factor: float = 0.0,
    epsilon: float = 0.0,
    norm_coefficient: float = 0.0,
) -> tuple[np.ndarray, ...]:
    """R (), T (), values X…, gradients G…, squared gradients H… → new X…, H…."""
    r, t, groups = _groups(rate, count, tensors, 3)
    r = r / (1 + t * decay_factor)
    made = []
    for x, g, h in groups:
        gradient = norm_coefficient * x + g
        squares = h + gradient * gradient
        made.append((x - r * gradient / (np.sqrt(squares) + epsilon), squares))
    return _flat(made, groups)


@operator("Adam", domain=DOMAIN)
def adam(
    rate: np.ndarray,
    count: np.ndarray,
    *tensors: np.ndarray,
    alpha: float = 0.9,
    beta: float = 0.999,
    epsilon: float = 0.0,
    norm_coefficient: float = 0.0,
    norm_coefficient_post: float = 0.0,
) -> tuple[np.ndarray, ...]:
    """R (), T (), values X…, gradients G…, averages V…, squared averages H… → new X…, V…, H…."""
    r, t, groups = _groups(rate, count, tensors, 4)
    if t > 0:
        r = r * math.sqrt(1 - beta**t) / (1 - alpha**t)
    made = []
    for x, g, v, h in groups:
        gradient = norm_coefficient * x + g
        average = alpha * v + (1 - alpha) * gradient
        squares = beta * h + (1 - beta) * gradient * gradient
        value = x - r * average / (np.sqrt(squares) + epsilon)
        made.append(((1 - norm_coefficient_post) * value, average, squares))
    return _flat(made, groups)


@operator("Momentum", domain=DOMAIN)
def momentum(
    rate: np.ndarray,
    count: np.ndarray,
    *tensors: np.ndarray,
    alpha: float,
    beta: float,
    mode: str,
    norm_coefficient: float,
) -> tuple[np.ndarray, ...]:
    """R (), T (), values X…, gradients G…, momenta V… → new X…, V…."""
    if mode not in ("standard", "nesterov"):
        raise ValueError(f"mode must be standard or nesterov, got {mode!r}")
    r, t, groups = _groups(rate, count, tensors, 3)
    factor = beta if t > 0 else 1.0
    made = []
    for x, g, v in groups:
        gradient = norm_coefficient * x + g
        velocity = alpha * v + factor * gradient
        step = velocity if mode == "standard" else gradient + alpha * velocity
        made.append((x - r * step, velocity))
    return _flat(made, groups)
