"""`Graph` → ONNX files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from qruntime.errors import InvalidModel, SaveError, UnsupportedModel
from qruntime.ir import Attribute, AttributeType, Graph, ModelInfo, Node, StoredTensor, TypeInfo, UnusedValue, Value
from qruntime.ir.dtypes import type_name
from qruntime.onnx_io import files, tensors, wire
from qruntime.onnx_io.declarations import FIELD_OF_TYPE
from qruntime.onnx_io.messages import (
    AttributeProto,
    DimensionProto,
    ElementTypeProto,
    FunctionProto,
    GraphProto,
    MapTypeProto,
    ModelProto,
    NodeProto,
    OperatorSetIdProto,
    StringStringEntryProto,
    TensorProto,
    TensorShapeProto,
    TensorTypeProto,
    TypeProto,
    ValueInfoProto,
)
from qruntime.onnx_io.opset_choice import choose_opsets

EMBEDDED_LIMIT = (1 << 31) - (1 << 20)
"""Protobuf parsers refuse messages of 2 GiB; above this, tensors go to an external file unless asked otherwise."""

_EXTERNAL_MIN = 1024  # shape inference wants to see small constants in the model itself

_MIN_IR = 4  # earlier versions list every initializer as an input
_MIN_IR_OF_TYPE = {
    **dict.fromkeys(("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"), 9),
    **dict.fromkeys(("int4", "uint4"), 10),
    "float4_e2m1fn": 11,
    "float8_e8m0fnu": 12,
    **dict.fromkeys(("int2", "uint2"), 13),
    **dict.fromkeys(("float6_e2m3fn", "float6_e3m2fn"), 14),
}
_IR_WITH_FUNCTIONS, _IR_WITH_NODE_METADATA = 8, 10


def save_graph(
    graph: Graph,
    info: ModelInfo,
    path: str | os.PathLike,
    *,
    external_data: bool | None = None,
    metadata: Mapping[str, str] | None = None,
    functions: Sequence[FunctionProto] = (),
) -> None:
    """Write a model that other runtimes open too.

    With `external_data` tensors of 1 KB and more go to `<path>.data`; None does so only above the 2 GB that
    protobuf allows. `metadata` is added to the model's, `functions` are those that it
    calls. Files appear under their names only when they are complete;
    on SaveError what was there before is untouched. The model being overwritten may be the one that was loaded.
    """
    path = os.fspath(path)
    data_path = f"{path}.data"
    try:
        model = _Exporter(graph, info, metadata or {}, functions).model()
        parts = wire.encode(model)
        size = sum(map(wire.part_size, parts))
        if external_data is None:
            external_data = size > EMBEDDED_LIMIT
        if not external_data:
            if size > EMBEDDED_LIMIT:
                raise SaveError(f"the model takes {size} bytes, more than one protobuf file can; use external_data=True")
            files.write({path: parts}, replaced=[data_path])
            return
        data = _move_out(model, os.path.basename(data_path))
        written = {data_path: data, path: wire.encode(model)} if data else {path: wire.encode(model)}
        files.write(written, replaced=[data_path])
    except OSError as error:
        raise SaveError(f"cannot write {path!r}: {error.strerror or error}; nothing was changed") from error
    except SaveError as error:
        raise SaveError(f"cannot write {path!r}: {error}") from error


def serialize(
    graph: Graph, info: ModelInfo, *, metadata: Mapping[str, str] | None = None, functions: Sequence[FunctionProto] = ()
) -> bytes:
    """The bytes of the model file; SaveError above 2 GB."""
    parts = wire.encode(_Exporter(graph, info, metadata or {}, functions).model())
    if sum(map(wire.part_size, parts)) > EMBEDDED_LIMIT:
        raise SaveError("the model exceeds 2 GB, the limit of one protobuf message; save it to a file, and load that")
    return b"".join(map(wire.part_bytes, parts))


def _move_out(model: ModelProto, location: str) -> list[wire.Part]:
    """Turn the large initializers of a model into references; returns the pieces of the file they refer to."""
    parts: list[wire.Part] = []
    end = 0
    assert model.graph is not None
    for tensor in model.graph.initializer:
        raw: wire.Part = vars(tensor).get("raw_data", b"")
        size = wire.part_size(raw)
        if size < _EXTERNAL_MIN:
            continue
        gap = -end % (4096 if size >= 1 << 20 else 64)
        if gap:
            parts.append(bytes(gap))
        parts.append(raw)
        entries = {"location": location, "offset": str(end + gap), "length": str(size)}
        end += gap + size
        del vars(tensor)["raw_data"]
        tensor.external_data = _entries(entries)
        tensor.data_location = tensors.EXTERNAL
    return parts


class _Names:
    """Gives every value of a model a name of its own, its present one where possible."""

    def __init__(self) -> None:
        self._used: set[str] = set()
        self._names: dict[Value, str] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._used

    def has(self, value: Value) -> bool:
        return value in self._names

    def __getitem__(self, value: Value) -> str:
        name = self._names.get(value)
        return self.give(value, value.name) if name is None else name

    def give(self, value: Value, wanted: str) -> str:
        name = self._names[value] = self.fresh(wanted)
        return name

    def fresh(self, wanted: str) -> str:
        name, number = wanted or "value", 0
        while name in self._used:
            number += 1
            name = f"{wanted or 'value'}_{number}"
        self._used.add(name)
        return name


class _Exporter:
    """Builds the messages of one model."""

    def __init__(self, graph: Graph, info: ModelInfo, metadata: Mapping[str, str], functions: Sequence[FunctionProto]):
        self.functions = list(functions)
        self.graph = graph
        self.info = info
        self.metadata = {**info.metadata, **metadata}
        self.names = _Names()
        self.initializers: dict[int, tuple[str, np.ndarray | StoredTensor]] = {}  # by identity of what they hold: shared ones once
        self.element_types: set[int] = set()
        self.has_identity = False
        self.has_node_metadata = False

    def model(self) -> ModelProto:
        try:
            self.graph.check()
            proto = self.main_graph()
            opsets = choose_opsets(self.graph, self.info.opset_imports, needs_default=self.has_identity)
        except (InvalidModel, UnsupportedModel) as error:
            raise SaveError(str(error)) from error
        info = self.info
        model = ModelProto(ir_version=self.ir_version(), graph=proto)
        model.opset_import = [OperatorSetIdProto(domain=d, version=v) for d, v in opsets.items()]
        for name, value in (
            ("producer_name", info.producer_name),
            ("producer_version", info.producer_version),
            ("domain", info.domain),
            ("model_version", info.model_version),
            ("doc_string", info.doc),
        ):
            if value:
                setattr(model, name, value)
        if self.functions:
            model.functions = self.functions
        if self.metadata:
            model.metadata_props = _entries(self.metadata)
        return model

    def ir_version(self) -> int:
        needed = [_MIN_IR_OF_TYPE.get(type_name(code), 0) for code in self.element_types]
        if self.functions:
            needed.append(_IR_WITH_FUNCTIONS)
        if self.has_node_metadata:
            needed.append(_IR_WITH_NODE_METADATA)
        return max(self.info.ir_version, _MIN_IR, *needed)

    def main_graph(self) -> GraphProto:
        graph, names = self.graph, self.names
        for value in graph.inputs:
            if not value.name or names.give(value, value.name) != value.name:
                raise SaveError(f"the name of input {value.name!r} is empty or repeated")
        inputs = set(graph.inputs)
        copied: list[tuple[Value, str]] = []
        for value, name in zip(graph.outputs, graph.output_names, strict=True):
            if value in inputs and value.name == name:
                continue
            if not name or name in names:
                raise SaveError(f"the name of output {name!r} is empty, repeated or that of another input")
            if _made_in(value, graph) and not names.has(value):
                names.give(value, name)
            else:
                names.fresh(name)
                copied.append((value, name))
        nodes = [self.node(node) for node in graph.nodes]
        nodes += [self.identity(value, name) for value, name in copied]
        public = inputs.union(graph.outputs)
        proto = GraphProto(name=graph.name or "graph", node=nodes)
        proto.input = [self.value_info(value.type, names[value]) for value in graph.inputs]
        proto.output = [self.value_info(kind, name) for name, kind in graph.described_outputs()]
        proto.value_info = [
            self.value_info(value.type, names[value])
            for node in graph.nodes
            for value in node.outputs
            if value.type is not None and value not in public and not isinstance(value, UnusedValue)
        ]
        defaults: list[tuple[str, np.ndarray | StoredTensor]] = [(names[value], data) for value, data in graph.input_defaults.items()]
        proto.initializer = [self.tensor(data, name) for name, data in (*defaults, *self.initializers.values())]
        if graph.doc:
            proto.doc_string = graph.doc
        return proto

    def subgraph(self, graph: Graph) -> GraphProto:
        names = self.names
        for value in graph.inputs:
            names.give(value, value.name)
        nodes = [self.node(node) for node in graph.nodes]
        outputs: dict[str, ValueInfoProto] = {}
        for value, (_, kind) in zip(graph.outputs, graph.described_outputs(), strict=True):
            name = names[value] if _made_in(value, graph) else ""
            if not name or name in outputs:
                name = names.fresh(f"{value.name}_out")
                nodes.append(self.identity(value, name))
            outputs[name] = self.value_info(kind, name)
        proto = GraphProto(name=graph.name or "subgraph", node=nodes)
        proto.input = [self.value_info(value.type, names[value]) for value in graph.inputs]
        proto.output = list(outputs.values())
        if graph.doc:
            proto.doc_string = graph.doc
        return proto

    def node(self, node: Node) -> NodeProto:
        proto = NodeProto(op_type=node.op_type)
        proto.input = [self.name_read(value) for value in node.inputs]
        proto.output = _trimmed(["" if isinstance(v, UnusedValue) and not v.uses else self.names[v] for v in node.outputs])
        for field, text in (
            ("name", node.name),
            ("domain", node.domain),
            ("overload", node.overload),
            ("doc_string", node.doc),
        ):
            if text:
                setattr(proto, field, text)
        if node.attributes:
            proto.attribute = [self.attribute(name, item, node) for name, item in node.attributes.items()]
        if node.metadata:
            proto.metadata_props = _entries(node.metadata)
            self.has_node_metadata = True
        return proto

    def identity(self, value: Value, name: str) -> NodeProto:
        self.has_identity = True
        return NodeProto(op_type="Identity", input=[self.name_read(value)], output=[name], name=self.names.fresh(name + "_copy"))

    def name_read(self, value: Value | None) -> str:
        """Name by which a node reads `value`; constants become initializers on the way."""
        if value is None:
            return ""
        held = value.stored if value.data is None else value.data
        if held is None:
            return self.names[value]
        known = self.initializers.get(id(held))
        if known is None:
            known = self.initializers[id(held)] = (self.names[value], held)
        return known[0]

    def attribute(self, name: str, attribute: Attribute, node: Node) -> AttributeProto:
        kind, value = attribute
        field = FIELD_OF_TYPE[kind][1]
        try:
            encoded = [self.attribute_item(item, kind) for item in (value if kind in _LISTS else (value,))]
        except (TypeError, ValueError, AttributeError) as error:
            raise SaveError(f"{node.label}: attribute {name!r} is no {kind.name}: {error}") from error
        proto = AttributeProto(name=name, type=int(kind))
        setattr(proto, field, encoded if kind in _LISTS else encoded[0])
        return proto

    def attribute_item(self, value: Any, kind: AttributeType) -> Any:
        if kind in (AttributeType.INT, AttributeType.INTS):
            return int(value)
        if kind in (AttributeType.FLOAT, AttributeType.FLOATS):
            return np.float32(value)
        if kind in (AttributeType.STRING, AttributeType.STRINGS):
            return value if isinstance(value, bytes) else value.encode("utf-8")
        if kind in (AttributeType.GRAPH, AttributeType.GRAPHS):
            return self.subgraph(value)
        if kind in (AttributeType.TYPE_PROTO, AttributeType.TYPE_PROTOS):
            return self.type_proto(value)
        if kind in (AttributeType.TENSOR, AttributeType.TENSORS):
            return self.tensor(value, "")
        raise ValueError("sparse tensors are made dense when a model is read")

    def tensor(self, data: np.ndarray | StoredTensor, name: str) -> TensorProto:
        proto = tensors.encode(data, name)
        self.element_types.add(proto.data_type)
        return proto

    def value_info(self, kind: TypeInfo | None, name: str) -> ValueInfoProto:
        proto = ValueInfoProto(name=name)
        if kind is not None:
            proto.type = self.type_proto(kind)
        return proto

    def type_proto(self, kind: TypeInfo) -> TypeProto:
        if kind.kind in ("tensor", "sparse_tensor"):
            self.element_types.add(kind.dtype)
            tensor = TensorTypeProto(elem_type=kind.dtype)
            if kind.shape is not None:
                tensor.shape = TensorShapeProto(dim=[_dim_proto(dim) for dim in kind.shape])
            return TypeProto(**{f"{kind.kind}_type": tensor})
        elem = {} if kind.elem is None else {"elem_type": self.type_proto(kind.elem)}
        if kind.kind == "sequence":
            return TypeProto(sequence_type=ElementTypeProto(**elem))
        if kind.kind == "optional":
            return TypeProto(optional_type=ElementTypeProto(**elem))
        if kind.kind == "map":
            return TypeProto(map_type=MapTypeProto(key_type=kind.dtype, value_type=elem.get("elem_type", TypeProto())))
        raise SaveError(f"there is no ONNX type for {kind}")


_LISTS = frozenset(kind for kind, name in FIELD_OF_TYPE.values() if AttributeProto.fields[name].repeated)


def _made_in(value: Value, graph: Graph) -> bool:
    return value.producer is not None and value.producer.graph is graph


def _trimmed(names: list[str]) -> list[str]:
    while names and not names[-1]:
        names.pop()
    return names


def _dim_proto(dim: int | str | None) -> DimensionProto:
    if dim is None:
        return DimensionProto()
    return DimensionProto(dim_param=dim) if isinstance(dim, str) else DimensionProto(dim_value=int(dim))


def _entries(mapping: Mapping[str, str]) -> list[StringStringEntryProto]:
    return [StringStringEntryProto(key=key, value=value) for key, value in mapping.items()]
