"""The recorder's write side on Cassandra: rows, indexes and head of an agent in one mutation.

Invariants:
- Every write carries a stamp of its append's place in the log. A late write of a recorder that
  lost its partition therefore never wins, and the same write again changes nothing.
- What lies outside an agent's bucket (lists of agents, counters of writers, which bucket is the
  newest) is written before the bucket, and does no harm where the bucket is never written.
- Nothing is deleted, and nothing expires.
"""

import contextlib
import struct
from collections.abc import AsyncGenerator, Collection, Sequence
from typing import Final

from perdure.cassandra.cells import (
    Lineage,
    counters,
    from_microseconds,
    generation_of,
    int32,
    int64,
    microseconds,
    packed_lineage,
    stamp,
)
from perdure.cassandra.event_rows import IN_MAX, EventRows, decoded, page_rows
from perdure.cassandra.packing import Rows, packed, row_of
from perdure.cassandra.session import Batch, Session
from perdure.cassandra.session import Row as Cells
from perdure.cassandra.tables import Generations, Tables
from perdure.model.event import Event
from perdure.model.sequencing import Head
from perdure.recorder.buckets import ID_BUCKETS, ROWS_EACH
from perdure.recorder.recordings import Row, Stream, Written, fresh

ROW_BYTES: Final = 200
"""Bytes of an event's rows beside its stored bytes, about."""

PREFIXES_MAX: Final = 4096
"""Namespaces that are remembered as listed."""

WRITERS_AT_ONCE: Final = 1000
"""Counters of writers in one batch."""

STORES_MAX: Final = 1024
"""Stores whose readers are kept."""


