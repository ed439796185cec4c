"""Products with 4-bit weights in blocks, and look-ups in tables of them: MatMulBnb4, MatMulFpQ4, GatherBlockQuantized."""

from __future__ import annotations

import numpy as np

from qruntime.ir import StoredTensor
from qruntime.ir.formats import BITSANDBYTES_FP4, NF4
from qruntime.ops.checks import integers, limit_shape, normalize_axis
from qruntime.ops.contrib.domain import MICROSOFT, standard
from qruntime.ops.contrib.matmul_nbits import unpacked
from qruntime.ops.elementwise import narrow, widen
from qruntime.ops.precision import working_dtype
from qruntime.ops.products import matmul
from qruntime.ops.registry import operator

BNB4_FORMATS = {0: BITSANDBYTES_FP4, 1: NF4}
"""By quant_type: codes as shares of the largest value of a block."""


def check_bnb4(b: np.ndarray, absmax: np.ndarray, *, K: int, N: int, block_size: int, quant_type: int) -> None:
    """Raises ValueError for lengths that do not fit the attributes."""
    if K < 1 or N < 1 or block_size < 16 or block_size & (block_size - 1) or quant_type not in BNB4_FORMATS:
        raise ValueError(
            f"needs K and N above 0, block_size a power of two from 16 on and quant_type 0 (FP4) or 1 (NF4), "
            f"got K={K}, N={N}, block_size={block_size}, quant_type={quant_type}"
        )
    count = limit_shape((N * K,), "the weight")[0]
    if b.dtype != np.uint8 or b.size != (count + 1) // 2:
        raise ValueError(f"B must hold {(count + 1) // 2} bytes, got {b.dtype} of shape {b.shape}")
    if absmax.size != -(-count // block_size):
        raise ValueError(f"absmax must have {-(-count // block_size)} values, got shape {absmax.shape}")


def bnb4_weight(b: np.ndarray, absmax: np.ndarray, *, K: int, N: int, block_size: int, quant_type: int) -> np.ndarray:
    """The weight float32 [N, K]. Raises ValueError for lengths that do not fit the attributes."""
    check_bnb4(b, absmax, K=K, N=N, block_size=block_size, quant_type=quant_type)
    flat = b.reshape(-1)
    codes = np.stack([flat >> 4, flat & 15], axis=-1).reshape(-1)[: N * K]
    scale = np.repeat(widen(absmax.reshape(-1)), block_size)[: N * K]
    return (BNB4_FORMATS[quant_type].values[codes] * scale).reshape(N, K)


@operator("MatMulBnb4", domain=MICROSOFT)
def matmul_bnb4(
    a: np.ndarray,
    b: np.ndarray,
    absmax: np.ndarray,
    *,
    K: int,
    N: int,
    block_size: int,
    quant_type: int,
    training_mode: int = 0,
    transB: int = 1,
) -> np.ndarray:
    """a [..., K] times the transposed weight [N, K], whose flat codes are FP4 or NF4 in blocks; with transB=0 a [..., N] times it."""
    weight = bnb4_weight(b, absmax, K=K, N=N, block_size=block_size, quant_type=quant_type)
    inner = K if transB else N
    if a.ndim == 0 or a.shape[-1] != inner:
        raise ValueError(f"the last dimension of A must be {inner}, got shape {a.shape}")
    return narrow(matmul(widen(a), weight.T if transB else weight), a.dtype)


_FPQ4_FORMS = {0: (32, False), 1: (32, True), 2: (64, False)}
"""blk_quant_type → length of a block, whether it has a zero point."""


@operator("MatMulFpQ4", domain=MICROSOFT, shape_inputs=(2,))
def matmul_fp_q4(a: np.ndarray, b: np.ndarray, b_shape: np.ndarray, *, blk_quant_type: int = 1) -> np.ndarray:
    """a [..., K] times a weight of b_shape [K, N] in a blob of blocks down its columns.

    A block is a float32 scale, a zero point (type 1; else 8) and 4-bit codes: byte i of 16 holds codes i and i + 16.
    """
    if blk_quant_type not in _FPQ4_FORMS:
        raise ValueError(f"blk_quant_type must be one of {sorted(_FPQ4_FORMS)}, got {blk_quant_type}")
    length, has_zero_point = _FPQ4_FORMS[blk_quant_type]
    shape = integers(b_shape, "B_shape")
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"B_shape must be two positive dimensions, got {shape}")
    rows, columns = limit_shape(shape, "B")
    blocks, head = -(-rows // length), 5 if has_zero_point else 4
    if b.dtype != np.uint8 or b.size != columns * blocks * (head + length // 2):
        raise ValueError(f"B must hold {columns * blocks * (head + length // 2)} bytes, got {b.dtype} of shape {b.shape}")
    if a.ndim == 0 or a.shape[-1] != rows:
        raise ValueError(f"the last dimension of A must be {rows}, got shape {a.shape}")
    blob = b.reshape(columns, blocks, head + length // 2)
    scale = np.ascontiguousarray(blob[..., :4]).view("<f4").astype(np.float32)
    zero = blob[..., 4:5].astype(np.float32) if has_zero_point else np.float32(8)
    halves = blob[..., head:].reshape(columns, blocks, length // 32, 16)
    codes = np.stack([halves & 15, halves >> 4], axis=3).reshape(columns, blocks, length)
    weight = ((codes.astype(np.float32) - zero) * scale).reshape(columns, blocks * length)[:, :rows].T
    return standard("MatMul", a, weight.astype(a.dtype, copy=False))


@operator("GatherBlockQuantized", domain=MICROSOFT)
def gather_block_quantized(
    data: np.ndarray | StoredTensor,
    indices: np.ndarray,
    scales: np.ndarray,
    zero_points: np.ndarray | StoredTensor | None = None,
    *,
    bits: int = 4,
    block_size: int = 128,
    gather_axis: int = 0,
    quantize_axis: int = 1,
) -> np.ndarray:
    """Slices of `data` along gather_axis, dequantized in blocks along quantize_axis, in the type of `scales`.

    data is int4, uint4, float8 or float4, or uint8 with codes of `bits` packed along the last axis, the lowest bits first;
    what is not gathered stays packed. An index that is out of range gives zeros.
    """
    if not data.ndim:
        raise ValueError("data must have rank 1 or more, got a scalar")
    if indices.dtype.kind not in "iu":
        raise ValueError(f"indices must be integers, got {indices.dtype}")
    gather_axis = normalize_axis(gather_axis, data.ndim, "gather_axis")
    quantize_axis = normalize_axis(quantize_axis, data.ndim, "quantize_axis")
    kind = _type_name(data)
    is_float = kind.startswith(("float8", "float4"))
    if (block_size < 16 and not (is_float and block_size == 0)) or block_size & (block_size - 1):
        raise ValueError(f"block_size must be a power of two from 16 on (or 0 for float8 and float4), got {block_size}")
    if kind == "uint8":
        if bits not in (2, 4, 8) or gather_axis != 0 or quantize_axis == gather_axis:
            raise ValueError(
                f"uint8 data needs bits 2, 4 or 8, gather_axis 0 and another quantize_axis, "
                f"got bits={bits}, gather_axis={gather_axis} and quantize_axis={quantize_axis}"
            )
    elif not is_float and (bits != 4 or kind not in ("int4", "uint4")):
        raise ValueError(f"data must be uint8, float8 or float4, or int4 or uint4 with bits=4, got {kind} with bits={bits}")
    if zero_points is not None and (is_float or _type_name(zero_points) != kind):
        raise ValueError(f"zero_points must be {'absent' if is_float else kind} for {kind} data, got {_type_name(zero_points)}")

    size = data.shape[gather_axis]
    positions = indices.astype(np.int64)
    inside = (positions >= -size) & (positions < size)
    safe = np.where(inside, positions % max(size, 1), 0)
    if not size:
        raise ValueError(f"data of shape {data.shape} has nothing to gather from")

    def picked(table: np.ndarray | StoredTensor) -> np.ndarray:
        """Rows of data, scales or zero points, with the gathered axis first; a single row serves all."""
        where = safe if table.shape[gather_axis] != 1 else np.zeros_like(safe)
        if isinstance(table, np.ndarray):
            return np.moveaxis(table, gather_axis, 0)[where]
        if table.ndim == 2 and gather_axis == 0:
            return table.rows(where.reshape(-1)).values().reshape(*where.shape, table.shape[1])
        return np.moveaxis(table.values(), gather_axis, 0)[where]

    width = 8 // bits if kind == "uint8" else 1
    full = (*data.shape[:-1], data.shape[-1] * width)
    block = block_size or max(full[quantize_axis], 1)
    _check_block_shapes(full, scales, zero_points, quantize_axis, block, width, broadcasts=is_float)
    codes = _unpacked(picked(data), kind, bits).astype(working_dtype(scales.dtype))
    if quantize_axis == gather_axis:
        # Blocks of rows: every index finds its own block.
        scale = np.moveaxis(scales, gather_axis, 0)[safe // block]
        held = zero_points.values() if isinstance(zero_points, StoredTensor) else zero_points
        zero = 0 if held is None else np.moveaxis(held, gather_axis, 0)[safe // block].astype(codes.dtype)
    else:
        axis = quantize_axis + indices.ndim - (1 if quantize_axis > gather_axis else 0)
        where = np.arange(full[quantize_axis]) // block
        scale = np.take(picked(scales), where, axis=axis)
        zero = 1 << (bits - 1) if kind == "uint8" else 0
        if zero_points is not None:
            zero = np.take(_unpacked(picked(zero_points), kind, bits).astype(codes.dtype), where, axis=axis)
    values = (codes - zero) * scale.astype(codes.dtype)
    values = np.where(inside.reshape(*inside.shape, *(1,) * (data.ndim - 1)), values, 0).astype(scales.dtype)
    # The axes of the indices stand where the gathered axis stood.
    return np.ascontiguousarray(np.moveaxis(values, range(indices.ndim), range(gather_axis, gather_axis + indices.ndim)))


def _type_name(data: np.ndarray | StoredTensor) -> str:
    return data.format.name if isinstance(data, StoredTensor) else data.dtype.name


def _unpacked(picked: np.ndarray, kind: str, bits: int) -> np.ndarray:
    return unpacked(picked, bits) if kind == "uint8" else picked


def _check_block_shapes(
    full: tuple[int, ...],
    scales: np.ndarray,
    zero_points: np.ndarray | StoredTensor | None,
    axis: int,
    block: int,
    width: int,
    broadcasts: bool,
) -> None:
    """`scales` has one value per block of a tensor of shape `full`, `zero_points` too, `width` of them to a byte."""
    expected = (*full[:axis], -(-full[axis] // block), *full[axis + 1 :])
    fits = scales.ndim == len(expected) and all(
        have == want or (broadcasts and have == 1 and i != axis) for i, (have, want) in enumerate(zip(scales.shape, expected, strict=True))
    )
    if not fits:
        raise ValueError(f"scales must have the shape {expected}, got {scales.shape}")
    packed = (*expected[:-1], -(-expected[-1] // width))
    if zero_points is not None and zero_points.shape != packed:
        raise ValueError(f"zero_points must have the shape {packed}, got {zero_points.shape}")
