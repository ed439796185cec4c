"""Definitions of the ONNX operators; importing this package registers them all."""

from qruntime.ops import (  # noqa: F401
    activations,
    binary,
    casting,
    unary,
)
