"""Types of the extension; the contracts are in `_kernels.pyx`."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, final

import numpy as np
from numpy.typing import ArrayLike

UNARY: dict[str, int]
BINARY: dict[str, int]
REDUCE: dict[str, int]
ACTIVATION: dict[str, int]
RANGE: dict[str, int]
AUTO_PAD: dict[str, int]
INTERPOLATION: dict[str, int]
COORDINATES: dict[str, int]
NEAREST_MODE: dict[str, int]
GRID_PADDING: dict[str, int]
PAD_MODE: dict[str, int]
SCATTER_REDUCTION: dict[str, int]
DIRECTION: dict[str, int]
TREE_AGGREGATE: dict[str, int]
POST_TRANSFORM: dict[str, int]
TREE_OUTPUT: dict[str, int]
VECTOR_OUTPUT: dict[str, int]
VECTOR_KERNEL: dict[str, int]
DECISION: dict[str, int]
NORM: dict[str, int]
ROI_MODE: dict[str, int]

def isa() -> str: ...
def available_isas() -> list[str]: ...
def set_isa(name: str) -> None: ...
def trim_memory() -> None: ...
def default_threads() -> int: ...
def shape_text(value: object) -> str: ...
def matmul(a: np.ndarray, b: np.ndarray, transpose_b: bool = False, threads: int = 0) -> np.ndarray | None: ...
def weight_codes(x: np.ndarray, by_column: bool, forms: np.ndarray, q: np.ndarray, signal: np.ndarray, noise: np.ndarray) -> None: ...
def row_codes(
    x: np.ndarray,
    factor: np.ndarray,
    low: int,
    high: int,
    is_symmetric: bool,
    codes: np.ndarray,
    scale: np.ndarray,
    zero_point: np.ndarray,
) -> None: ...
def table_codes(
    x: np.ndarray, low: int, high: int, epsilon: float, q: np.ndarray, scale: np.ndarray, offset: np.ndarray
) -> tuple[float, float]: ...

GRAM_CODE: int
COLUMN_PANEL: int

class CodeGrid:
    def __init__(
        self,
        scale: np.ndarray,
        divisor: np.ndarray,
        zero_point: np.ndarray,
        fractional: bool,
        group: np.ndarray,
        low: float,
        high: float,
        entries: np.ndarray | None = None,
        middles: np.ndarray | None = None,
        entry_codes: np.ndarray | None = None,
    ) -> None: ...

def round_to_grid(x: np.ndarray, grid: CodeGrid, codes: np.ndarray, values: np.ndarray) -> None: ...
def observe_rows(
    batches: list[np.ndarray], low: np.ndarray, high: np.ndarray, peaks: np.ndarray, factors: np.ndarray, hashes: np.ndarray
) -> None: ...
def gram_of_codes(batches: list[np.ndarray], inverse_step: np.ndarray, total: np.ndarray, apart: np.ndarray) -> None: ...
def nearest_centers(points: np.ndarray, centers: np.ndarray, labels: np.ndarray, squares: np.ndarray) -> None: ...
def settle_centers(points: np.ndarray, centers: np.ndarray, labels: np.ndarray, squares: np.ndarray, rounds: int) -> None: ...
def sum_magnitudes(batches: list[np.ndarray], inverse_step: np.ndarray, total: np.ndarray) -> None: ...
def round_with_feedback(
    weight: np.ndarray,
    order: np.ndarray,
    coupling: np.ndarray,
    grid: CodeGrid,
    codes: np.ndarray,
    block: int,
    limits: np.ndarray | None = None,
    reals: np.ndarray | None = None,
    apart: np.ndarray | None = None,
) -> None: ...
def round_by_descent(
    weight: np.ndarray,
    order: np.ndarray,
    sigma: np.ndarray,
    diagonal: np.ndarray,
    grid: CodeGrid,
    start: np.ndarray,
    is_feasible: bool,
    is_relaxed: np.ndarray,
    codes: np.ndarray,
) -> None: ...
def pair_values(x: np.ndarray, scale: np.ndarray, values: np.ndarray) -> None: ...
def pair_errors(x: np.ndarray, weights: np.ndarray, scales: np.ndarray, errors: np.ndarray) -> None: ...
def dictionaries(keys: list[Any], rows: np.ndarray) -> list[dict[Any, float]]: ...
def call_node(
    kernel: str,
    inputs: Iterable[ArrayLike | None],
    ints: Sequence[int] = (),
    floats: Sequence[float] = (),
    packed: Sequence[Packed | None] = (),
    num_outputs: int = 1,
    num_threads: int = 1,
) -> list[Any] | None: ...

class Packed:
    @property
    def nbytes(self) -> int: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    def source(self) -> tuple[Any, tuple[Any, ...]]: ...

class PackedWeights(Packed):
    @property
    def kind(self) -> str: ...

class PackedQ8(PackedWeights):
    def __init__(
        self,
        weight: np.ndarray,
        scale: ArrayLike,
        zero_point: ArrayLike | None = None,
        bias: ArrayLike | None = None,
        origin: np.ndarray | tuple[Any, ...] | None = None,
    ) -> None: ...
    def unpack_into(self, weight: np.ndarray) -> None: ...
    def unpacked(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]: ...

class PackedF32(PackedWeights):
    def __init__(self, weight: np.ndarray, bias: ArrayLike | None = None) -> None: ...
    def unpacked(self) -> tuple[np.ndarray, np.ndarray | None]: ...

class PackedConv(PackedWeights):
    def __init__(self, weight: np.ndarray, bias: ArrayLike | None = None, kind: str = "blocks", group: int = 1) -> None: ...

class PackedNBits(PackedWeights):
    def __init__(
        self,
        codes: np.ndarray,
        scale: ArrayLike,
        zero_point: ArrayLike | None = None,
        bias: ArrayLike | None = None,
        *,
        bits: int = 0,
        table: ArrayLike | None = None,
        group: int | None = None,
        k: int | None = None,
        offset: int = 0,
        high_half_first: bool = False,
        activations: str = "float",
        origin: np.ndarray | tuple[Any, ...] | None = None,
        outliers: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
        clusters: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
    ) -> None: ...
    @property
    def activations(self) -> str: ...
    def unpacked(self) -> np.ndarray: ...

class PackedArray(Packed):
    def __init__(self, array: ArrayLike, made_of: tuple[np.ndarray | None, ...] = ()) -> None: ...

def widens(kernel: str) -> bool: ...

class Step(NamedTuple):
    label: str
    first_output: int
    num_outputs: int = ...
    kernel: str | None = ...
    ints: Sequence[int] = ...
    floats: Sequence[float] = ...
    packed: Sequence[Packed | None] = ...
    inputs: Sequence[int] = ...
    dying: int = ...
    arguments: Sequence[int] = ...
    definition: Callable[..., Any] | None = ...
    released: Sequence[int] = ...

@final
class Executable:
    native_constants: list[tuple[int, np.ndarray]]
    python_constants: list[tuple[int, Any]]
    num_threads: int
    @property
    def by_items(self) -> int: ...
    @property
    def declined(self) -> list[bool]: ...
    def __init__(
        self,
        num_slots: int,
        constants: list[tuple[int, Any]],
        input_slots: list[int],
        output_slots: list[int],
        steps: list[Step],
        memoised: set[int],
        boundary: list[int],
        num_threads: int,
        unwidened: set[int] = ...,
        widened: dict[tuple[int, int], np.ndarray] = ...,
        caches: dict[int, int] = ...,
        itemwise: set[int] = ...,
    ) -> None: ...
    def name_inputs(
        self,
        input_names: tuple[str, ...],
        codes: list[int],
        shapes: list[tuple[int, ...] | None],
        output_names: tuple[str, ...],
        convert: Callable[[int, Any], Any],
    ) -> None: ...
    def run(self, values: Sequence[Any], shared: bool = False) -> list[Any]: ...
    def run_values(self, values: list[Any]) -> list[Any]: ...
    def run_named(self, feed: dict[str, Any]) -> dict[str, Any] | None: ...
    def last_run(self) -> tuple[int, int, list[tuple[int, ...]]] | None: ...
    def time_steps(self, values: list[Any], repeat: int) -> list[list[tuple[float, int]]]: ...
    def __call__(self, *values: Any) -> tuple[Any, ...]: ...
