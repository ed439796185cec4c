"""The one family of exceptions. *Invalid* and *unsupported* are different classes on purpose.

Every message says where (file, node and operator), what was needed, what came and what to do next.
"""

from __future__ import annotations


class QRuntimeError(Exception):
    """Root of every error that qruntime raises deliberately."""


class InvalidModel(QRuntimeError):
    """The bytes or the graph break the ONNX format; no runtime could run them."""


class UnsupportedModel(QRuntimeError):
    """A valid model that needs something qruntime does not have."""


class UnsupportedOp(UnsupportedModel):
    """Operators without any definition; the message lists all of them at once."""


class InputError(QRuntimeError, ValueError):
    """What was fed to a model (or named to a call) does not fit it."""


class SettingError(InputError):
    """An environment variable whose value means nothing."""


class RunError(QRuntimeError, RuntimeError):
    """A node failed while running; the message names it and its inputs."""


class QuantizationError(QRuntimeError, ValueError):
    """A quantization request that cannot be carried out as asked."""


class CalibrationError(QuantizationError):
    """Data to calibrate on that are missing, or do not fit the model."""


class PackageMissing(QuantizationError):
    """A request needs an optional package that is not installed; the message says how to get it."""


class SaveError(QRuntimeError):
    """The model could not be written; what was on disk before is still there."""


class KernelUnavailable(QRuntimeError):
    """A forced instruction set that this CPU or build does not offer."""


def counted(number: int, noun: str) -> str:
    """How messages say a number of things: "1 input", "2 inputs"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
