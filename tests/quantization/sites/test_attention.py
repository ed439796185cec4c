"""The values of attention absorb what its result is to become, head by head."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from qruntime.quantization.steps import Equivalence
from tests.quantization.sites.attending import SIZE, attend, attention, ints, to_heads
from tests.quantization.sites.nets import KINDS, WIDTH, Changing, Net, change_of, check_each


def test_values() -> None:
    def make() -> Changing:
        net = Net()
        return net.changing(net.linear(attention(net, "x")[0]))

    check_each(make, "values", KINDS)
    site = make().site("values")
    assert site.ties is None
    assert site.parts is not None
    assert site.parts.tolist() == [0] * SIZE + [1] * SIZE
    first = make().sites[0]
    assert len(first.readers) == 3
    assert first.meets is not None
    assert first.meets.producer is not None
    assert first.meets.producer.op_type == "MatMul"
    mixing = np.roll(np.arange(2 * SIZE), 1)
    assert "heads" in str(site.apply(Equivalence(order=mixing)))


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_repeated_heads_share_one_scale(kv_heads: int) -> None:
    def make() -> Changing:
        net = Net()
        return net.changing(net.linear(attention(net, "x", heads=4, kv_heads=kv_heads)[0], 4 * SIZE))

    check_each(make, "values", KINDS)
    site = make().site("values")
    assert site.ties is not None
    assert len(set(site.ties.tolist())) == kv_heads * SIZE
    assert "ties" in str(site.apply(Equivalence(scale=np.arange(1, 4 * SIZE + 1, dtype=np.float32))))


def test_heads_that_broadcast() -> None:
    """[b, 2, 2, s, d] of queries and [b, 2, 1, t, d] of keys and values."""

    def make() -> Changing:
        net = Net()
        q = net.op("Transpose", net.op("Reshape", net.linear("x", WIDTH, 4 * SIZE), ints(0, 0, 2, 2, SIZE)), perm=[0, 2, 3, 1, 4])
        k, v = (net.op("Unsqueeze", to_heads(net, net.linear("x", WIDTH, 2 * SIZE), 2), ints(2)) for _ in "kv")
        scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 2, 4, 3]))
        mixed = net.op("Transpose", net.op("MatMul", net.op("Softmax", scores, axis=-1), v), perm=[0, 3, 1, 2, 4])
        return net.changing(net.linear(net.op("Reshape", mixed, ints(0, 0, 4 * SIZE)), 4 * SIZE))

    check_each(make, "values", KINDS)


@pytest.mark.parametrize("way", ["Split", "Gather", "Slice"])
def test_one_layer_for_queries_keys_and_values(way: str) -> None:
    def make() -> Changing:
        net = Net()
        both = net.op("Reshape", net.linear("x", WIDTH, 6 * SIZE), ints(0, 0, 3, 2, SIZE))
        turned = net.op("Transpose", both, perm=[2, 0, 3, 1, 4])
        if way == "Split":
            parts = [net.op("Squeeze", one, ints(0)) for one in net.op("Split", turned, count=3, axis=0)]
        elif way == "Gather":
            parts = [net.op("Gather", turned, np.int64(i), axis=0) for i in range(3)]
        else:
            parts = [net.op("Squeeze", net.op("Slice", turned, ints(i), ints(i + 1), ints(0)), ints(0)) for i in range(3)]
        return net.changing(net.linear(attend(net, *parts)))

    check_each(make, "values", KINDS)


def test_heads_and_batch_in_one_axis() -> None:
    """As torch's MultiheadAttention is written: [s, b · h, d] of [s, b, h · d]."""

    def make() -> Changing:
        net = Net()
        b, s = (net.op("Gather", net.op("Shape", "x"), ints(i), axis=0) for i in (0, 1))
        joined = net.op("Concat", s, net.op("Mul", b, ints(2)), ints(SIZE), axis=0)
        apart = net.op("Concat", b, ints(2), s, ints(SIZE), axis=0)
        rows = net.op("Transpose", "x", perm=[1, 0, 2])
        q, k, v = (net.op("Transpose", net.op("Reshape", net.linear(rows), joined), perm=[1, 0, 2]) for _ in "qkv")
        q, k, v = (net.op("Reshape", one, apart) for one in (q, k, v))
        scores = net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2]))
        mixed = net.op("Transpose", net.op("MatMul", net.op("Softmax", scores, axis=-1), v), perm=[2, 0, 1, 3])
        return net.changing(net.linear(net.op("Reshape", mixed, net.op("Concat", net.op("Mul", s, b), ints(WIDTH), axis=0))))

    check_each(make, "values", KINDS)


