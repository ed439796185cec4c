"""One node with its inputs, and the list of those who draw such nodes at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Rng = np.random.Generator


class Case(NamedTuple):
    """`constants` are positions of inputs that are initializers; `shared` says which output must lie in which input's buffer."""

    inputs: list[Any]
    attributes: dict[str, Any]
    outputs: int = 1
    constants: tuple[int, ...] = ()
    domain: str = "com.microsoft"
    opset: int = 17
    tolerance: float = 2e-5
    """Of floats, relative and absolute."""
    codes: int = 0
    """By how much integers may differ."""
    specified: Callable[[int, tuple[int, ...]], np.ndarray] | None = None
    """Which elements of an output of this shape have a meaning; None: all."""
    shared: dict[int, int] | None = None


Draw = Callable[[Rng, int], Case]
DRAWS: dict[str, list[Draw]] = {}
"""Operator → functions that draw a case of it; the integer counts the cases."""


def draws(op_type: str) -> Callable[[Draw], Draw]:
    def register(draw: Draw) -> Draw:
        DRAWS.setdefault(op_type, []).append(draw)
        return draw

    return register


def floats(r: Rng, *shape: int) -> np.ndarray:
    return r.standard_normal(shape).astype(np.float32)


def codes(r: Rng, dtype: type, *shape: int) -> np.ndarray:
    """Integers of the whole range of an 8- or 16-bit type."""
    info = np.iinfo(dtype)
    return r.integers(info.min, info.max + 1, shape).astype(dtype)


def small_codes(r: Rng, dtype: type, *shape: int) -> np.ndarray:
    """Half of that range: ONNX Runtime adds pairs of products in 16 bits on some CPUs, and these do not saturate there."""
    return (codes(r, dtype, *shape) // 2).astype(dtype)


def scale(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def maybe(r: Rng, value: Any, chance: float = 0.5) -> Any:
    return value if r.random() < chance else None


def pick(r: Rng, *options: Any) -> Any:
    return options[int(r.integers(len(options)))]


def packed(values: np.ndarray, bits: int) -> np.ndarray:
    """Codes along the last axis in bytes, the lowest bits first."""
    per_byte = 8 // bits
    pad = [(0, 0)] * (values.ndim - 1) + [(0, -values.shape[-1] % per_byte)]
    groups = np.pad(values, pad).reshape(*values.shape[:-1], -1, per_byte)
    return (groups << (bits * np.arange(per_byte))).sum(axis=-1).astype(np.uint8)


def starts(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
