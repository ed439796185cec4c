"""Linear models and support vector machines of the domain ai.onnx.ml."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from qruntime.ops.ml import DOMAIN, class_labels, feature_rows, post_transformed
from qruntime.ops.products import matmul
from qruntime.ops.registry import Definition, operator


class _Coefficients:
    """Attribute values as an array (rows, features) of the type of what they are used with, made once for each type."""

    def __init__(self, values: ArrayLike, rows: int, name: str):
        self.values = np.asarray(values, np.float64)
        self.rows = rows
        self.name = name
        self.made: dict[np.dtype, np.ndarray] = {}

    def of(self, x: np.ndarray) -> np.ndarray:
        features = x.shape[1]
        if self.values.size != self.rows * features:
            raise ValueError(f"{self.name} must be {self.rows} × {features} values, got {self.values.size}")
        array = self.made.get(x.dtype)
        if array is None:
            array = self.made[x.dtype] = self.values.astype(x.dtype)
        return array.reshape(self.rows, features)


@operator("LinearRegressor", domain=DOMAIN, prepared=True)
def linear_regressor(
    *,
    coefficients: Sequence[float],
    intercepts: Sequence[float] | None = None,
    post_transform: str = "NONE",
    targets: int = 1,
) -> Definition:
    """X (N, F) → X @ coefficients.T + intercepts, float32 (N, targets)."""
    weights = _Coefficients(coefficients, targets, "coefficients")
    offsets = np.asarray(intercepts or (), np.float64)
    if offsets.size not in (0, targets):
        raise ValueError(f"intercepts must be {targets} values, got {offsets.size}")

    def run(x: np.ndarray) -> np.ndarray:
        x = feature_rows(x)
        y = matmul(x, weights.of(x).T)
        if offsets.size:
            y = y + offsets.astype(x.dtype)
        return post_transformed(y, post_transform).astype(np.float32, copy=False)

    return run


@operator("LinearClassifier", domain=DOMAIN, prepared=True)
def linear_classifier(
    *,
    coefficients: Sequence[float],
    classlabels_ints: Sequence[int] | None = None,
    classlabels_strings: Sequence[str] | None = None,
    intercepts: Sequence[float] | None = None,
    multi_class: int = 0,
    post_transform: str = "NONE",
) -> Definition:
    """X (N, F) → labels (N) and float32 scores (N, classes)."""
    labels = class_labels(classlabels_ints, classlabels_strings)
    offsets = np.asarray(intercepts or (), np.float64)
    values = np.asarray(coefficients, np.float64)
    by_rows: dict[int, _Coefficients] = {}

    def run(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = feature_rows(x)
        rows = offsets.size or values.size // max(x.shape[1], 1)
        weights = by_rows.get(rows)
        if weights is None:
            weights = by_rows[rows] = _Coefficients(values, rows, "coefficients")
        scores = matmul(x, weights.of(x).T)
        if offsets.size:
            scores = scores + offsets.astype(x.dtype)
        if rows == 1 and len(labels) == 2:
            scores = np.concatenate((-scores, scores), axis=1)
        elif rows == 1 and len(labels) == 1:
            positive = scores[:, 0] > (0 if post_transform == "NONE" else 0.5)
            other: Any = 0 if labels.dtype != object else ""
            return (
                np.where(positive, labels[0], other).astype(labels.dtype),
                post_transformed(scores, post_transform).astype(np.float32),
            )
        elif rows != len(labels):
            raise ValueError(f"{rows} rows of coefficients do not fit {len(labels)} class labels")
        best = scores.argmax(axis=1)
        return labels[best], post_transformed(scores, post_transform).astype(np.float32, copy=False)

    return run


@operator("SVMRegressor", domain=DOMAIN, prepared=True)
def svm_regressor(
    *,
    coefficients: Sequence[float],
    rho: Sequence[float],
    kernel_params: Sequence[float] = (0.0, 0.0, 0.0),
    kernel_type: str = "LINEAR",
    n_supports: int = 0,
    one_class: int = 0,
    post_transform: str = "NONE",
    support_vectors: Sequence[float] = (),
) -> Definition:
    """X (N, F) → float32 (N, 1); with `one_class` the sign of the score."""
    if not rho:
        raise ValueError("rho is needed")
    weights = _Coefficients(coefficients, 1, "coefficients")
    vectors = _Coefficients(support_vectors, max(n_supports, 0), "support_vectors")
    squares: dict[np.dtype, np.ndarray] = {}
    gamma, coef0, degree = (*kernel_params, 0.0, 0.0, 0.0)[:3]

    def products_of(x: np.ndarray) -> np.ndarray:
        """The kernel function of every row with every support vector."""
        supports = vectors.of(x)
        products = matmul(x, supports.T)
        if kernel_type == "RBF":
            if x.dtype not in squares:
                squares[x.dtype] = (supports * supports).sum(axis=1)
            distances = (x * x).sum(axis=1)[:, None] - 2 * products + squares[x.dtype]
            return np.exp(-gamma * np.maximum(distances, 0))
        if kernel_type == "POLY":
            return (gamma * products + coef0) ** degree
        if kernel_type == "SIGMOID":
            return np.tanh(gamma * products + coef0)
        if kernel_type != "LINEAR":
            raise ValueError(f"unknown kernel_type {kernel_type!r}")
        return products

    def run(x: np.ndarray) -> np.ndarray:
        x = feature_rows(x)
        if n_supports > 0:
            x = products_of(x)
        scores = matmul(x, weights.of(x).T) + x.dtype.type(rho[0])
        if one_class:
            return np.where(scores > 0, 1, -1).astype(np.float32)
        return post_transformed(scores, post_transform).astype(np.float32, copy=False)

    return run
