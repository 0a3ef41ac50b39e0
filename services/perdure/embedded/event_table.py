"""The embedded store's read side.

Invariants:
- Reading holds no lock and no snapshot between batches; sealing meanwhile changes nothing that is
  read.
- A gap in the sequences is an error, never skipped.
"""

import asyncio
import struct
import zlib
from collections.abc import AsyncIterator, Sequence
from typing import Final

from perdure.embedded import event_rows, segments
from perdure.embedded.database import Database
from perdure.embedded.segments import Segment, position
from perdure.errors import Corrupt, InvalidData, NotFound
from perdure.model.event import Event, decode, split_all
from perdure.model.sequencing import Head, first_chain, link
from perdure.model.timeline import Span, Stream
from perdure.ports import AgentSummary, Batch, Finding

BATCH_BYTES: Final = 256 * 1024
"""JSON bytes of one batch: what is decoded before the event loop gets its turn again."""
AGENTS_PAGE: Final = 256

# Of the newest segment what stands before its body: a list must not read every agent's events.
_AGENTS: Final = f"""
    SELECT a.name, a.epoch, p.name, a.forked_at, s.position, s.time_max
    FROM agents a LEFT JOIN agents p ON p.id = a.parent
    LEFT JOIN segments s ON s.position = (
        SELECT position FROM segments
        WHERE position >= a.id << {segments.SEQUENCE_BITS}
            AND position < a.id + 1 << {segments.SEQUENCE_BITS}
        ORDER BY position DESC LIMIT 1)
    WHERE a.name >= ? AND a.name > ? AND substr(a.name, 1, ?) = ?
    ORDER BY a.name LIMIT ?
"""


class SqliteEventTable:
    """`ports.EventTable` on the store's file."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._ids = event_rows.AgentIds()

    async def lineage(self, agent: str) -> list[Stream]:
        with self._database.reading() as connection:
            return event_rows.lineage(connection, agent)

    async def caught_up(self, agent: str, position: str | None) -> None:
        # What is acknowledged can be read at once, by every process.
        if position is not None and ":" in position.rpartition("@")[2]:
            raise InvalidData(
                f"position {position!r} is one of a cluster's log",
                hint=f"a folder gives positions such as {agent}@7",
            )

    async def head(self, agent: str) -> Head:
        with self._database.reading() as connection:
            key = self._ids.get(connection, agent)
            epoch, forked_at, chain = connection.execute(
                "SELECT epoch, forked_at, chain FROM agents WHERE id = ?", (key,)
            ).fetchone()
            newest = event_rows.newest(connection, key)
        if newest is None:
            return Head(agent, forked_at, epoch, chain, None, {})
        time_max = event_rows.from_microseconds(newest.time_max)
        return Head(agent, newest.last, epoch, newest.chain, time_max, {})

    async def read(self, span: Span) -> AsyncIterator[Batch]:
        sequence = span.first
        while sequence <= span.last:
            found, size = self._page(span, sequence)
            if not found:
                raise self._gap(span.agent, sequence)
            events: list[Event] = []
            for segment in found:
                if segment.first > sequence:
                    raise self._gap(span.agent, sequence)
                part = segments.events(segment, span.agent, last=span.last)
                if segment.first < sequence:
                    part = part[sequence - segment.first :]
                events = events + part if events else part
                sequence = min(segment.last, span.last) + 1
            yield Batch(events, size)
            if sequence <= span.last:
                await asyncio.sleep(0)  # a long history leaves the event loop its turns

    def _page(self, span: Span, sequence: int) -> tuple[list[Segment], int]:
        found = []
        size = 0
        with self._database.reading() as connection:
            key = self._ids.get(connection, span.agent)
            for segment in event_rows.from_sequence(connection, key, sequence, span.last):
                found.append(segment)
                size += segments.json_bytes(segment)
                if size >= BATCH_BYTES:
                    break
        return found, size

    @staticmethod
    def _gap(agent: str, sequence: int) -> Corrupt:
        return Corrupt(
            f"event {agent}@{sequence} is missing on disk",
            hint=f"`perdure verify {agent}` shows what is damaged; restore the file from a backup",
        )

    async def sequence_at(self, spans: Sequence[Span], time: int, *, inclusive: bool) -> int:
        limit = time if inclusive else time - 1
        before = 0
        for span in spans:
            start = self._first_later(span, limit)
            if start is not None:
                async for batch in self.read(Span(span.agent, start, span.last)):
                    for event in batch.events:
                        if event_rows.microseconds(event.time) > limit:
                            return before if event.sequence == span.first else event.sequence - 1
            before = span.last
        return before

    def _first_later(self, span: Span, limit: int) -> int | None:
        """Where the first segment starts that may hold an event later than `limit`.

        `time_max` never falls along a stream: found by bisection.
        """
        with self._database.reading() as connection:
            key = self._ids.get(connection, span.agent)

            def segment_from(sequence: int) -> tuple[int, int, int]:
                row = connection.execute(
                    "SELECT first, position, time_max FROM segments"
                    " WHERE position BETWEEN ? AND ? ORDER BY position LIMIT 1",
                    (position(key, sequence), position(key, segments.SEQUENCE_MAX)),
                ).fetchone()
                if row is None:
                    raise self._gap(span.agent, sequence)
                return int(row[0]), int(row[1]) & segments.SEQUENCE_MAX, int(row[2])

            low, high = span.first, span.last
            if segment_from(high)[2] <= limit:
                return None
            while low < high:
                middle = (low + high) // 2
                first, last, time_max = segment_from(middle)
                if time_max > limit:
                    high = min(middle, max(first, low))
                else:
                    low = min(last + 1, high)
            return max(low, span.first)

    async def agents(self, prefix: str) -> AsyncIterator[list[AgentSummary]]:
        after = ""
        while True:
            with self._database.reading() as connection:
                rows = connection.execute(
                    _AGENTS, (prefix, after, len(prefix), prefix, AGENTS_PAGE)
                ).fetchall()
            page = []
            for name, epoch, parent, forked_at, newest, time_max in rows:
                sequence, time = forked_at, None
                if newest is not None:
                    sequence = newest & segments.SEQUENCE_MAX
                if isinstance(time_max, int):  # In a damaged row it may be none: `verify` tells.
                    time = event_rows.from_microseconds(time_max).isoformat()
                page.append(AgentSummary(name, sequence, epoch, time, parent, forked_at))
            if not page:
                return
            yield page
            after = page[-1].agent
            await asyncio.sleep(0)

    async def verify(self, agent: str) -> AsyncIterator[tuple[int, list[Finding]]]:
        with self._database.reading() as connection:
            key = self._ids.get(connection, agent)
            chain, parent, forked_at = connection.execute(
                "SELECT chain, parent, forked_at FROM agents WHERE id = ?", (key,)
            ).fetchone()
        if parent is None:
            if chain != first_chain(agent):
                yield 0, [Finding(agent, "the start of its hash chain was altered")]
        else:
            yield 0, self._check_origin(agent, chain)
        last = (await self.head(agent)).sequence
        sequence, time_max = forked_at + 1, 0
        while sequence <= last:
            found, _ = self._page(Span(agent, sequence, last), sequence)
            if not found:
                yield 0, [Finding(f"{agent}@{sequence} to {last}", "events are missing")]
                return
            for segment in found:
                findings = []
                if segment.first != sequence:
                    missing = f"{agent}@{sequence}"
                    if segment.first > sequence + 1:
                        missing += f" to {segment.first - 1}"
                    findings.append(Finding(missing, "missing on disk"))
                findings += _check(segment, agent, chain, time_max)
                chain, time_max = segment.chain, segment.time_max
                sequence = segment.last + 1
                yield segment.last - segment.first + 1, findings
            await asyncio.sleep(0)

    def _check_origin(self, agent: str, chain: bytes) -> list[Finding]:
        """Whether a fork goes on from its parent's history as that is today."""
        with self._database.reading() as connection:
            streams = event_rows.lineage(connection, agent)
            at = streams[0].forked_at
            owner = next(s for s in streams[1:] if at > s.forked_at or s.parent is None)
            try:
                same = event_rows.chain_at(connection, owner.agent, at) == chain
            except (Corrupt, NotFound) as error:
                return [Finding(f"{owner.agent}@{at}", error.message)]
        if same:
            return []
        return [Finding(agent, f"does not go on from {owner.agent}@{at}: one of them was altered")]

    def version(self) -> int:
        return self._database.version()


