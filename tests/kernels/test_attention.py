"""Fused attention against float64 numpy, on every rung, in float and in 16-bit integers."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

import qruntime  # noqa: F401 (puts a rung in force)
from qruntime import _kernels

pytestmark = pytest.mark.usefixtures("rung")

EPS = float(np.finfo(np.float32).eps)
BHSD, BSR = 0, 1


in_int16 = False


@pytest.fixture(params=["float32", "int16"], autouse=True)
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    global in_int16
    in_int16 = request.param == "int16"
    yield request.param
    in_int16 = False


def attend(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    scale: float = 1.0,
    fill: float = -np.inf,
    transposed: bool = False,
    layouts: tuple[int, ...] = (BHSD, BHSD, BHSD, BHSD),
    heads: int = 0,
    kv_heads: int = 0,
    sizes: tuple[int, int] = (0, 0),
    offsets: tuple[int, ...] = (0, 0, 0),
    strides: tuple[int, ...] = (0, 0, 0),
    causal: bool = False,
    causal_offset: int = -1,
    adds: bool = False,
    threads: int = 1,
) -> np.ndarray | None:
    ints = [
        int(transposed),
        *layouts,
        heads,
        kv_heads,
        *sizes,
        *offsets,
        *strides,
        int(causal),
        causal_offset,
        int(adds),
        0,  # rows that see nothing stay as computed
        int(in_int16),
    ]
    arrays = [q, k, v] + ([] if mask is None else [mask])
    result = _kernels.call_node("attention", arrays, ints, [scale, fill], num_threads=threads)
    return None if result is None else result[0]


def expected(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    scale: float = 1.0,
    fill: float = -np.inf,
    causal_offset: int | None = None,
) -> np.ndarray:
    """q [B, H, Sq, D], k [B, Hkv, Sk, D], v [B, Hkv, Sk, Dv], all in float64."""
    group = q.shape[1] // max(1, k.shape[1])
    k, v = (np.repeat(x.astype(np.float64), group, axis=1) for x in (k, v))
    scores = q.astype(np.float64) @ k.swapaxes(-1, -2) * scale
    if mask is not None:
        scores = np.where(mask, scores, fill) if mask.dtype == bool else scores + mask
    if causal_offset is not None:
        i, j = np.indices(scores.shape[-2:])
        scores = np.where(j <= i + causal_offset, scores, -np.inf)
    with np.errstate(invalid="ignore"):
        e = np.exp(scores - scores.max(axis=-1, keepdims=True, initial=-np.inf))
        return (e @ v) / np.where(scores.shape[-1], e.sum(axis=-1, keepdims=True), 1)


def bound(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> float:
    """Score error (D roundings of the largest product) enters exp; then Sk roundings of a convex combination.

    Of codes: half a step each, in random directions.
    """
    largest = np.abs(q).max(initial=0) * np.abs(k).max(initial=0) * abs(scale)
    d, s = q.shape[-1], k.shape[-2]
    if in_int16:
        limit = min(32767.0, np.sqrt(2**31 / max(d, 1)))
        return (4 * np.sqrt(d) * largest / limit + np.sqrt(s) / 32767 + 1 / 4095) * float(np.abs(v).max(initial=0))
    return (4 * EPS * np.sqrt(d) * np.sqrt(d) * largest + 4 * EPS * np.sqrt(s) + 8 * EPS) * max(1.0, float(np.abs(v).max(initial=0)))


def random_heads(
    rng: np.random.Generator, b: int, h: int, sq: int, sk: int, d: int, dv: int, kv_heads: int | None = None
) -> tuple[np.ndarray, ...]:
    kv_heads = h if kv_heads is None else kv_heads
    shapes = (b, h, sq, d), (b, kv_heads, sk, d), (b, kv_heads, sk, dv)
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)


SIZES = [1, 2, 5, 8, 15, 16, 17, 33]


@pytest.mark.parametrize(("sq", "sk"), list(itertools.product(SIZES, SIZES)))
def test_agrees_with_numpy(sq: int, sk: int) -> None:
    rng = np.random.default_rng(sq * 100 + sk)
    for b, h, d, dv in ((1, 1, 1, 1), (2, 3, 8, 8), (1, 2, 32, 33), (2, 1, 17, 5)):
        q, k, v = random_heads(rng, b, h, sq, sk, d, dv)
        scale = 1 / np.sqrt(d)
        reference = expected(q, k, v, scale=scale)
        np.testing.assert_allclose(attend(q, k, v, scale=scale), reference, rtol=0, atol=bound(q, k, v, scale))
        transposed = attend(q, np.ascontiguousarray(k.swapaxes(2, 3)), v, scale=scale, transposed=True)
        if in_int16:  # transposed keys stay float
            np.testing.assert_allclose(transposed, reference, rtol=0, atol=bound(q, k, v, scale))
        else:
            np.testing.assert_array_equal(transposed, attend(q, k, v, scale=scale))


@pytest.mark.parametrize(("sq", "sk"), [(64, 64), (65, 127), (1, 300), (130, 500), (7, 1030)])
def test_larger_sizes(sq: int, sk: int) -> None:
    rng = np.random.default_rng(sk)
    q, k, v = random_heads(rng, 1, 2, sq, sk, 64, 64)
    np.testing.assert_allclose(attend(q, k, v, scale=0.125), expected(q, k, v, scale=0.125), rtol=0, atol=bound(q, k, v, 0.125))


@pytest.mark.parametrize(("sq", "sk"), [(1, 7), (16, 16), (40, 33)])
@pytest.mark.parametrize("kind", ["float", "replace", "add"])
def test_masks_of_every_shape(sq: int, sk: int, kind: str) -> None:
    rng = np.random.default_rng(1)
    b, h, d = 2, 3, 16
    q, k, v = random_heads(rng, b, h, sq, sk, d, d)
    full = (b, h, sq, sk)
    for rank in (1, 2, 3, 4):
        for ones in itertools.product((False, True), repeat=rank):
            shape = tuple(1 if one else size for one, size in zip(ones, full[4 - rank :], strict=True))
            if kind == "float":
                mask = rng.standard_normal(shape).astype(np.float32)
                got, reference = attend(q, k, v, mask, scale=0.25), expected(q, k, v, mask, scale=0.25)
            else:
                mask = rng.random(shape) < 0.7
                fill = -3.5
                got = attend(q, k, v, mask, scale=0.25, fill=fill, adds=kind == "add")
                numbers = mask if kind == "replace" else np.where(mask, 0, fill)
                reference = expected(q, k, v, numbers, scale=0.25, fill=fill)
            np.testing.assert_allclose(got, reference, rtol=0, atol=bound(q, k, v, 0.25))


@pytest.mark.parametrize(("sq", "sk"), [(1, 9), (5, 5), (16, 20), (50, 50), (20, 7)])
def test_causal(sq: int, sk: int) -> None:
    q, k, v = random_heads(np.random.default_rng(2), 2, 2, sq, sk, 16, 16)
    for offset in (-1, 0, 3):
        actual = sk - sq if offset == -1 else offset
        got = attend(q, k, v, scale=0.25, causal=True, causal_offset=offset)
        np.testing.assert_allclose(got, expected(q, k, v, scale=0.25, causal_offset=actual), rtol=0, atol=bound(q, k, v, 0.25))


@pytest.mark.parametrize(("sq", "sk"), [(3, 4), (30, 31)])
def test_grouped_query_heads(sq: int, sk: int) -> None:
    q, k, v = random_heads(np.random.default_rng(3), 2, 6, sq, sk, 8, 8, kv_heads=2)
    for threads in (1, 2, 3):
        np.testing.assert_allclose(attend(q, k, v, threads=threads), expected(q, k, v), rtol=0, atol=bound(q, k, v, 1.0))


@pytest.mark.parametrize("s", [1, 5, 16, 45])
@pytest.mark.parametrize("order", ["3HD", "H3D"])
def test_slices_of_a_fused_projection(s: int, order: str) -> None:
    rng = np.random.default_rng(4)
    b, h, d = 2, 3, 8
    fused = rng.standard_normal((b, s, 3 * h * d)).astype(np.float32)
    split = fused.reshape(b, s, 3, h, d) if order == "3HD" else fused.reshape(b, s, h, 3, d).swapaxes(2, 3)
    q, k, v = (np.ascontiguousarray(split[:, :, i].swapaxes(1, 2)) for i in range(3))
    offsets, stride = ((0, h * d, 2 * h * d), d) if order == "3HD" else ((0, d, 2 * d), 3 * d)
    got = attend(
        fused,
        fused,
        fused,
        heads=h,
        kv_heads=h,
        sizes=(d, d),
        layouts=(BSR, BSR, BSR, BSR),
        offsets=offsets,
        strides=(stride,) * 3,
    )
    plain = attend(q, k, v)
    np.testing.assert_array_equal(got, plain.swapaxes(1, 2).reshape(b, s, h * d))


def test_one_head_without_a_head_dim() -> None:
    q, k, v = random_heads(np.random.default_rng(5), 3, 1, 9, 10, 8, 8)
    mask = np.random.default_rng(6).standard_normal((3, 1, 10)).astype(np.float32)
    got = attend(q[:, 0], k[:, 0], v[:, 0], mask)
    np.testing.assert_array_equal(got, attend(q, k, v, mask[:, None])[:, 0])


@pytest.mark.parametrize("masked", [-np.inf, float(np.finfo(np.float32).min), False])
@pytest.mark.parametrize(("sq", "sk"), [(1, 5), (5, 5), (16, 16), (13, 40), (60, 128)])
def test_masked_trailing_keys_change_no_bit(sq: int, sk: int, masked: float) -> None:
    q, k, v = random_heads(np.random.default_rng(7), 2, 2, sq, sk, 32, 32)
    plain = attend(q, k, v, scale=0.2)
    for more in (1, 3, 8, 11, 64, 600):
        junk = np.random.default_rng(more).standard_normal((2, 2, more, 32)).astype(np.float32)
        mask = np.ones((2, 1, 1, sk + more), bool)
        mask[..., sk:] = False
        if masked is not False:
            mask = np.where(mask, np.float32(0), np.float32(masked))
        padded = attend(q, np.concatenate([k, junk], 2), np.concatenate([v, junk], 2), mask, scale=0.2)
        np.testing.assert_array_equal(padded, plain)


@pytest.mark.parametrize(("fill", "adds"), [(-np.inf, False), (-1e9, False), (float(np.finfo(np.float32).min), True)])
@pytest.mark.parametrize("s", [5, 16, 50, 131])
def test_keys_that_a_block_of_rows_cannot_see_change_no_bit(s: int, fill: float, adds: bool) -> None:
    q, k, v = random_heads(np.random.default_rng(12), 2, 2, s, s, 32, 24)
    mask = np.tril(np.ones((s, s), bool))
    together = attend(q, k, v, mask, scale=0.2, fill=fill, adds=adds)
    np.testing.assert_array_equal(attend(q, k, v, mask, scale=0.2, fill=fill, adds=adds, threads=3), together)
    for i in range(s):
        alone = attend(q[:, :, i : i + 1], k[:, :, : i + 1], v[:, :, : i + 1], scale=0.2)
        np.testing.assert_array_equal(alone[:, :, 0], together[:, :, i])


@pytest.mark.parametrize("fill", [-100.0, 0.0, 300.0, -1e9])
@pytest.mark.parametrize("s", [4, 30, 100])
def test_hidden_keys_have_weights_where_nothing_better_is_seen(s: int, fill: float) -> None:
    rng = np.random.default_rng(13)
    q, k, v = np.abs(random_heads(rng, 1, 1, s, s, 8, 8))
    k = -20 * k  # what is seen scores some -100
    mask = np.tril(np.ones((s, s), bool))
    mask[s // 2] = False  # sees nothing: the same weight for all keys, behind the last that others see too
    mask[:, -1] = False
    reference = expected(q, k, v, mask, fill=fill)
    np.testing.assert_allclose(attend(q, k, v, mask, fill=fill), reference, rtol=0, atol=bound(q, k, v, 1.0))


@pytest.mark.parametrize(("sq", "sk"), [(1, 20), (16, 16), (61, 77)])
def test_rows_do_not_depend_on_their_neighbours_nor_on_threads(sq: int, sk: int) -> None:
    q, k, v = random_heads(np.random.default_rng(8), 3, 2, sq, sk, 32, 24)
    together = attend(q, k, v, scale=0.2)
    for threads in (2, 3):
        np.testing.assert_array_equal(attend(q, k, v, scale=0.2, threads=threads), together)
    for b in range(3):
        np.testing.assert_array_equal(attend(q[b : b + 1], k[b : b + 1], v[b : b + 1], scale=0.2)[0], together[b])
    for i in range(sq):
        np.testing.assert_array_equal(attend(q[:, :, i : i + 1], k, v, scale=0.2)[:, :, 0], together[:, :, i])


def test_rows_that_are_masked_altogether() -> None:
    q, k, v = random_heads(np.random.default_rng(9), 1, 1, 4, 12, 8, 8)
    mask = np.zeros((4, 12), np.float32)
    mask[1] = np.finfo(np.float32).min
    mask[2] = -np.inf
    got = attend(q, k, v, mask)[0, 0]
    error = bound(q, k, v, 0.0) if in_int16 else 12 * EPS * np.abs(v).max()
    np.testing.assert_allclose(got[1], v[0, 0].mean(axis=0), rtol=0, atol=error)
    assert np.isnan(got[2]).all()
    assert np.isfinite(got[[0, 1, 3]]).all()


def test_nan_and_huge_scores_stay_in_their_row() -> None:
    q, k, v = random_heads(np.random.default_rng(10), 1, 1, 20, 30, 8, 8)
    plain = attend(q, k, v)
    q[0, 0, 3, 2] = np.nan
    q[0, 0, 7] *= 1e18
    k = k.copy()
    got = attend(q, k, v)
    assert np.isnan(got[0, 0, 3]).all()
    assert np.isfinite(got[0, 0, 7]).all()
    others = [i for i in range(20) if i not in (3, 7)]
    np.testing.assert_array_equal(got[0, 0, others], plain[0, 0, others])


def test_sizes_of_zero() -> None:
    zeros = np.zeros
    assert attend(zeros((0, 2, 3, 4), "f"), zeros((0, 2, 5, 4), "f"), zeros((0, 2, 5, 6), "f")).shape == (0, 2, 3, 6)
    assert attend(zeros((1, 2, 0, 4), "f"), zeros((1, 2, 5, 4), "f"), zeros((1, 2, 5, 6), "f")).shape == (1, 2, 0, 6)
    np.testing.assert_array_equal(
        attend(np.ones((1, 2, 3, 4), "f"), zeros((1, 2, 0, 4), "f"), zeros((1, 2, 0, 6), "f")), zeros((1, 2, 3, 6))
    )
    v = np.arange(10, dtype="f").reshape(1, 1, 5, 2)
    q, k = zeros((1, 1, 3, 0), "f"), zeros((1, 1, 5, 0), "f")
    mean = np.broadcast_to(v.mean(axis=2, keepdims=True), (1, 1, 3, 2))
    np.testing.assert_allclose(attend(q, k, v), mean, rtol=0, atol=bound(q, k, v, 1.0) if in_int16 else 0)


@pytest.mark.parametrize("precision", ["int16"], indirect=True)
def test_codes_leave_less_than_a_hundredth_of_what_int8_leaves() -> None:
    """The root mean square error relative to the values, next to that of values rounded to 255 steps of their row."""
    rng = np.random.default_rng(14)
    for s in (16, 128, 1100):
        q, k, v = random_heads(rng, 1, 4, s, s, 32, 32)
        reference = expected(q, k, v, scale=1.0)  # some keys dominate
        step = (v.max(axis=-1, keepdims=True) - v.min(axis=-1, keepdims=True)) / 255
        rounded = expected(q, k, np.round(v / step) * step, scale=1.0)
        error = np.sqrt(np.mean((attend(q, k, v, scale=1.0) - reference) ** 2))
        assert error < 0.1 * np.sqrt(np.mean((rounded - reference) ** 2)), s


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1e3, 1e15])
def test_codes_of_any_magnitude(scale: float) -> None:
    rng = np.random.default_rng(15)
    q, k, v = random_heads(rng, 1, 2, 33, 40, 16, 16)
    k[:, :, ::3] *= 50  # rows of keys and of values differ
    v[:, :, 1::3] /= 300
    big = np.float32(scale)
    got = attend(q / big, k * big, v * big, scale=0.1)
    np.testing.assert_allclose(got / big, expected(q, k, v, scale=0.1), rtol=0, atol=bound(q, k, v, 0.1))


def test_extreme_codes_do_not_overflow() -> None:
    for d, s in ((1, 2), (2, 700), (64, 513), (129, 1030)):
        q, k, v = (np.full((1, 1, s, d), x, np.float32) for x in (3.0, -7.0, 5.0))
        v[:, :, :, ::2] = -5.0
        np.testing.assert_allclose(attend(q, k, v, scale=0.01), v, rtol=2e-3)


def test_declines_what_does_not_fit() -> None:
    q, k, v = random_heads(np.random.default_rng(11), 1, 2, 3, 4, 8, 8)
    assert attend(q.astype(np.float64), k, v) is None
    assert attend(q, k[..., :4], v) is None
    assert attend(q, k, v[:, :, :3]) is None
    assert attend(q, k[:, :1], v) is None
    assert attend(q, k, v, np.zeros((3, 5), "f")) is None
    assert attend(q, k, v, np.zeros((1, 1, 1, 3, 4), "f")) is None
    assert attend(q, k, v, np.zeros((3, 4), np.int32)) is None
    assert attend(q, k, v, heads=3) is None
    assert attend(q, k, v, transposed=True) is None
    row = np.zeros((1, 3, 48), "f")
    fused = {"heads": 2, "kv_heads": 2, "sizes": (8, 8), "layouts": (BSR,) * 4}
    assert attend(row, row, row, offsets=(0, 16, 32), **fused) is not None
    assert attend(row, row, row, offsets=(0, 16, 33), **fused) is None
    assert attend(row, row, row, offsets=(0, 16, -1), **fused) is None
    assert attend(row, row, row, strides=(2**62, 0, 0), **fused) is None
