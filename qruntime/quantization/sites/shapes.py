"""The shapes of all values of a graph, followed forward once from those of its inputs and constants.

`passes/symbolic_shapes.py` looks a few steps back from one value and so costs nothing where passes ask rarely. Sites are
asked about everywhere in a graph, through residual streams and the arithmetic of whole decoders.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from qruntime.ir import Graph, Node, Value
from qruntime.ops.contrib.domain import MICROSOFT
from qruntime.quantization.sites.sizes import ONE, Size, Sizes, product, quotient

_PRIMES = (5, 7, 11, 13, 17, 19)

_MOST = 16
"""Elements of an integer vector that is followed."""

_LIKE_FIRST = frozenset({
    "Abs", "BatchNormalization", "BiasGelu", "Cast", "CastLike", "Celu", "Clip", "Cos", "CumSum", "Dropout", "Elu", "Erf", "Exp",
    "FastGelu", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LayerNormalization", "LeakyRelu", "Log", "LogSoftmax", "Mish",
    "Neg", "Not", "QuickGelu", "RMSNormalization", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign",
    "SimplifiedLayerNormalization", "Sin", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "Softmax", "Softplus",
    "Softsign", "Sqrt", "Swish", "Tanh", "ThresholdedRelu", "Trilu",
})  # fmt: skip
_BROADCASTING = frozenset({
    "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or",
    "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
})  # fmt: skip
_REDUCTIONS = frozenset({
    "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "ReduceL2",
})  # fmt: skip
_RECURRENT = ("LSTM", "GRU", "RNN")


class Shapes:
    """Of the values of `graph` and of the graphs nested in it."""

    def __init__(self, graph: Graph):
        self._dims: dict[Value, Sizes] = {}
        self._contents: dict[Value, Sizes] = {}
        self._symbols: dict[Hashable, Size] = {}
        self._sums: dict[Size, tuple[Size, Size]] = {}
        self._examples: dict[str, int] = {}
        self._count = 0
        for nested in graph.walk_graphs():
            for value in nested.inputs:
                self._declare(value)
            for node in nested.nodes:
                self._follow(node)

    def dims(self, value: Value | None) -> Sizes | None:
        """None when not even the rank is known."""
        if value is None:
            return None
        if value.shape is not None:
            return tuple(map(Size, value.shape))
        return self._dims.get(value)

    def rank(self, value: Value | None) -> int | None:
        dims = self.dims(value)
        return None if dims is None else len(dims)

    def example(self, size: Size) -> int:
        """What `size` is where every symbol has a number of its own."""
        for symbol in size.symbols:
            self._examples.setdefault(symbol, _PRIMES[len(self._examples) % len(_PRIMES)])
        return size.number * math.prod(self._examples[symbol] for symbol in size.symbols)

    def is_like(self, new: Value, old: Value) -> None:
        """`new`, which a change to the graph made, has the shape of `old`."""
        if (dims := self.dims(old)) is not None:
            self._dims[new] = dims

    def contents(self, value: Value | None) -> Sizes | None:
        """The elements of an integer vector, or of a scalar, as far as shapes decide them."""
        if value is None:
            return None
        if value.data is not None:
            is_short = value.data.dtype.kind in "iub" and value.data.ndim < 2 and value.data.size <= _MOST
            return tuple(Size(int(n)) for n in value.data.reshape(-1)) if is_short else None
        return self._contents.get(value)

    def _fresh(self) -> Size:
        self._count += 1
        return Size(1, (f"?{self._count}",))

    def _declare(self, value: Value) -> None:
        kind = value.type
        if kind is not None and kind.kind == "tensor" and kind.shape is not None:
            self._dims[value] = tuple(
                Size(d) if isinstance(d, int) and d >= 0 else Size(1, (d,)) if isinstance(d, str) and d else self._fresh()
                for d in kind.shape
            )

    def _follow(self, node: Node) -> None:
        for output in node.outputs:
            self._declare(output)
        made = self._made(node)
        if made is not None:
            self._dims.update(zip(node.outputs, made, strict=False))
        if not node.domain and (rule := _CONTENTS.get(node.op_type)) is not None:
            held = rule(self, node)
            if held is not None and len(held) <= _MOST:
                self._contents[node.outputs[0]] = held

    def _made(self, node: Node) -> Sequence[Sizes] | None:
        """Shapes of the outputs, the first of them first."""
        if node.domain not in ("", MICROSOFT):
            return None
        first = self.dims(node.input(0))
        if node.op_type in _LIKE_FIRST:
            return None if first is None else (first,)
        if node.op_type in _BROADCASTING:
            whole = self._broadcast([self.dims(value) for value in node.inputs])
            return None if whole is None else (whole,)
        if node.op_type in _REDUCTIONS:
            return _reduced(self, node, first)
        if node.op_type in _RECURRENT:
            return _recurrent(self, node, first)
        rule = _RULES.get(node.op_type)
        return None if rule is None else rule(self, node, first)

    def _broadcast(self, shapes: Sequence[Sizes | None]) -> Sizes | None:
        if any(shape is None for shape in shapes):
            return None
        known = [shape for shape in shapes if shape is not None]
        rank = max(map(len, known), default=0)
        wide = [(ONE,) * (rank - len(shape)) + shape for shape in known]
        return tuple(self._joint(column) for column in zip(*wide, strict=True))

    def _joint(self, sizes: Sequence[Size]) -> Size:
        """Of sizes that are equal where they are not 1: a number, else what an input names, else what is known to be anything."""
        wide = {size for size in sizes if size != ONE}
        for found in (wide, [s for s in wide if s.is_known], [s for s in wide if not any(name.startswith("?") for name in s.symbols)]):
            if len(found) == 1:
                return next(iter(found))
        return self._fresh() if wide else ONE

    def _sum(self, a: Size, b: Size) -> Size:
        if a.is_known and b.is_known:
            return Size(a.number + b.number)
        if Size(0) in (a, b):
            return a if b == Size(0) else b
        total = self._symbol(("Add", *sorted((a, b))))
        self._sums[total] = a, b
        return total

    def _difference(self, a: Size, b: Size) -> Size:
        if a.is_known and b.is_known:
            return Size(a.number - b.number)
        if b == Size(0):
            return a
        parts = self._sums.get(a, ())
        return parts[1 - parts.index(b)] if b in parts else self._symbol(("Sub", a, b))

    def _symbol(self, key: Hashable) -> Size:
        """The symbol for what is computed in one way: the same for the same."""
        if key not in self._symbols:
            self._symbols[key] = self._fresh()
        return self._symbols[key]

    def axes(self, node: Node, rank: int) -> list[int] | None:
        """The axes that an attribute or the second input names, counted from the front; None where they are not known."""
        axes = node.attr("axes")
        if axes is None:
            held = self.contents(node.input(1))
            axes = None if held is None or not all(size.is_known for size in held) else [size.number for size in held]
        return None if axes is None or not all(-rank <= axis < rank for axis in axes) else [axis % rank for axis in axes]


def _axis(node: Node, rank: int, default: int) -> int | None:
    axis = node.attr("axis", default)
    return axis % rank if rank and -rank <= axis < rank else None


def _reshaped(shapes: Shapes, node: Node, first: Sizes | None) -> Sequence[Sizes] | None:
    wanted = shapes.contents(node.input(1))
    if wanted is None:
        return None
    keeps = not node.attr("allowzero", 0)
    made = [
        (first[axis] if first is not None and axis < len(first) else shapes._fresh()) if keeps and size == Size(0) else size
        for axis, size in enumerate(wanted)
    ]
    if Size(-1) in made:
        rest = product([size for size in made if size != Size(-1)])
        found = None if first is None else quotient(product(first), rest)
        made[made.index(Size(-1))] = found or shapes._fresh()
    return (tuple(made),)


def _transposed(shapes: Shapes, node: Node, first: Sizes | None) -> Sequence[Sizes] | None:
    if first is None:
        return None
    perm = node.attr("perm", range(len(first))[::-1])
    return (tuple(first[axis] for axis in perm),) if sorted(perm) == list(range(len(first))) else None


def _squeezed(shapes: Shapes, node: Node, first: Sizes | None) -> Sequence[Sizes] | None:
    if first is None:
        return None
    axes = shapes.axes(node, len(first))
    if axes is None:
        return None
    return (tuple(size for axis, size in enumerate(first) if axis not in axes),)


def _unsqueezed(shapes: Shapes, node: Node, first: Sizes | None) -> Sequence[Sizes] | None:
    held = node.attr("axes") or shapes.contents(node.input(1))
    if first is None or held is None:
        return None
    axes = shapes.axes(node, len(first) + len(held))
    if axes is None:
        return None
    rest = iter(first)
    return (tuple(ONE if axis in axes else next(rest, ONE) for axis in range(len(first) + len(axes))),)


def _concatenated(shapes: Shapes, node: Node, first: Sizes | None) -> Sequence[Sizes] | None:
    parts = [shapes.dims(value) for value in node.inputs]
    if first is None or any(part is None or len(part) != len(first) for part in parts):
        return None
    axis = _axis(node, len(first), 1)
    if axis is None:
        return None
    total = Size(0)
    for part in parts:
        total = shapes._sum(total, part[axis])  # type: ignore[index]
    others = [next((p[i] for p in parts if p is not None and p[i].is_known), first[i]) for i in range(len(first))]
    return ((*others[:axis], total, *others[axis + 1 :]),)


def split_sizes(shapes: Shapes, node: Node) -> list[int] | None:
    """How many elements along its axis each output of a Split gets."""
    given = node.attr("split")
    if given is not None:
        return list(given)
    held = shapes.contents(node.input(1))
    if held is not None:
        return [size.number for size in held] if all(size.is_known for size in held) else None
    first = shapes.dims(node.input(0))
    axis = None if first is None else _axis(node, len(first), 0)
    if first is None or axis is None or not first[axis].is_known:
        return None
    count = len(node.outputs)
    each = -(-first[axis].number // count)
    return [min(each, first[axis].number - each * i) for i in range(count)]


def _split(shapes: Shapes, node: Node, first: Sizes | None) -> Sequence[Sizes] | None:
    sizes = split_sizes(shapes, node)
    axis = None if first is None else _axis(node, len(first), 0)
    if first is None or sizes is None or axis is None:
        return None
    return [(*first[:axis], Size(size), *first[axis + 1 :]) for size in sizes]


def _sliced(shapes: Shapes, node: Node, first: Sizes | None) -> Sequence[Sizes] | None:
    if first is None:
        return None
    taken = slices(shapes, node)
    if taken is None:
        return (tuple(shapes._fresh() for _ in first),)
    return (
        tuple(
            size if axis not in taken else Size(len(range(size.number)[taken[axis]])) if size.is_known else shapes._fresh()
            for axis, size in enumerate(first)
        ),
    )


def slices(shapes: Shapes, node: Node) -> dict[int, slice] | None:
    """What a Slice takes along which axes; None where a run decides that."""
    rank = shapes.rank(node.input(0))
    if rank is None:
        return None
    if node.version < 10:
        starts, ends, axes, steps = node.attr("starts"), node.attr("ends"), node.attr("axes"), None
    else:
        held = [shapes.contents(node.input(i)) for i in range(1, 5)]
        if any(part is not None and not all(size.is_known for size in part) for part in held):
            return None
        if any(part is None and node.input(i + 1) is not None for i, part in enumerate(held)):
            return None
        starts, ends, axes, steps = ([size.number for size in part] if part is not None else None for part in held)
    if starts is None or ends is None or len(starts) != len(ends):
        return None
    axes = list(range(len(starts))) if axes is None else list(axes)
    steps = [1] * len(starts) if steps is None else steps
    if not len(axes) == len(steps) == len(starts) or not all(-rank <= axis < rank for axis in axes):
        return None
    if any(step < 1 for step in steps):
        return None
    return {axis % rank: slice(start, end, step) for axis, start, end, step in zip(axes, starts, ends, steps, strict=True)}


def _gathered(shapes: Shapes, node: Node, first: Sizes | None) -> Sequence[Sizes] | None:
    indices = shapes.dims(node.input(1))
    axis = None if first is None else _axis(node, len(first), 0)
    if first is None or indices is None or axis is None:
        return None
    return ((*first[:axis], *indices, *first[axis + 1 :]),)


def _expanded(shapes: Shapes, node: Node, first: Sizes | None) -> Sequence[Sizes] | None:
    whole = shapes._broadcast([first, shapes.contents(node.input(1))])
    return None if whole is None else (whole,)


def _filled(shapes: Shapes, node: Node, first: Sizes | None) -> Sequence[Sizes] | None:
    held = shapes.contents(node.input(0))
    return None if held is None else (held,)


def _multiplied(shapes: Shapes, node: Node, first: Sizes | None) -> Sequence[Sizes] | None:
    second = shapes.dims(node.input(1))
    if not first or not second or any(node.attr(name, 0) for name in ("transA", "transBatchA", "transBatchB")):
        return None
    if node.attr("transB", 0):
        second = (*second[:-2], second[-1], second[-2]) if len(second) > 1 else second
    if len(second) == 1:
        return (first[:-1],)
    batch = shapes._broadcast([first[:-2], second[:-2]]) or ()
    return ((*batch, *first[-2:-1], second[-1]),)


def _gemm(shapes: Shapes, node: Node, first: Sizes | None) -> Sequence[Sizes] | None:
    second = shapes.dims(node.input(1))
    if first is None or second is None or len(first) != 2 or len(second) != 2:
        return None
    return ((first[1 if node.attr("transA", 0) else 0], second[0 if node.attr("transB", 0) else 1]),)


def _attended(shapes: Shapes, node: Node, first: Sizes | None) -> Sequence[Sizes] | None:
    """Of an operator that is attention as a whole: what o reads, where its channels are those of the values."""
    if first is None:
        return None
    if node.is_op("Attention", domain=MICROSOFT):
        weight, parts = shapes.dims(node.input(1)), node.attr("qkv_hidden_sizes")
        known = None if weight is None else Size(parts[2]) if parts else quotient(weight[-1], Size(3))
        return None if known is None else ((*first[:-1], known),)
    values = shapes.dims(node.input(2))
    if values is None or len(values) != len(first):
        return None
    if len(first) == 4:
        return ((*first[:-1], values[-1]),)
    heads, kv_heads = (node.attr(name) or node.attr("num_heads") for name in ("q_num_heads", "kv_num_heads"))
    size = quotient(values[-1], Size(kv_heads)) if heads and kv_heads else None
    return None if size is None else ((*first[:-1], product([Size(heads), size])),)


def _flattened(shapes: Shapes, node: Node, first: Sizes | None) -> Sequence[Sizes] | None:
    if first is None:
        return None
    axis = node.attr("axis", 1)
    if not -len(first) <= axis <= len(first):
        return None
    axis += len(first) if axis < 0 else 0
    return ((product(first[:axis]), product(first[axis:])),)


def _shape(shapes: Shapes, node: Node, first: Sizes | None) -> Sequence[Sizes] | None:
    return None if first is None else ((Size(len(first[slice(node.attr("start", 0), node.attr("end"))])),),)


def _range(shapes: Shapes, node: Node, first: Sizes | None) -> Sequence[Sizes] | None:
    start, limit, step = (shapes.contents(value) for value in node.inputs)
    if not start or not limit or step != (ONE,):
        return ((shapes._fresh(),),)
    return ((shapes._difference(limit[0], start[0]),),)


def _like_indices(shapes: Shapes, node: Node, first: Sizes | None) -> Sequence[Sizes] | None:
    indices = shapes.dims(node.input(1))
    return None if indices is None else (indices,)


def _reduced(shapes: Shapes, node: Node, first: Sizes | None) -> Sequence[Sizes] | None:
    if first is None:
        return None
    axes = shapes.axes(node, len(first))
    if axes is None:
        return None
    if node.attr("keepdims", 1):
        return (tuple(ONE if axis in axes else size for axis, size in enumerate(first)),)
    return (tuple(size for axis, size in enumerate(first) if axis not in axes),)


def _recurrent(shapes: Shapes, node: Node, first: Sizes | None) -> Sequence[Sizes] | None:
    weights = shapes.dims(node.input(2))
    if first is None or weights is None or len(first) != 3 or len(weights) != 3 or node.attr("layout", 0):
        return None
    directions, hidden = weights[0], weights[2]
    state = (directions, first[1], hidden)
    return (first[0], *state), state, state


_RULES: dict[str, Callable[[Shapes, Node, Sizes | None], Sequence[Sizes] | None]] = {
    "Attention": _attended,
    "Concat": _concatenated,
    "ConstantOfShape": _filled,
    "Expand": _expanded,
    "Flatten": _flattened,
    "FusedGemm": _gemm,
    "FusedMatMul": _multiplied,
    "Gather": _gathered,
    "GatherElements": _like_indices,
    "Gemm": _gemm,
    "GemmFastGelu": _multiplied,
    "GroupQueryAttention": _attended,
    "MatMul": _multiplied,
    "MultiHeadAttention": _attended,
    "Range": _range,
    "Reshape": _reshaped,
    "Shape": _shape,
    "Slice": _sliced,
    "Split": _split,
    "Squeeze": _squeezed,
    "TransposeMatMul": _multiplied,
    "Transpose": _transposed,
    "Unsqueeze": _unsqueezed,
}


def _of_shape(shapes: Shapes, node: Node) -> Sizes | None:
    first = shapes.dims(node.input(0))
    return None if first is None else first[slice(node.attr("start", 0), node.attr("end"))]


def _same(shapes: Shapes, node: Node) -> Sizes | None:
    return shapes.contents(node.input(0))


def _joined(shapes: Shapes, node: Node) -> Sizes | None:
    whole: list[Size] = []
    for value in node.inputs:
        part = shapes.contents(value)
        if part is None:
            # One number that something computes, as torch's exporter joins sizes.
            if shapes.dims(value) != (ONE,):
                return None
            part = (shapes._symbol(value),)
        whole += part
    return tuple(whole)


def _picked(shapes: Shapes, node: Node) -> Sizes | None:
    held, indices = shapes.contents(node.input(0)), shapes.contents(node.input(1))
    if held is None or indices is None or node.attr("axis", 0) != 0:
        return None
    picked = [index.number for index in indices if index.is_known and -len(held) <= index.number < len(held)]
    return tuple(held[index] for index in picked) if len(picked) == len(indices) else None


def _cut(shapes: Shapes, node: Node) -> Sizes | None:
    held, taken = shapes.contents(node.input(0)), slices(shapes, node)
    return None if held is None or taken is None else held[taken.get(0, slice(None))]


def _repeated(shapes: Shapes, node: Node) -> Sizes | None:
    held, value = shapes.contents(node.input(0)), node.attr("value", np.zeros(1))
    if held is None or len(held) != 1 or not held[0].is_known or held[0].number > _MOST or value.dtype.kind not in "iu":
        return None
    return (Size(int(value.reshape(-1)[0])),) * held[0].number


def _pairs(shapes: Shapes, node: Node, first: int = 0) -> list[tuple[Size, Size]] | None:
    a, b = shapes.contents(node.input(first)), shapes.contents(node.input(first + 1))
    if a is None or b is None or (len(a) != len(b) and 1 not in (len(a), len(b))):
        return None
    count = max(len(a), len(b)) if a and b else 0
    return list(zip(a * count if len(a) == 1 else a, b * count if len(b) == 1 else b, strict=True))


def _computed(shapes: Shapes, node: Node) -> Sizes | None:
    pairs = _pairs(shapes, node)
    if pairs is None:
        return None
    return tuple(_arithmetic(shapes, node.op_type, a, b) for a, b in pairs)


def _arithmetic(shapes: Shapes, op_type: str, a: Size, b: Size) -> Size:
    if op_type == "Add":
        return shapes._sum(a, b)
    if op_type == "Mul":
        return product([a, b])
    if op_type == "Sub":
        return shapes._difference(a, b)
    if op_type == "Div" and (found := quotient(a, b)) is not None:
        return found
    return shapes._symbol((op_type, a, b))


def _equal(shapes: Shapes, node: Node) -> Sizes | None:
    """Whether sizes are what a constant says; none is below 0."""
    pairs = _pairs(shapes, node)
    if pairs is None or not all(a == b or (a.is_known and b.is_known) or min(a.number, b.number) < 0 for a, b in pairs):
        return None
    return tuple(Size(int(a == b)) for a, b in pairs)


def _chosen(shapes: Shapes, node: Node) -> Sizes | None:
    tests, pairs = shapes.contents(node.input(0)), _pairs(shapes, node, 1)
    if tests is None or pairs is None or len(tests) != len(pairs) or not all(test.is_known for test in tests):
        return None
    return tuple(yes if test.number else no for test, (yes, no) in zip(tests, pairs, strict=True))


_CONTENTS: dict[str, Callable[[Shapes, Node], Sizes | None]] = {
    "Add": _computed,
    "Cast": _same,
    "Concat": _joined,
    "ConstantOfShape": _repeated,
    "Div": _computed,
    "Equal": _equal,
    "Gather": _picked,
    "Identity": _same,
    "Mul": _computed,
    "Reshape": _same,
    "Shape": _of_shape,
    "Slice": _cut,
    "Squeeze": _same,
    "Sub": _computed,
    "Unsqueeze": _same,
    "Where": _chosen,
}
