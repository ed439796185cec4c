"""The single-node cases of onnx's backend suite, decoded for the definitions."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

import qruntime.ops  # noqa: F401  (registers the definitions)
from qruntime.ir import TypeInfo
from qruntime.ops.registry import OpSpec, find


@dataclass(frozen=True)
class NodeCase:
    """One call of one operator: its inputs and what must come out."""

    name: str
    op_type: str
    domain: str
    version: int
    attributes: dict[str, Any]
    inputs: list[Any]
    outputs: list[tuple[int, Any]]
    """(position among the node's outputs, value)"""
    num_outputs: int
    output_types: tuple[TypeInfo | None, ...]
    rtol: float
    atol: float

    @property
    def spec(self) -> OpSpec | None:
        return find(self.domain, self.op_type, self.version)


def _subgraph(graph: onnx.GraphProto, opsets: Any) -> Callable[..., tuple[Any, ...]]:
    session = ReferenceEvaluator(graph, opsets={entry.domain: entry.version for entry in opsets})

    def call(*inputs: Any) -> tuple[Any, ...]:
        results = session.run(None, dict(zip(session.input_names, inputs, strict=True)))
        # ONNX's reference wraps the value of an optional in a list of one.
        optional = [info.type.HasField("optional_type") for info in graph.output]
        return tuple(r[0] if o and r else None if o else r for r, o in zip(results, optional, strict=True))

    return call


def _attribute(attribute: onnx.AttributeProto, opsets: Any) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.GraphProto):
        return _subgraph(value, opsets)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, (list, tuple)):
        return tuple(v.decode() if isinstance(v, bytes) else v for v in value)
    return value


def _type(info: onnx.ValueInfoProto) -> TypeInfo | None:
    if not info.type.HasField("tensor_type"):
        return None
    tensor = info.type.tensor_type
    dims = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
    return TypeInfo("tensor", tensor.elem_type, dims if tensor.HasField("shape") else None)


def value_of(proto: Any) -> Any:
    """numpy form of what the suite stores: arrays, lists of arrays, None, strings as object arrays."""
    if isinstance(proto, onnx.TensorProto):
        proto = numpy_helper.to_array(proto)
    elif isinstance(proto, onnx.SequenceProto):
        proto = numpy_helper.to_list(proto)
    elif isinstance(proto, onnx.OptionalProto):
        proto = numpy_helper.to_optional(proto)
    if isinstance(proto, (list, tuple)):
        return [value_of(v) for v in proto]
    if proto is None:
        return None
    array = np.asarray(proto)
    return array.astype(object) if array.dtype.kind in "SU" else array


@functools.lru_cache(maxsize=1)
def suite() -> list[Any]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return collect_testcases(None)


@functools.lru_cache(maxsize=1)
def node_cases() -> list[NodeCase]:
    """Every case whose model is one node, in the order of the suite."""
    return list(_node_cases())


def _node_cases() -> Iterator[NodeCase]:
    for case in suite():
        graph = case.model.graph
        if len(graph.node) != 1 or case.model.functions:
            continue
        (node,) = graph.node
        version = next(o.version for o in case.model.opset_import if o.domain == node.domain)
        graph_outputs = [o.name for o in graph.output]
        graph_inputs = [i.name for i in graph.input]
        for index, (inputs, outputs) in enumerate(case.data_sets):
            fed = dict(zip(graph_inputs, map(value_of, inputs), strict=True))
            yield NodeCase(
                name=case.name if index == 0 else f"{case.name}_{index}",
                op_type=node.op_type,
                domain=node.domain,
                version=version,
                attributes={a.name: _attribute(a, case.model.opset_import) for a in node.attribute},
                inputs=[fed[name] if name else None for name in node.input],
                outputs=[(list(node.output).index(name), value) for name, value in zip(graph_outputs, map(value_of, outputs), strict=True)],
                num_outputs=len(node.output),
                output_types=tuple(map(_type, graph.output)),
                rtol=case.rtol,
                atol=case.atol,
            )


def run(case: NodeCase) -> tuple[Any, ...]:
    """Call the definition as a plan would."""
    spec = case.spec
    assert spec is not None
    attributes = dict(case.attributes)
    if "num_outputs" in spec.keywords:
        attributes["num_outputs"] = case.num_outputs
    if "output_types" in spec.keywords:
        attributes["output_types"] = case.output_types
    result = spec(*case.inputs, **attributes)
    return result if isinstance(result, tuple) else (result,)


def difference(actual: Any, expected: Any, rtol: float, atol: float) -> str | None:
    """What is wrong with `actual`, None when nothing is."""
    if isinstance(expected, list):
        if not isinstance(actual, list) or len(actual) != len(expected):
            return f"expected a sequence of {len(expected)}, got {actual!r}"
        return next((d for a, e in zip(actual, expected, strict=True) if (d := difference(a, e, rtol, atol)) is not None), None)
    if expected is None:
        return None if actual is None else f"expected nothing, got {actual!r}"
    if not isinstance(actual, np.ndarray):
        return f"expected an ndarray, got {type(actual).__name__}: {actual!r}"
    if actual.dtype != expected.dtype:
        return f"expected dtype {expected.dtype}, got {actual.dtype}"
    if actual.shape != expected.shape:
        return f"expected shape {expected.shape}, got {actual.shape}"
    if actual.dtype.kind == "O":
        return None if actual.tolist() == expected.tolist() else f"expected {expected!r}, got {actual!r}"
    if actual.dtype.kind == "V":
        actual, expected = actual.astype(np.float32), expected.astype(np.float32)
    try:
        np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)
    except AssertionError as error:
        return str(error)
    return None
