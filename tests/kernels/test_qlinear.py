"""Kernels on 8-bit codes against their numpy definitions, byte for byte."""

import itertools

import numpy as np
import pytest

from tests.kernels.native_call import run_definition, run_native, same_bits

RNG = np.random.default_rng(7)
MICROSOFT = "com.microsoft"


def codes(dtype, *shape):
    info = np.iinfo(dtype)
    return RNG.integers(info.min, info.max + 1, shape).astype(dtype)


def f32(value):
    return np.asarray(value, np.float32)


def exact(op, inputs, *, constants, domain="qruntime", **attributes):
    """The kernel serves the case, with the bits of the definition, for one thread and three."""
    (expected,) = run_definition(op, inputs, domain=domain, version=1, **attributes)
    for threads in (1, 3):
        found = run_native(op, inputs, domain=domain, version=1, constants=constants, num_threads=threads, **attributes)
        assert found is not None
        same_bits(found[0], expected)
    return expected


def declines(op, inputs, *, constants, domain="qruntime", **attributes):
    with np.errstate(all="ignore"):
        assert run_native(op, inputs, domain=domain, version=1, constants=constants, **attributes) is None


@pytest.mark.parametrize("x_type", [np.uint8, np.int8])
@pytest.mark.parametrize("y_type", [np.uint8, np.int8])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (257,), (3, 40000)])
def test_tables(x_type, y_type, shape):
    exact("CodeTable", [codes(x_type, *shape), codes(y_type, 256)], constants=[1])


SHAPES = [
    ((4, 5, 7), (4, 5, 7)), ((2, 3, 33), (2, 1, 33)), ((2, 3, 17), (1,)), ((), (9,)), ((5, 1), (1, 6)), ((0, 4), (1, 4)),
    ((40000,), (40000,)),
]  # fmt: skip


@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("shapes", SHAPES)
def test_sums_and_products(op, dtype, shapes):
    a, b = (codes(dtype, *shape) for shape in shapes)
    for scales in ((0.02, 0.013, 0.021), (1.0, 1.0, 2.0), (0.5, -0.25, 1e-4), (1e30, 1e30, 1e-30), (1e-38, 1e-38, 1e-38)):
        sa, sb, sy = map(f32, scales)
        za, zb, zy = (codes(dtype) for _ in range(3))
        exact(op, [a, sa, za, b, sb, zb, sy, zy], constants=[1, 2, 4, 5, 6, 7], domain=MICROSOFT)
        exact(op, [a, sa, None, b, sb, None, sy, None], constants=[1, 4, 6], domain=MICROSOFT)


@pytest.mark.parametrize("scale", [0.0, np.nan, np.inf, 2e38])
def test_scales_that_kernels_do_not_take(scale):
    a, zero = codes(np.uint8, 5), np.uint8(3)
    for position in (1, 4, 6):
        inputs = [a, f32(0.1), zero, a, f32(0.1), zero, f32(0.1), zero]
        inputs[position] = f32(scale)
        declines("QLinearAdd", inputs, constants=[1, 2, 4, 5, 6, 7], domain=MICROSOFT)
    declines("QLinearAdd", [a, f32(0.1), zero, a, f32(0.1), zero, f32(0.1), zero], constants=[1, 2, 4, 5, 7], domain=MICROSOFT)


