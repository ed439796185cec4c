"""Operators on 8-bit tensors."""

from __future__ import annotations

import numpy as np

from contrib_cases.case import Case, Rng, codes, draws, floats, maybe, pick, scale, small_codes


@draws("QGemm")
def _(r: Rng, n: int) -> Case:
    dtype = pick(r, np.int8, np.uint8)
    weight = np.int8 if dtype == np.int8 else pick(r, np.int8, np.uint8)
    rows, inner, columns = (int(v) for v in r.integers(1, 20, 3))
    trans_a, trans_b, per_column = (int(v) for v in r.integers(0, 2, 3))
    bias = pick(r, None, (columns,), (rows, 1), ())
    inputs = [
        codes(r, dtype, *((inner, rows) if trans_a else (rows, inner))), scale(0.03), codes(r, dtype),
        small_codes(r, weight, *((columns, inner) if trans_b else (inner, columns))),
        ((r.random(columns) + 0.1) * 0.02).astype(np.float32) if per_column else scale(0.02),
        codes(r, weight, *((columns,) if per_column else ())),
        None if bias is None else r.integers(-999, 999, bias).astype(np.int32),
    ]  # fmt: skip
    if n % 2:
        inputs += [scale(0.3), codes(r, dtype)]
    return Case(inputs, {"transA": trans_a, "transB": trans_b, "alpha": pick(r, 0.5, 1.0, 2.0)}, codes=1)


@draws("QLinearWhere")
def _(r: Rng, n: int) -> Case:
    dtype = pick(r, np.int8, np.uint8)
    x, y = codes(r, dtype, 3, 4), codes(r, dtype, *pick(r, (3, 4), (4,), (1,)))
    zeros = [codes(r, dtype) for _ in range(3)]
    return Case([r.random((3, 4)) < 0.5, x, scale(0.1), zeros[0], y, scale(0.2), zeros[1], scale(0.15), zeros[2]], {})


@draws("QLinearConv")
def _(r: Rng, n: int) -> Case:
    dtype = pick(r, np.int8, np.uint8)
    weight = np.int8 if dtype == np.int8 else pick(r, np.int8, np.uint8)
    last, group, per_filter = n % 2, pick(r, 1, 2, 4), bool(r.integers(0, 2))
    inputs = [
        codes(r, dtype, *((2, 5, 6, 4) if last else (2, 4, 5, 6))), scale(0.03), codes(r, dtype),
        small_codes(r, weight, 8, 4 // group, *r.integers(1, 4, 2)),
        (r.random(8) * 0.03 + 0.01).astype(np.float32) if per_filter else scale(0.02),
        np.full(8, 0 if weight == np.int8 else 128, weight) if per_filter else codes(r, weight),
        scale(0.5), codes(r, dtype), maybe(r, r.integers(-999, 999, 8).astype(np.int32)),
    ]  # fmt: skip
    attributes = {"channels_last": last, "group": group, "pads": [1, 0, 1, 1], "strides": r.integers(1, 3, 2).tolist()}
    return Case(inputs, attributes, constants=(3, 4, 5), codes=1)


@draws("QEmbedLayerNormalization")
def _(r: Rng, n: int) -> Case:
    dtype, segments = pick(r, np.int8, np.uint8), n % 2
    ids = r.integers(0, 7, (2, 5)).astype(np.int32)
    mask = maybe(r, (r.random((2, 5)) < 0.7).astype(np.int32))
    inputs = [
        ids, ids % 2 if segments else None, codes(r, dtype, 7, 8), codes(r, dtype, 6, 8), codes(r, dtype, 2, 8) if segments else None,
        codes(r, dtype, 8), codes(r, dtype, 8), mask, scale(0.01), scale(0.02), scale(0.03) if segments else None, scale(0.01),
        scale(0.02), codes(r, dtype), codes(r, dtype), codes(r, dtype) if segments else None, codes(r, dtype), codes(r, dtype),
    ]  # fmt: skip
    return Case(inputs, {"epsilon": 1e-5}, outputs=2)


@draws("QAttention")
def _(r: Rng, n: int) -> Case:
    batch, length, heads, size, cached = int(r.integers(1, 4)), int(r.integers(1, 5)), int(r.integers(1, 4)), 8, int(r.integers(0, 4))
    total, columns = length + cached, 3 * heads * size
    weight, per_column = pick(r, np.int8, np.uint8), bool(r.integers(0, 2))
    mask = pick(
        r, None, (r.random((batch, total)) < 0.7).astype(np.int32), r.integers(1, total + 1, batch).astype(np.int32),
        (r.random((batch, length, total)) < 0.7).astype(np.int32), np.zeros((batch, 1), np.int32),
    )  # fmt: skip
    inputs = [
        codes(r, np.uint8, batch, length, 12), small_codes(r, weight, 12, columns), floats(r, columns), scale(0.02),
        (r.random(columns) * 0.02).astype(np.float32) if per_column else scale(0.02), mask, codes(r, np.uint8), codes(r, weight),
        floats(r, 2, batch, heads, cached, size),
    ]  # fmt: skip
    # A mask value of moderate size: beside -10000 a float32 score keeps three digits.
    attributes = {"num_heads": heads, "unidirectional": int(r.integers(0, 2)), "mask_filter_value": -50.0}
    return Case(inputs, attributes, outputs=2, constants=(1,), tolerance=1e-4)
