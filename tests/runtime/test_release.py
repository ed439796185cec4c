"""A model that nobody holds gives its packed weights back at once: nothing that holds them is part of a cycle."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import qruntime
from qruntime import _kernels
from qruntime.errors import QRuntimeError
from tests.runtime.test_segments import branching_bytes
from tests.small_models import encoder_bytes, random, recurrent_bytes

BRANCHING = {"x": random(3, 4), "c": np.array(False)}
ENCODER = {"x": random(2, 3, 32)}
MODELS = {
    "encoder": (encoder_bytes, ENCODER),
    "branches": (branching_bytes, BRANCHING),
    "LSTM": (lambda: recurrent_bytes("LSTM"), {"x": random(2, 3, 5)}),
}


def held() -> set[int]:
    """Packed weights and what runs with them, by address."""
    return {id(thing) for thing in gc.get_objects() if isinstance(thing, (_kernels.Packed, _kernels.Executable))}


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def run_twice(model: qruntime.Model, feed: dict[str, np.ndarray]) -> None:
    model.run(feed)
    model.run(feed)


def look_inside(model: qruntime.Model, feed: dict[str, np.ndarray]) -> None:
    model.summary(feed)
    model.profile(feed, repeat=1)
    str(model)


def choose_outputs(model: qruntime.Model, feed: dict[str, np.ndarray]) -> None:
    model.run(feed, [model.outputs[0].name])
    model.run(feed, [])


def fail(model: qruntime.Model, feed: dict[str, np.ndarray]) -> None:
    with pytest.raises(QRuntimeError):
        model.run(feed | {"x": np.ones((1, 2, 3, 4, 5), np.float32)})


def run_in_threads(model: qruntime.Model, feed: dict[str, np.ndarray]) -> None:
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(model.run, [feed] * 9))


@pytest.mark.parametrize("use", [run_twice, look_inside, choose_outputs, fail, run_in_threads])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("quantized", [False, True])
def test_packed_weights_go_with_their_model(name: str, quantized: bool, use: Callable[..., None]) -> None:
    make, feed = MODELS[name]
    before = held()
    model = qruntime.load(make(), threads=1)
    if quantized:
        model = model.quantize_dynamic()
    use(model, feed)
    assert held() - before
    gone = weakref.ref(model)
    del model
    assert gone() is None
    assert not held() - before


def test_results_hold_no_weights() -> None:
    before = held()
    model = qruntime.load(encoder_bytes(), threads=1).quantize_dynamic()
    results, profile = model.run(ENCODER), model.profile(ENCODER, repeat=1)
    del model
    assert not held() - before
    assert results["y"].shape == (2, 3, 32)
    assert profile.nodes


def test_quantizing_in_place_lets_the_float_weights_go() -> None:
    before = held()
    model = qruntime.load(encoder_bytes(), threads=1)
    model.run(ENCODER)
    packed = held() - before
    model.quantize_dynamic(inplace=True)
    assert not held() & packed


def test_a_model_may_be_dropped_in_a_run_of_another_thread() -> None:
    before = held()
    model = qruntime.load(encoder_bytes(), threads=1)
    expected = model.run(ENCODER)["y"]
    with ThreadPoolExecutor(1) as pool:
        running = [pool.submit(model.run, ENCODER) for _ in range(50)]
        del model
        assert all(np.array_equal(run.result()["y"], expected) for run in running)
        del running
    assert not held() - before


def test_codes_stay_for_another_model_that_reads_them(tmp_path: Path) -> None:
    first = qruntime.load(encoder_bytes(), threads=1).quantize_dynamic()
    first.save(tmp_path / "first.onnx")
    second = first.quantize_dynamic()
    expected = first.run(ENCODER)["y"]
    del first
    gc.collect()
    second.save(tmp_path / "second.onnx")
    assert (tmp_path / "second.onnx").read_bytes() == (tmp_path / "first.onnx").read_bytes()
    assert np.array_equal(second.run(ENCODER)["y"], expected)


def test_codes_that_went_with_their_model_say_so() -> None:
    model = qruntime.load(encoder_bytes(), threads=1).quantize_dynamic()
    model.run(ENCODER)
    (stored, *_) = (value.stored for value in model.graph.stored_constants())
    assert stored is not None
    assert stored.unpacked().size
    del model
    with pytest.raises(ReferenceError, match="keep the model"):
        stored.unpacked()
