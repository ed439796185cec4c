"""Softmax and normalisation on every rung against float64."""

import numpy as np
import pytest

from qruntime import _kernels as kernels

WIDTHS = [*range(1, 11), 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 384, 2047, 2048, 2049, 5000]
EPSILON = float(np.finfo(np.float32).eps)


def softmax(x: np.ndarray, axis: int = -1, name: str = "softmax", num_threads: int = 1) -> np.ndarray:
    return kernels.call_node(name, [x], ints=[axis], num_threads=num_threads)[0]


def exact_softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    shifted = np.exp(x.astype(np.float64) - x.max(axis=axis, keepdims=True))
    return shifted / shifted.sum(axis=axis, keepdims=True)


def norm(name: str, inputs: list, axis: int = -1, epsilon: float = 1e-5, num_outputs: int = 1, num_threads: int = 1) -> list:
    return kernels.call_node(name, inputs, ints=[axis], floats=[epsilon], num_outputs=num_outputs, num_threads=num_threads)


def exact_norm(name: str, s: np.ndarray, axes: tuple[int, ...], epsilon: float = 1e-5) -> np.ndarray:
    s = s.astype(np.float64)
    if name == "layer_norm":
        s = s - s.mean(axis=axes, keepdims=True)
    return s / np.sqrt((s * s).mean(axis=axes, keepdims=True) + epsilon)


@pytest.mark.parametrize("spread", [0.1, 5, 100])
def test_softmax_error(rung: str, spread: float) -> None:
    rng = np.random.default_rng(1)
    for n in WIDTHS:
        x = (rng.standard_normal((3, n)) * spread).astype(np.float32)
        exact = exact_softmax(x)
        # x − max is rounded: half an ulp of it is a relative error of the exponential.
        bound = exact * EPSILON * (4 + spread + n / 64) + 1e-37
        assert (np.abs(softmax(x) - exact) <= bound).all()
        exact_log = np.log(exact_softmax(x), where=exact > 0, out=np.full(x.shape, -np.inf))
        keep = exact > 1e-200
        log = softmax(x, name="log_softmax")
        assert (np.abs(log - exact_log)[keep] <= (EPSILON * (2 + n / 64 + np.abs(exact_log)))[keep]).all()


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_on_any_axis(rung: str, name: str) -> None:
    x = np.random.default_rng(2).standard_normal((2, 3, 4, 5)).astype(np.float32)
    for axis in range(-4, 4):
        moved = np.moveaxis(softmax(np.ascontiguousarray(np.moveaxis(x, axis, -1)), name=name), -1, axis)
        np.testing.assert_array_equal(softmax(x, axis, name), moved)
        np.testing.assert_array_equal(softmax(x, axis, name, num_threads=3), moved)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("n", [1, 2, 7, 15, 16, 17, 31, 33, 64, 65, 129, 2047, 2048, 2049, 4200])