WINDOWS = [
    {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)},
    {"kernel_shape": (2, 3), "strides": (1, 2), "pads": (0, 2, 1, 0), "ceil_mode": 1},
    {"kernel_shape": (5, 5), "pads": (2, 2, 2, 2)},
    {"kernel_shape": (3, 3), "strides": (2, 1), "auto_pad": "SAME_UPPER"},
    {"kernel_shape": (3, 2), "strides": (3, 3), "auto_pad": "SAME_LOWER"},
    {"kernel_shape": (2, 2), "strides": (2, 2), "auto_pad": "VALID"},
]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("channels", [1, 3, 33])
def test_windows(dtype, window, channels):
    x = codes(dtype, 2, 9, 11, channels)
    exact("NhwcMaxPool", [x], constants=[], domain=MICROSOFT, **window)
    exact("NhwcMaxPool", [x], constants=[], domain=MICROSOFT, dilations=(2, 1), **window)
    scales = [f32(0.3), codes(dtype), f32(0.21), codes(dtype)]
    for include in (0, 1):
        options = {"channels_last": 1, "count_include_pad": include, **window}
        exact("QLinearAveragePool", [x, *scales], constants=[1, 2, 3, 4], domain=MICROSOFT, **options)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_pooling_of_lines_and_whole_planes(dtype):
    exact("NhwcMaxPool", [codes(dtype, 3, 12, 5)], constants=[], domain=MICROSOFT, kernel_shape=(3,), strides=(2,), pads=(1, 1))
    exact("NhwcMaxPool", [codes(dtype, 0, 12, 5)], constants=[], domain=MICROSOFT, kernel_shape=(3,))
    for shape in ((2, 7, 7, 40), (3, 1, 1, 1), (1, 4, 5), (2, 3, 4, 2, 19), (0, 2, 2, 3), (2, 3, 3, 0)):
        scales = [f32(0.3), codes(dtype), f32(0.3), codes(dtype)]
        exact("QLinearGlobalAveragePool", [codes(dtype, *shape), *scales], constants=[1, 2, 3, 4], domain=MICROSOFT, channels_last=1)


def layer(x, w, x_zero, w_zero, scales, y_zero, bias, table=None):
    x_scale, w_scale, y_scale = scales
    return [x, f32(x_scale), x_zero, w, f32(w_scale), w_zero, f32(y_scale), y_zero, bias, table]


ALL = list(range(1, 10))
TYPES = list(itertools.product([np.uint8, np.int8], [np.uint8, np.int8], [np.uint8, np.int8]))


def scales_for(depth, maps):
    """Scales that spread the sums of `depth` random products over the codes, one for each map."""
    return 0.01, RNG.uniform(0.5, 1.5, maps) * 0.02, 0.01 * 0.02 * 73 * 73 * np.sqrt(depth) / 60


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize(("k", "n"), [(1, 1), (3, 5), (16, 8), (31, 32), (64, 33), (130, 100)])
def test_matrices(types, k, n):
    x_type, w_type, y_type = types
    w, bias, table = codes(w_type, k, n), RNG.integers(-3000, 3000, n).astype(np.int32), codes(y_type, 256)
    for rows, w_zero, last in itertools.product(((1,), (2, 3), (0,), (70,), ()), (codes(w_type), codes(w_type, n)), (None, table)):
        inputs = layer(codes(x_type, *rows, k), w, codes(x_type), w_zero, scales_for(k, n), codes(y_type), bias, last)
        exact("QLinearMatMul", inputs, constants=ALL)
    x = codes(x_type, 9, k)
    plain = [x, f32(0.1), codes(x_type), w, f32(0.3), codes(w_type), None, None, bias]
    exact("QLinearMatMul", plain, constants=ALL)
    exact("QLinearMatMul", [x, None, codes(x_type), w, None, codes(w_type), None, None], constants=[3, 5])
    exact("QLinearMatMul", [x, None, None, w, None, None, None, None], constants=[3])


def test_codes_are_spread_and_saturate():
    x, w = codes(np.uint8, 50, 64), codes(np.int8, 64, 40)
    inputs = layer(x, w, np.uint8(128), np.int8(0), scales_for(64, 40), np.uint8(128), None)
    y = exact("QLinearMatMul", inputs, constants=ALL)
    assert len(np.unique(y)) > 200
    assert {0, 255} <= set(np.unique(y))


