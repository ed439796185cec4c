"""The verbs of quantization: what turns a float model into one of a scheme. A method of a paper is a scheme and a few steps.

Steps are frozen, comparable and printable, and pure: they see arrays and statistics, never graphs, nodes or passes.
They are taken in this order, those of one kind in the order of the recipe:

    Transform   changes a tensor and all that reads it, so that the float function stays: scales, shifts, orders of channels
    Choose      decides the scheme of a layer: its format, its bits, how its activations are quantized
    Range       decides the ranges of static activations
    Divide      decides which channels of a cache of codes share a range
    Solve       makes the codes of a weight
    Branch      adds to a layer what makes good for a part of what its codes lost
    Tune        learns floats by gradients, block by block: before the codes are made of them, or around codes that are there
    Train       trains the model as a whole, in place of all others or from the codes that they made

A step says what it needs to know of activations in `requires` (statistics.py); a recipe whose steps need nothing takes no data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from qruntime.ir import StoredTensor
from qruntime.quantization.reasons import Reason
from qruntime.quantization.rounding import Rounded
from qruntime.quantization.scheme import Inputs, QArgs, Scheme
from qruntime.quantization.statistics import Statistics

if TYPE_CHECKING:
    from qruntime.quantization.tuning.parts import Part

Facts = dict[str, Any]
"""What a step found out, for the report: numbers, texts and short lists, by name."""


@dataclass(frozen=True, eq=False)
class Equivalence:
    """What becomes of a tensor t of K channels: ((t − shift) / scale)[…, order]. None leaves that part out."""

    scale: np.ndarray | None = None
    """[K] float32, above 0."""
    shift: np.ndarray | None = None
    """[K] float32"""
    order: np.ndarray | None = None
    """[K] int64: a permutation; channel j becomes what channel order[j] was."""
    insert: bool = False
    """Whether nodes that make the change may stand before the layers where nothing that is there can absorb it."""
    facts: Facts = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class SiteView:
    """A tensor that linear layers read and whose producer can absorb a change, as a Transform sees it."""

    name: str
    role: str
    """What stands before the tensor: norm, linear, relu, activation, gated (act(gate) · up), values and keys (of attention), table,
    affine (a factor or summand per channel), none (nothing absorbs a change)."""
    statistics: Statistics
    """Of the tensor, before any change."""
    weights: tuple[np.ndarray, ...]
    """[N_i, K] of the layers that read it."""
    schemes: tuple[Scheme | None, ...]
    """Of these layers; None of those that stay float."""
    allows: frozenset[str]
    """Of "scale", "shift" and "order" what can be absorbed without cost at run time."""
    ties: np.ndarray | None
    """[K] int64: channels of one number share one scale (heads that read the same, rotary pairs); None where all are free."""
    outputs: Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], list[np.ndarray]]
    """outputs(inputs, weights): for each of `runs`, or of the first of them, what lies where the paths of the readers meet again (that of
    attention, the gated product), else the outputs of the readers side by side. Inputs are like `runs`, weights like
    `weights`; activations of every layer in between are float."""
    runs: Sequence[np.ndarray]
    """[t, K] float32: the tensor in a few runs."""
    parts: np.ndarray | None = None
    """[K] int64: an order keeps every channel among those of its number (heads); None where it may mix them all."""
    outputs_of: Callable[[Sequence[Sequence[np.ndarray]]], list[np.ndarray]] | None = None
    """outputs_of(products): the same, where for each run is known what every reader makes, [t, N_i] float32, but for a bias. None
    where a reader does more than multiply (recurrent layers)."""
    side_by_side: Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]] = lambda function, several: list(map(function, several))
    """side_by_side(function, several): what `function` makes of each of `several`, on as many threads as there may be."""

    def first_runs(self, rows: int) -> Sequence[np.ndarray]:
        """The first of `runs`, as many as hold `rows` rows; all where they are fewer."""
        counts = np.cumsum([len(run) for run in self.runs])
        return self.runs[: int(np.searchsorted(counts, rows)) + 1]


@dataclass(frozen=True, eq=False)
class Solved:
    """What a step made of a weight."""

    rounded: Rounded
    facts: Facts = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class LowRankFactors:
    """x ↦ (x · rightᵀ) · leftᵀ beside a layer; with a rank of 0 nothing. Floats, or codes that stand for them."""

    left: np.ndarray | StoredTensor
    """[N, rank] float32"""
    right: np.ndarray | StoredTensor
    """[rank, K] float32"""
    facts: Facts = field(default_factory=dict)

    @property
    def rank(self) -> int:
        return self.right.shape[0]

    def product(self) -> np.ndarray:
        """left · right, what the branch adds to the weight [N, K]."""
        left, right = (part.decoded() if isinstance(part, StoredTensor) else part for part in (self.left, self.right))
        return left @ right


@runtime_checkable
class Transform(Protocol):
    @property
    def requires(self) -> frozenset[str]: ...

    def choose(self, site: SiteView) -> Equivalence | Reason:
        """What is to become of the tensor of `site`, or why it stays as it is."""
        ...


@runtime_checkable
class Choose(Protocol):
    @property
    def requires(self) -> frozenset[str]: ...

    def scheme(self, name: str, weight: np.ndarray, scheme: Scheme, statistics: Statistics | None) -> tuple[Scheme | Reason, Facts]:
        """The scheme of the layer `name` with the weight [N, K], which was to have `scheme`; or why it stays float."""
        ...


@dataclass(frozen=True, eq=False)
class InputRange:
    """The range of static activations, 0 in it: one for the tensor, or one for each channel (of a cluster the same)."""

    low: np.ndarray
    """[] or [K] float32"""
    high: np.ndarray
    facts: Facts = field(default_factory=dict)


@runtime_checkable
class Range(Protocol):
    @property
    def requires(self) -> frozenset[str]: ...

    def range(self, inputs: Inputs, statistics: Statistics, weights: Sequence[np.ndarray]) -> InputRange:
        """The range that static activations of `inputs` have from now on; layers with `weights` [N_i, K] read them."""
        ...


@runtime_checkable
class Divide(Protocol):
    @property
    def requires(self) -> frozenset[str]: ...

    def divide(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Of keys, or of values, with channels that lie between `low` and `high` [heads, channels]: the cluster of each channel in
        its head, integers from 0 on [heads, channels]."""
        ...


