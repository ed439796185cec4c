"""The messages of the ONNX format, as far as they are read or written here.

Field numbers are those of onnx.proto: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

from __future__ import annotations

from collections.abc import Sequence

from qruntime.onnx_io.wire import (
    BYTES,
    DOUBLES,
    FLOAT,
    FLOATS,
    INT,
    INTS,
    STRING,
    UINTS,
    Message,
    Part,
    field,
    link,
)

MAX_IR_VERSION = 14
LAST_OPSET = {"": 28, "ai.onnx.ml": 5}
"""Newest opsets of the domains that ONNX itself defines."""


class StringStringEntryProto(Message):
    key: str = field(1, STRING)
    value: str = field(2, STRING)


class OperatorSetIdProto(Message):
    domain: str = field(1, STRING)
    version: int = field(2, INT)


class SegmentProto(Message):
    begin: int = field(1, INT)
    end: int = field(2, INT)


class TensorProto(Message):
    dims: Sequence[int] = field(1, INT, repeated=True)
    data_type: int = field(2, INT)
    segment: SegmentProto | None = field(3, "SegmentProto")
    float_data: Sequence = field(4, FLOATS)
    int32_data: Sequence = field(5, INTS)
    string_data: Sequence[bytes] = field(6, BYTES, repeated=True)
    int64_data: Sequence = field(7, INTS)
    name: str = field(8, STRING)
    raw_data: Part | memoryview = field(9, BYTES, padding=14)
    double_data: Sequence = field(10, DOUBLES)
    uint64_data: Sequence = field(11, UINTS)
    external_data: Sequence[StringStringEntryProto] = field(13, "StringStringEntryProto", repeated=True)
    data_location: int = field(14, INT)


class SparseTensorProto(Message):
    values: TensorProto | None = field(1, "TensorProto")
    indices: TensorProto | None = field(2, "TensorProto")
    dims: Sequence[int] = field(3, INT, repeated=True)


class DimensionProto(Message):
    dim_value: int = field(1, INT)
    dim_param: str = field(2, STRING)


class TensorShapeProto(Message):
    dim: Sequence[DimensionProto] = field(1, "DimensionProto", repeated=True)


class TensorTypeProto(Message):
    """Of dense and of sparse tensors."""

    elem_type: int = field(1, INT)
    shape: TensorShapeProto | None = field(2, "TensorShapeProto")


class ElementTypeProto(Message):
    """Of sequences and of optionals."""

    elem_type: TypeProto | None = field(1, "TypeProto")


class MapTypeProto(Message):
    key_type: int = field(1, INT)
    value_type: TypeProto | None = field(2, "TypeProto")


class OpaqueTypeProto(Message):
    domain: str = field(1, STRING)
    name: str = field(2, STRING)


class TypeProto(Message):
    tensor_type: TensorTypeProto | None = field(1, "TensorTypeProto")
    sequence_type: ElementTypeProto | None = field(4, "ElementTypeProto")
    map_type: MapTypeProto | None = field(5, "MapTypeProto")
    opaque_type: OpaqueTypeProto | None = field(7, "OpaqueTypeProto")
    sparse_tensor_type: TensorTypeProto | None = field(8, "TensorTypeProto")
    optional_type: ElementTypeProto | None = field(9, "ElementTypeProto")


class ValueInfoProto(Message):
    name: str = field(1, STRING)
    type: TypeProto | None = field(2, "TypeProto")


class AttributeProto(Message):
    name: str = field(1, STRING)
    f: float = field(2, FLOAT)
    i: int = field(3, INT)
    s: bytes = field(4, BYTES)
    t: TensorProto | None = field(5, "TensorProto")
    g: GraphProto | None = field(6, "GraphProto")
    floats: Sequence[float] = field(7, FLOAT, repeated=True)
    ints: Sequence[int] = field(8, INT, repeated=True)
    strings: Sequence[bytes] = field(9, BYTES, repeated=True)
    tensors: Sequence[TensorProto] = field(10, "TensorProto", repeated=True)
    graphs: Sequence[GraphProto] = field(11, "GraphProto", repeated=True)
    tp: TypeProto | None = field(14, "TypeProto")
    type_protos: Sequence[TypeProto] = field(15, "TypeProto", repeated=True)
    type: int = field(20, INT)
    ref_attr_name: str = field(21, STRING)
    sparse_tensor: SparseTensorProto | None = field(22, "SparseTensorProto")
    sparse_tensors: Sequence[SparseTensorProto] = field(23, "SparseTensorProto", repeated=True)


class NodeProto(Message):
    input: Sequence[str] = field(1, STRING, repeated=True)
    output: Sequence[str] = field(2, STRING, repeated=True)
    name: str = field(3, STRING)
    op_type: str = field(4, STRING)
    attribute: Sequence[AttributeProto] = field(5, "AttributeProto", repeated=True)
    doc_string: str = field(6, STRING)
    domain: str = field(7, STRING)
    overload: str = field(8, STRING)
    metadata_props: Sequence[StringStringEntryProto] = field(9, "StringStringEntryProto", repeated=True)


class GraphProto(Message):
    node: Sequence[NodeProto] = field(1, "NodeProto", repeated=True)
    name: str = field(2, STRING)
    initializer: Sequence[TensorProto] = field(5, "TensorProto", repeated=True)
    doc_string: str = field(10, STRING)
    input: Sequence[ValueInfoProto] = field(11, "ValueInfoProto", repeated=True)
    output: Sequence[ValueInfoProto] = field(12, "ValueInfoProto", repeated=True)
    value_info: Sequence[ValueInfoProto] = field(13, "ValueInfoProto", repeated=True)
    sparse_initializer: Sequence[SparseTensorProto] = field(15, "SparseTensorProto", repeated=True)


class FunctionProto(Message):
    name: str = field(1, STRING)
    input: Sequence[str] = field(4, STRING, repeated=True)
    output: Sequence[str] = field(5, STRING, repeated=True)
    attribute: Sequence[str] = field(6, STRING, repeated=True)
    node: Sequence[NodeProto] = field(7, "NodeProto", repeated=True)
    opset_import: Sequence[OperatorSetIdProto] = field(9, "OperatorSetIdProto", repeated=True)
    domain: str = field(10, STRING)
    attribute_proto: Sequence[AttributeProto] = field(11, "AttributeProto", repeated=True)
    overload: str = field(13, STRING)


class ModelProto(Message):
    ir_version: int = field(1, INT)
    producer_name: str = field(2, STRING)
    producer_version: str = field(3, STRING)
    domain: str = field(4, STRING)
    model_version: int = field(5, INT)
    doc_string: str = field(6, STRING)
    graph: GraphProto | None = field(7, "GraphProto")
    opset_import: Sequence[OperatorSetIdProto] = field(8, "OperatorSetIdProto", repeated=True)
    metadata_props: Sequence[StringStringEntryProto] = field(14, "StringStringEntryProto", repeated=True)
    functions: Sequence[FunctionProto] = field(25, "FunctionProto", repeated=True)


link()