@pytest.mark.parametrize("fill", [-128, 127, -127])
def test_extremes_are_exact(fill):
    """Every product at its largest: what 16-bit sums would saturate."""
    x, w = np.full((3, 1000), 255, np.uint8), np.full((1000, 40), fill, np.int8)
    w[::2, ::3] = 127
    exact("QLinearMatMul", [x, None, np.uint8(0), w, None, np.int8(0), None, None], constants=[2, 3, 5])
    exact("QLinearMatMul", [x * 0, None, np.uint8(255), w, None, np.int8(-128), None, None], constants=[2, 3, 5])


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("zero", [0, 30, 128, 200, 255])
@pytest.mark.parametrize("outside", [0.0, 0.004, 0.05, 0.3])
def test_codes_near_their_zero_point_and_a_few_far_from_it(dtype, zero, outside):
    """What activations are like; kernels may keep such rows otherwise than rows of any codes."""
    low = np.iinfo(dtype).min
    for k, n in ((576, 70), (147, 33), (16, 32), (29, 5), (64, 64)):
        near = np.clip(zero + RNG.normal(10, 25, (35, k)), 0, 255)
        x = np.where(RNG.random(near.shape) < outside, RNG.integers(0, 256, near.shape), near).astype(np.int64)
        x[3], x[4, ::7] = 255, 0
        w = np.clip(RNG.normal(0, 40, (k, n)), -128, 127).astype(np.int8)
        w[:, ::5] = RNG.choice([-128, 127], (k, len(range(0, n, 5))))
        codes_of = (x + low).astype(dtype)
        point = dtype(zero + low)
        for w_zero in (np.int8(0), codes(np.int8, n)):
            exact("QLinearMatMul", [codes_of, None, point, w, None, w_zero, None, None], constants=[2, 3, 5])
        inputs = layer(codes_of, w, point, np.int8(0), scales_for(k, n), point, None)
        y = exact("QLinearMatMul", inputs, constants=ALL)
        same_bits(exact("QLinearMatMul", [codes_of[4:5], *inputs[1:]], constants=ALL), y[4:5])


def test_a_row_alone_is_the_row_in_its_batch():
    x, w = codes(np.int8, 37, 90), codes(np.int8, 90, 70)
    parameters = layer(x, w, np.int8(5), np.int8(0), scales_for(90, 70), np.int8(-3), None)
    y = exact("QLinearMatMul", parameters, constants=ALL)
    for i in (0, 17, 36):
        same_bits(exact("QLinearMatMul", [x[i : i + 1], *parameters[1:]], constants=ALL), y[i : i + 1])


def test_ties_go_to_the_even_code():
    x, w = np.arange(256, dtype=np.uint8).reshape(-1, 1), np.ones((1, 1), np.int8)
    y = exact("QLinearMatMul", layer(x, w, np.uint8(0), np.int8(0), (1.0, [1.0], 2.0), np.uint8(0), None), constants=ALL)
    np.testing.assert_array_equal(y[:, 0], np.rint(np.arange(256) / 2).astype(np.uint8))


