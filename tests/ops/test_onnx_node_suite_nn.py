"""The node cases of ONNX's own backend suite against the neural-network definitions, called directly."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.backend.test.case.node import collect_testcases
from onnx.reference import ReferenceEvaluator

import qruntime.ops  # noqa: F401
from qruntime.ir import TypeInfo
from qruntime.ops import registry

FAMILIES = (
    "attention",
    "control_flow",
    "convolution",
    "detection",
    "image",
    "loss",
    "ml",
    "normalization",
    "optimizers",
    "pooling",
    "quantize_linear",
    "recurrent",
    "tree_ensemble",
)
OPERATORS = {
    (spec.domain, spec.op_type)
    for spec in registry.registered()
    if spec.definition.__module__.rpartition(".")[2] in FAMILIES
}


def _opset(case: Any, domain: str) -> int:
    return next(entry.version for entry in case.model.opset_import if entry.domain == domain)


@functools.cache
def _cases() -> dict[str, Any]:
    found = {}
    for case in collect_testcases(None):
        nodes = case.model.graph.node
        if len(nodes) == 1 and (nodes[0].domain, nodes[0].op_type) in OPERATORS:
            found[case.name] = case
    return found


def _subgraph(graph: onnx.GraphProto, opsets: Any) -> Callable[..., tuple[Any, ...]]:
    session = ReferenceEvaluator(graph, opsets={entry.domain: entry.version for entry in opsets})

    def call(*inputs: Any) -> tuple[Any, ...]:
        results = session.run(None, dict(zip(session.input_names, inputs, strict=True)))
        # ONNX's reference wraps the value of an optional in a list of one.
        optional = [info.type.HasField("optional_type") for info in graph.output]
        return tuple(r[0] if o and r else None if o else r for r, o in zip(results, optional, strict=True))

    return call


def _attribute(attribute: onnx.AttributeProto, opsets: Any) -> Any:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return _tensor(value)
    if isinstance(value, onnx.GraphProto):
        return _subgraph(value, opsets)
    if attribute.type == onnx.AttributeProto.STRINGS:
        return tuple(item.decode() for item in value)
    return tuple(value) if isinstance(value, (list, tuple)) or hasattr(value, "extend") else value


def _tensor(proto: onnx.TensorProto) -> np.ndarray:
    return numpy_helper.to_array(proto)


def _value(value: Any) -> Any:
    """A stored input or output as the definitions see it."""
    if isinstance(value, onnx.TensorProto):
        return _tensor(value)
    if isinstance(value, onnx.SequenceProto):
        return numpy_helper.to_list(value)
    if isinstance(value, onnx.OptionalProto):
        return numpy_helper.to_optional(value)
    if isinstance(value, list):
        return [_value(item) for item in value]
    return None if value is None else np.asarray(value)


def _type(info: onnx.ValueInfoProto) -> TypeInfo | None:
    if not info.type.HasField("tensor_type"):
        return None
    tensor = info.type.tensor_type
    dims = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
    return TypeInfo("tensor", tensor.elem_type, dims if tensor.HasField("shape") else None)


def _run(case: Any, inputs: list[Any]) -> tuple[Any, ...]:
    model = case.model
    node = model.graph.node[0]
    spec = registry.find(node.domain, node.op_type, _opset(case, node.domain))
    assert spec is not None
    names = [value.name for value in model.graph.input]
    values = dict(zip(names, (_value(v) for v in inputs), strict=True))
    attributes = {a.name: _attribute(a, model.opset_import) for a in node.attribute}
    assert attributes.keys() <= spec.keywords, f"unknown attributes {attributes.keys() - spec.keywords}"
    if "num_outputs" in spec.keywords:
        attributes["num_outputs"] = len(node.output)
    if "output_types" in spec.keywords:
        attributes["output_types"] = tuple(_type(info) for info in model.graph.output)
    result = spec(*(values[name] if name else None for name in node.input), **attributes)
    results = result if isinstance(result, tuple) else (result,)
    assert len(results) >= len(node.output)
    return tuple(r for r, name in zip(results, node.output, strict=False) if name)


def _compare(actual: Any, expected: Any, rtol: float, atol: float) -> None:
    if isinstance(expected, list):
        assert isinstance(actual, list)
        assert len(actual) == len(expected)
        for a, e in zip(actual, expected, strict=True):
            _compare(a, e, rtol, atol)
        return
    assert isinstance(actual, (np.ndarray, np.generic)), type(actual)
    assert actual.shape == expected.shape
    if expected.dtype.kind in "OUS":
        assert actual.dtype == object
        assert actual.tolist() == expected.tolist()
        return
    assert actual.dtype == expected.dtype
    if expected.dtype.kind == "V" or hasattr(ml_dtypes, expected.dtype.name):
        actual, expected = actual.astype(np.float32), expected.astype(np.float32)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", list(_cases()))
def test_node_case(name: str) -> None:
    case = _cases()[name]
    for inputs, outputs in case.data_sets:
        results = _run(case, list(inputs))
        assert len(results) == len(outputs)
        for actual, expected in zip(results, outputs, strict=True):
            _compare(actual, _value(expected), case.rtol, case.atol)
