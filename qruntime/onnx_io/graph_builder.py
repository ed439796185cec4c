"""Messages of a model → `Graph`.

Names are gone afterwards: nodes refer to values, also from inside subgraphs. `Constant` nodes and
initializers become constant values, calls of model-local functions are replaced by their bodies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from qruntime.errors import InvalidModel, UnsupportedModel
from qruntime.ir import (
    QRUNTIME,
    Attribute,
    AttributeType,
    Graph,
    Node,
    StoredTensor,
    TypeInfo,
    UnusedValue,
    Value,
    stored_constant,
)
from qruntime.ir.dtypes import onnx_code
from qruntime.onnx_io import functions, tensors
from qruntime.onnx_io.declarations import attribute_type, opset_imports, type_info
from qruntime.onnx_io.external_data import ExternalData
from qruntime.onnx_io.messages import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    ValueInfoProto,
)
from qruntime.onnx_io.node_order import in_running_order, label
from qruntime.onnx_io.scopes import Body, Scope


class Limits(NamedTuple):
    """How large a hostile file may make itself beyond its own bytes."""

    graph_depth: int = 32
    """Nesting of subgraphs."""
    call_depth: int = 64
    """Nesting of function calls."""
    inlined_nodes: int = 1_000_000
    """Nodes that come from inlining functions."""
    sparse_bytes: int = 1 << 31
    """All sparse tensors together, once dense."""


class GraphBuilder:
    """Makes the graph of one model."""

    def __init__(self, model: ModelProto, external: ExternalData, limits: Limits):
        self.model, self.external, self.limits = model, external, limits
        self.root = Scope()
        self.local_functions: dict[functions.Key, FunctionProto] = {}
        self.sparse_bytes = 0
        self.built_nodes = 0
        self.unnamed = 0
        self.graph_depth = 0
        self.call_depth = 0

    def build(self) -> tuple[Graph, dict[str, int]]:
        """The graph of the model and its opset imports."""
        proto = self.model.graph
        assert proto is not None
        opsets = opset_imports(self.model.opset_import, "the model")
        self.local_functions = functions.table(self.model.functions)
        folders: frozenset[str] = frozenset()
        if self.local_functions:
            folders = functions.folders_of(proto.node, (tensor.name for tensor in proto.initializer))
        graph = self.graph(proto, Body(opsets, folders), None)
        if not graph.outputs:
            raise InvalidModel("the graph has no outputs")
        if len(set(graph.output_names)) < len(graph.output_names):
            raise InvalidModel(f"an output is listed twice: {graph.output_names}")
        return graph, opsets

    def function_opsets(self, function: FunctionProto) -> dict[str, int]:
        """Imports of a function; domains it does not name are those of the model."""
        where = f"function {function.domain}.{function.name}"
        return opset_imports(self.model.opset_import, "the model") | opset_imports(function.opset_import, where)

    def graph(self, proto: GraphProto, body: Body, outer: Scope | None) -> Graph:
        scope = self.root if outer is None else Scope(outer)
        where = f"graph {proto.name!r}"
        if self.graph_depth >= self.limits.graph_depth:
            raise InvalidModel(f"{where} is nested deeper than {self.limits.graph_depth} levels (Limits.graph_depth)")
        self.graph_depth += 1
        names = scope.names
        inputs = []
        for info in proto.input:
            if not info.name or info.name in names:
                raise InvalidModel(f"{where}: input name {info.name!r} is empty or given twice")
            value = Value(body.prefix + info.name, type_info(info.type, where))
            names[info.name] = value
            inputs.append(value)
        defaults = self.initializers(proto, body, scope, where)
        if defaults and (self.model.ir_version < 4 or outer is not None):
            # Up to IR version 3 every initializer had to be listed as an input; inputs of subgraphs cannot be named.
            for value, data in defaults.items():
                value.data, value.type = data, tensor_type(data)
            inputs = [value for value in inputs if not value.is_constant]
            defaults = {}
        nodes: list[Node] = []
        self.nodes(proto.node, body, scope, nodes, where)
        self.value_types(proto.value_info, names, where)
        outputs = [self.output(info, scope, where) for info in proto.output]
        graph = Graph(inputs, outputs, nodes, name=proto.name, doc=proto.doc_string)
        graph.output_names = [info.name for info in proto.output]
        graph.output_types = [type_info(info.type, where) for info in proto.output]
        graph.input_defaults = defaults
        self.graph_depth -= 1
        return graph

    def initializers(self, proto: GraphProto, body: Body, scope: Scope, where: str) -> dict[Value, np.ndarray]:
        """Add the constants of a graph to `scope`; returns the defaults of its inputs."""
        defaults: dict[Value, np.ndarray] = {}
        seen: set[str] = set()
        named: list[tuple[str, TensorProto | SparseTensorProto]] = [(tensor.name, tensor) for tensor in proto.initializer]
        named += [(sparse.values.name if sparse.values else "", sparse) for sparse in proto.sparse_initializer]
        for name, tensor in named:
            if not name or name in seen:
                raise InvalidModel(f"{where}: initializer name {name!r} is empty or given twice")
            seen.add(name)
            value = scope.names.get(name)
            if value is None and isinstance(tensor, TensorProto):
                scope.names[name] = self.constant(body.prefix + name, tensor)
                continue
            data = self.tensor(tensor) if isinstance(tensor, TensorProto) else self.sparse(tensor)
            if value is not None:
                if not _fits(value.type, data):
                    raise InvalidModel(f"{where}: initializer {name!r} is {tensor_type(data)}, the input of that name {value.type}")
                defaults[value] = data
            else:
                scope.names[name] = constant(body.prefix + name, data)
        return defaults

    def value_types(self, infos: Sequence[ValueInfoProto], names: dict[str, Value | None], where: str) -> None:
        for info in infos:
            value = names.get(info.name)
            if value is not None and value.type is None:
                value.type = type_info(info.type, where)

    def output(self, info: ValueInfoProto, scope: Scope, where: str) -> Value:
        try:
            value = scope.find(info.name) if info.name else None
        except KeyError:
            value = None
        if value is None:
            raise InvalidModel(f"{where}: nothing makes its output {info.name!r}")
        if value.type is None:
            value.type = type_info(info.type, where)
        return value

    def nodes(self, protos: Sequence[NodeProto], body: Body, scope: Scope, out: list[Node], where: str) -> None:
        """Make the nodes of one graph or function body, in running order, and append them to `out`."""
        names, prefix, opsets, local_functions = scope.names, body.prefix, body.opsets, self.local_functions
        for proto in in_running_order(protos, where):
            op_type, domain = proto.op_type, proto.domain
            if domain == "ai.onnx":
                domain = ""
            if local_functions:
                self.count()
                key = (domain, op_type, proto.overload)
                if key in local_functions and key not in functions.OURS:
                    self.call(key, proto, body, scope, out)
                    continue
            if domain == QRUNTIME and (domain, op_type, proto.overload) not in functions.OURS:
                raise UnsupportedModel(
                    f"{label(proto)}: operators of domain {QRUNTIME!r} are made inside this runtime and trust what made them; "
                    "a file cannot name one, except a function that it defines itself. Use standard operators or another domain"
                )
            version = opsets.get(domain)
            if version is None:
                raise InvalidModel(f"{label(proto)} needs domain {domain or 'ai.onnx'!r}, which is not among the opset imports")
            if op_type == "Constant" and not domain and self.narrow_constant(proto, prefix, scope):
                continue
            attributes = {}
            for item in proto.attribute:
                attribute = self.attribute(item, proto, body, scope)
                if attribute is not None:
                    if item.name in attributes:
                        raise InvalidModel(f"{label(proto)} has attribute {item.name!r} twice")
                    attributes[item.name] = attribute
            if op_type == "Constant" and not domain:
                self.define(proto, 0, constant(prefix + self.output_name(proto), self.constant_data(proto, attributes)), scope)
                continue
            if not op_type:
                raise InvalidModel(f"{label(proto)} has no op_type")
            inputs = self.inputs(proto, scope)
            outputs = []
            for name in proto.output:
                if name:
                    if name in names:
                        raise InvalidModel(f"{label(proto)} makes {name!r}, which the graph already has")
                    value = Value(prefix + name)
                    names[name] = value
                else:
                    value = UnusedValue(self.fresh(f"{prefix}{proto.name or op_type}/unused"))
                outputs.append(value)
            node = Node(op_type, inputs, outputs, attributes, domain=domain, version=version, doc=proto.doc_string, overload=proto.overload)
            node.name = prefix + proto.name if proto.name else ""
            if proto.metadata_props:
                node.metadata = {entry.key: entry.value for entry in proto.metadata_props}
            out.append(node)

    def narrow_constant(self, proto: NodeProto, prefix: str, scope: Scope) -> bool:
        """Define the output of a Constant whose element type numpy lacks, as an initializer of it would be."""
        if len(proto.attribute) != 1 or proto.attribute[0].name != "value" or proto.attribute[0].ref_attr_name:
            return False
        tensor = proto.attribute[0].t
        if tensor is None or not tensors.is_narrow(tensor) or attribute_type(proto.attribute[0], proto)[0] is not AttributeType.TENSOR:
            return False
        self.define(proto, 0, self.constant(prefix + self.output_name(proto), tensor), scope)
        return True

    def count(self) -> None:
        self.built_nodes += 1
        if self.built_nodes > self.limits.inlined_nodes:
            raise InvalidModel(f"functions expand to more than {self.limits.inlined_nodes} nodes (Limits.inlined_nodes)")

    def call(self, key: functions.Key, proto: NodeProto, body: Body, scope: Scope, out: list[Node]) -> None:
        if self.call_depth >= self.limits.call_depth:
            raise InvalidModel(f"{label(proto)}: calls nest deeper than {self.limits.call_depth} (Limits.call_depth)")
        self.call_depth += 1
        functions.inline(self, key, self.local_functions[key], proto, body, scope, out)
        self.call_depth -= 1

    def inputs(self, proto: NodeProto, scope: Scope) -> list[Value | None]:
        names = scope.names
        found: list[Value | None] = []
        for name in proto.input:
            if name in names:
                found.append(names[name])
            elif not name:
                found.append(None)
            else:
                try:
                    found.append(scope.find(name))
                except KeyError:
                    raise InvalidModel(f"{label(proto)} reads {name!r}, which is no input, initializer or output of a node") from None
        return found

    def define(self, proto: NodeProto, index: int, value: Value | None, scope: Scope) -> None:
        """Let output `index` of `proto` be `value`."""
        name = proto.output[index] if index < len(proto.output) else ""
        if name:
            if name in scope.names:
                raise InvalidModel(f"{label(proto)} makes {name!r}, which the graph already has")
            scope.names[name] = value

    def output_name(self, proto: NodeProto) -> str:
        return (proto.output[0] if proto.output else "") or self.fresh(proto.name or "constant")

    def fresh(self, stem: str) -> str:
        self.unnamed += 1
        while f"{stem}_{self.unnamed}" in self.root.names:
            self.unnamed += 1
        return f"{stem}_{self.unnamed}"

    def constant_data(self, proto: NodeProto, attributes: dict[str, Attribute]) -> np.ndarray:
        forms = [name for name in attributes if name.startswith(("value", "sparse_value"))]
        if len(forms) != 1:
            raise InvalidModel(f"{label(proto)} needs exactly one value attribute but has {forms or 'none'}")
        kind, value = attributes[forms[0]]
        if kind is _FORMS_OF_CONSTANT.get(forms[0]):
            if isinstance(value, np.ndarray):
                return value
            return _constant_of(value, kind)
        raise InvalidModel(f"{label(proto)}: attribute {forms[0]!r} cannot be {kind.name}")

    def attribute(self, proto: AttributeProto, node: NodeProto, body: Body, scope: Scope) -> Attribute | None:
        """The attribute; None when it refers to an attribute of the function that the call does not set."""
        if proto.ref_attr_name:
            if body.bindings is None:
                raise InvalidModel(
                    f"{label(node)}: attribute {proto.name!r} refers to {proto.ref_attr_name!r}, which is possible only inside functions"
                )
            bound = body.bindings.get(proto.ref_attr_name)
            return None if bound is None else self.attribute(bound.proto, node, bound.body, bound.scope)
        if not proto.name:
            raise InvalidModel(f"{label(node)} has an attribute without a name")
        kind, field_name = attribute_type(proto, node)
        value: Any = getattr(proto, field_name)
        if kind is AttributeType.INT or kind is AttributeType.FLOAT:
            return Attribute(kind, value)
        if kind is AttributeType.INTS or kind is AttributeType.FLOATS:
            return Attribute(kind, tuple(value))
        if kind is AttributeType.STRING:
            return Attribute(kind, tensors.text(value))
        if kind is AttributeType.STRINGS:
            return Attribute(kind, tuple(tensors.text(item) for item in value))
        try:
            if kind is AttributeType.TENSOR:
                return Attribute(kind, self.tensor(value))
            if kind is AttributeType.TENSORS:
                return Attribute(kind, tuple(self.tensor(item) for item in value))
            if kind is AttributeType.SPARSE_TENSOR:
                return Attribute(AttributeType.TENSOR, self.sparse(value))
            if kind is AttributeType.SPARSE_TENSORS:
                return Attribute(AttributeType.TENSORS, tuple(self.sparse(item) for item in value))
        except (InvalidModel, UnsupportedModel) as error:
            raise type(error)(f"{label(node)}, attribute {proto.name!r}: {error}") from error
        if kind is AttributeType.GRAPH:
            return Attribute(kind, self.graph(value, body, scope))
        if kind is AttributeType.GRAPHS:
            return Attribute(kind, tuple(self.graph(item, body, scope) for item in value))
        where = f"{label(node)}, attribute {proto.name!r}"
        if kind is AttributeType.TYPE_PROTO:
            return Attribute(kind, type_info(value, where))
        return Attribute(kind, tuple(type_info(item, where) for item in value))

    def constant(self, name: str, proto: TensorProto) -> Value:
        """The value of a tensor, of its codes where numpy lacks the element type."""
        held = self.held(proto)
        return constant(name, held) if isinstance(held, np.ndarray) else stored_constant(name, held)

    def tensor(self, proto: TensorProto) -> np.ndarray:
        held = self.held(proto)
        return held if isinstance(held, np.ndarray) else held.decoded()

    def held(self, proto: TensorProto) -> np.ndarray | StoredTensor:
        """What a tensor holds, kept with its message: the body of a function may be read many times."""
        held = vars(proto).get("decoded")
        if held is None:
            held = vars(proto)["decoded"] = tensors.decode_narrow(proto, self.external)
        return held

    def sparse(self, proto: SparseTensorProto) -> np.ndarray:
        data = vars(proto).get("decoded")
        if data is None:
            data = tensors.decode_sparse(proto, self.external, self.limits.sparse_bytes - self.sparse_bytes)
            self.sparse_bytes += data.nbytes
            vars(proto)["decoded"] = data
        return data


def constant(name: str, data: np.ndarray) -> Value:
    return Value(name, tensor_type(data), data)


def tensor_type(data: np.ndarray) -> TypeInfo:
    return TypeInfo("tensor", onnx_code(data.dtype), data.shape)


def _fits(declared: TypeInfo | None, data: np.ndarray) -> bool:
    if declared is None:
        return True
    if declared.kind != "tensor" or declared.dtype not in (0, onnx_code(data.dtype)):
        return False
    dims = data.shape if declared.shape is None else declared.shape
    return len(dims) == data.ndim and all(not isinstance(d, int) or d == n for d, n in zip(dims, data.shape))


_FORMS_OF_CONSTANT = {
    "value": AttributeType.TENSOR,
    "sparse_value": AttributeType.TENSOR,
    "value_float": AttributeType.FLOAT,
    "value_floats": AttributeType.FLOATS,
    "value_int": AttributeType.INT,
    "value_ints": AttributeType.INTS,
    "value_string": AttributeType.STRING,
    "value_strings": AttributeType.STRINGS,
}


def _constant_of(value: Any, kind: AttributeType) -> np.ndarray:
    if kind in (AttributeType.STRING, AttributeType.STRINGS):
        data = np.empty(len(value) if kind is AttributeType.STRINGS else (), object)
        data[...] = value
    else:
        data = np.asarray(value, np.float32 if kind in (AttributeType.FLOAT, AttributeType.FLOATS) else np.int64)
    data.flags.writeable = False
    return data
