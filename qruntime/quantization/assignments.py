"""Which layers of a graph are to be quantized, to what, and what becomes known of each on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from qruntime.ir import Graph, Node, Value
from qruntime.ir.formats import FLOAT16, FP8, INT8
from qruntime.ir.marks import STATIC
from qruntime.passes.einsum import linear_einsum
from qruntime.passes.stored.rounding_functions import LEAST_OPSET as LEAST_OPSET_OF_PAIRS
from qruntime.passes.stored.writing import opset_beside
from qruntime.quantization.grid import nearest_values
from qruntime.quantization.layer_inputs import why_no_rows
from qruntime.quantization.layers import Layer, layer_of, missing_form, obstacle, unfit_attributes
from qruntime.quantization.low_rank import float_input
from qruntime.quantization.reasons import Reason, Unselected
from qruntime.quantization.request import Request
from qruntime.quantization.scheme import GROUP, QArgs, Scheme
from qruntime.quantization.selection import layer_kind
from qruntime.quantization.solving import OnGrid, Rounding
from qruntime.quantization.static_ranges import LEAST_OPSET_OF_CLUSTERS
from qruntime.quantization.statistics import Statistics, output_errors
from qruntime.quantization.steps import Facts, LowRankFactors


@dataclass(eq=False)
class Assignment:
    """A layer that is to be quantized, and what becomes known of it on the way."""

    layer: Layer
    scheme: Scheme
    statistics: tuple[Statistics | None, ...] = ()
    """For each matrix of its weights."""
    facts: Facts = field(default_factory=dict)
    left: Reason | None = None
    """Why a step leaves it float."""
    reads: Value | None = None
    """What it goes back to where it stays as it was: its input before activations became static, or no longer were."""
    rounding: list[list[Rounding]] = field(default_factory=list)
    branches: list[LowRankFactors] = field(default_factory=list)
    grids: dict[int, OnGrid] = field(default_factory=dict)
    """Of matrices by their place, where a step learned one."""
    snr_db: float | None = None
    """Of the weight with its branches; None without."""
    errors: list[float] = field(default_factory=list)
    rtn_errors: list[float] = field(default_factory=list)

    @property
    def node(self) -> Node:
        return self.layer.node

    @property
    def is_static(self) -> bool:
        return self.left is None and self.scheme.inputs is not None and self.scheme.inputs.is_static

    def rewire(self, value: Value) -> None:
        """Let it read another value."""
        if self.reads is None:
            self.reads = self.node.input(0)
        self.node.set_input(0, value)

    def weights(self) -> list[list[np.ndarray]]:
        """For each weight, its matrices [N, K], row after row."""
        every = (self.layer.matrices(value) for value in self.layer.weights if value is not None)
        return [[np.ascontiguousarray(matrix.values.T if matrix.along else matrix.values) for matrix in matrices] for matrices in every]


def decide(graph: Graph, request: Request) -> dict[Node, Assignment | Reason]:
    """What is to be done with each layer of `graph`, in which sums over one axis (Einsum) become layers."""
    linear_einsum(graph, tied=True)
    kinds = ((node, layer_kind(node)) for node in graph.walk_nodes())
    return {node: _assigned(graph, node, request.scheme_of(node, kind)) for node, kind in kinds if kind}


def _assigned(graph: Graph, node: Node, scheme: Scheme | Reason) -> Assignment | Reason:
    """What is to be done with a layer, or why nothing can be."""
    if isinstance(scheme, Reason):
        return scheme
    layer = layer_of(node)
    if layer is None:
        return Reason(missing_form(node) or "it is no layer")
    for value in layer.weights:
        if (reason := obstacle(layer, value)) is not None:
            return reason if isinstance(reason, Reason) else Reason(reason)
    if (unfit := unfit_attributes(node)) is not None:
        return Reason(unfit)
    if not layer.is_finite:
        return Reason("the weight holds NaN or infinity")
    if (why := misfit(graph, layer, scheme)) is not None:
        return why
    return Assignment(layer, scheme)


def forget_ranges(one: Assignment) -> None:
    """A layer that an earlier call gave static activations is to read them as floats."""
    mark, tensor = one.node.mark, float_input(one.node)
    if mark is not None and mark.activations == STATIC and tensor is not None:
        one.rewire(tensor)


def misfit(graph: Graph, layer: Layer, scheme: Scheme) -> Reason | None:
    """Why a layer cannot have a scheme."""
    if scheme.weights is None:
        return Unselected("the scheme leaves its weights float")
    if scheme.needs_data and (layer.kind != "Linear" or why_no_rows(graph, layer) is not None):
        return Reason("static activations are for linear layers; a scheme without -static has ranges at every run")
    if scheme.inputs is not None and scheme.inputs.format.is_paired and (opset := opset_beside(graph, layer.node)) < LEAST_OPSET_OF_PAIRS:
        return Reason(f"opset {opset} lacks the arithmetic of {scheme.inputs.format} activations, need {LEAST_OPSET_OF_PAIRS}")
    if scheme.inputs is not None and scheme.inputs.clusters and (opset := opset_beside(graph, layer.node)) < LEAST_OPSET_OF_CLUSTERS:
        return Reason(f"opset {opset} cannot quantize channels apart, need {LEAST_OPSET_OF_CLUSTERS}")
    if scheme.inputs is not None and scheme.inputs.format is FP8 and layer.kind != "Linear":
        return Reason("fp8 activations are for linear layers; write A16, or A8")
    if scheme.inputs is not None and layer.kind != "Linear" and not (scheme.weights and _is_plain_int8(scheme.weights)):
        return Reason(f"quantized activations of {layer.kind} need 8-bit integers with one scale or one per output; write A16")
    return None


def _is_plain_int8(args: QArgs) -> bool:
    return args.format is INT8 and args.granularity.kind != GROUP


def errors_of(
    weights: Sequence[np.ndarray], ways: Sequence[Sequence[np.ndarray]], statistics: Sequence[Statistics | None]
) -> list[list[float]]:
    """For each of the ways in which all weights were rounded, their output errors where rows are known."""
    known = [(at, seen) for at, seen in enumerate(statistics) if seen is not None]
    each = [output_errors(weights[at], [way[at] for way in ways], seen) for at, seen in known]
    return [[errors[number] for errors in each] for number in range(len(ways))]


def nearest_of(one: Assignment, weights: Sequence[np.ndarray]) -> list[np.ndarray] | None:
    """Its weights rounded to nearest; None where they are not to be rounded to codes."""
    args = one.scheme.weights
    return None if args is None or args.format is FLOAT16 else [nearest_values(weight, args) for weight in weights]


def rtn_errors_of(one: Assignment) -> list[float]:
    """Of its weights as they are now, rounded to nearest."""
    if not any(seen is not None for seen in one.statistics):
        return []
    flat = [weight for matrices in one.weights() for weight in matrices]
    nearest = nearest_of(one, flat)
    return [] if nearest is None else errors_of(flat, [nearest], one.statistics)[0]


def worst(errors: Sequence[float]) -> float | None:
    return max(errors, default=None)
