"""RPTQ: Yuan et al., "RPTQ: Reorder-based Post-training Quantization for Large Language Models" (2023), arXiv 2304.01089.

Channels of a tensor differ in where they lie more than in how wide they are. They are divided into clusters by k-means on the
points (max X_j, min X_j) (§3.2, eq. 5), and each cluster has a static range of its own:

    s_c = (max_c − min_c) / (2^b − 1),   z_c = rint(−min_c / s_c)          eq. 3

Weights are then solved by GPTQ on the quantized stream. The authors sort channels so that a cluster lies in one piece, for the
sake of their kernels; here a range belongs to a channel, and the order of channels is left as it is: the numbers are the same.
The authors keep what norms make at 8 bits at least; here every tensor has the bits of the scheme.

Of caches in codes (`-KV4`) the channels of each head are divided alike (the paper's R2 and R3), keys and values apart, by where they
lie in the data; but each token has ranges of its own for the clusters, where the paper's are static.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from qruntime.errors import QuantizationError
from qruntime.ops.cache_codes import MOST_CLUSTERS
from qruntime.quantization.reasons import Reason
from qruntime.quantization.scheme import CLUSTER, Inputs, Scheme
from qruntime.quantization.statistics import EXTREMES, Statistics
from qruntime.quantization.steps import Facts, InputRange

STARTS, ROUNDS = 10, 100
"""k-means: how often it starts anew, and its most rounds."""


@dataclass(frozen=True)
class ClusterInputs:
    """Activations that are quantized become static, in so many `clusters`."""

    clusters: int = 32

    def __post_init__(self) -> None:
        if self.clusters < 1:
            raise QuantizationError(f"clusters of ClusterInputs must be 1 or more, got {self.clusters}")

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({EXTREMES})

    def scheme(self, name: str, weight: np.ndarray, scheme: Scheme, statistics: Statistics | None) -> tuple[Scheme | Reason, Facts]:
        if scheme.inputs is None or statistics is None or not scheme.inputs.format.is_integer:
            return scheme, {}
        return replace(scheme, inputs=Inputs(scheme.inputs.format, CLUSTER, self.clusters, is_static=True)), {}


@dataclass(frozen=True)
class ClusterRanges:
    """Ranges of the clusters that k-means finds. `seed`: of its starts; None takes that of the call."""

    seed: int | None = None

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({EXTREMES})

    def range(self, inputs: Inputs, statistics: Statistics, weights: Sequence[np.ndarray] = ()) -> InputRange:
        points = np.stack([statistics.high, statistics.low], axis=1).astype(np.float64)
        labels = clusters_of(points, max(1, inputs.clusters), self.seed or 0)
        low, high = np.empty_like(statistics.low), np.empty_like(statistics.high)
        sizes = []
        for cluster in range(labels.max() + 1):
            members = labels == cluster
            low[members], high[members] = statistics.low[members].min(), statistics.high[members].max()
            sizes.append(int(members.sum()))
        return InputRange(low, high, {"clusters": len(sizes), "smallest cluster": min(sizes)})


@dataclass(frozen=True)
class ClusterCaches:
    """Where a scheme makes codes of caches, their heads have `cache_clusters` that k-means finds, 16 at most. `seed`: of its starts;
    None takes that of the call."""

    cache_clusters: int = 4
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.cache_clusters <= MOST_CLUSTERS:
            raise QuantizationError(f"cache_clusters of ClusterCaches must be 1 to {MOST_CLUSTERS}, got {self.cache_clusters}")

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({EXTREMES})

    def divide(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        points = np.stack([high, low], axis=-1).astype(np.float64)
        return np.stack([clusters_of(head, self.cache_clusters, self.seed or 0) for head in points])


def clusters_of(points: np.ndarray, count: int, seed: int) -> np.ndarray:
    """k-means++ and Lloyd's rounds, the best of `STARTS`: the cluster [n] of each of `points` [n, d], none of them empty. Their
    numbers follow the order of points."""
    distinct = np.unique(points, axis=0)
    if len(distinct) <= count:
        return _numbered(np.argmin(_distances(points, distinct), axis=1))
    rng = np.random.default_rng(seed)
    best, least = np.zeros(len(points), np.int64), np.inf
    for _ in range(STARTS):
        centers = _first_centers(points, count, rng)
        labels = np.argmin(_distances(points, centers), axis=1)
        for _ in range(ROUNDS):
            sizes = np.bincount(labels, minlength=len(centers))
            sums = np.stack([np.bincount(labels, own, minlength=len(centers)) for own in points.T], axis=1)
            centers = sums[sizes > 0] / sizes[sizes > 0, None]
            moved = np.argmin(_distances(points, centers), axis=1)
            if np.array_equal(moved, labels):
                break
            labels = moved
        spread = float(_distances(points, centers).min(axis=1).sum())
        if spread < least:
            best, least = labels, spread
    return _numbered(best)


def _first_centers(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Each drawn with a chance that grows with the square of its distance from those before it."""
    centers = points[[rng.integers(len(points))]]
    far = _distances(points, centers)[:, 0]
    while len(centers) < count and far.any():
        centers = np.vstack([centers, points[rng.choice(len(points), p=far / far.sum())]])
        far = np.minimum(far, _distances(points, centers[-1:])[:, 0])
    return centers


def _distances(points: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Squares of them [n, centers]."""
    total = np.zeros((len(points), len(centers)))
    for own, other in zip(points.T, centers.T, strict=True):
        total += np.square(own[:, None] - other)
    return total


def _numbered(labels: np.ndarray) -> np.ndarray:
    """The same clusters, numbered from 0 as they appear."""
    _, first, where = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[where]
