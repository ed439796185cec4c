"""LLM-QAT: a language model is trained for a scheme on text that it writes itself.

Zechun Liu, Barlas Oguz, Changsheng Zhao, Ernie Chang, Pierre Stock, Yashar Mehdad, Yangyang Shi, Raghuraman Krishnamoorthi, Vikas
Chandra, "LLM-QAT: Data-Free Quantization Aware Training for Large Language Models", arXiv 2305.17888.

    text      a first token of the vocabulary, then 2 to 4 that are likeliest, then draws from softmax(logits) of the float model
    forward   weights, what layers read, and keys and values where they enter the cache, rounded as their codes will be
    loss      Σ p (log p − log q) over the vocabulary, mean over all tokens; p of the float model, q of the rounded one
    backward  straight through; ranges cover all numbers and are no variables

Keys are rounded behind their rotary embedding, which is what caches hold. What differs: text does not end at an end token, behind
which a model that was trained on text in a row writes the next one; grids are those of the scheme, so that below 8 bits weights,
and activations always, are affine where the paper has symmetric ones; norms and tables are trained too, and stay float.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qruntime.errors import CalibrationError, QuantizationError
from qruntime.quantization.arguments import check_rate, check_whole
from qruntime.quantization.generation import Decoder
from qruntime.quantization.steps import Facts


@dataclass(frozen=True)
class LLMQAT:
    """Trains on `texts` of `length` tokens, `batch` of them in a step, for `epochs` passes, with AdamW; `lr` falls to 0 as a cosine
    does. `steps`: "minmax" or "lsq", as in QAT. `recompute`: activations are made again for gradients, which takes a third more time and a
    fraction of the memory. `checkpoint`: a file that a run which was stopped goes on from, to the same bits."""

    texts: int = 256
    length: int = 256
    batch: int = 4
    epochs: int = 1
    lr: float = 1e-4
    steps: str = "minmax"
    recompute: bool = True
    checkpoint: str | os.PathLike[str] | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("texts", 1), ("length", 2), ("batch", 1), ("epochs", 1)):
            check_whole(name, getattr(self, name), least)
        check_rate("lr", self.lr)

    @property
    def requires(self) -> frozenset[str]:
        return frozenset()

    @property
    def takes_data(self) -> bool:
        return False

    @property
    def goes_on_from_codes(self) -> bool:
        return False

    def train(
        self, module: Any, teacher: Any, feeds: Sequence[Mapping[str, Any]], mask: str | None, progress: Callable[[int, int, str], None]
    ) -> Facts:
        """CalibrationError for a model that is no decoder, QuantizationError for a loss that is not finite."""
        from qruntime.quantization.tuning.aware_training import train_module
        from qruntime.quantization.tuning.output_losses import like_teacher, teacher_of

        try:
            decoder = Decoder(teacher)
        except CalibrationError as error:
            raise CalibrationError(f"LLM-QAT trains on text that the model writes itself: {error}") from error
        batch = decoder.batch or self.batch
        if decoder.batch and self.texts % batch:
            raise QuantizationError(f"the model reads {batch} rows at a time: texts must be a multiple of {batch}, got {self.texts}")
        written = decoder.write(self.texts, self.length, seed=self.seed or 0, told=progress)
        facts = train_module(
            module, [decoder.feed(written[start : start + batch]) for start in range(0, self.texts, batch)],
            like_teacher(decoder.logits, teacher_of(teacher, [decoder.logits])), epochs=self.epochs, lr=self.lr, weight_decay=0.0,
            seed=self.seed or 0, checkpoint=self.checkpoint, progress=progress,
        )  # fmt: skip
        return {"trained on": f"{self.texts} texts of {self.length} tokens of its own"} | facts
