"""If, Loop and Scan: what the cases of the standard leave out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qruntime.ir import TypeInfo
from qruntime.ops.control_flow import if_, loop, scan, scan_8

TRUE = np.asarray(True)


def _accumulate(iteration: np.ndarray, cond: np.ndarray, total: np.ndarray) -> tuple[Any, ...]:
    return cond, total + iteration, total * 2


def test_if_calls_one_branch_only() -> None:
    def refuse() -> tuple[Any, ...]:
        raise AssertionError("the other branch ran")

    assert if_(np.array([1]), then_branch=lambda: (1, 2), else_branch=refuse) == (1, 2)
    assert if_(np.array(False), then_branch=refuse, else_branch=lambda: (3,)) == (3,)
    with pytest.raises(ValueError, match="cond must be one value"):
        if_(np.ones(2, np.bool_), then_branch=refuse, else_branch=refuse)


def test_loop_stacks_and_carries() -> None:
    total, doubled = loop(np.asarray(4), None, np.asarray([1], np.int64), body=_accumulate, num_outputs=2)
    assert total.tolist() == [7]
    assert doubled.tolist() == [[2], [2], [4], [8]]


def test_loop_of_zero_iterations_knows_its_types() -> None:
    types = (None, TypeInfo("tensor", 1, (None, 3, None)))
    for trip_count, cond in ((np.asarray(0), None), (np.asarray(-5), TRUE), (None, np.asarray(False))):
        start = np.ones(2, np.int64)
        total, scanned = loop(trip_count, cond, start, body=_accumulate, num_outputs=2, output_types=types)
        assert total is start
        assert scanned.shape == (0, 3, 0)
        assert scanned.dtype == np.float32


def test_a_huge_trip_count_costs_nothing_when_the_condition_ends_it() -> None:
    def body(iteration: np.ndarray, cond: np.ndarray) -> tuple[Any, ...]:
        return np.asarray(iteration < 2), np.asarray(iteration)

    (scanned,) = loop(np.asarray(2**63 - 1), TRUE, body=body, num_outputs=1)
    assert scanned.tolist() == [0, 1, 2]


def test_loop_carries_sequences_and_absent_optionals() -> None:
    def body(iteration: np.ndarray, cond: np.ndarray, sequence: list[Any], option: Any) -> tuple[Any, ...]:
        return cond, [*sequence, iteration], option

    sequence, option = loop(np.asarray(3), None, [], None, body=body, num_outputs=2)
    assert [int(v) for v in sequence] == [0, 1, 2]
    assert option is None


@pytest.mark.parametrize(
    ("body", "needed"),
    [
        (lambda i, c, x: (c,), "must return a condition and 1 carried"),
        (lambda i, c, x: (c, x), "must return 1 scan outputs, it returns 0"),
        (lambda i, c, x: (np.ones(2, np.bool_), x, x), "condition that the body returns must be one value"),
        (lambda i, c, x: (c, x, np.zeros(int(i))), "must keep one shape"),
    ],
)
def test_loop_refuses(body: Any, needed: str) -> None:
    with pytest.raises(ValueError, match=needed):
        loop(np.asarray(2), None, np.zeros(1), body=body, num_outputs=2)


def _running_sum(total: np.ndarray, element: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return total + element, total + element


def test_scan_directions_and_axes() -> None:
    x = np.arange(6.0).reshape(2, 3)
    total, sums = scan(
        np.zeros(2),
        x,
        body=_running_sum,
        num_scan_inputs=1,
        num_outputs=2,
        scan_input_axes=(-1,),
        scan_input_directions=(1,),
        scan_output_axes=(1,),
        scan_output_directions=(1,),
    )
    np.testing.assert_array_equal(total, x.sum(axis=1))
    np.testing.assert_array_equal(sums, np.cumsum(x[:, ::-1], axis=1)[:, ::-1])


def test_scan_of_length_zero() -> None:
    types = (None, TypeInfo("tensor", 11, (2, None)))
    total, sums = scan(
        np.ones(2),
        np.zeros((0, 2)),
        body=_running_sum,
        num_scan_inputs=1,
        num_outputs=2,
        output_types=types,
        scan_output_axes=(1,),
    )
    assert total.tolist() == [1, 1]
    assert sums.shape == (2, 0)


def test_scan_8_pads_short_sequences_with_zeros() -> None:
    x = np.arange(1.0, 7.0).reshape(2, 3, 1)
    total, sums = scan_8(np.array([3, 1]), np.zeros((2, 1)), x, body=_running_sum, num_scan_inputs=1, num_outputs=2, directions=(1,))
    assert total.tolist() == [[6], [4]]
    assert sums[..., 0].tolist() == [[3, 5, 6], [4, 0, 0]]


@pytest.mark.parametrize(
    ("change", "needed"),
    [
        ({"num_scan_inputs": 0}, r"num_scan_inputs must lie in \[1, 2\]"),
        ({"scan_input_axes": (5,)}, "scan_input_axes must lie in"),
        ({"scan_input_axes": (0, 0)}, "scan_input_axes must have 1 values"),
        ({"scan_input_directions": (2,)}, "must be 0 .* or 1"),
        ({"num_outputs": 0}, "states need at least as many outputs"),
        ({"num_outputs": 1}, "must return 1 states and 0 elements"),
    ],
)
def test_scan_refuses(change: dict[str, Any], needed: str) -> None:
    arguments: dict[str, Any] = {"body": _running_sum, "num_scan_inputs": 1, "num_outputs": 2}
    with pytest.raises(ValueError, match=needed):
        scan(np.zeros(2), np.zeros((3, 2)), **{**arguments, **change})
