"""Channels of images lie in blocks of 16 from one convolution to the next, as the kernels of kernels/conv_f32.h want them.

Operators that can work on blocks as well take and give them so, and images are regrouped where an island of such operators
begins and ends:

    x → Conv → Relu → Conv → Add(x) → …   →   x → BlockedConv → Relu → BlockedConv → Add(x) → … → UnblockChannels →

A first convolution of few channels reads its image as it is. Float and quantized convolutions share islands. What may be in an island is
known from its convolutions, whose weights say ranks and channels. An island of one convolution stays as it is where regrouping would
cost as much as it spares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from qruntime.ir import Attribute, Graph, Node, Value, constant
from qruntime.ops.channel_blocks import BLOCK, in_blocks, weights_by_phase
from qruntime.ops.convolution import convolution_geometry, transposed_geometry
from qruntime.passes.cleanup import remove_dead_nodes
from qruntime.passes.element_types import narrow_results
from qruntime.passes.rewriting import QRUNTIME, Builder, Skip, trace

_FEW_CHANNELS = 4
"""So few are read as they are: blocks of them would be empty for the greater part."""

_LEAST_MAPS = BLOCK // 2
"""With fewer outputs more than half of the work in blocks would be for nothing. Where an image is in blocks and there is one product
for each of its numbers, that costs less than taking it out of them."""


def keep_channel_blocks(graph: Graph) -> None:
    """Convolutions and what can work on blocks between them  →  islands of the same on blocks."""
    if not any(node.is_op("Conv", "ConvTranspose", "DynamicQuantizedConv", domain=QRUNTIME) for node in graph.walk_nodes()):
        return
    is_narrow = narrow_results(graph)
    for nested in graph.walk_graphs():
        _Islands(nested, is_narrow).settle()
    remove_dead_nodes(graph)


@dataclass(frozen=True)
class _Image:
    """A value of an island: what it is in blocks, of how many channels, and its rank out of them."""

    value: Value
    channels: int
    rank: int


@dataclass
class _Remade:
    """A node of an island, and what takes its place there."""

    node: Node
    builder: Builder
    outputs: list[_Image]
    neighbours: list[Node]
    is_convolution: bool = False
    plain: list[tuple[Value, int]] = field(default_factory=list)
    """What `builder` reads that is to be put into blocks before, and how many channels it must have."""


class _Islands:
    """The islands of one graph."""

    def __init__(self, graph: Graph, is_narrow: Callable[[Value], bool]):
        self.graph = graph
        self.is_narrow = is_narrow
        self.images: dict[Value, _Image] = {}
        self.remade: dict[Node, _Remade] = {}
        self.by_phase: dict[tuple[Value, int, tuple[int, ...], tuple[int, ...]], Value] = {}

    def settle(self) -> None:
        for node in self.graph.nodes:
            rewrite = _OPERATORS.get((node.domain, node.op_type))
            made = Skip("no operator of images") if rewrite is None else rewrite(self, node)
            if isinstance(made, Skip):
                if rewrite is not None:
                    trace(f"keep_channel_blocks declines at {node.label}: {made}")
                continue
            self.remade[node] = made
            self.images.update(zip(node.outputs, made.outputs, strict=True))
        kept = self._worthwhile()
        self._put_in(kept)
        for made in self.remade.values():
            for new in made.builder.nodes:
                if new.graph is None:  # of an island that is not worth it
                    for at in range(len(new.inputs)):
                        new.set_input(at, None)

    def _worthwhile(self) -> list[_Remade]:
        """Those of islands that repay what regrouping costs at their shores."""
        island: dict[Node, Node] = {}

        def root(node: Node) -> Node:
            while island.setdefault(node, node) is not node:
                island[node] = island[island[node]]
                node = island[node]
            return node

        for made in self.remade.values():
            for neighbour in made.neighbours:
                island[root(made.node)] = root(neighbour)
        convolutions: dict[Node, list[Node]] = {}
        for made in self.remade.values():
            if made.is_convolution:
                convolutions.setdefault(root(made.node), []).append(made.node)
        worth = {at for at, nodes in convolutions.items() if len(nodes) > 1 or _taps(nodes[0]) > 1}
        return [made for made in self.remade.values() if root(made.node) in worth]

    def _put_in(self, kept: list[_Remade]) -> None:
        blocked: dict[tuple[Value, int], Value] = {}
        for made in kept:
            for value, channels in made.plain:
                if (value, channels) not in blocked:
                    op = Builder(made.node)
                    blocked[value, channels] = op.BlockChannels(value, channels=channels)
                    self.graph.insert_before(made.node, *op.nodes)
                for new in made.builder.nodes:
                    for at, read in enumerate(new.inputs):
                        if read is value:
                            new.set_input(at, blocked[value, channels])
            self.graph.insert_before(made.node, *made.builder.nodes)
        # What others read still is taken out of its blocks for them.
        for made in kept:
            for value, image in zip(made.node.outputs, made.outputs, strict=True):
                if not value.is_read or image.rank == 0:
                    continue
                op = Builder(made.node)
                plain = op.UnblockChannels(image.value, channels=image.channels)
                self.graph.insert_before(made.node, *op.nodes)
                self.graph.replace_uses(value, plain)
        for made in kept:
            for value, image in zip(made.node.outputs, made.outputs, strict=True):
                if image.rank == 0:
                    self.graph.replace_uses(value, image.value)

    def image(self, value: Value | None) -> _Image | None:
        found = None if value is None else self.images.get(value)
        return found if found is not None and found.rank else None

    def weights_by_phase(self, node: Node, weight: Value, w: np.ndarray) -> Value:
        """The weight of a transposed convolution as its kernel takes it, one for all that can share it."""
        group, ones = node.attr("group", 1), (1,) * (w.ndim - 2)
        strides, dilations = (tuple(node.attr(name, ()) or ones) for name in ("strides", "dilations"))
        key = weight, group, strides, dilations
        if key not in self.by_phase:
            self.by_phase[key] = constant(f"{weight.name}/by_phase", weights_by_phase(w, group, strides, dilations))
        return self.by_phase[key]

    def made(self, node: Node, builder: Builder, outputs: list[_Image], images: list[Value | None]) -> _Remade:
        neighbours = [v.producer for v in images if v is not None and v.producer is not None and self.image(v) is not None]
        return _Remade(node, builder, outputs, neighbours)


def _taps(node: Node) -> int:
    weight = node.input(1)
    assert weight is not None and weight.shape is not None
    return math.prod(weight.shape[2:])


def _convolution(islands: _Islands, node: Node) -> Skip | _Remade:
    x, weight, bias = node.input(0), node.input(1), node.input(2)
    w = None if weight is None else weight.data
    if x is None or w is None or w.dtype != np.float32 or not 3 <= w.ndim <= 5 or w.size == 0:
        return Skip("the weight is no constant of float32")
    if bias is not None and (bias.data is None or bias.data.dtype != np.float32 or bias.data.shape != w.shape[:1]):
        return Skip("the bias is no constant with one number for each output")
    if convolution_geometry(node, w.shape) is None:
        return Skip("an attribute does not fit the weight")
    if not np.isfinite(w).all():
        return Skip("a weight is not finite")  # the definition multiplies it with padding
    return _in_island(islands, node, "BlockedConv", node.attributes)


def _transposed_convolution(islands: _Islands, node: Node) -> Skip | _Remade:
    x, weight, bias = node.input(0), node.input(1), node.input(2)
    w = None if weight is None else weight.data
    if x is None or w is None or w.dtype != np.float32:
        return Skip("the weight is no constant of float32")
    group = node.attr("group", 1)
    channels, maps = w.shape[0], w.shape[1] * group
    if bias is not None and (bias.data is None or bias.data.dtype != np.float32 or bias.data.shape != (maps,)):
        return Skip("the bias is no constant with one number for each output")
    if transposed_geometry(node, w.shape, maps) is None:
        return Skip("an attribute does not fit the weight")
    if maps < _LEAST_MAPS:
        return Skip(f"{maps} outputs fill too little of a block")
    if group != 1 and (channels % (group * BLOCK) or w.shape[1] % BLOCK):
        return Skip(f"{group} groups that are no whole blocks")
    image = islands.image(x)
    if image is not None and (image.channels != channels or image.rank != w.ndim):
        return Skip("the image has not the channels of the weight")
    op = Builder(node)
    by_phase = islands.weights_by_phase(node, weight, w)  # type: ignore[arg-type]
    made = op.BlockedConvTranspose(x if image is None else image.value, by_phase, bias, **node.attributes)
    remade = islands.made(node, op, [_Image(made, maps, w.ndim)], [x])
    remade.is_convolution = True
    if image is None:
        remade.plain.append((x, channels))
    return remade


def _quantized_convolution(islands: _Islands, node: Node) -> Skip | _Remade:
    weight, bias = node.input(1), node.input(2)
    stored = None if weight is None else weight.stored
    if stored is None or not 3 <= stored.ndim <= 5 or stored.size == 0:
        return Skip("the weight is no constant of int8")
    if bias is not None and (bias.data is None or bias.data.dtype != np.float32 or bias.data.shape != stored.shape[:1]):
        return Skip("the bias is no constant with one number for each output")
    if convolution_geometry(node, stored.shape) is None:
        return Skip("an attribute does not fit the weight")
    if node.attr("range", "per_token") != "per_token":
        return Skip("one range for all of its input")
    if node.attr("group", 1) != 1:
        return Skip(f"{node.attr('group')} groups")
    if islands.is_narrow(node.outputs[0]):
        return Skip("its result is a narrow float")
    attributes = {name: value for name, value in node.attributes.items() if name not in ("group", "range")}
    return _in_island(islands, node, "BlockedQuantizedConv", attributes)


def _is_of_small_groups(node: Node, shape: tuple[int, ...]) -> bool:
    """Whether it is in groups of 2, 4 or 8 with windows that the kernel slides along rows, each with a pixel of every row."""
    width, step, dilation = shape[-1], (node.attr("strides") or (1,))[-1], (node.attr("dilations") or (1,))[-1]
    pads = node.attr("pads", ()) or (0,)
    borders = pads[len(shape) - 3 :: len(shape) - 2]
    return (
        shape[1] in (2, 4, 8) and len(shape) < 5 and (width, step, dilation) in ((3, 1, 1), (3, 2, 1)) and max(borders, default=0) < width
    )


def _in_island(islands: _Islands, node: Node, op_type: str, attributes: Mapping[str, Attribute]) -> Skip | _Remade:
    """A convolution in blocks in place of `node`, whose weight has been looked at."""
    x, weight = node.input(0), node.input(1)
    assert x is not None
    assert weight is not None
    assert weight.shape is not None
    shape, group = weight.shape, node.attr("group", 1)
    image = islands.image(x)
    kind = "blocks"
    if group != 1:
        if shape[0] == group and shape[1] == 1:
            kind = "depthwise"
        elif op_type == "BlockedConv" and shape[0] == group * shape[1] and _is_of_small_groups(node, shape):
            kind = "grouped"
        elif op_type != "BlockedConv" or shape[1] % BLOCK or shape[0] % (group * BLOCK):
            return Skip(f"{group} groups that are neither single channels nor whole blocks, nor small enough")
    elif shape[0] < _LEAST_MAPS and (image is None or math.prod(shape[2:]) > 1):
        return Skip(f"{shape[0]} outputs fill too little of a block")
    elif image is None and shape[1] <= _FEW_CHANNELS and (node.attr("dilations", ()) or (1,))[-1] == 1:
        kind = "columns"
    if image is not None and (image.channels != shape[1] * group or image.rank != len(shape)):
        return Skip("the image has not the channels of the weight")
    op = Builder(node)
    source = x if image is None else image.value
    made = getattr(op, op_type)(source, weight, node.input(2), kind=kind, **attributes)
    remade = islands.made(node, op, [_Image(made, shape[0], len(shape))], [x])
    remade.is_convolution = True
    if image is None and kind != "columns":
        remade.plain.append((x, shape[1] * group))
    return remade


def _same_node(node: Node, inputs: list[Value | None], version: int | None = None, **attributes: object) -> tuple[Builder, Value]:
    """The operator of the node on other inputs."""
    op = Builder(node, version)
    made = getattr(op, node.op_type)(*inputs, domain=node.domain, **{**node.attributes, **attributes})
    return op, made


def _axes(axes: int | np.ndarray, image: _Image) -> list[int] | None:
    """Axes counted from the first; None where one is none of the image, which its operator reports."""
    given = [int(axis) for axis in np.reshape(axes, -1)]
    return [axis % image.rank for axis in given] if all(-image.rank <= axis < image.rank for axis in given) else None


def _unary(islands: _Islands, node: Node) -> Skip | _Remade:
    image = islands.image(node.input(0))
    if image is None or len(node.outputs) > 1:
        return Skip("its input is not in blocks")
    if any(v is not None and (v.data is None or v.data.size != 1) for v in node.inputs[1:]):
        return Skip("a parameter is no constant of one number")
    op, made = _same_node(node, [image.value, *node.inputs[1:]])
    return islands.made(node, op, [_Image(made, image.channels, image.rank)], [node.input(0)])


def _operand(image: _Image, value: Value | None, islands: _Islands) -> Value | None:
    """An operand beside `image` as it is needed there: an image of as many channels, or a constant that broadcasts to it."""
    other = islands.image(value)
    if other is not None:
        return other.value if (other.channels, other.rank) == (image.channels, image.rank) else None
    data = None if value is None else value.data
    if value is None or data is None or data.dtype != np.float32 or data.ndim > image.rank:
        return None
    if data.size == 1:
        return constant(f"{value.name}/number", data.reshape(()))
    data = data.reshape(*(1,) * (image.rank - data.ndim), *data.shape)
    if data.shape[1] not in (1, image.channels):
        return None
    return constant(f"{value.name}/in_blocks", data[..., np.newaxis] if data.shape[1] == 1 else in_blocks(data))


def _binary(islands: _Islands, node: Node) -> Skip | _Remade:
    if node.version < 7:
        return Skip(f"opset {node.version} broadcasts in another way")
    images = [islands.image(value) for value in node.inputs]
    image = next((found for found in images if found is not None), None)
    if image is None:
        return Skip("no input is in blocks")
    operands = [_operand(image, value, islands) for value in node.inputs]
    if None in operands:
        return Skip("an operand is neither such an image nor a constant that fits it")
    op, made = _same_node(node, operands)
    return islands.made(node, op, [_Image(made, image.channels, image.rank)], list(node.inputs))


def _sliding_pool(islands: _Islands, node: Node) -> Skip | _Remade:
    image = islands.image(node.input(0))
    if image is None or len(node.outputs) > 1 or len(node.attr("kernel_shape", ())) != image.rank - 2:
        return Skip("its input is not in blocks, or it does more than pool its pixels")
    attributes = {name: value for name, value in node.attributes.items() if name != "storage_order"}
    op = Builder(node)
    made = getattr(op, f"Blocked{node.op_type}")(image.value, **attributes)
    return islands.made(node, op, [_Image(made, image.channels, image.rank)], [node.input(0)])


def _global_average_pool(islands: _Islands, node: Node) -> Skip | _Remade:
    image = islands.image(node.input(0))
    if image is None:
        return Skip("its input is not in blocks")
    if node.op_type == "ReduceMean":
        axes = node.input(1).data if node.input(1) is not None else np.asarray(node.attr("axes", ()))  # type: ignore[union-attr]
        if axes is None or not node.attr("keepdims", 1) or sorted(_axes(axes, image) or ()) != list(range(2, image.rank)):
            return Skip("it is no mean of all pixels")
    op = Builder(node)
    return islands.made(node, op, [_Image(op.BlockedGlobalAveragePool(image.value), image.channels, image.rank)], [node.input(0)])


def _concat(islands: _Islands, node: Node) -> Skip | _Remade:
    images = [islands.image(value) for value in node.inputs]
    if any(image is None for image in images):
        return Skip("an input is not in blocks")
    found = [image for image in images if image is not None]
    rank = found[0].rank
    if (
        any(image.rank != rank for image in found)
        or _axes(node.attr("axis", 1), found[0]) != [1]
        or any(image.channels % BLOCK for image in found[:-1])
    ):
        return Skip("it does not join whole blocks")
    op, made = _same_node(node, [image.value for image in found], axis=1)
    return islands.made(node, op, [_Image(made, sum(image.channels for image in found), rank)], list(node.inputs))


def _split(islands: _Islands, node: Node) -> Skip | _Remade:
    image = islands.image(node.input(0))
    if image is None or _axes(node.attr("axis", 0), image) != [1]:
        return Skip("its input is not in blocks, or it does not split channels")
    count, given = len(node.outputs), node.input(1)
    sizes = node.attr("split", ()) if given is None else given.data
    if sizes is None:
        return Skip("the sizes are computed at run time")
    parts = [int(size) for size in np.reshape(sizes, -1)]
    if not parts and (node.version >= 18 or image.channels % count == 0):
        equal = -(-image.channels // count)
        parts = [*[equal] * (count - 1), image.channels - equal * (count - 1)]
    if len(parts) != count or sum(parts) != image.channels or min(parts) <= 0 or any(part % BLOCK for part in parts[:-1]):
        return Skip("it does not split whole blocks")
    op = Builder(node, max(node.version, 13))
    blocks = constant(f"{node.outputs[0].name}/blocks", np.asarray([-(-part // BLOCK) for part in parts], np.int64))
    outputs = op.several(count, "Split", image.value, blocks, domain="", axis=1)
    return islands.made(node, op, [_Image(v, part, image.rank) for v, part in zip(outputs, parts, strict=True)], [node.input(0)])


def _slice(islands: _Islands, node: Node) -> Skip | _Remade:
    image = islands.image(node.input(0))
    if image is None or node.version < 10:
        return Skip("its input is not in blocks")
    numbers = [None if v is None else v.data for v in node.inputs[1:5]] + [None] * (5 - len(node.inputs))
    if any(v is not None and v.data is None for v in node.inputs[1:5]) or numbers[0] is None or numbers[1] is None:
        return Skip("its bounds are computed at run time")
    starts, ends = ([int(i) for i in bound.reshape(-1)] for bound in numbers[:2])  # type: ignore[union-attr]
    axes = _axes(np.arange(len(starts)) if numbers[2] is None else numbers[2], image)
    steps = [1] * len(starts) if numbers[3] is None else [int(s) for s in numbers[3].reshape(-1)]
    if axes is None or not len(starts) == len(ends) == len(axes) == len(steps):
        return Skip("its bounds do not fit together")
    channels = image.channels
    for i, axis in enumerate(axes):
        if axis != 1:
            continue
        start, end, _ = slice(starts[i], ends[i]).indices(image.channels)
        if steps[i] != 1 or start % BLOCK or end <= start or (end % BLOCK and end != image.channels):
            return Skip("it does not take whole blocks")
        starts[i], ends[i], channels = start // BLOCK, -(-end // BLOCK), end - start
    bounds = [
        constant(f"{node.outputs[0].name}/{name}", np.asarray(v, np.int64))
        for name, v in zip(("starts", "ends", "axes", "steps"), (starts, ends, axes, steps), strict=True)
    ]
    op, made = _same_node(node, [image.value, *bounds])
    return islands.made(node, op, [_Image(made, channels, image.rank)], [node.input(0)])


def _resize(islands: _Islands, node: Node) -> Skip | _Remade:
    image = islands.image(node.input(0))
    if image is None or node.version < 11 or "axes" in node.attributes or node.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
        return Skip("its input is not in blocks, or it is of another kind")
    if node.attr("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        return Skip("it crops")
    scales, sizes = node.input(2), node.input(3)
    factors = None if scales is None or scales.data is None else scales.data.reshape(-1)
    if factors is None or factors.size != image.rank or sizes is not None or (factors[:2] != 1).any():
        return Skip("its scales are no constants, or not those of pixels alone")
    grown = constant(f"{scales.name}/in_blocks", np.append(factors, np.float32(1)))  # type: ignore[union-attr]
    op, made = _same_node(node, [image.value, None, grown])
    return islands.made(node, op, [_Image(made, image.channels, image.rank)], [node.input(0)])


def _shape(islands: _Islands, node: Node) -> Skip | _Remade:
    image = islands.image(node.input(0))
    if image is None:
        return Skip("its input is not in blocks")
    op = Builder(node)
    return islands.made(node, op, [_Image(op.BlockedShape(image.value, channels=image.channels, **node.attributes), 0, 0)], [node.input(0)])


_Handler = Callable[[_Islands, Node], Skip | _Remade]

_UNARY = (
    "Abs", "Celu", "Clip", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mish", "Neg", "Reciprocal", "Relu",
    "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Swish", "Tanh", "ThresholdedRelu",
)  # fmt: skip
_OPERATORS: dict[tuple[str, str], _Handler] = {
    (QRUNTIME, "Conv"): _convolution,
    (QRUNTIME, "ConvTranspose"): _transposed_convolution,
    (QRUNTIME, "DynamicQuantizedConv"): _quantized_convolution,
    **{("", name): _unary for name in _UNARY},
    **{(QRUNTIME, name): _unary for name in ("Gelu", "HardSwish", "Silu")},
    **{("", name): _binary for name in ("Add", "Div", "Max", "Min", "Mul", "PRelu", "Sub")},
    ("", "AveragePool"): _sliding_pool,
    ("", "MaxPool"): _sliding_pool,
    ("", "GlobalAveragePool"): _global_average_pool,
    ("", "ReduceMean"): _global_average_pool,
    ("", "Concat"): _concat,
    ("", "Resize"): _resize,
    ("", "Shape"): _shape,
    ("", "Slice"): _slice,
    ("", "Split"): _split,
}
