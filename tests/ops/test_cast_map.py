"""Dictionaries become tensors."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

import qruntime
from qruntime.errors import QRuntimeError

ENTRIES = {5: 2.5, 1: -1.75, 3: 0.0}


def cast(entries, **attributes):
    kind = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    node = helper.make_node("CastMap", ["x"], ["y"], domain="ai.onnx.ml", **attributes)
    result = helper.make_tensor_value_info("y", TensorProto.UNDEFINED, None)
    graph = helper.make_graph([node], "g", [helper.make_value_info("x", kind)], [result])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    return qruntime.load(helper.make_model(graph, opset_imports=opsets).SerializeToString()).run({"x": entries})["y"]


def test_values_come_in_the_order_of_the_keys():
    assert cast(ENTRIES).tolist() == [[-1.75, 0, 2.5]]
    assert cast(ENTRIES).dtype == np.float32
    assert cast(ENTRIES, cast_to="TO_INT64").tolist() == [[-1, 0, 2]]
    assert cast(ENTRIES, cast_to="TO_STRING").tolist() == [["-1.750000", "0.000000", "2.500000"]]
    assert cast({}).shape == (1, 0)


def test_keys_are_places():
    assert cast(ENTRIES, map_form="SPARSE", max_map=6).tolist() == [[0, -1.75, 0, 0, 0, 2.5]]


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"map_form": "SPARSE", "max_map": 5}, r"must lie in \[0, 5\)"),
        ({"cast_to": "TO_BOOL"}, "needs cast_to"),
        ({"map_form": "X"}, "DENSE or SPARSE"),
    ],
)
def test_what_does_not_fit_is_said(attributes, message):
    with pytest.raises(QRuntimeError, match=message):
        cast(ENTRIES, **attributes)
