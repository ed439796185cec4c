"""How the weights of a layer are quantized, under torch's names: observers and QConfig.

In torch an observer is an object that watches tensors; here it is a frozen description of what it would
find. The whole weight is known when it is quantized, so nothing has to be watched:

    QConfig(activation=default_dynamic_quant_observer, weight=MinMaxObserver(dtype="qint8", qscheme="per_tensor_symmetric"))

Element types and schemes are torch's names as strings; torch's own objects are accepted and read by name.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from qruntime.errors import QuantizationError

FLOAT32_EPS = 2.0**-23

RANGES = {"qint8": (-128, 127), "quint8": (0, 255), "quint4x2": (0, 15), "qint32": (-(2**31), 2**31 - 1)}
"""Codes of the quantized element types."""

DTYPES = {*RANGES, "float16", "float32"}
SCHEMES = {
    "per_tensor_affine", "per_tensor_symmetric", "per_channel_affine", "per_channel_symmetric",
    "per_channel_affine_float_qparams",
}  # fmt: skip

_SYNONYMS = {"int8": "qint8", "uint8": "quint8", "uint4": "quint4x2", "half": "float16", "int32": "qint32", "float": "float32"}


def dtype_name(dtype: object) -> str:
    """Name of an element type given as a string, a numpy or a torch dtype: np.int8 and torch.qint8 are "qint8"."""
    text = dtype if isinstance(dtype, str) else dtype.__name__ if isinstance(dtype, type) else str(dtype)
    name = text.rpartition(".")[2]
    return _SYNONYMS.get(name, name)


class _WithArgs:
    """`Observer.with_args(…)` and `observer.with_args(…)`: the description with some fields replaced."""

    def __get__(self, instance: Any, owner: type) -> Any:
        def with_args(**changes: Any) -> Any:
            return owner(**changes) if instance is None else replace(instance, **changes)

        return with_args


@dataclass(frozen=True)
class Observer:
    """Base of the descriptions. `quant_min`, `quant_max` None: the whole range of `dtype`, half of it with `reduce_range`.

    Raises QuantizationError for a type, scheme or range that does not exist.
    """

    dtype: str = "quint8"
    qscheme: str = "per_tensor_affine"
    reduce_range: bool = False
    quant_min: int | None = None
    quant_max: int | None = None
    eps: float = FLOAT32_EPS
    is_dynamic: bool = False

    with_args = _WithArgs()

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", dtype_name(self.dtype))
        object.__setattr__(self, "qscheme", str(self.qscheme).rpartition(".")[2])
        name = type(self).__name__
        if self.dtype not in DTYPES:
            raise QuantizationError(f"{name}: dtype must be one of {', '.join(sorted(DTYPES))}, got {self.dtype!r}")
        if self.qscheme not in SCHEMES:
            raise QuantizationError(f"{name}: qscheme must be one of {', '.join(sorted(SCHEMES))}, got {self.qscheme!r}")
        if (self.quant_min is None) != (self.quant_max is None):
            raise QuantizationError(f"{name}: quant_min and quant_max come together, got {self.quant_min} and {self.quant_max}")
        if not self.eps > 0:
            raise QuantizationError(f"{name}: eps must be positive, got {self.eps}")
        if self.dtype in RANGES:
            (least, most), (low, high) = RANGES[self.dtype], self.codes
            if not (least <= low <= 0 <= high <= most and low < high):
                raise QuantizationError(f"{name}: the codes {low} … {high} must hold 0 and lie in {least} … {most} of {self.dtype}")

    @property
    def codes(self) -> tuple[int, int]:
        """Smallest and largest code."""
        low, high = RANGES[self.dtype]
        if self.quant_min is not None and self.quant_max is not None:
            low, high = self.quant_min, self.quant_max
        return (-(-low // 2), high // 2) if self.reduce_range else (low, high)

    @property
    def symmetric(self) -> bool:
        return self.qscheme.endswith("symmetric")

    @property
    def per_channel(self) -> bool:
        return self.qscheme.startswith("per_channel")


@dataclass(frozen=True)
class MinMaxObserver(Observer):
    """The range is that of the values."""


@dataclass(frozen=True)
class MovingAverageMinMaxObserver(Observer):
    """Over a weight, which is seen once, the same as MinMaxObserver."""

    averaging_constant: float = 0.01


@dataclass(frozen=True)
class HistogramObserver(Observer):
    """The range is what makes the squared error smallest. The search is our own, so its ends may differ from torch's."""

    bins: int = 2048


