"""Caches that are fed back are appended to in place: with the same bits, and nothing that was given out ever changes."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import qruntime
from qruntime.model import Model
from tests.quantization.decoders import HEADS, LAYERS, SIZE, WIDTH, Decoder
from tests.quantization.test_cache import empty, with_codes
from tests.small_models import random

KINDS = ["stacked", "separate", "tokens first", "merged heads", "attention", "causal attention", "contrib attention"]
Caches = dict[str, np.ndarray]


def decoder(kind: str = "separate", bits: int = 0) -> Model:
    model = qruntime.load(Decoder(kind).bytes())
    return with_codes(model, bits)[0] if bits else model


def step(model: Model, x: np.ndarray, caches: Caches) -> tuple[np.ndarray, Caches]:
    made = model.run({"x": x, **caches})
    return made["y"], dict(zip(caches, list(made.values())[1:], strict=True))


def prompted(model: Model, batch: int = 1, length: int = 3) -> Caches:
    """Caches of a prompt and one more token, so that they have room by now."""
    _, caches = step(model, random(batch, length, WIDTH), empty(model, batch))
    return step(model, random(batch, 1, WIDTH, seed=1), caches)[1]


def tokens(count: int, batch: int = 1) -> Iterator[np.ndarray]:
    return (random(batch, 1, WIDTH, seed=100 + i) for i in range(count))


def copies(caches: Caches) -> Caches:
    return {name: np.ascontiguousarray(array).copy() for name, array in caches.items()}


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def assert_same(a: Caches, b: Caches) -> None:
    for name in a:
        assert a[name].shape == b[name].shape
        assert np.ascontiguousarray(a[name]).tobytes() == np.ascontiguousarray(b[name]).tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [0, 4, 8])
@pytest.mark.parametrize("batch", [1, 3])
def test_in_place_and_by_copies_are_the_same_bits(kind: str, bits: int, batch: int):
    """Through the end of the room and beyond; what every run gave out is looked at again in the end."""
    model = decoder(kind, bits)
    caches = prompted(model, batch)
    copied, seen, moves = copies(caches), [], 0
    for x in tokens(130, batch):
        before = caches
        y, caches = step(model, x, caches)
        expected, copied = step(model, x, copies(copied))
        assert y.tobytes() == expected.tobytes()
        assert_same(caches, copied)
        moves += sum(address(caches[name]) != address(before[name]) for name in caches)
        seen.append((caches, copied))
    for given, meant in seen:
        assert_same(given, meant)
    assert moves <= 3 * len(caches)  # room grows by half: from 4 tokens to 38, 91, 170


@pytest.mark.parametrize("kind", KINDS)
def test_first_runs_give_arrays_of_their_own(kind: str):
    """What was never fed back is dense and may be written to; what comes with room says that it may not."""
    model = decoder(kind)
    _, first = step(model, random(1, 3, WIDTH), empty(model))
    assert all(array.flags.c_contiguous and array.flags.writeable for array in first.values())
    _, second = step(model, random(1, 1, WIDTH), first)
    assert not any(array.flags.writeable for array in second.values())
    array = next(iter(second.values()))
    with pytest.raises(ValueError, match="read-only"):
        array[...] = 0
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True
    for caches in (first, copies(second)):
        kept = copies(caches)
        for other in caches.values():
            other += 1
        step(model, random(1, 1, WIDTH), kept)


@pytest.mark.parametrize("bits", [0, 8])
def test_beams_that_share_a_past(bits: int):
    """The first takes the room, the others get copies, and each goes on in its own."""
    model = decoder(bits=bits)
    past = prompted(model)
    kept = copies(past)
    beams = [step(model, x, past) for x in tokens(4)]
    addresses = [{address(array) for array in caches.values()} for _, caches in beams]
    assert addresses[0] == {address(array) for array in past.values()}
    assert all(not a & b for i, a in enumerate(addresses) for b in addresses[:i])
    for x, (y, caches) in zip(tokens(4), beams, strict=True):
        expected, alone = step(model, x, copies(kept))
        assert y.tobytes() == expected.tobytes()
        assert_same(caches, alone)
    follow = random(1, 1, WIDTH, seed=7)
    for _, caches in beams:
        assert step(model, follow, caches)[0].tobytes() == step(model, follow, copies(caches))[0].tobytes()
    assert_same(past, kept)


def test_threads_that_run_with_one_past():
    model = decoder("stacked")
    past = prompted(model)
    kept = copies(past)

    def speak(seed: int) -> list[bytes]:
        caches, said = past, []
        for i in range(40):
            y, caches = step(model, random(1, 1, WIDTH, seed=seed * 1000 + i), caches)
            said.append(y.tobytes() + np.ascontiguousarray(caches["past"]).tobytes())
        return said

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(speak, range(8)))
    past = kept
    assert together == [speak(seed) for seed in range(8)]


VIEWS = {
    "fewer tokens": lambda x: x[:, :, :-1],
    "later tokens": lambda x: x[:, :, 1:],
    "every other token": lambda x: x[:, :, ::2],
    "no token": lambda x: x[:, :, :0],
    "some of the batch": lambda x: x[:2],
    "one of the batch": lambda x: x[:1],
    "the last of the batch": lambda x: x[-1:],
    "the batch in another order": lambda x: x[::-1],
    "one again and again": lambda x: np.broadcast_to(x[:1], x.shape),
    "a view of a view": lambda x: x[:][:, :],
    "an array of another order": np.asfortranarray,
    "a subclass": lambda x: x.view(Tagged),
}


class Tagged(np.ndarray):
    pass


@pytest.mark.parametrize("view", VIEWS)
def test_parts_of_what_was_given_out(view: str):
    """Whatever part of a cache is fed counts as what it holds."""
    model = decoder()
    whole = prompted(model, batch=3)
    kept = copies(whole)
    fed = {name: VIEWS[view](array) for name, array in whole.items()}
    batch = len(next(iter(fed.values())))
    for x in tokens(3, batch):
        y, grown = step(model, x, fed)
        expected, alone = step(model, x, copies(fed))
        assert y.tobytes() == expected.tobytes()
        assert_same(grown, alone)
        fed = grown
    assert_same(whole, kept)
    x = random(3, 1, WIDTH, seed=5)
    assert step(model, x, whole)[0].tobytes() == step(model, x, kept)[0].tobytes()


def test_one_part_of_two_caches():
    """Keys with room, values without: each is taken as it lies."""
    model = decoder()
    caches = prompted(model)
    mixed = {name: array if "key" in name else array.copy() for name, array in caches.items()}
    x = random(1, 1, WIDTH, seed=3)
    assert step(model, x, mixed)[0].tobytes() == step(model, x, copies(caches))[0].tobytes()


def test_no_new_tokens():
    model = decoder()
    caches = prompted(model)
    _, same = step(model, random(1, 0, WIDTH), caches)
    assert_same(same, caches)
    x = random(1, 1, WIDTH, seed=3)
    one, other = (step(model, x, c)[0] for c in (caches, same))
    assert one.tobytes() == other.tobytes()


def test_a_prompt_in_pieces_is_the_prompt():
    model = decoder("stacked")
    x = random(2, 90, WIDTH)
    caches = empty(model, 2)
    for piece in np.split(x, [1, 2, 40, 41, 77], axis=1):
        y, caches = step(model, np.ascontiguousarray(piece), caches)
    whole, at_once = step(model, x, empty(model, 2))
    assert y.tobytes() == whole[:, 77:].tobytes()
    assert_same(caches, at_once)


def test_a_run_that_fails_takes_nothing_away():
    model = decoder()
    caches = prompted(model)
    kept = copies(caches)
    wrong = {**caches, "past.1.value": caches["past.1.value"][:, :, :-1]}
    with pytest.raises(qruntime.RunError):
        step(model, random(1, 1, WIDTH), wrong)
    x = random(1, 1, WIDTH, seed=3)
    assert step(model, x, caches)[0].tobytes() == step(model, x, kept)[0].tobytes()
    assert_same(caches, kept)


def test_models_that_take_what_another_gave_out():
    model, other = decoder(), decoder()
    caches = prompted(model)
    x = random(1, 1, WIDTH, seed=3)
    first, grown = step(other, x, caches)
    assert address(grown["past.0.key"]) == address(caches["past.0.key"])
    assert first.tobytes() == step(model, x, caches)[0].tobytes()
    del model, caches
    assert step(other, x, grown)[0].tobytes() == step(other, x, copies(grown))[0].tobytes()


def test_some_of_the_outputs():
    model = decoder("stacked")
    past = prompted(model)
    x = random(1, 1, WIDTH, seed=3)
    alone = model.run({"x": x, **past}, ["y"])["y"]
    assert list(model.run({"x": x, **past}, ["y"])) == ["y"]
    assert alone.tobytes() == step(model, x, past)[0].tobytes()
    assert step(model, x, copies(past))[0].tobytes() == alone.tobytes()


def test_outputs_into_arrays():
    model = decoder("stacked")
    past = prompted(model)
    x, length = random(1, 1, WIDTH, seed=3), past["past"].shape[4] + 1
    out = {"present": np.zeros((LAYERS, 2, 1, HEADS, length, SIZE), np.float32)}
    made = model.run({"x": x, **past}, out=out)
    assert made["present"] is out["present"]
    assert_same(made, model.run({"x": x, **copies(past)}))


def test_pickled_caches_and_models():
    model = decoder("stacked")
    past = prompted(model)
    x = random(1, 1, WIDTH, seed=3)
    again, theirs = pickle.loads(pickle.dumps((model, past)))
    assert_same(theirs, past)
    assert step(again, x, theirs)[0].tobytes() == step(model, x, past)[0].tobytes()


def _in_child(model: Model, past: Caches, queue: multiprocessing.Queue[bytes]) -> None:
    y, caches = step(model, random(1, 1, WIDTH, seed=3), past)
    queue.put(y.tobytes() + np.ascontiguousarray(caches["past"]).tobytes())


def test_forked_processes_append_to_their_own():
    model = decoder("stacked")
    past = prompted(model)
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[bytes] = context.Queue()
    child = context.Process(target=_in_child, args=(model, past, queue))
    child.start()
    y, caches = step(model, random(1, 1, WIDTH, seed=3), past)
    assert queue.get(timeout=60) == y.tobytes() + np.ascontiguousarray(caches["past"]).tobytes()
    child.join(60)
    assert child.exitcode == 0


def test_memory_stays_that_of_the_cache():
    """Steps hold one buffer, not one each, as long as somebody holds what they gave out."""
    model = decoder("stacked")
    caches = prompted(model, length=400)
    held = []
    for x in tokens(100):
        _, caches = step(model, x, caches)
        held.append(caches)
    assert len({address(one["past"]) for one in held}) == 1


def test_profile_and_memory_of_a_cache_with_room():
    model = decoder("stacked")
    caches = prompted(model)
    feed = {"x": random(1, 1, WIDTH), **caches}
    assert "AppendCache" in str(model.profile(feed, repeat=2))
    assert str(model.memory(feed))