def test_values_without_softmax() -> None:
    """A weighted sum, not a mean: a shift would not come out as it went in."""

    def make() -> Changing:
        net = Net()
        q, k, v = (to_heads(net, net.linear("x"), 2) for _ in "qkv")
        weights = net.op("Relu", net.op("MatMul", q, net.op("Transpose", k, perm=[0, 1, 3, 2])))
        mixed = net.op("Transpose", net.op("MatMul", weights, v), perm=[0, 2, 1, 3])
        return net.changing(net.linear(net.op("Reshape", mixed, ints(0, 0, -1))))

    check_each(make, "values", ["scale", "order"])


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("packed", [False, True])
def test_the_operator_of_the_standard(kv_heads: int, packed: bool) -> None:
    def make() -> Changing:
        net = Net(opset=23)
        q, k, v = (net.linear("x", WIDTH, n * SIZE) for n in (4, kv_heads, kv_heads))
        if packed:
            mixed = net.op("Attention", q, k, v, q_num_heads=4, kv_num_heads=kv_heads)
        else:
            q, k, v = (to_heads(net, one, n) for one, n in ((q, 4), (k, kv_heads), (v, kv_heads)))
            mixed = net.op("Reshape", net.op("Transpose", net.op("Attention", q, k, v), perm=[0, 2, 1, 3]), ints(0, 0, 4 * SIZE))
        return net.changing(net.linear(mixed, 4 * SIZE))

    check_each(make, "values", KINDS)


@pytest.mark.parametrize("bias", [False, True])
def test_multi_head_attention_of_another_runtime(bias: bool) -> None:
    def make() -> Changing:
        net = Net()
        q, k, v = (net.linear("x") for _ in "qkv")
        added = [net.numbers(3 * WIDTH)] if bias else []
        return net.changing(net.linear(net.op("MultiHeadAttention", q, k, v, *added, num_heads=2, domain="com.microsoft")))

    check_each(make, "values", KINDS)


def test_attention_of_another_runtime_with_its_layer() -> None:
    def make() -> Changing:
        net = Net()
        weights = [net.weight(WIDTH, 3 * WIDTH), net.numbers(3 * WIDTH)]
        t = net.op("Attention", "x", *weights, num_heads=2, domain="com.microsoft")
        return net.changing(net.linear(t))

    check_each(make, "values", KINDS)


def test_attention_that_keeps_its_values() -> None:
    for is_private in (False, True):
        net = Net()
        q, k, v = (net.linear("x", WIDTH, n * SIZE) for n in (4, 2, 2))
        lengths = [np.array([2], np.int32), np.int32(3)]
        mixed, past_k, past_v = net.op(
            "GroupQueryAttention", q, k, v, "past_k", "past_v", *lengths, count=3, num_heads=4, kv_num_heads=2, domain="com.microsoft"
        )
        empty = [1, 2, 0, SIZE]
        data = net.bytes({"x": [1, 3, WIDTH], "past_k": empty, "past_v": empty}, [net.linear(mixed, 4 * SIZE), past_k, past_v])
        changing = Changing(data, cache_is_private=is_private)
        site = changing.sites[1]
        assert site.allows == ({"scale", "order"} if is_private else set())
        assert site.apply(change_of(site, ["scale", "order"]), insert=not is_private) is None
        changing.assert_same(None if not is_private else [changing.model.outputs[0].name])


