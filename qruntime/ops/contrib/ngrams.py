"""Runs of n tokens: none twice, where they part from a source, and hashes that index tables of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qruntime.ops.checks import limit_shape, require_rank, require_shape, scalar
from qruntime.ops.contrib.domain import MICROSOFT
from qruntime.ops.contrib.ragged import sequence_starts
from qruntime.ops.registry import operator

_LARGEST_CAPTURE = 8


@operator("NGramRepeatBlock", domain=MICROSOFT)
def ngram_repeat_block(input_ids: np.ndarray, scores: np.ndarray, *, ngram_size: int) -> np.ndarray:
    """scores [B, V] with -inf for every token that would repeat a run of `ngram_size` tokens of input_ids [B, S]."""
    require_rank("input_ids", input_ids, 2)
    require_rank("scores", scores, 2)
    if ngram_size < 1 or scores.shape[0] != input_ids.shape[0]:
        raise ValueError(
            f"needs a positive ngram_size and as many rows of scores as of input_ids, "
            f"got {ngram_size}, {scores.shape} and {input_ids.shape}"
        )
    y = scores.copy()
    for row, ids in zip(y, input_ids, strict=True):
        for token in banned_tokens(ids, ngram_size):
            if not 0 <= token < scores.shape[1]:
                raise ValueError(f"input_ids must lie in [0, {scores.shape[1]}), got {token}")
            row[token] = -np.inf
    return y


def banned_tokens(ids: np.ndarray, size: int) -> list[int]:
    """Tokens that followed an earlier occurrence of the last size - 1 of `ids`."""
    if len(ids) < size:
        return []
    last = ids[len(ids) - size + 1 :]
    starts = range(len(ids) - size + 1)
    return [int(ids[i + size - 1]) for i in starts if np.array_equal(ids[i : i + size - 1], last)]


@operator("BifurcationDetector", domain=MICROSOFT, shape_inputs=None)
def bifurcation_detector(
    src_tokens: np.ndarray,
    cur_tokens: np.ndarray,
    prev_suffix_match_idx: np.ndarray,
    pred_tokens: np.ndarray | None = None,
    *,
    max_ngram_size: int = 3,
    min_ngram_size: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """cur_tokens with the predicted ones up to where they part from src_tokens, and where the source goes on from there.

    The predictions are compared with the source from prev_suffix_match_idx on; the second output is the index behind the
    only place in the source that the last n tokens match, for n from min_ngram_size to max_ngram_size, or -1.
    """
    for name, tokens in (("src_tokens", src_tokens), ("cur_tokens", cur_tokens)):
        require_rank(name, tokens, 1)
    if not 1 <= min_ngram_size <= max_ngram_size:
        raise ValueError(f"needs 1 ≤ min_ngram_size ≤ max_ngram_size, got {min_ngram_size} and {max_ngram_size}")
    start = int(scalar(prev_suffix_match_idx, "prev_suffix_match_idx"))
    tokens = cur_tokens
    if pred_tokens is not None:
        require_rank("pred_tokens", pred_tokens, 1)
        rest = len(src_tokens) - start
        if not 0 <= start <= len(src_tokens) or len(pred_tokens) != rest + 1:
            raise ValueError(
                f"prev_suffix_match_idx must lie in [0, {len(src_tokens)}] and pred_tokens hold one token more than the "
                f"source has from there, got {start} and {len(pred_tokens)}"
            )
        same = pred_tokens[:rest] == src_tokens[start:]
        parted = int(np.argmin(same)) if not same.all() else rest
        tokens = np.concatenate([cur_tokens, pred_tokens[: parted + 1]])
    return tokens, np.array(_suffix_match(src_tokens, tokens, min_ngram_size, max_ngram_size), np.int64)


def _suffix_match(source: np.ndarray, tokens: np.ndarray, low: int, high: int) -> int:
    found = -1
    for size in range(low, high + 1):
        if size > len(tokens):
            break
        suffix = tokens[len(tokens) - size :]
        places = [i for i in range(len(source) - size + 1) if np.array_equal(source[i : i + size], suffix)]
        if not places:
            break
        found = places[0] + size if len(places) == 1 else -1
    return found


class _Hashes:
    """The parameters of both hash mappings: runs of 2 to N tokens, several heads for each length."""

    def __init__(
        self,
        dtype: np.dtype,
        multipliers: np.ndarray,
        vocab_sizes: np.ndarray,
        head_offsets: np.ndarray | None,
        eos_token_id: np.ndarray | None,
        max_ngram_size: int,
        n_head_per_ngram: int,
        pad_id: int,
        reset_on_eos: int,
    ):
        if max_ngram_size < 2 or n_head_per_ngram < 1:
            raise ValueError(f"needs max_ngram_size ≥ 2 and n_head_per_ngram ≥ 1, got {max_ngram_size} and {n_head_per_ngram}")
        limit_shape((max_ngram_size, n_head_per_ngram), "the heads")
        self.dtype, self.reach, self.heads = dtype, max_ngram_size - 1, (max_ngram_size - 1) * n_head_per_ngram
        require_rank("multipliers", multipliers, 1)
        if multipliers.size < max_ngram_size:
            raise ValueError(f"multipliers must have {max_ngram_size} values at least, got {multipliers.size}")
        require_shape("vocab_sizes", vocab_sizes, (self.heads,))
        require_shape("head_offsets", head_offsets, (self.heads,))
        if vocab_sizes.size and int(vocab_sizes.min()) < 1:
            raise ValueError(f"vocab_sizes must be positive, got {vocab_sizes.min()}")
        self.multipliers = multipliers.astype(dtype)
        self.vocab_sizes = vocab_sizes.astype(dtype).reshape(self.reach, n_head_per_ngram)
        self.offsets = None if head_offsets is None else head_offsets.astype(dtype)
        eos = None if eos_token_id is None else int(scalar(eos_token_id, "eos_token_id"))
        self.missing = pad_id if eos is None else eos
        self.resets_at = eos if reset_on_eos else None

    def history(self, past_ids: np.ndarray | None, batch: int) -> np.ndarray:
        """The tokens before every sequence, [batch, reach]."""
        require_shape("past_ids", past_ids, (batch, self.reach))
        return np.full((batch, self.reach), self.missing, self.dtype) if past_ids is None else past_ids

    def of(self, tokens: np.ndarray, segments: Sequence[int] | None) -> np.ndarray:
        """Hashes [S, heads] of tokens [reach + S], the first of which are history; `segments` are of all of them."""
        length = len(tokens) - self.reach
        y = np.empty((length, self.heads), self.dtype)
        for t in range(length):
            at = t + self.reach
            window, cut = [tokens[at]], False
            for shift in range(1, self.reach + 1):
                place = at - shift
                cut = cut or (self.resets_at is not None and int(tokens[place]) == self.resets_at)
                cut = cut or (segments is not None and segments[place] != segments[place + 1])
                window.append(self.dtype.type(self.missing) if cut else tokens[place])
            y[t] = self._heads(np.array(window, self.dtype))
        if self.offsets is not None:
            y += self.offsets
        return y

    def _heads(self, window: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            mixed = np.bitwise_xor.accumulate(window * self.multipliers[: len(window)])[1:]
        return np.mod(mixed[:, None], self.vocab_sizes).reshape(-1)


@operator("NGramHashMapping", domain=MICROSOFT)
def ngram_hash_mapping(
    input_ids: np.ndarray,
    multipliers: np.ndarray,
    vocab_sizes: np.ndarray,
    past_ids: np.ndarray | None = None,
    head_offsets: np.ndarray | None = None,
    eos_token_id: np.ndarray | None = None,
    segment_ids: np.ndarray | None = None,
    *,
    max_ngram_size: int,
    n_head_per_ngram: int,
    pad_id: int,
    reset_on_eos: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Hashes [B, S, (N - 1) · heads] of the runs of 2 to N tokens that end at each of input_ids [B, S]; the last N - 1 tokens.

    A run is the exclusive or of its tokens times multipliers, modulo the vocabulary of a head. Tokens before the sequence
    come from past_ids [B, N - 1], or are eos_token_id or pad_id; that also stands for those before a boundary.
    """
    require_rank("input_ids", input_ids, 2)
    require_shape("segment_ids", segment_ids, input_ids.shape)
    hashes = _Hashes(
        input_ids.dtype, multipliers, vocab_sizes, head_offsets, eos_token_id, max_ngram_size, n_head_per_ngram, pad_id,
        reset_on_eos,
    )  # fmt: skip
    batch, length = input_ids.shape
    everything = np.concatenate([hashes.history(past_ids, batch), input_ids], axis=1)
    y = np.empty(limit_shape((batch, length, hashes.heads)), input_ids.dtype)
    for b in range(batch):
        segments = None
        if segment_ids is not None:  # history belongs to the first segment
            segments = [*[int(s) for s in segment_ids[b, :1]] * hashes.reach, *(int(s) for s in segment_ids[b])]
        y[b] = hashes.of(everything[b], segments)
    return y, everything[:, length:].copy()


