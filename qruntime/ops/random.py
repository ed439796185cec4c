"""Random tensors. A seed makes a call repeatable; the numbers differ from other runtimes'."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from qruntime.ir.dtypes import numpy_dtype
from qruntime.ops.checks import limit_shape
from qruntime.ops.registry import operator


def _generator(seed: float | None) -> np.random.Generator:
    return np.random.default_rng(None if seed is None else struct.unpack("<Q", struct.pack("<d", seed))[0])


def _normal(shape: Sequence[int], dtype: np.dtype, mean: float, scale: float, seed: float | None) -> np.ndarray:
    drawn = _generator(seed).standard_normal(limit_shape(shape))
    return np.asarray(drawn * scale + mean).astype(dtype)


def _uniform(shape: Sequence[int], dtype: np.dtype, low: float, high: float, seed: float | None) -> np.ndarray:
    drawn = _generator(seed).random(limit_shape(shape))
    return np.asarray(drawn * (high - low) + low).astype(dtype)


def _like(x: np.ndarray, dtype: int | None) -> np.dtype:
    return x.dtype if dtype is None else numpy_dtype(dtype)


@operator("RandomNormal", since=1, deterministic=False)
def random_normal(*, shape: Sequence[int], dtype: int = 1, mean: float = 0.0, scale: float = 1.0, seed: float | None = None) -> np.ndarray:
    return _normal(shape, numpy_dtype(dtype), mean, scale, seed)


@operator("RandomNormalLike", since=1, deterministic=False)
def random_normal_like(
    x: np.ndarray, *, dtype: int | None = None, mean: float = 0.0, scale: float = 1.0, seed: float | None = None
) -> np.ndarray:
    return _normal(x.shape, _like(x, dtype), mean, scale, seed)


@operator("RandomUniform", since=1, deterministic=False)
def random_uniform(*, shape: Sequence[int], dtype: int = 1, low: float = 0.0, high: float = 1.0, seed: float | None = None) -> np.ndarray:
    return _uniform(shape, numpy_dtype(dtype), low, high, seed)


@operator("RandomUniformLike", since=1, deterministic=False)
def random_uniform_like(
    x: np.ndarray, *, dtype: int | None = None, low: float = 0.0, high: float = 1.0, seed: float | None = None
) -> np.ndarray:
    return _uniform(x.shape, _like(x, dtype), low, high, seed)


@operator("Bernoulli", since=15, deterministic=False)
def bernoulli(x: np.ndarray, *, dtype: int | None = None, seed: float | None = None) -> np.ndarray:
    """1 with the probability that `x` holds, else 0."""
    return np.asarray(_generator(seed).random(x.shape) < x.astype(np.float64)).astype(_like(x, dtype))


@operator("Multinomial", since=7, deterministic=False)
def multinomial(x: np.ndarray, *, dtype: int = 6, sample_size: int = 1, seed: float | None = None) -> np.ndarray:
    """`sample_size` classes per row, drawn with probabilities proportional to exp(x), x of shape [N, C]."""
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(f"log-probabilities of shape [N, C] with C > 0 are needed, got {x.shape}")
    if dtype not in (6, 7):
        raise ValueError(f"dtype must be 6 (int32) or 7 (int64), got {dtype}")
    shape = limit_shape([x.shape[0], sample_size])
    wide = x.astype(np.float64)
    with np.errstate(all="ignore"):
        cumulative = np.cumsum(np.exp(wide - wide.max(axis=1, keepdims=True)), axis=1)
    drawn = _generator(seed).random(shape) * cumulative[:, -1:]
    rows = [np.searchsorted(c, d, side="right") for c, d in zip(cumulative, drawn, strict=True)]
    classes = np.array(rows, np.int64).reshape(shape)
    return np.minimum(classes, x.shape[1] - 1).astype(numpy_dtype(dtype))
