"""A tensor with outliers and the layers that read it, as transforms see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from qruntime.quantization.observing import statistics_of
from qruntime.quantization.scheme import Scheme, parse
from qruntime.quantization.statistics import KINDS
from qruntime.quantization.steps import SiteView

K = 64
OUTLIERS = [3, 17, 40]


def rows(count: int = 256, seed: int = 0, outliers: float = 30.0, shift: float = 0.0) -> np.ndarray:
    """[count, K] float32, correlated; a few channels are `outliers` times as large and lie `shift` away."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((count, K)) @ (np.eye(K) + rng.standard_normal((K, K)) / 16)
    mixed[:, OUTLIERS] = mixed[:, OUTLIERS] * outliers + shift * np.array([1, -1, 1])
    return mixed.astype(np.float32)


def site(x: np.ndarray, scheme: str | Scheme, *, readers: Sequence[int] = (48, 32), seed: int = 1, **changes: Any) -> SiteView:
    """Readers of so many outputs each, whose outputs stand side by side."""
    rng = np.random.default_rng(seed)
    scale = np.where(np.isin(np.arange(K), OUTLIERS), 1 / 30, 1)
    weights = tuple((rng.standard_t(5, (n, K)) * scale / 8).astype(np.float32) for n in readers)

    def outputs(inputs: Sequence[np.ndarray], given: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [np.concatenate([x @ weight.T for weight in given], axis=1) for x in inputs]

    one = parse(scheme)
    view = SiteView(
        "x", "norm", statistics_of([x], KINDS, "x"), weights, (one,) * len(weights), frozenset({"scale", "shift"}), None, outputs, [x]
    )
    return replace(view, **changes)


def linear(view: SiteView) -> np.ndarray:
    """What the readers give of the first run."""
    return view.outputs(view.runs[:1], view.weights)[0]
