"""Methods of papers: a file for each, with its steps; and their recipes, which is what they are called by."""

from __future__ import annotations

from qruntime.quantization.methods.rtn import RTN
from qruntime.quantization.methods.smoothquant import SmoothQuant
from qruntime.quantization.recipe import Recipe, Recipes

RECIPES = Recipes(
    [
        Recipe("RTN", "W4A16-g128", (RTN(),)),
        Recipe("SmoothQuant", "W8A8-static", (SmoothQuant(),)),
    ],
    others={"round to nearest": "RTN"},
)
