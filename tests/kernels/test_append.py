"""New tokens behind those of a cache: the kernel against the definition, and what it leaves to that."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qruntime import _kernels
from tests.kernels.native_call import check_agreement, run_native
from tests.small_models import random

OURS: dict[str, Any] = {"domain": "qruntime", "version": 1}


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -2])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.float16, np.int64])
@pytest.mark.parametrize(("past", "new"), [(5, 1), (0, 3), (3, 0), (0, 0), (64, 65)])
def test_one_cache(axis: int, dtype: Any, past: int, new: int):
    shapes = [np.insert([2, 3, 4], axis % 4, length) for length in (past, new)]
    inputs = [None, *(((random(*shape, seed=i) * 9).astype(dtype)) for i, shape in enumerate(shapes))]
    check_agreement("AppendCache", inputs, axis=axis, **OURS)


@pytest.mark.parametrize("index", range(6))
@pytest.mark.parametrize("threads", [1, 3])
def test_an_item_of_a_stack(index: int, threads: int):
    past, new = random(3, 2, 2, 5, 700, 4), random(2, 5, 2, 4)
    made = run_native("AppendCache", [None, past, new], axis=2, index=index, counts=(3, 2), num_outputs=2, num_threads=threads, **OURS)
    assert made is not None
    item = np.concatenate([past.reshape(6, 2, 5, 700, 4)[index], new], 2)
    assert np.array_equal(made[1], item)
    assert np.array_equal(made[0].reshape(6, *item.shape)[index], item)


def test_a_part_of_a_projection():
    past, new = random(2, 3, 5, 4), random(2, 1, 3, 3, 4)
    for part in range(3):
        made = run_native("AppendCache", [None, past, new], axis=2, part=part, **OURS)
        assert made is not None
        assert np.array_equal(made[0], np.concatenate([past, new[:, :, part].transpose(0, 2, 1, 3)], 2))
    assert run_native("AppendCache", [None, past, new], axis=2, part=3, **OURS) is None
    assert run_native("AppendCache", [None, past, random(2, 3, 1, 4)], axis=2, part=0, **OURS) is None


@pytest.mark.parametrize(
    ("shape", "ints"),
    [
        ((2, 3, 1, 4), [4, 0, -1, 0]),
        ((2, 3, 1, 4), [-5, 0, -1, 0]),
        ((2, 3, 1, 4), [2, 0, -1, 4, 2, 3, 5, 4]),
        ((2, 3, 1, 4), [2, 0, -1, -1]),
        ((2, 3, 1, 4), [2, 0, -1, 1]),
        ((2, 3, 1, 4), [2, 1, -1, 0]),
        ((2, 3, 1, 4), [2, -1, -1, 0]),
        ((2, 3, 1, 4), [2, 0, -1]),
        ((2, 2, 1, 4), [2, 0, -1, 0]),
        ((2, 3, 1), [2, 0, -1, 0]),
        ((2, 3, 1, 4), [1 << 62, 0, -1, 0]),
        ((2, 3, 1, 4), [2, 0, -1, 1 << 40]),
    ],
)
def test_odd_numbers_are_left_to_the_definition(shape: tuple[int, ...], ints: list[int]):
    assert _kernels.call_node("append", [None, random(2, 3, 5, 4), random(*shape)], ints, [], []) is None


def test_other_inputs_are_left_to_the_definition():
    past, new = random(2, 3, 5, 4), random(2, 3, 1, 4)
    ints = [2, 0, -1, 0]
    for inputs in ([None, past, new.astype(np.float64)], [None, past, None], [None, None, new], [None, past], [past, past, new]):
        assert _kernels.call_node("append", inputs, ints, [], []) is None
    assert _kernels.call_node("append", [None, past, new], ints, [], [], num_outputs=2) is None


def test_dense():
    check_agreement("Dense", [random(2, 3)], **OURS)
    check_agreement("Dense", [random()], **OURS)
