"""Einsum as the products, sums and transpositions that it consists of.

    one operand      'bij->bj'            ReduceSum, Transpose; a diagonal is a Slice of the flattened matrix
    two operands     'bhqd,bhkd->bhqk'    MatMul of [batch…, M, K] and [batch…, K, N]; Mul where nothing is summed
    more             'bi,ij,jo->bo'       pair by pair

An Einsum of activations and one constant weight, none of whose dimensions is a batch, is a linear layer: canonical
graphs have it as MatMul(x, W[K, N]), as every other linear layer. The others are taken apart when a model is lowered,
so that a file is not rewritten for nothing.

The dimensions behind "..." are labels too, numbered from the right, so that they broadcast. Where their number is
unknown, "..." is one label, which must lie first and is never moved. Sizes that only a run knows are computed from shapes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from qruntime.ir import Graph, Node, Value, constant
from qruntime.ir.dtypes import type_name
from qruntime.ops.elementwise import widen
from qruntime.passes.einsum_equation import ANY, Labels, parsed
from qruntime.passes.pieces import Pieces
from qruntime.passes.rewriting import Skip, splice, trace
from qruntime.passes.symbolic_shapes import Dim, dims, rank

_MULTIPLIED = frozenset({1, 6, 7, 10, 11, 12, 13, 16})
"""Element types of MatMul: float, int32, int64, float16, double, uint32, uint64, bfloat16."""
_SIXTEEN_BITS = frozenset({10, 16})
_MOST_OPERANDS, _MOST_DIMENSIONS = 16, 64  # the time it takes to find an order grows with their powers
_AXES_ARE_INPUTS = 13
"""From this opset on, of ReduceSum, Squeeze and Unsqueeze."""

Size = int | Value | None
"""A number, a vector of one number that a run computes, or None for a dimension that stays what it is."""
Arranged = dict[tuple[Value, Labels, tuple[Labels, ...]], Value]
"""Weights as MatMul reads them, made once however many nodes read the same."""


class _Undone(Exception):
    """Why an Einsum stays."""


def linear_einsum(graph: Graph, *, tied: bool = False) -> None:
    """Einsum that is a linear layer with a constant weight  →  MatMul(x, W[K, N]), Reshape and Transpose where needed.

    One whose weight is tied to another operator's, as a table of embeddings is to the layer of the logits, waits for
    quantization, which asks for `tied`: a file would hold the weight twice.
    """
    _rewrite(graph, only_linear=True, tied=tied)


def contract_einsum(graph: Graph) -> None:
    """Einsum  →  MatMul, Mul, ReduceSum, Transpose."""
    _rewrite(graph, only_linear=False)


def why_not_linear(node: Node) -> str:
    """Why an Einsum is no linear layer with a constant weight; empty when it is."""
    contraction = _Contraction(node, True, {})
    try:
        contraction.result()
    except _Undone as reason:
        return str(reason)
    finally:
        contraction.op.withdraw()
    return ""


def _rewrite(graph: Graph, *, only_linear: bool, tied: bool = True) -> None:
    arranged: Arranged = {}
    name = "linear_einsum" if only_linear else "contract_einsum"
    for nested in graph.walk_graphs():
        replaced: dict[Node, list[Node]] = {}
        for node in nested.nodes:
            if not node.is_op("Einsum"):
                continue
            contraction = _Contraction(node, only_linear, arranged)
            try:
                if not tied and _has_tied_weight(node):
                    raise _Undone("another operator reads the weight as it is")
                output = contraction.result()
            except _Undone as reason:
                contraction.op.withdraw()
                trace(f"{name} declines at {node.label}: {reason}")
                continue
            nested.replace_uses(node.outputs[0], output)
            replaced[node] = contraction.op.builder.nodes
            for piece in replaced[node]:
                if only_linear and not piece.is_op("MatMul"):
                    piece.name = ""  # this graph may be saved, and no two nodes of a file have one name
            trace(f"{name} at {node.label}")
        splice(nested, replaced)


def _has_tied_weight(node: Node) -> bool:
    weights = [value for value in node.inputs if value is not None and value.data is not None]
    return any(w.output_of or not all(user.is_op("Einsum") for user, _ in w.uses) for w in weights)


class _Term(NamedTuple):
    """A value, a label for each of its dimensions, and their sizes as symbolic_shapes tells them, None where it does not."""

    value: Value
    labels: Labels
    sizes: tuple[Dim | None, ...]

    def size(self, label: str) -> Dim | None:
        return self.sizes[self.labels.index(label)]


class _Layout(NamedTuple):
    """A product of matrices: labels of both operands and the result, of the left one alone, summed, of the right one alone."""

    batch: Labels
    rows: Labels
    summed: Labels
    columns: Labels


class _Contraction:
    """One Einsum node on its way into pieces."""

    def __init__(self, node: Node, only_linear: bool, arranged: Arranged):
        self.node, self.only_linear, self.arranged = node, only_linear, arranged
        self.op = Pieces(node, node.version) if only_linear else Pieces(node)
        self.known: dict[str, int] = {}  # sizes of letters

    def result(self) -> Value:
        """The value that takes the place of the node's output. Raises _Undone."""
        terms, output = self._terms()
        if self.only_linear:
            _check_linear(terms, output)
        terms = [self._summed(self._diagonal(term), _used(terms, output, but=i)) for i, term in enumerate(terms)]
        while len(terms) > 1:
            i, j = _best_pair(terms, output)
            others = [term for k, term in enumerate(terms) if k not in (i, j)]
            terms = [*others, self._product(terms[i], terms[j], _used(others, output), output)]
        y = self._transposed(terms[0], output).value
        return y if self.op.builder.nodes else self.op.Identity(y)

    # What is given.

    def _terms(self) -> tuple[list[_Term], Labels]:
        equation = parsed(str(self.node.attr("equation", "")))
        if isinstance(equation, Skip):
            raise _Undone(equation)
        labels, output = equation
        inputs = [value for value in self.node.inputs if value is not None]
        if len(inputs) != len(labels):
            raise _Undone(f"it has {len(inputs)} inputs, the equation {len(labels)} terms")
        if len(inputs) > _MOST_OPERANDS:
            raise _Undone(f"more than {_MOST_OPERANDS} operands")
        types = {v.type.dtype for v in inputs if v.type is not None and v.type.dtype}
        if not types <= _MULTIPLIED:
            raise _Undone(f"there is no MatMul of {', '.join(sorted(map(type_name, types - _MULTIPLIED)))}")
        if len(inputs) > 2 and types & _SIXTEEN_BITS:
            raise _Undone("every product of three or more operands in 16 bits would be rounded")
        terms = [self._term(value, term) for value, term in zip(inputs, labels, strict=True)]
        if any(ANY in term.labels for term in terms) and any(label.isdigit() for term in terms for label in term.labels):
            raise _Undone("the number of dimensions behind '...' is known of one operand only")
        hidden = max((tuple(n for n in term.labels if n.isdigit() or n == ANY) for term in terms), key=len)
        return terms, tuple(label for named in output for label in (hidden if named == ANY else (named,)))

    def _term(self, value: Value, labels: Labels) -> _Term:
        shape = dims(value, None if ANY in labels else len(labels))
        count = rank(value) if shape is None else len(shape)
        if max(count or 0, len(labels)) > _MOST_DIMENSIONS:
            raise _Undone(f"more than {_MOST_DIMENSIONS} dimensions")
        if count is None:
            if labels[0] != ANY:
                raise _Undone(f"the rank of {value.name!r} is unknown")
            return _Term(value, labels, (None,) * len(labels))
        hidden = tuple(str(i) for i in reversed(range(count - len(labels) + 1)))
        labels = tuple(label for named in labels for label in (hidden if named == ANY else (named,)))
        if count != len(labels):
            raise _Undone(f"{value.name!r} has rank {count}, its term {len(labels)} labels")
        sizes = (None,) * count if shape is None else shape
        for label, size in zip(labels, sizes, strict=True):
            if isinstance(size, int) and not label.isdigit() and self.known.setdefault(label, size) != size:
                raise _Undone(f"the sizes {size} and {self.known[label]} have one label, {label!r}")
        return _Term(value, labels, sizes)

    # One operand.

    def _diagonal(self, term: _Term) -> _Term:
        """'iji' → 'ji': the two dimensions go last and become one, of which every n + 1st element is taken."""
        while twice := [label for label, count in Counter(term.labels).items() if count > 1]:
            axes = [axis for axis, label in enumerate(term.labels) if label == twice[0]][:2]
            size = term.sizes[axes[0]]
            if not isinstance(size, int) or term.sizes[axes[1]] != size or ANY in term.labels:
                raise _Undone(f"the sizes of the diagonal {twice[0]!r} are not known")
            rest = [axis for axis in range(len(term.labels)) if axis not in axes]
            flat = self._reshaped(self._permuted(term.value, (*rest, *axes)), [*[None] * len(rest), size * size])
            ends = [constant("slice", np.array([n], np.int64)) for n in (0, size * size, len(rest), size + 1)]
            labels = (*(term.labels[axis] for axis in rest), twice[0])
            term = _Term(self.op.Slice(flat, *ends), labels, (*(term.sizes[axis] for axis in rest), size))
        return term

    def _summed(self, term: _Term, used: set[str]) -> _Term:
        """Without the labels that nothing uses."""
        axes = [axis for axis, label in enumerate(term.labels) if label not in used]
        if not axes:
            return term
        kept = [axis for axis in range(len(term.labels)) if axis not in axes]
        if ANY in term.labels:
            axes = [axis - len(term.labels) for axis in axes]
        data = term.value.data
        if data is None:
            y = self._with_axes("ReduceSum", term.value, axes, keepdims=0)
        else:
            y = constant(term.value.name, np.asarray(widen(data).sum(tuple(axes))).astype(data.dtype))
        return _Term(y, tuple(term.labels[axis] for axis in kept), tuple(term.sizes[axis] for axis in kept))

    # Two operands.

    def _product(self, a: _Term, b: _Term, kept: set[str], output: Labels) -> _Term:
        """Of two terms, summed over the labels of both that nothing else needs."""
        shared = set(a.labels) & set(b.labels)
        if shared <= kept:
            return self._multiplied(a, b, output)
        if shared & kept and shared == set(a.labels) == set(b.labels):
            return self._summed(self._multiplied(a, b, output), kept)
        a, b = _sides(a, b, kept, output)
        batch, rows, summed, columns = layout = _layout(a, b, kept, output)
        self._check_sums(a, b, summed)
        apart = tuple((label,) for label in batch)
        # Without a batch, rows may have any number of dimensions.
        left_groups = (*apart, rows, summed) if batch else (*((label,) for label in rows), summed)
        right_groups = (*apart, summed, columns) if batch or columns else (summed,)
        left = self._operand(a, (*batch, *rows, *summed), left_groups)
        right = self._operand(b, (*batch, *summed, *columns), right_groups)
        y = self.op.MatMul(left, right)
        empty = [axis for axis, labels in ((-2, rows), (-1, columns)) if batch and not labels]
        y = self._with_axes("Squeeze", y, empty) if empty else y
        if len(columns) > 1 or (batch and len(rows) > 1):
            y = self._split(y, a, b, layout)
        sizes = (*(_broadcast_size(a.size(n), b.size(n)) for n in batch), *map(a.size, rows), *map(b.size, columns))
        return _Term(y, (*batch, *rows, *columns), sizes)

    def _check_sums(self, a: _Term, b: _Term, summed: Labels) -> None:
        """Of labels that become one dimension, MatMul checks the product of the sizes only."""
        unproven = [label for label in summed if a.size(label) is None or a.size(label) != b.size(label)]
        if len(unproven) > 1:
            raise _Undone(f"{' and '.join(unproven)} are not known to have the same sizes in both operands")

    def _operand(self, term: _Term, labels: Labels, groups: tuple[Labels, ...]) -> Value:
        """`term` with its labels in this order, those of a group merged into one dimension."""
        if term.value.data is not None:
            key = term.value, labels, groups
            if key not in self.arranged:
                data = term.value.data.transpose([term.labels.index(label) for label in labels])
                shape = [math.prod(data.shape[labels.index(label)] for label in group) for group in groups]
                self.arranged[key] = constant(term.value.name, data.reshape(shape))
            return self.arranged[key]
        moved = self._transposed(term, labels)
        first = next((i for i, group in enumerate(groups) if len(group) != 1), None)
        if first is None:
            return moved.value
        if max(map(len, groups)) <= 1:
            return self._with_axes("Unsqueeze", moved.value, [axis for axis, group in enumerate(groups) if not group])
        _refuse_any(labels)
        sizes = [None if i < first else self._merged([self._size(moved, n) for n in group]) for i, group in enumerate(groups)]
        return self._reshaped(moved.value, sizes)

    def _split(self, y: Value, a: _Term, b: _Term, layout: _Layout) -> Value:
        """The dimensions that were merged in the operands."""
        _refuse_any((*layout.batch, *layout.rows))
        stay = len(layout.batch) if layout.batch and len(layout.rows) > 1 else len(layout.batch) + len(layout.rows)
        rows = [self._size(a, label) for label in layout.rows] if stay == len(layout.batch) else []
        return self._reshaped(y, [*[None] * stay, *rows, *(self._size(b, label) for label in layout.columns)])

    def _multiplied(self, a: _Term, b: _Term, output: Labels) -> _Term:
        """Element by element, broadcast to the labels of both."""
        labels = _ordered(set(a.labels) | set(b.labels), output, (*a.labels, *b.labels))
        sizes = [[term.size(label) for term in (a, b) if label in term.labels] for label in labels]
        y = self.op.Mul(self._broadcast(a, labels), self._broadcast(b, labels))
        return _Term(y, labels, tuple(_broadcast_size(found[0], found[-1]) for found in sizes))

    def _broadcast(self, term: _Term, labels: Labels) -> Value:
        """`term` with its labels in this order, and dimensions of 1 for those between that it lacks."""
        moved = self._transposed(term, tuple(label for label in labels if label in term.labels))
        if ANY in labels[1:]:
            _refuse_any(labels)
        first = min((labels.index(label) for label in moved.labels), default=len(labels))
        absent = [axis for axis in range(first, len(labels)) if labels[axis] not in moved.labels]
        start = len(labels) if ANY in moved.labels else first
        return self._with_axes("Unsqueeze", moved.value, [axis - start for axis in absent]) if absent else moved.value

    # Pieces.

    def _transposed(self, term: _Term, labels: Labels) -> _Term:
        axes = [term.labels.index(label) for label in labels]
        if axes == sorted(axes):
            return term
        _refuse_any(labels)
        return _Term(self._permuted(term.value, axes), labels, tuple(term.sizes[axis] for axis in axes))

    def _permuted(self, value: Value, axes: Sequence[int]) -> Value:
        if value.data is not None:
            return constant(value.name, value.data.transpose(axes))
        return value if list(axes) == sorted(axes) else self.op.Transpose(value, perm=tuple(axes))

    def _size(self, term: _Term, label: str) -> Size:
        size = term.size(label)
        if not isinstance(size, int):
            size = self.known.get(label)
        if size is not None:
            return size
        axis = term.labels.index(label)
        return self._computed_size(term.value, axis)

    def _computed_size(self, value: Value, axis: int) -> Value:
        if self.only_linear:
            raise _Undone(f"dimension {axis} of {value.name!r} is not known")
        return self.op.Shape(value, start=axis, end=axis + 1)

    def _merged(self, sizes: Sequence[Size]) -> Size:
        number = math.prod(size for size in sizes if isinstance(size, int))
        product: Size = None
        for size in (*(size for size in sizes if isinstance(size, Value)), *([_vector(number)] if number != 1 else [])):
            product = size if product is None else self.op.Mul(product, size)
        return product if any(isinstance(size, Value) for size in sizes) else number

    def _reshaped(self, value: Value, sizes: Sequence[Size]) -> Value:
        """`value` in the shape `sizes`; None comes first and is a dimension that stays."""
        if all(size is None or (isinstance(size, int) and size > 0) for size in sizes):
            return self.op.Reshape(value, constant("shape", np.array([size or 0 for size in sizes], np.int64)))
        explicit = [self._computed_size(value, axis) if size is None else size for axis, size in enumerate(sizes)]
        vectors = [_vector(size) if isinstance(size, int) else size for size in explicit]
        if self.only_linear:
            raise _Undone("a dimension is 0")
        return self.op.Reshape(value, self.op.Concat(*vectors, axis=0), allowzero=1)

    def _with_axes(self, op_type: str, value: Value, axes: Sequence[int], **attributes: int) -> Value:
        make = getattr(self.op, op_type)
        if self.only_linear and self.node.version < _AXES_ARE_INPUTS:
            return make(value, axes=tuple(axes), **attributes)
        return make(value, constant("axes", np.array(axes, np.int64)), **attributes)


