"""Text that a decoder writes: first tokens, likeliest tokens, draws, with the cache and without."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from onnx import TensorProto, helper

import qruntime
from qruntime.errors import CalibrationError
from qruntime.quantization import generation
from qruntime.quantization.generation import GREEDY
from tests.quantization.decoders import SHAPES, Decoder
from tests.quantization.language_model import language_model
from tests.small_models import FLOAT, encoder_bytes, model_bytes, random, recurrent_bytes

VOCABULARY = 40


def decoder(kind: str = "separate", *, has_positions: bool = False) -> qruntime.Model:
    return qruntime.load(Decoder(kind, vocabulary=VOCABULARY, has_positions=has_positions).bytes())


class Watched:
    """A model that remembers how many tokens its runs read."""

    def __init__(self, model: qruntime.Model):
        self.model, self.graph, self.inputs = model, model.graph, model.inputs
        self.lengths: list[int] = []

    def run(self, feed: dict, outputs: list[str] | None = None) -> dict:
        self.lengths.append(feed["ids"].shape[1])
        return self.model.run(feed, outputs)


def scores(of: qruntime.Model, ids: np.ndarray) -> np.ndarray:
    made = generation.Decoder(of)
    return of.run(made.feed(ids))["logits"]


def test_every_token_comes_first_before_one_comes_twice():
    texts = generation.Decoder(decoder()).write(2 * VOCABULARY + 3, 2)
    for part in (texts[:VOCABULARY], texts[VOCABULARY : 2 * VOCABULARY]):
        assert sorted(part[:, 0]) == list(range(VOCABULARY))
    assert (texts[:VOCABULARY, 0] != texts[VOCABULARY : 2 * VOCABULARY, 0]).any()


def test_the_first_tokens_are_the_likeliest_and_the_others_drawn():
    model = decoder()
    texts = generation.Decoder(model).write(60, 12, seed=3)
    likeliest = scores(model, texts).argmax(-1)
    for number, (text, best) in enumerate(zip(texts, likeliest, strict=True)):
        count = GREEDY[number % len(GREEDY)]
        assert (text[1:count] == best[: count - 1]).all()
    assert 0.2 < (texts[:, 6:] == likeliest[:, 5:-1]).mean() < 0.9


def test_draws_have_the_shares_of_the_softmax():
    logits = random(1, 7, seed=4) * 2
    shares = np.exp(logits[0].astype(np.float64)) / np.exp(logits[0].astype(np.float64)).sum()
    draws = (np.arange(10_000) + 0.5) / 10_000
    drawn = generation._next(np.tile(logits, (10_000, 1)), draws)
    assert np.abs(np.bincount(drawn, minlength=7) - 10_000 * shares).max() <= 1
    assert generation._next(np.tile(logits, (2, 1)), np.array([np.nan, 1 - 1e-16]))[0] == logits.argmax()


def test_the_seed_and_the_number_of_a_text_decide_it():
    made = generation.Decoder(decoder())
    first, again, other = (made.write(20, 10, seed=seed) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any(axis=1).all()
    assert (made.write(5, 10, seed=1) == first[:5]).all()


@pytest.mark.parametrize("kind", [kind for kind in SHAPES if kind != "merged heads"])
def test_runs_go_on_from_the_cache_and_write_the_same(kind: str):
    watched = Watched(decoder(kind))
    made = generation.Decoder(watched)
    watched.lengths.clear()
    with_cache = made.write(20, 9, seed=5)
    assert set(watched.lengths) == {1}
    watched.lengths.clear()
    assert (made.write(20, 9, seed=5, uses_cache=False) == with_cache).all()
    assert watched.lengths == [*range(1, 9), *range(1, 9)]


def test_positions_and_masks_count_what_the_cache_holds():
    watched = Watched(decoder(has_positions=True))
    made = generation.Decoder(watched)
    watched.lengths.clear()
    made.write(3, 6)
    assert watched.lengths == [1] * 5
    past = {name: random(2, 2, 4, 8) for name in made.feed(np.zeros((2, 1), np.int64)) if name.startswith("past")}
    feed = made.feed(np.zeros((2, 3), np.int64), past)
    assert (feed["position_ids"] == [4, 5, 6]).all()
    assert feed["attention_mask"].shape == (2, 7)
    assert feed["attention_mask"].dtype == np.int64
    assert feed["attention_mask"].all()


class WithoutOffset(Decoder):
    """Its positions begin at 0 in every run, whatever the cache holds."""

    def _embed(self, vocabulary: int, *, has_positions: bool) -> None:
        super()._embed(vocabulary, has_positions=True)
        self.inputs = [one for one in self.inputs if one[0] != "position_ids"]
        length = self.op("Squeeze", self.op("Gather", self.op("Shape", "ids"), self.integers(1)))
        zero, one = (self.weight(np.array(n)) for n in (0, 1))
        made = self.op("Range", zero, length, one)
        for node in self.nodes:
            node.input[:] = [made if name == "position_ids" else name for name in node.input]


def test_a_cache_that_does_not_continue_the_text_is_not_used():
    watched = Watched(qruntime.load(WithoutOffset("separate", vocabulary=VOCABULARY).bytes()))
    made = generation.Decoder(watched)
    watched.lengths.clear()
    made.write(3, 6)
    assert watched.lengths == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("masked", [False, True])
def test_models_without_a_cache_read_their_text_again(masked: bool):
    model = language_model(masked=masked)
    texts = generation.Decoder(model).write(4, 6, greedy=(6,))
    ids = texts[:, :1]
    for _ in range(5):
        feed = {"ids": ids, "attention_mask": np.ones_like(ids)} if masked else {"ids": ids}
        ids = np.concatenate([ids, model.run(feed)["logits"][:, -1:].argmax(-1)], axis=1)
    assert (texts == ids).all()


def reads_fixed(*shape: int | str) -> qruntime.Model:
    nodes = [helper.make_node("Gather", ["table", "ids"], ["logits"])]
    inputs, outputs = [("ids", TensorProto.INT64, shape)], [("logits", FLOAT, [*shape, 9])]
    return qruntime.load(model_bytes(nodes, inputs, outputs, {"table": random(9, 9)}))


def test_a_fixed_number_of_rows_is_kept_to():
    made = generation.Decoder(reads_fixed(2, "s"))
    assert made.batch == 2
    assert made.write(6, 5).shape == (6, 5)


def failures() -> Iterator[tuple[qruntime.Model, str]]:
    yield qruntime.load(encoder_bytes(layers=1)), r"it needs tokens, one input of integers \[b, s\]; the inputs are x: float32"
    yield decoder("merged heads"), r"begins with empty caches, and the size of axis 0 of past\.0\.key: float32\[bh, t, 8\] is not known"
    yield reads_fixed("b", 16), "it grows token by token, and input 'ids' has rows of 16; export it for any length"
    states = model_bytes(
        [helper.make_node("Gather", ["table", "ids"], ["logits"]), helper.make_node("Identity", ["h"], ["h2"])],
        [("ids", TensorProto.INT64, ["b", "s"]), ("h", FLOAT, ["b", 3])],
        [("logits", FLOAT, ["b", "s", 9]), ("h2", FLOAT, ["b", 3])],
        {"table": random(9, 9)},
    )
    yield qruntime.load(states), r"what to feed h: float32\[b, 3\] is not known: it is no cache of keys and values, attention_mask"
    mean = [helper.make_node("Gather", ["table", "ids"], ["x"]), helper.make_node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=0)]
    pooled = model_bytes(mean, [("ids", TensorProto.INT64, ["b", "s"])], [("y", FLOAT, ["b", 9])], {"table": random(9, 9)})
    yield qruntime.load(pooled), r"it needs scores of the next token, one output \[b, s, vocabulary\]; 2 tokens make y \[1, 9\]"
    yield qruntime.load(recurrent_bytes("LSTM")), "it needs tokens"


@pytest.mark.parametrize(("model", "message"), list(failures()))
def test_models_that_write_no_text_are_told_why(model: qruntime.Model, message: str):
    with pytest.raises(CalibrationError, match=message):
        generation.Decoder(model)
