"""How much memory a model takes: its weights, and the tensors of a run when most of them are alive."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from qruntime.ir import Graph, Value
from qruntime.ir.dtypes import numpy_dtype
from qruntime.onnx_io.mapped_file import is_mapped
from qruntime.runtime.inputs import fixed_shape
from qruntime.runtime.plan import Plan, Unpacking


class MemoryUse(NamedTuple):
    """Bytes, each counted once. Prints as the lines of `summary()`."""

    packed: int
    """Weights in the layout of the kernels."""
    constants: int
    """Other constants that a run reads, in memory."""
    originals: int
    """What was packed, where it is in memory once more: `save()` writes it. Codes made here are not; they are unpacked."""
    mapped: int
    """Constants and originals in the mapped file; its pages come and go as they are read."""
    activations: int | None
    """Tensors and working memory of a run at their peak, outputs included and inputs not; None before the first run.

    Temporary arrays within numpy definitions are not counted.
    """
    buffers: int
    """Memory of activations that is kept for the next run."""
    inputs: str
    """Inputs of that run, or those that one needs."""

    def __str__(self) -> str:
        if self.activations is None:
            activations = f"peak unknown before a run, or summary(feed), with {self.inputs}"
        else:
            activations = f"{self.activations:,} bytes at peak with {self.inputs}, {self.buffers:,} kept for the next run"
        return "\n".join([
            f"memory: {self.packed + self.constants + self.originals:,} bytes of weights, {self.mapped:,} more in the mapped file",
            f"  packed for the kernels {self.packed:,}, other constants {self.constants:,}, originals for save() {self.originals:,}",
            f"  activations: {activations}",
        ])  # fmt: skip


def memory_use(plan: Plan, graph: Graph) -> MemoryUse:
    """What `plan`, made of `graph`, holds, and what its last run needed."""
    plans = list(plan.walk())
    nodes = [call for one in plans for call in one.nodes]
    packed = {id(p): p for call in nodes if call.native for p in call.native.packed if p is not None}
    for value in graph.stored_constants():
        if value.stored is not None and isinstance(source := value.stored.held.source, Unpacking):
            packed |= {id(p): p for p in source.packed}
    constants = _distinct(array for one in plans for _, array in one.executable.native_constants)
    constants |= _distinct(a for call in nodes if call.native is None for v in call.arguments if v is not None for a in v.arrays())
    constants |= _distinct(array for call in nodes for _, array in call.widened)
    originals = _distinct(a for v in (*graph.constants(), *graph.stored_constants()) for a in v.arrays())
    for key in constants:
        originals.pop(key, None)
    runs = [run for one in plans if (run := one.executable.last_run())]
    last = plan.executable.last_run()
    if last is None:
        inputs = ", ".join(f"{value.name}: {value.type}" for value in graph.inputs)
    else:
        inputs = ", ".join(f"{value.name}{list(shape)}" for value, shape in zip(graph.inputs, last[2]))
    everything = [*constants.values(), *originals.values()]
    return MemoryUse(
        packed=sum(p.nbytes for p in packed.values()),
        constants=_bytes(array for array in constants.values() if not is_mapped(array)),
        originals=_bytes(array for array in originals.values() if not is_mapped(array)),
        mapped=_bytes(array for array in everything if is_mapped(array)),
        activations=None if last is None else sum(peak for peak, _, _ in runs),
        buffers=sum(kept for _, kept, _ in runs),
        inputs=inputs or "no inputs",
    )


def blank_feed(inputs: Sequence[Value]) -> dict[str, np.ndarray] | None:
    """Zeros for every input; None when the shape of one is left open."""
    feed = {}
    for value in inputs:
        shape = fixed_shape(value)
        if value.type is None or value.type.dtype == 0 or shape is None or -1 in shape:
            return None
        feed[value.name] = np.zeros(shape, numpy_dtype(value.type.dtype))
    return feed


def _distinct(values: Iterable[Any]) -> dict[tuple[int, int], np.ndarray]:
    """Arrays by where they lie: what is read under several names or shapes counts once."""
    arrays = (value for value in values if isinstance(value, np.ndarray))
    return {(array.__array_interface__["data"][0], array.nbytes): array for array in arrays}


def _bytes(arrays: Iterable[np.ndarray]) -> int:
    return sum(array.nbytes for array in arrays)
