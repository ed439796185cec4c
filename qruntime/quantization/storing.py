"""Weights of layers replaced by what a step makes of them, each weight once; and the rows of reports that describe it."""

from __future__ import annotations

from collections.abc import Sequence

from qruntime.ir import Graph, LayerMark, Value
from qruntime.ir.formats import FLOAT16, FP8
from qruntime.ir.marks import WEIGHT_ONLY
from qruntime.onnx_io.mapped_file import drop_pages
from qruntime.ops.elementwise import is_narrow_float
from qruntime.passes.stored.writing import opset_beside
from qruntime.quantization.cache import describe_caches
from qruntime.quantization.foreign import held_weights
from qruntime.quantization.layers import CONVOLUTIONS, Layer, layer_of, missing_form, obstacle, unfit_attributes
from qruntime.quantization.low_rank import branches_beside, insert_branch
from qruntime.quantization.report import QuantizedLayer, Report, row_of
from qruntime.quantization.rounding import Rounded
from qruntime.quantization.scheme import GROUP, Inputs
from qruntime.quantization.selection import layer_kind, layer_name, weight_shape
from qruntime.quantization.small_layers import slower_as_int8
from qruntime.quantization.solving import Rounding, Solving
from qruntime.quantization.steps import LowRankFactors
from qruntime.quantization.stored import stored_form

Roundings = Rounding | Sequence[Sequence[Rounding]]
"""What makes the codes of all matrices of a layer; or, for each weight, one for each of its matrices, all of one format."""


class Storing:
    """Solves each weight of a graph once for all layers that read it and ask for the same."""

    def __init__(self, graph: Graph):
        self.graph = graph
        self.solved: dict[tuple[Value, tuple[Rounding, ...], int], tuple[Value, list[Rounded]]] = {}
        self._counted: set[Value] = set()

    def store(
        self,
        layer: Layer,
        rounding: Roundings,
        inputs: Inputs | None = None,
        engine: str = "qruntime",
        branches: Sequence[LowRankFactors] = (),
    ) -> QuantizedLayer | str:
        """Replace the weights of one layer, and put `branches` beside it; a string says why that cannot be. Float and embedding
        layers have float activations whatever `inputs` says."""
        node = layer.node
        if (reason := self.misfit(layer, rounding, engine)) is not None:
            return reason
        asked, before = _asked(layer, rounding), stored_form(layer)
        try:
            made = [self._solved(layer, *key) for key in asked]
        except ValueError as error:
            return str(error)
        for position, (stored, _) in zip(layer.form.weights, made, strict=True):
            node.set_input(position, stored)
        rounded = [one for _, parts in made for one in parts]
        if asked[0][1][0].format is FLOAT16 or layer.kind == "Embedding":
            inputs, engine = inputs if inputs is not None and inputs.format is FP8 else None, "qruntime"
        node.mark = LayerMark(
            WEIGHT_ONLY if inputs is None else inputs.ranges,
            engine,
            min(one.snr_db for one in rounded),
            next((one.reason for one in rounded if one.reason), ""),
            LayerMark().source if before is None else before.dtype,
            LayerMark().codes if inputs is None else inputs.format.name,
        )
        for factors in branches:
            insert_branch(self.graph, layer, factors)
        row = row_of_layer(layer, self._counted)
        self._counted.update(value for value, _ in made)
        return row._replace(facts=tuple(one.facts for one in rounded if one.facts))

    def solve(self, layer: Layer, rounding: Roundings) -> list[Rounded]:
        """The codes of all matrices of a layer that `misfit` finds no fault with, kept for `store`: layers may be solved in
        threads side by side. Raises ValueError with what is wrong with a weight."""
        return [one for key in _asked(layer, rounding) for one in self._solved(layer, *key)[1]]

    def forget_observed(self) -> None:
        """Let go of what was solved by statistics: once all layers that read a tensor are stored, no other shares them."""
        for key in [key for key in self.solved if any(isinstance(one, Solving) and one.statistics is not None for one in key[1])]:
            del self.solved[key]

    def misfit(self, layer: Layer, rounding: Roundings, engine: str = "qruntime") -> str | None:
        """Why a layer cannot be stored so; None when it can."""
        reason = missing_form(layer.node)
        for value in layer.weights:
            reason = reason or obstacle(layer, value)
        return reason or unfit_attributes(layer.node) or self._without_form(layer, _each(layer, rounding)[0][0], engine)

    def _without_form(self, layer: Layer, rounding: Rounding, engine: str) -> str | None:
        """Why there is no form of that format for a layer; None when there is one."""
        node, shape = layer.node, weight_shape(layer.node)
        opset = opset_beside(self.graph, node)
        if layer.kind == "Embedding":
            return f"opset {opset} lacks the arithmetic, need 6" if opset < 6 else None
        if rounding.format is FLOAT16:
            narrow = [v.data.dtype for v in layer.weights if v is not None and v.data is not None and is_narrow_float(v.data.dtype)]
            if narrow:
                return f"the weight is {narrow[0]} already"
            return f"opset {opset} cannot cast from float16, need 6" if opset < 6 else None
        bias = None if layer.form.packed_bias is None else node.input(layer.form.packed_bias)
        if bias is not None and not bias.is_constant:
            return "the bias is computed at run time"
        if layer.kind not in CONVOLUTIONS:
            return None
        if isinstance(rounding, Solving) and rounding.args.granularity.kind == GROUP:
            return f"weights of a {layer.kind} have one scale or one per output channel, not groups"
        if rounding.format.is_paired:
            return f"pairs run along one axis, and a {layer.kind} sums over several"
        if layer.kind == "ConvTranspose":
            return "there is no int8 form of ConvTranspose; dtype='float16' has one"
        if engine != "qruntime":
            return f"engine {engine!r} is not defined for Conv"
        if 1 < node.attr("group", 1) == (shape or (0,))[0]:
            return "a depthwise Conv has one weight for each tap, too few for an int8 kernel"
        return None

    def _solved(self, layer: Layer, value: Value, each: tuple[Rounding, ...], along: int) -> tuple[Value, list[Rounded]]:
        key = (value, each, along)
        if key not in self.solved:
            matrices = layer.matrices(value)
            each = each * len(matrices) if len(each) == 1 else each
            rounded = [rounding.solve(matrix) for rounding, matrix in zip(each, matrices, strict=True)]
            self.solved[key] = layer.store(value, [one.stored for one in rounded]), rounded
            drop_pages(value.arrays())
        return self.solved[key]


