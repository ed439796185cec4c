"""Products of matrices and what belongs to them."""

from __future__ import annotations

import numpy as np

from qruntime.ir import Node
from qruntime.ops.checks import same_dtype
from qruntime.ops.elementwise import is_float, narrow, widen
from qruntime.ops.products import exact_matmul, matmul
from qruntime.ops.registry import NativeCall, operator


@operator("MatMul", since=1)
def mat_mul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Product of the last two dimensions, the others broadcast; vectors as in numpy.matmul."""
    same_dtype(a, b)
    with np.errstate(all="ignore"):
        return matmul(a, b)


@mat_mul.native
def _matmul(node: Node) -> NativeCall:
    return NativeCall("matmul", ints=[0], floats=[1.0])


def _columns(zero_point: np.ndarray | None, x: np.ndarray, per_row: bool) -> np.ndarray:
    """Zero point, scalar or one per row (column), shaped to be subtracted from `x`."""
    if zero_point is None:
        return np.zeros((), np.float32)
    same_dtype(x, zero_point)
    wide = zero_point.astype(np.float32)
    if per_row and wide.ndim == 1 and wide.size > 1:
        return wide[:, None]
    return wide.reshape(()) if wide.size == 1 else wide


def integer_product(a: np.ndarray, b: np.ndarray, a_zero_point: np.ndarray | None, b_zero_point: np.ndarray | None) -> np.ndarray:
    """(a − a_zero_point) · (b − b_zero_point) of 8-bit tensors, in int32, wrapping."""
    left = a.astype(np.float32) - _columns(a_zero_point, a, per_row=True)
    right = b.astype(np.float32) - _columns(b_zero_point, b, per_row=False)
    return exact_matmul(left, right)


@operator("MatMulInteger", since=10)
def mat_mul_integer(
    a: np.ndarray,
    b: np.ndarray,
    a_zero_point: np.ndarray | None = None,
    b_zero_point: np.ndarray | None = None,
) -> np.ndarray:
    """8-bit inputs, int32 result; zero points are scalars, per row of A, per column of B."""
    return integer_product(a, b, a_zero_point, b_zero_point)


def _scaled(x: np.ndarray, factor: float) -> np.ndarray:
    if factor == 1:
        return x
    return x * np.asarray(factor, x.dtype) if is_float(x.dtype) else (x * np.float64(factor)).astype(x.dtype)


@operator("Gemm", since=7)
def gemm(
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> np.ndarray:
    """alpha · A′ · B′ + beta · C with A′ of shape [M, K], B′ [K, N]; C broadcasts to [M, N]."""
    if a.ndim != 2 or b.ndim != 2:
        raise ValueError(f"A and B must be matrices, got shapes {a.shape} and {b.shape}")
    same_dtype(a, b, *(() if c is None else (c,)))
    left, right = a.T if transA else a, b.T if transB else b
    if left.shape[1] != right.shape[0]:
        raise ValueError(f"A of shape {left.shape} and B of shape {right.shape} do not share K (after transA, transB)")
    shape = (left.shape[0], right.shape[1])
    with np.errstate(all="ignore"):
        y = _scaled(matmul(widen(left), widen(right)), alpha)
        if c is not None and beta != 0:
            if np.broadcast_shapes(c.shape, shape) != shape:
                raise ValueError(f"C of shape {c.shape} does not broadcast to {shape}")
            y = y + _scaled(widen(c), beta)
        return narrow(y, a.dtype)


@gemm.native
def _gemm(node: Node) -> NativeCall:
    ints = [node.attr("transA", 0), node.attr("transB", 0)]
    return NativeCall("gemm", ints=ints, floats=[node.attr("alpha", 1.0), node.attr("beta", 1.0)])


@operator("Gemm", since=1)
def gemm_1(
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    broadcast: int = 0,
    transA: int = 0,
    transB: int = 0,
) -> np.ndarray:
    """As above; whether C may broadcast is told by its shape alone."""
    return gemm(a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)


@operator("Det", since=11)
def det(x: np.ndarray) -> np.ndarray:
    """Determinants of the square matrices in the last two dimensions."""
    if x.ndim < 2 or x.shape[-1] != x.shape[-2]:
        raise ValueError(f"square matrices are needed, got shape {x.shape}")
    with np.errstate(all="ignore"):
        return narrow(np.linalg.det(widen(x)), x.dtype)
