"""Weights and tables of few bits."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from contrib_cases.case import Case, Rng, draws, floats, maybe, packed, pick

BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 6: (32, 22), 8: (32, 34), 13: (256, 176), 14: (256, 210), 20: (32, 18), 23: (256, 136),
    42: (64, 18),
}  # fmt: skip
"""packed_type of GatherPacked → elements and bytes of a block."""


@draws("MatMulNBits")
def _(r: Rng, n: int) -> Case:
    inner, columns, block, bits = int(r.integers(1, 140)), int(r.integers(1, 70)), pick(r, 16, 32, 64), pick(r, 2, 4, 8)
    blocks = -(-inner // block)
    codes = r.integers(0, 256, (columns, blocks, block * bits // 8)).astype(np.uint8)
    zero = maybe(r, r.integers(0, 256, (columns, -(-blocks * bits // 8))).astype(np.uint8))
    bias = maybe(r, floats(r, columns))
    inputs = [floats(r, 2, 3, inner), codes, r.random((columns, blocks)).astype(np.float32), zero, None, bias]
    constants = tuple(i for i in (1, 2, 3, 5) if inputs[i] is not None)
    return Case(inputs, {"K": inner, "N": columns, "block_size": block, "bits": bits}, constants=constants, tolerance=1e-4)


@draws("MatMulBnb4")
def _(r: Rng, n: int) -> Case:
    inner, columns, block = int(r.integers(1, 70)), int(r.integers(1, 70)), pick(r, 16, 32, 64)
    weight = r.integers(0, 256, (inner * columns + 1) // 2).astype(np.uint8)
    largest = r.random(-(-inner * columns // block)).astype(np.float32)
    attributes = {"K": inner, "N": columns, "block_size": block, "quant_type": n % 2}
    return Case([floats(r, 2, 3, inner), weight, largest], attributes, constants=(1, 2), tolerance=1e-4)


@draws("GatherBlockQuantized")
def _(r: Rng, n: int) -> Case:
    kind = ("int4", "uint4", "uint8")[n % 3]
    bits = pick(r, 2, 4, 8) if kind == "uint8" else 4
    rank, block = int(r.integers(2, 4)), pick(r, 16, 32)
    shape = [int(v) for v in r.integers(1, 6, rank)]
    gathered = 0 if kind == "uint8" else int(r.integers(0, rank))
    quantized = rank - 1 if kind == "uint8" else int(r.integers(0, rank))
    shape[quantized] = pick(r, 16, 40, 64)
    grid = list(shape)
    grid[quantized] = -(-shape[quantized] // block)
    low = -8 if kind == "int4" else 0
    data, zero = (r.integers(low, low + (1 << bits), dims) for dims in (shape, grid))
    if kind == "uint8":
        data, zero = packed(data, bits), packed(zero, bits)
    else:
        data, zero = data.astype(kind_of(kind)), zero.astype(kind_of(kind))
    indices = r.integers(-shape[gathered], shape[gathered], pick(r, (3,), (2, 2), ())).astype(pick(r, np.int32, np.int64))
    attributes = {"bits": bits, "block_size": block, "gather_axis": gathered, "quantize_axis": quantized}
    zero = maybe(r, zero)
    inputs = [data, indices, r.random(grid).astype(np.float32), zero]
    return Case(inputs, attributes, constants=(0, 2) if zero is None else (0, 2, 3))


def kind_of(name: str) -> type:
    return getattr(ml_dtypes, name)


@draws("GatherBlockQuantized")
def _(r: Rng, n: int) -> Case:
    kind = pick(r, "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float4_e2m1fn")
    block, grid = pick(r, (16, (6, 3)), (0, (6, 1)), (16, (1, 3)), (0, (1, 1)))
    data = floats(r, 6, 48).astype(kind_of(kind))
    indices = np.array([0, 5, -1, 7, -9])
    return Case([data, indices, r.random(grid).astype(np.float32)], {"block_size": block}, constants=(0, 2))


@draws("GatherPacked")
def _(r: Rng, n: int) -> Case:
    kind = list(BLOCKS)[n % len(BLOCKS)]
    elements, size = BLOCKS[kind]
    columns = elements * int(r.integers(1, 3))
    rows = r.integers(0, 256, (4, columns // elements, size)).astype(np.uint8)
    for at in {0: (), 1: (), 13: (0, 2), 14: (208,)}.get(kind, (0,)):
        rows[:, :, at : at + 2] = r.random((4, columns // elements, 1)).astype(np.float16).view(np.uint8)
    if kind in (0, 1):
        rows = floats(r, 4, columns).astype((np.float32, np.float16)[kind]).view(np.uint8)
    attributes = {"K": columns, "packed_type": kind, "output_dtype": 1}
    return Case([rows.reshape(4, -1), r.integers(-1, 5, (2, 3))], attributes, constants=(0,))
