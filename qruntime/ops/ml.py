"""Feature preparation of the domain ai.onnx.ml, and what its models share (see linear_models and tree_ensemble)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from qruntime import _kernels
from qruntime.ir import Node
from qruntime.ops.checks import limit_shape, require_rank
from qruntime.ops.registry import Definition, NativeCall, operator

DOMAIN = "ai.onnx.ml"
POST_TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
"""In the order of the attribute of TreeEnsemble, which is that of the kernels; they have no PROBIT."""


def _probit(p: float) -> float:
    if not 0 < p < 1:
        return -math.inf if p == 0 else math.inf if p == 1 else math.nan
    return statistics.NormalDist().inv_cdf(p)


def post_transformed(scores: np.ndarray, transform: str) -> np.ndarray:
    """Scores (N, C) through NONE, LOGISTIC, SOFTMAX, SOFTMAX_ZERO or PROBIT."""
    if transform == "NONE" or scores.size == 0:
        return scores
    with np.errstate(over="ignore"):
        if transform == "LOGISTIC":
            return (1 / (1 + np.exp(-scores))).astype(scores.dtype)
        if transform == "PROBIT":
            return np.vectorize(_probit, otypes=[scores.dtype])(scores)
        if transform not in ("SOFTMAX", "SOFTMAX_ZERO"):
            raise ValueError(f"unknown post_transform {transform!r}")
        peak = scores.max(axis=1, keepdims=True)
        powers = np.exp(scores - peak)
        if transform == "SOFTMAX_ZERO":
            powers = np.where(np.abs(scores) > 1e-7, powers, scores * np.exp(-peak))
            total = powers.sum(axis=1, keepdims=True)
            return np.where(total == 0, 0.5, powers / np.where(total == 0, 1, total)).astype(scores.dtype)
    return powers / powers.sum(axis=1, keepdims=True)


def class_labels(ints: Sequence[int] | None, strings: Sequence[str] | None) -> np.ndarray:
    """The labels as an int64 or object array; ValueError unless exactly one kind is given."""
    if bool(ints) == bool(strings):
        raise ValueError("exactly one of the integer and the string class labels is needed")
    return np.asarray(ints, np.int64) if ints else np.asarray(strings, object)


def feature_rows(x: np.ndarray) -> np.ndarray:
    """X (N, F) as floats: one row when it has one axis only."""
    require_rank("X", x, 1, 2)
    x = x.reshape(1, -1) if x.ndim == 1 else x
    return x if x.dtype == np.float64 else x.astype(np.float32)


@operator("Normalizer", domain=DOMAIN)
def normalizer(x: np.ndarray, *, norm: str = "MAX") -> np.ndarray:
    """X (N, F) or (F) over the MAX, L1 or L2 norm of each row, float32; rows of norm 0 stay."""
    require_rank("X", x, 1, 2)
    values = x.astype(np.float32)
    if values.shape[-1] == 0:
        return values
    if norm == "MAX":
        size = values.max(axis=-1, keepdims=True)
    elif norm == "L1":
        size = np.abs(values).sum(axis=-1, keepdims=True)
    elif norm == "L2":
        size = np.sqrt((values * values).sum(axis=-1, keepdims=True))
    else:
        raise ValueError(f"norm must be MAX, L1 or L2, got {norm!r}")
    return values / np.where(size == 0, np.float32(1), size)


@normalizer.native
def _normalizer(node: Node) -> NativeCall | None:
    norm = node.attr("norm", "MAX")
    return NativeCall("normalizer", ints=[_kernels.NORM[norm]]) if norm in _kernels.NORM else None


def _require_per_feature(name: str, values: np.ndarray, x: np.ndarray) -> None:
    if values.size not in (1, x.shape[-1]):
        raise ValueError(f"{name} must have 1 or {x.shape[-1]} values, got {values.size}")


@operator("Scaler", domain=DOMAIN, prepared=True)
def scaler(*, offset: Sequence[float] | None = None, scale: Sequence[float] | None = None) -> Definition:
    """(X - offset) · scale over the last axis, float32."""
    offsets, scales = np.asarray(offset or (0.0,), np.float32), np.asarray(scale or (1.0,), np.float32)

    def run(x: np.ndarray) -> np.ndarray:
        require_rank("X", x, 1, -1)
        _require_per_feature("offset", offsets, x)
        _require_per_feature("scale", scales, x)
        return (x.astype(np.float32) - offsets) * scales

    return run


@scaler.native
def _scaler(node: Node) -> NativeCall:
    offset, scale = node.attr("offset") or (0.0,), node.attr("scale") or (1.0,)
    return NativeCall("scaler", packed=[_kernels.PackedArray(np.asarray(values, np.float32)) for values in (offset, scale)])


@operator("Binarizer", domain=DOMAIN)
def binarizer(x: np.ndarray, *, threshold: float = 0.0) -> np.ndarray:
    """1 where X is above the threshold, else 0, in the dtype of X."""
    return (x > np.float32(threshold)).astype(x.dtype)


@binarizer.native
def _binarizer(node: Node) -> NativeCall:
    return NativeCall("binarizer", floats=[float(np.float32(node.attr("threshold", 0.0)))])


@operator("ArrayFeatureExtractor", domain=DOMAIN, shape_inputs=())
def array_feature_extractor(x: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Columns `indices` of the last axis of X; a vector counts as one row."""
    require_rank("X", x, 1, -1)
    chosen = indices.reshape(-1).astype(np.int64)
    if chosen.size and (chosen.min() < 0 or chosen.max() >= x.shape[-1]):
        raise ValueError(f"indices must lie in [0, {x.shape[-1] - 1}], got {chosen.min()} to {chosen.max()}")
    return (x.reshape(1, -1) if x.ndim == 1 else x)[..., chosen]


