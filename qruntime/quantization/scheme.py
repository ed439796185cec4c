"""What the numbers of a layer are to look like: `W4A16-g128`, `W8A8-static`, `Wnf4A16-g64`, `Wfp4Afp8-g256`, `W4A4-KV4`.

    W<format>A<format>[-KV<bits>][-g<size> | -channel | -tensor][-sym | -asym][-static | -token][-f16 | -pow2 | -bilevel | -double]

Formats are 2 to 8 (bits of integers), 16, nf4, fp4, fp8 and ovp4. Weights have a scale per output channel unless -g says one
for every <size> input channels of it, or -tensor one for all; integers are affine below 8 bits and symmetric at 8 unless -sym
or -asym say otherwise. Activations have 2 to 8 bits or are fp8 or ovp4; integers are affine, and their ranges are those of each
token at every run, unless -static gives one range to the tensor for ever; ovp4 is static in any case. A16 leaves activations
float. -KV4 and -KV8 say how the keys and values of a cache are stored. -f16 stores scales in float16, -pow2 rounds them up to
powers of two, -bilevel stores scales and zero points in 3 bits, -double scales in 8.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from qruntime.errors import QuantizationError
from qruntime.ir.formats import FLOAT16, FORMATS, FP4, FP8, NF4, OVP4, UINT4, UINT8, UNSIGNED, Format
from qruntime.ir.marks import PER_TENSOR, PER_TOKEN, STATIC

TENSOR, CHANNEL, GROUP = "tensor", "channel", "group"
TOKEN, CLUSTER = "token", "cluster"
FLOAT32, HALF, POW2, ROW_POW2, BILEVEL, DOUBLE = "float32", "float16", "pow2", "row-pow2", "bilevel", "double"

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
class ScaleCoding:
    """How scales are stored: as float32, float16, powers of two, or as codes in their turn, in blocks of `group` rows.

    pow2      the next power of two; Wu et al., ZeroQuant-FP (2023), constraint M1
    row-pow2  of the groups of a row the largest as float32, the others 2⁻ⁿ of it, n ≤ 8; the same, constraint M2
    bilevel   scales and zero points, which need not be whole, as codes 0 … 2^bits − 1 between the least and the greatest of a
              block, with a scale and an offset in float16; Dettmers et al., SpQR (2023)
    double    scales as symmetric codes around their mean, with a scale in float32; Dettmers et al., QLoRA (2023)
    """

    kind: str = FLOAT32
    bits: int = 0
    group: int = 0

    def __post_init__(self) -> None:
        if self.kind not in (FLOAT32, HALF, POW2, ROW_POW2, BILEVEL, DOUBLE):
            raise QuantizationError(f"scales must be float32, float16, pow2, row-pow2, bilevel or double, got {self.kind!r}")
        bits, group = _SECOND_LEVEL.get(self.kind, (0, 0))
        object.__setattr__(self, "bits", self.bits or bits)
        object.__setattr__(self, "group", self.group or group)
        if not self.has_codes and (self.bits or self.group):
            raise QuantizationError(f"scales in {self.kind} have no bits and no group, got {self.bits} and {self.group}")
        if self.has_codes and not (2 <= self.bits <= 8 and self.group >= 2):
            raise QuantizationError(f"{self.kind} scales have 2 to 8 bits in blocks of 2 rows at least, got {self.bits} and {self.group}")

    @property
    def has_codes(self) -> bool:
        return self.kind in _SECOND_LEVEL

    def __str__(self) -> str:
        return f"{self.kind} of {self.bits} bits in {self.group} rows" if self.has_codes else self.kind


_SECOND_LEVEL = {BILEVEL: (3, 16), DOUBLE: (8, 256)}
"""Bits and rows of a block, as in the papers."""


@dataclass(frozen=True)
class QArgs:
    """How weights are stored. `symmetric`: zero point 0; of tables always. `scales`: a ScaleCoding or the kind of one."""

    format: Format
    granularity: Granularity = field(default_factory=Granularity)
    symmetric: bool = True
    scales: ScaleCoding = field(default_factory=ScaleCoding)

    def __post_init__(self) -> None:
        if isinstance(self.scales, str):
            object.__setattr__(self, "scales", ScaleCoding(self.scales))
        if not isinstance(self.scales, ScaleCoding):
            raise QuantizationError(f"scales must be a ScaleCoding or the kind of one, got {self.scales!r}")
        if self.format is FLOAT16 and self.scales.kind != FLOAT32:
            raise QuantizationError(f"float16 weights have no scales, in {self.scales.kind} or otherwise")
        if self.scales.has_codes and self.granularity.kind == TENSOR:
            raise QuantizationError(f"{self.scales.kind} scales are for groups or channels: a tensor has one scale")
        if self.scales.kind == BILEVEL and (self.symmetric or not self.format.is_integer or self.format.is_signed):
            raise QuantizationError(f"bilevel scales are for affine integers without a sign, got {self.format}; write -asym")
        if self.format.is_paired and self.granularity.size % 2:
            raise QuantizationError(f"groups of {self.format} have an even size, since no pair has two scales, got {self.granularity.size}")

    def __str__(self) -> str:
        parts = [self.format.name, str(self.granularity)]
        if self.format.is_integer and not self.symmetric:
            parts.append("affine")
        return " ".join(parts if self.scales.kind == FLOAT32 else [*parts, f"scales {self.scales}"])


@dataclass(frozen=True)
class Inputs:
    """How the activations that a layer reads are quantized.

    Integers are affine, codes 0 … 2^bits − 1 of a range that holds 0. The ranges belong to each `token`, a row of the tensor;
    to the whole `tensor`; or to each of so many `clusters` of its channels. `is_static`: from calibration data and for ever,
    else anew at every run. fp8 is symmetric, the largest of a token at 448; ovp4 has one static scale for the tensor, which the
    data choose.
    """

    format: Format = UINT8
    granularity: str = TOKEN
    clusters: int = 0
    is_static: bool = False

    def __post_init__(self) -> None:
        if self.format not in (*UNSIGNED, FP8, OVP4):
            raise QuantizationError(f"activations of a scheme have 2 to 8 bits or are fp8 or ovp4, got {self.format}")
        if self.granularity not in (TOKEN, TENSOR, CLUSTER):
            raise QuantizationError(f"granularity of activations must be token, tensor or cluster, got {self.granularity!r}")
        if (self.granularity == CLUSTER) != (self.clusters > 0) or self.clusters < 0:
            raise QuantizationError(
                f"granularity cluster, and no other, has a number of clusters, got {self.granularity!r} with {self.clusters}"
            )
        if self.granularity == (TOKEN if self.is_static else CLUSTER):
            when = "static" if self.is_static else "found at every run"
            raise QuantizationError(f"granularity {self.granularity} of activations cannot be {when}")
        if self.format is OVP4 and (self.granularity != TENSOR or not self.is_static):
            raise QuantizationError(f"ovp4 activations of a scheme have a static scale for the tensor, got granularity {self.granularity}")
        if self.format is FP8 and self.granularity != TOKEN:
            raise QuantizationError(f"fp8 activations of a scheme have a scale for each token, got granularity {self.granularity}")

    @property
    def ranges(self) -> str:
        """What a mark says of them (ir/marks.py)."""
        return STATIC if self.is_static else PER_TOKEN if self.granularity == TOKEN else PER_TENSOR

    def __str__(self) -> str:
        ranges = f"in {self.clusters} clusters" if self.clusters else f"per {self.granularity}"
        return f"{self.format} activations {ranges}{', static' if self.is_static else ''}"


@dataclass(frozen=True)
class Scheme:
    """`weights` None: they stay float. `inputs` None: activations stay float. `cache`: of keys and values, None: float."""

    weights: QArgs | None
    inputs: Inputs | None = None
    cache: Format | None = None

    def __post_init__(self) -> None:
        if self.inputs is not None and (self.weights is None or (self.inputs.format is not FP8 and not integer_grid(self.weights))):
            raise QuantizationError(
                f"a scheme with {self.inputs.format} activations needs weights of 2 to 8 bits, fp4 or ovp4, "
                f"got {self.weights or 'float'}; write A16"
            )

    @property
    def needs_data(self) -> bool:
        return self.inputs is not None and self.inputs.is_static

    @property
    def per_token(self) -> Scheme:
        """The same with activations in ranges of each token, of 8 bits where pairs have no such."""
        if self.inputs is None:
            return self
        return replace(self, inputs=Inputs(UINT8 if self.inputs.format.is_paired else self.inputs.format))

    def __str__(self) -> str:
        cache = "" if self.cache is None else f", {self.cache} cache"
        return f"{self.weights or 'float'} weights, {self.inputs or 'float activations'}{cache}"


_NAMED = {"nf4": NF4, "fp4": FP4, "fp8": FP8, "ovp4": OVP4}
_NAMED_INPUTS = {"fp8": Inputs(FP8), "ovp4": Inputs(OVP4, TENSOR, is_static=True)}
_SCALES = {"f16": HALF, "pow2": POW2, "bilevel": BILEVEL, "double": DOUBLE}
_CACHES = {"kv4": UINT4, "kv8": UINT8}
_TEXT = re.compile(r"W(?P<weights>nf4|fp4|fp8|ovp4|\d+)A(?P<inputs>[a-z]+\d|\d+)(?P<rest>(-[A-Za-z]+\d*)*)", re.IGNORECASE)
_KNOWN = "W4A16-g128, W8A8, W8A8-static, Wnf4A16-g64, Wfp4Afp8-g256, W4A4-KV4, W3A16"


def parse(text: str | Scheme) -> Scheme:
    """The scheme that `text` names. Raises QuantizationError saying which part means nothing."""
    if isinstance(text, Scheme):
        return text
    found = _TEXT.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise QuantizationError(f"scheme must be like {_KNOWN}, got {text!r}")
    options = [option.lower() for option in found["rest"].split("-") if option]
    granularity, rest = _granularity(options, text)
    caches = [option for option in rest if option in _CACHES]
    if len(caches) > 1:
        raise QuantizationError(f"scheme {text!r} has {' and '.join(caches)}: one of them")
    rest = [option for option in rest if option not in _CACHES]
    scales = [option for option in rest if option in _SCALES]
    if len(scales) > 1:
        raise QuantizationError(f"scheme {text!r} has {' and '.join(scales)}: one of them")
    rest = [option for option in rest if option not in scales]
    unknown = [option for option in rest if option not in ("sym", "asym", "static", "token")]
    if unknown or len(set(rest)) < len(rest) or {"sym", "asym"} <= set(rest) or {"static", "token"} <= set(rest):
        option = unknown[0] if unknown else rest[-1]
        raise QuantizationError(f"scheme {text!r}: {option!r} means nothing there; schemes are like {_KNOWN}")
    weights, inputs = _weights(found["weights"].lower(), granularity, [*rest, *scales], text), _inputs(found["inputs"].lower(), rest, text)
    if scales and weights is not None:
        weights = replace(weights, scales=ScaleCoding(_SCALES[scales[0]]))
    return Scheme(weights, inputs, _CACHES[caches[0]] if caches else None)


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
    if name in _NAMED:
        if "asym" in options:
            raise QuantizationError(f"scheme {text!r}: {name} is symmetric")
        return QArgs(_NAMED[name], granularity)
    bits = int(name)
    if bits == 16:
        return QArgs(FLOAT16, Granularity(TENSOR))
    if not 2 <= bits <= 8:
        raise QuantizationError(f"scheme {text!r}: weights have 2 to 8 bits, or 16, got {bits}")
    symmetric = bits == 8 if not {"sym", "asym"} & set(options) else "sym" in options
    is_signed = symmetric or (bits == 8 and BILEVEL not in options)
    return QArgs(FORMATS[f"{'int' if is_signed else 'uint'}{bits}"], granularity, symmetric)


def _inputs(name: str, options: list[str], text: str) -> Inputs | None:
    is_static = "static" in options
    if name in _NAMED_INPUTS:
        made = _NAMED_INPUTS[name]
        if ("token" if made.is_static else "static") in options:
            how = "one static scale" if made.is_static else "a scale for each token"
            raise QuantizationError(f"scheme {text!r}: {name} activations have {how}; leave the option out")
        return made
    if name == "16":
        if {"static", "token"} & set(options):
            raise QuantizationError(f"scheme {text!r}: A16 leaves activations float, so they have no range")
        return None
    if name not in map(str, range(2, 9)):
        raise QuantizationError(f"scheme {text!r}: activations have 2 to 8 bits, or 16, or are fp8 or ovp4, got {name}")
    return Inputs(FORMATS[f"uint{name}"], TENSOR if is_static else TOKEN, is_static=is_static)


def integer_grid(args: QArgs) -> bool:
    """Whether codes stand for integers, or for integers times a factor: sums of products with integer activations are exact."""
    return args.format.is_integer or args.format.is_paired or args.format is FP4


__all__ = ["CHANNEL", "CLUSTER", "GROUP", "TENSOR", "TOKEN", "Granularity", "Inputs", "QArgs", "ScaleCoding", "Scheme", "parse"]