def test_columns_have_the_bits_of_rows(rung: str, name: str, n: int) -> None:
    """However many there are beside them."""
    rng = np.random.default_rng(n)
    for columns in (2, 4, 8, 15, 16, 33):
        x = (4 * rng.standard_normal((2, n, columns))).astype(np.float32)
        x[0, n // 2, 1] = np.nan
        x[1, :, 0] = -np.inf
        x[1, n // 3, -1] = -np.inf
        rows = softmax(np.ascontiguousarray(x.swapaxes(1, 2)), name=name).swapaxes(1, 2)
        for num_threads in (1, 3):
            np.testing.assert_array_equal(softmax(x, 1, name, num_threads=num_threads), rows)


def test_softmax_is_blind_to_its_neighbours(rung: str) -> None:
    x = np.random.default_rng(3).standard_normal((9, 77)).astype(np.float32)
    whole = softmax(x)
    for i in range(9):
        np.testing.assert_array_equal(softmax(x[i]), whole[i])
    wide = np.random.default_rng(3).standard_normal((64, 700)).astype(np.float32)
    for num_threads in (2, 3):
        np.testing.assert_array_equal(softmax(wide, num_threads=num_threads), softmax(wide))


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("fill", [-np.inf, -1e30, -10000.0])
def test_masked_padding_changes_no_bit(rung: str, name: str, fill: float) -> None:
    rng = np.random.default_rng(4)
    for n in (1, 2, 7, 8, 9, 31, 32, 33, 100, 2048):
        x = rng.standard_normal(n).astype(np.float32)
        alone = softmax(x, name=name)
        for extra in (1, 3, 8, 29, 64, 2100):
            padded = softmax(np.concatenate([x, np.full(extra, fill, np.float32)]), name=name)
            np.testing.assert_array_equal(padded[:n], alone)
            if name == "softmax":
                assert not padded[n:].any()


def test_softmax_special_values(rung: str) -> None:
    x = np.zeros((6, 40), np.float32)
    x[0, 3], x[1, 5], x[2], x[3, 7], x[4, 39] = np.nan, np.inf, -np.inf, -np.inf, 3e38
    y = softmax(x)
    assert np.isnan(y[:3]).all()
    np.testing.assert_allclose(y[3], np.where(np.arange(40) == 7, 0, 1 / 39), rtol=4 * EPSILON)
    np.testing.assert_array_equal(y[4], np.arange(40) == 39)
    np.testing.assert_allclose(y[5], np.full(40, 1 / 40), rtol=4 * EPSILON)
    assert softmax(np.zeros((3, 0), np.float32)).shape == (3, 0)
    assert softmax(np.zeros((0, 3), np.float32)).shape == (0, 3)
    np.testing.assert_array_equal(softmax(np.float32([[7]])), [[1]])


def test_softmax_declines(rung: str) -> None:
    x = np.zeros((2, 3), np.float32)
    assert kernels.call_node("softmax", [x], ints=[2]) is None
    assert kernels.call_node("softmax", [x], ints=[-3]) is None
    assert kernels.call_node("softmax", [x.astype(np.float64)], ints=[0]) is None
    assert kernels.call_node("softmax", [np.float32(1)], ints=[0]) is None
    assert kernels.call_node("layer_norm", [x, np.zeros(2, np.float32)], ints=[-1], floats=[0.1]) is None
    assert kernels.call_node("layer_norm", [x, None, None, x[:1]], ints=[-1], floats=[0.1]) is None


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_norm_error(rung: str, name: str, offset: float) -> None:
    rng = np.random.default_rng(5)
    for n in WIDTHS:
        x = (rng.standard_normal((3, n)) * 3 + offset).astype(np.float32)
        scale, bias = rng.standard_normal((2, n)).astype(np.float32)
        exact = exact_norm(name, x, (-1,))
        # The mean is rounded to float: offset/spread of it remains after centring, at most √n of a deviation.
        spread = max(float(x.std()), 3e-3)
        loss = EPSILON * (8 + n / 64 + (2 * offset / spread if name == "layer_norm" else 0))
        if n == 1 and name == "layer_norm":
            np.testing.assert_array_equal(norm(name, [x])[0], 0)
        assert (np.abs(norm(name, [x])[0] - exact) <= loss * (1 + np.abs(exact))).all()
        full = norm(name, [x, scale, bias])[0]
        bound = loss * (1 + np.abs(exact)) * np.abs(scale) + EPSILON * np.abs(full)
        assert (np.abs(full - (exact * scale + bias)) <= bound).all()
        np.testing.assert_array_equal(norm(name, [x, None, bias])[0], norm(name, [x, np.ones(n, np.float32), bias])[0])


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_norm_with_residual(rung: str, name: str) -> None:
    rng = np.random.default_rng(6)
    for n in (1, 7, 8, 33, 384):
        x, residual = rng.standard_normal((2, 4, n)).astype(np.float32)
        scale = rng.standard_normal(n).astype(np.float32)
        y, total = norm(name, [x, scale, None, residual], num_outputs=2)
        np.testing.assert_array_equal(total, x + residual)
        np.testing.assert_array_equal(y, norm(name, [x + residual, scale])[0])
        np.testing.assert_array_equal(norm(name, [x, scale, None, residual])[0], y)
        np.testing.assert_array_equal(norm(name, [x, scale], num_outputs=2)[1], x)


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_norm_over_several_axes(rung: str, name: str) -> None:
    x = np.random.default_rng(7).standard_normal((2, 3, 4, 5)).astype(np.float32)
    for axis in range(-4, 4):
        axes = tuple(range(axis % 4, 4))
        scale = np.random.default_rng(8).standard_normal(x.shape[axes[0] :]).astype(np.float32)
        exact = exact_norm(name, x, axes) * scale
        np.testing.assert_allclose(norm(name, [x, scale], axis)[0], exact, rtol=20 * EPSILON, atol=20 * EPSILON)


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_norm_is_blind_to_neighbours_and_threads(rung: str, name: str) -> None:
    x = np.random.default_rng(9).standard_normal((50, 500)).astype(np.float32)
    x[7, 3], x[9, 5] = np.nan, np.inf
    whole = norm(name, [x])[0]
    for i in range(0, 50, 7):
        np.testing.assert_array_equal(norm(name, [x[i]])[0], whole[i])
    for num_threads in (2, 3):
        np.testing.assert_array_equal(norm(name, [x], num_threads=num_threads)[0], whole)
    finite = np.isfinite(whole).all(axis=1)
    assert not finite[7]
    assert not finite[9]
    assert finite.sum() == 48


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm"])
def test_norm_of_nothing(rung: str, name: str) -> None:
    assert norm(name, [np.zeros((0, 3), np.float32)])[0].shape == (0, 3)
    assert norm(name, [np.zeros((3, 0), np.float32)])[0].shape == (3, 0)
    assert kernels.call_node(name, [np.float32(3)], ints=[-1], floats=[1e-5]) is None


def test_results_go_into_inputs_that_die(rung: str) -> None:
    x, residual = np.random.default_rng(10).standard_normal((2, 3, 50)).astype(np.float32)
    negate = kernels.Step("neg", 2, kernel="unary", ints=[kernels.UNARY["neg"]], inputs=[0])
    steps = {
        "softmax": kernels.Step("softmax", 3, kernel="softmax", ints=[-1], inputs=[2], dying=1, released=[2]),
        "column": kernels.Step("softmax", 3, kernel="softmax", ints=[0], inputs=[2], dying=1, released=[2]),
        "layer_norm": kernels.Step("norm", 3, kernel="layer_norm", ints=[-1], floats=[1e-5], inputs=[2, -1, -1, 1], dying=1, released=[2]),
    }
    expected = {"softmax": softmax(-x), "column": softmax(-x, 0), "layer_norm": norm("layer_norm", [residual - x])[0]}
    for name, step in steps.items():
        plan = kernels.Executable(4, [(0, x), (1, residual)], [], [3], [negate, step], set(), [], 1)
        np.testing.assert_array_equal(plan.run(())[0], expected[name])
    both = steps["layer_norm"]._replace(num_outputs=2)
    plan = kernels.Executable(5, [(0, x), (1, residual)], [], [3, 4], [negate, both], set(), [], 1)
    y, total = plan.run(())
    np.testing.assert_array_equal(y, expected["layer_norm"])
    np.testing.assert_array_equal(total, residual - x)
