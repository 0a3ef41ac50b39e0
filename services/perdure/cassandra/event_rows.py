"""Reading the rows of streams, for the recorder and for readers alike.

A bucket that has a successor never changes again: what is known of it is kept.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from perdure.cassandra.cells import Lineage, unpacked_lineage
from perdure.cassandra.session import Row, Session
from perdure.cassandra.tables import Generations, Tables
from perdure.errors import Corrupt, NotFound
from perdure.model.event import Event, decode_all

BATCH_BYTES: Final = 256 * 1024
"""Stored bytes of one page of events, about: what is decoded before others get their turn."""

CLOSED_MAX: Final = 16_384
"""Closed buckets that are remembered, about 300 bytes each."""

NEWEST_MAX: Final = 65_536
"""Agents of which the number of the newest bucket is remembered."""

IN_MAX: Final = 100
"""Keys in one request."""

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Bucket(NamedTuple):
    """The static columns of a bucket. `time_max` is in microseconds since 1970.

    `writers` and `written` (the stamp of the head) are there where they were asked for.
    """

    number: int
    first: int
    chain_before: bytes
    last: int
    epoch: int
    position: int
    chain: bytes
    time_max: int | None
    events: int
    bytes: int
    lineage: Lineage
    writers: dict[str, int] | None = None
    written: int = 0


class EventRows:
    """The rows of one store's streams."""

    def __init__(self, session: Session, store: str, generations: Generations) -> None:
        self.session = session
        self.store = store
        self._generations = generations
        self._closed: dict[tuple[str, str, int], Bucket] = {}
        self._newest: dict[tuple[str, str], int] = {}

    def tables(self, agent: str) -> Tables:
        """The tables that hold an agent."""
        return self._generations.of(self.store, agent)

    async def bucket(self, agent: str, number: int) -> Bucket | None:
        """A bucket; None where there is none of this number.

        Raises:
            Corrupt: it has no head.
        """
        tables = self.tables(agent)
        known = self._closed.get((tables.keyspace, agent, number))
        if known is not None:
            return known
        rows = await self.session.execute(tables.bucket, (self.store, agent, number))
        return _bucket(agent, rows[0]) if rows else None

    async def with_writers(self, agent: str, number: int) -> Bucket | None:
        """As `bucket`, with its writers and the stamp of its head, as they are in one moment.

        Raises Corrupt.
        """
        tables = self.tables(agent)
        rows = await self.session.execute(tables.bucket_writers, (self.store, agent, number))
        if not rows:
            return None
        *head, writers, written = rows[0]
        return _bucket(agent, head)._replace(writers=dict(writers or {}), written=written)

    async def newest(self, agent: str) -> Bucket:
        """The bucket at whose end the stream stands.

        Raises:
            NotFound: there is no such agent.
            Corrupt: its newest bucket is missing.
        """
        found = await self.find_newest(agent, self.bucket)
        if found is None:
            raise no_agent(agent)
        return found

    async def find_newest(
        self, agent: str, read: Callable[[str, int], Awaitable[Bucket | None]]
    ) -> Bucket | None:
        """As `newest`, read by `bucket` or `with_writers`; None where there is no such agent."""
        tables = self.tables(agent)
        key = (tables.keyspace, agent)
        hint = self._newest.get(key)
        if hint is None:
            first, rows = await asyncio.gather(
                read(agent, 0), self.session.execute(tables.stream, (self.store, agent))
            )
            hint = int(rows[0][0]) if rows else 0
            found = first if hint == 0 else await read(agent, hint)
            if found is None and hint > 0:
                # Its hint is written before a bucket is opened.
                found = await read(agent, hint - 1)
                if found is None:
                    raise _no_bucket(agent, hint - 1)
        else:
            found, later = await asyncio.gather(read(agent, hint), read(agent, hint + 1))
            while later is not None:
                found, later = later, await read(agent, later.number + 1)
            if found is None:
                raise _no_bucket(agent, hint)
        if found is not None:
            _remember(self._newest, key, found.number, NEWEST_MAX)
        return found

    async def closed(self, agent: str, number: int) -> Bucket:
        """A bucket that has a successor.

        Raises:
            Corrupt: it is missing.
        """
        found = await self.bucket(agent, number)
        if found is None:
            raise _no_bucket(agent, number)
        _remember(self._closed, (self.tables(agent).keyspace, agent, number), found, CLOSED_MAX)
        return found

    async def holding(self, agent: str, sequence: int, newest: Bucket) -> Bucket:
        """The bucket with an event of the agent's own stream; the first, for one before it.

        Found by bisection: buckets start in the order of their numbers. Raises Corrupt.
        """
        if sequence >= newest.first:
            return newest
        low, high = 0, newest.number - 1
        while True:
            middle = (low + high + 1) // 2
            found = await self.closed(agent, middle)
            if sequence < found.first:
                if middle == 0:
                    return found
                high = middle - 1
            elif sequence > found.last and middle < high:
                low = middle + 1
            else:
                return found
            if low > high:
                return await self.closed(agent, high)

    def pages(
        self, agent: str, bucket: Bucket, first: int, last: int
    ) -> AsyncGenerator[list[Row], None]:
        """The stored bytes of events of one bucket, one a row, in pages of about `BATCH_BYTES`."""
        return self.session.pages(
            self.tables(agent).events,
            (self.store, agent, bucket.number, first, last),
            rows=page_rows(bucket.events, bucket.bytes),
        )

    async def events(
        self, agent: str, bucket: int, sequences: Collection[int]
    ) -> tuple[list[Event], int]:
        """Events of one bucket in their order, and their stored bytes.

        Raises:
            Corrupt: one of them is missing or damaged.
        """
        wanted = sorted(sequences)
        tables = self.tables(agent)
        parts = [wanted[start : start + IN_MAX] for start in range(0, len(wanted), IN_MAX)]
        answers = await self.session.execute_many(
            (tables.events_of, (self.store, agent, bucket, part)) for part in parts
        )
        found = [row[0] for rows in answers for row in rows]
        events = decoded(found)
        if [event.sequence for event in events] != wanted:
            missing = set(wanted) - {event.sequence for event in events}
            raise gap(agent, min(missing, default=wanted[0]))
        return events, sum(map(len, found))


