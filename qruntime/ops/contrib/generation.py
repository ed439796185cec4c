"""GreedySearch, Sampling and BeamSearch: a decoder in a subgraph, run token by token over caches that grow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from qruntime.ir import TypeInfo
from qruntime.ops.checks import limit_shape, require_rank, require_shape, scalar
from qruntime.ops.contrib.domain import MICROSOFT
from qruntime.ops.contrib.ngrams import banned_tokens
from qruntime.ops.registry import operator

Subgraph = Callable[..., Sequence[Any]]
_HIDDEN = np.float32(np.finfo(np.float32).min)
"""The score of a token that must not be chosen."""
_FIXED_INPUTS = 3  # ids, positions and the mask come before the caches


class Decoder:
    """The subgraph (ids, positions, mask, caches [2, B, N, P, H] …) → logits [B, S, V] and grown caches, for a batch of prompts.

    Without a mask, padding is what equals `pad`.
    """

    def __init__(
        self,
        prompt: np.ndarray,
        mask: np.ndarray | None,
        pad: int,
        body: Subgraph,
        first: Subgraph | None,
        inputs: Sequence[TypeInfo | None],
    ):
        require_shape("attention_mask", mask, prompt.shape)
        self.mask = (prompt != pad).astype(np.int32) if mask is None else mask.astype(np.int32)
        counted = np.cumsum(self.mask != 0, axis=1, dtype=np.int32)
        self.positions = np.where(self.mask != 0, counted - 1, 0).astype(np.int32)
        self.ids = prompt
        self.caches = [_empty_cache(kind, prompt.shape[0]) for kind in inputs[_FIXED_INPUTS:]]
        self.body, self.first = body, first
        self.next_position = counted[:, -1:] if prompt.shape[1] else np.zeros((prompt.shape[0], 1), np.int32)

    def logits(self) -> np.ndarray:
        """float32 [B, V] of the last token of every row."""
        run = self.body if self.first is None else self.first
        self.first = None
        results = run(self.ids, self.positions, self.mask, *self.caches)
        if len(results) != 1 + len(self.caches):
            raise ValueError(f"the decoder must return logits and {len(self.caches)} caches, it returns {len(results)}")
        self.caches = [np.array(cache) for cache in results[1:]]
        logits = results[0]
        if logits.ndim != 3 or logits.shape[:2] != self.ids.shape:
            raise ValueError(f"the decoder's logits must have the shape {(*self.ids.shape, 'V')}, got {logits.shape}")
        return logits[:, -1].astype(np.float32)

    def append(self, tokens: np.ndarray, origin: np.ndarray | None = None) -> None:
        """Go on with one token [B] per row; row b continues what row origin[b] had."""
        if origin is not None:
            self.caches = [cache[:, origin] for cache in self.caches]
            self.mask, self.next_position = self.mask[origin], self.next_position[origin]
        self.ids = tokens.astype(np.int32)[:, None]
        self.positions = self.next_position.astype(np.int32)
        self.next_position = self.next_position + 1
        self.mask = np.concatenate([self.mask, np.ones((len(tokens), 1), np.int32)], axis=1)


def _empty_cache(kind: TypeInfo | None, batch: int) -> np.ndarray:
    shape = None if kind is None else kind.shape
    if shape is None or len(shape) != 5 or not isinstance(shape[2], int) or not isinstance(shape[4], int):
        raise ValueError(f"the decoder must declare its caches as [2, batch, heads, past, head size], it declares {shape}")
    return np.zeros(limit_shape((2, batch, shape[2], 0, shape[4]), "a cache"), np.float32)


class Processor:
    """What is done to the scores of the next token before one is chosen."""

    def __init__(
        self,
        eos: int,
        min_length: np.ndarray | None,
        repetition_penalty: np.ndarray | None,
        no_repeat: int,
        vocab_mask: np.ndarray | None,
        prefix_mask: np.ndarray | None,
    ):
        self.eos, self.no_repeat = eos, no_repeat
        self.min_length = int(_one(min_length, "min_length", 0))
        self.repetition_penalty = _one(repetition_penalty, "repetition_penalty", 1.0)
        if not self.repetition_penalty > 0:
            raise ValueError(f"repetition_penalty must be positive, got {self.repetition_penalty}")
        self.vocab_mask, self.prefix_mask = vocab_mask, prefix_mask

    def __call__(self, scores: np.ndarray, sequences: np.ndarray, first: bool) -> np.ndarray:
        """scores [rows, V] for what follows `sequences` [rows, length]."""
        scores = scores.copy()
        for row, ids in zip(scores, sequences, strict=True):
            if self.repetition_penalty != 1:
                seen = np.unique(ids[(ids >= 0) & (ids < scores.shape[1])])
                penalty = np.float32(self.repetition_penalty)
                row[seen] = np.where(row[seen] < 0, row[seen] * penalty, row[seen] / penalty)
            if self.no_repeat > 0:
                row[[token for token in banned_tokens(ids, self.no_repeat) if 0 <= token < scores.shape[1]]] = _HIDDEN
        if self.vocab_mask is not None:
            require_shape("vocab_mask", self.vocab_mask, scores.shape[1:])
            scores[:, self.vocab_mask == 0] = _HIDDEN
        if self.prefix_mask is not None and first:
            require_rank("prefix_vocab_mask", self.prefix_mask, 2)
            if self.prefix_mask.shape[1] != scores.shape[1] or len(scores) % max(len(self.prefix_mask), 1):
                raise ValueError(f"prefix_vocab_mask must have a row of {scores.shape[1]} for each prompt, got {self.prefix_mask.shape}")
            scores[np.repeat(self.prefix_mask, len(scores) // len(self.prefix_mask), axis=0) == 0] = _HIDDEN
        if sequences.shape[1] < self.min_length and 0 <= self.eos < scores.shape[1]:
            scores[:, self.eos] = _HIDDEN
        return scores


def _one(value: np.ndarray | None, name: str, default: float) -> float:
    return default if value is None else scalar(value, name).item()


def _check(
    op: str,
    input_ids: np.ndarray,
    max_length: np.ndarray,
    model_type: int,
    encoder: object,
    inputs: Mapping[str, Sequence[TypeInfo | None]],
) -> int:
    """The length to stop at."""
    if model_type != 0 or encoder is not None:
        raise ValueError(f"{op} with an encoder (model_type {model_type}) is not supported, only decoders like GPT-2 (model_type 0)")
    require_rank("input_ids", input_ids, 2)
    limit = int(scalar(max_length, "max_length"))
    if not 1 <= input_ids.shape[1] < limit:
        raise ValueError(f"max_length must be above the length of the prompts, which must not be empty, got {limit} and {input_ids.shape}")
    limit_shape((input_ids.shape[0], limit), "the sequences")
    for name, kinds in inputs.items():
        if len(kinds) < _FIXED_INPUTS:
            raise ValueError(f"the subgraph {name} must take ids, positions and a mask, it takes {len(kinds)} inputs")
    return limit


def _generated(
    prompt: np.ndarray,
    limit: int,
    decoder: Decoder,
    process: Processor,
    choose: Callable[[np.ndarray], np.ndarray],
    eos: int,
    pad: int,
) -> np.ndarray:
    """Prompts [B, S] grown to [B, limit]; the token that ends a sequence and what follows it are `pad`."""
    sequences = np.full((prompt.shape[0], limit), pad, np.int32)
    sequences[:, : prompt.shape[1]] = prompt
    ended = np.zeros(prompt.shape[0], bool)
    for length in range(prompt.shape[1], limit):
        scores = process(decoder.logits(), sequences[:, :length], length == prompt.shape[1])
        chosen = choose(scores)
        ended |= chosen == eos
        tokens = np.where(ended, pad, chosen)
        sequences[:, length] = tokens
        if ended.all():
            break
        decoder.append(tokens)
    return sequences


@operator("GreedySearch", domain=MICROSOFT, shape_inputs=None)
def greedy_search(
    input_ids: np.ndarray,
    max_length: np.ndarray,
    min_length: np.ndarray | None = None,
    repetition_penalty: np.ndarray | None = None,
    vocab_mask: np.ndarray | None = None,
    prefix_vocab_mask: np.ndarray | None = None,
    attention_mask: np.ndarray | None = None,
    *,
    decoder: Subgraph,
    eos_token_id: int,
    pad_token_id: int,
    decoder_start_token_id: int = -1,
    encoder: Subgraph | None = None,
    init_decoder: Subgraph | None = None,
    model_type: int = 0,
    no_repeat_ngram_size: int = 0,
    subgraph_inputs: Mapping[str, Sequence[TypeInfo | None]] | None = None,
    vocab_size: int = -1,
) -> np.ndarray:
    """Prompts [B, S] and after them the most likely token each time, [B, max_length] int32; of equal ones the first.
    From its end on a sequence holds pad_token_id."""
    kinds = subgraph_inputs or {}
    limit = _check("GreedySearch", input_ids, max_length, model_type, encoder, kinds)
    state = Decoder(input_ids, attention_mask, pad_token_id, decoder, init_decoder, kinds["decoder"])
    process = Processor(eos_token_id, min_length, repetition_penalty, no_repeat_ngram_size, vocab_mask, prefix_vocab_mask)
    return _generated(input_ids, limit, state, process, lambda scores: scores.argmax(axis=1), eos_token_id, pad_token_id)


@operator("Sampling", domain=MICROSOFT, shape_inputs=None, deterministic=False)
def sampling(
    input_ids: np.ndarray,
    max_length: np.ndarray,
    min_length: np.ndarray | None = None,
    repetition_penalty: np.ndarray | None = None,
    vocab_mask: np.ndarray | None = None,
    prefix_vocab_mask: np.ndarray | None = None,
    attention_mask: np.ndarray | None = None,
    presence_mask: np.ndarray | None = None,
    seed: np.ndarray | None = None,
    *,
    decoder: Subgraph,
    eos_token_id: int,
    pad_token_id: int,
    custom: int = 0,
    decoder_start_token_id: int = -1,
    encoder: Subgraph | None = None,
    filter_value: float = -1e20,
    init_decoder: Subgraph | None = None,
    min_tokens_to_keep: int = 0,
    model_type: int = 0,
    no_repeat_ngram_size: int = 0,
    num_outputs: int = 1,
    presence_penalty: float = 0.0,
    subgraph_inputs: Mapping[str, Sequence[TypeInfo | None]] | None = None,
    temperature: float = 1.0,
    top_p: float = 0.0,
    vocab_size: int = -1,
) -> np.ndarray:
    """GreedySearch that draws each token, among the likeliest whose probabilities reach top_p. A seed gives the same draw
    every time, not that of ONNX Runtime."""
    kinds = subgraph_inputs or {}
    limit = _check("Sampling", input_ids, max_length, model_type, encoder, kinds)
    if custom or presence_penalty or presence_mask is not None or num_outputs > 1:
        raise ValueError("Sampling with custom, presence_penalty, presence_mask or the output filtered_logits is not supported")
    if not temperature > 0 or not 0 <= top_p <= 1 or min_tokens_to_keep < 0:
        raise ValueError(
            f"needs temperature above 0, top_p in [0, 1] and min_tokens_to_keep from 0 on, "
            f"got {temperature}, {top_p} and {min_tokens_to_keep}"
        )
    rng = np.random.default_rng(None if seed is None else abs(int(scalar(seed, "seed"))))
    state = Decoder(input_ids, attention_mask, pad_token_id, decoder, init_decoder, kinds["decoder"])
    process = Processor(eos_token_id, min_length, repetition_penalty, no_repeat_ngram_size, vocab_mask, prefix_vocab_mask)

    def draw(scores: np.ndarray) -> np.ndarray:
        cooled = scores / np.float32(temperature)
        return np.array([rng.choice(len(row), p=_nucleus(row, top_p, min_tokens_to_keep)) for row in cooled])

    return _generated(input_ids, limit, state, process, draw, eos_token_id, pad_token_id)


def _nucleus(scores: np.ndarray, top_p: float, at_least: int) -> np.ndarray:
    """Probabilities [V] of the likeliest tokens that reach top_p together (0: all), `at_least` so many, 0 for the rest."""
    powers = np.exp(scores.astype(np.float64) - scores.max())
    shares = powers / powers.sum()
    if not 0 < top_p < 1:
        return shares
    order = np.argsort(-shares, kind="stable")
    before = np.cumsum(shares[order]) - shares[order]
    kept = order[(before < top_p) | (np.arange(len(order)) < at_least)]
    chosen = np.zeros_like(shares)
    chosen[kept] = shares[kept]
    return chosen / chosen.sum()


class _Hypotheses:
    """The best finished sequences of one prompt."""

    def __init__(self, beams: int, length_penalty: float, early_stopping: int):
        self.beams, self.length_penalty, self.early = beams, length_penalty, early_stopping
        self.kept: list[tuple[float, np.ndarray]] = []
        self.done = False

    def _score(self, total: float, length: int) -> float:
        return float(np.float32(total) / np.float32(float(length) ** self.length_penalty))

    def add(self, sequence: np.ndarray, total: float) -> None:
        score = self._score(total, len(sequence))
        if len(self.kept) < self.beams or score > self.kept[-1][0]:
            self.kept.append((score, sequence.copy()))
            self.kept.sort(key=lambda pair: -pair[0])
            del self.kept[self.beams :]

    def close(self, best_running: float, length: int) -> None:
        """No running sequence can become better than the worst kept one."""
        if len(self.kept) >= self.beams:
            self.done = self.done or bool(self.early) or self.kept[-1][0] >= self._score(best_running, length)


@operator("BeamSearch", domain=MICROSOFT, shape_inputs=None)
def beam_search(
    input_ids: np.ndarray,
    max_length: np.ndarray,
    min_length: np.ndarray | None,
    num_beams: np.ndarray,
    num_return_sequences: np.ndarray,
    length_penalty: np.ndarray | None = None,
    repetition_penalty: np.ndarray | None = None,
    vocab_mask: np.ndarray | None = None,
    prefix_vocab_mask: np.ndarray | None = None,
    attention_mask: np.ndarray | None = None,
    decoder_input_ids: np.ndarray | None = None,
    logits_processor: np.ndarray | None = None,
    *,
    decoder: Subgraph,
    eos_token_id: int,
    pad_token_id: int,
    decoder_start_token_id: int = -1,
    early_stopping: int = 0,
    encoder: Subgraph | None = None,
    init_decoder: Subgraph | None = None,
    model_type: int = 0,
    no_repeat_ngram_size: int = 0,
    num_outputs: int = 1,
    subgraph_inputs: Mapping[str, Sequence[TypeInfo | None]] | None = None,
    vocab_size: int = -1,
) -> tuple[np.ndarray, np.ndarray]:
    """The num_return_sequences best of num_beams continuations of each prompt, int32 [B, R, max_length], and their scores
    [B, R]: the sum of the logarithms of their probabilities over length to the power of length_penalty."""
    kinds = subgraph_inputs or {}
    limit = _check("BeamSearch", input_ids, max_length, model_type, encoder, kinds)
    if num_outputs > 2 or decoder_input_ids is not None or _one(logits_processor, "logits_processor", 0):
        raise ValueError("BeamSearch with decoder_input_ids, logits_processor or the output scores is not supported")
    beams, wanted = int(scalar(num_beams, "num_beams")), int(scalar(num_return_sequences, "num_return_sequences"))
    if not 1 <= wanted <= beams:
        raise ValueError(f"needs 1 ≤ num_return_sequences ≤ num_beams, got {wanted} and {beams}")
    batch, start = input_ids.shape
    limit_shape((batch * beams, limit), "the sequences")
    prompt = np.repeat(input_ids, beams, axis=0)
    mask = None if attention_mask is None else np.repeat(attention_mask, beams, axis=0)
    state = Decoder(prompt, mask, pad_token_id, decoder, init_decoder, kinds["decoder"])
    process = Processor(eos_token_id, min_length, repetition_penalty, no_repeat_ngram_size, vocab_mask, prefix_vocab_mask)
    sequences = np.full((batch * beams, limit), pad_token_id, np.int32)
    sequences[:, :start] = prompt
    totals = np.full((batch, beams), -1e9, np.float32)  # all beams of a prompt begin alike: only the first counts
    totals[:, 0] = 0
    found = [_Hypotheses(beams, _one(length_penalty, "length_penalty", 1.0), early_stopping) for _ in range(batch)]
    for length in range(start, limit):
        scores = process(_log_softmax(state.logits()), sequences[:, :length], length == start)
        if scores.shape[1] < 2:
            raise ValueError(f"a search needs a vocabulary of two tokens at least, the logits have {scores.shape[1]}")
        candidates = (scores.reshape(batch, beams, -1) + totals[:, :, None]).reshape(batch, -1)
        order = np.argsort(-candidates, axis=1, kind="stable")[:, : 2 * beams]
        tokens, origin = np.full(batch * beams, pad_token_id, np.int64), np.arange(batch * beams)
        for b in range(batch):
            if found[b].done:
                totals[b] = 0
                continue
            part = slice(b * beams, (b + 1) * beams)
            places, ended = _split(order[b], scores.shape[1], eos_token_id, beams)
            for place in ended:
                found[b].add(sequences[part][place // scores.shape[1], :length], float(candidates[b, place]))
            tokens[part], totals[b] = places % scores.shape[1], candidates[b, places]
            origin[part] = b * beams + places // scores.shape[1]
            found[b].close(float(candidates[b, order[b, 0]]), length)
        sequences = sequences[origin]
        sequences[:, length] = tokens
        if all(hypotheses.done for hypotheses in found):
            break
        state.append(tokens, origin)
    return _best(found, sequences, totals, wanted, limit, pad_token_id)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _split(order: np.ndarray, vocabulary: int, eos: int, beams: int) -> tuple[np.ndarray, list[int]]:
    """Of the best places (beam · vocabulary + token) those of the `beams` that go on, and those that end among the best."""
    ends = order % vocabulary == eos
    return order[~ends][:beams], [int(place) for place in order[:beams][ends[:beams]]]


def _best(
    found: list[_Hypotheses], sequences: np.ndarray, totals: np.ndarray, wanted: int, limit: int, pad: int
) -> tuple[np.ndarray, np.ndarray]:
    y = np.full((len(found), wanted, limit), pad, np.int32)
    scores = np.zeros((len(found), wanted), np.float32)
    beams = totals.shape[1]
    for b, hypotheses in enumerate(found):
        if not hypotheses.done:
            for i in range(beams):
                hypotheses.add(sequences[b * beams + i], float(totals[b, i]))
        for i, (score, sequence) in enumerate(hypotheses.kept[:wanted]):
            y[b, i, : len(sequence)], scores[b, i] = sequence, score
    return y, scores
