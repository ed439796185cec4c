"""Dynamic quantization under torch's names.

    from qruntime.quantization import quantize_dynamic, per_channel_dynamic_qconfig
    quantized = quantize_dynamic(model, {"Linear": per_channel_dynamic_qconfig})
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from qruntime.quantization.qconfig import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
    QConfig,
    default_dynamic_qconfig,
    default_dynamic_quant_observer,
    default_float_qparams_observer,
    default_float_qparams_observer_4bit,
    default_per_channel_weight_observer,
    default_weight_observer,
    float16_dynamic_qconfig,
    float_qparams_weight_only_qconfig,
    float_qparams_weight_only_qconfig_4bit,
    per_channel_dynamic_qconfig,
)

if TYPE_CHECKING:
    from typing import TypeVar

    M = TypeVar("M")


def quantize_dynamic(
    model: M,
    qconfig_spec: Iterable[object] | Mapping[object, object] | None = None,
    dtype: object = "qint8",
    mapping: Iterable[object] | Mapping[object, object] | None = None,
    inplace: bool = False,
    **options: Any,
) -> M:
    """`model.quantize_dynamic(…)`, called as torch.quantization.quantize_dynamic is."""
    return model.quantize_dynamic(qconfig_spec, dtype, mapping, inplace, **options)  # type: ignore[attr-defined]


__all__ = [
    "HistogramObserver",
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "PerChannelMinMaxObserver",
    "PlaceholderObserver",
    "QConfig",
    "default_dynamic_qconfig",
    "default_dynamic_quant_observer",
    "default_float_qparams_observer",
    "default_float_qparams_observer_4bit",
    "default_per_channel_weight_observer",
    "default_weight_observer",
    "float16_dynamic_qconfig",
    "float_qparams_weight_only_qconfig",
    "float_qparams_weight_only_qconfig_4bit",
    "per_channel_dynamic_qconfig",
    "quantize_dynamic",
]