def page_rows(events: int, size: int) -> int:
    """How many rows of a bucket of so many events and bytes make a page of about `BATCH_BYTES`."""
    return max(16, BATCH_BYTES * max(1, events) // max(1, size))


def decoded(found: Iterable[bytes]) -> list[Event]:
    """Events from their stored bytes. Raises Corrupt."""
    return decode_all(b"[" + b",".join(found) + b"]")


def gap(agent: str, sequence: int) -> Corrupt:
    """The error of an event that is not where it should be."""
    return Corrupt(
        f"event {agent}@{sequence} is missing in Cassandra",
        hint=f"`perdure verify {agent}` shows what is damaged; `perdure replay` builds it anew",
    )


def no_agent(agent: str) -> NotFound:
    """The error of an agent that nobody wrote."""
    return NotFound(
        f"there is no agent {agent} in this store", hint="`perdure agents` lists those that are"
    )


def _no_bucket(agent: str, number: int) -> Corrupt:
    return Corrupt(
        f"bucket {number} of agent {agent} is missing in Cassandra",
        hint=f"`perdure verify {agent}` shows what is damaged; `perdure replay` builds it anew",
    )


def _bucket(agent: str, row: Sequence[Any]) -> Bucket:
    number, first, chain_before, last, epoch, position, chain, time_max, events, size, lineage = row
    if None in {first, chain_before, last, epoch, position, chain, events, size}:
        raise Corrupt(
            f"the head of agent {agent} in Cassandra (bucket {number}) is damaged",
            hint=f"`perdure verify {agent}` shows what is; `perdure replay` builds it anew",
        )
    return Bucket(
        number, first, chain_before, last, epoch, position, chain, time_max, events, size,
        unpacked_lineage(lineage),
    )  # fmt: skip


def _remember(known: dict[_Key, _Value], key: _Key, value: _Value, most: int) -> None:
    """Keep a value as the newest; the oldest is forgotten where there are too many."""
    known.pop(key, None)
    if len(known) >= most:
        del known[next(iter(known))]
    known[key] = value
