"""What a graph holds in few bits without a mark of ours: weights of layers, and of operators that other tools have for it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from qruntime.ir import Node, Value
from qruntime.ops.contrib.domain import MICROSOFT
from qruntime.ops.contrib.low_bit import BNB4_FORMATS
from qruntime.quantization.layers import layer_of
from qruntime.quantization.reasons import Stored
from qruntime.quantization.report import HeldWeight, SkippedLayer, scheme_of
from qruntime.quantization.selection import layer_kind, layer_name


class _Form(NamedTuple):
    """Which inputs of an operator are codes, and which tell what those stand for."""

    codes: tuple[int, ...]
    scales: tuple[int, ...]
    zero_points: tuple[int, ...]
    is_blocked: bool = False
    """In blocks of the attribute `block_size`, packed where the element type is uint8."""


_FORMS = {
    ("", "MatMulInteger"): _Form((1,), (), (3,)),
    ("", "QLinearMatMul"): _Form((3,), (4,), (5,)),
    ("", "ConvInteger"): _Form((1,), (), (3,)),
    ("", "QLinearConv"): _Form((3,), (4,), (5,)),
    (MICROSOFT, "MatMulNBits"): _Form((1,), (2,), (3,), is_blocked=True),
    (MICROSOFT, "MatMulBnb4"): _Form((1,), (2,), (), is_blocked=True),
    (MICROSOFT, "MatMulIntegerToFloat"): _Form((1,), (3,), (5,)),
    (MICROSOFT, "DynamicQuantizeMatMul"): _Form((1,), (2,), (3,)),
    (MICROSOFT, "DynamicQuantizeLSTM"): _Form((1, 2), (8, 10), (9, 11)),
    (MICROSOFT, "QAttention"): _Form((1,), (4,), (7,)),
    (MICROSOFT, "QGemm"): _Form((3,), (4,), (5,)),
    (MICROSOFT, "QEmbedLayerNormalization"): _Form((2, 3, 4), (8, 9, 10), (13, 14, 15)),
    (MICROSOFT, "GatherBlockQuantized"): _Form((0,), (2,), (3,), is_blocked=True),
}
"""Operators of other tools that hold codes."""

_DEFAULT_BLOCKS = {"MatMulNBits": 32, "GatherBlockQuantized": 128}


def held_by_others(nodes: Iterable[Node]) -> list[SkippedLayer]:
    """Layers that other tools quantized into operators of their own: they stay as they are."""
    found = []
    for node in nodes:
        form = _FORMS.get((node.domain, node.op_type))
        codes = None if form is None else node.input(form.codes[0])
        if form is None or codes is None or not codes.is_constant:
            continue
        bits = node.attr("bits", 4 if form.is_blocked else 8)
        what = f"{node.op_type} holds its weight in {bits} bits already; other forms are made from the float model"
        found.append(SkippedLayer(layer_name(node), node.op_type, Stored(what)))
    return found


def held_weights(nodes: Iterable[Node]) -> tuple[HeldWeight, ...]:
    """Weights in few bits of nodes without a mark, each where it is read first."""
    found, seen = [], set[Value]()
    for node in nodes:
        form = _FORMS.get((node.domain, node.op_type))
        if form is not None:
            codes = [value for i in form.codes if (value := node.input(i)) is not None and value.is_constant and value not in seen]
            seen.update(codes)
            row = _row(node, form, codes) if codes else None
        else:
            row = _layer_row(node, seen) if node.mark is None else None
        if row is not None:
            found.append(row)
    return tuple(found)


def _row(node: Node, form: _Form, codes: list[Value]) -> HeldWeight | None:
    """Of an operator that has codes as inputs."""
    scales, zero_points = ([array for i in positions for array in _arrays(node.input(i))] for positions in (form.scales, form.zero_points))
    numbers = sum(math.prod(value.shape or ()) for value in codes)
    name, grain = _element_type(codes[0]), "channel" if any(array.size > 1 for array in (*scales, *zero_points)) else "tensor"
    if form.is_blocked:
        size, bits = node.attr("block_size", _DEFAULT_BLOCKS.get(node.op_type, 0)), node.attr("bits", 4)
        grain = f"g{size}" if size else "channel"
        if name == "uint8":
            if bits not in (2, 4, 8):
                return None  # a run reports it
            numbers = numbers * 8 // bits
            table = BNB4_FORMATS.get(node.attr("quant_type", 0)) if node.op_type == "MatMulBnb4" else None
            name = f"uint{bits}" if table is None else table.name
    scheme = " ".join([name, grain, *(["affine"] if any(array.any() for array in zero_points) else [])])
    parts = [*(array for value in codes for array in value.arrays()), *scales, *zero_points]
    return HeldWeight(layer_name(node), node.op_type, scheme, numbers, sum(array.nbytes for array in parts))


def _layer_row(node: Node, seen: set[Value]) -> HeldWeight | None:
    """Of a layer whose weights are stored narrow."""
    layer = layer_of(node) if layer_kind(node) else None
    held = {} if layer is None else {v: v.stored for v in layer.weights if v is not None and v.stored is not None and v not in seen}
    if layer is None or not held or any(one.is_bare for one in held.values()):
        return None
    seen.update(held)
    matrices = [one for value, stored in held.items() for one in layer.stored(value) or [stored]]
    numbers, size = sum(one.size for one in held.values()), sum(one.nbytes for one in held.values())
    return HeldWeight(layer_name(node), node.op_type, scheme_of(matrices), numbers, size)


def _arrays(value: Value | None) -> list[np.ndarray]:
    return [] if value is None else value.arrays()


def _element_type(value: Value) -> str:
    return value.stored.format.name if value.stored is not None else value.arrays()[0].dtype.name
