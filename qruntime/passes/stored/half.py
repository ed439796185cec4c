"""`Cast(weight in float16)` to float32, before a layer that is marked as quantized."""

from __future__ import annotations

import numpy as np

from qruntime.ir import Attribute, AttributeType, HeldCodes, Node, StoredTensor, TypeInfo, Value, constant
from qruntime.ir.formats import FLOAT16

_FLOAT = 1


def read(node: Node) -> StoredTensor | None:
    source = node.input(0) if node.is_op("Cast") and node.attr("to") == _FLOAT else None
    if source is None or source.data is None or source.data.dtype != np.float16:
        return None
    if not any(user.mark is not None for user, _ in node.outputs[0].uses):
        return None  # a float16 constant of the model's own: folded as any other
    return StoredTensor(FLOAT16, HeldCodes(source.data))


def write(name: str, stored: StoredTensor, version: int, nodes: list[Node]) -> Value | None:
    if stored.format is not FLOAT16 or version < 6:
        return None
    output = Value(f"{name}_dequantized", TypeInfo("tensor", _FLOAT, stored.shape))
    to = {"to": Attribute(AttributeType.INT, _FLOAT)}
    nodes.append(Node("Cast", [constant(f"{name}_float16", stored.unpacked())], [output], to, version=version))
    return output
