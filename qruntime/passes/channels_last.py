"""Images of 8-bit codes keep their channels last from one layer to the next, where they are adjacent in memory.

Layers stand between transpositions when they are lowered. Operators that can as well work with the channels last take and
give images so, and transpositions remain where an island of such operators begins and ends:

    x → Transpose → QLinearConv → Transpose → CodeTable → …  →  x → Transpose → QLinearConv → CodeTable → … → Transpose →
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qruntime.ir import Graph, Node, Value, constant
from qruntime.ops.contrib.domain import MICROSOFT
from qruntime.passes.cleanup import remove_dead_nodes
from qruntime.passes.rewriting import QRUNTIME, Builder, as_attribute
from qruntime.passes.static_quantization import channels_last, channels_second


def keep_channels_last(graph: Graph) -> None:
    """Transpositions around operators on images of codes  →  around islands of them."""
    if not any(node.is_op("QLinearConv", domain=QRUNTIME) for node in graph.walk_nodes()):
        return
    for nested in graph.walk_graphs():
        _Island(nested).grow()
    remove_dead_nodes(graph)


class _Island:
    """Images of one graph, and what they are with their channels last."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.last: dict[Value, Value] = {}
        self.ranks: dict[Value, int] = {}
        self.remade: list[Value] = []

    def grow(self) -> None:
        for node in list(self.graph.nodes):
            if node.is_op("Transpose"):
                self._transpose(node)
                continue
            rewrite = _OPERATORS.get((node.domain, node.op_type))
            if rewrite is not None:
                rewrite(self, node)
        # What was made again with the channels last is read in its first form by others still: transposed there.
        for value in self.remade:
            producer, image = value.producer, self.last[value]
            if producer is None or not value.is_read:
                continue
            op = Builder(producer)
            made = op.Transpose(image, domain="", perm=channels_second(self.ranks[value]))
            self.graph.insert_before(producer, *op.nodes)
            self.graph.replace_uses(value, made)

    def _transpose(self, node: Node) -> None:
        """A transposition at a layer tells what both of its sides are."""
        source, target, perm = node.input(0), node.outputs[0], node.attr("perm", ())
        rank = len(perm)
        if source is None or rank < 3:
            return
        if tuple(perm) == channels_second(rank) and source.producer is not None and _gives_codes(source.producer):
            self._remember(target, source, rank)
        elif tuple(perm) == channels_last(rank) and any(_is_layer(user) and at == 0 for user, at in target.uses):
            if source in self.last:
                self.graph.replace_uses(target, self.last[source])
            else:
                self._remember(source, target, rank)

    def _remember(self, value: Value, image: Value, rank: int) -> None:
        self.last.setdefault(value, image)
        self.ranks.setdefault(value, rank)

    def replace(self, value: Value, image: Value, rank: int) -> None:
        """`image` was made in place of `value`."""
        self._remember(value, image, rank)
        self.remade.append(value)

    def rank_of(self, node: Node, operands: tuple[int, ...]) -> int | None:
        """The rank of the images among the operands, when all that are computed are images of one rank."""
        values = [node.input(i) for i in operands]
        ranks = {self.ranks[v] for v in values if v is not None and v in self.last}
        if len(ranks) != 1 or not all(v is not None and (v in self.last or v.data is not None) for v in values):
            return None
        return ranks.pop()

    def image_of(self, value: Value, rank: int) -> Value | None:
        """`value`, an image or a constant that broadcasts to images, with the channels last."""
        if value in self.last:
            return self.last[value]
        data = value.data
        if data is None or data.ndim > rank:
            return None
        if data.size == 1:
            return value
        data = data.reshape(*(1,) * (rank - data.ndim), *data.shape)
        return constant(f"{value.name}/channels_last", np.ascontiguousarray(data.transpose(channels_last(rank))))

    def remake(self, node: Node, rank: int, inputs: list[Value | None], **attributes: object) -> None:
        """The node with its channels last, beside itself."""
        outputs = [Value(f"{output.name}/channels_last") for output in node.outputs]
        made = {**node.attributes, **{name: as_attribute(value) for name, value in attributes.items()}}
        new = Node(
            node.op_type, inputs, outputs, made, domain=node.domain, version=node.version, name=node.name,
            metadata=dict(node.metadata), origin=[node],
        )  # fmt: skip
        self.graph.insert_before(node, new)
        for old, output in zip(node.outputs, outputs, strict=True):
            self.replace(old, output, rank)


