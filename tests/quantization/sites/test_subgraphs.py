"""Bodies of control flow: layers there have sites there, and what they read from outside stays."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from tests.quantization.sites.nets import KINDS, Changing, Net, change_of


def branch(inner: Net, output: str, name: str) -> object:
    made = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
    return helper.make_graph(inner.nodes, name, [], made, [])


def with_branches(then: object, other: object, outer: Net, *outputs: str) -> Changing:
    test = outer.op("Greater", outer.op("ReduceSum", "x", keepdims=0), np.float32(-1e9))
    y = outer.op("If", test, then_branch=then, else_branch=other)
    return outer.changing([y, *outputs])


def inner_net(outer: Net, at: int) -> Net:
    """A net whose weights are those of `outer`, with names of its own."""
    net = Net(seed=at, prefix=f"b{at}_")
    net.weights = outer.weights
    return net


def test_a_subgraph_that_reads_the_tensor_forbids_a_change() -> None:
    outer = Net()
    t = outer.linear("x")
    y = outer.linear(t)
    graphs = []
    for at in range(2):
        inner = inner_net(outer, at)
        graphs.append(branch(inner, inner.op("Tanh", t), f"branch{at}"))
    changing = with_branches(*graphs, outer, y)
    site = next(site for site in changing.sites if site.value.name == t)
    assert "in a subgraph reads" in site.reasons["scale"]
    assert site.apply(change_of(site, KINDS), insert=True) is None
    changing.assert_same()


def test_layers_in_a_subgraph() -> None:
    outer = Net()
    x = outer.op("Tanh", "x")
    graphs = []
    for at in range(2):
        inner = inner_net(outer, at)
        graphs.append(branch(inner, inner.linear(inner.op("Relu", inner.linear(x))), f"branch{at}"))
    changing = with_branches(*graphs, outer)
    relus = [site for site in changing.sites if site.role == "relu"]
    assert len(relus) == 2
    for site in changing.sites:
        assert site.apply(change_of(site, KINDS), insert=True) is None
    changing.assert_same()
    outside = [site for site in changing.sites if site.role == "none"]
    assert len(outside) == 2
    assert all("in a subgraph reads" in site.reasons["scale"] for site in outside)
