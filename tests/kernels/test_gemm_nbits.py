"""Linear layers of few bits with float activations against float64 numpy, on every rung."""

import numpy as np
import pytest

import qruntime  # noqa: F401 (puts a rung in force)
from qruntime import _kernels

pytestmark = pytest.mark.usefixtures("rung")

EPS = float(np.finfo(np.float32).eps)
RELU, SILU = 1, 4

NF4 = np.float32([
    -1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
])  # fmt: skip
FP4 = np.float32([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def e4m3() -> np.ndarray:
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    x = np.where(exponent > 0, (8 + mantissa) * 2.0 ** (exponent - 10.0), mantissa * 2.0**-9)
    x[(codes & 127) == 127] = np.nan
    return (np.where(codes & 128, -1, 1) * x).astype(np.float32)


FP8 = e4m3()
CODEBOOK = np.random.default_rng(0).standard_normal(256).astype(np.float32)
FORMATS: dict[str, tuple[int, np.ndarray | None]] = {
    "2": (2, None), "3": (3, None), "4": (4, None), "8": (8, None), "nf4": (4, NF4), "fp4": (4, FP4), "fp8": (8, FP8),
    "2 of a table": (2, NF4[::5]), "3 of a table": (3, NF4[::2]), "8 of a table": (8, CODEBOOK),
    "subnormal": (4, np.ldexp(np.float32(1), np.arange(-133, -125)).repeat(2) * np.float32([1, -1] * 8)),
}  # fmt: skip


class Layer:
    """Random weights: as they are packed, and decoded in float64."""

    def __init__(
        self, name: str, k: int, n: int, group: int | None = None, *, zeros: bool = False, bias: bool = True, activations: str = "float"
    ) -> None:
        rng = np.random.default_rng([k, n])
        self.bits, self.table = FORMATS[name]
        self.group = group or max(k, 1)
        groups = -(-k // self.group)
        self.codes = rng.integers(0, 1 << self.bits, (n, k), dtype=np.uint8)
        if name == "fp8":
            self.codes[(self.codes & 127) == 127] = 3
        self.scale = rng.uniform(0.5, 2, (n, groups)).astype(np.float32)
        self.zero = None
        if zeros:
            self.zero = rng.integers(0, 1 << self.bits, (n, groups)) if self.table is None else rng.uniform(-1, 1, (n, groups))
        self.bias = rng.standard_normal(n).astype(np.float32) if bias else None
        values = (np.arange(1 << self.bits) - (0 if zeros else 1 << self.bits - 1)).astype(np.float64) if self.table is None else self.table
        self.value = values[self.codes].astype(np.float64)
        self.offset = np.zeros((n, groups)) if self.zero is None else np.float32(self.zero).astype(np.float64)
        self.of_group = np.arange(k) // self.group
        self.decoded = self.scale.astype(np.float64)[:, self.of_group] * (self.value - self.offset[:, self.of_group])
        self.packed = _kernels.PackedNBits(
            self.codes, self.scale, self.zero, self.bias, bits=self.bits, table=self.table, group=group, activations=activations
        )  # fmt: skip

    def exact(self, x: np.ndarray) -> np.ndarray:
        return x.astype(np.float64) @ self.decoded.T + (0 if self.bias is None else self.bias)

    def bound(self, x: np.ndarray) -> np.ndarray:
        """Of the header; the centre that a kernel takes off code and zero point makes both at most this large."""
        largest = np.abs(self.value) + np.abs(self.offset)[:, self.of_group]
        if self.table is None:
            largest = largest + (1 << self.bits - 1)
        sizes = np.abs(x).astype(np.float64) @ (self.scale[:, self.of_group] * largest).T
        k, groups = x.shape[-1], self.scale.shape[1]
        return EPS * (k + 2 * groups) * sizes + EPS * (0 if self.bias is None else np.abs(self.bias)) + 1e-38

    def __call__(self, x: np.ndarray, residual: np.ndarray | None = None, *, activation: int = 0, threads: int = 1) -> np.ndarray:
        arrays = [x] if residual is None else [x, residual]
        result = _kernels.call_node("linear", arrays, [activation, 0], packed=[self.packed], num_threads=threads)
        assert result is not None
        return result[0]


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def assert_close(layer: Layer, x: np.ndarray) -> np.ndarray:
    got = layer(x)
    assert got.dtype == np.float32
    assert (np.abs(got - layer.exact(x)) <= layer.bound(x)).all()
    return got


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_formats_groups_and_rows(name: str, zeros: bool) -> None:
    for k, group in [(1, None), (7, 16), (40, 16), (61, 32), (64, 64), (129, None), (257, 100), (256, 128)]:
        layer = Layer(name, k, 33, group, zeros=zeros)
        x = random(33, k)
        got = assert_close(layer, x)
        for m in (0, 1, 2, 3, 4, 5, 9):
            np.testing.assert_array_equal(layer(x[:m]), got[:m])
        for i in range(33):
            np.testing.assert_array_equal(layer(x[i : i + 1]), got[i : i + 1])


@pytest.mark.parametrize("name", ["3", "4", "8", "nf4"])
def test_every_width(name: str) -> None:
    for n in (*range(34), 47, 64, 65, 100):
        layer = Layer(name, 50, n, 16, zeros=n % 2 == 0, bias=n % 3 > 0)
        for m in (1, 2, 3, 4, 7):
            assert_close(layer, random(m, 50))


@pytest.mark.parametrize("name", ["4", "fp8", "2"])
@pytest.mark.parametrize(
    ("k", "group"), [(511, None), (513, None), (1537, None), (1537, 512), (1500, 700), (2048, 128), (1024, None), (5, 3), (1536, 33)]
)
def test_depths_around_the_blocks(name: str, k: int, group: int | None) -> None:
    layer = Layer(name, k, 50, group, zeros=True)
    x = random(131, k)
    got = assert_close(layer, x)
    np.testing.assert_array_equal(layer(x[:1]), got[:1])
    np.testing.assert_array_equal(layer(x[125:129]), got[125:129])


@pytest.mark.parametrize("name", ["2", "4", "8", "nf4", "fp4", "fp8", "subnormal"])
@pytest.mark.parametrize(
    ("k", "group"), [(1, None), (2, None), (33, None), (96, 16), (99, 33), (576, 256), (1200, None), (1536, 33), (1030, 64), (0, None)]
)
def test_rows_of_float8(name: str, k: int, group: int | None) -> None:
    """The sums are of the numbers of E4M3 alone, the same for few rows and for many, on one rung with multiply-adds and on another."""
    scales = np.exp2(np.random.default_rng(k).uniform(-20, 20, (131, 1))).astype(np.float32)
    (x,) = _kernels.call_node("round_to_float8", [random(131, k) * scales])
    x[7] = 0
    shift = name != "subnormal"  # which would be lost beside it
    layer = Layer(name, k, 50, group, zeros=shift, bias=shift, activations="float8")
    got = layer(x)
    rounding = 3 * EPS * (np.abs(x).astype(np.float64) @ np.abs(layer.decoded).T)
    assert (np.abs(got - layer.exact(x)) <= layer.bound(x) + rounding).all()
    for rows in (slice(0, 1), slice(125, 129), slice(3, 12), slice(40, 131)):
        np.testing.assert_array_equal(layer(x[rows]), got[rows])
    np.testing.assert_array_equal(layer(x, threads=2), got)
    before = _kernels.isa()
    for isa in ("avx2", "avx512", "avx512vnni"):
        if isa in _kernels.available_isas() and before != "portable":
            _kernels.set_isa(isa)
            again = Layer(name, k, 50, group, zeros=shift, bias=shift, activations="float8")(x)
            _kernels.set_isa(before)
            np.testing.assert_array_equal(again, got)


def test_a_row_of_float8_that_is_not_finite() -> None:
    layer = Layer("fp4", 64, 20, 16, activations="float8")
    x = random(20, 64)
    x[3, 5], x[11, 0] = np.nan, np.inf
    (rounded,) = _kernels.call_node("round_to_float8", [x])
    y = layer(rounded)
    assert np.flatnonzero(np.isnan(y).all(axis=1)).tolist() == [3, 11]
    assert np.flatnonzero(~np.isfinite(y).all(axis=1)).tolist() == [3, 11]


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("m", [1, 3, 5, 128, 300])
def test_threads(m: int, threads: int) -> None:
    layer, x = Layer("4", 1024, 300, 128, zeros=True), random(m, 1024)
    np.testing.assert_array_equal(layer(x, threads=threads), layer(x))


@pytest.mark.parametrize("m", [1, 20])
def test_epilogue(m: int) -> None:
    layer, x, residual = Layer("4", 96, 70, 32), random(m, 96), random(m, 70)
    plain = layer(x)
    np.testing.assert_array_equal(layer(x, activation=RELU), np.maximum(plain, 0))
    np.testing.assert_array_equal(layer(x, residual), plain + residual)
    np.testing.assert_array_equal(layer(x, residual[0]), plain + residual[0])
    silu = plain / (1 + np.exp(-plain.astype(np.float64)))
    np.testing.assert_allclose(layer(x, residual, activation=SILU), silu + residual, rtol=0, atol=8 * EPS * (np.abs(plain).max() + 4))


def test_rows_that_lie_pages_apart() -> None:
    layer, x = Layer("4", 1024, 300, 64), random(40, 1024)
    np.testing.assert_array_equal(layer(x)[7:8], layer(x[7:8]))
    assert_close(layer, x)


@pytest.mark.parametrize("name", FORMATS)
def test_integers_are_exact(name: str) -> None:
    """Whatever the order of the additions, sums of few small integers have no error."""
    layer = Layer(name, 96, 20, 32, bias=False)
    if layer.table is None or name == "fp4":
        layer.scale[:] = 2
        packed = _kernels.PackedNBits(layer.codes, layer.scale, bits=layer.bits, table=layer.table, group=32)
        x = np.random.default_rng(0).integers(-8, 9, (6, 96)).astype(np.float32)
        got = _kernels.call_node("linear", [x], [0, 0], packed=[packed])
        assert got is not None
        np.testing.assert_array_equal(got[0], x.astype(np.float64) @ layer.value.T * 2)


@pytest.mark.parametrize("name", FORMATS)
def test_every_code_decodes_to_its_value(name: str) -> None:
    """A row of the unit matrix picks a weight."""
    bits, table = FORMATS[name]
    codes = np.arange(1 << bits, dtype=np.uint8).reshape(1 << bits, 1).repeat(17, axis=1)
    packed = _kernels.PackedNBits(codes, np.ones((1 << bits, 1), np.float32), bits=bits, table=table)
    values = (np.arange(1 << bits) - (1 << bits - 1)).astype(np.float32) if table is None else table
    with np.errstate(invalid="ignore"):
        want = np.eye(17, dtype=np.float32).sum(axis=1, keepdims=True) * values
    for m in (1, 17):
        got = _kernels.call_node("linear", [np.eye(17, dtype=np.float32)[:m]], [0, 0], packed=[packed])
        assert got is not None
        np.testing.assert_array_equal(got[0], want[:m])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_row(bad: float) -> None:
    layer, x = Layer("4", 100, 40, 32, zeros=True), random(9, 100)
    clean = layer(x)
    x[4, 99] = bad
    got = layer(x)
    assert not np.isfinite(got[4]).any()
    np.testing.assert_array_equal(np.delete(got, 4, 0), np.delete(clean, 4, 0))


def pack_bits(codes: np.ndarray, bits: int) -> np.ndarray:
    """Rows of codes, one behind the other from the lowest bit of a byte up."""
    planes = codes[..., None] >> np.arange(bits, dtype=np.uint8) & 1
    return np.packbits(planes.reshape(len(codes), -1), axis=1, bitorder="little")


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("k", "group"), [(0, None), (1, None), (37, 16), (64, 32), (75, 25), (200, 128)])
def test_codes_come_back(bits: int, k: int, group: int | None) -> None:
    rng = np.random.default_rng(k)
    codes = rng.integers(0, 1 << bits, (21, k), dtype=np.uint8)
    scale = np.ones((21, 0 if k == 0 else -(-k // (group or k))), np.float32)
    half = 1 << bits - 1
    for source, keywords in [
        (codes, {}),
        (np.asfortranarray(codes), {}),
        (codes[::-1][::-1], {}),
        (pack_bits(codes, bits), {"k": k}),
        (pack_bits(codes ^ half, bits), {"k": k, "offset": half}),
        (codes ^ half, {"offset": half}),
    ]:
        packed = _kernels.PackedNBits(source, scale, bits=bits, group=group, **keywords)
        assert packed.shape == (k, 21)
        np.testing.assert_array_equal(packed.unpacked(), codes)
    if bits == 4:
        swapped = pack_bits(codes, 4)
        swapped = swapped << 4 | swapped >> 4
        packed = _kernels.PackedNBits(swapped, scale, bits=4, group=group, k=k, high_half_first=True)
        np.testing.assert_array_equal(packed.unpacked(), codes)


def test_memory_is_that_of_the_bits() -> None:
    k, n = 1024, 256
    codes = np.zeros((n, k), np.uint8)
    for bits in (2, 3, 4, 8):
        packed = _kernels.PackedNBits(codes, np.ones((n, k // 128), np.float32), bits=bits, group=128)
        assert packed.nbytes <= n * k * bits / 8 + n * k / 128 * 4 + 8192


@pytest.mark.parametrize("activations", ["float", "per_token"])
@pytest.mark.parametrize(("k", "group"), [(64, 16), (75, 32), (700, 600)])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_scales_that_float16_holds_are_held_so(bits: int, k: int, group: int, activations: str) -> None:
    """Twice as dense, and the same bits: of a layer with one column more, whose scale float16 cannot hold, they are float32."""
    rng = np.random.default_rng([bits, k])
    n, groups = 37, -(-k // group)
    codes, x = rng.integers(0, 1 << bits, (n + 1, k), dtype=np.uint8), random(40, k)
    scale = rng.uniform(-2, 2, (n + 1, groups)).astype(np.float16).astype(np.float32)
    scale[:5] = np.float32([[2.0**-24], [-0.0], [65504], [-(2.0**-14)], [2.0**-15 + 2.0**-24]])
    scale[n] = 1 / 3
    zero = rng.integers(0, 1 << bits, scale.shape)
    named = {"bits": bits, "group": group, "activations": activations}
    half = _kernels.PackedNBits(codes[:n], scale[:n], zero[:n], **named)
    wide = _kernels.PackedNBits(codes, scale, zero, **named)
    assert wide.nbytes - half.nbytes >= 3 * 16 * groups * 2 - 64  # both have three panels, and what is in them is aligned
    for m in (1, 2, 3, 5, 40):
        y, want = (_kernels.call_node("linear", [x[:m]], [0, 0], packed=[packed]) for packed in (half, wide))
        assert y is not None and want is not None
        np.testing.assert_array_equal(y[0].view(np.uint32), np.ascontiguousarray(want[0][:, :n]).view(np.uint32))


def test_hostile_arguments() -> None:
    codes, scale = np.zeros((4, 32), np.uint8), np.ones((4, 2), np.float32)
    pack = _kernels.PackedNBits
    for bad in [
        lambda: pack(codes.astype(np.int8), scale, bits=4, group=16),
        lambda: pack(codes[0], scale, bits=4, group=16),
        lambda: pack(codes, scale, bits=5, group=16),
        lambda: pack(codes, scale, group=16),
        lambda: pack(codes, scale, bits=4, group=0),
        lambda: pack(codes, scale, bits=4, group=-16),
        lambda: pack(codes, scale, bits=4, group=32),
        lambda: pack(codes, scale[:3], bits=4, group=16),
        lambda: pack(codes, scale, scale[:, :1], bits=4, group=16),
        lambda: pack(codes, scale, bias=np.ones(3, np.float32), bits=4, group=16),
        lambda: pack(codes, scale, table=NF4[:5], group=16),
        lambda: pack(codes, scale, bits=3, table=NF4, group=16),
        lambda: pack(codes, scale, bits=4, group=16, k=65),
        lambda: pack(codes, scale, bits=4, group=16, k=-1),
        lambda: pack(codes, scale, bits=4, group=16, offset=16),
        lambda: pack(codes, scale, bits=4, group=16, high_half_first=True),
        lambda: pack(codes + np.uint8(16), scale, bits=4, group=16).nbytes,
    ]:
        with pytest.raises(ValueError, match=r"."):
            bad()


def test_what_does_not_fit_is_declined() -> None:
    layer = Layer("4", 32, 5)
    for arrays in ([random(2, 31)], [random(2, 32).astype(np.float64)], [random(2, 32), random(2, 4)]):
        assert _kernels.call_node("linear", arrays, [0, 0], packed=[layer.packed]) is None
    assert _kernels.call_node("linear", [random(2, 32)], [-1, 0], packed=[layer.packed]) is None
