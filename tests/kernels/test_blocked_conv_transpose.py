"""Transposed convolutions of images in blocks on every rung, against their definition in float64, and what must not change a bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qruntime import _kernels
from qruntime.ir import Node, Value
from qruntime.ops import registry
from qruntime.ops.channel_blocks import in_blocks, out_of_blocks, phase_order, weights_by_phase
from qruntime.ops.convolution import conv_transpose as definition
from qruntime.ops.convolution import outputs_first
from qruntime.ops.epilogue import activate
from qruntime.passes.rewriting import as_attribute
from tests.kernels.native_call import run_definition, same_bits
from tests.kernels.test_channel_blocks import with_junk
from tests.kernels.test_conv_transpose import CASES, EPS, data

Array = np.ndarray


def by_phase(w: Array, **attributes: Any) -> Array:
    rank = w.ndim - 2
    fits = all(len(attributes.get(name, (1,) * rank)) == rank and min(attributes.get(name, (1,))) > 0 for name in ("strides", "dilations"))
    sizes = (attributes.get("strides"), attributes.get("dilations")) if fits else (None, None)
    return weights_by_phase(w, attributes.get("group", 1), *sizes)


def run(
    x: Array,
    w: Array,
    b: Array | None = None,
    residual: Array | None = None,
    addend: Array | None = None,
    threads: int = 1,
    **attributes: Any,
) -> Array | None:
    """Of images in blocks; `w` is that of ONNX."""
    arrays = [x, by_phase(w, **attributes), b, residual, addend]
    values = [None if a is None else Value(f"v{i}", data=a) for i, a in enumerate(arrays)]
    attributes = {k: as_attribute(v) for k, v in attributes.items()}
    node = Node("BlockedConvTranspose", values, [Value("y")], attributes, domain="qruntime", version=1)
    spec = registry.find("qruntime", "BlockedConvTranspose", 1)
    assert spec is not None
    assert spec.binder is not None
    call = spec.binder(node)
    if call is None:
        return None
    outputs = _kernels.call_node(call.kernel, [arrays[i] for i in call.inputs], call.ints, call.floats, call.packed, num_threads=threads)
    return None if outputs is None else outputs[0]


def served(x: Array, w: Array, *rest: Array | None, **attributes: Any) -> Array:
    y = run(x, w, *rest, **attributes)
    assert y is not None, "the kernel declined"
    return y


def check(x: Array, w: Array, b: Array | None = None, activation: str = "none", more: bool = False, **attributes: Any) -> None:
    """A sum of n products is off by n ε times the sum of their sizes; with `more`, a residual and an addend follow."""
    wide = [None if a is None else a.astype(np.float64) for a in (x, w, b)]
    exact = definition(*wide, **attributes)
    sizes = definition(*(None if a is None else np.abs(a) for a in wide), **attributes)
    terms = w.shape[0] * int(np.prod(w.shape[2:])) + 1
    added: list[Array | None] = [None, None]
    if more:
        rng = np.random.default_rng(exact.size)
        residual, addend = (rng.standard_normal(exact.shape).astype(np.float32) for _ in range(2))
        added = [with_junk(residual, 1), with_junk(addend, 2)]
        exact, sizes = exact + addend, sizes + np.abs(addend)
    exact = np.asarray(activate(exact, activation, ()), np.float64)
    if more:
        exact, sizes = exact + residual, sizes + np.abs(residual)
    made = [served(with_junk(x), w, b, *added, threads=threads, activation=activation, **attributes) for threads in (1, 3)]
    same_bits(*made)
    got = out_of_blocks(made[0], exact.shape[1])
    assert got.shape == exact.shape
    assert (np.abs(got - exact) <= (terms + 2) * EPS * sizes + (8 * EPS if activation == "tanh" else 0)).all()


@pytest.mark.parametrize("case", [i for i, (_, _, attributes) in enumerate(CASES) if "group" not in attributes])
def test_it_is_the_definition(rung: str, case: int) -> None:
    shape, w_shape, attributes = CASES[case]
    x, w, b = data(shape, w_shape)
    check(x, w, b, **attributes)
    check(x, w, **attributes)
    check(x, w, b, "relu", True, **attributes)
    check(x, w, b, "tanh", True, **attributes)


WHOLE: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "2 x 2": ((2, 70, 9, 23), (70, 40, 2, 2), {"strides": (2, 2)}),
    "4 x 4": ((2, 33, 12, 41), (33, 70, 4, 4), {"strides": (2, 2), "pads": (1, 1, 1, 1)}),
    "3 x 3": ((1, 16, 40, 19), (16, 17, 3, 3), {"strides": (2, 2), "pads": (1, 1, 1, 1), "output_padding": (1, 1)}),
    "from one pixel": ((3, 100, 1, 1), (100, 130, 4, 4), {}),
    "deep": ((5, 520, 4, 4), (520, 65, 4, 4), {"strides": (2, 2), "pads": (1, 1, 1, 1)}),
    "volumes": ((2, 20, 3, 5, 9), (20, 34, 3, 2, 4), {"strides": (2, 1, 2), "pads": (1, 0, 1, 1, 0, 1)}),
    "of one axis": ((3, 40, 300), (40, 20, 16), {"strides": (8,), "pads": (4, 4)}),
    "in groups": ((2, 64, 7, 9), (64, 48, 3, 3), {"strides": (2, 2), "group": 2}),
}


@pytest.mark.parametrize("name", list(WHOLE))
def test_whole_images(rung: str, name: str) -> None:
    shape, w_shape, attributes = WHOLE[name]
    x, w, b = data(shape, w_shape, attributes.get("group", 1))
    check(x, w, b, **attributes)
    check(x, w, b, "relu", True, **attributes)
    check(x, w, b, "tanh", **attributes)


@pytest.mark.parametrize("name", list(WHOLE))
def test_an_image_stands_alone(rung: str, name: str) -> None:
    shape, w_shape, attributes = WHOLE[name]
    x, w, b = data((5, *shape[1:]), w_shape, attributes.get("group", 1))
    blocks = in_blocks(x)
    whole = served(blocks, w, b, **attributes)
    for threads in (2, 3):
        same_bits(served(blocks, w, b, threads=threads, **attributes), whole)
    for n in range(5):
        same_bits(served(blocks[n : n + 1], w, b, **attributes), whole[n : n + 1])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_geometry(drawn: st.DataObject) -> None:
    def pick(low: int, high: int) -> int:
        return drawn.draw(st.integers(low, high))

    rank = pick(1, 3)
    size, window = [pick(1, 9 if rank < 3 else 4) for _ in range(rank)], [pick(1, 5 if rank < 3 else 3) for _ in range(rank)]
    strides, dilations = tuple(pick(1, 5) for _ in range(rank)), tuple(pick(1, 4) for _ in range(rank))
    extra = tuple(pick(0, 3) for _ in range(rank))
    whole = [(n - 1) * s + (k - 1) * d + 1 + e for n, s, k, d, e in zip(size, strides, window, dilations, extra, strict=True)]
    begin = [pick(0, min(6, n)) for n in whole]
    end = [pick(0, min(6, n - p)) for n, p in zip(whole, begin, strict=True)]
    x, w, b = data((pick(1, 2), pick(1, 20), *size), (1, 1, *window))
    w, b = data(x.shape, (x.shape[1], pick(1, 35), *window))[1:]
    check(x, w, b, more=drawn.draw(st.booleans()), strides=strides, dilations=dilations, pads=(*begin, *end), output_padding=extra)


def test_nan_stays_where_its_taps_reach(rung: str) -> None:
    x, w, _ = data((1, 3, 9, 30), (3, 20, 4, 4))
    attributes: dict[str, Any] = {"strides": (2, 2), "pads": (1, 1, 1, 1)}
    clean = out_of_blocks(served(in_blocks(x), w, **attributes), 20)
    x[0, 1, 4, 4] = np.nan
    dirty = out_of_blocks(served(in_blocks(x), w, **attributes), 20)
    reached = np.zeros(dirty.shape, bool)
    reached[:, :, 7:11, 7:11] = True
    assert np.isnan(dirty[reached]).all()
    np.testing.assert_array_equal(dirty[~reached], clean[~reached])


def test_it_declines_what_does_not_fit() -> None:
    x, w, b = data((1, 20, 5, 5), (20, 18, 2, 2))
    blocks, strides = in_blocks(x), (2, 2)
    y = served(blocks, w, b, strides=strides)
    for wrong in (
        x,
        blocks[:, :1].copy(),
        blocks[..., :15].copy(),
        blocks.astype(np.float64),
        blocks[:, :, 0].copy(),
        blocks[:, :, :0].copy(),
    ):
        assert run(wrong, w, b, strides=strides) is None
    for wrong in (y[:, :1].copy(), y[:, :, 1:].copy(), y.astype(np.float64), in_blocks(x)):
        assert run(blocks, w, b, wrong, strides=strides) is None
        assert run(blocks, w, b, None, wrong, strides=strides) is None
    for attributes in (
        {"strides": (0, 2)},
        {"strides": (2,)},
        {"pads": (-1, 0, 0, 0)},
        {"pads": (2**40,) * 4},
        {"output_padding": (1,)},
        {"dilations": (0, 1)},
    ):
        assert run(blocks, w, b, **attributes) is None
    packed = _kernels.PackedConv(by_phase(w, strides=strides), b, "blocks")
    ints = [2, 1, 0, 0, 18, 2, 2, 0, 0, 0, 0, 1, 1, 2, 2, 0, 0, 0, 0]
    assert _kernels.call_node("blocked_conv_transpose", [blocks, None, None], ints, [0.0, 0.0], [packed]) is not None
    for at, number in ((0, 1), (1, 2), (2, 10**6), (4, 17), (4, 36), (13, 4), (13, 1), (14, 2**40)):
        wrong_ints = [number if i == at else n for i, n in enumerate(ints)]
        if at == 13:
            wrong_ints[14] = 4 // number
        assert _kernels.call_node("blocked_conv_transpose", [blocks, None, None], wrong_ints, [0.0, 0.0], [packed]) is None
    for kind, weight in (("columns", w[:, :3].copy()), ("depthwise", w[:, :1].copy())):
        others = _kernels.PackedConv(weight, None, kind)
        assert _kernels.call_node("blocked_conv_transpose", [blocks, None, None], ints, [0.0, 0.0], [others]) is None


def test_weights_turn_back() -> None:
    for group in (1, 2, 4):
        _, w, _ = data((1, 1), (8, 3, 2, 5))
        turned = outputs_first(w, group)
        assert turned.shape == (3 * group, 8 // group, 2, 5)
        same_bits(outputs_first(turned, group), w)


def test_taps_of_a_phase_lie_together() -> None:
    assert phase_order((4,), (2,), None).tolist() == [0, 2, 1, 3]
    assert phase_order((5,), (3,), (2,)).tolist() == [0, 3, 2, 1, 4]  # places 0, 2, 4, 6, 8
    assert phase_order((2, 3), (1, 2), (1, 1)).tolist() == [0, 2, 3, 5, 1, 4]
    assert phase_order((3, 2), (2, 1), None).tolist() == [0, 1, 4, 5, 2, 3]


def test_the_definition_is_that_of_a_transposed_convolution() -> None:
    x, w, b = data((2, 20, 5, 4), (20, 18, 3, 4))
    attributes: dict[str, Any] = {"strides": (3, 2), "dilations": (2, 1), "pads": (1, 0, 2, 1)}
    (made,) = run_definition(
        "BlockedConvTranspose", [in_blocks(x), by_phase(w, **attributes), b], domain="qruntime", version=1, **attributes
    )
    np.testing.assert_allclose(out_of_blocks(made, 18), definition(x, w, b, **attributes), rtol=0, atol=1e-5)
