"""Protobuf wire format: declarations of messages, and a writer that does not copy tensors.

Messages are declared once, as classes whose attributes are `field(...)`; the reader (`_wire_reader.pyx`) and the
writer share that table. Large `bytes` fields stay views of the buffer that was read.

Format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np

from qruntime.onnx_io._wire_reader import (
    BYTES,
    CHUNKS,
    DOUBLE,
    DOUBLES,
    FLOAT,
    FLOATS,
    INT,
    INTS,
    LIST,
    MESSAGE,
    PACKED_CHUNKS,
    PACKED_LIST,
    SINGLE,
    SMALL,
    STRING,
    UINT,
    UINTS,
    WIRE_TYPES,
    read,
)

M = TypeVar("M", bound="Message")

_DEFAULT: dict[int, Any] = {STRING: "", BYTES: b"", MESSAGE: None, INT: 0, UINT: 0, FLOAT: 0.0, DOUBLE: 0.0}
_ARRAY_DTYPE: dict[int, np.dtype[Any]] = {
    INTS: np.dtype("<i8"),
    UINTS: np.dtype("<u8"),
    FLOATS: np.dtype("<f4"),
    DOUBLES: np.dtype("<f8"),
}
_SCALAR_KIND = {INTS: INT, UINTS: UINT, FLOATS: FLOAT, DOUBLES: DOUBLE}


class Field(NamedTuple):
    number: int
    kind: int
    repeated: bool
    message: str
    padding: int


def field(number: int, kind: int | str, *, repeated: bool = False, padding: int = 0) -> Any:
    """Declare a field of a Message; a str as `kind` names the class of a nested message.

    `padding` is the number of an enum field that may be written with its default value behind this one,
    so that large values can be aligned in the file: see `_Aligned`.
    """
    if isinstance(kind, str):
        return Field(number, MESSAGE, repeated, kind, padding)
    return Field(number, kind, repeated or kind in _ARRAY_DTYPE, "", padding)


class Message:
    """Base of all messages. Fields that are not set read as their default; `vars(m)` holds the set ones.

    Repeated fields read as a list, or () when empty; number arrays are lists of chunks, see `array`.
    """

    fields: ClassVar[dict[str, Field]] = {}
    types: ClassVar[dict[str, type[Message]]] = {}
    _table: ClassVar[dict[int, list[Any]]] = {}

    def __init_subclass__(cls) -> None:
        cls.fields = {name: value for name, value in vars(cls).items() if isinstance(value, Field)}
        cls._table = {}
        for name, spec in cls.fields.items():
            setattr(cls, name, () if spec.repeated else _DEFAULT[spec.kind])
            chunks = spec.kind in _ARRAY_DTYPE
            kind = _SCALAR_KIND.get(spec.kind, spec.kind)
            mode = CHUNKS if chunks else LIST if spec.repeated else SINGLE
            cls._table[spec.number << 3 | WIRE_TYPES[kind]] = [kind, name, mode, None]
            if spec.repeated and kind > MESSAGE:
                mode = PACKED_CHUNKS if chunks else PACKED_LIST
                cls._table[spec.number << 3 | 2] = [kind, name, mode, None]
        Message.types[cls.__name__] = cls

    def __init__(self, **values: Any):
        self.__dict__.update(values)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in vars(self).items())})"


def link() -> None:
    """Resolve the names of nested message classes; call once after declaring them."""
    for cls in Message.types.values():
        for name, spec in cls.fields.items():
            if spec.kind == MESSAGE:
                cls._table[spec.number << 3 | 2] = [
                    MESSAGE, name, LIST if spec.repeated else SINGLE, Message.types[spec.message]
                ]  # fmt: skip


def parse(cls: type[M], data: memoryview) -> M:
    """Read one message that fills `data` (format "B"); InvalidModel names message, field and offset."""
    message: M = read(cls, data)
    return message


def array(chunks: Iterable[Any], kind: int) -> np.ndarray:
    """One 1-D array of the chunks of a number-array field, in the machine's byte order."""
    dtype = _ARRAY_DTYPE[kind]
    parts = [np.asarray(chunk, dtype) for chunk in chunks]
    joined = parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, dtype), *parts])
    return joined if sys.byteorder == "little" else joined.astype(dtype.newbyteorder("="))


