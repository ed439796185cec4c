"""Where a graph keeps keys and values from run to run, found by what it does with them.

A cache is an input, or a part of one, that new keys or values are appended to, that attention reads so, and that an output
gives back. What stands between is moves (Gather, Unsqueeze, Transpose, …) that leave the last axis, the channels of a head,
whole; so all of them can as well be done to codes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from qruntime.ir import Graph, Node, Value
from qruntime.ops.contrib.domain import MICROSOFT
from qruntime.passes.head_layouts import axes_of, perm_of
from qruntime.quantization.reasons import Reason

KEY, VALUE = "key", "value"

Axes = tuple[int | None, ...]
"""Which axis of a graph input each axis of a part of it is; None for one that a move has made."""


class AttentionPlaces(NamedTuple):
    """Where an operator takes past and new keys and values and gives both together: input, input, output."""

    past: tuple[int, int]
    new: tuple[int, int]
    grown: tuple[int, int]


ATTENTION = {
    ("", "Attention"): AttentionPlaces((4, 5), (1, 2), (1, 2)),
    (MICROSOFT, "MultiHeadAttention"): AttentionPlaces((6, 7), (1, 2), (1, 2)),
}
"""Operators that append by themselves what they are given as it is."""

_OTHER_ATTENTION = {
    "Attention": (4,),
    "DecoderMaskedMultiHeadAttention": (5, 6),
    "DecoderMaskedSelfAttention": (4,),
    "GroupQueryAttention": (3, 4),
    "PagedAttention": (3, 4),
    "SparseAttention": (3, 4),
}
"""Of com.microsoft, with the inputs that are caches: new keys come to be, or find their place, inside of them."""

_SCATTERS = ("ScatterND", "ScatterElements", "Scatter")
_PRODUCTS = frozenset({("", "MatMul"), ("", "Einsum"), ("", "Gemm"), (MICROSOFT, "FusedMatMul"), (MICROSOFT, "TransposeMatMul")})
_LAYOUT = (
    "Cast", "Concat", "Div", "Expand", "Gather", "Identity", "Mul", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose",
    "Unsqueeze",
)  # fmt: skip
"""What may stand between a cache and a product of attention."""
_MOVES = ("Concat", "Gather", "Identity", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
_AROUND_SOFTMAX = ("Cast", "Dropout", "Identity", "Reshape", "Transpose", "Where")

_FLOATS, _DOUBLE = (1, 10, 16), 11
"""Element types: float32, float16 and bfloat16; float64."""


@dataclass(eq=False)
class Cache:
    """The keys or the values of one layer, in front of their attention."""

    name: str
    """The input and which part of it: past[3, 0]."""
    role: str
    """KEY or VALUE."""
    input: Value
    past: Value
    """[..., tokens, channels], the part of the input."""
    join: Node
    """Concat, TensorScatter, or an attention of ATTENTION."""
    new: list[Value]
    """What `join` appends."""
    grown: Value
    """What it makes."""
    axes: Axes
    axis: int
    """That of the tokens."""
    channels: int


@dataclass(eq=False)
class CacheInput:
    """A graph input with all that reads it."""

    value: Value
    caches: list[Cache] = field(default_factory=list)
    carriers: dict[Value, tuple[Axes, str]] = field(default_factory=dict)
    """The input and its parts, each with its axes and its place in the input."""
    outputs: list[int] = field(default_factory=list)
    """Positions of the graph outputs that give it back."""
    is_extended: bool = False
    """Whether what extends it is attention, or leads to an output."""
    fault: Reason | None = None

    @property
    def channels(self) -> int:
        return self.caches[0].channels


def find_caches(graph: Graph) -> list[CacheInput]:
    """Inputs that are caches, those that cannot be codes with the `fault`."""
    found = [one for value in graph.inputs if value not in graph.input_defaults and (one := _candidate(graph, value)) is not None]
    inputs = {carrier: one.value for one in found for carrier in one.carriers}
    for one in found:
        one.fault = one.fault or _ambiguous(one, inputs) or _attended(one) or _given_back(graph, one)
    check_outputs(graph, found)
    order = {node: position for position, node in enumerate(graph.nodes)}
    for one in found:
        one.caches.sort(key=lambda cache: order.get(cache.join, 0))
    return found


# ------------------------------------------------------------------------- from an input to where it grows


def _candidate(graph: Graph, value: Value) -> CacheInput | None:
    """None for an input that is no cache: nothing extends it, or no output gives that back."""
    kind = value.type
    if kind is None or kind.kind != "tensor" or kind.shape is None or len(kind.shape) < 3 or kind.dtype not in (*_FLOATS, _DOUBLE):
        return None
    found = follow(graph, value)
    if kind.dtype == _DOUBLE:
        found.fault = Reason("it is float64; keys and values of at most float32 can be codes")
    elif not _channels(value):
        found.fault = Reason(f"the size of its last axis, the channels of a head, is not known: {kind}")
    return found if found.is_extended else None


def follow(graph: Graph, value: Value) -> CacheInput:
    """What reads an input, how far it can be followed; roles and outputs are not known yet."""
    rank = len(value.type.shape) if value.type is not None and value.type.shape is not None else 0
    found, faults, stack = CacheInput(value), [], [value]
    found.carriers[value] = tuple(range(rank)), ""
    while stack:
        part = stack.pop()
        if part.output_of:
            faults.append("an output gives it back as it came")
        for node, index in part.uses:
            if node.is_op("Shape"):
                continue
            joined = _join(found, part, node, index)
            if joined is None:
                moved = _moved_on(found, part, node, index)
                stack += moved
                if not moved:
                    faults.append(f"{node.label} reads it, and neither moves nor extends it")
                continue
            found.is_extended |= is_attention(node) or any(v.output_of for v in _moved_from(node.outputs[0]))
            if isinstance(joined, Reason):
                faults.append(joined)
            else:
                found.caches.append(joined)
            if node.graph is not graph:
                faults.append(f"{node.label} extends it inside of a subgraph")
    pasts = Counter(cache.join for cache in found.caches if not is_attention(cache.join))
    faults += [f"{node.label} joins {count} parts of it" for node, count in pasts.items() if count > 1]
    found.fault = Reason(faults[0]) if faults else None
    return found


def is_attention(node: Node) -> bool:
    """Whether an operator that extends a cache is attention itself."""
    return (node.domain, node.op_type) in ATTENTION or (node.domain == MICROSOFT and node.op_type in _OTHER_ATTENTION)


def _join(found: CacheInput, part: Value, node: Node, index: int) -> Cache | Reason | None:
    """The cache that `node` makes of `part`, why it cannot be one, or None where nothing is appended."""
    axes, place = found.carriers[part]
    places = ATTENTION.get((node.domain, node.op_type))
    if node.domain == MICROSOFT and index in _OTHER_ATTENTION.get(node.op_type, ()):
        return Reason(f"{node.label} makes or places new keys inside of it; export the model with attention in standard operators")
    if places is not None:
        return _attention_join(found, part, node, places.past.index(index), places) if index in places.past else None
    if node.is_op(*_SCATTERS) and index == 0:
        return Reason(f"{node.label} writes new tokens into it; Concat and TensorScatter can be done to codes")
    if node.is_op("Concat"):
        axis, new = node.attr("axis", 1), [v for i, v in enumerate(node.inputs) if v is not None and i != index]
    elif node.is_op("TensorScatter") and index == 0:
        axis, new = node.attr("axis", -2), [v for v in node.inputs[1:2] if v is not None]
    else:
        return None
    if not new or not isinstance(axis, int) or not -len(axes) <= axis < len(axes):
        return None
    axis %= len(axes)
    if axis == len(axes) - 1:
        return Reason(f"{node.label} appends along its last axis, which must be the channels of a head")
    if axes[axis] is None:
        return None
    return Cache(_named(found, place), "", found.value, part, node, new, node.outputs[0], axes, axis, _channels(found.value))


def _attention_join(found: CacheInput, part: Value, node: Node, which: int, places: AttentionPlaces) -> Cache | Reason:
    axes, place = found.carriers[part]
    new = node.input(places.new[which])
    if len(axes) != 4:
        return Reason(f"{node.label} reads a past of {len(axes)} dimensions, need 4")
    if new is None or len(node.outputs) <= places.grown[which]:
        return Reason(f"{node.label} has no keys or values of its own, or does not give them back with its past")
    if node.domain and any(node.input(i) is not None for i in (3, 8, 9)):
        return Reason(f"{node.label} adds a bias to new keys, or keeps them in a buffer of its own")
    role, grown = (KEY, VALUE)[which], node.outputs[places.grown[which]]
    return Cache(_named(found, place), role, found.value, part, node, [new], grown, axes, 2, _channels(found.value))


def _named(found: CacheInput, place: str) -> str:
    return f"{found.value.name}[{place}]" if place else found.value.name


def _channels(value: Value) -> int:
    last = value.type.shape[-1] if value.type is not None and value.type.shape else None
    return last if isinstance(last, int) else 0


def _moved_on(found: CacheInput, part: Value, node: Node, index: int) -> list[Value]:
    """The parts that a move makes of `part`, now carriers; none where `node` is no move."""
    axes, place = found.carriers[part]
    after = _axes_after(node, axes) if index == 0 else None
    if after is None or any(output in found.carriers for output in node.outputs):
        return []
    for number, output in enumerate(node.outputs):
        own = str(number) if node.is_op("Split") else _chosen(node)
        found.carriers[output] = after, ", ".join(filter(None, (place, own)))
    return list(node.outputs)


def _chosen(node: Node) -> str:
    """Which part a Gather takes."""
    data = node.inputs[1].data if node.is_op("Gather") and node.inputs[1] is not None else None
    return str(data.reshape(-1)[0]) if data is not None and data.size == 1 else ""


def _axes_after(node: Node, axes: Axes) -> Axes | None:
    """The axes of what a move makes; None where `node` is none, or touches the last axis."""
    rank, last = len(axes), len(axes) - 1
    if node.is_op("Identity"):
        return axes
    if node.is_op("Gather"):
        axis, indices = node.attr("axis", 0), node.input(1)
        if indices is None or indices.data is None or not -rank <= axis < rank or axis % rank == last:
            return None
        axis %= rank
        return axes[:axis] + ((axes[axis],) if indices.data.ndim == 1 else (None,) * indices.data.ndim) + axes[axis + 1 :]
    if node.is_op("Split", "Concat"):
        axis = node.attr("axis", 0)
        return axes if -rank <= axis < rank and axis % rank != last else None
    if node.is_op("Transpose"):
        perm = perm_of(node)
        return tuple(axes[p] for p in perm) if perm is not None and sorted(perm) == list(range(rank)) and perm[-1] == last else None
    if node.is_op("Slice"):
        return axes if all(axis != last for axis in _sliced(node, rank)) else None
    if node.is_op("Squeeze", "Unsqueeze"):
        return _with_ones(axes, axes_of(node), node.op_type)
    return None


def _sliced(node: Node, rank: int) -> list[int]:
    """The axes that a Slice cuts, the last one among them where they are not known."""
    axes = axes_of(node) if node.input(3) is None else None
    given = node.input(3)
    if given is not None:
        axes = None if given.data is None else tuple(given.data.reshape(-1).tolist())
    if axes is None or not all(-rank <= axis < rank for axis in axes):
        return [rank - 1]
    return [axis % rank for axis in axes]


def _with_ones(axes: Axes, named: tuple[int, ...] | None, op_type: str) -> Axes | None:
    """After a Squeeze or Unsqueeze of the axes `named`."""
    rank = len(axes) + (len(named or ()) if op_type == "Unsqueeze" else 0)
    if named is None or not all(-rank <= axis < rank for axis in named):
        return None
    at = {axis % rank for axis in named}
    if len(at) < len(named) or rank - 1 in at or rank > 8:
        return None
    if op_type == "Squeeze":
        return tuple(axis for i, axis in enumerate(axes) if i not in at)
    rest = iter(axes)
    return tuple(None if i in at else next(rest) for i in range(rank))


def _ambiguous(found: CacheInput, inputs: dict[Value, Value]) -> Reason | None:
    """Where two inputs are joined nothing says which of them is the past."""
    for cache in found.caches:
        for new in cache.new:
            if new in inputs:
                return Reason(f"{cache.join.label} joins it with input {inputs[new].name!r}: which of them is the past is not known")
    return None


# ------------------------------------------------------------------------- from where it grows to attention and to the outputs


def _attended(found: CacheInput) -> Reason | None:
    """Finds the roles of the caches; why one has none."""
    for cache in found.caches:
        if not is_attention(cache.join):
            role = _role(cache.grown)
            if isinstance(role, Reason):
                return role
            cache.role = role
    return None


def _role(grown: Value) -> str | Reason:
    """What attention takes `grown` for."""
    role, seen, stack = "", {grown}, [grown]
    while stack:
        value = stack.pop()
        for node, index in value.uses:
            if (node.domain, node.op_type) in _PRODUCTS and len(node.inputs) == 2:
                other = node.inputs[1 - index]
                if other is not None and not other.is_constant:
                    role = VALUE if _comes_from_softmax(other) else KEY
                    continue
            if (node.domain, node.op_type) in ATTENTION and index in (1, 2):
                role = (KEY, VALUE)[index - 1]
            elif (node.is_op(*_LAYOUT) and index == 0) or node.is_op("Concat", "Mul"):
                fresh = [output for output in node.outputs if output not in seen]
                seen.update(fresh)
                stack += fresh
            elif not node.is_op("Shape"):
                return Reason(f"{node.label} reads it with its new tokens, which is no attention")
    return role or Reason("no attention reads it with its new tokens")


def _comes_from_softmax(value: Value | None) -> bool:
    for _ in range(16):
        node = None if value is None else value.producer
        if node is None or not node.is_op(*_AROUND_SOFTMAX, "Softmax"):
            return False
        if node.is_op("Softmax"):
            return True
        value = node.input(2 if node.is_op("Where") else 0)
    return False


def _given_back(graph: Graph, found: CacheInput) -> Reason | None:
    """Finds the outputs that the caches reach by moves; why one of them reaches none."""
    reached: set[Value] = set()
    for cache in found.caches:
        given = {value for value in _moved_from(cache.grown) if graph in value.output_of}
        if not given:
            return Reason(f"no output gives back what {cache.join.label} makes")
        reached |= given
    found.outputs = [i for i, value in enumerate(graph.outputs) if value in reached]
    return None


def _moved_from(value: Value) -> set[Value]:
    """`value` and what moves make of it."""
    reached, stack = {value}, [value]
    while stack:
        for node, _ in stack.pop().uses:
            if node.is_op(*_MOVES):
                fresh = [output for output in node.outputs if output not in reached]
                reached.update(fresh)
                stack += fresh
    return reached


def check_outputs(graph: Graph, found: list[CacheInput]) -> None:
    """Inputs whose outputs hold something else beside caches that can be codes get a fault."""
    is_changed = True
    while is_changed:
        is_changed = False
        fit = [one for one in found if one.fault is None]
        grown = {cache.grown: cache for one in fit for cache in one.caches}
        for one in fit:
            for position in one.outputs:
                held = _held(graph.outputs[position], grown)
                if held is None or any(cache.channels != one.channels for cache in held):
                    one.fault = Reason(f"output {graph.output_names[position]!r} holds more than caches that can be codes")
                    is_changed = True
                    break


_DEEPEST = 64


def _held(output: Value, grown: dict[Value, Cache]) -> list[Cache] | None:
    """The caches that `output` is put together of by moves; None where it holds something else."""
    ranks: dict[Value, int | None] = {}
    held: list[Cache] = []

    def rank_of(value: Value | None, depth: int) -> int | None:
        if value is None or depth > _DEEPEST:
            return None
        if value not in ranks:
            ranks[value] = made(value, depth)
        return ranks[value]

    def made(value: Value, depth: int) -> int | None:
        if value in grown:
            held.append(grown[value])
            return len(grown[value].axes)
        node = value.producer
        if node is None or not node.is_op(*_MOVES):
            return None
        below = {rank_of(one, depth + 1) for one in (node.inputs if node.is_op("Concat") else node.inputs[:1])}
        rank = below.pop() if len(below) == 1 else None
        after = None if rank is None else _axes_after(node, (None,) * rank)
        return None if after is None else len(after)

    return held if rank_of(output, 0) is not None else None
