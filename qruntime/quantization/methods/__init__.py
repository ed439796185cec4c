"""Methods of papers: a file for each, with its steps; and their recipes, which is what they are called by."""

from __future__ import annotations

from qruntime.quantization.methods.rtn import RTN
from qruntime.quantization.recipe import Recipe, Recipes

RECIPES = Recipes(
    [
        Recipe("RTN", "W4A16-g128", (RTN(),)),
    ],
    others={"round to nearest": "RTN"},
)
