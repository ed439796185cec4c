"""Special values, and inputs that must be refused before anything is allocated."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import qruntime.ops  # noqa: F401
from qruntime.ops.registry import find

F32 = np.float32
NAN, INF = math.nan, math.inf


def call(op_type: str, *inputs: Any, version: int = 28, **attributes: Any) -> Any:
    spec = find("", op_type, version)
    assert spec is not None
    return spec(*inputs, **attributes)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def f32(*values: float) -> np.ndarray:
    return np.array(values, F32)


MATRIX = np.zeros((2, 3), F32)
HUGE = 2**62

BAD_CALLS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any], str]] = {
    "reshape to two unknowns": ("Reshape", (MATRIX, ints(-1, -1)), {}, "one -1"),
    "reshape to another size": ("Reshape", (MATRIX, ints(4, 2)), {}, "6 elements"),
    "reshape that does not divide": ("Reshape", (MATRIX, ints(-1, 4)), {}, "6 elements"),
    "reshape below -1": ("Reshape", (MATRIX, ints(-2, 3)), {}, "below"),
    "reshape copying too far": ("Reshape", (MATRIX, ints(2, 3, 0)), {}, "copies dimension 2"),
    "reshape allowzero with -1": ("Reshape", (MATRIX, ints(0, -1)), {"allowzero": 1}, "both 0 and -1"),
    "gather beyond": ("Gather", (MATRIX, ints(2)), {}, r"\[-2, 1\]"),
    "gather with floats": ("Gather", (MATRIX, f32(0)), {}, "integers"),
    "gather elements below": ("GatherElements", (MATRIX, ints(-3).reshape(1, 1)), {}, r"\[-2, 1\]"),
    "gather nd too deep": ("GatherND", (MATRIX, ints(0, 0, 0)), {}, "coordinates"),
    "scatter nd of other shape": ("ScatterND", (MATRIX, ints(0).reshape(1, 1), f32(1)), {}, r"\(1, 3\)"),
    "scatter beyond": ("ScatterND", (MATRIX, ints(2, 0).reshape(1, 2), f32(1)), {}, r"\[-2, 1\]"),
    "slice step 0": ("Slice", (MATRIX, ints(0), ints(1), ints(0), ints(0)), {}, "must not be 0"),
    "slice axis twice": ("Slice", (MATRIX, ints(0, 0), ints(1, 1), ints(0, -2)), {}, "twice"),
    "slice lengths": ("Slice", (MATRIX, ints(0, 0), ints(1)), {}, "differ in length"),
    "top k beyond": ("TopK", (MATRIX, ints(4)), {}, r"\[0, 3\]"),
    "top k negative": ("TopK", (MATRIX, ints(-1)), {}, r"\[0, 3\]"),
    "split sizes": ("Split", (MATRIX, ints(1, 2)), {"num_outputs": 2}, "sum to 2"),
    "split negative": ("Split", (MATRIX, ints(3, -1)), {"num_outputs": 2}, "sum to 2"),
    "split count": ("Split", (MATRIX, ints(2)), {"num_outputs": 2}, "2 outputs"),
    "pad cuts too much": ("Pad", (MATRIX, ints(-2, 0, -1, 0)), {}, "more than there is"),
    "pad length": ("Pad", (MATRIX, ints(1, 1)), {}, "need 4 pads"),
    "pad huge": ("Pad", (MATRIX, ints(HUGE, 0, 0, 0)), {}, "elements"),
    "pad of nothing": ("Pad", (np.zeros(0, F32), ints(1, 1)), {"mode": "edge"}, "to repeat"),
    "range delta 0": ("Range", (np.array(0), np.array(1), np.array(0)), {}, "delta"),
    "range nan": ("Range", (F32(0), F32(NAN), F32(1)), {}, "finite"),
    "range huge": ("Range", (np.array(0), np.array(HUGE), np.array(1)), {}, "elements"),
    "expand incompatible": ("Expand", (MATRIX, ints(2, 2)), {}, "cannot be expanded"),
    "expand huge": ("Expand", (np.zeros((1, 1), F32), ints(HUGE, HUGE)), {}, "elements"),
    "expand negative": ("Expand", (np.zeros((1, 1), F32), ints(-1, 2)), {}, "negative"),
    "tile huge": ("Tile", (MATRIX, ints(HUGE, 1)), {}, "elements"),
    "tile negative": ("Tile", (MATRIX, ints(-1, 1)), {}, "negative"),
    "constant of shape huge": ("ConstantOfShape", (ints(HUGE, 4),), {}, "elements"),
    "constant of shape negative": ("ConstantOfShape", (ints(-1),), {}, "negative"),
    "one hot huge": ("OneHot", (ints(0), np.array(HUGE), f32(0, 1)), {}, "elements"),
    "concat mismatch": ("Concat", (MATRIX, np.zeros((3, 2), F32)), {"axis": 0}, "agree"),
    "concat ranks": ("Concat", (MATRIX, f32(1)), {"axis": 0}, "agree"),
    "concat types": ("Concat", (MATRIX, np.zeros((2, 3))), {"axis": 0}, "element type"),
    "add types": ("Add", (MATRIX, np.zeros((2, 3))), {}, "element type"),
    "transpose": ("Transpose", (MATRIX,), {"perm": (0, 0)}, "permutation"),
    "squeeze of 2": ("Squeeze", (MATRIX, ints(0)), {}, "cannot be squeezed"),
    "unsqueeze twice": ("Unsqueeze", (MATRIX, ints(0, 0)), {}, "twice"),
    "reduce axis": ("ReduceSum", (MATRIX, ints(2)), {}, r"\[-2, 1\]"),
    "arg max of nothing": ("ArgMax", (np.zeros((0, 2), F32),), {}, "empty"),
    "depth to space": ("DepthToSpace", (np.zeros((1, 3, 1, 1), F32),), {"blocksize": 2}, "divide"),
    "reverse sequence length": ("ReverseSequence", (MATRIX, ints(0, 0, 3)), {}, "lengths"),
    "sequence at": ("SequenceAt", ([f32(1)], np.array(1)), {}, "position"),
    "optional get": ("OptionalGetElement", (None,), {}, "empty"),
    "cast of text": ("Cast", (np.array(["x"], object),), {"to": 1}, "cannot read"),
    "bit cast width": ("BitCast", (MATRIX,), {"to": 11}, "as many bits"),
    "gemm": ("Gemm", (MATRIX, MATRIX), {}, "share K"),
    "gemm bias": ("Gemm", (MATRIX, MATRIX.T, np.zeros((3, 2, 2), F32)), {}, "broadcast"),
    "tensor scatter": ("TensorScatter", (np.zeros((1, 2, 1), F32), np.zeros((1, 1, 1), F32), ints(2)), {}, "fit"),
    "dft of many": ("DFT", (np.zeros((1, 4, 1), F32), np.array(HUGE)), {}, "elements"),
    "window": ("HannWindow", (np.array(HUGE),), {}, "elements"),
    "einsum": ("Einsum", (MATRIX,), {"equation": "ab;"}, "equation"),
    "regex": ("RegexFullMatch", (np.array(["a"], object),), {"pattern": "("}, "regular expression"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_input_is_refused(name: str) -> None:
    op_type, inputs, attributes, text = BAD_CALLS[name]
    with pytest.raises(ValueError, match=text):
        call(op_type, *inputs, **attributes)


def test_nan_goes_through_comparisons_of_size() -> None:
    x = f32(NAN, 1, INF, -INF)
    for op_type, expected in (("Relu", f32(NAN, 1, INF, 0)), ("Max", f32(NAN, 1, INF, 0))):
        inputs = (x, f32(0)) if op_type == "Max" else (x,)
        np.testing.assert_array_equal(call(op_type, *inputs), expected)
    np.testing.assert_array_equal(call("Clip", x, F32(-2), F32(3)), f32(NAN, 1, 3, -2))
    np.testing.assert_array_equal(call("Clip", f32(0), F32(3), F32(1)), f32(1))
    assert math.isnan(call("Min", f32(1), f32(NAN))[0])
    assert math.isnan(call("ReduceMax", f32(1, NAN, 2)).item())


def test_softmax_keeps_bad_rows_apart() -> None:
    x = np.array([[NAN, 0, 1], [1, 2, 3], [3e38, -3e38, 3e38]], F32)
    y = call("Softmax", x)
    assert np.isnan(y[0]).all()
    np.testing.assert_array_equal(y[1], call("Softmax", x[1:2])[0])
    np.testing.assert_array_equal(y[2], f32(0.5, 0, 0.5))


def test_softmax_before_13_is_over_all_trailing_dimensions() -> None:
    x = np.arange(12, dtype=F32).reshape(2, 3, 2)
    y = call("Softmax", x, version=11)
    np.testing.assert_allclose(y.sum(axis=(1, 2)), 1, rtol=1e-6)
    np.testing.assert_array_equal(y, call("Softmax", x.reshape(2, 6), axis=1).reshape(2, 3, 2))
    hard = call("Hardmax", x, version=11)
    assert hard.sum() == 2


def test_reduction_of_nothing() -> None:
    x = np.zeros((2, 0), F32)
    for op_type, value in (
        ("ReduceSum", 0),
        ("ReduceProd", 1),
        ("ReduceMax", -INF),
        ("ReduceMin", INF),
        ("ReduceMean", NAN),
        ("ReduceLogSumExp", -INF),
    ):
        y = call(op_type, x, ints(1), keepdims=0)
        np.testing.assert_array_equal(y, f32(value, value))
        assert y.dtype == F32
    assert call("ReduceMax", np.zeros((2, 0), np.int8), ints(1)).tolist() == [[-128], [-128]]


def test_reduction_over_no_axes() -> None:
    x = f32(-2, 3)
    np.testing.assert_array_equal(call("ReduceSumSquare", x, ints(), noop_with_empty_axes=1), f32(4, 9))
    np.testing.assert_array_equal(call("ReduceL1", x, None, noop_with_empty_axes=1), f32(2, 3))
    assert call("ReduceSum", x, ints()).tolist() == [1]


def test_sums_are_rounded_once() -> None:
    x = np.full(10_000_000, 0.1, F32)
    assert call("ReduceSum", x, keepdims=0).item() == F32(float(F32(0.1)) * 10_000_000)
    assert call("ReduceMean", np.array([7, 8], np.int32), keepdims=0).item() == 7
    assert call("ReduceSum", np.array([2**31 - 1, 1], np.int32)).tolist() == [-(2**31)]


def test_log_sum_exp_of_extremes() -> None:
    for values, expected in (((1e30, 1e30), 1e30), ((-INF, -INF), -INF), ((INF, 1), INF), ((-1e30, 0), 0)):
        assert call("ReduceLogSumExp", f32(*values), keepdims=0).item() == F32(expected)


def test_erf_is_accurate() -> None:
    x = np.concatenate([np.linspace(-7, 7, 4001), 10.0 ** np.linspace(-30, 0, 101)])
    exact = np.array([math.erf(v) for v in x])
    np.testing.assert_allclose(call("Erf", x), exact, rtol=2e-15)
    single = x.astype(F32)
    exact = np.array([math.erf(float(v)) for v in single])
    np.testing.assert_array_equal(call("Erf", single), exact.astype(F32))
    np.testing.assert_array_equal(call("Erf", f32(NAN, INF, -INF)), f32(NAN, 1, -1))
    assert np.signbit(call("Erf", f32(-0.0)))[0]


def test_gelu_keeps_its_tail() -> None:
    x = np.linspace(-12, 12, 2001).astype(F32)
    exact = np.array([0.5 * v * math.erfc(-v / math.sqrt(2)) for v in x.astype(float)])
    np.testing.assert_allclose(call("Gelu", x), exact, rtol=2e-7, atol=1e-44)
    np.testing.assert_array_equal(call("Gelu", f32(INF, -INF, NAN)), f32(INF, 0, NAN))


def test_activations_do_not_overflow() -> None:
    x = f32(-1e30, -200, 0, 200, 1e30)
    np.testing.assert_array_equal(call("Sigmoid", x), f32(0, 0, 0.5, 1, 1))
    np.testing.assert_array_equal(call("Softplus", x), f32(0, 0, math.log(2), 200, 1e30))
    np.testing.assert_array_equal(call("Mish", f32(1e30, -1e30)), f32(1e30, 0))
    np.testing.assert_array_equal(call("Elu", x[[0, 4]]), f32(-1, 1e30))
    np.testing.assert_array_equal(call("Celu", x[[0, 4]]), f32(-1, 1e30))


def test_integer_powers() -> None:
    x = np.array([-3, 0, 2], np.int64)
    assert call("Pow", x, np.array([3, 0, 40], np.int32)).tolist() == [-27, 1, 2**40]
    assert call("Pow", x[2:], np.array([-1], np.int64)).tolist() == [0]
    assert call("Pow", x[2:], f32(0.5)).tolist() == [1]
    y = call("Pow", f32(2), np.array([10], np.int64))
    assert (y.dtype, y.tolist()) == (np.dtype(F32), [1024.0])


def test_division_by_zero() -> None:
    assert call("Div", np.array([5, -5], np.int32), np.zeros(1, np.int32)).tolist() == [0, 0]
    np.testing.assert_array_equal(call("Div", f32(1, -1, 0), f32(0)), f32(INF, -INF, NAN))


@pytest.mark.parametrize(
    ("value", "to", "saturated", "plain"),
    [
        (1e6, 17, 448, NAN),
        (-1e6, 17, -448, NAN),
        (INF, 19, 57344, INF),
        (1e6, 20, 57344, NAN),
        (NAN, 18, NAN, NAN),
        (0.3, 17, 0.3125, 0.3125),
    ],
)
def test_float8_casts(value: float, to: int, saturated: float, plain: float) -> None:
    for dtype in (F32, np.float64, ml_dtypes.bfloat16):
        x = np.array([value]).astype(dtype)
        np.testing.assert_array_equal(call("Cast", x, to=to).astype(F32), f32(saturated))
        np.testing.assert_array_equal(call("Cast", x, to=to, saturate=0).astype(F32), f32(plain))


def test_integer_casts_keep_low_bits() -> None:
    assert call("Cast", np.array([200, -1, 70000]), to=3).tolist() == [-56, -1, 112]
    assert call("Cast", np.array([7, 8, -9, 31]), to=22).astype(int).tolist() == [7, -8, 7, -1]
    assert call("Cast", np.array([16, -1]), to=21).astype(int).tolist() == [0, 15]
    assert call("Cast", f32(2.7, -2.7), to=7).tolist() == [2, -2]
    assert call("Cast", f32(NAN, 0, -0.0, 0.1), to=9).tolist() == [True, False, False, True]


def test_text_casts() -> None:
    texts = np.array(["3.5", " -INF", "+inf", "nan", "1e-5"], object)
    np.testing.assert_array_equal(call("Cast", texts, to=1), f32(3.5, -INF, INF, NAN, 1e-5))
    assert call("Cast", np.array(["9007199254740993", "-7.9"], object), to=7).tolist() == [2**53 + 1, -7]
    numbers = f32(0.1, 100, -1234567, 1e20, 3e-6, -0.0, INF, NAN)
    assert call("Cast", numbers, to=8).tolist() == ["0.1", "100", "-1234567", "1e+20", "3e-06", "-0", "INF", "NaN"]
    assert call("Cast", np.array([1 / 3]), to=8).tolist() == ["0.3333333333333333"]
    assert call("Cast", np.array([1.5]).astype(ml_dtypes.bfloat16), to=8).tolist() == ["1.5"]
    assert call("Cast", np.array([True]), to=8).tolist() == ["1"]
    assert call("Cast", np.array(7), to=8).tolist() == "7"
    with pytest.raises(ValueError, match="does not fit"):
        call("Cast", np.array(["99999999999"], object), to=6)


def test_reshape_rules() -> None:
    x = np.zeros((2, 0, 3), F32)
    assert call("Reshape", x, ints(0, -1), allowzero=0).shape == (2, 0)
    assert call("Reshape", x, ints(0, 7), allowzero=1).shape == (0, 7)
    assert call("Reshape", np.array(5), ints(-1)).shape == (1,)
    assert call("Reshape", np.array([5]), np.zeros(0, np.int64)).shape == ()


def test_one_hot_before_11_has_no_negative_classes() -> None:
    assert call("OneHot", ints(-1, 1), np.array(2), f32(0, 1)).tolist() == [[0, 1], [0, 1]]
    assert call("OneHot", ints(-1, 1), np.array(2), f32(0, 1), version=9).tolist() == [[0, 0], [0, 1]]


def test_unique_in_order_of_appearance() -> None:
    values, first, inverse, counts = call("Unique", np.array(["b", "a", "b"], object), sorted=0)
    assert (values.tolist(), first.tolist(), inverse.tolist(), counts.tolist()) == (
        ["b", "a"],
        [0, 1],
        [0, 1, 0],
        [2, 1],
    )


def test_legacy_broadcast() -> None:
    a, b = np.zeros((2, 3, 4), F32), f32(1, 2, 3)
    y = call("Add", a, b, axis=1, broadcast=1, version=6)
    assert y[0, :, 0].tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="broadcast"):
        call("Add", a, b, version=6)


def test_matrix_products_of_integers_wrap_at_32_bits() -> None:
    a, b = np.full((1, 70_000), 255, np.uint8), np.full((70_000, 1), 255, np.uint8)
    assert call("MatMulInteger", a, b).item() == (255 * 255 * 70_000 + 2**31) % 2**32 - 2**31
    rows = call("MatMulInteger", np.array([[1, 2], [3, 4]], np.uint8), np.eye(2, dtype=np.int8), np.array([1, 3], np.uint8))
    assert rows.tolist() == [[0, 1], [0, 1]]


def test_random_operators_follow_their_seed() -> None:
    a, b, c = (call("RandomNormal", shape=(1000,), mean=5.0, scale=0.5, seed=seed) for seed in (1.0, 1.0, 2.0))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)
    assert abs(float(a.mean()) - 5) < 0.1
    assert abs(float(a.std()) - 0.5) < 0.1
    u = call("RandomUniformLike", np.zeros((50, 20), np.float16), low=-1.0, high=3.0)
    assert (u.dtype, u.shape) == (np.float16, (50, 20))
    assert -1 <= u.min() < -0.5
    assert 2.5 < u.max() <= 3
    drawn = call("Multinomial", np.log(np.array([[0.0001, 0.8, 0.1999]], F32)), sample_size=2000, seed=3.0)
    assert (drawn.dtype, drawn.shape) == (np.int32, (1, 2000))
    share = np.bincount(drawn[0], minlength=3) / 2000
    np.testing.assert_allclose(share, [0.0001, 0.8, 0.1999], atol=0.05)


def test_sequences_are_not_changed_in_place() -> None:
    sequence = [f32(1), f32(2)]
    assert len(call("SequenceInsert", sequence, f32(3), np.array(-1))) == 3
    assert len(call("SequenceErase", sequence)) == 1
    assert len(sequence) == 2
    mapped = call("SequenceMap", sequence, f32(10), body=lambda x, y: (x + y, x), num_outputs=2)
    assert [x.tolist() for x in mapped[0]] == [[11], [12]]
    joined = call("ConcatFromSequence", sequence, axis=-1, new_axis=1)
    assert joined.tolist() == [[1, 2]]


def test_tfidf_weights_follow_the_gram_not_the_column() -> None:
    y = call(
        "TfIdfVectorizer",
        np.array([[1, 1, 2], [3, 2, 2]]),
        max_gram_length=1,
        min_gram_length=1,
        max_skip_count=0,
        mode="TFIDF",
        ngram_counts=(0,),
        ngram_indexes=(1, 0),
        pool_int64s=(1, 2),
        weights=(10.0, 100.0),
    )
    assert y.tolist() == [[100, 20], [200, 0]]
