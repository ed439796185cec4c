"""Keys and values of a cache as codes of 2, 4 or 8 bits: `quantize_caches`.

What an input of keys or values was becomes two: codes, uint8 [..., channels · bits / 8], under its name, and `<name>_ranges`,
float32 [..., 2 · clusters], the scales and lows of each token and head (ops/cache_codes.py); outputs that give it back
likewise. New keys and values are quantized once, where they enter the cache: keys after their rotary embedding, as attention
reads them. Attention reads what codes stand for, of the current tokens too, so that a prompt in one run and in many gives the
same. An empty cache is two empty arrays.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from qruntime.errors import QuantizationError
from qruntime.ir import QRUNTIME, Dim, Graph, Node, TypeInfo, UnusedValue, Value, constant
from qruntime.ir.formats import FORMATS, Format
from qruntime.ops.cache_codes import BITS, MOST_CLUSTERS
from qruntime.passes.cleanup import remove_dead_nodes
from qruntime.passes.pieces import Pieces
from qruntime.passes.rewriting import as_attribute
from qruntime.passes.stored.cache_functions import LEAST_OPSET
from qruntime.passes.stored.writing import standard_opset
from qruntime.passes.symbolic_shapes import rank
from qruntime.quantization.cache_search import ATTENTION, KEY, Cache, CacheInput, check_outputs, find_caches, follow, is_attention
from qruntime.quantization.reasons import Reason
from qruntime.quantization.report import QuantizedCache, SkippedLayer

_FLOAT, _UINT8 = 1, 2

Clusters = Mapping[str, np.ndarray]
"""By the name of a cache, the cluster of every channel of every head: integers [heads, channels], or [channels] for all heads."""


class CacheResult(NamedTuple):
    """Caches that are codes now, and inputs that stay float with the reasons."""

    caches: tuple[QuantizedCache, ...]
    skipped: tuple[SkippedLayer, ...]


def quantize_caches(graph: Graph, form: Format, clusters: Clusters | None = None) -> CacheResult:
    """Make codes of all caches of `graph`, in place. `clusters` divides the channels of a head; each has a range of its own.

    Raises QuantizationError for a format that caches do not have, and for clusters that do not fit the caches.
    """
    found, opset = caches_for(graph, form), standard_opset(graph)
    skipped = [SkippedLayer(one.value.name, "cache", one.fault) for one in found if one.fault is not None]
    if not found:
        skipped.append(SkippedLayer(graph.name, "cache", Reason("no input is extended, read by attention and given back")))
    fit = [one for one in found if one.fault is None]
    caches = [cache for one in fit for cache in one.caches]
    if caches:
        _Rewriting(graph, form.bits, _labels(caches, clusters or {}), opset).rewrite(fit)
        remove_dead_nodes(graph)
        graph.sort()
    return CacheResult(describe_caches(graph), tuple(skipped))


def caches_for(graph: Graph, form: Format) -> list[CacheInput]:
    """Inputs that are caches, those that cannot be codes of `form` with the `fault`. QuantizationError for a format that no cache has."""
    if form not in [FORMATS[f"uint{bits}"] for bits in BITS]:
        raise QuantizationError(f"caches hold uint2, uint4 or uint8 codes, got {form}")
    found, opset = find_caches(graph), standard_opset(graph)
    for one in found:
        one.fault = one.fault or _misfit(one, form, opset)
    check_outputs(graph, found)
    return found


def _misfit(one: CacheInput, form: Format, opset: int) -> Reason | None:
    if opset < LEAST_OPSET:
        return Reason(f"opset {opset} lacks the arithmetic, need {LEAST_OPSET}")
    if one.channels * form.bits % 8:
        return Reason(f"{one.channels} codes of {form.bits} bits are no whole bytes")
    for cache in one.caches:
        if is_attention(cache.join) and not (rank(cache.new[0]) == 4 or num_heads(cache.join)):
            return Reason(f"how many heads {cache.join.label} appends is not known")
    return None


def num_heads(node: Node) -> int:
    """Heads of the keys and values that an attention appends; 0 where it does not say."""
    heads = node.attr("num_heads" if node.domain else "kv_num_heads", 0)
    return heads if isinstance(heads, int) else 0


def _labels(caches: list[Cache], clusters: Clusters) -> dict[Cache, np.ndarray] | None:
    """Labels as the kernels take them, broadcast to [..., channels]; None when nobody divides heads."""
    unknown = [name for name in clusters if name not in {cache.name for cache in caches}]
    if unknown:
        raise QuantizationError(f"clusters: there is no cache {unknown[0]!r}; the caches are {', '.join(cache.name for cache in caches)}")
    if not clusters:
        return None
    made = {}
    for cache in caches:
        data = np.asarray(clusters.get(cache.name, np.zeros(cache.channels, np.uint8)))
        heads = 3 - cache.axis if len(cache.axes) == 4 and cache.axis in (1, 2) else None
        number = None if heads is None else _size(cache, heads)
        fits = data.ndim == 1 or (data.ndim == 2 and heads is not None and number in (data.shape[0], None))
        if data.dtype.kind not in "iu" or not fits or data.shape[-1] != cache.channels:
            wanted = f"[{cache.channels}]" if heads is None else f"[{number or 'heads'}, {cache.channels}]"
            raise QuantizationError(f"clusters of {cache.name!r} must be integers {wanted}, got {data.dtype} {list(data.shape)}")
        if data.min() < 0 or data.max() >= MOST_CLUSTERS:
            raise QuantizationError(f"clusters of {cache.name!r} must be 0 to {MOST_CLUSTERS - 1}, got {data.min()} to {data.max()}")
        made[cache] = np.expand_dims(data, 1).astype(np.uint8) if heads == 1 and data.ndim == 2 else data.astype(np.uint8)
    return made


def _size(cache: Cache, axis: int) -> int | None:
    """How large the input is along an axis of its part, where the model says so."""
    own = cache.axes[axis]
    shape = cache.input.type.shape if cache.input.type is not None else None
    size = None if own is None or shape is None else shape[own]
    return size if isinstance(size, int) else None


class _Twin:
    """What moves make of caches, made of their codes, or of their ranges."""

    def __init__(self, suffix: str):
        self.suffix = suffix
        self.made: dict[Value, Value] = {}
        self.nodes: list[Node] = []

    def of(self, value: Value) -> Value:
        """The twin of a part, of what grows from it, or of an output."""
        if value not in self.made:
            node = value.producer
            assert node is not None
            carried = range(len(node.inputs)) if node.is_op("Concat") else (0, 1) if node.is_op("TensorScatter") else (0,)
            inputs = [self.of(v) if i in carried and v is not None else v for i, v in enumerate(node.inputs)]
            outputs = [Value(f"{output.name}_{self.suffix}") for output in node.outputs]
            name = node.name and f"{node.name}_{self.suffix}"
            self.nodes.append(Node(node.op_type, inputs, outputs, dict(node.attributes), version=node.version, name=name))
            self.made.update(zip(node.outputs, outputs, strict=True))
        return self.made[value]


class _Rewriting:
    """One graph on its way to caches of codes."""

    def __init__(self, graph: Graph, bits: int, labels: dict[Cache, np.ndarray] | None, opset: int):
        self.graph, self.bits, self.labels, self.opset = graph, bits, labels, opset
        self.clusters = 1 if labels is None else 1 + max(int(one.max()) for one in labels.values())
        self.codes, self.ranges = _Twin("codes"), _Twin("ranges")
        self.nodes: list[Node] = []
        self.names = {value.name for value in graph.inputs} | set(graph.output_names)

    def rewrite(self, found: list[CacheInput]) -> None:
        for one in found:
            self._enter(one)
        caches = [cache for one in found for cache in one.caches]
        shared = Counter(cache.join for cache in caches)
        for cache in caches:
            if is_attention(cache.join):
                self._beside_attention(cache, holds_both=shared[cache.join] == 2)
            else:
                self._join(cache)
        self._leave({position: one.channels for one in found for position in one.outputs})
        for cache in caches:
            if cache.grown.uses:
                self.graph.replace_uses(cache.grown, self._dequantized(cache, self.codes.of(cache.grown), self.ranges.of(cache.grown)))
        for one in found:
            for carrier in one.carriers:
                self._tell_shape(carrier, one.channels)
        self._append((*self.codes.nodes, *self.ranges.nodes, *self.nodes))

    def _enter(self, one: CacheInput) -> None:
        """Two inputs in place of one."""
        value, at = one.value, self.graph.inputs.index(one.value)
        codes = Value(value.name, self._type(value.type, _UINT8, one.channels * self.bits // 8))
        ranges = Value(_unused(self.names, f"{value.name}_ranges"), self._type(value.type, _FLOAT, 2 * self.clusters))
        self.codes.made[value], self.ranges.made[value] = codes, ranges
        self.graph.inputs[at : at + 1] = [codes, ranges]

    def _leave(self, channels: dict[int, int]) -> None:
        """Two outputs in place of each that gives back caches; `channels` by position."""
        graph = self.graph
        outputs: list[tuple[Value, str, TypeInfo | None]] = []
        for i, (value, name, kind) in enumerate(zip(graph.outputs, graph.output_names, graph.output_types, strict=True)):
            if i not in channels:
                outputs.append((value, name, kind))
                continue
            codes, ranges = self.codes.of(value), self.ranges.of(value)
            outputs.append((codes, name, self._type(kind, _UINT8, channels[i] * self.bits // 8)))
            outputs.append((ranges, _unused(self.names, f"{name}_ranges"), self._type(kind, _FLOAT, 2 * self.clusters)))
        graph.outputs = [value for value, _, _ in outputs]
        graph.output_names = [name for _, name, _ in outputs]
        graph.output_types = [kind for _, _, kind in outputs]

    def _append(self, nodes: tuple[Node, ...]) -> None:
        """To the graph, each under a name of its own, as other runtimes want it."""
        taken = {node.name for node in self.graph.nodes}
        for node in nodes:
            node.name = _unused(taken, node.name) if node.name else ""
            self.graph.append(node)

    @staticmethod
    def _type(kind: TypeInfo | None, dtype: int, last: int) -> TypeInfo:
        known = kind is not None and kind.kind == "tensor" and kind.shape
        return TypeInfo("tensor", dtype, (*kind.shape[:-1], last) if known else None)  # type: ignore[union-attr,index]

    def _join(self, cache: Cache) -> None:
        """Codes and ranges of what Concat or TensorScatter appends; it itself is done to them by their twins."""
        for new in cache.new:
            if new not in self.codes.made:
                self.codes.made[new], self.ranges.made[new] = self._quantized(cache, new)

    def _beside_attention(self, cache: Cache, *, holds_both: bool) -> None:
        """Around an attention that appends by itself: it gets what the codes stand for, and codes are appended beside it.

        Where it does not matter to it which keys are new, it gets all as new ones, and no past.
        """
        node, (new,) = cache.join, cache.new
        places = ATTENTION[node.domain, node.op_type]
        which = 0 if cache.role == KEY else 1
        op = self._builder(node)
        heads, is_split = num_heads(node), rank(new) == 4
        split = new
        if not is_split:
            split = op.Transpose(op.Reshape(new, _integers(0, 0, heads, cache.channels)), perm=(0, 2, 1, 3))
        self._done(op)
        codes, ranges = self._quantized(cache, split)
        past = self.codes.of(cache.past), self.ranges.of(cache.past)
        op = self._builder(node)
        all_codes, all_ranges = op.Concat(past[0], codes, axis=cache.axis), op.Concat(past[1], ranges, axis=cache.axis)
        self._done(op)
        self.codes.made[cache.grown], self.ranges.made[cache.grown] = all_codes, all_ranges
        takes_all = holds_both and not node.domain and not node.attr("is_causal", 0) and not _has_windows(node)
        read = self._dequantized(cache, *((all_codes, all_ranges) if takes_all else (codes, ranges)))
        op = self._builder(node)
        if not is_split:
            read = op.Reshape(op.Transpose(read, perm=(0, 2, 1, 3)), _integers(0, 0, heads * cache.channels))
        self._done(op)
        node.set_input(places.new[which], read)
        node.set_input(places.past[which], None if takes_all else self._dequantized(cache, *past))
        if takes_all and not cache.grown.uses:
            node.outputs[places.grown[which]] = unused = UnusedValue(f"{cache.grown.name}_unused")
            unused.producer, cache.grown.producer = node, None

    def _quantized(self, cache: Cache, x: Value) -> tuple[Value, Value]:
        op = self._builder(cache.join)
        if self._narrow(cache):
            x = op.Cast(x, to=_FLOAT)
        self._done(op)
        codes, ranges = Value(f"{x.name}_codes"), Value(f"{x.name}_ranges")
        self._call("FitCache", cache, [x], [codes, ranges])
        return codes, ranges

    def _dequantized(self, cache: Cache, codes: Value, ranges: Value) -> Value:
        """What codes stand for, in the element type that the cache had."""
        shape = tuple(None if axis == cache.axis else _size(cache, axis) for axis in range(len(cache.axes)))
        y = Value(f"{codes.name.removesuffix('_codes')}_read", TypeInfo("tensor", _FLOAT, shape))
        self._call("DequantizeCache", cache, [codes, ranges], [y])
        if not self._narrow(cache):
            return y
        op = self._builder(cache.join)
        y = op.Cast(y, to=self._narrow(cache))
        self._done(op)
        return y

    def _call(self, name: str, cache: Cache, inputs: list[Value], outputs: list[Value]) -> None:
        attributes = {"bits": as_attribute(self.bits)}
        if self.labels is not None:
            name, inputs = f"{name}Clusters", [*inputs, constant(f"{cache.name}_clusters", self.labels[cache])]
            attributes["clusters"] = as_attribute(self.clusters)
        label = f"{cache.name}/{name}"
        self.nodes.append(Node(name, inputs, outputs, attributes, domain=QRUNTIME, version=1, name=label))

    @staticmethod
    def _narrow(cache: Cache) -> int:
        """The element type of a cache of less than float32, else 0."""
        dtype = cache.input.type.dtype if cache.input.type is not None else _FLOAT
        return 0 if dtype == _FLOAT else dtype

    def _builder(self, node: Node) -> Pieces:
        return Pieces(node, self.opset)

    def _done(self, op: Pieces) -> None:
        self.nodes += op.builder.nodes

    def _tell_shape(self, value: Value, channels: int) -> None:
        """Readers of the shape of what is codes now read that of the codes, with the channels that they stand for."""
        readers = [node for node, _ in value.uses if node.is_op("Shape")]
        if not readers:
            return
        op = self._builder(readers[0])
        zero, last = _integers(0), _integers(-1)
        whole = op.Concat(op.Slice(op.Shape(self.codes.of(value)), zero, last, zero), _integers(channels), axis=0)
        for node in readers:
            start, end = node.attr("start", 0), node.attr("end", _END)
            part = whole if (start, end) == (0, _END) else op.Slice(whole, _integers(start), _integers(end), zero)
            self.graph.replace_uses(node.outputs[0], part)
        self._done(op)


def _unused(taken: set[str], wanted: str) -> str:
    """`wanted`, or the first name with a number that is not `taken`, which it is from then on."""
    name, number = wanted, 0
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    taken.add(name)
    return name


_END = (1 << 63) - 1


def _integers(*numbers: int) -> Value:
    return constant("integers", np.array(numbers, np.int64))


def _has_windows(node: Node) -> bool:
    return any(node.attr(name, -1) != -1 for name in ("left_window_size", "right_window_size"))


# ------------------------------------------------------------------------- what a graph holds


def describe_caches(graph: Graph) -> tuple[QuantizedCache, ...]:
    """Rows for the inputs of `graph` that are caches of codes, whoever made them."""
    rows = []
    for value in graph.inputs:
        kind = value.type
        if kind is not None and kind.kind == "tensor" and kind.dtype == _UINT8 and kind.shape and len(kind.shape) > 2:
            found = follow(graph, value)
            reader = _reader((*found.carriers, *(cache.grown for cache in found.caches)))
            if reader is not None and found.caches:
                rows.append(_row(found, kind.shape, reader))
    return tuple(rows)


def _reader(values: Iterable[Value]) -> Node | None:
    """What dequantizes one of them."""
    names = ("DequantizeCache", "DequantizeCacheClusters")
    return next((node for v in values for node, index in v.uses if index == 0 and node.is_op(*names, domain=QRUNTIME)), None)


def _row(found: CacheInput, shape: tuple[Dim, ...], reader: Node) -> QuantizedCache:
    bits, clusters = reader.attr("bits"), reader.attr("clusters", 1)
    tokens = found.caches[0].axes[found.caches[0].axis]
    ranges = math.prod(size for axis, size in enumerate(shape[:-1]) if isinstance(size, int) and axis != tokens)
    width = shape[-1] if isinstance(shape[-1], int) else 0
    narrow = [node for node, _ in reader.outputs[0].uses if node.is_op("Cast")]
    item = 2 if narrow and len(narrow) == len(reader.outputs[0].uses) else 4
    after = ranges * (width + 2 * clusters * np.dtype(np.float32).itemsize)
    return QuantizedCache(found.value.name, f"uint{bits}", clusters, len(found.caches), ranges * width * 8 // bits * item, after)
