"""Text that a decoder writes by itself, token after token: `Decoder`.

The first token of each text is one of the vocabulary, no two alike before all were taken; the next few are those that the model holds
likeliest, and all others are drawn from its softmax. Runs go on from the cache of keys and values where the model has one that
does what it seems to, and else read the text from its beginning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from qruntime.errors import CalibrationError
from qruntime.ops.elementwise import widen
from qruntime.quantization.cache_search import find_caches

TOKENS = ("input_ids", "ids", "tokens", "token_ids")
"""Usual names of the input that is read."""

MASK, POSITIONS = "attention_mask", "position_ids"

GREEDY = (3, 4, 5)
"""So many tokens of a text, the first among them, are no draw: this, then that, in turns."""

ROWS = 16
"""Texts that are written side by side."""

_SAME = 2e-2
"""How far scores from a cache may lie from those of a whole run, as a share of the largest: sums in another order do less, in
bfloat16 too, and a cache that is another thing does more."""

Told = Callable[[int, int, str], None]


class Decoder:
    """A model that reads tokens [b, s] and scores the next of each, [b, s, vocabulary], and what else it is fed for that.

    It may have caches of keys and values, attention_mask [b, all tokens] and position_ids [b, s]. CalibrationError where it has
    an input that is none of these, or no scores.
    """

    def __init__(self, model: Any):
        self._model = model
        self._inputs = {info.name: info for info in model.inputs}
        self._caches = [one for one in find_caches(model.graph) if one.caches]
        self._axes = {one.value.name: one.caches[0].axes[one.caches[0].axis] for one in self._caches}
        self.ids = self._tokens()
        self.batch: int | None = _fixed(self._inputs[self.ids].shape, 0)
        """How many rows a run has, where the model says so."""
        self._check_inputs()
        self.logits, self.vocabulary = self._scores()
        self._kept = self._given_back()

    def feed(self, ids: np.ndarray, past: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """The inputs of a run on tokens [b, s], after what `past` holds: the caches by the names of their inputs; None: after nothing."""
        if past is None:
            past = {name: np.zeros(self._shape(name, len(ids), 0), self._inputs[name].dtype) for name in self._axes}
        before = max((array.shape[self._axes[name] or 0] for name, array in past.items()), default=0)
        places = np.arange(before, before + ids.shape[1])
        made = {self.ids: ids, MASK: np.ones((len(ids), before + ids.shape[1])), POSITIONS: np.tile(places, (len(ids), 1)), **past}
        return {name: made[name].astype(info.dtype, copy=False) for name, info in self._inputs.items()}

    def write(
        self,
        texts: int,
        length: int,
        *,
        seed: int = 0,
        greedy: Sequence[int] = GREEDY,
        uses_cache: bool = True,
        told: Told = lambda done, total, what: None,
    ) -> np.ndarray:
        """int64 [texts, length]. Each text depends on the seed and on its number alone; `told` hears of every token of all rows."""
        first = [np.random.default_rng([seed, 0, part]).permutation(self.vocabulary) for part in range(-(-texts // self.vocabulary))]
        ids = np.zeros((texts, length), np.int64)
        ids[:, 0] = np.concatenate(first)[:texts]
        draws = np.stack([np.random.default_rng([seed, 1, number]).random(length) for number in range(texts)])
        draws[np.arange(length) < np.resize(greedy, texts)[:, None]] = np.nan
        kept = self._kept if uses_cache else {}
        parts = [slice(start, start + (self.batch or ROWS)) for start in range(0, texts, self.batch or ROWS)]
        for number, part in enumerate(parts):
            past: dict[str, np.ndarray] | None = None
            for place in range(1, length):
                made = self._model.run(self.feed(ids[part, 0 if past is None else place - 1 : place], past), [self.logits, *kept.values()])
                ids[part, place] = _next(self._last(made), draws[part, place])
                if kept:
                    past = {name: made[output] for name, output in kept.items()}
                told(number * (length - 1) + place, len(parts) * (length - 1), "writes text to train on")
        return ids

    def _tokens(self) -> str:
        """The only integers [b, s] but the mask and the positions, or those with a usual name."""
        found = [
            name
            for name, info in self._inputs.items()
            if info.dtype in ("int64", "int32") and info.shape is not None and len(info.shape) == 2 and name not in (MASK, POSITIONS)
        ]
        named = [name for name in TOKENS if name in found]
        if len(found) != 1 and not named:
            raise CalibrationError(
                f"it needs tokens, one input of integers [b, s]; the inputs are {'; '.join(map(str, self._inputs.values()))}"
            )
        return found[0] if len(found) == 1 else named[0]

    def _check_inputs(self) -> None:
        length = _fixed(self._inputs[self.ids].shape, 1)
        if length is not None:
            raise CalibrationError(f"it grows token by token, and input {self.ids!r} has rows of {length}; export it for any length")
        for name, info in self._inputs.items():
            if name not in (self.ids, MASK, POSITIONS, *self._axes):
                raise CalibrationError(f"what to feed {info} is not known: it is no cache of keys and values, {MASK} or {POSITIONS}")

    def _shape(self, name: str, rows: int, tokens: int) -> tuple[int, ...]:
        """That of a cache of so many tokens."""
        info, batch = self._inputs[name], (self._inputs[self.ids].shape or (None,))[0]
        shape: list[int] = []
        for axis, size in enumerate(info.shape or ()):
            if axis == self._axes[name]:
                shape.append(tokens)
            elif isinstance(size, int) or size == batch:
                shape.append(size if isinstance(size, int) else rows)
            else:
                raise CalibrationError(f"it begins with empty caches, and the size of axis {axis} of {info} is not known")
        return tuple(shape)

    def _run(self, *ids: int, past: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """A short run, of as many rows as it must have."""
        made: dict[str, np.ndarray] = self._model.run(self.feed(np.tile(np.array(ids, np.int64), (self.batch or 1, 1)), past))
        return made

    def _last(self, made: Mapping[str, np.ndarray]) -> np.ndarray:
        """The scores [b, vocabulary] of what follows a run."""
        return widen(made[self.logits][:, -1])

    def _scores(self) -> tuple[str, int]:
        """The output that scores a vocabulary, and how many tokens that has."""
        made, shape = self._run(0, 0), (self.batch or 1, 2)
        found = [name for name, array in made.items() if array.ndim == 3 and array.shape[:2] == shape and array.dtype.kind in "fV"]
        if len(found) != 1 and "logits" not in found:
            listed = ", ".join(f"{name} {list(np.shape(array))}" for name, array in made.items())
            raise CalibrationError(f"it needs scores of the next token, one output [b, s, vocabulary]; 2 tokens make {listed}")
        name = found[0] if len(found) == 1 else "logits"
        return name, made[name].shape[2]

    def _given_back(self) -> dict[str, str]:
        """The output that is each cache with the tokens of a run, where a run from there scores what one of the whole text does."""
        if not self._caches or any(len(one.outputs) != 1 for one in self._caches):
            return {}
        kept = {one.value.name: self._model.graph.output_names[one.outputs[0]] for one in self._caches}
        text = (0, self.vocabulary // 2, self.vocabulary - 1)
        begun, whole = self._run(*text[:2]), self._last(self._run(*text))
        past = {name: begun[output] for name, output in kept.items()}
        if any(array.shape != self._shape(name, len(whole), 2) for name, array in past.items()):
            return {}
        apart = np.abs(self._last(self._run(text[2], past=past)) - whole).max()
        return kept if apart <= _SAME * np.abs(whole).max() else {}


def _fixed(shape: Sequence[Any] | None, axis: int) -> int | None:
    size = None if shape is None else shape[axis]
    return size if isinstance(size, int) else None


def _next(scores: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Of scores [b, vocabulary] the tokens that `draws` in [0, 1) mean on the sum of their softmax; the likeliest for NaN."""
    shares = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True)).cumsum(axis=1)
    drawn = (shares <= draws[:, None] * shares[:, -1:]).sum(axis=1)
    return np.where(np.isnan(draws), scores.argmax(axis=1), np.minimum(drawn, scores.shape[1] - 1))
