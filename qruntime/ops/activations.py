"""Activation functions."""

from __future__ import annotations

import math

import numpy as np

from qruntime.ops.elementwise import constant, pointwise
from qruntime.ops.error_function import erfc
from qruntime.ops.registry import operator


def sigmoid_value(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(−x)) without overflow."""
    decay = np.exp(-np.abs(x))
    one = constant(x, 1)
    return np.where(x < 0, decay, one) / (one + decay)


def softplus_value(x: np.ndarray) -> np.ndarray:
    """log(1 + exp(x)) without overflow."""
    return np.maximum(x, constant(x, 0)) + np.log1p(np.exp(-np.abs(x)))


def swish_value(x: np.ndarray, alpha: float) -> np.ndarray:
    return x * sigmoid_value(x * constant(x, alpha))


@operator("Relu", since=1)
@pointwise
def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, constant(x, 0))


@operator("LeakyRelu", since=1)
@pointwise
def leaky_relu(x: np.ndarray, *, alpha: float = 0.01) -> np.ndarray:
    return np.where(x < 0, x * constant(x, alpha), x)


@operator("ThresholdedRelu", since=10)
@pointwise
def thresholded_relu(x: np.ndarray, *, alpha: float = 1.0) -> np.ndarray:
    return np.where(x > constant(x, alpha), x, constant(x, 0))


@operator("Elu", since=1)
@pointwise
def elu(x: np.ndarray, *, alpha: float = 1.0) -> np.ndarray:
    return np.where(x < 0, constant(x, alpha) * np.expm1(x), x)


@operator("Celu", since=12)
@pointwise
def celu(x: np.ndarray, *, alpha: float = 1.0) -> np.ndarray:
    scale, zero = constant(x, alpha), constant(x, 0)
    return np.maximum(x, zero) + np.minimum(scale * np.expm1(x / scale), zero)


@operator("Selu", since=6)
@pointwise
def selu(x: np.ndarray, *, alpha: float = 1.6732631921768188, gamma: float = 1.0507010221481323) -> np.ndarray:
    return constant(x, gamma) * np.where(x > 0, x, constant(x, alpha) * np.expm1(x))


@operator("Selu", since=1)
@pointwise
def selu_1(x: np.ndarray, *, alpha: float = 1.6732, gamma: float = 1.0507) -> np.ndarray:
    return constant(x, gamma) * np.where(x > 0, x, constant(x, alpha) * np.expm1(x))


@operator("Sigmoid", since=1)
@pointwise
def sigmoid(x: np.ndarray) -> np.ndarray:
    return sigmoid_value(x)


def _hard_sigmoid(x: np.ndarray, alpha: float, beta: float) -> np.ndarray:
    line = x * constant(x, alpha) + constant(x, beta)
    return np.minimum(np.maximum(line, constant(x, 0)), constant(x, 1))


@operator("HardSigmoid", since=1)
@pointwise
def hard_sigmoid(x: np.ndarray, *, alpha: float = 0.2, beta: float = 0.5) -> np.ndarray:
    return _hard_sigmoid(x, alpha, beta)


@operator("HardSwish", since=14)
@pointwise
def hard_swish(x: np.ndarray) -> np.ndarray:
    return x * _hard_sigmoid(x, 1 / 6, 0.5)


@operator("Swish", since=24)
@pointwise
def swish(x: np.ndarray, *, alpha: float = 1.0) -> np.ndarray:
    return swish_value(x, alpha)


@operator("Mish", since=18)
@pointwise
def mish(x: np.ndarray) -> np.ndarray:
    return x * np.tanh(softplus_value(x))


@operator("Softplus", since=1)
@pointwise
def softplus(x: np.ndarray) -> np.ndarray:
    return softplus_value(x)


@operator("Softsign", since=1)
@pointwise
def softsign(x: np.ndarray) -> np.ndarray:
    return x / (constant(x, 1) + np.abs(x))


@operator("Shrink", since=9)
@pointwise
def shrink(x: np.ndarray, *, bias: float = 0.0, lambd: float = 0.5) -> np.ndarray:
    """Integers compare and shift as real numbers and are truncated at the end."""
    if x.dtype.kind in "iu":
        x = x.astype(np.float64)
    limit, shift = constant(x, lambd), constant(x, bias)
    return np.where(x < -limit, x + shift, np.where(x > limit, x - shift, constant(x, 0)))


@operator("Gelu", since=20)
@pointwise
def gelu(x: np.ndarray, *, approximate: str = "none") -> np.ndarray:
    """x · Φ(x); Φ from erfc, so that the tail at negative x keeps its relative accuracy."""
    half = constant(x, 0.5)
    if approximate == "tanh":
        inner = x + constant(x, 0.044715) * x * x * x
        return half * x * (constant(x, 1) + np.tanh(constant(x, math.sqrt(2 / math.pi)) * inner))
    if approximate != "none":
        raise ValueError(f"approximate must be 'none' or 'tanh', got {approximate!r}")
    wide = x.astype(np.float64)
    tail = erfc(wide * -math.sqrt(0.5))
    return np.where(np.isneginf(wide), -0.0, 0.5 * wide * tail)
