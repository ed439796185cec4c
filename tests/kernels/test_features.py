"""Preparation of features: the bits of the definitions, whatever the element type, the shape and the number of threads."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernels.native_call import check, run_definition, run_native, same_bits

ML = {"domain": "ai.onnx.ml", "version": 4}
TYPES = (np.float32, np.float64, np.int32, np.int64)
SHAPES = ((3,), (0, 3), (1, 3), (5, 3), (2, 4, 3), (40000, 3))


def numbers(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    x = np.random.default_rng(sum(shape)).integers(-4, 5, shape)
    if np.dtype(dtype).kind == "i":
        return x.astype(dtype)
    y = (x / 2).astype(dtype)
    y[..., :1][y[..., :1] == 0.5] = np.nan
    y[..., 1:2][y[..., 1:2] == 0.5] = np.inf
    return y


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_elementwise(shape: tuple[int, ...], dtype: type) -> None:
    x = numbers(shape, dtype)
    for threads in (1, 3):
        options = {**ML, "num_threads": threads}
        check("Scaler", [x], offset=(0.1, -2.0, 3.0), scale=(3.0, 0.7, -1.0), **options)
        check("Scaler", [x], offset=(0.1,), scale=(3.0, 0.7, -1.0), **options)
        check("Scaler", [x], **options)
        check("Binarizer", [x], threshold=0.5, **options)
        each = {"imputed_value_floats": (0.1, 0.2, 0.3), "imputed_value_int64s": (7, 8, 9)}
        check("Imputer", [x], replaced_value_float=float("nan"), **each, **options)
        one = {"imputed_value_floats": (0.1,), "imputed_value_int64s": (7,)}
        check("Imputer", [x], replaced_value_float=0.5, replaced_value_int64=2, **one, **options)
        check("ArrayFeatureExtractor", [x, np.array([[2, 0, 2, 1]])], **options)
        if dtype in (np.int32, np.int64):
            check("OneHotEncoder", [x], cats_int64s=(2, -1, 2, 100), **options)
            check("LabelEncoder", [x], keys_int64s=(3, -2, 1, 3), values_floats=(0.5, 1.5, 2.5, 3.5), **options)
        else:
            check("LabelEncoder", [x], keys_floats=(float("nan"), -2.0, 0.0), values_int64s=(5, 6, 7), **options)
            check("LabelEncoder", [x], keys_floats=(-2.0, 0.0), values_int64s=(6, 7), default_int64=9, **options)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("features", [1, 3, 15, 16, 17, 100])
@pytest.mark.parametrize("norm", ["MAX", "L1", "L2"])
def test_normalizer(norm: str, features: int, dtype: type) -> None:
    x = np.random.default_rng(features).integers(-100, 100, (37, features)).astype(dtype)
    x[3] = 0
    native = run_native("Normalizer", [x], norm=norm, **ML)
    assert native is not None
    (want,) = run_definition("Normalizer", [x], norm=norm, **ML)
    # A sum of `features` terms of one sign in another order, its root and a quotient.
    np.testing.assert_allclose(native[0], want, rtol=(features + 2) * 2.0**-23)
    rows = [run_native("Normalizer", [row], norm=norm, num_threads=2, **ML) for row in x]
    same_bits(native[0], np.stack([row[0] for row in rows if row is not None]))


def test_normalizer_keeps_nan() -> None:
    x = np.array([[1, np.nan, 2], [3, 4, 5]], np.float32)
    for norm in ("MAX", "L1", "L2"):
        native = run_native("Normalizer", [x], norm=norm, **ML)
        assert native is not None
        assert np.isnan(native[0][0]).all()
        assert np.isfinite(native[0][1]).all()


def test_feature_vectorizer() -> None:
    parts = [numbers((6, 3), np.float32), numbers((6,), np.int64), numbers((6, 2), np.float64)]
    check("FeatureVectorizer", parts, **ML)
    check("FeatureVectorizer", parts, inputdimensions=(2, 3, 2), **ML)
    assert run_native("FeatureVectorizer", [parts[0], parts[1][:4]], **ML) is None
    assert run_native("FeatureVectorizer", parts, inputdimensions=(2, -3, 2), **ML) is None


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [
        ("Scaler", [np.zeros((2, 3), np.float32)], {"offset": (1.0, 2.0)}),
        ("Scaler", [np.zeros((), np.float32)], {}),
        ("Scaler", [np.zeros((2, 3), np.float16)], {}),
        ("Imputer", [np.zeros((2, 3), np.float32)], {"imputed_value_floats": (1.0, 2.0)}),
        ("Imputer", [np.zeros((2, 3), np.int64)], {"imputed_value_floats": (1.0,)}),
        ("Normalizer", [np.zeros((2, 3), np.float32)], {"norm": "L3"}),
        ("ArrayFeatureExtractor", [np.zeros((2, 3), np.float32), np.array([3])], {}),
        ("ArrayFeatureExtractor", [np.zeros((2, 3), np.float32), np.array([-1])], {}),
        ("OneHotEncoder", [np.zeros((2, 3), np.int64)], {"cats_int64s": (1, 2), "zeros": 0}),
        ("LabelEncoder", [np.zeros((2, 3), np.float32)], {"keys_int64s": (1, 2), "values_int64s": (1, 2)}),
    ],
)
def test_declines(op: str, inputs: list[np.ndarray], attributes: dict[str, object]) -> None:
    assert run_native(op, inputs, **ML, **attributes) is None


def test_one_hot_of_strings_and_labels_of_numbers() -> None:
    x = np.array([["b", "a"], ["c", "b"]], object)
    (y,) = run_definition("OneHotEncoder", [x], cats_strings=("a", "b", "a"), **ML)
    np.testing.assert_array_equal(y, (x[..., None] == np.array(["a", "b", "a"], object)).astype(np.float32))
    (names,) = run_definition("LabelEncoder", [np.array([[2, 0, 1]])], keys_int64s=(0, 2), values_strings=("no", "yes"), **ML)
    assert names.tolist() == [["yes", "no", "_Unused"]]
    (back,) = run_definition("LabelEncoder", [names], keys_strings=("no", "yes"), values_int64s=(0, 2), **ML)
    assert back.tolist() == [[2, 0, -1]]