def _each(layer: Layer, rounding: Roundings) -> list[tuple[Rounding, ...]]:
    """For each weight, what makes the codes of each of its matrices, or one for all of them."""
    return [tuple(row) for row in rounding] if isinstance(rounding, Sequence) else [(rounding,)] * len(layer.weights)


def _asked(layer: Layer, rounding: Roundings) -> list[tuple[Value, tuple[Rounding, ...], int]]:
    """What is solved once."""
    each = _each(layer, rounding)
    along = 0 if each[0][0].format is FLOAT16 else layer.along
    return [(value, row, along) for value, row in zip(layer.weights, each, strict=True) if value is not None]


def describe_existing(graph: Graph) -> Report:
    """Report on what a graph that was loaded holds in few bits, by an earlier call or by another tool."""
    layers, slower = [], []
    seen: set[Value] = set()
    for node in graph.walk_nodes():
        layer = layer_of(node) if node.mark is not None and layer_kind(node) else None
        row = None if layer is None or stored_form(layer) is None else row_of_layer(layer, seen)
        if layer is None or row is None:
            continue
        layers.append(row)
        seen.update(value for value in layer.weights if value is not None)
        if node.mark is not None and node.mark.multiplies_codes and slower_as_int8(node):
            slower.append(row.name)
    return Report(tuple(layers), (), slower=tuple(slower), held=held_weights(graph.walk_nodes()), caches=describe_caches(graph))


def row_of_layer(layer: Layer, seen: set[Value]) -> QuantizedLayer:
    """Report row of a layer whose weights are stored narrow; `seen` holds the weights already counted."""
    values = [value for value in layer.weights if value is not None]
    matrices = {value: layer.stored(value) or [value.stored] for value in values if value.stored is not None}
    every = [one for parts in matrices.values() for one in parts]
    fresh = [one for value, parts in matrices.items() if value not in seen for one in parts]
    return row_of(layer, layer_name(layer.node), every, fresh, branches_beside(layer.node))
