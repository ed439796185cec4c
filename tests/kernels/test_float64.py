"""Elementwise nodes of float64 on every rung, against formulations in long double and numpy."""

from __future__ import annotations

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
    "tanh": 5, "sigmoid": 4, "gelu_tanh": 5, "silu": 5, "softplus": 5, "elu": 3, "selu": 4, "celu": 5,
    "scaled_tanh": 6.5, "mish": 8, "quick_gelu": 5,
}  # fmt: skip
PARAMETERS = {"affine": (2.0, -0.5)}  # the product is exact: with another one cancellation shows its rounding
TINY = 2e-320  # four units of a subnormal e^x, times an x of at most 746
NEARLY_NOTHING = {"gelu": 6e-17, "gelu_tanh": 6e-17, "quick_gelu": 6e-17, "hard_swish": 2e-15, "silu": TINY, "mish": TINY}


def case(name: str):
    formula, parameters, ulp, _ = FUNCTIONS[name]
    return formula, PARAMETERS.get(name, parameters), ULP.get(name, ulp), NEARLY_NOTHING.get(name, 0)


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
    for name, limits in {"erf": [-1, 1], "tanh": [-1, 1], "sigmoid": [0, 1], "gelu": [0, np.inf]}.items():
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
def test_what_numpy_has_vectors_for_is_declined(rung: str, name: str) -> None:
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


@pytest.mark.parametrize("op", ["Gelu", "LeakyRelu", "HardSwish", "Sigmoid", "Erf", "Mish", "Elu"])
def test_models_of_float64_run_in_kernels(op: str) -> None:
    double = ("x", 11, [None, 7]), ("y", 11, [None, 7])
    model = one_node(op, [double[0]], [double[1]], opset=20)
    x = np.random.default_rng(0).standard_normal((5, 7))
    y = model(x)
    expected = qruntime.ops.registry.find("", op, 20).definition(x)
    np.testing.assert_allclose(y, expected, rtol=1e-14, atol=1e-16)
    assert "numpy" not in str(model.profile({"x": x}))
    assert "nodes: 1 native" in model.summary({"x": x})
