"""Running an operator both ways: by its numpy definition and by the kernel its binder chooses."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

import qruntime.ops  # noqa: F401  (registers the definitions)
from qruntime import _kernels
from qruntime.ir import Attribute, AttributeType, Node, Value
from qruntime.ops import registry


def _attribute(value: Any) -> Attribute:
    if isinstance(value, np.ndarray):
        return Attribute(AttributeType.TENSOR, value)
    if isinstance(value, str):
        return Attribute(AttributeType.STRING, value)
    if isinstance(value, (tuple, list)):
        kinds = {str: AttributeType.STRINGS, float: AttributeType.FLOATS}
        return Attribute(kinds.get(type(value[0]) if value else int, AttributeType.INTS), tuple(value))
    return Attribute(AttributeType.FLOAT if isinstance(value, float) else AttributeType.INT, value)


def run_native(
    op: str,
    inputs: Sequence[np.ndarray | None],
    *,
    version: int = 24,
    domain: str = "",
    num_outputs: int = 1,
    num_threads: int = 1,
    constants: Collection[int] = (),
    **attributes: Any,
) -> list[np.ndarray] | None:
    """Outputs of the kernel; None when binder or kernel decline. The binder sees inputs at `constants` as such."""
    spec = registry.find(domain, op, version)
    values = [None if x is None else Value(f"x{i}", data=x if i in constants else None) for i, x in enumerate(inputs)]
    outputs = [Value(f"y{i}") for i in range(num_outputs)]
    node = Node(op, values, outputs, {k: _attribute(v) for k, v in attributes.items()}, domain=domain, version=version)
    assert spec is not None
    assert spec.binder is not None
    call = spec.binder(node)
    if call is None:
        return None
    chosen = range(len(inputs)) if call.inputs is None else call.inputs
    arrays = [inputs[i] if i < len(inputs) else None for i in chosen]
    return _kernels.call_node(call.kernel, arrays, call.ints, call.floats, call.packed, num_outputs=num_outputs, num_threads=num_threads)


def run_definition(
    op: str, inputs: Sequence[np.ndarray | None], *, version: int = 24, domain: str = "", num_outputs: int = 1, **attributes: Any
) -> list[np.ndarray]:
    spec = registry.find(domain, op, version)
    assert spec is not None
    if "num_outputs" in spec.keywords:
        attributes.setdefault("num_outputs", num_outputs)
    result = spec.definition(*inputs, **attributes)
    return list(result) if isinstance(result, tuple) else [result]


def same_bits(x: np.ndarray, y: np.ndarray) -> None:
    assert (x.dtype, x.shape) == (y.dtype, y.shape)
    assert np.ascontiguousarray(x).tobytes() == np.ascontiguousarray(y).tobytes(), f"{x!r} is not {y!r}"


def check(op: str, inputs: Sequence[np.ndarray | None], **options: Any) -> list[np.ndarray]:
    """The kernel must serve the case, with the bits of the definition; its outputs."""
    threads = options.pop("num_threads", 1)
    before = [None if x is None else x.copy() for x in inputs]
    native = run_native(op, inputs, num_threads=threads, **options)
    for x, copy in zip(inputs, before, strict=True):
        if x is not None and copy is not None:
            same_bits(x, copy)
    assert native is not None, "the kernel declined"
    for x, y in zip(native, run_definition(op, inputs, **options), strict=True):
        same_bits(x, np.asarray(y))
    return native


def check_agreement(op: str, inputs: Sequence[np.ndarray | None], **options: Any) -> None:
    """For input that may be bad: the kernel declines whatever the definition refuses, and agrees on the rest."""
    native = run_native(op, inputs, **options)
    try:
        with np.errstate(all="ignore"):
            expected = run_definition(op, inputs, **options)
    except Exception:
        assert native is None, "the definition refuses what the kernel accepts"
        return
    if native is not None:
        for x, y in zip(native, expected, strict=True):
            same_bits(x, np.asarray(y))
