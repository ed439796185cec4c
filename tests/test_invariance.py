"""What must not change a result: batch neighbours, padding, threads, and, for integers, the instruction set."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import qruntime
from qruntime import _kernels
from tests.small_models import assert_same_bits, encoder_bytes, linear_bytes, random, recurrent_bytes

SETTINGS = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

MODES = {
    "float": lambda model: model,
    "int8": lambda model: model.quantize_dynamic(),
    "int8 per channel": lambda model: model.quantize_dynamic(per_channel=True),
}


def variants(data: bytes, threads: int = 1) -> dict[str, qruntime.Model]:
    return {mode: change(qruntime.load(data, threads=threads)) for mode, change in MODES.items()}


LINEAR = {(k, n): variants(linear_bytes(k, n)) for k, n in ((1, 1), (3, 7), (16, 8), (65, 33), (384, 130))}
ENCODER = variants(encoder_bytes())
RECURRENT = {op: variants(recurrent_bytes(op, 9, 12, directions=2)) for op in ("LSTM", "GRU", "RNN")}


@st.composite
def batches(draw: st.DrawFn, k: int) -> np.ndarray:
    """float32 [rows, k] whose rows differ wildly in size, with rows of zeros, constants and outliers."""
    rows = draw(st.integers(1, 20))
    x = random(rows, k, seed=draw(st.integers(0, 2**31)))
    for i in range(rows):
        kind = draw(st.sampled_from(["plain", "plain", "zero", "constant", "tiny", "huge", "outlier", "negative"]))
        if kind in ("zero", "constant"):
            x[i] = 0 if kind == "zero" else 3.25
        elif kind in ("tiny", "huge"):
            x[i] *= np.float32(1e-30 if kind == "tiny" else 1e18)
        elif kind == "outlier":
            x[i, 0] = 1e6
        elif kind == "negative":
            x[i] = -np.abs(x[i])
    return x


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", LINEAR, ids=str)
@SETTINGS
@given(data=st.data())
def test_a_row_of_a_linear_layer_is_alone(mode: str, size: tuple[int, int], data: st.DataObject):
    model = LINEAR[size][mode]
    x = data.draw(batches(size[0]))
    together = model(x)
    for i in range(len(x)):
        assert_same_bits(together[i : i + 1], model(x[i : i + 1]))
    order = np.random.default_rng(0).permutation(len(x))
    assert_same_bits(together[order], model(x[order]))


@pytest.mark.parametrize("mode", MODES)
@SETTINGS
@given(rows=st.integers(1, 6), time=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_a_sentence_of_an_encoder_is_alone(mode: str, rows: int, time: int, seed: int):
    model = ENCODER[mode]
    x = random(rows, time, 32, seed=seed)
    together = model(x)
    for i in range(rows):
        assert_same_bits(together[i : i + 1], model(x[i : i + 1]))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("op", RECURRENT)
@SETTINGS
@given(rows=st.integers(1, 9), time=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_a_sequence_of_a_recurrent_layer_is_alone(mode: str, op: str, rows: int, time: int, seed: int):
    model = RECURRENT[op][mode]
    x = random(time, rows, 9, seed=seed)
    y, h = model(x)
    for i in range(rows):
        y_alone, h_alone = model(x[:, i : i + 1])
        assert_same_bits(y[:, :, i : i + 1], y_alone)
        assert_same_bits(h[:, i : i + 1], h_alone)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", [0.0, 1e30, np.nan, np.inf])
def test_padding_rows_do_not_matter(mode: str, padding: float):
    model = LINEAR[384, 130][mode]
    x = random(5, 384)
    padded = np.full((37, 384), padding, np.float32)
    padded[16:21] = x
    assert_same_bits(model(padded)[16:21], model(x))


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("mode", MODES)
def test_threads_do_not_matter(mode: str, threads: int):
    for data, x in (
        (linear_bytes(384, 130), random(129, 384)),
        (linear_bytes(384, 1000), random(1, 384)),
        (encoder_bytes(64), random(6, 33, 64)),
        (recurrent_bytes("LSTM", 40, 64, directions=2), random(7, 5, 40)),
        (recurrent_bytes("GRU", 40, 64), random(7, 5, 40)),
    ):
        one = MODES[mode](qruntime.load(data, threads=1))(x)
        many = MODES[mode](qruntime.load(data, threads=threads))(x)
        for a, b in zip(one if isinstance(one, tuple) else [one], many if isinstance(many, tuple) else [many], strict=True):
            assert_same_bits(a, b)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", LINEAR, ids=str)
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_stays_in_its_row(mode: str, size: tuple[int, int], odd: float):
    model = LINEAR[size][mode]
    x = random(9, size[0])
    expected = model(x)
    spoiled = x.copy()
    spoiled[4, size[0] // 2] = odd
    y = model(spoiled)
    others = [i for i in range(9) if i != 4]
    assert_same_bits(y[others], expected[others])
    if np.isnan(odd):
        assert np.isnan(y[4]).all()


@pytest.mark.parametrize("mode", ["int8", "int8 per channel"])
def test_a_range_wider_than_float32_does_not_overflow(mode: str):
    model = LINEAR[16, 8][mode]
    x = np.zeros((3, 16), np.float32)
    x[0, :2] = 3e38, -3e38
    x[1] = 1
    y = model(x)
    assert not np.isnan(y).any()
    assert_same_bits(y[1:], model(x[1:]))


@pytest.mark.parametrize("mode", ["int8", "int8 per channel"])
def test_a_row_of_zeros_gives_the_bias(mode: str):
    """Exactly: zero is a code, whatever the range."""
    model = LINEAR[16, 8][mode]
    bias = np.maximum(random(8, seed=1), 0)
    for x in (np.zeros((2, 16), np.float32), -np.zeros((2, 16), np.float32)):
        assert_same_bits(model(x), np.broadcast_to(bias, (2, 8)).copy())


@pytest.mark.parametrize("mode", ["int8", "int8 per channel"])
def test_zeros_appended_to_a_row_change_nothing(mode: str):
    """The range includes zero, so columns of zeros neither move the scale nor add to the sum."""
    w = np.abs(random(24, 8))
    w[16:] = 0
    short = MODES[mode](qruntime.load(linear_bytes(weight=w[:16])))
    long = MODES[mode](qruntime.load(linear_bytes(weight=w)))
    x = random(5, 24)
    x[:, 16:] = 0
    assert_same_bits(short(x[:, :16]), long(x))


def test_sums_beyond_int32_do_not_overflow():
    """K ≥ 66,312 terms of 255 · 127 exceed 2³¹."""
    k = 70_000
    w = np.full((k, 2), 127, np.float32)
    w[:, 1] = -127
    x = np.full((2, k), 255, np.float32)
    x[1, ::2] = 0
    model = qruntime.load(linear_bytes(bias=False, weight=w)).quantize_dynamic()
    y = model(x)
    expected = np.maximum(x.astype(np.float64) @ w.astype(np.float64), 0)
    np.testing.assert_allclose(y, expected, rtol=1e-5)


@pytest.fixture
def restored_isa() -> Iterator[None]:
    name = _kernels.isa()
    yield
    _kernels.set_isa(name)


@pytest.mark.usefixtures("restored_isa")
@SETTINGS
@given(
    k=st.sampled_from([1, 2, 3, 4, 5, 15, 16, 17, 64, 100, 257]),
    n=st.sampled_from([1, 2, 7, 8, 9, 16, 31, 32, 33, 48, 49, 100]),
    rows=st.sampled_from([0, 1, 2, 3, 4, 5, 8, 13]),
    extreme=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_integers_are_the_same_on_every_instruction_set(k: int, n: int, rows: int, extreme: bool, seed: int):
    """Scales of a power of two make the float epilogue exact: what differs would be an integer."""
    rng = np.random.default_rng(seed)
    w = rng.choice([-127, 127], (k, n)) if extreme else rng.integers(-127, 128, (k, n))
    w[0, 0] = 127
    x = rng.choice([0, 255], (rows, k)) if extreme else rng.integers(0, 256, (rows, k))
    x[:, 0] = 255
    expected = np.maximum(x.astype(np.int64) @ w.astype(np.int64), 0)
    data = linear_bytes(bias=False, weight=w.astype(np.float32))
    for name in _kernels.available_isas():
        _kernels.set_isa(name)
        y = qruntime.load(data).quantize_dynamic()(x.astype(np.float32))
        np.testing.assert_array_equal(y, expected.astype(np.float32), err_msg=name)


@pytest.mark.usefixtures("restored_isa")
def test_float_models_agree_across_instruction_sets():
    """Within the rounding of sums of K terms: sums in other orders differ, definitions do not."""
    for data, x in ((encoder_bytes(), random(3, 7, 32)), (recurrent_bytes("LSTM", 9, 12), random(6, 4, 9))):
        results = []
        for name in _kernels.available_isas():
            _kernels.set_isa(name)
            y = qruntime.load(data)(x)
            results.append(y[0] if isinstance(y, tuple) else y)
        for y in results[1:]:
            np.testing.assert_allclose(y, results[0], rtol=0, atol=64 * np.finfo(np.float32).eps * np.abs(results[0]).max())
