"""Tables of embeddings, and recurrent layers that read them."""

from __future__ import annotations

import numpy as np
import pytest

from tests.quantization.sites.nets import KINDS, WIDTH, Changing, Net, change_of, check_each

IDS = {"ids": ["t", "b"]}


def test_a_table_before_a_layer() -> None:
    def make() -> Changing:
        net = Net()
        return net.changing(net.linear(net.op("Gather", net.numbers(5, WIDTH), "ids")), IDS)

    check_each(make, "table", KINDS)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("op_type", ["LSTM", "GRU", "RNN"])
def test_a_table_before_a_recurrent_layer(op_type: str, bias: bool) -> None:
    gates, hidden = {"LSTM": 4, "GRU": 3, "RNN": 1}[op_type], 6

    def make() -> Changing:
        net = Net()
        x = net.op("Gather", net.numbers(5, WIDTH), "ids")
        weights = [net.numbers(2, gates * hidden, WIDTH), net.numbers(2, gates * hidden, hidden)]
        if bias:
            weights.append(net.numbers(2, 2 * gates * hidden))
        y, _ = net.op(op_type, x, *weights, count=2, hidden_size=hidden, direction="bidirectional")
        return net.changing(y, IDS)

    check_each(make, "table", KINDS)


def test_a_table_that_others_read_too_is_duplicated() -> None:
    net = Net()
    table = net.constant(net.numbers(5, WIDTH))
    changing = net.changing([net.linear(net.op("Gather", table, "ids")), net.op("Tanh", net.op("Gather", table, "ids"))], IDS)
    assert "Tanh" in changing.site("none").reasons["scale"]  # equal look-ups are one

    net = Net()
    table = net.constant(net.numbers(5, WIDTH))
    logits = net.op("Gemm", net.op("Reshape", net.linear(net.op("Gather", table, "ids")), np.array([-1, WIDTH])), table, transB=1)
    changing = net.changing(logits, IDS)
    site = changing.site("table")
    assert site.apply(change_of(site, KINDS)) is None
    changing.assert_same()


def test_a_table_of_another_axis() -> None:
    net = Net()
    t = net.op("Gather", net.numbers(WIDTH, 5), "ids", axis=1)
    changing = net.changing(net.linear(net.op("Transpose", t, perm=[1, 2, 0])), IDS)
    (site,) = changing.sites
    assert site.role == "none"
    assert "are not the last axis" in site.reasons["scale"]
