"""What a stored number can look like: its bits and the real numbers that its codes stand for.

Formats know nothing of algorithms. A code is an integer, or an index into a table:

    real = scale · (code − zero_point)          integers
    real = scale · table[code]                  tables: NF4, FP4, FP8
    real = scale · beside[partner][code]        pairs: OVP4, where a code also says how the one beside it is read
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Format:
    """One kind of code. `qmin` and `qmax` are the least and greatest code; `table` gives values instead of integers.

    Of codes that are read in pairs `pairs` has two values for each: beside any other code, then those beside a marker.
    """

    name: str
    bits: int
    qmin: int = 0
    qmax: int = 0
    table: tuple[float, ...] | None = field(default=None, repr=False, compare=False)
    pairs: tuple[int, ...] | None = field(default=None, repr=False, compare=False)

    @property
    def is_signed(self) -> bool:
        return self.qmin < 0

    @property
    def code_dtype(self) -> type[np.int8] | type[np.uint8]:
        """Of codes of at most 8 bits, a byte each."""
        return np.int8 if self.is_signed else np.uint8

    @property
    def is_integer(self) -> bool:
        return self.table is None and not self.is_float and not self.is_paired

    @property
    def is_paired(self) -> bool:
        """Whether a code means something only together with the one beside it."""
        return self.pairs is not None

    @property
    def is_float(self) -> bool:
        """Numbers that stand for themselves, without a scale."""
        return self.name == "float16"

    @cached_property
    def values(self) -> np.ndarray:
        """The table as float32, a value for every code."""
        assert self.table is not None, f"{self.name} has no table"
        return np.array(self.table, np.float32)

    def __str__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of a format that has a name here is that format, which `is` tells from others."""
        if FORMATS.get(self.name) is self:
            return format_named, (self.name,)
        return Format, (self.name, self.bits, self.qmin, self.qmax, self.table, self.pairs)


def format_named(name: str) -> Format:
    """KeyError for what is none."""
    return FORMATS[name]


def _minifloat(exponent_bits: int, mantissa_bits: int, bias: int) -> list[float]:
    """The non-negative numbers of a small float without infinities, in the order of their codes."""
    values = []
    for code in range(1 << (exponent_bits + mantissa_bits)):
        exponent, mantissa = code >> mantissa_bits, code & ((1 << mantissa_bits) - 1)
        share = mantissa / (1 << mantissa_bits)
        values.append(2.0 ** (1 - bias) * share if exponent == 0 else 2.0 ** (exponent - bias) * (1 + share))
    return values


def _with_sign(positive: list[float]) -> tuple[float, ...]:
    """A sign bit above the codes of `positive`."""
    return (*positive, *(-value for value in positive))


# The quantiles of a normal distribution with 0 among them and ±1 at the ends; Dettmers et al., QLoRA (2023), appendix E.
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip

_BITSANDBYTES_FP4 = [0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4]

# Guo et al., OliVe (2023): integers of −7 … 7, and beside code 1000 a float of two bits of exponent and one of mantissa, biased to
# begin above 7. That one's lowest code would be 8, which nothing is rounded to: it stands for 0, as the marker itself does.
MARKER = 8
_NORMAL = (0, 1, 2, 3, 4, 5, 6, 7, 0, -7, -6, -5, -4, -3, -2, -1)
_ABFLOAT = (0, 12, 16, 24, 32, 48, 64, 96)

_E4M3 = _minifloat(4, 3, bias=7)
_E4M3[-1] = float("nan")

INTEGERS = tuple(Format(f"int{bits}", bits, -(1 << (bits - 1)), (1 << (bits - 1)) - 1) for bits in range(2, 9))
UNSIGNED = tuple(Format(f"uint{bits}", bits, 0, (1 << bits) - 1) for bits in range(2, 9))
NF4 = Format("nf4", 4, 0, 15, _NF4)
FP4 = Format("float4_e2m1fn", 4, 0, 15, _with_sign(_minifloat(2, 1, bias=1)))
"""0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives."""
BITSANDBYTES_FP4 = Format("fp4_bitsandbytes", 4, 0, 15, _with_sign(_BITSANDBYTES_FP4))
"""That of the package bitsandbytes, in shares of the largest value of a block."""
FP8 = Format("float8_e4m3fn", 8, 0, 255, _with_sign(_E4M3))
"""±448, no infinities, one NaN of either sign."""
FP8_E5M2 = Format("float8_e5m2", 8, 0, 255, _with_sign([*_minifloat(5, 2, bias=15)[:-4], math.inf, math.nan, math.nan, math.nan]))
OVP4 = Format("ovp4", 4, 0, 15, pairs=(*_NORMAL, *_ABFLOAT, *(-value for value in _ABFLOAT)))
"""Outlier-victim pairs: two codes of a byte are two integers of 4 bits, or a marker and an outlier."""
FLOAT16 = Format("float16", 16)

WIDE = (
    Format("int16", 16, -(1 << 15), (1 << 15) - 1),
    Format("uint16", 16, 0, (1 << 16) - 1),
    Format("int32", 32, -(1 << 31), (1 << 31) - 1),
)
"""Of other tools: 16-bit weights, and biases in units of the scales of a product."""

FORMATS = {one.name: one for one in (*INTEGERS, *UNSIGNED, *WIDE, NF4, FP4, BITSANDBYTES_FP4, FP8, FP8_E5M2, OVP4, FLOAT16)}
INT8, UINT8, UINT4 = FORMATS["int8"], FORMATS["uint8"], FORMATS["uint4"]
