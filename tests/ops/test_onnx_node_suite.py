"""Every single-node case of onnx's backend suite against the definition of its operator."""

from __future__ import annotations

import warnings

import pytest

from tests.ops.onnx_cases import NodeCase, difference, node_cases, run

RANDOM = frozenset({"Bernoulli"})
"""Operators whose results cannot be compared: only element type and shape are."""


def _families() -> dict[str, list[NodeCase]]:
    found: dict[str, list[NodeCase]] = {}
    for case in node_cases():
        if case.spec is not None:
            found.setdefault(case.op_type, []).append(case)
    return dict(sorted(found.items()))


def _failure(case: NodeCase) -> str | None:
    try:
        results = run(case)
    except Exception as error:
        return f"raised {type(error).__name__}: {error}"
    for position, expected in case.outputs:
        if position >= len(results):
            return f"output {position} is missing"
        if case.op_type in RANDOM:
            actual = results[position]
            if (actual.dtype, actual.shape) != (expected.dtype, expected.shape):
                return f"expected {expected.dtype}{expected.shape}, got {actual.dtype}{actual.shape}"
        elif (text := difference(results[position], expected, case.rtol, case.atol)) is not None:
            return f"output {position}: {text}"
    return None


FAMILIES = _families()


@pytest.mark.parametrize("op_type", FAMILIES)
def test_operator(op_type: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        failures = {case.name: text for case in FAMILIES[op_type] if (text := _failure(case)) is not None}
    assert not failures, "\n".join(f"{name}: {text}" for name, text in failures.items())


def test_suite_is_there() -> None:
    assert len(node_cases()) > 1400
    assert sum(map(len, FAMILIES.values())) > 1400
