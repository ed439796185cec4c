"""Strings, words and runs of tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from contrib_cases.case import Case, Rng, draws, floats, maybe, pick, starts

TEXTS = np.array(["Hello World", "I love computer science !", "", "a", "  two  spaces ", "ünïcödé wörld"], object)


@draws("Tokenizer")
def _(r: Rng, n: int) -> Case:
    way = pick(
        r, {"separators": [" "]}, {"separators": [" ", ","]}, {"separators": [" +"]}, {"tokenexp": "[a-z]+"}, {"tokenexp": "\\w+"},
        {"separators": [""]},
    )  # fmt: skip
    shortest = 1 if way == {"separators": [""]} else pick(r, 1, 2, 3)
    texts = TEXTS if n % 2 else TEXTS.reshape(2, 3)
    return Case([texts], way | {"mark": int(r.integers(0, 2)), "mincharnum": shortest, "pad_value": "#"})


@draws("MurmurHash3")
def _(r: Rng, n: int) -> Case:
    dtype = pick(r, np.int32, np.uint32, np.int64, np.uint64, np.float32, np.float64, object)
    values = TEXTS if dtype is object else (r.random((2, 3)) * 1000).astype(dtype)
    return Case([values], {"positive": n % 2, "seed": int(r.integers(0, 99))})


@draws("WordConvEmbedding")
def _(r: Rng, n: int) -> Case:
    window, length = int(r.integers(1, 4)), 6
    words = r.integers(1, 9, (5, length))
    words[np.arange(length) >= r.integers(1, length + 1, 5)[:, None]] = 0
    return Case([words.astype(np.int32), floats(r, 5, 1, window, 4), floats(r, 5), floats(r, 9, 4)], {})


@draws("NGramRepeatBlock")
def _(r: Rng, n: int) -> Case:
    return Case([r.integers(0, 3, (2, int(r.integers(1, 10)))), floats(r, 2, 5)], {"ngram_size": int(r.integers(1, 5))})


@draws("BifurcationDetector")
def _(r: Rng, n: int) -> Case:
    source, tokens = r.integers(0, 4, int(r.integers(1, 9))), r.integers(0, 4, int(r.integers(1, 6)))
    start = int(r.integers(0, len(source) + 1))
    inputs = [source, tokens, np.array(start)]
    if n % 3:
        predicted = np.append(source[start:], r.integers(0, 4))
        predicted[r.integers(0, len(predicted))] = 9
        inputs.append(predicted)
    low = int(r.integers(1, 3))
    return Case(inputs, {"min_ngram_size": low, "max_ngram_size": low + int(r.integers(0, 3))}, outputs=2)


def _hashing(r: Rng, dtype: type, rows: int) -> tuple[list[Any], list[Any], dict[str, int]]:
    """Multipliers and vocabularies; history, offsets and end of sequence; attributes."""
    longest, heads = int(r.integers(2, 5)), int(r.integers(1, 3))
    count = (longest - 1) * heads
    tables = [(r.integers(0, 1 << 30, longest) * 2 + 1).astype(dtype), r.integers(3, 50, count).astype(dtype)]
    past = maybe(r, r.integers(0, 9, (rows, longest - 1)).astype(dtype))
    optional = [past, maybe(r, r.integers(0, 99, count).astype(dtype)), maybe(r, np.array(3, dtype))]
    attributes = {"max_ngram_size": longest, "n_head_per_ngram": heads, "pad_id": 1, "reset_on_eos": int(r.integers(0, 2))}
    return tables, optional, attributes


@draws("NGramHashMapping")
def _(r: Rng, n: int) -> Case:
    dtype, length = (np.int32, np.int64)[n % 2], int(r.integers(1, 6))
    tables, optional, attributes = _hashing(r, dtype, 2)
    segments = maybe(r, np.sort(r.integers(0, 3, (2, length)), axis=1).astype(np.int32))
    return Case([r.integers(0, 9, (2, length)).astype(dtype), *tables, *optional, segments], attributes, outputs=2)


@draws("VarlenNGramHashMapping")
def _(r: Rng, n: int) -> Case:
    dtype, lengths = (np.int32, np.int64)[n % 2], r.integers(1, 5, int(r.integers(1, 4)))
    tables, optional, attributes = _hashing(r, dtype, len(lengths))
    segments = np.concatenate([np.sort(r.integers(0, 3, length)) for length in lengths]).astype(np.int32)
    inputs = [r.integers(0, 9, lengths.sum()).astype(dtype), *tables, starts(lengths), *optional, segments, None]
    return Case([*inputs, r.integers(-1, 5, len(lengths)).astype(np.int32)], attributes | {"state_update_capacity": 3}, outputs=4)
