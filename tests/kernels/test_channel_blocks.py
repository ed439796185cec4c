"""Images whose channels lie in blocks of 16: regrouping exactly, convolutions and poolings against float64, on every rung."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from qruntime import _kernels
from qruntime.ops.channel_blocks import BLOCK, in_blocks, out_of_blocks
from qruntime.ops.epilogue import activate, activation_code
from tests.kernels.native_call import run_definition, run_native, same_bits
from tests.kernels.test_conv import AUTO, EPS, expected, random

pytestmark = pytest.mark.usefixtures("rung")

F32 = np.float32
JUNK = (np.nan, np.inf, -np.inf, 3e38, -3e38, 1.0)


def with_junk(x: np.ndarray, seed: int = 0) -> np.ndarray:
    """`x` in blocks, where what lies behind the last channel is the worst there is."""
    blocks = in_blocks(x)
    behind = -x.shape[1] % BLOCK
    if behind and blocks.size:
        rng = np.random.default_rng(seed)
        blocks[:, -1, ..., BLOCK - behind :] = rng.choice(np.asarray(JUNK, F32), blocks[:, -1, ..., BLOCK - behind :].shape)
    return blocks


def blocked_conv(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None = None,
    residual: np.ndarray | None = None,
    addend: np.ndarray | None = None,
    *,
    more: Sequence[np.ndarray] = (),
    kind: str = "blocks",
    group: int = 1,
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    auto_pad: str = "NOTSET",
    activation: str = "none",
    parameters: Sequence[float] = (),
    threads: int = 1,
) -> np.ndarray | None:
    """Arrays as the kernel takes them: x, residual, addend and more images in blocks already, but x of columns."""
    r = w.ndim - 2
    strides, dilations, pads = strides or [1] * r, dilations or [1] * r, pads or [0] * (2 * r)
    ints = [r, group, activation_code(activation), AUTO[auto_pad], *strides, *pads, *dilations]
    has_parts = kind == "blocks" and group > 1 and not (w.shape[0] % (BLOCK * group) or w.shape[1] % BLOCK)
    result = _kernels.call_node(
        {"depthwise": "blocked_depthwise_conv", "grouped": "blocked_depthwise_conv", "winograd": "winograd_conv"}.get(kind, "blocked_conv"),
        [x, residual, addend, *more],
        ints,
        [*parameters, 0.0, 0.0][:2],
        [_kernels.PackedConv(w, b, kind, group if has_parts else 1)],
        num_threads=threads,
    )
    return None if result is None else result[0]


def convolved(x: np.ndarray, w: np.ndarray, *rest: np.ndarray | None, kind: str = "blocks", **options: Any) -> np.ndarray:
    """The same of images that are not in blocks; it must be served."""
    b, residual, addend = (*rest, None, None, None)[:3]
    images = [None if i is None else with_junk(i, 1 + at) for at, i in enumerate((residual, addend))]
    if kind == "depthwise":
        options["group"] = w.shape[0]
    y = blocked_conv(x if kind == "columns" else with_junk(x), w, b, *images, kind=kind, **options)
    assert y is not None, "the kernel declined"
    assert y.dtype == F32
    assert y.shape[1] == -(-w.shape[0] // BLOCK)
    return out_of_blocks(y, w.shape[0])


SLOPES = {"none": 1, "relu": 1, "clip": 1, "tanh": 1, "leaky_relu": 1, "silu": 1.1, "gelu": 1.13, "hard_swish": 1.5}
"""How much an activation magnifies a difference at most."""
PARAMETERS = {"clip": (-0.25, 0.75), "leaky_relu": (0.125, 0.0)}


def winograd_size(x: np.ndarray, w: np.ndarray, pads: Sequence[int]) -> np.ndarray:
    """|A|ᵀ [Σ_c (|G| |g| |G|ᵀ) ⊙ (|B|ᵀ |d| |B|)] |A| for every output."""
    spread = np.abs(np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float64))
    weight = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [0, 0, 1]])
    collected = np.array([[1, 1, 1, 0], [0, 1, 1, 1]], np.float64)
    top, left, bottom, right = pads
    height, width = x.shape[2] + top + bottom - 2, x.shape[3] + left + right - 2
    padded = np.pad(np.abs(x.astype(np.float64)), [(0, 0), (0, 0), (top, bottom + 1), (left, right + 1)])
    patches = np.lib.stride_tricks.sliding_window_view(padded, (4, 4), (2, 3))[:, :, : height + height % 2 : 2, : width + width % 2 : 2]
    v = np.einsum("ai,nchwij,bj->nchwab", spread, patches, spread)
    u = np.einsum("ai,mcij,bj->mcab", weight, np.abs(w.astype(np.float64)), weight)
    made = np.einsum("xa,nmhwab,yb->nmhxwy", collected, np.einsum("nchwab,mcab->nmhwab", v, u), collected)
    return made.reshape(len(x), len(w), 2 * made.shape[2], -1)[:, :, :height, :width]


def check(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None = None,
    residual: np.ndarray | None = None,
    addend: np.ndarray | None = None,
    *,
    kind: str = "blocks",
    activation: str = "none",
    threads: int = 1,
    **geometry: Any,
) -> np.ndarray:
    """Result of the kernel, within the bound of conv_f32.h."""
    parameters = PARAMETERS.get(activation, ())
    got = convolved(x, w, b, residual, addend, kind=kind, activation=activation, parameters=parameters, threads=threads, **geometry)
    if kind == "depthwise":
        geometry["group"] = w.shape[0]
    exact = expected(x, w, b, **geometry)
    if kind == "winograd":
        terms, size = w.shape[1] + 12, winograd_size(x, w, geometry.get("pads", (0, 0, 0, 0)))
    else:
        terms, size = w[0].size, expected(np.abs(x), np.abs(w), **geometry)
    added = np.zeros(exact.shape)
    for more in (None if b is None else b.reshape(-1, *[1] * (x.ndim - 2)), addend):
        added += 0 if more is None else np.abs(more.astype(np.float64))
    # The sum, and a rounding of all there is so far with each further addition.
    bound = terms * EPS * size + EPS * added
    if addend is not None or residual is not None:
        bound += EPS * (size + added)
    exact = exact if addend is None else exact + addend
    name, numbers = ("leaky_relu", parameters[:1]) if activation == "leaky_relu" else (activation, parameters)
    exact = np.asarray(activate(exact, name, numbers), np.float64)
    bound = bound * SLOPES[activation]
    if activation not in ("none", "relu", "clip"):
        bound += 8 * EPS * (np.abs(exact) + 1)
    if residual is not None:
        exact = exact + residual
        bound += EPS * np.abs(residual) + EPS * np.abs(exact)
    assert got.shape == exact.shape
    wrong = ~(np.abs(got - exact) <= bound)
    assert not wrong.any(), (np.abs(got - exact) / bound).max()
    return got


# ------------------------------------------------------------------------------------------- regrouping


@pytest.mark.parametrize("spatial", [(1,), (7,), (1025,), (5, 3), (33, 32), (2, 3, 4), (0,), (0, 3), (2, 0, 1)])
@pytest.mark.parametrize("threads", [1, 3])
def test_regrouping_is_exactly_inverse(spatial: tuple[int, ...], threads: int) -> None:
    rng = np.random.default_rng(len(spatial))
    for channels, images in itertools.product((1, 2, 15, 16, 17, 31, 32, 33, 48, 50), (0, 1, 3)):
        x = random(rng, images, channels, *spatial)
        if x.size > 4:
            x.flat[:4] = np.nan, np.inf, -np.inf, -0.0
        (blocks,) = run_native("BlockChannels", [x], domain="qruntime", version=1, num_threads=threads, channels=channels)
        same_bits(blocks, run_definition("BlockChannels", [x], domain="qruntime", version=1, channels=channels)[0])
        for behind in (blocks, with_junk(x)):
            (back,) = run_native("UnblockChannels", [behind], domain="qruntime", version=1, channels=channels, num_threads=threads)
            same_bits(back, x)


@pytest.mark.parametrize("channels", range(1, 51))
def test_every_number_of_channels_is_regrouped(channels: int) -> None:
    x = random(np.random.default_rng(channels), 2, channels, 3, 5)
    (blocks,) = run_native("BlockChannels", [x], domain="qruntime", version=1, channels=channels)
    same_bits(blocks, in_blocks(x))
    assert not out_of_blocks(blocks)[:, channels:].any()
    (back,) = run_native("UnblockChannels", [with_junk(x)], domain="qruntime", version=1, channels=channels)
    same_bits(back, x)


def test_regrouping_declines_what_does_not_fit() -> None:
    x = np.zeros((2, 40, 3, 3), F32)
    blocks = in_blocks(x)

    def unblocked(x: np.ndarray, channels: int) -> list[np.ndarray] | None:
        return run_native("UnblockChannels", [x], domain="qruntime", version=1, channels=channels)

    assert unblocked(blocks, 33) is not None
    for channels in (-1, 0, 32, 49, 2**40):
        assert unblocked(blocks, channels) is None
        with pytest.raises(ValueError, match="channels lie in"):
            run_definition("UnblockChannels", [blocks], domain="qruntime", version=1, channels=channels)
    assert unblocked(blocks.astype(np.float64), 40) is None
    assert unblocked(np.ascontiguousarray(blocks[..., :15]), 40) is None
    for wrong, channels in ((x.astype(np.float64), 40), (x[0, 0], 3), (x[..., None, None], 40), (x, 41), (x, 48)):
        assert run_native("BlockChannels", [wrong], domain="qruntime", version=1, channels=channels) is None
    with pytest.raises(ValueError, match="must have the 41 channels of the weight"):
        run_definition("BlockChannels", [x], domain="qruntime", version=1, channels=41)


# ------------------------------------------------------------------------------------------ convolutions

WIDTHS = (1, 5, 6, 7, 8, 12, 16, 17, 32, 33, 97)


@pytest.mark.parametrize("kind", ["blocks", "columns", "depthwise"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("window", [(1, 1), (3, 3), (1, 5), (5, 5), (7, 7)])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_widths_windows_and_strides(kind: str, width: int, window: tuple[int, int], stride: int) -> None:
    rng = np.random.default_rng(width)
    channels, maps = {"blocks": (18, 37), "columns": (3, 70), "depthwise": (21, 21)}[kind]
    x = random(rng, 2, channels, 6, width)
    w, b = random(rng, maps, 1 if kind == "depthwise" else channels, *window), random(rng, maps)
    pads = [window[0] // 2, window[1] // 2] * 2
    check(x, w, b, kind=kind, strides=[stride, stride], pads=pads)
    check(x, w, kind=kind, strides=[1, stride], pads=[window[0], window[1] + 2, window[0] - 1, 0], activation="relu")


@pytest.mark.parametrize(
    ("channels", "maps"), [(1, 1), (2, 15), (15, 16), (16, 17), (17, 32), (33, 63), (48, 64), (63, 65), (65, 90), (100, 100)]
)
@pytest.mark.parametrize("window", [(1, 1), (3, 2)])
def test_numbers_of_channels(channels: int, maps: int, window: tuple[int, int]) -> None:
    rng = np.random.default_rng(channels)
    x, w, b = random(rng, 1, channels, 5, 9), random(rng, maps, channels, *window), random(rng, maps)
    check(x, w, b, pads=[1, 0, 0, 1], residual=random(rng, 1, maps, 6 - window[0] + 1, 10 - window[1] + 1))
    if channels < 5:
        check(x, w, b, kind="columns", pads=[1, 0, 0, 1])
    depthwise = random(rng, maps, 1, *window)
    check(random(rng, 2, maps, 5, 9), depthwise, b, kind="depthwise", pads=[0, 1, 1, 0])


def _geometry(rng: np.random.Generator, kind: str) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    """Sizes of an image, of a window, and attributes that give at least one output."""
    rank = int(rng.integers(1, 4))
    most = (0, 60, 20, 7)[rank]
    while True:
        size = tuple(int(i) for i in rng.integers(1, most + 1, rank))
        window = tuple(int(i) for i in rng.integers(1, (0, 8, 6, 4)[rank], rank))
        strides = [int(i) for i in rng.integers(1, 4, rank)]
        dilations = [int(i) for i in rng.integers(1, 4, rank)]
        if kind == "columns":
            dilations[-1] = 1
        pads = [int(i) for i in rng.choice([0, 0, 1, 2, 3, 9], 2 * rank)]
        spans = [(k - 1) * d + 1 for k, d in zip(window, dilations, strict=True)]
        if all(n + a + b >= s for n, a, b, s in zip(size, pads[:rank], pads[rank:], spans, strict=True)):
            return size, window, {"strides": strides, "dilations": dilations, "pads": pads}


@pytest.mark.parametrize("kind", ["blocks", "columns", "depthwise"])
@pytest.mark.parametrize("seed", range(60))
def test_random_geometry(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    size, window, geometry = _geometry(rng, kind)
    maps = int(rng.choice([1, 8, 15, 16, 17, 40, 64, 65, 81]))
    channels = maps if kind == "depthwise" else int(rng.integers(1, 5)) if kind == "columns" else int(rng.choice([1, 5, 16, 17, 35]))
    x = random(rng, int(rng.integers(1, 4)), channels, *size)
    w = random(rng, maps, 1 if kind == "depthwise" else channels, *window)
    b = random(rng, maps) if rng.random() < 0.7 else None
    shape = expected(x[:, :1], w[:, :1], **geometry).shape
    residual, addend = (random(rng, *shape) if rng.random() < 0.4 else None for _ in range(2))
    activation = str(rng.choice(list(SLOPES)))
    check(x, w, b, residual, addend, kind=kind, activation=activation, threads=int(rng.integers(1, 4)), **geometry)


@pytest.mark.parametrize("group_channels", [2, 4, 8])
@pytest.mark.parametrize("width", [1, 2, 7, 8, 9, 15, 16, 17, 50])
@pytest.mark.parametrize("stride", [1, 2])
def test_small_groups(group_channels: int, width: int, stride: int) -> None:
    rng = np.random.default_rng([group_channels, width])
    for groups, window, pads in ((1, 3, [1, 1, 1, 1]), (3, 3, [0, 2, 5, 2]), (24 // group_channels, 1, [0, 1, 2, 2])):
        channels = groups * group_channels
        x, w = random(rng, 2, channels, 6, width), random(rng, channels, group_channels, window, 3)
        b, addend = random(rng, channels), random(rng, *expected(x, w, strides=[1, stride], pads=pads, group=groups).shape)
        check(x, w, b, None, addend, kind="grouped", group=groups, strides=[1, stride], pads=pads, activation="relu")
        if window == 1:
            line = {"group": groups, "strides": [stride], "pads": [1, 2]}
            check(x[:, :, 0].copy(), w[:, :, 0].copy(), b, kind="grouped", threads=3, **line)


@pytest.mark.parametrize(("groups", "channels", "maps"), [(2, 16, 16), (3, 32, 16), (2, 16, 80), (5, 16, 112), (32, 32, 32), (2, 48, 64)])
@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_groups_of_whole_blocks(groups: int, channels: int, maps: int, window: int, stride: int) -> None:
    """Five and seven blocks of a part are no whole number of the largest tiles."""
    rng = np.random.default_rng([groups, channels])
    x, w, b = random(rng, 2, groups * channels, 5, 13), random(rng, groups * maps, channels, window, window), random(rng, groups * maps)
    geometry = {"group": groups, "strides": [stride] * 2, "pads": [window // 2] * 4}
    residual = random(rng, *expected(x, w, **geometry).shape)
    check(x, w, b, residual, threads=2, **geometry)
    if groups < 4:  # images of several inputs
        whole = in_blocks(x)
        at = whole.shape[1] // 2
        parts = [np.ascontiguousarray(part) for part in (whole[:, :at], whole[:, at:])]
        same_bits(blocked_conv(parts[0], w, b, more=parts[1:], **geometry), blocked_conv(whole, w, b, **geometry))


@pytest.mark.parametrize("kind", ["blocks", "columns", "depthwise"])
@pytest.mark.parametrize("activation", list(SLOPES))
def test_epilogues(kind: str, activation: str) -> None:
    rng = np.random.default_rng(7)
    channels, maps = {"blocks": (20, 70), "columns": (3, 70), "depthwise": (70, 70)}[kind]
    x, w = random(rng, 2, channels, 9, 11), random(rng, maps, 1 if kind == "depthwise" else channels, 3, 3)
    for with_bias, with_residual, with_addend in itertools.product((False, True), repeat=3):
        b = random(rng, maps) if with_bias else None
        residual, addend = (random(rng, 2, maps, 9, 11) if given else None for given in (with_residual, with_addend))
        check(x, w, b, residual, addend, kind=kind, activation=activation, pads=[1] * 4)


@pytest.mark.parametrize("kind", ["blocks", "columns", "depthwise"])
@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_auto_pad(kind: str, auto_pad: str, stride: int) -> None:
    rng = np.random.default_rng(1)
    for size in (1, 4, 13):
        x, w = random(rng, 1, 3, size, size), random(rng, 3, 1 if kind == "depthwise" else 3, 4, 4)
        total = max(0, (-(-size // stride) - 1) * stride + 4 - size)
        begin = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
        pads = [begin, begin, total - begin, total - begin]
        given = check(x, w, kind=kind, strides=[stride] * 2, pads=pads)
        same_bits(convolved(x, w, kind=kind, strides=[stride] * 2, auto_pad=auto_pad), given)


@pytest.mark.parametrize("kind", ["blocks", "columns"])
@pytest.mark.parametrize(
    ("size", "strides"), [((40, 1), (1, 2)), ((40, 1), (1, 3)), ((1, 40), (2, 1)), ((40, 1), (1, 1)), ((1, 1), (3, 2)), ((9, 9), (2, 2))]
)
def test_a_pixel_is_a_window(kind: str, size: tuple[int, int], strides: tuple[int, int]) -> None:
    """Strides of an axis of one pixel say nothing of where pixels lie."""
    rng = np.random.default_rng(2)
    x, w, b = random(rng, 2, 4, *size), random(rng, 80, 4, 1, 1), random(rng, 80)
    check(x, w, b, kind=kind, strides=list(strides))


@pytest.mark.parametrize(
    ("channels", "maps", "size", "window"), [(2048, 40, (3, 5), 1), (512, 24, (5, 4), 3), (512, 100, (2, 2), 3), (1030, 16, (30, 7), 1)]
)
def test_depths_beyond_the_weights_that_are_kept(channels: int, maps: int, size: tuple[int, int], window: int) -> None:
    rng = np.random.default_rng(3)
    x, w, b = random(rng, 2, channels, *size), random(rng, maps, channels, window, window), random(rng, maps)
    addend, residual = random(rng, 2, maps, *size), random(rng, 2, maps, *size)
    check(x, w, b, pads=[window // 2] * 4, activation="relu")
    check(x, w, b, residual, addend, pads=[window // 2] * 4, activation="clip", threads=2)


CASES = {
    "blocks": ("blocks", (40, 90, 3, 3), (15, 33), {"pads": [1, 1, 1, 1]}),
    "strided": ("blocks", (40, 90, 3, 3), (33, 31), {"pads": [1, 2, 0, 1], "strides": [2, 2]}),
    "dilated": ("blocks", (17, 65, 3, 2), (20, 19), {"pads": [2, 0, 1, 3], "dilations": [2, 3], "strides": [1, 3]}),
    "pointwise": ("blocks", (40, 90, 1, 1), (21, 23), {}),
    "deep": ("blocks", (700, 33, 1, 1), (13, 17), {}),
    "columns": ("columns", (3, 70, 7, 7), (60, 61), {"pads": [3, 3, 3, 3], "strides": [2, 2]}),
    "columns of one block": ("columns", (3, 16, 3, 3), (9, 75), {"pads": [1, 2, 1, 1]}),
    "columns apart": ("columns", (2, 40, 5, 9), (40, 61), {"pads": [6, 4, 3, 8], "strides": [3, 16], "dilations": [2, 1]}),
    "narrow depthwise": ("depthwise", (90, 90, 3, 3), (40, 17), {"pads": [1, 1, 1, 1]}),
    "depthwise of 7 x 7": ("depthwise", (40, 40, 5, 5), (7, 7), {"pads": [2, 2, 2, 2]}),
    "strided depthwise": ("depthwise", (40, 40, 3, 3), (29, 38), {"pads": [1, 0, 1, 1], "strides": [2, 2]}),
    "depthwise of 7 columns": ("depthwise", (20, 20, 3, 7), (11, 50), {"pads": [2, 6, 2, 3], "dilations": [2, 1]}),
    "small groups": ("grouped", (36, 36, 3, 3), (10, 38), {"pads": [1, 1, 1, 1], "group": 9}),
    "strided groups": ("grouped", (40, 40, 3, 3), (11, 21), {"pads": [1, 1, 1, 1], "strides": [2, 2], "group": 5}),
    "groups of blocks": ("blocks", (96, 160, 3, 3), (12, 33), {"pads": [1, 1, 1, 1], "group": 2}),
    "dilated depthwise": ("depthwise", (20, 20, 3, 3), (19, 30), {"pads": [2, 2, 2, 2], "dilations": [2, 2]}),
    "from row to row": ("blocks", (200, 130, 3, 3), (14, 14), {"pads": [1, 1, 1, 1]}),
    "seven columns": ("blocks", (90, 70, 1, 1), (13, 13), {"strides": [2, 2]}),
    "groups of a block": ("blocks", (64, 64, 3, 3), (9, 14), {"pads": [1, 1, 1, 1], "group": 4}),
    "filters": ("depthwise", (40, 40, 1, 31), (2, 75), {"pads": [0, 15, 0, 15]}),
    "strided filters": ("depthwise", (20, 20, 2, 9), (5, 41), {"pads": [1, 0, 1, 8], "strides": [1, 2]}),
    "wide depthwise": ("depthwise", (90, 90, 5, 3), (31, 71), {"pads": [2, 1, 2, 1], "strides": [1, 2]}),
}


def _case(name: str, images: int = 3) -> tuple[str, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    kind, (channels, maps, *window), size, geometry = CASES[name]
    rng = np.random.default_rng(4)
    x, w = (
        random(rng, images, channels, *size),
        random(rng, maps, 1 if kind == "depthwise" else channels // geometry.get("group", 1), *window),
    )
    return kind, x, w, random(rng, maps), geometry


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_does_not_depend_on_batch_nor_threads(name: str, activation: str) -> None:
    kind, x, w, b, geometry = _case(name)
    geometry = {**geometry, "kind": kind, "activation": activation}
    together = convolved(x, w, b, **geometry)
    residual = together[:, :, ::-1].copy()
    both = convolved(x, w, b, residual, together, **geometry)
    for threads in (2, 3):
        same_bits(convolved(x, w, b, threads=threads, **geometry), together)
        same_bits(convolved(x, w, b, residual, together, threads=threads, **geometry), both)
    for i in range(len(x)):
        one = slice(i, i + 1)
        same_bits(convolved(x[one], w, b, **geometry), together[one])
        same_bits(convolved(x[one], w, b, residual[one], together[one], **geometry), both[one])


@pytest.mark.parametrize("name", ["blocks", "strided", "dilated", "from row to row", "groups of blocks", "columns", "columns apart"])
def test_weights_that_are_not_finite_make_nan_of_padding(name: str) -> None:
    """As the definition has it, whatever is computed beside."""
    kind, x, w, b, geometry = _case(name)
    w[0, 0, 0, 0], w[-1, -1, -1, -1], w[3, 0, 0, -1] = np.inf, np.nan, -np.inf
    with np.errstate(invalid="ignore"):
        wanted = np.isnan(expected(x, w, b, **geometry))
    got = convolved(x, w, b, kind=kind, **geometry)
    np.testing.assert_array_equal(np.isnan(got), wanted)
    for threads in (2, 3):
        np.testing.assert_array_equal(convolved(x, w, b, kind=kind, threads=threads, **geometry), got)


@pytest.mark.parametrize("name", list(CASES))
def test_outputs_do_not_depend_on_the_size_of_the_image(name: str) -> None:
    """Tiles that are cut elsewhere compute the same bits."""
    kind, x, w, b, geometry = _case(name, 1)
    whole = convolved(x, w, b, kind=kind, **geometry)
    stride, begin = geometry.get("strides", [1, 1])[1], geometry.get("pads", [0] * 4)[1]
    span = (w.shape[3] - 1) * geometry.get("dilations", [1, 1])[1] + 1
    for width in (x.shape[3] - 1, x.shape[3] - 5, x.shape[3] // 2, span):
        part = convolved(np.ascontiguousarray(x[..., :width]), w, b, kind=kind, **geometry)
        # Those whose window ends before the part does.
        count = (width + begin - span) // stride + 1
        same_bits(np.ascontiguousarray(part[..., :count]), np.ascontiguousarray(whole[..., :count]))


@pytest.mark.parametrize("name", ["blocks", "pointwise", "columns"])
def test_maps_do_not_depend_on_how_many_there_are(name: str) -> None:
    kind, x, w, b, geometry = _case(name, 1)
    whole = convolved(x, w, b, kind=kind, **geometry)
    for maps in (1, 16, 17, 64, 69):
        same_bits(convolved(x, w[:maps].copy(), b[:maps].copy(), kind=kind, **geometry), np.ascontiguousarray(whole[:, :maps]))


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize("special", [np.nan, np.inf])
def test_what_is_not_finite_spreads_over_its_windows_only(name: str, special: float) -> None:
    kind, x, w, b, geometry = _case(name, 2)
    before = convolved(x, w, b, kind=kind, **geometry)
    row, column = x.shape[2] // 2, x.shape[3] // 2
    hit = x[:, :1] * 0
    hit[1, 0, row, column] = 1
    reached = expected(hit, np.ones((1, 1, *w.shape[2:]), F32), **{**geometry, "group": 1})[:, 0] > 0
    assert reached.any()
    x[1, 0, row, column] = special
    after = convolved(x, w, b, kind=kind, **geometry)
    maps = slice(0, 1) if kind == "depthwise" else slice(0, len(w) // geometry.get("group", 1))
    where = np.zeros(after.shape, bool)
    where[:, maps] = reached[:, None]
    np.testing.assert_array_equal(np.isfinite(after), ~where)
    if np.isnan(special):
        np.testing.assert_array_equal(np.isnan(after), where)
    same_bits(after[~where], before[~where])


@pytest.mark.parametrize("activation", ["relu", "clip"])
def test_nan_passes_the_bounds_of_tiles(activation: str) -> None:
    x, w = np.full((1, 16, 1, 40), np.nan, F32), np.ones((16, 16, 1, 1), F32)
    for kind, weight in (("blocks", w), ("depthwise", w[:, :1].copy())):
        assert np.isnan(convolved(x, weight, kind=kind, activation=activation, parameters=(-1.0, 1.0))).all()


def test_tiny_products_outside_do_not_show() -> None:
    """A product below the least number leaves −0, which a zero outside of the image would turn into 0."""
    x, w = np.full((1, 16, 3, 70), -1e-30, F32), np.full((16, 16, 5, 3), 1e-30, F32)
    depthwise = {"kind": "depthwise", "pads": [2, 1, 2, 1]}
    for weight, options in ((w, {"pads": [2, 1, 2, 1]}), (w[:, :1].copy(), depthwise)):
        for b in (None, np.full(16, -0.0, F32)):
            whole = convolved(x, weight, b, **options)
            for threads in (2, 3):
                same_bits(convolved(x, weight, b, threads=threads, **options), whole)
            for width in (5, 33, 64):
                part = convolved(np.ascontiguousarray(x[..., :width]), weight, b, **options)
                same_bits(np.ascontiguousarray(part[..., : width - 1]), np.ascontiguousarray(whole[..., : width - 1]))


@pytest.mark.parametrize("kind", ["blocks", "columns", "depthwise"])
def test_images_without_pixels(kind: str) -> None:
    w = np.ones((20, 1 if kind == "depthwise" else 20, 2, 2), F32)
    b = np.arange(20, dtype=F32)
    assert convolved(np.zeros((0, 20, 5, 5), F32), w, b, kind=kind).shape == (0, 20, 4, 4)
    got = convolved(np.zeros((2, 20, 0, 3), F32), w, b, kind=kind, pads=[1, 1, 1, 1])
    same_bits(got, np.broadcast_to(b[:, None, None], (2, 20, 1, 4)).copy())


def test_windows_wholly_in_padding() -> None:
    rng = np.random.default_rng(5)
    for kind in ("blocks", "columns", "depthwise"):
        x, w, b = random(rng, 1, 3, 2, 2), random(rng, 3, 1 if kind == "depthwise" else 3, 2, 2), random(rng, 3)
        got = check(x, w, b, kind=kind, pads=[7, 9, 11, 40])
        same_bits(np.ascontiguousarray(got[:, :, 0, 0]), b[None])
        same_bits(np.ascontiguousarray(got[:, :, -1, -1]), b[None])


@pytest.mark.parametrize("cuts", [(1,), (2,), (1, 2)])
@pytest.mark.parametrize("name", ["blocks", "strided", "pointwise", "deep"])
def test_images_in_parts_are_read_where_they_lie(name: str, cuts: tuple[int, ...]) -> None:
    _, x, w, b, geometry = _case(name)
    blocks = with_junk(x)
    places = [cut * blocks.shape[1] // 3 for cut in cuts]
    first, *more = (np.ascontiguousarray(part) for part in np.split(blocks, places, axis=1))
    whole = blocked_conv(blocks, w, b, activation="relu", **geometry)
    assert whole is not None
    residual = whole[:, :, ::-1].copy()
    both = blocked_conv(blocks, w, b, residual, whole, **geometry)
    for threads in (1, 2, 3):
        same_bits(blocked_conv(first, w, b, more=more, activation="relu", threads=threads, **geometry), whole)
        same_bits(blocked_conv(first, w, b, residual, whole, more=more, threads=threads, **geometry), both)


def test_convolutions_decline_parts_that_do_not_fit() -> None:
    w, part = np.zeros((33, 40, 3, 3), F32), in_blocks(np.zeros((1, 16, 5, 5), F32))
    assert blocked_conv(part, w, more=[part, part]) is not None
    for wrong in (
        [part],
        [part, part, part],
        [part, part[..., 0]],
        [part, in_blocks(np.zeros((1, 16, 5, 6), F32))],
        [part, in_blocks(np.zeros((2, 16, 5, 5), F32))],
        [part, part.astype(np.float64)],
        [part, np.ascontiguousarray(part[..., :8])],
    ):
        assert blocked_conv(part, w, more=wrong) is None
    image = np.zeros((1, 3, 5, 5), F32)
    assert blocked_conv(image, np.zeros((16, 6, 3, 3), F32), more=[image], kind="columns") is None


def test_convolutions_decline_what_does_not_fit() -> None:
    x, w = np.zeros((1, 40, 5, 5), F32), np.zeros((33, 40, 3, 3), F32)
    blocks, y = in_blocks(x), np.zeros((1, 3, 3, 3, 16), F32)
    assert blocked_conv(blocks, w, None, y, y) is not None
    for wrong in (
        in_blocks(np.zeros((1, 32, 5, 5), F32)),
        in_blocks(np.zeros((1, 49, 5, 5), F32)),
        blocks.astype(np.float64),
        x,
        blocks[..., None],
        np.ascontiguousarray(blocks[..., :8]),
        np.ascontiguousarray(blocks[:, :, :2]),
    ):
        assert blocked_conv(wrong, w) is None
    for wrong in (y[:, :, :2], y[:, :2], y[..., 0], y.astype(np.float64), np.zeros((2, 3, 3, 3, 16), F32), np.zeros((1, 3, 1, 1, 16), F32)):
        assert blocked_conv(blocks, w, None, np.ascontiguousarray(wrong)) is None
        assert blocked_conv(blocks, w, None, None, np.ascontiguousarray(wrong)) is None
    for group in (0, 2, 40):
        assert blocked_conv(blocks, w, group=group) is None
    assert blocked_conv(blocks, w, strides=[0, 1]) is None
    assert blocked_conv(blocks, w, dilations=[3, 3]) is None
    assert blocked_conv(blocks, w, pads=[-1, 0, 0, 0]) is None
    assert blocked_conv(blocks, w, pads=[2**62, 0, 2**62, 0]) is None
    assert blocked_conv(blocks, w, kind="columns") is None
    few = np.zeros((8, 3, 3, 3), F32)
    assert blocked_conv(np.zeros((1, 3, 9, 9), F32), few, kind="columns") is not None
    assert blocked_conv(np.zeros((1, 3, 9, 9), F32), few, kind="columns", dilations=[1, 2]) is None
    assert blocked_conv(np.zeros((1, 4, 9, 9), F32), few, kind="columns") is None
    one = np.zeros((40, 1, 3, 3), F32)
    assert blocked_conv(blocks, one, kind="depthwise", group=40) is not None
    for group in (1, 20, 48):
        assert blocked_conv(blocks, one, kind="depthwise", group=group) is None
    assert blocked_conv(in_blocks(np.zeros((1, 50, 5, 5), F32)), one, kind="depthwise", group=40) is None
    small = np.zeros((40, 4, 3, 3), F32)
    pads = [1, 1, 1, 1]
    assert blocked_conv(blocks, small, kind="grouped", group=10, pads=pads) is not None
    for options in (
        {"group": 40},
        {"group": 1},
        {"group": 10, "dilations": [1, 2]},
        {"group": 10, "strides": [1, 3]},
        {"group": 10, "pads": [1, 3, 1, 0]},
    ):
        assert blocked_conv(blocks, small, kind="grouped", **{"pads": pads, **options}) is None
    assert blocked_conv(blocks, small[..., :2].copy(), kind="grouped", group=10) is None
    halves = _kernels.PackedConv(np.zeros((64, 32, 1, 1), F32), None, "blocks", 2)
    image = in_blocks(np.zeros((1, 64, 5, 5), F32))
    for group, answers in ((2, True), (1, False), (4, False)):
        result = _kernels.call_node("blocked_conv", [image, None, None], [2, group, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1], [0.0, 0.0], [halves])
        assert (result is not None) == answers


def test_weights_that_are_none() -> None:
    w = np.zeros((4, 4, 3, 3), F32)
    for wrong in (w.astype(np.float64), w[0, 0], w[None, None], np.zeros((0, 4, 3, 3), F32), np.zeros((4, 4, 0, 3), F32)):
        with pytest.raises(ValueError, match="weight must be float32"):
            _kernels.PackedConv(wrong)
    with pytest.raises(ValueError, match="kind must be one of"):
        _kernels.PackedConv(w, None, "rows")
    with pytest.raises(ValueError, match="one input channel each"):
        _kernels.PackedConv(w, None, "depthwise")
    for wrong in (np.zeros((9, 3, 3, 3), F32), np.zeros((16, 16, 3, 3), F32), np.zeros((6, 4, 3, 3), F32)):
        with pytest.raises(ValueError, match="2, 4 or 8 input channels"):
            _kernels.PackedConv(wrong, None, "grouped")
    for kind, group in (("blocks", 2), ("blocks", -1), ("blocks", 0), ("depthwise", 2), ("grouped", 2)):
        with pytest.raises(ValueError, match="multiples of 16 channels" if kind == "blocks" else "must"):
            _kernels.PackedConv(np.zeros((40, 16 if kind == "blocks" else 1 if kind == "depthwise" else 4, 1, 1), F32), None, kind, group)
    with pytest.raises(ValueError, match="bias"):
        _kernels.PackedConv(w, np.zeros(5, F32))


@pytest.mark.parametrize("kind", ["blocks", "columns", "depthwise"])
def test_binder_and_definition_agree(kind: str) -> None:
    rng = np.random.default_rng(6)
    x, w, b = random(rng, 2, 4, 6, 7), random(rng, 20, 4, 3, 2), random(rng, 20)
    attributes: dict[str, Any] = {
        "pads": (1, 0, 1, 2),
        "strides": (1, 2),
        "kernel_shape": (3, 2),
        "activation": "clip",
        "parameters": (-0.5, 0.5),
    }
    if kind == "depthwise":
        x, w, attributes["group"] = random(rng, 2, 20, 6, 7), w[:, :1].copy(), 20
    inputs = [x if kind == "columns" else with_junk(x), w, b, None, in_blocks(random(rng, 2, 20, 6, 4))]
    (definition,) = run_definition("BlockedConv", inputs, domain="qruntime", version=1, kind=kind, **attributes)
    (native,) = run_native("BlockedConv", inputs, domain="qruntime", version=1, constants=(1, 2), kind=kind, **attributes)
    bound = w[0].size * EPS * expected(np.abs(x), np.abs(w), np.abs(b), pads=[1, 0, 1, 2], strides=[1, 2], group=attributes.get("group", 1))
    assert (np.abs(out_of_blocks(native, 20) - out_of_blocks(definition, 20)) <= 2 * bound + 4 * EPS * 4).all()


# --------------------------------------------------------------------------------------------- poolings


def pooled(op: str, x: np.ndarray, threads: int = 1, **attributes: Any) -> np.ndarray | None:
    result = run_native(f"Blocked{op}", [with_junk(x)], domain="qruntime", version=1, num_threads=threads, **attributes)
    return None if result is None else out_of_blocks(result[0], x.shape[1])


def check_pooling(op: str, x: np.ndarray, threads: int = 1, **attributes: Any) -> None:
    try:
        with np.errstate(all="ignore"):
            (wanted,) = run_definition(op, [x.astype(np.float64)], **attributes)
    except ValueError:
        assert pooled(op, x, **attributes) is None
        return
    got = pooled(op, x, threads, **attributes)
    assert got is not None, "the kernel declined"
    assert (got.dtype, got.shape) == (F32, wanted.shape)
    finite = np.isfinite(wanted)
    np.testing.assert_array_equal(got[~finite], wanted[~finite].astype(F32))
    largest = np.abs(x[np.isfinite(x)]).max(initial=0)
    bound = 0 if op == "MaxPool" else (int(np.prod(attributes["kernel_shape"])) + 1) * EPS * largest
    assert (np.abs(got[finite] - wanted[finite]) <= bound).all()


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("seed", range(120))
def test_random_poolings(op: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(1, 3))
    attributes: dict[str, Any] = {
        "kernel_shape": tuple(int(i) for i in rng.integers(1, 5, rank)),
        "auto_pad": str(rng.choice(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"])),
        "ceil_mode": int(rng.integers(0, 2)),
    }
    if rng.random() < 0.7:
        attributes["strides"] = tuple(int(i) for i in rng.integers(1, 4, rank))
    if rng.random() < 0.4:
        attributes["dilations"] = tuple(int(i) for i in rng.integers(1, 4, rank))
    if attributes["auto_pad"] == "NOTSET" and rng.random() < 0.7:
        attributes["pads"] = tuple(int(i) for i in rng.integers(0, 6, 2 * rank))
    if op == "AveragePool":
        attributes["count_include_pad"] = int(rng.integers(0, 2))
    x = random(rng, int(rng.integers(1, 4)), int(rng.choice([1, 3, 16, 20, 33])), *(int(i) for i in rng.integers(1, 40, rank)))
    if rng.random() < 0.5:
        x.flat[rng.integers(0, x.size, 4)] = np.asarray([np.nan, np.inf, -np.inf, -np.inf], F32)
    check_pooling(op, x, int(rng.integers(1, 4)), **attributes)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_poolings_of_padding_and_infinities(op: str) -> None:
    x = np.full((1, 18, 2, 3), -np.inf, F32)
    counts = [{"count_include_pad": i} for i in (0, 1)] if op == "AveragePool" else [{}]
    for options in counts:
        check_pooling(op, x, kernel_shape=(2, 2), pads=(1, 1, 1, 1), **options)
        check_pooling(op, np.ones((1, 18, 2, 3), F32), kernel_shape=(2, 2), pads=(5, 4, 3, 6), **options)
        check_pooling(op, np.ones((1, 18, 2), F32), kernel_shape=(3,), pads=(7, 7), strides=(2,), ceil_mode=1, **options)


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_poolings_do_not_depend_on_neighbours_or_threads(op: str) -> None:
    x = random(np.random.default_rng(8), 3, 40, 56, 57)
    attributes = {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)}
    whole = pooled(op, x, **attributes)
    assert whole is not None
    for threads in (2, 3):
        same_bits(pooled(op, x, threads, **attributes), whole)
    for i in range(3):
        same_bits(pooled(op, x[i : i + 1, :33].copy(), **attributes), whole[i : i + 1, :33].copy())
    x[1, 17, 20, 20] = np.nan
    (rows, columns) = np.nonzero(np.isnan(pooled(op, x, **attributes)[1, 17]))
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == {(10, 10)}


def test_poolings_decline_what_does_not_fit() -> None:
    x = np.zeros((1, 16, 4, 4), F32)
    for op in ("MaxPool", "AveragePool"):
        for bad in ((6, 1), (2**40, 1), (0, 1), (1,), (1, 1, 1)):
            assert pooled(op, x, kernel_shape=bad) is None
        assert pooled(op, x, kernel_shape=(1, 1), strides=(0, 1)) is None
        assert pooled(op, x, kernel_shape=(1, 1), pads=(0, 0, 0, -1)) is None
        assert run_native(f"Blocked{op}", [x], domain="qruntime", version=1, kernel_shape=(1, 1)) is None
        assert run_native(f"Blocked{op}", [in_blocks(x).astype(np.float64)], domain="qruntime", version=1, kernel_shape=(1, 1)) is None


@pytest.mark.parametrize("spatial", [(1,), (3,), (4, 5), (31, 17), (2, 3, 4)])
def test_global_average_pool(spatial: tuple[int, ...]) -> None:
    rng = np.random.default_rng(9)
    for images, channels in ((1, 1), (2, 16), (3, 33), (0, 5)):
        x = random(rng, images, channels, *spatial)
        (got,) = run_native("BlockedGlobalAveragePool", [with_junk(x)], domain="qruntime", version=1)
        axes, count = tuple(range(2, x.ndim)), int(np.prod(spatial))
        # Four sums side by side, then two additions and a division.
        bound = (count / 4 + 4) * EPS * np.abs(x).mean(axis=axes, keepdims=True, dtype=np.float64)
        mean = out_of_blocks(got, channels)
        assert mean.shape == (images, channels, *[1] * len(spatial))
        assert (np.abs(mean - x.mean(axis=axes, keepdims=True, dtype=np.float64)) <= bound).all()
        for i in range(images):
            (alone,) = run_native("BlockedGlobalAveragePool", [with_junk(x[i : i + 1])], domain="qruntime", version=1, num_threads=2)
            same_bits(out_of_blocks(alone, channels), mean[i : i + 1])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_means_of_nothing_are_those_of_the_definition() -> None:
    x = np.zeros((2, 16, 0, 3), F32)
    assert run_native("BlockedGlobalAveragePool", [in_blocks(x)], domain="qruntime", version=1) is None
    (y,) = run_definition("BlockedGlobalAveragePool", [in_blocks(x)], domain="qruntime", version=1)
    same_bits(out_of_blocks(y), run_definition("GlobalAveragePool", [x])[0])
