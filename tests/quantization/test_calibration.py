"""What calibration sees: the rows that weights multiply, and statistics that depend on nothing but these."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import qruntime
from qruntime.errors import QuantizationError
from qruntime.ir import clone
from qruntime.quantization.calibration import Calibration
from qruntime.quantization.layers import layer_of
from qruntime.quantization.observing import SAMPLE_ROWS, statistics_of
from qruntime.quantization.statistics import KINDS, Statistics, exact_gram, output_error
from tests.small_models import assert_same_bits, model_bytes, random

FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
RNG = np.random.default_rng(0)
ROWS = (RNG.standard_normal((3000, 24)) * np.exp(2 * RNG.standard_normal(24))).astype(np.float32)
ROWS[:, 3] = 0


def assert_equal(one: Statistics, other: Statistics) -> None:
    assert one.rows == other.rows
    for name in ("low", "high", "mean_abs", "sigma", "sample"):
        assert_same_bits(getattr(one, name), getattr(other, name))


def test_statistics_are_what_they_say():
    seen = statistics_of([ROWS], KINDS, "x")
    wide = ROWS.astype(np.float64)
    assert_same_bits(seen.low, ROWS.min(axis=0))
    assert_same_bits(seen.absmax, np.abs(ROWS).max(axis=0))
    np.testing.assert_allclose(seen.mean_abs, np.abs(wide).mean(axis=0), rtol=1e-5)
    step = np.abs(wide).mean(axis=0) * 2.0**-6
    around = np.abs(wide).sum(axis=0)
    bound = np.outer(around, step) + np.outer(step, around) + len(ROWS) * np.outer(step, step)
    exact = wide.T @ wide
    assert (np.abs(seen.sigma - exact) <= bound).all()
    size = np.sqrt(exact.diagonal())
    assert (np.abs(seen.sigma - exact) <= 1e-4 * np.outer(size, size)).all()  # far less: rounding errs to both sides
    assert seen.sample.shape == (SAMPLE_ROWS, 24)
    assert {row.tobytes() for row in seen.sample} <= {row.tobytes() for row in ROWS}
    assert statistics_of([ROWS], (), "x").sigma is None


@pytest.mark.parametrize("size", [1, 7, 500, 2999])
def test_statistics_do_not_depend_on_batches_or_their_order(size: int):
    whole = statistics_of([ROWS], KINDS, "x")
    cut = [ROWS[i : i + size] for i in range(0, len(ROWS), size)]
    assert_equal(statistics_of(cut, KINDS, "x"), whole)
    assert_equal(statistics_of([ROWS[:0], *cut[::-1]], KINDS, "x"), whole)
    assert_equal(statistics_of([ROWS[RNG.permutation(len(ROWS))]], KINDS, "x"), whole)


def test_a_gram_is_exact_for_extreme_channels():
    rows = np.stack([np.full(5, 3e38), np.full(5, 1e-38), np.zeros(5), np.arange(5)], axis=1).astype(np.float32)
    gram = exact_gram([rows], rows.min(axis=0), rows.max(axis=0))
    wide = rows.astype(np.float64)
    np.testing.assert_allclose(gram[[0, 2, 3]][:, [0, 2, 3]], (wide.T @ wide)[[0, 2, 3]][:, [0, 2, 3]], rtol=1e-5)
    assert np.isfinite(gram).all()


def test_a_row_far_from_the_others_costs_them_nothing():
    far = ROWS.copy()
    far[17] *= 1e6
    others = np.delete(far, 17, axis=0)
    gram = exact_gram([far], far.min(axis=0), far.max(axis=0))
    alone = exact_gram([others], others.min(axis=0), others.max(axis=0))
    wide = far[17].astype(np.float64)
    assert (np.abs(gram - alone - np.outer(wide, wide)) <= 1e-6 * np.outer(np.abs(wide), np.abs(wide))).all()


def test_channels_that_are_almost_always_zero_keep_their_sums():
    rare = np.zeros((4000, 20), np.float32)
    rare[np.arange(0, 4000, 200), np.arange(20)] = np.arange(1, 21)
    gram = exact_gram([rare], rare.min(axis=0), rare.max(axis=0))
    np.testing.assert_allclose(gram, np.diag(np.arange(1.0, 21) ** 2), rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_placed(value: float):
    bad = ROWS[:4].copy()
    bad[2, 1] = value
    with pytest.raises(QuantizationError, match=r"data\[1\] makes NaN or infinity of 'x'"):
        statistics_of([ROWS, bad], (), "x")
    with pytest.raises(QuantizationError, match="'x' has no row in any feed"):
        statistics_of([ROWS[:0]], (), "x")


def test_errors_from_sigma_are_those_of_rows():
    seen = statistics_of([ROWS], KINDS, "x")
    weight, restored = random(5, 24), random(5, 24, seed=1)
    outputs = ROWS.astype(np.float64) @ weight.T.astype(np.float64)
    lost = ROWS.astype(np.float64) @ (weight - restored).T.astype(np.float64)
    by_sigma = replace(seen, sample=None)
    assert output_error(weight, restored, by_sigma) == pytest.approx((lost**2).sum() / (outputs**2).sum(), rel=1e-4)
    assert output_error(weight, restored, seen) == pytest.approx(output_error(weight, restored, by_sigma), rel=0.5)
    assert output_error(weight, restored, replace(by_sigma, sigma=None)) != output_error(weight, restored, seen)  # NaN
    assert output_error(weight, weight, seen) == 0


def encoder(mask: bool = False, mask_dims: tuple[object, ...] = ("b", "s")) -> qruntime.Model:
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["p"], name="a"),
        helper.make_node("MatMul", ["x", "b"], ["q"], name="b"),
        helper.make_node("Mul", ["p", "q"], ["r"]),
        helper.make_node("Reshape", ["r", "shape"], ["flat"]),
        helper.make_node("Gemm", ["flat", "c"], ["s"], name="c", transB=1),
    ]
    inputs = [("x", FLOAT, ["b", "s", 16])]
    if mask:
        inputs.append(("mask", INT64, list(mask_dims)))
        nodes += [helper.make_node("Cast", ["mask"], ["m"], to=FLOAT), helper.make_node("ReduceSum", ["m"], ["used"], keepdims=0)]
    nodes.append(helper.make_node("Add", ["s", "used"], ["y"]) if mask else helper.make_node("Identity", ["s"], ["y"]))
    weights = {"a": random(16, 8), "b": random(16, 8, seed=1), "c": random(4, 8, seed=2), "shape": np.int64([-1, 8])}
    return qruntime.load(model_bytes(nodes, inputs, [("y", FLOAT, None)], weights))


def observed(model: qruntime.Model, feeds: Any, **options: Any) -> dict[str, list[Statistics | None]]:
    graph = clone(model.graph)
    calibration = Calibration(graph, feeds, num_threads=1, **options)
    layers = [layer for node in graph.nodes if (layer := layer_of(node)) is not None]
    return {layer.node.name: group.statistics(layer, KINDS) for group in calibration.groups(layers) for layer in group.layers}


@pytest.mark.parametrize("most_bytes", [None, 0])
def test_layers_see_what_runs_compute(most_bytes: int | None):
    model = encoder()
    feeds = [{"x": random(2, 5, 16, seed=seed)} for seed in range(3)]
    seen = observed(model, feeds, calibration_bytes=most_bytes)
    x = np.concatenate([feed["x"].reshape(-1, 16) for feed in feeds])
    assert_equal(seen["a"][0], statistics_of([x], KINDS, "x"))
    assert seen["a"][0] is seen["b"][0]
    p, q = x @ random(16, 8), x @ random(16, 8, seed=1)
    np.testing.assert_allclose(seen["c"][0].high, (p * q).max(axis=0), rtol=1e-4, atol=1e-4)
    assert seen["c"][0].rows == 30


def test_statistics_are_the_same_for_a_feed_of_two_and_two_feeds():
    model = encoder()
    x = random(4, 5, 16)
    assert_equal(observed(model, {"x": x})["c"][0], observed(model, [{"x": one[None]} for one in x[::-1]])["c"][0])


def test_padding_is_left_out():
    model = encoder(mask=True)
    x, mask = random(2, 5, 16), np.int64([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    x[0, 3:] = 1000
    feeds = [{"x": x, "mask": mask}]
    assert observed(model, feeds, mask="mask")["a"][0].rows == 8
    assert observed(model, feeds, mask="mask")["a"][0].high.max() < 100
    assert observed(model, feeds)["a"][0].high.max() == 1000
    with pytest.raises(QuantizationError, match="mask='z' is no input; the inputs are: x, mask"):
        observed(model, feeds, mask="z")


def test_a_mask_that_fits_no_tensor_is_told(recwarn: pytest.WarningsRecorder):
    x = random(2, 5, 16)
    mask = np.int64([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    with pytest.warns(UserWarning, match=r"mask='mask' of shape \[2, 1, 5\] left out no padding: .*'x' begins with \[2, 5\]") as told:
        encoder(True, ("b", 1, "s")).quantize(scheme="W8A8-static", data=[{"x": x, "mask": mask[:, None]}], mask="mask")
    assert told[0].filename == __file__
    recwarn.clear()
    encoder(True).quantize(scheme="W8A8-static", data=[{"x": x, "mask": mask}], mask="mask")
    encoder(True, ("b", 1, "s")).quantize(scheme="W8A8-static", data=[{"x": x, "mask": np.ones_like(mask[:, None])}], mask="mask")
    assert not recwarn.list  # it fits, or there is no padding


def lstm(direction: str) -> qruntime.Model:
    count = 2 if direction == "bidirectional" else 1
    weights = {"w": random(count, 16, 5), "r": random(count, 16, 4, seed=1)}
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], name="rnn", hidden_size=4, direction=direction)
    return qruntime.load(model_bytes([node], [("x", FLOAT, ["t", "b", 5])], [("y", FLOAT, None)], weights))


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_recurrent_layers_see_inputs_and_states(direction: str):
    model, x = lstm(direction), random(6, 2, 5)
    seen = observed(model, {"x": x})["rnn"]
    y = model(x)
    count = y.shape[1]
    assert len(seen) == 2 * count
    for d in range(count):
        states = y[1:, d] if direction == "reverse" or d else y[:-1, d]
        rows = np.concatenate([np.zeros((2, 4), np.float32), states.reshape(-1, 4)])
        assert_same_bits(seen[d].high, x.reshape(-1, 5).max(axis=0))
        np.testing.assert_allclose(seen[count + d].high, rows.max(axis=0), rtol=1e-4, atol=1e-5)
        assert (seen[d].rows, seen[count + d].rows) == (12, 12)


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("is_constant", [False, True])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_steps_behind_the_end_of_a_sequence_are_not_seen(direction: str, is_constant: bool, layout: int):
    """What the layers see of sequences together is what they see of each by itself, without padding."""
    count, lengths = 2 if direction == "bidirectional" else 1, np.int32([3, 6, 0, 1])
    weights = {"w": random(count, 16, 5), "r": random(count, 16, 4, seed=1)}
    state, x = random(4, count, 4, seed=2), random(4, 6, 5, seed=3)  # sequences first
    x[0, 3:] = x[3, 1:] = 1000

    def run(names: list[str], feed: dict[str, np.ndarray], constants: dict[str, np.ndarray]):
        node = helper.make_node("LSTM", names, ["y"], name="rnn", hidden_size=4, direction=direction, layout=layout)
        kinds = {"x": FLOAT, "h": FLOAT, "n": TensorProto.INT32}
        infos = [(name, kinds[name], [None] * array.ndim) for name, array in feed.items()]
        return observed(qruntime.load(model_bytes([node], infos, [("y", FLOAT, None)], {**weights, **constants})), feed)["rnn"]

    def laid(array: np.ndarray) -> np.ndarray:
        return array if layout else np.ascontiguousarray(np.moveaxis(array, 0, 1))

    feed = {"x": laid(x), "h": laid(state)}
    names, told = ["x", "w", "r", "", "n", "h"], {"n": lengths}
    together = run(names, feed, told) if is_constant else run(names, feed | told, {})
    alone = [
        run(["x", "w", "r", "", "", "h"], {"x": laid(x[i : i + 1, :n]), "h": laid(state[i : i + 1])}, {})
        for i, n in enumerate(lengths)
        if n
    ]
    for one, *others in zip(together, *alone, strict=True):
        assert one.rows == lengths.sum()
        np.testing.assert_allclose(one.sigma, sum(other.sigma for other in others), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(one.high, np.max([other.high for other in others], axis=0), rtol=1e-5, atol=1e-6)


def test_convolutions_see_windows():
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv", strides=[2, 1], pads=[1, 0, 0, 1])]
    model = qruntime.load(model_bytes(nodes, [("x", FLOAT, ["n", 3, 7, 6])], [("y", FLOAT, None)], {"w": random(4, 3, 2, 3)}))
    x = random(2, 3, 7, 6)
    (seen,) = observed(model, {"x": x})["conv"]
    y = model(x)
    assert seen.rows == y.size // 4
    wide = random(4, 3, 2, 3).reshape(4, -1).astype(np.float64)
    np.testing.assert_allclose(np.einsum("nk,kl,nl->n", wide, seen.sigma, wide), (y.astype(np.float64) ** 2).sum(axis=(0, 2, 3)), rtol=1e-4)
