"""State checkpoints in Cassandra.

Invariants:
- A saved state is never needed: it can be folded again, so a damaged one is passed over.
- Of one agent and projection there are at most `SLOTS` saved states. The newest two stay, and of
  the older ones the oldest in each doubling of the distance; a slot whose state is not among them,
  or is of other code, is the next to be written over. Nothing is deleted: no tombstones.
- A slot that is being written has the size 0; where two write it at once, its checksum is wrong.
"""

import asyncio
import functools
import zlib
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import zstandard

from perdure.cassandra.session import Session
from perdure.cassandra.tables import Generations, Tables
from perdure.model.timeline import Span
from perdure.ports import Finding, SavedState

LEVEL: Final = 1
"""zstd level: a state checkpoint is written often and soon replaced."""

STATE_BYTES_MAX: Final = 1 << 30

PIECE_BYTES: Final = 512 * 1024
"""Bytes of one row: far below what Cassandra takes at once."""

PIECES_AT_ONCE: Final = 8

SLOTS: Final = 64
"""More than there are doublings of a sequence, and the newest two."""


class _Slot(NamedTuple):
    """What a slot holds, but for the pieces; in the order of the statement's columns."""

    projection: str
    number: int
    key: str
    sequence: int
    size: int
    crc: int


class CassandraStateTable:
    """`ports.StateTable` of one store."""

    def __init__(self, session: Session, store: str, generations: Generations) -> None:
        self._session = session
        self._store = store
        self._generations = generations

    async def nearest(self, projection: str, key: str, spans: Sequence[Span]) -> SavedState | None:
        for span in reversed(spans):
            tables = self._generations.of(self._store, span.agent)
            slots = await self._slots(tables, span.agent, projection)
            fitting = [s for s in slots if s.key == key and span.first <= s.sequence <= span.last]
            for slot in sorted(fitting, key=lambda slot: slot.sequence, reverse=True):
                data = await self._data(tables, span.agent, slot)
                if data is not None:
                    return SavedState(span.agent, slot.sequence, projection, key, data)
        return None

    async def save(self, saved: SavedState) -> None:
        body = await asyncio.to_thread(_packed, saved.data)
        tables = self._generations.of(self._store, saved.agent)
        slots = await self._slots(tables, saved.agent, saved.projection)
        number = slot_for(saved.key, saved.sequence, slots)
        place = (self._store, saved.agent, saved.projection, number)
        if any(slot.number == number for slot in slots):
            await self._session.execute(
                tables.insert_state, (*place, saved.key, saved.sequence, 0, 0)
            )
        await self._session.execute_many(
            (
                (tables.insert_piece, (*place, piece, body[start : start + PIECE_BYTES]))
                for piece, start in enumerate(range(0, len(body), PIECE_BYTES))
            ),
            at_once=PIECES_AT_ONCE,
        )
        await self._session.execute(
            tables.insert_state,
            (*place, saved.key, saved.sequence, len(body), zlib.crc32(body)),
        )

    async def check(self, agent: str) -> list[Finding]:
        tables = self._generations.of(self._store, agent)
        rows = await self._session.execute(tables.all_states, (self._store, agent))
        return [
            Finding(
                f"{agent}@{slot.sequence}",
                f"the saved state of projection {slot.projection} is damaged",
                "nothing is lost: it is folded from the events when it is needed",
            )
            for slot in map(_Slot._make, rows)
            if slot.size != 0 and await self._data(tables, agent, slot) is None
        ]

    async def _slots(self, tables: Tables, agent: str, projection: str) -> list[_Slot]:
        rows = await self._session.execute(tables.states, (self._store, agent, projection))
        return [_Slot._make(row) for row in rows]

    async def _data(self, tables: Tables, agent: str, slot: _Slot) -> bytes | None:
        """What a slot's state encoded to; None where it is damaged."""
        if not 0 < slot.size <= STATE_BYTES_MAX:
            return None
        place = (self._store, agent, slot.projection, slot.number)
        answers = await self._session.execute_many(
            (
                (tables.piece, (*place, piece))
                for piece in range((slot.size + PIECE_BYTES - 1) // PIECE_BYTES)
            ),
            at_once=PIECES_AT_ONCE,
        )
        body = b"".join(row[0] for rows in answers for row in rows)
        if len(body) != slot.size or zlib.crc32(body) != slot.crc:
            return None
        return await asyncio.to_thread(_plain, body)


def slot_for(key: str, sequence: int, slots: Iterable[_Slot]) -> int:
    """Which slot a state goes into: its own again, one that is not needed any more, or a free one.

    >>> slot_for("k", 30, [_Slot("p", 0, "k", 10, 1, 0), _Slot("p", 1, "k", 20, 1, 0)])
    2
    >>> slot_for("k", 30, [_Slot("p", 0, "old", 10, 1, 0), _Slot("p", 1, "k", 20, 1, 0)])
    0
    """
    known = list(slots)
    same = {slot.sequence: slot.number for slot in known if slot.key == key}
    if sequence in same:
        return same[sequence]
    for slot in known:
        if slot.key != key or slot.size == 0:
            return slot.number
    for number in map(same.get, surplus(sorted([*same, sequence]))):
        if number is not None:
            return number
    used = {slot.number for slot in known}
    for number in range(SLOTS):
        if number not in used:
            return number
    return same[min(same)]  # This state alone is one too many.


def surplus(sequences: Sequence[int]) -> list[int]:
    """Which of the saved sequences (rising) are not needed, so that a logarithmic number stays.

    >>> surplus([10, 20, 30, 40, 50, 60])
    [20, 40]
    """
    drop = []
    newest = sequences[-1] if sequences else 0
    seen = set()
    for sequence in sequences[:-2]:
        doubling = (newest - sequence).bit_length()
        if doubling in seen:
            drop.append(sequence)
        seen.add(doubling)
    return drop


# Contexts keep state, and are used in several threads: a new one each time costs little beside a
# whole state.
@functools.cache
def _parameters() -> zstandard.ZstdCompressionParameters:
    return zstandard.ZstdCompressionParameters.from_level(LEVEL, write_content_size=True)


def _packed(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(compression_params=_parameters()).compress(data)


def _plain(body: bytes) -> bytes | None:
    try:
        if not 0 <= zstandard.frame_content_size(body) <= STATE_BYTES_MAX:
            return None
        return zstandard.ZstdDecompressor().decompress(body)
    except zstandard.ZstdError:
        return None