# --- writer -----------------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    """Base-128 encoding of a 64-bit number, two's complement when negative."""
    if value < 0:
        value += 1 << 64
    if value < 128:
        return bytes((value,))
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


Part = bytes | np.ndarray
"""A piece of a file; arrays are written as their elements in C order, little-endian."""


class _Aligned(NamedTuple):
    """A large value that is to lie at a multiple of _ALIGNMENT in the file, where it can be mapped and used as it is.

    Protobuf aligns nothing, but a number may be written with leading zero groups. The padding field, with
    its default value, stands before and behind the value: what it takes more before, it takes less behind,
    so that no enclosing length changes.
    """

    tag: bytes
    value: Part
    padding_tag: bytes

    def size(self) -> int:
        length = part_size(self.value)
        return len(self.tag) + len(varint(length)) + length + 2 * len(self.padding_tag) + _ALIGNMENT + 1

    def placed(self, offset: int) -> tuple[bytes, Part, bytes]:
        head = self.tag + varint(part_size(self.value))
        extra = -(offset + len(self.padding_tag) + 1 + len(head)) % _ALIGNMENT
        before, behind = _zero(1 + extra), _zero(_ALIGNMENT - extra)
        return self.padding_tag + before + head, self.value, self.padding_tag + behind


_ALIGNMENT = 8  # a varint has at most 10 bytes


def _zero(size: int) -> bytes:
    """The number 0 as a varint of `size` bytes."""
    return b"\x80" * (size - 1) + b"\0"


def part_size(part: Part | _Aligned) -> int:
    if isinstance(part, _Aligned):
        return part.size()
    return part.nbytes if isinstance(part, np.ndarray) else len(part)


def part_bytes(part: Part) -> bytes | memoryview:
    """The bytes of a piece; an array that lies in C order is not copied."""
    if not isinstance(part, np.ndarray):
        return part
    if part.size == 0:
        return b""
    if sys.byteorder == "big":
        part = part.byteswap()
    return np.ascontiguousarray(part).reshape(-1).view(np.uint8).data


def encode(message: Message) -> list[Part]:
    """Pieces of the encoded message, to be written one after the other; large arrays are not copied."""
    parts, _ = _encode(message)
    placed: list[Part] = []
    offset = 0
    for part in parts:
        pieces = part.placed(offset) if isinstance(part, _Aligned) else (part,)
        placed += pieces
        offset += sum(map(part_size, pieces))
    return _joined(placed)


def _encode(message: Message) -> tuple[list[Part | _Aligned], int]:
    out: list[Part | _Aligned] = []
    set_values = vars(message)
    for name, spec in type(message).fields.items():
        if name not in set_values:
            continue
        value = set_values[name]
        kind = spec.kind
        if kind in _ARRAY_DTYPE or (spec.repeated and kind in _PACKERS):
            if len(value):
                body = b"".join(map(_PACKERS[_SCALAR_KIND.get(kind, kind)], value))
                out += (varint(spec.number << 3 | 2), varint(len(body)), body)
            continue
        tag = varint(spec.number << 3 | WIRE_TYPES[kind])
        for item in value if spec.repeated else (value,):
            if kind == MESSAGE:
                parts, size = _encode(item)
                out += (tag, varint(size), *parts)
            elif kind == STRING:
                body = item.encode("utf-8")
                out += (tag, varint(len(body)), body)
            elif spec.padding and part_size(item) >= SMALL:
                out.append(_Aligned(tag, item, varint(spec.padding << 3)))
            elif kind == BYTES:
                out += (tag, varint(part_size(item)), item)
            else:
                out += (tag, _PACKERS[kind](item))
    out = _joined(out)
    return out, sum(map(part_size, out))


_PACKERS: dict[int, Callable[[Any], bytes]] = {
    INT: varint,
    UINT: varint,
    FLOAT: struct.Struct("<f").pack,
    DOUBLE: struct.Struct("<d").pack,
}


def _joined(parts: list[Any]) -> list[Any]:
    """Runs of small pieces become one, large ones stay as they are."""
    out: list[Any] = []
    run: list[bytes | memoryview] = []
    for part in parts:
        if part_size(part) < SMALL:
            run.append(part_bytes(part))
            continue
        if run:
            out.append(b"".join(run))
            run = []
        out.append(part)
    if run:
        out.append(b"".join(run))
    return out
