"""What moves data moves labels: Reshape, Transpose, Split and kin, followed from what they make to what they read."""

from __future__ import annotations

import numpy as np

from qruntime.ir import Node
from qruntime.quantization.sites.changes import Blocked
from qruntime.quantization.sites.shapes import Shapes, slices, split_sizes
from qruntime.quantization.sites.sizes import Sizes, groups, product
from qruntime.quantization.sites.tracing import Trace


def hand_on(trace: Trace, node: Node) -> None:
    """Identity, and Dropout in inference."""
    trace.reach(node, 0, trace.of(node))


def reshape(trace: Trace, node: Node) -> None:
    """Reshape and Flatten."""
    after, before = trace.shapes.dims(node.outputs[0]), trace.shapes.dims(node.input(0))
    if after is None or before is None:
        raise Blocked(f"the shapes around {node.label} are not known")
    trace.reach(node, 0, _reshaped(trace, _whole(trace.of(node), len(after)), after, before))


def _reshaped(trace: Trace, labels: np.ndarray, after: Sizes, before: Sizes) -> np.ndarray:
    """Labels [*before] of labels [*after].

    Axes that hold channels and rows in one, as heads and batch, have labels for a made-up number of rows: what is alike
    for each of them once they are apart again has none for the rows.
    """
    shape: list[int] = []
    for new, old in groups(after, before):
        if all(labels.shape[axis] == 1 for axis in new):
            shape += [1] * len(old)
            continue
        inner, outer = ([trace.shapes.example(sizes[axis]) for axis in axes] for axes, sizes in ((new, after), (old, before)))
        full = (*labels.shape[: new.start], *inner, *labels.shape[new.stop :])
        is_whole = product([after[axis] for axis in new]) == product([before[axis] for axis in old])
        if not is_whole or any(a not in (1, b) for a, b in zip(labels.shape, full, strict=True)):
            raise Blocked("channels are mixed with sizes that a run decides")
        labels = np.broadcast_to(labels, full)
        shape += outer
    labels = labels.reshape(shape)
    for axis, size in enumerate(before):
        first = np.take(labels, [0], axis)
        if not size.is_known and (labels == first).all():
            labels = first
    return labels


def transpose(trace: Trace, node: Node) -> None:
    rank = trace.shapes.rank(node.outputs[0])
    perm = node.attr("perm", None if rank is None else tuple(range(rank))[::-1])
    if perm is None or sorted(perm) != list(range(len(perm))):
        raise Blocked(f"how {node.label} turns its axes is not known")
    trace.reach(node, 0, _whole(trace.of(node), len(perm)).transpose(np.argsort(perm)))


def squeeze(trace: Trace, node: Node) -> None:
    """Squeeze and Unsqueeze: axes of one element come and go."""
    after, before = trace.shapes.dims(node.outputs[0]), trace.shapes.dims(node.input(0))
    if after is None or before is None:
        raise Blocked(f"the shapes around {node.label} are not known")
    labels = _whole(trace.of(node), len(after))
    adds = node.is_op("Unsqueeze")
    axes = trace.shapes.axes(node, max(len(after), len(before)))
    if axes is None:
        raise Blocked(f"the axes of {node.label} are not known")
    trace.reach(node, 0, labels.squeeze(tuple(axes)) if adds else np.expand_dims(labels, tuple(axes)))


def expand(trace: Trace, node: Node) -> None:
    if trace.shapes.dims(node.input(0)) is None:
        raise Blocked(f"the shape of what {node.label} reads is not known")
    trace.reach(node, 0, trace.of(node))  # what is repeated is tied there


