"""Types of the extension; the contracts are in `_wire_reader.pyx`."""

from typing import Any

STRING: int
BYTES: int
MESSAGE: int
INT: int
UINT: int
FLOAT: int
DOUBLE: int
INTS: int
UINTS: int
FLOATS: int
DOUBLES: int

SINGLE: int
LIST: int
CHUNKS: int
PACKED_LIST: int
PACKED_CHUNKS: int

WIRE_TYPES: tuple[int, ...]
MAX_DEPTH: int
SMALL: int

def read(cls: type, view: memoryview) -> Any: ...