CONVOLUTIONS = [
    ((1, 7, 8, 3), (5, 3, 3, 3), {"pads": (1, 1, 1, 1)}),
    ((2, 9, 7, 4), (6, 4, 1, 1), {}),
    ((2, 9, 7, 4), (6, 4, 1, 1), {"strides": (2, 3)}),
    ((2, 9, 7, 4), (6, 4, 1, 1), {"pads": (1, 0, 0, 2)}),
    ((1, 12, 11, 6), (8, 3, 3, 2), {"group": 2, "strides": (2, 1), "pads": (0, 2, 1, 0)}),
    ((1, 12, 11, 3), (4, 3, 3, 3), {"dilations": (2, 3), "pads": (2, 3, 2, 3)}),
    ((1, 12, 11, 4), (4, 2, 3, 3), {"group": 2, "dilations": (1, 2), "auto_pad": "SAME_UPPER"}),
    ((1, 6, 5, 3), (4, 3, 4, 2), {"auto_pad": "SAME_LOWER", "strides": (3, 2)}),
    ((1, 6, 5, 3), (4, 3, 4, 2), {"auto_pad": "VALID"}),
    ((2, 13, 3), (5, 3, 4), {"pads": (2, 1)}),
    ((1, 4, 5, 6, 2), (3, 2, 2, 3, 2), {"pads": (1, 1, 0, 0, 1, 2), "strides": (1, 2, 1)}),
    ((0, 7, 8, 3), (5, 3, 3, 3), {}),
    ((1, 30, 30, 16), (40, 16, 3, 3), {"pads": (1, 1, 1, 1)}),
    # long lines against panels of all columns
    ((2, 5, 45, 16), (100, 16, 3, 3), {"pads": (1, 1, 1, 1)}),
    ((1, 3, 131, 32), (48, 32, 2, 1), {"strides": (1, 2)}),
    ((1, 9, 40, 33), (96, 33, 1, 1), {}),
    ((1, 1, 64, 36), (60, 36, 1, 3), {"dilations": (1, 2)}),
    # one channel a group
    ((2, 9, 10, 5), (5, 1, 3, 3), {"group": 5, "pads": (1, 1, 1, 1)}),
    ((1, 9, 10, 32), (32, 1, 3, 3), {"group": 32, "pads": (1, 1, 1, 1), "strides": (2, 2)}),
    ((1, 9, 10, 47), (47, 1, 5, 5), {"group": 47, "pads": (2, 4, 1, 0), "dilations": (1, 2)}),
    ((1, 9, 10, 70), (70, 1, 1, 1), {"group": 70}),
    ((1, 15, 9), (9, 1, 4), {"group": 9, "auto_pad": "SAME_UPPER"}),
    ((1, 3, 4, 5, 8), (8, 1, 2, 2, 3), {"group": 8, "pads": (1, 0, 1, 0, 1, 1)}),
    ((1, 9, 10, 3), (6, 1, 3, 3), {"group": 3, "pads": (1, 1, 1, 1)}),  # two maps a channel
    ((40, 5, 6, 4), (4, 1, 3, 3), {"group": 4, "pads": (1, 1, 1, 1)}),
]  # fmt: skip


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize(("x_shape", "w_shape", "attributes"), CONVOLUTIONS)
def test_convolutions(types, x_shape, w_shape, attributes):
    x_type, w_type, y_type = types
    maps, depth = w_shape[0], int(np.prod(w_shape[1:]))
    x, w, bias = codes(x_type, *x_shape), codes(w_type, *w_shape), RNG.integers(-3000, 3000, maps).astype(np.int32)
    scales = scales_for(depth, maps)
    attributes = {"kernel_shape": w_shape[2:], **attributes}
    for b, w_zero, table in ((None, codes(w_type), None), (bias, codes(w_type, maps), codes(y_type, 256))):
        inputs = layer(x, w, codes(x_type), w_zero, scales, codes(y_type), b, table)
        exact("QLinearConv", inputs, constants=ALL, **attributes)
    zero = codes(x_type)
    sums = [x, None, zero, w, None, codes(w_type), None, None]
    exact("QLinearConv", sums, constants=[2, 3, 5], **attributes)
    exact("QLinearConv", sums, constants=[3, 5], **attributes)  # its zero point is known at the run only


