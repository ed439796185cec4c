"""Linear models and support vector machines: plain formulations row by row, and rows that do not know each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qruntime.ops import registry

ML = "ai.onnx.ml"


def run(op: str, x: np.ndarray, **attributes: Any) -> Any:
    spec = registry.find(ML, op, 3)
    assert spec is not None
    bound = spec.bound(attributes)
    whole = bound(x)
    parts = [bound(x[i : i + 1]) for i in range(len(x))]
    for i, value in enumerate(whole if isinstance(whole, tuple) else (whole,)):
        rows = [part[i] if isinstance(part, tuple) else part for part in parts]
        np.testing.assert_array_equal(value, np.concatenate(rows))
    return whole


def machine(rng: np.random.Generator, counts: tuple[int, ...], features: int, kernel: str) -> dict[str, Any]:
    classes, supports = len(counts), sum(counts)
    return {
        "classlabels_ints": tuple(range(10, 10 + classes)),
        "coefficients": tuple(rng.standard_normal((classes - 1) * supports).tolist()),
        "kernel_params": (0.3, 0.5, 3.0),
        "kernel_type": kernel,
        "rho": tuple(rng.standard_normal(classes * (classes - 1) // 2).tolist()),
        "support_vectors": tuple(rng.standard_normal(supports * features).tolist()),
        "vectors_per_class": counts,
    }


def kernel_value(name: str, a: np.ndarray, b: np.ndarray) -> float:
    gamma, coef0, degree = 0.3, 0.5, 3.0
    return {
        "LINEAR": a @ b,
        "RBF": np.exp(-gamma * ((a - b) ** 2).sum()),
        "POLY": (gamma * (a @ b) + coef0) ** degree,
        "SIGMOID": np.tanh(gamma * (a @ b) + coef0),
    }[name]


def pair_scores(x: np.ndarray, given: dict[str, Any]) -> tuple[list[float], list[int]]:
    """Scores of the pairs of classes of one row in float64, and the votes."""
    counts = given["vectors_per_class"]
    vectors = np.reshape(given["support_vectors"], (sum(counts), -1))
    weights = np.reshape(given["coefficients"], (len(counts) - 1, -1))
    values = [kernel_value(given["kernel_type"], x.astype(np.float64), v) for v in vectors]
    owner = np.repeat(np.arange(len(counts)), counts)
    scores, votes = [], [0] * len(counts)
    for i in range(len(counts)):
        for j in range(i + 1, len(counts)):
            score = given["rho"][len(scores)]
            score += sum(weights[j - 1, s] * values[s] for s in range(len(values)) if owner[s] == i)
            score += sum(weights[i, s] * values[s] for s in range(len(values)) if owner[s] == j)
            scores.append(score)
            votes[i if score > 0 else j] += 1
    return scores, votes


@pytest.mark.parametrize("kernel", ["LINEAR", "RBF", "POLY", "SIGMOID"])
@pytest.mark.parametrize("counts", [(3, 2), (2, 4, 3), (1, 0, 2, 5)])
def test_svm_classifier(kernel, counts):
    rng = np.random.default_rng(len(counts))
    given = machine(rng, counts, 4, kernel)
    x = rng.standard_normal((20, 4))
    labels, scores = run("SVMClassifier", x, **given)
    for row, label, found in zip(x, labels, scores, strict=True):
        expected, votes = pair_scores(row, given)
        assert label == 10 + int(np.argmax(votes))
        np.testing.assert_allclose(found, [-expected[0], expected[0]] if len(counts) == 2 else expected, rtol=1e-5, atol=1e-5)
    named = {**given, "classlabels_ints": None, "classlabels_strings": tuple("abcd"[: len(counts)])}
    again, _ = run("SVMClassifier", x.astype(np.float32), **named)
    assert again.dtype == object
    assert (again == np.array(list("abcd"))[labels - 10]).mean() > 0.9


@pytest.mark.parametrize("counts", [(3, 2), (2, 4, 3), (1, 1, 2, 5)])
def test_probabilities_are_those_that_fit_the_pairs_best(counts):
    """The minimum of the sum of (r_ji p_i - r_ij p_j)^2 where the probabilities add up to 1, by its normal equations."""
    rng = np.random.default_rng(0)
    classes, pairs = len(counts), len(counts) * (len(counts) - 1) // 2
    given = machine(rng, counts, 4, "RBF")
    a, b = -1 - rng.random(pairs), rng.standard_normal(pairs)
    x = rng.standard_normal((12, 4))
    _, scores = run("SVMClassifier", x, prob_a=tuple(a.tolist()), prob_b=tuple(b.tolist()), **given)
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)
    for row, found in zip(x, scores, strict=True):
        share = 1 / (1 + np.exp(np.array(pair_scores(row, given)[0]) * a + b))
        r = np.zeros((classes, classes))
        r[np.triu_indices(classes, 1)] = share
        r += np.triu(1 - r, 1).T
        q = -r * r.T
        np.fill_diagonal(q, (r**2).sum(axis=0) - np.diag(r) ** 2)
        system = np.block([[q, np.ones((classes, 1))], [np.ones((1, classes)), np.zeros((1, 1))]])
        exact = np.linalg.solve(system, np.append(np.zeros(classes), 1))[:classes]
        np.testing.assert_allclose(found, exact, atol=0.02)  # it stops where products differ by 0.005 / classes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rho": (1.0,)}, "3 classes need"),
        ({"vectors_per_class": (2, 1)}, "3 classes need"),
        ({"coefficients": (1.0,)}, "coefficients must be 2 × 9"),
        ({"support_vectors": (1.0,)}, "support_vectors must be 9 × 4"),
        ({"kernel_type": "COSINE"}, "kernel_type"),
        ({"prob_a": (1.0,)}, "prob_a and prob_b"),
        ({"classlabels_ints": None}, "class labels"),
    ],
)
def test_attributes_that_do_not_fit(change, message):
    given = {**machine(np.random.default_rng(0), (2, 4, 3), 4, "RBF"), **change}
    with pytest.raises(ValueError, match=message):
        run("SVMClassifier", np.zeros((1, 4)), **given)


def test_linear_forms():
    rng = np.random.default_rng(0)
    x, weights = rng.standard_normal((30, 17)).astype(np.float32), rng.standard_normal((3, 17)).astype(np.float32)
    given = {"coefficients": tuple(weights.reshape(-1).tolist())}
    expected = x.astype(np.float64) @ weights.T.astype(np.float64)
    labels, scores = run("SVMClassifier", x, classlabels_ints=(4, 5, 6), rho=(0.5,), **given)
    np.testing.assert_allclose(scores, expected + 0.5, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(labels, 4 + scores.argmax(axis=1))
    labels, scores = run("LinearClassifier", x, classlabels_ints=(4, 5, 6), intercepts=(1.0, 2.0, 3.0), **given)
    np.testing.assert_allclose(scores, expected + np.array([1, 2, 3]), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(labels, 4 + scores.argmax(axis=1))
    np.testing.assert_allclose(run("LinearRegressor", x, targets=3, **given), expected, rtol=1e-5, atol=1e-5)
    supports = {"n_supports": 3, "support_vectors": given["coefficients"], "coefficients": (1.0, -1.0, 0.5), "rho": (0.1,)}
    run("SVMRegressor", x, kernel_type="RBF", kernel_params=(0.1, 0.0, 0.0), **supports)