def _is_layer(node: Node) -> bool:
    return node.is_op("QLinearConv", domain=QRUNTIME)


def _gives_codes(node: Node) -> bool:
    """A layer that requantizes its sums."""
    return _is_layer(node) and node.input(7) is not None


def _elementwise(*operands: int) -> Callable[[_Island, Node], None]:
    def rewrite(island: _Island, node: Node) -> None:
        rank = island.rank_of(node, operands)
        if rank is None:
            return
        inputs = list(node.inputs)
        for i in operands:
            image = island.image_of(node.inputs[i], rank)  # type: ignore[arg-type]
            if image is None:
                return
            inputs[i] = image
        island.remake(node, rank, inputs)

    return rewrite


def _pooling(island: _Island, node: Node) -> None:
    rank = island.rank_of(node, (0,))
    if rank is not None and not node.attr("channels_last", 0):
        island.remake(node, rank, [island.last[node.inputs[0]], *node.inputs[1:]], channels_last=1)  # type: ignore[index]


def _max_pool(island: _Island, node: Node) -> None:
    rank = island.rank_of(node, (0,))
    if rank is None or len(node.outputs) > 1 or not 1 <= len(node.attr("kernel_shape", ())) <= 2:
        return
    op = Builder(node)
    attributes = {name: value for name, value in node.attributes.items() if name != "storage_order"}
    made = op.NhwcMaxPool(island.last[node.inputs[0]], domain=MICROSOFT, **attributes)  # type: ignore[index]
    island.graph.insert_before(node, *op.nodes)
    island.replace(node.outputs[0], made, rank)


def _along_axis(operands: Callable[[Node], tuple[int, ...]], default: int) -> Callable[[_Island, Node], None]:
    def rewrite(island: _Island, node: Node) -> None:
        places = operands(node)
        rank = island.rank_of(node, places)
        axis = node.attr("axis", default)
        if rank is None or not isinstance(axis, int) or not -rank <= axis < rank:
            return
        inputs = list(node.inputs)
        for i in places:
            if node.inputs[i] not in island.last:
                return
            inputs[i] = island.last[node.inputs[i]]  # type: ignore[index]
        island.remake(node, rank, inputs, axis=channels_last(rank).index(axis % rank))

    return rewrite


def _slice(island: _Island, node: Node) -> None:
    rank, axes = island.rank_of(node, (0,)), node.input(3)
    if rank is None or node.version < 10 or axes is None or axes.data is None:
        return
    given = axes.data.reshape(-1)
    if ((given < -rank) | (given >= rank)).any():
        return
    moved = constant(f"{axes.name}/channels_last", np.asarray([channels_last(rank).index(int(a) % rank) for a in given], axes.data.dtype))
    inputs = [island.last[node.inputs[0]], *node.inputs[1:]]  # type: ignore[index]
    inputs[3] = moved
    island.remake(node, rank, inputs)


def _resize(island: _Island, node: Node) -> None:
    rank = island.rank_of(node, (0,))
    if rank is None or node.version < 11 or (node.input(1) is not None and node.inputs[1].data is None):  # type: ignore[union-attr]
        return
    if "axes" in node.attributes or node.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
        return
    inputs = [island.last[node.inputs[0]], *node.inputs[1:]]  # type: ignore[index]
    for i in (2, 3):
        value = node.input(i)
        if value is None:
            continue
        if value.data is None or value.data.size not in (0, rank):
            return
        if value.data.size:
            inputs[i] = constant(f"{value.name}/channels_last", value.data.reshape(-1)[list(channels_last(rank))])
    if node.input(1) is not None:
        inputs[1] = None  # the region that other modes crop
    island.remake(node, rank, inputs)


_OPERATORS: dict[tuple[str, str], Callable[[_Island, Node], None]] = {
    ("", "Concat"): _along_axis(lambda node: tuple(range(len(node.inputs))), 1),
    ("", "MaxPool"): _max_pool,
    ("", "Resize"): _resize,
    ("", "Slice"): _slice,
    ("", "Split"): _along_axis(lambda node: (0,), 0),
    (MICROSOFT, "QLinearAdd"): _elementwise(0, 3),
    (MICROSOFT, "QLinearAveragePool"): _pooling,
    (MICROSOFT, "QLinearGlobalAveragePool"): _pooling,
    (MICROSOFT, "QLinearMul"): _elementwise(0, 3),
    (QRUNTIME, "CodeTable"): _elementwise(0),
}