@pytest.mark.parametrize("x_type", [np.uint8, np.int8])
@pytest.mark.parametrize(("channels", "window", "attributes"), [
    (32, (3, 3), {"pads": (1, 1, 1, 1)}),
    (100, (3, 3), {"pads": (1, 1, 1, 1), "strides": (2, 2)}),
    (64, (5, 5), {"pads": (2, 2, 2, 2)}),
    (70, (4, 2), {"dilations": (2, 3), "pads": (3, 0, 0, 4)}),
    (9, (7,), {"auto_pad": "SAME_UPPER"}),
    (65, (2, 2, 3), {"pads": (1, 0, 1, 0, 1, 1)}),
])  # fmt: skip
def test_windows_along_lines(rung, x_type, channels, window, attributes):
    """Weights that fit int8 when their zero points are taken off, that are the sum of two such, and 255, on every rung."""
    x = codes(x_type, 2, *(7, 9, 11)[: len(window)], channels)
    bias = RNG.integers(-3000, 3000, channels).astype(np.int32)
    scales = scales_for(int(np.prod(window)), channels)
    attributes = {"kernel_shape": window, "group": channels, **attributes}
    table = codes(x_type, 256)
    for w_zero, last in ((np.int8(0), None), (np.int8(0), table), (np.uint8(115), table), (np.uint8(0), None)):
        w = codes(w_zero.dtype, channels, 1, *window)
        w.flat[0] = 255 if w_zero.dtype == np.uint8 else 127
        inputs = layer(x, w, codes(x_type), w_zero, scales, codes(x_type), bias, last)
        exact("QLinearConv", inputs, constants=ALL, **attributes)


@pytest.mark.parametrize("x_type", [np.uint8, np.int8])
@pytest.mark.parametrize("maps", [1, 16, 30, 40, 48, 64, 80])
@pytest.mark.parametrize(("x_shape", "window", "attributes"), [
    ((1, 5, 33, 4), (3, 3), {"pads": (1, 1, 1, 1)}),
    ((2, 9, 14, 3), (3, 3), {"pads": (1, 1, 1, 1), "strides": (2, 2)}),
    ((1, 17, 20, 3), (7, 7), {"pads": (3, 3, 3, 3), "strides": (2, 2)}),
    ((2, 8, 7, 16), (3, 3), {}),
    ((1, 9, 19, 8), (3, 2), {"dilations": (1, 2), "pads": (1, 1, 0, 2)}),
    ((1, 9, 9, 5), (3, 3), {"dilations": (2, 2)}),
    ((1, 8, 11, 8), (1, 1), {"strides": (2, 2)}),
    ((3, 30, 5), (3,), {"pads": (2, 0)}),
    ((1, 3, 4, 9, 4), (2, 2, 3), {"pads": (1, 0, 1, 0, 1, 1), "strides": (2, 1, 1)}),
])  # fmt: skip
def test_windows_where_the_image_lies(rung, x_type, maps, x_shape, window, attributes):
    """Of all kinds of tiles, rows that are filled up, and weights with zero points, on every rung."""
    depth = x_shape[-1] * int(np.prod(window))
    x, bias, scales = codes(x_type, *x_shape), RNG.integers(-3000, 3000, maps).astype(np.int32), scales_for(depth, maps)
    for w_type, w_zero in ((np.int8, np.int8(0)), (np.uint8, codes(np.uint8, maps))):
        inputs = layer(x, codes(w_type, maps, x_shape[-1], *window), codes(x_type), w_zero, scales, codes(x_type), bias)
        exact("QLinearConv", inputs, constants=ALL, kernel_shape=window, **attributes)


@pytest.mark.parametrize("n", [8, 16, 24, 47, 48, 49, 64, 80])
@pytest.mark.parametrize("k", [4, 16, 24, 27])
def test_products_with_few_columns(rung, n, k):
    """Of rows that lie where they are, or are gathered; a panel with fewer vectors than it could have."""
    w, bias, scales = codes(np.int8, n, k, 1, 1), RNG.integers(-3000, 3000, n).astype(np.int32), scales_for(k, n)
    for strides in ((1, 1), (2, 1)):
        for weight, w_zero in ((w, np.int8(0)), (w.view(np.uint8), np.uint8(99))):
            inputs = layer(codes(np.uint8, 2, 13, 11, k), weight, np.uint8(7), w_zero, scales, np.uint8(3), bias)
            exact("QLinearConv", inputs, constants=ALL, kernel_shape=(1, 1), strides=strides)


