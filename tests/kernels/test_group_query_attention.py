"""GroupQueryAttention: the kernel against the definition, one sequence against the batch, and what it leaves to the definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import qruntime
from tests.kernels.native_call import run_definition, run_native
from tests.passes.lowering import model
from tests.small_models import random

N, KV, SIZE = 4, 2, 8
CONTRIB: dict[str, Any] = {"domain": "com.microsoft", "version": 1}
Inputs = list[np.ndarray | None]


def inputs(
    ends: list[int], length: int, capacity: int | None, *, packed: bool = False, rotary: int = 0, bias: tuple[int, int] | None = None,
    positions: np.ndarray | None = None,
) -> Inputs:  # fmt: skip
    """Sequences with so many tokens in the end, `length` of them new; a past of `capacity` rows or none."""
    batch, total = len(ends), max(ends)
    rows = [random(batch, length, heads * SIZE, seed=i) for i, heads in enumerate((N, KV, KV))]
    projections: Inputs = [np.concatenate(rows, axis=-1), None, None] if packed else [*rows]
    pasts: Inputs = [None, None] if capacity is None else [random(batch, KV, capacity, SIZE, seed=i) for i in (5, 6)]
    caches: Inputs = [None, None] if not rotary else [random(64, rotary, seed=i) for i in (7, 8)]
    added = None if bias is None else random(*bias, length, total, seed=9)
    return [*projections, *pasts, np.int32(ends) - 1, np.array(total, np.int32), *caches, positions, added]


def agree(given: Inputs, threads: int = 1, **attributes: Any) -> list[np.ndarray]:
    attributes = {"num_heads": N, "kv_num_heads": KV, **attributes}
    native = run_native("GroupQueryAttention", given, num_outputs=3, num_threads=threads, **attributes, **CONTRIB)
    assert native is not None
    defined = run_definition("GroupQueryAttention", given, num_outputs=3, **attributes, **CONTRIB)
    np.testing.assert_allclose(native[0], defined[0], rtol=1e-5, atol=2e-6)
    for ours, theirs in zip(native[1:], defined[1:3], strict=True):
        assert ours.shape == theirs.shape
        assert ours.tobytes() == np.ascontiguousarray(theirs).tobytes()
    return native


LENGTHS: list[tuple[list[int], int, int | None]] = [
    ([5], 5, None), ([5, 3], 5, None), ([1, 1], 1, None), ([9, 9], 1, 8), ([9, 4], 1, 8), ([9, 4, 1], 3, 16), ([16, 2], 1, 16),
    ([40], 33, 7), ([20, 20], 3, 17), ([20, 19], 3, 18), ([3], 3, 0),
]  # fmt: skip


@pytest.mark.parametrize(("ends", "length", "capacity"), LENGTHS)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("rotary", [0, 2, 4])
def test_lengths(ends: list[int], length: int, capacity: int | None, packed: bool, rotary: int):
    given = inputs(ends, length, capacity, packed=packed, rotary=rotary)
    whole = agree(given, do_rotary=int(rotary > 0))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(whole, agree(given, 3, do_rotary=int(rotary > 0)), strict=True))
    agree(given, do_rotary=int(rotary > 0), causal=0, scale=0.3)
    if rotary:
        agree(given, do_rotary=1, rotary_interleaved=1)


@pytest.mark.parametrize("first", [1, 3])
@pytest.mark.parametrize("second", [1, 4])
def test_a_bias(first: int, second: int):
    agree(inputs([9, 9, 9], 2, 7, bias=(first, second)))


@pytest.mark.parametrize("positions", [np.array([[3, 1]] * 2), np.array([[60, 61], [0, 63]]), np.array([5])])
def test_positions(positions: np.ndarray):
    agree(inputs([9, 9], 2, 7, rotary=4, positions=positions), do_rotary=1)


def test_a_sequence_does_not_depend_on_others():
    given = inputs([9, 9, 9], 2, 7, rotary=4)
    whole = agree(given, do_rotary=1)
    for b in range(3):
        alone = [x[b : b + 1] if x is not None and i < 6 else x for i, x in enumerate(given)]
        for one, all_of_them in zip(agree(alone, do_rotary=1), whole, strict=True):
            assert one.tobytes() == all_of_them[b : b + 1].tobytes()


def changed(place: int, value: np.ndarray | None) -> Inputs:
    given = inputs([9, 9], 2, 7, rotary=4)
    given[place] = value
    return given


@pytest.mark.parametrize(
    "given",
    [
        changed(0, random(2, 2, N * SIZE + 1)),
        changed(1, random(2, 3, KV * SIZE)),
        changed(1, None),
        changed(2, random(2, 2, KV * SIZE).astype(np.float64)),
        changed(3, None),
        changed(3, random(2, KV, 6, SIZE)),
        changed(3, random(2, N, 7, SIZE)),
        changed(4, random(2, KV, 7, SIZE - 1)),
        changed(5, np.int32([8])),
        changed(5, np.int32([8, -1])),
        changed(5, np.int32([8, 9])),
        changed(5, np.int32([8, 2**31 - 1])),
        changed(5, np.int32([8, -(2**31)])),
        changed(6, np.array(2**40)),
        changed(6, np.array([9, 9])),
        changed(6, np.array(-1)),
        changed(7, random(64, 5)),
        changed(7, random(4, 4)),
        changed(7, None),
        changed(9, np.array([[0, 64], [0, 1]])),
        changed(9, np.array([[0, -1], [0, 1]])),
        changed(9, np.array([[0, 1]])),
        changed(10, random(1, 1, 2, 8)),
        changed(10, random(3, 1, 2, 9)),
    ],
)
def test_what_does_not_fit_is_left_to_the_definition(given: Inputs):
    attributes = {"num_heads": N, "kv_num_heads": KV, "do_rotary": 1}
    assert run_native("GroupQueryAttention", given, num_outputs=3, **attributes, **CONTRIB) is None


@pytest.mark.parametrize(
    "attributes",
    [{"softcap": 2.0}, {"local_window_size": 3}, {"smooth_softmax": 1}, {"qk_output": 1}, {"k_quant_type": "PER_TENSOR"}, {"scale": -1.0}],
)
def test_options_that_the_kernel_lacks(attributes: dict[str, Any]):
    given = inputs([9, 9], 2, 7)
    assert run_native("GroupQueryAttention", given, num_heads=N, kv_num_heads=KV, **attributes, **CONTRIB) is None


# ------------------------------------------------------------------------- in a model


NAMES = ["q", "k", "v", "past_k", "past_v", "ends", "total"]


def decoder() -> qruntime.Model:
    shown = {n: x for n, x in zip(NAMES, inputs([3], 1, 2), strict=False) if x is not None}
    attributes = {"domain": "com.microsoft", "num_heads": N, "kv_num_heads": KV}
    return model([("GroupQueryAttention", NAMES, ["y", "present_k", "present_v"], attributes)], shown, ["y", "present_k", "present_v"])


def steps(loaded: qruntime.Model, count: int, *, copied: bool) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """y and the keys of each step, from empty caches on."""
    pasts, ys, keys = [np.zeros((2, KV, 0, SIZE), np.float32)] * 2, [], []
    for i in range(count):
        new = [random(2, 1, heads * SIZE, seed=10 * i + j) for j, heads in enumerate((N, KV, KV))]
        made = loaded.run(dict(zip(NAMES, [*new, *pasts, np.array([i, i]), np.array(i + 1)], strict=True)))
        pasts = [made["present_k"], made["present_v"]]
        if copied:
            pasts = [np.ascontiguousarray(x).copy() for x in pasts]
        ys.append(made["y"])
        keys.append(pasts[0])
    return ys, keys


def test_the_cache_grows_in_place():
    loaded = decoder()
    (ys, keys), (expected, copies) = (steps(loaded, 60, copied=copied) for copied in (False, True))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(ys, expected, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(keys, copies, strict=True))
    assert len({x.__array_interface__["data"][0] for x in keys[2:]}) < 4


def test_a_shorter_sequence_in_the_batch_does_not_write_into_what_was_given_out():
    loaded = decoder()
    _, keys = steps(loaded, 5, copied=False)
    past, kept = keys[-1], np.ascontiguousarray(keys[-1]).copy()
    new = [random(2, 1, heads * SIZE, seed=j) for j, heads in enumerate((N, KV, KV))]
    loaded.run(dict(zip(NAMES, [*new, past, past, np.array([5, 2]), np.array(6)], strict=True)))
    assert np.array_equal(past, kept)


def test_a_buffer_keeps_its_length():
    loaded = decoder()
    buffer = np.zeros((2, KV, 12, SIZE), np.float32)
    new = [random(2, 1, heads * SIZE, seed=j) for j, heads in enumerate((N, KV, KV))]
    made = loaded.run(dict(zip(NAMES, [*new, buffer, buffer, np.array([4, 7]), np.array(8)], strict=True)))
    assert not buffer.any()
    assert [list(np.flatnonzero(made["present_k"][b].any(axis=(0, 2)))) for b in range(2)] == [[4], [7]]
