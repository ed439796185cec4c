"""What other tools, and we, put between codes and the layer that reads them: layout operators, directions joined, a cast.

Each of them over a stored constant is a stored constant again.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qruntime.ir import Node, StoredTensor
from qruntime.ir.dtypes import numpy_dtype
from qruntime.ir.formats import FLOAT16
from qruntime.ir.stored import numbers, stack
from qruntime.ops import registry

_FLOAT16, _BFLOAT16 = 10, 16
_LAYOUT = ("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")
OPERATORS = (*_LAYOUT, "Transpose", "Concat")


def read(node: Node) -> StoredTensor | None:
    if node.domain or not node.inputs:
        return None
    first = node.inputs[0]
    stored = None if first is None else first.stored
    if stored is None or any(v is not None and not v.is_constant for v in node.inputs):
        return None
    if node.op_type in ("Cast", "Concat"):
        return None if stored.is_bare else _cast(node, stored) if node.op_type == "Cast" else _joined(node)
    if node.op_type == "Transpose":
        return stored.transposed() if stored.ndim == 2 and tuple(node.attr("perm", (1, 0))) == (1, 0) else None
    if node.op_type in _LAYOUT and stored.has_one_scale and stored.is_plain and stored.format.bits >= 8:
        return _laid_out(node, stored)
    return None


def _cast(node: Node, stored: StoredTensor) -> StoredTensor | None:
    """Wide scales and a cast to the narrower float of a model: the numbers are computed in float32 and rounded once."""
    if stored.format is FLOAT16 or stored.dtype != np.float32 or node.attr("to") not in (_FLOAT16, _BFLOAT16):
        return None
    return replace(stored, dtype=numpy_dtype(node.attr("to")))


def _joined(node: Node) -> StoredTensor | None:
    """Directions of a recurrent layer, each [1, rows, columns]."""
    parts = [None if v is None else v.stored for v in node.inputs]
    found = [part for part in parts if part is not None and part.ndim == 3 and part.shape[0] == 1]
    if node.attr("axis") != 0 or len(found) < len(parts):
        return None
    return stack([part[0] for part in found])


def _laid_out(node: Node, stored: StoredTensor) -> StoredTensor | None:
    spec = registry.find("", node.op_type, node.version)
    if spec is None:
        return None
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    try:
        codes = np.asarray(spec(stored.unpacked(), *(None if v is None else v.data for v in node.inputs[1:]), **attributes))
    except (ValueError, TypeError, IndexError):  # the run will report it, with the node's name
        return None
    scale, zero_point = (None if part is None else numbers(part).reshape((1,) * codes.ndim) for part in (stored.scale, stored.zero_point))
    return stored.with_codes(codes, (scale, zero_point, stored.offset))