@pytest.mark.parametrize(("x_shape", "window", "attributes"), [
    ((1, 7, 7, 32), (3, 3), {"pads": (1, 1, 1, 1)}),
    ((3, 5, 7, 64), (1, 1), {}),
    ((2, 9, 6, 64), (1, 1), {"strides": (2, 2)}),
    ((1, 40, 30, 16), (3, 3), {}),
])  # fmt: skip
def test_threads_divide_weights_or_lines(rung, x_shape, window, attributes):
    """Weights that outweigh the codes, whose panels are divided, and codes that outweigh them, on every rung."""
    maps, depth = 330, x_shape[-1] * int(np.prod(window))
    x, bias, scales = codes(np.uint8, *x_shape), RNG.integers(-3000, 3000, maps).astype(np.int32), scales_for(depth, maps)
    for w_type, w_zero, table in ((np.int8, np.int8(0), None), (np.uint8, codes(np.uint8, maps), codes(np.uint8, 256))):
        inputs = layer(x, codes(w_type, maps, x_shape[-1], *window), np.uint8(77), w_zero, scales, np.uint8(5), bias, table)
        exact("QLinearConv", inputs, constants=ALL, kernel_shape=window, **attributes)


@pytest.mark.parametrize("rows", [1, 9, 300])
def test_threads_divide_columns_or_rows(rung, rows):
    w, bias, table = codes(np.int8, 512, 1000), RNG.integers(-3000, 3000, 1000).astype(np.int32), codes(np.uint8, 256)
    for last in (None, table):
        inputs = layer(codes(np.uint8, rows, 512), w, np.uint8(9), np.int8(0), scales_for(512, 1000), np.uint8(3), bias, last)
        exact("QLinearMatMul", inputs, constants=ALL)
    exact("QLinearMatMul", [codes(np.uint8, rows, 512), f32(0.1), np.uint8(3), w, f32(0.3), np.int8(0), None, None, bias], constants=ALL)


@pytest.mark.parametrize("scale", [np.nan, np.inf])
def test_multipliers_that_are_not_finite_are_left_to_the_definition(scale):
    x, w = codes(np.uint8, 1, 4, 4, 3), codes(np.int8, 2, 3, 1, 1)
    declines("QLinearConv", layer(x, w, np.uint8(1), np.int8(0), (scale, [1.0, 1.0], 1.0), np.uint8(0), None), constants=ALL)
    declines("QLinearConv", layer(x, w, np.uint8(1), np.int8(0), (1.0, [1.0, 1.0], 0.0), np.uint8(0), None), constants=ALL)


def test_scales_of_zero_and_below():
    x, w = codes(np.uint8, 1, 4, 4, 3), codes(np.int8, 3, 3, 1, 1)
    exact("QLinearConv", layer(x, w, np.uint8(1), np.int8(0), (1.0, [0.0, -0.01, 1e-42], 1.0), np.uint8(9), None), constants=ALL)
    exact("QLinearConv", layer(x, w, np.uint8(1), np.int8(0), (1e30, [1.0, 1e8, -1e8], 1.0), np.uint8(9), None), constants=ALL)


def test_sums_that_may_leave_int32_are_left_to_the_definition():
    x, w = codes(np.uint8, 1, 4, 4, 3), codes(np.int8, 1, 3, 1, 1)
    bias = np.full(1, 2**31 - 1, np.int32)
    declines("QLinearConv", layer(x, w, np.uint8(1), np.int8(0), (1.0, [1.0], 1.0), np.uint8(0), bias), constants=ALL)
    long = codes(np.int8, 40000, 2)
    declines("QLinearMatMul", layer(x[0], long, np.uint8(1), np.int8(0), (1.0, [1.0], 1.0), np.uint8(0), None), constants=ALL)
