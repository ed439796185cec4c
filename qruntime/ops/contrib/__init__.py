"""Operators of the domain com.microsoft, which ONNX Runtime's tools write into models."""

from qruntime.ops.contrib import activations as activations
from qruntime.ops.contrib import attention as attention
from qruntime.ops.contrib import convolution as convolution
from qruntime.ops.contrib import fused_matmul as fused_matmul
from qruntime.ops.contrib import linear_algebra as linear_algebra
from qruntime.ops.contrib import matmul_nbits as matmul_nbits
from qruntime.ops.contrib import normalization as normalization
from qruntime.ops.contrib import qlinear as qlinear
from qruntime.ops.contrib import quantized_matmul as quantized_matmul
from qruntime.ops.contrib import recurrent as recurrent
from qruntime.ops.contrib import rotary as rotary