def _check_linear(terms: Sequence[_Term], output: Labels) -> None:
    """Raise _Undone unless one of two operands is a constant whose labels are each summed or of the result alone."""
    weights = [term for term in terms if term.value.data is not None]
    if len(terms) != 2 or len(weights) != 1:
        raise _Undone("it is not of two operands, one of them constant")
    (weight,), (x,) = weights, [term for term in terms if term.value.data is None]
    data, inner, outer = weight.value.data, set(weight.labels) - set(output), set(weight.labels) & set(output)
    if data is None or data.dtype.kind != "f" or not data.size:
        raise _Undone("the constant holds no floats")
    if any(len(set(term.labels)) < len(term.labels) for term in terms):
        raise _Undone("it takes a diagonal")
    if not inner or not outer or set(x.labels) - set(output) != inner or outer & set(x.labels):
        raise _Undone("it is no product of rows with a matrix")


def _refuse_any(labels: Labels) -> None:
    if ANY in labels:
        raise _Undone("the number of dimensions behind '...' is unknown")


def _vector(number: int) -> Value:
    return constant("size", np.array([number], np.int64))


def _broadcast_size(a: Dim | None, b: Dim | None) -> Dim | None:
    """Of a dimension that both operands have."""
    if a == b or b == 1:
        return a
    return b if a == 1 else None


