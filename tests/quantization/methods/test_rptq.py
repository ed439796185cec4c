"""RPTQ: clusters of channels and their ranges."""

from __future__ import annotations

import numpy as np
import pytest

from qruntime.errors import QuantizationError
from qruntime.ir.formats import FORMATS
from qruntime.quantization.methods.rptq import SHARES, ClusterInputs, ClusterRanges, clusters_of
from qruntime.quantization.observing import statistics_of
from qruntime.quantization.rehearsal import rounded_rows
from qruntime.quantization.scheme import CLUSTER, TENSOR, Inputs, parse
from qruntime.quantization.statistics import SAMPLE
from tests.quantization.methods.sites import rows

UINT4 = FORMATS["uint4"]
X = rows(outliers=30, shift=200)
SEEN = statistics_of([X], (), "x")


def clustered(count: int) -> Inputs:
    return Inputs(UINT4, CLUSTER, count, is_static=True)


def lost(count: int) -> float:
    found = ClusterRanges(0).range(clustered(count), SEEN)
    return float(((rounded_rows(X, clustered(count), found.low, found.high) - X) ** 2).sum())


def test_activations_become_static_clusters():
    scheme, _ = ClusterInputs(8).scheme("fc", np.ones((2, 64)), parse("W4A4"), SEEN)
    assert (scheme.weights, scheme.inputs) == (parse("W4A4").weights, clustered(8))
    assert ClusterInputs().scheme("fc", np.ones((2, 64)), parse("W4A16"), SEEN) == (parse("W4A16"), {})
    with pytest.raises(QuantizationError, match="1 or more, got 0"):
        ClusterInputs(0)


def test_one_cluster_is_one_range_of_the_tensor():
    found = ClusterRanges(0).range(clustered(1), SEEN)
    assert (found.low == X.min()).all()
    assert (found.high == X.max()).all()
    static = Inputs(UINT4, TENSOR, is_static=True)
    assert np.array_equal(rounded_rows(X, clustered(1), found.low, found.high), rounded_rows(X, static, X.min(), X.max()))


def test_a_cluster_has_the_range_of_its_channels():
    found = ClusterRanges(0).range(clustered(6), SEEN)
    pairs = np.stack([found.low, found.high], axis=1)
    assert found.facts["clusters"] == len(np.unique(pairs, axis=0)) == 6
    for pair in np.unique(pairs, axis=0):
        members = (pairs == pair).all(axis=1)
        assert pair.tolist() == [X[:, members].min(), X[:, members].max()]


def test_more_clusters_lose_less():
    losses = [lost(count) for count in (1, 4, 16, 64)]
    assert losses == sorted(losses, reverse=True)
    assert losses[1] < 0.3 * losses[0]


def test_clipped_ranges_are_the_shares_that_lose_least():
    """Of every cluster by itself, errors of a channel counted by the weights that read it, each row for as many as it stands for."""
    rng = np.random.default_rng(3)
    x = (rng.standard_t(2, (700, 24)) * np.linspace(1, 9, 24) + np.linspace(0, 4, 24)).astype(np.float32)
    weights = [rng.standard_normal((n, 24)).astype(np.float32) for n in (5, 8)]
    seen, inputs = statistics_of([x[:400], x[400:]], {SAMPLE}, "x"), clustered(4)
    whole, clipped = (ClusterRanges(0, clip=clip).range(inputs, seen, weights) for clip in (False, True))
    rows, times = seen.rows_with_times(1 << 18)
    counts = sum((weight.astype(np.float64) ** 2).sum(axis=0) for weight in weights)

    def lost(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        return counts * (times @ (rounded_rows(rows, inputs, low, high) - rows) ** 2)

    each = np.stack([lost(np.float32(share) * whole.low, np.float32(share) * whole.high) for share in SHARES])
    for low, high in np.unique(np.stack([whole.low, whole.high], axis=1), axis=0):
        members = (whole.low == low) & (whole.high == high)
        best = np.float32(SHARES[int(each[:, members].sum(axis=1).argmin())])
        assert (clipped.low[members] == best * low).all() and (clipped.high[members] == best * high).all()
    assert lost(clipped.low, clipped.high).sum() < 0.8 * lost(whole.low, whole.high).sum()
    assert clipped.facts["least share of a range"] < 1


def test_rows_of_a_sample_stand_for_all():
    x = np.random.default_rng(4).standard_normal((3000, 8)).astype(np.float32)
    x[7] *= 1000
    seen = statistics_of([x], {SAMPLE}, "x")
    for most in (1 << 18, 800):
        rows, times = seen.rows_with_times(most)
        assert times.sum() == pytest.approx(3000)
        assert times[(rows == x[7]).all(axis=1)].tolist() == [1.0]
    assert len(rows) < 300


def test_k_means_is_repeatable_and_leaves_no_cluster_empty():
    points = np.random.default_rng(0).standard_normal((200, 2)) ** 3
    labels = clusters_of(points, 12, 5)
    assert np.array_equal(labels, clusters_of(points, 12, 5))
    assert np.array_equal(np.unique(labels), np.arange(labels.max() + 1))
    centers = np.stack([points[labels == c].mean(axis=0) for c in range(labels.max() + 1)])
    nearest = np.argmin(((points[:, None] - centers) ** 2).sum(axis=2), axis=1)
    assert np.array_equal(nearest, labels)
    order = np.random.default_rng(1).permutation(200)
    assert len(np.unique(clusters_of(points[order], 12, 5))) == labels.max() + 1


def test_fewer_points_than_clusters():
    points = np.array([[1.0, 2], [3, 4], [1, 2]])
    assert clusters_of(points, 5, 0).tolist() == [0, 1, 0]
    assert clusters_of(points[:1], 5, 0).tolist() == [0]