_RESTORE: Final = "restore the store's folder from a backup, or go on from a fork before it"


def _check(segment: Segment, agent: str, chain: bytes, time_max: int) -> list[Finding]:
    """What is wrong with a segment that follows on `chain` and on the times up to `time_max`."""
    which = _range(agent, segment.first, segment.last)
    try:
        bodies = split_all(segments.plain(segment, agent))
        found = [decode(data) for data in bodies]
        sequences = range(segment.first, segment.last + 1)
        sound = [event.sequence for event in found] == list(sequences)
        reason = "its row does not hold the events it should"
    except Corrupt as error:
        sound, bodies, found, reason = False, [], [], error.message
    if sound:
        for data in bodies:
            chain = link(chain, data)
        crcs = segment.crcs == b"".join(struct.pack("<I", zlib.crc32(data)) for data in bodies)
        if chain != segment.chain:
            if crcs:
                return [Finding(which, "the hash chain is broken: history was altered", _RESTORE)]
        elif not crcs:
            return [Finding(which, "the checksums of its events are damaged", _RESTORE)]
        elif segment.time_max != max(
            time_max, *(event_rows.microseconds(event.time) for event in found)
        ):
            return [Finding(which, "the time by which it is found is damaged", _RESTORE)]
        else:
            return []
    _, lost = segments.salvage(segment)
    if not lost:
        return [Finding(which, f"the row is damaged, its events can be read: {reason}", _RESTORE)]
    return [Finding(f"{agent}@{sequence}", "damaged on disk", _RESTORE) for sequence in lost]


def _range(agent: str, first: int, last: int) -> str:
    return f"{agent}@{first}" if first == last else f"{agent}@{first} to {last}"
