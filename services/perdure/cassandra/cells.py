"""Values as Cassandra holds them: numbers, times, stamps of writes, maps."""

import datetime as dt
import struct
from collections.abc import Mapping
from typing import Final

import msgspec

from perdure.errors import Corrupt
from perdure.model.timeline import Revert

EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
OFFSET_BITS: Final = 40
"""Bits of a stamp for the offset in the log: a trillion records to a partition."""
_MICROSECOND: Final = dt.timedelta(microseconds=1)

int32 = struct.Struct(">i").pack
"""The 4 bytes of an int."""

int64 = struct.Struct(">q").pack
"""The 8 bytes of a bigint."""


def stamp(generation: int, position: int) -> int:
    """The time that a write carries: from the place of its append in the log, never from a clock.

    `generation` is the topic's, 1 in every cluster: it is there so that the offsets of another
    topic, which start again, could come after all of this one.

    >>> stamp(1, 0) < stamp(1, 1) < stamp(2, 0)
    True
    """
    return (generation << OFFSET_BITS) + position + 1


def generation_of(write_time: int) -> int:
    """The topic's generation in a stamp.

    >>> generation_of(stamp(3, 9))
    3
    """
    return (write_time - 1) >> OFFSET_BITS


def microseconds(time: dt.datetime) -> int:
    """Microseconds since 1970 of a time with a zone.

    >>> microseconds(dt.datetime(1970, 1, 1, 0, 0, 1, tzinfo=dt.UTC))
    1000000
    """
    return (time - EPOCH) // _MICROSECOND


def from_microseconds(value: int) -> dt.datetime:
    """The time of so many microseconds since 1970, in UTC.

    Raises:
        Corrupt: a time so far away was never written.
    """
    try:
        return EPOCH + dt.timedelta(microseconds=value)
    except OverflowError as error:
        raise Corrupt(
            f"{value} microseconds since 1970 are no time: a row in Cassandra is damaged",
            hint="`perdure replay` builds the tables anew",
        ) from error


def counters(values: Mapping[str, int]) -> bytes:
    """A map<text, bigint> in the form of the native protocol (section 6.19 of its version 5).

    >>> counters({"a": 1}).hex(" ", 4)
    '00 00000100 00000161 00000008 00000000 00000001'
    """
    parts = [int32(len(values))]
    for name, number in values.items():
        encoded = name.encode()
        parts += (int32(len(encoded)), encoded, int32(8), int64(number))
    return b"".join(parts)


class Lineage(msgspec.Struct, frozen=True):
    """Where an agent was forked from and what was undone, as a cell holds it."""

    parent: str | None = None
    forked_at: int = 0
    reverts: tuple[Revert, ...] = ()


_lineage = msgspec.json.Decoder(Lineage)


def packed_lineage(lineage: Lineage) -> bytes:
    """The bytes of a lineage.

    >>> unpacked_lineage(packed_lineage(Lineage("a/b", 3, (Revert(9, 4),)))).reverts
    (Revert(sequence=9, to=4),)
    """
    return msgspec.json.encode(lineage)


def unpacked_lineage(cell: bytes | None) -> Lineage:
    """A lineage from its bytes; of no bytes, that of an agent without parent and undo.

    Raises:
        Corrupt: the bytes are no lineage.
    """
    if cell is None:
        return Lineage()
    try:
        return _lineage.decode(cell)
    except msgspec.MsgspecError as error:
        raise Corrupt(
            f"the lineage of an agent in Cassandra is damaged: {error}",
            hint="`perdure replay` builds the tables anew",
        ) from error
