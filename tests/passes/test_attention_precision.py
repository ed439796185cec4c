"""Attention of quantized projections is computed from 16-bit codes, any other in float."""

import numpy as np
import pytest

import qruntime
from qruntime.ir import clone
from qruntime.passes import pipeline
from tests.passes.lowering import model
from tests.small_models import encoder_bytes

B, S, H, D = 2, 7, 2, 8
RNG = np.random.default_rng(3)
X = {"x": RNG.standard_normal((B, S, H * D)).astype(np.float32)}
PAST = {"past": RNG.standard_normal((B, H, 3, D)).astype(np.float32)}
CONSTANTS = {n: RNG.normal(0, 0.2, (H * D, H * D)).astype(np.float32) for n in ("wq", "wk", "wv")}
CONSTANTS |= {"wqkv": np.concatenate([CONSTANTS[f"w{n}"] for n in "qkv"], axis=1)}
CONSTANTS |= {"split": np.array([0, 0, H, D]), "merge": np.array([0, 0, -1]), "thirds": np.array([H * D] * 3)}


def heads(name: str, of: str, perm: tuple[int, ...] = (0, 2, 1, 3)) -> list:
    return [
        ("Reshape", [of, "split"], [f"{name}_r"], {}),
        ("Transpose", [f"{name}_r"], [name], {"perm": list(perm)}),
    ]


PROJECTIONS = [("MatMul", ["x", f"w{n}"], [f"{n}0"], {}) for n in "qkv"]
ATTENTION = [
    ("MatMul", ["q", "kt"], ["s"], {}),
    ("Softmax", ["s"], ["p"], {"axis": -1}),
    ("MatMul", ["p", "v"], ["y"], {}),
]
SEPARATE = [*PROJECTIONS, *heads("q", "q0"), *heads("kt", "k0", (0, 2, 3, 1)), *heads("v", "v0"), *ATTENTION]


def precisions(loaded: qruntime.Model) -> list[int]:
    nodes = pipeline.lowered(clone(loaded.graph)).walk_nodes()
    return [node.attr("in_int16", 0) for node in nodes if node.is_op("Attention", domain="qruntime")]


def agrees(quantized: qruntime.Model, loaded: qruntime.Model, feed: dict) -> None:
    found, expected = (next(iter(m.run(feed).values())) for m in (quantized, loaded))
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.1 * np.abs(expected).max())


def test_projections_of_one_input():
    loaded = model(SEPARATE, X, ["y"], CONSTANTS)
    assert precisions(loaded) == [0]
    assert precisions(loaded.quantize_dynamic()) == [1]
    agrees(loaded.quantize_dynamic(), loaded, X)


def test_one_projection_that_is_split():
    nodes = [
        ("MatMul", ["x", "wqkv"], ["qkv"], {}),
        ("Split", ["qkv", "thirds"], ["q0", "k0", "v0"], {"axis": -1}),
        *SEPARATE[3:],
    ]
    loaded = model(nodes, X, ["y"], CONSTANTS)
    assert precisions(loaded.quantize_dynamic()) == [1]
    agrees(loaded.quantize_dynamic(), loaded, X)


def test_a_projection_that_stays_float():
    loaded = model(SEPARATE, X, ["y"], CONSTANTS)
    layers = [node.name or node.outputs[0].name for node in loaded.graph.nodes if node.is_op("MatMul")]
    assert precisions(loaded.quantize_dynamic(exclude=[layers[1]])) == [0]


def test_keys_of_a_cache():
    nodes = [
        *PROJECTIONS, *heads("q", "q0"), *heads("k1", "k0"), *heads("v", "v0"),
        ("Concat", ["past", "k1"], ["k"], {"axis": 2}), ("Transpose", ["k"], ["kt"], {"perm": [0, 1, 3, 2]}),
        ("Concat", ["past", "v"], ["v1"], {"axis": 2}),
        *ATTENTION[:2], ("MatMul", ["p", "v1"], ["y"], {}),
    ]  # fmt: skip
    loaded = model(nodes, X | PAST, ["y", "k", "v1"], CONSTANTS)
    assert precisions(loaded.quantize_dynamic()) == [0]


@pytest.mark.parametrize("engine", ["fbgemm", "onnxruntime"])
def test_engines_of_other_runtimes(engine: str):
    assert precisions(model(SEPARATE, X, ["y"], CONSTANTS).quantize_dynamic(engine=engine)) == [0]


def test_the_encoder_of_the_invariance_tests():
    assert set(precisions(qruntime.load(encoder_bytes()).quantize_dynamic())) == {1}
