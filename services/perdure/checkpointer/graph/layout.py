"""The bytes around an encoded value: header, index, buffers. See the package for the format.

Invariants:
- What `join` gives, `split` takes apart into the same pieces; anything else is refused there.
- A buffer is handed out once, so decoding copies no more bytes than there are.
"""

import enum
import struct
from typing import Annotated, Final, TypeAlias

import msgspec

from perdure.errors import Corrupt, UnsupportedFormat

MAGIC: Final = b"\x89PDG\r\n\x1a\n"
"""Not valid UTF-8, and damaged by any transfer that changes line ends."""
VERSION: Final = 1
ALIGNMENT: Final = 64
"""Bytes: a cache line, and what every numpy dtype and vector instruction is content with."""
SMALL_BYTES: Final = 256
"""Up to here a buffer is kept in the index: aligning it would cost more than it is."""

PLAIN: Final = 0
GRAPH: Final = 1

_HEADER: Final = struct.Struct("<8sHB5xQQ")


class Tag(enum.IntEnum):
    """What a node is: its first element."""

    FILL = 0
    LIST = 1
    TUPLE = 2
    DICT = 3
    SET = 4
    FROZENSET = 5
    OBJECT = 6
    NAMEDTUPLE = 7
    ENUM = 8
    INT = 10
    TEXT = 11
    TEXT_RAW = 12
    COMPLEX = 13
    BYTES = 14
    BYTEARRAY = 15
    DATE = 16
    TIME = 17
    DATETIME = 18
    TIMEDELTA = 19
    TIMEZONE = 20
    ZONE = 21
    DECIMAL = 22
    UUID = 23
    PATH = 24
    RANGE = 25
    DTYPE = 30
    DTYPE_STRUCT = 31
    DTYPE_SUB = 32
    ARRAY = 33
    SCALAR = 34
    SCALAR_TEXT = 35
    SCALAR_BYTES = 36


Reference: TypeAlias = tuple[Annotated[int, msgspec.Meta(ge=0)]]
Value: TypeAlias = bool | int | float | str | Reference | None


class Shape(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """A class as it was when its instances were saved, and which attributes they hold."""

    key: str
    version: int
    fields: tuple[str, ...]
    names: tuple[str, ...]


class Index(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """The index of a graph, as it is read."""

    root: Value
    shapes: list[Shape]
    nodes: list[list[Value]]
    small: list[bytes]


class BufferWriter:
    """Collects the buffers of a graph, in the order of its nodes."""

    def __init__(self) -> None:
        self.small: list[bytes] = []
        self.large: list[bytes | memoryview] = []

    def add(self, data: bytes | memoryview) -> int:
        """Append one buffer (a memoryview must be contiguous, of bytes); its length in bytes."""
        size = len(data)
        if size <= SMALL_BYTES:
            self.small.append(bytes(data))
        else:
            self.large.append(data)
        return size


class BufferReader:
    """Hands out the buffers of a graph, each once, in the order of its nodes."""

    def __init__(self, data: memoryview, offset: int, small: list[bytes]) -> None:
        self._data = data
        self._end = offset  # of the last buffer taken, or of the index
        self._small = small
        self._taken = 0

    def take(self, size: int) -> memoryview:
        """The next buffer, which must be of `size` bytes. Raises Corrupt."""
        if size <= SMALL_BYTES:
            small = self._small[self._taken : self._taken + 1]
            if not small or len(small[0]) != size:
                raise Corrupt(f"a buffer of {size} bytes is missing")
            self._taken += 1
            return memoryview(small[0])
        start = aligned(self._end)
        if start + size > len(self._data):
            raise Corrupt(f"a buffer of {size} bytes goes beyond the end")
        self._check_padding(start)
        self._end = start + size
        return self._data[start : self._end]

    def finish(self) -> None:
        """Raises Corrupt where something is left that no node took."""
        if self._end != len(self._data) or self._taken != len(self._small):
            raise Corrupt("there are bytes that belong to nothing")

    def _check_padding(self, start: int) -> None:
        if any(self._data[self._end : start]):
            raise Corrupt("there are bytes between two buffers")


def aligned(offset: int) -> int:
    """The next offset at which a buffer may start.

    >>> aligned(0), aligned(1), aligned(64)
    (0, 64, 64)
    """
    return -(-offset // ALIGNMENT) * ALIGNMENT


def join(kind: int, index: bytes, buffers: list[bytes | memoryview]) -> bytes:
    """One encoded value from its pieces."""
    parts: list[bytes | memoryview] = [b"", index]
    end = _HEADER.size + len(index)
    for buffer in buffers:
        start = aligned(end)
        parts.append(bytes(start - end))
        parts.append(buffer)
        end = start + len(buffer)
    parts[0] = _HEADER.pack(MAGIC, VERSION, kind, len(index), end)
    return b"".join(parts)


def split(data: bytes) -> tuple[int, memoryview, int]:
    """Kind, index, and the offset at which the index ends.

    Raises: Corrupt, UnsupportedFormat (a version that this code doesn't know).
    """
    if data[: len(MAGIC)] != MAGIC:
        raise Corrupt("this is no checkpoint: it doesn't start like one")
    if len(data) < _HEADER.size:
        raise Corrupt(f"the checkpoint ends within its header, after {len(data)} bytes")
    _, version, kind, index_size, total = _HEADER.unpack_from(data)
    if version != VERSION:
        raise UnsupportedFormat(
            f"the checkpoint has format version {version}, this code reads {VERSION}",
            hint="read it with the release of perdure that wrote it, or a newer one",
        )
    end = _HEADER.size + index_size
    if total != len(data) or end > total or any(data[11:16]) or kind not in (PLAIN, GRAPH):
        raise Corrupt(f"the checkpoint's header doesn't fit its {len(data)} bytes")
    return kind, memoryview(data)[_HEADER.size : end], end
