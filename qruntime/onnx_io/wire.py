"""Protobuf wire format: a bounds-checked reader and a writer that does not copy tensors.

Messages are declared once, as classes whose attributes are `field(...)`; the reader and the writer
share that table. Nothing is allocated from a length before the length was compared with the bytes that
are there. `bytes` fields of large messages stay views of the buffer that was given.

Format: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np

from qruntime.errors import InvalidModel

MAX_DEPTH = 100
"""Deepest nesting of messages, the limit of Google's own parsers too."""

SMALL = 1 << 16
"""Messages below this size are copied to `bytes`, which are much faster to index than a memoryview."""

Buffer = bytes | memoryview
M = TypeVar("M", bound="Message")

# Kinds of fields. FLOATS, DOUBLES, INTS, UINTS are repeated numbers that become arrays, not lists.
STRING, BYTES, MESSAGE, INT, UINT, FLOAT, DOUBLE, INTS, UINTS, FLOATS, DOUBLES = range(11)
_WIRE_TYPE = dict(zip(range(11), (2, 2, 2, 0, 0, 5, 1, 0, 0, 5, 1), strict=True))
_DEFAULT: dict[int, Any] = {STRING: "", BYTES: b"", MESSAGE: None, INT: 0, UINT: 0, FLOAT: 0.0, DOUBLE: 0.0}
_ARRAY_DTYPE: dict[int, np.dtype[Any]] = {
    INTS: np.dtype("<i8"),
    UINTS: np.dtype("<u8"),
    FLOATS: np.dtype("<f4"),
    DOUBLES: np.dtype("<f8"),
}
_SCALAR_KIND = {INTS: INT, UINTS: UINT, FLOATS: FLOAT, DOUBLES: DOUBLE}
_SINGLE, _LIST, _CHUNKS, _PACKED_LIST, _PACKED_CHUNKS = range(5)

_unpack_float = struct.Struct("<f").unpack_from
_unpack_double = struct.Struct("<d").unpack_from


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
            mode = _CHUNKS if chunks else _LIST if spec.repeated else _SINGLE
            cls._table[spec.number << 3 | _WIRE_TYPE[kind]] = [kind, name, mode, None]
            if spec.repeated and kind > MESSAGE:
                mode = _PACKED_CHUNKS if chunks else _PACKED_LIST
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
                    MESSAGE, name, _LIST if spec.repeated else _SINGLE, Message.types[spec.message]
                ]  # fmt: skip


def parse(cls: type[M], data: memoryview) -> M:
    """Read one message that fills `data` (format "B"); InvalidModel names message, field and offset."""
    return _read(cls, data, 0, len(data), 0, 0)


def _fail(cls: type[Message], what: str, offset: int) -> InvalidModel:
    return InvalidModel(f"{cls.__name__}: {what} at byte {offset}; the file is damaged, truncated or not an ONNX model")


def _read(cls: type[M], buf: Buffer, pos: int, end: int, base: int, depth: int) -> M:
    message = cls()
    values = message.__dict__
    table = cls._table
    is_view = type(buf) is memoryview
    name = "?"
    start = pos
    if depth > MAX_DEPTH:
        raise _fail(cls, f"messages nested deeper than {MAX_DEPTH}", base + pos)
    try:
        while pos < end:
            start = pos
            tag = buf[pos]
            pos += 1
            if tag > 127:
                tag, pos = _varint(buf, start, end)
            entry = table.get(tag)
            if entry is None:
                name = f"#{tag >> 3}"
                pos = _skip(cls, buf, tag, pos, end)
                continue
            kind, name, mode, nested = entry
            if tag & 7 == 2:
                stop = buf[pos]
                pos += 1
                if stop > 127:
                    stop, pos = _varint(buf, pos - 1, end)
                stop += pos
                if stop > end:
                    raise ValueError(f"length {stop - pos} runs past the end ({max(end - pos, 0)} bytes left)")
                if kind == STRING:
                    value: Any = str(buf[pos:stop], "utf-8") if is_view else buf[pos:stop].decode()  # type: ignore[union-attr]
                elif kind == MESSAGE:
                    if is_view and stop - pos < SMALL:
                        value = _read(nested, bytes(buf[pos:stop]), 0, stop - pos, base + pos, depth + 1)
                    else:
                        value = _read(nested, buf, pos, stop, base, depth + 1)
                elif kind == BYTES:
                    value = buf[pos:stop]
                else:
                    numbers = _packed(buf[pos:stop], kind)
                    if mode == _PACKED_CHUNKS:
                        values.setdefault(name, []).append(numbers)
                    else:
                        values.setdefault(name, []).extend(numbers.tolist() if type(numbers) is np.ndarray else numbers)
                    pos = stop
                    continue
                pos = stop
            elif kind <= UINT:
                value = buf[pos]
                pos += 1
                if value > 127:
                    value, pos = _varint(buf, pos - 1, end)
                    if kind == INT and value >> 63:
                        value -= 1 << 64
            elif kind == FLOAT:
                (value,) = _unpack_float(buf, pos)
                pos += 4
            else:
                (value,) = _unpack_double(buf, pos)
                pos += 8
            if mode == _SINGLE:
                values[name] = value
            elif mode == _LIST:
                if name in values:
                    values[name].append(value)
                else:
                    values[name] = [value]
            else:
                chunks = values.setdefault(name, [])
                if not chunks or type(chunks[-1]) is not list:
                    chunks.append([])
                chunks[-1].append(value)
        if pos > end:
            raise ValueError("a number runs past the end of the message")
    except UnicodeDecodeError as error:
        raise _fail(cls, f"field {name!r} is not UTF-8 ({error.reason})", base + start) from None
    except (IndexError, struct.error):
        raise _fail(cls, "the data ends in the middle of a field", base + start) from None
    except ValueError as error:
        raise _fail(cls, f"field {name!r}: {error}", base + start) from None
    return message


