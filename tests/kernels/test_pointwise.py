"""Elementwise nodes on every rung against float64 formulations and numpy."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qruntime import _kernels as kernels

ERF = np.vectorize(math.erf, otypes=[float])
ERFC = np.vectorize(math.erfc, otypes=[float])
SIZES = [*range(11), 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129]
EDGES = "0 -0 inf -inf nan 1e-45 -1e-45 1e-38 -1e-38 88.7 88.8 -87.3 -87.7 -103 -104 3e38 -3e38 1e30 -1e30 1e5 -1e5"
SPECIAL = np.array(f"{EDGES} 1 -1 0.5 -0.5 2.5 -2.5 3.5 8388609 -8388607.5".split(), dtype=np.float32)


def unary(name: str, x: np.ndarray, *parameters: float, num_threads: int = 1) -> np.ndarray:
    result = kernels.call_node("unary", [x], ints=[kernels.UNARY[name]], floats=parameters, num_threads=num_threads)
    assert result is not None
    return result[0]


def binary(name: str, a: np.ndarray, b: np.ndarray, num_threads: int = 1) -> np.ndarray | None:
    result = kernels.call_node("binary", [a, b], ints=[kernels.BINARY[name]], num_threads=num_threads)
    return None if result is None else result[0]


def sigmoid(x: np.ndarray) -> np.ndarray:
    z = np.exp(-np.abs(x))
    return np.where(x < 0, z, 1.0) / (1 + z)


def softplus(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


def elu(x: np.ndarray, alpha: float) -> np.ndarray:
    return np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x)


# Formula in float64, parameters, error in ulp, and an absolute error where the result nearly vanishes.
TINY = 2e-36
FUNCTIONS: dict[str, tuple[Callable[..., np.ndarray], tuple[float, ...], float, float]] = {
    "relu": (lambda x: np.maximum(x, 0), (), 0, 0),
    "leaky_relu": (lambda x, a: np.where(x < 0, a * x, x), (0.125,), 0.51, 0),
    "exp": (np.exp, (), 1.1, 0),
    "log": (np.log, (), 1.1, 0),
    "sqrt": (np.sqrt, (), 0.51, 0),
    "reciprocal": (lambda x: 1 / x, (), 0.51, 0),
    "neg": (np.negative, (), 0, 0),
    "abs": (np.abs, (), 0, 0),
    "tanh": (np.tanh, (), 2.7, 0),
    "sigmoid": (sigmoid, (), 2.5, TINY),
    "erf": (ERF, (), 1.3, 0),
    "gelu": (lambda x: 0.5 * x * ERFC(-x / math.sqrt(2)), (), 3.5, 3e-8),
    "gelu_tanh": (gelu_tanh, (), 3.5, 3e-8),
    "silu": (lambda x: x * sigmoid(x), (), 3.2, TINY),
    "softplus": (softplus, (), 2.2, TINY),
    "elu": (elu, (1.0,), 1.1, 0),
    "selu": (lambda x, a, g: g * elu(x, a), (1.75, 1.125), 2.4, 0),
    "hard_sigmoid": (lambda x, a, b: np.clip(a * x + b, 0, 1), (0.25, 0.5), 0.51, 0),
    "hard_swish": (lambda x: x * np.clip(x / 6 + 0.5, 0, 1), (), 2, 1e-6),
    # 1.1 of expm1, twice as many where the product has half as large an ulp, 1 of the quotient, 0.5 of the product.
    "celu": (lambda x, a: np.where(x < 0, a * np.expm1(np.minimum(x, 0) / a), x), (1.75,), 3.7, 0),
    "thresholded_relu": (lambda x, a: np.where(x > a, x, 0), (0.5,), 0, 0),
    "shrink": (lambda x, limit, shift: np.where(x < -limit, x + shift, np.where(x > limit, x - shift, 0)), (0.5, 0.25), 0.51, 0),
    "affine": (lambda x, a, b: a * x + b, (1.75, -0.5), 0.51, 0),
    "scaled_tanh": (lambda x, a, b: a * np.tanh(b * x), (1.75, 0.75), 3.8, 0),
    "floor": (np.floor, (), 0, 0),
    "ceil": (np.ceil, (), 0, 0),
    "round": (np.rint, (), 0, 0),
    "sin": (np.sin, (), 1.6, 0),
    "cos": (np.cos, (), 1.6, 0),
    "clip": (lambda x, a, b: np.clip(x, a, b), (-1.5, 2.5), 0, 0),
    "sign": (np.sign, (), 0, 0),
    "softsign": (lambda x: x / (1 + np.abs(x)), (), 1.6, 0),
    "mish": (lambda x: x * np.tanh(softplus(x)), (), 4.2, TINY),
    "square": (np.square, (), 0.51, 0),
    "quick_gelu": (lambda x, a: x * sigmoid(a * x), (1.75,), 4.2, 3e-8),
}
NONNEGATIVE = {"log", "sqrt"}


def assert_close(actual: np.ndarray, exact: np.ndarray, ulp: float, absolute: float, x: np.ndarray) -> None:
    """|actual − exact| ≤ ulp · spacing(exact) + absolute; infinities and NaN in the same places."""
    with np.errstate(over="ignore"):
        rounded = exact.astype(actual.dtype)
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(rounded))
    edge = ~np.isfinite(rounded) | ~np.isfinite(actual)
    with np.errstate(invalid="ignore", over="ignore"):
        largest = np.nextafter(np.finfo(actual.dtype).max, actual.dtype.type(0))
        spacing = np.spacing(np.minimum(np.abs(rounded), largest)).astype(exact.dtype)
        error = np.abs(actual.astype(exact.dtype) - exact)
    np.testing.assert_array_equal(actual[edge], rounded[edge])
    bad = ~edge & (error > ulp * spacing + absolute)
    assert not bad.any(), f"x={x[bad][:5]}, got {actual[bad][:5]}, exact {exact[bad][:5]}, ulp {(error / spacing)[bad].max()}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_unary_error_stays_within_its_bound(rung: str, name: str) -> None:
    formula, parameters, ulp, absolute = FUNCTIONS[name]
    rng = np.random.default_rng(1)
    parts = [rng.uniform(-r, r, 6000) for r in (1e-40, 1e-3, 0.5, 1, 4, 10, 30, 104, 1e4, 1e5)]
    parts.append(np.linspace(-10, 10, 20001))
    if name not in ("sin", "cos"):
        parts.append(rng.standard_normal(2000) * 10.0 ** rng.uniform(-44, 38, 2000))
    x = np.concatenate(parts).astype(np.float32)
    if name in NONNEGATIVE:
        x = np.abs(x)
    with np.errstate(all="ignore"):
        assert_close(unary(name, x, *parameters), formula(x.astype(np.float64), *parameters), ulp, absolute, x)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_unary_at_special_values(rung: str, name: str) -> None:
    formula, parameters, ulp, absolute = FUNCTIONS[name]
    x = SPECIAL
    with np.errstate(all="ignore"):
        exact = formula(x.astype(np.float64), *parameters)
    keep = np.ones(x.size, bool)
    if name in ("gelu", "gelu_tanh", "silu", "mish", "quick_gelu", "hard_swish", "softsign"):
        # ∞·0 and ∞/∞ of the formulas; limits or NaN are both fine there
        keep = np.isfinite(x) | np.isnan(x)
    if name in ("sin", "cos"):
        keep = np.abs(x) < 1e6
        assert np.isnan(unary(name, np.float32([np.inf, -np.inf, np.nan]))).all()
    actual = unary(name, x, *parameters)
    assert_close(actual[keep], exact[keep], ulp, absolute, x[keep])


def test_limits_are_exact(rung: str) -> None:
    infinities = np.float32([-np.inf, np.inf])
    np.testing.assert_array_equal(unary("exp", infinities), [0, np.inf])
    np.testing.assert_array_equal(unary("exp", np.float32([-200, -1e30, 100])), [0, 0, np.inf])
    np.testing.assert_array_equal(unary("erf", infinities), [-1, 1])
    np.testing.assert_array_equal(unary("tanh", infinities), [-1, 1])
    np.testing.assert_array_equal(unary("sigmoid", infinities), [0, 1])
    np.testing.assert_array_equal(unary("gelu", infinities), [0, np.inf])
    np.testing.assert_array_equal(unary("gelu_tanh", infinities), [0, np.inf])
    np.testing.assert_array_equal(unary("log", np.float32([0, -0.0, np.inf])), [-np.inf, -np.inf, np.inf])
    for name in ("tanh", "erf", "sin", "neg", "abs", "sign", "softsign", "sqrt"):
        zeros = unary(name, np.float32([0.0, -0.0]))
        assert (zeros == 0).all()
    np.testing.assert_array_equal(np.signbit(unary("tanh", np.float32([-0.0, 0.0]))), [True, False])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_element_does_not_depend_on_its_place(rung: str, name: str) -> None:
    parameters = FUNCTIONS[name][1]
    rng = np.random.default_rng(2)
    x = np.concatenate([rng.standard_normal(100) * 5, SPECIAL]).astype(np.float32)
    whole = unary(name, x, *parameters)
    for n in SIZES:
        np.testing.assert_array_equal(unary(name, x[:n], *parameters), whole[:n])
    for i in range(0, x.size, 7):
        np.testing.assert_array_equal(unary(name, x[i : i + 1], *parameters), whole[i : i + 1])


@pytest.mark.parametrize("num_threads", [2, 3])
def test_threads_change_nothing(rung: str, num_threads: int) -> None:
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((2, 5, 20001)).astype(np.float32)
    np.testing.assert_array_equal(unary("gelu", x, num_threads=num_threads), unary("gelu", x))
    for b in (y, y[:1], y[:, :1], np.float32(2)):
        np.testing.assert_array_equal(binary("div", x, np.asarray(b), num_threads), binary("div", x, np.asarray(b)))


def test_unary_shapes(rung: str) -> None:
    assert unary("exp", np.float32(0)).shape == ()
    assert unary("exp", np.empty((3, 0, 2), np.float32)).shape == (3, 0, 2)
    assert kernels.call_node("unary", [np.zeros(3, np.int64)], ints=[0]) is None
    assert kernels.call_node("unary", [np.zeros(3, np.float32)], ints=[len(kernels.UNARY)]) is None
    assert kernels.call_node("unary", [np.zeros(3, np.float32)], ints=[-1]) is None


def test_clip_takes_bounds_as_inputs(rung: str) -> None:
    x = np.float32([-2, -1, 0, np.nan, 5])
    ints = [kernels.UNARY["clip"]]
    np.testing.assert_array_equal(kernels.call_node("unary", [x, np.float32(-1), np.float32(2)], ints=ints)[0], np.clip(x, -1, 2))
    np.testing.assert_array_equal(kernels.call_node("unary", [x, None, np.float32(2)], ints=ints)[0], np.minimum(x, 2))
    np.testing.assert_array_equal(kernels.call_node("unary", [x], ints=ints)[0], x)
    assert kernels.call_node("unary", [x, np.zeros(2, np.float32)], ints=ints) is None


def test_every_opcode_is_tested() -> None:
    assert set(kernels.UNARY) == set(FUNCTIONS)
    assert set(kernels.BINARY) == {*ARITHMETIC, *COMPARISONS, *LOGICAL, "pow", "mod", "fmod", "prelu"}


def test_not(rung: str) -> None:
    x = np.array([[True, False, True]])
    np.testing.assert_array_equal(kernels.call_node("not", [x])[0], ~x)
    assert kernels.call_node("not", [x.astype(np.float32)]) is None


ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "min": np.minimum, "max": np.maximum,
}  # fmt: skip
COMPARISONS: dict[str, Callable[..., Any]] = {
    "equal": np.equal, "less": np.less, "less_equal": np.less_equal,
    "greater": np.greater, "greater_equal": np.greater_equal,
}  # fmt: skip
LOGICAL: dict[str, Callable[..., Any]] = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}
SHAPES = [
    ((), ()), ((), (5,)), ((1,), (7,)), ((33,), (33,)), ((3, 17), (17,)), ((3, 17), (3, 1)), ((3, 1), (1, 17)),
    ((2, 3, 4), (3, 1)), ((2, 3, 4), (2, 1, 4)), ((1, 3, 1, 5), (2, 1, 4, 1)),
    ((2, 1, 2, 1, 2, 1, 2, 1), (1, 3, 1, 3, 1, 3, 1, 3)),
    ((0,), (1,)), ((2, 0, 3), (3,)), ((1, 1), (1,)), ((4, 5, 1, 1), (1, 1, 6, 7)), ((2, 3, 40), (2, 3, 40)),
]  # fmt: skip


def truncated(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    quotient = np.abs(a.astype(object)) // np.abs(b.astype(object))
    return np.asarray(quotient * np.sign(a) * np.sign(b)).astype(a.dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.int32])
@pytest.mark.parametrize("name", [*ARITHMETIC, *COMPARISONS])
def test_binary_broadcasts_like_numpy(rung: str, name: str, dtype: type) -> None:
    rng = np.random.default_rng(4)
    formula = {**ARITHMETIC, **COMPARISONS}[name]
    if name == "div" and dtype is not np.float32:
        formula = truncated
    for shapes in SHAPES:
        for first, second in (shapes, shapes[::-1]):
            a = np.asarray(rng.integers(-9, 9, first)).astype(dtype)
            b = np.asarray(rng.integers(-9, 9, second)).astype(dtype)
            if name == "div":
                b = np.asarray(np.where(b == 0, 3, b)).astype(dtype)
            expected = np.asarray(formula(a, b))
            actual = binary(name, a, b)
            assert actual is not None
            assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
            np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("name", [*ARITHMETIC, *COMPARISONS])
def test_binary_float_at_special_values(rung: str, name: str) -> None:
    a, b = SPECIAL[:, None], SPECIAL[None]
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(binary(name, a, b), {**ARITHMETIC, **COMPARISONS}[name](a, b))


@pytest.mark.parametrize("dtype", [np.int64, np.int32])
def test_integer_edges(rung: str, dtype: type) -> None:
    info = np.iinfo(dtype)
    a = np.array([info.min, info.max, -7, 7, -8, 8, 0], dtype)
    b = np.array([3, -3, 2, -2, 4, -4, 5], dtype)
    with np.errstate(over="ignore"):
        for name in ("add", "sub", "mul"):
            np.testing.assert_array_equal(binary(name, a, a), ARITHMETIC[name](a, a))
    np.testing.assert_array_equal(binary("mod", a, b), np.mod(a, b))
    np.testing.assert_array_equal(binary("fmod", a, b), np.fmod(a, b))
    np.testing.assert_array_equal(binary("div", a, b), truncated(a, b))
    for name in ("div", "mod", "fmod"):
        assert binary(name, a, np.zeros(1, dtype)) is None
        assert binary(name, a, np.array([-1], dtype)) is None
        np.testing.assert_array_equal(binary(name, a[1:], np.array([-1], dtype)), (-a[1:]) if name == "div" else 0)
    assert binary("pow", a, b) is None


@pytest.mark.parametrize("name", [*LOGICAL, "equal"])
def test_logical(rung: str, name: str) -> None:
    formula = LOGICAL.get(name, np.equal)
    a, b = np.array([[False], [True]]), np.array([False, True, True])
    np.testing.assert_array_equal(binary(name, a, b), formula(a, b))
    if name != "equal":
        assert binary(name, a.astype(np.int64), b.astype(np.int64)) is None


def test_pow_and_fmod(rung: str) -> None:
    rng = np.random.default_rng(5)
    x = np.concatenate([rng.uniform(0, 20, 999), SPECIAL]).astype(np.float32)
    with np.errstate(all="ignore"):
        for exponent in (2, 3, 0.5, 1, 0, -1, 2.5, -0.5, np.nan, np.inf):
            exact = np.power(x.astype(np.float64), np.full(x.shape, exponent))
            assert_close(binary("pow", x, np.float32(exponent)), exact, 1.6, 1e-44, x)
        y = rng.uniform(-4, 4, x.shape).astype(np.float32)
        assert_close(binary("pow", x, y), np.power(x.astype(np.float64), y.astype(np.float64)), 1.1, 0, x)
        np.testing.assert_array_equal(binary("fmod", x, y), np.fmod(x, y))
    assert binary("mod", x, y) is None


def test_prelu(rung: str) -> None:
    rng = np.random.default_rng(9)
    for shape, slope_shape in (((2, 3, 33), (3, 1)), ((2, 3, 33), ()), ((5,), (5,)), ((2, 0, 3), (1,)), ((4, 3, 2, 2), (3, 1, 1))):
        x, slope = rng.standard_normal(shape).astype(np.float32), rng.standard_normal(slope_shape).astype(np.float32)
        slope = np.asarray(slope)
        np.testing.assert_array_equal(binary("prelu", x, slope), np.where(x < 0, x * slope, x))
    with np.errstate(all="ignore"):
        expected = np.where(SPECIAL < 0, SPECIAL * np.float32(0.25), SPECIAL)
    np.testing.assert_array_equal(binary("prelu", SPECIAL, np.float32(0.25)), expected)
    assert binary("prelu", np.zeros(3, np.float32), np.zeros((2, 3), np.float32)) is None, "slopes broadcast to x only"
    assert binary("prelu", np.zeros(3, np.int64), np.zeros(3, np.int64)) is None


def test_binary_declines_what_does_not_fit(rung: str) -> None:
    assert binary("add", np.zeros(3, np.float32), np.zeros(2, np.float32)) is None
    assert binary("add", np.zeros(3, np.float32), np.zeros(3, np.int64)) is None
    assert binary("add", np.zeros(3, np.int16), np.zeros(3, np.int16)) is None
    assert binary("add", np.zeros((0,), np.float32), np.zeros((3,), np.float32)) is None
    assert kernels.call_node("binary", [np.zeros(3, np.float32)] * 2, ints=[99]) is None


def test_results_go_into_inputs_that_die(rung: str) -> None:
    """Node 1 makes a tensor that dies in node 2, which may put its result there."""
    x, y = np.random.default_rng(6).standard_normal((2, 3, 50)).astype(np.float32)
    exp = kernels.Step("exp", 2, kernel="unary", ints=[kernels.UNARY["exp"]], inputs=[0])
    cases = [("add", [2, 1], 1), ("sub", [1, 2], 2), ("mul", [2, 2], 3), ("less", [2, 1], 1)]
    for name, inputs, dying in cases:
        second = kernels.Step(name, 3, kernel="binary", ints=[kernels.BINARY[name]], inputs=inputs, dying=dying, released=[2])
        for b in (y, y[:1]):
            plan = kernels.Executable(4, [(0, x), (1, b)], [], [3], [exp, second], set(), [], 1)
            first = unary("exp", x)
            operands = [first if slot == 2 else b for slot in inputs]
            np.testing.assert_array_equal(plan.run(())[0], {**ARITHMETIC, **COMPARISONS}[name](*operands))


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint8, np.float16, np.bool_])
def test_where(rung: str, dtype: type) -> None:
    rng = np.random.default_rng(7)
    shapes = [
        ((5,), (5,), (5,)), ((5,), (), (5,)), ((5,), (5,), ()), ((5,), (), ()), ((), (5,), (5,)),
        ((), (5,), ()), ((), (), ()),
        ((2, 1, 3), (4, 1), (3,)), ((2, 1, 1, 40), (), (2, 3, 4, 40)), ((0, 3), (3,), ()), ((1, 3), (2, 1), (2, 3)),
    ]  # fmt: skip
    for c, x, y in shapes:
        condition = np.asarray(rng.integers(0, 2, c)).astype(bool)
        a, b = (np.asarray(rng.integers(0, 9, s)).astype(dtype) for s in (x, y))
        (actual,) = kernels.call_node("where", [condition, a, b])
        np.testing.assert_array_equal(actual, np.where(condition, a, b))
        assert actual.dtype == dtype
    assert kernels.call_node("where", [np.ones(2, np.int64), a, b]) is None
    assert kernels.call_node("where", [np.ones(2, bool), np.zeros(2), np.zeros(2, np.float32)]) is None


CODES = {"f4": 1, "f8": 11, "i8": 7, "i4": 6, "?": 9, "u1": 2, "i1": 3, "f2": 10}


@pytest.mark.parametrize("target", CODES)
@pytest.mark.parametrize("source", CODES)
def test_cast(rung: str, source: str, target: str) -> None:
    rng = np.random.default_rng(8)
    values = np.concatenate([rng.uniform(-120, 120, 700), [0, -0.0, 1, -1, 0.4, 126.5, 5e-8, 6e-8]])
    if source == "u1":
        values = np.abs(values)
    x = values.astype(source)
    wanted = x if target != "u1" or source in ("u1", "?", "i8", "i4", "i1") else np.abs(x)
    result = kernels.call_node("cast", [wanted], ints=[CODES[target]])
    if source == "f8" and target == "f2":
        assert result is None
        return
    np.testing.assert_array_equal(result[0], wanted.astype(target))
    assert result[0].dtype == np.dtype(target)
    for n in SIZES:
        np.testing.assert_array_equal(kernels.call_node("cast", [wanted[:n]], ints=[CODES[target]])[0], wanted[:n].astype(target))


def test_cast_of_what_does_not_fit(rung: str) -> None:
    for source in ("f4", "f8"):
        x = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 2.0**31, -(2.0**31), 2.0**63, -(2.0**63)], source)
        low = np.iinfo(np.int64).min
        expected = [low, low, low, low, low, 2**31, -(2**31), low, low]
        np.testing.assert_array_equal(kernels.call_node("cast", [x], ints=[7])[0], expected)
        low = np.iinfo(np.int32).min
        np.testing.assert_array_equal(kernels.call_node("cast", [x], ints=[6])[0], [low] * 9)
        np.testing.assert_array_equal(kernels.call_node("cast", [x], ints=[9])[0], [True] * 9)
    big = np.array([2**40 + 300, -1, 2**62], np.int64)
    for target in ("i4", "u1", "i1", "f4", "f8"):
        np.testing.assert_array_equal(kernels.call_node("cast", [big], ints=[CODES[target]])[0], big.astype(target))
    assert kernels.call_node("cast", [big], ints=[8]) is None


def test_half_precision_conversions_are_exact(rung: str) -> None:
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    single = kernels.call_node("cast", [every], ints=[1])[0]
    np.testing.assert_array_equal(single, every.astype(np.float32))
    numbers = single[np.isfinite(single)]
    between = np.concatenate([numbers, np.nextafter(numbers, np.float32(9e9)), (numbers + np.roll(numbers, 1)) / 2])
    between = np.concatenate([between, SPECIAL, np.float32([65504, 65519.99, 65520, 1e-8, 2.98e-8, 2.99e-8])]).astype(np.float32)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(kernels.call_node("cast", [between], ints=[10])[0], between.astype(np.float16))
