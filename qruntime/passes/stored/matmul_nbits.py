"""MatMulNBits and MatMulBnb4: products with weights that other tools stored in 2, 4 or 8 bits, in blocks along a row.

Files keep the nodes as they are. For a run they become Linear over the same codes, which stay where the file has them.
"""

from __future__ import annotations

import math

import numpy as np

from qruntime.ir import HeldCodes, Node, StoredTensor, Value, constant, stored_constant
from qruntime.ir.formats import FORMATS
from qruntime.ir.narrow import NarrowArray
from qruntime.ir.stored import held
from qruntime.ops.contrib.low_bit import BNB4_FORMATS, bnb4_weight, check_bnb4
from qruntime.ops.contrib.matmul_nbits import Blocks, blocks_of, dequantized, unpacked
from qruntime.ops.elementwise import is_packable, widen
from qruntime.ops.low_bit_weights import fits_quantized_activations
from qruntime.passes.pieces import Pieces
from qruntime.passes.rewriting import Skip

_EIGHT_BITS = 4
"""The accuracy_level that asks for activations in 8 bits."""

_LEAST_GROUP = 16
"""Below, a weight takes as much for its scales as for its codes, and no kernel is made for it."""


def matmul_nbits(op: Pieces, node: Node) -> Skip | Value:
    arrays = _constants(node, 1, 2, 3, 4, 5)
    if isinstance(arrays, Skip):
        return arrays
    if node.attr("weight_prepacked", 0):
        return Skip("the weight is packed for a machine")
    k, n, bits, block = node.attr("K", 0), node.attr("N", 0), node.attr("bits", 4), node.attr("block_size", 32)
    b, scales, zero_points, g_idx, bias = arrays
    if b is None or scales is None:
        return Skip("an input is missing")
    if bias is not None and (bias.shape != (n,) or bias.dtype != scales.dtype):
        return Skip(f"the bias is {bias.dtype} of shape {list(bias.shape)}, need {scales.dtype} [{n}]")
    try:
        parts = blocks_of(b, scales, zero_points, g_idx, K=k, N=n, bits=bits, block_size=block)
    except ValueError as error:
        return Skip(error)
    x, order = node.input(0), None
    if parts.group is not None:
        order = np.argsort(parts.group, kind="stable")
        if (parts.group[order] != np.arange(k) // block).any():
            return _linear(op, node, x, constant(_name(node), dequantized(parts, k, bits, block)), bias)
        if (order == np.arange(k)).all():
            order = None
    if order is not None:
        # Split refuses an input of another length, of which Gather would take what it finds.
        x = op.Gather(op.Split(x, constant("length", np.array([k])), axis=-1), constant("order", order), axis=-1)
    return _linear(op, node, x, stored_constant(_name(node), _rows(parts, k, bits, block, order).transposed()), bias)


def _rows(parts: Blocks, k: int, bits: int, block: int, order: np.ndarray | None) -> StoredTensor:
    """The weight [N, K], the inputs in that order; of codes a copy only where they lie otherwise or something between them."""
    form, zero = FORMATS[f"uint{bits}"], parts.zero_point
    codes: np.ndarray | NarrowArray
    if order is not None:
        codes = held(unpacked(parts.rows, bits)[:, order], form)
    elif bits == 8:
        codes = parts.rows[:, :k]
    elif k * bits % 8 == 0:
        codes = NarrowArray(parts.rows[:, : k * bits // 8].reshape(-1), bits, False, (len(parts.rows), k))
    else:
        codes = held(unpacked(parts.rows, bits)[:, :k], form)
    zero = zero if zero.dtype == np.uint8 else widen(zero)
    return StoredTensor(form, HeldCodes(codes), widen(parts.scale), zero, block=block, block_axis=1)


def matmul_bnb4(op: Pieces, node: Node) -> Skip | Value:
    arrays = _constants(node, 1, 2)
    if isinstance(arrays, Skip):
        return arrays
    b, absmax = arrays
    if b is None or absmax is None:
        return Skip("an input is missing")
    sizes = {name: node.attr(name, 0) for name in ("K", "N", "block_size")}
    kind = node.attr("quant_type", 0)
    try:
        check_bnb4(b, absmax, quant_type=kind, **sizes)
    except ValueError as error:
        return Skip(error)
    k, n, block = sizes["K"], sizes["N"], sizes["block_size"]
    # Blocks run over the rows as if they were one; whatever divides both lengths lies within one block and one row.
    group = math.gcd(k, block)
    if not node.attr("transB", 1) or group < _LEAST_GROUP:
        weight = bnb4_weight(b, absmax, quant_type=kind, **sizes)
        return _linear(op, node, node.input(0), constant(_name(node), weight.T if node.attr("transB", 1) else weight), None)
    form = BNB4_FORMATS[kind]
    scale = widen(absmax.reshape(-1))[np.arange(0, n * k, group) // block].reshape(n, k // group)
    codes = NarrowArray(b.reshape(-1), 4, False, (n, k), high_first=True)
    rows = StoredTensor(form, HeldCodes(codes), scale, block=group if group < k else 0, block_axis=1)
    return _linear(op, node, node.input(0), stored_constant(_name(node), rows.transposed()), None)


def _name(node: Node) -> str:
    codes = node.input(1)
    assert codes is not None
    return codes.name


def _constants(node: Node, *positions: int) -> list[np.ndarray | None] | Skip:
    """The arrays of those inputs, None for one that is missing."""
    found = [node.input(i) for i in positions]
    if any(value is not None and value.data is None for value in found):
        return Skip("the weight is computed at run time")
    arrays = [None if value is None else value.data for value in found]
    floats = [a for a in arrays if a is not None and a.dtype.kind not in "iu"]
    return arrays if all(is_packable(a.dtype) for a in floats) else Skip("the scales are wider than float32")


def _linear(op: Pieces, node: Node, x: Value | None, weight: Value, bias: np.ndarray | None) -> Value | Skip:
    if x is None:
        return Skip("an input is missing")
    is_rounded = bias is not None and bias.dtype != np.float32  # after the product as well as after the sum
    kept = None if bias is None or is_rounded else constant(f"{weight.name}/bias", bias)
    if node.attr("accuracy_level", 0) == _EIGHT_BITS and weight.stored is not None and fits_quantized_activations(weight.stored):
        y = op.builder.DynamicQuantizedLinear(x, weight, kept, None, activation="none", range="per_token")
    else:
        y = op.builder.Linear(x, weight, kept, None, activation="none")
    return op.Add(y, node.input(5)) if is_rounded else y