def test_a_mask_may_hide_all_there_is() -> None:
    net = Net(opset=23)
    q, k, v = (net.linear("x") for _ in "qkv")
    t = net.op("Attention", q, k, v, "mask", q_num_heads=2, kv_num_heads=2)
    changing = net.changing(net.linear(t), {"x": [2, 3, WIDTH], "mask": [3, 3]})
    assert changing.site("values").allows == {"scale", "order"}


def with_cache(*, stacked: bool, is_private: bool = False) -> Changing:
    net = Net()
    if stacked:
        past = [net.op("Gather", "past", np.int64(i), axis=0) for i in range(2)]
        inputs = {"x": ["b", "s", WIDTH], "past": [2, "b", 2, "t", SIZE]}
    else:
        past = ["past_k", "past_v"]
        inputs = {"x": ["b", "s", WIDTH], **{name: ["b", 2, "t", SIZE] for name in past}}
    t, k, v = attention(net, "x", heads=4, kv_heads=2, turned=True, past=past)
    present = [net.op("Concat", *(net.op("Unsqueeze", one, ints(0)) for one in (k, v)), axis=0)] if stacked else [k, v]
    data = net.bytes(inputs, [net.linear(t, 4 * SIZE), *present])
    return Changing(data, cache_is_private=is_private, b=2, s=3, t=0 if is_private else 5)


@pytest.mark.parametrize("stacked", [False, True])
def test_a_cache_is_left_as_it_is(stacked: bool) -> None:
    check_each(lambda: _with_role(with_cache(stacked=stacked), "none"), "none", [])
    reason = "leaves the graph through" if stacked else "is an output of the graph"
    assert reason in with_cache(stacked=stacked).sites[1].reasons["scale"]


def _with_role(changing: Changing, role: str) -> Changing:
    changing.sites = [site for site in changing.sites[1:] if site.role == role]
    return changing


@pytest.mark.parametrize("stacked", [False, True])
def test_a_cache_that_nobody_else_reads_may_change(stacked: bool) -> None:
    """The model then goes on from what it kept itself, as before."""
    changing = with_cache(stacked=stacked, is_private=True)
    site = changing.site("values")
    assert site.allows == set(KINDS)
    assert site.apply(change_of(site, KINDS)) is None
    changing.assert_same([changing.model.outputs[0].name])


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_sites_compose_in_any_order(order: tuple[int, ...]) -> None:
    """The weight of v has its columns from the norm before it and its rows from o."""
    net = Net()
    normal = net.op("LayerNormalization", "x", net.numbers(WIDTH, near=1), net.numbers(WIDTH), axis=-1)
    t, *_ = attention(net, normal)
    hidden = net.op("Relu", net.linear(t, bias=False))
    changing = net.changing(net.linear(hidden))
    assert [site.role for site in changing.sites] == ["norm", "values", "relu"]
    for at in order:
        site = changing.sites[at]
        assert site.apply(change_of(site, site.allows, seed=at)) is None
    changing.assert_same()


def test_shifts_before_layers_without_a_bias_compose() -> None:
    """The new bias of v is scaled, and permuted, with its rows."""
    for first, second in ((0, 1), (1, 0)):
        net = Net()
        normal = net.op("LayerNormalization", "x", net.numbers(WIDTH, near=1), net.numbers(WIDTH), axis=-1)
        q, k, v = (to_heads(net, net.linear(normal, bias=False), 2) for _ in "qkv")
        changing = net.changing(net.linear(attend(net, q, k, v), bias=False))
        for at in (first, second):
            site = changing.sites[at]
            assert site.apply(change_of(site, site.allows)) is None
        changing.assert_same()
