"""Recipes: a scheme and the steps that turn a float model into one of it, under the name of the paper that proposes them.

qruntime.quantization.recipes["GPTQ"]           scheme W4A16-g128
                                                1. GPTQ(block_size=8, dampening_frac=0.01, actorder='static', mse=False)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import pairwise

from qruntime.errors import QuantizationError
from qruntime.quantization.arguments import check_whole
from qruntime.quantization.steps import Branch, Choose, Divide, Range, Solve, Step, Train, Transform, Tune

DEFAULT_SCHEME = "W4A16-g128"

_ORDER = (
    (Transform, "changes tensors while the weights are float"),
    (Choose, "decides what the numbers of a layer look like"),
    (Range, "decides the ranges of static activations"),
    (Divide, "divides the channels of caches"),
    (Solve, "makes the codes"),
    (Branch, "makes good for what the codes lost"),
)
"""Kinds of steps, as they follow one another."""

_TUNES = {False: (3.5, "learns what the codes are made of"), True: (6, "learns what stands around the codes")}
"""Steps with gradients, by whether they follow codes."""


@dataclass(frozen=True)
class Recipe:
    """`name`: that of the paper. `scheme`: what its numbers look like unless a call says otherwise."""

    name: str
    scheme: str = DEFAULT_SCHEME
    steps: tuple[Step, ...] = ()

    def __post_init__(self) -> None:
        _check_training(self.training, self.before_training)
        ranks = [_rank(step) for step in self.steps]
        if ranks != sorted(ranks):
            first = next(i for i in range(1, len(ranks)) if ranks[i] < ranks[i - 1])
            before, after = self.steps[first - 1], self.steps[first]
            order = ", ".join(type(step).__name__ for step in sorted(self.steps, key=_rank))
            raise QuantizationError(
                f"{type(after).__name__} {_purpose(after)}, so it cannot follow {type(before).__name__}, which "
                f"{_purpose(before)}; the order is [{order}]"
            )
        divides = [step for step in self.steps if isinstance(step, Divide)]
        if len(divides) > 1:
            raise QuantizationError(f"{type(divides[0]).__name__} stands in the recipe twice: caches are divided once")
        for before, after in pairwise(self.solving):
            if not _refines(after):
                rest = ", ".join(type(step).__name__ for step in self.steps if step is not before)
                other = (
                    f"[{type(after).__name__}, {type(before).__name__}] would go on from its codes"
                    if _refines(before)
                    else f"[{rest}] has one of them"
                )
                raise QuantizationError(
                    f"{type(after).__name__} makes codes of its own and would drop those of {type(before).__name__}; {other}"
                )

    @property
    def transforms(self) -> list[Transform]:
        return [step for step in self.steps if isinstance(step, Transform)]

    @property
    def choosing(self) -> list[Choose]:
        return [step for step in self.steps if isinstance(step, Choose)]

    @property
    def ranges(self) -> list[Range]:
        return [step for step in self.steps if isinstance(step, Range)]

    @property
    def dividing(self) -> Divide | None:
        return next((step for step in self.steps if isinstance(step, Divide)), None)

    @property
    def solving(self) -> list[Solve]:
        return [step for step in self.steps if isinstance(step, Solve)]

    @property
    def branches(self) -> list[Branch]:
        return [step for step in self.steps if isinstance(step, Branch)]

    @property
    def tuning(self) -> list[Tune]:
        return [step for step in self.steps if isinstance(step, Tune)]

    @property
    def training(self) -> Train | None:
        return next((step for step in self.steps if isinstance(step, Train)), None)

    @property
    def before_training(self) -> tuple[Step, ...]:
        """What makes the codes that training goes on from; empty where it begins with floats."""
        return () if self.training is None else tuple(step for step in self.steps if step is not self.training)

    @property
    def requires(self) -> frozenset[str]:
        """What its steps need to know of activations; nothing of recipes that take no data."""
        return frozenset().union(*(step.requires for step in self.steps))

    @property
    def looking(self) -> list[Step]:
        """Steps that see data: activations, or the outputs of blocks."""
        return [step for step in self.steps if step.requires or isinstance(step, Tune)]

    @property
    def has_gradients(self) -> bool:
        """Whether it needs torch."""
        return bool(self.tuning) or self.training is not None

    @property
    def needs_data(self) -> bool:
        return bool(self.looking) or (self.training is not None and self.training.takes_data)

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.scheme}", *(f"  {number}. {step}" for number, step in enumerate(self.steps, 1))]
        return "\n".join(lines if self.steps else [*lines, "  round to nearest"])


def _check_training(training: Train | None, before: Sequence[Step]) -> None:
    """QuantizationError for steps that cannot stand beside one that trains."""
    name = type(training).__name__
    if training is not None and before and not training.goes_on_from_codes:
        raise QuantizationError(f"{name} trains the whole model and makes its codes: {type(before[0]).__name__} has no place beside it")
    for step in before:
        if not isinstance(step, (Transform, Solve)):
            raise QuantizationError(
                f"{name} goes on from codes of steps such as AWQ and GPTQ: {type(step).__name__} has no place before it"
            )


def _refines(step: Step) -> bool:
    return bool(getattr(step, "refines", False))


def _gives_way(step: Step) -> bool:
    return bool(getattr(step, "gives_way", False))


def _rank(step: Step) -> float:
    return _place(step)[0]


def _purpose(step: Step) -> str:
    return _place(step)[1]


def _place(step: Step) -> tuple[float, str]:
    """Where a step stands among the kinds, and what it does."""
    if isinstance(step, Tune):
        return _TUNES[step.follows_codes]
    if isinstance(step, Train):
        return 7, "trains the whole model"
    for rank, (kind, purpose) in enumerate(_ORDER):
        if isinstance(step, kind):
            return rank, purpose
    raise QuantizationError(f"a recipe has steps such as GPTQ() and names of recipes, got {step!r}")


class Recipes(Mapping[str, Recipe]):
    """Recipes by name; case and punctuation of names do not matter."""

    def __init__(self, recipes: Iterable[Recipe], others: Mapping[str, str]):
        self._recipes = {recipe.name: recipe for recipe in recipes}
        self._names = {_plain(name): name for name in self._recipes} | {_plain(other): name for other, name in others.items()}

    def __getitem__(self, name: str) -> Recipe:
        if not isinstance(name, str) or _plain(name) not in self._names:
            raise KeyError(f"{name!r} is no recipe; there are {', '.join(self._recipes)}")
        return self._recipes[self._names[_plain(name)]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._recipes)

    def __len__(self) -> int:
        return len(self._recipes)

    def __str__(self) -> str:
        return "\n".join(map(str, self._recipes.values()))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def read(given: object, recipes: Recipes) -> Recipe:
    """What `given` stands for: a recipe, its name, a step, a sequence of these; None is round to nearest.

    The scheme is that of the last recipe among them. Where a recipe among them rounds to nearest behind steps of its own and
    another part makes codes otherwise, it is those steps that are meant: AWQ before GPTQ is its scales. Raises QuantizationError
    for names that are unknown and steps that do not follow one another.
    """
    if given is None:
        return Recipe("RTN")
    if isinstance(given, Recipe):
        return given
    if isinstance(given, str):
        try:
            return recipes[given]
        except KeyError as error:
            raise QuantizationError(f"recipe {error.args[0]}") from None
    if isinstance(given, Sequence):
        parts = [read(part, recipes) for part in given]
        named = [part for part in parts if part.name]
        steps = tuple(step for part in parts for step in _meant(part, parts))
        return Recipe(" + ".join(part.name or ", ".join(type(s).__name__ for s in part.steps) for part in parts),
                      named[-1].scheme if named else DEFAULT_SCHEME, steps)  # fmt: skip
    if isinstance(given, type):
        raise QuantizationError(f"recipe has the class {given.__name__} among its steps; make one: {given.__name__}()")
    return Recipe("", DEFAULT_SCHEME, (given,))  # type: ignore[arg-type]


def _meant(part: Recipe, parts: Sequence[Recipe]) -> list[Step]:
    """The steps of a recipe among several."""
    kept = [step for step in part.steps if not _gives_way(step)]
    others = [step for other in parts if other is not part for step in other.steps]
    makes_codes = any(isinstance(step, Solve) and not (_gives_way(step) or _refines(step)) for step in others)
    return kept if kept and makes_codes else list(part.steps)


def with_options(recipe: Recipe, options: Mapping[str, object]) -> Recipe:
    """The same with options of its steps. QuantizationError for one that no step has, and for values that mean nothing."""
    known = {name for step in recipe.steps for name in _options(step)}
    unknown = [name for name in options if name not in known]
    if unknown:
        has = f"its options are: {', '.join(sorted(known))}" if known else "it has no options"
        raise QuantizationError(f"{recipe.name or 'the recipe'} has no option {unknown[0]!r}; {has}")
    try:
        steps = [_with(step, options) for step in recipe.steps]
    except ValueError as error:
        raise QuantizationError(f"{recipe.name}: {error}") from error
    return replace(recipe, steps=tuple(steps))


def _with(step: Step, options: Mapping[str, object]) -> Step:
    own = {name: options[name] for name in _options(step) if name in options}
    return replace(step, **own) if own else step  # type: ignore[type-var]


def _options(step: object) -> list[str]:
    return [field.name for field in fields(step)] if is_dataclass(step) else []


def seeded(recipe: Recipe, seed: int) -> Recipe:
    """The same with `seed` for every step that draws numbers and was not given one. QuantizationError for what is no seed."""
    check_whole("seed", seed, 0)
    steps = [replace(step, seed=seed) if getattr(step, "seed", 0) is None else step for step in recipe.steps]  # type: ignore[type-var]
    return replace(recipe, steps=tuple(steps))
