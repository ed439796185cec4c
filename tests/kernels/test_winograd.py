"""Convolutions by Winograd's products: within their bound of float64, on every rung; each image and output by itself."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from qruntime import _kernels
from qruntime.ops.channel_blocks import in_blocks, out_of_blocks
from tests.kernels.native_call import same_bits
from tests.kernels.test_channel_blocks import SLOPES, blocked_conv, check, convolved, with_junk
from tests.kernels.test_conv import expected, random

pytestmark = pytest.mark.usefixtures("rung")

ALL_SIDES = [1, 1, 1, 1]


@pytest.mark.parametrize("height", [1, 2, 3, 4, 7, 14, 15])
@pytest.mark.parametrize("width", [1, 2, 3, 5, 6, 13, 24, 97])
def test_sizes(height: int, width: int) -> None:
    rng = np.random.default_rng(height * 100 + width)
    x, w, b = random(rng, 2, 18, height, width), random(rng, 37, 18, 3, 3), random(rng, 37)
    check(x, w, b, kind="winograd", pads=ALL_SIDES)
    check(x, w, kind="winograd", pads=[2, 3, 1, 0], activation="relu")


@pytest.mark.parametrize(("channels", "maps"), [(1, 1), (2, 15), (15, 16), (16, 17), (17, 32), (33, 63), (48, 64), (63, 65), (100, 130)])
@pytest.mark.parametrize("threads", [1, 3])
def test_numbers_of_channels(channels: int, maps: int, threads: int) -> None:
    rng = np.random.default_rng(channels)
    x, w, b = random(rng, 1, channels, 9, 12), random(rng, maps, channels, 3, 3), random(rng, maps)
    check(x, w, b, kind="winograd", pads=ALL_SIDES, residual=random(rng, 1, maps, 9, 12), threads=threads)


@pytest.mark.parametrize("activation", list(SLOPES))
def test_epilogues(activation: str) -> None:
    rng = np.random.default_rng(7)
    x, w = random(rng, 2, 20, 9, 11), random(rng, 70, 20, 3, 3)
    for with_bias, with_residual, with_addend in itertools.product((False, True), repeat=3):
        b = random(rng, 70) if with_bias else None
        residual, addend = (random(rng, 2, 70, 9, 11) if given else None for given in (with_residual, with_addend))
        check(x, w, b, residual, addend, kind="winograd", activation=activation, pads=ALL_SIDES)


@pytest.mark.parametrize("size", [(2, 20, 20), (3, 34, 7), (5, 7, 7), (1, 40, 61)])
def test_the_bits_of_an_image_are_its_own(size: tuple[int, int, int]) -> None:
    """Whatever stands beside it, and whatever the number of threads: chunks of quads begin elsewhere then."""
    images, *spatial = size
    rng = np.random.default_rng(images)
    x, w, b = random(rng, images, 70, *spatial), random(rng, 90, 70, 3, 3), random(rng, 90)
    whole = convolved(x, w, b, kind="winograd", pads=ALL_SIDES, activation="silu")
    for threads in (2, 3, 8):
        same_bits(convolved(x, w, b, kind="winograd", pads=ALL_SIDES, activation="silu", threads=threads), whole)
    for i in range(images):
        same_bits(convolved(x[i : i + 1], w, b, kind="winograd", pads=ALL_SIDES, activation="silu")[0], whole[i])


def test_weights_too_many_for_the_cache_serve_several_images() -> None:
    rng = np.random.default_rng(1)
    x, w = random(rng, 9, 260, 5, 6), random(rng, 270, 260, 3, 3)
    whole = check(x, w, kind="winograd", pads=ALL_SIDES)
    same_bits(convolved(x[4:5], w, kind="winograd", pads=ALL_SIDES, threads=2)[0], whole[4])


def test_images_of_several_inputs() -> None:
    rng = np.random.default_rng(2)
    x, w = random(rng, 2, 80, 8, 9), random(rng, 33, 80, 3, 3)
    parts = [in_blocks(x[:, :16]), in_blocks(x[:, 16:64])]
    y = blocked_conv(parts[0], w, more=[parts[1], in_blocks(x[:, 64:])], kind="winograd", pads=ALL_SIDES)
    assert y is not None
    same_bits(out_of_blocks(y, 33), convolved(x, w, kind="winograd", pads=ALL_SIDES))


def test_what_is_no_number_stays_near_its_pixel() -> None:
    rng = np.random.default_rng(3)
    x, w = random(rng, 1, 20, 12, 12), random(rng, 20, 20, 3, 3)
    plain = convolved(x, w, kind="winograd", pads=ALL_SIDES)
    for odd in (np.nan, np.inf):
        spoiled = x.copy()
        spoiled[0, 3, 5, 6] = odd
        y = convolved(spoiled, w, kind="winograd", pads=ALL_SIDES)
        touched = np.zeros((12, 12), bool)
        touched[4:8, 4:8] = True  # the quads that read row 5 and column 6
        same_bits(y[0][:, ~touched], plain[0][:, ~touched])
        exact = expected(spoiled, w, pads=ALL_SIDES)[0]
        assert not np.isfinite(y[0][~np.isfinite(exact)]).any()


def test_zeros_stay_zeros() -> None:
    rng = np.random.default_rng(4)
    x, w, b = np.zeros((1, 40, 9, 9), np.float32), random(rng, 40, 40, 3, 3), random(rng, 40)
    same_bits(convolved(x, w, b, kind="winograd", pads=ALL_SIDES), np.broadcast_to(b[:, None, None], (1, 40, 9, 9)).copy())


def test_errors_are_as_small_as_they_are_said_to_be() -> None:
    rng = np.random.default_rng(5)
    x, w = rng.standard_normal((1, 128, 20, 20)).astype(np.float32), rng.standard_normal((128, 128, 3, 3)).astype(np.float32)
    exact = expected(x, w, pads=ALL_SIDES)

    def error(kind: str) -> float:
        return float(np.sqrt(np.square(convolved(x, w, kind=kind, pads=ALL_SIDES) - exact).mean() / np.square(exact).mean()))

    assert error("winograd") < min(1e-6, 3 * error("blocks"))


def test_it_declines_what_it_is_not_for() -> None:
    rng = np.random.default_rng(6)
    x, w = with_junk(random(rng, 1, 20, 8, 8)), random(rng, 20, 20, 3, 3)
    assert blocked_conv(x, w, kind="winograd") is not None
    assert blocked_conv(x, w, kind="winograd", strides=[2, 1]) is None
    assert blocked_conv(x, w, kind="winograd", dilations=[1, 2]) is None
    assert blocked_conv(x, w, kind="winograd", group=2) is None
    assert blocked_conv(in_blocks(random(rng, 1, 40, 8, 8)), w, kind="winograd") is None
    assert blocked_conv(x[..., :1, :, :], w, kind="winograd") is None  # no window fits
    for packed, kernel in (("blocks", "winograd_conv"), ("winograd", "blocked_conv")):
        ints = [2, 1, 0, 0, 1, 1, *ALL_SIDES, 1, 1]
        assert _kernels.call_node(kernel, [x, None, None], ints, [0.0, 0.0], [_kernels.PackedConv(w, None, packed)]) is None
    with pytest.raises(ValueError, match="windows of 3 × 3, got"):
        _kernels.PackedConv(random(rng, 20, 20, 1, 3), None, "winograd")


def test_images_without_pixels() -> None:
    rng = np.random.default_rng(8)
    w = random(rng, 20, 20, 3, 3)
    y = blocked_conv(in_blocks(np.zeros((0, 20, 8, 8), np.float32)), w, kind="winograd", pads=ALL_SIDES)
    assert y is not None and y.shape == (0, 2, 8, 8, 16)
