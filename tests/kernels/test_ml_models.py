"""Linear models and support vector machines: the kernels against the definitions, rows that do not know each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.kernels.native_call import run_definition, run_native, same_bits
from tests.ops.test_linear_models import machine

ML: dict[str, Any] = {"domain": "ai.onnx.ml", "version": 3}
EPS = 2.0**-23
TRANSFORMS = ("NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO")


def both_ways(op: str, x: np.ndarray, outputs: int, **attributes: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Outputs of the kernel and of the definition. Threads and single rows change no bit of the kernel's."""
    native = run_native(op, [x], num_outputs=outputs, **ML, **attributes)
    assert native is not None, "the kernel declined"
    for threads in (2, 3):
        for y, again in zip(native, run_native(op, [x], num_outputs=outputs, num_threads=threads, **ML, **attributes) or [], strict=True):
            same_bits(y, again)
    for i in range(min(len(x), 9)):
        alone = run_native(op, [x[i]], num_outputs=outputs, **ML, **attributes)
        assert alone is not None
        for y, row in zip(native, alone, strict=True):
            same_bits(y[i : i + 1], row)
    expected = run_definition(op, [x], num_outputs=outputs, **ML, **attributes)
    for y, want in zip(native, expected, strict=True):
        assert (y.dtype, y.shape) == (want.dtype, want.shape)
    return native, expected


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.int64])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("classes", [1, 2, 3, 15, 16, 17])
def test_linear(classes: int, transform: str, dtype: type) -> None:
    rng = np.random.default_rng(classes)
    given = {
        "coefficients": tuple(rng.standard_normal(classes * 7).tolist()),
        "intercepts": tuple(rng.standard_normal(classes).tolist()),
        "post_transform": transform,
    }
    for rows in (0, 1, 5, 64):
        x = (rng.standard_normal((rows, 7)) * 3).astype(dtype)
        (y,), (want,) = both_ways("LinearRegressor", x, 1, targets=classes, **given)
        # The sums have the same bits; exponentials are good to a few units, a sum of them to one more for each.
        np.testing.assert_allclose(y, want, rtol=0 if transform == "NONE" else (classes + 12) * EPS, atol=0)
        for names in {classes, 2 if classes == 1 else classes}:
            native, expected = both_ways("LinearClassifier", x, 2, classlabels_ints=tuple(range(5, 5 + names)), **given)
            np.testing.assert_array_equal(native[0], expected[0])
            np.testing.assert_allclose(native[1], expected[1], rtol=0 if transform == "NONE" else (names + 12) * EPS, atol=0)


def test_linear_nan() -> None:
    given = {"coefficients": (1.0, 0.0, 0.0, 1.0, 1.0, 1.0), "intercepts": (0.0, 0.0, 0.0), "classlabels_ints": (7, 8, 9)}
    x = np.array([[np.nan, 1], [1, np.nan], [2, 2], [-1, -2]], np.float32)
    for transform in TRANSFORMS:
        native, expected = both_ways("LinearClassifier", x, 2, post_transform=transform, **given)
        np.testing.assert_array_equal(native[0], expected[0])
        np.testing.assert_array_equal(np.isnan(native[1]), np.isnan(expected[1]))


def value_errors(kernel: str, x: np.ndarray, given: dict[str, Any]) -> float:
    """How far a value of the kernel function may be from that of the definition."""
    vectors = np.reshape(given["support_vectors"], (-1, x.shape[1]))
    gamma, coef0, degree = given["kernel_params"]
    norms = float((x.astype(np.float64) ** 2).sum(axis=1).max(initial=0)), float((vectors**2).sum(axis=1).max())
    if kernel == "RBF":
        return 2 * gamma * (x.shape[1] + 4) * EPS * sum(norms) + 4 * EPS
    if kernel == "LINEAR":
        return 0.0
    inner = gamma * np.sqrt(norms[0] * norms[1]) + coef0
    return 4 * EPS * inner if kernel == "SIGMOID" else 2 * EPS * degree * inner**degree


