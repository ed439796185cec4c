"""Sites of a graph: found by what reads a tensor and what lies before it, never by names."""

from __future__ import annotations

from collections.abc import Iterable

from qruntime.ir import Graph, Value
from qruntime.quantization.layers import Layer
from qruntime.quantization.sites.readers import Reader, reader_of
from qruntime.quantization.sites.rules import RULES
from qruntime.quantization.sites.site import Site
from qruntime.quantization.sites.tracing import Ground


def find_sites(graph: Graph, layers: Iterable[Layer], *, cache_is_private: bool = False) -> list[Site]:
    """A site for every tensor that some of `layers` read, in the order of the graph's nodes.

    A change of a tensor changes the weights of all that reads it: layers that are not among `layers` forbid it, float ones
    too. What a decoder keeps from run to run is an input and an output of the graph, and stays as it is; with
    `cache_is_private` nobody but the model itself reads it, and it may hold changed channels.
    """
    ground = Ground(graph, RULES, cache_is_private=cache_is_private)
    found: dict[tuple[Value, Graph | None], list[Reader]] = {}
    for layer in layers:
        reader, value = reader_of(layer), layer.node.input(0)
        if reader is not None and value is not None and not value.is_constant:
            found.setdefault((value, layer.node.graph), []).append(reader)
    sites = [Site(ground, readers) for readers in found.values() if len({reader.channels for reader in readers}) == 1]
    at = {node: position for nested in graph.walk_graphs() for position, node in enumerate(nested.nodes)}
    return sorted(sites, key=lambda site: (site.graph is not graph, at[site.readers[0].node]))
