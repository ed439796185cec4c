"""`model.quantize`: a recipe over the layers of a graph.

    float stream        statistics of what layers read → equivalences, schemes of layers, ranges of static activations
    quantized stream    layer after layer in running order: statistics of what the layers before it make → codes, branches
                        with gradients, block after block: floats that are learned → codes, branches → what is learned around them

Without steps that look at data nothing runs. A recipe whose codes need no statistics has no quantized stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from qruntime.errors import CalibrationError, QuantizationError
from qruntime.ir import Graph, Node, Value, clone
from qruntime.ir.formats import FLOAT16, FP8, INT8
from qruntime.ir.marks import STATIC
from qruntime.passes.cleanup import remove_dead_nodes
from qruntime.passes.einsum import linear_einsum
from qruntime.passes.stored.rounding_functions import LEAST_OPSET as LEAST_OPSET_OF_PAIRS
from qruntime.passes.stored.writing import opset_beside
from qruntime.quantization.cache import describe_caches, quantize_caches
from qruntime.quantization.calibration import Calibration, Group, Progress
from qruntime.quantization.feeds import Data
from qruntime.quantization.foreign import held_by_others, held_weights
from qruntime.quantization.layer_inputs import why_no_rows
from qruntime.quantization.layers import Layer, layer_of, missing_form, obstacle, unfit_attributes
from qruntime.quantization.low_rank import float_input, why_no_branch
from qruntime.quantization.methods.rtn import RTN
from qruntime.quantization.outlier_pairs import input_range
from qruntime.quantization.patterns import mistaken, nothing_selected
from qruntime.quantization.reasons import Reason, Unobserved, Unselected
from qruntime.quantization.recipe import Recipe
from qruntime.quantization.report import QuantizedLayer, Report, SkippedLayer, raise_faults
from qruntime.quantization.request import Request
from qruntime.quantization.rounding import RoundToHalf, snr_db
from qruntime.quantization.scheme import GROUP, Inputs, QArgs, Scheme
from qruntime.quantization.selection import layer_kind, layer_name
from qruntime.quantization.solving import OnGrid, Rounding, Solving
from qruntime.quantization.static_pairs import insert_pairs
from qruntime.quantization.static_ranges import LEAST_OPSET_OF_CLUSTERS, insert_range
from qruntime.quantization.statistics import SAMPLE, SIGMA, Statistics, output_error
from qruntime.quantization.steps import Branch, Equivalence, Facts, Grid, InputRange, LowRankFactors, Solve, Step, Trained, Tune, Tuned
from qruntime.quantization.storing import Storing, describe_existing
from qruntime.quantization.transforming import Transforming, changed_statistics
from qruntime.quantization.tuning.engine import check_engine

if TYPE_CHECKING:
    from qruntime.quantization.tuning.parts import Part


UNREACHED = "no feed reaches it"
"""A layer of a branch that no run takes."""


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
        """For each weight, its matrices [N, K]."""
        every = (self.layer.matrices(value) for value in self.layer.weights if value is not None)
        return [[matrix.values.T if matrix.along else matrix.values for matrix in matrices] for matrices in every]


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
) -> Report:
    """Quantize `graph` in place and report what was done. Of a model that was trained for it, `trained` has the grids and ranges.

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
    if data is not None and assignments:
        calibration = Calibration(graph, data, num_threads=threads, mask=mask, calibration_bytes=calibration_bytes)
    for assignment in assignments:
        _forget_ranges(assignment)
    run = _Run(graph, recipe, calibration, progress or (lambda done, total, what: None), threads, trained or Trained())
    run.prepare(assignments)
    rows = run.store(assignments)
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
        caches, left = quantize_caches(graph, request.scheme.cache)
        skipped += left
    if strict:
        raise_faults(skipped)
    remove_dead_nodes(graph)
    return Report(
        (*kept.values(), *made), tuple(skipped), tuple(idle), kept=tuple(kept), held=held_weights(graph.walk_nodes()), caches=caches
    )


