"""Shapes are followed through what exporters write, and no graph keeps us busy."""

import time

import numpy as np

from qruntime.ir import Node, TypeInfo, Value
from qruntime.passes.rewriting import as_attribute
from qruntime.passes.symbolic_shapes import contents, dims


def value(name, data=None, rank=None):
    typ = None if rank is None else TypeInfo("tensor", 1, (None,) * rank)
    return Value(name, typ, None if data is None else np.asarray(data))


def make(op, *inputs, **attributes):
    kinds = {k: as_attribute(v) for k, v in attributes.items()}
    output = Value(op)
    Node(op, inputs, [output], kinds, version=17)
    return output


def test_reshape_to_a_computed_shape():
    x = value("x", rank=3)
    batch = make("Unsqueeze", make("Gather", make("Shape", x), value("i", 0)), value("axes", [0]))
    heads = make("Reshape", x, make("Concat", batch, value("rest", [-1, 4, 8]), axis=0))
    shape = dims(heads)
    assert shape == ((x, 0), (heads, 1), 4, 8)
    assert dims(make("Transpose", heads, perm=(0, 2, 1, 3))) == ((x, 0), 4, (heads, 1), 8)


def test_a_dim_of_unknown_rank():
    x = value("x")
    assert dims(x) is None
    assert contents(make("Gather", make("Shape", x), value("i", 1))) == [(x, 1)]
    assert contents(make("Gather", make("Shape", x), value("i", -1))) is None


def test_slices_of_shapes():
    x = value("x", rank=4)
    last = make("Slice", make("Shape", x), value("start", [-1]), value("end", [2**62]))
    assert contents(last) == [(x, 3)]
    strided = make("Slice", make("Shape", x), value("a", [0]), value("b", [4]), value("c", [0]), value("d", [2]))
    assert contents(strided) is None


def test_heads_tiled_behind_a_new_axis():
    x = value("x", rank=4)
    wide = make("Unsqueeze", x, value("axes", [2]))
    assert dims(wide) == ((x, 0), (x, 1), 1, (x, 2), (x, 3))
    tiled = make("Tile", wide, value("times", [1, 2, 3, 1, 1]))
    assert dims(tiled) == ((x, 0), (tiled, 1), 3, (x, 2), (x, 3))
    for axes in ([-1], [2, 2], [7]):
        assert dims(make("Unsqueeze", x, value("axes", axes))) is None
    for times in ([1, 2], [1] * 6):
        assert dims(make("Tile", wide, value("times", times))) is None
    assert dims(make("Tile", wide, value("computed"))) is None


def test_doubling_concats_end_soon():
    shape = value("one", [1])
    for _ in range(200):
        shape = make("Concat", shape, shape, axis=0)
    empty = value("none", np.zeros(0, np.int64))
    for _ in range(200):
        empty = make("Concat", empty, empty, axis=0)
    start = time.perf_counter()
    assert contents(shape) is None
    assert contents(empty) is None
    assert contents(shape, partial=True) is None
    assert time.perf_counter() - start < 1


def test_a_perm_that_is_none():
    x = value("x", rank=3)
    for perm in [(0, 1, 3), (0, 0, 1), (-1, 0, 1), (0, 1, 2**63 - 1)]:
        assert dims(make("Transpose", x, perm=perm)) is None
