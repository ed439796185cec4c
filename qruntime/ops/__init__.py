"""Operators by family. The families here are those that nearly every model needs: they come with the package, so that
loading a model does not wait for them. `families.py` says where to find the others."""

from qruntime.ops import activations as activations
from qruntime.ops import binary as binary
from qruntime.ops import casting as casting
from qruntime.ops import indexing as indexing
from qruntime.ops import layout as layout
from qruntime.ops import linear as linear
from qruntime.ops import linear_algebra as linear_algebra
from qruntime.ops import normalization as normalization
from qruntime.ops import quantize_linear as quantize_linear
from qruntime.ops import reduction as reduction
from qruntime.ops import shape as shape
from qruntime.ops import unary as unary

# Fast paths that attach to definitions above, and operators of lowered graphs built on them.
from qruntime.ops import elementwise_kernels as elementwise_kernels  # isort: skip
from qruntime.ops import fused_attention as fused_attention  # isort: skip
from qruntime.ops import fused_normalization as fused_normalization  # isort: skip
