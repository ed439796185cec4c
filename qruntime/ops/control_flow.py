"""Control flow: If, Loop and Scan. Subgraphs arrive as callables that return a tuple of outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qruntime.ir import TypeInfo
from qruntime.ir.dtypes import numpy_dtype
from qruntime.ops.checks import normalize_axis
from qruntime.ops.registry import operator

Subgraph = Callable[..., tuple[Any, ...]]


def _scalar(name: str, value: np.ndarray) -> Any:
    if value.size != 1:
        raise ValueError(f"{name} must be one value, got shape {value.shape}")
    return value.reshape(()).item()


@operator("If", since=1, shape_inputs=None)
def if_(cond: np.ndarray, *, then_branch: Subgraph, else_branch: Subgraph) -> tuple[Any, ...]:
    """The outputs of the branch that `cond` chooses."""
    return tuple(then_branch() if _scalar("cond", cond) else else_branch())


def _empty_scan(info: TypeInfo | None) -> np.ndarray:
    """What an output that stacks zero elements looks like, as far as its type is known."""
    if info is None or info.kind != "tensor":
        return np.empty((0,), np.float32)
    dims = (info.shape or (None,))[1:]
    dtype = numpy_dtype(info.dtype) if info.dtype else np.dtype(np.float32)
    return np.empty((0, *(dim if isinstance(dim, int) and dim >= 0 else 0 for dim in dims)), dtype)


def _stack(index: int, values: list[Any], axis: int = 0) -> np.ndarray:
    first = np.asarray(values[0])
    for step, value in enumerate(values):
        if np.shape(value) != first.shape:
            raise ValueError(f"scan output {index} must keep one shape, got {first.shape} first and {np.shape(value)} in iteration {step}")
    return np.stack(values, axis=normalize_axis(axis, first.ndim + 1))


@operator("Loop", since=1, shape_inputs=None)
def loop(
    trip_count: np.ndarray | None = None,
    cond: np.ndarray | None = None,
    *carried: Any,
    body: Subgraph,
    num_outputs: int = 0,
    output_types: Sequence[TypeInfo | None] = (),
) -> tuple[Any, ...]:
    """Run `body(iteration, cond, *carried)` → (cond, *carried, *scanned) while cond holds, M times at most.

    Returns the carried values, then the scanned ones stacked along a new first axis. Carried values may
    be sequences and optionals.
    """
    limit = None if trip_count is None else int(_scalar("M", trip_count))
    go = True if cond is None else bool(_scalar("cond", cond))
    condition = np.asarray(go)
    scanned: list[list[Any]] = [[] for _ in range(max(num_outputs - len(carried), 0))]
    iteration = 0
    while go and (limit is None or iteration < limit):
        results = tuple(body(np.asarray(iteration, np.int64), condition, *carried))
        if len(results) < 1 + len(carried):
            raise ValueError(f"the body must return a condition and {len(carried)} carried values, it returns {len(results)}")
        condition = np.asarray(results[0])
        go = bool(_scalar("the condition that the body returns", condition))
        carried = results[1 : 1 + len(carried)]
        extra = results[1 + len(carried) :]
        if iteration == 0 and len(scanned) < len(extra):
            scanned = [[] for _ in extra]
        if len(extra) != len(scanned):
            raise ValueError(f"the body must return {len(scanned)} scan outputs, it returns {len(extra)}")
        for values, value in zip(scanned, extra, strict=True):
            values.append(value)
        iteration += 1
    stacked = []
    for i, values in enumerate(scanned):
        position = len(carried) + i
        info = output_types[position] if position < len(output_types) else None
        stacked.append(_stack(i, values) if values else _empty_scan(info))
    return (*carried, *stacked)


def _per_scan(name: str, values: Sequence[int] | None, count: int) -> tuple[int, ...]:
    values = (0,) * count if values is None else tuple(values)
    if len(values) != count:
        raise ValueError(f"{name} must have {count} values, got {values}")
    return values


def _directions(name: str, values: Sequence[int] | None, count: int) -> tuple[int, ...]:
    values = _per_scan(name, values, count)
    if any(value not in (0, 1) for value in values):
        raise ValueError(f"{name} must be 0 (forward) or 1 (backward), got {values}")
    return values


def _scan(
    states: tuple[Any, ...],
    inputs: list[np.ndarray],
    length: int,
    body: Subgraph,
    outputs: int,
) -> tuple[tuple[Any, ...], list[list[Any]]]:
    """`inputs` have the scanned axis first and are already in order; returns states and the elements made."""
    scanned: list[list[Any]] = [[] for _ in range(outputs)]
    for t in range(length):
        results = tuple(body(*states, *(value[t] for value in inputs)))
        if len(results) != len(states) + outputs:
            raise ValueError(f"the body must return {len(states)} states and {outputs} elements, it returns {len(results)}")
        states = results[: len(states)]
        for values, value in zip(scanned, results[len(states) :], strict=True):
            values.append(value)
    return states, scanned


def _split(values: tuple[Any, ...], num_scan_inputs: int, num_outputs: int) -> tuple[int, int]:
    if not 1 <= num_scan_inputs <= len(values):
        raise ValueError(f"num_scan_inputs must lie in [1, {len(values)}], got {num_scan_inputs}")
    states = len(values) - num_scan_inputs
    if num_outputs < states:
        raise ValueError(f"{states} states need at least as many outputs, the node has {num_outputs}")
    return states, num_outputs - states


@operator("Scan", since=9, shape_inputs=None)
def scan(
    *values: Any,
    body: Subgraph,
    num_scan_inputs: int,
    num_outputs: int,
    output_types: Sequence[TypeInfo | None] = (),
    scan_input_axes: Sequence[int] | None = None,
    scan_input_directions: Sequence[int] | None = None,
    scan_output_axes: Sequence[int] | None = None,
    scan_output_directions: Sequence[int] | None = None,
) -> tuple[Any, ...]:
    """States and scan inputs → final states and the elements stacked along `scan_output_axes`."""
    states, made = _split(values, num_scan_inputs, num_outputs)
    axes = _per_scan("scan_input_axes", scan_input_axes, num_scan_inputs)
    backward = _directions("scan_input_directions", scan_input_directions, num_scan_inputs)
    inputs = []
    for value, axis, reverse in zip(values[states:], axes, backward, strict=True):
        moved = np.moveaxis(value, normalize_axis(axis, value.ndim, "scan_input_axes"), 0)
        inputs.append(moved[::-1] if reverse else moved)
    length = inputs[0].shape[0]
    if any(value.shape[0] != length for value in inputs):
        raise ValueError(f"the scanned axes must agree in length, got {[value.shape[0] for value in inputs]}")
    final, scanned = _scan(values[:states], inputs, length, body, made)
    output_axes = _per_scan("scan_output_axes", scan_output_axes, made)
    backward = _directions("scan_output_directions", scan_output_directions, made)
    stacked = []
    for i, (elements, axis, reverse) in enumerate(zip(scanned, output_axes, backward, strict=True)):
        if not elements:
            info = output_types[states + i] if states + i < len(output_types) else None
            empty = _empty_scan(info)
            if info is not None and info.shape and axis:
                dims = [dim if isinstance(dim, int) and dim >= 0 else 0 for dim in info.shape]
                dims[normalize_axis(axis, len(dims), "scan_output_axes")] = 0
                empty = np.empty(dims, empty.dtype)
            stacked.append(empty)
            continue
        stacked.append(_stack(i, elements[::-1] if reverse else elements, axis))
    return (*final, *stacked)


@operator("Scan", since=8, shape_inputs=None)
def scan_8(
    sequence_lens: np.ndarray | None,
    *values: np.ndarray,
    body: Subgraph,
    num_scan_inputs: int,
    num_outputs: int,
    output_types: Sequence[TypeInfo | None] = (),
    directions: Sequence[int] | None = None,
) -> tuple[np.ndarray, ...]:
    """Version 8: a batch axis comes first everywhere, sequences may differ in length; zeros fill the rest."""
    states, made = _split(values, num_scan_inputs, num_outputs)
    backward = _directions("directions", directions, num_scan_inputs)
    scans = values[states:]
    if any(value.ndim < 2 for value in scans) or any(value.ndim < 1 for value in values):
        raise ValueError(f"inputs must be batched sequences, got shapes {[value.shape for value in values]}")
    batch, length = scans[0].shape[:2]
    if any(value.shape[0] != batch for value in values) or any(value.shape[1] != length for value in scans):
        raise ValueError(f"inputs must agree in batch and length, got {[value.shape for value in values]}")
    lengths = [length] * batch if sequence_lens is None else [int(n) for n in sequence_lens.reshape(-1)]
    if len(lengths) != batch or any(not 0 <= n <= length for n in lengths):
        raise ValueError(f"sequence_lens must be {batch} values in [0, {length}], got {lengths}")
    finals: list[tuple[Any, ...]] = []
    rows: list[list[np.ndarray | None]] = [[] for _ in range(made)]
    for n in range(batch):
        inputs = [v[n, : lengths[n]][::-1] if r else v[n, : lengths[n]] for v, r in zip(scans, backward, strict=True)]
        final, scanned = _scan(tuple(value[n] for value in values[:states]), inputs, lengths[n], body, made)
        finals.append(final)
        for i, elements in enumerate(scanned):
            if not elements:
                rows[i].append(None)
                continue
            row = _stack(i, elements)
            rows[i].append(np.concatenate((row, np.zeros((length - len(row), *row.shape[1:]), row.dtype))))
    outputs = [np.stack([final[i] for final in finals]) if finals else values[i] for i in range(states)]
    for i, row_list in enumerate(rows):
        known = next((row for row in row_list if row is not None), None)
        if known is None:
            outputs.append(_empty_scan(output_types[states + i] if states + i < len(output_types) else None))
        else:
            outputs.append(np.stack([np.zeros_like(known) if row is None else row for row in row_list]))
    return tuple(outputs)
