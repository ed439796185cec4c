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

try:
    from qruntime._kernels import available_isas, isa
except ModuleNotFoundError as error:
    if error.name != "qruntime._kernels":
        raise
    raise ImportError(
        f"{__path__[0]!r} holds sources of qruntime whose kernels are not compiled for this Python. To use an installed "
        "qruntime, start Python in another folder; to use these sources, compile them: pip install -e ."
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
