"""Convolutions with int8 weights of channels in blocks: on every rung the bits of the same convolution out of blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qruntime import _kernels
from qruntime.ir import Node, StoredTensor, Value, stored_constant
from qruntime.ir.formats import INT8
from qruntime.ir.held_codes import HeldCodes
from qruntime.ops import registry
from qruntime.ops.channel_blocks import BLOCK, out_of_blocks
from qruntime.ops.epilogue import activate
from tests.kernels.native_call import _attribute, same_bits
from tests.kernels.test_channel_blocks import _geometry, with_junk
from tests.kernels.test_conv import expected, random

pytestmark = pytest.mark.usefixtures("rung")

F32 = np.float32
PARAMETERS = {"clip": (-0.25, 0.75), "leaky_relu": (0.125,)}
IN_REGISTERS = ("none", "relu", "clip")
"""Activations that a sum has no rounding of its own before."""


def stored(rng: np.random.Generator, *shape: int, one_scale: bool = False, shifted: bool = False) -> StoredTensor:
    """A weight of int8."""
    along = (1 if one_scale else shape[0], *[1] * (len(shape) - 1))
    codes = rng.integers(-128, 128, shape).astype(np.int8)
    zero_point = rng.integers(-128, 128, along) if shifted else np.zeros(along)
    return StoredTensor(INT8, HeldCodes(codes), rng.uniform(1e-3, 1e-1, along).astype(F32), zero_point.astype(np.int8))


def bound(op: str, inputs: list[Any], **attributes: Any) -> registry.NativeCall | None:
    values = [stored_constant("w", i) if isinstance(i, StoredTensor) else None if i is None else Value("v", data=i) for i in inputs]
    node = Node(op, [Value("x"), *values], [Value("y")], {k: _attribute(v) for k, v in attributes.items()}, domain="qruntime", version=1)
    spec = registry.find("qruntime", op, 1)
    assert spec is not None
    assert spec.binder is not None
    return spec.binder(node)


def called(call: registry.NativeCall | None, arrays: list[np.ndarray | None], threads: int = 1) -> np.ndarray | None:
    assert call is not None
    result = _kernels.call_node(call.kernel, arrays, call.ints, call.floats, call.packed, num_threads=threads)
    return None if result is None else result[0]


def plain(x: np.ndarray, w: StoredTensor, b: np.ndarray | None, **attributes: Any) -> np.ndarray:
    """What it must be, by the kernel of images that are not in blocks."""
    y = called(bound("DynamicQuantizedConv", [w, b], **attributes), [x])
    assert y is not None, "the plain kernel declined"
    return y


def blocked(
    x: np.ndarray,
    w: StoredTensor,
    b: np.ndarray | None = None,
    residual: np.ndarray | None = None,
    addend: np.ndarray | None = None,
    *,
    kind: str = "blocks",
    threads: int = 1,
    **attributes: Any,
) -> np.ndarray:
    images = [None if i is None else with_junk(i, 1 + at) for at, i in enumerate((residual, addend))]
    call = bound("BlockedQuantizedConv", [w, b, None, None], kind=kind, **attributes)
    y = called(call, [x if kind == "columns" else with_junk(x), *images], threads)
    assert y is not None, "the kernel declined"
    assert y.dtype == F32
    assert y.shape[1] == -(-w.shape[0] // BLOCK)
    return out_of_blocks(y, w.shape[0])


def check(
    x: np.ndarray,
    w: StoredTensor,
    b: np.ndarray | None = None,
    residual: np.ndarray | None = None,
    addend: np.ndarray | None = None,
    *,
    activation: str = "none",
    bits: int = 8,
    kind: str = "blocks",
    threads: int = 1,
    **geometry: Any,
) -> np.ndarray:
    """Result of the kernel, which has the bits of one operator after the other."""
    parameters = {"parameters": PARAMETERS[activation]} if activation in PARAMETERS else {}
    got = blocked(x, w, b, residual, addend, kind=kind, threads=threads, activation=activation, bits=bits, **parameters, **geometry)
    if addend is None:
        want = plain(x, w, b, activation=activation, bits=bits, **parameters, **geometry)
    else:
        assert activation in IN_REGISTERS
        want = np.asarray(activate(plain(x, w, b, bits=bits, **geometry) + addend, activation, PARAMETERS.get(activation, ())), F32)
    want = want if residual is None else want + residual
    # The bits of a NaN are nobody's business.
    same_bits(np.where(np.isnan(got), F32(np.nan), got), np.where(np.isnan(want), F32(np.nan), want))
    return got


WIDTHS = (1, 5, 7, 8, 16, 17, 33)


@pytest.mark.parametrize("kind", ["blocks", "columns"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("window", [(1, 1), (3, 3), (1, 5), (7, 7)])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_widths_windows_and_strides(kind: str, width: int, window: tuple[int, int], stride: int) -> None:
    rng = np.random.default_rng(width)
    channels, maps = {"blocks": (18, 37), "columns": (3, 70)}[kind]
    x, w, b = random(rng, 2, channels, 6, width), stored(rng, maps, channels, *window), random(rng, maps)
    check(x, w, b, kind=kind, strides=[stride, stride], pads=[window[0] // 2, window[1] // 2] * 2)
    pads = [window[0], window[1] + 2, window[0] - 1, 0]
    check(x, w, kind=kind, strides=[1, stride], pads=pads, activation="relu")


@pytest.mark.parametrize(
    ("channels", "maps"), [(1, 1), (2, 15), (15, 16), (16, 17), (17, 32), (33, 48), (48, 64), (63, 65), (65, 96), (100, 100), (40, 150)]
)
@pytest.mark.parametrize("window", [(1, 1), (3, 2)])
def test_numbers_of_channels(channels: int, maps: int, window: tuple[int, int]) -> None:
    """Also all numbers of columns of a last panel, and rows enough for every tile."""
    rng = np.random.default_rng(channels)
    x, w, b = random(rng, 1, channels, 7, 9), stored(rng, maps, channels, *window), random(rng, maps)
    residual = random(rng, 1, maps, 8 - window[0] + 1, 10 - window[1] + 1)
    check(x, w, b, residual, pads=[1, 0, 0, 1])
    if channels < 5:
        check(x, w, b, residual, kind="columns", pads=[1, 0, 0, 1])


@pytest.mark.parametrize("kind", ["blocks", "columns"])
@pytest.mark.parametrize("seed", range(80))
def test_random_geometry(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    size, window, geometry = _geometry(rng, kind)
    maps = int(rng.choice([1, 8, 15, 16, 17, 40, 64, 65]))
    channels = int(rng.integers(1, 5)) if kind == "columns" else int(rng.choice([1, 5, 16, 17, 35]))
    x = random(rng, int(rng.integers(1, 4)), channels, *size)
    if rng.random() < 0.3:
        x[rng.random(x.shape) < 0.5] = 0
    if rng.random() < 0.3:
        x = np.abs(x)
    w = stored(rng, maps, channels, *window, one_scale=bool(rng.random() < 0.3), shifted=bool(rng.random() < 0.3))
    b = random(rng, maps) if rng.random() < 0.7 else None
    shape = expected(x[:, :1], w.unpacked()[:, :1].astype(F32), **geometry).shape
    residual, addend = (random(rng, *shape) if rng.random() < 0.4 else None for _ in range(2))
    activation = str(rng.choice(IN_REGISTERS if addend is not None else [*IN_REGISTERS, "silu", "gelu", "hard_swish", "leaky_relu"]))
    bits, threads = int(rng.choice([8, 8, 7, 4])), int(rng.integers(1, 4))
    check(x, w, b, residual, addend, kind=kind, activation=activation, bits=bits, threads=threads, **geometry)


@pytest.mark.parametrize("activation", ["none", "relu", "clip", "tanh", "silu", "gelu", "leaky_relu", "hard_swish"])
@pytest.mark.parametrize("channels", [20, 300])
def test_epilogues(activation: str, channels: int) -> None:
    """Also of sums long enough that epilogues are computed amid products."""
    rng = np.random.default_rng(7)
    x, w = random(rng, 2, channels, 5, 11), stored(rng, 100, channels, 1, 3)
    for given in range(8):
        b, residual, addend = random(rng, 100), random(rng, 2, 100, 5, 11), random(rng, 2, 100, 5, 11)
        with_addend = given & 4 and activation in IN_REGISTERS
        check(
            x, w, b if given & 1 else None, residual if given & 2 else None, addend if with_addend else None,
            activation=activation, pads=[0, 1, 0, 1],
        )  # fmt: skip


@pytest.mark.parametrize("kind", ["blocks", "columns"])
@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_auto_pad(kind: str, auto_pad: str, stride: int) -> None:
    rng = np.random.default_rng(1)
    for size in (4, 13):
        x, w = random(rng, 1, 3, size, size), stored(rng, 3, 3, 4, 4)
        check(x, w, kind=kind, strides=[stride] * 2, auto_pad=auto_pad)


@pytest.mark.parametrize("kind", ["blocks", "columns"])
@pytest.mark.parametrize(
    ("size", "strides"), [((40, 1), (1, 2)), ((40, 1), (1, 3)), ((1, 40), (2, 1)), ((40, 1), (1, 1)), ((1, 1), (3, 2)), ((9, 9), (2, 2))]
)
def test_a_pixel_is_a_window(kind: str, size: tuple[int, int], strides: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    x, w, b = random(rng, 2, 4, *size), stored(rng, 80, 4, 1, 1), random(rng, 80)
    check(x, w, b, kind=kind, strides=list(strides))
    check(x, w, b, kind=kind, strides=list(strides), pads=[1, 0, 0, 2])


@pytest.mark.parametrize("kind", ["blocks", "columns"])
def test_images_of_padding(kind: str) -> None:
    rng = np.random.default_rng(3)
    for size in ((0, 3), (3, 0), (0, 0), (2, 2)):
        x, w, b = random(rng, 2, 4, *size), stored(rng, 20, 4, 2, 3), random(rng, 20)
        y = check(x, w, b, kind=kind, pads=[3, 4, 3, 2])
        if x.size == 0:
            assert (y == b[:, None, None]).all()


def test_no_images_and_no_windows() -> None:
    rng = np.random.default_rng(4)
    w = stored(rng, 20, 18, 1, 1)
    y = called(bound("BlockedQuantizedConv", [w, None, None, None]), [with_junk(np.zeros((0, 18, 4, 4), F32)), None, None])
    assert y is not None
    assert y.shape == (0, 2, 4, 4, BLOCK)
    assert called(bound("BlockedQuantizedConv", [w, None, None, None]), [with_junk(np.zeros((2, 18, 0, 4), F32)), None, None]) is None


@pytest.mark.parametrize(("channels", "window"), [(700, 3), (2100, 4), (4100, 3)])
def test_long_sums(channels: int, window: int) -> None:
    """Beyond what int32 holds for certain, and rows so long that few of them are quantized at a time."""
    rng = np.random.default_rng(5)
    x, w = np.abs(random(rng, 1, channels, 5, 5)), stored(rng, 17, channels, window, window)
    check(x, w, random(rng, 17))
    check(x, stored(rng, 17, channels, window, window, shifted=True))


@pytest.mark.parametrize("special", [np.nan, -np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 1e-45, -0.0])
@pytest.mark.parametrize("kind", ["blocks", "columns"])
def test_what_is_special_stays_in_its_windows(special: float, kind: str) -> None:
    rng = np.random.default_rng(6)
    channels = 3 if kind == "columns" else 37
    for sign in (1, -1):
        x, w = random(rng, 1, channels, 9, 9), stored(rng, 20, channels, 3, 3)
        x = sign * np.abs(x)
        calm = check(x, w, kind=kind, pads=[1] * 4)
        x[0, channels - 1, 4, 5] = special
        y = check(x, w, kind=kind, pads=[1] * 4, threads=2)
        reached = np.zeros((9, 9), bool)
        reached[3:6, 4:7] = True
        same_bits(y[:, :, ~reached], calm[:, :, ~reached])
        if np.isnan(special):
            assert np.isnan(y[:, :, reached]).all()


def test_rows_of_zeros() -> None:
    rng = np.random.default_rng(8)
    x, w, b = np.zeros((1, 20, 5, 5), F32), stored(rng, 20, 20, 3, 3), random(rng, 20)
    assert (check(x, w, b, pads=[1] * 4) == b[:, None, None]).all()


@pytest.mark.parametrize("kind", ["blocks", "columns"])
@pytest.mark.parametrize("window", [1, 3])
def test_an_output_does_not_depend_on_neighbours_or_threads(kind: str, window: int) -> None:
    rng = np.random.default_rng(9)
    channels = 3 if kind == "columns" else 40
    x, w, b = random(rng, 3, channels, 30, 31), stored(rng, 70, channels, window, window), random(rng, 70)
    geometry = {"pads": [window // 2] * 4, "strides": [1, 2], "activation": "silu"}
    whole = blocked(x, w, b, kind=kind, **geometry)
    for threads in (2, 3):
        same_bits(blocked(x, w, b, kind=kind, threads=threads, **geometry), whole)
    for i in range(3):
        same_bits(blocked(x[i : i + 1], w, b, kind=kind, **geometry), whole[i : i + 1])


@pytest.mark.parametrize("kind", ["blocks", "columns"])
@pytest.mark.parametrize("shape", [(5, 3, 4), (20, 4, 1), (17, 35, 3, 3), (33, 2, 7, 7), (8, 3, 2, 1, 5)])
def test_weights_come_out_as_they_went_in(kind: str, shape: tuple[int, ...]) -> None:
    w = stored(np.random.default_rng(10), *shape)
    call = bound("BlockedQuantizedConv", [w, None, None, None], kind=kind)
    assert call is not None
    same_bits(np.ascontiguousarray(call.unpack[1](call.packed)), w.unpacked())


def test_what_does_not_fit_is_declined() -> None:
    rng = np.random.default_rng(11)
    w = stored(rng, 20, 18, 3, 3)
    call = bound("BlockedQuantizedConv", [w, None, None, None])
    x = with_junk(random(rng, 1, 18, 5, 5))
    assert called(call, [x, None, None]) is not None
    for wrong in (x.astype(np.float64), x[:, :1].copy(), x[0], x[..., :15].copy(), np.zeros((1, 2, 2, 5, 16), F32)):
        assert called(call, [wrong, None, None]) is None
    for wrong in (np.zeros((1, 2, 3, 4, 16), F32), np.zeros((1, 2, 3, 3, 16)), np.zeros(16, F32)):
        assert called(call, [x, wrong, None]) is None
        assert called(call, [x, None, wrong]) is None
    for attributes in ({"strides": [0, 1]}, {"pads": [0, 0, 0, -1]}, {"dilations": [2**40, 1]}):
        assert called(bound("BlockedQuantizedConv", [w, None, None, None], **attributes), [x, None, None]) is None
    assert bound("BlockedQuantizedConv", [w, None, None, None], strides=[1]) is None
    assert bound("BlockedQuantizedConv", [w, np.zeros(3, F32), None, None]) is None
