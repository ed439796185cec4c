"""Arrays whose elements take less than a byte, as files hold them: little end first, without gaps."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class NarrowArray(NamedTuple):
    """Integers of `bits` < 8 bits and of `shape`, element after element in `data` (uint8, flat).

    `signed` ones are two's complement. With `is_transposed` (rank 2) the elements follow one another down the columns. With
    `in_halves` (4 bits) a byte holds element j of a row in its low and element j + D/2 in its high half, with `high_first`
    (4 bits) the earlier of two elements in its high half.
    """

    data: np.ndarray
    bits: int
    signed: bool
    shape: tuple[int, ...]
    is_transposed: bool = False
    in_halves: bool = False
    high_first: bool = False

    @classmethod
    def of(cls, codes: np.ndarray, bits: int) -> NarrowArray:
        """`codes` int8 or uint8 packed, down the columns where they lie so."""
        is_transposed = codes.ndim == 2 and codes.flags.f_contiguous and not codes.flags.c_contiguous
        data = pack(codes.T if is_transposed else codes, bits)
        return cls(data, bits, codes.dtype == np.int8, codes.shape, is_transposed)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def transposed(self) -> NarrowArray:
        return self._replace(shape=self.shape[::-1], is_transposed=not self.is_transposed)

    def reshaped(self, *shape: int) -> NarrowArray:
        """With other dims around the same elements in the same order; of none that is transposed."""
        assert not self.is_transposed and not self.in_halves
        return self._replace(shape=shape)

    def packed(self) -> np.ndarray:
        """The bytes of the elements row after row: those held, where they lie so."""
        if self.is_transposed or self.in_halves or self.high_first:
            return pack(self.unpacked(), self.bits)
        return self.data

    def unpacked(self) -> np.ndarray:
        """The elements as int8 or uint8."""
        if self.in_halves:
            *rows, columns = self.shape[::-1] if self.is_transposed else self.shape
            pairs = self.data.reshape(*rows, columns // 2)
            codes = np.concatenate([pairs & 15, pairs >> 4], axis=-1)
        elif self.high_first:
            codes = np.stack([self.data >> 4, self.data & 15], axis=-1).reshape(-1)[: self.size]
        else:
            codes = unpack(self.data, self.bits, self.size)
        if self.signed:
            codes = (codes << (8 - self.bits)).view(np.int8) >> (8 - self.bits)
        return codes.reshape(self.shape[::-1]).T if self.is_transposed else codes.reshape(self.shape)

    def holding(self, codes: np.ndarray) -> NarrowArray:
        """Other elements of the same shape, a byte each, that lie as these do."""
        rows = np.ascontiguousarray(codes.T if self.is_transposed else codes)
        if self.in_halves:
            low, high = np.split(rows.view(np.uint8) & 15, 2, axis=-1)
            return self._replace(data=(low | high << 4).reshape(-1))
        data = pack(rows, self.bits)
        return self._replace(data=data << 4 | data >> 4 if self.high_first else data)


def packed_size(count: int, bits: int) -> int:
    """Bytes that `count` elements of `bits` bits take."""
    return (count * bits + 7) // 8


def unpack(data: np.ndarray, bits: int, count: int) -> np.ndarray:
    """`count` elements of `data` (uint8, flat) as uint8."""
    if bits in (1, 2, 4):
        per_byte = 8 // bits
        out = np.empty((data.size, per_byte), np.uint8)
        for i in range(per_byte):
            out[:, i] = data >> (bits * i) & ((1 << bits) - 1)
        return out.reshape(-1)[:count]
    # Groups of eight elements are whole bytes.
    padded = np.zeros((-(-count // 8), bits), np.uint8)
    padded.reshape(-1)[: data.size] = data
    words = np.zeros((padded.shape[0], 8), np.uint8)
    words[:, :bits] = padded
    word = words.view("<u8").reshape(-1)
    out = np.empty((word.size, 8), np.uint8)
    for i in range(8):
        out[:, i] = word >> np.uint64(bits * i) & np.uint64((1 << bits) - 1)
    return out.reshape(-1)[:count]


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """The bytes (uint8, flat) of elements of one byte each, of which the low `bits` count."""
    flat = np.ascontiguousarray(codes).reshape(-1).view(np.uint8)
    mask = np.uint8((1 << bits) - 1)
    if bits in (1, 2, 4):
        per_byte = 8 // bits
        group = np.zeros((-(-flat.size // per_byte), per_byte), np.uint8)
        np.bitwise_and(flat, mask, out=group.reshape(-1)[: flat.size])
        packed = group[:, 0].copy()
        for i in range(1, per_byte):
            packed |= group[:, i] << (bits * i)
        return packed
    group = np.zeros((-(-flat.size // 8), 8), np.uint8)
    np.bitwise_and(flat, mask, out=group.reshape(-1)[: flat.size])
    word = np.zeros(group.shape[0], np.uint64)
    for i in range(8):
        word |= group[:, i].astype(np.uint64) << np.uint64(bits * i)
    octets = word.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :bits]
    return np.ascontiguousarray(octets).reshape(-1)[: packed_size(flat.size, bits)]