class CassandraRecordings:
    """`recorder.recordings.Recordings` on the tables of a cluster.

    `generation` is that of the topic (`Catalog.checked_topics`): it goes into every stamp.
    """

    def __init__(self, session: Session, generations: Generations, generation: int) -> None:
        self._session = session
        self._generations = generations
        self._generation = generation
        self._base = stamp(generation, 0)
        self._rows: dict[str, EventRows] = {}
        self._listed: set[tuple[str, str, str]] = set()

    async def load(self, store: str, agent: str) -> Stream:
        rows = self._of(store)
        newest = await rows.find_newest(agent, rows.with_writers)
        if newest is None:
            return fresh(agent)
        of_today = generation_of(newest.written) == self._generation
        return Stream(
            head=Head(
                agent,
                newest.last,
                newest.epoch,
                newest.chain,
                None if newest.time_max is None else from_microseconds(newest.time_max),
                newest.writers or {},
            ),
            position=newest.position if of_today else -1,
            bucket=newest.number,
            first=newest.first,
            chain_before=newest.chain_before,
            events=newest.events,
            bytes=newest.bytes,
            parent=newest.lineage.parent,
            forked_at=newest.lineage.forked_at,
            reverts=newest.lineage.reverts,
            created=True,
        )

    async def write(
        self, store: str, agent: str, before: Stream, after: Stream, rows: Sequence[Row]
    ) -> None:
        tables = self._generations.of(store, agent)
        at = int64(self._base + after.position)
        if not before.created:
            await self._list(tables, store, agent, after.position)
        opens = not before.created or after.bucket != before.bucket
        if after.bucket != before.bucket:
            await self._close(tables, store, before, after)
        key = (store.encode(), agent.encode(), int32(after.bucket))
        batch = Batch(tables.keyspace, key)
        size = self._add_rows(batch.rows, tables, packed(*key), rows)
        head = after.head
        writers = {row.recorded.event.writer: row.recorded.event.writer_sequence for row in rows}
        lineage = Lineage(after.parent, after.forked_at, after.reverts)
        told = opens or lineage != Lineage(before.parent, before.forked_at, before.reverts)
        batch.add(
            tables.update_head,
            at,
            int64(head.sequence),
            int32(head.epoch),
            int64(after.position),
            head.chain,
            None if head.time_max is None else int64(microseconds(head.time_max)),
            int32(after.events),
            int64(after.bytes),
            counters(writers) if writers else None,
            packed_lineage(lineage) if told and lineage != _PLAIN else None,
            int64(after.first) if opens else None,
            after.chain_before if opens else None,
            *key,
        )
        batch.weigh(size)
        await self._session.execute(batch)

    def _add_rows(self, batch: Rows, tables: Tables, key: bytes, rows: Sequence[Row]) -> int:
        """Add the rows of events and of their indexes; about how many bytes they take.

        `key` is the partition's, packed. The values of a row are in the order of its statement.
        """
        into_events = row_of(tables.insert_event.id, 7) + key
        into_types = row_of(tables.insert_type.id, 7) + key
        into_ids = row_of(tables.insert_id.id, 6) + key
        pieces, base = batch.pieces, self._base
        types: dict[str, bytes] = {}
        size = 0
        for (event, data, _), position in rows:
            kind = types.get(event.type)
            if kind is None:
                kind = types[event.type] = packed(event.type.encode())
            sequence, at, event_id = event.sequence, base + position, event.id.encode()
            # A number is after its length, 8.
            pieces += (
                *(into_events, _one(8, sequence), kind, int32(len(data)), data, _one(8, at)),
                *(into_types, kind, _three(8, microseconds(event.time), 8, sequence, 8, at)),
                *(into_ids, int32(len(event_id)), event_id, _two(8, sequence, 8, at)),
            )
            size += len(data)
        batch.count += ROWS_EACH * len(rows)
        return size + len(rows) * ROW_BYTES

    async def _list(self, tables: Tables, store: str, agent: str, position: int) -> None:
        """Have a new agent in the list of agents."""
        prefix = agent[: agent.index("/") + 1]
        at = self._base + position
        listed = (tables.keyspace, store, prefix)
        requests = [(tables.insert_agent, (store, prefix, agent, at))]
        if listed not in self._listed:
            requests.append((tables.insert_namespace, (store, prefix, at)))  # type: ignore[arg-type]
        await self._session.execute_many(requests)
        if len(self._listed) >= PREFIXES_MAX:
            self._listed.clear()
        self._listed.add(listed)

    async def _close(self, tables: Tables, store: str, before: Stream, after: Stream) -> None:
        """Before a bucket is opened: keep the counters of its predecessor's writers, and a hint."""
        agent = before.head.agent
        key = (store.encode(), agent.encode())
        at = int64(self._base + before.position)
        writers = sorted(before.head.writers.items())
        for start in range(0, len(writers), WRITERS_AT_ONCE):
            batch = Batch(tables.keyspace, key)
            for writer, last in writers[start : start + WRITERS_AT_ONCE]:
                batch.add(tables.insert_writer, *key, writer.encode(), int64(last), at)
            await self._session.execute(batch)
        await self._session.execute(
            tables.insert_stream, (store, agent, after.bucket, self._base + after.position)
        )

    async def by_id(
        self, store: str, agent: str, stream: Stream, ids: Collection[str]
    ) -> dict[str, Event]:
        found: dict[str, Event] = {}
        wanted = set(ids)
        name, newest, shared = agent, stream.bucket, stream.head.sequence
        parent, forked_at = stream.parent, stream.forked_at
        seen = {agent}
        rows = self._of(store)
        while wanted:
            found |= await self._own_by_id(rows, name, newest, shared, wanted)
            wanted -= found.keys()
            # What was done before the fork was done in the fork's history, too.
            if not wanted or parent is None or parent in seen:
                break
            name, shared = parent, min(shared, forked_at)
            seen.add(name)
            end = await rows.newest(name)
            newest = (await rows.holding(name, shared, end)).number
            parent, forked_at = end.lineage.parent, end.lineage.forked_at
        return found

    async def _own_by_id(
        self, rows: EventRows, agent: str, newest: int, shared: int, ids: Collection[str]
    ) -> dict[str, Event]:
        tables = rows.tables(agent)
        listed = sorted(ids)
        buckets = range(newest, max(-1, newest - ID_BUCKETS), -1)
        asked = [
            (bucket, listed[start : start + IN_MAX])
            for bucket in buckets
            for start in range(0, len(listed), IN_MAX)
        ]
        answers = await self._session.execute_many(
            (tables.ids, (rows.store, agent, bucket, part)) for bucket, part in asked
        )
        places: dict[int, dict[int, str]] = {}
        for (bucket, _), answer in zip(asked, answers, strict=True):
            for event_id, sequence in answer:
                if sequence <= shared:
                    places.setdefault(bucket, {})[sequence] = event_id
        found: dict[str, Event] = {}
        for bucket, sequences in places.items():
            events, _ = await rows.events(agent, bucket, sequences)
            found |= {sequences[event.sequence]: event for event in events}
        return found

    async def by_writer(
        self, store: str, agent: str, stream: Stream, wanted: Collection[tuple[str, int]]
    ) -> dict[tuple[str, int], Event]:
        # A writer's numbers go up along the stream: going back, one below the wanted ends it.
        missing: dict[str, set[int]] = {}
        for writer, number in wanted:
            missing.setdefault(writer, set()).add(number)
        found: dict[tuple[str, int], Event] = {}
        async with contextlib.aclosing(self._back(store, agent, stream)) as pages:
            async for page in pages:
                for event in decoded(row[0] for row in page):
                    numbers = missing.get(event.writer)
                    if numbers is None:
                        continue
                    if event.writer_sequence in numbers:
                        numbers.remove(event.writer_sequence)
                        found[event.writer, event.writer_sequence] = event
                    if not numbers or event.writer_sequence <= min(numbers):
                        del missing[event.writer]
                if not missing:
                    break
        return found

    async def last_of(self, store: str, agent: str, writers: Collection[str]) -> dict[str, int]:
        tables = self._generations.of(store, agent)
        listed = sorted(set(writers))
        answers = await self._session.execute_many(
            (tables.writers, (store, agent, listed[start : start + IN_MAX]))
            for start in range(0, len(listed), IN_MAX)
        )
        return {writer: last for rows in answers for writer, last in rows}

    async def written_at(
        self, store: str, agent: str, stream: Stream, positions: Collection[int]
    ) -> dict[int, Written]:
        asked = sorted(set(positions))
        found: dict[int, list[bytes]] = {position: [] for position in asked}
        before: dict[int, int] = {}
        sequence = stream.head.sequence
        async with contextlib.aclosing(self._back(store, agent, stream)) as pages:
            async for page in pages:
                for data, written in page:
                    position = written - self._base
                    while asked and asked[-1] > position:
                        before[asked.pop()] = sequence
                    if asked and asked[-1] == position:
                        found[position].append(data)
                    sequence -= 1
                if not asked:
                    break
        return {
            position: Written(before.get(position, stream.forked_at), data[::-1])
            for position, data in found.items()
        }

    async def _back(
        self, store: str, agent: str, stream: Stream
    ) -> AsyncGenerator[list[Cells], None]:
        """Stored bytes and stamps of the agent's own events, from its last one back, in pages."""
        tables = self._generations.of(store, agent)
        size = page_rows(stream.events, stream.bytes)
        for bucket in range(stream.bucket, -1, -1):
            key = (store, agent, bucket, stream.head.sequence)
            pages = self._session.pages(tables.events_back, key, rows=size)
            async with contextlib.aclosing(pages):
                async for page in pages:
                    yield page

    def _of(self, store: str) -> EventRows:
        rows = self._rows.get(store)
        if rows is None:
            if len(self._rows) >= STORES_MAX:
                self._rows.clear()
            rows = self._rows[store] = EventRows(self._session, store, self._generations)
        return rows


_PLAIN: Final = Lineage()

_one = struct.Struct(">iq").pack
_two = struct.Struct(">iqiq").pack
_three = struct.Struct(">iqiqiq").pack
"""Numbers of 8 bytes, each after its length."""
