"""Where the time of a run goes, node by node."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from qruntime.ir import Node
from qruntime.ops.channel_blocks import BLOCK
from qruntime.ops.registry import NativeCall
from qruntime.runtime.plan import PlannedNode

_RECURRENT = frozenset({"lstm", "gru", "rnn"})
_LINEAR = frozenset({"linear", "clustered_linear"})
_WEIGHTS_OF_CONVOLUTIONS = {
    "BlockedConv": 1, "BlockedQuantizedConv": 1, "Conv": 1, "DynamicQuantizedConv": 1, "FusedConv": 1, "QLinearConv": 3,
}  # fmt: skip
"""Which input is the weight [M, C / group, *kernel]."""


class NodeTime(NamedTuple):
    """`seconds` is the median over the repetitions; `kernel` is the C function that did the work, None where `source` says
    that the numpy definition or onnx's reference did, because there is no kernel or because it declined.

    A node with subgraphs has `source` "subgraphs": its time is mostly theirs, and their nodes run as they are planned.

    `operations` counts products with constant weights, two for each multiply-add, as they are defined: kernels may get by with
    fewer (Winograd). None for other nodes, and for transposed convolutions.
    """

    name: str
    op_type: str
    kernel: str | None
    seconds: float
    operations: int | None = None
    source: str = "numpy"

    @property
    def ran_as(self) -> str:
        """The kernel, or what ran in its place."""
        return self.kernel or self.source


class Profile(NamedTuple):
    """Times of the nodes of one plan in running order. Prints as a table by operator."""

    nodes: tuple[NodeTime, ...]

    @property
    def seconds(self) -> float:
        return sum(node.seconds for node in self.nodes)

    def by_operator(self) -> list[tuple[str, str, int, float]]:
        """(operator, kernel, number of nodes, seconds), the longest first."""
        counts: dict[tuple[str, str], int] = defaultdict(int)
        times: dict[tuple[str, str], float] = defaultdict(float)
        for node in self.nodes:
            key = (node.op_type, node.ran_as)
            counts[key] += 1
            times[key] += node.seconds
        return [(*key, counts[key], times[key]) for key in sorted(times, key=times.__getitem__, reverse=True)]

    def shares(self) -> dict[str, float]:
        """Fractions of the time by what computed it: "native", "numpy", "reference", "subgraphs"; no entry where it is 0."""
        times: dict[str, float] = defaultdict(float)
        for node in self.nodes:
            times[node.source] += node.seconds
        total = self.seconds or 1.0
        order = ("native", "numpy", "reference", "subgraphs")
        return {source: times[source] / total for source in order if times[source]}

    def without_kernel(self) -> list[tuple[str, str, int, float]]:
        """(operator, what ran, number of nodes, fraction of the time) of all that no kernel computed, the longest first."""
        slow = {(node.op_type, node.source) for node in self.nodes if node.kernel is None}
        total = self.seconds or 1.0
        return [(op, ran, count, seconds / total) for op, ran, count, seconds in self.by_operator() if (op, ran) in slow]

    def _operations(self, op_type: str, kernel: str) -> int:
        found = (node for node in self.nodes if (node.op_type, node.ran_as) == (op_type, kernel))
        return sum(node.operations or 0 for node in found)

    def __str__(self) -> str:
        lines = [f"{'operator':30}{'kernel':18}{'nodes':>6}{'µs':>12}{'share':>8}{'GOPS':>9}"]
        total = self.seconds or 1.0
        for op_type, kernel, count, seconds in self.by_operator():
            operations = self._operations(op_type, kernel)
            speed = f"{operations / seconds / 1e9:9,.0f}" if operations and seconds else ""
            lines.append(f"{op_type:30}{kernel:18}{count:6}{seconds * 1e6:12.1f}{seconds / total:8.1%}{speed}")
        lines.append(f"{'total':48}{len(self.nodes):6}{self.seconds * 1e6:12.1f}")
        slow = {source: share for source, share in self.shares().items() if source != "native"}
        if slow:
            lines.append("without a kernel: " + ", ".join(f"{share:.1%} {source}" for source, share in slow.items()))
        return "\n".join(lines)

    def to_json(self) -> str:
        """One object: schema, seconds, nodes."""
        nodes = [node._asdict() for node in self.nodes]
        return json.dumps({"schema": 1, "seconds": self.seconds, "nodes": nodes}, indent=1)

    def to_chrome_trace(self) -> str:
        """Events for chrome://tracing and Perfetto, one run laid out in time."""
        events: list[dict[str, Any]] = []
        start = 0.0
        for node in self.nodes:
            events.append(
                {"name": node.name, "cat": node.op_type, "ph": "X", "pid": 0, "tid": 0, "ts": start * 1e6,
                 "dur": node.seconds * 1e6, "args": {"kernel": node.ran_as}}
            )  # fmt: skip
            start += node.seconds
        return json.dumps({"traceEvents": events})


def make_profile(ran: Sequence[PlannedNode], runs: Sequence[Sequence[tuple[float, int]]]) -> Profile:
    """Medians over `runs`, each the (seconds, elements of the first output) of every node."""
    nodes = []
    for index, call in enumerate(ran):
        times = sorted(run[index][0] for run in runs)
        name = call.node.name or (call.node.outputs[0].name if call.node.outputs else call.node.op_type)
        operations = _operations(call, runs[0][index][1])
        source = "subgraphs" if call.subplans else call.source
        nodes.append(NodeTime(name, call.node.op_type, call.kernel, times[len(times) // 2], operations, source))
    return Profile(tuple(nodes))


def _operations(call: PlannedNode, elements: int) -> int | None:
    if elements < 0:
        return None
    if call.node.op_type in _WEIGHTS_OF_CONVOLUTIONS:
        return _operations_of_convolution(call.node, elements)
    return None if call.native is None else _operations_of_rows(call.native, elements)


def _operations_of_convolution(node: Node, elements: int) -> int | None:
    """Every element of the output has met the weights of one map."""
    weight = node.input(_WEIGHTS_OF_CONVOLUTIONS[node.op_type])
    if weight is None or weight.shape is None or len(weight.shape) < 3:
        return None
    maps, *window = weight.shape
    if node.op_type.startswith("Blocked") and maps:  # channels are filled up to whole blocks
        elements = elements // (-(-maps // BLOCK) * BLOCK) * maps
    return 2 * elements * math.prod(window)


def _operations_of_rows(native: NativeCall, elements: int) -> int | None:
    """Every row of the output has met all packed weights once."""
    if native.kernel == "qlinear_matmul":
        shapes = [native.packed[0].shape]
    elif native.kernel in _RECURRENT | _LINEAR:
        shapes = [packed.shape for packed in native.packed]
    else:
        return None
    if native.kernel in _RECURRENT:
        hidden, direction = native.ints[:2]
        row = hidden * (2 if direction == 2 else 1)
    else:
        row = shapes[0][1]
    return 2 * (elements // row if row else 0) * sum(k * n for k, n in shapes)
