"""Resize and Upsample: the bits of the definition, in every mode that the kernel serves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.native_call import check, check_agreement, run_native

F32 = np.float32
COORDINATES = ["half_pixel", "pytorch_half_pixel", "asymmetric", "tf_half_pixel_for_nn", "align_corners", "half_pixel_symmetric"]
ROUNDING = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]


def image(shape: tuple[int, ...], dtype: type = F32) -> np.ndarray:
    rng = np.random.default_rng(len(shape))
    x = rng.standard_normal(shape) * 50
    return x.astype(dtype)


@settings(max_examples=200)
@given(
    shape=st.lists(st.sampled_from([0, 1, 2, 3, 5, 8]), min_size=1, max_size=5).map(tuple),
    data=st.data(),
    mode=st.sampled_from(["nearest", "linear", "cubic"]),
    coordinates=st.sampled_from(COORDINATES),
    rounding=st.sampled_from(ROUNDING),
    by_sizes=st.booleans(),
)
def test_like_the_definition(shape, data, mode, coordinates, rounding, by_sizes):
    rank = len(shape)
    axes = data.draw(st.sampled_from([None, tuple(range(rank)), tuple(range(rank))[::-1], (rank - 1,), (-rank, -1) if rank > 1 else (0,)]))
    count = rank if axes is None else len(axes)
    options: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": coordinates, "nearest_mode": rounding}
    if axes is not None:
        options["axes"] = axes
    if by_sizes:
        inputs = [image(shape), None, None, np.array(data.draw(st.lists(st.integers(0, 9), min_size=count, max_size=count)))]
    else:
        factors = st.sampled_from([0.3, 0.5, 0.6, 1.0, 1.5, 1.7, 2.0, 3.0, 4.0])
        inputs = [image(shape), None, np.array(data.draw(st.lists(factors, min_size=count, max_size=count)), F32)]
    check_agreement("Resize", inputs, **options)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("scales", [(1, 1, 2, 2), (1, 1, 1.5, 1.7), (1, 1, 0.4, 3), (1, 2, 2, 1), (1, 1, 1, 4), (2, 2, 2, 2)])
def test_images(mode, coordinates, scales):
    options = {"mode": mode, "coordinate_transformation_mode": coordinates}
    for threads in (1, 3):
        check("Resize", [image((2, 5, 17, 30)), None, np.array(scales, F32)], num_threads=threads, **options)


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int16, np.float16, np.int32, np.float64, np.int64])
def test_nearest_of_any_type(dtype):
    check("Resize", [image((2, 3, 7, 5), dtype), None, np.array([1, 1, 2, 1.6], F32)])
    check("Resize", [image((2, 7, 5, 3), dtype), None, None, np.array([2, 14, 15, 3])])


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.float64, np.uint8])
@pytest.mark.parametrize("scales", [(1, 2), (2, 1), (2, 2), (3, 2), (0.5, 2)], ids=str)
def test_lines_of_every_width(scales, dtype):
    """Doubled by vectors, the last of which may overlap; short lines picked anew and long ones copied."""
    for width in (*range(1, 14), 127, 128, 131):
        x = np.arange(2 * 6 * width).reshape(2, 6, width).astype(dtype)
        for coordinates in ("asymmetric", "half_pixel"):
            check("Resize", [x, None, np.array((1, *scales), F32)], mode="nearest", coordinate_transformation_mode=coordinates)


def test_large_on_threads_and_a_batch():
    x = image((4, 8, 60, 60))
    for mode in ("nearest", "linear"):
        one = check("Resize", [x, None, np.array([1, 1, 2, 2], F32)], mode=mode)[0]
        for threads in (2, 3):
            two = check("Resize", [x, None, np.array([1, 1, 2, 2], F32)], mode=mode, num_threads=threads)[0]
            assert two.tobytes() == one.tobytes()
        alone = check("Resize", [x[1:2], None, np.array([1, 1, 2, 2], F32)], mode=mode)[0]
        assert alone.tobytes() == one[1:2].tobytes()


@pytest.mark.parametrize("mode", ["nearest", "linear", "bilinear"])
@pytest.mark.parametrize("scales", [(1, 1, 2, 2), (1, 1, 0.4, 0.7), (1, 2, 1, 1.5)])
def test_earlier_versions(mode, scales):
    x, given = image((2, 3, 9, 10)), np.array(scales, F32)
    check("Resize", [x, given], version=10, mode=mode)
    check("Upsample", [x, given], version=9, mode=mode)
    check("Upsample", [x], version=7, mode=mode, scales=tuple(float(s) for s in given))
    check("Upsample", [x], version=1, mode=mode, height_scale=2.0, width_scale=1.5)


@pytest.mark.parametrize(
    "scales", [[1, 1], [1, 1, -2, 2], [1, 1, np.inf, 1], [1, 1, np.nan, 1], [0, 1, 1, 1], [1, 1, 1e30, 1], [1, 1, 1e13, 1]]
)
def test_bad_scales_are_declined(scales):
    inputs = [image((1, 2, 4, 4)), None, np.array(scales, F32)]
    assert run_native("Resize", inputs) is None
    check_agreement("Resize", inputs)


def test_rare_modes_stay_with_the_definition():
    inputs = [image((1, 2, 4, 4)), None, np.array([1, 1, 0.5, 0.5], F32)]
    rare = {"antialias": 1, "mode": "linear"}, {"exclude_outside": 1, "mode": "cubic"}, {"keep_aspect_ratio_policy": "not_larger"}
    for options in rare:
        assert run_native("Resize", inputs, **options) is None
    assert run_native("Resize", [inputs[0].astype(np.uint8), *inputs[1:]], mode="linear") is None
