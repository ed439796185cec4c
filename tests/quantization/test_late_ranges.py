"""Recipes with a quantized stream and no transforms decide ranges there: by what layers will read, in one pass over the graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import qruntime
from qruntime.ir.formats import FORMATS
from qruntime.quantization import GPTQ
from qruntime.quantization.methods.rptq import ClusterInputs, ClusterRanges
from qruntime.quantization.rehearsal import rounded_rows
from qruntime.quantization.scheme import TENSOR, Inputs
from qruntime.quantization.static_ranges import parameters
from qruntime.quantization.steps import InputRange, Step
from tests.small_models import FLOAT, assert_same_bits, model_bytes, random

K, HIDDEN, N = 24, 20, 12
STATIC = Inputs(FORMATS["uint2"], TENSOR, is_static=True)
DATA = [{"x": random(40, K, seed=seed)} for seed in range(3)]


def chain(length: int) -> qruntime.Model:
    """x → w → h → v → y, or its first layer alone."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], name="first"), helper.make_node("MatMul", ["h", "v"], ["y"], name="second")]
    weights = {"w": random(K, HIDDEN), "v": random(HIDDEN, N, seed=1)}
    output = [("h", HIDDEN), ("y", N)][length - 1]
    return qruntime.load(model_bytes(nodes[:length], [("x", FLOAT, ["b", K])], [(output[0], FLOAT, ["b", output[1]])], weights))


def readers(*names: str) -> qruntime.Model:
    """Layers w and v that read x, or one of them."""
    weights = {"w": random(K, HIDDEN), "v": random(K, N, seed=1)}
    nodes = [helper.make_node("MatMul", ["x", name], [f"{name}_out"], name=name) for name in names]
    outputs = [(f"{name}_out", FLOAT, ["b", weights[name].shape[1]]) for name in names]
    return qruntime.load(model_bytes(nodes, [("x", FLOAT, ["b", K])], outputs, {name: weights[name] for name in names}))


def scale_of(model: qruntime.Model, tensor: str, path: Path) -> np.ndarray:
    model.save(path)
    file = onnx.load(path)
    (node,) = (node for node in file.graph.node if node.op_type == "QuantizeLinear" and tensor in node.output[0])
    return next(numpy_helper.to_array(one) for one in file.graph.initializer if one.name == node.input[1])


@pytest.mark.parametrize("recipe", ["GPTQ", (ClusterInputs(), ClusterRanges(), GPTQ())], ids=["GPTQ", "RPTQ"])
def test_ranges_are_those_of_what_quantized_layers_make(recipe: str | tuple[Step, ...], tmp_path: Path) -> None:
    scheme = {"scheme": "W2A8-static"} if recipe == "GPTQ" else {"scheme": "W2A4"}
    first = chain(1).quantize(recipe, data=DATA, **scheme)
    made, floats = (np.concatenate([model(feed["x"]) for feed in DATA]) for model in (first, chain(1)))
    seen: list[str] = []
    whole = chain(2).quantize(recipe, data=DATA, progress=lambda done, total, what: seen.append(what), **scheme)
    assert set(seen) == {"quantize"}, "one pass over the graph"
    axis = None if recipe == "GPTQ" else 0  # fewer channels than clusters: each has a range of its own
    form = FORMATS["uint8" if recipe == "GPTQ" else "uint4"]
    scale, other = (parameters(InputRange(rows.min(axis=axis), rows.max(axis=axis)), form)[0] for rows in (made, floats))
    found = scale_of(whole, "h", tmp_path / "whole.onnx")
    np.testing.assert_allclose(found, scale, rtol=1e-6)
    assert np.abs(found / other - 1).max() > 0.01


@pytest.mark.parametrize("static", ["w", "v"])
def test_readers_of_one_tensor_may_have_ranges_of_different_kinds(static: str) -> None:
    """Each is solved for the rows that it reads: as if the other were not there."""
    other = "v" if static == "w" else "w"
    scheme, overrides = "W3A3", {static: "W3A3-static"}
    both = readers("w", "v").quantize("GPTQ", scheme=scheme, overrides=overrides, data=DATA)
    outputs = dict(zip(("w", "v"), both(DATA[0]["x"]), strict=True))
    for name in (static, other):
        alone = readers(name).quantize("GPTQ", scheme=overrides.get(name, scheme), data=DATA)
        assert_same_bits(outputs[name], alone(DATA[0]["x"]))


def test_codes_are_solved_for_rounded_rows() -> None:
    whole = np.concatenate([feed["x"] for feed in DATA])
    low, high = np.float32(whole.min()), np.float32(whole.max())
    made = readers("w").quantize("GPTQ", scheme="W3A2-static", data=DATA)
    known = readers("w").quantize("GPTQ", scheme="W3A16", data=[{"x": rounded_rows(feed["x"], STATIC, low, high)} for feed in DATA])
    floats = readers("w").quantize("GPTQ", scheme="W3A16", data=DATA)
    x = rounded_rows(DATA[0]["x"], STATIC, low, high)
    np.testing.assert_allclose(made(DATA[0]["x"]), known(x), rtol=0, atol=1e-4)
    assert np.abs(known(x) - floats(x)).max() > 0.1, "of rows as they are other codes come out"
