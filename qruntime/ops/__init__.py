"""Operators by family; importing this package registers them all."""

from qruntime.ops import activations as activations
from qruntime.ops import attention as attention
from qruntime.ops import binary as binary
from qruntime.ops import casting as casting
from qruntime.ops import control_flow as control_flow
from qruntime.ops import convolution as convolution
from qruntime.ops import detection as detection
from qruntime.ops import embedding as embedding
from qruntime.ops import image as image
from qruntime.ops import indexing as indexing
from qruntime.ops import layout as layout
from qruntime.ops import linear as linear
from qruntime.ops import linear_algebra as linear_algebra
from qruntime.ops import loss as loss
from qruntime.ops import ml as ml
from qruntime.ops import normalization as normalization
from qruntime.ops import optimizers as optimizers
from qruntime.ops import pooling as pooling
from qruntime.ops import quantize_linear as quantize_linear
from qruntime.ops import random as random
from qruntime.ops import recurrent as recurrent
from qruntime.ops import reduction as reduction
from qruntime.ops import sequence as sequence
from qruntime.ops import shape as shape
from qruntime.ops import signal as signal
from qruntime.ops import text as text
from qruntime.ops import tree_ensemble as tree_ensemble
from qruntime.ops import unary as unary

# Fast paths that attach to definitions above, and operators of lowered graphs built on them.
from qruntime.ops import elementwise_kernels as elementwise_kernels  # isort: skip
from qruntime.ops import fused_attention as fused_attention  # isort: skip
from qruntime.ops import fused_normalization as fused_normalization  # isort: skip
from qruntime.ops import fused_concat as fused_concat  # isort: skip
from qruntime.ops import quantized_convolution as quantized_convolution  # isort: skip
from qruntime.ops import recurrent_kernels as recurrent_kernels  # isort: skip

# Operators of other domains, defined by means of those above.
from qruntime.ops import contrib as contrib  # isort: skip
