"""Passes that remove what does nothing: constants computed at run time, dead and duplicate nodes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from qruntime.ir import AttributeType, Graph, Node, TypeInfo, Value
from qruntime.ir.dtypes import onnx_code
from qruntime.ops import registry
from qruntime.passes.rewriting import trace

FOLDING_CAP = 1 << 20
"""Bytes a folded constant may have beyond what its inputs have: a few bytes of model must not become gigabytes."""


Made = dict[Any, tuple[Any, ...]]
"""Results by what was computed of what: both branches of an If may make the same weight, which is then held and written once."""

FEW = 512
"""Bytes up to which a folded constant may be larger than what it is computed from without being written as a program."""


def fold_constants(graph: Graph) -> None:
    """Compute nodes whose inputs are all constants, except what would only make the model larger.

    A Fourier matrix, a mask or a filter bank is a few nodes in the file and stays so: what holds more elements than all
    constants it comes from. Lowering computes those, too.
    """
    sources: dict[Value, frozenset[Value]] = {}
    folded: dict[Node, None] = {}
    made: Made = {}
    for nested in graph.walk_graphs():
        for node in nested.nodes:
            if _fold(node, made):
                folded[node] = None
                read = (sources.get(value, frozenset((value,))) for value in node.inputs if value is not None)
                sources.update(dict.fromkeys(node.outputs, frozenset().union(*read)))
    for node in _growing(folded, sources):
        del folded[node]
        for output in node.outputs:
            output.data = None
    _remove_folded(graph, folded)


def fold_all_constants(graph: Graph) -> None:
    """Compute every node whose inputs are all constants."""
    made: Made = {}
    folded = {node: None for nested in graph.walk_graphs() for node in nested.nodes if _fold(node, made)}
    _remove_folded(graph, folded)


def _remove_folded(graph: Graph, folded: Collection[Node]) -> None:
    for nested in graph.walk_graphs():
        gone = [node for node in nested.nodes if node in folded]
        for node in gone:
            for output in node.outputs:
                output.producer = None
        nested.remove(*gone)


def _growing(folded: Collection[Node], sources: dict[Value, frozenset[Value]]) -> set[Node]:
    """Nodes that make what is read elsewhere and holds more than its sources, and what those need of the same kind."""

    def grows(value: Value) -> bool:
        if value not in sources or value.data is None or _nbytes(value.data) <= FEW:
            return False
        return value.data.size > sum(source.data.size for source in sources[value] if source.data is not None)

    outputs = [output for node in folded for output in node.outputs]
    pending = [v for v in outputs if grows(v) and (v.output_of or any(user not in folded for user, _ in v.uses))]
    growing: set[Node] = set()
    while pending:
        node = pending.pop().producer
        if node is not None and node not in growing:
            growing.add(node)
            pending += [value for value in node.inputs if value is not None and grows(value)]
    return growing


def _fold(node: Node, made: Made) -> bool:
    read = []
    for value in node.inputs:
        if value is not None:
            if value.data is None:
                return False
            read.append(value)
    if not read or node.subgraphs:
        return False
    spec = registry.find(node.domain, node.op_type, node.version)
    if spec is None or not spec.deterministic or "num_outputs" in spec.keywords:
        return False
    budget = sum(_nbytes(v.data) for v in read) + FOLDING_CAP
    if _could_exceed(node, read, budget):
        trace(f"fold_constants declines at {node.label}: the result could exceed {budget} bytes")
        return False
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    if not spec.keywords.issuperset(attributes):
        return False
    computation = _computation(node, [None if v is None else _identity_of_data(v.data) for v in node.inputs])
    results = made.get(computation)
    if results is None:
        try:
            with np.errstate(all="ignore"):
                result = spec.definition(*(None if v is None else v.data for v in node.inputs), **attributes)
        except Exception as error:  # the run will report it, with the node's name
            trace(f"fold_constants declines at {node.label}: {error}")
            return False
        results = made[computation] = result if isinstance(result, tuple) else (result,)
    if len(results) < len(node.outputs) or not all(isinstance(r, (np.ndarray, np.generic)) for r in results):
        return False
    if sum(_nbytes(r) for r in results) > budget:
        return False
    for output, array in zip(node.outputs, results):
        array = np.asarray(array)
        output.data = array
        output.type = TypeInfo("tensor", onnx_code(array.dtype), array.shape)
    return True


_GROWING = {"Expand": 1, "Tile": 1, "ConstantOfShape": 0, "Pad": 1, "Resize": 3, "OneHot": 1, "Range": 1, "EyeLike": 0}


def _could_exceed(node: Node, read: list[Value], budget: int) -> bool:
    """For operators whose output size is in the data of an input: would it exceed the budget?"""
    if node.op_type not in _GROWING or node.domain:
        return False
    try:
        arrays = [v.data for v in read if v.data is not None]
        numbers = [a.astype(np.float64) for a in arrays if a.dtype.kind in "iuf" and a.size <= 64]
        if node.op_type == "Range":
            start, limit, delta = (float(np.asarray(v.data).flat[0]) for v in read)
            return delta == 0 or (limit - start) / delta * 8 > budget
        if node.op_type == "Tile":
            return float(np.prod(numbers[-1])) * _nbytes(read[0].data) > budget
        if node.op_type in ("Expand", "ConstantOfShape", "OneHot"):
            size = float(np.prod(np.maximum(np.abs(numbers[-1 if node.op_type != "OneHot" else 0]), 1)))
            return size * 16 * max(1, np.asarray(read[0].data).size if node.op_type == "OneHot" else 1) > budget * 2
        return any(float(np.abs(n).sum()) > 1e6 for n in numbers)
    except (ValueError, IndexError, TypeError):
        return True


def _nbytes(array: Any) -> int:
    array = np.asarray(array)
    return array.nbytes if array.dtype != object else 64 * array.size


def remove_identities(graph: Graph) -> None:
    """Drop nodes that hand their input on: Identity, inference Dropout, one-input Concat or Sum."""
    for nested in graph.walk_graphs():
        gone = []
        for node in nested.nodes:
            source = node.input(0)
            if source is None or not _hands_on(node) or any(output.is_read for output in node.outputs[1:]):
                continue
            if node.outputs[0].output_of and (source.producer is None or source.producer.graph is not nested):
                continue  # an output must be made in its own graph
            nested.replace_uses(node.outputs[0], source)
            gone.append(node)
        nested.remove(*gone)


def _hands_on(node: Node) -> bool:
    if node.is_op("Identity"):
        return True
    if node.is_op("Dropout"):
        training = node.input(2)
        return node.version >= 7 and (training is None or (training.is_constant and not bool(np.any(training.data))))
    return node.is_op("Concat", "Sum", "Max", "Min", "Mean") and len(node.inputs) == 1


def remove_dead_nodes(graph: Graph) -> None:
    """Drop nodes that no output needs."""
    for nested in reversed(list(graph.walk_graphs())):  # innermost first: it may be the last reader outside
        dead: list[Node] = []
        gone: set[Node] = set()
        for node in reversed(nested.nodes):
            if not _is_needed(node, gone):
                dead.append(node)
                gone.add(node)
        if dead:
            nested.remove(*dead)


def _is_needed(node: Node, gone: set[Node]) -> bool:
    for output in node.outputs:
        if output.output_of:
            return True
        for user, _ in output.uses:
            if user not in gone:
                return True
    return False


def merge_duplicates(graph: Graph) -> None:
    """Let nodes that compute the same share one result (random and control-flow nodes excepted)."""
    _merge_constants(graph)
    for nested in graph.walk_graphs():
        first: dict[Any, Node] = {}
        seen: dict[Any, Node] = {}
        gone = []
        for node in nested.nodes:
            if node.subgraphs or not node.inputs:
                continue
            alike = first.setdefault((node.op_type, node.inputs), node)
            if alike is node:
                continue  # most are; only the others are worth the whole comparison
            seen.setdefault(_identity_of(alike), alike)
            twin = seen.setdefault(_identity_of(node), node)
            spec = registry.find(node.domain, node.op_type, node.version)
            if twin is node or spec is None or not spec.deterministic or any(o.output_of for o in node.outputs):
                continue
            for old, new in zip(node.outputs, twin.outputs):
                nested.replace_uses(old, new)
            gone.append(node)
        if gone:
            nested.remove(*gone)


def _identity_of(node: Node) -> Any:
    metadata = (*sorted(node.metadata.items()), node.mark)
    return (_computation(node, [id(v) for v in node.inputs]), metadata)


def _computation(node: Node, read: Sequence[Any]) -> Any:
    """What a node computes of `read`, which says of each input what it is."""
    attributes = []
    for name, attribute in sorted(node.attributes.items()):
        value = attribute.value
        if attribute.type is AttributeType.TENSOR:
            value = (value.dtype.str, value.shape, value.tobytes()) if value.dtype != object else id(value)
        elif attribute.type > AttributeType.STRINGS:
            value = id(value)
        attributes.append((name, attribute.type, repr(value) if isinstance(value, float) else value))
    return (node.op_type, node.domain, node.version, tuple(read), tuple(attributes), len(node.outputs))


_SMALL = 4096


def _merge_constants(graph: Graph) -> None:
    """Constants with the same bytes become one, so that nodes that read them can be recognised as equal."""
    seen: dict[Any, Value] = {}
    for value in graph.constants():
        if value.data is None or value.data.dtype == object:
            continue
        twin = seen.setdefault(_identity_of_data(value.data), value)
        if twin is not value:
            graph.replace_uses(value, twin)


def _identity_of_data(data: Any) -> Any:
    """Equal for arrays that hold the same: small ones by their bytes, others by where they lie."""
    data = np.asarray(data)
    if data.dtype == object:
        return id(data)
    if data.nbytes <= _SMALL:
        return (data.dtype, data.shape, data.tobytes())
    return (data.dtype, data.shape, data.strides, data.__array_interface__["data"][0])
