"""Constants that are stored narrow: codes, and what makes real numbers of them.

A `Value` whose `stored` is such a tensor has no `data`. What it stands for is `decoded()`, whatever file it came from and
whichever kernel multiplies with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeGuard

import numpy as np

from qruntime.ir.dtypes import ONNX_CODES, numpy_dtype, onnx_code
from qruntime.ir.formats import INT8, MARKER, Format
from qruntime.ir.held_codes import CodeArray, HeldCodes
from qruntime.ir.narrow import NarrowArray
from qruntime.ir.outliers import Outliers, stack_outliers

FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """Codes of one format with their scales.

        real = scale · (code − zero_point)     or, with an `offset` of real numbers,     scale · code + offset

    `scale`, `zero_point` and `offset` have the rank of the codes. Along each axis they have one entry for all, or one for
    each index; along `block_axis` one for every `block` indices, the last of which may be fewer. Scales and zero points may
    themselves be stored as codes, and a few numbers may stand apart from all codes. Of formats that are read in pairs, indices
    2i and 2i + 1 of `block_axis` are one.
    """

    format: Format
    held: HeldCodes
    scale: np.ndarray | StoredTensor | None = None
    """Floats; None of formats that stand for themselves, and of bare codes."""
    zero_point: np.ndarray | StoredTensor | None = None
    """Integers in the range of the codes, or floats that need not be whole; None where all are 0."""
    offset: np.ndarray | None = None
    block: int = 0
    block_axis: int = 0
    dtype: np.dtype = FLOAT32
    """Of the real numbers; they are computed in float32 and rounded to it."""
    outliers: Outliers | None = None
    """Real numbers in place of what some of the codes say."""
    is_turned: bool = False
    """Of rank 2: the codes are held the other way round."""

    @property
    def codes(self) -> CodeArray:
        """An array of the element type; of FP8 its bytes; packed below a byte. Made anew when a kernel alone has them: ask once."""
        codes = self.held.array()
        return (codes.transposed() if isinstance(codes, NarrowArray) else codes.T) if self.is_turned else codes

    @property
    def is_bare(self) -> bool:
        """Whether the codes stand for themselves: a tensor of one of ONNX's narrow element types, as a file holds it."""
        return self.scale is None and not self.format.is_float

    @property
    def element_type(self) -> int:
        """ONNX code of what it decodes to."""
        return ONNX_CODES[self.format.name] if self.is_bare else onnx_code(self.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.held.shape[::-1] if self.is_turned else self.held.shape

    @property
    def ndim(self) -> int:
        return len(self.held.shape)

    @property
    def size(self) -> int:
        return math.prod(self.held.shape)

    @property
    def nbytes(self) -> int:
        """Of the codes and all that belongs to them, as files hold it: zero points that are all 0 are left out."""
        parts = (self.scale, self.zero_point if self.is_shifted else None, self.offset, self.outliers)
        return self.held.nbytes + sum(part.nbytes for part in parts if part is not None)

    def arrays(self) -> list[np.ndarray]:
        """Codes, where they are in memory, and all that belongs to them."""
        found = [] if self.held.memory is None else [self.held.memory]
        for part in self._parts():
            found += part.arrays() if isinstance(part, StoredTensor) else [] if part is None else [part]
        return found if self.outliers is None else [*found, self.outliers.gaps, self.outliers.values]

    @property
    def has_one_scale(self) -> bool:
        return self.scale is None or self.scale.size == 1

    @property
    def is_plain(self) -> bool:
        """Whether codes with arrays of scales and zero points are all there is."""
        return self.outliers is None and not isinstance(self.scale, StoredTensor) and not isinstance(self.zero_point, StoredTensor)

    @property
    def is_shifted(self) -> bool:
        """Whether there are zero points other than 0."""
        return isinstance(self.zero_point, StoredTensor) or (self.zero_point is not None and bool(self.zero_point.any()))

    def unpacked(self) -> np.ndarray:
        """The codes as an array, of formats below a byte as int8 or uint8."""
        codes = self.held.array()
        codes = codes.unpacked() if isinstance(codes, NarrowArray) else codes
        return codes.T if self.is_turned else codes

    def decoded(self) -> np.ndarray:
        """The real numbers: the meaning of everything here. Bare codes need ml_dtypes, UnsupportedModel without it."""
        codes = self.unpacked()
        if self.is_bare:
            return np.asarray(codes.view(np.uint8) & np.uint8((1 << self.format.bits) - 1)).view(numpy_dtype(self.element_type))
        if self.scale is None:
            return codes.astype(self.dtype)
        real = self._values(codes) * self.expanded(self.scale).astype(np.float32)
        if self.offset is not None:
            real += self.expanded(self.offset)
        if self.outliers is not None:
            self.outliers.put_into(real)
        with np.errstate(over="ignore"):
            return real.astype(self.dtype, copy=False)

    def values(self) -> np.ndarray:
        """What the codes stand for in units of the scales, float32."""
        return self._values(self.unpacked())

    @cached_property
    def in_int8(self) -> StoredTensor:
        """Of pairs, the same numbers in codes of a byte that do without them; one for all plans, which share what is packed of it."""
        assert self.format.is_paired
        values = _paired_values(self.unpacked(), self.format, self.block_axis)
        return replace(self, format=INT8, held=HeldCodes(values), is_turned=False)

    def _values(self, codes: np.ndarray) -> np.ndarray:
        if self.format.is_paired:
            return _paired_values(codes, self.format, self.block_axis).astype(np.float32)
        if self.format.table is not None:
            return self.format.values[codes]
        if self.zero_point is None:
            return codes.astype(np.float32)
        zero_point = self.expanded(self.zero_point)
        if zero_point.dtype.kind == "f":
            return codes.astype(np.float32) - zero_point.astype(np.float32, copy=False)
        wide = np.int64 if self.format.bits > 16 else np.int32
        return (codes.astype(wide) - zero_point.astype(wide)).astype(np.float32)

    def expanded(self, part: np.ndarray | StoredTensor) -> np.ndarray:
        """Scales, zero points or offsets with an entry for each index along the blocks."""
        part = numbers(part)
        if not self.block or part.shape[self.block_axis] == 1:
            return part
        return np.repeat(part, self.block, axis=self.block_axis)[(slice(None),) * self.block_axis + (slice(self.shape[self.block_axis]),)]

    def transposed(self) -> StoredTensor:
        """Of rank 2, the other way round; nothing is copied."""
        assert self.ndim == 2
        scale, zero_point, offset = self._mapped(lambda array: array.T, StoredTensor.transposed)
        assert not isinstance(offset, StoredTensor)
        return replace(
            self,
            scale=scale,
            zero_point=zero_point,
            offset=offset,
            block_axis=1 - self.block_axis,
            outliers=None if self.outliers is None else self.outliers.transposed(),
            is_turned=not self.is_turned,
        )

    def reshaped(self, *shape: int) -> StoredTensor:
        """With other dims after the first; the scales must not differ along those."""
        codes = self.codes
        codes = codes.reshaped(*shape) if isinstance(codes, NarrowArray) else codes.reshape(shape)
        ones = (1,) * (len(shape) - 1)
        parts = self._mapped(lambda array: array.reshape(array.shape[0], *ones), lambda part: part.reshaped(part.shape[0], *ones))
        outliers = None if self.outliers is None else self.outliers.row_major(self.shape)
        return replace(self.with_codes(codes, parts), outliers=outliers)

    def __getitem__(self, index: int) -> StoredTensor:
        """The tensor at `index` of the first axis, with one scale where it has the same one throughout."""
        assert not self.block or self.block_axis > 0
        scale, zero_point, offset = self._mapped(
            lambda array: array[min(index, array.shape[0] - 1)], lambda part: part[min(index, part.shape[0] - 1)]
        )
        if _is_one(scale) and _is_one(zero_point):
            scale, zero_point = (None if part is None else part[(slice(1),) * part.ndim] for part in (scale, zero_point))
        codes = held(self.unpacked()[index], self.format)
        outliers = None if self.outliers is None else self.outliers.slices(self.shape, np.array([index]))
        made = self.with_codes(codes, (scale, zero_point, offset))
        return replace(made, block_axis=self.block_axis - 1, outliers=outliers)

    def rows(self, indices: np.ndarray) -> StoredTensor:
        """Of rank 2, the rows at `indices` (of rank 1, not negative)."""
        runs_down = bool(self.block) and self.block_axis == 0
        owners = indices // self.block if runs_down else indices
        parts = self._mapped(
            lambda array: array if array.shape[0] == 1 else array[owners], lambda part: part if part.shape[0] == 1 else part.rows(owners)
        )
        outliers = None if self.outliers is None else self.outliers.slices(self.shape, indices)
        return replace(self.with_codes(self._rows_of_codes(indices), parts), block=0 if runs_down else self.block, outliers=outliers)

    def _rows_of_codes(self, indices: np.ndarray) -> CodeArray:
        codes, bits = self.codes, self.format.bits
        if isinstance(codes, np.ndarray):
            return codes[indices]
        width = codes.shape[1]
        if codes.is_transposed or (not codes.in_halves and width * bits % 8):
            return held(codes.unpacked()[indices], self.format)
        packed = codes.data.reshape(codes.shape[0], -1)[indices]
        return codes._replace(data=packed.reshape(-1), shape=(len(indices), width))

    def scaled(self, factor: float) -> StoredTensor:
        """`factor` times the same numbers."""
        assert self.scale is not None
        by = np.float32(factor)
        return replace(
            self,
            scale=self.scale.scaled(factor) if isinstance(self.scale, StoredTensor) else self.scale * by,
            offset=None if self.offset is None else self.offset * by,
            outliers=None if self.outliers is None else self.outliers.scaled(factor),
        )

    def _parts(self) -> tuple[Part, Part, np.ndarray | None]:
        return self.scale, self.zero_point, self.offset

    def _mapped(self, of_array: Callable[[np.ndarray], np.ndarray], of_codes: Callable[[StoredTensor], StoredTensor]) -> list[Part]:
        """What becomes of scale, zero point and offset."""
        parts = self._parts()
        return [None if part is None else of_codes(part) if isinstance(part, StoredTensor) else of_array(part) for part in parts]

    def with_codes(self, codes: CodeArray, parts: Sequence[Part]) -> StoredTensor:
        """Other codes of the format with `parts`: scale, zero point and offset."""
        scale, zero_point, offset = parts
        assert not isinstance(offset, StoredTensor)
        return replace(self, held=HeldCodes(codes), is_turned=False, scale=scale, zero_point=zero_point, offset=offset)


Part = np.ndarray | StoredTensor | None
"""What belongs to codes: an array, or codes in their turn."""


def numbers(part: np.ndarray | StoredTensor) -> np.ndarray:
    """Scales or zero points as an array."""
    return part.decoded() if isinstance(part, StoredTensor) else part


def _is_one(part: Part) -> TypeGuard[np.ndarray | None]:
    """Whether all entries of an array are the same."""
    return part is None or (isinstance(part, np.ndarray) and bool((part == part.flat[0]).all()))


def _paired_values(codes: np.ndarray, form: Format, axis: int) -> np.ndarray:
    """What codes (uint8) stand for whose pairs run along `axis`, int8; a last one without partner is an integer."""
    turned = np.moveaxis(codes, axis, -1)
    beside = np.zeros(turned.shape, np.uint8)
    even = turned.shape[-1] // 2 * 2
    beside[..., 0:even:2] = turned[..., 1:even:2] == MARKER
    beside[..., 1:even:2] = turned[..., 0:even:2] == MARKER
    values = np.array(form.pairs, np.int8)[turned + (beside << 4)]
    return np.moveaxis(values, -1, axis)


def held(codes: np.ndarray, form: Format) -> CodeArray:
    """Codes as a tensor of that format holds them."""
    return codes if form.bits >= 8 else NarrowArray.of(codes, form.bits)


def stack(tensors: Sequence[StoredTensor]) -> StoredTensor | None:
    """Tensors of one shape and format along a new first axis; None when they do not go together."""
    first = tensors[0]
    if any((t.format, t.shape, t.dtype, t.block) != (first.format, first.shape, first.dtype, first.block) for t in tensors):
        return None
    parts: list[Part] = []
    for column in zip(*(t._parts() for t in tensors), strict=True):
        inner = [part for part in column if isinstance(part, StoredTensor)]
        joined = stack(inner) if inner else _stacked([part for part in column if not isinstance(part, StoredTensor)])
        if inner and (joined is None or len(inner) < len(tensors)):
            return None
        parts.append(joined)
    codes = [t.unpacked() for t in tensors]
    together = held(codes[0][None] if len(codes) == 1 else np.stack(codes), first.format)
    outliers = stack_outliers([t.outliers for t in tensors], first.shape)
    return replace(first.with_codes(together, parts), block_axis=first.block_axis + 1, outliers=outliers)


def _stacked(arrays: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Zeros for those that are missing, None where all are."""
    found = [array for array in arrays if array is not None]
    if not found:
        return None
    shape = np.broadcast_shapes(*(array.shape for array in found))
    missing = np.zeros((), found[0].dtype)
    return np.stack([np.broadcast_to(missing if array is None else array, shape) for array in arrays])
