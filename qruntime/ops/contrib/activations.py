"""Gelu, BiasGelu, FastGelu, QuickGelu."""

from __future__ import annotations

import numpy as np

from qruntime.ops.contrib.domain import MICROSOFT, standard
from qruntime.ops.registry import operator


def biased(x: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """`x` plus `bias`, a vector as long as the last dimension of `x`, or None."""
    if bias is None:
        return x
    if x.ndim == 0 or bias.shape != x.shape[-1:] or bias.dtype != x.dtype:
        raise ValueError(f"the bias must be {x.dtype} of shape {x.shape[-1:]}, got {bias.dtype} of shape {bias.shape}")
    return x + bias


@operator("Gelu", domain=MICROSOFT)
def gelu(x: np.ndarray) -> np.ndarray:
    """x · Φ(x)"""
    return standard("Gelu", x)


@operator("BiasGelu", domain=MICROSOFT)
def bias_gelu(x: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Gelu of x [..., N] + bias [N]."""
    return standard("Gelu", biased(x, bias))


@operator("FastGelu", domain=MICROSOFT)
def fast_gelu(x: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """The tanh form of Gelu, of x [..., N] + bias [N]."""
    return standard("Gelu", biased(x, bias), approximate="tanh")


@operator("QuickGelu", domain=MICROSOFT)
def quick_gelu(x: np.ndarray, *, alpha: float = 1.702) -> np.ndarray:
    """x · sigmoid(alpha · x)"""
    return x * standard("Sigmoid", x * x.dtype.type(alpha))
