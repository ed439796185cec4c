"""Equivalences of a recipe: chosen while the float stream stands before their tensors, made when it is over.

What is made leaves the float function as it was. That is checked: a change that moves an output on calibration data by more
than `TOLERANCE` of its largest value is not made, and the report says so.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from qruntime import _kernels
from qruntime.ir import Graph, Node, Value, clone, needed_nodes, read_by
from qruntime.quantization.calibration import Calibration, Group
from qruntime.quantization.layers import Layer
from qruntime.quantization.reasons import Reason
from qruntime.quantization.rehearsal import multiplied
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
_BLOCK = 1 << 16
"""Numbers of a result that are compared while they are in cache."""


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
        self._pool = ThreadPoolExecutor(max(1, calibration.num_threads))
        self.unchanged: dict[int, Sequence[Any]] = dict.fromkeys(self._order[:CHECKED], ())
        """Of feeds that are checked, by their numbers, the outputs of the graph as it is."""

    def look(self, group: Group, statistics: Statistics, schemes: Mapping[Node, Scheme]) -> None:
        """Let every step choose for the tensor that `group` reads, each on top of those before it."""
        for number, site in enumerate(self._sites):
            if site.graph is not self.graph or site.value is not group.tensor:
                continue
            own = [schemes.get(reader.node) for reader in site.readers]
            view = _View(site, group, statistics, own, self._order, self._pool)
            for step in self.steps:
                found = step.choose(view.of_now())
                if isinstance(found, Equivalence) and not _is_sound(found):
                    found = Reason("a scale or shift is no number, or a scale not above 0")
                if isinstance(found, Equivalence):
                    self._chosen.setdefault(number, []).append(found)
                    view.change(found)
                self._note(site, step, found)

    def check(self) -> None:
        """Drop what cannot be made or moves the outputs; tried on a copy, the graph stays as it is."""
        self._drop_faults(list(self._chosen))

    def make(self) -> None:
        """Change the graph by what is left."""
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
        if not numbers:
            return
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
        pairs = zip(self.unchanged.values(), self._checked(copy), strict=True)
        return max((_difference(one, other) for before, after in pairs for one, other in zip(before, after, strict=True)), default=0.0)

    def _checked(self, copy: Graph) -> Iterator[list[Any]]:
        """Outputs of a copy of the graph on each feed that is checked."""
        segment = Segment(copy, copy.inputs, copy.outputs, num_threads=self.calibration.num_threads, lower=True)
        inputs = dict(zip(self.graph.inputs, copy.inputs, strict=True))
        for number in self.unchanged:
            made = segment.run({inputs[value]: array for value, array in self.calibration.batches[number].items()})
            yield list(made.values())


class _View:
    """A site as it is after the changes that were chosen for it so far."""

    def __init__(
        self,
        site: Site,
        group: Group,
        statistics: Statistics,
        schemes: Sequence[Scheme | None],
        order: Sequence[int],
        pool: ThreadPoolExecutor,
    ):
        self.site, self.statistics, self.schemes = site, statistics, tuple(schemes)
        self.held = _first([group.held[i] for i in order], site.value)
        self.shapes = [np.shape(held[site.value]) for held in self.held]
        self._pool = pool
        self.runs = [np.asarray(held[site.value], np.float32).reshape(-1, site.channels) for held in self.held]
        self.weights = tuple(reader.matrix for reader in site.readers)
        self._made: list[Equivalence] = []
        self._offsets: list[np.ndarray | None] = [None] * len(self.weights)
        self._meets = site.meets
        self._multiply = all(reader.multiplies for reader in site.readers)

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
            self._outputs_of if self._multiply else None,
            self._side_by_side,
        )

    def change(self, equivalence: Equivalence) -> None:
        self._made.append(equivalence)
        if equivalence.shift is not None:
            moved = [weight @ equivalence.shift for weight in self.weights]
            self._offsets = [more if one is None else one + more for one, more in zip(self._offsets, moved, strict=True)]
        self.statistics = changed_statistics(self.statistics, equivalence)
        self.runs = [changed_rows(rows, equivalence) for rows in self.runs]
        self.weights = tuple(changed_weight(weight, equivalence) for weight in self.weights)

    def _side_by_side(self, function: Callable[[Any], Any], several: Sequence[Any]) -> list[Any]:
        return list(self._pool.map(function, several))

    def _outputs(self, inputs: Sequence[np.ndarray], weights: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Runs the part of the graph as it stands, on what the changes would have been made of."""
        if self._multiply:
            packed = [_kernels.PackedF32(np.asarray(weight, np.float32).T) for weight in weights]
            return self._outputs_of([[multiplied(np.asarray(rows, np.float32), weight) for weight in packed] for rows in inputs])
        for equivalence in reversed(self._made):
            inputs = [unchanged_rows(rows, equivalence) for rows in inputs]
            weights = [unchanged_weight(weight, equivalence) for weight in weights]
        given = {reader.weight: _as_stored(reader, weight) for reader, weight in zip(self.site.readers, weights, strict=True)}
        found = []
        for rows, shape, held in zip(inputs, self.shapes, self.held):
            tensor = np.ascontiguousarray(rows, np.float32).reshape(shape)
            found.append(_joined(self._segment.run({**held, **given, self.site.value: tensor}).values()))
        return found

    def _outputs_of(self, products: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
        """Runs what lies behind the readers, if anything, on what they make."""
        readers, found = self.site.readers, []
        for several, shape, held in zip(products, self.shapes, self.held):
            whole = [one if more is None else one + more for one, more in zip(several, self._offsets, strict=True)]
            made = [reader.finished(one) for reader, one in zip(readers, whole, strict=True)]
            if self._meets is not None:
                tensors = [one.reshape(*shape[:-1], one.shape[-1]) for one in made]
                given = dict(zip((reader.node.outputs[0] for reader in readers), tensors, strict=True))
                made = list(self._segment.run({**held, **given}).values())
            found.append(_joined(made))
        return found

    @cached_property
    def _segment(self) -> Segment:
        """To where the readers meet: from what they make, or from the tensor and the weights of its readers, and what else is known.

        Of one thread, as several of its runs go side by side."""
        site = self.site
        outputs = [reader.node.outputs[0] for reader in site.readers]
        wanted = [self._meets] if self._meets is not None else outputs
        starts = outputs if self._multiply else [site.value, *(reader.weight for reader in site.readers)]
        known = {*starts, *self.held[0]}
        read = {value for node in needed_nodes(site.graph, wanted, known) for value in read_by(node)}
        starts += [value for value in self.held[0] if value in read]
        like = {**dict.fromkeys(outputs, np.empty(0, np.float32)), **self.held[0]}
        return Segment(site.graph, starts, wanted, num_threads=1, lower=True, like=like)


def _as_stored(reader: Reader, matrix: np.ndarray) -> np.ndarray:
    """[N, K] as the operator holds it."""
    laid = matrix.T if reader.layer.along else matrix
    return np.ascontiguousarray(laid, np.float32).reshape(reader.weight.shape or ())


def _joined(arrays: Iterable[Any]) -> np.ndarray:
    """Rows of several, side by side."""
    several = [_rows(array) for array in arrays]
    return several[0] if len(several) == 1 else np.concatenate(several, axis=-1)


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
    if one.shape != np.shape(other):
        return np.inf
    most = moved = 0.0
    flat, others = one.reshape(-1), np.asarray(other).reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        block, beside = flat[start : start + _BLOCK], others[start : start + _BLOCK]
        finite = np.isfinite(block)
        if not np.array_equal(finite, np.isfinite(beside)):
            return np.inf
        if not finite.all():
            block, beside = block[finite], beside[finite]
        most = max(most, float(np.abs(block).max(initial=0)))
        moved = max(moved, float(np.abs(block - beside).max(initial=0)))
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
