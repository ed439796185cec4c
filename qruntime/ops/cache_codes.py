"""Keys and values of a cache as codes (functions of domain qruntime, whose bodies in files are standard operators).

Of every token and head, or of every cluster of its channels, with top = 2^bits − 1:

    low = min x,   scale = (max x − low) / top,   code = clip(rint((x − low) / scale), 0, top),   x ≈ low + scale · code

in single float32 operations, so that every runtime makes the same codes. Where the scale is 0 so are the codes: a row of one
number is exact. A row that holds NaN, or whose range float32 does not hold, becomes NaN.

FitCache makes the same codes, and then of all scales and lows those for which they err least, by least squares over the n
channels that share them:

    r = rint(65536 ((x − low) / scale − code)),    a = (n Σ code r − Σ code Σ r) / (n Σ code² − (Σ code)²)
    low + scale (Σ r − a Σ code) / (65536 n),    scale + scale a / 65536

r is whole, and so are the sums, which makes them the same in any order; the rest is single float64 operations, rounded to float32
at the end. What comes back from codes is stored as it is, up to the last bits of its ranges.

`ranges` [..., 2 · clusters] holds the scales of the clusters, then their lows. Codes of 2 and 4 bits are packed: channel j of n
lies in byte j mod (n · bits / 8), earlier channels in lower bits.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from qruntime.ir import Node
from qruntime.ops.registry import NativeCall, operator

BITS = (2, 4, 8)
MOST_CLUSTERS = 16

PARTS = 65536
"""Of a step, in which errors are counted: shares of 8 bits have no finer ones in float32."""


@operator("QuantizeCache", domain="qruntime")
def quantize_cache(x: np.ndarray, *, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 [..., channels] → codes uint8 [..., channels · bits / 8], ranges float32 [..., 2]."""
    return _quantized(x, bits, 1, None)