def concat(trace: Trace, node: Node) -> None:
    rank = trace.shapes.rank(node.outputs[0])
    if rank is None:
        raise Blocked(f"the shapes around {node.label} are not known")
    labels = _whole(trace.of(node), rank)
    axis = node.attr("axis", 1) % rank
    if labels.shape[axis] == 1:
        for index in range(len(node.inputs)):
            trace.reach(node, index, labels)
        return
    sizes = [dims[axis] if (dims := trace.shapes.dims(value)) is not None else None for value in node.inputs]
    known = [size.number for size in sizes if size is not None and size.is_known]
    if len(known) != len(sizes) or sum(known) != labels.shape[axis]:
        raise Blocked(f"how many channels of {node.label} are of which input is not known")
    parts = np.split(labels, np.cumsum(known)[:-1], axis)
    trace.keep_apart(parts)
    for index, part in enumerate(parts):
        if (part >= 0).any():
            trace.reach(node, index, part)


def split(trace: Trace, node: Node) -> None:
    dims, sizes = trace.shapes.dims(node.input(0)), split_sizes(trace.shapes, node)
    if dims is None or sizes is None:
        raise Blocked(f"how {node.label} cuts is not known")
    axis = node.attr("axis", 0) % len(dims)
    found = [trace.labels.get(output) for output in node.outputs]
    if len(sizes) != len(found):
        raise Blocked(f"{node.label} has {len(found)} outputs, need {len(sizes)}")
    wide = [_whole(labels, len(dims)) for labels in found if labels is not None]
    shape = np.broadcast_shapes(*(np.take(labels, [0], axis).shape for labels in wide))
    parts = []
    for size, labels in zip(sizes, found, strict=True):
        mine = (*shape[:axis], size, *shape[axis + 1 :])
        parts.append(np.full(mine, -1) if labels is None else np.broadcast_to(_whole(labels, len(dims)), mine))
    trace.reach(node, 0, np.concatenate(parts, axis))


def cut(trace: Trace, node: Node) -> None:
    """Slice, and Gather by constant numbers."""
    dims = trace.shapes.dims(node.input(0))
    if dims is None:
        raise Blocked(f"the shape of what {node.label} reads is not known")
    where = _where(trace.shapes, node)
    if where is None:
        raise Blocked(f"what {node.label} takes is decided at run time")
    labels = _whole(trace.of(node), len(dims) - sum(isinstance(one, int) for one in where.values()))
    for axis, one in where.items():
        if isinstance(one, int):
            labels = np.expand_dims(labels, axis)
            one = slice(one, one + 1)
        if not dims[axis].is_known:
            if labels.shape[axis] == 1:  # of rows alike
                continue
            raise Blocked(f"how many channels {node.label} chooses from is not known")
        whole = np.full((*labels.shape[:axis], dims[axis].number, *labels.shape[axis + 1 :]), -1)
        whole[(slice(None),) * axis + (one,)] = labels
        labels = whole
    trace.reach(node, 0, labels)


def taken(shapes: Shapes, node: Node, index: int, labels: np.ndarray) -> np.ndarray | None:
    """Labels of what a node takes of its input; None for one that does not cut."""
    dims = shapes.dims(node.input(0))
    if index != 0 or dims is None:
        return None
    labels = _whole(labels, len(dims))
    where = _where(shapes, node)
    if where is None:
        return None
    for axis, one in where.items():
        if labels.shape[axis] > 1:
            labels = labels[(slice(None),) * axis + (slice(one, one + 1) if isinstance(one, int) else one,)]
    return labels


def _where(shapes: Shapes, node: Node) -> dict[int, slice | int] | None:
    """What a Slice, or a Gather of one place, takes along which axes."""
    dims = shapes.dims(node.input(0))
    if dims is None:
        return None
    if node.is_op("Slice"):
        found = slices(shapes, node)
        return None if found is None else {**found}
    index = node.input(1) if node.is_op("Gather") else None
    if index is None or index.data is None or index.data.ndim != 0 or not dims:
        return None
    axis, place = node.attr("axis", 0) % len(dims), int(index.data)
    if place < 0:
        if not dims[axis].is_known:
            return None
        place += dims[axis].number
    return {axis: place}


def _whole(labels: np.ndarray, rank: int) -> np.ndarray:
    """Labels with an axis for each of `rank` dimensions."""
    if labels.ndim > rank:
        raise Blocked("a value has fewer dimensions than its channels")
    return labels.reshape((1,) * (rank - labels.ndim) + labels.shape)