def _used(terms: Sequence[_Term], output: Labels, but: int | None = None) -> set[str]:
    """Labels of the result and of all terms, one excepted."""
    return set(output).union(*(term.labels for i, term in enumerate(terms) if i != but))


def _ordered(labels: set[str], output: Labels, otherwise: Labels) -> Labels:
    """As the result has them, then the others as they come."""
    rest = dict.fromkeys(label for label in otherwise if label in labels and label not in output)
    return (*(label for label in output if label in labels), *rest)


def _layout(a: _Term, b: _Term, kept: set[str], output: Labels) -> _Layout:
    shared = set(a.labels) & set(b.labels)
    batch = _ordered(shared & kept, output, a.labels)
    rows, columns = (_ordered(set(term.labels) - shared, output, term.labels) for term in (a, b))
    return _Layout(batch, rows, tuple(label for label in a.labels if label in shared - kept), columns)


def _sides(a: _Term, b: _Term, kept: set[str], output: Labels) -> tuple[_Term, _Term]:
    """The operands in the order in which MatMul takes them: a constant right, else that of fewer transpositions."""
    if (a.value.data is None) != (b.value.data is None):
        return (b, a) if b.value.data is None else (a, b)

    def transpositions(left: _Term, right: _Term) -> int:
        batch, rows, summed, columns = _layout(left, right, kept, output)
        result = (*batch, *rows, *columns)
        moved = (*batch, *rows, *summed) != left.labels, (*batch, *summed, *columns) != right.labels
        return sum(moved) + (result != _ordered(set(result), output, result))

    return (b, a) if transpositions(b, a) < transpositions(a, b) else (a, b)


def _best_pair(terms: Sequence[_Term], output: Labels) -> tuple[int, int]:
    """The pair whose product has the fewest dimensions, one with a sum before one without."""

    def cost(pair: tuple[int, int]) -> tuple[int, bool]:
        others = [term for k, term in enumerate(terms) if k not in pair]
        a, b = (set(terms[i].labels) for i in pair)
        kept = (a | b) & _used(others, output)
        return len(kept), a & b <= kept

    return min(combinations(range(len(terms)), 2), key=cost)
