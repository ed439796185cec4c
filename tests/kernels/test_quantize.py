"""8-bit QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear, bit for bit as their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from qruntime.ops import registry
from tests.kernels.native_call import run_native

RNG = np.random.default_rng(5)
SHAPES = [(), (0,), (1,), (7,), (3, 5), (2, 3, 4), (2, 0, 4), (1, 20000), (3, 16385)]
ODD = np.array([0.0, -0.0, 0.5, 1.5, 2.5, -0.5, -1.5, 1e38, -1e38, np.inf, -np.inf, np.nan, 127.5, 126.5, 2**24 + 1], np.float32)


def definition(op, *inputs, **attributes):
    with np.errstate(all="ignore"):
        return registry.find("", op, 24)(*inputs, **attributes)


def same(found, expected):
    assert found is not None
    for f, e in zip(found, expected if isinstance(expected, tuple) else (expected,), strict=True):
        assert f.dtype == e.dtype
        assert f.shape == e.shape
        np.testing.assert_array_equal(f, e)


def parameters(dtype, size):
    info = np.iinfo(dtype)
    scale = (0.01 + RNG.random(size)).astype(np.float32)
    return scale, RNG.integers(info.min, info.max + 1, size).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threads", [1, 3])
def test_per_tensor(dtype, shape, threads):
    x = (RNG.standard_normal(shape) * 50).astype(np.float32)
    for size in ((), (1,)):
        scale, zero = parameters(dtype, size)
        codes = definition("QuantizeLinear", x, scale, zero)
        same(run_native("QuantizeLinear", [x, scale, zero], num_threads=threads), codes)
        same(
            run_native("DequantizeLinear", [codes, scale, zero], num_threads=threads),
            definition("DequantizeLinear", codes, scale, zero),
        )


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize(("shape", "axis"), [((3, 5), 0), ((3, 5), 1), ((3, 5), -1), ((2, 3, 4), 1), ((2, 0, 4), 2), ((9, 5000), 1)])
def test_per_axis(dtype, shape, axis):
    x = (RNG.standard_normal(shape) * 50).astype(np.float32)
    scale, zero = parameters(dtype, (shape[axis],))
    codes = definition("QuantizeLinear", x, scale, zero, axis=axis)
    same(run_native("QuantizeLinear", [x, scale, zero], axis=axis, num_threads=2), codes)
    found = run_native("DequantizeLinear", [codes, scale, zero], axis=axis, num_threads=2)
    same(found, definition("DequantizeLinear", codes, scale, zero, axis=axis))


@pytest.mark.parametrize("zero", [np.uint8(0), np.uint8(255), np.int8(-128), np.int8(3), None])
@pytest.mark.parametrize("scale", [1.0, 0.1, 1e-38, 1e-45, 3e38, 0.0, np.inf, np.nan])
def test_odd_values(zero, scale):
    scale = np.array(scale, np.float32)
    zero = None if zero is None else np.asarray(zero)
    same(run_native("QuantizeLinear", [ODD, scale, zero]), definition("QuantizeLinear", ODD, scale, zero))


@pytest.mark.parametrize("shape", SHAPES)
def test_dynamic(shape):
    x = RNG.standard_normal(shape).astype(np.float32)
    for values in (x, np.abs(x), -np.abs(x), x * 0, x * np.float32(1e-40)):
        same(run_native("DynamicQuantizeLinear", [values], num_outputs=3), definition("DynamicQuantizeLinear", values))


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_dynamic_declines_ranges_that_are_not_finite(value):
    x = np.array([value, -3e38], np.float32)
    assert run_native("DynamicQuantizeLinear", [x], num_outputs=3) is None


@pytest.mark.parametrize(
    ("scale", "zero", "axis"),
    [
        (np.ones(4, np.float32), np.zeros(4, np.uint8), 1),
        (np.ones(5, np.float32), np.zeros(4, np.uint8), 1),
        (np.ones(5, np.float32), np.zeros(5, np.uint8), 2),
        (np.ones(5, np.float64), np.zeros(5, np.uint8), 1),
        (np.ones((1, 5), np.float32), np.zeros((1, 5), np.uint8), 1),
        (np.ones(5, np.float32), np.zeros(5, np.uint16), 1),
        (np.ones(0, np.float32), np.zeros(0, np.uint8), 1),
    ],
)
def test_declines_what_does_not_fit(scale, zero, axis):
    assert run_native("QuantizeLinear", [np.ones((3, 5), np.float32), scale, zero], axis=axis) is None
    assert run_native("DequantizeLinear", [np.ones((3, 5), zero.dtype), scale, zero], axis=axis) is None
