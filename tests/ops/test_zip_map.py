"""Rows become dictionaries."""

from __future__ import annotations

import numpy as np
import pytest

from qruntime import _kernels
from qruntime.ops import registry


def zip_map(x, **labels):
    spec = registry.find("ai.onnx.ml", "ZipMap", 1)
    return spec.bound(labels)(x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_one_dictionary_for_each_row(dtype):
    x = np.random.default_rng(0).standard_normal((5, 12)).astype(dtype)
    x[0, :3] = np.nan, np.inf, -0.0
    frozen = x.copy()
    frozen.flags.writeable = False
    for labels in (tuple(range(-3, 9)), tuple(f"class {i}" for i in range(12))):
        given = {"classlabels_int64s" if isinstance(labels[0], int) else "classlabels_strings": labels}
        expected = [list(zip(labels, row, strict=True)) for row in x.tolist()]
        for rows in (x, frozen, np.asfortranarray(x), x[::-1][::-1]):
            found = zip_map(rows, **given)
            assert repr([list(row.items()) for row in found]) == repr(expected)
        assert {type(value) for row in found for value in row.values()} == {float}
        assert repr(zip_map(x[2], **given)) == repr([dict(expected[2])])
        assert zip_map(x[:0], **given) == []


def test_rows_do_not_share():
    first, second = zip_map(np.zeros((2, 2), np.float32), classlabels_int64s=(4, 5))
    first[4] = 1.0
    assert second == {4: 0.0, 5: 0.0}


def test_the_last_of_equal_labels_counts():
    assert zip_map(np.float32([[1, 2, 3]]), classlabels_int64s=(7, 8, 7)) == [{7: 3.0, 8: 2.0}]


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="3 columns, one per label"):
        zip_map(np.zeros((2, 2), np.float32), classlabels_int64s=(1, 2, 3))
    with pytest.raises(ValueError, match="exactly one"):
        zip_map(np.zeros((2, 2), np.float32))
    with pytest.raises(ValueError, match="3 columns, one per key"):
        _kernels.dictionaries([1, 2, 3], np.zeros((2, 2), np.float32))
