"""The intermediate representation: element types, values, nodes and graphs."""

from qruntime.ir.clone import clone, clone_part, needed_nodes, read_by
from qruntime.ir.graph import (
    QRUNTIME,
    Attribute,
    AttributeType,
    Dim,
    Graph,
    ModelInfo,
    Node,
    TypeInfo,
    UnusedValue,
    Value,
    constant,
    stored_constant,
)
from qruntime.ir.held_codes import HeldCodes, ShareOfCodes, shares_of
from qruntime.ir.marks import LayerMark
from qruntime.ir.stored import StoredTensor

__all__ = [
    "QRUNTIME",
    "Attribute",
    "AttributeType",
    "Dim",
    "Graph",
    "HeldCodes",
    "LayerMark",
    "ModelInfo",
    "Node",
    "ShareOfCodes",
    "StoredTensor",
    "TypeInfo",
    "UnusedValue",
    "Value",
    "clone",
    "clone_part",
    "constant",
    "needed_nodes",
    "read_by",
    "shares_of",
    "stored_constant",
]