@array_feature_extractor.native
def _array_feature_extractor(node: Node) -> NativeCall:
    return NativeCall("array_feature_extractor")


@operator("OneHotEncoder", domain=DOMAIN, prepared=True)
def one_hot_encoder(
    *,
    cats_int64s: Sequence[int] | None = None,
    cats_strings: Sequence[str] | None = None,
    zeros: int = 1,
) -> Definition:
    """X of any shape → float32 (*shape, categories); an unknown category is all zeros, or an error."""
    categories = class_labels(cats_int64s, cats_strings)
    distinct = list(dict.fromkeys(categories.tolist()))
    places = _Lookup(distinct, range(len(distinct)), len(distinct), np.dtype(np.int64))
    rows = np.zeros((len(distinct) + 1, len(categories)), np.float32)
    rows[[distinct.index(category) for category in categories.tolist()], np.arange(len(categories))] = 1

    def run(x: np.ndarray) -> np.ndarray:
        place = places(x if categories.dtype == object else x.astype(np.int64))
        limit_shape((*x.shape, len(categories)))
        if not zeros and (place == len(distinct)).any():
            raise ValueError(f"the input has a value that is not among the {len(categories)} categories")
        return rows[place]

    return run


@one_hot_encoder.native
def _one_hot_encoder(node: Node) -> NativeCall | None:
    categories = node.attr("cats_int64s")
    if not categories or node.attr("cats_strings"):
        return None
    return NativeCall("one_hot_encoder", ints=[node.attr("zeros", 1)], packed=[_kernels.PackedArray(np.asarray(categories, np.int64))])