@operator("VarlenNGramHashMapping", domain=MICROSOFT)
def varlen_ngram_hash_mapping(
    input_ids: np.ndarray,
    multipliers: np.ndarray,
    vocab_sizes: np.ndarray,
    cumulative_sequence_length: np.ndarray,
    past_ids: np.ndarray | None = None,
    head_offsets: np.ndarray | None = None,
    eos_token_id: np.ndarray | None = None,
    segment_ids: np.ndarray | None = None,
    past_segment_ids: np.ndarray | None = None,
    capture_count: np.ndarray | None = None,
    *,
    max_ngram_size: int,
    n_head_per_ngram: int,
    pad_id: int,
    reset_on_eos: int = 0,
    state_update_capacity: int = 0,
) -> tuple[np.ndarray, ...]:
    """NGramHashMapping of sequences side by side, input_ids [T], with further outputs: the segments of the last tokens
    [B, N - 1], and the last tokens after each of the first ones, [B, capacity, N - 1], as many as capture_count [B] says."""
    require_rank("input_ids", input_ids, 1)
    require_shape("segment_ids", segment_ids, input_ids.shape)
    hashes = _Hashes(
        input_ids.dtype, multipliers, vocab_sizes, head_offsets, eos_token_id, max_ngram_size, n_head_per_ngram, pad_id,
        reset_on_eos,
    )  # fmt: skip
    starts = sequence_starts("cumulative_sequence_length", cumulative_sequence_length, len(input_ids), 1)
    batch, reach = len(starts) - 1, hashes.reach
    if not 0 <= state_update_capacity <= _LARGEST_CAPTURE or (capture_count is not None) != (state_update_capacity > 0):
        raise ValueError(
            f"state_update_capacity must lie in [0, {_LARGEST_CAPTURE}] and capture_count come exactly when it is not 0, "
            f"got {state_update_capacity}"
        )
    require_shape("capture_count", capture_count, (batch,))
    require_shape("past_segment_ids", past_segment_ids, (batch, reach))
    history = hashes.history(past_ids, batch)
    y = np.empty(limit_shape((len(input_ids), hashes.heads)), input_ids.dtype)
    present = np.empty_like(history)
    present_segments = np.zeros((batch, reach), np.int32)
    updates = np.full((batch, state_update_capacity, reach), pad_id, input_ids.dtype)
    for b in range(batch):
        part = slice(starts[b], starts[b + 1])
        tokens = np.concatenate([history[b], input_ids[part]])
        segments = None
        if segment_ids is not None:
            before = segment_ids[part][:1].repeat(reach) if past_segment_ids is None else past_segment_ids[b]
            segments = [int(s) for s in (*before, *segment_ids[part])]
            present_segments[b] = segments[len(segments) - reach :]
        y[part] = hashes.of(tokens, segments)
        present[b] = tokens[len(tokens) - reach :]
        if capture_count is not None:
            for i in range(min(max(int(capture_count[b]), 0), state_update_capacity, len(tokens) - reach)):
                updates[b, i] = tokens[i + 1 : i + 1 + reach]
    return y, present, present_segments, updates
