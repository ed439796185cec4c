"""Strings and words: Tokenizer, MurmurHash3, WordConvEmbedding."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from qruntime.ops.checks import limit_shape, require_rank, require_shape
from qruntime.ops.contrib.domain import MICROSOFT
from qruntime.ops.products import matmul
from qruntime.ops.registry import operator

_START_OF_TEXT, _END_OF_TEXT = "\x02", "\x03"


def _compiled(expression: str) -> re.Pattern[str]:
    try:
        return re.compile(expression, re.ASCII)  # as RE2 reads \\w, \\d and \\b
    except re.error as error:
        raise ValueError(f"{expression!r} is no regular expression that is understood: {error}") from error


def _by_separators(separators: Sequence[str], shortest: int) -> Callable[[str], list[str]]:
    """Splits at what the expressions match, one expression after the other."""
    if list(separators) == [""]:
        return lambda text: list(text)
    if any(not separator for separator in separators):
        raise ValueError("an empty separator must be the only one")
    patterns = [_compiled(separator) for separator in separators]

    def split(text: str) -> list[str]:
        parts = [text]
        for pattern in patterns:
            parts = [piece for part in parts for piece in _pieces(pattern, part)]
        return [part for part in parts if len(part) >= max(shortest, 1)]

    return split


def _pieces(pattern: re.Pattern[str], text: str) -> list[str]:
    pieces, start = [], 0
    for match in pattern.finditer(text):
        if match.end() > match.start():
            pieces.append(text[start : match.start()])
            start = match.end()
    return [*pieces, text[start:]]


def _by_expression(expression: str, shortest: int) -> Callable[[str], list[str]]:
    pattern = _compiled(expression)
    return lambda text: [m.group() for m in pattern.finditer(text) if len(m.group()) >= max(shortest, 1)]


@operator("Tokenizer", domain=MICROSOFT, shape_inputs=None)
def tokenizer(
    x: np.ndarray,
    *,
    mark: int,
    mincharnum: int,
    pad_value: str,
    separators: Sequence[str] | None = None,
    tokenexp: str | None = None,
) -> np.ndarray:
    """Strings [C] or [N, C] cut into tokens [C, D] or [N, C, D]: at separators, or what `tokenexp` matches.

    Tokens of fewer than `mincharnum` characters are dropped; `mark` puts U+0002 and U+0003 around those of a string;
    `pad_value` fills up to the longest. An empty separator cuts into characters.
    """
    require_rank("the input", x, 1, 2)
    if x.dtype.kind not in "OUT":
        raise ValueError(f"the input must hold strings, got {x.dtype}")
    if (separators is None or not len(separators)) == (not tokenexp) or mincharnum < 1:
        raise ValueError(f"needs either separators or tokenexp and mincharnum above 0, got {separators!r}, {tokenexp!r} and {mincharnum}")
    if mincharnum > 1 and (tokenexp == "." or (separators and list(separators) == [""])):
        raise ValueError(f"characters are one character long, mincharnum asks for {mincharnum}")
    cut = _by_separators(separators, mincharnum) if separators else _by_expression(str(tokenexp), mincharnum)
    if not x.size:
        return np.empty((*x.shape[:-1], 0), object) if x.ndim == 2 else np.empty(0, object)
    rows = [cut(str(text)) for text in x.reshape(-1)]
    width = max(len(row) for row in rows)
    if not width:
        return np.empty((*x.shape, 0), object)
    if mark:
        rows, width = [[_START_OF_TEXT, *row, _END_OF_TEXT] for row in rows], width + 2
    y = np.full(limit_shape((len(rows), width)), pad_value, object)
    for filled, row in zip(y, rows, strict=True):
        filled[: len(row)] = row
    return y.reshape(*x.shape, width)


_MIX = (0xCC9E2D51, 0x1B873593)
_U32 = 0xFFFFFFFF


def _rotated(x: int, by: int) -> int:
    return ((x << by) | (x >> (32 - by))) & _U32


def murmur_hash3(data: bytes, seed: int) -> int:
    """MurmurHash3_x86_32 (Appleby) of the bytes."""
    h = seed & _U32
    whole = len(data) & ~3
    for i in range(0, whole, 4):
        k = _rotated(int.from_bytes(data[i : i + 4], "little") * _MIX[0] & _U32, 15) * _MIX[1] & _U32
        h = (_rotated(h ^ k, 13) * 5 + 0xE6546B64) & _U32
    if whole < len(data):
        h ^= _rotated(int.from_bytes(data[whole:], "little") * _MIX[0] & _U32, 15) * _MIX[1] & _U32
    h ^= len(data)
    h = (h ^ (h >> 16)) * 0x85EBCA6B & _U32
    h = (h ^ (h >> 13)) * 0xC2B2AE35 & _U32
    return h ^ (h >> 16)


@operator("MurmurHash3", domain=MICROSOFT)
def murmur_hash3_of_elements(x: np.ndarray, *, positive: int = 1, seed: int = 0) -> np.ndarray:
    """The hash of every element, a number as its bytes or a string as UTF-8: uint32, or int32 with positive=0."""
    if x.dtype.kind in "OUT":
        hashes = [murmur_hash3(str(text).encode(), seed) for text in x.reshape(-1)]
    elif x.dtype.kind in "iuf" and x.dtype.itemsize in (4, 8):
        hashes = [murmur_hash3(value.tobytes(), seed) for value in x.reshape(-1)]
    else:
        raise ValueError(f"the input must hold strings or numbers of 4 or 8 bytes, got {x.dtype}")
    result = np.array(hashes, np.uint32).reshape(x.shape)
    return result if positive else result.view(np.int32)


@operator("WordConvEmbedding", domain=MICROSOFT)
def word_conv_embedding(
    words: np.ndarray,
    w: np.ndarray,
    b: np.ndarray,
    table: np.ndarray,
    *,
    char_embedding_size: int = 0,
    conv_window_size: int = 0,
    embedding_size: int = 0,
) -> np.ndarray:
    """Words [S, L] of character indices, 0 behind their end → [S, M]: the largest tanh of a convolution over their
    embedded characters.

    w [M, 1, window, E], b [M], table [characters, E]. A shorter word than the window is as long as it; an empty one gives zeros.
    """
    require_rank("Sequence", words, 2)
    require_rank("W", w, 4)
    require_rank("C", table, 2)
    filters, _, window, size = w.shape
    require_shape("W", w, (filters, 1, window, table.shape[1]))
    require_shape("B", b, (filters,))
    for name, given, have in (
        ("char_embedding_size", char_embedding_size, size), ("conv_window_size", conv_window_size, window),
        ("embedding_size", embedding_size, filters),
    ):  # fmt: skip
        if given and given != have:
            raise ValueError(f"{name} is {given}, the weights say {have}")
    if words.dtype.kind not in "iu" or (words.size and not 0 <= int(words.min()) <= int(words.max()) < table.shape[0]):
        raise ValueError(f"characters must be integers in [0, {table.shape[0]}), got {words.dtype} in {words.shape}")
    if window < 1 or window > words.shape[1]:
        raise ValueError(f"the window must lie in [1, {words.shape[1]}], the length of a word, got {window}")
    kernel = w.reshape(filters, window * size).T
    y = np.zeros((len(words), filters), table.dtype)
    for result, word in zip(y, words, strict=True):
        length = int(np.count_nonzero(word)) if word[0] else 0
        if not length:
            continue
        embedded = table[word[: max(length, window)]]
        patches = np.stack([embedded[i : i + window].reshape(-1) for i in range(len(embedded) - window + 1)])
        result[:] = np.tanh(matmul(patches, kernel) + b).max(axis=0)
    return y
