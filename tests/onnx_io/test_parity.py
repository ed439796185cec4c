"""Every model of onnx's backend suite, read by `load_graph` and by onnx itself."""

from __future__ import annotations

import glob
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from qruntime.ir import AttributeType, Graph
from qruntime.onnx_io.declarations import type_info
from qruntime.onnx_io.importer import load_graph
from qruntime.onnx_io.messages import TypeProto
from qruntime.onnx_io.wire import parse

DATA = os.path.join(os.path.dirname(onnx.__file__), "backend", "test", "data")
FILES = sorted(glob.glob(os.path.join(DATA, "**", "*.onnx"), recursive=True))


def assert_same_tensor(ours: np.ndarray, theirs: np.ndarray, what: str) -> None:
    assert ours.shape == theirs.shape, what
    if ours.dtype == object:
        assert ours.tolist() == [s.decode() if isinstance(s, bytes) else s for s in theirs.reshape(-1)] or np.array_equal(
            ours.astype(str), theirs.astype(str)
        ), what
        return
    assert ours.dtype == theirs.dtype, what
    low_bits = {"int4": 15, "uint4": 15, "float4_e2m1fn": 15, "int2": 3, "uint2": 3}.get(ours.dtype.name, 255)
    ours, theirs = (np.frombuffer(np.ascontiguousarray(a).tobytes(), np.uint8) & low_bits for a in (ours, theirs))
    assert np.array_equal(ours, theirs), what


def assert_same_attribute(ours, theirs: onnx.AttributeProto, what: str) -> None:
    if theirs.type in (theirs.SPARSE_TENSOR, theirs.SPARSE_TENSORS):
        assert ours.type in (AttributeType.TENSOR, AttributeType.TENSORS), what
        return
    assert ours.type == theirs.type, what
    value = onnx.helper.get_attribute_value(theirs)
    if theirs.type == theirs.TENSOR:
        assert_same_tensor(ours.value, numpy_helper.to_array(value), what)
    elif theirs.type == theirs.GRAPH:
        assert_same_graph(ours.value, value, what)
    elif theirs.type == theirs.TYPE_PROTO:
        assert ours.value == type_info(parse(TypeProto, memoryview(value.SerializeToString())), what)
    elif theirs.type == theirs.STRING:
        assert ours.value == value.decode(), what
    elif theirs.type == theirs.STRINGS:
        assert ours.value == tuple(s.decode() for s in value), what
    elif theirs.type in (theirs.INTS, theirs.FLOATS):
        assert ours.value == tuple(value), what
    else:
        assert ours.value == value, what


def assert_same_graph(ours: Graph, theirs: onnx.GraphProto, what: str) -> None:
    given = {t.name for t in theirs.initializer}
    assert [v.name for v in ours.inputs if v.name not in given] == [v.name for v in theirs.input if v.name not in given]
    assert ours.output_names == [v.name for v in theirs.output]
    constants = {t.name: numpy_helper.to_array(t) for t in theirs.initializer}
    nodes = []
    for node in theirs.node:
        if node.op_type == "Constant" and node.domain == "":
            if node.attribute[0].name == "value":
                constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        else:
            nodes.append(node)
    assert len(ours.nodes) == len(nodes), what
    for mine, node in zip(ours.nodes, nodes, strict=True):
        here = f"{what}: {node.op_type}"
        assert (mine.op_type, mine.name) == (node.op_type, node.name), here
        assert [v.name if v else "" for v in mine.inputs] == list(node.input), here
        assert len(mine.outputs) == len(node.output), here
        assert all(v.name == name for v, name in zip(mine.outputs, node.output, strict=True) if name), here
        assert set(mine.attributes) == {a.name for a in node.attribute}, here
        for attribute in node.attribute:
            assert_same_attribute(mine.attributes[attribute.name], attribute, f"{here}.{attribute.name}")
        for value in mine.inputs:
            if value is not None and value.is_constant and value.name in constants:
                assert_same_tensor(value.data, constants[value.name], f"{what}: {value.name}")


@pytest.mark.parametrize("path", FILES, ids=lambda path: os.path.relpath(path, DATA))
def test_files_of_the_backend_suite(path: str) -> None:
    theirs = onnx.load(path)
    graph, info = load_graph(path)
    graph.check()
    assert info.ir_version == theirs.ir_version
    assert info.opset_imports == {i.domain: i.version for i in theirs.opset_import}
    assert_same_graph(graph, theirs.graph, path)


def test_node_cases(node_models: list[onnx.ModelProto]) -> None:
    for model in node_models:
        graph, _ = load_graph(model)
        graph.check()
        assert_same_graph(graph, model.graph, model.graph.name)


def test_onnx_is_not_imported_for_loading_and_saving() -> None:
    program = (
        "import sys; from qruntime.onnx_io import exporter, importer; "
        "exporter.serialize(*importer.load_graph(sys.argv[1])); "
        "sys.exit('onnx' in sys.modules or 'google.protobuf' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, next(p for p in FILES if "test_Linear/" in p)], check=True)