@pytest.mark.parametrize("kernel", ["LINEAR", "RBF", "POLY", "SIGMOID"])
@pytest.mark.parametrize("counts", [(3, 4), (2, 5, 3), (1, 9, 30, 0, 7)])
def test_vector_classifier(counts: tuple[int, ...], kernel: str) -> None:
    rng = np.random.default_rng(len(counts))
    given = machine(rng, counts, 5, kernel)
    classes, pairs = len(counts), len(given["rho"])
    for rows in (0, 1, 70):
        x = rng.standard_normal((rows, 5)).astype(np.float32)
        native, expected = both_ways("SVMClassifier", x, 2, **given)
        weight = float(np.abs(np.reshape(given["coefficients"], (classes - 1, -1))).sum(axis=1).max()) * 2
        error = weight * (value_errors(kernel, x, given) + 2 * EPS)
        np.testing.assert_allclose(native[1], expected[1], rtol=2 * EPS, atol=error)
        is_clear = (np.abs(expected[1]) > error).all(axis=1)
        np.testing.assert_array_equal(native[0][is_clear], expected[0][is_clear])
        assert is_clear.mean() > 0.9 if rows else True
        shares = {"prob_a": tuple(-rng.uniform(0.5, 2, pairs)), "prob_b": tuple(rng.standard_normal(pairs))}
        shares = {name: tuple(float(v) for v in values) for name, values in shares.items()}
        native, expected = both_ways("SVMClassifier", x, 2, **given, **shares)
        assert native[1].shape == (rows, classes)
        # Both stop within 0.005 / classes of the optimum, perhaps a round apart.
        np.testing.assert_allclose(native[1], expected[1], atol=0.005)
        np.testing.assert_allclose(native[1].sum(axis=1), 1, atol=classes * EPS)


@pytest.mark.parametrize("kernel", ["LINEAR", "RBF", "POLY", "SIGMOID"])
@pytest.mark.parametrize("one_class", [0, 1])
@pytest.mark.parametrize("degree", [1.0, 3.0, 2.5])
def test_vector_regressor(degree: float, one_class: int, kernel: str) -> None:
    rng = np.random.default_rng(7)
    given: dict[str, Any] = {
        "coefficients": tuple(rng.standard_normal(40).tolist()),
        "kernel_params": (0.3, 9.0 if kernel == "POLY" else 0.5, degree),
        "kernel_type": kernel,
        "n_supports": 40,
        "rho": (0.25,),
        "support_vectors": tuple(rng.standard_normal(40 * 6).tolist()),
    }
    x = np.clip(rng.standard_normal((33, 6)), -1.5, 1.5).astype(np.float32)
    (y,), (want,) = both_ways("SVMRegressor", x, 1, one_class=one_class, **given)
    if one_class:
        assert (y == want).mean() > 0.9
        assert set(np.unique(y).tolist()) <= {-1.0, 1.0}
    else:
        weight = float(np.abs(given["coefficients"]).sum())
        np.testing.assert_allclose(y, want, rtol=2 * EPS, atol=weight * (value_errors(kernel, x, given) + 2 * EPS))


def test_without_support_vectors() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((9, 4)).astype(np.float32)
    coefficients = tuple(rng.standard_normal(12).tolist())
    for one_class in (0, 1):
        (y,), (want,) = both_ways("SVMRegressor", x, 1, coefficients=coefficients[:4], rho=(0.5,), one_class=one_class)
        same_bits(y, want)
    native, expected = both_ways("SVMClassifier", x, 2, coefficients=coefficients, rho=(0.5,), classlabels_ints=(4, 5, 6))
    for y, want in zip(native, expected, strict=True):
        same_bits(y, want)


def test_declines() -> None:
    linear = {"coefficients": (1.0, 2.0), "intercepts": (0.0,)}
    for x in (np.zeros((2, 3), np.float32), np.zeros((2, 2), np.float16), np.zeros((1, 2, 2), np.float32), np.zeros((), np.float32)):
        assert run_native("LinearRegressor", [x], **ML, **linear) is None
    x = np.zeros((2, 2), np.float32)
    assert run_native("LinearRegressor", [x], **ML, **linear, post_transform="PROBIT") is None
    assert run_native("LinearRegressor", [x], **ML, coefficients=(1.0, 2.0, 3.0), intercepts=(0.0, 0.0), targets=2) is None
    given = machine(np.random.default_rng(0), (2, 3), 4, "RBF")
    assert run_native("SVMClassifier", [np.zeros((2, 3), np.float32)], num_outputs=2, **ML, **given) is None
