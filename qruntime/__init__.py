"""Runtime for dynamically quantized ONNX models on CPUs.

    import qruntime
    model = qruntime.load("model.onnx")
    quantized = model.quantize_dynamic()
    outputs = quantized.run({"ids": ids})
    quantized.save("model.int8.onnx")
"""

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
