"""Normalisation of images by channels, images and groups, on every rung against float64."""

from typing import Any

import numpy as np
import pytest

from tests.kernels.native_call import run_native

Array = np.ndarray
EPS = float(np.finfo(np.float32).eps)
SHAPES = [(2, 3, 5, 7), (1, 4, 1), (3, 6), (2, 2, 3, 4, 5), (1, 6, 2500), (5, 130), (2, 4, 3, 0), (0, 4, 3), (1, 32, 33, 31)]


def wide(vector: Array, rank: int) -> Array:
    return vector.astype(np.float64).reshape(-1, *(1,) * (rank - 2))


def parameters(channels: int) -> list[Array]:
    rng = np.random.default_rng(channels)
    scale, bias, mean = rng.standard_normal((3, channels)).astype(np.float32)
    return [scale, bias, mean, rng.uniform(0.1, 2, channels).astype(np.float32)]


def batch_norm(x: Array, *by: Array, **options: Any) -> Array:
    outputs = run_native("BatchNormalization", [x, *by], version=options.pop("version", 15), **options)
    assert outputs is not None, "the kernel declined"
    return outputs[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm(rung: str, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    by = parameters(shape[1])
    scale, bias, mean, variance = (wide(v, x.ndim) for v in by)
    for version in (1, 7, 9, 15):
        y = batch_norm(x, *by, version=version, epsilon=1e-3)
        factor = scale / np.sqrt(variance + 1e-3)
        bound = 3 * EPS * (np.abs(x * factor) + np.abs(mean * factor) + np.abs(bias))
        assert y.shape == x.shape
        assert (np.abs(y - ((x - mean) * factor + bias)) <= bound).all()


def test_batch_norm_of_an_element_does_not_depend_on_its_place(rung: str) -> None:
    """The same bits alone, in a batch, with positions behind it, and with other threads."""
    x, by = np.random.default_rng(1).standard_normal((9, 37, 5)).astype(np.float32), parameters(37)
    whole = batch_norm(x, *by)
    for images, positions in ((slice(0, 1), 5), (slice(4, 5), 5), (slice(0, 9), 1), (slice(3, 6), 2)):
        part = np.ascontiguousarray(x[images, :, :positions])
        np.testing.assert_array_equal(batch_norm(part, *by), whole[images, :, :positions])
    flat = np.ascontiguousarray(x[:, :, 0])
    np.testing.assert_array_equal(batch_norm(flat, *by), whole[:, :, 0])
    large = np.random.default_rng(2).standard_normal((3, 37, 900)).astype(np.float32)
    for threads in (2, 3):
        np.testing.assert_array_equal(batch_norm(large, *by, num_threads=threads), batch_norm(large, *by))


def test_batch_norm_leaves_to_the_definition_what_it_was_not_written_for() -> None:
    x, by = np.ones((2, 3, 4), np.float32), parameters(3)
    inputs = [x, *by]
    assert run_native("BatchNormalization", inputs, version=15, training_mode=1) is None
    assert run_native("BatchNormalization", inputs, version=15, training_mode=1, num_outputs=3) is None
    assert run_native("BatchNormalization", inputs, version=7, spatial=0) is None
    assert run_native("BatchNormalization", inputs, version=9, num_outputs=5) is None
    assert run_native("BatchNormalization", [x, *by[:3], by[3][:2]], version=15) is None
    assert run_native("BatchNormalization", [x.astype(np.float64), *by], version=15) is None
    assert run_native("BatchNormalization", [x[0, 0], *by], version=15) is None
    zero = np.zeros(3, np.float32)
    assert run_native("BatchNormalization", [x, *by[:3], zero], version=15, epsilon=0.0) is None, "x − mean may be 0 there"


def standardized(x: Array, groups: int, epsilon: float) -> Array:
    rows = x.astype(np.float64).reshape(x.shape[0], groups, -1)
    rows = rows - rows.mean(axis=2, keepdims=True)
    return (rows / np.sqrt((rows * rows).mean(axis=2, keepdims=True) + epsilon)).reshape(x.shape)


@pytest.mark.parametrize("shape", [s for s in SHAPES if len(s) > 2 and 0 not in s])
def test_instance_and_group_norm(rung: str, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(3).standard_normal(shape).astype(np.float32) + 2
    channels = shape[1]
    scale, bias = parameters(channels)[:2]
    cases: list[tuple[str, int, int, dict[str, Any]]] = [("InstanceNormalization", 6, channels, {})]
    cases += [("GroupNormalization", v, g, {"num_groups": g}) for v in (18, 21) for g in (1, channels, channels // 2 or 1)
              if channels % g == 0]  # fmt: skip
    for op, version, groups, attributes in cases:
        by = (scale[:groups], bias[:groups]) if version == 18 else (scale, bias)
        outputs = run_native(op, [x, *by], version=version, epsilon=1e-3, **attributes)
        assert outputs is not None
        exact = standardized(x, groups, 1e-3)
        spread = [np.repeat(v, channels // groups) if version == 18 else v for v in by]
        exact = exact * wide(spread[0], x.ndim) + wide(spread[1], x.ndim)
        # The mean of n numbers near 2 is off by some ε of that; what it is divided by is at least √epsilon.
        np.testing.assert_allclose(outputs[0], exact, rtol=0, atol=64 * EPS * (1 + np.abs(x).max()))
        for threads in (2, 3):
            again = run_native(op, [x, *by], version=version, epsilon=1e-3, num_threads=threads, **attributes)
            np.testing.assert_array_equal(again, outputs)
        one = run_native(op, [x[-1:], *by], version=version, epsilon=1e-3, **attributes)
        assert one is not None
        np.testing.assert_array_equal(one[0], outputs[0][-1:])


def test_group_norm_declines_what_does_not_fit() -> None:
    x, vector = np.zeros((2, 6, 4), np.float32), np.ones(6, np.float32)
    assert run_native("GroupNormalization", [x, vector, vector], num_groups=4) is None
    assert run_native("GroupNormalization", [x, vector, vector], num_groups=0) is None
    assert run_native("GroupNormalization", [x, vector[:5], vector], num_groups=2) is None
    assert run_native("GroupNormalization", [x, vector, vector], num_groups=2, stash_type=11) is None
    assert run_native("InstanceNormalization", [x, vector[:3], vector], version=6) is None
    assert run_native("InstanceNormalization", [x[:, :, 0], vector, vector], version=6) is None  # no spatial dims
    empty = run_native("InstanceNormalization", [x[:, :, :0], vector, vector], version=6)
    assert empty is not None
    assert empty[0].shape == (2, 6, 0)


def responses(x: Array, size: int, alpha: float, beta: float, bias: float) -> tuple[Array, Array]:
    """LRN in float64, and what the kernel may be off: sums of squares, a power and a quotient, each a few ε."""
    squares = x.astype(np.float64) ** 2
    sums = np.zeros_like(squares)
    for c in range(x.shape[1]):
        sums[:, c] = squares[:, max(0, c - (size - 1) // 2) : c + size // 2 + 1].sum(1)
    exact = x / (bias + alpha / size * sums) ** beta
    return exact, np.abs(exact) * EPS * (beta * (min(size, x.shape[1]) + 4) + 8)


@pytest.mark.parametrize("shape", [(2, 7), (1, 3, 5), (2, 64, 27, 27), (3, 5, 256), (1, 4, 257), (0, 3, 4), (2, 1, 3, 3, 3)])
@pytest.mark.parametrize("size", [1, 2, 5, 9, 1 << 40])
def test_lrn(rung: str, shape: tuple[int, ...], size: int) -> None:
    x = np.random.default_rng(4).standard_normal(shape).astype(np.float32) * 9
    attributes = {"size": size, "alpha": 0.5, "beta": 0.75, "bias": 2.0}
    outputs = run_native("LRN", [x], **attributes)
    assert outputs is not None
    exact, bound = responses(x, size, 0.5, 0.75, 2.0)
    assert outputs[0].shape == x.shape
    assert (np.abs(outputs[0] - exact) <= bound).all()
    for threads in (2, 3):
        np.testing.assert_array_equal(run_native("LRN", [x], num_threads=threads, **attributes), outputs)
    one = run_native("LRN", [x[-1:]], **attributes)
    assert one is not None
    np.testing.assert_array_equal(one[0], outputs[0][-1:])


def test_lrn_of_odd_numbers_stays_with_its_neighbours(rung: str) -> None:
    x = np.ones((1, 9, 4), np.float32)
    clean = run_native("LRN", [x], size=3)
    x[0, 4, 1] = np.nan
    odd = run_native("LRN", [x], size=3)
    assert clean is not None
    assert odd is not None
    assert np.isnan(odd[0][0, 3:6, 1]).all()
    odd[0][0, 3:6, 1] = clean[0][0, 3:6, 1]
    np.testing.assert_array_equal(odd[0], clean[0])
    assert run_native("LRN", [x], size=0) is None
    assert run_native("LRN", [x.astype(np.float64)], size=3) is None
    assert run_native("LRN", [x[0, :, 0]], size=3) is None
