"""Inverse and Trilu."""

from __future__ import annotations

import numpy as np

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