@operator("Imputer", domain=DOMAIN, prepared=True)
def imputer(
    *,
    imputed_value_floats: Sequence[float] | None = None,
    imputed_value_int64s: Sequence[int] | None = None,
    replaced_value_float: float = 0.0,
    replaced_value_int64: int = 0,
) -> Definition:
    """X (N, F) with one value, NaN included, replaced per feature."""
    floats, integers = np.asarray(imputed_value_floats or ()), np.asarray(imputed_value_int64s or (), np.int64)

    def run(x: np.ndarray) -> np.ndarray:
        require_rank("X", x, 1, -1)
        is_integer = x.dtype.kind in "iu"
        imputed = integers if is_integer else floats
        if imputed.size == 0 or imputed.size not in (1, x.shape[-1]):
            raise ValueError(f"1 or {x.shape[-1]} imputed values for {x.dtype} are needed, got {imputed.tolist()}")
        old = replaced_value_int64 if is_integer else replaced_value_float
        missing = np.isnan(x) if not is_integer and math.isnan(old) else x == old
        return np.where(missing, imputed.astype(x.dtype), x)

    return run


@imputer.native
def _imputer(node: Node) -> NativeCall:
    floats, integers = node.attr("imputed_value_floats"), node.attr("imputed_value_int64s")
    arrays = (np.asarray(floats or (), np.float64), np.asarray(integers or (), np.int64))
    return NativeCall(
        "imputer",
        ints=[node.attr("replaced_value_int64", 0)],
        floats=[node.attr("replaced_value_float", 0.0)],
        packed=[_kernels.PackedArray(array) if array.size else None for array in arrays],
    )


@operator("FeatureVectorizer", domain=DOMAIN)
def feature_vectorizer(*inputs: np.ndarray, inputdimensions: Sequence[int] | None = None) -> np.ndarray:
    """Inputs (N, Fi) side by side, each cut or filled with zeros to its declared width, float32."""
    if not inputs:
        raise ValueError("at least one input is needed")
    columns = []
    for value in inputs:
        require_rank("an input", value, 1, 2)
        columns.append(value.reshape(len(value), -1).astype(np.float32))
    widths = tuple(inputdimensions) if inputdimensions else tuple(value.shape[1] for value in columns)
    if len(widths) != len(columns) or any(value.shape[0] != columns[0].shape[0] for value in columns):
        raise ValueError(f"{len(columns)} inputs of equal length and {len(widths)} widths do not fit")
    y = np.zeros(limit_shape((columns[0].shape[0], sum(widths))), np.float32)
    start = 0
    for value, width in zip(columns, widths, strict=True):
        used = min(width, value.shape[1])
        y[:, start : start + used] = value[:, :used]
        start += width
    return y


@feature_vectorizer.native
def _feature_vectorizer(node: Node) -> NativeCall:
    return NativeCall("feature_vectorizer", ints=node.attr("inputdimensions") or ())


class _Lookup:
    """From elements to the values of their keys, or to the default.

    Numbers are found by bisection among keys of their kind, as the kernel does; all else in a dictionary.
    """

    def __init__(self, keys: Iterable[Any], values: Iterable[Any], default: Any, dtype: np.dtype):
        pairs = list(zip(keys, values, strict=True))
        # NaN differs from itself, so a dictionary would never find it.
        self.table = {key: value for key, value in pairs if key == key}
        self.default, self.dtype = default, dtype
        self.nan = next((value for key, value in reversed(pairs) if key != key), default)
        found = np.asarray(list(self.table))
        self.kind = found.dtype.kind
        if self.kind in ("i", "f"):
            order = np.argsort(found)
            self.keys = found[order]
            self.values = np.empty(len(order) + 2, dtype)
            self.values[:-2] = np.asarray(list(self.table.values()), dtype)[order]
            self.values[-2:] = default, self.nan

    def __call__(self, x: np.ndarray) -> np.ndarray:
        if self.kind in ("i", "f") and x.dtype.kind == self.kind and len(self.keys):
            at = np.minimum(np.searchsorted(self.keys, x), len(self.keys) - 1)
            place = np.where(self.keys[at] == x, at, len(self.keys))
            return self.values[np.where(np.isnan(x), len(self.keys) + 1, place) if self.kind == "f" else place]
        get, default, nan = self.table.get, self.default, self.nan
        y = np.empty(x.size, self.dtype)
        y[:] = [get(value, default) if value == value else nan for value in x.reshape(-1).tolist()]
        return y.reshape(x.shape)

    def native_call(self) -> NativeCall | None:
        """The kernel, from numbers to numbers."""
        if self.kind not in ("i", "f") or not len(self.keys) or self.dtype.kind not in "iuf":
            return None
        keys = self.keys.astype(np.int64 if self.kind == "i" else np.float64)
        return NativeCall("label_encoder", packed=[_kernels.PackedArray(keys), _kernels.PackedArray(self.values)])


