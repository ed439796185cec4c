"""Caches of keys and values that grow from run to run (lowered graphs, domain qruntime)."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from qruntime.ir import QRUNTIME, Node, Value
from qruntime.ops.contrib.domain import MICROSOFT
from qruntime.ops.fused_concat import with_item
from qruntime.ops.layout import concatenate
from qruntime.ops.registry import NativeCall, operator


@operator("AppendCache", domain="qruntime")
def append_cache(
    stack: np.ndarray | None,
    past: np.ndarray,
    new: np.ndarray,
    *,
    axis: int,
    index: int = 0,
    part: int = -1,
    counts: tuple[int, ...] = (),
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """(stack with item `index` = that item of `past` and `new` joined along `axis`; that item), without `counts` the item alone.

    Stack and past are [*counts, *item shape], `index` counts their items in C order; a stack of None stands for a new one. Of new
    tokens [B, S, N, H, D] with `part` not negative that one of the N is meant, as [B, H, S, D].

    The kernel writes new tokens into the buffer of `past` where an earlier run has left room there and nobody has used it; else
    it writes into the stack it is given, which nobody else may read. The item is a view of the stack.
    """
    if part >= 0:
        new = new[:, :, part].transpose(0, 2, 1, 3)
    if past.shape[: len(counts)] != tuple(counts):
        raise ValueError(f"a cache {list(past.shape)} does not begin with the dimensions {list(counts)}")
    item = concatenate([past.reshape(math.prod(counts), *past.shape[len(counts) :])[index], new], axis)
    if not counts:
        return item
    return with_item(stack, index, item, counts), item


@append_cache.native
def _(node: Node) -> NativeCall:
    counts = node.attr("counts", ())
    ints = [node.attr("axis"), node.attr("index", 0), node.attr("part", -1), len(counts), *counts]
    return NativeCall("append", ints=ints)


_READ_ROOM = {"AppendCache": (0, 1), "Attention": (1, 2), "CachedAttention": (1, 2, 3, 4), "Dense": (0,)}


_APPENDING = "GroupQueryAttention"
"""Of com.microsoft; it appends to its inputs 3 and 4 along axis 2, and gives them out after y."""


class Growth(NamedTuple):
    """An input of a node that it may append to in place: where, along which axis, and what it then gives out."""

    place: int
    axis: int
    outputs: tuple[Value, ...]


def growths(node: Node) -> list[Growth]:
    """The caches that a node appends to."""
    if node.is_op("AppendCache", domain=QRUNTIME):
        return [Growth(1, node.attr("axis") + len(node.attr("counts", ())), tuple(node.outputs))]
    if node.is_op(_APPENDING, domain=MICROSOFT):
        return [Growth(i, 2, tuple(node.outputs[i - 2 : i - 1])) for i in (3, 4) if node.input(i) is not None]
    return []


def takes_room(node: Node, index: int) -> bool:
    """Whether the kernel of `node` reads an input that has room in its buffer."""
    if node.is_op(_APPENDING, domain=MICROSOFT):
        return index in (3, 4)
    return node.is_op("Shape") or (node.domain == QRUNTIME and index in _READ_ROOM.get(node.op_type, ()))


@operator("Dense", domain="qruntime")
def dense(x: np.ndarray) -> np.ndarray:
    """x, with its elements one after the other: what grows in its buffer has gaps, which few kernels know of."""
    return np.ascontiguousarray(x) if x.ndim else x


@dense.native
def _(node: Node) -> NativeCall:
    return NativeCall("dense")