def _varint(buf: Buffer, pos: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while pos < end:
        byte = buf[pos]
        pos += 1
        value |= (byte & 127) << shift
        if byte < 128:
            if value >> 64:
                raise ValueError("a varint exceeds 64 bits")
            return value, pos
        shift += 7
        if shift == 70:
            raise ValueError("a varint is longer than 10 bytes")
    raise ValueError("the data ends inside a varint")


def _skip(cls: type[Message], buf: Buffer, tag: int, pos: int, end: int) -> int:
    number, wire_type = tag >> 3, tag & 7
    for name, spec in cls.fields.items():
        if spec.number == number:
            raise ValueError(f"field {name!r} ({number}) has wire type {wire_type}, not {_WIRE_TYPE[spec.kind]}")
    if not 0 < number < 1 << 29:
        raise ValueError(f"field number {number} does not exist")
    if wire_type == 0:
        _, pos = _varint(buf, pos, end)
    elif wire_type == 1:
        pos += 8
    elif wire_type == 2:
        length, pos = _varint(buf, pos, end)
        pos += length
    elif wire_type == 5:
        pos += 4
    else:
        raise ValueError(f"unknown field {number} has wire type {wire_type}, which no ONNX file uses")
    if pos > end:
        raise ValueError(f"unknown field {number} runs past the end")
    return pos


def _packed(data: Buffer, kind: int) -> Any:
    if kind in (FLOAT, DOUBLE):
        dtype = _ARRAY_DTYPE[FLOATS if kind == FLOAT else DOUBLES]
        if len(data) % dtype.itemsize:
            raise ValueError(f"{len(data)} packed bytes are no multiple of {dtype.itemsize}")
        return np.frombuffer(data, dtype)
    if len(data) < 32:
        few, pos, end = [], 0, len(data)
        while pos < end:
            value = data[pos]
            pos += 1
            if value > 127:
                value, pos = _varint(data, pos - 1, end)
                if kind == INT and value >> 63:
                    value -= 1 << 64
            few.append(value)
        return few
    raw = np.frombuffer(data, np.uint8)
    last = raw < 128
    if last.all():
        return raw.astype(np.int64 if kind == INT else np.uint64)
    if not last[-1]:
        raise ValueError("the data ends inside a varint")
    ends = np.flatnonzero(last)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > 10:
        raise ValueError("a varint is longer than 10 bytes")
    if np.any(raw[ends[lengths == 10]] > 1):
        raise ValueError("a varint exceeds 64 bits")
    numbers = np.zeros(len(ends), np.uint64)
    for i in range(int(lengths.max())):
        present = lengths > i
        numbers[present] |= (raw[starts[present] + i] & 127).astype(np.uint64) << np.uint64(7 * i)
    return numbers.view(np.int64) if kind == INT else numbers


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
        tag = varint(spec.number << 3 | _WIRE_TYPE[kind])
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