@operator("QuantizeCacheClusters", domain="qruntime")
def quantize_cache_clusters(x: np.ndarray, labels: np.ndarray, *, bits: int, clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """Likewise with ranges [..., 2 · clusters]; `labels`, uint8, broadcasts to x and says to which cluster a channel belongs."""
    return _quantized(x, bits, clusters, labels)


@operator("FitCache", domain="qruntime")
def fit_cache(x: np.ndarray, *, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """The codes of QuantizeCache, with the ranges of least squared error."""
    return _fitted(x, bits, 1, None)


@operator("FitCacheClusters", domain="qruntime")
def fit_cache_clusters(x: np.ndarray, labels: np.ndarray, *, bits: int, clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """The codes of QuantizeCacheClusters, with the ranges of least squared error."""
    return _fitted(x, bits, clusters, labels)


@operator("DequantizeCache", domain="qruntime")
def dequantize_cache(codes: np.ndarray, ranges: np.ndarray, *, bits: int) -> np.ndarray:
    """What QuantizeCache stored, float32 [..., channels]."""
    return _dequantized(codes, ranges, bits, 1, None)


@operator("DequantizeCacheClusters", domain="qruntime")
def dequantize_cache_clusters(codes: np.ndarray, ranges: np.ndarray, labels: np.ndarray, *, bits: int, clusters: int) -> np.ndarray:
    """What QuantizeCacheClusters stored, float32 [..., channels]."""
    return _dequantized(codes, ranges, bits, clusters, labels)


@quantize_cache.native
@quantize_cache_clusters.native
def _(node: Node) -> NativeCall:
    return NativeCall("quantize_cache", ints=[node.attr("bits"), node.attr("clusters", 1)], widens=False)


@fit_cache.native
@fit_cache_clusters.native
def _(node: Node) -> NativeCall:
    return NativeCall("fit_cache", ints=[node.attr("bits"), node.attr("clusters", 1)], widens=False)


@dequantize_cache.native
@dequantize_cache_clusters.native
def _(node: Node) -> NativeCall:
    return NativeCall("dequantize_cache", ints=[node.attr("bits"), node.attr("clusters", 1)], widens=False)


class _Codes(NamedTuple):
    """`shares` are what `codes` round, and `owner` the cluster of every channel; None: there is one."""

    codes: np.ndarray
    shares: np.ndarray
    scale: np.ndarray
    low: np.ndarray
    owner: np.ndarray | None


def _quantized(x: np.ndarray, bits: int, clusters: int, labels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    made = _rounded(x, bits, clusters, labels)
    return _packed(made.codes, bits), np.concatenate([made.scale, made.low], axis=-1)


def _fitted(x: np.ndarray, bits: int, clusters: int, labels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    made = _rounded(x, bits, clusters, labels)
    with np.errstate(all="ignore"):
        codes = made.codes.astype(np.int64)
        errors = np.rint((made.shares - made.codes) * np.float32(PARTS)).astype(np.int64)
        count, of_code, of_error, of_square, of_both = (
            _by_cluster(part, made.owner, clusters).astype(np.float64)
            for part in (np.ones_like(codes), codes, errors, codes * codes, codes * errors)
        )
        spread = count * of_square - of_code * of_code
        slope = (count * of_both - of_code * of_error) / spread
        wide = made.scale.astype(np.float64)
        fitted = [wide + wide * (slope / PARTS), made.low + wide * ((of_error - slope * of_code) / (PARTS * count))]
        scale, low = (np.where(spread > 0, new, old).astype(np.float32) for new, old in zip(fitted, (made.scale, made.low), strict=True))
    return _packed(made.codes, bits), np.concatenate([scale, low], axis=-1)


def _by_cluster(numbers: np.ndarray, index: np.ndarray | None, clusters: int) -> np.ndarray:
    """Sums over the channels of each cluster, [..., clusters]."""
    if index is None:
        return numbers.sum(axis=-1, keepdims=True)
    inside = index[..., None, :] == np.arange(clusters)[:, None]
    return np.where(inside, numbers[..., None, :], 0).sum(axis=-1)


def _rounded(x: np.ndarray, bits: int, clusters: int, labels: np.ndarray | None) -> _Codes:
    _check(bits, clusters)
    if x.dtype != np.float32 or x.ndim < 1 or x.shape[-1] < 1 or x.shape[-1] * bits % 8:
        raise ValueError(f"x must be float32 [..., channels] with whole bytes of {bits}-bit codes, got {x.dtype} {list(x.shape)}")
    top, zero = np.float32((1 << bits) - 1), np.float32(0)
    low, high = x.min(axis=-1, keepdims=True), x.max(axis=-1, keepdims=True)
    index = None if labels is None else _indices(labels, clusters, x.shape)
    if index is not None:
        inside, each = index[..., None, :] == np.arange(clusters)[:, None], x[..., None, :]
        low, high = np.where(inside, each, high[..., None]).min(axis=-1), np.where(inside, each, low[..., None]).max(axis=-1)
    with np.errstate(all="ignore"):
        low = low + zero  # one kind of zero
        high = np.maximum(high, low) + zero
        scale = (high - low) / top
        own_scale, own_low = (scale, low) if index is None else (np.take_along_axis(part, index, -1) for part in (scale, low))
        shares = np.where((own_scale > 0) & (own_scale < np.inf), (x - own_low) / own_scale, zero)
        codes = np.clip(np.rint(shares), zero, top).astype(np.uint8)
    return _Codes(codes, shares, scale, low, index)


def _dequantized(codes: np.ndarray, ranges: np.ndarray, bits: int, clusters: int, labels: np.ndarray | None) -> np.ndarray:
    _check(bits, clusters)
    if codes.dtype != np.uint8 or codes.ndim < 1 or codes.shape[-1] < 1:
        raise ValueError(f"codes must be uint8 [..., bytes], got {codes.dtype} {list(codes.shape)}")
    wanted = (*codes.shape[:-1], 2 * clusters)
    if ranges.dtype != np.float32 or ranges.shape != wanted:
        raise ValueError(f"ranges must be float32 {list(wanted)}, got {ranges.dtype} {list(ranges.shape)}")
    unpacked = _unpacked(codes, bits)
    scale, low = ranges[..., :clusters], ranges[..., clusters:]
    if labels is not None:
        index = _indices(labels, clusters, unpacked.shape)
        scale, low = np.take_along_axis(scale, index, -1), np.take_along_axis(low, index, -1)
    with np.errstate(all="ignore"):
        return unpacked.astype(np.float32) * scale + low


def _check(bits: object, clusters: object) -> None:
    if not isinstance(bits, int) or bits not in BITS:
        raise ValueError(f"bits must be one of {', '.join(map(str, BITS))}, got {bits!r}")
    if not isinstance(clusters, int) or not 1 <= clusters <= MOST_CLUSTERS:
        raise ValueError(f"clusters must be 1 to {MOST_CLUSTERS}, got {clusters!r}")


def _indices(labels: np.ndarray, clusters: int, shape: tuple[int, ...]) -> np.ndarray:
    """The cluster of every element of a tensor of `shape`."""
    fits = 1 <= labels.ndim <= len(shape) and labels.shape[-1] == shape[-1]
    if labels.dtype != np.uint8 or not fits or not all(n in (1, m) for n, m in zip(labels.shape[::-1], shape[::-1], strict=False)):
        raise ValueError(f"labels must be uint8 and broadcast to {list(shape)}, got {labels.dtype} {list(labels.shape)}")
    if labels.size and labels.max() >= clusters:
        raise ValueError(f"labels must be below {clusters}, the number of clusters, got {labels.max()}")
    return np.broadcast_to(labels, shape).astype(np.intp)


def _packed(codes: np.ndarray, bits: int) -> np.ndarray:
    packed = np.zeros((*codes.shape[:-1], codes.shape[-1] * bits // 8), np.uint8)
    for place, part in enumerate(np.split(codes, 8 // bits, axis=-1)):
        packed |= part << np.uint8(place * bits)
    return packed


def _unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    mask = np.uint8((1 << bits) - 1)
    return np.concatenate([packed >> np.uint8(start) & mask for start in range(0, 8, bits)], axis=-1)
