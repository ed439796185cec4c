"""Equivalences of a recipe: chosen while the float stream stands before their tensors, made when it is over.

What is made leaves the float function as it was. That is checked: a change that moves an output on calibration data by more
than `TOLERANCE` of its largest value is not made, and the report says so.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from qruntime.ir import Graph, Node, Value, clone, needed_nodes, read_by
from qruntime.quantization.calibration import Calibration, Group
from qruntime.quantization.layers import Layer
from qruntime.quantization.reasons import Reason
from qruntime.quantization.scheme import Scheme
from qruntime.quantization.sites import Reader, Site, find_sites
from qruntime.quantization.statistics import Statistics
from qruntime.quantization.steps import Equivalence, Facts, SiteView, Transform
from qruntime.runtime.segments import Segment

TOLERANCE = 1e-4
ROWS = 2048
"""Steps try what they choose from on as many feeds as hold so many rows of the tensor."""
CHECKED = 2
"""Feeds on which the result is checked."""


class Transforming:
    """The sites of a graph, and what the steps of a recipe made of them."""

    def __init__(self, graph: Graph, steps: Sequence[Transform], layers: Sequence[Layer], calibration: Calibration):
        self.graph, self.steps, self.layers, self.calibration = graph, steps, layers, calibration
        self._sites = find_sites(graph, layers)
        self._chosen: dict[int, list[Equivalence]] = {}
        served = {reader.node for site in self._sites for reader in site.readers}
        unserved: Facts = {type(step).__name__: "its weight can follow no change of what it reads" for step in steps}
        self.facts: dict[Node, Facts] = {layer.node: {} if layer.node in served else dict(unserved) for layer in layers}
        self._order = _order(calibration.batches)

    def look(self, group: Group, statistics: Statistics, schemes: Mapping[Node, Scheme]) -> None:
        """Let every step choose for the tensor that `group` reads, each on top of those before it."""
        for number, site in enumerate(self._sites):
            if site.graph is not self.graph or site.value is not group.tensor:
                continue
            own = [schemes.get(reader.node) for reader in site.readers]
            view = _View(site, group, statistics, own, self._order, self.calibration.num_threads)
            for step in self.steps:
                found = step.choose(view.of_now())
                if isinstance(found, Equivalence) and not _is_sound(found):
                    found = Reason("a scale or shift is no number, or a scale not above 0")
                if isinstance(found, Equivalence):
                    self._chosen.setdefault(number, []).append(found)
                    view.change(found)
                self._note(site, step, found)

    def make(self) -> None:
        """Change the graph."""
        self._drop_faults(list(self._chosen))
        for number, equivalences in self._chosen.items():
            _apply(self._sites[number], equivalences)

    def changed(self, node: Node, statistics: Statistics) -> Statistics:
        """What `statistics` of what `node` reads became."""
        for number, equivalences in self._chosen.items():
            if any(reader.node is node for reader in self._sites[number].readers):
                for equivalence in equivalences:
                    statistics = changed_statistics(statistics, equivalence)
        return statistics

    def _drop(self, number: int, reason: Reason) -> None:
        del self._chosen[number]
        for reader in self._sites[number].readers:
            self.facts.setdefault(reader.node, {})["transform"] = f"left as it was: {reason}"

    def _note(self, site: Site, step: Transform, found: Equivalence | Reason) -> None:
        facts = found.facts if isinstance(found, Equivalence) else {type(step).__name__: str(found)}
        for reader in site.readers:
            self.facts.setdefault(reader.node, {}).update(facts)

    def _drop_faults(self, numbers: list[int]) -> None:
        """Leave out what cannot be made, and what moves the outputs: of several changes together, the halves are tried."""
        moved = self._moved(numbers)
        numbers = [number for number in numbers if number in self._chosen]
        if moved <= TOLERANCE or not numbers:
            return
        if len(numbers) == 1:
            self._drop(numbers[0], Reason(f"the outputs moved by {moved:.1e} of their largest value, more than {TOLERANCE:g}"))
            return
        half = len(numbers) // 2
        for part in (numbers[:half], numbers[half:]):
            self._drop_faults(part)

    def _moved(self, numbers: Sequence[int]) -> float:
        """How far outputs move, as a share of their largest value, when these changes are made, on a copy."""
        copy = clone(self.graph)
        twins = dict(zip(self.graph.walk_nodes(), copy.walk_nodes(), strict=True))
        sites = find_sites(copy, [Layer(twins[layer.node]) for layer in self.layers])
        for number in numbers:
            if (reason := _apply(sites[number], self._chosen[number])) is not None:
                self._drop(number, reason)
        feeds = [self.calibration.batches[i] for i in self._order[:CHECKED]]
        threads = self.calibration.num_threads
        before = Segment(self.graph, self.graph.inputs, self.graph.outputs, num_threads=threads, lower=True)
        after = Segment(copy, copy.inputs, copy.outputs, num_threads=threads, lower=True)
        inputs = dict(zip(self.graph.inputs, copy.inputs, strict=True))
        moved = 0.0
        for feed in feeds:
            results = after.run({inputs[value]: array for value, array in feed.items()})
            for one, other in zip(before.run(feed).values(), results.values(), strict=True):
                moved = max(moved, _difference(one, other))
        return moved


class _View:
    """A site as it is after the changes that were chosen for it so far."""

    def __init__(
        self, site: Site, group: Group, statistics: Statistics, schemes: Sequence[Scheme | None], order: Sequence[int], num_threads: int
    ):
        self.site, self.statistics, self.schemes = site, statistics, tuple(schemes)
        self.held = _first([group.held[i] for i in order], site.value)
        self.shapes = [np.shape(held[site.value]) for held in self.held]
        self.num_threads = num_threads
        self.made: list[Equivalence] = []
        self.runs = [np.asarray(held[site.value], np.float32).reshape(-1, site.channels) for held in self.held]
        self.weights = tuple(reader.matrix for reader in site.readers)
        self._segment: Segment | None = None

    def of_now(self) -> SiteView:
        site = self.site
        return SiteView(
            site.value.name,
            site.role,
            self.statistics,
            self.weights,
            self.schemes,
            site.allows,
            site.ties,
            self._outputs,
            self.runs,
            site.parts,
        )

    def change(self, equivalence: Equivalence) -> None:
        self.made.append(equivalence)
        self.statistics = changed_statistics(self.statistics, equivalence)
        self.runs = [changed_rows(rows, equivalence) for rows in self.runs]
        self.weights = tuple(changed_weight(weight, equivalence) for weight in self.weights)

    def _outputs(self, inputs: Sequence[np.ndarray], weights: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Runs the part of the graph as it stands, on what the changes would have been made of."""
        for equivalence in reversed(self.made):
            inputs = [unchanged_rows(rows, equivalence) for rows in inputs]
            weights = [unchanged_weight(weight, equivalence) for weight in weights]
        segment = self._part()
        given = {reader.weight: _as_stored(reader, weight) for reader, weight in zip(self.site.readers, weights, strict=True)}
        found = []
        for rows, shape, held in zip(inputs, self.shapes, self.held):
            made = segment.run({**held, **given, self.site.value: np.ascontiguousarray(rows, np.float32).reshape(shape)})
            found.append(np.concatenate([_rows(array) for array in made.values()], axis=-1))
        return found

    def _part(self) -> Segment:
        """From the tensor, the weights of its readers and what else is known, to where the readers meet."""
        if self._segment is None:
            site = self.site
            wanted = [site.meets] if site.meets is not None else [reader.node.outputs[0] for reader in site.readers]
            starts = [site.value, *(reader.weight for reader in site.readers)]
            known = {*starts, *self.held[0]}
            read = {value for node in needed_nodes(site.graph, wanted, known) for value in read_by(node)}
            starts += [value for value in self.held[0] if value in read]
            self._segment = Segment(site.graph, starts, wanted, num_threads=self.num_threads, lower=True)
        return self._segment


