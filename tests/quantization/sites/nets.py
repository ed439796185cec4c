"""Small nets with sites, and the check that a change of one leaves their function alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import qruntime
from qruntime.ir import Graph, clone
from qruntime.model import Model
from qruntime.quantization.layers import layer_of
from qruntime.quantization.sites import KeySite, Site, find_sites
from qruntime.quantization.steps import Equivalence

KINDS = ("scale", "shift", "order")
WIDTH = 8


class Net:
    """Nodes and weights under names of their own, in the order in which they are asked for."""

    def __init__(self, *, opset: int = 17, seed: int = 0, prefix: str = "v"):
        self.opset, self.prefix = opset, prefix
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.random = np.random.default_rng(seed)

    def op(self, op_type: str, *inputs: Any, count: int = 1, **attributes: Any) -> Any:
        """The name, or names, of what a node makes of names, arrays and numbers."""
        names = [one if isinstance(one, str) else self.constant(one) for one in inputs]
        outputs = [f"{self.prefix}{len(self.nodes)}_{i}" for i in range(count)]
        self.nodes.append(helper.make_node(op_type, names, outputs, name=f"/n{len(self.nodes)}/{op_type}", **attributes))
        return outputs[0] if count == 1 else outputs

    def constant(self, data: Any) -> str:
        name = f"c{len(self.weights)}"
        data = np.asarray(data)
        self.weights[name] = data.astype(np.float32) if data.dtype == np.float64 else data
        return name

    def numbers(self, *shape: int, near: float = 0.0) -> np.ndarray:
        return (near + self.random.standard_normal(shape) / 2).astype(np.float32)

    def weight(self, k: int, n: int) -> np.ndarray:
        return self.numbers(k, n) / np.float32(k**0.5 / 2)

    def linear(self, x: str, k: int = WIDTH, n: int = WIDTH, *, bias: bool = True) -> str:
        product = self.op("MatMul", x, self.weight(k, n))
        return self.op("Add", product, self.numbers(n)) if bias else product

    def bytes(self, inputs: Mapping[str, Sequence[int | str]], outputs: Sequence[str] | Mapping[str, Sequence[int | str]]) -> bytes:
        """`outputs` with their dimensions, or names alone."""
        dims_of = outputs if isinstance(outputs, Mapping) else dict.fromkeys(outputs)
        infos = [
            helper.make_tensor_value_info(name, TensorProto.INT64 if name.startswith("ids") else TensorProto.FLOAT, dims)
            for name, dims in inputs.items()
        ]
        graph = helper.make_graph(
            self.nodes,
            "net",
            infos,
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in dims_of.items()],
            [numpy_helper.from_array(data, name) for name, data in self.weights.items()],
        )
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()

    def changing(self, outputs: str | Sequence[str], inputs: Mapping[str, Sequence[int | str]] | None = None, **sizes: int) -> Changing:
        return Changing(self.bytes(inputs or {"x": ["b", "s", WIDTH]}, [outputs] if isinstance(outputs, str) else outputs), **sizes)


class Changing:
    """A model whose sites change, and what it gave before."""

    def __init__(self, data: bytes, *, cache_is_private: bool = False, **sizes: int):
        self.model = qruntime.load(data)
        self.graph: Graph = clone(self.model._declared)
        self.sites = find_sites(self.graph, layers(self.graph), cache_is_private=cache_is_private)
        random = np.random.default_rng(1)
        self.feed = {}
        for info in self.model.inputs:
            shape = [d if isinstance(d, int) else sizes.get(str(d), 3 + at) for at, d in enumerate(info.shape or ())]
            is_float = "float" in str(info.dtype)
            self.feed[info.name] = random.standard_normal(shape).astype(np.float32) if is_float else random.integers(0, 5, shape)
        self.before = self.model.run(self.feed)

    def site(self, role: str) -> Site:
        found = [site for site in self.sites if site.role == role]
        assert len(found) == 1, self.sites
        return found[0]

    def run(self) -> dict[str, np.ndarray]:
        self.graph.check()
        return Model(self.graph, self.model.info).run(self.feed)

    def assert_same(self, outputs: Collection[str] | None = None) -> None:
        after = self.run()
        for name in self.before if outputs is None else outputs:
            a, b = self.before[name], after[name]
            assert a.shape == b.shape
            assert np.abs(a - b).max(initial=0) <= 1e-5 * np.abs(a).max(initial=0), name


def layers(graph: Graph) -> list[Any]:
    return [layer for node in graph.walk_nodes() if (layer := layer_of(node))]


def change_of(site: Site | KeySite, kinds: Collection[str], seed: int = 0) -> Equivalence:
    """A random change that respects ties and parts."""
    random = np.random.default_rng(seed)
    k = site.channels
    ties = np.arange(k) if site.ties is None else site.ties
    parts = np.zeros(k, int) if site.parts is None else site.parts
    order = np.arange(k)
    turns: dict[tuple[int, ...], np.ndarray] = {}
    for part in np.unique(parts):
        at = np.flatnonzero(parts == part)
        order[at] = at[turns.setdefault(tuple(ties[at]), random.permutation(len(at)))]
    scale = np.exp(random.standard_normal(k)).astype(np.float32)[ties]
    shift = random.standard_normal(k).astype(np.float32)[ties]
    return Equivalence(scale if "scale" in kinds else None, shift if "shift" in kinds else None, order if "order" in kinds else None)


def check_each(make: Callable[[], Changing], role: str, allows: Collection[str]) -> None:
    """The site with `role` absorbs each of `allows`, and nothing else; with a node before the readers it takes on all."""
    site = make().site(role)
    assert site.allows == frozenset(allows), site.reasons
    for kind in KINDS:
        changing = make()
        site = changing.site(role)
        before = len(changing.graph.nodes)
        reason = site.apply(change_of(site, [kind]))
        if kind in allows:
            assert reason is None
        else:
            assert reason
            assert reason == site.reasons[kind]
            assert len(changing.graph.nodes) == before
            assert site.apply(change_of(site, [kind]), insert=True) is None
        changing.assert_same()
    changing = make()
    site = changing.site(role)
    assert site.apply(change_of(site, KINDS), insert=True) is None
    changing.assert_same()
    assert site.apply(change_of(site, KINDS, seed=1), insert=True) is None
    changing.assert_same()
