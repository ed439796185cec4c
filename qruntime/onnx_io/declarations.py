"""What a file declares about attributes, types and operator sets, checked and translated."""

from __future__ import annotations

from collections.abc import Iterable

from qruntime.errors import InvalidModel, UnsupportedModel
from qruntime.ir import AttributeType, Dim, TypeInfo
from qruntime.onnx_io.messages import (
    LAST_OPSET,
    AttributeProto,
    DimensionProto,
    NodeProto,
    OperatorSetIdProto,
    TypeProto,
)
from qruntime.onnx_io.node_order import label

_ATTRIBUTE_FIELDS = {
    "f": AttributeType.FLOAT,
    "i": AttributeType.INT,
    "s": AttributeType.STRING,
    "t": AttributeType.TENSOR,
    "g": AttributeType.GRAPH,
    "floats": AttributeType.FLOATS,
    "ints": AttributeType.INTS,
    "strings": AttributeType.STRINGS,
    "tensors": AttributeType.TENSORS,
    "graphs": AttributeType.GRAPHS,
    "sparse_tensor": AttributeType.SPARSE_TENSOR,
    "sparse_tensors": AttributeType.SPARSE_TENSORS,
    "tp": AttributeType.TYPE_PROTO,
    "type_protos": AttributeType.TYPE_PROTOS,
}
FIELD_OF_TYPE: dict[int, tuple[AttributeType, str]] = {t.value: (t, name) for name, t in _ATTRIBUTE_FIELDS.items()}
_NOT_A_VALUE = frozenset({"name", "type", "ref_attr_name"})


def attribute_type(proto: AttributeProto, node: NodeProto) -> tuple[AttributeType, str]:
    """Type of an attribute and the field that holds its value, checked against the fields that are set."""
    code = proto.type
    present = [name for name in vars(proto) if name not in _NOT_A_VALUE]
    known = FIELD_OF_TYPE.get(code)
    if known is not None and len(present) == 1 and present[0] == known[1]:
        return known
    if code == 0 and len(present) == 1:
        return _ATTRIBUTE_FIELDS[present[0]], present[0]
    where = label(node)
    if known is None:
        raise InvalidModel(f"{where}: attribute {proto.name!r} has type {code} and values in {present or 'no field'}")
    kind, field_name = known
    # Writers may leave out an empty list and, with proto3 rules, a zero or an empty string.
    if present or (getattr(proto, field_name) is None):
        raise InvalidModel(f"{where}: attribute {proto.name!r} is declared as {kind.name} but has values in {present or 'no field'}")
    return known


def type_info(proto: TypeProto | None, where: str) -> TypeInfo | None:
    if proto is None:
        return None
    for kind, tensor in (("tensor", proto.tensor_type), ("sparse_tensor", proto.sparse_tensor_type)):
        if tensor is not None:
            if tensor.shape is None:
                return TypeInfo(kind, tensor.elem_type)
            return TypeInfo(kind, tensor.elem_type, tuple(_dim(dim) for dim in tensor.shape.dim))
    if proto.sequence_type is not None:
        return TypeInfo("sequence", elem=type_info(proto.sequence_type.elem_type, where))
    if proto.optional_type is not None:
        return TypeInfo("optional", elem=type_info(proto.optional_type.elem_type, where))
    if proto.map_type is not None:
        return TypeInfo("map", proto.map_type.key_type, elem=type_info(proto.map_type.value_type, where))
    if proto.opaque_type is not None:
        raise UnsupportedModel(f"{where} has the opaque type {proto.opaque_type.domain}.{proto.opaque_type.name}")
    return None


def _dim(proto: DimensionProto) -> Dim:
    if "dim_value" in vars(proto):
        return proto.dim_value if proto.dim_value >= 0 else None  # negative is an old way to say unknown
    return proto.dim_param or None


def opset_imports(protos: Iterable[OperatorSetIdProto], where: str) -> dict[str, int]:
    versions: dict[str, int] = {}
    for proto in protos:
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        version = proto.version
        last = LAST_OPSET.get(domain, 1 << 31)
        named = f"{where}: opset {version} of domain {domain or 'ai.onnx'!r}"
        if version < 1:
            raise InvalidModel(f"{named} does not exist; versions start at 1")
        if version > last:
            raise UnsupportedModel(f"{named} is newer than {last}, the last one known; export with opset {last}")
        if versions.setdefault(domain, version) != version:
            raise InvalidModel(f"{where} imports domain {domain!r} with versions {versions[domain]} and {version}")
    return versions
