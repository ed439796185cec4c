"""Concatenation straight into its place in a stack (lowered graphs, domain qruntime)."""

from __future__ import annotations

import math

import numpy as np

from qruntime.ir import Node
from qruntime.ops.layout import concatenate
from qruntime.ops.registry import NativeCall, operator


def with_item(stack: np.ndarray | None, index: int, item: np.ndarray, counts: tuple[int, ...]) -> np.ndarray:
    """`stack` [*counts, *item shape] with `item` at `index`, which counts items in C order; None stands for a new one."""
    shape = (*counts, *item.shape)
    if stack is None:
        stack = np.zeros(shape, item.dtype)
    elif stack.shape != shape or stack.dtype != item.dtype:
        raise ValueError(f"item {index} of a stack {stack.dtype}{list(stack.shape)} cannot be {item.dtype}{list(item.shape)}")
    else:
        stack = stack.copy()
    stack.reshape(math.prod(counts), *item.shape)[index] = item
    return stack


@operator("ConcatInto", domain="qruntime")
def concat_into(
    stack: np.ndarray | None,
    *pieces: np.ndarray,
    axis: int,
    index: int,
    counts: tuple[int, ...],
    parts: tuple[int, ...],
) -> tuple[np.ndarray, np.ndarray]:
    """(stack with item `index` = the pieces joined along `axis`; that item).

    The stack is [*counts, *item shape], `index` counts its items in C order; None stands for a new one. Of a piece
    [B, S, N, H, D] whose entry in `parts` is not negative, that one of the N is meant, as [B, H, S, D].

    The kernel writes into the stack it is given, which nobody else may read, and the item is a view of it.
    """
    chosen = [x if part < 0 else x[:, :, part].transpose(0, 2, 1, 3) for x, part in zip(pieces, parts, strict=True)]
    item = concatenate(chosen, axis)
    return with_item(stack, index, item, counts), item


@concat_into.native
def _(node: Node) -> NativeCall:
    counts, parts = node.attr("counts"), node.attr("parts")
    return NativeCall("concat_into", ints=[node.attr("axis"), node.attr("index"), len(counts), *counts, *parts])
