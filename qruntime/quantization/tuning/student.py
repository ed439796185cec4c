"""A part of a graph whose layers compute what those of a scheme will, while its weights are floats that are being trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from qruntime.errors import QuantizationError
from qruntime.ir import Graph, Node, Value
from qruntime.ir.formats import FP8
from qruntime.quantization.layers import weights_of
from qruntime.quantization.scheme import Inputs, QArgs, Scheme
from qruntime.quantization.selection import layer_kind
from qruntime.quantization.tuning.fake_quantization import Rounding, nearest, rounding_of
from qruntime.quantization.tuning.parameters import Parameter, learned
from qruntime.quantization.tuning.torch_graph import TorchGraph

NAN = "a step before had a loss or a gradient that is no number; a lower rate, or clipping the norm of gradients, may keep them finite"


class Student:
    """What computes `wanted` from `starts`, values of `graph` as it is now; `schemes` of layers whose weights are floats yet.

    Layers that are stored already keep their codes, and round what they read as their mark says.
    """

    def __init__(
        self, graph: Graph, schemes: Mapping[Node, Scheme], starts: Iterable[Value] | None = None, wanted: Iterable[Value] | None = None
    ):
        self.part = TorchGraph(graph, starts, wanted)
        inside = set(self.part.nodes)
        self.schemes = {node: scheme for node, scheme in schemes.items() if node in inside and not is_stored(node)}
        streams = () if starts is None else self.part.starts
        self.parameters: dict[str, Parameter] = learned(self.part.nodes, self.schemes, streams)
        self.roundings: dict[Node, Rounding | None] = {node: rounding_of(_inputs(node, scheme)) for node, scheme in self.schemes.items()}
        """How layers round what they read; a method may put others in their place."""
        self.places: dict[Node, dict[int, Rounding]] = {}
        """How nodes that are no layers round inputs of theirs."""
        self.dropping: dict[Node, dict[int, Rounding]] = {}
        """What nodes do to inputs of theirs whether numbers are rounded or not."""
        self._frozen: dict[str, Any] = {}

    def run(
        self,
        known: Mapping[Value, Any],
        tensors: Mapping[str, Any] | None = None,
        *,
        weights: Mapping[str, Any] | None = None,
        is_quantized: bool = True,
        recompute: bool = False,
    ) -> dict[Value, Any]:
        """The wanted values from those of the starts.

        `tensors` holds parameters under training by name, in the layout of the file; the others are as they are in the graph.
        Weights that are going to be stored in codes become what these will stand for, rounded to nearest, unless `weights` has
        what they become. Without `is_quantized` all numbers are floats. `recompute` is that of TorchGraph.
        """
        tensors, weights = tensors or {}, weights or {}
        replaced: dict[Value, Any] = {}
        for name, parameter in self.parameters.items():
            if is_quantized and name in weights:
                replaced[parameter.value] = weights[name]
            elif name in tensors:
                replaced[parameter.value] = rounded(parameter, tensors[name]) if is_quantized else tensors[name]
            elif is_quantized and parameter.args is not None:
                replaced[parameter.value] = self._as_stored(parameter)
        roundings = self.roundings if is_quantized else dict.fromkeys(self.part.nodes)
        places = self.dropping | (self.places if is_quantized else {})
        return self.part.run(known, replaced, roundings=roundings, places=places, recompute=recompute)

    def _as_stored(self, parameter: Parameter) -> Any:
        if parameter.name not in self._frozen:
            self._frozen[parameter.name] = rounded(parameter, parameter.tensor())
        return self._frozen[parameter.name]


def _inputs(node: Node, scheme: Scheme) -> Inputs | None:
    """What is done to activations: embeddings have none, and layers of float16 weights multiply floats."""
    is_float = layer_kind(node) == "Embedding" or (scheme.weights is not None and scheme.weights.format.is_float)
    return None if is_float and scheme.inputs is not None and scheme.inputs.format is not FP8 else scheme.inputs


def is_stored(node: Node) -> bool:
    """Whether the weights of a layer are codes."""
    return any(value is not None and value.stored is not None for value in weights_of(node))


def rounded(parameter: Parameter, tensor: Any) -> Any:
    """What a parameter becomes that is going to be stored: rounded to nearest; itself where it stays float."""
    if parameter.args is None:
        return tensor
    args: QArgs = parameter.args
    try:
        return parameter.joined([nearest(matrix, args) for matrix in parameter.matrices(tensor)])
    except ValueError as error:
        raise QuantizationError(f"parameter {parameter.name!r} cannot be rounded, {error}: {NAN}") from error
