"""ZeroQuant: `groups` is a number of groups of rows, and the mixed form is a matter of overrides."""

from __future__ import annotations

import numpy as np
import pytest

from qruntime.quantization.methods.rtn import RTN
from qruntime.quantization.methods.zeroquant import RowGroups
from qruntime.quantization.steps import Solve
from tests.quantization.methods.layers_made import correlated, weight_args

SCHEMES = ["W8A16", "W4A16-sym", "W4A16", "Wfp4A16"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_ends_are_one_scale_and_one_for_each_row(scheme: str) -> None:
    weight = correlated(n=30).weight
    for groups, other in ((1, f"{scheme}-tensor"), (30, scheme), (99, scheme), (None, scheme)):
        made = RowGroups(groups).solve(weight, weight_args(scheme)).rounded
        expected = RTN().solve(weight, weight_args(other)).rounded
        np.testing.assert_array_equal(made.stored.unpacked(), expected.stored.unpacked())
        np.testing.assert_array_equal(made.stored.decoded(), expected.stored.decoded())
        assert made.snr_db == pytest.approx(expected.snr_db)


@pytest.mark.parametrize("groups", [2, 4, 7])
def test_rows_of_a_group_share_the_scale_of_their_largest_weight(groups: int) -> None:
    weight = correlated(n=30).weight
    stored = RowGroups(groups).solve(weight, weight_args("W8A16")).rounded.stored
    size = -(-30 // groups)
    largest = [np.abs(weight[start : start + size]).max() for start in range(0, 30, size)]
    np.testing.assert_array_equal(np.asarray(stored.scale)[:, 0], np.repeat(np.float32(np.array(largest, np.float64) / 127), size)[:30])
    assert len(largest) <= groups


def test_more_groups_lose_less() -> None:
    weight = correlated(n=32).weight * np.geomspace(1, 20, 32, dtype=np.float32)[:, None]
    found = [RowGroups(groups).solve(weight, weight_args("W8A16")).rounded.snr_db for groups in (1, 2, 8, 32)]
    assert found == sorted(found)


def test_groups_of_rows_and_of_columns_do_not_go_together() -> None:
    weight = correlated().weight
    assert isinstance(RowGroups(), Solve)
    with pytest.raises(ValueError, match="not both"):
        RowGroups(4).solve(weight, weight_args("W4A16-g32"))
    with pytest.raises(ValueError, match="how many"):
        RowGroups(0)
    assert RowGroups().solve(weight, weight_args("W4A16-g32")).rounded.stored.block == 32
