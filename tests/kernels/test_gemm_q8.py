"""int8 GEMM: every rung against numpy, and bit for bit against the definition.

The float part of the layer is single rounded operations in a fixed order, so without an activation numpy
reproduces it exactly and no tolerance is needed.
"""

import math

import numpy as np
import pytest

from qruntime import _kernels

pytestmark = pytest.mark.usefixtures("rung")

NONE, RELU, GELU, GELU_TANH, SILU, SIGMOID, TANH = range(7)
PER_TOKEN, PER_TENSOR = range(2)
F32 = np.float32


def quantize_rows(a: np.ndarray, mode: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, scales and zero points after the formula of gemm_q8.h."""
    with np.errstate(all="ignore"):
        ranges = a if mode == PER_TOKEN else a.reshape(1, -1)
        lo = np.minimum(F32(0), ranges.min(axis=1, initial=0)).astype(F32)
        hi = np.maximum(F32(0), ranges.max(axis=1, initial=0)).astype(F32)
        scale = ((hi.astype(np.float64) - lo.astype(np.float64)) / 255).astype(F32)
        scale = np.where(scale == 0, F32(1), scale)
        scale = np.where(scale < np.finfo(F32).tiny, np.finfo(F32).tiny, scale)
        zero_point = np.rint(-lo / scale)
        zero_point = np.where(zero_point > 0, np.minimum(zero_point, 255), 0).astype(F32)
        if mode == PER_TENSOR:
            scale, zero_point = np.repeat(scale, len(a)), np.repeat(zero_point, len(a))
        q = np.rint(a * (F32(1) / scale)[:, None]) + zero_point[:, None]
        q = np.where(q > 0, np.minimum(q, F32(255)), 0)
    return q.astype(np.int64), scale, zero_point.astype(np.int64)


def linear(
    a: np.ndarray,
    w: np.ndarray,
    scale: np.ndarray,
    zero_point: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    mode: int = PER_TOKEN,
) -> np.ndarray:
    """The layer without activation, every float operation rounded to float32."""
    q, row_scale, row_zero = quantize_rows(a, mode)
    # Exact in float64: every partial sum is far below 2^53.
    t = (q - row_zero[:, None]).astype(np.float64) @ (w.astype(np.float64) - (0 if zero_point is None else zero_point))
    with np.errstate(all="ignore"):
        y = t.astype(F32) * (row_scale[:, None] * np.broadcast_to(scale, (w.shape[1],)))
        return y if bias is None else y + bias


def run(a, packed, activation=NONE, mode=PER_TOKEN, residual=None, threads=1):
    inputs = [a] if residual is None else [a, residual]
    results = _kernels.call_node("linear", inputs, ints=(activation, mode), packed=(packed,), num_threads=threads)
    return None if results is None else results[0]


def run_layers(a, layers, activations, mode=PER_TOKEN, threads=1):
    return _kernels.call_node("linear", [a], ints=(*activations, mode), packed=layers, num_outputs=len(layers), num_threads=threads)


def same_bits(x: np.ndarray, y: np.ndarray) -> None:
    assert x.shape == y.shape
    nan = np.isnan(y)
    np.testing.assert_array_equal(np.isnan(x), nan)
    np.testing.assert_array_equal(np.where(nan, 0, x.view(np.int32)), np.where(nan, 0, y.view(np.int32)))


def layer(rng, k, n, *, per_channel=True, zero_points=False, with_bias=True):
    w = rng.integers(-128, 128, (k, n), dtype=np.int8)
    count = n if per_channel else 1
    scale = rng.uniform(1e-3, 1e-1, count).astype(F32)
    zero = rng.integers(-128, 128, count).astype(np.int32) if zero_points else None
    bias = rng.standard_normal(n).astype(F32) if with_bias else None
    return w, scale, zero, bias


def check(a, w, scale, zero=None, bias=None, mode=PER_TOKEN, threads=1):
    got = run(a, _kernels.PackedQ8(w, scale, zero, bias), mode=mode, threads=threads)
    same_bits(got, linear(a, w, scale, zero, bias, mode))


@pytest.mark.parametrize("k", [*range(71), 127, 128, 129, 255, 256, 257])
def test_every_depth(k):
    rng = np.random.default_rng(k)
    m, n = 1 + k % 7, 1 + k % 37
    check(rng.standard_normal((m, k)).astype(F32), *layer(rng, k, n, zero_points=k % 2 == 1))


@pytest.mark.parametrize("n", [*range(1, 70), 95, 96, 97, 127, 128, 129])
def test_every_width(n):
    rng = np.random.default_rng(n)
    m, k = 1 + n % 9, 3 + n % 11
    check(rng.standard_normal((m, k)).astype(F32), *layer(rng, k, n, zero_points=n % 2 == 1, with_bias=n % 3 > 0))


@pytest.mark.parametrize("m", [*range(30), 47, 48, 49, 63, 64, 65, 127, 128, 129])
@pytest.mark.parametrize("mode", [PER_TOKEN, PER_TENSOR])
def test_every_height(m, mode):
    rng = np.random.default_rng(m)
    a = (rng.standard_normal((m, 37)) * rng.uniform(0.01, 100, (m, 1))).astype(F32)
    check(a, *layer(rng, 37, 50, per_channel=m % 2 == 0, zero_points=m % 3 == 1), mode=mode)


@pytest.mark.parametrize("k", [32767, 32768, 32769, 66311, 66312, 66313, 98305])
@pytest.mark.parametrize("sign", [-1, 1])
def test_long_sums_do_not_overflow(k, sign):
    """All codes at 255 or zero against weights at an end: the largest sums there are."""
    w = np.full((k, 3), -128 if sign < 0 else 127, np.int8)
    zero = np.array([0, 127, -128] if sign < 0 else [0, -128, 127], np.int32)
    a = np.ones((5, k), F32)
    a[1::2] *= -1
    for m in (2, 5):
        check(a[:m], w, np.array([1.0], F32).repeat(3), zero)
        check(a[:m], w, np.array([1.0], F32))


@pytest.mark.parametrize("code", [-128, -127, 127])
@pytest.mark.parametrize("m", [1, 2, 5, 12])
def test_sums_of_pairs_do_not_saturate(code, m):
    """255 · 127 + 255 · 127 does not fit int16: a saturating multiply-add would lose it."""
    rng = np.random.default_rng(m)
    for k in (2, 4, 8, 33, 384):
        a = np.ones((m, k), F32)
        a[:, rng.random(k) < 0.2] = 0
        w = np.full((k, 40), code, np.int8)
        check(a, w, np.array([1.0], F32))
        check(-a, w, np.array([1.0], F32))
        w[rng.random(w.shape) < 0.3] = -code if code != -128 else 127
        check(a, w, np.array([0.5], F32))


@pytest.mark.parametrize("fill", ["all ends", "alternating", "random ends", "lanes at the limit"])
@pytest.mark.parametrize("low", [-128, -127])
def test_products_at_the_ends_of_int16(fill, low):
    """Codes 0 and 255, next to a zero point in the middle, against weights at the ends, alone and in pairs of items."""
    rng = np.random.default_rng(low + 128)
    for k, n in ((2, 3), (8, 32), (37, 33), (64, 64), (260, 40)):
        if fill == "all ends":
            w = np.full((k, n), low, np.int8)
            w[:, ::2] = 127
        elif fill == "alternating":
            w = np.where((np.arange(k)[:, None] + np.arange(n)) % 2, low, 127).astype(np.int8)
        elif fill == "random ends":
            w = rng.choice([low, 127], (k, n)).astype(np.int8)
        else:  # four weights of a lane sum to one below, at, and one above what int16 holds
            w = rng.choice([-64, -65, 62, 63, 64], (k, n)).astype(np.int8)
        a = np.where(rng.random((9, k)) < 0.5, F32(-128), F32(127))
        a[0], a[1] = -128, 127
        a[2] = np.where(w[:, 0] > 0, -128, 127)
        a[3] = np.where(w[:, -1] > 0, 127, -128)
        a[:4, 0], a[:4, -1] = -128, 127
        a[4:, ::3] = 0
        zero = np.array([low], np.int32)
        check(a.astype(F32), w, np.array([1.0], F32))
        check(a.astype(F32), w, np.array([1.0], F32), zero)


@pytest.mark.parametrize("spread", [20, 33, 42, 55, 128])
def test_many_items_with_and_without_a_partner(spread):
    rng = np.random.default_rng(spread)
    for k in (380, 1100):
        w = np.clip(np.rint(rng.standard_normal((k, 70)) * spread), -128, 127).astype(np.int8)
        check(rng.standard_normal((3, k)).astype(F32), w, np.array([0.01], F32))


def test_sparse_outliers_among_small_weights():
    rng = np.random.default_rng(7)
    for k, n in ((64, 48), (384, 100), (1000, 17)):
        w = rng.integers(-12, 13, (k, n), dtype=np.int8)
        w[rng.integers(0, k, 3 * n // 2), rng.integers(0, n, 3 * n // 2)] = rng.choice([-128, 127], 3 * n // 2)
        for m in (1, 3, 6, 13):
            a = np.abs(rng.standard_normal((m, k))).astype(F32)
            a[:, ::3] = a.max()
            check(a, w, np.array([0.01], F32))


@pytest.mark.parametrize("spread", [3, 12, 25, 38])
@pytest.mark.parametrize("center", [-128, -127, -40, 0, 15, 127])
def test_weights_like_those_of_trained_layers(spread, center):
    """Normal around the zero point, with the ends of the range among them."""
    rng = np.random.default_rng(spread + center + 128)
    for k, n in ((1, 16), (4, 16), (9, 5), (130, 70), (256, 33)):
        w = np.clip(np.rint(rng.standard_normal((k, n)) * spread + center), -128, 127).astype(np.int8)
        w[rng.random(w.shape) < 0.002] = -128
        w[rng.random(w.shape) < 0.002] = 127
        zero = np.full(n, center, np.int32)
        a = rng.standard_normal((7, k)).astype(F32)
        a[3] = 1
        scale = rng.uniform(1e-3, 1e-1, n).astype(F32)
        check(a, w, scale, zero)
        check(a, w, scale, np.clip(zero + rng.integers(-9, 10, n), -128, 127).astype(np.int32))
        check(a, np.asfortranarray(w), scale[:1], zero[:1])
        check(a, w, scale)


def test_strided_weights():
    rng = np.random.default_rng(3)
    a = rng.standard_normal((5, 20)).astype(F32)
    base = rng.integers(-128, 128, (60, 66), dtype=np.int8)
    scale = np.array([0.1], F32)
    for w in (base[:20, :33], base[:20, ::2], base.T[:20, :33], base[40:20:-1, ::-3], base[::3, 1:]):
        check(a, w, scale)


@pytest.mark.parametrize("shape", [(5,), (0, 5), (2, 0, 5), (2, 3, 5), (1, 2, 1, 3, 5)])
def test_leading_dimensions(shape):
    rng = np.random.default_rng(1)
    w, scale, _, bias = layer(rng, 5, 9)
    a = rng.standard_normal(shape).astype(F32)
    got = run(a, _kernels.PackedQ8(w, scale, None, bias))
    assert got.shape == (*shape[:-1], 9)
    same_bits(got.reshape(-1, 9), linear(a.reshape(-1, 5), w, scale, None, bias))


def test_no_columns():
    assert run(np.ones((3, 4), F32), _kernels.PackedQ8(np.ones((4, 0), np.int8), np.ones(1, F32))).shape == (3, 0)


def test_no_depth_leaves_the_bias():
    bias = np.array([-1.0, 0.5, 2.0], F32)
    packed = _kernels.PackedQ8(np.ones((0, 3), np.int8), np.ones(1, F32), None, bias)
    np.testing.assert_array_equal(run(np.ones((2, 0), F32), packed), np.tile(bias, (2, 1)))
    np.testing.assert_array_equal(run(np.ones((2, 0), F32), packed, RELU), np.tile([0, 0.5, 2], (2, 1)).astype(F32))


SPECIAL = [
    np.zeros(19),
    np.full(19, 3.0),
    np.full(19, -3.0),
    np.full(19, -0.0),
    np.array([3e38, -3e38] + [1.0] * 17),
    np.array([3.4028235e38] * 19),
    np.full(19, 1e-45),
    np.linspace(-1e-38, 1e-38, 19),
    np.array([1e-30] * 18 + [1e4]),
    np.arange(19) - 9 + 0.5,
]


@pytest.mark.parametrize("mode", [PER_TOKEN, PER_TENSOR])
def test_special_rows(mode):
    rng = np.random.default_rng(5)
    w, scale, zero, bias = layer(rng, 19, 21, zero_points=True)
    for row in SPECIAL:
        check(np.tile(row.astype(F32), (3, 1)), w, scale, zero, bias, mode)


@pytest.mark.parametrize("at", [0, 1, 7, 8, 15, 16, 31, 32, 40])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_stay_in_their_row(at, bad):
    rng = np.random.default_rng(9)
    a = rng.standard_normal((13, 41)).astype(F32)
    w, scale, zero, bias = layer(rng, 41, 30, zero_points=True)
    packed = _kernels.PackedQ8(w, scale, zero, bias)
    clean = run(a, packed)
    for row in (0, 5, 12):
        dirty = a.copy()
        dirty[row, at] = bad
        for activation in (NONE, RELU):
            got = run(dirty, packed, activation)
            assert not np.isfinite(got[row]).any() or (activation == RELU and bad == bad)
            if bad != bad:
                assert np.isnan(got[row]).all()
        got = run(dirty, packed)
        same_bits(got, linear(dirty, w, scale, zero, bias))
        others = np.arange(13) != row
        same_bits(got[others], clean[others])
    alone = run(dirty[12], packed)
    same_bits(alone, got[12])


@pytest.mark.parametrize("activation", range(7))
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_rows_do_not_know_each_other(activation, threads):
    rng = np.random.default_rng(11)
    for m, k, n in ((150, 64, 80), (7, 200, 333), (3, 500, 300), (33, 128, 129)):
        a = rng.standard_normal((m, k)).astype(F32)
        w, scale, zero, bias = layer(rng, k, n, zero_points=True)
        residual = rng.standard_normal((m, n)).astype(F32)
        packed = _kernels.PackedQ8(w, scale * F32(0.01), zero, bias)
        whole = run(a, packed, activation, residual=residual, threads=threads)
        for i in {0, 1, m // 2, m - 1}:
            same_bits(run(a[i], packed, activation, residual=residual[i]), whole[i])
        for first, last in ((0, 2), (1, 5), (0, 6), (2, m)):
            part = run(a[first:last], packed, activation, residual=residual[first:last], threads=threads)
            same_bits(part, whole[first:last])
        # Columns neither: the last panel is not computed in another way.
        narrow = _kernels.PackedQ8(w[:, : n - 5], scale[:-5] * F32(0.01), zero[:-5], bias[:-5])
        same_bits(run(a, narrow, activation, residual=residual[:, : n - 5], threads=threads), whole[:, : n - 5])


def test_threads_with_one_range_for_all():
    rng = np.random.default_rng(12)
    a = rng.standard_normal((100, 90)).astype(F32)
    w, scale, zero, bias = layer(rng, 90, 150, zero_points=True)
    for threads in (1, 2, 3):
        check(a, w, scale, zero, bias, PER_TENSOR, threads)
        check(a[:2].repeat(400, axis=1), w.repeat(400, axis=0), scale, zero, bias, PER_TENSOR, threads)


REFERENCE = {
    NONE: lambda x: x,
    RELU: lambda x: np.maximum(x, 0),
    GELU: lambda x: x * np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x.ravel()]).reshape(x.shape),
    GELU_TANH: lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    SILU: lambda x: x / (1 + np.exp(-x)),
    SIGMOID: lambda x: 1 / (1 + np.exp(-x)),
    TANH: np.tanh,
}


def identity(values: np.ndarray, activation: int) -> np.ndarray:
    """The activation of any values: they enter as the bias of a layer without depth."""
    packed = _kernels.PackedQ8(np.zeros((0, values.size), np.int8), np.ones(1, F32), None, values)
    return run(np.zeros((1, 0), F32), packed, activation)[0]


@pytest.mark.parametrize("activation", range(7))
def test_activation_is_accurate(activation):
    """Within 4 ulp of the result, or of the argument where the curve leaves zero (x · Φ(x), x · σ(x));
    results below the smallest normal number may be zero."""
    x = np.concatenate([np.linspace(-20, 20, 40001), np.geomspace(1e-38, 1e3, 2000), -np.geomspace(1e-38, 1e3, 2000)])
    x = np.concatenate([x, [0.0, -0.0, 88.0, -88.0, 104.0, -104.0, 3e38, -3e38]]).astype(F32)
    with np.errstate(all="ignore"):
        want = REFERENCE[activation](x.astype(np.float64))
    got = identity(x, activation)
    size = np.abs(want)
    if activation in (GELU, GELU_TANH, SILU):
        size = np.maximum(size, np.minimum(np.abs(x), 1))
    bound = 4 * np.spacing(np.minimum(size, 3e38).astype(F32)).astype(np.float64) + np.finfo(F32).tiny
    want = np.where(np.isnan(want), 0, want)
    assert (np.abs(got - want) <= bound).all(), x[np.argmax(np.abs(got - want) / bound)]


@pytest.mark.parametrize("activation", range(7))
def test_activation_of_what_is_no_number(activation):
    got = identity(np.array([math.nan, math.inf, -math.inf], F32), activation)
    assert np.isnan(got[0])
    high = {SIGMOID: 1.0, TANH: 1.0}.get(activation, math.inf)
    assert got[1] == high
    if activation in (NONE, RELU, SIGMOID, TANH):
        assert got[2] == {NONE: -math.inf, RELU: 0.0, SIGMOID: 0.0, TANH: -1.0}[activation]


def test_residual_is_added_after_the_activation():
    rng = np.random.default_rng(2)
    a = rng.standard_normal((9, 12)).astype(F32)
    w, scale, _, bias = layer(rng, 12, 35)
    residual = rng.standard_normal((9, 35)).astype(F32)
    packed = _kernels.PackedQ8(w, scale, None, bias)
    plain = linear(a, w, scale, None, bias)
    same_bits(run(a, packed, residual=residual), plain + residual)
    same_bits(run(a, packed, RELU, residual=residual), np.maximum(plain, 0) + residual)


def test_weights_outlive_a_change_of_rung():
    rng = np.random.default_rng(4)
    a = rng.standard_normal((9, 33)).astype(F32)
    w, scale, zero, bias = layer(rng, 33, 20, zero_points=True)
    packed = _kernels.PackedQ8(w, scale, zero, bias)
    for name in _kernels.available_isas():
        _kernels.set_isa(name)
        same_bits(run(a, packed), linear(a, w, scale, zero, bias))


def test_declines_what_does_not_fit():
    packed = _kernels.PackedQ8(np.ones((4, 3), np.int8), np.ones(1, F32))
    good = np.ones((2, 4), F32)
    assert run(good, packed) is not None
    assert run(np.ones((2, 5), F32), packed) is None
    assert run(np.ones((2, 4), np.float64), packed) is None
    assert run(np.array(1.0, F32), packed) is None
    assert run(good, packed, activation=7 + len(_kernels.UNARY)) is None
    assert run(good, packed, activation=-1) is None
    assert run(good, packed, mode=2) is None
    assert run(good, packed, residual=np.ones((2, 4), F32)) is None
    for shape in ((1,), (), (0,), (1, 1, 3), (3, 1), (3, 3)):
        assert run(good, packed, residual=np.ones(shape, F32)) is None
    assert run(good, packed, residual=np.ones((2, 3), np.float64)) is None
    assert _kernels.call_node("linear", [good], ints=(0,), packed=(packed,)) is None
    assert _kernels.call_node("linear", [good], ints=(0, 0)) is None
    assert _kernels.call_node("linear", [None], ints=(0, 0), packed=(packed,)) is None


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("mode", [PER_TOKEN, PER_TENSOR])
@pytest.mark.parametrize("m", [1, 5, 40, 200])
def test_layers_that_share_their_rows_are_what_each_is_alone(m, mode, threads):
    rng = np.random.default_rng(m)
    k = 300
    a = rng.standard_normal((m, k)).astype(F32)
    widths, zero_points = (256, 1, 77, 0, 400), (False, True, False, True, True)
    layers = [_kernels.PackedQ8(*layer(rng, k, n, zero_points=z)) for n, z in zip(widths, zero_points)]
    # On AVX2 a layer of small weights and one of large ones are packed differently.
    layers.append(_kernels.PackedQ8(rng.integers(-3, 4, (k, 64), dtype=np.int8), np.ones(1, F32)))
    activations = [NONE, 1, NONE, NONE, 2, NONE]
    together = run_layers(a, layers, activations, mode, threads)
    for y, packed, activation in zip(together, layers, activations):
        same_bits(y, run(a, packed, activation, mode))


def test_layers_that_do_not_share_their_rows_decline():
    rng = np.random.default_rng(0)
    a = np.zeros((2, 8), F32)
    good = _kernels.PackedQ8(*layer(rng, 8, 4))
    assert run_layers(a, [good] * 16, [NONE] * 16) is not None
    assert run_layers(a, [good] * 17, [NONE] * 17) is None
    assert run_layers(a, [good, _kernels.PackedQ8(*layer(rng, 9, 4))], [NONE, NONE]) is None
    assert run_layers(a, [good, good], [NONE, 7 + len(_kernels.UNARY)]) is None
    assert run_layers(a, [good, None], [NONE, NONE]) is None


@pytest.mark.parametrize("zero_points", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
def test_unpacked_is_what_was_packed(per_channel, zero_points):
    rng = np.random.default_rng(0)
    for k, n in ((1, 1), (5, 3), (64, 32), (63, 101), (130, 49), (0, 4), (4, 0), (33000, 3)):
        for w in (rng.integers(-128, 128, (k, n), dtype=np.int8), rng.integers(-2, 3, (n, k), dtype=np.int8).T):
            size = n if per_channel else 1
            scale = rng.uniform(0.01, 1, size).astype(F32)
            zero = rng.integers(-128, 128, size, dtype=np.int32) | 1 if zero_points and size else None
            bias = rng.standard_normal(n).astype(F32) if k % 2 else None
            packed = _kernels.PackedQ8(w, scale, zero, bias)
            found = packed.unpacked()
            for got, given in zip(found, (w, scale, zero, bias), strict=True):
                assert (got is None) == (given is None)
                if given is not None:
                    np.testing.assert_array_equal(got, given)
            assert found[0].dtype == np.int8
            again = _kernels.PackedQ8(*found)
            assert again.nbytes == packed.nbytes
            x = rng.standard_normal((2, k)).astype(F32)
            same_bits(run(x, again), run(x, packed))
