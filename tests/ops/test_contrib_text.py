"""Strings, words and runs of tokens: known values, and inputs that do not fit."""

from __future__ import annotations

import numpy as np
import pytest

from qruntime.errors import QRuntimeError
from tests.ops.one_node import close, floats, run


def test_tokens():
    texts = np.array(["a bc  def", ""], object)
    found = run("Tokenizer", [texts], separators=[" "], mark=1, mincharnum=2, pad_value="#")
    assert found.tolist() == [["\x02", "bc", "def", "\x03"], ["\x02", "\x03", "#", "#"]]
    assert run("Tokenizer", [texts[1:]], tokenexp="[a-z]", mark=1, mincharnum=1, pad_value="#").shape == (1, 0)
    for attributes, message in (
        ({"separators": ["("]}, "no regular expression"), ({}, "either separators or tokenexp"),
        ({"separators": ["a", ""]}, "the only one"),
        ({"separators": [" "], "tokenexp": "a"}, "either separators or tokenexp"), ({"separators": [" "], "mincharnum": 0}, "above 0"),
    ):  # fmt: skip
        with pytest.raises(QRuntimeError, match=message):
            run("Tokenizer", [texts], **{"mark": 0, "mincharnum": 1, "pad_value": "#", **attributes})


def test_hashes_of_strings():
    """Known values of MurmurHash3_x86_32 with the seed 0, and of the empty string with the seed 1."""
    texts = np.array(["", "hello", "hello, world", "The quick brown fox jumps over the lazy dog"], object)
    assert run("MurmurHash3", [texts]).tolist() == [0, 0x248BFA47, 0x149BBB7F, 0x2E4FF723]
    assert run("MurmurHash3", [texts[:1]], seed=1, positive=0).tolist() == [0x514E28B7]
    with pytest.raises(QRuntimeError, match="4 or 8 bytes"):
        run("MurmurHash3", [np.ones(2, np.float16)])


def test_runs_of_tokens_are_not_repeated():
    ids, scores = np.array([[1, 2, 3, 1, 2]]), floats(1, 5)
    found = run("NGramRepeatBlock", [ids, scores], ngram_size=3)
    assert np.isneginf(found[0]).nonzero()[0].tolist() == [3]
    with pytest.raises(QRuntimeError, match=r"input_ids must lie in \[0, 3\)"):
        run("NGramRepeatBlock", [ids, scores[:, :3]], ngram_size=3)


def test_hashes_of_runs_go_on_where_they_stopped():
    ids, multipliers = np.array([[5, 3, 8, 3, 1, 4]]), np.array([3, 5, 7])
    tables = [multipliers, np.array([11, 13, 17, 19])]
    settings = {"max_ngram_size": 3, "n_head_per_ngram": 2, "pad_id": 0, "reset_on_eos": 1}
    eos = np.array(3)
    whole, last = run("NGramHashMapping", [ids, *tables, None, None, eos], outputs=2, **settings)
    first, past = run("NGramHashMapping", [ids[:, :2], *tables, None, None, eos], outputs=2, **settings)
    second, _ = run("NGramHashMapping", [ids[:, 2:], *tables, past, None, eos], outputs=2, **settings)
    assert np.array_equal(np.concatenate([first, second], axis=1), whole)
    assert last.tolist() == [[1, 4]]
    # Behind the end of a sequence (3) only the token itself counts, the rest is 3.
    assert whole[0, 2].tolist() == [(8 * 3 ^ 3 * 5) % 11, (8 * 3 ^ 3 * 5) % 13, (8 * 3 ^ 3 * 5 ^ 3 * 7) % 17, (8 * 3 ^ 3 * 5 ^ 3 * 7) % 19]
    with pytest.raises(QRuntimeError, match="must be positive"):
        run("NGramHashMapping", [ids, multipliers, np.array([11, 0, 17, 19])], **settings)
    with pytest.raises(QRuntimeError, match="vocab_sizes must have the shape"):
        run("NGramHashMapping", [ids, multipliers, np.array([11])], **settings)


def test_words():
    words, w, b, table = np.array([[1, 2, 0], [0, 0, 0], [3, 0, 0]], np.int32), floats(4, 1, 2, 5), floats(4), floats(6, 5)
    found = run("WordConvEmbedding", [words, w, b, table])
    close(found[0], np.tanh(np.einsum("mwe,we->m", w[:, 0], table[[1, 2]]) + b), atol=1e-5)
    assert not found[1].any()
    close(found[2], np.tanh(np.einsum("mwe,we->m", w[:, 0], table[[3, 0]]) + b), atol=1e-5)
    with pytest.raises(QRuntimeError, match=r"characters must be integers in \[0, 6\)"):
        run("WordConvEmbedding", [words + 5, w, b, table])
