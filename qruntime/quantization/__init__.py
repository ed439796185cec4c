"""Dynamic quantization under torch's names, and from file to file under ONNX Runtime's.

    from qruntime.quantization import quantize_dynamic, per_channel_dynamic_qconfig
    quantized = quantize_dynamic(model, {"Linear": per_channel_dynamic_qconfig})
    quantize_dynamic("model.onnx", "model.int8.onnx", per_channel=True)

Models have both as methods: `model.quantize_dynamic()` and, for other schemes than int8, `model.quantize()`, whose steps are here too:

    from qruntime.quantization import AWQ, GPTQ
    model.quantize([AWQ(grid=20), GPTQ(actorder=None)], scheme="W3A16-g64", data=feeds)
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, overload

from qruntime.errors import QuantizationError
from qruntime.quantization.torch_names.qconfig import (
    EngineObserver,
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
    engine_dynamic_qconfig,
    engine_weight_observer,
    float16_dynamic_qconfig,
    float_qparams_weight_only_qconfig,
    float_qparams_weight_only_qconfig_4bit,
    per_channel_dynamic_qconfig,
)

if TYPE_CHECKING:
    from typing import TypeVar

    from qruntime.session.quantize_files import QuantType

    M = TypeVar("M")


@overload
def quantize_dynamic(
    model: M,
    qconfig_spec: Iterable[object] | Mapping[object, object] | None = None,
    dtype: object = "qint8",
    mapping: Iterable[object] | Mapping[object, object] | None = None,
    inplace: bool = False,
    **options: Any,
) -> M: ...


@overload
def quantize_dynamic(
    model_input: str | os.PathLike[str],
    model_output: str | os.PathLike[str],
    op_types_to_quantize: Iterable[str] | None = None,
    per_channel: bool = False,
    **options: Any,
) -> None: ...


def quantize_dynamic(*arguments: Any, **keywords: Any) -> Any:
    """Of a model: `model.quantize_dynamic(…)`, called as torch.quantization.quantize_dynamic is.

    Of a path (or an onnx.ModelProto) and a path: read, quantize, write, with the arguments of
    onnxruntime.quantization.quantize_dynamic (qruntime/session/quantize_files.py).
    """
    first = arguments[0] if arguments else keywords.get("model", keywords.get("model_input"))
    if "model_input" in keywords or isinstance(first, (str, os.PathLike)) or hasattr(first, "SerializeToString"):
        from qruntime.session.quantize_files import quantize_files

        return quantize_files(*arguments, **keywords)
    if first is None:
        raise QuantizationError("quantize_dynamic needs a model, or the paths model_input and model_output")
    if arguments:
        return first.quantize_dynamic(*arguments[1:], **keywords)
    return first.quantize_dynamic(**{name: value for name, value in keywords.items() if name != "model"})


_OF_FINETUNING = {
    "PEQA": "qruntime.quantization.methods.peqa",
    "QLoRA": "qruntime.quantization.methods.qlora",
    "NextToken": "qruntime.quantization.tuning.next_token",
}
"""What model.finetune takes beside names, with arguments."""


def __getattr__(name: str) -> Any:
    if name == "recipes":
        from qruntime.quantization.methods import RECIPES

        return RECIPES
    if name in _OF_FINETUNING:
        return getattr(importlib.import_module(_OF_FINETUNING[name]), name)
    if name == "QuantizedModule":
        from qruntime.quantization.tuning.quantized_module import module_class

        return module_class()
    if name == "QuantType":
        from qruntime.session.quantize_files import QuantType

        return QuantType
    if name in __all__:  # a step, which model.quantize takes beside names, with arguments
        return getattr(importlib.import_module("qruntime.quantization.methods"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "AWQ",
    "GPTQ",
    "LLMQAT",
    "PEQA",
    "QAT",
    "RTN",
    "ActivationMode",
    "ClipRanges",
    "ClusterCaches",
    "ClusterInputs",
    "ClusterRanges",
    "EngineObserver",
    "HistogramObserver",
    "LayerDistillation",
    "LogEqualize",
    "LowRank",
    "MinMaxObserver",
    "MoFQ",
    "MovingAverageMinMaxObserver",
    "NextToken",
    "NormTweaking",
    "OliVe",
    "OmniQuant",
    "OutlierSuppressionPlus",
    "PerChannelMinMaxObserver",
    "PlaceholderObserver",
    "QConfig",
    "QLoRA",
    "QuantEase",
    "QuantType",
    "RowGroups",
    "SmoothQuant",
    "SpQR",
    "default_dynamic_qconfig",
    "default_dynamic_quant_observer",
    "default_float_qparams_observer",
    "default_float_qparams_observer_4bit",
    "default_per_channel_weight_observer",
    "default_weight_observer",
    "engine_dynamic_qconfig",
    "engine_weight_observer",
    "float16_dynamic_qconfig",
    "float_qparams_weight_only_qconfig",
    "float_qparams_weight_only_qconfig_4bit",
    "per_channel_dynamic_qconfig",
    "quantize_dynamic",
    "recipes",
]
