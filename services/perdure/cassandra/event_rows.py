"""Reading the rows of streams, for the recorder and for readers alike.

A bucket that has a successor never changes again: what is known of it is kept.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Final, TypeAlias, TypeVar

from perdure.cassandra.cells import unpacked_lineage
from perdure.cassandra.session import Session, Statement
from perdure.cassandra.tables import Bucket, Generations, Tables
from perdure.errors import Corrupt, NotFound
from perdure.model.event import Event, decode_all
from perdure.recorder.buckets import is_full

BATCH_BYTES: Final = 256 * 1024
"""Stored bytes of one page of events, about: what is decoded before others get their turn."""

CLOSED_MAX: Final = 16_384
"""Closed buckets of a generation that are remembered, about 600 bytes each."""

NEWEST_MAX: Final = 4096
"""Agents of a generation whose newest bucket is remembered as it was last seen, about 800 bytes
each. It spares a reader of a long stream looking for that bucket, and a reader of events that were
there already looking at it."""

IN_MAX: Final = 100
"""Keys in one request."""

Request: TypeAlias = "tuple[Statement, Sequence[object]]"
"""What `Session.execute` takes."""

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class EventRows:
    """The rows of one store's streams."""

    def __init__(self, session: Session, store: str, generations: Generations) -> None:
        self.session = session
        self.store = store
        self._generations = generations

    def tables(self, agent: str) -> Tables:
        """The tables that hold an agent."""
        return self._generations.of(self.store, agent)

    async def bucket(self, agent: str, number: int) -> Bucket | None:
        """A bucket; None where there is none of this number.

        Raises:
            Corrupt: it has no head.
        """
        known = self.tables(agent).known.closed.get((self.store, agent, number))
        return known or await self.stored_bucket(agent, number)

    async def stored_bucket(self, agent: str, number: int) -> Bucket | None:
        """As `bucket`, from the table whatever is known of it."""
        rows = await self.session.execute(self.tables(agent).bucket, (self.store, agent, number))
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
        known, key = tables.known.newest, (self.store, agent)
        seen = known.get(key)
        if seen is None:
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
            found = later = await read(agent, seen.number)
            if found is None:
                raise _no_bucket(agent, seen.number)
            while later is not None and is_full(later.events, later.bytes):
                later = await read(agent, later.number + 1)
                found = later or found
        if found is not None:
            _remember(known, key, found._replace(writers=None), NEWEST_MAX)
        return found

    async def reaching(self, agent: str, sequence: int) -> Bucket:
        """The newest bucket, as it was when the stream had got to `sequence`, or after that.

        Raises as `newest` does.
        """
        seen = self.tables(agent).known.newest.get((self.store, agent))
        return seen if seen is not None and seen.last >= sequence else await self.newest(agent)

    async def closed(self, agent: str, number: int) -> Bucket:
        """A bucket that has a successor.

        Raises:
            Corrupt: it is missing.
        """
        found = await self.bucket(agent, number)
        if found is None:
            raise _no_bucket(agent, number)
        known = self.tables(agent).known.closed
        _remember(known, (self.store, agent, number), found, CLOSED_MAX)
        return found

    async def holding(self, agent: str, sequence: int, newest: Bucket) -> Bucket:
        """The bucket with an event of the agent's own stream; the first, for one before it.

        Found by bisection: buckets start in the order of their numbers. Raises Corrupt.
        """
        if sequence >= newest.first or newest.number == 0:
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

    def requests(self, agent: str, bucket: Bucket, first: int, last: int) -> Iterator[Request]:
        """The requests that read stored bytes of events of one bucket, one event a row.

        Each is for about `BATCH_BYTES`. None needs the answer to another, as the driver's pages do.
        """
        statement = self.tables(agent).events
        rows = page_rows(bucket.events, bucket.bytes)
        last = min(last, bucket.last)
        for start in range(max(first, bucket.first), last + 1, rows):
            end = min(last, start + rows - 1)
            yield statement, (self.store, agent, bucket.number, start, end)

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
