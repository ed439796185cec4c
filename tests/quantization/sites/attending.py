"""Attention as exporters write it, of a few heads."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.quantization.sites.nets import WIDTH, Net

SIZE = 4
"""Of a head."""


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def to_heads(net: Net, x: str, heads: int) -> str:
    """[b, s, h · d] to [b, h, s, d]"""
    return net.op("Transpose", net.op("Reshape", x, ints(0, 0, heads, -1)), perm=[0, 2, 1, 3])


def repeated(net: Net, x: str, times: int) -> str:
    """[b, h, t, d] to [b, h · times, t, d], each head as often, as torch writes expand and reshape."""
    shape = net.op("Shape", x)
    b, h, t, d = (net.op("Gather", shape, ints(i), axis=0) for i in range(4))
    wide = net.op("Expand", net.op("Unsqueeze", x, ints(2)), net.op("Concat", b, h, ints(times), t, d, axis=0))
    return net.op("Reshape", wide, net.op("Concat", b, net.op("Mul", h, ints(times)), t, d, axis=0))


def rotary(net: Net, x: str, start: Any = None, size: int = SIZE) -> str:
    """Of [b, h, s, size]: halves are turned by angles that a position decides, `start` being the first."""
    first = ints(0)[0] if start is None else start
    count = net.op("Gather", net.op("Shape", x), ints(2)[0], axis=0)
    end = count if start is None else net.op("Add", count, start)
    position = net.op("Cast", net.op("Range", first, end, ints(1)[0]), to=1)
    angle = net.op("Mul", net.op("Unsqueeze", position, ints(1)), net.numbers(1, size // 2))
    cos, sin = (net.op("Concat", net.op(f, angle), net.op(f, angle), axis=-1) for f in ("Cos", "Sin"))
    low, high = (net.op("Slice", x, ints(a), ints(b), ints(3)) for a, b in ((0, size // 2), (size // 2, size)))
    return net.op("Add", net.op("Mul", x, cos), net.op("Mul", net.op("Concat", net.op("Neg", high), low, axis=-1), sin))


def attend(net: Net, q: str, k: str, v: str) -> str:
    """Of [b, h, s, d] each, joined to [b, s, h · d]."""
    scores = net.op("Div", net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2])), np.float32(2))
    mixed = net.op("MatMul", net.op("Softmax", scores, axis=-1), v)
    return net.op("Reshape", net.op("Transpose", mixed, perm=[0, 2, 1, 3]), ints(0, 0, -1))


def attention(
    net: Net, x: str, *, heads: int = 2, kv_heads: int | None = None, turned: bool = False, past: Any = None
) -> tuple[str, str, str]:
    """What o is to read, and keys and values [b, h, t, d]. `past` are earlier ones."""
    kv = kv_heads or heads
    q, k, v = (to_heads(net, net.linear(x, WIDTH, n * SIZE), n) for n in (heads, kv, kv))
    if turned:
        q, k = rotary(net, q), rotary(net, k)
    if past is not None:
        k, v = (net.op("Concat", old, new, axis=2) for old, new in zip(past, (k, v), strict=True))
    wide = [repeated(net, one, heads // kv) if kv != heads else one for one in (k, v)]
    return attend(net, q, *wide), k, v
