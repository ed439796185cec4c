"""Queries and keys are scaled against each other, pairs that a rotary embedding turns alike."""

from __future__ import annotations

import numpy as np
import pytest

from qruntime.quantization.sites import find_key_sites
from qruntime.quantization.steps import Equivalence
from tests.quantization.sites.attending import SIZE, attention
from tests.quantization.sites.nets import WIDTH, Changing, Net, change_of


def changing(*, turned: bool, heads: int = 2, kv_heads: int | None = None) -> Changing:
    net = Net()
    t, *_ = attention(net, "x", heads=heads, kv_heads=kv_heads, turned=turned)
    return net.changing(net.linear(t, heads * SIZE))


def test_scales_and_orders_without_rotary() -> None:
    for kinds in (["scale"], ["order"], ["scale", "order"]):
        net = changing(turned=False)
        (site,) = find_key_sites(net.graph)
        assert site.allows == {"scale", "order"}
        assert site.ties is None
        assert site.apply(change_of(site, kinds)) is None
        net.assert_same()


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_rotary_ties_pairs(kv_heads: int) -> None:
    net = changing(turned=True, heads=4, kv_heads=kv_heads)
    (site,) = find_key_sites(net.graph)
    assert site.allows == {"scale"}
    assert site.ties is not None
    own = np.arange(4 * SIZE).reshape(kv_heads, 4 // kv_heads, 2, SIZE // 2)
    assert np.array_equal(site.ties, np.broadcast_to(own[:, :1, :1], own.shape).reshape(-1))
    assert "ties" in str(site.apply(Equivalence(scale=np.arange(1, 4 * SIZE + 1, dtype=np.float32))))
    assert site.apply(Equivalence(order=np.array([1, 0, *range(2, 4 * SIZE)]))) == site.reasons["order"]
    assert site.apply(change_of(site, ["scale"])) is None
    net.assert_same()


def test_what_is_refused() -> None:
    net = changing(turned=False)
    (site,) = find_key_sites(net.graph)
    assert "shifted" in str(site.apply(Equivalence(shift=np.ones(2 * SIZE, np.float32))))
    assert "heads" in str(site.apply(Equivalence(order=np.roll(np.arange(2 * SIZE), 1))))
    with pytest.raises(ValueError, match="need \\[8\\]"):
        site.apply(Equivalence(scale=np.ones(3, np.float32)))


def test_they_compose_with_the_norm_before() -> None:
    for first in (0, 1):
        net = Net()
        normal = net.op("LayerNormalization", "x", net.numbers(WIDTH, near=1), net.numbers(WIDTH), axis=-1)
        made = net.changing(net.linear(attention(net, normal, turned=True)[0]))
        steps = [made.site("norm"), find_key_sites(made.graph)[0]]
        for site in steps[::-1] if first else steps:
            assert site.apply(change_of(site, site.allows)) is None
        made.assert_same()
