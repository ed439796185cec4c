"""Functions that files hold for other runtimes: what they decode to, and how much memory that takes on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, inliner
from onnx.reference import ReferenceEvaluator

import qruntime
from tests.small_models import FLOAT, assert_same_bits, model_bytes, random

SCHEMES = [
    "W2A16", "W3A16", "W3A16-sym", "W3A16-g64", "W4A16-g128", "W5A16-g32", "W7A16-sym", "W8A16-asym-bilevel", "Wnf4A16-g64", "Wfp4A16",
    "Wovp4A16", "W3A16-g16-bilevel", "Wnf4A16-g64-double",
]  # fmt: skip


def saved(folder: Path, scheme: str, opset: int, k: int, n: int) -> tuple[Path, qruntime.Model]:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    data = model_bytes([node], [("x", FLOAT, ["m", k])], [("y", FLOAT, ["m", n])], {"w": random(k, n)}, opset=opset)
    made = qruntime.load(data).quantize(scheme=scheme)
    made.save(folder / "q.onnx")
    return folder / "q.onnx", made


def weight(model: qruntime.Model) -> np.ndarray:
    (node,) = model.graph.nodes
    stored = node.input(1)
    assert stored is not None
    assert stored.stored is not None
    return stored.stored.decoded()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("opset", "k", "n"), [(13, 75, 13), (17, 300, 270), (18, 150, 7)])
def test_others_decode_what_we_do(scheme: str, opset: int, k: int, n: int, tmp_path: Path):
    path, made = saved(tmp_path, scheme, opset, k, n)
    onnx.checker.check_model(str(path), full_check=True)
    (y,) = ReferenceEvaluator(onnx.load(path)).run(None, {"x": np.eye(k, dtype=np.float32)})
    assert_same_bits(y, weight(made))
    assert_same_bits(weight(qruntime.load(path)), weight(made))


@pytest.mark.parametrize(("scheme", "most"), {"W3A16": 27, "W3A16-g64": 35, "W7A16": 37, "Wnf4A16-g64": 34}.items())
def test_what_is_made_on_the_way_is_narrow(scheme: str, most: int, tmp_path: Path):
    """Runtimes that fold constants may hold all of it at once, of every weight. Bytes a weight, its floats among them."""
    path, made = saved(tmp_path, scheme, 17, 256, 512)
    inlined = inliner.inline_local_functions(onnx.load(path))
    held = ReferenceEvaluator(inlined).run(None, {"x": np.zeros((1, 256), np.float32)}, intermediate=True)
    constants = {tensor.name for tensor in inlined.graph.initializer}
    made_of_it = sum(value.nbytes for name, value in held.items() if name not in constants and isinstance(value, np.ndarray))
    assert made_of_it / weight(made).size < most
