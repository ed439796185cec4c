"""Runtime for dynamically quantized ONNX models on CPUs.

    import qruntime
    model = qruntime.load("model.onnx")
    quantized = model.quantize_dynamic()
    outputs = quantized.run({"ids": ids})
    quantized.save("model.int8.onnx")

docs/quantization.md is where to read on.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

try:
    from qruntime._kernels import available_isas, isa
except ModuleNotFoundError as error:
    if error.name != "qruntime._kernels":
        raise
    raise ImportError(
        f"{__path__[0]!r} holds sources of qruntime whose kernels are not compiled for this Python. To use an installed "
        "qruntime, keep that folder off sys.path: start Python, or `qruntime convert` in place of tools/convert.py, elsewhere; to use "
        "these sources, compile them: pip install -e ."
    ) from None
from qruntime.errors import (
    InputError,
    InvalidModel,
    KernelUnavailable,
    QRuntimeError,
    QuantizationError,
    RunError,
    SaveError,
    UnsupportedModel,
    UnsupportedOp,
)
from qruntime.model import Model, TensorInfo, load

if TYPE_CHECKING:
    from qruntime.session.inference_session import InferenceSession, ModelMetadata, NodeArg
    from qruntime.session.options import (
        ExecutionMode,
        ExecutionOrder,
        GraphOptimizationLevel,
        RunOptions,
        SessionOptions,
        disable_telemetry_events,
        enable_telemetry_events,
        get_all_providers,
        get_available_providers,
        get_device,
        set_default_logger_severity,
        set_default_logger_verbosity,
    )
    from qruntime.session.values import IOBinding, OrtValue

__version__ = "0.1.0"

__all__ = [
    "ExecutionMode",
    "ExecutionOrder",
    "GraphOptimizationLevel",
    "IOBinding",
    "InferenceSession",
    "InputError",
    "InvalidModel",
    "KernelUnavailable",
    "Model",
    "ModelMetadata",
    "NodeArg",
    "OrtValue",
    "QRuntimeError",
    "QuantizationError",
    "RunError",
    "RunOptions",
    "SaveError",
    "SessionOptions",
    "TensorInfo",
    "UnsupportedModel",
    "UnsupportedOp",
    "available_isas",
    "disable_telemetry_events",
    "enable_telemetry_events",
    "get_all_providers",
    "get_available_providers",
    "get_device",
    "isa",
    "load",
    "set_default_logger_severity",
    "set_default_logger_verbosity",
]

_LATER = {
    "inference_session": ("InferenceSession", "ModelMetadata", "NodeArg"),
    "options": (
        "ExecutionMode", "ExecutionOrder", "GraphOptimizationLevel", "RunOptions", "SessionOptions",
        "disable_telemetry_events", "enable_telemetry_events", "get_all_providers", "get_available_providers",
        "get_device", "set_default_logger_severity", "set_default_logger_verbosity",
    ),
    "values": ("IOBinding", "OrtValue"),
}  # fmt: skip
"""Names of ONNX Runtime, by the module of qruntime.session that has them: who does not use them does not wait for them."""


def __getattr__(name: str) -> Any:
    """`qruntime.quantization` is there without an import of its own, but only models that are quantized wait for it."""
    if name == "quantization":
        return importlib.import_module("qruntime.quantization")
    for module, names in _LATER.items():
        if name in names:
            return getattr(importlib.import_module(f"qruntime.session.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "quantization"})
