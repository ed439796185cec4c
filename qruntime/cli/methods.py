"""Methods of quantization as the command line writes them: names of recipes, and steps with their arguments."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from qruntime.cli.arguments import Usage
from qruntime.errors import QuantizationError
from qruntime.quantization.recipe import Recipe, read
from qruntime.quantization.scheme import parse

_OUTSIDE_PARENTHESES = r",(?![^(]*\))"


def methods(text: str) -> list[object]:
    """The parts of "SmoothQuant(alpha=0.8),GPTQ": steps, and names of recipes. For argparse."""
    parts = [part.strip() for part in re.split(_OUTSIDE_PARENTHESES, text)]
    return [_step(part) if part.endswith(")") else _recipe(part) for part in parts]


def _recipe(name: str) -> Recipe:
    from qruntime.quantization.methods import RECIPES

    if name not in RECIPES:
        steps = ", ".join(sorted(_steps()))
        raise argparse.ArgumentTypeError(f"{name!r} is no method; there are {', '.join(RECIPES)}; and steps, as NAME(): {steps}")
    return RECIPES[name]


def _step(text: str) -> object:
    """GPTQ(actorder=None) and the like; values are numbers, texts, True, False and None."""
    name, _, rest = text.partition("(")
    steps = _steps()
    if name not in steps:
        raise argparse.ArgumentTypeError(f"{name!r} is no step; there are {', '.join(sorted(steps))}")
    known = [one.name for one in fields(steps[name])]
    try:
        call = ast.parse(f"step({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError("arguments have names")
        return steps[name](**{str(one.arg): _value(one.value) for one in call.keywords})
    except (SyntaxError, TypeError, ValueError) as error:
        more = f"its arguments are {', '.join(known)}, as NAME=VALUE" if known else "it has no arguments"
        raise argparse.ArgumentTypeError(f"{text!r}: {error}; {more}") from error


def _value(node: ast.expr) -> object:
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(f"{ast.unparse(node)} is no number, text, True, False or None") from None


def _steps() -> dict[str, Any]:
    """Classes of steps by name."""
    from qruntime.quantization import methods as known

    used = {type(step).__name__: type(step) for recipe in known.RECIPES.values() for step in recipe.steps}
    return used | {
        name: thing for name, thing in vars(known).items() if isinstance(thing, type) and is_dataclass(thing) and thing is not Recipe
    }


def composed(given: Sequence[object]) -> Recipe:
    """What several methods in a row stand for. Raises Usage for those that cannot follow one another."""
    from qruntime.quantization.methods import RECIPES

    try:
        return read(given[0] if len(given) == 1 else list(given) or None, RECIPES)
    except QuantizationError as error:
        raise Usage(f"--method: {error}") from error


class ListMethods(argparse.Action):
    """Prints the recipes and ends the program, as --version does."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from qruntime.quantization.methods import RECIPES

        for recipe in RECIPES.values():
            head, *steps = str(recipe).splitlines()
            print(f"{head}{', needs --data' if recipe.needs_data or parse(recipe.scheme).needs_data else ''}", *steps, sep="\n")
        parser.exit()
