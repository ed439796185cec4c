"""Caches of keys and values that will be codes, in a model that is trained with the inputs and outputs of the float one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from qruntime.ir import Graph, Node
from qruntime.ir.formats import Format
from qruntime.ops.cache_codes import dequantize_cache, fit_cache
from qruntime.passes.symbolic_shapes import rank
from qruntime.quantization.cache import caches_for, num_heads
from qruntime.quantization.cache_search import Cache, is_attention
from qruntime.quantization.tuning.fake_quantization import Rounding, rounded_for_cache


class CodeCaches:
    """Those of `graph` that a scheme stores in `form`; None: none."""

    def __init__(self, graph: Graph, form: Format | None):
        found = [] if form is None else [one for one in caches_for(graph, form) if one.fault is None]
        self._bits = 0 if form is None else form.bits
        self._inputs = [one.value.name for one in found]
        self._outputs = [graph.output_names[position] for one in found for position in one.outputs]
        self.roundings: dict[Node, dict[int, Rounding]] = {}
        """What nodes that extend a cache round, by the places of the past and of what they append."""
        for cache in (cache for one in found for cache in one.caches):
            joined = {cache.past, *cache.new}
            places = {place: self._rounding(cache, place) for place, value in enumerate(cache.join.inputs) if value in joined}
            self.roundings.setdefault(cache.join, {}).update(places)

    def run(self, model: Any, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What `model`, whose caches are codes, makes of a feed of the float model, with caches as floats again."""
        ranges = self._ranges([value.name for value in model.graph.inputs], self._inputs)
        coded = dict(feed)
        for name, beside in ranges.items():
            coded[name], coded[beside] = fit_cache.definition(feed[name].astype(np.float32), bits=self._bits)
        made = model.run(coded)
        for name, beside in self._ranges(model.graph.output_names, self._outputs).items():
            floats = dequantize_cache.definition(made[name], made.pop(beside), bits=self._bits)
            made[name] = floats.astype(feed[self._inputs[0]].dtype, copy=False)
        return made

    @staticmethod
    def _ranges(names: list[str], caches: list[str]) -> dict[str, str]:
        """The ranges of each cache, which stand behind its codes."""
        return {name: names[names.index(name) + 1] for name in dict.fromkeys(caches)}

    def _rounding(self, cache: Cache, place: int) -> Rounding:
        value = cache.join.inputs[place]
        assert value is not None
        if not is_attention(cache.join) or value is cache.past or rank(value) == 4:
            return lambda x: rounded_for_cache(x, self._bits)
        heads = num_heads(cache.join)
        return lambda x: rounded_for_cache(x.unflatten(-1, (heads, -1)), self._bits).flatten(-2)
