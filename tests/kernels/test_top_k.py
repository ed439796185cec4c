"""TopK: the bits of the definition, ties by the lower index."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.native_call import check, run_native, same_bits

TYPES = [np.float32, np.float64, np.int32, np.int64]


def values(rng: np.random.Generator, shape: tuple[int, ...], dtype: type, kind: str) -> np.ndarray:
    if np.dtype(dtype).kind == "i":
        limits = np.iinfo(dtype)
        few = np.array([limits.min, -1, 0, 1, limits.max], dtype)
        return rng.choice(few, shape) if kind == "few" else rng.integers(limits.min, limits.max, shape, dtype)
    if kind == "few":
        return rng.choice(np.array([-np.inf, -1, -0.0, 0.0, 1e-45, 1, np.inf, np.nan, -np.nan], dtype), shape)
    return rng.standard_normal(shape).astype(dtype)


@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32),
    shape=st.lists(st.sampled_from([0, 1, 2, 3, 15, 16, 17, 33]), min_size=1, max_size=3).map(tuple),
    dtype=st.sampled_from(TYPES),
    kind=st.sampled_from(["few", "random"]),
    largest=st.integers(0, 1),
    share=st.floats(0, 1),
    axis=st.integers(-3, 2),
)
def test_like_the_definition(seed, shape, dtype, kind, largest, share, axis):
    axis = axis % len(shape)
    x = values(np.random.default_rng(seed), shape, dtype, kind)
    k = np.array([round(share * shape[axis])])
    check("TopK", [x, k], num_outputs=2, axis=axis, largest=largest, sorted=seed % 2)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", ["few", "random", "ascending", "descending"])
@pytest.mark.parametrize("k", [1, 31, 600, 2499, 2500])
def test_long_rows(dtype, kind, k):
    rng = np.random.default_rng(k)
    x = values(rng, (2, 2500), dtype, "few" if kind == "few" else "random")
    if kind.endswith("scending"):
        x.sort()
        x = x if kind == "ascending" else x[:, ::-1].copy()
    for largest in (0, 1):
        check("TopK", [x, np.array([k])], num_outputs=2, largest=largest)


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
@pytest.mark.parametrize("kind", ["few", "random", "ascending", "descending"])
@pytest.mark.parametrize("k", [1, 2, 5, 32, 33, 70])
def test_columns(dtype, kind, k):
    """In sorted lists, several strips of them, and in heaps; fewer columns than a vector has lanes, and more."""
    x = values(np.random.default_rng(k), (2, 70, 301), dtype, "few" if kind == "few" else "random")
    if kind.endswith("scending"):
        x.sort(axis=1)
        x = x if kind == "ascending" else x[:, ::-1].copy()
    for columns in (3, 4, 5, 301):
        for largest in (0, 1):
            check("TopK", [x[..., :columns].copy(), np.array([k])], num_outputs=2, axis=1, largest=largest)


def test_earlier_versions_and_threads():
    x = values(np.random.default_rng(0), (40, 2000), np.float32, "random")
    one = check("TopK", [x], num_outputs=2, version=1, k=7)
    check("TopK", [x, np.array([7])], num_outputs=2, version=10)
    for axis in (0, 1):
        alone = check("TopK", [x, np.array([7])], num_outputs=2, axis=axis)
        for threads in (2, 3):
            for a, b in zip(check("TopK", [x, np.array([7])], num_outputs=2, axis=axis, num_threads=threads), alone, strict=True):
                same_bits(a, b)
    same_bits(check("TopK", [x[3:4], np.array([7])], num_outputs=2)[0], one[0][3:4])


@pytest.mark.parametrize("k", [-1, 6, 2**40])
def test_k_out_of_range_is_declined(k):
    assert run_native("TopK", [np.zeros((2, 5), np.float32), np.array([k])], num_outputs=2) is None


def test_other_inputs_are_declined():
    x = np.zeros((2, 5), np.float32)
    assert run_native("TopK", [x, np.array([1, 1])], num_outputs=2) is None
    assert run_native("TopK", [x, np.array([1])], num_outputs=2, axis=2) is None
    assert run_native("TopK", [x.astype(np.float16), np.array([1])], num_outputs=2) is None
    assert run_native("TopK", [np.float32(1), np.array([1])], num_outputs=2) is None
