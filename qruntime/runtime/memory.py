"""How much memory a plan takes: weights, constants, and the tensors of a run at their peak."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from qruntime.ir import Graph, Value
from qruntime.ir.dtypes import numpy_dtype
from qruntime.runtime.plan import Plan


class MemoryUse(NamedTuple):
    """Bytes. Prints as the lines of `summary()`."""

    packed: int
    """Weights in the layout of the kernels."""
    constants: int
    """Constants that nodes read as they are."""
    mapped: int
    """How much of `constants` and `kept` lies in a mapped file, which the system can drop and read again."""
    kept: int
    """Weights that no node reads, as they were packed: `save()` writes them."""
    activations: int | None
    """Tensors and working memory of the last run when most of them were alive; None before the first run.

    Outputs are counted, inputs and what numpy needs inside a definition are not.
    """
    buffers: int
    """What is held between runs to be used again."""
    shapes: str
    """Inputs of the last run, or those that the next one needs."""

    def __str__(self) -> str:
        if self.activations is None:
            activations = f"known after a run, or by summary(feed) with {self.shapes}"
        else:
            activations = f"{self.activations:,} bytes at peak, with {self.shapes}; {self.buffers:,} held between runs"
        return "\n".join([
            "memory:",
            f"  packed weights: {self.packed:,} bytes",
            f"  other constants: {self.constants:,} bytes",
            f"  weights kept for save(): {self.kept:,} bytes",
            f"  of constants and kept weights mapped from the file: {self.mapped:,} bytes",
            f"  activations: {activations}",
        ])  # fmt: skip


def memory_use(plan: Plan, graph: Graph) -> MemoryUse:
    """What `plan` of `graph` takes, by its last run."""
    plans = list(_walk(plan))
    packed = {id(p): p.nbytes for one in plans for call in one.nodes if call.native for p in call.native.packed if p}
    constants = _distinct(v for one in plans for _, v in (*one.executable.native_constants, *one.executable.python_constants))
    kept = _distinct(v.data for v in graph.constants())
    kept = {key: array for key, array in kept.items() if key not in constants}
    runs = [run for one in plans if (run := one.executable.last_run())]
    main = plan.executable.last_run()
    if main is None:
        shapes = ", ".join(f"{v.name}: {v.type}" for v in graph.inputs)
    else:
        shapes = ", ".join(f"{v.name}{list(shape)}" for v, shape in zip(graph.inputs, main[2]))
    return MemoryUse(
        packed=sum(packed.values()),
        constants=_bytes(constants.values()),
        mapped=_bytes(a for a in (*constants.values(), *kept.values()) if is_mapped(a)),
        kept=_bytes(kept.values()),
        activations=sum(peak for peak, _, _ in runs) if main else None,
        buffers=sum(buffers for _, buffers, _ in runs),
        shapes=shapes or "no inputs",
    )


def blank_feed(inputs: Sequence[Value]) -> dict[str, np.ndarray] | None:
    """Zeros for every input, None when the shape of one is left open."""
    feed = {}
    for value in inputs:
        typ = value.type
        if typ is None or typ.kind != "tensor" or typ.shape is None or not all(isinstance(d, int) for d in typ.shape):
            return None
        feed[value.name] = np.zeros(typ.shape, numpy_dtype(typ.dtype))
    return feed


def is_mapped(array: np.ndarray) -> bool:
    """Whether the elements lie in a mapped file."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    return isinstance(owner, memoryview) and isinstance(owner.obj, mmap.mmap)


def _walk(plan: Plan) -> Iterator[Plan]:
    yield plan
    for below in plan.subplans:
        yield from _walk(below)


def _distinct(values: Iterable[Any]) -> dict[tuple[int, int], np.ndarray]:
    """Arrays by where they are: one that is read under several names or shapes counts once."""
    arrays = (value for value in values if isinstance(value, np.ndarray))
    return {(array.__array_interface__["data"][0], array.nbytes): array for array in arrays}


def _bytes(arrays: Iterable[np.ndarray]) -> int:
    return sum(array.nbytes for array in arrays)
