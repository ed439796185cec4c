"""Layers, activations and gates before a layer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.quantization.sites.nets import KINDS, WIDTH, Changing, Net, change_of, check_each

MICROSOFT = "com.microsoft"
ROWS = {"x": ["b", WIDTH]}


def gemm(net: Net, x: str, k: int = WIDTH, n: int = WIDTH, **attributes: float) -> str:
    is_turned = bool(attributes.get("transB"))
    weight = net.weight(k, n)
    return net.op("Gemm", x, weight.T if is_turned else weight, net.numbers(n), **attributes)


LAYERS: dict[str, Callable[[Net, str], str]] = {
    "MatMul": lambda net, x: net.op("MatMul", x, net.weight(WIDTH, WIDTH)),
    "MatMul and Add": lambda net, x: net.linear(x),
    "MatMul and Add in front": lambda net, x: net.op("Add", net.numbers(WIDTH), net.op("MatMul", x, net.weight(WIDTH, WIDTH))),
    "MatMul and Add of one number": lambda net, x: net.op("Add", net.op("MatMul", x, net.weight(WIDTH, WIDTH)), np.float32(0.5)),
    "Gemm": lambda net, x: gemm(net, x),
    "Gemm turned": lambda net, x: gemm(net, x, transB=1),
    "Gemm with factors": lambda net, x: gemm(net, x, transB=1, alpha=0.5, beta=2.0),
    "Gemm without its bias": lambda net, x: gemm(net, x, beta=0.0),
    "Gemm of two inputs": lambda net, x: net.op("Gemm", x, net.weight(WIDTH, WIDTH), alpha=0.5),
    "Gemm with one number": lambda net, x: net.op("Gemm", x, net.weight(WIDTH, WIDTH), np.float32([0.5])),
    "FusedMatMul": lambda net, x: net.op("FusedMatMul", x, net.weight(WIDTH, WIDTH), domain=MICROSOFT, transB=1, alpha=0.5),
    "FusedGemm": lambda net, x: net.op("FusedGemm", x, net.weight(WIDTH, WIDTH), net.numbers(WIDTH), domain=MICROSOFT, alpha=2.0),
}


@pytest.mark.parametrize("second", LAYERS)
@pytest.mark.parametrize("first", LAYERS)
def test_linear_after_linear(first: str, second: str) -> None:
    net = Net()
    changing = net.changing(net.op("Tanh", LAYERS[second](net, LAYERS[first](net, "x"))), ROWS)
    site = changing.site("linear")
    assert site.allows == set(KINDS), site.reasons
    assert site.apply(change_of(site, KINDS)) is None
    changing.assert_same()
    assert site.apply(change_of(site, KINDS, seed=1)) is None
    changing.assert_same()


ACTIVATIONS: dict[str, tuple[str, list[str], Callable[[Net, str], str]]] = {
    "Relu": ("relu", ["scale", "order"], lambda net, x: net.op("Relu", x)),
    "LeakyRelu": ("relu", ["scale", "order"], lambda net, x: net.op("LeakyRelu", x, alpha=0.1)),
    "PRelu": ("relu", ["scale", "order"], lambda net, x: net.op("PRelu", x, net.numbers(WIDTH))),
    "Max": ("linear", ["scale", "order"], lambda net, x: net.op("Max", x, np.float32(0))),
    "times a number": ("linear", ["scale", "order"], lambda net, x: net.op("Mul", x, np.float32(0.5))),
    "times a vector": ("affine", ["scale", "order"], lambda net, x: net.op("Mul", x, net.numbers(WIDTH, near=1))),
    "less a vector": ("linear", ["scale", "shift", "order"], lambda net, x: net.op("Sub", x, net.numbers(WIDTH))),
    "from a vector": ("linear", ["scale", "shift", "order"], lambda net, x: net.op("Sub", net.numbers(WIDTH), x)),
    "Sigmoid": ("activation", ["order"], lambda net, x: net.op("Sigmoid", x)),
    "SiLU": ("activation", ["order"], lambda net, x: net.op("Mul", x, net.op("Sigmoid", x))),
    "GELU": (
        "activation",
        ["order"],
        lambda net, x: net.op(
            "Mul", net.op("Mul", x, net.op("Add", net.op("Erf", net.op("Div", x, np.float32(2**0.5))), np.float32(1))), np.float32(0.5)
        ),
    ),
    "BiasGelu": ("activation", ["order"], lambda net, x: net.op("BiasGelu", x, net.numbers(WIDTH), domain=MICROSOFT)),
    "Clip": ("activation", ["order"], lambda net, x: net.op("Clip", x, np.float32(0), np.float32(6))),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str) -> None:
    role, allows, write = ACTIVATIONS[name]

    def make() -> Changing:
        net = Net()
        return net.changing(net.linear(write(net, net.linear("x"))))

    check_each(make, role, allows)


def test_fused_activations() -> None:
    for activation, role, allows in (("Relu", "relu", {"scale", "order"}), ("Sigmoid", "activation", {"order"})):
        net = Net()
        t = net.op("FusedGemm", "x", net.weight(WIDTH, WIDTH), net.numbers(WIDTH), domain=MICROSOFT, activation=activation)
        changing = net.changing(net.linear(t), ROWS)
        site = changing.site(role)
        assert site.allows == allows
        assert site.apply(change_of(site, allows)) is None
        changing.assert_same()


def gated(activation: str | None, *, swapped: bool = False) -> Changing:
    net = Net()
    gate, up = net.linear("x", WIDTH, 12), net.linear("x", WIDTH, 12, bias=False)
    act = gate if activation is None else net.op("Mul", gate, net.op("Sigmoid", gate)) if activation == "Silu" else net.op(activation, gate)
    t = net.op("Mul", up, act) if swapped else net.op("Mul", act, up)
    changing = net.changing(net.linear(t, 12))
    assert changing.sites[0].meets is not None
    assert changing.sites[0].meets.name == changing.sites[1].value.name
    return changing


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("activation", ["Silu", "Relu", "Sigmoid", None])
def test_a_gate(activation: str | None, swapped: bool) -> None:
    check_each(lambda: gated(activation, swapped=swapped), "gated", ["scale", "order"])


def test_a_gate_of_one_number_per_row() -> None:
    def make() -> Changing:
        net = Net()
        t = net.op("Mul", net.linear("x"), net.op("Sigmoid", net.linear("x", WIDTH, 1)))
        return net.changing(net.linear(t))

    check_each(make, "gated", ["scale", "order"])


def test_two_layers_added() -> None:
    def make() -> Changing:
        net = Net()
        return net.changing(net.linear(net.op("Add", net.linear("x"), net.linear("x", bias=False))))

    check_each(make, "linear", KINDS)


def test_joined_and_cut_channels() -> None:
    def make() -> Changing:
        net = Net()
        whole = net.linear("x", WIDTH, 12)
        a, b = net.op("Split", whole, np.array([4, 8]), count=2, axis=-1)
        t = net.op("Concat", net.op("Relu", net.op("Identity", b)), net.linear("x", WIDTH, 4), axis=-1)
        changing = net.changing([net.linear(t, 12), net.op("Tanh", a)])
        del changing.sites[0]
        return changing

    check_each(make, make().sites[0].role, ["scale", "order"])


def test_a_weight_that_two_layers_share_is_duplicated() -> None:
    net = Net()
    shared = net.constant(net.weight(WIDTH, WIDTH))
    hidden = net.op("Relu", net.op("MatMul", "x", shared))
    changing = net.changing(net.op("Tanh", net.op("MatMul", hidden, shared)))
    site = changing.site("relu")
    assert site.apply(change_of(site, ["scale", "order"])) is None
    changing.assert_same()


def test_readers_that_share_a_weight_share_what_becomes_of_it() -> None:
    net = Net()
    shared = net.constant(net.weight(WIDTH, WIDTH))
    hidden = net.linear("x")
    changing = net.changing(
        net.op("Add", net.op("Tanh", net.op("Gemm", hidden, shared)), net.op("Gemm", hidden, shared, net.numbers(WIDTH))), ROWS
    )
    site = changing.site("linear")
    assert site.apply(change_of(site, KINDS)) is None
    changing.assert_same()
    assert len({reader.weight for reader in site.readers}) == 1


def test_what_forbids_a_change() -> None:
    net = Net()
    t = net.linear("x")
    changing = net.changing([net.linear(t), t])
    assert "is an output of the graph" in changing.sites[1].reasons["scale"]

    net = Net()
    t = net.linear("x")
    changing = net.changing([net.linear(t), net.op("Einsum", t, net.numbers(WIDTH), equation="bsk,k->bs")])
    assert "Einsum" in changing.sites[1].reasons["scale"]


def test_what_only_asks_for_the_shape_does_not_matter() -> None:
    net = Net()
    t = net.linear("x")
    y = net.op("Reshape", net.linear(t), net.op("Shape", t))
    assert net.changing(y).site("linear").allows == set(KINDS)


def test_refused_whole() -> None:
    """A part that cannot be absorbed leaves the others undone, too."""
    net = Net()
    changing = net.changing(net.linear(net.op("Relu", net.linear("x"))))
    site = changing.site("relu")
    weights = [reader.weight for reader in site.readers]
    assert site.apply(change_of(site, KINDS)) == site.reasons["shift"]
    assert [reader.weight for reader in site.readers] == weights


def test_arrays_that_are_no_change() -> None:
    net = Net()
    site = net.changing(net.linear(net.linear("x"))).site("linear")
    change = change_of(site, KINDS)
    for bad in (
        type(change)(scale=np.zeros(WIDTH, np.float32)),
        type(change)(scale=np.ones(3, np.float32)),
        type(change)(shift=np.full(WIDTH, np.nan, np.float32)),
        type(change)(order=np.zeros(WIDTH, np.int64)),
    ):
        with pytest.raises(ValueError, match="of 'v"):
            site.apply(bad)
