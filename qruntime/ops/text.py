"""Operators on strings: object arrays of str."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence

import numpy as np

from qruntime.ops.checks import limit_shape
from qruntime.ops.registry import operator


def _need_strings(x: np.ndarray) -> None:
    if x.dtype.kind not in "OSU":
        raise ValueError(f"strings are needed, got {x.dtype}")


@operator("StringConcat", since=20)
def string_concat(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    _need_strings(x)
    _need_strings(y)
    return np.asarray(x.astype(object) + y.astype(object), object)


@operator("StringSplit", since=20, shape_inputs=None)
def string_split(x: np.ndarray, *, delimiter: str | None = None, maxsplit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Parts of every string, padded with empty strings to one length, and their numbers.

    Without a delimiter, runs of whitespace separate.
    """
    _need_strings(x)
    parts = [str(text).split(delimiter or None, -1 if maxsplit is None else maxsplit) for text in x.reshape(-1)]
    longest = max(map(len, parts), default=0)
    limit_shape([*x.shape, longest])
    table = np.full((x.size, longest), "", object)
    for row, found in zip(table, parts, strict=True):
        row[: len(found)] = found
    return table.reshape(*x.shape, longest), np.array([len(p) for p in parts], np.int64).reshape(x.shape)


@operator("StringNormalizer", since=10, shape_inputs=None)
def string_normalizer(
    x: np.ndarray,
    *,
    case_change_action: str = "NONE",
    is_case_sensitive: int = 0,
    locale: str = "",
    stopwords: Sequence[str] = (),
) -> np.ndarray:
    """Elements that are stop words dropped, the case of the others changed.

    Takes shape [C] or [1, C]; when nothing remains, one empty string does. Case follows Unicode,
    whatever the locale.
    """
    _need_strings(x)
    if x.ndim not in (1, 2) or (x.ndim == 2 and x.shape[0] != 1):
        raise ValueError(f"shape [C] or [1, C] is needed, got {x.shape}")
    changes: dict[str, Callable[[str], str]] = {"NONE": str, "LOWER": str.lower, "UPPER": str.upper}
    change = changes.get(case_change_action)
    if change is None:
        raise ValueError(f"case_change_action must be NONE, LOWER or UPPER, got {case_change_action!r}")
    key: Callable[[str], str] = str if is_case_sensitive else str.lower
    dropped = {key(word) for word in stopwords}
    kept = [change(str(text)) for text in x.reshape(-1) if key(str(text)) not in dropped] or [""]
    return np.array(kept, object).reshape((-1,) if x.ndim == 1 else (1, -1))


@operator("RegexFullMatch", since=20)
def regex_full_match(x: np.ndarray, *, pattern: str) -> np.ndarray:
    """Whether each string as a whole matches `pattern`, in the syntax of Python's re."""
    _need_strings(x)
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} is not a regular expression: {error}") from None
    matches = [compiled.fullmatch(str(text)) is not None for text in x.reshape(-1)]
    return np.array(matches, bool).reshape(x.shape)


def _pooled_grams(
    pool: Sequence[int] | Sequence[str], ngram_counts: Sequence[int], shortest: int, longest: int
) -> dict[tuple[int | str, ...], int]:
    """Every n-gram of the pool with a length in range → its number in the pool."""
    grams: dict[tuple[int | str, ...], int] = {}
    number = 0
    bounds = [*ngram_counts, len(pool)]
    for length, (start, end) in enumerate(itertools.pairwise(bounds), start=1):
        if not 0 <= start <= end <= len(pool) or (end - start) % length:
            raise ValueError(f"ngram_counts {list(ngram_counts)} do not cut a pool of {len(pool)} into n-grams")
        for at in range(start, end, length):
            if shortest <= length <= longest:
                grams.setdefault(tuple(pool[at : at + length]), number)
            number += 1
    return grams


@operator("TfIdfVectorizer", since=9)
def tf_idf_vectorizer(
    x: np.ndarray,
    *,
    max_gram_length: int,
    max_skip_count: int,
    min_gram_length: int,
    mode: str,
    ngram_counts: Sequence[int],
    ngram_indexes: Sequence[int],
    pool_int64s: Sequence[int] = (),
    pool_strings: Sequence[str] = (),
    weights: Sequence[float] = (),
) -> np.ndarray:
    """Counts of the pool's n-grams in each row of `x`, with up to `max_skip_count` elements skipped.

    Y[..., ngram_indexes[i]] counts n-gram i (TF), tells 1 or 0 times its weight (IDF) or multiplies
    the count by its weight (TFIDF). Single elements are counted once whatever the skips.
    """
    if x.ndim not in (1, 2):
        raise ValueError(f"shape [C] or [N, C] is needed, got {x.shape}")
    if mode not in ("TF", "IDF", "TFIDF"):
        raise ValueError(f"mode must be TF, IDF or TFIDF, got {mode!r}")
    if bool(len(pool_int64s)) == bool(len(pool_strings)):
        raise ValueError("exactly one of pool_int64s and pool_strings must be set")
    grams = _pooled_grams(pool_int64s or pool_strings, ngram_counts, min_gram_length, max_gram_length)
    if not ngram_indexes or min(ngram_indexes) < 0 or max(grams.values(), default=-1) >= len(ngram_indexes):
        raise ValueError(f"ngram_indexes must name a column for every n-gram, got {list(ngram_indexes)}")
    rows = (x if x.ndim == 2 else x[None]).tolist()
    (width,) = limit_shape([max(ngram_indexes) + 1])
    counts = np.zeros(limit_shape([len(rows), width]), np.float32)
    steps = [
        (length, skip + 1)
        for length in range(min_gram_length, max_gram_length + 1)
        for skip in range(max_skip_count + 1 if length > 1 else 1)
    ]
    for count, row in zip(counts, rows, strict=True):
        for length, step in steps:
            for start in range(len(row) - step * (length - 1)):
                number = grams.get(tuple(row[start : start + step * (length - 1) + 1 : step]))
                if number is not None:
                    count[ngram_indexes[number]] += 1
    if mode == "IDF":
        counts = (counts > 0).astype(np.float32)
    if mode != "TF" and len(weights):
        if len(weights) != len(ngram_indexes):
            raise ValueError(f"{len(ngram_indexes)} n-grams need as many weights, got {len(weights)}")
        scale = np.ones(width, np.float32)
        scale[list(ngram_indexes)] = weights
        counts *= scale
    return counts if x.ndim == 2 else counts[0]
