"""GridSample: the bits of the definition."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernels.native_call import check, check_agreement, run_definition, run_native

F32 = np.float32
BOTH = (run_native, run_definition)


def inputs(shape: tuple[int, ...], output: tuple[int, int], spread: float = 1.3) -> list[np.ndarray]:
    rng = np.random.default_rng(shape[2])
    grid = (rng.random((shape[0], *output, 2)) * 2 - 1) * spread
    grid[rng.random(grid.shape) < 0.2] = rng.choice([-1, 1, 0, 0.5])
    return [rng.standard_normal(shape).astype(F32), grid.astype(F32)]


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align", [0, 1])
def test_like_the_definition(mode, padding, align):
    options = {"mode": mode, "padding_mode": padding, "align_corners": align}
    for shape in ((2, 3, 8, 9), (1, 1, 1, 1), (1, 2, 1, 5), (3, 2, 5, 2)):
        for output in ((1, 1), (5, 7), (20, 33), (0, 2)):
            for spread in (1.0, 1.3, 20.0):
                check("GridSample", inputs(shape, output, spread), **options)


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_odd_numbers(padding, mode):
    """Also at the border, where neighbours of weight zero stand for those outside."""
    x, grid = inputs((1, 2, 6, 6), (4, 4))
    x[0, 0, 2:4] = np.nan
    x[0, 1, 3] = np.inf
    grid[0, 0, :, 0] = [np.nan, np.inf, -np.inf, 3e38]
    with np.errstate(over="ignore", invalid="ignore"):
        check("GridSample", [x, grid], padding_mode=padding, mode=mode)
    x, grid = inputs((2, 3, 7, 6), (20, 20))
    x[np.random.default_rng(1).random(x.shape) < 0.2] = np.nan
    x[np.random.default_rng(2).random(x.shape) < 0.05] = np.inf
    for align in (0, 1):
        with np.errstate(invalid="ignore"):
            native, definition = (f("GridSample", [x, grid], padding_mode=padding, mode=mode, align_corners=align) for f in BOTH)
        # Which NaN comes out of Inf - Inf is for the compiler to choose.
        assert native is not None
        np.testing.assert_array_equal(native[0], definition[0])


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
def test_points_outside(mode):
    """None of them, single ones, whole blocks, all: zeros with either padding of zeros, and the bits of the definition."""
    rng = np.random.default_rng(5)
    x = -np.abs(rng.standard_normal((1, 3, 6, 7))).astype(F32)
    x[0, 1, 0] = np.nan
    for share in (0.0, 0.02, 0.4, 0.98, 1.0):
        grid = rng.uniform(-0.99, 0.99, (1, 19, 23, 2)).astype(F32)
        grid[rng.random(grid.shape[:3]) < share] = (-3, 0.5)
        grid[0, 8:14, :, 1] += 4 * round(share)
        check("GridSample", [x, grid], mode=mode)


def test_version_16_and_threads():
    given = inputs((2, 16, 20, 20), (40, 41))
    check("GridSample", given, version=16, mode="bicubic")
    one = check("GridSample", given, version=16, mode="bilinear")[0]
    for threads in (2, 3):
        assert check("GridSample", given, num_threads=threads)[0].tobytes() == one.tobytes()
    alone = check("GridSample", [v[1:2] for v in given])[0]
    assert alone.tobytes() == one[1:2].tobytes()


def test_other_cases_are_declined():
    x, grid = inputs((1, 2, 4, 4), (3, 3))
    assert run_native("GridSample", [x, grid.astype(np.float16)]) is None
    assert run_native("GridSample", [x[:, :, :0], grid]) is None
    for bad in ([x, grid[..., :1]], [x[0], grid], [np.concatenate([x, x]), grid]):
        assert run_native("GridSample", bad) is None
        check_agreement("GridSample", bad)


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
def test_grids_of_float64(mode):
    """As exporters write them that compute positions in float64: rounded to float32, with the bits of the definition."""
    x, grid = inputs((2, 3, 8, 9), (20, 33))
    wide = grid.astype(np.float64) * (1 + 1e-9)
    wide[0, 0, :4, 0] = [np.nan, np.inf, -np.inf, 1e300]
    with np.errstate(over="ignore", invalid="ignore"):
        check("GridSample", [x, wide], mode=mode)
