"""Inverse, Trilu, products and distances of matrices, and the cheapest path through one."""

from __future__ import annotations

import numpy as np

from qruntime.ops.checks import limit_shape, require_rank, require_shape
from qruntime.ops.contrib.domain import MICROSOFT, standard
from qruntime.ops.precision import working_dtype
from qruntime.ops.registry import operator


@operator("Inverse", domain=MICROSOFT)
def inverse(x: np.ndarray) -> np.ndarray:
    """Inverses of the matrices x [..., N, N]."""
    if x.ndim < 2 or x.shape[-1] != x.shape[-2]:
        raise ValueError(f"square matrices are needed, got shape {x.shape}")
    try:
        return np.linalg.inv(x.astype(working_dtype(x.dtype), copy=False)).astype(x.dtype, copy=False)
    except np.linalg.LinAlgError as error:
        raise ValueError(f"{error}") from error


@operator("Trilu", domain=MICROSOFT)
def trilu(x: np.ndarray, k: np.ndarray | None = None, *, upper: int = 1) -> np.ndarray:
    """As the standard operator."""
    return standard("Trilu", x, k, upper=upper)


@operator("MatMulInteger16", domain=MICROSOFT)
def matmul_integer16(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The product of int16 tensors as numpy.matmul broadcasts, in int32, which wraps around."""
    for name, x in (("A", a), ("B", b)):
        require_rank(name, x, 1, -1)
        if x.dtype != np.int16:
            raise ValueError(f"{name} must be int16, got {x.dtype}")
    return np.asarray(np.matmul(a.astype(np.int32), b.astype(np.int32)))


@operator("SparseToDenseMatMul", domain=MICROSOFT)
def sparse_to_dense_matmul(a: np.ndarray, b: np.ndarray, *, alpha: float = 1.0, transA: int = 0, transB: int = 0) -> np.ndarray:
    """alpha · A′ · B′ of matrices; a sparse A was made dense when the model was read."""
    require_rank("A", a, 2)
    require_rank("B", b, 2)
    product = standard("MatMul", a.T if transA else a, b.T if transB else b)
    return product if alpha == 1 else (product * product.dtype.type(alpha)).astype(product.dtype, copy=False)


@operator("CDist", domain=MICROSOFT)
def cdist(a: np.ndarray, b: np.ndarray, *, metric: str = "sqeuclidean") -> np.ndarray:
    """Distances [M, K] between the rows of a [M, N] and b [K, N]: euclidean or its square."""
    require_rank("A", a, 2)
    require_rank("B", b, 2)
    if metric not in ("euclidean", "sqeuclidean") or a.shape[1] != b.shape[1]:
        raise ValueError(f"needs metric euclidean or sqeuclidean and rows of one length, got {metric!r}, {a.shape} and {b.shape}")
    limit_shape((a.shape[0], b.shape[0], a.shape[1]), "the differences")
    square = np.stack([((row - b) ** 2).sum(axis=1) for row in a]) if a.shape[0] else np.zeros((0, b.shape[0]), a.dtype)
    return np.sqrt(square) if metric == "euclidean" else square


@operator("DynamicTimeWarping", domain=MICROSOFT, shape_inputs=None)
def dynamic_time_warping(costs: np.ndarray) -> np.ndarray:
    """The cheapest path [2, L] of (row, column) from the first to the last element of costs [M, N] or [1, M, N]."""
    require_rank("the costs", costs, 2, 3)
    if costs.ndim == 3:
        require_shape("the costs", costs, (1, *costs.shape[1:]))
        costs = costs[0]
    rows, columns = costs.shape
    if not rows or not columns:
        raise ValueError(f"the costs must not be empty, got shape {costs.shape}")
    total = np.full((rows + 1, columns + 1), np.inf, costs.dtype)
    total[0, 0] = 0
    came = np.empty((rows + 1, columns + 1), np.int8)
    came[0], came[:, 0] = _LEFT, _UP
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            both, up, left = total[i - 1, j - 1], total[i - 1, j], total[i, j - 1]
            came[i, j] = _BOTH if both < up and both < left else _UP if up < both and up < left else _LEFT
            total[i, j] = costs[i - 1, j - 1] + (both, up, left)[came[i, j]]
    path = []
    i, j = rows, columns
    while i > 0 or j > 0:
        path.append((i - 1, j - 1))
        step = came[i, j]
        i, j = i - (step != _LEFT), j - (step != _UP)
    return np.array(path[::-1], np.int32).T.copy()


_BOTH, _UP, _LEFT = range(3)
"""Steps to the element before, in both directions or one."""
