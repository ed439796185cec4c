"""Models of torch's dynamo exporter: nodes are called node_linear_3, and metadata say which modules they come from."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
from onnx import helper

import qruntime
from qruntime.quantization import default_dynamic_qconfig, per_channel_dynamic_qconfig
from tests.small_models import FLOAT, model_bytes, random

Q, C = default_dynamic_qconfig, per_channel_dynamic_qconfig


def node(op: str, inputs: list[str], output: str, name: str, scopes: str, classes: list[str]) -> onnx.NodeProto:
    """A node with the metadata that torch.onnx.export(dynamo=True) of torch 2.13 writes; the outermost scope has no name."""
    made = helper.make_node(op, inputs, [output], name=name)
    for key, value in (("name_scopes", ["", *scopes.split()]), ("class_hierarchy", classes)):
        entry = made.metadata_props.add()
        entry.key, entry.value = f"pkg.torch.onnx.{key}", repr(value)
    return made


def model() -> qruntime.Model:
    block, linear = ["__main__.Model", "__main__.Block"], "torch.nn.modules.linear.Linear"
    activation = "torch.nn.modules.activation"
    attention = ["__main__.Model", f"{activation}.MultiheadAttention", "aten.linear"]
    nodes = [
        node("MatMul", ["x", "val_0"], "a", "node_MatMul_1", "encoder.0 encoder.0.fc linear", [*block, linear, "aten.linear"]),
        node("Relu", ["a"], "b", "node_relu", "encoder.0 encoder.0.act relu", [*block, f"{activation}.ReLU", "aten.relu"]),
        node("MatMul", ["b", "val_1"], "c", "node_MatMul_3", "encoder.1 encoder.1.fc linear_1", [*block, linear, "aten.linear"]),
        node("Relu", ["c"], "d", "node_relu_1", "encoder.1 relu_1", [*block, "aten.relu"]),
        node("MatMul", ["d", "val_2"], "e", "node_MatMul_5", "encoder_norm encoder_norm.fc linear_2", [*block, linear, "aten.linear"]),
        node("MatMul", ["e", "val_3"], "f", "node_MatMul_9", "att linear_3", attention),
        node("Gemm", ["f", "att.out_proj.weight"], "g", "node_Gemm_12", "att linear_4", attention),
        node("Gemm", ["g", "val_4"], "y", "node_linear_5", "linear_5", ["__main__.Model", "aten.linear"]),
    ]
    names = ["val_0", "val_1", "val_2", "val_3", "att.out_proj.weight", "val_4"]
    weights = {name: random(8, 8, seed=i) for i, name in enumerate(names)}
    return qruntime.load(model_bytes(nodes, [("x", FLOAT, ["n", 8])], [("y", FLOAT, ["n", 8])], weights))


def schemes(quantized: qruntime.Model) -> str:
    """A letter for each layer in order: q per tensor, c per channel, - float."""
    found = {layer.name: layer.scheme[4] for layer in quantized.report.layers}
    layers = [n.name for n in quantized.graph.nodes if n.is_op("MatMul", "Gemm")]
    return "".join({"t": "q", "c": "c", "-": "-"}[found.get(name, "-")] for name in layers)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"only": ["encoder"]}, "qq----"),
        ({"only": ["encoder.1"]}, "-q----"),
        ({"only": ["encoder.1.fc"]}, "-q----"),
        ({"only": ["encoder.*"]}, "qq----"),
        ({"only": ["node_MatMul_9"]}, "---q--"),
        ({"only": ["att"]}, "---qq-"),
        ({"only": ["att.out_proj"]}, "----q-"),
        ({"exclude": ["encoder", "att"]}, "--q--q"),
        ({"qconfig_spec": {"encoder"}}, "qq----"),
        ({"qconfig_spec": {"encoder": Q, "encoder.1": C, "att": None}}, "qc----"),
        ({"qconfig_spec": {"": Q, "encoder.1": C, "encoder.1.fc": None}}, "q-qqqq"),
        ({"qconfig_spec": {"linear_5"}}, "-----q"),
    ],
)
def test_containers_cover_what_they_hold(arguments: dict[str, Any], expected: str, tmp_path):
    quantized = model().quantize_dynamic(**arguments, strict=True)
    assert schemes(quantized) == expected
    quantized.save(tmp_path / "q.onnx")
    assert str(qruntime.load(tmp_path / "q.onnx")) == str(quantized)


def test_printing():
    line = "Linear(in_features=8, out_features=8)"
    assert str(model()) == (
        "Model(\n"
        "  (encoder): Module(\n"
        f"    (0): Module(\n      (fc): {line}\n      (act): ReLU()\n    )\n"
        f"    (1): Module(\n      (fc): {line}\n    )\n"
        "  )\n"
        f"  (encoder_norm): Module(\n    (fc): {line}\n  )\n"
        f"  (att): Module(\n    (linear_3): {line}\n    (out_proj): {line}\n  )\n"
        f"  (linear_5): {line}\n"
        ")"
    )
