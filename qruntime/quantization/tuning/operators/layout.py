"""Which number stands where: shapes, slices, indices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from qruntime.ir import Node


def operators() -> dict[str, Callable[..., Any]]:
    import torch

    functional = torch.nn.functional

    def picked(x: Any, axis: int, positions: np.ndarray) -> Any:
        return x.index_select(axis, torch.from_numpy(np.ascontiguousarray(positions, np.int64)))

    def reshape(node: Node, x: Any, shape: Any = None) -> Any:
        shape = node.attr("shape") if shape is None else shape
        kept = [x.shape[i] if size == 0 and not node.attr("allowzero", 0) else size for i, size in enumerate(shape)]
        return x.reshape(kept)

    def flatten(node: Node, x: Any) -> Any:
        axis = node.attr("axis", 1)
        return x.reshape(math.prod(x.shape[: axis + x.ndim if axis < 0 else axis]), -1)

    def squeeze(node: Node, x: Any, axes: Any = None) -> Any:
        axes = node.attr("axes") if axes is None else axes
        return x.squeeze() if axes is None else x.squeeze(tuple(axes))

    def unsqueeze(node: Node, x: Any, axes: Any = None) -> Any:
        axes = node.attr("axes") if axes is None else axes
        rank = x.ndim + len(axes)
        for axis in sorted(axis % rank for axis in axes):
            x = x.unsqueeze(axis)
        return x

    def split(node: Node, x: Any, sizes: Any = None) -> Any:
        axis, count = node.attr("axis", 0), len(node.outputs)
        sizes = node.attr("split") if sizes is None else sizes
        chunk = -(-x.shape[axis] // count)
        each = [min(chunk, max(x.shape[axis] - i * chunk, 0)) for i in range(count)] if sizes is None else list(sizes)
        return tuple(x.split(each, axis))

    def sliced(node: Node, x: Any, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None) -> Any:
        starts, ends = (node.attr(name) if given is None else given for name, given in (("starts", starts), ("ends", ends)))
        axes = node.attr("axes") if axes is None else axes
        for i, (start, end) in enumerate(zip(starts, ends)):
            axis, step = i if axes is None else axes[i] % x.ndim, 1 if steps is None else steps[i]
            size = x.shape[axis]
            chosen = range(size)[start : None if step < 0 and end < -size else end : step]  # −size − 1 is no place before the first
            if step == 1:
                x = x.narrow(axis, chosen.start, len(chosen))
            else:
                x = picked(x, axis, np.array(chosen, np.int64))
        return x

    def whole(indices: Any, size: int) -> Any:
        """Indices from 0 on."""
        return torch.where(indices < 0, indices + size, indices).long()

    def gather(node: Node, x: Any, indices: Any) -> Any:
        axis = node.attr("axis", 0) % x.ndim
        found = x.index_select(axis, whole(indices, x.shape[axis]).reshape(-1))
        return found.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])

    def along(x: Any, indices: Any, axis: int) -> tuple[Any, ...]:
        grid = list(torch.meshgrid(*(torch.arange(size) for size in indices.shape), indexing="ij"))
        grid[axis] = whole(indices, x.shape[axis])
        return tuple(grid)

    def gather_elements(node: Node, x: Any, indices: Any) -> Any:
        return x[along(x, indices, node.attr("axis", 0) % x.ndim)]

    def coordinates(x: Any, indices: Any) -> tuple[Any, ...]:
        return tuple(whole(indices[..., i], x.shape[i]) for i in range(indices.shape[-1]))

    def gather_nd(node: Node, x: Any, indices: Any) -> Any:
        if node.attr("batch_dims", 0):
            raise ValueError(f"batch_dims {node.attr('batch_dims')} has no gradient here, 0 has")
        return x[coordinates(x, indices)]

    def put(node: Node, x: Any, places: tuple[Any, ...], updates: Any) -> Any:
        reduction = node.attr("reduction", "none")
        if reduction not in ("none", "add"):
            raise ValueError(f"reduction {reduction!r} has no gradient here; none and add have")
        return x.index_put(places, updates, accumulate=reduction == "add")

    def pad(node: Node, x: Any, pads: Any = None, value: Any = None, axes: Any = None) -> Any:
        pads = node.attr("pads", node.attr("paddings")) if pads is None else pads
        axes, mode = range(x.ndim) if axes is None else [axis % x.ndim for axis in axes], node.attr("mode", "constant")
        if mode == "constant":
            each = [0, 0] * x.ndim
            for i, axis in enumerate(axes):
                each[2 * (x.ndim - 1 - axis) : 2 * (x.ndim - axis)] = pads[i], pads[i + len(axes)]
            fill = node.attr("value", 0.0) if value is None else float(value if not isinstance(value, list) else value[0])
            return functional.pad(x, each, value=fill)
        for i, axis in enumerate(axes):
            before, behind = pads[i], pads[i + len(axes)]
            positions = np.pad(np.arange(x.shape[axis]), (max(before, 0), max(behind, 0)), mode=mode)
            x = picked(x, axis, positions[max(-before, 0) : len(positions) - max(-behind, 0)])
        return x

    def depth_to_space(node: Node, x: Any) -> Any:
        (n, c, h, w), b = x.shape, node.attr("blocksize")
        if node.attr("mode", "DCR") == "DCR":
            x = x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2)
        else:
            x = x.reshape(n, c // (b * b), b, b, h, w).permute(0, 1, 4, 2, 5, 3)
        return x.reshape(n, c // (b * b), h * b, w * b)

    def space_to_depth(node: Node, x: Any) -> Any:
        (n, c, h, w), b = x.shape, node.attr("blocksize")
        order = (0, 3, 5, 1, 2, 4) if node.attr("mode", "DCR") == "DCR" else (0, 1, 3, 5, 2, 4)
        return x.reshape(n, c, h // b, b, w // b, b).permute(order).reshape(n, c * b * b, h // b, w // b)

    def trilu(node: Node, x: Any, k: Any = None) -> Any:
        return (torch.triu if node.attr("upper", 1) else torch.tril)(x, 0 if k is None else int(k))

    def top_k(node: Node, x: Any, k: Any) -> Any:
        return tuple(torch.topk(x, k[0], node.attr("axis", -1), bool(node.attr("largest", 1)), bool(node.attr("sorted", 1))))

    return {
        "Reshape": reshape,
        "Flatten": flatten,
        "Squeeze": squeeze,
        "Unsqueeze": unsqueeze,
        "Transpose": lambda node, x: x.permute(tuple(node.attr("perm", range(x.ndim)[::-1]))),
        "Concat": lambda node, *x: torch.cat(x, node.attr("axis", 1)),
        "Split": split,
        "Slice": sliced,
        "Gather": gather,
        "GatherElements": gather_elements,
        "GatherND": gather_nd,
        "ScatterElements": lambda node, x, indices, updates: put(node, x, along(x, indices, node.attr("axis", 0) % x.ndim), updates),
        "ScatterND": lambda node, x, indices, updates: put(node, x, coordinates(x, indices), updates),
        "Expand": lambda node, x, shape: x.expand(torch.broadcast_shapes(x.shape, tuple(shape))),
        "Tile": lambda node, x, repeats: x.repeat(tuple(repeats)),
        "Pad": pad,
        "DepthToSpace": depth_to_space,
        "SpaceToDepth": space_to_depth,
        "Trilu": trilu,
        "TopK": top_k,
    }
