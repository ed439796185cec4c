"""What the numbers of a layer are to look like: `W4A16-g128`, `W8A8-static`, `Wnf4A16-g64`.

    W<format>A<format>[-g<size> | -channel | -tensor][-sym | -asym][-static | -token]

Formats are 2 to 8 (bits of integers), 16, nf4, fp4 and fp8. Weights have a scale per output channel unless -g says one for
every <size> input channels of it, or -tensor one for all; integers are affine below 8 bits and symmetric at 8 unless -sym or
-asym say otherwise. Activations are affine and quantized per token at every run, unless -static gives one range to the
tensor for ever; A16 leaves them float.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from qruntime.errors import QuantizationError
from qruntime.ir.formats import FLOAT16, FORMATS, FP4, FP8, NF4, Format
from qruntime.ir.marks import PER_TENSOR, PER_TOKEN, STATIC, WEIGHT_ONLY

TENSOR, CHANNEL, GROUP = "tensor", "channel", "group"
SCALES = ("float32", "float16", "pow2")

SMALLEST_GROUP = 16


@dataclass(frozen=True)
class Granularity:
    """How many weights share a scale: all of a `tensor`, those of an output `channel`, or `size` of them, a `group`."""

    kind: str = CHANNEL
    size: int = 0

    def __post_init__(self) -> None:
        if self.kind not in (TENSOR, CHANNEL, GROUP):
            raise QuantizationError(f"granularity must be tensor, channel or group, got {self.kind!r}")
        if (self.kind == GROUP) != bool(self.size) or self.size < 0:
            raise QuantizationError(f"a group has a size, and nothing else has one, got {self.kind!r} of size {self.size}")
        if 0 < self.size < SMALLEST_GROUP:
            raise QuantizationError(f"a group has {SMALLEST_GROUP} weights at least, got {self.size}")

    def __str__(self) -> str:
        return f"g{self.size}" if self.kind == GROUP else self.kind


@dataclass(frozen=True)
class QArgs:
    """How weights are stored. `symmetric`: zero point 0; of tables always. `scales`: float32, float16, or powers of two."""

    format: Format
    granularity: Granularity = field(default_factory=Granularity)
    symmetric: bool = True
    scales: str = "float32"

    def __post_init__(self) -> None:
        if self.scales not in SCALES:
            raise QuantizationError(f"scales must be one of {', '.join(SCALES)}, got {self.scales!r}")

    def __str__(self) -> str:
        parts = [self.format.name, str(self.granularity)]
        if self.format.is_integer and not self.symmetric:
            parts.append("affine")
        return " ".join(parts if self.scales == "float32" else [*parts, f"scales {self.scales}"])


@dataclass(frozen=True)
class Scheme:
    """`weights` None: they stay float. `inputs`: how activations are quantized, see ir/marks.py."""

    weights: QArgs | None
    inputs: str = WEIGHT_ONLY

    @property
    def needs_data(self) -> bool:
        return self.inputs == STATIC

    def __str__(self) -> str:
        activations = "float activations" if self.inputs == WEIGHT_ONLY else f"8-bit activations {self.inputs}"
        return f"{self.weights or 'float'} weights, {activations}"


_TABLES = {"nf4": NF4, "fp4": FP4, "fp8": FP8}
_TEXT = re.compile(r"W(?P<weights>nf4|fp4|fp8|\d+)A(?P<inputs>nf4|fp4|fp8|\d+)(?P<rest>(-[A-Za-z]+\d*)*)", re.IGNORECASE)
_KNOWN = "W4A16-g128, W8A8, W8A8-static, Wnf4A16-g64, Wfp4A16-g32, W3A16"


def parse(text: str | Scheme) -> Scheme:
    """The scheme that `text` names. Raises QuantizationError saying which part means nothing."""
    if isinstance(text, Scheme):
        return text
    found = _TEXT.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise QuantizationError(f"scheme must be like {_KNOWN}, got {text!r}")
    options = [option.lower() for option in found["rest"].split("-") if option]
    granularity, rest = _granularity(options, text)
    unknown = [option for option in rest if option not in ("sym", "asym", "static", "token")]
    if unknown or len(set(rest)) < len(rest) or {"sym", "asym"} <= set(rest) or {"static", "token"} <= set(rest):
        option = unknown[0] if unknown else rest[-1]
        raise QuantizationError(f"scheme {text!r}: {option!r} means nothing there; schemes are like {_KNOWN}")
    weights, inputs = _weights(found["weights"].lower(), granularity, rest, text), _inputs(found["inputs"].lower(), rest, text)
    if inputs != WEIGHT_ONLY and (weights is None or not integer_grid(weights)):
        raise QuantizationError(f"scheme {text!r}: 8-bit activations need weights of 2 to 8 bits or fp4; write A16")
    return Scheme(weights, inputs)


def _granularity(options: list[str], text: str) -> tuple[Granularity, list[str]]:
    chosen = [option for option in options if option in (TENSOR, CHANNEL) or re.fullmatch(r"g\d+", option)]
    if len(chosen) > 1:
        raise QuantizationError(f"scheme {text!r} has {' and '.join(chosen)}: one of them")
    if not chosen:
        return Granularity(), options
    kind = chosen[0]
    made = Granularity(kind) if kind in (TENSOR, CHANNEL) else Granularity(GROUP, int(kind[1:]))
    return made, [option for option in options if option != kind]


def _weights(name: str, granularity: Granularity, options: list[str], text: str) -> QArgs | None:
    if name in _TABLES:
        if "asym" in options:
            raise QuantizationError(f"scheme {text!r}: {name} is symmetric")
        return QArgs(_TABLES[name], granularity)
    bits = int(name)
    if bits == 16:
        return QArgs(FLOAT16, Granularity(TENSOR))
    if not 2 <= bits <= 8:
        raise QuantizationError(f"scheme {text!r}: weights have 2 to 8 bits, or 16, got {bits}")
    symmetric = bits == 8 if not {"sym", "asym"} & set(options) else "sym" in options
    return QArgs(FORMATS[f"int{bits}" if symmetric or bits == 8 else f"uint{bits}"], granularity, symmetric)


def _inputs(name: str, options: list[str], text: str) -> str:
    if name == "16":
        if {"static", "token"} & set(options):
            raise QuantizationError(f"scheme {text!r}: A16 leaves activations float, so they have no range")
        return WEIGHT_ONLY
    if name != "8":
        raise QuantizationError(f"scheme {text!r}: activations have 8 or 16 bits, got {name}")
    return STATIC if "static" in options else PER_TOKEN


def integer_grid(args: QArgs) -> bool:
    """Whether codes are integers, or a table of integers times a factor: sums of products with 8-bit activations are exact."""
    return args.format.is_integer or args.format is FP4


__all__ = ["CHANNEL", "GROUP", "PER_TENSOR", "TENSOR", "Granularity", "QArgs", "Scheme", "parse"]
