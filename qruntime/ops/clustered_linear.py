"""Linear layers that read codes of activations in clusters of channels (lowered graphs, domain qruntime; kernels/gemm_clusters.h)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from qruntime import _kernels
from qruntime.ir import Node, StoredTensor
from qruntime.ir.formats import Format
from qruntime.ir.stored import numbers
from qruntime.ops.elementwise import widen
from qruntime.ops.epilogue import activate, activation_of
from qruntime.ops.low_bit_weights import fits_quantized_activations, pack_clusters, unpack_nbits
from qruntime.ops.products import matmul
from qruntime.ops.registry import NativeCall, operator

_FOUR = 4
_MOST_CHANNELS = 4 * (1 << 14)
"""Of a cluster, whose sums fit int32: QRT_CLUSTER_MOST_FOURS in kernels/gemm_clusters.h."""

_COST_OF_CLUSTER = 2
"""Fours that are multiplied in the time in which the sums of a cluster are scaled and added to the others'."""


class Clusters(NamedTuple):
    """Channels in the order of the clusters that share a scale and a zero point, numbered as they appear. Each is filled up to a
    whole number of fours, with its last channel."""

    scale: np.ndarray
    """float32, of each cluster, as are"""
    zero_point: np.ndarray
    """uint8"""
    fours: np.ndarray
    """int32: a fourth of its channels, what fills it up among them."""
    places: np.ndarray
    """int32: the channels in their new order."""
    fills: np.ndarray
    """bool: which of these only fill up."""

    @property
    def firsts(self) -> np.ndarray:
        """Where each channel stands in the new order."""
        return np.flatnonzero(~self.fills)[np.argsort(self.places[~self.fills])]

    @property
    def is_worth_it(self) -> bool:
        """Whether products of whole numbers take less time than those of floats: half of it at most."""
        fours = int(self.fours.sum()) + _COST_OF_CLUSTER * len(self.fours)
        longest = _FOUR * int(self.fours.max(initial=0))
        return 2 * fours <= int((~self.fills).sum()) and longest <= _MOST_CHANNELS


def clusters_of(scale: np.ndarray, zero_point: np.ndarray) -> Clusters:
    """Of `scale` float32 [K] and `zero_point` uint8 [K] of channels."""
    pairs = scale.view(np.uint32).astype(np.uint64) << 8 | zero_point
    _, first, label = np.unique(pairs, return_index=True, return_inverse=True)
    label = np.argsort(np.argsort(first))[label]
    order = np.argsort(label, kind="stable")
    counts = np.bincount(label)
    fours = -(-counts // _FOUR)
    cluster, ends = np.repeat(np.arange(len(counts)), _FOUR * fours), np.cumsum(counts)
    within = np.arange(len(cluster)) - (np.cumsum(_FOUR * fours) - _FOUR * fours)[cluster]
    fills = within >= counts[cluster]
    places = order[np.minimum((ends - counts)[cluster] + within, ends[cluster] - 1)]
    heads = np.sort(first)
    return Clusters(scale[heads], zero_point[heads], fours.astype(np.int32), places.astype(np.int32), fills)


def fits_clusters(stored: StoredTensor) -> bool:
    """Whether the kernels multiply a weight [K, N] by codes in clusters: integers with scales and zero points of columns, from which
    codes differ by −128 … 127."""
    if stored.block or not stored.format.is_integer or not fits_quantized_activations(stored):
        return False
    zero = None if stored.zero_point is None else numbers(stored.zero_point)
    if stored.format.bits == 8:
        return bool((np.int64(0 if zero is None else zero) == (0 if stored.format.is_signed else 128)).all())
    return zero is None or bool(((zero >= stored.format.qmin) & (zero <= stored.format.qmax)).all())


@operator("ClusteredLinear", domain="qruntime")
def clustered_linear(
    codes: np.ndarray,
    weight: StoredTensor,
    bias: np.ndarray | None,
    residual: np.ndarray | None,
    scale: np.ndarray,
    zero_point: np.ndarray,
    *,
    activation: str = "none",
    parameters: Sequence[float] = (),
) -> np.ndarray:
    """codes uint8 [..., K′], weight [K, N] of integers with one scale for all rows or one per column, bias [N], residual → float32
    [..., N].

    `scale` float32 [K] and `zero_point` uint8 [K] are of the channels; codes come in the order of `clusters_of` them. Sums within a
    cluster are exact integers; those of the clusters are scaled and added up one after the other.
    """
    clusters = clusters_of(scale, zero_point)
    if codes.ndim == 0 or codes.shape[-1] != len(clusters.places):
        raise ValueError(f"codes need {len(clusters.places)} channels in the order of their clusters, got {_kernels.shape_text(codes)}")
    assert weight.scale is not None
    values = np.where(clusters.fills[:, None], 0, weight.values()[clusters.places]).astype(np.float64)
    y = np.zeros((*codes.shape[:-1], weight.shape[1]), np.float32)
    end = 0
    for size, factor, zero in zip(_FOUR * clusters.fours, clusters.scale, clusters.zero_point, strict=True):
        part, end = slice(end, end + size), end + size
        y += matmul(codes[..., part].astype(np.float64) - zero, values[part]).astype(np.float32) * factor
    y *= numbers(weight.scale)
    if bias is not None:
        y = y + widen(bias)
    y = activate(y, activation, parameters)
    return y if residual is None else y + widen(residual)


@clustered_linear.native
def _clustered_linear(node: Node) -> NativeCall | None:
    weight, bias, (scale, zero_point) = node.input(1), node.input(2), node.inputs[4:6]
    if weight is None or weight.stored is None or scale is None or zero_point is None:
        return None
    if scale.data is None or zero_point.data is None:
        return None
    clusters = clusters_of(scale.data, zero_point.data)
    packed = pack_clusters(weight.stored, None if bias is None else bias.data, clusters)
    if packed is None:
        return None
    code, floats = activation_of(node)
    unpack = {1: functools.partial(_unpacked, weight.stored.format, clusters.firsts)}
    return NativeCall("clustered_linear", ints=[code], floats=floats, packed=[packed], inputs=[0, 3], unpack=unpack)


def _unpacked(form: Format, firsts: np.ndarray, packed: Sequence[Any]) -> np.ndarray:
    return unpack_nbits(packed[0], form)[firsts]
