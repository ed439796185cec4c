"""The cache of keys or values that GroupQueryAttention reads and grows: as they are, as codes, whole or a window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from qruntime.ops.checks import limit_shape, require_rank, require_shape


class Grown(Protocol):
    """`past` tokens that a sequence had in its cache, and `new` ones."""

    @property
    def past(self) -> int: ...
    @property
    def new(self) -> int: ...
    @property
    def total(self) -> int: ...


class Window(NamedTuple):
    """A cache that keeps the last `size` tokens at least, and forgets many at a time."""

    size: int

    def resident(self, total: int, capacity: int) -> int:
        """How many of `total` tokens lie in a buffer of `capacity` rows: that depends on nothing else."""
        if total <= capacity:
            return total
        slack = capacity - self.size + 1
        return total - slack * -(-(total - capacity) // slack)


class KeyValueCache:
    """`past` [B, N, C, H] with the new tokens [B, N, S, H] of every sequence appended, in the form that it has.

    Raises ValueError when shapes, types, scales or lengths do not fit.
    """

    def __init__(
        self,
        name: str,
        past: np.ndarray | None,
        new: np.ndarray,
        chunks: Sequence[Grown],
        total_length: int,
        quant_type: str,
        bit_width: int,
        scale: np.ndarray | None,
        window: Window | None,
    ):
        batch, heads, _, size = new.shape
        self.codec = _Codec(name, quant_type, bit_width, scale, heads, size)
        rows = 0
        if past is not None:
            require_rank(f"past_{name}", past, 4)
            rows = past.shape[2]
            require_shape(f"past_{name}", past, (batch, heads, rows, self.codec.width))
            if past.dtype != (self.codec.dtype or new.dtype):
                raise ValueError(f"past_{name} must be {self.codec.dtype or new.dtype}, got {past.dtype}")
        capacity = rows if window else max(total_length, rows)
        if window and rows < window.size:
            raise ValueError(f"past_{name} must hold a window of {window.size} tokens, it has room for {rows}")
        shape = limit_shape((batch, heads, capacity, self.codec.width), f"the present {name}")
        self.present = np.zeros(shape, self.codec.dtype or new.dtype)
        if past is not None and not window:
            self.present[:, :, :rows] = past
        self._rows: list[np.ndarray] = []
        self._first: list[int] = []
        for b, chunk in enumerate(chunks):
            kept = window.resident(chunk.past, capacity) if window else chunk.past
            if kept > rows:
                raise ValueError(f"past_{name} must hold {kept} tokens of row {b}, it has room for {rows}")
            old = np.zeros((heads, 0, self.codec.width), self.present.dtype) if past is None else past[b, :, :kept]
            everything = np.concatenate([old, self.codec.encoded(new[b, :, : chunk.new])], axis=1)
            resident = window.resident(chunk.total, capacity) if window else chunk.total
            self.present[b, :, :resident] = everything[:, everything.shape[1] - resident :]
            self._first.append(chunk.past - kept)
            self._rows.append(self.codec.decoded(everything))

    def first(self, b: int) -> int:
        """The position of the first token that rows(b) holds."""
        return self._first[b]

    def rows(self, b: int) -> np.ndarray:
        """Real values [N, tokens, H] of sequence b, cached and new."""
        return self._rows[b]


class _Codec:
    """Real values ↔ what the cache stores: themselves, int8 codes, or uint8 with two 4-bit codes each."""

    def __init__(self, name: str, quant_type: str, bit_width: int, scale: np.ndarray | None, heads: int, size: int):
        if quant_type not in ("NONE", "PER_TENSOR", "PER_CHANNEL"):
            raise ValueError(f"{name[0]}_quant_type must be NONE, PER_TENSOR or PER_CHANNEL, got {quant_type!r}")
        self.bits = 0 if quant_type == "NONE" else bit_width or 8
        self.width = size // 2 if self.bits == 4 else size
        self.dtype = {0: None, 4: np.dtype(np.uint8), 8: np.dtype(np.int8)}.get(self.bits)
        if self.bits not in (0, 4, 8) or (self.bits == 4 and size % 2):
            raise ValueError(f"a quantized cache needs kv_cache_bit_width 8, or 4 with an even head size, got {bit_width}")
        if not self.bits:
            return
        if scale is None:
            raise ValueError(f"a quantized cache needs {name[0]}_scale")
        if scale.size != 1 and (quant_type == "PER_TENSOR" or scale.size != heads * size):
            needed = "1 value" if quant_type == "PER_TENSOR" else f"1 or {heads} × {size} values"
            raise ValueError(f"{name[0]}_scale must have {needed}, got shape {scale.shape}")
        self.scale = scale.reshape(()) if scale.size == 1 else scale.reshape(heads, 1, size)

    def encoded(self, x: np.ndarray) -> np.ndarray:
        if not self.bits:
            return x
        half = 1 << (self.bits - 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            quotient = np.nan_to_num(x.astype(np.float32) / self.scale, posinf=half - 1, neginf=-half)
        codes = np.clip(np.rint(quotient), -half, half - 1).astype(np.int8)
        if self.bits == 8:
            return codes
        nibbles = (codes + 8).astype(np.uint8)
        return nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)

    def decoded(self, stored: np.ndarray) -> np.ndarray:
        if not self.bits:
            return stored
        if self.bits == 8:
            return stored.astype(np.float32) * self.scale
        codes = np.stack([stored & 15, stored >> 4], axis=-1).reshape(*stored.shape[:-1], 2 * stored.shape[-1])
        return (codes.astype(np.float32) - 8) * self.scale