@dataclass(frozen=True)
class PerChannelMinMaxObserver(Observer):
    """One range for every output channel (`ch_axis` 0 of a weight [out, in], however ONNX stores it)."""

    ch_axis: int = 0
    qscheme: str = "per_channel_affine"


@dataclass(frozen=True)
class PlaceholderObserver(Observer):
    """Only says the element type; "float16" stores the weights in half precision."""

    dtype: str = "float32"
    custom_op_name: str = ""
    compute_dtype: str | None = None


@dataclass(frozen=True)
class EngineObserver(Observer):
    """What an engine does with weights of itself: torch's take the whole range in torch's arithmetic, ONNX Runtime's in its own.
    Ours takes the range of least squared error that every output channel can bear (ranges.py).

    `granularity` "tensor": one scale; "channel": one per output channel; None: one, except that our engine gives a layer
    one per channel where one cannot hold all of them. Changed by `with_args` it is an observer like any other.
    """

    dtype: str = "qint8"
    qscheme: str = "per_tensor_symmetric"
    granularity: str | None = None

    def with_args(self, **changes: Any) -> Observer:
        cls = PerChannelMinMaxObserver if self.per_channel else MinMaxObserver
        return cls(**{"dtype": self.dtype, "qscheme": self.qscheme, **changes})


OBSERVERS = {
    cls.__name__: cls
    for cls in (MinMaxObserver, MovingAverageMinMaxObserver, HistogramObserver, PerChannelMinMaxObserver, PlaceholderObserver)
}


class QConfig(NamedTuple):
    """Descriptions for a layer's activations and its weights.

    As in torch's eager mode the activation half has no say over dynamic layers: `activation=` and
    `engine=` of the call do.
    """

    activation: Any
    weight: Any


default_dynamic_quant_observer = PlaceholderObserver(dtype="quint8", quant_min=0, quant_max=255, is_dynamic=True)
engine_weight_observer = EngineObserver()
default_weight_observer = EngineObserver(granularity="tensor")
default_per_channel_weight_observer = EngineObserver(qscheme="per_channel_symmetric", granularity="channel")
default_float_qparams_observer = PerChannelMinMaxObserver(dtype="quint8", qscheme="per_channel_affine_float_qparams")
default_float_qparams_observer_4bit = default_float_qparams_observer.with_args(dtype="quint4x2")

engine_dynamic_qconfig = QConfig(default_dynamic_quant_observer, engine_weight_observer)
default_dynamic_qconfig = QConfig(default_dynamic_quant_observer, default_weight_observer)
per_channel_dynamic_qconfig = QConfig(default_dynamic_quant_observer, default_per_channel_weight_observer)
float16_dynamic_qconfig = QConfig(PlaceholderObserver(dtype="float16", is_dynamic=True), PlaceholderObserver(dtype="float16"))
float_qparams_weight_only_qconfig = QConfig(PlaceholderObserver(), default_float_qparams_observer)
float_qparams_weight_only_qconfig_4bit = QConfig(PlaceholderObserver(), default_float_qparams_observer_4bit)


def weight_observer(qconfig: object, key: object) -> Observer:
    """The weight half of a QConfig, ours or torch's; `key` says in messages where it stands.

    Raises QuantizationError when it is no QConfig.
    """
    if not (type(qconfig).__name__ == "QConfig" and hasattr(qconfig, "weight")):
        raise QuantizationError(
            f"qconfig_spec[{key!r}] must be a QConfig, or None to exclude, got {qconfig!r}; "
            "an element type for the whole call goes into dtype=, and then qconfig_spec is a set"
        )
    observer = qconfig.weight
    if isinstance(observer, type) and issubclass(observer, Observer):
        return observer()
    return observer if isinstance(observer, Observer) else _from_torch(observer, key)


def _from_torch(observer: Any, key: object) -> Observer:
    """Description of a torch observer class, or of what its `with_args` returns."""
    keywords: dict[str, Any] = {}
    while not isinstance(observer, type):
        partial = getattr(observer, "p", observer)
        if not hasattr(partial, "func"):
            break
        keywords = {**partial.keywords, **keywords}
        observer = partial.func
    cls = OBSERVERS.get(getattr(observer, "__name__", ""))
    if cls is None:
        known = ", ".join(OBSERVERS)
        raise QuantizationError(f"qconfig_spec[{key!r}]: the weight observer must be one of {known} or its with_args(…), got {observer!r}")
    names = {field.name for field in fields(cls)}
    return cls(**{name: value for name, value in keywords.items() if name in names})
