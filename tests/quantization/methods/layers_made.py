"""Layers made for tests of solvers: inputs whose channels are correlated and differ in size, weights with heavy tails."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from qruntime.quantization.scheme import QArgs, parse
from qruntime.quantization.statistics import Statistics


class Made(NamedTuple):
    weight: np.ndarray
    """[N, K] float32"""
    statistics: Statistics
    rows: np.ndarray
    """[T, K] float32"""


@lru_cache(maxsize=8)
def correlated(n: int = 96, k: int = 144, seed: int = 0, rows: int = 1500) -> Made:
    """A spectrum that falls as a power, and three channels with values several times those of the others."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(k, k)))[0] * np.arange(1, k + 1)[:, None] ** -0.8
    x = rng.normal(size=(rows, k)) @ basis
    x[:, rng.choice(k, min(3, k), replace=False)] *= 12
    x = x.astype(np.float32)
    return Made(rng.standard_t(5, size=(n, k)).astype(np.float32), seen(x), x)


def seen(rows: np.ndarray, sigma: np.ndarray | None = None) -> Statistics:
    """Statistics of rows [T, K], with their Σ or another."""
    wide = rows.astype(np.float64)
    return Statistics(len(rows), rows.min(axis=0), rows.max(axis=0), sigma=wide.T @ wide if sigma is None else sigma, sample=rows)


def with_sigma(sigma: np.ndarray) -> Statistics:
    ones = np.ones(len(sigma), np.float32)
    return Statistics(1, -ones, ones, sigma=sigma)


def weight_args(scheme: str) -> QArgs:
    args = parse(scheme).weights
    assert args is not None
    return args
