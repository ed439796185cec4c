"""RPTQ: clusters of channels and their ranges."""

from __future__ import annotations

import numpy as np
import pytest

from qruntime.errors import QuantizationError
from qruntime.ir.formats import FORMATS
from qruntime.quantization.methods.rptq import ClusterInputs, ClusterRanges, clusters_of
from qruntime.quantization.observing import statistics_of
from qruntime.quantization.rehearsal import rounded_rows
from qruntime.quantization.scheme import CLUSTER, TENSOR, Inputs, parse
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
