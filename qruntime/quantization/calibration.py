"""Runs of a model on data, and what its layers read in them.

    calibration = Calibration(graph, data, num_threads=2)
    for group in calibration.groups(layers):            # layers that read the same tensor, in running order
        statistics = group.statistics(layer, kinds)     # of the rows that each matrix of its weights meets
        ...                                             # a layer stored now is what later layers see

One pass over the graph serves all groups (runtime/segments.py): a group stands before the first of its layers, and only
tensors that are still to be read are held, beyond `calibration_bytes` in a temporary file.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from typing import Any

import numpy as np

from qruntime.errors import CalibrationError, InputError
from qruntime.ir import Graph, Node, Value
from qruntime.quantization.feeds import Data, feeds_of
from qruntime.quantization.layer_inputs import rows_of
from qruntime.quantization.layers import Layer
from qruntime.quantization.low_rank import float_input
from qruntime.quantization.nested_rows import outermost
from qruntime.quantization.observing import statistics_of
from qruntime.quantization.selection import layer_name
from qruntime.quantization.statistics import Statistics
from qruntime.runtime.segments import Frontier, codes_behind, fed_values

Progress = Callable[[int, int, str], None]
"""progress(done, total, what): called as layers are done."""


class Calibration:
    """Feeds that fit the inputs of `graph`.

    `mask` names an input that is 0 where a feed holds padding: rows of tensors that begin with its shape are left out there.
    CalibrationError with the place for data that do not fit.
    """

    def __init__(self, graph: Graph, data: Data, *, num_threads: int, mask: str | None = None, calibration_bytes: int | None = None):
        self.graph, self.num_threads = graph, num_threads
        self.most_bytes = _quarter_of_free_memory() if calibration_bytes is None else calibration_bytes
        self.batches = [_fed(graph, feed, number) for number, feed in enumerate(feeds_of(data))]
        self.masks = None if mask is None else [_mask(batch, mask) for batch in self.batches]
        self._mask_name = mask
        self._met: dict[bool, tuple[str, tuple[int, ...]]] = {}
        """The first tensor that began with the shape of its mask, and the first that did not."""
        self.places: Sequence[int] = range(len(self.batches))
        """Which of the data the batches are."""

    def starting_from(self, batches: Sequence[Mapping[Value, Any]], places: Sequence[int] | None = None) -> Calibration:
        """The same runs, from values that are known behind the inputs; of `places` alone, if those are given."""
        made, chosen = copy.copy(self), range(len(batches)) if places is None else places
        made.batches = [dict(batches[place]) for place in chosen]
        made.masks = None if self.masks is None else [self.masks[place] for place in chosen]
        made.places = [self.places[place] for place in chosen]
        return made

    def kept(self, number: int, name: str, leading: tuple[int, ...]) -> np.ndarray | None:
        """Which rows of a tensor that begins with the dims `leading` are no padding in a batch; None for all, as without a mask."""
        if self.masks is None:
            return None
        mask = self.masks[number]
        self._met.setdefault(leading == mask.shape, (name, leading))
        return mask if leading == mask.shape else None

    def warn_of_padding(self) -> None:
        """Say so where there is padding and no tensor began with the shape of the mask."""
        padded = next((mask for mask in self.masks or () if not mask.all()), None)
        if padded is None or True in self._met or False not in self._met:
            return
        name, leading = self._met[False]
        shape, begins = list(padded.shape), list(leading)
        warnings.warn(
            f"mask={self._mask_name!r} of shape {shape} left out no padding: no tensor that was observed begins with its shape "
            f"({name!r} begins with {begins}), so what is known of activations is of padding too; give a mask of [batch, tokens]",
            stacklevel=4,
        )

    def groups(self, layers: Sequence[Layer], *, ahead: bool = False, finished: dict[int, Sequence[Any]] | None = None) -> Iterator[Group]:
        """Layers that read the same tensor, in running order, each when the walk stands before it, or before the node that it lies in.

        Between two groups weights may be stored, and nodes be inserted beside the group at hand; what its layers read before
        it is quantized is known. With `ahead` the graph stays as it is: the walk goes on to the next group meanwhile. `finished` receives,
        when all groups are done, the outputs of the batches whose numbers are its keys.
        """
        order = {node: i for i, node in enumerate(self.graph.nodes)}
        outer = {layer: outermost(self.graph, layer.node) for layer in layers}
        by_tensor: dict[object, list[Layer]] = {}
        for layer in sorted(layers, key=lambda layer: order[outer[layer]]):
            first = layer.node.input(0)
            by_tensor.setdefault((first, layer.node.graph) if layer.kind == "Linear" else layer.node, []).append(layer)
        groups = list(by_tensor.values())
        walk = Frontier(
            self.graph, self.batches, stops=[outer[group[0]] for group in groups],
            holds={outer[group[0]]: _read_as_floats(group) for group in groups if group[0].node.graph is self.graph},
            finishing=tuple(finished or ()), num_threads=self.num_threads, lower=True,
            most_bytes=self.most_bytes // 2 if ahead else self.most_bytes,
        )  # fmt: skip
        stops = [outer[group[0]] for group in groups]
        if ahead and self.num_threads > 1 and groups:
            yield from self._reached_meanwhile(walk, groups, stops)
        else:
            for group, stop in zip(groups, stops, strict=True):
                walk.reach(stop)
                yield Group(self, group, walk)
        if finished:
            finished.update(zip(finished, walk.finish(), strict=True))

    def _reached_meanwhile(self, walk: Frontier, groups: Sequence[Sequence[Layer]], stops: Sequence[Node]) -> Iterator[Group]:
        """Groups one after the other, while a thread takes the walk to the next."""
        with ThreadPoolExecutor(1) as walker:
            coming = walker.submit(walk.reach, stops[0])
            for group, following in zip_longest(groups, stops[1:]):
                coming.result()
                reached = Group(self, group, walk)
                if following is not None:
                    coming = walker.submit(walk.reach, following)
                yield reached


class Group:
    """Layers that read the same tensor, and the values that are known when the walk stands before the first of them."""

    def __init__(self, calibration: Calibration, layers: Sequence[Layer], walk: Frontier):
        self.calibration, self.layers, self.held = calibration, layers, walk.held
        self._walk = walk
        self._known: dict[Layer, list[list[np.ndarray]]] = {}
        self._measured: dict[tuple[Layer, frozenset[str]], tuple[Statistics | None, ...]] = {}

    @property
    def tensor(self) -> Value | None:
        return self.layers[0].node.input(0)

    def renew(self, values: Sequence[Value]) -> None:
        """Its layers have come to read `values`, which nodes make that were inserted before all of them."""
        first = self.layers[0].node
        if first.graph is self.calibration.graph:
            self._walk.hold(first, [*values, *(codes for value in values if (codes := codes_behind(value)) is not None)])
            self._walk.reach(first)
            self.held = self._walk.held
        self._known.clear()
        self._measured.clear()

    def rows(self, layer: Layer) -> list[list[np.ndarray]]:
        """For each matrix of the weights, the rows it meets in each batch, without padding."""
        same = self._alike(layer)
        if same not in self._known:
            calibration = self.calibration
            found = rows_of(calibration.graph, same, self.held, calibration.num_threads)
            self._known[same] = [self._without_padding(same.node, batches) for batches in found]
        return self._known[same]

    def statistics(self, layer: Layer, kinds: Collection[str]) -> tuple[Statistics | None, ...]:
        """For each matrix of the weights; None of rows that are not known. CalibrationError for NaN, and for no rows."""
        same = self._alike(layer)
        key = same, frozenset(kinds)
        if key not in self._measured:
            name = layer.node.input(0)
            text = layer_name(layer.node) if name is None else name.name
            self._measured[key] = tuple(
                statistics_of(batches, kinds, text, self.calibration.places) if batches else None for batches in self.rows(layer)
            )
        return self._measured[key]

    def _alike(self, layer: Layer) -> Layer:
        """The first layer that meets the same rows."""
        tensor = layer.node.input(0)
        return next(one for one in self.layers if one.node.input(0) is tensor) if layer.kind == "Linear" else layer

    def _without_padding(self, node: Node, batches: list[np.ndarray]) -> list[np.ndarray]:
        first = node.input(0)
        if not batches or first is None or node.op_type not in ("MatMul", "Gemm"):
            return batches
        kept = []
        for number, (rows, held) in enumerate(zip(batches, self.held, strict=True)):
            mask = self.calibration.kept(number, first.name, np.shape(held[first])[:-1]) if first in held else None
            kept.append(rows if mask is None else rows[mask.reshape(-1)])
        return kept


def _read_as_floats(layers: Sequence[Layer]) -> list[Value]:
    """What layers read before it is quantized."""
    return [value for layer in layers if (value := float_input(layer.node)) is not None and not value.is_constant]


def _fed(graph: Graph, feed: Mapping[str, Any], number: int) -> dict[Value, Any]:
    try:
        return fed_values(graph, feed)
    except InputError as error:
        raise CalibrationError(f"data[{number}]: {error}") from error


def _mask(batch: Mapping[Value, Any], name: str) -> np.ndarray:
    for value, array in batch.items():
        if value.name == name:
            return np.asarray(array) != 0
    raise CalibrationError(f"mask={name!r} is no input; the inputs are: {', '.join(value.name for value in batch)}")


def _quarter_of_free_memory() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    except (AttributeError, ValueError, OSError):
        return 1 << 30