def _as_stored(reader: Reader, matrix: np.ndarray) -> np.ndarray:
    """[N, K] as the operator holds it."""
    laid = matrix.T if reader.layer.along else matrix
    return np.ascontiguousarray(laid, np.float32).reshape(reader.weight.shape or ())


def _rows(array: Any) -> np.ndarray:
    return np.asarray(array, np.float32).reshape(-1, np.shape(array)[-1])


def _apply(site: Site, equivalences: Sequence[Equivalence]) -> Reason | None:
    for equivalence in equivalences:
        if (reason := site.apply(equivalence, insert=equivalence.insert)) is not None:
            return reason
    return None


def _difference(one: Any, other: Any) -> float:
    """The largest, as a share of the largest value; infinite where one is a number and the other none."""
    if not isinstance(one, np.ndarray) or one.dtype.kind != "f" or not one.size:
        return 0.0
    finite = np.isfinite(one)
    if not np.array_equal(finite, np.isfinite(other)):
        return np.inf
    most = float(np.abs(one[finite]).max(initial=0))
    moved = float(np.abs(one[finite] - other[finite]).max(initial=0))
    return moved / most if most > 0 else moved


def _is_sound(equivalence: Equivalence) -> bool:
    scale, shift = equivalence.scale, equivalence.shift
    return bool((scale is None or (np.isfinite(scale).all() and (scale > 0).all())) and (shift is None or np.isfinite(shift).all()))


