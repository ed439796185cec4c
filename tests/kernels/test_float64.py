"""Elementwise nodes of float64 on every rung, against formulations in long double and numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest

import qruntime
from qruntime import _kernels as kernels
from tests.kernels.test_pointwise import ARITHMETIC, COMPARISONS, FUNCTIONS, SHAPES, SIZES, SPECIAL, assert_close, binary, unary
from tests.small_models import one_node

LEFT_TO_NUMPY = ("exp", "log", "sin", "cos")
NAMES = [name for name in FUNCTIONS if name not in LEFT_TO_NUMPY]

# Of the series 2 ulp, of what is made of one twice as many where the argument's error counts, and a half for each operation.
ULP = {
    "tanh": 5, "sigmoid": 4, "erf": 3.5, "gelu": 9, "gelu_tanh": 5, "silu": 5, "softplus": 5, "elu": 3, "selu": 4, "celu": 5,
    "scaled_tanh": 6.5, "mish": 8, "quick_gelu": 5,
}  # fmt: skip
PARAMETERS = {"affine": (2.0, -0.5)}  # the product is exact: with another one cancellation shows its rounding
TINY = 2e-320  # four units of a subnormal e^x, times an x of at most 746
NEARLY_NOTHING = {"gelu": TINY, "gelu_tanh": 6e-17, "quick_gelu": 6e-17, "hard_swish": 2e-15, "silu": TINY, "mish": TINY}


def exact_erf(x: np.ndarray) -> np.ndarray:
    """erf of |x| ≤ 2 in long double: 2 / √π · e^(−x²) · Σ 2ⁿ x^(2n+1) / (1 · 3 · 5 ⋯), whose terms have one sign."""
    term = total = x
    for n in range(1, 90):
        term = term * 2 * x * x / (2 * n + 1)
        total = total + term
    return 2 / np.sqrt(np.arccos(np.longdouble(-1))) * np.exp(-x * x) * total


def exact_erfc(x: np.ndarray) -> np.ndarray:
    """erfc in long double: 1 − erf of |x| below 2, beyond e^(−x²) / √π over the continued fraction x + ½ / (x + 1 / (x + 1½ / (x + ⋯)))."""
    fraction = high = np.clip(np.abs(x), 2, 200)
    for n in range(400, 0, -1):
        fraction = high + np.longdouble(n) / 2 / fraction
    tail = np.exp(-high * high) / fraction / np.sqrt(np.arccos(np.longdouble(-1)))
    return np.where(x < -2, 2 - tail, np.where(x < 2, 1 - exact_erf(np.clip(x, -2, 2)), tail))


def test_the_references_agree_with_python() -> None:
    x = np.linspace(-30, 27, 5001)
    for exact, function in ((exact_erfc, math.erfc), (lambda x: 1 - exact_erfc(x), math.erf)):
        known = np.array([function(value) for value in x])
        np.testing.assert_allclose(exact(x.astype(np.longdouble)).astype(np.float64), known, rtol=1e-13, atol=1e-19)


# Of the error function there are no formulas of enough digits in numpy.
EXACT = {
    "erf": lambda x: np.where(np.abs(x) < 2, exact_erf(np.clip(x, -2, 2)), np.copysign(1 - exact_erfc(np.abs(x)), x)),
    "gelu": lambda x: x / 2 * exact_erfc(-x / np.sqrt(np.longdouble(2))),
}


def case(name: str):
    formula, parameters, ulp, _ = FUNCTIONS[name]
    return EXACT.get(name, formula), PARAMETERS.get(name, parameters), ULP.get(name, ulp), NEARLY_NOTHING.get(name, 0)


@pytest.mark.parametrize("name", NAMES)
def test_error_stays_within_its_bound(rung: str, name: str) -> None:
    formula, parameters, ulp, absolute = case(name)
    rng = np.random.default_rng(1)
    parts = [rng.uniform(-r, r, 4000) for r in (1e-300, 1e-8, 1e-3, 0.5, 1, 4, 10, 40, 710, 746, 1e4)]
    parts += [np.linspace(-10, 10, 10001), rng.standard_normal(2000) * 10.0 ** rng.uniform(-320, 300, 2000)]
    x = np.concatenate(parts)
    if name == "sqrt":
        x = np.abs(x)
    with np.errstate(all="ignore"):
        assert_close(unary(name, x, *parameters), formula(x.astype(np.longdouble), *parameters), ulp, absolute, x)


@pytest.mark.parametrize("name", NAMES)
def test_special_values(rung: str, name: str) -> None:
    formula, parameters, ulp, absolute = case(name)
    x = np.concatenate([SPECIAL.astype(np.float64), [1e308, -1e308, 5e-324, -5e-324, 709.7, 709.8, -745.1, -745.2, -708.5]])
    with np.errstate(all="ignore"):
        exact = formula(x.astype(np.longdouble), *parameters)
    keep = np.ones(x.size, bool)
    if name in ("gelu", "gelu_tanh", "silu", "mish", "quick_gelu", "hard_swish", "softsign"):
        keep = np.isfinite(x) | np.isnan(x)  # ∞·0 and ∞/∞ of the formulas; limits or NaN are both fine there
    assert_close(unary(name, x, *parameters)[keep], exact[keep], ulp, absolute, x[keep])


def test_limits_are_exact(rung: str) -> None:
    infinities = np.array([-np.inf, np.inf])
    for name, limits in {"tanh": [-1, 1], "sigmoid": [0, 1], "gelu": [0, np.inf]}.items():
        np.testing.assert_array_equal(unary(name, infinities), limits)
    np.testing.assert_array_equal(np.signbit(unary("tanh", np.array([-0.0, 0.0]))), [True, False])


@pytest.mark.parametrize("name", NAMES)
def test_an_element_does_not_depend_on_its_place(rung: str, name: str) -> None:
    parameters = case(name)[1]
    x = np.concatenate([np.random.default_rng(2).standard_normal(100) * 5, SPECIAL])
    whole = unary(name, x, *parameters)
    for n in SIZES:
        np.testing.assert_array_equal(unary(name, x[:n], *parameters), whole[:n])
    np.testing.assert_array_equal(unary(name, np.tile(x, 400), *parameters, num_threads=3), np.tile(whole, 400))


@pytest.mark.parametrize("name", LEFT_TO_NUMPY)
def test_what_is_left_to_numpy_is_declined(rung: str, name: str) -> None:
    assert kernels.call_node("unary", [np.ones(3)], ints=[kernels.UNARY[name]]) is None


def test_clip_takes_bounds_as_inputs(rung: str) -> None:
    x, ints = np.array([-2, -1, 0, np.nan, 5]), [kernels.UNARY["clip"]]
    np.testing.assert_array_equal(kernels.call_node("unary", [x, np.float64(-1), np.float64(2)], ints=ints)[0], np.clip(x, -1, 2))
    np.testing.assert_array_equal(kernels.call_node("unary", [x, None, np.float64(2)], ints=ints)[0], np.minimum(x, 2))
    assert kernels.call_node("unary", [x, np.float32(-1)], ints=ints) is None


@pytest.mark.parametrize("name", [*ARITHMETIC, *COMPARISONS])
def test_binary_like_numpy(rung: str, name: str) -> None:
    rng, formula = np.random.default_rng(4), {**ARITHMETIC, **COMPARISONS}[name]
    for shapes in SHAPES:
        for first, second in (shapes, shapes[::-1]):
            a, b = np.asarray(rng.standard_normal(first)), np.asarray(np.round(rng.standard_normal(second), 1))
            with np.errstate(all="ignore"):
                expected = np.asarray(formula(a, b))
            actual = binary(name, a, b)
            assert actual is not None and (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
            np.testing.assert_array_equal(actual, expected)
    special = np.concatenate([SPECIAL, [1e308, 5e-324]])
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(binary(name, special[:, None], special[None]), formula(special[:, None], special[None]))


def test_prelu(rung: str) -> None:
    x, slope = np.random.default_rng(9).standard_normal((2, 3, 33)), np.array([[0.25], [-1.5], [0.1]])
    np.testing.assert_array_equal(binary("prelu", x, slope), np.where(x < 0, x * slope, x))


@pytest.mark.parametrize("op", ["Erf", "Gelu", "LeakyRelu", "HardSwish", "Sigmoid", "Mish", "Elu"])
def test_models_of_float64_run_in_kernels(op: str) -> None:
    double = ("x", 11, [None, 7]), ("y", 11, [None, 7])
    model = one_node(op, [double[0]], [double[1]], opset=20)
    x = np.random.default_rng(0).standard_normal((5, 7))
    y = model(x)
    expected = qruntime.ops.registry.find("", op, 20).definition(x)
    np.testing.assert_allclose(y, expected, rtol=1e-14, atol=1e-16)
    assert "numpy" not in str(model.profile({"x": x}))
    assert "nodes: 1 native" in model.summary({"x": x})


WIDTHS = [*range(1, 11), 15, 16, 17, 31, 32, 33, 127, 128, 129, 768, 2049]
EPSILON = float(np.finfo(np.float64).eps)


@pytest.mark.parametrize("spread", [0.1, 5, 400])
def test_softmax(rung: str, spread: float) -> None:
    rng = np.random.default_rng(1)
    for n in WIDTHS:
        x = rng.standard_normal((3, n)) * spread
        shifted = x.astype(np.longdouble) - x.max(axis=-1, keepdims=True)
        exact = np.exp(shifted) / np.exp(shifted).sum(axis=-1, keepdims=True)
        exact_log = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
        (y,) = kernels.call_node("softmax", [x], ints=[-1])
        (log,) = kernels.call_node("log_softmax", [x], ints=[-1])
        # x − max is rounded: half an ulp of it is a relative error of the exponential. A subnormal keeps fewer digits.
        assert (np.abs(y - exact) <= exact * EPSILON * (4 + 2 * spread + n / 16) + 1e-323).all()
        assert (np.abs(log - exact_log) <= EPSILON * (4 + 2 * spread + n / 16 + np.abs(exact_log))).all()
        for row in range(3):  # alone, with the bits it has among others
            np.testing.assert_array_equal(kernels.call_node("softmax", [x[row : row + 1]], ints=[-1])[0][0], y[row])


def test_softmax_of_odd_rows(rung: str) -> None:
    odd = np.array([[1, np.nan, 2], [-np.inf, -np.inf, -np.inf], [np.inf, 0, 1]])
    for name in ("softmax", "log_softmax"):
        y = kernels.call_node(name, [odd], ints=[1])[0]
        assert np.isnan(y[:2]).all() and np.isnan(y[2, 0])
        assert kernels.call_node(name, [odd], ints=[0]) is None  # columns are numpy's
    (y,) = kernels.call_node("softmax", [np.array([[-np.inf, 0, 0]])], ints=[1])
    np.testing.assert_array_equal(y, [[0, 0.5, 0.5]])


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_norms(rung: str, name: str) -> None:
    rng = np.random.default_rng(2)
    for n in WIDTHS:
        x, residual, (scale, bias) = rng.standard_normal((5, n)) * 3, rng.standard_normal((5, n)), rng.standard_normal((2, n))
        for use in range(8):
            inputs = [x, scale if use & 1 else None, bias if use & 2 else None, residual if use & 4 else None]
            y, total = kernels.call_node(name, inputs, ints=[-1], floats=[1e-5], num_outputs=2)
            s = x + residual if use & 4 else x
            np.testing.assert_array_equal(total, s)
            wide = s.astype(np.longdouble)
            if name == "layer_norm":
                wide = wide - wide.mean(axis=-1, keepdims=True)
            exact = wide / np.sqrt((wide * wide).mean(axis=-1, keepdims=True) + 1e-5)
            factor, offset = (scale if use & 1 else 1), (bias if use & 2 else 0)
            # Against the mean the sum loses n/16 roundings of its lanes, and of numbers that nearly cancel up to their own size.
            bound = EPSILON * (8 + n / 16) * (1 + np.abs(s) + np.abs(exact)) * (np.abs(factor) + np.abs(offset)) * np.abs(1 / wide.std())
            if n > 1:
                assert (np.abs(y - (exact * factor + offset)) <= bound).all()
            one = kernels.call_node(name, [v if v is None or v.ndim == 1 else v[3:4] for v in inputs], ints=[-1], floats=[1e-5])
            np.testing.assert_array_equal(one[0][0], y[3])
    assert kernels.call_node(name, [x, scale.astype(np.float32)], ints=[-1], floats=[1e-5]) is None


REDUCTIONS = {
    "sum": lambda x, axis: x.sum(axis), "mean": lambda x, axis: x.mean(axis), "max": lambda x, axis: x.max(axis),
    "min": lambda x, axis: x.min(axis), "prod": lambda x, axis: x.prod(axis), "l1": lambda x, axis: np.abs(x).sum(axis),
    "l2": lambda x, axis: np.sqrt((x * x).sum(axis)), "sum_square": lambda x, axis: (x * x).sum(axis),
}  # fmt: skip
REDUCED = (
    [((n,), 0) for n in WIDTHS]
    + [((3, n), 1) for n in (*WIDTHS, 5000)]
    + [((n, m), 0) for n in (1, 2, 63, 64, 65, 300) for m in WIDTHS[:16]]
)
REDUCED += [((2, 3, 4), (0, 2)), ((2, 3, 4), (0, 1, 2)), ((5, 1, 4), 1), ((1, 1), 0), ((3, 70, 5), 1), ((9, 2, 130, 3), (0, 2))]


def reduce(op: str, x: np.ndarray, axis: int | tuple[int, ...], threads: int = 1) -> np.ndarray | None:
    axes = [axis] if isinstance(axis, int) else axis
    found = kernels.call_node("reduce", [x], ints=[kernels.REDUCE[op], 0, 0, *axes], num_threads=threads)
    return None if found is None else found[0]


@pytest.mark.parametrize("op", REDUCTIONS)
def test_reductions(rung: str, op: str) -> None:
    rng = np.random.default_rng(3)
    for shape, axis in REDUCED:
        x = rng.uniform(0.5, 1.5, shape) * rng.choice([-1, 1], shape)
        y, exact = reduce(op, x, axis), REDUCTIONS[op](x.astype(np.longdouble), axis)
        terms = x.size // max(np.asarray(exact).size, 1)
        size = np.abs(exact) if op == "prod" else REDUCTIONS["l1" if op in ("sum", "mean") else op](x.astype(np.longdouble), axis)
        if op == "mean":
            size = size / terms
        # In 16 lanes and blocks of 2048, or blocks of 64 rows: what a sum loses. An extreme loses nothing.
        bound = 0 if op in ("max", "min") else EPSILON * ((terms if op == "prod" else min(terms, 64 + terms / 64)) + 2)
        assert y is not None and (y.dtype, y.shape) == (np.float64, np.shape(exact))
        assert (np.abs(y - exact) <= bound * np.abs(size)).all(), (shape, axis)
        for threads in (2, 3):
            np.testing.assert_array_equal(reduce(op, x, axis, threads), y)


@pytest.mark.parametrize("op", REDUCTIONS)
def test_nan_and_infinity_in_reductions(rung: str, op: str) -> None:
    for axis, n in ((1, 40), (1, 3000), (0, 40)):
        x = np.ones((7, n) if axis else (n, 7))
        odd = x if axis else x.T
        odd[1, 5], odd[2, n - 1], odd[3, 2] = np.nan, np.nan, np.inf
        y = reduce(op, x, axis)
        assert np.isnan(y[[1, 2]]).all() and not np.isnan(y[[0, 3, 4, 5, 6]]).any()
        assert y[3] == (1 if op == "min" else np.inf)


@pytest.mark.parametrize("op", REDUCTIONS)
def test_a_reduced_row_stands_alone(rung: str, op: str) -> None:
    x = np.random.default_rng(4).standard_normal((9, 200, 33))
    rows, columns = reduce(op, x, (1, 2)), reduce(op, x, 1)
    for i in range(9):
        np.testing.assert_array_equal(reduce(op, x[i : i + 1], (1, 2))[0], rows[i])
        np.testing.assert_array_equal(reduce(op, x[i : i + 1], 1)[0], columns[i])


def test_reductions_of_nothing() -> None:
    empty = np.zeros((3, 0))
    np.testing.assert_array_equal(reduce("sum", empty, 1), np.zeros(3))
    np.testing.assert_array_equal(reduce("prod", empty, 1), np.ones(3))
    assert reduce("max", empty, 1) is None
    x = np.array([[1.0, -2.0]])
    for op, expected in (("l1", [[1, 2]]), ("sum_square", [[1, 4]]), ("mean", [[1, -2]]), ("l2", [[1, 2]])):
        np.testing.assert_array_equal(reduce(op, x[None], 0), expected)


def test_batch_normalization(rung: str) -> None:
    rng = np.random.default_rng(5)
    for shape in [(3, 4, 5), (1, 33, 7, 2), (9, 6), (2, 1, 5000), (0, 4, 3), (2, 4, 0)]:
        x, channels = rng.standard_normal(shape) * 3, shape[1]
        scale, bias, mean, variance = *rng.standard_normal((3, channels)), rng.uniform(0.5, 2, channels)
        y = [kernels.call_node("batch_norm", [x, scale, bias, mean, variance], floats=[1e-5], num_threads=threads)[0] for threads in (1, 3)]
        np.testing.assert_array_equal(*y)
        broad = [v.astype(np.longdouble).reshape(-1, *[1] * (len(shape) - 2)) for v in (scale, bias, mean, variance)]
        factor = broad[0] / np.sqrt(broad[3] + np.longdouble(1e-5))
        bound = 3 * EPSILON * (np.abs(x * factor) + np.abs(broad[2] * factor) + np.abs(broad[1]))
        assert (np.abs(y[0] - ((x - broad[2]) * factor + broad[1])) <= bound).all()
        for row in range(shape[0]):
            alone = kernels.call_node("batch_norm", [x[row : row + 1], scale, bias, mean, variance], floats=[1e-5])[0]
            np.testing.assert_array_equal(alone[0], y[0][row])
    assert kernels.call_node("batch_norm", [x, scale.astype(np.float32), bias, mean, variance], floats=[1e-5]) is None


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMax", "BatchNormalization"])
def test_reductions_and_images_of_models_run_in_kernels(op: str) -> None:
    vectors = {name: np.linspace(1, 2, 4) + i for i, name in enumerate(("scale", "bias", "mean", "variance"))}
    weights = vectors if op == "BatchNormalization" else {"axes": np.array([1])}
    model = one_node(op, [("x", 11, [None, 4, 9])], [("y", 11, None)], weights, opset=18)
    x = np.random.default_rng(0).standard_normal((5, 4, 9))
    expected = qruntime.ops.registry.find("", op, 18).definition(x, *weights.values())
    expected = expected[0] if isinstance(expected, tuple) else expected
    np.testing.assert_allclose(model(x), expected, rtol=1e-13, atol=1e-14)
    assert "nodes: 1 native" in model.summary({"x": x})


@pytest.mark.parametrize("op", ["Softmax", "LayerNormalization"])
def test_rows_of_models_run_in_kernels(op: str) -> None:
    weights = {"scale": np.linspace(1, 2, 24)} if op == "LayerNormalization" else {}
    model = one_node(op, [("x", 11, [None, 24])], [("y", 11, [None, 24])], weights, opset=17)
    x = np.random.default_rng(0).standard_normal((5, 24))
    expected = qruntime.ops.registry.find("", op, 17).definition(x, *weights.values())
    expected = expected[0] if isinstance(expected, tuple) else expected
    np.testing.assert_allclose(model(x), expected, rtol=1e-13, atol=1e-15)
    assert "nodes: 1 native" in model.summary({"x": x})
