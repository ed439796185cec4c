"""The body of a function that files call, written operator by operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from qruntime.ir import AttributeType
from qruntime.onnx_io.messages import AttributeProto, FunctionProto, NodeProto, OperatorSetIdProto
from qruntime.passes.rewriting import QRUNTIME, as_attribute


class OfCall(NamedTuple):
    """An integer attribute of the call, as the attribute of a node."""

    name: str


class Body:
    """Nodes of the standard domain, written for `opset`, one after the other: `op("Add", "x", "y")` names the result."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[NodeProto] = []
        self.constants: dict[tuple[str, Any], str] = {}

    def __call__(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        output = f"t{len(self.nodes)}"
        self._add(op_type, inputs, output, attributes)
        return output

    def last(self, output: str, op_type: str, *inputs: str, **attributes: Any) -> None:
        """What makes an output of the function."""
        self._add(op_type, inputs, output, attributes)

    def attribute(self, name: str, form: str = "value_int") -> str:
        """The value of an attribute of the call, as a tensor."""
        if (form, name) in self.constants:
            return self.constants[form, name]
        output = self.constants[form, name] = f"t{len(self.nodes)}"
        kind = AttributeType.INT if form == "value_int" else AttributeType.INTS
        reference = AttributeProto(name=form, ref_attr_name=name, type=int(kind))
        self.nodes.append(NodeProto(op_type="Constant", output=[output], attribute=[reference]))
        return output

    def integers(self, *values: int) -> str:
        return self._constant("value_ints", values)

    def integer(self, value: int) -> str:
        return self._constant("value_int", value)

    def number(self, value: float) -> str:
        return self._constant("value_float", value)

    def function(self, name: str, inputs: Sequence[str], outputs: Sequence[str], attributes: Sequence[str]) -> FunctionProto:
        opsets = [OperatorSetIdProto(domain="", version=self.opset)]
        return FunctionProto(
            name=name, domain=QRUNTIME, input=list(inputs), output=list(outputs), attribute=list(attributes), node=self.nodes,
            opset_import=opsets,
        )  # fmt: skip

    def _constant(self, form: str, value: Any) -> str:
        """One node for all that read it."""
        key = form, value
        if key not in self.constants:
            self.constants[key] = self("Constant", **{form: value})
        return self.constants[key]

    def _add(self, op_type: str, inputs: Sequence[str], output: str, attributes: dict[str, Any]) -> None:
        made = [_attribute(name, value) for name, value in attributes.items()]
        self.nodes.append(NodeProto(op_type=op_type, input=list(inputs), output=[output], attribute=made))


def _attribute(name: str, value: Any) -> AttributeProto:
    if isinstance(value, OfCall):
        return AttributeProto(name=name, ref_attr_name=value.name, type=int(AttributeType.INT))
    attribute = as_attribute(value)
    field = {AttributeType.FLOAT: "f", AttributeType.INT: "i", AttributeType.INTS: "ints"}[attribute.type]
    held = list(attribute.value) if attribute.type is AttributeType.INTS else attribute.value
    return AttributeProto(name=name, type=int(attribute.type), **{field: held})