@operator("LabelEncoder", domain=DOMAIN, since=2, prepared=True)
def label_encoder(
    *,
    default_float: float = -0.0,
    default_int64: int = -1,
    default_string: str = "_Unused",
    default_tensor: np.ndarray | None = None,
    keys_floats: Sequence[float] | None = None,
    keys_int64s: Sequence[int] | None = None,
    keys_strings: Sequence[str] | None = None,
    keys_tensor: np.ndarray | None = None,
    values_floats: Sequence[float] | None = None,
    values_int64s: Sequence[int] | None = None,
    values_strings: Sequence[str] | None = None,
    values_tensor: np.ndarray | None = None,
) -> _Lookup:
    """Each element of X replaced by the value of its key, or by the default."""
    default: Any
    if values_tensor is not None:
        values, dtype = values_tensor.reshape(-1).tolist(), values_tensor.dtype
        if default_tensor is not None:
            default = default_tensor.reshape(-1).tolist()[0]
        else:
            default = "_Unused" if dtype.kind in "OUS" else -1 if dtype.kind in "iu" else -0.0
        dtype = np.dtype(object) if dtype.kind in "OUS" else dtype
    elif values_strings is not None:
        values, dtype, default = list(values_strings), np.dtype(object), default_string
    elif values_int64s is not None:
        values, dtype, default = list(values_int64s), np.dtype(np.int64), default_int64
    elif values_floats is not None:
        values, dtype, default = list(values_floats), np.dtype(np.float32), default_float
    else:
        raise ValueError("one of the attributes values_* is needed")
    keys: list[Any] | None = None
    for candidate in (keys_strings, keys_int64s):
        if candidate is not None:
            keys = list(candidate)
    if keys_floats is not None:
        keys = np.asarray(keys_floats, np.float32).tolist()
    if keys_tensor is not None:
        keys = keys_tensor.reshape(-1).tolist()
    if keys is None or len(keys) != len(values):
        raise ValueError(f"keys and values must be as many, got {0 if keys is None else len(keys)}, {len(values)}")
    return _Lookup(keys, values, default, dtype)


@label_encoder.native
def _label_encoder(node: Node) -> NativeCall | None:
    call: NativeCall | None = label_encoder.prepared(node).native_call()
    return call


@operator("LabelEncoder", domain=DOMAIN, since=1, prepared=True)
def label_encoder_1(
    *,
    classes_strings: Sequence[str] | None = None,
    default_int64: int = -1,
    default_string: str = "_Unused",
) -> Definition:
    """Version 1: strings to their position among `classes_strings`, or positions to strings."""
    classes = classes_strings or ()
    return _both_ways(range(len(classes)), classes, default_int64, default_string)


def _both_ways(integers: Sequence[int], strings: Sequence[str], default_int64: int, default_string: str) -> Definition:
    """Strings to the integers at their places, integers to the strings."""
    to_integers = _Lookup(strings, integers, default_int64, np.dtype(np.int64))
    to_strings = _Lookup(integers, strings, default_string, np.dtype(object))
    return lambda x: (to_integers if x.dtype.kind in "OUS" else to_strings)(x)


@operator("CategoryMapper", domain=DOMAIN, prepared=True)
def category_mapper(
    *,
    cats_int64s: Sequence[int] = (),
    cats_strings: Sequence[str] = (),
    default_int64: int = -1,
    default_string: str = "_Unused",
) -> Definition:
    """Strings to integers or back, by two parallel lists."""
    if len(cats_int64s) != len(cats_strings):
        raise ValueError(f"{len(cats_int64s)} integers do not fit {len(cats_strings)} strings")
    return _both_ways(cats_int64s, cats_strings, default_int64, default_string)


