"""Arrays that wait in a file come back as they were."""

from __future__ import annotations

import os

import numpy as np
import pytest

from qruntime.runtime.segments import Frontier, fed_values
from qruntime.runtime.spilling import Spilling
from tests.runtime.test_segments import canonical, encoder_bytes, layers_of
from tests.small_models import assert_same_bits, random

ARRAYS = {
    "float": random(7, 5),
    "scalar": np.float64(3),
    "empty": np.zeros((0, 4), np.int8),
    "transposed": random(6, 4).T,
    "flags": np.array([True, False]),
    "text": np.array(["a", None], object),
    "list": [1, 2],
}


@pytest.mark.parametrize("most_bytes", [None, 0, 150, 1 << 20])
def test_what_is_taken_comes_back(most_bytes: int | None):
    spilling = Spilling(most_bytes)
    for _ in range(3):
        spilling.take(ARRAYS)
    for batch in spilling.taken():
        assert batch.keys() == ARRAYS.keys()
        for name, given in ARRAYS.items():
            if isinstance(given, np.ndarray) and not given.dtype.hasobject:
                assert_same_bits(batch[name], given)
            else:
                assert batch[name] is given


def test_what_lies_in_the_file_stays_there_and_leaves_no_name(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    first = Spilling(0)
    first.take({"x": ARRAYS["float"]})
    (batch,) = first.taken()
    assert not batch["x"].flags.writeable
    second = Spilling(0)
    second.take(batch)
    assert next(second.taken())["x"] is batch["x"]
    assert os.listdir(tmp_path) == []


def test_a_walk_that_spills_has_the_same_bits():
    graph, twin = canonical(encoder_bytes()), canonical(encoder_bytes())
    feeds = [{"x": random(2, 5, 32, seed=seed)} for seed in range(3)]
    walks = [
        Frontier(one, [fed_values(one, feed) for feed in feeds], stops=layers_of(one), num_threads=1, most_bytes=most)
        for one, most in ((graph, None), (twin, 0))
    ]
    for layer, other in zip(layers_of(graph), layers_of(twin), strict=True):
        for (x, _), (y, _) in zip(walks[0].reach(layer), walks[1].reach(other), strict=True):
            assert_same_bits(x, y)
