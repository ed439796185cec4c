"""Linear layers of few bits with quantized activations: every rung against numpy, bit for bit.

The integer part is exact and the float part single rounded operations in a fixed order, so numpy reproduces a layer without
activation and no tolerance is needed.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

import qruntime  # noqa: F401 (puts a rung in force)
from qruntime import _kernels
from qruntime.ops.linear import quantize_rows

pytestmark = pytest.mark.usefixtures("rung")

NONE, RELU, GELU = 0, 1, 2
PER_TOKEN, PER_TENSOR = range(2)
F32 = np.float32

FP4 = F32([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
OUTLIERS = F32([0, 1, 2, 3, 4, 5, 6, 7, -128, -7, -6, -5, -4, -96, 127, -1])
POSITIVE = F32(np.arange(16) * 2 + 1)
FORMATS: dict[str, tuple[int, np.ndarray | None]] = {
    "2": (2, None), "3": (3, None), "4": (4, None), "8": (8, None),
    "fp4": (4, FP4), "outliers": (4, OUTLIERS), "positive": (4, POSITIVE),
}  # fmt: skip


class Layer:
    """Weights as they are packed, and as whole numbers with a scale for each group."""

    def __init__(
        self,
        name: str,
        k: int,
        n: int,
        group: int | None = None,
        *,
        zeros: bool = False,
        bias: bool = True,
        codes: np.ndarray | None = None,
        activations: str = "per_token",
    ) -> None:
        rng = np.random.default_rng([k, n, group or 0])
        self.bits, table = FORMATS[name]
        self.group = group or max(k, 1)
        groups = -(-k // self.group)
        self.codes = rng.integers(0, 1 << self.bits, (n, k), dtype=np.uint8) if codes is None else codes
        self.scale = rng.uniform(1e-3, 1e-1, (n, groups)).astype(F32)
        self.zero = rng.integers(0, 1 << self.bits, (n, groups)).astype(np.uint8) if zeros else None
        self.bias = rng.standard_normal(n).astype(F32) if bias else None
        self.packed = _kernels.PackedNBits(
            self.codes, self.scale, self.zero, self.bias, bits=self.bits, table=table, group=group, activations=activations
        )
        factor = F32(0.5 if name == "fp4" else 1)
        values = np.arange(1 << self.bits) if table is None else (table / factor).astype(np.int64)
        centre = 0 if table is not None else 1 << self.bits - 1
        zero = np.full((n, groups), centre) if self.zero is None else self.zero.astype(np.int64)
        self.values = values[self.codes] - zero[:, np.arange(k) // self.group]
        self.value_scale = self.scale * factor

    def exact(self, x: np.ndarray, mode: int = PER_TOKEN) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            codes, scale, zero = quantize_rows(x if mode == PER_TOKEN else x.reshape(1, -1))
        centred = codes.reshape(x.shape).astype(np.int64) - zero
        total = np.zeros((len(x), len(self.codes)), F32)
        for g in range(self.scale.shape[1]):
            part = slice(g * self.group, (g + 1) * self.group)
            # Exact in float64: every sum is far below 2^53.
            sums = centred[:, part].astype(np.float64) @ self.values[:, part].T.astype(np.float64)
            total = total + sums.astype(F32) * self.value_scale[:, g]
        with np.errstate(invalid="ignore"):
            y = total * scale
        return y if self.bias is None else y + self.bias

    def __call__(
        self, x: np.ndarray, mode: int = PER_TOKEN, *, activation: int = NONE, residual: np.ndarray | None = None, threads: int = 1
    ) -> np.ndarray:
        arrays = [x] if residual is None else [x, residual]
        result = _kernels.call_node("linear", arrays, [activation, mode], packed=[self.packed], num_threads=threads)
        assert result is not None
        return result[0]


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(F32)


def same_bits(got: np.ndarray, want: np.ndarray) -> None:
    """−0 of a sum that begins at 0 may not be: it is compared by value."""
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_formats_groups_and_rows(name: str, zeros: bool) -> None:
    if zeros and FORMATS[name][1] is not None:
        return
    for k, group in [(1, None), (7, 16), (40, 16), (61, 32), (64, 64), (129, None), (257, 100), (256, 128), (5, 1)]:
        layer = Layer(name, k, 33, group, zeros=zeros)
        x = random(33, k)
        got = layer(x)
        same_bits(got, layer.exact(x))
        for m in (0, 1, 2, 3, 4, 5, 9):
            same_bits(layer(x[:m]), got[:m])
        for i in range(0, 33, 4):
            same_bits(layer(x[i : i + 1]), got[i : i + 1])


@pytest.mark.parametrize("name", ["3", "4", "8", "fp4"])
def test_every_width(name: str) -> None:
    for n in (*range(34), 47, 64, 65, 100):
        layer = Layer(name, 50, n, 16, zeros=name != "fp4" and n % 2 == 0, bias=n % 3 > 0)
        for m in (1, 2, 3, 4, 7):
            same_bits(layer(random(m, 50)), layer.exact(random(m, 50)))


@pytest.mark.parametrize("name", FORMATS)
def test_every_depth(name: str) -> None:
    for k in (*range(40), 63, 65, 100, 127, 128, 129):
        for group in (None, 32):
            layer = Layer(name, k, 19, group)
            same_bits(layer(random(3, k)), layer.exact(random(3, k)))


@pytest.mark.parametrize("mode", [PER_TOKEN, PER_TENSOR])
@pytest.mark.parametrize("name", ["2", "4", "8"])
def test_many_rows_and_threads(name: str, mode: int) -> None:
    for k, n, group, m in ((96, 80, 32, 128), (700, 333, 128, 9), (320, 500, 64, 1), (64, 48, 32, 300), (2048, 1100, 32, 2)):
        layer = Layer(name, k, n, group, zeros=True)
        x = random(m, k)
        want = layer.exact(x, mode)
        for threads in (1, 2, 3):
            same_bits(layer(x, mode, threads=threads), want)


@pytest.mark.parametrize("codes", [0, 1, -1])
@pytest.mark.parametrize("name", FORMATS)
def test_the_largest_sums(name: str, codes: int) -> None:
    """All codes at one end, or alternating, against activations at an end: what saturates or overflows shows."""
    bits, _ = FORMATS[name]
    for k, group in ((64, 32), (515, None), (1030, 515), (3000, 1000)):
        weight = np.full((17, k), 0 if codes == 0 else (1 << bits) - 1, np.uint8)
        weight[:, ::2] = weight[:, ::2] if codes >= 0 else 0
        for zeros in (False, True):
            layer = Layer(name, k, 17, group, codes=weight, zeros=zeros and FORMATS[name][1] is None)
            x = np.ones((9, k), F32)
            x[1::2] = -1
            x[2] = np.where(np.arange(k) % 2, 1, -1)
            x[3, ::3] = 100
            same_bits(layer(x), layer.exact(x))


@pytest.mark.parametrize("name", ["8", "outliers", "4"])
def test_long_groups_do_not_overflow(name: str) -> None:
    """255 · 255 · k is beyond int32 from 33,026 on."""
    bits, _ = FORMATS[name]
    for k, group in ((33000, None), (33100, None), (66400, None), (70000, 35000)):
        for code in (0, (1 << bits) - 1):
            layer = Layer(name, k, 3, group, codes=np.full((3, k), code, np.uint8))
            x = np.ones((5, k), F32)
            x[1::2] *= -1
            same_bits(layer(x), layer.exact(x))


SPECIAL = [
    np.zeros(37), np.full(37, 3.0), np.full(37, -3.0), np.full(37, -0.0), np.array([3e38, -3e38] + [1.0] * 35),
    np.full(37, 1e-45), np.array([1e-30] * 36 + [1e4]), np.arange(37) - 18.5,
]  # fmt: skip


@pytest.mark.parametrize("mode", [PER_TOKEN, PER_TENSOR])
@pytest.mark.parametrize("name", ["4", "8", "fp4"])
def test_special_rows(name: str, mode: int) -> None:
    layer = Layer(name, 37, 21, 16)
    for row in SPECIAL:
        x = np.tile(row.astype(F32), (3, 1))
        same_bits(layer(x, mode), layer.exact(x, mode))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["2", "4", "8"])
def test_nan_and_inf_stay_in_their_row(name: str, bad: float) -> None:
    layer = Layer(name, 41, 30, 16, zeros=True)
    x = random(13, 41)
    clean = layer(x)
    for row in (0, 5, 12):
        for at in (0, 15, 16, 40):
            dirty = x.copy()
            dirty[row, at] = bad
            got = layer(dirty)
            assert not np.isfinite(got[row]).any()
            others = np.arange(13) != row
            same_bits(got[others], clean[others])
            same_bits(layer(dirty[row : row + 1]), got[row : row + 1])


@pytest.mark.parametrize("activation", range(7))
def test_rows_and_columns_do_not_know_each_other(activation: int) -> None:
    layer = Layer("4", 200, 77, 64, zeros=True)
    narrow = Layer("4", 200, 77, 64, zeros=True)
    narrow.packed = _kernels.PackedNBits(
        layer.codes[:70], layer.scale[:70], layer.zero[:70], layer.bias[:70], bits=4, group=64, activations="per_token"
    )  # fmt: skip
    x, residual = random(33, 200), random(33, 77)
    for threads in (1, 2, 3):
        whole = layer(x, activation=activation, residual=residual, threads=threads)
        for first, last in ((0, 1), (1, 3), (0, 6), (2, 33)):
            part = layer(x[first:last], activation=activation, residual=residual[first:last], threads=threads)
            same_bits(part, whole[first:last])
        same_bits(narrow(x, activation=activation, residual=residual[:, :70], threads=threads), whole[:, :70])


def test_activation_and_residual_follow_the_sums() -> None:
    layer = Layer("4", 64, 40, 32)
    x, residual = random(6, 64), random(6, 40)
    y = layer.exact(x)
    same_bits(layer(x, activation=RELU, residual=residual), np.maximum(y, F32(0)) + residual)
    gelu = np.array([v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in y.astype(np.float64).ravel()]).reshape(y.shape)
    assert (np.abs(layer(x, activation=GELU) - gelu) <= 8 * np.finfo(F32).eps * (np.abs(gelu) + np.abs(y))).all()


def test_layers_that_read_the_same_rows() -> None:
    """Alike and unlike ones, beside int8 and float layers."""
    k = 96
    layers = [Layer("4", k, 50, 32), Layer("4", k, 20, 32), Layer("4", k, 33, 32, zeros=True), Layer("8", k, 17, 32), Layer("2", k, 16, 48)]
    int8 = _kernels.PackedQ8(np.ones((k, 9), np.int8), np.ones(1, F32))
    floats = _kernels.PackedF32(np.ones((k, 9), F32))
    packed = [*[layer.packed for layer in layers], int8, floats]
    for m in (1, 5, 70):
        x = random(m, k)
        for threads in (1, 3):
            results = _kernels.call_node("linear", [x], [0] * 7 + [0], packed=packed, num_outputs=7, num_threads=threads)
            assert results is not None
            for got, layer in zip(results, layers):
                same_bits(got, layer.exact(x))


def test_unpacked_codes_are_those_that_were_packed() -> None:
    for name in FORMATS:
        layer = Layer(name, 77, 35, 32)
        np.testing.assert_array_equal(layer.packed.unpacked(), layer.codes)
        assert layer.packed.activations == "per_token"
        assert layer.packed.kind == "nbits_q8"


def test_bytes_per_weight() -> None:
    """Codes, float32 scales, and two bytes for the sum of a group."""
    packed = Layer("4", 1024, 512, 32, bias=False).packed
    assert packed.nbytes <= 1024 * 512 * (4 + (32 + 16) / 32) / 8 * 1.02


@pytest.mark.parametrize("activations", ["float", "per_token"])
def test_zero_points_that_say_nothing_are_not_kept(activations: str) -> None:
    rng = np.random.default_rng(0)
    codes, scale = rng.integers(0, 16, (48, 100), np.uint8), np.full((48, 4), 0.1, np.float32)
    sizes = {}
    for name, zero in {"none": None, "middle": np.full((48, 4), 8), "another": np.full((48, 4), 7)}.items():
        packed = _kernels.PackedNBits(codes, scale, zero, bits=4, group=32, activations=activations)
        packed.unpacked()
        sizes[name] = packed.nbytes
    assert sizes["middle"] == sizes["none"] < sizes["another"]


def test_packed_sources() -> None:
    layer = Layer("4", 64, 20, 32)
    halves = layer.codes[:, ::2] | layer.codes[:, 1::2] << 4
    packed = _kernels.PackedNBits(halves, layer.scale, None, layer.bias, bits=4, group=32, k=64, activations="per_token")
    x = random(3, 64)
    same_bits(_kernels.call_node("linear", [x], [0, 0], packed=[packed])[0], layer(x))


def refused(message: str, *args: object, **options: object) -> None:
    with pytest.raises(ValueError, match=message):
        _kernels.PackedNBits(*args, **{"activations": "per_token", **options})  # type: ignore[arg-type]


def test_what_is_refused() -> None:
    codes, scale = np.zeros((4, 32), np.uint8), np.ones((4, 1), F32)
    refused("activations must be", codes, scale, bits=4, activations="sometimes")
    refused("zero points that are codes", codes, scale, np.full((4, 1), 0.5, F32), bits=4)
    refused("zero points that are codes", codes, scale, np.full((4, 1), 16), bits=4)
    refused("zero points that are codes", codes, scale, np.full((4, 1), -1), bits=4)
    refused("table of 16 entries", codes, scale, table=np.arange(4.0))
    refused("table of 16 entries", codes, scale, np.ones((4, 1)), table=FP4)
    refused("whole numbers", codes, scale, table=np.linspace(-1, 1, 16))
    refused("whole numbers", codes, scale, table=np.arange(16) * 10)
    refused("whole numbers", codes, scale, table=np.full(16, np.nan))
    with pytest.raises(ValueError, match="codes of 2 bits"):
        _kernels.PackedNBits(np.full((4, 32), 4, np.uint8), scale, bits=2, activations="per_token").nbytes  # noqa: B018
