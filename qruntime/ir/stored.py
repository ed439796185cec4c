"""Constants that are stored narrow: codes, and what makes real numbers of them.

A `Value` whose `stored` is such a tensor has no `data`. What it stands for is `decoded()`, whatever file it came from and
whichever kernel multiplies with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from qruntime.ir.dtypes import ONNX_CODES, numpy_dtype, onnx_code
from qruntime.ir.formats import Format
from qruntime.ir.narrow import NarrowArray

FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """Codes of one format with their scales.

        real = scale · (code − zero_point)     or, with an `offset` of real numbers,     scale · code + offset

    `scale`, `zero_point` and `offset` have the rank of the codes. Along each axis they have one entry for all, or one for
    each index; along `block_axis` one for every `block` indices, the last of which may be fewer.
    """

    format: Format
    codes: np.ndarray | NarrowArray
    """An array of the element type; of FP8 its bytes; packed below a byte."""
    scale: np.ndarray | None = None
    """Floats; None of formats that stand for themselves, and of bare codes."""
    zero_point: np.ndarray | None = None
    """Integers in the range of the codes, of weights that other tools rounded maybe floats; None where all are 0."""
    offset: np.ndarray | None = None
    block: int = 0
    block_axis: int = 0
    dtype: np.dtype = FLOAT32
    """Of the real numbers; they are computed in float32 and rounded to it."""

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
        return self.codes.shape

    @property
    def ndim(self) -> int:
        return len(self.codes.shape)

    @property
    def size(self) -> int:
        return self.codes.size

    @property
    def nbytes(self) -> int:
        """Of the codes and all that belongs to them, as files hold it: zero points that are all 0 are left out."""
        zero_point = None if self.zero_point is None or not self.zero_point.any() else self.zero_point
        parts = (self.scale, zero_point, self.offset)
        return self.codes.nbytes + sum(part.nbytes for part in parts if part is not None)

    def arrays(self) -> list[np.ndarray]:
        """Codes as they are held, and all that belongs to them."""
        codes = self.codes.data if isinstance(self.codes, NarrowArray) else self.codes
        return [codes, *(part for part in self._parts() if part is not None)]

    @property
    def has_one_scale(self) -> bool:
        return self.scale is None or self.scale.size == 1

    def unpacked(self) -> np.ndarray:
        """The codes as an array, of formats below a byte as int8 or uint8."""
        return self.codes.unpacked() if isinstance(self.codes, NarrowArray) else self.codes

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
        with np.errstate(over="ignore"):
            return real.astype(self.dtype, copy=False)

    def values(self) -> np.ndarray:
        """What the codes stand for in units of the scales, float32."""
        return self._values(self.unpacked())

    def _values(self, codes: np.ndarray) -> np.ndarray:
        if self.format.table is not None:
            return self.format.values[codes]
        if self.zero_point is None:
            return codes.astype(np.float32)
        if self.zero_point.dtype.kind == "f":
            return codes.astype(np.float32) - self.expanded(self.zero_point)
        wide = np.int64 if self.format.bits > 16 else np.int32
        return (codes.astype(wide) - self.expanded(self.zero_point).astype(wide)).astype(np.float32)

    def expanded(self, part: np.ndarray) -> np.ndarray:
        """Scales, zero points or offsets with an entry for each index along the blocks."""
        if not self.block or part.shape[self.block_axis] == 1:
            return part
        return np.repeat(part, self.block, axis=self.block_axis)[(slice(None),) * self.block_axis + (slice(self.shape[self.block_axis]),)]

    def transposed(self) -> StoredTensor:
        """Of rank 2, the other way round; nothing is copied."""
        codes = self.codes.transposed() if isinstance(self.codes, NarrowArray) else self.codes.T
        turned = self._with_parts(codes, [None if part is None else part.T for part in self._parts()])
        return replace(turned, block_axis=1 - self.block_axis)

    def reshaped(self, *shape: int) -> StoredTensor:
        """With other dims after the first; the scales must not differ along those."""
        codes = self.codes.reshaped(*shape) if isinstance(self.codes, NarrowArray) else self.codes.reshape(shape)
        ones = (1,) * (len(shape) - 1)
        return self._with_parts(codes, [None if part is None else part.reshape(part.shape[0], *ones) for part in self._parts()])

    def __getitem__(self, index: int) -> StoredTensor:
        """The tensor at `index` of the first axis, with one scale where it has the same one throughout."""
        scale, zero_point, offset = (None if part is None else part[min(index, part.shape[0] - 1)] for part in self._parts())
        if scale is not None and (scale == scale.flat[0]).all() and (zero_point is None or (zero_point == zero_point.flat[0]).all()):
            corner = (slice(1),) * scale.ndim
            scale, zero_point = scale[corner], None if zero_point is None else zero_point[corner]
        codes = held(self.unpacked()[index], self.format)
        return replace(self._with_parts(codes, (scale, zero_point, offset)), block_axis=self.block_axis - 1)

    def rows(self, indices: np.ndarray) -> StoredTensor:
        """Of rank 2, the rows at `indices` (of rank 1, not negative)."""
        parts = [None if part is None else part if part.shape[0] == 1 else part[indices] for part in self._parts()]
        assert not self.block or self.block_axis == 1
        codes, bits = self.codes, self.format.bits
        if isinstance(codes, np.ndarray):
            return self._with_parts(codes[indices], parts)
        width = codes.shape[1]
        if codes.is_transposed or (not codes.in_halves and width * bits % 8):
            return self._with_parts(held(codes.unpacked()[indices], self.format), parts)
        packed = codes.data.reshape(codes.shape[0], -1)[indices]
        return self._with_parts(codes._replace(data=packed.reshape(-1), shape=(len(indices), width)), parts)

    def scaled(self, factor: float) -> StoredTensor:
        """`factor` times the same numbers."""
        assert self.scale is not None
        offset = None if self.offset is None else self.offset * np.float32(factor)
        return replace(self, scale=self.scale * np.float32(factor), offset=offset)

    def _parts(self) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
        return self.scale, self.zero_point, self.offset

    def _with_parts(self, codes: np.ndarray | NarrowArray, parts: Sequence[np.ndarray | None]) -> StoredTensor:
        return replace(self, codes=codes, scale=parts[0], zero_point=parts[1], offset=parts[2])


def held(codes: np.ndarray, form: Format) -> np.ndarray | NarrowArray:
    """Codes as a tensor of that format holds them."""
    return codes if form.bits >= 8 else NarrowArray.of(codes, form.bits)


def stack(tensors: Sequence[StoredTensor]) -> StoredTensor | None:
    """Tensors of one shape and format along a new first axis; None when they do not go together."""
    first = tensors[0]
    if any(
        (t.format, t.shape, t.dtype, t.block) != (first.format, first.shape, first.dtype, first.block) or t.offset is not None
        for t in tensors
    ):
        return None
    codes = [t.unpacked() for t in tensors]
    joined = held(codes[0][None] if len(codes) == 1 else np.stack(codes), first.format)
    if first.scale is None:
        return replace(first, codes=joined, block_axis=first.block_axis + 1)
    shape = np.broadcast_shapes(*(t.scale.shape for t in tensors if t.scale is not None))
    scale = np.stack([np.broadcast_to(t.scale, shape) for t in tensors if t.scale is not None])
    zeros = [np.zeros((), np.int8) if t.zero_point is None else t.zero_point for t in tensors]
    zero_point = None if all(t.zero_point is None for t in tensors) else np.stack([np.broadcast_to(zero, shape) for zero in zeros])
    return replace(first, codes=joined, scale=scale, zero_point=zero_point, block_axis=first.block_axis + 1)
