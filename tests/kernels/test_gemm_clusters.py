"""Layers that read codes of activations in clusters of channels: every rung against numpy, bit for bit.

Sums within a cluster are exact and the float part is single rounded operations in a fixed order, so numpy reproduces a layer without
activation and no tolerance is needed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from qruntime import _kernels
from qruntime.ir import HeldCodes, Node, StoredTensor, Value, constant, stored_constant
from qruntime.ir.formats import FORMATS
from qruntime.ir.stored import held
from qruntime.ops import registry
from qruntime.ops.clustered_linear import Clusters, clustered_linear, clusters_of, fits_clusters
from qruntime.ops.low_bit_weights import pack_clusters
from tests.kernels.native_call import _attribute

pytestmark = pytest.mark.usefixtures("rung")

F32 = np.float32
WEIGHTS = ["int2", "uint2", "int3", "uint3", "int4", "uint4", "uint5", "int6", "uint7", "int8"]


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(F32)


def channels(k: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Scales and zero points of k channels in so many clusters, in no order."""
    rng = np.random.default_rng([k, count])
    label = rng.integers(0, count, k)
    return rng.uniform(0.01, 1, count).astype(F32)[label], rng.integers(0, 256, count).astype(np.uint8)[label]


class Layer:
    """A weight [K, N] with scales of columns, and the ranges of its channels."""

    def __init__(self, name: str, k: int, n: int, count: int, *, bias: bool = True, codes: np.ndarray | None = None) -> None:
        form, rng = FORMATS[name], np.random.default_rng([k, n, count])
        drawn = rng.integers(form.qmin, form.qmax + 1, (k, n)) if codes is None else codes
        drawn = drawn.astype(form.code_dtype)
        zero = None if name == "int8" else rng.integers(form.qmin, form.qmax + 1, (1, n)).astype(form.code_dtype)
        self.scale_of_columns = rng.uniform(1e-3, 1e-1, n).astype(F32)
        self.stored = StoredTensor(form, HeldCodes(held(drawn, form)), self.scale_of_columns[None], zero)
        self.values = drawn.astype(np.int64) - (0 if zero is None else zero.astype(np.int64))
        self.scale, self.zero_point = channels(k, count)
        self.clusters = clusters_of(self.scale, self.zero_point)
        self.bias = rng.standard_normal(n).astype(F32) if bias else None
        assert fits_clusters(self.stored)

    def codes(self, m: int) -> np.ndarray:
        """Of activations, in the order of the channels."""
        return np.random.default_rng([m, len(self.scale)]).integers(0, 256, (m, len(self.scale))).astype(np.uint8)

    def exact(self, codes: np.ndarray) -> np.ndarray:
        """From codes and scales of channels, which knows of no order and no filling up."""
        seen = list(dict.fromkeys(zip(self.scale.tolist(), self.zero_point.tolist(), strict=True)))
        total = np.zeros((len(codes), len(self.scale_of_columns)), F32)
        for scale, zero in seen:
            own = (self.scale == F32(scale)) & (self.zero_point == zero)
            sums = (codes[:, own].astype(np.int64) - zero).astype(np.float64) @ self.values[own].astype(np.float64)
            total = total + sums.astype(F32) * F32(scale)
        y = total * self.scale_of_columns
        return y if self.bias is None else y + self.bias

    def __call__(self, codes: np.ndarray, *, residual: np.ndarray | None = None, threads: int = 1, **attributes: Any) -> np.ndarray:
        values = [Value("x"), stored_constant("w", self.stored), None if self.bias is None else constant("b", self.bias)]
        values += [None if residual is None else Value("r"), constant("s", self.scale), constant("z", self.zero_point)]
        given = {k: _attribute(v) for k, v in attributes.items()}
        node = Node("ClusteredLinear", values, [Value("y")], given, domain="qruntime", version=1)
        spec = registry.find("qruntime", "ClusteredLinear", 1)
        assert spec is not None
        assert spec.binder is not None
        call = spec.binder(node)
        arrays = [codes[..., self.clusters.places]] + ([] if residual is None else [residual])
        got = _kernels.call_node(call.kernel, arrays, call.ints, call.floats, call.packed, num_threads=threads)
        assert got is not None
        return got[0]


def same(got: np.ndarray, want: np.ndarray) -> None:
    """−0 of a sum that begins at 0 may not be: it is compared by value."""
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", WEIGHTS)
def test_formats_clusters_and_rows(name: str) -> None:
    for k, count in [(1, 1), (7, 3), (40, 1), (61, 5), (64, 64), (129, 2), (257, 30), (576, 32)]:
        layer = Layer(name, k, 33, count)
        codes = layer.codes(21)
        want = layer.exact(codes)
        got = layer(codes)
        same(got, want)
        for m in (0, 1, 2, 3, 4, 5, 9):
            same(layer(codes[:m]), want[:m])
        for i in range(0, 21, 4):
            same(layer(codes[i : i + 1]), want[i : i + 1])
        inputs = [codes[..., layer.clusters.places], layer.stored, layer.bias, None, layer.scale, layer.zero_point]
        same(clustered_linear.definition(*inputs), want)


