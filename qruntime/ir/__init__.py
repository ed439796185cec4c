"""The intermediate representation: element types, values, nodes and graphs."""

from qruntime.ir.clone import clone
from qruntime.ir.graph import Attribute, AttributeType, Dim, Graph, ModelInfo, Node, TypeInfo, UnusedValue, Value

__all__ = ["Attribute", "AttributeType", "Dim", "Graph", "ModelInfo", "Node", "TypeInfo", "UnusedValue", "Value", "clone"]
