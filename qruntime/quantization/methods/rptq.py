"""RPTQ: Yuan et al., "RPTQ: Reorder-based Post-training Quantization for Large Language Models" (2023), arXiv 2304.01089.

Channels of a tensor differ in where they lie more than in how wide they are. They are divided into clusters by k-means on the
points (max X_j, min X_j) (§3.2, eq. 5), and each cluster has a static range of its own:

    s_c = (max_c − min_c) / (2^b − 1),   z_c = rint(−min_c / s_c)          eq. 3

Weights are then solved by GPTQ on the quantized stream. The authors sort channels so that a cluster lies in one piece, for the
sake of their kernels; here a range belongs to a channel, and the order of channels is left as it is: the numbers are the same.
The authors keep what norms make at 8 bits at least; here every tensor has the bits of the scheme. Ranges are those of what the quantized
layers before make, in the pass in which weights are solved. With `clip`, as the recipe has it, they leave extremes out:

    p* = argmin over p of Σ_j (Σ_i W_ij²) Σ_t (x_tj − x̂_tj(p))²          of each cluster, in the range [p · min_c, p · max_c]

on a sample of rows. With 4 bits more than half of what extremes lose is won back so.

Of caches in codes (`-KV4`) the channels of each head are divided alike (the paper's R2 and R3), keys and values apart, by where they
lie in the data; but each token has ranges of its own for the clusters, where the paper's are static.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from qruntime._kernels import nearest_centers, settle_centers
from qruntime.errors import QuantizationError
from qruntime.ops.cache_codes import MOST_CLUSTERS
from qruntime.quantization.outlier_pairs import powers
from qruntime.quantization.reasons import Reason
from qruntime.quantization.rehearsal import rounded_rows
from qruntime.quantization.scheme import CLUSTER, Inputs, Scheme
from qruntime.quantization.statistics import EXTREMES, SAMPLE, Statistics
from qruntime.quantization.steps import Facts, InputRange

SHARES = tuple(float(share) for share in np.linspace(1, 0.4, 13, dtype=np.float32))
MOST_NUMBERS = 1 << 18
"""Of rows that ranges are tried on."""
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
    """Ranges of the clusters that k-means finds. `seed`: of its starts; None takes that of the call. `clip`: of each range the share at
    which rounding loses least, in place of the extremes."""

    seed: int | None = None
    clip: bool = False

    @property
    def requires(self) -> frozenset[str]:
        return frozenset({EXTREMES, SAMPLE}) if self.clip else frozenset({EXTREMES})

    def range(self, inputs: Inputs, statistics: Statistics, weights: Sequence[np.ndarray] = ()) -> InputRange:
        points = np.stack([statistics.high, statistics.low], axis=1).astype(np.float64)
        labels = clusters_of(points, max(1, inputs.clusters), self.seed or 0)
        low, high = np.empty_like(statistics.low), np.empty_like(statistics.high)
        sizes = []
        for cluster in range(labels.max() + 1):
            members = labels == cluster
            low[members], high[members] = statistics.low[members].min(), statistics.high[members].max()
            sizes.append(int(members.sum()))
        facts: Facts = {"clusters": len(sizes), "smallest cluster": min(sizes)}
        if not self.clip:
            return InputRange(low, high, facts)
        share = _shares(inputs, statistics, weights, labels, low, high)
        return InputRange(share * low, share * high, facts | {"least share of a range": float(share.min())})


def _shares(
    inputs: Inputs, statistics: Statistics, weights: Sequence[np.ndarray], labels: np.ndarray, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """[K] float32: the share of the range of its cluster at which rounding loses least of what layers with `weights` make."""
    rows, times = statistics.rows_with_times(MOST_NUMBERS)
    counts = np.sum([powers(weight) for weight in weights], axis=0) if weights else 1.0
    lost = []
    for share in SHARES:
        difference = rounded_rows(rows, inputs, share * low, share * high) - rows
        lost.append(np.bincount(labels, counts * (times @ np.square(difference, dtype=np.float64))))
    return np.array(SHARES, np.float32)[np.argmin(lost, axis=0)][labels]


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
        return _numbered(_nearest(points, distinct)[0])
    points = np.ascontiguousarray(points)
    centers = _first_centers(points, count, np.random.default_rng(seed))
    labels, squares = np.empty((STARTS, len(points)), np.int64), np.empty((STARTS, len(points)))
    settle_centers(points, centers, labels, squares, ROUNDS)
    return _numbered(labels[np.argmin(squares.sum(axis=1))])


def _first_centers(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """[STARTS, count, d]: each drawn with a chance that grows with the square of its distance from those before it."""
    drawn = [(rng.integers(len(points)), rng.random(count - 1)) for _ in range(STARTS)]
    centers = np.empty((STARTS, count, points.shape[1]))
    centers[:, 0] = points[[first for first, _ in drawn]]
    far = _squares(points, centers[:, 0])
    for number, chances in enumerate(np.stack([rest for _, rest in drawn], axis=1), 1):
        share = np.cumsum(far / far.sum(axis=1, keepdims=True), axis=1)
        share /= share[:, -1:]
        centers[:, number] = points[np.sum(share <= chances[:, None], axis=1)]
        np.minimum(far, _squares(points, centers[:, number]), out=far)
    return centers


def _squares(points: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """[m, n] of the distances of all points [n, d] from each of `centers` [m, d], summed in the order of dimensions."""
    found = np.zeros((len(centers), len(points)))
    for own, of_centers in zip(points.T, centers.T, strict=True):
        apart = own - of_centers[:, None]
        found += apart * apart
    return found


def _nearest(points: np.ndarray, centers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of the points the nearest of `centers` [n] int64 and the square of its distance [n]."""
    labels, squares = np.empty(len(points), np.int64), np.empty(len(points))
    nearest_centers(np.ascontiguousarray(points), np.ascontiguousarray(centers), labels, squares)
    return labels, squares


def _numbered(labels: np.ndarray) -> np.ndarray:
    """The same clusters, numbered from 0 as they appear."""
    _, first, where = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[where]
