"""`model.quantize`: a recipe over the layers of a graph.

    float stream        statistics of what layers read → equivalences, schemes of layers, ranges of static activations
    quantized stream    layer after layer in running order: statistics of what the layers before it make → codes, branches
                        with gradients, block after block: floats that are learned → codes, branches → what is learned around them

Without steps that look at data nothing runs. A recipe whose codes need no statistics has no quantized stream; one that changes no
tensors has no float stream where it has the other: schemes and ranges are decided there, by what layers will read. With gradients,
what layers read is held for one block at a time: where nothing is decided by it, what the blocks before it make of a few feeds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from qruntime.errors import CalibrationError, QuantizationError
from qruntime.ir import Graph, Node, Value, clone
from qruntime.ir.formats import FLOAT16
from qruntime.onnx_io.mapped_file import drop_pages
from qruntime.passes.cleanup import remove_dead_nodes
from qruntime.quantization.assignments import Assignment, decide, errors_of, forget_ranges, misfit, nearest_of, rtn_errors_of, worst
from qruntime.quantization.cache import Clusters, describe_caches, quantize_caches
from qruntime.quantization.cache_clusters import float_caches, measured_clusters
from qruntime.quantization.calibration import Calibration, Group, Progress
from qruntime.quantization.feeds import Data
from qruntime.quantization.foreign import held_by_others, held_weights
from qruntime.quantization.layer_inputs import why_no_rows
from qruntime.quantization.layers import Layer, layer_of, unfit_attributes
from qruntime.quantization.low_rank import float_input, why_no_branch
from qruntime.quantization.methods.rtn import RTN
from qruntime.quantization.outlier_pairs import input_range
from qruntime.quantization.patterns import mistaken, nothing_selected
from qruntime.quantization.reasons import Reason, Unobserved, Unselected
from qruntime.quantization.recipe import Recipe
from qruntime.quantization.report import QuantizedLayer, Report, SkippedLayer, raise_faults
from qruntime.quantization.request import Request
from qruntime.quantization.rounding import RoundToHalf, snr_db
from qruntime.quantization.scheme import Inputs
from qruntime.quantization.selection import layer_kind, layer_name
from qruntime.quantization.solving import OnGrid, Rounding, Solving
from qruntime.quantization.static_pairs import insert_pairs
from qruntime.quantization.static_ranges import insert_range
from qruntime.quantization.statistics import SAMPLE, SIGMA, Statistics
from qruntime.quantization.steps import Branch, Divide, Equivalence, Facts, Grid, InputRange, Solve, Step, Trained, Tune, Tuned
from qruntime.quantization.storing import Storing, describe_existing
from qruntime.quantization.transforming import Transforming, changed_statistics
from qruntime.quantization.tuning.engine import check_engine

if TYPE_CHECKING:
    from qruntime.quantization.tuning.parts import Part


UNREACHED = "no feed reaches it"
"""A layer of a branch that no run takes."""


def quantize_with(
    graph: Graph,
    recipe: Recipe,
    request: Request,
    *,
    data: Data | None = None,
    mask: str | None = None,
    calibration_bytes: int | None = None,
    progress: Progress | None = None,
    threads: int = 1,
    strict: bool = False,
    trained: Trained | None = None,
    made_of: dict[str, np.ndarray] | None = None,
) -> Report:
    """Quantize `graph` in place and report what was done. Of a model that was trained for it, `trained` has the grids and ranges.
    `made_of` receives the float weights that codes were made of, by name, as the steps left them that change tensors.

    Raises QuantizationError for data that are missing or do not fit, and where `strict` and a layer cannot be what was asked
    for, or a pattern selects nothing.
    """
    if recipe.tuning:
        check_engine(type(recipe.tuning[0]).__name__)
    kept = {row.name: row for row in describe_existing(graph).layers}
    decided = decide(graph, request)
    nodes = list(graph.walk_nodes())
    idle = request.idle(list(decided), nodes)
    unknown = mistaken(idle, nodes)
    if unknown and strict:
        raise QuantizationError(f"strict=True and {nothing_selected(unknown, list(decided))}")
    assignments = [one for one in decided.values() if isinstance(one, Assignment)]
    for assignment in assignments:
        if request.scheme.needs_data and assignment.scheme.inputs is not None and not assignment.is_static:
            assignment.facts["activations"] = "per token"
    if trained is None:
        _check_data(recipe, assignments, data)
    calibration = None
    dividing = None if request.scheme.cache is None else recipe.dividing
    if data is not None and (assignments or dividing is not None):
        calibration = Calibration(graph, data, num_threads=threads, mask=mask, calibration_bytes=calibration_bytes)
        # All weights were looked at, and are read again one by one while the data go through.
        drop_pages(array for one in assignments for value in one.layer.weights if value is not None for array in value.arrays())
    for assignment in assignments:
        forget_ranges(assignment)
    clusters: Clusters = {}
    if dividing is not None and request.scheme.cache is not None and calibration is not None:
        clusters = measured_clusters(graph, request.scheme.cache, dividing, calibration)
    run = _Run(graph, recipe, calibration, progress or (lambda done, total, what: None), threads, trained or Trained(), made_of)
    run.prepare(assignments)
    rows = run.store(assignments)
    if calibration is not None:
        calibration.warn_of_padding()
    made, skipped = [], held_by_others(nodes)
    for node, one in decided.items():
        row = rows[one] if isinstance(one, Assignment) else one
        if isinstance(row, QuantizedLayer):
            kept.pop(row.name, None)
            made.append(row)
        elif not (isinstance(row, Unselected) and layer_name(node) in kept):
            skipped.append(SkippedLayer(layer_name(node), node.op_type, row))
    caches = describe_caches(graph)
    if request.scheme.cache is not None:
        caches, left = quantize_caches(graph, request.scheme.cache, clusters)
        skipped += left
    elif recipe.dividing is not None:
        skipped += float_caches(graph, type(recipe.dividing).__name__)
    if strict:
        raise_faults(skipped)
    remove_dead_nodes(graph)
    return Report(
        (*kept.values(), *made), tuple(skipped), tuple(idle), kept=tuple(kept), held=held_weights(graph.walk_nodes()), caches=caches
    )


def _check_data(recipe: Recipe, assignments: Sequence[Assignment], data: Data | None) -> None:
    """Raises CalibrationError where something is to be known of activations and there are no data."""
    if data is not None:
        return
    needing = [type(step).__name__ for step in recipe.looking]
    static = next((one for one in assignments if one.is_static), None)
    if needing or static is not None:
        who = f"{needing[0]} looks at activations" if needing else f"scheme {static.scheme} has ranges that are known before a run"  # type: ignore[union-attr]
        other = "" if needing else "; or leave out -static for ranges at every run"
        raise CalibrationError(f"{who}, which come from runs: give data=, a list of feeds {{input name: array}}{other}")


class _Run:
    """The phases of one call."""

    def __init__(
        self, graph: Graph, recipe: Recipe, calibration: Calibration | None, progress: Progress, threads: int, trained: Trained,
        made_of: dict[str, np.ndarray] | None,
    ):  # fmt: skip
        self.made_of = made_of
        self.graph, self.recipe, self.calibration, self.progress, self.threads = graph, recipe, calibration, progress, threads
        self.trained = trained
        self.early = [step for step in recipe.steps if not isinstance(step, (Divide, Solve, Branch, Tune))]
        self.solving: tuple[Solve, ...] = tuple(recipe.solving) or (RTN(),)
        self.late: list[Step] = [*self.solving, *recipe.branches]
        self.storing = Storing(graph)
        self.pool = ThreadPoolExecutor(max(1, threads))
        self.original = graph
        """Of a recipe with gradients the graph in floats, as it was before ranges and codes."""
        self.is_observed = False
        """Whether what layers read is known of the float stream."""

    @property
    def has_quantized_stream(self) -> bool:
        """Whether codes depend on what the layers before make of theirs."""
        return any(step.requires for step in self.late)

    @property
    def decides_late(self) -> bool:
        """Whether schemes and ranges are decided in the quantized stream: one pass over the graph serves all."""
        return self.calibration is not None and self.has_quantized_stream and not (self.recipe.transforms or self.recipe.tuning)

    def prepare(self, assignments: Sequence[Assignment]) -> None:
        """The float stream: statistics, and what steps decide by them before there are codes."""
        self._give_grids(assignments, self.trained.grids)
        for one in assignments:
            one.facts |= self.trained.facts
        if self.decides_late:
            return
        decides = bool(self.early) or any(one.is_static for one in assignments)
        if self.calibration is not None and (decides or not (self.has_quantized_stream or self.recipe.tuning)):
            self.is_observed = True
            transforms = self.recipe.transforms
            transforming = Transforming(self.graph, transforms, _linear_layers(self.graph), self.calibration) if transforms else None
            schemes = {one.node: one.scheme for one in assignments}
            unchanged = None if transforming is None else transforming.unchanged
            for group, members in self._groups(assignments, "observe", self.calibration, ahead=True, finished=unchanged):
                self._observe(group, members, self.early)
                if transforming is not None and (seen := members[0].statistics[0]) is not None:
                    transforming.look(group, seen, schemes)
            if transforming is not None:
                self._transform(assignments, transforming)
        for one in assignments:
            self._choose(one)
        if self.recipe.tuning:
            from qruntime.quantization.tuning.parameters import separate

            separate(self.graph.nodes)
            self.original = clone(self.graph)
        self._insert_ranges([one for one in assignments if one.is_static])

    def _decide(self, group: Group, members: Sequence[Assignment]) -> None:
        """What `prepare` decides, for layers that read one tensor."""
        if self.early or any(one.is_static for one in members):
            self._observe(group, members, self.early)
        for one in members:
            self._choose(one)
        rounded = self._insert_ranges([one for one in members if one.is_static], group.layers[0].node)
        if rounded:
            group.renew(rounded)

    def store(self, assignments: Sequence[Assignment]) -> dict[Assignment, QuantizedLayer | Reason]:
        """The quantized stream where the recipe has one: codes, layer after layer."""
        rows: dict[Assignment, QuantizedLayer | Reason] = {}
        if self.recipe.tuning and self.calibration is not None:
            rows |= self._store_blocks(assignments, self.calibration)
        rest = [one for one in assignments if one not in rows]
        if self.calibration is not None and (self.has_quantized_stream or not self.is_observed):
            for group, members in self._groups(rest, "quantize", self.calibration):
                if self.decides_late:
                    self._decide(group, members)
                self._observe(group, members, self.late)
                rows |= self._stored(members)
        rest = [one for one in rest if one not in rows]
        if self.decides_late:
            for one in rest:
                self._choose(one)
            self._insert_ranges([one for one in rest if one.is_static])
        return rows | self._stored(rest)

    def _store_blocks(self, assignments: Sequence[Assignment], calibration: Calibration) -> dict[Assignment, QuantizedLayer | Reason]:
        """Codes, block after block, with steps that learn before them and behind them."""
        from qruntime.quantization.tuning.parts import Blocks

        by_node = {one.node: one for one in assignments if one.left is None}
        rows: dict[Assignment, QuantizedLayer | Reason] = {}
        for part in Blocks(self.graph, self.original, calibration, {node: one.scheme for node, one in by_node.items()}):
            members = [by_node[node] for node in part.block.nodes if node in by_node]
            if not (self.is_observed or self.has_quantized_stream):
                for group, several in self._groups(members, "", part.sample):
                    self._observe(group, several, ())
            for step in self.recipe.tuning:
                if not step.follows_codes:
                    self._tune(step, part, members)
            made: dict[Assignment, QuantizedLayer | Reason] = {}
            if self.has_quantized_stream:
                for group, several in self._groups(members, "", part.calibration):
                    self._observe(group, several, self.late)
                    made |= self._stored(several)
            made |= self._stored([one for one in members if one not in made])
            part.renew()
            for step in self.recipe.tuning:
                if step.follows_codes:
                    facts = self._tune(step, part, ())
                    made = {one: _with_facts(row, facts) for one, row in made.items()}
            rows |= made
            self.progress(part.index + 1, part.count, "tune")
            del part  # before the streams go on
        return rows

    def _tune(self, step: Tune, part: Part, members: Sequence[Assignment]) -> Facts:
        """Put in place what a step learned of a block; `members` are layers of it that have no codes yet."""
        tuned = step.tune(part)
        if tuned.grids and (self.recipe.solving or step.follows_codes):
            other = type(self.recipe.solving[0]).__name__ if self.recipe.solving else "the codes, which are there already"
            raise QuantizationError(f"{type(step).__name__} learns the grids of codes, and {other} would not keep to them")
        self._give_grids(members, tuned.grids)
        for one in members:
            one.facts |= tuned.facts
            self._scale(one, tuned)
        part.scale(tuned.scales)
        part.change(tuned.constants)
        return tuned.facts

    @staticmethod
    def _scale(one: Assignment, tuned: Tuned) -> None:
        """What is known of the rows that a layer reads, for a tensor whose channels a step scales; its errors are still of these."""
        tensor = one.node.input(0)
        if tensor is not None and tensor.name in tuned.scales:
            one.rtn_errors = rtn_errors_of(one)
            change = Equivalence(scale=tuned.scales[tensor.name])
            one.statistics = tuple(None if seen is None else changed_statistics(seen, change) for seen in one.statistics)

    @staticmethod
    def _give_grids(assignments: Sequence[Assignment], learned: Mapping[str, Sequence[Grid]]) -> None:
        """The grids of weights by their names: one step for all layers that read a weight, so that it is stored once."""
        grids = {name: [OnGrid(*one) for one in several] for name, several in learned.items()}
        for one in assignments if grids else ():
            every = [grids.get(value.name, [None] * len(one.layer.matrices(value))) for value in one.layer.weights if value is not None]
            one.grids |= {place: found for place, found in enumerate(chain(*every)) if found is not None}

    def _transform(self, assignments: Sequence[Assignment], transforming: Transforming) -> None:
        coming = self.pool.map(rtn_errors_of, assignments)
        transforming.check()
        for one, errors in zip(assignments, coming, strict=True):
            one.rtn_errors = errors
        transforming.make()
        for one in assignments:
            first = len(one.statistics) // len(one.layer.weights)  # of a recurrent layer W reads the tensor, R does not
            changed = (None if seen is None else transforming.changed(one.node, seen) for seen in one.statistics[:first])
            one.statistics = (*changed, *one.statistics[first:])
            one.facts |= transforming.facts.get(one.node, {})

    def _groups(
        self, assignments: Sequence[Assignment], what: str, calibration: Calibration, **how: Any
    ) -> Iterator[tuple[Group, list[Assignment]]]:
        """The layers that can be calibrated, those that read the same tensor together; `how` as `Calibration.groups` has it."""
        by_node = {one.node: one for one in assignments if why_no_rows(self.graph, one.layer) is None}
        done = 0
        for group in calibration.groups([one.layer for one in by_node.values()], **how):
            members = [by_node[layer.node] for layer in group.layers]
            yield group, members
            done += len(members)
            if what:
                self.progress(done, len(by_node), what)

    def _observe(self, group: Group, members: Sequence[Assignment], steps: Sequence[Step]) -> None:
        kinds = {SAMPLE}.union(*(step.requires for step in steps))
        for one in members:
            one.statistics = group.statistics(one.layer, kinds)
            if SIGMA in kinds:
                _check_rows(one)

    def _choose(self, one: Assignment) -> None:
        for step in self.recipe.choosing:
            if one.left is not None:
                return
            if one.layer.kind != "Linear":
                one.facts[type(step).__name__] = f"chooses for linear layers, not for {one.layer.kind}"
                continue
            ((weight,),) = one.weights()
            try:
                scheme, facts = step.scheme(layer_name(one.node), weight, one.scheme, next(iter(one.statistics), None))
            except QuantizationError:
                raise  # the call means nothing, whatever the layer
            except ValueError as error:
                one.left = Reason(str(error))
                return
            one.facts |= facts
            if isinstance(scheme, Reason):
                one.left = scheme
            elif scheme != one.scheme:
                one.scheme, one.left = scheme, misfit(self.graph, one.layer, scheme)

    def _insert_ranges(self, assignments: Sequence[Assignment], before: Node | None = None) -> list[Value]:
        """Static activations: layers that read the same tensor share its range, which stands before them, or before the node that is
        given. What they read from now on."""
        by_tensor: dict[tuple[Graph, Value, Inputs], list[Assignment]] = {}
        for one in assignments:
            graph, tensor, inputs = one.node.graph, one.node.input(0), one.scheme.inputs
            assert graph is not None and tensor is not None and inputs is not None
            by_tensor.setdefault((graph, tensor, inputs), []).append(one)
        choosing, made = self.recipe.ranges, []
        for (graph, tensor, inputs), members in by_tensor.items():
            known, statistics = self.trained.ranges.get(tensor.name), next(iter(members[0].statistics), None)
            if known is None and statistics is None:
                for one in members:
                    one.left = Reason(f"static activations come from runs, and {UNREACHED}")
                continue
            if inputs.clusters and not choosing:
                raise QuantizationError(f"{inputs}: no step of the recipe chooses the clusters of {tensor.name!r}, as that of RPTQ does")
            readers = [one.layer for one in members]
            try:
                found = known or self._range(inputs, statistics, members)
            except ValueError as error:
                for one in members:
                    one.left = Reason(str(error))
                continue
            if inputs.format.is_paired:
                rounded = insert_pairs(graph, tensor, readers, found, before)
            else:
                rounded = insert_range(graph, tensor, readers, inputs, found, before)
            made.append(rounded)
            for one in members:
                one.rewire(rounded)
                one.facts |= found.facts
        return made

    def _range(self, inputs: Inputs, statistics: Statistics | None, readers: Sequence[Assignment]) -> InputRange:
        assert statistics is not None
        if not self.recipe.ranges:
            return _default_range(inputs, statistics)
        weights = [weight for one in readers for matrices in one.weights() for weight in matrices]
        return self.recipe.ranges[0].range(inputs, statistics, weights)

    def _stored(self, members: Sequence[Assignment]) -> dict[Assignment, QuantizedLayer | Reason]:
        """Codes of layers side by side, then each layer stored."""
        list(self.pool.map(self._solve, members))
        if self.made_of is not None:
            values = [value for one in members for value in one.layer.weights]
            self.made_of.update((value.name, value.data) for value in values if value is not None and value.data is not None)
        rows = {one: self._store(one) for one in members}
        self.storing.forget_observed()
        return rows

    def _solve(self, one: Assignment) -> None:
        """Makes the codes, which `storing` keeps, and their errors."""
        weights = one.weights()
        places = iter(range(sum(map(len, weights))))
        one.rounding = [[self._rounding(one, next(places)) for _ in matrices] for matrices in weights]
        if one.left is not None or self.storing.misfit(one.layer, one.rounding) is not None:
            return
        try:
            made = self.storing.solve(one.layer, one.rounding)
        except ValueError:  # `store` says it
            return
        if not one.statistics and not self.recipe.branches:
            return
        flat = [weight for matrices in weights for weight in matrices]
        restored = [rounded.stored.decoded() for rounded in made]
        self._branch(one, flat, restored)
        nearest = None if one.rtn_errors else nearest_of(one, flat)
        one.errors, *others = errors_of(flat, [restored] if nearest is None else [restored, nearest], one.statistics)
        if others:
            one.rtn_errors = others[0]
        drop_pages(array for value in one.layer.weights if value is not None for array in value.arrays())

    def _branch(self, one: Assignment, weights: Sequence[np.ndarray], restored: list[np.ndarray]) -> None:
        """Makes branches for what the codes have lost, and adds to `restored` what they add."""
        for step in self.recipe.branches:
            statistics = next(iter(one.statistics), None)
            reason = why_no_branch(one.layer)
            if reason is None and step.requires and statistics is None:
                reason = "the rows that it reads are not known"
            if reason is not None:
                one.facts[type(step).__name__] = f"no branch: {reason}"
                continue
            factors = step.branch(weights[0], restored[0], statistics)
            restored[0] = restored[0] + factors.product()
            one.branches.append(factors)
            one.facts |= factors.facts
            one.snr_db = snr_db(weights[0], restored[0])

    def _rounding(self, one: Assignment, at: int) -> Rounding:
        """What makes the codes of matrix `at`: steps that look at rows leave those to others whose rows are unknown."""
        weights = one.scheme.weights
        assert weights is not None
        if weights.format is FLOAT16:
            return RoundToHalf()
        if at in one.grids:
            return Solving((one.grids[at],), weights)
        statistics = one.statistics[at] if one.statistics else None
        steps = tuple(step for step in self.solving if statistics is not None or not step.requires)
        return Solving(steps or (RTN(),), weights, statistics)

    def _store(self, one: Assignment) -> QuantizedLayer | Reason:
        before, one.node.mark = one.node.mark, None
        unseen = self._unseen(one)
        made = one.left or self.storing.store(one.layer, one.rounding, one.scheme.inputs, branches=one.branches)
        one.statistics, one.rounding = (), []
        if isinstance(made, str):
            one.node.mark = before
            if one.reads is not None:
                one.node.set_input(0, one.reads)
            return made if isinstance(made, Reason) else Reason(made)
        if one.snr_db is not None and one.node.mark is not None:
            one.node.mark = one.node.mark._replace(snr_db=one.snr_db)
            made = made._replace(snr_db=one.snr_db)
        facts = [one.facts | dict(found) for found in made.facts or ({},)]
        return made._replace(
            reason=made.reason or unseen, facts=tuple(found for found in facts if found),
            error=worst(one.errors), rtn_error=worst(one.rtn_errors),
        )  # fmt: skip

    def _unseen(self, one: Assignment) -> str:
        """That steps which look at data did nothing for this layer, and why; "" where they saw what it reads."""
        names = [type(step).__name__ for step in self.recipe.looking]
        why = why_no_rows(self.graph, one.layer)
        if why is None and one.statistics and not any(one.statistics):
            why = Reason(UNREACHED)
        if not names or why is None or one.scheme.weights is None or one.scheme.weights.format is FLOAT16:
            return ""
        return Unobserved(f"rounded to nearest, without {', '.join(names)}: {why}")


def _with_facts(row: QuantizedLayer | Reason, facts: Facts) -> QuantizedLayer | Reason:
    if not isinstance(row, QuantizedLayer) or not facts:
        return row
    return row._replace(facts=tuple({**found, **facts} for found in row.facts or ({},)))


def _default_range(inputs: Inputs, statistics: Statistics) -> InputRange:
    """Where no step chooses: all that was seen, of pairs three σ."""
    if inputs.format.is_paired:
        return input_range(statistics)
    return InputRange(statistics.low.min(), statistics.high.max())


def _linear_layers(graph: Graph) -> list[Layer]:
    """All that read a tensor with a constant weight, whether they are to be quantized or not."""
    layers = [layer_of(node) for node in graph.walk_nodes() if layer_kind(node)]
    return [layer for layer in layers if layer is not None and layer.shapes and unfit_attributes(layer.node) is None and layer.is_finite]


def _check_rows(one: Assignment) -> None:
    """Σ of fewer rows than channels says nothing of most directions."""
    for statistics in one.statistics:
        if statistics is not None and statistics.rows < len(statistics.low):
            tensor = float_input(one.node)
            raise CalibrationError(
                f"data: {one.node.label} reads {len(statistics.low)} channels of {'' if tensor is None else repr(tensor.name)}, and all "
                f"feeds together hold {statistics.rows} rows of it; give at least as many rows, better ten times as many, or exclude= it"
            )
