"""Activations that an epilogue applies are recognised with their parameters; others are left to their operator."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from qruntime.ir import QRUNTIME, Node, Value, constant
from qruntime.ops import registry
from qruntime.ops.epilogue import ELEMENTWISE
from qruntime.passes.activations import Activation, activation_in
from qruntime.passes.rewriting import as_attribute


def node(op, *more, version=17, domain="", **attributes):
    kinds = {name: as_attribute(value) for name, value in attributes.items()}
    return Node(op, [Value("x"), *more], [Value("y")], kinds, version=version, domain=domain)


def number(value, dtype=np.float32, shape=()):
    return constant("n", np.full(shape, value, dtype))


@pytest.mark.parametrize(
    ("op", "name"),
    [
        ("Relu", "relu"), ("Sigmoid", "sigmoid"), ("Tanh", "tanh"), ("HardSwish", "hard_swish"), ("Mish", "mish"),
        ("Softplus", "softplus"), ("Softsign", "softsign"),
    ],
)  # fmt: skip
def test_without_parameters(op, name):
    assert activation_in(node(op)) == Activation(name)


@pytest.mark.parametrize("domain", ["", QRUNTIME])
def test_gelu(domain):
    assert activation_in(node("Gelu", domain=domain)) == Activation("gelu")
    assert activation_in(node("Gelu", domain=domain, approximate="tanh")) == Activation("gelu_tanh")


def test_of_our_domain():
    assert activation_in(node("Silu", domain=QRUNTIME)) == Activation("silu")
    assert activation_in(node("HardSwish", domain=QRUNTIME)) == Activation("hard_swish")
    assert activation_in(node("Silu")) is None
    assert activation_in(node("Relu", domain=QRUNTIME)) is None
    assert activation_in(node("Relu", domain="com.example")) is None


@pytest.mark.parametrize(("kernel", "op", "names"), [(kernel, *of) for kernel, of in ELEMENTWISE.items() if of[1] and of[0] != "Clip"])
def test_parameters_default_to_those_of_the_definition(kernel, op, names):
    found = activation_in(node(op, version=24))
    assert found is not None
    defaults = inspect.unwrap(registry.find("", op, 24).definition).__kwdefaults__
    assert found.name == kernel
    assert found.parameters == pytest.approx([defaults[name] for name in names])
    given = {name: 0.25 + index for index, name in enumerate(names)}
    assert activation_in(node(op, version=24, **given)) == Activation(kernel, tuple(given.values()))


@pytest.mark.parametrize(
    "odd",
    [
        node("LeakyRelu", alpha="steep"), node("Celu", alpha=0.0), node("Celu", alpha=-1.0), node("Selu", version=1), node("Softmax"),
        node("PRelu"), node("HardSigmoid", beta=(0.5, 0.5)),
    ],
)  # fmt: skip
def test_others_are_left_alone(odd):
    assert activation_in(odd) is None


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ((0, 6), (0.0, 6.0)), ((0,), (0.0, np.inf)), ((None, 6), (-np.inf, 6.0)), ((), (-np.inf, np.inf)),
        ((None, None), (-np.inf, np.inf)),
    ],
)  # fmt: skip
def test_clip_with_constant_bounds(bounds, expected):
    inputs = [None if bound is None else number(bound) for bound in bounds]
    assert activation_in(node("Clip", *inputs)) == Activation("clip", expected)


def test_clip_with_other_bounds():
    assert activation_in(node("Clip", Value("computed"))) is None
    assert activation_in(node("Clip", number(0), Value("computed"))) is None
    assert activation_in(node("Clip", number(0, np.float16))) is None
    assert activation_in(node("Clip", number(0, shape=(2,)))) is None


def test_clip_with_attributes():
    limits = np.finfo(np.float32)
    assert activation_in(node("Clip", version=6, min=-1.0, max=2.0)) == Activation("clip", (-1.0, 2.0))
    assert activation_in(node("Clip", version=6)) == Activation("clip", (float(limits.min), float(limits.max)))
    assert activation_in(node("Clip", version=6, min="low")) is None