@operator("ZipMap", domain=DOMAIN, prepared=True)
def zip_map(*, classlabels_int64s: Sequence[int] | None = None, classlabels_strings: Sequence[str] | None = None) -> Definition:
    """X (N, C) → one dictionary from label to score per row."""
    labels = class_labels(classlabels_int64s, classlabels_strings).tolist()

    def definition(x: np.ndarray) -> list[dict[Any, float]]:
        require_rank("X", x, 1, 2)
        rows = x.reshape(1, -1) if x.ndim == 1 else x
        if rows.shape[1] != len(labels):
            raise ValueError(f"X must have {len(labels)} columns, one per label, got shape {x.shape}")
        return _kernels.dictionaries(labels, rows if rows.dtype == np.float32 else rows.astype(np.float64))

    return definition


@operator("StringLabels", domain="qruntime", prepared=True)
def string_labels(*, labels: Sequence[str]) -> Definition:
    """Places of classes (N) → the labels there, an object array of str (N)."""
    table = np.asarray(labels, object)
    return lambda places: table[places]


@operator("DictVectorizer", domain=DOMAIN)
def dict_vectorizer(
    x: Mapping[Any, Any],
    *,
    int64_vocabulary: Sequence[int] | None = None,
    string_vocabulary: Sequence[str] | None = None,
) -> np.ndarray:
    """A dictionary → its values (1, vocabulary) in the order of the vocabulary, 0 for keys it lacks."""
    vocabulary = class_labels(int64_vocabulary, string_vocabulary).tolist()
    found = [np.asarray(value) for value in x.values()]
    dtype = np.dtype(object) if found and found[0].dtype.kind in "OUS" else found[0].dtype if found else np.dtype("f4")
    default: Any = "" if dtype.kind == "O" else 0
    y = np.empty((1, len(vocabulary)), dtype)
    y[0, :] = [x.get(key, default) for key in vocabulary]
    return y


_CASTS: dict[str, np.dtype] = {"TO_FLOAT": np.dtype(np.float32), "TO_INT64": np.dtype(np.int64), "TO_STRING": np.dtype(object)}


@operator("CastMap", domain=DOMAIN, shape_inputs=None)
def cast_map(x: Mapping[int, Any], *, cast_to: str = "TO_FLOAT", map_form: str = "DENSE", max_map: int = 1) -> np.ndarray:
    """A dictionary with integer keys → its values (1, entries) in the order of the keys, or with map_form SPARSE at the
    places that the keys name in (1, max_map), elsewhere 0 or "0.f", which is what ONNX Runtime writes."""
    if cast_to not in _CASTS or map_form not in ("DENSE", "SPARSE"):
        raise ValueError(f"needs cast_to {', '.join(_CASTS)} and map_form DENSE or SPARSE, got {cast_to!r} and {map_form!r}")
    keys = sorted(int(key) for key in x)
    dense = map_form == "DENSE"
    if not dense and (max_map < 1 or (keys and not 0 <= keys[0] <= keys[-1] < max_map)):
        raise ValueError(f"the keys of a sparse map must lie in [0, {max_map}), max_map, got {keys}")
    dtype = _CASTS[cast_to]
    y = np.full(limit_shape((1, len(keys) if dense else max_map)), "0.f" if dtype.kind == "O" else 0, dtype)
    for place, key in enumerate(keys):
        value = np.asarray(x[key]).item()
        y[0, place if dense else key] = _cast_entry(value, cast_to)
    return y


def _cast_entry(value: Any, cast_to: str) -> Any:
    if cast_to == "TO_STRING":
        return value if isinstance(value, str) else f"{value:f}"
    number = float(value)
    return number if cast_to == "TO_FLOAT" else int(number)
