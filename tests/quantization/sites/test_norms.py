"""Normalizations absorb scales, and shifts where they have a bias; however they are written."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.quantization.sites.nets import WIDTH, Net, change_of, check_each

MICROSOFT = "com.microsoft"


def layer_norm(net: Net, x: str) -> str:
    return net.op("LayerNormalization", x, net.numbers(WIDTH, near=1), net.numbers(WIDTH), axis=-1)


def layer_norm_without_bias(net: Net, x: str) -> str:
    return net.op("LayerNormalization", x, net.numbers(WIDTH, near=1), axis=-1)


def skip_layer_norm(net: Net, x: str) -> str:
    return net.op("SkipLayerNormalization", x, x, net.numbers(WIDTH, near=1), net.numbers(WIDTH), domain=MICROSOFT)


def decomposed_layer_norm(net: Net, x: str) -> str:
    centred = net.op("Sub", x, net.op("ReduceMean", x, axes=[-1]))
    variance = net.op("ReduceMean", net.op("Pow", centred, np.float32(2)), axes=[-1])
    normal = net.op("Div", centred, net.op("Sqrt", net.op("Add", variance, np.float32(1e-5))))
    return net.op("Add", net.op("Mul", normal, net.numbers(WIDTH, near=1)), net.numbers(WIDTH))


def bias_first(net: Net, x: str) -> str:
    centred = net.op("Sub", x, net.op("ReduceMean", x, axes=[-1]))
    variance = net.op("ReduceMean", net.op("Mul", centred, centred), axes=[-1])
    normal = net.op("Mul", centred, net.op("Reciprocal", net.op("Sqrt", net.op("Add", variance, np.float32(1e-5)))))
    return net.op("Add", net.numbers(WIDTH), net.op("Mul", net.numbers(1, 1, WIDTH, near=1), normal))


@pytest.mark.parametrize("norm", [layer_norm, layer_norm_without_bias, skip_layer_norm, decomposed_layer_norm, bias_first])
def test_layer_norm(norm: Callable[[Net, str], str]) -> None:
    def make():
        net = Net()
        t = norm(net, "x")
        return net.changing(net.op("Mul", net.linear(t), net.linear(t, bias=False)))

    check_each(make, "norm", ["scale", "shift"])


def _root(net: Net, x: str) -> str:
    square = net.op("ReduceMean", net.op("Pow", x, np.float32(2)), axes=[-1])
    return net.op("Sqrt", net.op("Add", square, np.float32(1e-5)))


RMS: dict[str, Callable[[Net, str], str]] = {
    "operator of the standard": lambda net, x: net.op("RMSNormalization", x, net.numbers(WIDTH, near=1)),
    "operator of another runtime": lambda net, x: net.op("SimplifiedLayerNormalization", x, net.numbers(WIDTH, near=1)),
    "with the residual": lambda net, x: net.op("SkipSimplifiedLayerNormalization", x, x, net.numbers(WIDTH, near=1), domain=MICROSOFT),
    "times 1 / root": lambda net, x: net.op(
        "Mul", net.numbers(WIDTH, near=1), net.op("Mul", x, net.op("Div", np.float32(1), _root(net, x)))
    ),
    "over root": lambda net, x: net.op("Mul", net.op("Div", x, _root(net, x)), net.numbers(WIDTH, near=1)),
    "times reciprocal": lambda net, x: net.op("Mul", net.op("Mul", net.op("Reciprocal", _root(net, x)), x), net.numbers(WIDTH, near=1)),
    "divided by a vector": lambda net, x: net.op("Div", net.op("Div", x, _root(net, x)), net.numbers(WIDTH, near=2)),
}


@pytest.mark.parametrize("spelling", RMS)
def test_rms_norm(spelling: str) -> None:
    def make():
        net = Net(opset=23 if "standard" in spelling else 17)
        t = RMS[spelling](net, "x")
        return net.changing(net.op("Add", net.linear(t, bias=False), net.linear(t)))

    check_each(make, "norm", ["scale"])


def test_a_shared_scale_is_duplicated() -> None:
    net = Net()
    gamma, beta = net.constant(net.numbers(WIDTH, near=1)), net.constant(net.numbers(WIDTH))
    first = net.op("LayerNormalization", "x", gamma, beta, axis=-1)
    t = net.op("LayerNormalization", net.linear(first), gamma, beta, axis=-1)
    changing = net.changing(net.linear(t))
    site = changing.sites[1]
    assert site.apply(change_of(site, ["scale", "shift"])) is None
    changing.assert_same()


def test_a_norm_that_the_residual_reads_too() -> None:
    """As in BERT, whose norms come after the sum."""

    def make():
        net = Net()
        t = layer_norm(net, "x")
        return net.changing(net.op("Add", net.linear(t), t))

    assert "Add '/n3/Add' reads" in make().site("none").reasons["scale"]
    check_each(make, "none", [])


def test_a_norm_over_more_than_the_channels() -> None:
    def make():
        net = Net()
        scale = net.numbers(4, WIDTH, near=1)
        t = net.op("LayerNormalization", "x", scale, axis=-2)
        return net.changing(net.linear(t), {"x": ["b", 4, WIDTH]})

    assert "need [8]" in make().site("none").reasons["scale"]
    check_each(make, "none", [])


def test_float16_would_be_rounded() -> None:
    net = Net()
    t = net.op("LayerNormalization", net.op("Cast", "x", to=10), net.numbers(WIDTH, near=1).astype(np.float16), axis=-1)
    y = net.op("MatMul", t, net.weight(WIDTH, WIDTH).astype(np.float16))
    changing = net.changing(net.op("Cast", y, to=1))
    (site,) = changing.sites
    reason = site.apply(change_of(site, ["scale"]), insert=True)
    assert reason is not None
    assert "float16" in reason
    changing.assert_same()
