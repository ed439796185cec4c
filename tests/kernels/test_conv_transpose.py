"""Transposed convolution on every rung against its definition in float64, and what must not change a bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qruntime import _kernels
from qruntime.ir import Node, Value
from qruntime.ops import registry
from qruntime.ops.convolution import conv_transpose as definition
from qruntime.ops.fused_convolution import taps_by_remainder
from qruntime.passes.rewriting import as_attribute

Array = np.ndarray
EPS = float(np.finfo(np.float32).eps)


def run(x: Array, w: Array, b: Array | None = None, threads: int = 1, **attributes: Any) -> Array | None:
    rank = w.ndim - 2
    strides, dilations = attributes.get("strides", (1,) * rank), attributes.get("dilations", (1,) * rank)
    spread = taps_by_remainder(w, attributes.get("group", 1), strides, dilations)
    arrays = [x, w, b, spread]
    values = [None if a is None else Value(f"v{i}", data=a) for i, a in enumerate(arrays)]
    node = Node("ConvTranspose", values, [Value("y")], {k: as_attribute(v) for k, v in attributes.items()}, domain="qruntime", version=1)
    spec = registry.find("qruntime", "ConvTranspose", 1)
    assert spec is not None
    assert spec.binder is not None
    call = spec.binder(node)
    if call is None:
        return None
    given = [arrays[i] for i in call.inputs]
    outputs = _kernels.call_node(call.kernel, given, call.ints, call.floats, call.packed, num_threads=threads)
    return None if outputs is None else outputs[0]


def check(x: Array, w: Array, b: Array | None = None, **attributes: Any) -> None:
    """A sum of n products is off by n ε times the sum of their sizes."""
    y = run(x, w, b, **attributes)
    assert y is not None, "the kernel declined"
    wide = [None if a is None else a.astype(np.float64) for a in (x, w, b)]
    exact = definition(*wide, **attributes)
    sizes = definition(*(None if a is None else np.abs(a) for a in wide), **attributes)
    terms = w.shape[0] * int(np.prod(w.shape[2:])) + 1
    assert y.shape == exact.shape
    assert y.dtype == np.float32
    assert (np.abs(y - exact) <= terms * EPS * sizes).all()
    np.testing.assert_array_equal(run(x, w, b, threads=3, **attributes), y)


def data(shape: Sequence[int], w_shape: Sequence[int], group: int = 1) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(sum(shape) + sum(w_shape))
    x, w = rng.standard_normal(shape).astype(np.float32), rng.standard_normal(w_shape).astype(np.float32)
    return x, w, rng.standard_normal(w_shape[1] * group).astype(np.float32)


CASES: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((2, 5, 6, 7), (5, 3, 4, 4), {"strides": (2, 2), "pads": (1, 1, 1, 1)}),
    ((1, 4, 5, 9), (4, 6, 2, 2), {"strides": (2, 2)}),
    ((1, 4, 5, 6), (4, 6, 3, 3), {"strides": (2, 2), "pads": (1, 1, 1, 1), "output_padding": (1, 1)}),
    ((2, 4, 5, 6), (4, 6, 3, 3), {"pads": (1, 0, 2, 1)}),
    ((1, 3, 9), (3, 2, 16), {"strides": (8,), "pads": (4, 4)}),
    ((1, 3, 40), (3, 2, 10), {"strides": (5,), "pads": (3, 3), "output_padding": (1,)}),
    ((1, 6, 30), (6, 1, 64), {"strides": (16,), "pads": (32, 32)}),
    ((1, 3, 7), (3, 2, 2), {"strides": (3,)}),  # places that no tap reaches
    ((1, 3, 7, 6), (3, 2, 1, 3), {"strides": (2, 1), "pads": (0, 2, 0, 2)}),
    ((1, 3, 7), (3, 2, 2), {"strides": (2,), "pads": (3, 3)}),  # whole inputs are cut off
    ((1, 3, 7), (3, 2, 1), {"pads": (2, 1)}),
    ((1, 2, 9), (2, 3, 3), {"strides": (2,), "dilations": (3,), "pads": (1, 2)}),
    ((1, 2, 9), (2, 3, 3), {"strides": (4,), "dilations": (2,)}),
    ((1, 2, 9), (2, 3, 3), {"strides": (3,), "dilations": (3,), "output_padding": (2,)}),
    ((1, 2, 3, 4, 5), (2, 3, 3, 2, 4), {"strides": (2, 1, 2), "pads": (1, 0, 1, 1, 0, 1)}),
    ((2, 6, 5, 6), (6, 2, 4, 4), {"strides": (2, 2), "pads": (1, 1, 1, 1), "group": 3}),
    ((1, 6, 9, 7), (6, 1, 4, 3), {"strides": (2, 2), "pads": (1, 1, 1, 1), "group": 6}),
    ((1, 2, 5, 5), (2, 3, 3, 3), {"strides": (2, 2), "auto_pad": "SAME_UPPER"}),
    ((1, 2, 5, 5), (2, 3, 3, 3), {"strides": (2, 2), "auto_pad": "SAME_LOWER"}),
    ((1, 2, 5, 5), (2, 3, 3, 3), {"strides": (2, 2), "auto_pad": "VALID"}),
    ((1, 2, 5, 5), (2, 3, 3, 3), {"strides": (3, 2), "output_shape": (13, 10)}),
    ((1, 2, 5, 5), (2, 3, 3, 3), {"strides": (2, 2), "output_shape": (8, 14)}),
    ((1, 2, 1, 1), (2, 3, 3, 5), {"strides": (2, 4)}),
    ((0, 2, 4), (2, 3, 3), {"strides": (2,)}),
    ((1, 40, 32, 32), (40, 19, 4, 4), {"strides": (2, 2), "pads": (1, 1, 1, 1)}),
    ((1, 30, 32, 32), (30, 8, 2, 2), {"strides": (2, 2)}),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(CASES)))
def test_it_is_the_definition(rung: str, case: int) -> None:
    shape, w_shape, attributes = CASES[case]
    x, w, b = data(shape, w_shape, attributes.get("group", 1))
    check(x, w, b, **attributes)
    check(x, w, **attributes)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_geometry(drawn: st.DataObject) -> None:
    def pick(low: int, high: int) -> int:
        return drawn.draw(st.integers(low, high))

    rank, group = pick(1, 2), pick(1, 3)
    size, window = [pick(1, 9) for _ in range(rank)], [pick(1, 5) for _ in range(rank)]
    strides, dilations = tuple(pick(1, 5) for _ in range(rank)), tuple(pick(1, 4) for _ in range(rank))
    extra = tuple(pick(0, 3) for _ in range(rank))
    whole = [(n - 1) * s + (k - 1) * d + 1 + e for n, s, k, d, e in zip(size, strides, window, dilations, extra, strict=True)]
    begin = [pick(0, min(6, n)) for n in whole]
    end = [pick(0, min(6, n - p)) for n, p in zip(whole, begin, strict=True)]
    x, w, b = data((pick(1, 2), group * pick(1, 3), *size), (1, 1, *window))
    w, b = data(x.shape, (x.shape[1], pick(1, 4), *window), group)[1:]
    check(x, w, b, strides=strides, dilations=dilations, pads=(*begin, *end), output_padding=extra, group=group)


def test_an_image_stands_alone(rung: str) -> None:
    x, w, b = data((5, 9, 11, 13), (9, 7, 4, 4))
    attributes: dict[str, Any] = {"strides": (2, 2), "pads": (1, 1, 1, 1)}
    whole = run(x, w, b, **attributes)
    assert whole is not None
    for n in range(5):
        np.testing.assert_array_equal(run(x[n : n + 1], w, b, **attributes), whole[n : n + 1])


def test_nan_stays_where_its_taps_reach(rung: str) -> None:
    x, w, _ = data((1, 3, 9, 9), (3, 2, 4, 4))
    attributes: dict[str, Any] = {"strides": (2, 2), "pads": (1, 1, 1, 1)}
    clean = run(x, w, **attributes)
    x[0, 1, 4, 4] = np.nan
    dirty = run(x, w, **attributes)
    assert clean is not None
    assert dirty is not None
    reached = np.zeros(dirty.shape, bool)
    reached[:, :, 7:11, 7:11] = True
    assert np.isnan(dirty[reached]).all()
    np.testing.assert_array_equal(dirty[~reached], clean[~reached])


def test_it_declines_what_does_not_fit() -> None:
    x, w, b = data((1, 4, 5, 5), (4, 3, 3, 3))
    assert run(x[:, :3], w, b) is None
    assert run(x[0], w, b) is None
    assert run(x.astype(np.float64), w, b) is None
    assert run(x, w, b[:2]) is None
    assert run(x, w, b, pads=(9, 9, 9, 9)) is None
    assert run(x, w, b, pads=(-1, 0, 0, 0)) is None
    assert run(x, w, b, output_padding=(-1, 0)) is None
    assert run(x, w, b, output_padding=(1,)) is None
    assert run(x, w, b, output_shape=(2**40, 4)) is None
    assert run(x, w, b, output_shape=(2**29, 2**29)) is None