def decide(graph: Graph, request: Request) -> dict[Node, Assignment | Reason]:
    """What is to be done with each layer of `graph`, in which sums over one axis (Einsum) become layers."""
    linear_einsum(graph, tied=True)
    kinds = ((node, layer_kind(node)) for node in graph.walk_nodes())
    return {node: _assigned(graph, node, request.scheme_of(node, kind)) for node, kind in kinds if kind}


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
    if (misfit := _misfit(graph, layer, scheme)) is not None:
        return misfit
    return Assignment(layer, scheme)


def _forget_ranges(one: Assignment) -> None:
    """A layer that an earlier call gave static activations is to read them as floats."""
    mark, tensor = one.node.mark, float_input(one.node)
    if mark is not None and mark.activations == STATIC and tensor is not None:
        one.rewire(tensor)


def _misfit(graph: Graph, layer: Layer, scheme: Scheme) -> Reason | None:
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


class _Run:
    """The phases of one call."""

    def __init__(self, graph: Graph, recipe: Recipe, calibration: Calibration | None, progress: Progress, threads: int, trained: Trained):
        self.graph, self.recipe, self.calibration, self.progress, self.threads = graph, recipe, calibration, progress, threads
        self.trained = trained
        self.early = [step for step in recipe.steps if not isinstance(step, (Solve, Branch, Tune))]
        self.solving: tuple[Solve, ...] = tuple(recipe.solving) or (RTN(),)
        self.late: list[Step] = [*self.solving, *recipe.branches]
        self.storing = Storing(graph)
        self.original = graph
        """Of a recipe with gradients the graph in floats, as it was before ranges and codes."""

    @property
    def has_quantized_stream(self) -> bool:
        """Whether codes depend on what the layers before make of theirs."""
        return any(step.requires for step in self.late)

    def prepare(self, assignments: Sequence[Assignment]) -> None:
        """The float stream: statistics, and what steps decide by them before there are codes."""
        if self.calibration is not None and (self.early or not self.has_quantized_stream or any(one.is_static for one in assignments)):
            transforms = self.recipe.transforms
            transforming = Transforming(self.graph, transforms, _linear_layers(self.graph), self.calibration) if transforms else None
            schemes = {one.node: one.scheme for one in assignments}
            for group, members in self._groups(assignments, "observe", self.calibration):
                self._observe(group, members, self.early)
                if transforming is not None and (seen := members[0].statistics[0]) is not None:
                    transforming.look(group, seen, schemes)
            if transforming is not None:
                self._transform(assignments, transforming)
        self._give_grids(assignments, self.trained.grids)
        for one in assignments:
            one.facts |= self.trained.facts
        for one in assignments:
            self._choose(one)
        if self.recipe.tuning:
            from qruntime.quantization.tuning.parameters import separate

            separate(self.graph.nodes)
            self.original = clone(self.graph)
        self._insert_ranges([one for one in assignments if one.is_static])

    def store(self, assignments: Sequence[Assignment]) -> dict[Assignment, QuantizedLayer | Reason]:
        """The quantized stream where the recipe has one: codes, layer after layer."""
        rows: dict[Assignment, QuantizedLayer | Reason] = {}
        if self.recipe.tuning and self.calibration is not None:
            rows |= self._store_blocks(assignments, self.calibration)
        rest = [one for one in assignments if one not in rows]
        if self.calibration is not None and self.has_quantized_stream:
            for group, members in self._groups(rest, "quantize", self.calibration):
                self._observe(group, members, self.late)
                rows |= self._stored(members)
        return rows | self._stored([one for one in rest if one not in rows])

    def _store_blocks(self, assignments: Sequence[Assignment], calibration: Calibration) -> dict[Assignment, QuantizedLayer | Reason]:
        """Codes, block after block, with steps that learn before them and behind them."""
        from qruntime.quantization.tuning.parts import Blocks

        by_node = {one.node: one for one in assignments if one.left is None}
        rows: dict[Assignment, QuantizedLayer | Reason] = {}
        for part in Blocks(self.graph, self.original, calibration, {node: one.scheme for node, one in by_node.items()}):
            members = [by_node[node] for node in part.block.nodes if node in by_node]
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
            one.rtn_errors = _rtn_errors(one)
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
        with ThreadPoolExecutor(max(1, self.threads)) as pool:
            for one, errors in zip(assignments, pool.map(_rtn_errors, assignments), strict=True):
                one.rtn_errors = errors
        transforming.make()
        for one in assignments:
            first = len(one.statistics) // len(one.layer.weights)  # of a recurrent layer W reads the tensor, R does not
            changed = (None if seen is None else transforming.changed(one.node, seen) for seen in one.statistics[:first])
            one.statistics = (*changed, *one.statistics[first:])
            one.facts |= transforming.facts.get(one.node, {})

    def _groups(self, assignments: Sequence[Assignment], what: str, calibration: Calibration) -> Iterator[tuple[Group, list[Assignment]]]:
        """The layers that can be calibrated, those that read the same tensor together."""
        by_node = {one.node: one for one in assignments if why_no_rows(self.graph, one.layer) is None}
        done = 0
        for group in calibration.groups([one.layer for one in by_node.values()]):
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
                one.scheme, one.left = scheme, _misfit(self.graph, one.layer, scheme)

    def _insert_ranges(self, assignments: Sequence[Assignment]) -> None:
        """Static activations: layers that read the same tensor share its range."""
        by_tensor: dict[tuple[Graph, Value, Inputs], list[Assignment]] = {}
        for one in assignments:
            graph, tensor, inputs = one.node.graph, one.node.input(0), one.scheme.inputs
            assert graph is not None and tensor is not None and inputs is not None
            by_tensor.setdefault((graph, tensor, inputs), []).append(one)
        choosing = self.recipe.ranges
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
                found = known or self._range(inputs, statistics)
            except ValueError as error:
                for one in members:
                    one.left = Reason(str(error))
                continue
            if inputs.format.is_paired:
                rounded = insert_pairs(graph, tensor, readers, found)
            else:
                rounded = insert_range(graph, tensor, readers, inputs, found)
            for one in members:
                one.rewire(rounded)
                one.facts |= found.facts

    def _range(self, inputs: Inputs, statistics: Statistics | None) -> InputRange:
        assert statistics is not None
        return (self.recipe.ranges[0].range if self.recipe.ranges else _default_range)(inputs, statistics)

    def _stored(self, members: Sequence[Assignment]) -> dict[Assignment, QuantizedLayer | Reason]:
        """Codes of layers side by side, then each layer stored."""
        with ThreadPoolExecutor(max(1, self.threads)) as pool:
            list(pool.map(self._solve, members))
        return {one: self._store(one) for one in members}

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
        one.errors = _errors(flat, restored, one.statistics)
        if not one.rtn_errors:
            one.rtn_errors = _rtn_errors(one)

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
        one.statistics = ()
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
            error=_worst(one.errors), rtn_error=_worst(one.rtn_errors),
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


