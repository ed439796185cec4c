"""Runtime for dynamically quantized ONNX models on CPUs.

    import qruntime
    model = qruntime.load("model.onnx")
    quantized = model.quantize_dynamic()
    outputs = quantized.run({"ids": ids})
    quantized.save("model.int8.onnx")
"""

from __future__ import annotations

import importlib
from types import ModuleType

from qruntime._kernels import available_isas, isa
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

__version__ = "0.1.0"

__all__ = [
    "InputError",
    "InvalidModel",
    "KernelUnavailable",
    "Model",
    "QRuntimeError",
    "QuantizationError",
    "RunError",
    "SaveError",
    "TensorInfo",
    "UnsupportedModel",
    "UnsupportedOp",
    "available_isas",
    "isa",
    "load",
]


def __getattr__(name: str) -> ModuleType:
    """`qruntime.quantization` is there without an import of its own, but only models that are quantized wait for it."""
    if name == "quantization":
        return importlib.import_module("qruntime.quantization")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
