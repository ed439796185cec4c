"""Whatever passes make of a model, messages name the nodes of its file."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest

import qruntime
from qruntime import RunError
from qruntime.onnx_io.importer import load_graph
from tests.small_models import FLOAT, encoder_bytes, linear_bytes, model_bytes, recurrent_bytes

MODELS = {
    "linear": linear_bytes(),
    "encoder": encoder_bytes(),
    "GRU": recurrent_bytes("GRU"),
    "look-up": model_bytes(
        [onnx.helper.make_node("Gather", ["table", "ids"], ["y"], name="words")],
        [("ids", onnx.TensorProto.INT64, ["n"])], [("y", FLOAT, ["n", 8])],
        {"table": np.ones((16, 8), np.float32)},
    ),
    "Einsum": model_bytes(
        [onnx.helper.make_node("Einsum", ["x", "w"], ["y"], name="sum", equation="ni,oi->no")],
        [("x", FLOAT, ["n", 8])], [("y", FLOAT, ["n", 4])], {"w": np.ones((4, 8), np.float32)},
    ),
}  # fmt: skip


def without_names(data: bytes) -> bytes:
    model = onnx.load_from_string(data)
    for node in model.graph.node:
        node.ClearField("name")
    return model.SerializeToString()


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("kind", MODELS)
def test_labels_are_those_of_the_file(kind: str, quantized: bool, named: bool) -> None:
    data = MODELS[kind] if named else without_names(MODELS[kind])
    labels = {node.label for node in load_graph(data)[0].walk_nodes()}
    model = qruntime.load(data)
    if quantized:
        model = model.quantize_dynamic({"Embedding"}, "quint8") if kind == "look-up" else model.quantize_dynamic()
    for call in model._plan(tuple(model.graph.output_names)).nodes:
        label = re.sub(r" \([\w.]+\)$", "", call.node.label)
        assert set(re.split(r", (?=\w+ ')", label)) <= labels, call.node.label


def test_errors_name_the_node_of_the_file_and_what_ran() -> None:
    data = MODELS["look-up"]
    for model, ran in ((qruntime.load(data), ""), (qruntime.load(data).quantize_dynamic({"Embedding"}, "quint8"), r" \(qruntime.\w+\)")):
        with pytest.raises(RunError, match=rf"^Gather 'words'{ran}: indices must lie in"):
            model([99])