def _order(batches: Sequence[Mapping[Value, Any]]) -> list[int]:
    """In which order feeds are tried: their own bits say it, so that the order in which they come does not matter."""
    digests = [zlib.crc32(b"".join(np.ascontiguousarray(array).tobytes() for array in _arrays(batch))) for batch in batches]
    return sorted(range(len(batches)), key=lambda i: digests[i])


def _first(batches: Sequence[Mapping[Value, Any]], value: Value) -> list[Mapping[Value, Any]]:
    """The first, as many as hold `ROWS` rows of `value`: of feeds of one row as many rows are tried as of feeds of hundreds."""
    counts = np.cumsum([np.size(batch[value]) // max(1, np.shape(batch[value])[-1]) for batch in batches])
    return list(batches[: int(np.searchsorted(counts, ROWS)) + 1])


def _arrays(batch: Mapping[Value, Any]) -> list[np.ndarray]:
    return [array for array in batch.values() if isinstance(array, np.ndarray) and not array.dtype.hasobject]


def changed_rows(rows: np.ndarray, equivalence: Equivalence) -> np.ndarray:
    """Rows [t, K] of the tensor after the change."""
    rows = rows if equivalence.shift is None else rows - equivalence.shift
    rows = rows if equivalence.scale is None else rows / equivalence.scale
    return rows if equivalence.order is None else rows[:, equivalence.order]


def unchanged_rows(rows: np.ndarray, equivalence: Equivalence) -> np.ndarray:
    """What `changed_rows` was made of."""
    rows = rows if equivalence.order is None else rows[:, np.argsort(equivalence.order)]
    rows = rows if equivalence.scale is None else rows * equivalence.scale
    return rows if equivalence.shift is None else rows + equivalence.shift


def changed_weight(weight: np.ndarray, equivalence: Equivalence) -> np.ndarray:
    """The weight [N, K] of a layer that reads the tensor after the change; of a shift its bias takes the rest."""
    weight = weight if equivalence.scale is None else weight * equivalence.scale
    return weight if equivalence.order is None else weight[:, equivalence.order]


def unchanged_weight(weight: np.ndarray, equivalence: Equivalence) -> np.ndarray:
    """What `changed_weight` was made of."""
    weight = weight if equivalence.order is None else weight[:, np.argsort(equivalence.order)]
    return weight if equivalence.scale is None else weight / equivalence.scale


def changed_statistics(statistics: Statistics, equivalence: Equivalence) -> Statistics:
    """Of the tensor after the change. What a shift leaves unknown (means, Σ) is None then."""
    low, high = changed_rows(np.stack([statistics.low, statistics.high]), equivalence).astype(np.float32)
    is_shifted = equivalence.shift is not None
    means, sigma, sample, greatest = statistics.mean_abs, statistics.sigma, statistics.sample, statistics.greatest
    return replace(
        statistics,
        low=low,
        high=high,
        mean_abs=None if means is None or is_shifted else changed_rows(means[None], equivalence)[0],
        sigma=None if sigma is None or is_shifted else changed_rows(changed_rows(sigma, equivalence).T, equivalence),
        sample=None if sample is None else changed_rows(sample, equivalence).astype(np.float32),
        greatest=None if greatest is None else changed_rows(greatest, equivalence).astype(np.float32),
    )