def _errors(weights: Sequence[np.ndarray], restored: Sequence[np.ndarray], statistics: Sequence[Statistics | None]) -> list[float]:
    triples = zip(weights, restored, statistics or [None] * len(weights), strict=True)
    return [output_error(weight, other, seen) for weight, other, seen in triples if seen is not None]


def _rtn_errors(one: Assignment) -> list[float]:
    """Of its weights as they are now, rounded to nearest."""
    args = one.scheme.weights
    if args is None or args.format is FLOAT16 or not any(seen is not None for seen in one.statistics):
        return []
    flat = [weight for matrices in one.weights() for weight in matrices]
    return _errors(flat, [RTN().solve(weight, args).rounded.stored.decoded() for weight in flat], one.statistics)


def _linear_layers(graph: Graph) -> list[Layer]:
    """All that read a tensor with a constant weight, whether they are to be quantized or not."""
    layers = [layer_of(node) for node in graph.walk_nodes() if layer_kind(node)]
    return [layer for layer in layers if layer is not None and layer.shapes and unfit_attributes(layer.node) is None and layer.is_finite]


def _worst(errors: Sequence[float]) -> float | None:
    return max(errors, default=None)


def _check_rows(one: Assignment) -> None:
    """Σ of fewer rows than channels says nothing of most directions."""
    for statistics in one.statistics:
        if statistics is not None and statistics.rows < len(statistics.low):
            tensor = float_input(one.node)
            raise CalibrationError(
                f"data: {one.node.label} reads {len(statistics.low)} channels of {'' if tensor is None else repr(tensor.name)}, and all "
                f"feeds together hold {statistics.rows} rows of it; give at least as many rows, better ten times as many, or exclude= it"
            )
