"""Linear models and support vector machines of the domain ai.onnx.ml."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from qruntime import _kernels
from qruntime.ir import Node
from qruntime.ops.ml import DOMAIN, class_labels, feature_rows, post_transformed
from qruntime.ops.products import matmul
from qruntime.ops.registry import Definition, NativeCall, operator

KERNELS = ("LINEAR", "RBF", "POLY", "SIGMOID")


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


def _power(x: np.ndarray, degree: float) -> np.ndarray:
    """x to a power that is nearly always a small integer, when products are much faster."""
    if degree not in range(1, 9):
        return x**degree
    y = x
    for _ in range(int(degree) - 1):
        y = y * x
    return y


class _Kernel:
    """The kernel function of every row of X (N, F) with every support vector, (N, supports)."""

    def __init__(self, name: str, parameters: Sequence[float], vectors: Sequence[float], supports: int):
        if name not in KERNELS:
            raise ValueError(f"unknown kernel_type {name!r}")
        self.name = name
        self.gamma, self.coef0, self.degree = (*parameters, 0.0, 0.0, 0.0)[:3]
        self.vectors = _Coefficients(vectors, supports, "support_vectors")
        self.squares: dict[np.dtype, np.ndarray] = {}

    def __call__(self, x: np.ndarray) -> np.ndarray:
        vectors = self.vectors.of(x)
        products = matmul(x, vectors.T)
        if self.name == "RBF":
            if x.dtype not in self.squares:
                self.squares[x.dtype] = (vectors * vectors).sum(axis=1)
            distances = (x * x).sum(axis=1)[:, None] - 2 * products + self.squares[x.dtype]
            return np.exp(-self.gamma * np.maximum(distances, 0))
        if self.name == "POLY":
            return _power(self.gamma * products + self.coef0, self.degree)
        return np.tanh(self.gamma * products + self.coef0) if self.name == "SIGMOID" else products


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
    kernel = _Kernel(kernel_type, kernel_params, support_vectors, n_supports) if n_supports > 0 else None

    def run(x: np.ndarray) -> np.ndarray:
        x = feature_rows(x)
        if kernel is not None:
            x = kernel(x)
        scores = matmul(x, weights.of(x).T) + x.dtype.type(rho[0])
        if one_class:
            return np.where(scores > 0, 1, -1).astype(np.float32)
        return post_transformed(scores, post_transform).astype(np.float32, copy=False)

    return run


def _pairs(classes: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(classes) for j in range(i + 1, classes)]


def _pair_weights(coefficients: Sequence[float], counts: Sequence[int], pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Weights (pairs, supports) of the classifiers of two classes, of the two rows that the format keeps for each support."""
    starts = np.concatenate(([0], np.cumsum(counts)))
    given = np.asarray(coefficients, np.float64)
    if given.size != (len(counts) - 1) * starts[-1]:
        raise ValueError(f"coefficients must be {len(counts) - 1} × {starts[-1]} values, got {given.size}")
    given = given.reshape(len(counts) - 1, int(starts[-1]))
    weights = np.zeros((len(pairs), int(starts[-1])))
    for pair, (i, j) in enumerate(pairs):
        weights[pair, starts[i] : starts[i + 1]] = given[j - 1, starts[i] : starts[i + 1]]
        weights[pair, starts[j] : starts[j + 1]] = given[i, starts[j] : starts[j + 1]]
    return weights


def _coupled(pairwise: np.ndarray) -> np.ndarray:
    """Class probabilities (N, C) that fit pairwise ones (N, C, C) best: the second method of Wu, Lin and Weng (2004)."""
    classes = pairwise.shape[1]
    q = -pairwise * pairwise.transpose(0, 2, 1)
    diagonal = np.arange(classes)
    squares = pairwise**2
    q[:, diagonal, diagonal] = squares.sum(axis=1) - squares[:, diagonal, diagonal]
    p = np.full(pairwise.shape[:2], 1 / classes)
    going = np.arange(len(p))
    for _ in range(max(100, classes)):
        products = (q[going] * p[going, None, :]).sum(axis=2)
        total = (p[going] * products).sum(axis=1)
        going = going[np.abs(products - total[:, None]).max(axis=1) >= 0.005 / classes]
        if not going.size:
            break
        rows, own = q[going], p[going]
        products = (rows * own[:, None, :]).sum(axis=2)
        total = (own * products).sum(axis=1)
        for t in range(classes):
            step = (total - products[:, t]) / rows[:, t, t]
            own[:, t] += step
            total = (total + step * (step * rows[:, t, t] + 2 * products[:, t])) / (1 + step) ** 2
            products = (products + step[:, None] * rows[:, t]) / (1 + step)[:, None]
            own /= (1 + step)[:, None]
        p[going] = own
    return p


