"""What a call may ask for: recipes by name, steps in an order, and which layers get which scheme."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import pytest
from onnx import helper

import qruntime
from qruntime.errors import QuantizationError
from qruntime.quantization.methods import AWQ, GPTQ, RECIPES, RTN, ClipRanges, LowRank, QuantEase
from qruntime.quantization.recipe import DEFAULT_SCHEME, Recipe, read, seeded, with_options
from qruntime.quantization.scheme import parse
from tests.small_models import model_bytes, random

FLOAT = onnx.TensorProto.FLOAT


@dataclass(frozen=True)
class Adds:
    seed: int | None = None
    requires = frozenset({"sample"})

    def branch(self, weight, restored, statistics): ...


@dataclass(frozen=True)
class Refines(RTN):
    refines = True


def test_recipes_are_found_whatever_the_case_and_punctuation():
    for name in RECIPES:
        spellings = {name, name.lower(), name.upper(), name.replace("-", " ").replace("-", "_"), f" {name}. "}
        assert all(read(spelling, RECIPES) is RECIPES[name] for spelling in spellings)
    assert "RTN: W4A16-g128\n  1. RTN()" in str(RECIPES)


class Plain:
    """A step that is no dataclass, and has no options."""

    requires = frozenset()

    def branch(self, weight, restored, statistics): ...


def test_options_go_to_the_steps_that_have_them():
    made = with_options(read(["rtn", Adds(3)], RECIPES), {"seed": 5})
    assert made.steps == (RTN(), Adds(5))
    assert with_options(read(Plain(), RECIPES), {}).steps
    with pytest.raises(QuantizationError, match="GPTQ has no option 'order'; its options are: actorder, block_size, dampening_frac"):
        with_options(RECIPES["GPTQ"], {"order": 1})
    with pytest.raises(QuantizationError, match="GPTQ: block_size must be 1 or more, got 0"):
        with_options(RECIPES["GPTQ"], {"block_size": 0})


def test_every_recipe_can_be_read():
    for recipe in RECIPES.values():
        assert parse(recipe.scheme)
        assert Recipe(recipe.name, recipe.scheme, recipe.steps) == recipe


def test_steps_make_a_recipe():
    assert read(None, RECIPES) == Recipe("RTN")
    assert read(RTN(), RECIPES).steps == (RTN(),)
    made = read(["rtn", Refines(), Adds()], RECIPES)
    assert (made.steps, made.scheme, made.requires) == ((RTN(), Refines(), Adds()), DEFAULT_SCHEME, {"sample"})
    assert made.name == "RTN + Refines + Adds"
    assert seeded(made, 7).steps[-1] == Adds(7)
    assert seeded(read(Adds(3), RECIPES), 7).steps == (Adds(3),)


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (["AWQ", "GPTQ"], (AWQ(), GPTQ())),
        (["awq", GPTQ(actorder=None)], (AWQ(), GPTQ(actorder=None))),
        (["GPTQ", "ZeroQuant-V2"], (GPTQ(), LowRank(16))),
        (["AWQ", "GPTQ", "QuantEase"], (AWQ(), GPTQ(), QuantEase())),
        (["AWQ", "QuantEase"], (AWQ(), ClipRanges(), QuantEase())),
        (["AWQ", "ZeroQuant-V2"], (AWQ(), ClipRanges(), LowRank(16))),
        (["AWQ"], (AWQ(), ClipRanges())),
    ],
)
def test_names_stand_for_the_steps_that_are_meant(names: list[object], steps: tuple[object, ...]):
    """Rounding to nearest, which a recipe ends with, is not what it is called for before a method that makes codes."""
    assert read(names, RECIPES).steps == steps


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("magic", r"recipe 'magic' is no recipe; there are RTN, "),
        ([Adds(), RTN()], r"RTN makes the codes, so it cannot follow Adds, which makes good for .*; the order is \[RTN, Adds\]"),
        ([Refines(), RTN()], r"RTN makes codes of its own and would drop those of Refines; \[RTN, Refines\] would go on"),
        ([RTN(), RTN()], r"would drop those of RTN; \[RTN\] has one of them"),
        (RTN, r"the class RTN among its steps; make one: RTN\(\)"),
        ([3], r"a recipe has steps such as GPTQ\(\) and names of recipes, got 3"),
    ],
)
def test_what_is_no_recipe(given: object, message: str):
    with pytest.raises(QuantizationError, match=message):
        read(given, RECIPES)


def scores(outputs: int, *, behind: bool = False) -> qruntime.Model:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], name="fc"), helper.make_node("MatMul", ["h", "v"], ["s"], name="head")]
    nodes.append(helper.make_node("Add", ["s", "b"], ["t"]))
    nodes.append(helper.make_node("Relu" if behind else "Softmax", ["t"], ["y"]))
    weights = {"w": random(32, 32), "v": random(32, outputs), "b": random(outputs)}
    return qruntime.load(model_bytes(nodes, [("x", FLOAT, ["n", 32])], [("y", FLOAT, None)], weights))


def test_scores_of_a_vocabulary_stay_float_below_8_bits():
    left = scores(128).quantize(scheme="W4A16").report
    assert [layer.name for layer in left.layers] == ["fc"]
    assert left.skipped[0].reason.startswith("scores a vocabulary")
    for model, keywords in (
        (scores(127), {"scheme": "W4A16"}),
        (scores(128, behind=True), {"scheme": "W4A16"}),
        (scores(128), {"scheme": "W8A8"}),
        (scores(128), {"scheme": "W4A16", "overrides": {"head": "W4A16"}}),
    ):
        assert [layer.name for layer in model.quantize(**keywords).report.layers] == ["fc", "head"]


def test_scores_of_a_vocabulary_have_ranges_of_each_token():
    def marks(outputs: int, **keywords) -> list[str]:
        made = scores(outputs).quantize(scheme="W8A8-static", data=[{"x": random(40, 32)}], **keywords)
        assert [("activations", "per token") in [fact for found in row.facts for fact in found.items()] for row in made.report.layers] == [
            "per_token" in str(node.mark.activations) for node in made.graph.nodes if node.mark is not None
        ]
        return [node.mark.activations for node in made.graph.nodes if node.mark is not None]

    ranges, (static, _) = marks(128), marks(127)
    assert ranges == [static, "per_token"]
    assert marks(127) == [static, static]
    assert marks(128, overrides={"head": "W8A8-static"}) == [static, static]
