"""Layers that are stored in codes, as what training can change: what the codes stand for, and the grids that these lie on.

Where the floats are known that the codes were made of, weights begin as near to these as leaves them within ROOM of a step of what their
codes stand for. A solver puts many weights into other cells than their own, and those would begin at the very edge, from where noise
throws them back; in the middle of its cell none would change its code in a few steps. On SmolLM2 (W4A8, 15 steps of 1,024 tokens, the
codes of GPTQ at 3.550 nats) a room of 0.35 ended at 3.486, of 0 at 3.515, of 0.49 at 3.721.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qruntime.errors import QuantizationError
from qruntime.ir import Graph, StoredTensor, Value
from qruntime.ir.stored import numbers
from qruntime.quantization.assignments import Assignment, decide, forget_ranges
from qruntime.quantization.layers import Layer
from qruntime.quantization.request import Request
from qruntime.quantization.scheme import GROUP, TENSOR, QArgs
from qruntime.quantization.selection import layer_name
from qruntime.quantization.steps import Grid

ROOM = 0.35
"""In steps, of which 0.5 is the edge of a cell."""

Grids = Mapping[str, Sequence[Grid]]
"""Of weights by their names: for each matrix [N, K] its scale and zero point, [N or 1, groups]."""


def made_float(graph: Graph, request: Request) -> Grids:
    """Give the layers of `graph` that `request` selects float weights again, where they have codes, and their inputs floats.

    QuantizationError where the codes are of another scheme than what is asked for.
    """
    grids: dict[str, Sequence[Grid]] = {}
    found: dict[Value, StoredTensor] = {}
    for node, one in decide(graph, request).items():
        if not isinstance(one, Assignment) or one.scheme.weights is None:
            continue
        for value in one.layer.weights:
            if value is not None and value.stored is not None:
                grids[value.name] = _grids(one.layer, value, one.scheme.weights)
                found[value] = value.stored
        forget_ranges(one)
        node.mark = None
    for value, stored in found.items():
        value.data, value.stored = stored.decoded(), None
    return grids


def _grids(layer: Layer, value: Value, args: QArgs) -> list[Grid]:
    matrices = layer.stored(value)
    if not matrices or not all(_is_of(matrix, args) for matrix in matrices):
        held = matrices[0].format if matrices else "others"
        raise QuantizationError(
            f"layer {layer_name(layer.node)!r} has codes, {held}, that are not on grids of {args}: train for their scheme"
        )
    return [_grid(matrix, args) for matrix in matrices]


def _is_of(matrix: StoredTensor, args: QArgs) -> bool:
    """Whether codes lie on a grid of `args`. One group in a row is a scale for each channel."""
    if matrix.format != args.format or matrix.scale is None or matrix.offset is not None or matrix.outliers is not None:
        return False
    if args.symmetric and matrix.zero_point is not None:
        return False
    (rows, columns), size = matrix.shape, args.granularity.size
    groups = -(-columns // size) if args.granularity.kind == GROUP else 1
    has_size = groups == 1 or matrix.block == size
    return has_size and numbers(matrix.scale).shape == (1 if args.granularity.kind == TENSOR else rows, groups)


def _grid(matrix: StoredTensor, args: QArgs) -> Grid:
    assert matrix.scale is not None
    scale = np.asarray(numbers(matrix.scale), np.float32)
    if args.symmetric:
        return scale, None
    zero_point = np.zeros(()) if matrix.zero_point is None else numbers(matrix.zero_point)
    return scale, np.array(np.broadcast_to(zero_point, scale.shape), np.float32)


def leaning(weight: Any, floats: Any, grid: Grid, args: QArgs) -> Any:
    """`weight` [N, K], what codes stand for, moved towards `floats` within its cells, of which those at the ends are open. What is no
    integer stays."""
    import torch

    if not args.format.is_integer:
        return weight
    scale, low = _for_each(grid[0], weight, args), -args.format.qmax
    codes = (weight / torch.where(scale > 0, scale, torch.ones_like(scale))).round_()
    if grid[1] is not None:
        codes, low = codes.add_(_for_each(grid[1], weight, args)), args.format.qmin
    below = torch.where(codes <= low, -math.inf, weight - ROOM * scale)
    above = torch.where(codes >= args.format.qmax, math.inf, weight + ROOM * scale)
    return torch.minimum(torch.maximum(floats, below), above)


def _for_each(part: np.ndarray, weight: Any, args: QArgs) -> Any:
    """[N or 1, groups] as a tensor with one number for each weight, or one for a row of them."""
    import torch

    made = torch.from_numpy(part)
    return made if made.shape[1] == 1 else made.repeat_interleave(args.granularity.size, 1)[:, : weight.shape[1]]