@pytest.mark.parametrize("name", ["uint3", "uint4", "int8"])
def test_every_width(name: str) -> None:
    for n in (*range(1, 34), 47, 48, 49, 64, 65, 100):
        layer = Layer(name, 50, n, 4, bias=n % 3 > 0)
        for m in (1, 2, 3, 4, 7):
            same(layer(layer.codes(m)), layer.exact(layer.codes(m)))


@pytest.mark.parametrize("name", ["uint2", "uint3", "uint4", "int8"])
def test_every_depth(name: str) -> None:
    for k in (*range(1, 40), 63, 65, 100, 127, 128, 129):
        layer = Layer(name, k, 19, 3)
        same(layer(layer.codes(3)), layer.exact(layer.codes(3)))


@pytest.mark.parametrize("name", ["uint2", "uint4", "int8"])
def test_many_rows_and_threads(name: str) -> None:
    sizes = [(96, 80, 6, 128), (700, 333, 20, 9), (320, 500, 32, 1), (64, 48, 4, 300), (2048, 1100, 32, 2), (4100, 50, 9, 130)]
    for k, n, count, m in sizes:
        layer = Layer(name, k, n, count)
        codes = layer.codes(m)
        want = layer.exact(codes)
        for threads in (1, 2, 3):
            same(layer(codes, threads=threads), want)


@pytest.mark.parametrize("code", [0, 1, -1])
@pytest.mark.parametrize("name", WEIGHTS)
def test_the_largest_sums(name: str, code: int) -> None:
    """All codes at one end, or alternating, of weights and of activations: what saturates or overflows shows."""
    form = FORMATS[name]
    for k, count in ((64, 2), (515, 1), (3000, 3)):
        drawn = np.full((k, 17), form.qmin if code == 0 else form.qmax, np.int64)
        drawn[::2] = drawn[::2] if code >= 0 else form.qmin
        layer = Layer(name, k, 17, count, codes=drawn)
        codes = np.full((6, k), 255, np.uint8)
        codes[1], codes[2, ::2], codes[3, ::3], codes[4, 1::2] = 0, 0, 0, 128
        same(layer(codes), layer.exact(codes))


@pytest.mark.parametrize("zero", [0, 255])
def test_the_longest_cluster_does_not_overflow(zero: int) -> None:
    """65,536 · 255 · 128 is just below 2^31."""
    k = 4 * (1 << 14)
    layer = Layer("int8", k, 3, 1, codes=np.full((k, 3), -128))
    layer.zero_point = np.full(k, zero, np.uint8)
    layer.clusters = clusters_of(layer.scale, layer.zero_point)
    codes = np.full((2, k), 255 - zero, np.uint8)
    same(layer(codes), layer.exact(codes))


def test_activation_and_residual_follow_the_sums() -> None:
    layer, residual = Layer("uint4", 64, 40, 3), random(6, 40)
    codes = layer.codes(6)
    y = layer.exact(codes)
    same(layer(codes, activation="relu", residual=residual), np.maximum(y, F32(0)) + residual)
    same(layer(codes, residual=residual[2]), y + residual[2])
    same(layer(codes, activation="clip", parameters=(-0.5, 0.75), residual=residual), np.clip(y, F32(-0.5), F32(0.75)) + residual)
    gelu = np.array([v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in y.astype(np.float64).ravel()]).reshape(y.shape)
    assert (np.abs(layer(codes, activation="gelu") - gelu) <= 8 * np.finfo(F32).eps * (np.abs(gelu) + np.abs(y))).all()


