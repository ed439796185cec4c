"""Operators by family; importing this package registers them all."""

from qruntime.ops import activations as activations
from qruntime.ops import binary as binary
from qruntime.ops import casting as casting
from qruntime.ops import indexing as indexing
from qruntime.ops import layout as layout
from qruntime.ops import reduction as reduction
from qruntime.ops import shape as shape
from qruntime.ops import unary as unary