@operator("SVMClassifier", domain=DOMAIN, prepared=True)
def svm_classifier(
    *,
    coefficients: Sequence[float],
    rho: Sequence[float],
    classlabels_ints: Sequence[int] | None = None,
    classlabels_strings: Sequence[str] | None = None,
    kernel_params: Sequence[float] = (0.0, 0.0, 0.0),
    kernel_type: str = "LINEAR",
    post_transform: str = "NONE",
    prob_a: Sequence[float] = (),
    prob_b: Sequence[float] = (),
    support_vectors: Sequence[float] = (),
    vectors_per_class: Sequence[int] = (),
) -> Definition:
    """X (N, F) → labels (N) and float32 scores: (N, classes), or without probabilities those of all pairs of classes.

    Labels are those with the most votes of the pairs. One pair makes two scores, the first with the sign changed.
    """
    labels = class_labels(classlabels_ints, classlabels_strings)
    classes, supports = len(labels), sum(vectors_per_class)
    if not supports:
        return _linear_votes(labels, _Coefficients(coefficients, classes, "coefficients"), rho, post_transform)
    pairs = _pairs(classes)
    if len(vectors_per_class) != classes or min(vectors_per_class) < 0 or len(rho) != len(pairs) or not pairs:
        raise ValueError(
            f"{classes} classes need as many vectors_per_class and rho for each of {len(pairs)} pairs, "
            f"got {len(vectors_per_class)} and {len(rho)}"
        )
    if len(prob_a) != len(prob_b) or len(prob_a) not in (0, len(pairs)):
        raise ValueError(f"prob_a and prob_b must have {len(pairs)} values or none, got {len(prob_a)} and {len(prob_b)}")
    kernel = _Kernel(kernel_type, kernel_params, support_vectors, supports)
    weights = _Coefficients(_pair_weights(coefficients, vectors_per_class, pairs), len(pairs), "coefficients")
    winners, losers = np.eye(classes)[[i for i, _ in pairs]], np.eye(classes)[[j for _, j in pairs]]

    def run(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values = kernel(feature_rows(x))
        scores = matmul(values, weights.of(values).T) + np.asarray(rho, values.dtype)
        votes = np.where((scores > 0)[..., None], winners, losers).sum(axis=1)
        if prob_a:
            with np.errstate(over="ignore"):
                shares = 1 / (1 + np.exp(scores * np.asarray(prob_a) + np.asarray(prob_b)))
            shares = np.clip(shares, 1e-7, 1 - 1e-7)
            pairwise = np.zeros((len(scores), classes, classes))
            for pair, (i, j) in enumerate(pairs):
                pairwise[:, i, j], pairwise[:, j, i] = shares[:, pair], 1 - shares[:, pair]
            scores = _coupled(pairwise)
        elif len(pairs) == 1:
            scores = np.concatenate((-scores, scores), axis=1)
        return labels[votes.argmax(axis=1)], post_transformed(scores, post_transform).astype(np.float32)

    return run


def _linear_votes(labels: np.ndarray, weights: _Coefficients, rho: Sequence[float], post_transform: str) -> Definition:
    """One row of coefficients for each class; all share an offset."""
    if len(rho) < 1:
        raise ValueError("rho is needed")

    def run(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = feature_rows(x)
        scores = matmul(x, weights.of(x).T) + x.dtype.type(rho[0])
        return labels[scores.argmax(axis=1)], post_transformed(scores, post_transform).astype(np.float32, copy=False)

    return run


def _linear_call(
    node: Node, coefficients: np.ndarray, offsets: np.ndarray, decision: str, labels: np.ndarray | None = None, threshold: float = 0.0
) -> NativeCall | None:
    """coefficients [C, F], offsets [C]; None for what only the definition does."""
    transform = node.attr("post_transform", "NONE") if decision != "sign" else "NONE"
    if transform not in _kernels.POST_TRANSFORM or not coefficients.size or (labels is not None and labels.dtype != np.int64):
        return None
    weights = _kernels.PackedF32(coefficients.astype(np.float32).T, offsets.astype(np.float32))
    return NativeCall(
        "linear_model",
        ints=[_kernels.POST_TRANSFORM[transform], _kernels.DECISION[decision]],
        floats=[threshold],
        packed=[weights, None if labels is None else _kernels.PackedArray(labels)],
        inputs=[0],
    )


def _by_rows(values: Sequence[float], rows: int) -> np.ndarray | None:
    """Coefficients [rows, F]; None where they are not so many."""
    array = np.asarray(values, np.float64)
    return array.reshape(rows, -1) if rows > 0 and array.size and array.size % rows == 0 else None


@linear_regressor.native
def _linear_regressor(node: Node) -> NativeCall | None:
    targets = node.attr("targets", 1)
    weights = _by_rows(node.attr("coefficients"), targets)
    offsets = np.asarray(node.attr("intercepts") or (0.0,) * targets)
    return None if weights is None or offsets.size != targets else _linear_call(node, weights, offsets, "no_labels")


@linear_classifier.native
def _linear_classifier(node: Node) -> NativeCall | None:
    labels = class_labels(node.attr("classlabels_ints"), node.attr("classlabels_strings"))
    offsets = np.asarray(node.attr("intercepts") or ())
    # Without intercepts the coefficients of two classes may be one row or two: that depends on X.
    if not offsets.size and len(labels) == 2:
        return None
    rows = offsets.size or len(labels)
    weights = _by_rows(node.attr("coefficients"), rows)
    if weights is None:
        return None
    offsets = offsets if offsets.size else np.zeros(rows)
    if rows == 1 and len(labels) == 2:
        return _linear_call(node, np.concatenate((-weights, weights)), np.concatenate((-offsets, offsets)), "best", labels)
    if rows == 1 and labels.dtype == np.int64 and len(labels) == 1:
        threshold = 0.0 if node.attr("post_transform", "NONE") == "NONE" else 0.5
        return _linear_call(node, weights, offsets, "above", np.concatenate(([0], labels)), threshold)
    return _linear_call(node, weights, offsets, "best", labels) if rows == len(labels) else None


def _vector_call(
    node: Node, weights: np.ndarray, rho: np.ndarray, output: str, labels: np.ndarray | None = None, shares: np.ndarray | None = None
) -> NativeCall | None:
    """weights [pairs, S], rho [pairs], shares [2, pairs] are what prob_a and prob_b hold."""
    name, transform = node.attr("kernel_type", "LINEAR"), node.attr("post_transform", "NONE") if output != "one_class" else "NONE"
    supports = weights.shape[1]
    vectors = _by_rows(node.attr("support_vectors", ()), supports)
    if name not in KERNELS or transform not in _kernels.POST_TRANSFORM or vectors is None:
        return None
    vectors = vectors.astype(np.float32)
    arrays = ((vectors * vectors).sum(axis=1), labels, shares)
    squares, names, pairs = (None if array is None else _kernels.PackedArray(array) for array in arrays)
    sums = _kernels.PackedF32(weights.astype(np.float32).T, rho.astype(np.float32))
    return NativeCall(
        "support_vectors",
        ints=[
            _kernels.VECTOR_KERNEL[name],
            _kernels.VECTOR_OUTPUT[output],
            _kernels.POST_TRANSFORM[transform],
            0 if labels is None else len(labels),
        ],
        floats=[*node.attr("kernel_params", ()), 0.0, 0.0, 0.0][:3],
        packed=[_kernels.PackedF32(vectors.T), squares, sums, names, pairs],
        inputs=[0],
    )


@svm_regressor.native
def _svm_regressor(node: Node) -> NativeCall | None:
    supports, is_one_class = node.attr("n_supports", 0), bool(node.attr("one_class", 0))
    weights = _by_rows(node.attr("coefficients"), 1)
    if weights is None:
        return None
    rho = np.asarray(node.attr("rho")[:1])
    if supports <= 0:
        return _linear_call(node, weights, rho, "sign" if is_one_class else "no_labels")
    return _vector_call(node, weights, rho, "one_class" if is_one_class else "regressor") if weights.size == supports else None


@svm_classifier.native
def _svm_classifier(node: Node) -> NativeCall | None:
    labels = class_labels(node.attr("classlabels_ints"), node.attr("classlabels_strings"))
    counts, rho = node.attr("vectors_per_class", ()), np.asarray(node.attr("rho"))
    if labels.dtype != np.int64:
        return None
    if not sum(counts):
        weights = _by_rows(node.attr("coefficients"), len(labels))
        return None if weights is None else _linear_call(node, weights, np.repeat(rho[:1], len(labels)), "best", labels)
    svm_classifier.prepared(node)  # which refuses what does not fit
    shares = np.asarray((node.attr("prob_a", ()), node.attr("prob_b", ())), np.float64)
    weights = _pair_weights(node.attr("coefficients"), counts, _pairs(len(labels)))
    return _vector_call(node, weights, rho, "classifier", labels, shares if shares.size else None)
