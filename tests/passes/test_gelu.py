"""GELU and SiLU in the ways exporters write them become one node; what only looks like them stays."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from qruntime.passes.gelu import fuse_gelu
from tests.passes.lowering import after, model

X = {"x": np.linspace(-6, 6, 49, dtype=np.float32).reshape(7, 7)}
NUMBERS = {
    name: np.float32(value).reshape(())
    for name, value in {
        "root2": 2**0.5, "inverse": 2**-0.5, "one": 1, "half": 0.5, "three": 3, "cubic": 0.044715, "slope": math.sqrt(2 / math.pi),
    }.items()
}  # fmt: skip
ERF = {"Div": [("Div", ["x", "root2"], ["a"], {})], "Mul": [("Mul", ["inverse", "x"], ["a"], {})]}
CUBES = {"Pow": [("Pow", ["x", "three"], ["c"], {})], "Mul": [("Mul", ["x", "x"], ["s"], {}), ("Mul", ["x", "s"], ["c"], {})]}
PRODUCTS = {
    "half last": [("Mul", ["x", "p"], ["q"], {}), ("Mul", ["q", "half"], ["y"], {})],
    "half of x": [("Mul", ["half", "x"], ["q"], {}), ("Mul", ["q", "p"], ["y"], {})],
    "half of the sum": [("Mul", ["p", "half"], ["q"], {}), ("Mul", ["q", "x"], ["y"], {})],
}


def erf_gelu(argument="Div", product="half last"):
    return [*ERF[argument], ("Erf", ["a"], ["e"], {}), ("Add", ["one", "e"], ["p"], {}), *PRODUCTS[product]]


def tanh_gelu(cube="Pow", product="half last"):
    return [
        *CUBES[cube], ("Mul", ["c", "cubic"], ["d"], {}), ("Add", ["x", "d"], ["i"], {}), ("Mul", ["i", "slope"], ["a"], {}),
        ("Tanh", ["a"], ["t"], {}), ("Add", ["t", "one"], ["p"], {}), *PRODUCTS[product],
    ]  # fmt: skip


def ops(nodes, outputs=("y",), inputs=X, **changed):
    return after(fuse_gelu, model(nodes, inputs, outputs, NUMBERS | changed).graph, inputs)


@pytest.mark.parametrize(("argument", "product"), list(itertools.product(ERF, PRODUCTS)))
def test_erf_form(argument, product):
    assert ops(erf_gelu(argument, product)) == {"Gelu": 1}


@pytest.mark.parametrize(("cube", "product"), list(itertools.product(CUBES, PRODUCTS)))
def test_tanh_form(cube, product):
    assert ops(tanh_gelu(cube, product)) == {"Gelu": 1}


@pytest.mark.parametrize("order", [["x", "g"], ["g", "x"]])
def test_silu(order):
    assert ops([("Sigmoid", ["x"], ["g"], {}), ("Mul", order, ["y"], {})]) == {"Silu": 1}


def test_other_numbers_stay():
    assert ops(erf_gelu(), root2=np.float32(1.5))["Erf"] == 1
    assert ops(erf_gelu(), half=np.float32(0.4))["Erf"] == 1
    assert ops(tanh_gelu(), cubic=np.float32(0.05))["Tanh"] == 1
    assert ops(erf_gelu(), one=np.linspace(1, 2, 7, dtype=np.float32))["Erf"] == 1


@pytest.mark.parametrize("read", ["a", "e", "p", "q"])
def test_parts_that_others_read_stay(read):
    assert ops(erf_gelu(), ("y", read))["Gelu"] == 0


def test_a_gate_of_something_else_stays():
    inputs = X | {"z": X["x"][::-1].copy()}
    assert ops([("Sigmoid", ["z"], ["g"], {}), ("Mul", ["x", "g"], ["y"], {})], inputs=inputs)["Silu"] == 0


def test_narrow_floats_keep_the_roundings_in_between():
    silu = [("Sigmoid", ["h"], ["g"], {}), ("Mul", ["h", "g"], ["z"], {})]
    nodes = [("Cast", ["x"], ["h"], {"to": 10}), *silu, ("Cast", ["z"], ["y"], {"to": 1})]
    graph = model(nodes, X, ["y"]).graph
    assert after(fuse_gelu, graph, X, rtol=0, atol=0)["Silu"] == 0


def test_empty():
    empty = {"x": np.zeros((0, 7), np.float32)}
    assert ops(erf_gelu(), inputs=empty) == {"Gelu": 1}
