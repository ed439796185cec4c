"""What transforms are shown of a site: the function of what reads it, from its rows or from products, after other changes too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from onnx import NodeProto, helper

import qruntime
from qruntime.quantization.reasons import Reason
from qruntime.quantization.steps import Equivalence, SiteView
from tests.small_models import FLOAT, assert_same_bits, model_bytes, random

K, N = 24, 32
BIAS = {"b0": random(N, seed=8), "b1": random(1, N, seed=9)}
WEIGHTS = {"scale": np.ones(K, np.float32), "offset": random(K, seed=7), "w0": random(K, N, seed=1), "w1": random(N, K, seed=2)} | BIAS


def gated() -> list[NodeProto]:
    """Behind a norm: gate and up, one transposed with a factor, both with a bias."""
    return [
        helper.make_node("LayerNormalization", ["x", "scale", "offset"], ["n"], axis=-1),
        helper.make_node("Gemm", ["n", "w0", "b0"], ["gate"], alpha=0.5, beta=2.0),
        helper.make_node("Sigmoid", ["gate"], ["open"]),
        helper.make_node("Gemm", ["n", "w1", "b1"], ["up"], transB=1),
        helper.make_node("Mul", ["open", "up"], ["y"]),
    ]


def plain() -> list[NodeProto]:
    """Behind a norm one layer, and nothing for it to meet."""
    return [
        helper.make_node("LayerNormalization", ["x", "scale", "offset"], ["n"], axis=-1),
        helper.make_node("MatMul", ["n", "w0"], ["y"]),
    ]


def model(nodes: list[NodeProto], threads: int = 2) -> qruntime.Model:
    read = {name for node in nodes for name in node.input}
    weights = {name: data for name, data in WEIGHTS.items() if name in read}
    data = model_bytes(nodes, [("x", FLOAT, ["t", K])], [("y", FLOAT, ["t", N])], weights)
    return qruntime.load(data, threads=threads)


@dataclass(frozen=True)
class Probe:
    """Changes nothing, and looks at what it is shown."""

    look: Callable[[SiteView], None]
    requires = frozenset({"extremes"})

    def choose(self, site: SiteView) -> Equivalence | Reason:
        self.look(site)
        return Reason("a probe")


@dataclass(frozen=True)
class Change:
    scale: float = 1
    shift: float = 0
    requires = frozenset({"extremes"})

    def choose(self, site: SiteView) -> Equivalence | Reason:
        factors = np.exp2(self.scale * random(K, seed=5)).astype(np.float32)
        return Equivalence(scale=factors, shift=self.shift * random(K, seed=6), order=np.random.default_rng(0).permutation(K))


FEEDS = [{"x": random(5 + i, K, seed=20 + i)} for i in range(3)]


@pytest.mark.parametrize("nodes", [gated, plain])
@pytest.mark.parametrize("changes", [[], [Change(scale=2)], [Change(shift=3)], [Change(1, 2), Change(2, 1)]])
def test_outputs_are_those_of_the_graph_after_every_change(nodes, changes: list[Change]):
    made = model(nodes())
    wanted = [made.run(feed)["y"] for feed in FEEDS]
    looked = []

    def look(site: SiteView) -> None:
        looked.append(site)
        assert site.outputs_of is not None
        products = [[np.float32(rows.astype(np.float64) @ weight.T) for weight in site.weights] for rows in site.runs]
        for found in (site.outputs(site.runs, site.weights), site.outputs_of(products)):
            assert len(found) == len(FEEDS)
            for one in found:
                near = next(other for other in wanted if other.shape == one.shape)
                np.testing.assert_allclose(one, near, rtol=1e-4, atol=1e-4)
        changed = [weight * (1 + (np.arange(K) == 3)) for weight in site.weights]
        assert np.abs(site.outputs(site.runs, changed)[0] - site.outputs(site.runs, site.weights)[0]).max() > 1e-2

    made.quantize([*changes, Probe(look)], scheme="W8A8", data=FEEDS)
    assert len(looked) == 1


def test_side_by_side_keeps_the_order():
    found: list[int] = []
    probe = Probe(lambda site: found.extend(site.side_by_side(lambda number: number**2, range(50))))
    model(plain()).quantize([probe], scheme="W8A8", data=FEEDS)
    assert found == [number**2 for number in range(50)]


def test_a_recurrent_layer_does_more_than_multiply():
    hidden = 6
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale", "offset"], ["n"], axis=-1),
        helper.make_node("RNN", ["n", "w", "r"], ["y"], hidden_size=hidden),
    ]
    weights = {"scale": WEIGHTS["scale"], "offset": WEIGHTS["offset"], "w": random(1, hidden, K), "r": random(1, hidden, hidden, seed=1)}
    data = model_bytes(nodes, [("x", FLOAT, ["t", "b", K])], [("y", FLOAT, ["t", 1, "b", hidden])], weights)
    recurrent, feed = qruntime.load(data), {"x": random(7, 2, K)}
    wanted, found = recurrent.run(feed)["y"], []

    def look(site: SiteView) -> None:
        assert site.outputs_of is None
        found.extend(site.outputs(site.runs, site.weights))

    recurrent.quantize([Change(1, 2), Probe(look)], scheme="W8A8", data=[feed])
    np.testing.assert_allclose(found[0], wanted.reshape(found[0].shape), rtol=1e-4, atol=1e-4)
    chosen = recurrent.quantize("Outlier Suppression+", scheme="W8A8", data=[feed])
    (row,) = chosen.report.layers
    assert row.facts[0]["loss"] <= row.facts[0]["loss without"]


@pytest.mark.parametrize("recipe", ["Outlier Suppression+", "AWQ"])
@pytest.mark.parametrize("nodes", [gated, plain])
def test_threads_change_no_bit(recipe: str, nodes):
    feed = FEEDS[0]
    made = [model(nodes(), threads).quantize(recipe, scheme="W6A6", data=FEEDS) for threads in (1, 2, 3)]
    for other in made[1:]:
        assert [row.facts for row in other.report.layers] == [row.facts for row in made[0].report.layers]
        assert_same_bits(other.run(feed)["y"], made[0].run(feed)["y"])