@runtime_checkable
class Solve(Protocol):
    """A step with a true `refines` goes on from the codes of the step before it; others would drop them. One with a true
    `gives_way` rounds to nearest: of a recipe that is one of several it is left out where another makes the codes."""

    @property
    def requires(self) -> frozenset[str]: ...

    def solve(self, weight: np.ndarray, args: QArgs, statistics: Statistics | None, start: Rounded | None) -> Solved:
        """Codes of a weight [N, K] float32. `start` is what the Solve before this one in the recipe made of it.

        Raises ValueError with what is wrong with the weight.
        """
        ...


@runtime_checkable
class Branch(Protocol):
    @property
    def requires(self) -> frozenset[str]: ...

    def branch(self, weight: np.ndarray, restored: np.ndarray, statistics: Statistics | None) -> LowRankFactors:
        """What is added to a layer with the weight [N, K] whose codes, and branches that are beside it already, stand for `restored`."""
        ...


Grid = tuple[np.ndarray, np.ndarray | None]
"""Scale and zero point [N or 1, groups] float32 of a matrix [N, K]; None of symmetric grids."""


@dataclass(frozen=True, eq=False)
class Tuned:
    """What a step learned of a block, by the names of its parameters."""

    constants: Mapping[str, np.ndarray] = field(default_factory=dict)
    """New numbers, as the parameter lies in the graph."""
    grids: Mapping[str, Sequence[Grid]] = field(default_factory=dict)
    """Of weights, for each of their matrices the grid on which the codes are the nearest; others have that of the scheme."""
    scales: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Of tensors (Part.sites), [K]: their channels are divided by it, and the weights of all that reads them multiplied with it,
    to which `grids` belong."""
    facts: Facts = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Trained:
    """What training decided of a whole model, by names: of weights the grids, as in `Tuned`, and of tensors that layers read the
    ranges of static activations."""

    grids: Mapping[str, Sequence[Grid]] = field(default_factory=dict)
    ranges: Mapping[str, InputRange] = field(default_factory=dict)
    facts: Facts = field(default_factory=dict)


@runtime_checkable
class Tune(Protocol):
    """A step with gradients. Those whose `follows_codes` is false see blocks whose layers are floats yet, and codes are made of
    what they learn; the others see blocks whose layers are stored. A block sees what became of those before it."""

    @property
    def requires(self) -> frozenset[str]: ...

    @property
    def follows_codes(self) -> bool: ...

    def tune(self, part: Part) -> Tuned:
        """What is to be changed of a block (tuning/parts.py): torch is imported within."""
        ...


@runtime_checkable
class Train(Protocol):
    """A step that trains the model as a whole, and makes its codes."""

    @property
    def requires(self) -> frozenset[str]: ...

    @property
    def takes_data(self) -> bool:
        """False of those that make their data themselves."""
        ...

    @property
    def goes_on_from_codes(self) -> bool:
        """Whether steps may stand before it that make codes."""
        ...

    @property
    def steps(self) -> str:
        """Whence step sizes of weights come: "minmax" or "lsq"."""
        ...

    @property
    def recompute(self) -> bool:
        """Whether activations are made again for gradients instead of being kept."""
        ...

    def train(self, module: Any, teacher: Any, feeds: Sequence[Mapping[str, Any]], mask: str | None, progress: Progress) -> Facts:
        """Train a `QuantizedModule` in place. `teacher` is the float model, `feeds` hold its inputs and what else the data have."""
        ...


Progress = Callable[[int, int, str], None]
Step = Transform | Choose | Range | Divide | Solve | Branch | Tune | Train
