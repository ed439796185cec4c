"""Shapes are read from before a transpose that nothing else reads."""

from __future__ import annotations

import numpy as np
import pytest

from qruntime.passes.shape_of_transpose import read_shapes_before_transposes
from tests.passes.lowering import after, imported

X = {"x": np.zeros((2, 3, 4), np.float32)}
TRANSPOSE = ("Transpose", ["x"], ["t"], {"perm": [2, 0, 1]})


def ops(nodes, outputs=("y",), inputs=X, opset=17, constants=None):
    shaped = [(op, i, [f"{o}_int" if o in outputs and op == "Shape" else o for o in out], a) for op, i, out, a in nodes]
    casts = [("Cast", [f"{o}_int"], [o], {"to": 1}) for op, _, out, _ in nodes for o in out if o in outputs and op == "Shape"]
    return after(read_shapes_before_transposes, imported([*shaped, *casts], inputs, outputs, constants, opset), inputs, rtol=0, atol=0)


@pytest.mark.parametrize("attributes", [{}, {"start": 1}, {"end": -1}, {"start": -2, "end": 2}, {"start": 5}])
def test_a_shape_is_a_gather_of_the_shape_before(attributes):
    assert ops([TRANSPOSE, ("Shape", ["t"], ["y"], attributes)]) == {"Shape": 1, "Gather": 1, "Cast": 1}


def test_several_shapes_of_one_transpose():
    nodes = [TRANSPOSE, ("Shape", ["t"], ["y"], {}), ("Shape", ["t"], ["z"], {"start": 1})]
    assert ops(nodes, ("y", "z")) == {"Shape": 2, "Gather": 2, "Cast": 2}


def test_a_transpose_that_is_read_stays():
    assert ops([TRANSPOSE, ("Shape", ["t"], ["y"], {}), ("Neg", ["t"], ["z"], {})], ("y", "z"))["Transpose"] == 1


def test_a_transpose_that_is_an_output_stays():
    assert ops([TRANSPOSE, ("Shape", ["t"], ["y"], {})], ("y", "t"))["Transpose"] == 1


def test_a_transpose_of_unknown_order_stays():
    assert ops([("Transpose", ["x"], ["t"], {}), ("Shape", ["t"], ["y"], {})])["Transpose"] == 1


def test_a_shape_of_something_else_stays():
    assert ops([("Neg", ["x"], ["t"], {}), ("Shape", ["t"], ["y"], {})]) == {"Neg": 1, "Shape": 1, "Cast": 1}


def test_a_shape_of_codes_is_that_of_what_they_were_made_of():
    scale = {"scale": np.float32(0.1), "zero": np.uint8(7)}
    pair = [("QuantizeLinear", ["x", "scale", "zero"], ["q"], {}), ("DequantizeLinear", ["q", "scale", "zero"], ["d"], {})]
    turned = [("Transpose", ["d"], ["t"], {"perm": [2, 0, 1]}), ("Shape", ["t"], ["y"], {})]
    assert ops([*pair, ("Shape", ["d"], ["y"], {})], constants=scale) == {"Shape": 1, "Cast": 1}
    assert ops([*pair, ("Shape", ["d"], ["y"], {}), ("Neg", ["d"], ["z"], {})], ("y", "z"), constants=scale)["DequantizeLinear"] == 1
    assert ops([TRANSPOSE, ("QuantizeLinear", ["t", "scale", "zero"], ["q"], {}), ("Shape", ["q"], ["y"], {})], constants=scale) == {
        "Shape": 1, "Gather": 1, "Cast": 1,
    }  # fmt: skip
    assert ops([*pair, *turned], constants=scale)["Gather"] == 1