@pytest.mark.parametrize("activation", ["none", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh"])
def test_rows_and_columns_do_not_know_each_other(activation: str) -> None:
    layer, residual = Layer("uint4", 200, 77, 8), random(33, 77)
    codes = layer.codes(33)
    narrow = Layer("uint4", 200, 77, 8)
    narrow.stored = layer.stored.transposed().rows(np.arange(70)).transposed()
    narrow.bias = layer.bias[:70] if layer.bias is not None else None
    for threads in (1, 2, 3):
        whole = layer(codes, activation=activation, residual=residual, threads=threads)
        for first, last in ((0, 1), (1, 3), (0, 6), (2, 33)):
            same(layer(codes[first:last], activation=activation, residual=residual[first:last], threads=threads), whole[first:last])
        same(narrow(codes, activation=activation, residual=residual[:, :70], threads=threads), whole[:, :70])


def test_leading_dimensions() -> None:
    layer = Layer("uint4", 40, 20, 2)
    codes = layer.codes(24)
    same(layer(codes.reshape(2, 3, 4, 40)), layer.exact(codes).reshape(2, 3, 4, 20))
    same(layer(codes[0]), layer.exact(codes[:1])[0])
    assert layer(codes[:0].reshape(0, 5, 40)).shape == (0, 5, 20)


def test_what_does_not_fit_is_declined() -> None:
    layer = Layer("uint4", 40, 20, 2)
    packed, codes = pack_clusters(layer.stored, None, layer.clusters), layer.codes(3)[:, layer.clusters.places]
    for arrays in ([codes[:, :-1]], [codes.astype(F32)], [codes.view(np.int8)], [codes, random(3, 19)], [codes, random(2, 20)]):
        assert _kernels.call_node("clustered_linear", arrays, [0], [0.0, 0.0], [packed]) is None
    assert _kernels.call_node("clustered_linear", [codes], [1000], [0.0, 0.0], [packed]) is None


def test_weights_that_fit() -> None:
    def weight(name: str, zero: Any, **options: Any) -> StoredTensor:
        form = FORMATS[name]
        drawn = held(np.full((8, 2), form.qmax, form.code_dtype), form)
        return StoredTensor(form, HeldCodes(drawn), np.ones((1, 2), F32), zero, **options)

    for name, zero, fits in [("uint8", 128, True), ("uint8", 127, False), ("int8", 0, True), ("int8", 1, False), ("uint7", 0, True)]:
        assert fits_clusters(weight(name, np.full((1, 2), zero, FORMATS[name].code_dtype))) == fits, (name, zero)
    assert fits_clusters(weight("int4", None))
    assert not fits_clusters(weight("uint4", np.full((1, 2), 1.5, F32)))
    assert not fits_clusters(weight("uint4", np.full((1, 2), 16, np.uint8)))
    blocks = StoredTensor(FORMATS["int4"], weight("int4", None).held, np.ones((2, 2), F32), block=4)
    assert not fits_clusters(blocks)


def test_clusters_that_make_no_sense_are_refused() -> None:
    codes, scale = np.zeros((3, 8), np.uint8), np.ones((3, 1), F32)
    good = np.ones(2, F32), np.zeros(2, np.uint8), np.ones(2, np.int32)
    assert _kernels.PackedNBits(codes, scale, bits=4, activations="clusters", clusters=good).shape == (8, 3)
    for fours in ([2, 1], [1, 0], [2, 0], [-1, 3], [1]):
        with pytest.raises(ValueError, match="clusters"):
            _kernels.PackedNBits(codes, scale, bits=4, activations="clusters", clusters=(*good[:2], np.int32(fours)))
    with pytest.raises(ValueError, match="clusters"):
        _kernels.PackedNBits(codes, scale, bits=4, activations="clusters")
    with pytest.raises(ValueError, match="clusters"):
        _kernels.PackedNBits(codes, np.ones((3, 2), F32), bits=4, group=4, activations="clusters", clusters=good)
    with pytest.raises(ValueError, match="clusters"):
        _kernels.PackedNBits(codes, scale, bits=4, table=np.arange(16), activations="clusters", clusters=good)


def test_unpacked_codes_and_bytes() -> None:
    """Nothing is held beside codes, scales and zero points."""
    layer = Layer("uint4", 1536, 576, 32)
    packed = pack_clusters(layer.stored, layer.bias, layer.clusters)
    assert packed.kind == "nbits_clusters"
    codes = packed.unpacked()
    np.testing.assert_array_equal(codes[:, layer.clusters.firsts].T, layer.stored.unpacked())
    assert packed.nbytes <= (len(layer.clusters.places) / 2 + 4 + 4 + 1) * 576 * 1.02


def test_channels_in_the_order_of_their_clusters() -> None:
    scale, zero = F32([1, 2, 1, 1, 2, 1, 1, 3]), np.uint8([5, 5, 5, 6, 5, 5, 5, 5])
    found = clusters_of(scale, zero)
    assert found.places.tolist() == [0, 2, 5, 6, 1, 4, 4, 4, 3, 3, 3, 3, 7, 7, 7, 7]
    assert found.fills.tolist() == [False] * 4 + [False] * 2 + [True] * 2 + [False, True, True, True] * 2
    assert (found.scale.tolist(), found.zero_point.tolist(), found.fours.tolist()) == ([1, 2, 1, 3], [5, 5, 6, 5], [1, 1, 1, 1])
    assert found.places[found.firsts].tolist() == list(range(8))
    assert not found.is_worth_it
    assert clusters_of(np.ones(576, F32), (np.arange(576) // 18).astype(np.uint8)).is_worth_it  # 160 + 64 of 288
    assert not clusters_of(np.ones(576, F32), (np.arange(576) // 7).astype(np.uint8)).is_worth_it
    assert not clusters_of(np.ones(70000, F32), np.zeros(70000, np.uint8)).is_worth_it  # sums would not fit int32


def test_every_channel_once() -> None:
    for k, count in ((1, 1), (9, 9), (100, 7), (576, 32)):
        scale, zero = channels(k, count)
        found: Clusters = clusters_of(scale, zero)
        assert np.sort(found.places[~found.fills]).tolist() == list(range(k))
        of_cluster = np.repeat(np.arange(len(found.fours)), 4 * found.fours)
        np.testing.assert_array_equal(scale[found.places], found.scale[of_cluster])
        np.testing.assert_array_equal(zero[found.places], found.zero_point[of_cluster])
