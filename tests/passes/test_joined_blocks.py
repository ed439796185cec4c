"""Convolutions that read joined images where they lie."""

from __future__ import annotations

from tests.passes.test_channel_blocks import PADS, C, X, compared, conv, numbers, relu


def test_a_convolution_reads_what_is_joined_for_it_where_it_lies() -> None:
    nodes = [
        conv("x", "w0", "a"), relu("a", "b"), conv("x", "w1", "c"), ("MaxPool", ["b"], ["d"], {"kernel_shape": [3, 3], **PADS}),
        ("Concat", ["b", "c", "d", "b"], ["e"], {"axis": 1}), conv("e", "wide", "f"), ("Add", ["f", "b"], ["g"], {}), relu("g", "y"),
    ]  # fmt: skip
    more = {"wide": numbers(32, 128, 3, 3), "other": numbers(32, 128, 3, 3, seed=1)}
    assert compared(nodes, X, {**C, **more}) == {"BlockChannels": 1, "BlockedConv": 3, "BlockedMaxPool": 1, "UnblockChannels": 1}
    # What others read as well is joined.
    assert compared(nodes, X, {**C, **more}, ("y", "e"))["Concat"] == 1
    twice = [*nodes[:-2], conv("e", "other", "h"), ("Add", ["f", "h"], ["y"], {})]
    assert compared(twice, X, {**C, **more})["Concat"] == 1


def test_what_is_joined_along_another_axis_is_joined() -> None:
    nodes = [conv("x", "w0", "a"), conv("x", "w1", "b"), ("Concat", ["a", "b"], ["c"], {"axis": 2}), conv("c", "w2", "y")]
    assert compared(nodes, X, C)["Concat"] == 1
