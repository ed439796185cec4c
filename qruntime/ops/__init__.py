"""Operators by family; importing this package registers them all."""

from qruntime.ops import convolution as convolution
from qruntime.ops import pooling as pooling
from qruntime.ops import quantize_linear as quantize_linear
