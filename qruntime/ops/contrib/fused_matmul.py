"""FusedMatMul (TransposeMatMul of old), FusedGemm and GemmFastGelu."""

from __future__ import annotations

import numpy as np

from qruntime.ops.contrib.domain import MICROSOFT, standard
from qruntime.ops.registry import operator


def _arranged(x: np.ndarray, transpose: int, transpose_batch: int) -> np.ndarray:
    """[d0, …, M, K] from what the two attributes say is stored; vectors are never transposed."""
    if x.ndim < 2:
        return x
    if transpose_batch:
        # The first dimension of every matrix lies before the batch: [M, d0, …, K].
        if x.ndim < 3:
            raise ValueError(f"a batch can be transposed from rank 3 on, got shape {x.shape}")
        x = np.moveaxis(x, 0, -2)
    return x.swapaxes(-1, -2) if transpose else x


@operator("FusedMatMul", "TransposeMatMul", domain=MICROSOFT)
def fused_matmul(
    a: np.ndarray,
    b: np.ndarray,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
) -> np.ndarray:
    """alpha · A′ · B′ as MatMul broadcasts; `trans` swaps the last two dimensions, `transBatch` moves the first one in."""
    left = _arranged(a, transA, transBatchA)
    right = _arranged(b, transB, transBatchB)
    product = standard("MatMul", left, right)
    return np.asarray(product * product.dtype.type(alpha))


def activated(
    y: np.ndarray,
    activation: str,
    alpha: float | None = None,
    beta: float | None = None,
    gamma: float | None = None,
) -> np.ndarray:
    """`y` through the activation of a fused operator, "" for none."""
    if activation == "":
        return y
    if activation == "Clip":
        low = -np.inf if alpha is None else alpha
        high = np.inf if beta is None else beta
        return np.minimum(np.maximum(y, y.dtype.type(low)), y.dtype.type(high))
    parameters = {"alpha": alpha, "beta": beta, "gamma": gamma}
    if activation not in _PARAMETERS:
        raise ValueError(f"activation {activation!r} is not supported; known are {', '.join(_PARAMETERS)}")
    wanted = _PARAMETERS[activation]
    return standard(activation, y, **{name: parameters[name] for name in wanted if parameters[name] is not None})


_PARAMETERS: dict[str, tuple[str, ...]] = {
    "Relu": (), "Sigmoid": (), "Tanh": (), "Softplus": (), "Softsign": (), "LeakyRelu": ("alpha",), "Elu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"), "ThresholdedRelu": ("alpha",), "Selu": ("alpha", "gamma"), "HardSwish": (),
}  # fmt: skip


@operator("FusedGemm", domain=MICROSOFT)
def fused_gemm(
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    activation: str = "",
    activation_alpha: float | None = None,
    activation_beta: float | None = None,
    activation_gamma: float | None = None,
) -> np.ndarray:
    """Gemm, then the activation."""
    y = standard("Gemm", a, b, c, alpha=alpha, beta=beta, transA=transA, transB=transB)
    return activated(y, activation, activation_alpha, activation_beta, activation_gamma)


@operator("GemmFastGelu", domain=MICROSOFT)
def gemm_fast_gelu(x: np.ndarray, w: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """X · W + bias, through the GELU that is made of tanh."""
    y = standard("MatMul", x, w)
    return standard("Gelu", y if bias is None else standard("Add", y, bias), approximate="tanh")
