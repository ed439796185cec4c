"""Methods of papers: a file for each, with its steps; and their recipes, which is what they are called by."""

from __future__ import annotations

from qruntime.quantization.methods.gptq import GPTQ
from qruntime.quantization.methods.quantease import QuantEase
from qruntime.quantization.methods.rtn import RTN
from qruntime.quantization.methods.smoothquant import SmoothQuant
from qruntime.quantization.recipe import Recipe, Recipes

RECIPES = Recipes(
    [
        Recipe("RTN", "W4A16-g128", (RTN(),)),
        Recipe("GPTQ", "W4A16-g128", (GPTQ(),)),
        Recipe("QuantEase", "W4A16", (QuantEase(),)),
        Recipe("SmoothQuant", "W8A8-static", (SmoothQuant(),)),
    ],
    others={"round to nearest": "RTN"},
)
