"""QLoRA: the codes of a model stay, and branches of low rank beside its layers learn a task.

Tim Dettmers, Artidoro Pagnoni, Ari Holtzman, Luke Zettlemoyer, "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv 2305.14314;
Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685.

    y = x Ŵᵀ + (α / r) (x Aᵀ) Bᵀ,    A [r, K] uniform in ±1/√K,    B [N, r] = 0

Ŵ is NF4 in groups of 64 with scales in 8 bits (`Wnf4A16-g64-double`), or whatever codes the model has. Branches stand beside all
linear layers but one that scores a vocabulary, which stays float. As files and kernels have them they are low_rank.py's: two
products, the second of which is added within the layer's own.

Defaults as in the paper, except: rank 16 in place of 64, which is for models of 7 billion weights; no dropout; a rate that falls to 0
on a line, in place of one that stays. Groups run along a row of the weight and end with it; scales are integers of 8 bits (paper: FP8).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from qruntime.errors import QuantizationError
from qruntime.ir import Graph, Value
from qruntime.quantization.adapter import Parts, check_parts
from qruntime.quantization.arguments import check_rate, check_whole
from qruntime.quantization.layers import Layer
from qruntime.quantization.low_rank import branches_beside, insert_branch, why_no_branch
from qruntime.quantization.request import patterns_of, scores_vocabulary
from qruntime.quantization.steps import LowRankFactors


@dataclass(frozen=True)
class QLoRA:
    """`rank` r and `alpha` of the branches. `targets`: names, module paths, globs or kinds of the layers that get one; None: all
    linear layers but one that scores a vocabulary."""

    rank: int = 16
    alpha: float = 16.0
    targets: Sequence[str] | None = None

    name: ClassVar[str] = "QLoRA"
    scheme: ClassVar[str] = "Wnf4A16-g64-double"
    rate: ClassVar[float] = 2e-4
    clip: ClassVar[float | None] = 0.3

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", None if self.targets is None else patterns_of(self.targets))
        check_whole("QLoRA: rank", self.rank, 1)
        check_rate("QLoRA: alpha", self.alpha)
        if not self.alpha:
            raise QuantizationError("QLoRA: alpha must be above 0, got 0")

    @property
    def settings(self) -> dict[str, float]:
        return {"alpha": float(self.alpha)}

    def why_not(self, layer: Layer) -> str | None:
        """Why a layer gets no branch; None where it does."""
        if self.targets is None and scores_vocabulary(layer.node):
            return "scores a vocabulary: targets= may name it"
        return why_no_branch(layer)

    def start(self, layers: Mapping[str, Layer], seed: int) -> dict[str, Parts]:
        """Branches that add nothing yet."""
        random, made = np.random.default_rng(seed), {}
        for name, layer in layers.items():
            k, n = layer.size
            rank, bound = min(self.rank, k, n), 1 / math.sqrt(k)
            made[name] = {"A": random.uniform(-bound, bound, (rank, k)).astype(np.float32), "B": np.zeros((n, rank), np.float32)}
        return dict(made)

    def put(self, graph: Graph, layers: Mapping[str, Layer], arrays: Mapping[str, Parts], settings: Mapping[str, float]) -> None:
        """Put branches beside the layers. QuantizationError for such as do not fit."""
        if settings.keys() != {"alpha"} or not settings["alpha"] > 0:
            raise QuantizationError("the adapter must have alpha, above 0, and no other setting")
        for name, parts in arrays.items():
            layer = layers[name]
            reason = why_no_branch(layer)
            if reason is not None:
                raise QuantizationError(f"layer {name!r}: {reason}")
            rank = parts["A"].shape[0] if "A" in parts and parts["A"].ndim == 2 else 0
            k, n = layer.size
            check_parts(name, parts, {"A": (rank, k), "B": (n, rank)})
            insert_branch(graph, layer, LowRankFactors(parts["B"] * np.float32(settings["alpha"] / max(1, rank)), parts["A"]))

    def learning(
        self, graph: Graph, layers: Mapping[str, Layer], arrays: Mapping[str, Parts], settings: Mapping[str, float]
    ) -> LearnedFactors:
        """What trains `arrays` by torch, as branches of `graph`."""
        self.put(graph, layers, arrays, settings)
        return LearnedFactors(layers, arrays, settings["alpha"])


class LearnedFactors:
    """Branches under training."""

    def __init__(self, layers: Mapping[str, Layer], arrays: Mapping[str, Parts], alpha: float):
        import torch

        self._names = list(arrays)
        self._weights = [(layers[name], branches_beside(layers[name].node)[0].weights) for name in arrays]
        self._alpha = alpha
        self.parameters: list[Any] = [
            torch.from_numpy(array.copy()).requires_grad_() for parts in arrays.values() for array in (parts["A"], parts["B"])
        ]

    @property
    def values(self) -> list[Value]:
        return [value for _, weights in self._weights for value in weights]

    def replaced(self) -> dict[Value, Any]:
        """Both factors of each branch as its products read them."""
        made = {}
        for (layer, (right, left)), a, b in zip(self._weights, self.parameters[::2], self.parameters[1::2], strict=True):
            factor = self._alpha / max(1, a.shape[0]) * layer.node.attr("alpha", 1.0)
            made[right], made[left] = a.T, (b * factor).T
        return made

    def project(self) -> None:
        """Factors may be anything."""

    def arrays(self) -> dict[str, Parts]:
        read = [one.detach().numpy().copy() for one in self.parameters]
        return {name: {"A": a, "B": b} for name, a, b in zip(self._names, read[::2], read[1::2], strict=True)}
