"""RoiAlign: the bits of the definition."""

from __future__ import annotations

import numpy as np
import pytest

from qruntime import _kernels
from tests.kernels.native_call import check, check_agreement, run_definition, run_native, same_bits

F32 = np.float32


def inputs(shape: tuple[int, ...], count: int, scale: float = 1.0, spread: float = 1.3) -> list[np.ndarray]:
    """Regions in the image, over its border, outside of it, upside down and without an area."""
    rng = np.random.default_rng(count)
    size = np.array([shape[3], shape[2]]) / scale
    corners = (rng.random((count, 2, 2)) * spread - (spread - 1) / 2) * size
    corners[::2].sort(axis=1)
    corners[3::7, 1] = corners[3::7, 0]
    corners[5::11] += 3 * size
    rois = corners.reshape(count, 4).astype(F32)
    return [rng.standard_normal(shape).astype(F32), rois, rng.integers(0, shape[0], count)]


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("half_pixel", ["half_pixel", "output_half_pixel"])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2, 3, 9])
def test_like_the_definition(mode, half_pixel, sampling_ratio):
    options = {"mode": mode, "coordinate_transformation_mode": half_pixel, "sampling_ratio": sampling_ratio}
    for shape in ((1, 1, 1, 1), (2, 3, 8, 9), (1, 4, 1, 7), (1, 37, 20, 13)):
        for output in ((1, 1), (2, 3), (7, 7)):
            for scale in (1.0, 0.25):
                sizes = {"output_height": output[0], "output_width": output[1], "spatial_scale": scale}
                check("RoiAlign", inputs(shape, 12, scale), **options, **sizes)


def test_version_10_and_threads():
    given = inputs((2, 70, 20, 20), 9)
    sizes = {"output_height": 5, "output_width": 4}
    check("RoiAlign", given, version=10, **sizes)
    one = check("RoiAlign", given, **sizes)[0]
    for threads in (2, 3):
        same_bits(check("RoiAlign", given, num_threads=threads, **sizes)[0], one)
    for n in range(9):
        same_bits(check("RoiAlign", [given[0], given[1][n : n + 1], given[2][n : n + 1]], **sizes)[0], one[n : n + 1])
    same_bits(run_native("RoiAlign", [*given[:2], given[2].astype(np.int32)], **sizes)[0], one)


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_odd_pixels(mode):
    x, rois, images = inputs((1, 5, 9, 9), 20)
    x[np.random.default_rng(0).random(x.shape) < 0.03] = np.nan
    x[np.random.default_rng(1).random(x.shape) < 0.03] = -np.inf
    with np.errstate(invalid="ignore"):
        options = {"mode": mode, "output_height": 3, "output_width": 3}
        native, definition = (f("RoiAlign", [x, rois, images], **options) for f in (run_native, run_definition))
    # Which NaN comes out of Inf - Inf is for the compiler to choose.
    np.testing.assert_array_equal(native[0], definition[0])
    assert np.isnan(native[0]).any()
    assert np.isfinite(native[0]).any()


def test_nothing():
    x, rois, images = inputs((2, 3, 4, 4), 5)
    assert check("RoiAlign", [x, rois[:0], images[:0]])[0].shape == (0, 3, 1, 1)
    for empty in ([x[:, :0], rois, images], [x[:, :, :0], rois, images], [x[:0], rois[:0], images[:0]]):
        check_agreement("RoiAlign", empty)


def test_bad_input_is_declined():
    x, rois, images = inputs((2, 3, 4, 4), 5)
    odd = rois.copy()
    for value in (np.nan, np.inf, -np.inf):
        odd[4, 3] = value
        check_agreement("RoiAlign", [x, odd, images])
    for wrong in (-1, 2, 2**40):
        check_agreement("RoiAlign", [x, rois, np.array([0, 1, 0, 1, wrong])])
    for bad in ([x[0], rois, images], [x, rois[:, :3], images], [x, rois, images[:4]], [x, rois[0], images], [x, rois, images[:, None]]):
        check_agreement("RoiAlign", bad)
    for name, values in {"output_height": (0, 2**40), "output_width": (-1, 2**62), "sampling_ratio": (-1, 2**40)}.items():
        for value in values:
            check_agreement("RoiAlign", [x, rois, images], **{name: value})
    huge = np.array([[0, 0, 3e38, 3e38]], F32)
    check_agreement("RoiAlign", [x, huge, images[:1]])
    assert run_native("RoiAlign", [x.astype(np.float64), rois, images]) is None
    assert _kernels.call_node("roi_align", [x, rois, images], [0, 1, 1], [1.0]) is None
